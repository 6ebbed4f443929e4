"""The one compiled program of a run, driven from the host in chunks."""

import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Tree
from funcnn.training.causes import advice_for, cause
from funcnn.training.chunks import Chunk, Span
from funcnn.training.events import Event, NonFiniteError, StreamError
from funcnn.training.looks import Looks, never
from funcnn.training.members import Members, last_row
from funcnn.training.pieces import Buffer
from funcnn.training.plans import Plan
from funcnn.training.positions import Position
from funcnn.training.programs import MOST_SKIPPED, Carry, Program, advance
from funcnn.training.runs import Result, best_of, ordered
from funcnn.training.sources import length_of
from funcnn.training.streams import Reader
from funcnn.training.trainers import Trainer, TrainState

# ---- the compiled programs: one for each trainer, plan and shapes ----------------------------------------------------


# The data are of no use to it but to say where they lie: what is carried lies there too from the beginning, or the
# first chunk would be compiled for one place, and the second for another.
@functools.partial(jax.jit, static_argnums=(0, 1), keep_unused=True)
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


# ---- the driver -----------------------------------------------------------------------------------------------------


class Driver(NamedTuple):
    """Everything about a run, or about several that are one program, but its progress."""

    trainer: Trainer
    plan: Plan
    arrays: Tree
    held_out: Tree
    members: Members | None = None
    reader: Reader | None = None

    @property
    def name(self) -> str:
        """Who drives it; what is said of the run begins with it."""
        return "fit" if self.members is None else "sweep"

    @property
    def total(self) -> int | None:
        """How many steps there will be, as far as that is known."""
        if self.reader is None or self.reader.passes is None:
            return self.plan.steps
        length = length_of(self.reader.source)
        return None if length is None else length * self.reader.passes

    def close(self) -> None:
        """End what reads ahead."""
        if self.reader is not None:
            self.reader.close()

    def again(self, at: Position | None = None) -> "Driver":
        """The same run from its beginning, or that position, of which a stream has been read before."""
        if self.reader is None:
            return self
        was = self.reader
        reader = was.again(at)
        try:
            return self._replace(arrays=reader.begin()[0], reader=reader)
        except BaseException:
            reader.close()
            raise

    def start(self, key: Any, state: TrainState | None) -> Carry:
        """What is carried before the first step, made by one compiled program; of members, from a key for each."""
        if self.members is None:
            return _start(self.trainer, self.plan, self.arrays, self.held_out, key, state)
        return self.members.start(self.plan, self.arrays, self.held_out, key, state)

    def advanced(
        self, carry: Carry, first: int, stop: int, span: Span
    ) -> tuple[Carry, bool, dict[str, Any], dict[str, Any]]:
        """A chunk, with what ``_advance`` says of it; this waits for it."""
        given = span.plan, span.arrays, self.held_out, carry, np.int32(first), np.int32(stop)
        advance_all = functools.partial(_advance, self.trainer) if self.members is None else self.members.advance
        after, good, report, row = advance_all(*given)
        if not all(checks.is_concrete(leaf) for leaf in jax.tree.leaves((good, after.history))):
            # A tracer in the key, the data, or whatever the trainer was made from; under grad, good alone is a value.
            fix = "use training.run inside jit, vmap or grad: it is the same run as a pure function"
            checks.fail(self.name, "values, for it is driven from the host", "a tracer", fix, TypeError)
        jax.block_until_ready(after.state.step)  # the memory of a piece is about to be used again
        return jax.tree.map(_in_place_of, after, carry), bool(good), report, row

    def spans(self, begin: Chunk) -> Iterator[Span]:
        """The rest of the run in parts whose data are at hand together."""
        if self.reader is None:
            yield Span(self.plan, self.arrays, begin.number, self.plan.steps, begin.step)
            return
        plan, arrays, number, taken = self.plan, self.arrays, begin.number, begin.step
        for piece in self.reader:
            stop = number + piece.size
            if piece.size:
                arrays, plan = piece.batches, self.plan._replace(is_rest=piece.is_rest)
            last = stop if piece.ends or stop == self.plan.steps else -1
            yield Span(plan, Buffer(arrays, np.int32(number), np.int32(last)), number, stop, taken, piece)
            taken += piece.size
            number = (number // plan.epoch_steps + 1) * plan.epoch_steps if piece.ends else stop

    def chunks(self, begun: Chunk, next_look: Looks, next_cut: Looks = never) -> Iterator[Chunk]:
        """The run from there on in chunks, each up to the next look or cut, or to the end of the data at hand."""
        look, cut, begin, cut_begin, carry = -1, -1, 0.0, 0.0, begun.carry
        if begun.stopped or begun.number >= self.plan.steps:
            return
        for span in self.spans(begun):
            if look < 0:
                # The first call compiles and runs no step, so that what is timed is the running.
                self.advanced(carry, 0, 0, span)
                look, cut = next_look(begun.number, begun.step, 0.0), next_cut(begun.number, begun.step, 0.0)
                begin = cut_begin = time.perf_counter()
            first = span.first
            while first < span.stop:
                stop = min(max(min(look, cut), first + 1), span.stop)
                chunk = self.chunk(span, carry, first, stop)
                carry, first = chunk.carry, stop
                if look % self.plan.epoch_steps:
                    look += chunk.number - stop  # so many steps on, whatever numbers were left out
                is_look = chunk.stopped or chunk.number >= min(look, self.plan.steps)
                seconds = time.perf_counter() - begin if is_look else 0.0
                yield chunk._replace(is_look=is_look)
                if chunk.stopped:
                    return
                if is_look:
                    look, begin = next_look(chunk.number, chunk.step, seconds), time.perf_counter()
                if chunk.number >= cut:
                    cut = next_cut(chunk.number, chunk.step, time.perf_counter() - cut_begin)
                    cut_begin = time.perf_counter()
            if span.piece is not None and span.piece.error is not None:
                raise self.broken(span, carry, span.piece.error)

    def chunk(self, span: Span, carry: Carry, first: int, stop: int) -> Chunk:
        """The run after the steps from ``first`` to ``stop``."""
        after, good, report, row = self.advanced(carry, first, stop, span)
        if self.plan.stops_at_nonfinite and not good:
            raise self.nonfinite(carry, first, stop, span)
        size, epochs_run = self.plan.epoch_steps, epochs_run_of(after)
        number = (stop // size + 1) * size if span.ends and stop == span.stop else stop
        if epochs_run >= 0:
            number = min(epochs_run * size, self.plan.steps)
        step = span.taken + min(stop, number) - span.first
        if not first:
            before, now = (int(np.asarray(steps).max()) for steps in (carry.start, after.state.step))
            _expect_counted(now - before, step)
        position = _position(span, step)
        if position is not None and span.ends and stop == span.stop:
            position = position.after_pass()
        return Chunk(number, step, after, report, row, stopped=epochs_run >= 0, position=position)

    def traced(self, carry: Carry) -> Any:
        """The program of a chunk, before it is compiled."""
        given = self.plan, self.arrays, self.held_out, carry, np.int32(0), np.int32(0)
        return _advance.trace(self.trainer, *given) if self.members is None else self.members.traced(*given)

    def traced_step(self, carry: Carry) -> Any:
        """The program of one step alone, whatever the length of the run; of a member, that of any of them."""
        program = Program(self.trainer, self.plan, self.arrays, self.held_out)
        if self.members is None:
            return jax.make_jaxpr(self.trainer.step)(carry.state, program.batch_spec())
        make, state = self.members.make_trainer, jax.tree.map(lambda a: a[0], carry.state)
        first = jax.tree.map(lambda a: a[0], self.members.values)
        return jax.make_jaxpr(lambda h, s, b: make(h).step(s, b))(first, state, program.batch_spec())

    def trained(self, position: Position | None) -> None:
        """Tell the reader where it stood behind the last batch that was trained on."""
        if self.reader is not None and position is not None:
            self.reader.trained(position)

    def broken(self, span: Span, carry: Carry, error: BaseException) -> StreamError:
        """The error of a stream that broke off: all that came before it has been trained on."""
        step = span.taken + span.stop - span.first
        message = str(error)
        if not message.startswith(f"{self.name}: "):
            message = f"{self.name}: expected another batch, got {error!r} from the stream after {step}"
        message += f"; the .result of this error holds the state after {checks.counted(step, 'step')}"
        failure = StreamError(message, self.result(carry, span.stop), step)
        failure.__cause__ = error
        return failure

    def nonfinite(self, carry: Carry, first: int, stop: int, span: Span) -> NonFiniteError:
        """The error of a chunk that went bad: its steps are run again, exactly, up to the last good state."""
        bad_step = int(self.advanced(carry, first, stop, span)[0].first_bad_step)
        good, bad = first, stop if bad_step < 0 else bad_step + 1
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self.advanced(carry, first, middle, span)[1] else (good, middle)
        after = self.advanced(carry, first, good, span)[0]
        epoch, step = good // self.plan.epoch_steps + 1, span.taken + good - span.first
        self.trained(_position(span, step))
        got = (
            "a loss that is NaN or infinite" if bad_step == good else "an update that made a parameter NaN or infinite"
        )
        got = f"{MOST_SKIPPED} steps in a row whose numbers went bad, the last" if self.plan.skips_nonfinite else got
        found = cause(Program(self.trainer, span.plan, span.arrays, self.held_out), after, good)
        advice = advice_for(found, step == 0 and bad_step == good)
        message = (
            f"fit: expected finite numbers, got {got} in epoch {epoch} of {self.plan.epochs}, "
            f"step {step} (counted from 0){'' if found is None else f', first by {found}'}; {advice}; "
            f"the .result of this error holds the last good state, after {checks.counted(step, 'step')}"
        )
        error = NonFiniteError(message, self.result(after, good), epoch, step)
        error.chunk = Chunk(good, step, after, {}, {}, position=_position(span, step))
        return error

    def rows(self, number: int) -> int:
        """How many epochs had ended before the step of this number."""
        return self.plan.epochs if number == self.plan.steps else number // self.plan.epoch_steps

    @property
    def rows_axis(self) -> int:
        """Which axis of the history counts epochs."""
        return 1 if self.members is not None and self.members.how == "map" else 0

    def result(self, carry: Carry, number: int) -> Result:
        """The result before the step of this number: the history of the epochs that were ended."""
        rows = self.rows(number)
        if self.members is not None:
            return self.members.result(self.plan, carry, rows)
        history: dict[str, Any] = {name: np.asarray(carry.history[name])[:rows] for name in ordered(carry.history)}
        telemetry = jax.tree.map(lambda column: np.asarray(column)[:number], carry.telemetry)
        return Result(carry.state, history, best_of(carry), telemetry or None)

    def event(self, chunk: Chunk) -> Event:
        """What an observer sees of a chunk."""
        ended = chunk.number % self.plan.epoch_steps == 0 or chunk.number == self.plan.steps
        row = jax.device_get(chunk.row if ended else chunk.report)
        metrics = {name: _number(row[name]) for name in ordered(row)}
        return Event(-(-chunk.number // self.plan.epoch_steps), chunk.step, chunk.carry.state, metrics)


def _position(span: Span, step: int) -> Position | None:
    return None if span.piece is None or step == span.taken else span.piece.positions[step - span.taken - 1]


def epochs_run_of(carry: Carry) -> int:
    """After how many epochs a run was ended by its patience, the last of several; -1 as long as one goes on."""
    stopped = None if carry.watch is None else carry.watch.stopped
    numbers = np.asarray(-1 if stopped is None else stopped)
    return -1 if numbers.min() < 0 else int(numbers.max())


def _expect_counted(found: int, taken: int) -> None:
    if found != taken:
        fix = "return TrainState(..., step=step + 1), for the keys of a run are numbered by it"
        checks.fail("fit", f"a state with step {taken} after {taken} of trainer.step", f"step {found}", fix)


def _in_place_of(after: jax.Array, before: jax.Array) -> jax.Array:
    """What XLA left on other devices, or in other parts, is put back, or the next chunk would be another program."""
    return after if after.sharding == before.sharding else jax.device_put(after, before.sharding)


def _number(value: Any) -> Any:
    return value.item() if np.ndim(value) == 0 else value
