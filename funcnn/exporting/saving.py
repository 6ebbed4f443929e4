"""From a model or a trainer to a file."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from funcnn import checks, disk, training
from funcnn import data as datasets
from funcnn.core import Layer, Tree, expect_layer, spec
from funcnn.exporting.files import stored, write
from funcnn.exporting.lowering import DEVICES, expect_flatbuffers, first_line, lowered, plain, returned, words

_PLATFORMS = ("cpu", "cuda", "tpu")


def save_model(
    path: str | os.PathLike[str],
    model: Layer,
    params: Tree,
    state: Tree,
    x: Tree,
    *,
    batch: int | None = None,
    platforms: Sequence[str] = _PLATFORMS,
    card: str = "",
) -> str:
    """Write a trained model with its weights into a file that needs no funcnn to run.

    Formula: ``x -> model.apply(params, state, x, key=None, training=False)[0]``

    Args:
        path: of the file, conventionally ``.export``; whole or not at all, and one that is there is replaced.
        model: any layer.
        params: trained, as ``result.state.params``.
        state: as ``result.state.model_state``; it is read, and what ``apply`` makes of it is left away.
        x: an input, of which only shapes and dtypes are read; a tree of dicts, tuples and lists of them.
        batch: how many examples an input has, for a model that has to know; any number from 1 on otherwise.
        platforms: of ``"cpu"``, ``"cuda"``, ``"rocm"`` and ``"tpu"``, those on which it is to run.
        card: a text for people: what this is, from which data, for what.

    Returns:
        The SHA-256 of the file, for ``load(path, sha256=...)`` and as ``sha256sum`` prints it.

    Raises:
        TypeError: weights that are tracers, or no arrays.
        ValueError: params of another model, an unknown platform, or a layer that has to know the number of examples.
        OSError: the disk is full, or the folder is not there or may not be written to. What was there stays.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp
        >>> from funcnn import exporting, layers
        >>> model = layers.serial(layers.dense(2), layers.softmax)
        >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sha256 = exporting.save_model(f"{folder}/a.export", model, params, state, jnp.ones((1, 3)))
        ...     found = exporting.load(f"{folder}/a.export", sha256=sha256)
        >>> found
        Export(model for cpu, cuda, tpu: x: float32 (batch, 3) -> y: float32 (batch, 2))
        >>> found(jnp.ones((5, 3))).shape
        (5, 2)

    Reference: https://docs.jax.dev/en/latest/export/export.html
    """
    where = "exporting.save_model"
    expect_layer(where, model)
    platforms = _expect_options(where, platforms, card)
    weights = stored(where, {"params": params, "state": state})

    def program(arrays: Any, x: Any) -> Any:
        both = weights.restored(arrays)
        return plain(model.apply(both["params"], both["state"], x, key=None, training=False)[0])

    arrays = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.arrays.items()}
    given = _expect_plain(where, "x", spec(x))
    jax.eval_shape(program, arrays, given)  # what is wrong with params or x is an error of its own
    size = export.symbolic_shape("batch")[0] if batch is None else checks.expect_count(where, "batch", batch)
    sized = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) if a.shape else a, given)
    if batch is None:
        _expect_any_batch(where, model, program, arrays, sized)
    programs = lowered(where, program, platforms, arrays, sized)
    header = _header("model", ["x"], programs[0], card) | {"arrays": weights.header}
    return write(path, header, list(weights.arrays.values()), _serialized(programs))


def save_run(
    path: str | os.PathLike[str],
    trainer: training.Trainer,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = 32,
    validation: Any = None,
    shuffle: bool = True,
    drop_last: bool = False,
    steps_per_epoch: int | None = None,
    monitor: str | None = None,
    mode: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    keep_best: bool = False,
    platforms: Sequence[str] = _PLATFORMS,
    card: str = "",
) -> str:
    """Write a whole training run into a file that needs neither funcnn nor Optax to run.

    It is ``training.run`` itself: with the same versions of JAX on the same machine, the same key and data give the
    same bits as ``jax.jit`` of it here.

    Formula: ``(key, data[, validation]) -> result``, a ``Result`` as dicts: ``result["state"]["params"]``

    Args:
        path: as for ``save_model``, as are ``platforms`` and ``card``.
        trainer: from ``supervised``, ``trainer``, or four functions of your own. Arrays that it closes over are kept.
        data: arrays, or ``jax.ShapeDtypeStruct``, as for ``training.run``: only shapes and dtypes are read, and those
            are what the run takes. Of a function ``key -> batch`` all is kept, and the run takes a key alone.
        validation: the same, of which the run then takes arrays too.
        epochs, steps, batch_size, shuffle, drop_last, steps_per_epoch, monitor, mode, patience, min_delta, keep_best:
            as for ``training.run``.
        platforms: where it is to run.
        card: a text for people.

    Returns:
        The SHA-256 of the file.

    Raises:
        TypeError, ValueError: what ``training.run`` raises, and what ``save_model`` does.
        OSError: the file could not be written. What was there stays.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, optax
        >>> from funcnn import exporting, layers, losses, training
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1))
        >>> x = jnp.linspace(-1, 1, 20)[:, None]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = exporting.save_run(f"{folder}/a.export", line, (x, x), epochs=40, batch_size=5)
        ...     train = exporting.load(f"{folder}/a.export")
        >>> train.takes["key"], train.takes["data/0"], sorted(train.returns)[-1]
        ('key<fry> ()', 'float32 (20, 1)', 'state/step')
        >>> result = train(jax.random.key(0), (x, 3 * x + 1))
        >>> round(float(result["state"]["params"]["kernel"][0, 0]), 2)
        3.0
    """
    where = "exporting.save_run"
    platforms = _expect_options(where, platforms, card)
    takes = {} if callable(data) else {"data": _data_spec(where, "data", data)}
    if validation is not None:
        takes["validation"] = _data_spec(where, "validation", validation)

    def program(key: Any, *given: Any) -> Any:
        arrays = dict(zip(takes, given, strict=True))
        result = training.run(
            trainer,
            arrays.get("data", data),
            key=key,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            validation=arrays.get("validation"),
            shuffle=shuffle,
            drop_last=drop_last,
            steps_per_epoch=steps_per_epoch,
            monitor=monitor,
            mode=mode,
            patience=patience,
            min_delta=min_delta,
            keep_best=keep_best,
        )
        return plain(result)

    specs = (jax.eval_shape(lambda: jax.random.key(0)), *takes.values())
    jax.eval_shape(program, *specs)  # what is wrong with data or trainer is an error of its own
    programs = lowered(where, program, platforms, *specs)
    header = _header("run", ["key", *takes], programs[0], card) | {"arrays": {}}
    return write(path, header, [], _serialized(programs))


def _serialized(programs: Sequence[export.Exported]) -> list[tuple[Sequence[str], bytes]]:
    return [(program.platforms, bytes(program.serialize())) for program in programs]


def _header(kind: str, arguments: list[str], exported: export.Exported, card: str) -> dict[str, Any]:
    """What the file says of itself, for people, and for those who read it without funcnn."""
    given = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0][-len(arguments) :]
    return {
        "kind": kind,
        "card": card,
        "arguments": arguments,
        "takes": words(dict(zip(arguments, given, strict=True))),
        "returns": words(returned(exported, kind)),
        "versions": disk.versions_of("funcnn", "jax", "jaxlib", "numpy", "optax"),
    }


def _expect_options(where: str, platforms: Any, card: Any) -> tuple[str, ...]:
    """The platforms, if they are known."""
    expect_flatbuffers(where)
    if not isinstance(card, str):
        checks.fail(where, "card as a text", type(card).__name__, "pass a string", TypeError)
    if isinstance(platforms, str) or not platforms:
        fix = 'pass several, or one as platforms=("cpu",)'
        checks.fail(where, f"platforms, of {', '.join(DEVICES)}", repr(platforms), fix)
    for platform in platforms:
        if platform == "gpu":
            checks.fail(where, f"platforms, of {', '.join(DEVICES)}", "'gpu'", "say whose: cuda, or rocm")
        checks.expect_option(where, "a platform", platform, list(DEVICES))
    return tuple(dict.fromkeys(platforms))


def _data_spec(where: str, name: str, data: Any) -> Tree:
    """The shapes and dtypes of data, which are arrays, or shapes and dtypes."""

    def array(leaf: Any) -> Any:
        # Of one number, seen as many times as there is room for: takes no memory.
        is_spec = isinstance(leaf, jax.ShapeDtypeStruct)
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) if is_spec else leaf

    data = jax.tree.map(array, data, is_leaf=lambda leaf: not isinstance(leaf, (dict, tuple)))
    arrays = datasets.as_arrays(data, where=f"{where}: {name}", one_length=False)
    return _expect_plain(where, name, spec(arrays))


def _expect_plain(where: str, name: str, specs: Tree) -> Tree:
    """``specs``, if who reads the file can make such a tree."""
    if jax.tree.structure(plain(specs)) != jax.tree.structure(specs):
        fix = "take dicts with names, tuples and lists: there are no classes in a file"
        checks.fail(where, f"{name} of dicts, tuples, lists and arrays", f"a {type(specs).__name__}", fix, TypeError)
    return specs


def _expect_any_batch(where: str, model: Layer, program: Callable[..., Any], *specs: Any) -> None:
    """Raise unless a model that takes this input takes any number of examples, and name the layer that does not."""
    try:
        jax.eval_shape(program, *specs)
    except Exception as error:
        notes = [note for note in getattr(error, "__notes__", []) if ": input " in note]
        layer = notes[0].partition(": input ")[0] if notes else model.name or model.kind
        got = f"{layer}, which has to know it ({first_line(error)})"
        fix = "pass batch=, the number of examples that it is to take"
        raise ValueError(f"{where}: expected layers that take any number of examples, got {got}; {fix}") from error
