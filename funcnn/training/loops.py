"""How a program repeats and branches: by what is known before compilation, or by data."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Body = Callable[[Any, Any], Any]


class Loops(NamedTuple):
    """How a program repeats and branches: the only difference between ``run`` and ``advance``."""

    fold: Callable[[Body, Any, Any, Any], Any]  # body(i, carry) for i from first to stop
    when: Callable[[Any, Callable[[Any], Any], Any], Any]  # then(carry) where the predicate holds


# A step in a branch is compiled on its own, a step in the open is fused with its surroundings, and that can change
# the last bit. So the smaller last batch is a branch in both programs; ``run`` takes it on a predicate that is always
# true, which XLA cannot know.


def _scan(body: Body, carry: Any, first: int, stop: int) -> Any:
    indices = jnp.arange(first, stop, dtype=jnp.int32)
    return jax.lax.scan(lambda c, i: (body(i, c), None), carry, indices)[0]


def while_loop(body: Body, carry: Any, first: Any, stop: Any) -> Any:
    """``carry = body(i, carry)`` for ``i`` from ``first`` to ``stop``, as long as the carry goes on."""

    def more(pair: tuple[Any, Any]) -> Any:
        return (pair[0] < stop) & pair[1].goes_on()

    return jax.lax.while_loop(more, lambda pair: (pair[0] + 1, body(*pair)), (jnp.asarray(first, jnp.int32), carry))[1]


def _branch(predicate: Any, then: Callable[[Any], Any], carry: Any) -> Any:
    return jax.lax.cond(predicate & carry.goes_on(), then, lambda c: c, carry)


STATIC = Loops(_scan, lambda predicate, then, carry: then(carry) if predicate else carry)
"""The loops of ``run``: bounds and predicates are known before compilation."""


def _in_blocks(body: Body, carry: Any, first: int, stop: int) -> Any:
    """``_scan``, whose gradient keeps the carries between blocks, and computes all else again, one block at a time."""
    size = max(1, math.isqrt(stop - first))

    @functools.partial(jax.checkpoint, prevent_cse=False)  # inside a scan nothing would be shared
    def block(c: Any, indices: Any) -> Any:
        return jax.lax.scan(lambda held, i: (body(i, held), None), c, indices)[0]

    indices = jnp.arange(first, stop, dtype=jnp.int32)
    whole = len(indices) // size * size
    carry, _ = jax.lax.scan(lambda c, i: (block(c, i), None), carry, indices[:whole].reshape(-1, size))
    return block(carry, indices[whole:]) if whole < len(indices) else carry


REMAT = STATIC._replace(fold=_in_blocks)
"""The loops of ``run`` with ``remat``: of ``n`` steps, about twice the root of ``n`` are in memory for a gradient."""

DYNAMIC = Loops(while_loop, _branch)
"""The loops of ``advance``: bounds and predicates are data."""


def once(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, traced once for the same shapes, however often it is called."""
    return jax.jit(f, inline=True)
