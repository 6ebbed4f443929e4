"""The bodies of training, written once: a fold over the steps of an epoch, inside a fold over epochs.

How a program repeats and branches is an argument (``Loops``). ``run`` folds with ``lax.scan``, so that it can be
differentiated; ``advance`` folds from ``first`` to ``stop`` with ``lax.while_loop``, whose bounds are data, so that
pieces of any size are one compiled program and give the same bits.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from funcnn import checks, draws, primitives
from funcnn.core import Tree, spec
from funcnn.training.loops import DYNAMIC, Loops, once, while_loop
from funcnn.training.measuring import evaluated
from funcnn.training.plans import Plan
from funcnn.training.stopping import Watch, begin, expect_monitored, watched, where_leaves
from funcnn.training.trainers import Trainer, TrainState
from funcnn.training.values import expect_like

MOST_SKIPPED = 20
"""So many steps in a row may be skipped because their numbers went bad; it is not by chance then."""


class Carry(NamedTuple):
    """All that a run carries from one step to the next, and from one chunk to the next."""

    state: TrainState
    sums: Any  # the infos of the epoch under way, added up
    order: Any  # the permutation of the epoch under way
    history: dict[str, Any]  # one row for each epoch
    first_bad_step: Any  # -1 as long as all is finite; None where the run does not stop for it
    shuffle_key: Any
    start: Any  # the number of steps that the state had behind it when the run began
    watch: Watch | None = None  # of what is monitored
    telemetry: Any = None  # one row for each step, where the trainer has any
    skipped: tuple[Any, Any, Any] | None = None  # steps: of the epoch skipped, in a row skipped, of the epoch in all

    def goes_on(self) -> Any:
        """Whether there is a next step: not after numbers that went bad, and not after an early stop."""
        good = True if self.first_bad_step is None else self.first_bad_step < 0
        stopped = None if self.watch is None else self.watch.stopped
        if stopped is None:
            return good
        return good & (stopped < 0 if jnp.ndim(stopped) == 0 else jnp.any(stopped < 0))  # as long as one goes on


class Program(NamedTuple):
    """A trainer on a plan with its data: the bodies of the two nested folds.

    Of a mapped trainer (``members``) the keys, the states, the infos and the rows of the history have an axis more, in
    front, and so have the batches that are drawn; the data are the same for all.
    """

    trainer: Trainer
    plan: Plan
    data: Tree
    validation: Tree
    members: int | None = None

    def each(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the key of a run, for the keys of all members."""
        return f if self.members is None else jax.vmap(f)

    def keys(self, key: Any) -> Any:
        """What the key of a run is split into: the key of init, that of the order, and that of the steps."""
        return self.each(lambda k: tuple(jax.random.split(k, 3)))(key)

    def begun(self, key: Any) -> tuple[Any, TrainState]:
        """The keys of a run, and the state that it begins with."""
        keys = self.keys(key)
        return keys, self.trainer.init(keys[0], self.batch_spec())

    def start(self, key: Any, state: TrainState | None, *, compiled: bool = True) -> Carry:
        """The carry before the first step, from the key of the run, split once; to look at alone where not compiled."""
        if state is None:
            begun = draws.together(self.begun) if compiled and primitives.platform() == "cpu" else self.begun
            made: TrainState
            (_, shuffle_key, step_key), made = begun(key)
            state = made
        else:
            init_key, shuffle_key, step_key = self.keys(key)
            made = jax.eval_shape(self.trainer.init, init_key, self.batch_spec())
            _expect_opt_state(state, made)
            expect_like("state", state[:3], made[:3], sizes=False)
        state = state._replace(key=step_key, step=jnp.asarray(state.step, jnp.int32))
        _, info = jax.eval_shape(once(self.trainer.step), state, self.batch_spec(drawn=True))
        expect_like("state", state[:3], made[:3], sizes=True)
        info, steps = jax.eval_shape(self.trainer.telemetry, info)
        sums = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), info)
        # Each epoch draws its order when it begins. Before the first only the shape counts, and no sort is compiled.
        order = jnp.zeros((*self.axes(), self.plan.examples if self.plan.shuffles else 0), jnp.int32)
        bad = jnp.int32(-1) if self.plan.stops_at_nonfinite else None
        start = state.step if self.members is None else state.step[0]
        carry = Carry(state, sums, order, {}, bad, shuffle_key, start)
        if self.plan.skips_nonfinite:
            carry = carry._replace(skipped=(jnp.int32(0),) * 3)
        rows = jax.eval_shape(self.row, carry)
        carry = carry._replace(
            history={name: _empty(self.plan.epochs, row) for name, row in rows.items()},
            telemetry=jax.tree.map(lambda row: _empty(self.plan.steps, row), steps),
        )
        monitor = self.plan.monitor
        if monitor is None:
            return carry
        expect_monitored(monitor, rows, self.axes())
        return carry._replace(watch=begin(monitor, state, self.axes()))

    def axes(self) -> tuple[int, ...]:
        """The axis of the members, where there are several."""
        return () if self.members is None else (self.members,)

    def batch_spec(self, *, drawn: bool = False) -> Tree:
        """The shapes and dtypes of a whole batch of one run; with ``drawn``, of what ``batch`` gives."""
        axes = self.axes() if drawn and self.plan.draws else ()
        if self.plan.source:
            made = jax.eval_shape(self.plan.source, jax.random.key(0))
        elif self.plan.streams:
            made = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), self.data.batches)
        else:
            made = spec(self.data)
            if self.plan.batch_size:
                size = self.plan.batch_size
                made = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), made)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*axes, *a.shape), a.dtype), made)

    def order_of(self, shuffle_key: Any, epoch: Any) -> Any:
        """The order of the examples in an epoch, a function of the key and its number."""
        if not self.plan.shuffles:
            return jnp.zeros((*self.axes(), 0), jnp.int32)

        def order(key: Any) -> Any:
            # int64 under x64, where all else that counts is int32.
            return jax.random.permutation(jax.random.fold_in(key, epoch), self.plan.examples).astype(jnp.int32)

        return self.each(order)(shuffle_key)

    def batch(self, carry: Carry, row: Any, i: Any, size: int) -> Tree:
        """Batch ``i`` of epoch ``row``, of a static size."""
        plan = self.plan
        source = plan.source
        if source:
            number = carry.start + row * plan.epoch_steps + i
            return self.each(lambda key: source(jax.random.fold_in(key, number)))(carry.shuffle_key)
        if plan.streams:
            at = row * plan.epoch_steps + i - self.data.base
            return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, at, keepdims=False), self.data.batches)
        if not size:
            return self.data
        begin = i * plan.batch_size
        if not plan.shuffle:
            return jax.tree.map(lambda a: self.spread(jax.lax.dynamic_slice_in_dim(a, begin, size), ()), self.data)
        chosen = jax.lax.dynamic_slice_in_dim(carry.order, begin, size, axis=-1)
        given = {"mode": "promise_in_bounds", "unique_indices": self.members is None}  # among members they are not
        return jax.tree.map(lambda a: self.spread(a.at[chosen].get(**given), self.axes()), self.data)

    def spread(self, a: Any, axes: tuple[int, ...]) -> Any:
        """A part of the data over the devices on which they lie, behind the axes of the members."""
        if self.plan.spread is None:
            return a
        mesh, spec = self.plan.spread.mesh, self.plan.spread.spec
        return jax.lax.with_sharding_constraint(a, NamedSharding(mesh, PartitionSpec(*(None for _ in axes), *spec)))

    def batch_at(self, carry: Carry, number: int) -> Tree:
        """The batch of the step of this number, from what is carried before it."""
        plan = self.plan
        row, i = divmod(number, plan.epoch_steps)
        if not i and plan.shuffles:
            carry = carry._replace(order=self.order_of(carry.shuffle_key, -(-carry.start // plan.epoch_steps) + row))
        is_rest = plan.source is None and not plan.streams and i >= plan.full
        return self.batch(carry, row, i, plan.examples - plan.full * plan.batch_size if is_rest else plan.batch_size)

    def step(self, carry: Carry, row: Any, i: Any, size: int) -> Carry:
        """One step, its info added to the sums."""
        state, info = once(self.trainer.step)(carry.state, self.batch(carry, row, i, size))
        info, taken = self.trainer.telemetry(info)
        if self.plan.skips_nonfinite:
            return self.guarded(carry, state, info, taken, row, i)
        number = row * self.plan.epoch_steps + i
        if self.members is not None and carry.watch is not None and carry.watch.stopped is not None:
            state = where_leaves(carry.watch.stopped < 0, state, carry.state)  # who has stopped stays as it is
        bad = carry.first_bad_step
        if bad is not None:
            bad = jnp.where(self.finite(info), bad, number)
        sums = info if self.plan.epoch_steps == 1 else jax.tree.map(jnp.add, carry.sums, info)
        stacked = jax.tree.map(lambda column, a: _with_row(column, a, number), carry.telemetry, taken)
        return carry._replace(state=state, sums=sums, first_bad_step=bad, telemetry=stacked)

    def guarded(self, carry: Carry, state: TrainState, info: Any, taken: Any, row: Any, i: Any) -> Carry:
        """One step that counts only if all is finite after it; otherwise nothing changes but the number of the step."""
        # Some optimizers hold infinities on purpose; none makes another one while all is well.
        pairs = zip(jax.tree.leaves(state[:3]), jax.tree.leaves(carry.state[:3]), strict=True)
        floats = [(a, b) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.inexact)]
        checked = [jnp.all(jnp.isfinite(a) | ~jnp.isfinite(b)) for a, b in floats]
        good = functools.reduce(jnp.logical_and, checked, self.finite(info))
        in_epoch, in_a_row, steps = carry.skipped or (0, 0, 0)
        in_epoch = (jnp.where(i == 0, 0, in_epoch) + jnp.where(good, 0, 1)).astype(jnp.int32)
        steps = (jnp.where(i == 0, 0, steps) + 1).astype(jnp.int32)
        in_a_row = jnp.where(good, 0, in_a_row + 1).astype(jnp.int32)
        number = row * self.plan.epoch_steps + i
        state = where_leaves(good, state, carry.state._replace(step=state.step))
        info = jax.tree.map(lambda a: jnp.where(good, a, jnp.zeros_like(a)), info)
        sums = info if self.plan.epoch_steps == 1 else jax.tree.map(jnp.add, carry.sums, info)
        return carry._replace(
            state=state,
            sums=sums,
            first_bad_step=jnp.where(in_a_row < MOST_SKIPPED, -1, number),
            telemetry=jax.tree.map(lambda column, a: _with_row(column, a, number), carry.telemetry, taken),
            skipped=(in_epoch, in_a_row, steps),
        )

    def finite(self, info: Any) -> Any:
        """Whether the loss of a step is finite; where none is reported, whether everything is."""
        row = self.trainer.report(info)
        watched = [row["loss"]] if "loss" in row else list(row.values())
        return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(value)) for value in watched])

    def row(self, carry: Carry) -> dict[str, Any]:
        """The row of the history at the end of an epoch."""
        row = self.trainer.report(carry.sums)
        if carry.skipped is not None:
            in_epoch, _, taken = carry.skipped
            # Of an epoch without any step that counts nothing is known: not that its loss was 0.
            row = {name: _unless(in_epoch < taken, value) for name, value in row.items()}
            row |= {"skipped_steps": in_epoch}
        if self.validation is None:
            return row
        sums = evaluated(self.trainer, carry.state, self.validation, self.plan.validation_size or None)
        return row | {f"validation_{name}": value for name, value in self.trainer.report(sums).items()}

    def epoch(self, loops: Loops, carry: Carry, row: Any, first: Any, stop: Any, ends: Any) -> Carry:
        """The steps from ``first`` to ``stop`` of an epoch; it begins if ``first`` is 0, and ends if ``ends``."""
        plan = self.plan

        def begun(c: Carry) -> Carry:
            # A state in the middle of an epoch begins the next one.
            order = self.order_of(c.shuffle_key, -(-c.start // plan.epoch_steps) + row)
            return c._replace(order=order, sums=jax.tree.map(jnp.zeros_like, c.sums))

        def end(c: Carry) -> Carry:
            values = self.row(c)
            history = {name: _with_row(c.history[name], value, row) for name, value in values.items()}
            if plan.monitor is None or c.watch is None:
                return c._replace(history=history)
            watch = watched(plan.monitor, c.watch, row, values[plan.monitor.name], c.state)
            return c._replace(history=history, watch=watch)

        if plan.epoch_steps == 1:
            carry = begun(carry) if self.plan.shuffles else carry
            return end(self.step(carry, row, 0, plan.batch_size))
        carry = loops.when(first == 0, begun, carry)
        size = plan.batch_size
        if plan.full:
            carry = loops.fold(lambda i, c: self.step(c, row, i, size), carry, first, _least(stop, plan.full))
        if plan.is_rest:
            carry = DYNAMIC.when((stop > first) & (row >= 0), lambda c: self.step(c, row, first, size), carry)
        elif plan.full < plan.epoch_steps:
            rest = plan.examples - plan.full * size
            carry = DYNAMIC.when((stop > plan.full) & (row >= 0), lambda c: self.step(c, row, plan.full, rest), carry)
        return loops.when(ends, end, carry)


def _expect_opt_state(state: TrainState, made: TrainState) -> None:
    if jax.tree.structure(made.opt_state) != jax.tree.structure(state.opt_state):
        fix = "to go on from its params alone: trainer.init(key, batch)._replace(params=state.params)"
        checks.fail("state", "the opt_state of this trainer's optimizer and model", "that of another", fix)


def _unless(known: Any, value: Any) -> Any:
    return jnp.where(known, value, jnp.nan) if jnp.issubdtype(jnp.result_type(value), jnp.inexact) else value


def _least(a: Any, b: int) -> Any:
    return min(a, b) if isinstance(a, int) else jnp.minimum(a, b)


def _empty(rows: int, row: Any) -> Any:
    """A column of the history before anything is known. Not NaN, which ``jax_debug_nans`` would take for a fault."""
    return jnp.zeros((rows, *row.shape), row.dtype)


def _with_row(column: Any, value: Any, row: Any) -> Any:
    # Not ``.at[row].set``: that guards against rows outside, and XLA then writes the whole column for each row.
    return jax.lax.dynamic_update_index_in_dim(column, value, row, 0)


def advance(program: Program, carry: Carry, first: Any, stop: Any) -> Carry:
    """The steps from ``first`` to ``stop`` of a run, numbered from its beginning, up to one that is not finite."""
    size = program.plan.epoch_steps
    last = program.data.last if program.plan.streams else program.plan.steps

    def body(row: Any, c: Carry) -> Carry:
        begin, end = jnp.maximum(first - row * size, 0), jnp.minimum(stop - row * size, size)
        return program.epoch(DYNAMIC, c, row, begin, end, (end == size) | (row * size + end == last))

    return while_loop(body, carry, first // size, -(-stop // size))
