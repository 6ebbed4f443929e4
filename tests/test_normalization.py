"""Normalization, against PyTorch, over several steps, and where float32 is short of digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import layers

RNG = np.random.default_rng(0)


def features_second(x):
    """From our layout, features last, to PyTorch's, features second; and back with ``np.moveaxis(y, 1, -1)``."""
    return np.moveaxis(x, -1, 1).copy()


def filled(torch, twin, params):
    with torch.no_grad():
        for ours, theirs in (("scale", "weight"), ("bias", "bias")):
            if ours in params:
                getattr(twin, theirs).copy_(torch.tensor(np.array(params[ours])))
    return twin


def drawn(params):
    rng = np.random.default_rng(1)  # the same for every test, whichever others were run before it
    return {k: jnp.asarray(rng.normal(1.0, 0.5, v.shape), v.dtype) for k, v in params.items()}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 5), (4, 6, 5), (3, 4, 2, 5), (2, 2, 3, 2, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_trains_and_evaluates_as_in_pytorch(torch, shape, affine):
    kind = [torch.nn.BatchNorm1d, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d][len(shape) - 2]
    layer = layers.batch_norm(momentum=0.7, epsilon=1e-3, scale=affine, bias=affine)
    params, state = layer.init(jax.random.key(0), jnp.ones(shape))
    params = drawn(params)
    twin = filled(torch, kind(5, eps=1e-3, momentum=0.3, affine=affine), params)

    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def differentiated(params, x, state):
        y, new = layer.apply(params, state, x, training=True)
        return jnp.sin(y).sum(), (y, new)

    compiled = jax.jit(differentiated)
    for _ in range(4):
        x = (RNG.normal(size=shape) * 3 + np.arange(5)).astype(np.float32)
        given = torch.tensor(features_second(x), requires_grad=True)
        expected = twin(given)
        twin.zero_grad()
        torch.sin(expected).sum().backward()
        (gradient, x_gradient), (y, state) = compiled(params, x, state)
        np.testing.assert_allclose(y, np.moveaxis(expected.detach().numpy(), 1, -1), rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(x_gradient, np.moveaxis(given.grad.numpy(), 1, -1), rtol=1e-4, atol=1e-5)
        if affine:
            np.testing.assert_allclose(gradient["scale"], twin.weight.grad.numpy(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(gradient["bias"], twin.bias.grad.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state["mean"], twin.running_mean.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state["var"], twin.running_var.numpy(), rtol=1e-5)
    twin.eval()
    expected = twin(torch.tensor(features_second(x))).detach().numpy()
    y, new = layer.apply(params, state, x)
    np.testing.assert_allclose(y, np.moveaxis(expected, 1, -1), rtol=1e-5, atol=2e-6)
    assert new is state


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_momentum_of_batch_norm_is_the_part_that_is_kept(momentum):
    layer = layers.batch_norm(momentum=momentum)
    params, state = layer.init(jax.random.key(0), jnp.ones((4, 1)))
    _, new = layer.apply(params, state, jnp.array([[1.0], [2.0], [3.0], [6.0]]), training=True)
    assert (float(new["mean"][0]), float(new["var"][0])) == ((0.0, 1.0) if momentum else (3.0, pytest.approx(14 / 3)))


def exact(x, epsilon, axis):
    x = np.asarray(x, np.float64)
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + epsilon)


@pytest.mark.parametrize("mean", [1e3, -1e4])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_mean_far_from_zero_costs_no_digits_but_those_of_the_input(mean, compiled):
    """``mean(x^2) - mean(x)^2`` is off by 0.06 at a mean of 1000, where x^2 has a spacing of 0.06 in float32."""
    x = jnp.asarray(RNG.normal(mean, 1.0, (64, 128)), jnp.float32)
    for layer, axis in ((layers.batch_norm(), 0), (layers.layer_norm(), 1)):
        params, state = layer.init(jax.random.key(0), x)
        apply = jax.jit(layer.apply, static_argnames="training") if compiled else layer.apply
        y, new = apply(params, state, x, training=True)
        np.testing.assert_allclose(y, exact(x, 1e-5, axis), atol=abs(mean) * 1e-6)
        if axis == 0:
            np.testing.assert_allclose(new["var"], 0.9 + 0.1 * np.var(np.float64(x), axis=0, ddof=1), rtol=1e-5)
            y, _ = apply(params, {"mean": jnp.mean(x, 0), "var": jnp.var(x, 0)}, x)
            np.testing.assert_allclose(y, exact(x, 1e-5, axis), atol=abs(mean) * 1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_normalised_in_float32_and_rounded_once(dtype):
    """Sums of 70000 in float16 are infinite, and counting in bfloat16 stops at 256."""
    x = jnp.asarray(RNG.normal(60, 20, (1500, 64)), dtype)
    for layer, axis in ((layers.batch_norm(), 0), (layers.layer_norm(), 1)):
        params, state = layer.init(jax.random.key(0), x)
        y, new = layer.apply(params, state, x, training=True)
        assert y.dtype == dtype
        np.testing.assert_allclose(
            np.float64(y), exact(np.float64(x), 1e-5, axis), rtol=float(jnp.finfo(dtype).eps), atol=1e-5
        )
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, new)))


def test_the_steps_of_a_constant_feature_stay_finite():
    x = jnp.full((8, 3), 5.0)
    for layer in (layers.batch_norm(), layers.layer_norm()):
        params, state = layer.init(jax.random.key(0), x)
        y, _ = layer.apply(params, state, x, training=True)
        np.testing.assert_allclose(y, jnp.zeros_like(x), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 1, 4)])
