"""Dropout: its law of large numbers, its two ends, and what it asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import layers

KEY = jax.random.key(1)


def dropped(rate, x, key=KEY):
    return layers.dropout(rate).apply({}, {}, x, key=key, training=True)[0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_that_of_dropping_and_what_is_kept_is_scaled(rate):
    y = dropped(rate, jnp.full((400, 500), 3.0))
    kept = y != 0
    n = y.size
    deviation = np.sqrt(n * rate * (1 - rate))
    np.testing.assert_allclose(n - kept.sum(), n * rate, atol=5 * deviation)
    np.testing.assert_allclose(y[kept], 3 / (1 - rate), rtol=1e-6)
    for axis in (0, 1):  # nothing is dropped by whole rows or columns
        assert kept.sum(axis).min() > 0
        assert kept.sum(axis).max() < y.shape[axis]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_both_ends_are_exact(dtype, compiled):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 20)), dtype)
    run = jax.jit(dropped) if compiled else dropped
    np.testing.assert_array_equal(run(0.0, x), x)
    np.testing.assert_array_equal(run(1.0, x), jnp.zeros_like(x))
    assert run(1.0, x).dtype == dtype


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_gradients_by_input_and_by_rate_are_right_and_finite(rate):
    x = jnp.linspace(-2.0, 2.0, 64)
    kept = dropped(rate, jnp.ones(64)) != 0
    by_rate, by_input = jax.jit(jax.grad(lambda rate, x: dropped(rate, x).sum(), argnums=(0, 1)))(rate, x)
    scale = 1 / (1 - rate) if rate < 1 else 0.0
    np.testing.assert_allclose(by_input, kept * scale, rtol=1e-6)
    np.testing.assert_allclose(by_rate, jnp.sum(kept * x) * scale**2, rtol=1e-5, atol=1e-6)
    second = jax.grad(jax.grad(lambda rate: dropped(rate, x).sum()))(rate)
    assert np.isfinite(second)


def test_rates_may_be_mapped():
    rates = jnp.array([0.0, 0.25, 1.0])
    y = jax.vmap(dropped, in_axes=(0, None))(rates, jnp.ones((40, 50)))
    fractions = np.asarray((y == 0).mean((1, 2)))
    assert fractions[0] == 0
    assert fractions[2] == 1
    assert abs(fractions[1] - 0.25) < 0.05


def test_an_infinite_input_that_is_dropped_is_zero():
    y = dropped(0.5, jnp.full(100, jnp.inf))
    assert sorted(set(np.asarray(y).tolist())) == [0.0, np.inf]


def test_without_a_key_it_says_which_layer_and_what_to_do():
    message = r"^dropout: expected a key when training, got None; pass key=jax\.random\.key\(0\) to apply"
    model = layers.serial(layers.dense(3), layers.named("noise", layers.dropout(0.5)))
    params, state = model.init(KEY, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=message) as error:
        jax.jit(model.apply, static_argnames="training")(params, state, jnp.ones((2, 3)), training=True)
    assert "noise: input (2, 3)" in error.value.__notes__
    model.apply(params, state, jnp.ones((2, 3)))


@pytest.mark.parametrize("rate", [-0.1, 1.1, 50, float("nan"), np.float32(2.0), jnp.float32(-1.0)])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(
        ValueError, match=r"dropout: expected rate from 0\.0 to 1\.0, got .*; choose rate in this range"
    ):
        layers.dropout(rate)
