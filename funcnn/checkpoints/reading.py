"""Checkpoints from outside: read into values, or only compared with their checksums, while a run goes on or not."""

import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks, trees
from funcnn.checkpoints import stores
from funcnn.checkpoints.directories import Directory
from funcnn.checkpoints.keeping import parts_of, steps_of
from funcnn.checkpoints.manifests import CheckpointError
from funcnn.core import Tree
from funcnn.training.states import TrainState

# So often is looked again where a run deletes what is being read.
_TRIES = 10


class Checkpoint(NamedTuple):
    """A run as it was saved after ``step`` steps.

    ``state`` is its ``TrainState``, and ``best`` the best one, where it was kept, ``None`` otherwise; ``history`` has
    the rows of the epochs that had ended; ``about`` is what else was written down. Of a sweep, all have an axis of
    members in front.
    """

    path: str
    step: int
    state: TrainState
    best: TrainState | None
    history: dict[str, Any]
    about: dict[str, Any]

    def __repr__(self) -> str:
        return f"Checkpoint({self.path!r}, step={self.step}, history: {', '.join(self.history)})"


class Verified(NamedTuple):
    """What ``verify`` found of a step: ``fault`` is ``""`` where every byte of it is as it was saved."""

    path: str
    step: int
    fault: str
    arrays: int
    bytes: int
    seconds_ago: float

    @property
    def is_good(self) -> bool:
        """Whether every byte is as it was saved."""
        return not self.fault


def _root(where: str, path: Any) -> str:
    """The directory that is meant."""
    path = path.path if isinstance(path, Directory) else path
    if not isinstance(path, (str, os.PathLike)):
        fix = "pass the directory that fit was given"
        checks.fail(where, "a path", type(path).__name__, fix, TypeError)
    root = os.path.abspath(os.path.expanduser(os.fspath(path)))
    if os.path.lexists(root) and not os.path.isdir(root):
        checks.fail(
            where, f"a directory at {root}", "a file", "pass the directory that fit was given", NotADirectoryError
        )
    return root


def load(
    path: str | os.PathLike[str] | Directory, *, step: int | None = None, like: TrainState | None = None
) -> Checkpoint:
    """Read a checkpoint: the newest that is whole, or that of a step.

    This needs no lock: a run may go on saving there meanwhile.

    Args:
        path: of the directory, as for ``directory``; of a sweep in parts, that of a part, ``"runs/a/parts/..."``.
        step: which one; the newest otherwise.
        like: a ``TrainState`` of the same trainer, as from ``trainer.init(key, batch)``, whose structure those that are
            read are to have. Without it params and state of the model are nested dicts, as those of all layers here
            are, and ``opt_state`` is a dict of arrays by path.

    Raises:
        CheckpointError: nothing is there that is whole, with the file and the array that are damaged.
        ValueError: it does not fit ``like``, with the paths that differ.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, optax
        >>> from funcnn import checkpoints, layers, losses, training
        >>> x = jnp.linspace(-1, 1, 20)[:, None]
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs = checkpoints.directory(folder)
        ...     _ = training.fit(line, (x, x), key=jax.random.key(0), epochs=5, checkpoint=runs, progress=False)
        ...     found = checkpoints.load(folder)
        >>> found.step, found.state.params["kernel"].shape, found.history["loss"].shape
        (5, (1, 1), (5,))
    """
    root = _root("checkpoints.load", path)
    if like is not None and not isinstance(like, TrainState):
        fix = "pass trainer.init(key, batch)"
        checks.fail("checkpoints.load", "like as a TrainState", type(like).__name__, fix, TypeError)
    if step is not None:
        step = checks.expect_count("checkpoints.load", "step", step)
    for last in reversed(range(_TRIES)):
        found = steps_of(root)
        chosen = [folder for number, folder in found if step in (None, number)]
        if not chosen:
            there = ", ".join(str(number) for number, _ in reversed(found)) or "none"
            fix = "pass the directory that fit was given" if not found else "choose one of them"
            if parts := parts_of(root):
                there, fix = f"a sweep in parts, {', '.join(parts)}", "pass the path of one, below parts/"
            message = (
                f"checkpoints.load: {root}: expected {'a step' if step is None else f'step {step}'}, got {there}; {fix}"
            )
            raise CheckpointError(message, root)
        faults: list[str] = []
        for folder in chosen:
            try:
                return _checkpoint(folder, stores.read(folder), like)
            except CheckpointError as error:
                faults.append(str(error))
        if not last or steps_of(root) == found:
            raise CheckpointError("; ".join(faults), chosen[0])
    raise AssertionError


