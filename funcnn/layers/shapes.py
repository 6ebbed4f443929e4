"""Layers that lay the entries of each example out anew and compute nothing; the batch axis stays where it is."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from funcnn import checks, primitives, spatial
from funcnn.core import Layer, Tree, array_layer

Counts = int | Sequence[int]


def _reshaping(kind: str, target: Any) -> Layer:
    def expect_batch(x: Any) -> None:
        checks.expect_rank(kind, x, 1, "(batch, ...)", "add a batch axis: x[None]")

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        expect_batch(x)
        target(x.shape[1:])
        return {}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params, key, training
        expect_batch(x)
        return x.reshape(x.shape[0], *target(x.shape[1:])), state

    return array_layer(init, apply, kind)


flatten = _reshaping("flatten", lambda shape: (math.prod(shape),))
"""All axes after the batch as one: ``(batch, a, b, ...) -> (batch, a * b * ...)``, the last axis running fastest."""


def reshape(*shape: int) -> Layer:
    """Another shape for each example; the batch axis stays.

    Formula: ``y = x`` with its entries in the same order, the last axis running fastest

    Shapes: ``(batch, ...) -> (batch, *shape)``

    Params and State: none.

    Args:
        *shape: the new sizes without the batch; one of them may be ``-1``, which takes what is left.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: a size is below 1 and not ``-1``, two are ``-1``, or the input does not have as many entries.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> layers.reshape(28, 28, 1).apply({}, {}, jnp.ones((5, 784)))[0].shape
        (5, 28, 28, 1)
        >>> layers.reshape(7, -1).apply({}, {}, jnp.ones((5, 28, 28)))[0].shape
        (5, 7, 112)
        >>> layers.reshape(8, 8).apply({}, {}, jnp.ones((5, 784)))
        Traceback (most recent call last):
        ...
        ValueError: reshape: expected 64 entries in each example, as (8, 8) has, got 784 in (784,); make the sizes...

    Reference: ``numpy.reshape``.
    """
    sizes = tuple(-1 if _is_rest(size) else checks.expect_count("reshape", "shape", size) for size in shape)
    if sizes.count(-1) > 1:
        checks.fail("reshape", "at most one -1", str(sizes), "give the other sizes as numbers")

    def target(given: tuple[int, ...]) -> tuple[int, ...]:
        entries, known = math.prod(given), math.prod(size for size in sizes if size != -1)
        if -1 in sizes and entries % known == 0:
            return tuple(entries // known if size == -1 else size for size in sizes)
        if entries != known or -1 in sizes:
            wanted = f"a multiple of {known}" if -1 in sizes else str(known)
            checks.fail(
                "reshape",
                f"{wanted} entries in each example, as {sizes} has",
                f"{entries} in {tuple(given)}",
                "make the sizes match, the batch axis not counted",
            )
        return sizes

    return _reshaping("reshape", target)


def transpose(*axes: int) -> Layer:
    """The axes of each example in another order; the batch axis stays.

    Formula: ``y = numpy.transpose(x, (0, *axes))``

    Shapes: ``(batch, a, b, ...) -> (batch, ...)``, the axis that comes ``i``-th being the one that ``axes[i]`` names.

    Params and State: none.

    Args:
        *axes: the positions in the input of the axes after the batch, each once: they count from 1, as the batch is 0,
            or backwards from -1. Without any the order is reversed.

    Raises:
        TypeError: a position is not a whole number.
        ValueError: the input does not have these axes, or one is missing or named twice.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> layers.transpose(2, 1, 3).apply({}, {}, jnp.ones((5, 28, 14, 3)))[0].shape
        (5, 14, 28, 3)
        >>> layers.transpose(-1, 1, 2).apply({}, {}, jnp.ones((5, 28, 14, 3)))[0].shape
        (5, 3, 28, 14)
        >>> layers.transpose(0, 2, 1).apply({}, {}, jnp.ones((5, 28, 14)))
        Traceback (most recent call last):
        ...
        ValueError: transpose: expected axes other than the batch, 0, got (0, 2, 1); it stays: leave it out...

    Reference: ``numpy.transpose``; ``Permute`` of Keras, which counts in the same way.
    """
    places = tuple(axis if _is_whole(axis) else checks.expect_count("transpose", "axes", axis) for axis in axes)
    if 0 in places:
        checks.fail("transpose", "axes other than the batch, 0", str(places), "it stays: leave it out and count from 1")

    def transposed(x: Any) -> Any:
        checks.expect_rank("transpose", x, 1, "(batch, ...)", "add a batch axis: x[None]")
        order = tuple(axis % x.ndim if -x.ndim < axis < x.ndim else axis for axis in places)
        order = order if axes else tuple(range(x.ndim - 1, 0, -1))
        if sorted(order) != list(range(1, x.ndim)):
            fix = "name every axis but the batch once"
            expected = f"the {x.ndim - 1} axes after the batch of an input of shape {tuple(x.shape)}, in any order"
            checks.fail("transpose", expected, str(places), fix)
        return x.transpose(0, *order)

    return spatial.plain("transpose", transposed)


def patches(size: Counts, *, strides: Counts | None = None) -> Layer:
    """What lies under a window that moves over the spatial axes, as the features of the place where it lies.

    Formula: ``y[b, i, j * n + f] = x[b, strides * i + j, f]``, ``j`` the place in the window, by rows

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', product of size * n)`` for any number of spatial axes, with
    ``spatial' = (spatial - size) // strides + 1``: what does not fill a window is left out.

    Params and State: none.

    Args:
        size: of the window: a number, the same for all spatial axes, or one for each.
        strides: how far the window moves; by default as far as it is wide.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: the input has other axes than the window or is smaller, or an argument has the wrong length.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> tokens = layers.serial(layers.patches(4), layers.reshape(49, -1))
        >>> tokens.apply({}, {}, jnp.ones((5, 28, 28, 3)))[0].shape
        (5, 49, 48)

    Reference: Dosovitskiy et al., "An image is worth 16x16 words", 2020. A dense layer after it is a convolution whose
    kernel ``(*size, n, features)`` is reshaped to ``(-1, features)``.
    """
    steps = size if strides is None else strides
    spatial.expect_counts("patches", {"size": size, "strides": steps})

    def taken(x: Any) -> Any:
        spatial.expect_axes("patches", x, size)
        rank = x.ndim - 2
        window = primitives.per_axis("patches", "size", size, rank)
        moves = primitives.per_axis("patches", "strides", steps, rank)
        primitives.pads("patches", "VALID", x.shape[1:-1], window, moves)
        return _side_by_side(x, window) if window == moves else _overlapping(x, window, moves)

    return spatial.plain("patches", taken)


def _side_by_side(x: Any, window: tuple[int, ...]) -> Any:
    """Windows that follow one another are a reshape and a transposition; slices would be read one element at a time."""
    rank = len(window)
    counts = [size // width for size, width in zip(x.shape[1:-1], window, strict=True)]
    x = x[(slice(None), *(slice(count * width) for count, width in zip(counts, window, strict=True)))]
    x = x.reshape(x.shape[0], *(n for pair in zip(counts, window, strict=True) for n in pair), x.shape[-1])
    x = x.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return x.reshape(x.shape[0], *counts, math.prod(window) * x.shape[-1])


def _overlapping(x: Any, window: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    counts = [(size - w) // s + 1 for size, w, s in zip(x.shape[1:-1], window, strides, strict=True)]
    places = itertools.product(*(range(width) for width in window))
    ends = [(count - 1) * stride + 1 for count, stride in zip(counts, strides, strict=True)]
    slices = [
        (slice(None), *(slice(at, at + end, stride) for at, end, stride in zip(place, ends, strides, strict=True)))
        for place in places
    ]
    return jnp.concatenate([x[index] for index in slices], -1)


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and checks.is_concrete(value) and not isinstance(value, bool)


def _is_rest(size: Any) -> bool:
    return _is_whole(size) and size == -1
