"""The one compiled program of a run, driven from the host in chunks."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Tree, expect_key
from funcnn.training.members import Members, last_row
from funcnn.training.plans import Plan, planned, validation_arrays
from funcnn.training.programs import Carry, Program, advance
from funcnn.training.runs import Result, best_of, ordered
from funcnn.training.stopping import Monitor
from funcnn.training.trainers import Trainer, TrainState, expect_state, expect_trainer
from funcnn.training.values import expect_values


class Event(NamedTuple):
    """What is known between two chunks of a run.

    ``epoch`` is the epoch under way or just ended, counted from 1; ``step`` is how many steps were taken; ``state``
    is the ``TrainState`` after them; ``metrics`` holds what is reported, as numbers: of the whole epoch, with its
    validation, where it has just ended, and of the part of it that was run otherwise.
    """

    epoch: int
    step: int
    state: TrainState
    metrics: dict[str, Any]


class NonFiniteError(FloatingPointError):
    """A loss or a parameter became NaN or infinite.

    ``result`` is the ``Result`` up to the last good state, ``epoch`` (counted from 1) and ``step`` (counted from 0)
    say where.
    """

    def __init__(self, message: str, result: Result, epoch: int, step: int) -> None:
        super().__init__(message)
        self.result = result
        self.epoch = epoch
        self.step = step


# ---- the compiled programs: one for each trainer, plan and shapes ----------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(trainer: Trainer, plan: Plan, arrays: Tree, held_out: Tree, key: Any, state: TrainState | None) -> Carry:
    return Program(trainer, plan, arrays, held_out).start(key, state)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(
    trainer: Trainer, plan: Plan, arrays: Tree, held_out: Tree, carry: Carry, first: Any, stop: Any
) -> tuple[Carry, Any, dict[str, Any], dict[str, Any]]:
    """A chunk; whether all is well after it; the report of the epoch under way; the row of the last epoch."""
    carry = advance(Program(trainer, plan, arrays, held_out), carry, first, stop)
    good = jnp.bool_(True)
    if carry.first_bad_step is not None:
        finite = [
            jnp.all(jnp.isfinite(a))
            for a in jax.tree.leaves(carry.state.params)
            if jnp.issubdtype(a.dtype, jnp.inexact)
        ]
        good = functools.reduce(jnp.logical_and, finite, carry.first_bad_step < 0)
    row = last_row(plan, carry, stop)
    return carry, good, trainer.report(carry.sums), {name: column[row] for name, column in carry.history.items()}


# ---- chunks ----------------------------------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """A run after some of its steps."""

    step: int
    carry: Carry
    report: dict[str, Any]
    row: dict[str, Any]
    stopped: bool = False  # whether the run ended here, by its patience


class Driver(NamedTuple):
    """Everything about a run, or about several that are one program, but its progress."""

    trainer: Trainer
    plan: Plan
    arrays: Tree
    held_out: Tree
    members: Members | None = None

    @property
    def name(self) -> str:
        """Who drives it; what is said of the run begins with it."""
        return "fit" if self.members is None else "sweep"

    def start(self, key: Any, state: TrainState | None) -> Carry:
        """What is carried before the first step, made by one compiled program; of members, from a key for each."""
        if self.members is None:
            return _start(self.trainer, self.plan, self.arrays, self.held_out, key, state)
        return self.members.start(self.plan, self.arrays, self.held_out, key, state)

    def advanced(self, carry: Carry, first: int, stop: int) -> tuple[Carry, bool, dict[str, Any], dict[str, Any]]:
        """A chunk, with what ``_advance`` says of it; this waits for it."""
        given = self.plan, self.arrays, self.held_out, carry, np.int32(first), np.int32(stop)
        advance_all = functools.partial(_advance, self.trainer) if self.members is None else self.members.advance
        carry, good, report, row = advance_all(*given)
        if not all(checks.is_concrete(leaf) for leaf in jax.tree.leaves((good, carry.history))):
            # A tracer in the key, the data, or whatever the trainer was made from; under grad, good alone is a value.
            fix = "use training.run inside jit, vmap or grad: it is the same run as a pure function"
            checks.fail(self.name, "values, for it is driven from the host", "a tracer", fix, TypeError)
        return carry, bool(good), report, row

    def chunks(self, carry: Carry, next_stop: Callable[[int, float], int]) -> Iterator[Chunk]:
        """The run in chunks; ``next_stop(step, seconds of the last chunk)`` says where each one ends."""
        # The first call compiles and runs no step, so that what is timed is the running.
        _, _, report, row = self.advanced(carry, 0, 0)
        first, seconds = 0, 0.0
        while first < self.plan.steps:
            stop = min(max(next_stop(first, seconds), first + 1), self.plan.steps)
            begin = time.perf_counter()
            after, good, report, row = self.advanced(carry, first, stop)
            if self.plan.stops_at_nonfinite and not good:
                raise self.nonfinite(carry, first, stop)
            seconds = time.perf_counter() - begin
            epochs_run = _epochs_run(after)
            if epochs_run >= 0:
                stop = min(epochs_run * self.plan.epoch_steps, self.plan.steps)
            if not first:
                _expect_counted(int(np.max(after.state.step)) - int(np.max(carry.start)), stop)
            carry, first = after, self.plan.steps if epochs_run >= 0 else stop
            yield Chunk(stop, carry, report, row, epochs_run >= 0)

    def nonfinite(self, carry: Carry, first: int, stop: int) -> NonFiniteError:
        """The error of a chunk that went bad: its steps are run again, exactly, up to the last good state."""
        bad_step = int(self.advanced(carry, first, stop)[0].first_bad_step)
        good, bad = first, stop if bad_step < 0 else bad_step + 1
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self.advanced(carry, first, middle)[1] else (good, middle)
        after = self.advanced(carry, first, good)[0]
        epoch = good // self.plan.epoch_steps + 1
        got = (
            "a loss that is NaN or infinite" if bad_step == good else "an update that made a parameter NaN or infinite"
        )
        message = (
            f"fit: expected finite numbers, got {got} in epoch {epoch} of {self.plan.epochs}, "
            f"step {good} (counted from 0); "
            f"lower the learning rate, or clip the gradient with optax.clip_by_global_norm; "
            f"the .result of this error holds the last good state, after {good} steps"
        )
        return NonFiniteError(message, self.result(after, good), epoch, good)

    def result(self, carry: Carry, step: int) -> Result:
        """The result after ``step`` steps: the history of the epochs that were ended."""
        rows = self.plan.epochs if step == self.plan.steps else step // self.plan.epoch_steps
        if self.members is not None:
            return self.members.result(self.plan, carry, rows)
        history: dict[str, Any] = {name: np.asarray(carry.history[name])[:rows] for name in ordered(carry.history)}
        if self.plan.monitor is not None and self.plan.monitor.patience is not None:
            history["epochs_run"] = np.asarray(rows, np.int32)
        return Result(carry.state, history, best_of(carry))

    def event(self, chunk: Chunk) -> Event:
        """What an observer sees of a chunk."""
        ended = chunk.step % self.plan.epoch_steps == 0 or chunk.step == self.plan.steps
        row = jax.device_get(chunk.row if ended else chunk.report)
        metrics = {name: _number(row[name]) for name in ordered(row)}
        return Event(-(-chunk.step // self.plan.epoch_steps), chunk.step, chunk.carry.state, metrics)


def _epochs_run(carry: Carry) -> int:
    """After how many epochs a run was ended by its patience, the last of several; -1 as long as one goes on."""
    stopped = None if carry.watch is None else carry.watch.stopped
    return -1 if stopped is None or np.min(stopped) < 0 else int(np.max(stopped))


def _expect_counted(found: int, taken: int) -> None:
    if found != taken:
        fix = "return TrainState(..., step=step + 1), for the keys of a run are numbered by it"
        checks.fail("fit", f"a state with step {taken} after {taken} of trainer.step", f"step {found}", fix)


def _number(value: Any) -> Any:
    return value.item() if np.ndim(value) == 0 else value


# The host looks up about five times a second: often enough for a person, seldom enough to cost nothing.
_SECONDS = 0.2
_GROWTH = 32


def by_clock(seconds_each: float = _SECONDS) -> Callable[[int, float], int]:
    """Chunks that take about so many seconds, from the time that the last one took."""
    size, least = 1, 0.0

    def next_stop(step: int, seconds: float) -> int:
        nonlocal size, least
        if step:
            # The first chunk is one step: what it takes, a chunk of any size takes at least.
            least = least or seconds
            wanted = max(seconds_each, 2 * least)
            size = max(1, min(size * _GROWTH, int(size * wanted / max(seconds, 1e-6))))
        return step + size

    return next_stop


def by_count(count: int) -> Callable[[int, float], int]:
    """Chunks that end after every so many steps."""
    return lambda step, seconds: (step // count + 1) * count


def prepared(
    where: str,
    trainer: Trainer,
    data: Any,
    validation: Any,
    key: Any,
    state: Any,
    *,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    shuffle: bool,
    drop_last: bool,
    steps_per_epoch: int | None,
    stops_at_nonfinite: bool,
    monitor: Monitor | None,
) -> Driver:
    """A run before its beginning: every argument and every number checked, the data on the device."""
    expect_key(where, key)
    expect_trainer(where, trainer)
    expect_state(where, state)
    plan, arrays = planned(
        data,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        drop_last=drop_last,
        steps_per_epoch=steps_per_epoch,
        shuffle=shuffle,
        stops_at_nonfinite=stops_at_nonfinite,
        monitor=monitor,
        where=where,
    )
    held_out = validation_arrays(plan, validation, where)
    expect_values(where, trainer, arrays, held_out, state)
    arrays, held_out = jax.device_put((arrays, held_out))
    return Driver(trainer, plan, arrays, held_out)
