"""Plain functions, free parameters and the identity, on arrays and on trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import layers

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


def test_function_applies_to_arrays_and_to_trees():
    np.testing.assert_array_equal(layers.function(jnp.log1p).apply({}, {}, jnp.abs(X))[0], jnp.log1p(jnp.abs(X)))
    product = layers.serial(layers.parallel(layers.sin, layers.cos), layers.function(lambda pair: pair[0] * pair[1]))
    np.testing.assert_allclose(product.apply(*product.init(KEY, X), X)[0], jnp.sin(2 * X) / 2, atol=1e-6)


def test_function_sees_the_features_alone_and_jax_arrays_always():
    layer = layers.function(lambda x: x.at[0].set(0.0))
    y, _ = layer.apply({}, {}, {"x": np.ones((2, 3)), "mask": "untouched"})
    assert y["mask"] == "untouched"
    np.testing.assert_array_equal(y["x"], [[0, 0, 0], [1, 1, 1]])
    with pytest.raises(ValueError, match="function: expected the features under 'x'"):
        layer.init(KEY, {"mask": X})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (layers.relu, "function: expected a function, got the layer relu; use the layer itself"),
        (3, r"function: expected a function, got int 3; pass something like jnp\.log1p"),
    ],
)
def test_function_refuses_what_is_not_one(wrong, message):
    with pytest.raises(TypeError, match=message):
        layers.function(wrong)


def test_parameter_is_the_same_whatever_the_input():
    layer = layers.parameter((2, 3), jax.nn.initializers.normal(1.0))
    params, state = layer.init(KEY, X)
    np.testing.assert_array_equal(params["value"], jax.nn.initializers.normal(1.0)(KEY, (2, 3), jnp.float32))
    for x in (X, X[:1] * jnp.nan, {"x": X, "mask": X}, (X, X)):
        y, _ = layer.apply(params, state, x)
        np.testing.assert_array_equal(y["x"] if isinstance(x, dict) else y, params["value"])


@pytest.mark.parametrize(("shape", "expected"), [((), ()), (3, (3,)), ([2, 1], (2, 1))])
def test_parameter_takes_shapes_as_they_come(shape, expected):
    params, _ = layers.parameter(shape, jax.nn.initializers.zeros).init(KEY, X)
    assert params["value"].shape == expected


@pytest.mark.parametrize(
    ("x", "kept", "given"),
    [
        (np.ones(2, np.int32), "float32", "float32"),
        (np.ones(2, np.float64), "float64", "float64"),
        ((np.ones(2, np.int32), np.ones(2, np.float64)), "float64", "float64"),
        (jnp.ones(2, jnp.bfloat16), "float32", "bfloat16"),
        ((jnp.ones(2, jnp.bfloat16), np.ones(2, np.float32)), "float32", "float32"),
    ],
)
def test_parameter_is_kept_and_given_in_the_dtype_of_the_input(x, kept, given):
    with jax.enable_x64(True):
        layer = layers.parameter((), jax.nn.initializers.constant(0.5))
        params, state = layer.init(jax.random.key(0), x)
        assert params["value"].dtype == kept
        assert layer.apply(params, state, x)[0].dtype == given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ((), 0.5),
            r"parameter: expected an initializer, got float 0\.5; pass one of jax\.nn\.initializers, such as constant",
        ),
        (((2.0,), jax.nn.initializers.zeros), "parameter: expected shape as a whole number, got float"),
    ],
)
def test_parameter_checks_its_arguments_at_once(arguments, message):
    with pytest.raises(TypeError, match=message):
        layers.parameter(*arguments)


def test_a_coefficient_is_found_by_gradient_descent():
    """``u' = -k u`` with ``k = 0.7``: the free parameter beside a network, as in an inverse problem."""
    times = jnp.linspace(0.0, 2.0, 50)[:, None]
    layer = layers.parameter((), jax.nn.initializers.constant(0.1))
    params, state = layer.init(KEY, times)

    def error(params):
        k, _ = layer.apply(params, state, times)
        return jnp.mean(jnp.square(jnp.exp(-k * times) - jnp.exp(-0.7 * times)))

    descend = jax.jit(
        lambda p: jax.lax.fori_loop(0, 300, lambda i, p: jax.tree.map(lambda a, g: a - g, p, jax.grad(error)(p)), p)
    )
    np.testing.assert_allclose(descend(params)["value"], 0.7, atol=1e-4)


def test_identity_hands_any_tree_on():
    tree = {"a": (X, 1), "b": {"x": np.arange(3)}}
    params, state = layers.identity.init(KEY, tree)
    y, _ = layers.identity.apply(params, state, tree)
    assert (params, state) == ({}, {})
    assert jax.tree.structure(y) == jax.tree.structure(tree)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(tree), strict=True))
