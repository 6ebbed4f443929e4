"""Gated feed-forward blocks against their formulas, in NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, ndtr

from funcnn import layers

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
GATES = {"swiglu": lambda a: a * expit(a), "geglu": lambda a: a * ndtr(a)}  # the exact gelu, with the normal integral


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_block_is_its_formula(name, bias):
    layer, x = getattr(layers, name)(5, bias=bias), 2 * RNG.normal(size=(2, 3, 4))
    params, state = layer.init(KEY, jnp.asarray(x, jnp.float32))
    assert jax.tree.map(jnp.shape, params["output"]) == {"kernel": (5, 4)} | ({"bias": (4,)} if bias else {})
    params = jax.tree.map(lambda a: a + RNG.normal(size=a.shape).astype(np.float32), params)

    def mapped(part, a):
        return a @ np.asarray(params[part]["kernel"], np.float64) + np.asarray(params[part].get("bias", 0), np.float64)

    expected = mapped("output", GATES[name](mapped("gate", x)) * mapped("value", x))
    found, _ = layer.apply(params, state, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gate_and_value_are_drawn_each_for_itself_and_biases_are_zeros():
    params, state = layers.geglu(6, bias=True).init(KEY, jnp.ones((2, 6)))
    assert state == {}
    kernels = [params[name]["kernel"] for name in ("gate", "value", "output")]
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    assert all(not params[name]["bias"].any() for name in params)


def test_other_features_than_those_of_init_are_refused():
    params, state = layers.swiglu(5).init(KEY, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"swiglu: expected 4 input features, got 3 in an input of shape \(2, 3\)"):
        layers.swiglu(5).apply(params, state, jnp.ones((2, 3)))
