"""Pooling to a size that is chosen, whatever the size of the input."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from funcnn import primitives, spatial
from funcnn.core import Layer

Counts = int | Sequence[int]


def adaptive_avg_pool(output_size: Counts) -> Layer:
    """The mean in each of ``output_size`` windows that cover every spatial axis, each feature for itself.

    Formula: ``y[b, i, f] = mean over j of x[b, j, f]``, ``j`` from ``floor(i s / m)`` to below ``ceil((i + 1) s / m)``
    in each spatial axis, with ``s`` its size and ``m`` its output size. Windows overlap where ``m`` does not divide
    ``s``.

    Shapes: ``(batch, *spatial, n) -> (batch, *output_size, n)`` for any number of spatial axes, larger or smaller.

    Params and State: none.

    Args:
        output_size: a number, the same for all spatial axes, or one for each.

    Raises:
        TypeError: the input is not floating, or a count is not a whole number.
        ValueError: the input has other axes than ``output_size``, or an empty one.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[1.0, 5.0, 3.0, 4.0, 9.0]])[..., None]
        >>> layers.adaptive_avg_pool(2).apply({}, {}, x)[0].ravel().round(2).tolist()
        [3.0, 5.329999923706055]

    Reference: the layer of this name in PyTorch; He, Zhang, Ren and Sun, "Spatial pyramid pooling in deep convolutional
    networks", 2014, has windows of this kind.
    """
    return _adaptive("adaptive_avg_pool", output_size, primitives.avg_pool, floating=True)


def adaptive_max_pool(output_size: Counts) -> Layer:
    """The largest element in each of ``output_size`` windows that cover every spatial axis, each feature for itself.

    Formula: ``y[b, i, f] = max over j of x[b, j, f]``, with the windows of ``adaptive_avg_pool``.

    Shapes: ``(batch, *spatial, n) -> (batch, *output_size, n)`` for any number of spatial axes, larger or smaller.

    Params and State: none.

    Args:
        output_size: a number, the same for all spatial axes, or one for each.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: the input has other axes than ``output_size``, or an empty one.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[1.0, 5.0, 3.0, 4.0, 9.0]])[..., None]
        >>> layers.adaptive_max_pool(2).apply({}, {}, x)[0].ravel().tolist()
        [5.0, 9.0]

    Reference: as ``adaptive_avg_pool``. Of equal elements the first, by rows, takes the whole gradient of a window, and
    a NaN wins. Integers and booleans are taken as well.
    """
    return _adaptive("adaptive_max_pool", output_size, primitives.max_pool)


def _adaptive(kind: str, output_size: Any, form: Callable[..., Any], *, floating: bool = False) -> Layer:
    spatial.expect_counts(kind, {"output_size": output_size})

    def pooled(x: Any) -> Any:
        spatial.expect_axes(kind, x, output_size)
        spatial.expect_elements(kind, x)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32)) if floating else x
        # Last axis first: then the first of equal elements along each axis is the first by rows.
        sizes = primitives.per_axis(kind, "output_size", output_size, x.ndim - 2)
        for axis in range(x.ndim - 2, 0, -1):
            y = _to_size(y, axis, sizes[axis - 1], form)
        return y.astype(x.dtype)

    return spatial.plain(kind, pooled, floating=floating)


def _to_size(x: Any, axis: int, outputs: int, form: Callable[..., Any]) -> Any:
    """Pools one axis. The windows repeat themselves: there is one slice for each of those in a period, not for each."""
    before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    periods = math.gcd(size, outputs)
    inputs, count = size // periods, outputs // periods
    x = x.reshape(math.prod(before) * periods, inputs, math.prod(after))
    windows: list[Any] = []
    for i in range(count):
        first, end = i * inputs // count, -(-(i + 1) * inputs // count)
        part, width = lax.slice_in_dim(x, first, end, axis=1), (end - first,)
        windows.append(form(part, width, width, ((0, 0),)))
    return jnp.concatenate(windows, 1).reshape(*before, outputs, *after)
