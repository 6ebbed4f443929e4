"""Runs one after the other, on several cores at once, where each is a single kernel and no other core has work."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Tree

_MOST = 64  # programs that are kept

_compiled_programs: collections.OrderedDict[Any, Any] = collections.OrderedDict()


def usable() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_divide(given: Tree) -> bool:
    """Whether these are values, all on one device: what several compute together waits for all of them, in order."""
    leaves = jax.tree.leaves(given)
    if not all(map(checks.is_concrete, leaves)):
        return False
    return all(len(leaf.sharding.device_set) == 1 for leaf in leaves if hasattr(leaf, "sharding"))


def in_parts(part: Any, static: tuple[Any, ...], members: Tree, rest: Tree, cores: int) -> Tree:
    """What ``part(*static, size, members, rest, begin)``, compiled, makes of all members, as many at once as ``cores``.

    Formula: the part that begins at ``begin`` has the members ``begin`` to ``begin + size``; all parts have one size,
    so that they are one program, and the last one has some members of the one before again

    JAX runs what one thread asks for in its order, hence the threads. They are given a program that is compiled, for
    settings of JAX, such as ``jax.enable_x64``, are those of the thread that made them.
    """
    count = len(jax.tree.leaves(members)[0])
    size = -(-count // cores)
    begins = [np.int32(min(begin, count - size)) for begin in range(0, count, size)]
    program = _compiled(part.trace(*static, size, members, rest, begins[0]), (members, rest))
    with concurrent.futures.ThreadPoolExecutor(len(begins)) as pool:
        waiting = [pool.submit(_waited, program, members, rest, begin) for begin in begins]
        found = [one.result() for one in waiting]
    return _joined(count, found)


def _waited(program: Callable[..., Any], *given: Any) -> Any:
    return jax.block_until_ready(program(*given))


def _compiled(traced: Any, given: Tree) -> Any:
    """The program of what was traced, which JAX finds again for the same shapes and settings, where its data lie."""
    places = tuple(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(given))
    config: Any = jax.config
    name = traced.jaxpr, places, config.jax_default_device
    if name not in _compiled_programs:
        _compiled_programs[name] = traced.lower().compile()
    _compiled_programs.move_to_end(name)
    while len(_compiled_programs) > _MOST:
        _compiled_programs.popitem(last=False)
    return _compiled_programs[name]


@functools.partial(jax.jit, static_argnums=0)
def _joined(count: int, parts: list[Tree]) -> Tree:
    """The parts behind one another, those members left out of the last one that are in the one before."""

    def join(*pieces: Any) -> Any:
        return jnp.concatenate([*pieces[:-1], pieces[-1][-(count - sum(map(len, pieces[:-1]))) :]])

    return jax.tree.map(join, *parts)
