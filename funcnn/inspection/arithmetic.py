"""The operations of single numbers, each as JAX traces it, and compiled once for all numbers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnn.inspection.equations import Place
from funcnn.inspection.slots import Slot, traced

# What an operation of two or of one number is in JAX.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "+": jax.lax.add,
    "-": jax.lax.sub,
    "*": jax.lax.mul,
    "/": jax.lax.div,
    "**": jax.lax.pow,
    "negative": jax.lax.neg,
    "exp": jax.lax.exp,
    "log": jax.lax.log,
    "tanh": jax.lax.tanh,
    "sigmoid": jax.lax.logistic,
    "relu": jax.nn.relu,
}
_OF_TWO = frozenset(("+", "-", "*", "/", "**"))


class Operation(NamedTuple):
    """An operation as JAX traces it, and both ways through it, compiled once for all numbers."""

    slot: Slot
    forward: Callable[..., Any]
    back: Callable[..., Any]


# By their names in JAX.
_OF_JAX: dict[str, Operation] = {}


@functools.cache
def operation(sign: str) -> Operation:
    """What a sign or name stands for."""
    f, count = _OPERATIONS[sign], 2 if sign in _OF_TWO else 1
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(f)(*[jax.ShapeDtypeStruct((), np.float64)] * count)
    slot = traced(jaxpr, [""] * count).slots[-1]._replace(place=Place())
    one = Operation(slot, jax.jit(f), jax.jit(lambda gradient, *given: jax.vjp(f, *given)[1](gradient)))
    _OF_JAX[slot.operation] = one
    return one


def both_ways(slot: Slot, operands: list[Any], goes_back: bool, is_asked: bool) -> tuple[Any, Any]:
    """What an operation makes, and what sends the gradient of that back."""
    one = _OF_JAX[slot.operation]

    def back(gradients: Any) -> Any:
        return (np.float64(share) for share in one.back(gradients[0], *operands))

    return np.float64(one.forward(*operands)), back
