"""Cross-validation: as many runs as there are folds, as one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn import data as datasets
from funcnn.core import Tree, expect_key
from funcnn.training.objectives import unpacked
from funcnn.training.preparing import prepared
from funcnn.training.probes import fastest, step_of
from funcnn.training.records import Member, Sweep, Table
from funcnn.training.runs import Result, ordered, run
from funcnn.training.stopping import monitored
from funcnn.training.trainers import Trainer


class CrossValidation(NamedTuple):
    """The runs of a cross-validation: ``folds`` says in which fold each example is, the rest is of all runs at once.

    The run with number ``i`` has learned from all examples but those of fold ``i``, and was validated on these.
    """

    folds: Any
    keys: Any
    result: Result

    @property
    def history(self) -> dict[str, Any]:
        """The history of all runs, each column with a leading axis of folds."""
        return self.result.history

    @property
    def state(self) -> Any:
        """The trained states of all runs, with a leading axis of folds."""
        return self.result.state

    @property
    def members(self) -> list[Member]:
        """The runs one by one."""
        return self._sweep().members[:]

    def final(self, name: str) -> Any:
        """A column of the history at the last epoch of each run, ``(folds,)``."""
        return self._sweep().final(name)

    def mean(self, name: str) -> float:
        """The mean over the folds of a column of the history at the last epoch."""
        return float(np.mean(self.final(name)))

    def deviation(self, name: str) -> float:
        """The standard deviation over the folds of a column of the history at the last epoch."""
        return float(np.std(self.final(name), ddof=1))

    def table(self) -> Table:
        """The last numbers of each run, and their mean and standard deviation."""
        names = [name for name, column in self.history.items() if np.ndim(column) == 2]
        numbers = np.stack([self.final(name) for name in names], axis=1).astype(float)
        rows: list[tuple[Any, ...]] = [(i, *row) for i, row in enumerate(numbers.tolist())]
        rows += [("mean", *numbers.mean(axis=0).tolist()), ("deviation", *numbers.std(axis=0, ddof=1).tolist())]
        return Table(("fold", *names), tuple(rows))

    def _sweep(self) -> Sweep:
        numbers = np.arange(len(self.keys))
        return Sweep({"fold": numbers}, np.zeros_like(numbers), self.keys, self.result)

    def __repr__(self) -> str:
        columns = ", ".join(f"{name} {np.shape(column)}" for name, column in self.history.items())
        return f"CrossValidation({len(self.keys)} folds, history: {columns})"


def cross_validate(
    trainer: Trainer,
    data: Any,
    *,
    key: Any,
    folds: int = 5,
    stratify: Any = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = 32,
    shuffle: bool = True,
    drop_last: bool = False,
    monitor: str | None = None,
    mode: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    keep_best: bool = False,
    how: str = "auto",
) -> CrossValidation:
    """Train once for each fold on all the others, and validate on it: all runs are one compiled program.

    Formula: run ``i`` is ``run(trainer, data outside fold i, key=fold_in(key, i), validation=fold i)``, with the folds
    of ``data.folds(n, folds, key=key, stratify=stratify)``.

    Folds whose sizes differ are filled up with an example of weight 0, which counts nowhere, so that all runs have one
    shape; ``batch_norm`` sees it all the same.

    Args:
        trainer: from ``supervised``, or any other.
        data: arrays with one leading length. Where ``folds`` does not divide it: ``(x, y)`` or ``(x, y, weights)``.
        key: the only source of randomness.
        folds: how many.
        stratify: a label for every example; each fold then has its share of each class.
        epochs: as for ``run``; so are ``steps``, ``batch_size``, ``shuffle``, ``drop_last``, ``monitor``, ``mode``,
            ``patience``, ``min_delta`` and ``keep_best``, for each run on its own.
        how: as for ``sweep``.

    Raises:
        TypeError: data that are no ``(x, y)`` where folds have to be filled up.
        ValueError: more folds than examples, or what ``fit`` refuses.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> x = jnp.linspace(-1, 1, 22)[:, None]
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.3))
        >>> found = training.cross_validate(line, (x, 3 * x), key=jax.random.key(0), folds=4, epochs=20)
        >>> found.history["validation_loss"].shape, found.mean("validation_loss") < 0.01
        ((4, 20), True)

    Reference: Stone, "Cross-validatory choice and assessment of statistical predictions", 1974.
    """
    where = "cross_validate"
    expect_key(where, key)
    checks.expect_option(where, "how", how, ("auto", "vmap", "map"))
    plan_options: dict[str, Any] = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "drop_last": drop_last}
    watching: dict[str, Any] = {
        "monitor": monitor,
        "mode": mode,
        "patience": patience,
        "min_delta": min_delta,
        "keep_best": keep_best,
    }
    if callable(data):
        checks.fail(where, "data as arrays", "a function", "fold what has rows, and draw from that", TypeError)
    whole = prepared(
        where,
        trainer,
        data,
        data,
        key,
        None,
        **plan_options,
        shuffle=shuffle,
        steps_per_epoch=None,
        stops_at_nonfinite=False,
        monitor=monitored(where, *watching.values()),
        takes_streams=False,
    )
    numbers = datasets.folds(len(jax.tree.leaves(whole.arrays)[0]), folds, key=key, stratify=stratify)
    if how == "auto":
        how = fastest(step_of(lambda h: trainer, {}, whole, None).jaxpr, whole.plan)
    parts = [_filled([np.flatnonzero((numbers == i) == held) for i in range(folds)]) for held in (False, True)]
    arrays = _weighted(where, whole.arrays) if any((w == 0).any() for _, w in parts) else whole.arrays
    is_weighted = arrays is not whole.arrays
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(folds, dtype=jnp.uint32))
    options = tuple((plan_options | watching | {"shuffle": shuffle}).items())
    result = _mapped(trainer, how, options, is_weighted, arrays, *parts, keys)
    history = {name: np.asarray(result.history[name]) for name in ordered(result.history)}
    return CrossValidation(numbers, keys, result._replace(history=history))


def _filled(rows: list[Any]) -> tuple[Any, Any]:
    """Rows of one length, filled up with the first of each, and 0 for those, 1 for the others."""
    longest = max(map(len, rows))
    chosen = np.stack([np.concatenate([r, np.repeat(r[:1], longest - len(r))]) for r in rows])
    weights = np.stack([np.arange(longest) < len(r) for r in rows])
    return chosen.astype(np.int32), weights.astype(np.float32)


def _weighted(where: str, arrays: Tree) -> Tree:
    if not isinstance(arrays, tuple) or len(arrays) not in (2, 3):
        fix = "take a number of folds that divides the number of examples"
        got = f"a {type(arrays).__name__} of {len(arrays)}" if isinstance(arrays, (tuple, dict)) else "another tree"
        checks.fail(where, "(x, y) or (x, y, weights), to weigh what fills up folds with 0", got, fix, TypeError)
    x, y, weights = unpacked(arrays)
    return x, y, jnp.ones(len(jax.tree.leaves(x)[0])) if weights is None else weights


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _mapped(
    trainer: Trainer,
    how: str,
    options: tuple[tuple[str, Any], ...],
    is_weighted: bool,
    arrays: Tree,
    train: tuple[Any, Any],
    held_out: tuple[Any, Any],
    keys: Any,
) -> Result:
    def taken(rows: Any, counts: Any) -> Tree:
        part = jax.tree.map(lambda a: a[rows], arrays)
        if not is_weighted:
            return part
        x, y, weights = part
        return x, y, weights * counts.reshape(counts.shape + (1,) * (weights.ndim - 1))

    def one(given: tuple[Any, Any, Any]) -> Result:
        return run(trainer, taken(*given[0]), key=given[2], validation=taken(*given[1]), **dict(options))

    each: Callable[..., Result] = jax.vmap(one) if how == "vmap" else functools.partial(jax.lax.map, one)
    return each((train, held_out, keys))