def test_batch_norm_refuses_to_train_on_one_value_of_each_feature(shape):
    layer = layers.batch_norm()
    params, state = layer.init(jax.random.key(0), jnp.ones(shape))
    assert layer.apply(params, state, jnp.ones(shape))[0].shape == shape
    with pytest.raises(
        ValueError, match=r"batch_norm: expected at least 2 values of each .*, got 1 in an input .*drop_last=True"
    ):
        layer.apply(params, state, jnp.ones(shape), training=True)
    layer.apply(params, state, jnp.ones((1, 2, 4)), training=True)


def test_batch_norm_in_a_repeated_and_nested_place_keeps_averages_of_its_own():
    norm = layers.batch_norm(momentum=0.0)
    model = layers.serial(norm, layers.function(lambda x: 2 * x + 1), norm, layers.serial(layers.sin, norm))
    x = jnp.asarray(RNG.normal(3, 2, (50, 2)), jnp.float32)
    params, state = model.init(jax.random.key(0), x)
    _, state = model.apply(params, state, x, training=True)
    a = np.asarray(x, np.float64)
    np.testing.assert_allclose(state["batch_norm_0"]["mean"], a.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["batch_norm_0"]["var"], a.var(0, ddof=1), rtol=1e-5)
    b = 2 * exact(a, 1e-5, 0) + 1
    np.testing.assert_allclose(state["batch_norm_1"]["mean"], b.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["batch_norm_1"]["var"], b.var(0, ddof=1), rtol=1e-5)
    c = np.sin(exact(b, 1e-5, 0))
    np.testing.assert_allclose(state["serial_0"]["batch_norm_0"]["var"], c.var(0, ddof=1), rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 5), (2, 3, 5), (2, 2, 3, 5), (5,), (0, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_and_its_gradients_are_those_of_pytorch(torch, shape, affine):
    layer = layers.layer_norm(epsilon=1e-3, scale=affine, bias=affine)
    x = (RNG.normal(size=shape) * 3 + 1).astype(np.float32)
    params, state = layer.init(jax.random.key(0), x)
    params = drawn(params)
    twin = filled(torch, torch.nn.LayerNorm(5, eps=1e-3, elementwise_affine=affine), params)
    given = torch.tensor(x, requires_grad=True)
    expected = twin(given)
    torch.sin(expected).sum().backward()
    np.testing.assert_allclose(layer.apply(params, state, x)[0], expected.detach().numpy(), rtol=1e-5, atol=2e-6)

    def total(params, x):
        return jnp.sin(layer.apply(params, state, x)[0]).sum()

    gradient, x_gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(params, x)
    np.testing.assert_allclose(x_gradient, given.grad.numpy(), rtol=1e-4, atol=1e-5)
    if affine:
        np.testing.assert_allclose(gradient["scale"], twin.weight.grad.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradient["bias"], twin.bias.grad.numpy(), rtol=1e-4, atol=1e-5)


def agrees_with(torch, layer, twin, x, second):
    """Output and gradients of a layer against its twin, which takes the features second if ``second``."""
    params, state = layer.init(jax.random.key(0), x)
    params = drawn(params)
    twin = filled(torch, twin, params).double()  # the truth, for both round
    leaf = torch.tensor(x.astype(np.float64), requires_grad=True)
    expected = torch.movedim(twin(torch.movedim(leaf, -1, 1)), 1, -1) if second else twin(leaf)
    torch.sin(expected).sum().backward()

    def total(params, x):
        y, new = layer.apply(params, state, x, training=True)
        return jnp.sin(y).sum(), (y, new)

    (gradient, x_gradient), (y, new) = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, x)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(x_gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-5)
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        if ours in params:
            np.testing.assert_allclose(gradient[ours], getattr(twin, theirs).grad.numpy(), rtol=1e-4, atol=1e-5)
    assert (state, new) == ({}, {})


