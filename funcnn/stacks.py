"""Weights that stand along an axis in front of their own, one for each layer that ``repeat`` or ``ensemble`` makes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks
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


def drawn(where: str, path: str, init: Callable[..., Any], key: Any, of: tuple[Any, Any], axes: int) -> Any:
    """What an initializer draws for each of the weights along the first ``axes``, with a key for each.

    ``of`` is the shape and the dtype of the whole. Errors begin with ``where``, and name the weight by its ``path``.
    """
    shape, dtype = of

    def one(key: Any) -> Any:
        try:
            made = init(key, shape[axes:], dtype)
        except Exception as error:
            error.add_note(f"{where}: from the initializer of {path!r}, {jnp.dtype(dtype)}{shape[axes:]}")
            raise
        _expect_drawn(where, path, made, shape[axes:], dtype)
        return made

    if not axes:
        return one(key)
    keys = jax.random.split(key, math.prod(shape[:axes]))
    return jax.vmap(one)(keys).reshape(shape)


def _expect_drawn(where: str, path: str, made: Any, shape: tuple[int, ...], dtype: Any) -> None:
    wanted = f"{jnp.dtype(dtype)}{shape}"
    if not hasattr(made, "shape") or not hasattr(made, "dtype"):
        fix = "an initializer is made by a call: he_normal()" if callable(made) else "return an array"
        expected = f"an initializer that returns {wanted} for {path!r}"
        checks.fail(where, expected, f"one that returns a {type(made).__name__}", fix, TypeError)
    if tuple(made.shape) != shape or made.dtype != dtype:
        got, fix = f"{made.dtype}{tuple(made.shape)}", "return an array of the shape and dtype that it is asked for"
        checks.fail(where, f"{wanted} from the initializer of {path!r}", got, fix)
