"""What a sweep gives back: frozen records that read and render, and change nothing."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.training.runs import Result
from funcnn.training.stopping import mode_of


class Member(NamedTuple):
    """One run of a sweep: ``run(make_trainer(hyperparameters), data, key=key)`` gave this ``result``."""

    hyperparameters: Any  # a number, or a dict of numbers; arrays where the grid had several axes
    seed: int
    key: Any
    result: Result


class Table(NamedTuple):
    """The rows of a sweep, sorted; printed as a table."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __repr__(self) -> str:
        # A table is drawn only where somebody looks at it.
        from rich.console import Console
        from rich.table import Table as Drawn

        table = Drawn()
        # A mean and its deviation are one cell to the eye.
        spreads = [name.startswith(_SPREAD) for name in self.columns] + [False]
        for name, is_spread in zip(self.columns, spreads, strict=False):
            if not is_spread:
                table.add_column(name, justify="right", overflow="fold")
        for row in self.rows:
            cells: list[str] = []
            for value, is_spread in zip(row, spreads, strict=False):
                if is_spread:
                    cells[-1] += f" {_SPREAD}{value:.2g}"
                else:
                    cells.append(_shown(value))
            table.add_row(*cells)
        console = Console(file=io.StringIO(), width=160)
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip()

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.columns, ["---:"] * len(self.columns), *([_shown(value) for value in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def csv(self) -> str:
        """The table as comma-separated values, with all their digits."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([self.columns, *self.rows])
        return file.getvalue()


_SPREAD = "± "


class Members(Sequence[Member]):
    """The members of a sweep; each is cut out of the whole when it is asked for."""

    def __init__(self, sweep: "Sweep") -> None:
        self._sweep = sweep

    def __len__(self) -> int:
        return len(self._sweep.seeds)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        sweep = self._sweep
        whole = sweep.result
        state, best, telemetry = jax.tree.map(lambda a: a[i], (whole.state, whole.best, whole.telemetry))
        history = {name: column[i] for name, column in sweep.history.items()}
        if "epochs_run" in history:
            count = int(history.pop("epochs_run"))
            history = {name: row[:count] for name, row in history.items()}
        result = Result(state, history, best, telemetry)
        chosen = _entry(sweep.grid, i)
        return Member(chosen, int(sweep.seeds[i]), sweep.keys[i], result)

    def __iter__(self) -> Iterator[Member]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{len(self)} members"


class Sweep(NamedTuple):
    """The runs of a sweep: all of them at once with a leading axis, or one by one.

    ``grid`` holds the hyperparameters of each member, as an array or a dict of arrays, ``seeds`` and ``keys`` theirs,
    ``result`` states and history. Members are in the order of the grid, the seeds of a point side by side.
    """

    grid: Any
    seeds: Any
    keys: Any
    result: Result
    seeds_each: int = 1  # of a point of the grid

    @property
    def history(self) -> dict[str, Any]:
        """The history of all members, each column with a leading axis; NaN where a member did not come to."""
        return self.result.history

    @property
    def telemetry(self) -> Any:
        """The telemetry of all members, each column ``(members, steps, ...)``; ``None`` where none was asked for."""
        return self.result.telemetry

    @property
    def state(self) -> Any:
        """The trained states of all members, with a leading axis."""
        return self.result.state

    @property
    def members(self) -> Members:
        """The members, each with hyperparameters, seed, key, and a ``Result`` of its own."""
        return Members(self)

    def final(self, name: str) -> Any:
        """A column of the history at the last epoch of each member, ``(members,)``."""
        if name not in self.history or name == "epochs_run":
            columns = ", ".join(sorted(set(self.history) - {"epochs_run"}))
            checks.fail("sweep", f"a column of the history, {columns}", repr(name), "choose one of them")
        column = np.asarray(self.history[name])
        if column.ndim != 2:
            got = f"one of shape {column.shape[2:]}"
            checks.fail("sweep", f"one number under {name!r}", got, "choose a metric that is a single number")
        last = np.asarray(self.history.get("epochs_run", np.full(len(column), column.shape[1]))) - 1
        return column[np.arange(len(column)), last]

    def best(self, name: str, mode: str | None = None, *, at: str = "last") -> Member:
        """The member that is best by a column of the history; NaN is never best.

        Args:
            name: of the column, for instance ``"validation_accuracy"``.
            mode: ``"min"`` where less is better, ``"max"`` where more is; needed unless it is a loss.
            at: ``"last"`` compares members at the last epoch of each; ``"best"`` at its best one, whose state
                ``keep_best=True`` keeps.

        Raises:
            ValueError: there is no such column, or no member has a number there.
        """
        checks.expect_option("sweep", "at", at, ("last", "best"))
        order, values = self._order(name, mode, at)
        if not np.isfinite(values[order[0]]):
            fix = "lower the learning rates of the grid"
            checks.fail("sweep", f"a member with a finite {name}", "none", fix)
        return self.members[int(order[0])]

    def table(self, by: str | None = None, mode: str | None = None, *, over_seeds: bool = False) -> Table:
        """The members as a table, with their last numbers, the best first.

        Args:
            by: the column of the history to sort by; the order of the grid otherwise.
            mode: as for ``best``.
            over_seeds: whether the seeds of a point of the grid are one row, with mean and standard deviation.
        """
        order = self._order(by, mode)[0] if by is not None else np.arange(len(self.seeds))
        names = [name for name, column in self.history.items() if np.ndim(column) == 2]
        numbers = {name: self.final(name) for name in names}
        swept = self.grid if isinstance(self.grid, dict) else {"value": self.grid}
        cells = {name: [_cell(a) for a in np.asarray(values)] for name, values in swept.items()}
        if not over_seeds:
            columns = (*cells, "seed", *names)
            rows = [
                (*(cells[n][i] for n in cells), int(self.seeds[i]), *(float(numbers[n][i]) for n in names))
                for i in order
            ]
            return Table(columns, tuple(rows))
        starts = range(0, len(self.seeds), self.seeds_each)
        points = [np.arange(i, min(i + self.seeds_each, len(self.seeds))) for i in starts]  # the last may be cut off
        if by is not None:
            means = np.array([numbers[by][p].mean() for p in points])
            points = [points[i] for i in _sorted(means, mode_of("sweep", by, mode))]
        columns = (*cells, *(part for n in names for part in (n, _SPREAD + n)))
        rows = [(*(cells[n][p[0]] for n in cells), *(v for n in names for v in _spread(numbers[n][p]))) for p in points]
        return Table(columns, tuple(rows))

    def _order(self, name: str, mode: str | None, at: str = "last") -> tuple[Any, Any]:
        values, mode = self.final(name), mode_of("sweep", name, mode)
        if at == "best":
            column = np.asarray(self.history[name])
            worst = np.inf if mode == "min" else -np.inf
            reached = np.where(np.isfinite(column), column, worst)
            values = reached.min(axis=1) if mode == "min" else reached.max(axis=1)
        return _sorted(values, mode), values

    def __repr__(self) -> str:
        columns = ", ".join(f"{name} {np.shape(column)}" for name, column in self.history.items())
        return f"Sweep({len(self.seeds)} members, history: {columns})"


def _sorted(values: Any, mode: str) -> Any:
    """The order from the best to the worst, what is not finite at the end."""
    keyed = np.where(np.isfinite(values), values if mode == "min" else -values, np.inf)
    return np.argsort(keyed, kind="stable")


def _spread(values: Any) -> tuple[float, float]:
    with np.errstate(invalid="ignore"):  # of infinite ones there is no deviation
        return float(np.mean(values)), float(np.std(values, ddof=1) if len(values) > 1 else 0.0)


def _entry(grid: Any, i: int) -> Any:
    if isinstance(grid, dict):
        return {name: _entry(values, i) for name, values in grid.items()}
    return grid[i].item() if grid.ndim == 1 else np.asarray(grid[i])


def _cell(value: Any) -> Any:
    return value.item() if value.ndim == 0 else str(value.tolist())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def joined(results: Sequence[Result], count: int) -> Result:
    """The results of groups of members as one, of the first ``count`` of them."""
    if len(results) == 1 and len(jax.tree.leaves(results[0])[0]) == count:
        return results[0]

    def leaf(*parts: Any) -> Any:
        whole = np.concatenate if isinstance(parts[0], np.ndarray) else jnp.concatenate
        return whole(parts)[:count]

    state, best, telemetry = jax.tree.map(leaf, *((r.state, r.best, r.telemetry) for r in results))
    histories = [r.history for r in results]
    if any("epochs_run" in history for history in histories):  # in a group that was ended, and not in those before
        histories = [history if "epochs_run" in history else _whole(history) for history in histories]
    history = {name: leaf(*(history[name] for history in histories)) for name in histories[0]}
    return Result(state, history, best, telemetry)


def _whole(history: dict[str, Any]) -> dict[str, Any]:
    column = next(iter(history.values()))
    return history | {"epochs_run": np.full(len(column), column.shape[1], np.int32)}
