"""Derivatives through a whole run: against differences, by every number that a run takes, and in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, penalties, training

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(50, 4)), RNG.normal(size=(50, 2))
HELD_OUT = RNG.normal(size=(20, 4)), RNG.normal(size=(20, 2))
MODEL = layers.serial(layers.dense(5), layers.tanh, layers.dense(2))


def trained(rate=0.01, decay=0.0, weights=None, x=None, epochs=40, batch_size=10, **options):
    x = jnp.asarray(X if x is None else x)
    data = (x, Y) if weights is None else (x, Y, weights)
    optimizer = optax.adam(rate, eps_root=1e-8)
    trainer = training.supervised(MODEL, losses.squared_error, optimizer, penalty=penalties.l2(decay))
    return training.run(
        trainer, data, key=KEY, epochs=epochs, batch_size=batch_size, validation=HELD_OUT, **options
    ).history["validation_loss"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_the_slope_by_the_learning_rate_is_that_of_differences_in_float64(remat):
    """Two hundred steps."""
    with jax.enable_x64(True):
        final, h = jax.jit(lambda rate: trained(rate, remat=remat)), 1e-6
        slope = jax.jit(jax.grad(lambda rate: trained(rate, remat=remat)))(0.01)
        assert abs(slope / ((final(0.01 + h) - final(0.01 - h)) / (2 * h)) - 1) < 1e-6
        forward = jax.jit(lambda rate: jax.jvp(lambda r: trained(r, remat=remat), (rate,), (1.0,))[1])(0.01)
        np.testing.assert_allclose(forward, slope, rtol=1e-9)


@pytest.mark.slow
def test_slopes_by_decay_weights_and_the_data_are_those_of_differences():
    with jax.enable_x64(True):
        weights, h = jnp.ones(50), 1e-5
        inputs = {"decay": jnp.float64(0.01), "weights": weights, "x": jnp.asarray(X)}

        def final(given):
            return trained(epochs=4, remat=True, **given)

        slopes = jax.jit(jax.grad(final))(inputs)
        value = jax.jit(final)
        for name, direction in jax.tree.map(lambda a: RNG.normal(size=a.shape), inputs).items():
            high, low = (value(inputs | {name: inputs[name] + s * h * direction}) for s in (1, -1))
            np.testing.assert_allclose(jnp.sum(slopes[name] * direction), (high - low) / (2 * h), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 7, "batch_size": None},
        pytest.param({"epochs": 3}, marks=pytest.mark.slow),
        pytest.param({"epochs": None, "steps": 13}, marks=pytest.mark.slow),
    ],
)
def test_remat_changes_no_number(options):
    plain, again = (
        jax.jit(jax.value_and_grad(lambda rate, r=remat: trained(rate, remat=r, **options)))(0.01)
        for remat in (False, True)
    )
    np.testing.assert_allclose(again[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(again[1], plain[1], rtol=1e-4)


@pytest.mark.slow
def test_remat_keeps_the_root_of_the_steps():
    """Of ten thousand steps at once, a tenth of the memory at most."""

    def memory(remat):
        slope = jax.grad(lambda rate: trained(rate, epochs=10_000, batch_size=None, remat=remat))
        return jax.jit(slope).lower(0.01).compile().memory_analysis().temp_size_in_bytes

    plain, again = memory(False), memory(True)
    assert again < plain / 10
