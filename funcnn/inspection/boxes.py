"""What a box of a graph holds, as a graph of its own: a function that was called, a branch, an iteration of a loop."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr

from funcnn import checks
from funcnn.inspection.equations import called, opened, scanned
from funcnn.inspection.folds import unfolded
from funcnn.inspection.graphs import Graph, Node, made
from funcnn.inspection.passes import passed
from funcnn.inspection.slots import expect_size, traced

# Their gradients are those of a rule, and not of the operations that they hold.
_RULES = ("custom_jvp_call", "custom_vjp_call")


def opened_box(node: Node, operands: Sequence[Any], iteration: int | None) -> Graph:
    """What is inside of a node, with the values that it had and the gradients that came to it."""
    if node.slot.within is not None:
        if iteration is not None:
            checks.fail("graph.open", "no iteration for a layer", str(iteration), "leave it out", TypeError)
        return made(*unfolded(node.slot.within))
    equation = node.slot.equation
    if equation is None or not node.is_box:
        checks.fail("graph.open", "a node that holds operations", f"{node.label}, which is one", "leave it", TypeError)
    kind = equation.primitive.name
    if (kind in ("scan", "while")) != (iteration is not None):
        got = "none" if iteration is None else f"iteration {iteration} of {node.label}, which is no loop"
        fix = "pass graph.open(node, 0) for the first" if iteration is None else "leave it out"
        checks.fail("graph.open", "an iteration for a loop, and for nothing else", got, fix, TypeError)
    cotangents = node.gradient if isinstance(node.gradient, tuple) else (node.gradient,)
    if kind == "scan":
        return _of_scan(node, operands, _whole("iteration", iteration), cotangents)
    if kind == "while":
        return _of_while(node, operands, _whole("iteration", iteration))
    if kind == "cond":
        branches = equation.params["branches"]
        taken = int(np.clip(int(operands[0]), 0, len(branches) - 1))
        return _graph(node, branches[taken], operands[1:], cotangents)
    return _graph(node, called(equation), operands, None if kind in _RULES else cotangents)


def _whole(name: str, value: Any) -> int:
    return checks.expect_count("graph.open", name, value, minimum=0)


def _graph(node: Node, inner: Any, arguments: Sequence[Any], cotangents: Sequence[Any] | None) -> Graph:
    jaxpr = opened(inner)[0]
    names = getattr(getattr(jaxpr, "debug_info", None), "arg_names", None) or ()
    names = [str(name or "") for name in names] if len(names) == len(jaxpr.invars) else [""] * len(jaxpr.invars)
    program = traced(inner, names, node.slot.place)
    expect_size("graph.open", len(program.slots))
    if all(c is None for c in cotangents or ()):
        cotangents = None
    return made(program, passed(program, arguments, cotangents), cotangents)


# ---- loops -----------------------------------------------------------------------------------------------------------


def _of_scan(node: Node, operands: Sequence[Any], iteration: int, cotangents: Sequence[Any]) -> Graph:
    """One iteration: the carry that came to it, and what the later ones send back to the carry that it makes."""
    params: Any = node.slot.equation.params  # type: ignore[union-attr]
    length, body = params["length"], params["jaxpr"]
    fixed, count = scanned(node.slot.equation)
    if iteration >= length:
        fix = "count from 0"
        checks.fail("graph.open", f"an iteration of the {length} of {node.label}", str(iteration), fix)
    jaxpr, constants = opened(body)
    order = range(length)[::-1] if params["reverse"] else range(length)
    turn = order.index(iteration)
    consts, carry, over = operands[:fixed], list(operands[fixed : fixed + count]), operands[fixed + count :]

    def rows(indices: range) -> list[Any]:
        return [a[np.asarray(indices, np.int32)] for a in over]

    def folded(carry: list[Any], indices: range) -> list[Any]:
        def step(carry: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
            outputs = eval_jaxpr(jaxpr, constants, *consts, *carry, *row)
            return outputs[:count], outputs[count:]

        return list(jax.lax.scan(step, carry, rows(indices), length=len(indices))) if indices else [carry, []]

    carry = folded(carry, order[:turn])[0] if turn else carry
    row = [a[iteration] for a in over]
    later = order[turn + 1 :]
    outputs = eval_jaxpr(jaxpr, constants, *consts, *carry, *row)
    ends, stacked = list(cotangents[:count]), list(cotangents[count:])
    back = _sent_back(lambda carry: folded(carry, later), outputs[:count], ends, stacked, later)
    return _graph(node, body, [*consts, *carry, *row], [*back, *(None if c is None else c[iteration] for c in stacked)])


def _sent_back(rest: Any, carry: list[Any], ends: list[Any], stacked: list[Any], later: range) -> list[Any]:
    """What the iterations that follow send back to the carry of one."""
    if not later or all(c is None for c in (*ends, *stacked)):
        return ends
    smooth = [i for i, a in enumerate(carry) if jnp.issubdtype(a.dtype, jnp.inexact)]

    def run(*chosen: Any) -> tuple[list[Any], list[Any]]:
        every = list(carry)
        for i, a in zip(smooth, chosen, strict=True):
            every[i] = a
        after, out = rest(every)
        kept = [a for a, c in zip(after, ends, strict=True) if c is not None]
        return kept, [a for a, c in zip(out, stacked, strict=True) if c is not None]

    _, pull = jax.vjp(run, *(carry[i] for i in smooth))
    rows = [c[np.asarray(later, np.int32)] for c in stacked if c is not None]
    shares = pull(([c for c in ends if c is not None], rows))
    back: list[Any] = [None] * len(carry)
    for i, share in zip(smooth, shares, strict=True):
        back[i] = share
    return back


def _of_while(node: Node, operands: Sequence[Any], iteration: int) -> Graph:
    """One iteration, forward alone: a loop of unknown length has no pass back."""
    params = node.slot.equation.params
    asks, body = params["cond_jaxpr"], params["body_jaxpr"]
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    asked, constants, carry = operands[:first], operands[first:last], list(operands[last:])

    def call(closed: Any, *values: Any) -> list[Any]:
        jaxpr, held = opened(closed)
        return list(eval_jaxpr(jaxpr, held, *values))

    for i in range(iteration + 1):
        if not bool(call(asks, *asked, *carry)[0]):
            fix = "count from 0"
            checks.fail("graph.open", f"an iteration of the {i} of {node.label}", str(iteration), fix)
        if i < iteration:
            carry = call(body, *constants, *carry)
    return _graph(node, body, [*constants, *carry], None)
