"""What a trained model is worth, and what it says: ``evaluate`` and ``predict``."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn import data as datasets
from funcnn.core import Layer, Tree, expect_layer, shown
from funcnn.training.measuring import evaluated, evaluating
from funcnn.training.objectives import predicted
from funcnn.training.plans import expect_batch_size
from funcnn.training.sources import expect_end, is_stream
from funcnn.training.states import TrainState, expect_state
from funcnn.training.streams import Reader
from funcnn.training.trainers import Trainer, expect_trainer
from funcnn.training.values import expect_finite, expect_like, expect_values


@functools.partial(jax.jit, static_argnums=(0, 3))
def _evaluated(trainer: Trainer, state: TrainState, arrays: Tree, batch_size: int | None) -> dict[str, Any]:
    made = jax.eval_shape(trainer.init, jax.random.key(0), arrays)
    expect_like("evaluate", state[:2], made[:2], sizes=False)
    report = trainer.report(evaluated(trainer, state, arrays, batch_size))
    expect_like("evaluate", state[:2], made[:2], sizes=True)
    return report


def evaluate(trainer: Trainer, state: TrainState, data: Any, *, batch_size: int | None = 32) -> dict[str, Any]:
    """The loss and the metrics of a state on data, as a dict of numbers and arrays.

    Formula: the report of the sums of ``trainer.evaluate`` over all batches, the smaller last one included.

    Args:
        trainer: the trainer, for its loss and metrics.
        state: a ``TrainState``.
        data: arrays of the form of the training data; or a stream, of which one pass is read.
        batch_size: examples to a batch; ``None`` takes all at once. The batches of a stream are what they are.

    Raises:
        TypeError, ValueError: as for ``fit``; and what a stream raises.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, metrics, training
        >>> mae = {"mae": metrics.mean_absolute_error}
        >>> line = training.supervised(layers.flatten, losses.squared_error, optax.sgd(0.1), mae)
        >>> data = jnp.ones((10, 1)), jnp.zeros((10, 1))
        >>> training.evaluate(line, line.init(jax.random.key(0), data), data, batch_size=4)
        {'loss': 1.0, 'mae': 1.0}
    """
    expect_trainer("evaluate", trainer)
    if state is None:
        checks.fail("evaluate", "state as a TrainState", "None", "pass result.state", TypeError)
    expect_state("evaluate", state)
    batch_size = expect_batch_size("evaluate", batch_size)
    if is_stream(data):
        return _on_host(_streamed(trainer, state, data))
    arrays = datasets.as_arrays(data, where="evaluate", one_length=batch_size is not None)
    _expect_host("evaluate", (arrays, state), "trainer.report(trainer.evaluate(state, data))")
    expect_values("evaluate", trainer, arrays, None, state)
    report = _evaluated(trainer, state, arrays, batch_size)
    _expect_host("evaluate", report, "trainer.report(trainer.evaluate(state, data))")
    return _on_host(report)


def _on_host(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value.item() if np.ndim(value) == 0 else value for name, value in jax.device_get(report).items()}


@functools.partial(jax.jit, static_argnums=0)
def _added(trainer: Trainer, state: TrainState, sums: Any, batches: Tree, index: Any, number: Any) -> Any:
    info = trainer.evaluate(evaluating(state, number), jax.tree.map(lambda a: a[index], batches))
    return info if sums is None else jax.tree.map(jnp.add, sums, info)


def _streamed(trainer: Trainer, state: TrainState, stream: Any) -> dict[str, Any]:
    """The report over one pass of a stream."""
    expect_end("evaluate", stream, 1)
    with contextlib.closing(Reader("evaluate", stream, 1, None)) as reader:
        first = jax.tree.map(lambda a: np.asarray(a[0]), reader.begin()[0].batches)
        expect_values("evaluate", trainer, first, None, state)
        made = jax.eval_shape(trainer.init, jax.random.key(0), first)
        expect_like("evaluate", state[:2], made[:2], sizes=True)
        sums, number = None, 0
        for piece in reader:
            for index in range(piece.size):
                sums = _added(trainer, state, sums, piece.batches, np.int32(index), np.int32(number))
                number += 1
            jax.block_until_ready(sums)  # the reader is about to use the memory of the piece again
            if piece.size:
                reader.trained(piece.positions[-1])
            if piece.error is not None:
                piece.error.add_note("evaluate: while the stream was read")
                raise piece.error
        return jax.jit(trainer.report)(sums)


@functools.partial(jax.jit, static_argnums=0)
def _predicted(model: Layer, params: Tree, model_state: Tree, x: Tree) -> Any:
    made = jax.eval_shape(model.init, jax.random.key(0), x)
    expect_like("predict", (params, model_state), made, sizes=False)
    y = predicted(x, model.apply(params, model_state, x)[0])
    expect_like("predict", (params, model_state), made, sizes=True)
    return y


def predict(model: Layer, state: TrainState, x: Any, *, batch_size: int | None = 32) -> Any:
    """What a model says about any number of rows, in batches of one size, by one compiled program.

    Shapes: ``(n, ...) -> (n, ...)``, and so for every array of a pytree. The last batch is filled up with copies of
    its first row, which are cut off again.

    Args:
        model: the layer that was trained.
        state: a ``TrainState``, of which ``params`` and ``model_state`` are read.
        x: one array, or a pytree of arrays with one leading length; any number of rows, none included.
        batch_size: rows to a batch; ``None`` takes all at once.

    Raises:
        TypeError, ValueError: ``x`` is not numbers, holds NaN or infinity, or has a shape that the model does not take.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> model = layers.dense(3)
        >>> line = training.supervised(model, losses.squared_error, optax.sgd(0.1))
        >>> state = line.init(jax.random.key(0), (jnp.ones((4, 2)), jnp.ones((4, 3))))
        >>> training.predict(model, state, jnp.ones((100, 2))).shape
        (100, 3)
    """
    expect_layer("predict", model)
    if not isinstance(state, TrainState):
        fix = "pass result.state, or take model.apply(params, state, x)[0] of what a file held"
        checks.fail("predict", "state as a TrainState", type(state).__name__, fix, TypeError)
    batch_size = expect_batch_size("predict", batch_size)
    arrays = datasets.as_arrays(x, where="predict", minimum=0)
    instead = "model.apply(state.params, state.model_state, x)[0]"
    _expect_host("predict", (arrays, state), instead)
    arrays = jax.device_get(arrays)  # a slice of a JAX array would be compiled anew for each place
    expect_finite("predict", "x", arrays)
    n = len(jax.tree.leaves(arrays)[0])
    if n == 0:
        return _nothing(model, state, arrays)
    try:
        batches = _batches(arrays, n, batch_size or n)
        outputs: list[Any] = []
        for batch in batches:
            outputs.append(_predicted(model, state.params, state.model_state, batch))
            _expect_host("predict", outputs[-1], instead)
            if len(outputs) > 2:  # the device keeps no more of them than it needs to stay busy
                outputs[-3] = jax.device_get(outputs[-3])
    except Exception as error:
        alone = all(np.ndim(leaf) == 1 for leaf in jax.tree.leaves(arrays))
        fix = f", which are {n} examples of one number each; a single example is x[None]" if alone else ""
        error.add_note(f"predict: in x of shape {shown(arrays)}, cut into batches of {batch_size} rows{fix}")
        raise
    # Not jnp.asarray, which compiles a program for each number of rows.
    return jax.tree.map(lambda *parts: jax.device_put(np.concatenate([np.asarray(p) for p in parts])[:n]), *outputs)


def predict_members(model: Layer, state: TrainState, x: Any, *, batch_size: int | None = 32) -> Any:
    """What each of several trained networks says about any number of rows, as ``predict`` of one.

    Mean and spread of a deep ensemble are then taken along the second axis.

    Shapes: ``(n, ...) -> (n, members, ...)``

    Args:
        model: the layer that was trained.
        state: states with a leading axis of members, as ``sweep(...).state`` and ``cross_validate(...).state``.
        x: as for ``predict``; so is ``batch_size``.

    Raises:
        TypeError, ValueError: what ``predict`` raises, and a state of a single network.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> model, x = layers.dense(1), jnp.linspace(-1, 1, 20)[:, None]
        >>> def line(rate):
        ...     return training.supervised(model, losses.squared_error, optax.sgd(rate))
        >>> found = training.sweep(line, [0.1], (x, x), key=jax.random.key(0), seeds=5, epochs=3, progress=False)
        >>> y = training.predict_members(model, found.state, x)
        >>> y.shape, y.mean(axis=1).shape
        ((20, 5, 1), (20, 1))

    Reference: Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive uncertainty estimation using deep
    ensembles", 2016.
    """
    expect_layer("predict_members", model)
    if not isinstance(state, TrainState):
        checks.fail("predict_members", "state as a TrainState", type(state).__name__, "pass found.state", TypeError)
    if np.ndim(state.step) != 1:
        fix = "pass the state of a sweep, whose arrays have a leading axis; for a single network there is predict"
        checks.fail("predict_members", "states of several members", f"a step of shape {np.shape(state.step)}", fix)
    return predict(_each(model, len(state.step)), state, x, batch_size=batch_size)


@functools.lru_cache(maxsize=16)  # the same layer for the same model, so that nothing is compiled again
def _each(model: Layer, count: int) -> Layer:
    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        return jax.vmap(lambda k: model.init(k, x))(jax.random.split(key, count))

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        def one(p: Tree, s: Tree) -> tuple[Any, Tree]:
            y, new = model.apply(p, s, x, key=key, training=training)
            return predicted(x, y), new

        y, new = jax.vmap(one, axis_size=count)(params, state)
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), y), new

    return Layer(init, apply, "each")


def _expect_host(where: str, tree: Tree, instead: str) -> None:
    if not all(checks.is_concrete(leaf) for leaf in jax.tree.leaves(tree)):
        fix = f"inside jit, vmap or grad write {instead}"
        checks.fail(where, "values, for it is driven from the host", "a tracer", fix, TypeError)


def _batches(arrays: Tree, n: int, size: int) -> Iterator[Tree]:
    for begin in range(0, n, size):
        yield jax.tree.map(lambda a, i=begin: _filled(a[i : i + size], size), arrays)


def _filled(rows: Any, size: int) -> Any:
    return rows if len(rows) == size else np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])


def _nothing(model: Layer, state: TrainState, arrays: Tree) -> Any:
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), arrays)
    y = jax.eval_shape(lambda x: predicted(x, model.apply(state.params, state.model_state, x)[0]), one)
    return jax.tree.map(lambda a: jnp.zeros((0, *a.shape[1:]), a.dtype), y)
