"""Layers made of layers, against the same network written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import layers

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


def by_hand(params, x):
    return np.asarray(x) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def test_serial_is_composition():
    model = layers.serial(layers.dense(8), layers.tanh, layers.serial(layers.dense(4), layers.relu), layers.dense(2))
    params, state = model.init(jax.random.key(0), X)
    y, _ = model.apply(params, state, X)
    h = jnp.tanh(by_hand(params["dense_0"], X))
    h = jnp.maximum(by_hand(params["serial_0"]["dense_0"], h), 0)
    np.testing.assert_allclose(y, by_hand(params["dense_1"], h), rtol=1e-5, atol=1e-6)


def test_serial_of_nothing_is_the_identity():
    params, state = layers.serial().init(jax.random.key(0), X)
    assert (params, state) == ({}, {})
    np.testing.assert_array_equal(layers.serial().apply({}, {}, X)[0], X)


def test_more_than_ten_layers_of_a_kind_keep_their_order():
    model = layers.serial(*(layers.function(lambda x, i=i: x * 2 + i) for i in range(12)))
    y, _ = model.apply({}, {}, jnp.zeros((1,)))
    expected = 0
    for i in range(12):
        expected = expected * 2 + i
    assert float(y[0]) == expected
    deep = layers.serial(*(layers.dense(n) for n in range(1, 13)))
    params, _ = jax.eval_shape(deep.init, jax.random.key(0), X)
    assert [params[f"dense_{i}"]["kernel"].shape for i in range(12)] == [(3, 1), *((n, n + 1) for n in range(1, 12))]


def test_parallel_gives_each_layer_its_own_input_or_all_the_same():
    model = layers.parallel(layers.dense(4), layers.dense(2))
    params, state = model.init(jax.random.key(0), (X, X[:, :2]))
    (a, b), _ = model.apply(params, state, (X, X[:, :2]))
    np.testing.assert_allclose(a, by_hand(params["dense_0"], X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b, by_hand(params["dense_1"], X[:, :2]), rtol=1e-5, atol=1e-6)
    same, _ = layers.parallel(layers.sin, layers.cos).apply({}, {}, X)
    np.testing.assert_allclose(same[0] ** 2 + same[1] ** 2, jnp.ones_like(X), rtol=1e-6)


def test_parallel_wants_as_many_inputs_as_layers():
    message = (
        r"parallel: expected a tuple of 2 inputs, one for each layer, got 3 of shapes \(\(5, 3\).*; give as many inputs"
    )
    with pytest.raises(ValueError, match=message):
        layers.parallel(layers.relu, layers.relu).apply({}, {}, (X, X, X))


def test_residual_adds_its_input_or_its_shortcut():
    model = layers.residual(layers.dense(8), layers.tanh, layers.dense(3))
    params, state = model.init(jax.random.key(0), X)
    expected = X + by_hand(params["dense_1"], jnp.tanh(by_hand(params["dense_0"], X)))
    np.testing.assert_allclose(model.apply(params, state, X)[0], expected, rtol=1e-5, atol=1e-6)
    model = layers.residual(layers.tanh, layers.dense(4), shortcut=layers.dense(4, bias=False))
    params, state = model.init(jax.random.key(0), X)
    assert sorted(params) == ["dense_0", "shortcut"]
    expected = X @ params["shortcut"]["kernel"] + by_hand(params["dense_0"], jnp.tanh(X))
    np.testing.assert_allclose(model.apply(params, state, X)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [1, 4])
def test_residual_never_broadcasts(features):
    message = (
        rf"residual: expected an output of the shape of the input, \(5, 3\), got \(5, {features}\); make them equal"
    )
    with pytest.raises(ValueError, match=message):
        layers.serial(layers.residual(layers.dense(features)), layers.relu).init(jax.random.key(0), X)
    model = layers.residual(layers.dense(features), shortcut=layers.dense(2))
    params, state = model.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=rf"shape of the shortcut, \(5, 2\), got \(5, {features}\)"):
        model.apply(params, state, X)


def test_concatenate_joins_in_the_order_of_its_layers():
    model = layers.concatenate(layers.sin, layers.identity, layers.square)
    np.testing.assert_allclose(model.apply({}, {}, X)[0], jnp.concatenate([jnp.sin(X), X, X * X], -1), rtol=1e-6)
    y, _ = layers.concatenate(layers.sin, layers.identity, axis=0).apply({}, {}, X)
    np.testing.assert_allclose(y, jnp.concatenate([jnp.sin(X), X], 0), rtol=1e-6)


def test_concatenate_without_layers_joins_a_tuple_and_hands_its_side_inputs_on():
    model = layers.serial(layers.parallel(layers.sin, layers.cos), layers.concatenate())
    np.testing.assert_allclose(model.apply({}, {}, X)[0], jnp.concatenate([jnp.sin(X), jnp.cos(X)], -1), rtol=1e-6)
    y, _ = model.apply({}, {}, {"x": X, "mask": jnp.arange(5)})
    assert sorted(y) == ["mask", "x"]
    assert y["x"].shape == (5, 6)


@pytest.mark.parametrize(("given", "axis"), [(((5, 3), (4, 3)), -1), (((5, 3), (5, 4)), 0), (((5, 3), (5, 3, 1)), 1)])
def test_concatenate_refuses_shapes_that_do_not_fit(given, axis):
    arrays = tuple(jnp.ones(shape) for shape in given)
    with pytest.raises(
        ValueError, match=rf"concatenate: expected shapes that agree in all axes but {axis}, got \[\(5, 3\),"
    ):
        layers.concatenate(axis=axis).apply({}, {}, arrays)


def test_concatenate_refuses_an_axis_that_is_not_there_and_an_input_that_is_no_tuple():
    with pytest.raises(ValueError, match="concatenate: expected shapes that agree in all axes but 2"):
        layers.concatenate(axis=2).apply({}, {}, (X, X))
    with pytest.raises(
        ValueError, match=r"concatenate: expected a tuple of arrays, got \(5, 3\); give concatenate the layers"
    ):
        layers.concatenate().apply({}, {}, X)


def test_state_is_threaded_through_side_branches_and_nesting():
    norm = layers.batch_norm(momentum=0.0)
    model = layers.serial(
        layers.residual(
            layers.named("inside", layers.serial(norm, layers.concatenate(norm, layers.identity))), layers.dense(3)
        ),
        layers.parallel(norm, layers.named("aside", norm)),
    )
    params, state = model.init(jax.random.key(0), X)
    _, new = model.apply(params, state, X + 3, training=True)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    inside = new["residual_0"]["inside"]
    np.testing.assert_allclose(inside["batch_norm_0"]["mean"], np.mean(X + 3, 0), rtol=1e-5)
    np.testing.assert_allclose(inside["concatenate_0"]["batch_norm_0"]["mean"], np.zeros(3), atol=1e-6)
    for name in ("batch_norm_0", "aside"):
        assert not np.allclose(new["parallel_0"][name]["mean"], 0)


def test_a_child_that_is_called_twice_shares_its_params_and_threads_its_state():
    """No combinator here does it; ``composite`` promises it to those who write one."""
    from funcnn.core import composite, named_children

    def twice(layer):
        children = named_children("twice", (layer,))
        return composite("twice", children, lambda call, x: call(children[0][0], call(children[0][0], x)))

    counter = layers.batch_norm(momentum=0.5, scale=False, bias=False)
    model = twice(counter)
    params, state = model.init(jax.random.key(0), X)
    _, new = model.apply(params, state, X + 3, training=True)
    first, once = counter.apply({}, state["batch_norm_0"], X + 3, training=True)
    _, both = counter.apply({}, once, first, training=True)
    np.testing.assert_allclose(new["batch_norm_0"]["mean"], both["mean"], rtol=1e-6)
    np.testing.assert_allclose(new["batch_norm_0"]["var"], both["var"], rtol=1e-6)
    shared = twice(layers.dense(3))
    params, _ = shared.init(jax.random.key(0), X)
    assert list(params) == ["dense_0"]
    expected = by_hand(params["dense_0"], by_hand(params["dense_0"], X))
    np.testing.assert_allclose(shared.apply(params, {}, X)[0], expected, rtol=1e-5, atol=1e-6)
