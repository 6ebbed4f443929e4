"""Early stopping, and the best state of a run: decided inside the program, at the end of each epoch."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from funcnn import checks
from funcnn.training.trainers import TrainState


class Monitor(NamedTuple):
    """What is watched, and what for; static, as a part of the plan."""

    name: str
    mode: str  # "min" or "max"
    patience: int | None  # epochs without an improvement after which the run ends; None for never
    min_delta: float
    keep_best: bool


class Watch(NamedTuple):
    """What a run remembers of what it watches."""

    best: Any  # the best value so far
    reference: Any  # the last value that was better than the one before it by more than min_delta
    epoch: Any  # the row of that value, -1 before there is one
    stopped: Any  # the number of epochs after which the run ended, -1 as long as it goes on; None without a patience
    state: TrainState | None  # that of the best value, where it is kept


def monitored(
    where: str, monitor: Any, mode: Any, patience: Any, min_delta: Any = 0.0, keep_best: Any = False
) -> Monitor | None:
    """The arguments of early stopping, checked."""
    if monitor is None:
        given = {"mode": mode is not None, "patience": patience is not None, "keep_best": keep_best}
        named = [name for name, is_given in (given | {"min_delta": min_delta != 0}).items() if is_given]
        if named:
            fix = 'say what is watched, for instance monitor="validation_loss"'
            checks.fail(where, f"monitor, for {named[0]} is about it", "none", fix)
        return None
    if not isinstance(monitor, str):
        fix = 'name a column of the history, for instance "validation_loss"'
        checks.fail(where, "monitor as a name", type(monitor).__name__, fix, TypeError)
    mode = mode_of(where, monitor, mode)
    if patience is not None:
        patience = checks.expect_count(where, "patience", patience)
    elif not keep_best:
        fix = "say after how many epochs without an improvement the run ends, or ask for the best state"
        checks.fail(where, "patience or keep_best, with monitor", "neither", fix)
    if not isinstance(min_delta, (int, float)) or not (0 <= min_delta < math.inf):
        checks.fail(where, "min_delta as a number from 0 on", repr(min_delta), "pass the least change that counts")
    return Monitor(monitor, mode, patience, float(min_delta), bool(keep_best))


def mode_of(where: str, name: str, mode: Any) -> str:
    """Whether less or more of a column of the history is better: what is said, or less of a loss."""
    if mode is None:
        if name != "loss" and not name.endswith("_loss"):
            checks.fail(where, f"mode for {name!r}", "none", 'pass mode="max" if more is better, or "min"')
        return "min"
    checks.expect_option(where, "mode", mode, ("min", "max"))
    return mode


def expect_monitored(monitor: Monitor, rows: dict[str, Any], axes: tuple[int, ...]) -> None:
    """Raise unless what is watched is one number in the history; ``axes`` are those of several members."""
    if monitor.name not in rows:
        fix = "pass validation=..." if monitor.name.startswith("validation_") else "choose one of them"
        columns = ", ".join(sorted(rows))
        checks.fail("monitor", f"one of the columns of the history, {columns}", repr(monitor.name), fix)
    shape = jnp.shape(rows[monitor.name])[len(axes) :]
    if shape:
        got = f"one of shape {shape}"
        checks.fail("monitor", f"one number under {monitor.name!r}", got, "watch a metric that is a single number")


def begin(monitor: Monitor, state: TrainState, axes: tuple[int, ...] = ()) -> Watch:
    """The watch before the first epoch; ``axes`` are those of several members."""
    largest = jnp.finfo(jnp.float32).max  # not infinity, which jax_debug_infs would take for what went bad
    worst = jnp.full(axes, largest if monitor.mode == "min" else -largest, jnp.float32)
    none = jnp.full(axes, -1, jnp.int32)
    return Watch(
        worst, worst, none, none if monitor.patience is not None else None, state if monitor.keep_best else None
    )


def watched(monitor: Monitor, watch: Watch, row: Any, value: Any, state: TrainState) -> Watch:
    """The watch after the epoch ``row``, which had ``value`` and ended with ``state``; NaN is never better."""
    sign = 1.0 if monitor.mode == "min" else -1.0
    value = value.astype(watch.best.dtype)
    better = sign * value < sign * watch.best
    improved = sign * value < sign * watch.reference - monitor.min_delta
    epoch = jnp.where(improved, row, watch.epoch).astype(jnp.int32)
    stopped = watch.stopped
    if stopped is not None:
        # A member that has stopped stays where it was, so that nothing is better than before.
        stopped = jnp.where((stopped < 0) & (row - epoch >= monitor.patience), row + 1, stopped).astype(jnp.int32)
    kept = watch.state
    if kept is not None:
        kept = where_leaves(better, state, kept)
    best, reference = jnp.where(better, value, watch.best), jnp.where(improved, value, watch.reference)
    return Watch(best, reference, epoch, stopped, kept)


def where_leaves(chosen: Any, new: TrainState, old: TrainState) -> TrainState:
    """The one state or the other, for each of the members along the axes of ``chosen``."""

    def leaf(a: Any, b: Any) -> Any:
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (a.ndim - chosen.ndim)), a, b)

    # The key never changes, and the choice between two of them is not everywhere defined.
    first, second = (state._replace(key=None) for state in (new, old))
    return jax.tree.map(leaf, first, second)._replace(key=new.key)


# ---- reverse mode ----------------------------------------------------------------------------------------------------

# JAX refuses to transpose a ``while_loop``, in words about loops. This is the identity in all else, and refuses first.
_forward_only = Primitive("forward_only")


def forward_only(tree: Any) -> Any:
    """The identity, which raises where it is differentiated in reverse."""
    return jax.tree.map(lambda a: _forward_only.bind(a) if jnp.issubdtype(a.dtype, jnp.inexact) else a, tree)


def _refused(*_: Any) -> Any:
    fix = "train without patience (keep_best may stay), or take jax.jvp or jax.jacfwd: forward mode goes through"
    checks.fail("run", "no early stopping under reverse-mode differentiation", "patience", fix, TypeError)


_forward_only.def_impl(lambda a: a)
_forward_only.def_abstract_eval(lambda a: a)
ad.deflinear2(_forward_only, _refused)
batching.defvectorized(_forward_only)
mlir.register_lowering(_forward_only, lambda _, a: [a])
