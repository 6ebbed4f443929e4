"""Layers over time: a cell is run along the sequence by one scan, in one direction or in both."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Layer, Tree, composite, expect_layer, features, named_children, shown, with_features


def recurrent(
    cell: Layer, *, reverse: bool = False, return_sequences: bool = True, return_carry: bool = False
) -> Layer:
    """A cell over time: each step gets the carry of the one before, all of them in one compiled loop.

    Formula: ``carry[t], y[t] = cell(carry[t - 1], x[t])``, from zeros or from the carry that is given; where the mask
    is false ``carry[t] = carry[t - 1]`` and ``y[t] = 0``, and ``x[t]`` is not read.

    Shapes: ``(batch, time, ...) -> (batch, time, ...)``, the axes after time those of the cell;
    with ``return_sequences=False`` ``-> (batch, ...)``. Zero steps are allowed.

    Side inputs, in a dict with the sequence under ``"x"``: at most one of ``"mask"``, booleans ``(batch, time)``, true
    where a step counts, and ``"lengths"``, whole numbers ``(batch,)``: all steps from there on are masked. They are
    handed on, so that in ``serial(recurrent(...), recurrent(...))`` they reach both. ``"carry"`` is the carry to start
    from; it is used up.

    Params and State: those of the cell, under its name. Its state is threaded through the steps.

    Args:
        cell: a layer from ``(carry, x)`` to ``(carry, y)``, such as ``lstm_cell(32)``.
        reverse: whether time runs backwards; then each sequence starts at its own end, and outputs stay in their place.
        return_sequences: whether to give the outputs of all steps, or that of the last valid one alone: the last in the
            direction of time, zeros where all is masked.
        return_carry: whether to give ``(y, carry)``, with the carry after the last valid step.

    Raises:
        TypeError: the mask is not of booleans, the lengths are not whole numbers, or ``cell`` is not a cell.
        ValueError: the input has no axis of time; a mask, lengths or carry that do not fit it; both mask and lengths.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model, x = layers.recurrent(layers.gru_cell(3)), jnp.ones((5, 7, 2))
        >>> params, state = model.init(jax.random.key(0), x)
        >>> model.apply(params, state, x)[0].shape
        (5, 7, 3)
        >>> padded = {"x": x, "lengths": jnp.array([7, 3, 0, 1, 2])}
        >>> last = layers.recurrent(layers.gru_cell(3), return_sequences=False)
        >>> y = last.apply(params, state, padded)[0]
        >>> y["x"].shape, y["x"][2].tolist()
        ((5, 3), [0.0, 0.0, 0.0])

    Reference: Elman, "Finding structure in time", 1990. Differs from Flax and Keras: (1) what is masked is not read at
    all, so that NaN in the padding does no harm, in the gradient neither. (2) Lengths beyond the time axis and below
    zero are refused where they are known; inside ``jit`` they mean all steps, and none.
    """
    children = named_children("recurrent", (cell,))
    ((name, cell),) = children

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        steps = features("recurrent", x)
        carry = x.get("carry") if isinstance(x, dict) else None
        try:
            return cell.init(key, (carry, jax.ShapeDtypeStruct((steps.shape[0], *steps.shape[2:]), steps.dtype)))
        except TypeError as error:  # probably a layer that takes one array
            error.add_note("recurrent: a cell takes (carry, x) and gives (carry, y); pass one such as lstm_cell(32)")
            raise

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        def step(state: Tree, carry: Any, a: Any, t: Any) -> tuple[Any, Tree]:
            step_key = None if key is None else jax.random.fold_in(key, t)
            return cell.apply(params, state, (carry, a), key=step_key, training=training)

        carry = x.get("carry") if isinstance(x, dict) else None
        steps, valid = jnp.moveaxis(jnp.asarray(features("recurrent", x)), 1, 0), _valid(x)
        y, carry, state = _over_time(step, state, carry, steps, valid, reverse, return_sequences)
        return with_features(_without_carry(x), (y, carry) if return_carry else y), state

    def route(call: Callable[[str, Any], Any], x: Any) -> Any:
        _expect_sequence("recurrent", x)
        return call(name, x)

    layer = composite("recurrent", ((name, cell._replace(init=init, apply=apply)),), route)
    return layer._replace(children=children)


def bidirectional(
    forward_cell: Layer,
    backward_cell: Layer | None = None,
    *,
    merge: str = "concatenate",
    return_sequences: bool = True,
    return_carry: bool = False,
) -> Layer:
    """Two cells over time, one from the start and one from the end, so that each output has seen the whole sequence.

    Formula: ``y[t] = [forward[t], backward[t]]``, or their sum

    Shapes: ``(batch, time, ...) -> (batch, time, ...)``, the axes after time those of the cells, joined in the last;
    with ``return_sequences=False`` ``-> (batch, ...)``, from the last step forward and the first one backward.

    Side inputs: those of ``recurrent``, for both; ``"carry"`` is a pair ``(forward, backward)``.

    Params and State: those of ``recurrent(cell)`` twice, under ``forward`` and ``backward``.

    Args:
        forward_cell: a layer from ``(carry, x)`` to ``(carry, y)``, such as ``lstm_cell(32)``.
        backward_cell: another one for the way back; by default one that is made alike, with parameters of its own.
        merge: ``"concatenate"`` or ``"add"``.
        return_sequences: whether to give the outputs of all steps, or for each direction that of its last valid one.
        return_carry: whether to give ``(y, (forward_carry, backward_carry))``.

    Raises:
        TypeError: what ``recurrent`` raises.
        ValueError: likewise; the outputs do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model, x = layers.bidirectional(layers.lstm_cell(3)), jnp.ones((5, 7, 2))
        >>> model
        bidirectional
        ├── forward: recurrent
        │   └── lstm_cell_0
        └── backward: recurrent
            └── lstm_cell_0
        >>> params, state = model.init(jax.random.key(0), x)
        >>> model.apply(params, state, x)[0].shape
        (5, 7, 6)

    Reference: Schuster and Paliwal, "Bidirectional recurrent neural networks", 1997.
    """
    checks.expect_option("bidirectional", "merge", merge, ("concatenate", "add"))
    cells = (forward_cell, forward_cell if backward_cell is None else backward_cell)
    for cell in cells:
        expect_layer("bidirectional", cell)
    forward, backward = (
        recurrent(cell, reverse=bool(i), return_sequences=return_sequences, return_carry=True)._replace(name=name)
        for i, (name, cell) in enumerate(zip(("forward", "backward"), cells, strict=True))
    )

    def route(call: Callable[[str, Any], Any], x: Any) -> Any:
        given = _carries(x)
        return tuple(
            call(name, x if given is None else {**x, "carry": carry})
            for name, carry in zip(("forward", "backward"), given or (None, None), strict=True)
        )

    def combine(x: Any, outputs: Any) -> Any:
        (y, carry), (z, back) = (features("bidirectional", output) for output in outputs)
        axes = -1 if merge == "concatenate" else y.ndim
        if y.ndim != z.ndim or y.shape[:axes] != z.shape[:axes]:
            fix = "give both cells outputs of one shape" + (", up to the features" if axes == -1 else "")
            checks.fail("bidirectional", f"outputs that fit together to {merge}", f"{y.shape} and {z.shape}", fix)
        y = jnp.concatenate((y, z), -1) if merge == "concatenate" else y + z
        return with_features(_without_carry(x), (y, (carry, back)) if return_carry else y)

    return composite("bidirectional", (("forward", forward), ("backward", backward)), route, combine)


# ---- the loop --------------------------------------------------------------------------------------------------------


def _over_time(
    step: Callable[..., Any], state: Tree, carry: Any, steps: Any, valid: Any, reverse: bool, return_sequences: bool
) -> tuple[Any, Any, Tree]:
    """One scan over the leading axis of ``steps``; ``step(state, carry, x, t) -> ((carry, y), state)``."""
    first = jax.ShapeDtypeStruct(steps.shape[1:], steps.dtype)
    made = jax.eval_shape(lambda s, c, a: step(s, c, a, 0)[0], state, carry, first)
    if not isinstance(made, tuple) or len(made) != 2:
        fix = "pass a cell such as lstm_cell(32)"
        checks.fail("recurrent", "a cell that gives a tuple (carry, y)", shown(made), fix, TypeError)
    carry = _initial(carry, made[0])
    # The double where: what is masked is zero before the cell sees it, or NaN times zero would enter the gradient.
    if valid is not None:
        steps = _chosen(valid, steps, jnp.zeros_like(steps))

    def body(held: Any, at: Any) -> tuple[Any, Any]:
        carry, state, last = held
        a, t, seen = at
        (new, y), state = step(state, carry, a, t)
        if seen is not None:
            new = jax.tree.map(lambda n, o: _chosen(seen, n, o), new, carry)
            y = _chosen(seen, y, jnp.zeros_like(y) if return_sequences else last)
        return (new, state, None if return_sequences else y), (y if return_sequences else None)

    last = None if return_sequences else jnp.zeros(made[1].shape, made[1].dtype)
    at = (steps, jnp.arange(steps.shape[0]), valid)
    (carry, state, last), ys = jax.lax.scan(body, (carry, state, last), at, reverse=reverse)
    return jnp.moveaxis(ys, 0, 1) if return_sequences else last, carry, state


def _initial(carry: Any, made: Any) -> Any:
    """Zeros of the shape that the cell gives, or the given carry in the dtype that the cell computes in."""
    if carry is None:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made)
    given, expected = (jax.tree.map(jnp.shape, tree) for tree in (carry, made))
    if given != expected:
        fix = "a carry keeps its structure and its shapes over time"
        checks.fail("recurrent", f"a cell that gives a carry of shape {given}, as it takes", str(expected), fix)
    return jax.tree.map(lambda c, s: jnp.asarray(c).astype(s.dtype), carry, made)


def _chosen(seen: Any, new: Any, old: Any) -> Any:
    if new.ndim < seen.ndim:
        fix = "masks hold each example for itself: give the array a batch axis"
        checks.fail("recurrent", "a carry of arrays with a batch axis", f"shape {new.shape}", fix)
    return jnp.where(seen.reshape(seen.shape + (1,) * (new.ndim - seen.ndim)), new, old)


# ---- side inputs -----------------------------------------------------------------------------------------------------


def _valid(x: Any) -> Any:
    """What is not masked, ``(time, batch)``, or ``None`` where all is valid."""
    if isinstance(x, dict) and x.get("mask") is not None:
        return jnp.asarray(x["mask"]).T
    if isinstance(x, dict) and x.get("lengths") is not None:
        time = jnp.shape(x["x"])[1]
        return jnp.arange(time)[:, None] < jnp.asarray(x["lengths"])[None, :]
    return None


def _without_carry(x: Any) -> Any:
    return {name: value for name, value in x.items() if name != "carry"} if isinstance(x, dict) else x


def _carries(x: Any) -> Any:
    carry = x.get("carry") if isinstance(x, dict) else None
    if carry is not None and not (isinstance(carry, tuple) and len(carry) == 2):
        fix = "pass the carry that it gave with return_carry=True"
        checks.fail("bidirectional", "a carry (forward, backward)", shown(carry), fix)
    return carry


def _expect_sequence(where: str, x: Any) -> None:
    """Raise unless the input has an axis of time, and its side inputs fit it."""
    steps = features(where, x)
    if isinstance(steps, (tuple, dict)):
        fix = "send each element through a layer of its own with parallel, or join them with concatenate"
        checks.fail(where, "one array", f"a {type(steps).__name__} of shapes {shown(steps)}", fix, TypeError)
    shape = jnp.shape(steps)
    if len(shape) < 2:
        fix = "if the axis of the batch is missing, add it: x[None]"
        checks.fail(where, "at least 2 axes, (batch, time, ...)", f"shape {tuple(shape)}", fix)
    mask, lengths = (x.get(name) if isinstance(x, dict) else None for name in ("mask", "lengths"))
    if mask is not None and lengths is not None:
        checks.fail(where, "a mask or lengths", "both", "leave one of them out")
    if mask is not None:
        _expect_mask(where, mask, shape[:2])
    if lengths is not None:
        checks.expect_lengths(where, "lengths", lengths, shape[0], shape[1])


def _expect_mask(where: str, mask: Any, shape: tuple[int, ...]) -> None:
    dtype = mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype
    if not jnp.issubdtype(dtype, jnp.bool_):
        got = f"{dtype}{tuple(jnp.shape(mask))}"
        checks.fail(where, "a mask of booleans", got, "convert it: mask.astype(bool)", TypeError)
    if jnp.shape(mask) != shape:
        fix = "it has the shape (batch, time) of the input"
        checks.fail(where, f"a mask of shape {tuple(shape)}", f"{tuple(jnp.shape(mask))}", fix)
