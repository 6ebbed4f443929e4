"""A training run as a pure function: a scan over the steps of an epoch, inside a scan over epochs."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcnn.core import Tree, expect_key
from funcnn.training.loops import REMAT, STATIC, Loops
from funcnn.training.plans import Plan, planned, validation_arrays
from funcnn.training.programs import Carry, Program, advance
from funcnn.training.states import TrainState, expect_state
from funcnn.training.stopping import forward_only, monitored
from funcnn.training.trainers import Trainer, expect_trainer


class Result(NamedTuple):
    """What a run gives back: the trained ``state``, the ``history``, and the ``best`` state where it was asked for.

    ``history`` is a dict of arrays with one row for each epoch: ``loss``, the metrics by name, the terms of the loss
    by name, and the same measured on the validation data after the epoch under ``validation_...``; of a ``run`` or a
    ``sweep`` with ``patience``, whose shapes are static, also ``epochs_run``, how many rows count. ``best`` is the
    state after the epoch in which the monitored number was best (``keep_best=True``), ``None`` otherwise;
    ``telemetry`` what the trainer was asked for of every step, by name, each array with an axis of steps in front.
    """

    state: TrainState
    history: dict[str, Any]
    best: TrainState | None = None
    telemetry: dict[str, Any] | None = None

    @property
    def epochs_run(self) -> Any:
        """How many epochs were run: the rows of the history, or fewer after an early stop."""
        if "epochs_run" in self.history:
            return self.history["epochs_run"]
        return len(next(iter(self.history.values()), ()))

    def __repr__(self) -> str:
        columns = ", ".join(f"{name} {jnp.shape(column)}" for name, column in self.history.items())
        count = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        return f"Result(state of {count:,} parameters, history: {columns})"


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
    monitor: str | None = None,
    mode: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    keep_best: bool = False,
    remat: bool = False,
) -> Result:
    """A whole training run, a fold of ``trainer.step`` over batches, as one pure function of ``key`` and ``data``.

    It can be compiled, mapped over seeds and hyperparameters, and differentiated. ``fit`` does the same, driven from
    the host.

    Formula: ``init_key, shuffle_key, step_key = split(key, 3)``; the order of an epoch is
    ``permutation(fold_in(shuffle_key, epoch), n)``; the key of a step is ``fold_in(step_key, step)``; the batch of a
    function is ``data(fold_in(shuffle_key, step))``.

    Args:
        trainer: from ``supervised``, ``trainer``, or four functions of your own.
        data: arrays with one leading length, as a tuple ``(x, y)``, a dict or any pytree; or a pure function ``key ->
            batch``.
        key: the only source of randomness.
        epochs: how often each example is used; or
        steps: how many batches are used, in all.
        batch_size: examples to a batch; ``None``, or more than there are, takes all at once. A function decides for
            itself.
        validation: arrays of the same form, evaluated after each epoch in batches of the same size.
        state: a ``TrainState`` to go on from, for ``epochs`` or ``steps`` more; all of it but its key is kept. Going
            on with the same key, data and batch size is the run that was never interrupted, where the state is from the
            end of an epoch; from the middle of one, the next epoch begins.
        shuffle: whether each epoch draws a new order.
        drop_last: whether to leave out the smaller last batch of an epoch, which otherwise is a step of its own.
        steps_per_epoch: where ``data`` is a function: how many steps make one row of the history; 1 otherwise.
        monitor: the column of the history that ``patience`` and ``keep_best`` go by, for instance
            ``"validation_loss"``.
        mode: ``"min"`` where less is better, ``"max"`` where more is; needed unless ``monitor`` is a loss.
        patience: the run ends after so many epochs in a row without an improvement, each member of a mapped run on its
            own. It is then a ``while_loop``, and refuses reverse-mode ``grad``.
        min_delta: what counts as an improvement for ``patience`` is more than this.
        keep_best: whether ``Result.best`` is to hold the state of the best epoch.
        remat: for reverse-mode ``grad`` through the run: whether steps are computed again instead of kept. Memory then
            grows with the square root of their number, and the gradient takes about twice as long.

    Returns:
        A ``Result``. After an early stop the rows of the history that were not reached are NaN (those of whole numbers
        0), and ``history["epochs_run"]`` counts the others. Numbers that are not finite go through: ``run`` does not
        stop.

    Raises:
        TypeError: the key is not a typed key, or something in ``data`` is not numbers.
        ValueError: empty data, different lengths, shapes that do not meet, a batch size of 0.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> x = jnp.linspace(-1, 1, 20)[:, None]
        >>> def final_loss(rate):
        ...     line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(rate))
        ...     result = training.run(line, (x, 3 * x + 1), key=jax.random.key(0), epochs=20, batch_size=5)
        ...     return result.history["loss"][-1]
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
        monitor=monitored("run", monitor, mode, patience, min_delta, keep_best),
        where="run",
    )
    held_out = validation_arrays(plan, validation, "run")
    expect_state("run", state)

    def program(key: Any, arrays: Tree, held_out: Tree, state: TrainState | None) -> Result:
        # Data that the caller's jit closes over are constants: without this XLA would add up some of them (weights)
        # when it compiles, in another order than at run time.
        arrays, held_out = jax.lax.optimization_barrier((arrays, held_out))
        return _run(Program(trainer, plan, arrays, held_out), key, state, REMAT if remat else STATIC)

    return jax.jit(program)(key, arrays, held_out, state)


def _run(program: Program, key: Any, state: TrainState | None, loops: Loops) -> Result:
    plan = program.plan
    carry = program.start(key, state)
    if plan.monitor is not None and plan.monitor.patience is not None:
        # A bound that XLA cannot know, as in the program of fit.
        carry = advance(program, carry, 0, jax.lax.optimization_barrier(jnp.int32(plan.steps)))
        return _stopped(carry, carry.watch, plan)
    whole, rest = divmod(plan.steps, plan.epoch_steps)
    carry = loops.fold(lambda row, c: program.epoch(loops, c, row, 0, plan.epoch_steps, True), carry, 0, whole)
    if rest:
        carry = program.epoch(loops, carry, whole, 0, rest, True)
    return Result(carry.state, carry.history, best_of(carry), carry.telemetry or None)


def _stopped(carry: Carry, watch: Any, plan: Plan) -> Result:
    """The result of a run that may have ended early."""
    rows = {len(column) for column in carry.history.values()}.pop()
    epochs_run = jnp.where(watch.stopped < 0, rows, watch.stopped)

    def up_to(count: Any) -> Any:
        def column(values: Any) -> Any:
            if not jnp.issubdtype(values.dtype, jnp.inexact):
                return values
            reached = jnp.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1)) < count
            return jnp.where(reached, values, jnp.nan)

        return column

    history = {name: up_to(epochs_run)(values) for name, values in carry.history.items()}
    telemetry = jax.tree.map(up_to(epochs_run * plan.epoch_steps), carry.telemetry) or None
    result = forward_only(Result(carry.state, history, best_of(carry), telemetry))
    return result._replace(history=result.history | {"epochs_run": epochs_run})


def best_of(carry: Carry) -> TrainState | None:
    """The best state of a run, where it was kept."""
    return None if carry.watch is None else carry.watch.state


def ordered(names: Iterable[str]) -> list[str]:
    """The loss first and validation last: JAX hands dicts back in the order of their names."""
    return sorted(names, key=lambda name: (name.startswith("validation_"), not name.endswith("loss"), name))