def _checkpoint(folder: str, stored: stores.Stored, like: TrainState | None) -> Checkpoint:
    about = stored.manifest["about"]
    leaves = {path: _jax(folder, path, array, about["keys"].get(path)) for path, array in stored.leaves.items()}
    is_sweep = "members" in about.get("run", ())
    history = {
        path.removeprefix("history/"): _rows(column, about["rows"], about["rows_axis"], is_sweep)
        for path, column in stored.leaves.items()
        if path.startswith("history/")
    }
    best = _state(folder, leaves, "watch/state/", like) if any(p.startswith("watch/state/") for p in leaves) else None
    return Checkpoint(folder, about["step"], _state(folder, leaves, "state/", like), best, history, about)


def _rows(column: Any, rows: int, axis: int, is_sweep: bool) -> Any:
    """The rows of the epochs that had ended; of a sweep with the members in front."""
    column = column[:, :rows] if axis else column[:rows]
    return np.moveaxis(column, 1, 0) if is_sweep and not axis else column


def _jax(folder: str, path: str, array: Any, key: str | None) -> Any:
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        fix = "set jax.config.update('jax_enable_x64', True)"
        checks.fail(f"checkpoints.load: {folder}: {path}", "numbers of at most 32 bits", str(array.dtype), fix)
    leaf = jnp.asarray(array)
    return leaf if key is None else jax.random.wrap_key_data(leaf, impl=key)


def _state(folder: str, leaves: dict[str, Any], prefix: str, like: TrainState | None) -> TrainState:
    found = {path.removeprefix(prefix): leaf for path, leaf in leaves.items() if path.startswith(prefix)}
    if like is not None:
        return _like(folder, found, like)

    def part(name: str) -> Tree:
        if name in found:  # one array, and no dict of them
            return found[name]
        return trees.nested(
            {path.removeprefix(f"{name}/"): leaf for path, leaf in found.items() if path.startswith(f"{name}/")}
        )

    opt_state = {path.removeprefix("opt_state/"): leaf for path, leaf in found.items() if path.startswith("opt_state/")}
    return TrainState(part("params"), part("model_state"), opt_state, found["key"], found["step"])


def _like(folder: str, found: dict[str, Any], like: TrainState) -> TrainState:
    paths = jax.tree_util.tree_leaves_with_path(like)
    made: list[Any] = []
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        got = found.pop(name, None)
        got = leaf if got is None and not leaf.size else got
        where = f"checkpoints.load: {folder}: {name}"
        if got is None or got.shape != leaf.shape or got.dtype != leaf.dtype:
            there = "nothing" if got is None else f"{got.dtype}{got.shape}"
            checks.fail(where, f"{leaf.dtype}{leaf.shape}, as in like", there, "pass the state of the same trainer")
        made.append(got)
    if found:
        fix = "pass the state of the same trainer"
        checks.fail(f"checkpoints.load: {folder}", "only the paths of like", ", ".join(sorted(found)), fix)
    return jax.tree.unflatten(jax.tree.structure(like), made)


def verify(path: str | os.PathLike[str] | Directory) -> tuple[Verified, ...]:
    """Compare every byte of every step in a directory with its checksum, without a model and without a device.

    Args:
        path: of the directory, as for ``directory``.

    Returns:
        A ``Verified`` for each step, the newest first; also those of the parts of a sweep.

    Raises:
        CheckpointError: nothing was saved there.

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp, optax
        >>> from funcnn import checkpoints, layers, losses, training
        >>> x = jnp.linspace(-1, 1, 20)[:, None]
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs = checkpoints.directory(folder)
        ...     _ = training.fit(line, (x, x), key=jax.random.key(0), epochs=5, checkpoint=runs, progress=False)
        ...     before = checkpoints.verify(folder)
        ...     file = next(pathlib.Path(before[0].path).rglob("*kernel/c/0/0"))
        ...     _ = file.write_bytes(file.read_bytes()[:-1])
        ...     after = checkpoints.verify(folder)
        >>> [found.is_good for found in before], [found.is_good for found in after]
        ([True], [False])
        >>> "state/params/kernel" in after[0].fault, "was cut off" in after[0].fault
        (True, True)
    """
    root = _root("checkpoints.verify", path)
    found = [_verified(step, folder) for step, folder in steps_of(root)]
    for name in parts_of(root):
        found += [_verified(step, folder) for step, folder in steps_of(os.path.join(root, "parts", name))]
    if not found:
        raise CheckpointError(f"checkpoints.verify: {root}: expected a run that was saved, got none", root)
    return tuple(found)


def _verified(step: int, folder: str) -> Verified:
    try:
        manifest, leaves = stores.read(folder)
    except CheckpointError as error:
        return Verified(folder, step, str(error), 0, 0, 0.0)
    size = sum(about["bytes"] for about in manifest["files"].values())
    fault = "" if manifest["about"]["step"] == step else f"checkpoints: {folder}: expected step {step}, got another's"
    return Verified(folder, step, fault, len(leaves), size, time.time() - manifest["time"])
