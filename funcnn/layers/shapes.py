"""Layers that change the shape of each example and nothing else; the batch axis stays where it is."""

import math
from typing import Any

from funcnn import checks
from funcnn.core import Layer, Tree, array_layer


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


def _is_rest(size: Any) -> bool:
    return hasattr(size, "__index__") and checks.is_concrete(size) and size == -1
