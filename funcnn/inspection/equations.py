"""The operations of a jaxpr one by one: what each computes, which of them hold others, and where each one stands."""

from itertools import groupby
from typing import Any, NamedTuple

from jax.extend import source_info_util
from jax.extend.core import Literal

# Their one jaxpr is computed with their own operands, so it can stand in their place. All else, a kernel of Pallas or
# a solver, stays one operation.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")

# What a name stack is made of: scopes, and what transformations did to them.
_Scope = type(source_info_util.new_name_stack("scope").stack[0])
_RECOMPUTED = "rematted_computation"  # a scope that jax.checkpoint adds


class Place(NamedTuple):
    """Where an operation stands: the ``scopes`` around it, the line it comes from, and the iteration of each loop.

    ``is_backward`` says that it serves a gradient alone, and ``goes_back`` of each of its outputs that this one does.
    """

    scopes: tuple[str, ...] = ()
    is_backward: bool = False
    source: str = ""
    iterations: tuple[int, ...] = ()
    goes_back: tuple[bool, ...] = ()


def places(jaxpr: Any, around: Place) -> list[Place]:
    """The place of each operation of a jaxpr, for which ``around`` is the operation that holds it.

    What serves a gradient alone is transposed, or is read by nothing else: the derivative of a square root,
    ``0.5 / sqrt(x)``, is computed where JAX linearises, on the way forward. Several such operations in a row are known
    by the line and column that they share, so that not all that a gradient is made of belongs to it.
    """
    goes_back = around.goes_back or (False,) * len(jaxpr.outvars)
    # Of each variable, who reads it: True for a gradient, False for others, or the line that serves a gradient.
    readers: dict[Any, list[Any]] = {}
    for variable, back in zip(jaxpr.outvars, goes_back, strict=True):
        _read(readers, [variable], back)
    found: list[Place] = []
    for equation in reversed(jaxpr.eqns):
        scopes, is_transposed = scopes_of(equation.source_info.name_stack)
        line = source_info_util.summarize(equation.source_info)
        read = [readers.get(variable, []) for variable in equation.outvars]
        back = [all(reader is True or reader == (scopes, line) for reader in each) for each in read]
        alone = is_transposed or (any(read) and all(back))
        _read(readers, equation.invars, is_transposed or (alone and (scopes, line)))
        # Of what holds a jaxpr each output tells where what leads to it belongs.
        is_backward = is_transposed if holds_a_jaxpr(equation) else alone
        source = _source(line) or around.source
        found.append(
            Place(around.scopes + scopes, around.is_backward or is_backward, source, around.iterations, tuple(back))
        )
    return found[::-1]


def _read(readers: dict[Any, list[Any]], variables: list[Any], reader: Any) -> None:
    for variable in variables:
        if not isinstance(variable, Literal):
            readers.setdefault(variable, []).append(reader)


def computed(equation: Any, values: list[Any]) -> list[Any]:
    """The outputs of an operation from its inputs, as JAX computes them outside of ``jit``."""
    primitive = equation.primitive
    with equation.ctx.manager:  # settings that held where it was traced
        outputs = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return list(outputs) if primitive.multiple_results else [outputs]


def holds_a_jaxpr(equation: Any) -> bool:
    """Whether an operation is a program of its own that is known how to look into."""
    return equation.primitive.name in (*_CALLS, "cond", "scan", "while")


def called(equation: Any) -> Any:
    """The jaxpr that an operation computes with its operands, or ``None`` where it does something of its own."""
    if equation.primitive.name not in _CALLS:
        return None
    return equation.params["jaxpr"] if "jaxpr" in equation.params else equation.params.get("call_jaxpr")


def scanned(equation: Any) -> tuple[int, int]:
    """How many of the operands of a ``scan`` are constants, and how many are carried.

    The parameters that say so have other names in other versions of JAX: what is stacked has one axis more outside
    than inside.
    """
    inner = opened(equation.params["jaxpr"])[0]
    stacked = sum(a.aval.ndim > b.aval.ndim for a, b in zip(equation.invars, inner.invars, strict=True))
    carried = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.outvars, inner.outvars, strict=True))
    return len(equation.invars) - stacked - carried, carried


def opened(jaxpr: Any) -> tuple[Any, list[Any]]:
    """A jaxpr, closed or not, as one with variables for its constants, and these constants."""
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def last_uses(jaxpr: Any) -> list[list[Any]]:
    """For each operation of a jaxpr, the variables that nothing after it reads."""
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    lasts: list[list[Any]] = []
    for equation in reversed(jaxpr.eqns):
        variables = {v for v in (*equation.invars, *equation.outvars) if not isinstance(v, Literal)}
        lasts.append(list(variables - kept))
        kept |= variables
    return lasts[::-1]


def scopes_of(stack: Any) -> tuple[tuple[str, ...], bool]:
    """The names of a stack, and whether it was transposed: ``transpose(jvp(a))/b`` is ``a/b`` in the backward pass."""
    names: tuple[str, ...] = ()
    for is_scope, run in groupby(stack.stack, lambda part: isinstance(part, _Scope)):
        if is_scope:
            more = tuple(part.name for part in run if part.name != _RECOMPUTED)
            # A checkpoint is transposed under the name that it has already: transpose(jvp(a))/jvp(a).
            names = more if more[: len(names)] == names else names + more
    return names, any(part.name == "transpose" and not isinstance(part, _Scope) for part in stack.stack)


def _source(line: str) -> str:
    """``"file.py:12 (function)"`` from ``"path/file.py:12:34 (outer.<locals>.function)"``, empty without a line."""
    where, _, function = line.rpartition(" (")
    file, _, position = where.replace("\\", "/").rpartition("/")[2].partition(":")
    name = function.removesuffix(")").rpartition(".")[2]
    return f"{file}:{position.partition(':')[0]} ({name})" if position else ""
