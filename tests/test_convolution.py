"""Convolution against PyTorch, and what it says about wrong inputs and arguments."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import numbers_for, quickly_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import layers, primitives


@st.composite
def convolutions(draw):
    """An input shape and the arguments of a convolution that fits it, padding in pairs."""
    rank = draw(st.integers(1, 3))

    def one_each(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    groups = draw(st.integers(1, 3))
    inputs, features = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    window, strides, dilation = one_each(1, 3), one_each(1, 3), one_each(1, 2)
    padding = tuple(zip(one_each(0, 2), one_each(0, 2), strict=True))
    sizes = tuple(
        draw(st.integers(max(1, (w - 1) * d + 1 - low - high), 7))
        for w, d, (low, high) in zip(window, dilation, padding, strict=True)
    )
    shape = (draw(st.integers(1, 3)), *sizes, inputs)
    return shape, features, window, strides, padding, dilation, groups, draw(st.booleans())


def torch_conv(torch, x, kernel, bias, strides, padding, dilation, groups):
    """Features first and back, the padding beforehand since PyTorch has no pairs."""
    rank = x.ndim - 2
    x, kernel = torch.movedim(x, -1, 1), torch.movedim(kernel, (-1, -2), (0, 1))
    x = torch.nn.functional.pad(x, [count for pair in reversed(padding) for count in pair])
    conv = getattr(torch.nn.functional, f"conv{rank}d")
    return torch.movedim(conv(x, kernel, bias, strides, 0, dilation, groups), 1, -1)


@pytest.mark.slow
@settings(max_examples=15)
@given(case=convolutions())
def test_conv_and_its_gradients_are_those_of_pytorch(torch, case):
    shape, features, window, strides, padding, dilation, groups, bias = case
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layer = layers.conv(
        features,
        window,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        bias_init=jax.nn.initializers.normal(1.0),
    )
    params = numbers_for(layer, x)

    @jax.jit
    def outputs_and_gradients(params, x):
        def total(params, x):
            y, _ = layer.apply(params, {}, x)
            return jnp.sin(y).sum(), y

        gradients, y = jax.grad(total, (0, 1), has_aux=True)(params, x)
        return y, gradients

    with quickly_compiled():
        y, (gradients, x_gradient) = outputs_and_gradients(params, x)
    given = {name: torch.tensor(np.array(value), requires_grad=True) for name, value in {**params, "x": x}.items()}
    expected = torch_conv(torch, given["x"], given["kernel"], given.get("bias"), strides, padding, dilation, groups)
    torch.sin(expected).sum().backward()
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    for name, gradient in {**gradients, "x": x_gradient}.items():
        np.testing.assert_allclose(gradient, given[name].grad.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # it says that this copies
@pytest.mark.parametrize("shape", [(2, 7, 3), (2, 6, 7, 3), (1, 5, 4, 3, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1])
def test_padding_by_name_and_by_number_is_that_of_pytorch(torch, shape, dilation, padding):
    if padding == "VALID" and dilation == 2:
        shape = (*shape[:1], *(size + 2 for size in shape[1:-1]), shape[-1])
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layer = layers.conv(4, 2, padding=padding, dilation=dilation)
    params, _ = layer.init(jax.random.key(0), x)
    functional = getattr(torch.nn.functional, f"conv{len(shape) - 2}d")
    kernel = torch.movedim(torch.tensor(np.array(params["kernel"])), (-1, -2), (0, 1))
    lower = padding.lower() if isinstance(padding, str) else padding
    expected = functional(torch.movedim(torch.tensor(x), -1, 1), kernel, None, 1, lower, dilation)
    ours = jax.jit(lambda p, x: layer.apply(p, {}, x)[0])(params, x)
    np.testing.assert_allclose(ours, torch.movedim(expected, 1, -1).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "starts"), [(7, 2, [-1, 1, 3, 5]), (6, 2, [0, 2, 4]), (6, 4, [0, 4])])
def test_same_with_strides_puts_the_larger_half_of_the_padding_after(size, stride, starts):
    x = np.arange(1.0, size + 1, dtype=np.float32)
    layer = layers.conv(1, 3, strides=stride, kernel_init=jax.nn.initializers.ones)
    params, _ = layer.init(jax.random.key(0), x[None, :, None])
    at = dict(enumerate(x.tolist()))
    expected = [sum(at.get(start + i, 0.0) for i in range(3)) for start in starts]
    assert layer.apply(params, {}, x[None, :, None])[0].ravel().tolist() == expected


def test_a_number_means_the_same_in_each_axis_and_a_pair_may_stand_beside_a_number():
    x = jax.ShapeDtypeStruct((2, 9, 8, 3), jnp.float32)
    layer = layers.conv(4, 3, strides=2, padding=((2, 1), 0), dilation=(1, 2))
    params, state = layer.init(jax.random.key(0), x)
    assert params["kernel"].shape == (3, 3, 3, 4)
    assert jax.eval_shape(layer.apply, params, state, x)[0].shape == (2, 5, 2, 4)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_kernel_is_glorot_uniform_with_the_window_among_its_inputs(groups):
    params, _ = layers.conv(64, 3, groups=groups).init(jax.random.key(0), jnp.ones((1, 5, 5, 128)))
    bound = np.sqrt(6 / (9 * 128 / groups + 9 * 64))
    assert params["kernel"].shape == (3, 3, 128 // groups, 64)
    assert 0.999 * bound < np.abs(params["kernel"]).max() <= bound
    np.testing.assert_allclose(np.var(params["kernel"]), bound**2 / 3, rtol=0.02)
    assert params["bias"].shape == (64,)
    assert not params["bias"].any()


def test_a_point_convolution_is_a_dense_layer_at_each_point():
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    params, _ = layers.conv(6, 1).init(jax.random.key(0), x)
    dense = {"kernel": params["kernel"][0, 0], "bias": params["bias"]}
    ours, theirs = (layer.apply(p, {}, x)[0] for layer, p in ((layers.conv(6, 1), params), (layers.dense(6), dense)))
    np.testing.assert_array_equal(ours, theirs)


# ---- depthwise and separable -----------------------------------------------------------------------------------------


@quickly_compiled()
def depthwise_agrees_with_torch(torch, case, multiplier):
    """PyTorch's grouped convolution, with as many groups as features; then, for the separable one, a point of it."""
    shape, features, window, strides, padding, dilation, _, bias = case
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    options = {"multiplier": multiplier, "strides": strides, "padding": padding, "dilation": dilation, "bias": bias}
    offsets = {"bias_init": jax.nn.initializers.normal(1.0)}
    depthwise = layers.depthwise_conv(window, **options, **offsets)
    separable = layers.separable_conv(features, window, **options, **offsets)

    @jax.jit
    def outputs_and_gradients(params, x):
        def total(params, x):
            both = [layer.apply(p, {}, x)[0] for layer, p in zip((depthwise, separable), params, strict=True)]
            return jnp.sin(both[0]).sum() + jnp.sin(both[1]).sum(), both

        return jax.grad(total, (0, 1), has_aux=True)(params, x)

    params = tuple(numbers_for(layer, x) for layer in (depthwise, separable))
    (gradients, x_gradient), both = outputs_and_gradients(params, x)
    given = jax.tree.map(lambda a: torch.tensor(np.array(a), requires_grad=True), params)
    leaf, (one, two) = torch.tensor(x, requires_grad=True), given
    rest = strides, padding, dilation, shape[-1]
    first = torch_conv(torch, leaf, one["kernel"], one.get("bias"), *rest)
    middle = torch_conv(torch, leaf, two["depthwise"]["kernel"], None, *rest)
    ones = (1,) * (len(shape) - 2)
    point = two["pointwise"]["kernel"], two["pointwise"].get("bias")
    second = torch_conv(torch, middle, *point, ones, ((0, 0),) * len(ones), ones, 1)
    (torch.sin(first).sum() + torch.sin(second).sum()).backward()
    for ours, theirs in zip(both, (first, second), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x_gradient, leaf.grad.numpy(), rtol=1e-5, atol=5e-5)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(given), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-5, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "multiplier"),
    [
        (((2, 5, 6, 3), 4, (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 2), 1, True), 2),
        (((1, 7, 1), 2, (3,), (2,), ((1, 1),), (2,), 1, False), 3),
        (((1, 3, 4, 3, 2), 3, (2, 3, 1), (1, 2, 1), ((0, 1), (1, 1), (0, 0)), (1, 1, 1), 1, True), 1),
    ],
)
def test_depthwise_and_separable_conv_are_those_of_pytorch(torch, case, multiplier):
    depthwise_agrees_with_torch(torch, case, multiplier)