def of_groups(torch, shape, groups, affine):
    x = (np.random.default_rng(0).normal(size=shape) * 3 + 1).astype(np.float32)
    twin = torch.nn.GroupNorm(groups, shape[-1], eps=1e-3, affine=affine)
    agrees_with(torch, layers.group_norm(groups, epsilon=1e-3, scale=affine, bias=affine), twin, x, True)


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 6), 2), ((1, 5, 6), 3), ((2, 3, 5, 6), 1), ((2, 1, 3, 6), 6), ((2, 2, 3, 1, 4), 2)]
)
def test_group_norm_and_its_gradients_are_those_of_pytorch(torch, shape, groups):
    of_groups(torch, shape, groups, True)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 5), max_size=3),
    batch=st.integers(1, 3),
    groups=st.integers(1, 4),
    each=st.integers(2, 4),
    affine=st.booleans(),
)
def test_group_norm_is_that_of_pytorch_for_all_shapes(torch, sizes, batch, groups, each, affine):
    of_groups(torch, (batch, *sizes, groups * each), groups, affine)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 2, 3, 5), (2, 3, 1, 2, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_and_its_gradients_are_those_of_pytorch(torch, shape, affine):
    twin = getattr(torch.nn, f"InstanceNorm{len(shape) - 2}d")(5, eps=1e-3, affine=affine)
    x = (np.random.default_rng(0).normal(size=shape) * 3 + 1).astype(np.float32)
    agrees_with(torch, layers.instance_norm(epsilon=1e-3, scale=affine, bias=affine), twin, x, True)


@pytest.mark.parametrize("shape", [(8, 5), (2, 2, 3, 5), (1, 5), (5,), (0, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm_and_its_gradients_are_those_of_pytorch(torch, shape, affine):
    twin = torch.nn.RMSNorm(5, eps=1e-3, elementwise_affine=affine)
    x = (np.random.default_rng(0).normal(size=shape) * 3 + 1).astype(np.float32)
    agrees_with(torch, layers.rms_norm(epsilon=1e-3, scale=affine), twin, x, False)


@pytest.mark.parametrize("mean", [1e3, -1e4])
def test_a_mean_far_from_zero_costs_groups_no_digits(mean):
    x = jnp.asarray(np.random.default_rng(0).normal(mean, 1.0, (4, 64, 32)), jnp.float32)
    y, _ = layers.group_norm(2, scale=False, bias=False).apply({}, {}, x)
    expected = exact(np.float64(x).reshape(4, 64, 2, 16), 1e-5, (1, 3)).reshape(x.shape)
    np.testing.assert_allclose(y, expected, atol=abs(mean) * 1e-6)
    y, _ = layers.instance_norm(scale=False, bias=False).apply({}, {}, x)
    np.testing.assert_allclose(y, exact(x, 1e-5, 1), atol=abs(mean) * 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_groups_of_half_precision_are_normalised_in_float32_and_rounded_once(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(60, 20, (2, 900, 64)), dtype)
    wide, options = np.float64(x), {"scale": False, "bias": False}
    grouped = exact(wide.reshape(2, 900, 4, 16), 1e-5, (1, 3)).reshape(x.shape)
    for layer, expected in (
        (layers.group_norm(4, **options), grouped),
        (layers.instance_norm(**options), exact(wide, 1e-5, 1)),
        (layers.rms_norm(scale=False), wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)),
    ):
        y, _ = layer.apply({}, {}, x)
        assert y.dtype == dtype
        np.testing.assert_allclose(np.float64(y), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            layers.group_norm(4),
            (2, 3, 6),
            r"group_norm: expected features that 4 groups divide, got 6 in an input of shape \(2, 3, 6\); choose",
        ),
        (layers.group_norm(4), (8,), r"group_norm: expected at least 2 axes, \(batch, .*got shape \(8,\); add a batch"),
        (
            layers.instance_norm(),
            (2, 6),
            r"instance_norm: expected \(batch, \*spatial, features\) with at least 2 positions, got shape \(2, 6\); a",
        ),
        (layers.instance_norm(), (2, 1, 1, 6), r"instance_norm: expected .* got shape \(2, 1, 1, 6\); a single one"),
        (layers.rms_norm(), (), r"rms_norm: expected at least 1 axes"),
    ],
)
def test_inputs_that_cannot_be_normalised_are_refused(layer, shape, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        layer.init(jax.random.key(0), jnp.ones(shape))
    with pytest.raises(ValueError, match=f"^{message}"):
        layer.apply(layer.init(jax.random.key(0), jnp.ones((2, 3, 8)))[0], {}, jnp.ones(shape))


def test_groups_are_a_count():
    with pytest.raises(ValueError, match=r"^group_norm: expected groups of at least 1, got 0"):
        layers.group_norm(0)
    with pytest.raises(TypeError, match=r"^group_norm: expected groups as a whole number, got float 2\.0"):
        layers.group_norm(2.0)


def test_the_defaults_are_those_of_pytorch(torch):
    x = (RNG.normal(size=(6, 4)) * 1e-2).astype(np.float32)
    for layer, twin in ((layers.batch_norm(), torch.nn.BatchNorm1d(4)), (layers.layer_norm(), torch.nn.LayerNorm(4))):
        params, state = layer.init(jax.random.key(0), x)
        y, new = layer.apply(params, state, x, training=True)
        np.testing.assert_allclose(y, twin(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
        if new:
            np.testing.assert_allclose(new["var"], twin.running_var.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "layer", [layers.batch_norm(), layers.layer_norm(), layers.rms_norm()], ids=lambda layer: layer.kind
)
def test_other_features_than_at_init_are_refused(layer):
    params, state = layer.init(jax.random.key(0), jnp.ones((2, 4)))
    message = (
        rf"{layer.kind}: expected 4 input features, as its \w+ \(4,\) has, got 3 in an input of shape \(2, 3\); pass"
    )
    with pytest.raises(ValueError, match=message):
        layer.apply(params, state, jnp.ones((2, 3)))


def test_too_few_axes_and_hyperparameters_out_of_range_are_refused():
    with pytest.raises(
        ValueError, match=r"batch_norm: expected at least 2 axes, \(batch, .*got shape \(4,\); add a batch axis"
    ):
        layers.batch_norm().init(jax.random.key(0), jnp.ones(4))
    with pytest.raises(ValueError, match=r"layer_norm: expected at least 1 axes"):
        layers.layer_norm().init(jax.random.key(0), jnp.ones(()))
    with pytest.raises(ValueError, match=r"batch_norm: expected momentum from 0\.0 to 1\.0, got 1\.5"):
        layers.batch_norm(momentum=1.5)
    group_norm = functools.partial(layers.group_norm, 2)
    for factory in (layers.batch_norm, layers.layer_norm, layers.rms_norm, group_norm, layers.instance_norm):
        with pytest.raises(ValueError, match="expected epsilon from"):
            factory(epsilon=-1.0)


# ---- params of another layer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [layers.layer_norm(), layers.batch_norm(), layers.group_norm(2), layers.instance_norm(), layers.rms_norm()]
)
def test_params_that_are_missing_or_too_many_are_refused(layer):
    x = jnp.asarray(RNG.normal(size=(3, 4, 6)), jnp.float32)
    params, state = layer.init(jax.random.key(0), x)
    others = [{name: a for name, a in params.items() if name != left} for left in params]
    for wrong in (*others, params | {"offset": jnp.ones(6)}):
        with pytest.raises(ValueError, match=rf"{layer.kind}: expected params with \[.*'scale'\], got \["):
            layer.apply(wrong, state, x)
    plain = layers.layer_norm(bias=False)
    with pytest.raises(ValueError, match=r"layer_norm: expected params with \['scale'\], got \['bias', 'scale'\]"):
        plain.apply({"scale": jnp.ones(6), "bias": jnp.ones(6)}, {}, x)
