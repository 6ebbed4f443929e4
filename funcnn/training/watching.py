"""The loop of ``fit``: a chunk of a run, then everybody who wants to see it, keep it, or end it."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

from funcnn import checks
from funcnn.training import progress as progresses
from funcnn.training.chunks import Chunk
from funcnn.training.driving import Driver
from funcnn.training.events import Event, NonFiniteError
from funcnn.training.interrupts import Interrupted, noted
from funcnn.training.keeping import Kept
from funcnn.training.looks import Looks, by_clock, never
from funcnn.training.runs import Result

Observer = Callable[[Event], Any]


def expect_observers(where: str, observers: Any) -> None:
    """Raise unless these are functions, in a list."""
    if callable(observers):
        checks.fail(where, "observers in a list", "a function", "pass observers=[...]", TypeError)
    for observer in observers:
        if not callable(observer):
            got = type(observer).__name__
            checks.fail(where, "observers that are functions of an event", got, "pass functions", TypeError)


def driven(
    run: Driver, begun: Chunk, next_look: Looks, observers: list[Observer], progress: bool, kept: Kept | None = None
) -> tuple[Result, bool]:
    """The loop of ``fit``: a chunk, then everybody who wants to see it; and whether nobody broke it off."""
    chunk, is_whole = begun, True
    with contextlib.ExitStack() as stack:
        ending: list[str] = []
        stack.callback(lambda: [progresses.say(line) for line in ending])  # below the last line of the progress
        signals = None if kept is None else stack.enter_context(noted())
        next_cut = never if kept is None else by_clock()  # so that a signal is not noticed an hour later
        watching = [_named_progress(stack, run)] if progress else []
        try:
            for chunk in run.chunks(begun, next_look, next_cut):
                run.trained(chunk.position)
                if kept is not None:
                    kept.offer(chunk)
                if chunk.is_look and (watching or observers):
                    event = run.event(chunk)
                    _observed(watching, event)
                    if _observed(observers, event):
                        is_whole = False
                        break
                    if progress and chunk.stopped:
                        ending.append(_why(run, chunk))
                if signals is not None and signals.number:
                    is_whole = False
                    break
        except KeyboardInterrupt:
            is_whole = False
            run.trained(chunk.position)  # it may come anywhere: what counts is the chunk at hand
            ending.append(f"{run.name}: interrupted; this is the result after {_counted(run, chunk)}")
        except (Exception, SystemExit) as error:
            if kept is not None:
                kept.last(error.chunk if isinstance(error, NonFiniteError) else chunk)
            raise
        if kept is not None:
            kept.keep(chunk, wait=True)
        if signals is not None and signals.number:
            after = f"{run.name}: {signals.name}: saved after {_counted(run, chunk)}; resume=True goes on from there"
            ending.append(after)
            if signals.ends_process:
                raise Interrupted(signals.number, run.result(chunk.carry, chunk.number))
    return run.result(chunk.carry, chunk.number), is_whole


def _counted(run: Driver, chunk: Chunk) -> str:
    if run.total is None:
        return checks.counted(chunk.step, "step")
    return f"{chunk.step} of {checks.counted(run.total, 'step')}"


def _why(run: Driver, chunk: Chunk) -> str:
    """What ended a run before its last epoch."""
    monitor, watch = run.plan.monitor, chunk.carry.watch
    if monitor is None or watch is None:
        return ""
    if run.members is not None:
        last = -(-chunk.step // run.plan.epoch_steps)
        return f"sweep: every member was ended by its patience, the last after epoch {last}"
    best = f"; the best was {float(watch.best):.4g}" if int(watch.epoch) >= 0 else ""
    if best and float(watch.best) == float(watch.reference):
        best += f", after epoch {int(watch.epoch) + 1}"
    return (
        f"fit: ended after epoch {int(watch.stopped)} of {run.plan.epochs}, {monitor.patience} without an improvement "
        f"of {monitor.name}{best}"
    )


def _named_progress(stack: contextlib.ExitStack, run: Driver) -> Observer:
    """Progress as an observer: whatever becomes of standard error, it does not cost anybody the run."""
    show = stack.enter_context(progresses.shown(run.plan.epochs, run.total))

    def progress(event: Event) -> None:
        show(event if run.members is None else event._replace(metrics=progresses.medians(event.metrics)))

    return progress


def _observed(observers: list[Observer], event: Event) -> bool:
    """Whether an observer ends the run; one that raises is taken from the list."""
    ended = False
    for observer in list(observers):
        try:
            ended = bool(observer(event)) or ended
        except Exception as error:  # what somebody only wanted to see must not cost them the run
            observers.remove(observer)
            name = getattr(observer, "__name__", observer)
            message = f"fit: the observer {name} raised {error!r} and is not called again"
            try:
                warnings.warn(message, RuntimeWarning, stacklevel=4)
            except RuntimeWarning:  # where warnings are errors
                progresses.say(message)
    return ended
