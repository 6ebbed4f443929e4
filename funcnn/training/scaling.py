"""Loss scaling for half precision: gradients that would be too small for float16 are computed larger."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Tree
from funcnn.training.states import TrainState

# Of jmp and Axon. The largest is that at which a loss of one still fits into float32 with room to grow.
_FIRST, _PERIOD, _FACTOR, _LARGEST = 2.0**15, 2000, 2.0, 2.0**24


class Scaled(NamedTuple):
    """The state of an optimizer, and of the scale of the loss."""

    optimizer: Any
    scale: Any
    good: Any  # steps in a row whose gradients were finite


def expect_loss_scale(value: Any) -> None:
    """Raise unless ``value`` is ``None``, ``"dynamic"`` or a positive number."""
    if value is None or (isinstance(value, str) and value == "dynamic"):
        return
    is_number = isinstance(value, (int, float, np.number, np.ndarray, jax.Array)) and np.shape(value) == ()
    if isinstance(value, bool) or not is_number:
        fix = 'pass "dynamic"'
        checks.fail("trainer", 'loss_scale as None, "dynamic" or a number', repr(value), fix, TypeError)
    if checks.is_concrete(value) and not 0 < checks.known(value) < float("inf"):
        checks.fail("trainer", "a positive loss_scale", str(value), 'pass "dynamic", or a power of two')


def begun(optimizer_state: Any) -> Scaled:
    """The state at the beginning."""
    return Scaled(optimizer_state, jnp.float32(_FIRST), jnp.int32(0))


def unscaled(gradient: Tree, scale: Any) -> Tree:
    """The gradient of the loss from that of the scaled loss."""
    return jax.tree.map(lambda g: (g / scale).astype(g.dtype), gradient)


def guarded(after: TrainState, before: TrainState, scaled: Scaled, gradient: Tree) -> TrainState:
    """The state after a step: that before it, but for the scale, where the gradient was not finite."""
    leaves = [jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(gradient)]
    finite = functools.reduce(jnp.logical_and, leaves, jnp.bool_(True))
    new = after.params, after.model_state, after.opt_state
    old = before.params, before.model_state, scaled.optimizer
    params, model_state, optimizer = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    return after._replace(params=params, model_state=model_state, opt_state=_adapted(scaled, optimizer, finite))


def _adapted(state: Scaled, optimizer: Any, finite: Any) -> Scaled:
    """Half the scale where the gradient was not finite, twice after a long time in which all were."""
    good = jnp.where(finite, state.good + 1, 0)
    grown = good >= _PERIOD
    larger = jnp.minimum(state.scale * _FACTOR, _LARGEST)
    scale = jnp.where(finite, jnp.where(grown, larger, state.scale), jnp.maximum(state.scale / _FACTOR, 1.0))
    return Scaled(optimizer, scale, jnp.where(grown, 0, good).astype(jnp.int32))
