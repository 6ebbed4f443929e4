"""The progress of a run on standard error: a bar with the time left on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

from funcnn.training.events import Event

# A line at most so often, in seconds: a log that nobody watches should stay short.
_LINE_SECONDS = 5.0


@contextmanager
def shown(epochs: int, total: int | None) -> Generator[Callable[[Event], None], None, None]:
    """A function that shows an event, in the way that standard error can; ``total`` steps, where it is known."""
    if sys.stderr is None:  # a process without a console
        yield _nobody
        return
    from rich.console import Console

    class Surviving(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # as any other fault of a terminal, where rich would end the process

    console = Surviving(stderr=True)
    is_bar = console.is_terminal or console.is_jupyter
    shows = _bar(epochs, total, console) if is_bar else _lines(epochs, total)
    gone = OSError, ValueError  # standard error may be closed at any time
    show = _nobody
    with contextlib.suppress(*gone):
        show = shows.__enter__()
    try:
        yield show
    finally:
        with contextlib.suppress(*gone):
            shows.__exit__(None, None, None)


def _nobody(event: Event) -> None:
    """What shows an event to nobody."""
    del event


def say(line: str) -> None:
    """Write a line to standard error, if there is one that takes it."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def described(metrics: dict[str, Any]) -> str:
    """The metrics that are single numbers, with four digits."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if np.ndim(value) == 0)


def medians(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of many members as single numbers: the median of those that are finite."""
    columns = {name: np.asarray(values) for name, values in metrics.items() if np.ndim(values) == 1}
    finite = {name: values[np.isfinite(values)] for name, values in columns.items()}
    return {f"median {name}": np.median(values) if len(values) else np.nan for name, values in finite.items()}


@contextmanager
def _lines(epochs: int, total: int | None) -> Generator[Callable[[Event], None], None, None]:
    # The clock starts at the first look, so that what is left is not estimated from the time of compiling.
    begin: tuple[int, float] | None = None
    last, unseen = 0.0, None

    def line(event: Event, begin: tuple[int, float], *, goes_on: bool = True) -> None:
        seconds = time.monotonic() - begin[1]
        taken = f"{event.step}" if total is None else f"{event.step}/{total}"
        left = ""
        if total is not None and goes_on:
            left = f", {seconds / max(event.step - begin[0], 1) * max(total - event.step, 0):.1f} s left"
        where = f"epoch {event.epoch}/{epochs}  step {taken}"
        sys.stderr.write(f"{where}  {described(event.metrics)}  {seconds:.1f} s{left}\n")
        sys.stderr.flush()

    def show(event: Event) -> None:
        nonlocal begin, last, unseen
        now = time.monotonic()
        if begin is None:
            begin, last = (event.step, now), now
        unseen = event
        if now - last >= _LINE_SECONDS or event.step == total:
            last, unseen = now, None
            line(event, begin)

    yield show
    if unseen is not None and begin is not None:  # the end of a run whose length nobody knew, or an early one
        line(unseen, begin, goes_on=False)


@contextmanager
def _bar(epochs: int, total: int | None, console: Any) -> Generator[Callable[[Event], None], None, None]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Bar(Progress):
        """A bar as wide as there is room for, and the metrics below it, in as many lines as they need."""

        def get_renderables(self) -> Any:
            yield self.make_tasks_table(self.tasks)
            yield from (Text(task.fields["metrics"]) for task in self.tasks if task.fields["metrics"])

    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(None, table_column=Column(max_width=40)),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(Column(no_wrap=True)),
        TextColumn("left"),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("", total=total, epoch=0, epochs=epochs, metrics="")
        yield lambda event: bar.update(
            task,
            completed=event.step,
            epoch=event.epoch,
            metrics=described(event.metrics),
            refresh=event.step == total,
        )
        if not bar.tasks[0].finished:  # it ended early: nothing is left
            bar.columns = columns[:-2]
