"""A single step, with the bits that it has amid a run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from funcnn import data as datasets
from funcnn.core import Tree
from funcnn.training import telemetry
from funcnn.training.loops import DYNAMIC
from funcnn.training.plans import Plan
from funcnn.training.programs import Carry, Program, advance
from funcnn.training.states import TrainState, expect_state
from funcnn.training.trainers import Trainer, expect_trainer


@functools.partial(jax.jit, static_argnums=(0, 1))
def _single(
    trainer: Trainer, whole: bool, state: TrainState, batch: Tree, order: Any, step: Any
) -> tuple[TrainState, Any]:
    # A step has the bits of a run only where XLA finds it amid the loops and branches of one: so this is the second
    # step of a run on a data set of two batches, which are one and the same.
    size = len(order) // 2
    program = Program(trainer, Plan(None, 2 * size, size, 2 if size else 1, 4, True, True), batch, None)
    carry = program.start(state.key, state)._replace(state=state, order=order)
    if whole:
        carry = advance(program, carry, step, step + 1)
    else:
        # In a run the smaller last batch is a branch.
        def body(i: Any, c: Carry) -> Carry:
            return DYNAMIC.when(step > i, lambda d: program.step(d, 0, 0, size), c)

        carry = DYNAMIC.fold(body, carry, 0, step)
    info = carry.sums
    if trainer.telemetry is telemetry.split and carry.telemetry:
        row = int(whole)  # of the second step of an epoch, or of the first
        info = info | {"telemetry": jax.tree.map(lambda column: column[row], carry.telemetry)}
    return carry.state, info


def compiled_step(
    trainer: Trainer, *, batch_size: int | None = None
) -> Callable[[TrainState, Any], tuple[TrainState, Any]]:
    """``trainer.step``, compiled as the body of the loop that ``run`` and ``fit`` execute, for a loop of your own.

    On the batches of a run it gives that run bit for bit; ``jax.jit(trainer.step)`` is another program and gives it
    to rounding. To rounding too where a batch of the run is all of its data, for such a run has no loop over batches.

    Args:
        trainer: whose ``step`` it is.
        batch_size: the examples of a whole batch; a run compiles the smaller last one in another way, and so does
            this. That of the first batch otherwise.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.2))
        >>> batch = jnp.ones((4, 1)), jnp.ones((4, 1))
        >>> state, step = line.init(jax.random.key(0), batch), training.compiled_step(line)
        >>> for _ in range(20):
        ...     state, info = step(state, batch)
        >>> bool(line.report(info)["loss"] < 1e-6), int(state.step)
        (True, 20)
    """
    expect_trainer("compiled_step", trainer)
    size = batch_size

    def step(train_state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        nonlocal size
        expect_state("compiled_step", train_state)
        arrays = datasets.as_arrays(batch, where="compiled_step", one_length=False)
        lengths = {len(a) for a in jax.tree.leaves(arrays)}
        count = lengths.pop() if len(lengths) == 1 else 0
        size = count if size is None else size
        order = np.tile(np.arange(count, dtype=np.int32), 2)
        return _single(trainer, count >= size, train_state, arrays, order, np.int32(1))

    return step
