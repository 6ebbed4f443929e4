"""The random numbers of a whole model in few operations: the same numbers, compiled in a fraction of the time."""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxpr_as_fun
from jax.extend.random import threefry2x32_p

from funcnn import bits

# XLA on CPU compiles a loop of its own for each key that is folded and each array that is drawn, three for a dense
# layer (benchmarks/deep_starts.py, docs/deep_start_times.md). But all of them do the same: a key and a counter are
# mixed, each pair by itself. So those of many arrays are mixed side by side: all keys of one level of a model, and then
# all numbers. Without the loop it would be one kernel, but XLA writes that out again for each array that reads it.
_FEWEST = 9  # operations that draw: fewer are compiled as soon by themselves
_MOST = 2**20  # numbers drawn together, for they are in memory together; of large arrays each is drawn by itself
_DRAWS = ("random_fold_in", "random_split", "random_bits")
_WRITTEN = 2**12  # numbers of which it stands in the program to which key they belong; of more it is computed
_CALLS = ("jit", "pjit")

_UNKNOWN: Any = object()


class _Node(NamedTuple):
    """An operation, with the places of the values that it takes, and of those that it makes."""

    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def together(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f``, where all keys and numbers that do not depend on one another are drawn in one operation.

    They are the same to the bit. What other generators than Threefry draw stays as it is, and so do loops, functions
    whose results lie somewhere, and all under a mesh.
    """

    def joined(*args: Any) -> Any:
        closed, made = jax.make_jaxpr(f, return_shape=True)(*args)
        leaves = jax.tree.leaves(args)
        if closed.effects or _count(closed.jaxpr) < _FEWEST:
            outputs = jaxpr_as_fun(closed)(*leaves)
        else:
            values, nodes = [*leaves], list[_Node]()
            places = _flattened(closed, list(range(len(leaves))), values, nodes)
            _compute(values, _needed(nodes, places))
            outputs = [values[place] for place in places]
        return jax.tree.unflatten(jax.tree.structure(made), outputs)

    return joined


def _count(jaxpr: Any) -> int:
    """How many operations draw."""
    called = [equation.params["jaxpr"].jaxpr for equation in jaxpr.eqns if _is_call(equation)]
    return sum(map(_count, called)) + sum(map(_is_draw, jaxpr.eqns))


def _is_call(equation: Any) -> bool:
    """Whether an operation is a function of ``jit`` that says nothing of devices, layouts or compiler options."""
    if equation.primitive.name not in _CALLS:
        return False
    if not equation.params["ctx_mesh"].empty:
        return False
    plain = _plain_call()
    settings = {name: value for name, value in equation.params.items() if name not in _OF_ITS_OWN}
    return all(set(_all(value)) <= set(_all(plain[name])) for name, value in settings.items())


_OF_ITS_OWN = ("jaxpr", "name", "donated_invars", "keep_unused", "inline", "ctx_mesh")


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@functools.cache
def _plain_call() -> dict[str, Any]:
    """The settings of a function of ``jit`` about which nothing was said."""
    [equation] = jax.make_jaxpr(jax.jit(lambda a: a))(0.0).eqns
    return equation.params


def _is_draw(equation: Any) -> bool:
    """Whether an operation mixes keys of Threefry with counters, as all that draw do: the first 2**32 of an array."""
    name, keys = equation.primitive.name, equation.invars[0].aval if equation.invars else None
    if name not in _DRAWS or keys is None or keys.dtype not in bits.key_types():
        return False
    if not (equation.ctx.threefry_partitionable and equation.ctx.cur_abstract_mesh.empty):
        return False
    if name == "random_fold_in":
        shapes = {keys.shape, equation.invars[1].aval.shape}
        return len(shapes - {()}) <= 1
    return name == "random_split" or equation.params["bit_width"] <= 32


def _flattened(closed: Any, inputs: list[int], values: list[Any], nodes: list[_Node]) -> list[int]:
    """The operations of a program, added to ``nodes``: those of functions that draw stand in the place of their calls.

    What is known goes into ``values``, and a place for all else.
    """

    def added(value: Any) -> int:
        values.append(value)
        return len(values) - 1

    jaxpr = closed.jaxpr
    known: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= {variable: added(const) for variable, const in zip(jaxpr.constvars, closed.consts, strict=True)}

    def place(operand: Any) -> int:
        return added(operand.val) if isinstance(operand, Literal) else known[operand]

    for equation in jaxpr.eqns:
        given = [place(operand) for operand in equation.invars]
        if _is_call(equation) and _count(equation.params["jaxpr"].jaxpr):
            made = _flattened(equation.params["jaxpr"], given, values, nodes)
        else:
            made = [added(_UNKNOWN) for _ in equation.outvars]
            nodes.append(_Node(equation, tuple(given), tuple(made)))
        known |= zip(equation.outvars, made, strict=True)
    return [place(operand) for operand in jaxpr.outvars]


def _needed(nodes: list[_Node], places: list[int]) -> list[_Node]:
    """The operations that lead to these places."""
    wanted, found = set(places), list[_Node]()
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            found.append(node)
    return found[::-1]


def _compute(values: list[Any], nodes: list[_Node]) -> None:
    """All values: what is known without drawing, then what is drawn of that; keys before numbers, as there may be more.

    As long as operations are left there is something to compute, for they stand behind those that they depend on.
    """
    waiting: dict[int, list[int]] = {}  # by the place of a value that is not known yet: who waits for it
    missing: list[int] = []  # how many values each operation waits for
    for number, node in enumerate(nodes):
        places = {place for place in node.inputs if values[place] is _UNKNOWN}
        missing.append(len(places))
        for place in places:
            waiting.setdefault(place, []).append(number)
    ready = deque(number for number, count in enumerate(missing) if not count)
    drawn: dict[str, list[_Node]] = {name: [] for name in _DRAWS}

    def known(node: _Node) -> None:
        for place in node.outputs:
            for number in waiting.pop(place, []):
                missing[number] -= 1
                if not missing[number]:
                    ready.append(number)

    while True:
        while ready:
            node = nodes[ready.popleft()]
            if _is_draw(node.equation) and 0 < _size(node) <= _MOST:
                drawn[node.equation.primitive.name].append(node)
            else:
                _set(values, node)
                known(node)
        name = next((name for name in _DRAWS if drawn[name]), None)
        if name is None:
            break
        chosen, drawn[name] = drawn[name], []
        for group in _groups(chosen):
            if len(group) > 1:
                _draw(values, group)
            else:
                _set(values, group[0])
            for node in group:
                known(node)


def _set(values: list[Any], node: _Node) -> None:
    primitive = node.equation.primitive
    with node.equation.ctx.manager:  # settings that held where it was traced
        made = primitive.bind(
            *(values[place] for place in node.inputs), **primitive.get_bind_params(node.equation.params)
        )
    for place, value in zip(node.outputs, made if primitive.multiple_results else [made], strict=True):
        values[place] = value


def _size(node: _Node) -> int:
    return node.equation.outvars[0].aval.size


def _groups(nodes: list[_Node]) -> Iterator[list[_Node]]:
    """As many together as there is room for."""
    group, count = list[_Node](), 0
    for node in nodes:
        if group and count + _size(node) > _MOST:
            yield group
            group, count = [], 0
        group.append(node)
        count += _size(node)
    if group:
        yield group


def _draw(values: list[Any], nodes: list[_Node]) -> None:
    """What operations of one kind draw, as one: each number from its key and its counter, as it is alone."""
    made = [node.equation.outvars[0].aval for node in nodes]
    keys = [jax.random.key_data(values[node.inputs[0]]) for node in nodes]
    if nodes[0].equation.primitive.name == "random_fold_in":
        data = [values[node.inputs[1]] for node in nodes]
        counters = jnp.concatenate([jnp.broadcast_to(d, a.shape).ravel() for d, a in zip(data, made, strict=True)])
        keys = [jnp.broadcast_to(pair, (*a.shape, 2)) for pair, a in zip(keys, made, strict=True)]
    else:
        counters = None
    rows = [pair.size // 2 for pair in keys]
    pairs = jnp.concatenate([pair.reshape(-1, 2) for pair in keys])
    if counters is None:
        each = np.repeat([a.size // count for a, count in zip(made, rows, strict=True)], rows)  # numbers of one key
        pairs, counters = _counted(pairs, each)
    words = (jax.lax.index_in_dim(pairs, i, 1, keepdims=False) for i in range(2))
    first, second = threefry2x32_p.bind(*words, jnp.zeros_like(counters), counters)
    is_key = jnp.issubdtype(made[0].dtype, jax.dtypes.prng_key)
    mixed = jnp.stack([first, second], axis=-1) if is_key else first ^ second
    begin = 0
    for node, a in zip(nodes, made, strict=True):
        part = jax.lax.slice_in_dim(mixed, begin, begin + a.size)
        if is_key:
            impl = bits.key_types()[a.dtype]
            values[node.outputs[0]] = jax.random.wrap_key_data(part.reshape(*a.shape, 2), impl=impl)
        else:
            values[node.outputs[0]] = part.astype(a.dtype).reshape(a.shape)
        begin += a.size


def _counted(keys: Any, sizes: Any) -> tuple[Any, Any]:
    """For so many numbers of each key: the key of each, and which of them it is."""
    ends = np.cumsum(sizes)
    begins, count = (ends - sizes).astype(np.uint32), int(ends[-1])
    if count <= _WRITTEN:
        row = np.repeat(np.arange(len(sizes)), sizes)
        return keys[row], jnp.asarray(np.arange(count, dtype=np.uint32) - begins[row])
    number = jax.lax.iota(jnp.uint32, count)
    row = jnp.searchsorted(jnp.asarray(ends, jnp.uint32), number, side="right", method="scan")  # in little memory
    return keys[row], number - jnp.asarray(begins)[row]
