"""A training run as a pure function, and the one program that every host-driven run executes.

Training is a fold: over the steps of an epoch, inside a fold over epochs. The bodies are written once (``_Program``) and take the
loop as an argument. ``run`` folds with ``lax.scan``, so that it can be differentiated; ``advance`` folds from ``first`` to ``stop``
with ``lax.while_loop``, whose bounds are data, so that pieces of any size are one compiled program and give the same bits.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks, data as datasets
from funcnn.core import Tree, expect_key, shown, spec
from funcnn.training.trainers import Trainer, TrainState, expect_trainer


class Result(NamedTuple):
    """What a run gives back: the trained ``state``, the ``history`` and, where it was asked for, the ``best`` state.

    ``history`` is a dict of arrays with one row for each epoch: ``loss``, the metrics by name, the terms of the loss by name, and
    the same measured on the validation data after the epoch under ``validation_...``.
    """

    state: TrainState
    history: dict[str, Any]
    best: TrainState | None = None


class Plan(NamedTuple):
    """All that is static about a run: it decides which program is compiled."""

    source: Callable[[Any], Any] | None  # draws a batch from a key; None where the data are arrays
    examples: int  # of the arrays; 0 where a function draws the batches
    batch_size: int  # 0 where all examples are one batch
    epoch_steps: int  # steps to an epoch, a smaller last batch included
    steps: int  # of the whole run
    shuffle: bool
    stops_at_nonfinite: bool

    @property
    def full(self) -> int:
        """Steps with a whole batch in an epoch."""
        return min(self.epoch_steps, self.examples // self.batch_size) if self.batch_size else self.epoch_steps

    @property
    def epochs(self) -> int:
        """Rows of the history; the last epoch may be cut short by ``steps``."""
        return -(-self.steps // self.epoch_steps)


class Carry(NamedTuple):
    """All that a run carries from one step to the next, and from one chunk to the next."""

    state: TrainState
    sums: Any  # the infos of the epoch under way, added up
    order: Any  # the permutation of the epoch under way
    history: dict[str, Any]  # one row for each epoch
    first_bad_step: Any  # -1 as long as all is finite
    shuffle_key: Any
    start: Any  # the number of steps that the state had behind it when the run began


def planned(
    data: Any,
    *,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    drop_last: bool = False,
    steps_per_epoch: int | None = None,
    shuffle: bool = True,
    stops_at_nonfinite: bool = True,
    where: str = "run",
) -> tuple[Plan, Tree]:
    """The plan of a run and its data as arrays, every argument checked."""
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else f"epochs={epochs} and steps={steps}"
        checks.fail(where, "either epochs or steps", got, "pass one of them")
    if batch_size is not None:
        batch_size = checks.expect_count(where, "batch_size", batch_size)
    if callable(data):
        source, arrays, examples, size = data, None, 0, 0
        epoch_steps = 1 if steps_per_epoch is None else checks.expect_count(where, "steps_per_epoch", steps_per_epoch)
    else:
        if steps_per_epoch is not None:
            checks.fail(where, "steps_per_epoch only where data is a function", "arrays", "an epoch uses every example once")
        source, arrays = None, datasets.as_arrays(data, where=where, one_length=batch_size is not None)
        examples = len(jax.tree.leaves(arrays)[0])
        size = 0 if batch_size is None or batch_size >= examples else batch_size
        epoch_steps = 1 if size == 0 else examples // size if drop_last else -(-examples // size)
    if epochs is not None:
        total = checks.expect_count(where, "epochs", epochs) * epoch_steps
    else:
        total = checks.expect_count(where, "steps", steps)
    if total >= 2**31:
        checks.fail(where, "fewer than 2**31 steps in all", str(total), "train in several runs, each from the state of the last")
    return Plan(source, examples, size, epoch_steps, total, shuffle, stops_at_nonfinite), arrays


# ---- the bodies, written once --------------------------------------------------------------------------------------------

Body = Callable[[Any, Carry], Carry]


class Loops(NamedTuple):
    """How a program repeats and branches: the only difference between ``run`` and ``advance``."""

    fold: Callable[[Body, Carry, Any, Any], Carry]  # body(i, carry) for i from first to stop
    when: Callable[[Any, Callable[[Carry], Carry], Carry], Carry]  # then(carry) where the predicate holds


# A step in a branch is compiled on its own, a step in the open is fused with its surroundings, and that can change the last bit.
# So the smaller last batch is a branch in both programs; ``run`` takes it on a predicate that is always true, which XLA
# cannot know.


def _scan(body: Body, carry: Carry, first: int, stop: int) -> Carry:
    indices = jnp.arange(first, stop, dtype=jnp.int32)
    return jax.lax.scan(lambda c, i: (body(i, c), None), carry, indices)[0]


def _while(body: Body, carry: Carry, first: Any, stop: Any) -> Carry:
    def more(pair: tuple[Any, Carry]) -> Any:
        return (pair[0] < stop) & (pair[1].first_bad_step < 0)

    return jax.lax.while_loop(more, lambda pair: (pair[0] + 1, body(*pair)), (jnp.asarray(first, jnp.int32), carry))[1]


def _branch(predicate: Any, then: Callable[[Carry], Carry], carry: Carry) -> Carry:
    return jax.lax.cond(predicate & (carry.first_bad_step < 0), then, lambda c: c, carry)


STATIC = Loops(_scan, lambda predicate, then, carry: then(carry) if predicate else carry)
DYNAMIC = Loops(_while, _branch)


class Program(NamedTuple):
    """A trainer on a plan with its data: the bodies of the two nested folds."""

    trainer: Trainer
    plan: Plan
    data: Tree
    validation: Tree

    def start(self, key: Any, state: TrainState | None) -> Carry:
        """The carry before the first step, from the key of the run, split once."""
        init_key, shuffle_key, step_key = jax.random.split(key, 3)
        if state is None:
            state = self.trainer.init(init_key, self.batch_spec())
        state = state._replace(key=step_key, step=jnp.asarray(state.step, jnp.int32))
        _, info = jax.eval_shape(self.trainer.step, state, self.batch_spec())
        sums = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), info)
        carry = Carry(state, sums, self.order_of(shuffle_key, 0), {}, jnp.int32(-1), shuffle_key, state.step)
        rows = jax.eval_shape(self.row, carry)
        return carry._replace(history={name: _empty(self.plan.epochs, row) for name, row in rows.items()})

    def batch_spec(self) -> Tree:
        """The shapes and dtypes of a whole batch."""
        if self.plan.source:
            return jax.eval_shape(self.plan.source, jax.random.key(0))
        if not self.plan.batch_size:
            return spec(self.data)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((self.plan.batch_size, *a.shape[1:]), a.dtype), spec(self.data))

    def shuffles(self) -> bool:
        """Whether an epoch draws an order: not where one batch holds everything."""
        return self.plan.batch_size > 0 and self.plan.shuffle

    def order_of(self, shuffle_key: Any, epoch: Any) -> Any:
        """The order of the examples in an epoch, a function of the key and its number."""
        if not self.shuffles():
            return jnp.zeros((0,), jnp.int32)
        return jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), self.plan.examples)

    def batch(self, carry: Carry, row: Any, i: Any, size: int) -> Tree:
        """Batch ``i`` of epoch ``row``, of a static size."""
        plan = self.plan
        if plan.source:
            return plan.source(jax.random.fold_in(carry.shuffle_key, carry.start + row * plan.epoch_steps + i))
        if not size:
            return self.data
        begin = i * plan.batch_size
        if not plan.shuffle:
            return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, begin, size), self.data)
        chosen = jax.lax.dynamic_slice_in_dim(carry.order, begin, size)
        return jax.tree.map(lambda a: a.at[chosen].get(mode="promise_in_bounds", unique_indices=True), self.data)

    def step(self, carry: Carry, row: Any, i: Any, size: int) -> Carry:
        """One step, its info added to the sums."""
        state, info = self.trainer.step(carry.state, self.batch(carry, row, i, size))
        bad = carry.first_bad_step
        if self.plan.stops_at_nonfinite:
            bad = jnp.where(self.finite(info), bad, row * self.plan.epoch_steps + i)
        sums = info if self.plan.epoch_steps == 1 else jax.tree.map(jnp.add, carry.sums, info)
        return carry._replace(state=state, sums=sums, first_bad_step=bad)

    def finite(self, info: Any) -> Any:
        """Whether the loss of a step is finite; where none is reported, whether everything is."""
        row = self.trainer.report(info)
        watched = [row["loss"]] if "loss" in row else list(row.values())
        return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(value)) for value in watched])

    def row(self, carry: Carry) -> dict[str, Any]:
        """The row of the history at the end of an epoch."""
        row = self.trainer.report(carry.sums)
        if self.validation is None:
            return row
        sums = evaluated(self.trainer, carry.state, self.validation, self.plan.batch_size or None)
        return row | {f"validation_{name}": value for name, value in self.trainer.report(sums).items()}

    def epoch(self, loops: Loops, carry: Carry, row: Any, first: Any, stop: Any, ends: Any) -> Carry:
        """The steps from ``first`` to ``stop`` of an epoch; its beginning where ``first`` is 0, its end where ``ends``."""
        plan = self.plan

        def begin(c: Carry) -> Carry:
            order = self.order_of(c.shuffle_key, c.start // plan.epoch_steps + row)
            return c._replace(order=order, sums=jax.tree.map(jnp.zeros_like, c.sums))

        def end(c: Carry) -> Carry:
            return c._replace(history={name: c.history[name].at[row].set(value) for name, value in self.row(c).items()})

        if plan.epoch_steps == 1:
            carry = begin(carry) if self.shuffles() else carry
            return end(self.step(carry, row, 0, plan.batch_size))
        carry = loops.when(first == 0, begin, carry)
        size = plan.batch_size
        carry = loops.fold(lambda i, c: self.step(c, row, i, size), carry, first, _least(stop, plan.full))
        if plan.full < plan.epoch_steps:
            rest = plan.examples - plan.full * size
            carry = _branch(
                (stop > plan.full) & (row >= 0), lambda c: self.step(c, row, plan.full, rest), carry
            )
        return loops.when(ends, end, carry)


def _least(a: Any, b: int) -> Any:
    return min(a, b) if isinstance(a, int) else jnp.minimum(a, b)


def _empty(rows: int, row: Any) -> Any:
    """A column of the history before anything is known: NaN, or 0 for integers."""
    return jnp.full((rows, *row.shape), jnp.nan if jnp.issubdtype(row.dtype, jnp.inexact) else 0, row.dtype)


def evaluated(trainer: Trainer, state: TrainState, data: Tree, batch_size: int | None) -> Any:
    """The sums of ``trainer.evaluate`` over all data, in batches and a smaller last one."""
    n = len(jax.tree.leaves(data)[0])
    if batch_size is None or n <= batch_size:
        return trainer.evaluate(state, data)

    def batch(begin: Any, size: int) -> Tree:
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, begin, size), data)

    def body(sums: Any, i: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, trainer.evaluate(state, batch(i * batch_size, batch_size))), None

    full = n // batch_size
    infos = jax.eval_shape(lambda: trainer.evaluate(state, batch(0, batch_size)))
    sums = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), infos)
    sums, _ = jax.lax.scan(body, sums, jnp.arange(full, dtype=jnp.int32))
    if n % batch_size:
        sums = jax.tree.map(jnp.add, sums, trainer.evaluate(state, batch(full * batch_size, n % batch_size)))
    return sums


# ---- the two programs --------------------------------------------------------------------------------------------------


def _run(program: Program, key: Any, state: TrainState | None) -> Result:
    plan = program.plan
    carry = program.start(key, state)
    whole, rest = divmod(plan.steps, plan.epoch_steps)
    carry = _scan(lambda row, c: program.epoch(STATIC, c, row, 0, plan.epoch_steps, True), carry, 0, whole)
    if rest:
        carry = program.epoch(STATIC, carry, whole, 0, rest, True)
    return Result(carry.state, carry.history)


def advance(program: Program, carry: Carry, first: Any, stop: Any) -> Carry:
    """The steps from ``first`` to ``stop`` of a run, numbered from its beginning; stops at the first that is not finite."""
    size = program.plan.epoch_steps

    def body(row: Any, c: Carry) -> Carry:
        begin, end = jnp.maximum(first - row * size, 0), jnp.minimum(stop - row * size, size)
        return program.epoch(DYNAMIC, c, row, begin, end, (end == size) | (row * size + end == program.plan.steps))

    return _while(body, carry, first // size, -(-stop // size))


def run(
    trainer: Trainer,
    data: Any,
    *,
    key: Any,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = 32,
    validation: Any = None,
    state: TrainState | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    steps_per_epoch: int | None = None,
) -> Result:
    """A whole training run as one pure function of ``key``, ``data`` and ``state``: a fold of ``trainer.step`` over batches.

    It can be compiled, mapped over seeds and hyperparameters, and differentiated. ``fit`` does the same, driven from the host.

    Formula: ``init_key, shuffle_key, step_key = split(key, 3)``; the order of an epoch is ``permutation(fold_in(shuffle_key, epoch), n)``;
    the key of a step is ``fold_in(step_key, step)``; the batch of a function is ``data(fold_in(shuffle_key, step))``.

    Args:
        trainer: from ``supervised``, ``trainer``, or four functions of your own.
        data: arrays with one leading length, as a tuple ``(x, y)``, a dict or any pytree; or a pure function ``key -> batch``.
        key: the only source of randomness.
        epochs: how often each example is used; or
        steps: how many batches are used, in all.
        batch_size: examples to a batch; ``None``, or more than there are, takes all at once. A function decides for itself.
        validation: arrays of the same form, evaluated after each epoch in batches of the same size.
        state: a ``TrainState`` to go on from; its ``params``, ``model_state``, ``opt_state`` and ``step`` are kept. Going on with the
            same key, data and batch size is the run that was never interrupted.
        shuffle: whether each epoch draws a new order.
        drop_last: whether to leave out the smaller last batch of an epoch, which otherwise is a step of its own.
        steps_per_epoch: where ``data`` is a function: how many steps make one row of the history; 1 otherwise.

    Returns:
        A ``Result``. Numbers that are not finite go through: ``run`` does not stop.

    Raises:
        TypeError: the key is not a typed key, or something in ``data`` is not numbers.
        ValueError: empty data, different lengths, shapes that do not meet, a batch size of 0.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> x = jnp.linspace(-1, 1, 20)[:, None]
        >>> def final_loss(rate):
        ...     line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(rate))
        ...     return training.run(line, (x, 3 * x + 1), key=jax.random.key(0), epochs=20, batch_size=5).history["loss"][-1]
        >>> bool(jax.jit(final_loss)(0.3) < 1e-3)
        True
        >>> jax.jit(jax.vmap(final_loss))(jnp.array([0.03, 0.1, 0.3])).shape
        (3,)
        >>> bool(jax.grad(final_loss)(0.03) < 0)
        True
    """
    expect_key("run", key)
    expect_trainer("run", trainer)
    plan, arrays = planned(
        data,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        drop_last=drop_last,
        steps_per_epoch=steps_per_epoch,
        shuffle=shuffle,
        stops_at_nonfinite=False,
        where="run",
    )
    held_out = validation_arrays(plan, validation, "run")
    expect_state("run", state)

    def program(key: Any, arrays: Tree, held_out: Tree, state: TrainState | None) -> Result:
        return _run(Program(trainer, plan, arrays, held_out), key, state)

    return jax.jit(program)(key, arrays, held_out, state)


def validation_arrays(plan: Plan, validation: Any, where: str) -> Tree:
    """The validation data as arrays; of one length where they are cut into batches."""
    if validation is None:
        return None
    if callable(validation):
        checks.fail(where, "validation as arrays", "a function", "draw the validation data once, before the run", TypeError)
    return datasets.as_arrays(validation, where=f"{where}: validation", one_length=plan.batch_size > 0)


def expect_state(where: str, state: Any) -> None:
    """Raise unless ``state`` is a ``TrainState`` or ``None``."""
    if state is not None and not isinstance(state, TrainState):
        fix = "pass result.state, or trainer.init(key, batch)._replace(params=...)"
        checks.fail(where, "state as a TrainState", type(state).__name__, fix, TypeError)
