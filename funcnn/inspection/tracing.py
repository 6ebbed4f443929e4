"""From a function to its graph."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from funcnn import checks
from funcnn.inspection.graphs import Graph, made
from funcnn.inspection.nonfinite import expect_call, leaves_of
from funcnn.inspection.passes import passed
from funcnn.inspection.slots import expect_size, traced


def name(x: Any, name: str) -> Any:
    """``x``, under a name by which ``graph`` knows it; nothing is computed, and elsewhere it makes no difference.

    Args:
        x: an array inside of a function, or a pytree of them.
        name: any text.

    Example:
        >>> from funcnn import inspection
        >>> graph = inspection.graph(lambda x: inspection.name(x * x, "square") + 1, 3.0)
        >>> graph["square"].value.item()
        9.0

    Reference: ``jax.ad_checkpoint.checkpoint_name``, whose names serve the policies of ``jax.checkpoint`` as well.
    """
    if not isinstance(name, str) or not name:
        checks.fail("inspection.name", "a name", repr(name), 'pass a text such as "n"', TypeError)
    return checkpoint_name(x, name)


def graph(f: Callable[..., Any], *args: Any, cotangent: Any = None, gradients: bool = True) -> Graph:
    """Every operation of ``f(*args)`` with its value, and the gradient of the output by it.

    Rule: the operations are those that JAX traces, its jaxpr; nothing is instrumented. One pass goes forward and
    computes each of them, one goes back: a node sends to each of its inputs the gradient of the output by that input
    through this node alone, and the gradient of a node is the sum of what its consumers sent. What holds a program of
    its own (a function under ``jit``, ``checkpoint``, ``custom_jvp`` or ``custom_vjp``, a ``scan``, ``while`` or
    ``cond``) is one node, a box, which ``graph.open(node)`` opens.

    Args:
        f: a pure function. The nodes of its arguments have the names of its parameters; of a pytree, paths below.
        args: arrays, numbers, or pytrees of them; close over what is static.
        cotangent: of what ``f`` returns, an array or pytree like it; 1 where that is one number.
        gradients: ``False`` for values alone, for instance where a ``while`` loop has no gradient.

    Raises:
        TypeError: ``f`` is not a function, or JAX is tracing.
        ValueError: ``f`` does not return one number, and there is no ``cotangent``; an operation has no gradient; there
            are more than 100,000 nodes.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import inspection
        >>> def neuron(x, w, b):
        ...     return jnp.tanh(inspection.name(x * w + b, "n"))
        >>> graph = inspection.graph(neuron, 0.5, -1.0, 0.5)
        >>> graph
        node      operation     value  gradient  inputs
        x         argument        0.5        -1
        w         argument         -1       0.5
        b         argument        0.5         1
        mul 3     mul            -0.5         1  x, w
        n         add               0         1  mul 3, b
        tanh 5    tanh              0         1  n
        >>> graph["w"].gradient.item()
        0.5

    Reference: Karpathy, micrograd, https://github.com/karpathy/micrograd, where each number keeps its parents; here the
    jaxpr does.
    """
    expect_call("graph", f, args)
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    expect_size("graph", len(jaxpr.eqns))  # before they are taken apart, for a million take gigabytes
    leaves = list(leaves_of(f, args))
    arguments = [jnp.asarray(leaf, aval.dtype) for (_, leaf), aval in zip(leaves, jaxpr.in_avals, strict=True)]
    program = traced(jaxpr, [path for path, _ in leaves])
    expect_size("graph", len(program.slots))
    cotangents = _cotangents(shapes, cotangent) if gradients else None
    return made(program, passed(program, arguments, cotangents), cotangents)


def _cotangents(shapes: Any, cotangent: Any) -> list[Any]:
    """What the pass back begins with, for each output."""
    outputs = jax.tree.leaves(shapes)
    if cotangent is None:
        if len(outputs) != 1 or outputs[0].shape or not jnp.issubdtype(outputs[0].dtype, jnp.floating):
            got = ", ".join(f"{a.dtype}{a.shape}" for a in outputs) or "nothing"
            fix = "sum it up, or pass cotangent, or gradients=False to see values alone"
            checks.fail("graph", "a function that returns one floating number", got, fix)
        return [jnp.ones((), outputs[0].dtype)]
    given = jax.tree.leaves(cotangent)
    form = jax.tree.structure(shapes)
    if jax.tree.structure(cotangent) != form:
        fix = "pass one of the form of what the function returns"
        checks.fail("graph", f"cotangent as {form}", f"{jax.tree.structure(cotangent)}", fix)
    for a, b in zip(given, outputs, strict=True):
        kind = np.asarray(a).dtype.kind
        if kind in "OSU" or (kind == "c" and not jnp.issubdtype(b.dtype, jnp.complexfloating)):
            fix = "pass numbers, real ones for a real output"
            checks.fail("graph", f"cotangent of {b.dtype}{b.shape}", f"{np.asarray(a).dtype}", fix, TypeError)
    if any(np.shape(a) != b.shape for a, b in zip(given, outputs, strict=True)):
        fix = "pass one of the form of what the function returns"
        checks.fail("graph", f"cotangent of {[a.shape for a in outputs]}", f"{[np.shape(a) for a in given]}", fix)
    return [
        jnp.asarray(a, b.dtype) if jnp.issubdtype(b.dtype, jnp.inexact) else None
        for a, b in zip(given, outputs, strict=True)
    ]
