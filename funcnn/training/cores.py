"""Runs one after the other, on several cores at once, where each is a single kernel and no other core has work."""

import collections
import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Tree

_MOST = 64  # programs that are kept

_lock = threading.Lock()
_compiled_programs: collections.OrderedDict[Any, Any] = collections.OrderedDict()


def usable() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_divide(given: Tree) -> bool:
    """Whether these are values, all on one device: what several compute together waits for all of them, in order.

    Nor is anything divided where JAX is asked to look into a program: it says where a number went bad, or goes through
    it by hand, in the thread of the caller alone.
    """
    config: Any = jax.config
    if config.jax_debug_nans or config.jax_debug_infs or config.jax_disable_jit:
        return False
    leaves = jax.tree.leaves(given)
    if not all(map(checks.is_concrete, leaves)):
        return False
    return all(len(leaf.sharding.device_set) == 1 for leaf in leaves if hasattr(leaf, "sharding"))


def in_parts(part: Any, static: tuple[Any, ...], members: Tree, rest: Tree, cores: int) -> Tree:
    """What ``part(*static, size, members, rest, begin)``, compiled, makes of all members, as many at once as ``cores``.

    Formula: the part that begins at ``begin`` has the members ``begin`` to ``begin + size``; all parts have one size,
    so that they are one program, and the last one has some members of the one before again

    JAX runs what one thread asks for in its order, hence the threads, of which the caller is one. They are given a
    program that is compiled, for settings of JAX, such as ``jax.enable_x64``, are those of the thread that made them.
    """
    count = len(jax.tree.leaves(members)[0])
    size = -(-count // cores)
    begins = [np.int32(min(begin, count - size)) for begin in range(0, count, size)]
    program = _compiled(part.trace(*static, size, members, rest, begins[0]), (members, rest))
    found: list[Any] = [None] * len(begins)

    def compute(i: int) -> None:
        try:
            found[i] = _waited(program, members, rest, begins[i])
        except BaseException as error:  # it is raised below, in the thread that asked
            found[i] = error

    threads = [threading.Thread(target=compute, args=(i,)) for i in range(1, len(begins))]
    for i, thread in enumerate(threads, 1):
        try:
            thread.start()
        except RuntimeError:  # of an interpreter that ends, or a system that has no more of them
            compute(i)
    compute(0)
    for thread in threads:
        if thread.ident is not None:
            thread.join()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return _joined(count, found)


def _waited(program: Callable[..., Any], *given: Any) -> Any:
    return jax.block_until_ready(program(*given))


def _compiled(traced: Any, given: Tree) -> Any:
    """The program of what was traced, which JAX finds again for the same shapes and settings, where its data lie."""
    places = tuple(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(given))
    config: Any = jax.config
    name = traced.jaxpr, places, config.jax_default_device
    with _lock:
        program = _compiled_programs.pop(name, None)
    if program is None:
        program = traced.lower().compile()
    with _lock:
        _compiled_programs[name] = program  # the last that was used
        while len(_compiled_programs) > _MOST:
            _compiled_programs.popitem(last=False)
    return program


@functools.partial(jax.jit, static_argnums=0)
def _joined(count: int, parts: list[Tree]) -> Tree:
    """The parts behind one another, those members left out of the last one that are in the one before."""

    def join(*pieces: Any) -> Any:
        return jnp.concatenate([*pieces[:-1], pieces[-1][-(count - sum(map(len, pieces[:-1]))) :]])

    return jax.tree.map(join, *parts)