@pytest.mark.slow
@settings(max_examples=20)
@given(case=convolutions(), multiplier=st.integers(1, 3))
def test_depthwise_and_separable_conv_are_those_of_pytorch_for_all_arguments(torch, case, multiplier):
    depthwise_agrees_with_torch(torch, case, multiplier)


@pytest.mark.slow
@pytest.mark.parametrize("multiplier", [1, 4])
def test_a_depthwise_kernel_does_not_shrink_with_the_features(multiplier):
    params, _ = layers.depthwise_conv(3, multiplier=multiplier).init(jax.random.key(0), jnp.ones((1, 5, 5, 256)))
    bound = np.sqrt(6 / (9 + 9 * multiplier))
    assert params["kernel"].shape == (3, 3, 1, 256 * multiplier)
    assert 0.99 * bound < np.abs(params["kernel"]).max() <= bound
    np.testing.assert_allclose(np.var(params["kernel"]), bound**2 / 3, rtol=0.06)
    assert len(np.unique(params["kernel"])) > 0.99 * params["kernel"].size


def test_the_outputs_of_a_feature_lie_together():
    def numbered(key, shape, dtype):
        del key
        return jnp.broadcast_to(jnp.arange(shape[-1], dtype=dtype), shape)

    params, _ = layers.depthwise_conv(2, multiplier=3, kernel_init=numbered).init(
        jax.random.key(0), jnp.ones((1, 5, 2))
    )
    assert params["kernel"][0, 0].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_half_precision_is_that_of_its_rounding(torch, multiplier):
    """Each of the nine sums may round in the dtype of the input: of the size of what is summed, not of the sum."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 7, 4)), jnp.bfloat16)
    layer = layers.depthwise_conv(3, multiplier=multiplier, padding="VALID", bias=False)
    params, _ = layer.init(jax.random.key(0), x)
    kernel = np.float64(params["kernel"].astype(jnp.bfloat16))
    wide = torch.tensor(np.float64(x)), torch.tensor(kernel)
    none = (((0, 0),) * 2, (1, 1), 4)
    expected, size = (torch_conv(torch, *(f(a) for a in wide), None, (1, 1), *none) for f in (torch.clone, torch.abs))
    y, _ = layer.apply(params, {}, x)
    assert y.dtype == jnp.bfloat16
    assert (np.abs(np.float64(y) - expected.numpy()) <= 2**-8 * 3 * size.numpy()).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layers.depthwise_conv(3, multiplier=0), ValueError, "depthwise_conv: expected multiplier of at least"),
        (lambda: layers.depthwise_conv(0), ValueError, "depthwise_conv: expected kernel_size of at least 1, got 0"),
        (lambda: layers.separable_conv(0, 3), ValueError, "separable_conv: expected features of at least 1, got 0"),
        (
            lambda: layers.separable_conv(8, (3, 3), strides=(2,)),
            ValueError,
            "separable_conv: expected strides for 2 spatial axes, got 1 in (2,)",
        ),
        (
            lambda: layers.separable_conv(8, 3, padding="same"),
            ValueError,
            "separable_conv: expected padding to be one of",
        ),
        (
            lambda: layers.depthwise_conv(3).init(jax.random.key(0), jnp.ones((9, 3))),
            ValueError,
            "depthwise_conv: expected (batch, *spatial, features) with 1 or 2 or 3 spatial axes, got shape (9, 3)",
        ),
        (
            lambda: layers.depthwise_conv(3, multiplier=2).apply(
                {"kernel": jnp.ones((3, 1, 8)), "bias": jnp.ones(8)}, {}, jnp.ones((2, 9, 3))
            ),
            ValueError,
            "depthwise_conv: expected 4 input features in 4 groups, as its kernel (3, 1, 8) has, got 3 in an input",
        ),
    ],
)
def test_wrong_arguments_and_inputs_of_depthwise_and_separable_conv_are_refused(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


def test_an_error_in_a_separable_convolution_says_in_which_half():
    layer = layers.separable_conv(8, 3, padding="VALID")
    with pytest.raises(ValueError, match=r"^depthwise_conv: expected a window no larger") as caught:
        layers.serial(layer).init(jax.random.key(0), jnp.ones((2, 2, 2, 3)))
    assert "separable_conv_0 / depthwise: input (2, 2, 2, 3)" in caught.value.__notes__


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 3), {}, ValueError, "conv: expected features of at least 1, got 0"),
        ((8, 0), {}, ValueError, "conv: expected kernel_size of at least 1, got 0; choose 1 or more"),
        ((8, (3, 0)), {}, ValueError, "conv: expected kernel_size of at least 1, got 0"),
        ((8, 3.0), {}, TypeError, "conv: expected kernel_size as a whole number, got float 3.0"),
        ((8, 3), {"groups": 3}, ValueError, "conv: expected features that 3 groups divide, got 8; choose a multiple"),
        ((8, 3), {"groups": 0}, ValueError, "conv: expected groups of at least 1, got 0"),
        (
            (8, 3),
            {"padding": "same"},
            ValueError,
            "conv: expected padding to be one of ['SAME', 'VALID'], got 'same'; check the spelling",
        ),
        ((8, 3), {"padding": -1}, ValueError, "conv: expected padding of at least 0, got -1"),
        (
            (8, 3),
            {"padding": ((1, 2, 3), 1)},
            ValueError,
            "conv: expected padding in pairs (before, after), got (1, 2, 3)",
        ),
        ((8, 3), {"strides": 0}, ValueError, "conv: expected strides of at least 1, got 0"),
        (
            (8, (3, 3)),
            {"strides": (2,)},
            ValueError,
            "conv: expected strides for 2 spatial axes, got 1 in (2,); give strides one number for each spatial axis",
        ),
        ((8, (3, 3)), {"dilation": (1, 1, 2)}, ValueError, "conv: expected dilation for 2 spatial axes, got 3"),
        ((8, 3), {"dilation": (1, 0)}, ValueError, "conv: expected dilation of at least 1, got 0"),
    ],
)
def test_arguments_are_checked_at_once(arguments, options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        layers.conv(*arguments, **options)


def test_images_of_whole_numbers_are_refused():
    images = np.zeros((2, 28, 28, 3), np.uint8)
    message = (
        "conv: expected a floating input, got uint8(2, 28, 28, 3); "
        "convert it: x.astype(jnp.float32), and images also / 255"
    )
    for call in (
        layers.conv(8, 3).init,
        lambda key, x: layers.conv(8, 3, bias=False).apply({"kernel": jnp.ones((3, 3, 3, 8))}, {}, x),
    ):
        with pytest.raises(TypeError, match="^" + re.escape(message)):
            call(jax.random.key(0), images)


@pytest.mark.slow
def test_images_with_channels_first_are_recognised():
    model = layers.serial(layers.named("stem", layers.conv(8, 3)))
    params, state = model.init(jax.random.key(0), jnp.ones((2, 28, 28, 3)))
    message = (
        "conv: expected 3 input features, as its kernel (3, 3, 3, 8) has, got 28 in an input of shape (2, 3, 28, 28), "
        "3 against 28 features; features come last, here and at init: jnp.moveaxis(x, 1, -1) where they come first"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        jax.jit(model.apply)(params, state, jnp.ones((2, 3, 28, 28)))
    assert "stem: input (2, 3, 28, 28)" in caught.value.__notes__


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            layers.conv(8, 3),
            (28, 28),
            "conv: expected (batch, *spatial, features) with 1 or 2 or 3 spatial axes, got shape (28, 28); "
            "if the axis of features is missing, add it: x[..., None]; if that of the batch is, x[None]",
        ),
        (
            layers.conv(8, (3, 3)),
            (3, 28, 28),
            "conv: expected (batch, *spatial, features) with 2 spatial axes, got shape (3, 28, 28); if the axis of",
        ),
        (layers.conv(8, 3), (2, 3, 3, 3, 3, 3), "conv: expected (batch, *spatial, features) with 1 or 2 or 3 spatial"),
        (layers.conv(8, (3, 3, 3, 3)), (2, 3, 3, 3, 3, 3), "conv: expected (batch, *spatial, features) with 4 spatial"),
        (
            layers.conv(8, 3, groups=2),
            (2, 9, 3),
            "conv: expected input features that 2 groups divide, got 3 in an input of shape (2, 9, 3); choose groups",
        ),
    ],
)
def test_inputs_of_another_kind_are_refused_by_init(layer, shape, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        layer.init(jax.random.key(0), jnp.ones(shape))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            layers.conv(8, 3),
            (2, 9, 9, 4),
            "conv: expected 3 input features, as its kernel (3, 3, 3, 8) has, got 4 in an input of shape (2, 9, 9, 4), "
            "3 against 4 features; pass inputs of the shape that init was given, or init again",
        ),
        (
            layers.conv(8, 3),
            (2, 9, 3),
            "conv: expected (batch, *spatial, features) with 2 spatial axes, got shape (2, 9, 3)",
        ),
        (
            layers.conv(8, 3, padding="VALID", dilation=2),
            (2, 4, 9, 3),
            "conv: expected a window no larger than the input, (4, 9) in its spatial axes with padding, got a window "
            "that covers (5, 5); take a smaller window, less dilation",
        ),
        (
            layers.conv(8, 3),
            (2, 0, 9, 3),
            "conv: expected spatial axes that are not empty, got sizes (0, 9)",
        ),
        (
            layers.conv(8, 3, strides=(2, 1, 1)),
            (2, 9, 9, 3),
            "conv: expected strides for 2 spatial axes, got 3 in (2, 1, 1); give strides one number for each",
        ),
        (
            layers.conv(8, 3, padding=((1, 1),)),
            (2, 9, 9, 3),
            "conv: expected padding for 2 spatial axes, got 1 in ((1, 1),); give a number, or a pair (before, after)",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_apply(layer, shape, message):
    params, state = layer.init(jax.random.key(0), jnp.ones((2, 9, 9, 3)))
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        layer.apply(params, state, jnp.ones(shape))


def test_conv_takes_no_misspelt_option():
    with pytest.raises(TypeError, match="stride"):
        layers.conv(8, 3, stride=2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_depthwise_sum_of_half_precision_is_rounded_once(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0.5, 1.5, (2, 12, 12, 3)), dtype)
    layer = layers.depthwise_conv(5, bias=False)
    apply = jax.jit(layer.apply)
    params = {"kernel": jnp.asarray(rng.uniform(0.5, 1.5, (5, 5, 1, 3)), dtype)}
    y, _ = apply(params, {}, x)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(np.float64(x), ((0, 0), (2, 2), (2, 2), (0, 0))), (5, 5), axis=(1, 2)
    )
    exact = np.einsum("bhwcij,ijc->bhwc", windows, np.float64(params["kernel"][:, :, 0]))
    assert y.dtype == dtype
    np.testing.assert_allclose(np.float32(y), exact, rtol=float(jnp.finfo(dtype).eps))


def test_a_number_is_no_image():
    layer = layers.conv(2, 3)
    params, state = layer.init(jax.random.key(0), jnp.ones((1, 5, 5, 1)))
    with pytest.raises(
        ValueError, match=r"conv: expected \(batch, \*spatial, features\) with 2 spatial axes, got shape"
    ):
        layer.apply(params, state, jnp.float32(3))


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(8,), (8, 6), (4, 4, 4)])
def test_no_examples_give_no_outputs(window, groups, shape):
    layer = layers.conv(4, (window,) * len(shape), strides=2, groups=groups)
    params, state = layer.init(jax.random.key(0), jnp.ones((2, *shape, 4)))
    expected = layer.apply(params, state, jnp.ones((2, *shape, 4)))[0].shape

    def total(params, x):
        y, _ = layer.apply(params, state, x)
        return y.sum(), y

    gradient, y = jax.grad(total, has_aux=True)(params, jnp.ones((0, *shape, 4)))
    assert y.shape == (0, *expected[1:])
    assert not gradient["kernel"].any()


@pytest.mark.parametrize("window", [2, 3])
def test_a_batch_on_an_explicit_mesh_is_what_it_is_on_one_device(window):
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1])
    layer, x = layers.conv(4, window, strides=2), jax.random.normal(jax.random.key(1), (2, 8, 6, 3))
    params, state = layer.init(jax.random.key(0), x)
    expected = layer.apply(params, state, x)[0]
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
        np.testing.assert_allclose(layer.apply(params, state, spread)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("window", "strides", "dilation", "groups", "slices"),
    [
        ((40,), (1,), (1,), 1, 6 + 6 + 4),  # runs of six, and what is left
        ((100,), (9,), (2,), 2, 10 + 10),
        ((67,), (40,), (1,), 1, 67),  # runs of one
        ((7, 7), (2, 2), (1, 1), 1, 2 * (2 + 3 + 1)),
        ((12, 5), (1, 3), (3, 2), 2, (3 + 4) + 5),
        ((3, 5, 4), (2, 1, 3), (1, 2, 1), 1, 3 + (2 + 2 + 1) + 4),
    ],
)
def test_a_large_kernel_is_what_jax_computes_in_few_slices(window, strides, dilation, groups, slices):
    """Positions are taken by runs of them, of which there are few, so that they are compiled soon."""
    rng = np.random.default_rng(0)
    sizes = [(count - 1) * hole + 1 + stride for count, stride, hole in zip(window, strides, dilation, strict=True)]
    x = rng.normal(size=(2, *sizes, 2 * groups)).astype(np.float32)
    kernel = rng.normal(size=(*window, 2, 3 * groups)).astype(np.float32)
    padding = ((1, 2), *((0, 1),) * (len(window) - 1))
    layout = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[len(window)]
    options = {"padding": padding, "rhs_dilation": dilation, "dimension_numbers": layout}

    def ours(x, kernel):
        return primitives.conv(x, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups)

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, feature_group_count=groups, **options)

    expected, back = jax.vjp(theirs, x, kernel)
    found, ours_back = jax.vjp(ours, x, kernel)
    dy = rng.normal(size=expected.shape).astype(np.float32)
    for a, b in zip((found, *ours_back(dy)), (expected, *back(dy)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    counted = str(jax.make_jaxpr(ours)(x, kernel)).count(" slice[")
    assert counted == slices
