"""Schedules: Optax's where all is known, and open to tracers where those refuse them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import training

COUNTS = jnp.arange(0, 60)
PAIRS = {
    "cosine": (
        training.cosine_decay_schedule,
        optax.cosine_decay_schedule,
        {"init_value": 0.3, "decay_steps": 40, "alpha": 0.1, "exponent": 1.5},
    ),
    "warmup": (
        training.warmup_cosine_decay_schedule,
        optax.warmup_cosine_decay_schedule,
        {"init_value": 0.01, "peak_value": 0.3, "warmup_steps": 8, "decay_steps": 50, "end_value": 0.02},
    ),
    "exponential": (
        training.exponential_decay_schedule,
        optax.exponential_decay,
        {"init_value": 0.3, "transition_steps": 7, "decay_rate": 0.6, "end_value": 0.01},
    ),
}
every_pair = pytest.mark.parametrize("name", PAIRS)


@every_pair
def test_where_all_is_known_it_is_optaxs(name):
    ours, theirs, given = PAIRS[name]
    np.testing.assert_allclose(jax.vmap(ours(**given))(COUNTS), jax.vmap(theirs(**given))(COUNTS), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_other_forms_are_optaxs():
    for ours, theirs in (
        (
            training.exponential_decay_schedule(0.3, 7, 0.6, staircase=True),
            optax.exponential_decay(0.3, 7, 0.6, staircase=True),
        ),
        (training.exponential_decay_schedule(0.3, 7, 1.2, 0.9), optax.exponential_decay(0.3, 7, 1.2, end_value=0.9)),
        (training.exponential_decay_schedule(0.3, 7, 1.2), optax.exponential_decay(0.3, 7, 1.2)),
        (training.warmup_cosine_decay_schedule(0.1, 0.3, 0, 50), optax.warmup_cosine_decay_schedule(0.1, 0.3, 0, 50)),
        (
            training.piecewise_constant_schedule(0.3, {10: 0.1, 30: 2.0}),
            optax.piecewise_constant_schedule(0.3, {10: 0.1, 30: 2.0}),
        ),
    ):
        np.testing.assert_allclose([ours(c) for c in COUNTS], [theirs(c) for c in COUNTS], rtol=1e-5, atol=1e-8)


@every_pair
def test_every_number_may_be_a_tracer_with_a_finite_slope(name):
    make, _, given = PAIRS[name]
    given = jax.tree.map(float, given)

    def total(h):
        return jax.vmap(make(**h))(COUNTS).sum()

    np.testing.assert_allclose(jax.jit(total)(given), total(given), rtol=1e-5)
    slopes = jax.jit(jax.grad(total))(given)
    for key, slope in slopes.items():
        assert np.isfinite(slope), key
    for key in ("init_value", "alpha", "peak_value", "end_value", "decay_rate"):
        if key in given:
            h = 1e-3 * given[key]
            difference = (total(given | {key: given[key] + h}) - total(given | {key: given[key] - h})) / (2 * h)
            np.testing.assert_allclose(slopes[key], difference, rtol=2e-2, err_msg=key)


def test_scales_may_be_tracers():
    def at(scale):
        return training.piecewise_constant_schedule(1.0, {10: scale})(20)

    assert jax.jit(at)(0.25) == 0.25
    assert jax.grad(at)(0.25) == 1.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: training.cosine_decay_schedule(0.1, 0), ValueError, "decay_steps above 0, got 0"),
        (lambda: training.exponential_decay_schedule(0.1, -1, 0.5), ValueError, "transition_steps above 0, got -1"),
        (lambda: training.exponential_decay_schedule(0.1, 1, 0.0), ValueError, r"decay_rate above 0, got 0\.0"),
        (
            lambda: training.warmup_cosine_decay_schedule(0, 1, 10, 10),
            ValueError,
            "0 <= warmup_steps < decay_steps, got 10 and 10; decay_steps counts",
        ),
        (lambda: training.piecewise_constant_schedule(0.1, [(1, 2)]), TypeError, "scales as a dict, got list"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
