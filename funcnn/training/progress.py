"""The progress of a run on standard error: a bar with the time left on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

from funcnn.training.driving import Event
from funcnn.training.plans import Plan

# A line at most so often, in seconds: a log that nobody watches should stay short.
_LINE_SECONDS = 5.0


@contextmanager
def shown(plan: Plan) -> Generator[Callable[[Event], None], None, None]:
    """A function that shows an event, in the way that standard error can."""
    if sys.stderr is None:  # a process without a console
        yield lambda event: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        bar = _bar(plan, console)
        try:
            yield bar.__enter__()
        finally:
            with contextlib.suppress(OSError, ValueError):  # standard error is gone
                bar.__exit__(None, None, None)
    else:
        yield _lines(plan)


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


def _lines(plan: Plan) -> Callable[[Event], None]:
    # The clock starts at the first look, so that what is left is not estimated from the time of compiling.
    begin: tuple[int, float] | None = None
    last = 0.0

    def show(event: Event) -> None:
        nonlocal begin, last
        now = time.monotonic()
        if begin is None:
            begin, last = (event.step, now), now
        if now - last < _LINE_SECONDS and event.step < plan.steps:
            return
        last = now
        seconds = now - begin[1]
        left = seconds / max(event.step - begin[0], 1) * (plan.steps - event.step)
        where = f"epoch {event.epoch}/{plan.epochs}  step {event.step}/{plan.steps}"
        sys.stderr.write(f"{where}  {described(event.metrics)}  {seconds:.1f} s, {left:.1f} s left\n")
        sys.stderr.flush()

    return show


@contextmanager
def _bar(plan: Plan, console: Any) -> Generator[Callable[[Event], None], None, None]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=plan.steps, epoch=0, epochs=plan.epochs, metrics="")
        yield lambda event: bar.update(
            task,
            completed=event.step,
            epoch=event.epoch,
            metrics=described(event.metrics),
            refresh=event.step == plan.steps,
        )
