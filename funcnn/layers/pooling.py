"""Layers that make one element of many neighbours: the largest of them, or their mean."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks, primitives
from funcnn.core import Layer, Tree, array_layer

Counts = int | Sequence[int]
Padding = str | int | Sequence[int | Sequence[int]]


def max_pool(window: Counts, *, strides: Counts | None = None, padding: Padding = "VALID") -> Layer:
    """The largest element in a window that moves over the spatial axes, each feature for itself.

    Formula: ``y[b, i, f] = max over j of x[b, strides * i + j - before, f]``, ``j`` inside the window and the input.

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', n)`` for any number of spatial axes, with
    ``spatial' = (spatial + before + after - window) // strides + 1``: what does not fill a window is left out. With
    ``padding="SAME"`` ``spatial' = ceil(spatial / strides)``.

    Params and State: none.

    Args:
        window: a number, the same for all spatial axes, or one for each.
        strides: how far the window moves; by default as far as it is wide.
        padding: ``"VALID"`` (none), ``"SAME"``, or a number, or one number or pair for each spatial axis, less than the
            window. It never wins.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: the input has other axes than the window or is smaller, or an argument has the wrong length.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[1.0, 5.0, 2.0, 4.0, 9.0]])[..., None]
        >>> layers.max_pool(2).apply({}, {}, x)[0].ravel().tolist()
        [5.0, 4.0]
        >>> layers.max_pool(3, strides=1).apply({}, {}, x)[0].ravel().tolist()
        [5.0, 5.0, 9.0]

    Reference: Zhou and Chellappa, "Computation of optical flow using a neural network", 1988. As in PyTorch, the first
    of several equal elements, by rows, takes the whole gradient, and a NaN wins. Integers and booleans are taken as
    well.
    """
    return _pool("max_pool", window, strides, padding, primitives.max_pool)


def avg_pool(window: Counts, *, strides: Counts | None = None, padding: Padding = "VALID") -> Layer:
    """The mean of the elements in a window that moves over the spatial axes, each feature for itself.

    Formula: ``y[b, i, f] = mean over j of x[b, strides * i + j - before, f]``, ``j`` inside the window and the input.

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', n)``, as ``max_pool``.

    Params and State: none.

    Args:
        window: a number, the same for all spatial axes, or one for each.
        strides: how far the window moves; by default as far as it is wide.
        padding: ``"VALID"`` (none), ``"SAME"``, or a number, or one number or pair for each spatial axis, less than the
            window. It is not counted.

    Raises:
        TypeError: the input is not floating, or a count is not a whole number.
        ValueError: the input has other axes than the window or is smaller, or an argument has the wrong length.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[1.0, 5.0, 2.0, 4.0, 9.0]])[..., None]
        >>> layers.avg_pool(2).apply({}, {}, x)[0].ravel().tolist()
        [3.0, 3.0]
        >>> layers.avg_pool(2, padding="SAME").apply({}, {}, x)[0].ravel().tolist()
        [3.0, 3.0, 9.0]

    Reference: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    Differs from PyTorch's and Flax's default, as Keras does: (1) the mean is over the elements that are there and not
    over the zeros of the padding (``count_include_pad=False``), or the borders of an even image would fade.
    """
    return _pool("avg_pool", window, strides, padding, primitives.avg_pool, floating=True)


def _pool(
    kind: str, window: Any, strides: Any, padding: Any, form: Callable[..., Any], *, floating: bool = False
) -> Layer:
    steps = window if strides is None else strides
    sized = next((value for value in (window, steps) if isinstance(value, (tuple, list))), (1,))
    for name, value in (("window", window), ("strides", steps)):
        primitives.per_axis(kind, name, value, len(sized))
    primitives.expect_padding(kind, padding)

    def pooled(x: Any) -> Any:
        _expect_spatial(kind, x, window)
        rank = x.ndim - 2
        widths = primitives.per_axis(kind, "window", window, rank)
        moves = primitives.per_axis(kind, "strides", steps, rank)
        pads = primitives.pads(kind, padding, x.shape[1:-1], widths, moves)
        if any(max(pair) >= width for width, pair in zip(widths, pads, strict=True)):
            fix = "or some windows would hold nothing else"
            checks.fail(kind, f"padding less than the window, {widths}", str(pads), fix)
        return form(x, widths, moves, pads)

    return _without_params(kind, pooled, floating)


def _global(kind: str, form: Callable[..., Any], *, floating: bool = False) -> Layer:
    def pooled(x: Any) -> Any:
        _expect_spatial(kind, x, 1)
        if 0 in x.shape[1:-1]:
            checks.fail(kind, "spatial axes that are not empty", f"shape {tuple(x.shape)}", "pass a larger input")
        return form(x, axis=tuple(range(1, x.ndim - 1)))

    return _without_params(kind, pooled, floating)


def _without_params(kind: str, pooled: Callable[[Any], Any], floating: bool) -> Layer:
    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params, key, training
        if floating:
            checks.expect_floating(kind, x)
        return pooled(x), state

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        jax.eval_shape(lambda a: apply({}, {}, a)[0], x)  # so that a wrong shape is an error already here
        return {}, {}

    return array_layer(init, apply, kind)


def _expect_spatial(kind: str, x: Any, window: Any) -> None:
    missing = "if the axis of features is missing, add it: x[..., None]; if that of the batch is, x[None]"
    checks.expect_rank(kind, x, 3, "(batch, *spatial, features)", missing)
    if isinstance(window, (tuple, list)) and len(x.shape) != len(window) + 2:
        expected = f"(batch, *spatial, features) with {len(window)} spatial axes"
        checks.fail(kind, expected, f"shape {tuple(x.shape)}", missing)


global_avg_pool = _global("global_avg_pool", jnp.mean, floating=True)
"""The mean over all axes between batch and features: ``(batch, *spatial, n) -> (batch, n)``.

Example:
    >>> import jax.numpy as jnp
    >>> from funcnn import layers
    >>> layers.global_avg_pool.apply({}, {}, jnp.arange(6.0).reshape(1, 3, 2))[0].tolist()
    [[2.0, 3.0]]

Reference: Lin, Chen and Yan, "Network in network", 2013.
"""

global_max_pool = _global("global_max_pool", jnp.max)
"""The largest element over all axes between batch and features: ``(batch, *spatial, n) -> (batch, n)``.

Equal elements share the gradient, as in ``jnp.max`` and ``torch.amax``.

Example:
    >>> import jax.numpy as jnp
    >>> from funcnn import layers
    >>> layers.global_max_pool.apply({}, {}, jnp.arange(6.0).reshape(1, 3, 2))[0].tolist()
    [[4.0, 5.0]]

Reference: Oquab, Bottou, Laptev and Sivic, "Is object localization for free?", 2015.
"""
