"""Weights that stand along an axis in front of their own, one for each layer that ``repeat`` or ``ensemble`` makes."""

import math
from collections.abc import Callable
from typing import Any

import jax

from funcnn.core import Layer

_STACKING = ("repeat", "ensemble")


def axes_of(layer: Layer, path: str) -> int:
    """How many axes the weight at ``path`` has in front of its own: one for each ``repeat`` and ``ensemble`` around."""
    count = int(layer.kind in _STACKING)
    for name in path.split("/"):
        child = dict(layer.children).get(name)
        if child is not None:  # a wrapper may put names of its own between those of children, as lora does
            layer = child
            count += layer.kind in _STACKING
    return count


def of_each(f: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """The function of one weight, for all that stand along the first ``axes``."""
    for _ in range(axes):
        f = jax.vmap(f)
    return f


def drawn(init: Callable[..., Any], key: Any, shape: tuple[int, ...], dtype: Any, axes: int) -> Any:
    """What an initializer draws for each of the weights along the first ``axes`` of ``shape``, with a key for each."""
    if not axes:
        return init(key, shape, dtype)
    keys = jax.random.split(key, math.prod(shape[:axes]))
    return jax.vmap(lambda k: init(k, shape[axes:], dtype))(keys).reshape(shape)
