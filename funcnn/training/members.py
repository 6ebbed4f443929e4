"""Several runs as one program: side by side, or one after the other, each with a key and hyperparameters of its own."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn.core import Tree
from funcnn.training import cores
from funcnn.training.plans import Plan
from funcnn.training.programs import Carry, Program, advance
from funcnn.training.runs import Result, best_of, ordered
from funcnn.training.trainers import Trainer, TrainState

MakeTrainer = Callable[[Any], Trainer]


class Members(NamedTuple):
    """What makes the runs: a trainer from hyperparameters, these along a leading axis, and how they are mapped."""

    make_trainer: MakeTrainer
    how: str  # "vmap": side by side; "map": one after the other
    values: Tree
    cores: int = 1  # on which several are computed at once, of those that come one after the other

    def start(self, plan: Plan, arrays: Tree, held_out: Tree, keys: Any, state: TrainState | None) -> Carry:
        """The carries of all runs before their first step."""
        return _start(self.make_trainer, self.how, plan, self.values, arrays, held_out, keys, state)

    def advance(
        self, plan: Plan, arrays: Tree, held_out: Tree, carry: Carry, first: Any, stop: Any
    ) -> tuple[Carry, Any, dict[str, Any], dict[str, Any]]:
        """A chunk of all runs, and the same beside it as of a single run."""
        rest = arrays, held_out, first, stop
        if self.cores > 1 and cores.can_divide((self.values, carry, rest)):
            static = self.make_trainer, plan
            carry, report, row = cores.in_parts(_part, static, (self.values, carry), rest, self.cores)
            return carry, jnp.bool_(True), report, row
        return _advance(self.make_trainer, self.how, plan, self.values, arrays, held_out, carry, first, stop)

    def traced(self, plan: Plan, arrays: Tree, held_out: Tree, carry: Carry, first: Any, stop: Any) -> Any:
        """The program of a chunk, before it is compiled."""
        return _advance.trace(self.make_trainer, self.how, plan, self.values, arrays, held_out, carry, first, stop)

    def chunk(self, run: Any, keys: Any, state: TrainState | None) -> Any:
        """The program of a chunk of all runs, traced for their shapes alone; ``run`` has plan and data."""
        carry = jax.eval_shape(
            functools.partial(_start, self.make_trainer, self.how, run.plan),
            *(self.values, run.arrays, run.held_out, keys, state),
        )
        bound = jax.ShapeDtypeStruct((), jnp.int32)
        return self.traced(run.plan, run.arrays, run.held_out, carry, bound, bound)

    def result(self, plan: Plan, carry: Carry, rows: int) -> Result:
        """The results of all runs with a leading axis, the rows of the history that were not reached NaN."""
        stopped = None if carry.watch is None else carry.watch.stopped
        count = len(jax.tree.leaves(self.values)[0])
        reached = np.full(count, rows) if stopped is None else np.where(np.asarray(stopped) < 0, rows, stopped)
        history: dict[str, Any] = {}
        for name in ordered(carry.history):
            history[name] = up_to(self._in_front(carry.history[name]), reached)
        if stopped is not None or rows < plan.epochs:
            history["epochs_run"] = reached.astype(np.int32)
        columns = jax.tree.map(self._in_front, carry.telemetry)
        taken = np.minimum(reached * plan.epoch_steps, plan.steps)
        return Result(carry.state, history, best_of(carry), up_to(columns, taken) or None)

    def _in_front(self, column: Any) -> Any:
        """A column with the axis of the members in front."""
        return np.asarray(column) if self.how == "map" else np.moveaxis(np.asarray(column), 1, 0)


def up_to(columns: Tree, reached: Any) -> Tree:
    """Columns ``(members, rows, ...)`` with NaN in the rows that a member did not reach, where they can hold it."""

    def cut(values: Any) -> Any:
        if not jnp.issubdtype(values.dtype, jnp.inexact):  # NumPy does not know bfloat16 for one
            return values
        seen = np.arange(values.shape[1])[None] < np.reshape(reached, (-1, 1))
        return np.where(seen.reshape(*seen.shape, *(1,) * (values.ndim - 2)), values, values.dtype.type(np.nan))

    return jax.tree.map(cut, columns)


def mapped(make_trainer: MakeTrainer, values: Tree, draws: bool) -> Trainer:
    """The trainers of all members as one, whose states and infos have a leading axis.

    Batches have it too where each member ``draws`` its own. Data that are validated on are the same for all.
    """

    def each(f: Callable[..., Any], *batched: bool) -> Callable[..., Any]:
        return lambda *given: jax.vmap(
            lambda h, *one: f(make_trainer(h), *one),
            in_axes=(0, *(0 if is_batched else None for is_batched in batched)),
        )(values, *given)

    return Trainer(
        # A batch may be of shapes, which are no arrays to map over.
        lambda keys, batch: each(lambda t, key: t.init(key, batch), True)(keys),
        each(lambda t, state, batch: t.step(state, batch), True, draws),
        each(lambda t, state, batch: t.evaluate(state, batch), True, False),
        each(lambda t, info: t.report(info), True),
        each(lambda t, info: t.telemetry(info), True),
    )


def _side_by_side(
    make_trainer: MakeTrainer, plan: Plan, values: Tree, arrays: Tree, held_out: Tree, count: int
) -> Program:
    return Program(mapped(make_trainer, values, plan.draws), plan, arrays, held_out, count)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), keep_unused=True)  # for where the data lie, as in driving.py
def _start(
    make_trainer: MakeTrainer,
    how: str,
    plan: Plan,
    values: Tree,
    arrays: Tree,
    held_out: Tree,
    keys: Any,
    state: TrainState | None,
) -> Carry:
    if how == "map":
        return jax.lax.map(
            lambda one: Program(make_trainer(one[0]), plan, arrays, held_out).start(one[1], state), (values, keys)
        )
    if state is not None:
        given = state._replace(key=None)
        given = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(keys), *jnp.shape(a))), given)
        state = given._replace(key=keys)
    return _side_by_side(make_trainer, plan, values, arrays, held_out, len(keys)).start(keys, state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _advance(
    make_trainer: MakeTrainer,
    how: str,
    plan: Plan,
    values: Tree,
    arrays: Tree,
    held_out: Tree,
    carry: Carry,
    first: Any,
    stop: Any,
) -> tuple[Carry, Any, dict[str, Any], dict[str, Any]]:
    good = jnp.bool_(True)  # a member whose numbers go bad is no reason to stop the others
    if how == "map":
        carry, report, row = _in_turn(make_trainer, plan, (values, carry), (arrays, held_out, first, stop))
        return carry, good, report, row
    count = len(jax.tree.leaves(values)[0])
    program = _side_by_side(make_trainer, plan, values, arrays, held_out, count)
    carry = advance(program, carry, first, stop)
    at = jnp.broadcast_to(last_row(plan, carry, stop), (count,)), jnp.arange(count)
    return carry, good, program.trainer.report(carry.sums), {name: c[at] for name, c in carry.history.items()}


def _in_turn(make_trainer: MakeTrainer, plan: Plan, members: tuple[Tree, Carry], rest: Any) -> Any:
    """A chunk of runs one after the other."""
    arrays, held_out, first, stop = rest

    def one(given: tuple[Tree, Carry]) -> Any:
        trainer, c = make_trainer(given[0]), given[1]
        c = advance(Program(trainer, plan, arrays, held_out), c, first, stop)
        row = last_row(plan, c, stop)
        return c, trainer.report(c.sums), {name: column[row] for name, column in c.history.items()}

    return jax.lax.map(one, members)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _part(make_trainer: MakeTrainer, plan: Plan, size: int, members: tuple[Tree, Carry], rest: Any, begin: Any) -> Any:
    """A chunk of so many of the runs, from that one on."""
    some = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, begin, size), members)
    return _in_turn(make_trainer, plan, some, rest)


def last_row(plan: Plan, carry: Carry, stop: Any) -> Any:
    """The row of the epoch that was run last, of each member where there are several."""
    row = jnp.maximum(stop - 1, 0) // plan.epoch_steps
    stopped = None if carry.watch is None else carry.watch.stopped
    return row if stopped is None else jnp.where(stopped < 0, row, stopped - 1)
