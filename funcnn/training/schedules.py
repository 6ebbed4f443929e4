"""Learning rates over steps whose every number may be a tracer: forms of Optax's schedules that branch on nothing.

Each is a function of the count of steps, for any optimizer of Optax. Where no number is traced Optax's own are the
same; these can be swept and differentiated by all that they take.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from funcnn import checks

Schedule = Callable[[Any], Any]


def cosine_decay_schedule(init_value: Any, decay_steps: Any, alpha: Any = 0.0, exponent: Any = 1.0) -> Schedule:
    """From one value to a part of it along half a cosine.

    Formula: ``init_value * ((1 - alpha) * ((1 + cos(pi t)) / 2)^exponent + alpha)`` with
    ``t = min(count / decay_steps, 1)``

    Args:
        init_value: at the beginning.
        decay_steps: until the end is reached, above 0.
        alpha: the value at the end, as a part of the first.
        exponent: of the cosine.

    Raises:
        ValueError: ``decay_steps`` is known and not above 0.

    Example:
        >>> from funcnn import training
        >>> schedule = training.cosine_decay_schedule(0.1, 100)
        >>> [round(float(schedule(count)), 3) for count in (0, 50, 100, 200)]
        [0.1, 0.05, 0.0, 0.0]

    Reference: Loshchilov and Hutter, "SGDR", 2016; ``optax.cosine_decay_schedule``.
    """
    _expect_steps("cosine_decay_schedule", "decay_steps", decay_steps)

    def schedule(count: Any) -> Any:
        t = jnp.minimum(_floating(count) / decay_steps, 1.0)
        # The power of exactly 0 has no slope by the exponent.
        wave = jnp.maximum((1 + jnp.cos(jnp.pi * t)) / 2, _LEAST) ** exponent
        return init_value * ((1 - alpha) * jnp.where(t < 1, wave, 0.0) + alpha)

    return schedule


_LEAST = 1e-30


def warmup_cosine_decay_schedule(
    init_value: Any, peak_value: Any, warmup_steps: Any, decay_steps: Any, end_value: Any = 0.0, exponent: Any = 1.0
) -> Schedule:
    """A straight line up to a peak, and from there half a cosine down.

    Formula: ``init_value + (peak_value - init_value) count / warmup_steps`` while ``count < warmup_steps``, then
    ``end_value + (peak_value - end_value) ((1 + cos(pi t)) / 2)^exponent``, ``t`` from 0 to 1 at ``decay_steps``

    Args:
        init_value: at the beginning.
        peak_value: after ``warmup_steps``.
        warmup_steps: of the line.
        decay_steps: of both together, above ``warmup_steps``.
        end_value: at the end.
        exponent: of the cosine.

    Raises:
        ValueError: the steps are known and not in this order.

    Example:
        >>> from funcnn import training
        >>> schedule = training.warmup_cosine_decay_schedule(0.0, 0.1, 10, 110)
        >>> [round(float(schedule(count)), 3) for count in (0, 5, 10, 60, 110)]
        [0.0, 0.05, 0.1, 0.05, 0.0]

    Reference: ``optax.warmup_cosine_decay_schedule``.
    """
    where = "warmup_cosine_decay_schedule"
    if checks.is_concrete(decay_steps) and checks.is_concrete(warmup_steps):
        first, last = checks.known(warmup_steps), checks.known(decay_steps)
        if not 0 <= first < last:
            fix = "decay_steps counts the steps of both parts"
            checks.fail(where, "0 <= warmup_steps < decay_steps", f"{first} and {last}", fix)
    down = cosine_decay_schedule(1.0, decay_steps - warmup_steps, 0.0, exponent)

    def schedule(count: Any) -> Any:
        count = _floating(count)
        line = init_value + (peak_value - init_value) * count / jnp.maximum(warmup_steps, 1)
        wave = end_value + (peak_value - end_value) * down(jnp.maximum(count - warmup_steps, 0.0))
        return jnp.where(count < warmup_steps, line, wave)

    return schedule


def exponential_decay_schedule(
    init_value: Any, transition_steps: Any, decay_rate: Any, end_value: Any = 0.0, *, staircase: bool = False
) -> Schedule:
    """From one value down, or up, by a factor every so many steps.

    Formula: ``init_value * decay_rate^(count / transition_steps)``, not beyond ``end_value``

    Args:
        init_value: at the beginning.
        transition_steps: in which the value changes by ``decay_rate``, above 0.
        decay_rate: the factor, above 0.
        end_value: the least value where ``decay_rate`` is below 1, the largest otherwise if it is above 0.
        staircase: whether it changes at once after ``transition_steps`` steps, and not a little at each.

    Raises:
        ValueError: ``transition_steps`` or ``decay_rate`` is known and not above 0.

    Example:
        >>> from funcnn import training
        >>> schedule = training.exponential_decay_schedule(1.0, 10, 0.5)
        >>> [round(float(schedule(count)), 3) for count in (0, 10, 20)]
        [1.0, 0.5, 0.25]

    Reference: ``optax.exponential_decay``.
    """
    where = "exponential_decay_schedule"
    _expect_steps(where, "transition_steps", transition_steps)
    if checks.is_concrete(decay_rate) and not checks.known(decay_rate) > 0:
        checks.fail(where, "decay_rate above 0", str(decay_rate), "it is the factor of the value")

    def schedule(count: Any) -> Any:
        powers = _floating(count) / transition_steps
        value = init_value * decay_rate ** (jnp.floor(powers) if staircase else powers)
        bounded = jnp.where(jnp.asarray(decay_rate) < 1, jnp.maximum(value, end_value), jnp.minimum(value, end_value))
        return jnp.where((jnp.asarray(decay_rate) < 1) | (jnp.asarray(end_value) > 0), bounded, value)

    return schedule


def piecewise_constant_schedule(init_value: Any, scales: Mapping[Any, Any]) -> Schedule:
    """One value until a step, a part of it until another, and so on.

    Formula: ``init_value`` times all ``scales[step]`` with ``step <= count``

    Args:
        init_value: at the beginning.
        scales: factors by the step from which on they hold.

    Raises:
        TypeError: ``scales`` is no dict.

    Example:
        >>> from funcnn import training
        >>> schedule = training.piecewise_constant_schedule(1.0, {10: 0.1, 20: 0.5})
        >>> [round(float(schedule(count)), 3) for count in (0, 9, 10, 20)]
        [1.0, 1.0, 0.1, 0.05]

    Reference: ``optax.piecewise_constant_schedule``.
    """
    if not isinstance(scales, Mapping):
        fix = "pass factors by step: {1000: 0.1}"
        checks.fail("piecewise_constant_schedule", "scales as a dict", type(scales).__name__, fix, TypeError)

    def schedule(count: Any) -> Any:
        value = jnp.asarray(init_value, jnp.result_type(float))
        for step, scale in scales.items():
            value = value * jnp.where(_floating(count) >= step, scale, 1.0)
        return value

    return schedule


def _floating(count: Any) -> Any:
    return jnp.asarray(count, jnp.result_type(float))


def _expect_steps(where: str, name: str, value: Any) -> None:
    if checks.is_concrete(value) and not checks.known(value) > 0:
        checks.fail(where, f"{name} above 0", str(value), "the count of steps is divided by it")
