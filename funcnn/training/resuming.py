"""A run as arrays by path, and how it goes on from what was kept of it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Tree
from funcnn.training import progress as progresses
from funcnn.training.chunks import Chunk
from funcnn.training.driving import Driver, epochs_run_of
from funcnn.training.identities import Identity, expect_same, listed, reasons_of
from funcnn.training.keepers import Found, Keeper, ResumeError
from funcnn.training.positions import read_position
from funcnn.training.programs import Carry
from funcnn.training.stopping import Monitor, Watch

# ---- a run as arrays by path -----------------------------------------------------------------------------------------


def flattened(carry: Carry) -> dict[str, Any]:
    """All arrays of a run by path; keys as the numbers that they are made of."""
    leaves = {path: leaf for path, leaf in _paths(carry).items() if leaf.size}
    return {path: jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in leaves.items()}


def expect_values_of(where: str, tree: Tree) -> None:
    """Raise where a run is traced, and nothing of it can be kept."""
    if not all(checks.is_concrete(leaf) for leaf in jax.tree.leaves(tree)):
        fix = "use training.run inside jit, vmap or grad: it is the same run as a pure function"
        checks.fail(where, "values, for it is driven from the host", "a tracer", fix, TypeError)


def keys_of(carry: Carry) -> dict[str, str]:
    """Which of the arrays are keys, and of which kind."""
    return {path: str(jax.random.key_impl(leaf)) for path, leaf in _paths(carry).items() if _is_key(leaf)}


def _paths(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(found) < len(leaves):
        fix = "leave '/' out of the names of params"
        checks.fail("checkpoint", "a path of its own for each array", "two of the same", fix)
    return found


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _restored(
    where: str,
    like: Carry,
    leaves: Mapping[str, Any],
    taken: tuple[str, ...],
    grown: Any,
    reasons: Mapping[str, str],
) -> Carry:
    """The arrays in the places of ``like``, which has to be of the same structure, shapes and dtypes.

    What begins with one of ``taken`` is that of ``like``. ``grown(path, array, leaf)`` is an array for another number
    of epochs. ``reasons`` are given for what begins so, in place of the arrays.
    """
    paths, faults, made = _paths(like), [], []
    is_ours = tuple(f"{name}/" for name in taken)

    def skips(path: str) -> bool:
        return path in taken or path.startswith(is_ours)

    for path, leaf in paths.items():
        if skips(path) or not leaf.size:
            made.append(leaf)
            continue
        data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        got = leaves.get(path)
        got = None if got is None else grown(path, got, data)
        if got is None:
            faults.append(f"{path}: was not there, is {_shown(data)}")
        elif got.shape != data.shape or got.dtype != data.dtype:
            faults.append(f"{path}: was {_shown(got)}, is {_shown(data)}")
        else:
            made.append(_placed(got, leaf))
    known = {path for path, leaf in paths.items() if leaf.size}
    faults += [
        f"{path}: was {_shown(leaves[path])}, is not there" for path in leaves if not skips(path) | (path in known)
    ]
    if faults:
        explained = {reason: tuple(f for f in faults if f.startswith(begin)) for begin, reason in reasons.items()}
        rest = [fault for fault in faults if not any(fault in found for found in explained.values())]
        faults = [*(reason for reason, found in explained.items() if found), *rest]
        fix = "resume it with the model, optimizer and metrics that it was begun with, or choose another directory"
        raise ResumeError(
            f"{where}: expected the run that was begun there, got another: {listed(faults)}; {fix}; "
            "a new run begins with what was learned, was = checkpoints.load(...).state, by "
            "state=trainer.init(key, batch)._replace(params=was.params, model_state=was.model_state)"
        )
    return jax.tree.unflatten(jax.tree.structure(like), made)


def _shown(leaf: Any) -> str:
    return f"{leaf.dtype}{tuple(leaf.shape)}"


def _placed(array: Any, like: Any) -> Any:
    """An array on the device, or the devices, of another one."""
    if _is_key(like):
        return jax.random.wrap_key_data(_placed(array, jax.random.key_data(like)), impl=jax.random.key_impl(like))
    return jax.device_put(array, like.sharding if like.committed else None)


# ---- going on --------------------------------------------------------------------------------------------------------


def going_on(run: Driver, keeper: Keeper, found: Found, like: Carry, identity: Identity, resume: Any) -> Chunk:
    """The run where it was left; ``like`` is the one that would begin."""
    about, plan, was, now, versions = found.about, run.plan, found.about["run"], identity.run, identity.versions
    is_changed = resume == "changed"
    (epoch, offset), step = about["number"], about["step"]
    others = [
        f"{name} {about['versions'].get(name)}" for name in versions if about["versions"].get(name) != versions[name]
    ]
    if others:
        under = ", ".join(others)
        progresses.say(f"{run.name}: saved under {under}: it goes on, and is equal to rounding from here on")
    if about["versions"].get("jax") != versions["jax"]:
        was = was | {"program": now["program"], "step": now["step"]}  # JAX writes down the same program in other words
    where = f"{run.name}: resume: {keeper.path}"
    if (run.reader is None) != (about["position"] is None):
        was_stream, is_stream = (
            "arrays" if there else "a stream" for there in (about["position"] is None, not run.reader)
        )
        raise ResumeError(f"{where}: expected {was_stream}, with which it was begun, got {is_stream}; pass what it was")
    impls = keys_of(like)
    if any(about["keys"].get(path, impl) != impl for path, impl in impls.items()):
        raise ResumeError(f"{where}: expected keys of the kinds {about['keys']}, got {impls}; pass a key of that kind")
    taken: tuple[str, ...] = ("first_bad_step",)
    if not offset:
        taken += ("order", "sums")  # the next epoch makes its own
    if is_changed and was["on_nonfinite"] != now["on_nonfinite"]:
        taken += ("skipped", "history/skipped_steps")
    carry = _restored(where, like, found.leaves, taken, _growing(run.rows_axis), reasons_of(was, now))
    if not is_changed:
        expect_same(run.name, keeper, was, now, identity.step)
    elif was.get("steps_per_epoch") != now["steps_per_epoch"]:
        what = f"epochs of {was.get('steps_per_epoch')} steps, as it was begun with"
        if plan.counts_steps:
            fix = "where a run is counted in steps keep the size of its batches, or count it in epochs"
            checks.fail(where, what, str(now["steps_per_epoch"]), fix, ResumeError)
        if offset:
            fix = "resume it as it was to the end of the epoch first"
            checks.fail(where, f"{what}, in the middle of one", str(now["steps_per_epoch"]), fix, ResumeError)
    if is_changed:
        carry = carry._replace(watch=_more_patient(plan.monitor, carry.watch))
    number = epoch * plan.epoch_steps + offset
    if number > plan.steps:
        taken_already, got = checks.counted(step, "step"), checks.counted(plan.epochs, "epoch")
        fix = "train longer, or take what is there with checkpoints.load"
        raise ResumeError(f"{where}: expected more than the {taken_already} that the run has taken, got {got}; {fix}")
    position = None if about["position"] is None else read_position(about["position"])
    if epochs_run_of(carry) >= 0 or number == plan.steps:
        progresses.say(
            f"{run.name}: the run in {keeper.path} had ended after {checks.counted(step, 'step')}; this is its result"
        )
    return Chunk(number, step, carry, {}, {}, stopped=epochs_run_of(carry) >= 0, position=position)


def _more_patient(monitor: Monitor | None, watch: Watch | None) -> Watch | None:
    """The watch of a run that was ended by a patience, and would not have been by the one that it has now."""
    if monitor is None or watch is None or monitor.patience is None or np.ndim(watch.stopped):
        return watch
    waited = watch.stopped - 1 - watch.epoch
    return watch._replace(stopped=jnp.where(waited >= monitor.patience, watch.stopped, -1).astype(jnp.int32))


def _growing(axis: int) -> Any:
    def grown(path: str, array: Any, like: Any) -> Any:
        """A column of the history for another number of rows."""
        if not path.startswith(("history/", "telemetry/")) or array.ndim != like.ndim:
            return array
        rows = min(array.shape[axis], like.shape[axis])
        if array.shape[:axis] + array.shape[axis + 1 :] != like.shape[:axis] + like.shape[axis + 1 :]:
            return array
        made = np.zeros(like.shape, array.dtype)
        at = (slice(None),) * axis + (slice(0, rows),)
        made[at] = array[at]
        return made

    return grown
