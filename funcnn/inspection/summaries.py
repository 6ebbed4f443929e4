"""A network as a table: its layers in order, what comes out of each, and how many numbers it holds."""

import io
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from funcnn.core import Layer, Tree, expect_layer, spec


class SummaryRow(NamedTuple):
    """A layer: its ``path``, the ``shape`` of its output, and how many numbers ``params`` and ``state`` hold."""

    path: str
    shape: tuple[int, ...]
    params: int
    state: int


class Summary(NamedTuple):
    """The ``rows`` of a network in order, and the totals; printed as a table."""

    rows: tuple[SummaryRow, ...]
    params: int
    state: int

    def __repr__(self) -> str:
        # A table is drawn only where somebody looks at it.
        from rich.console import Console
        from rich.table import Table

        table = Table("layer", "output", title=None)
        table.add_column("params", justify="right")
        table.add_column("state", justify="right")
        for row in self.rows:
            table.add_row(row.path, str(row.shape), f"{row.params:,}", f"{row.state:,}")
        table.add_section()
        table.add_row("total", "", f"{self.params:,}", f"{self.state:,}")
        console = Console(file=io.StringIO(), width=120)
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip()


def summary(model: Layer, x: Any) -> Summary:
    """The layers of a model, from shapes alone: nothing is initialised and nothing is computed.

    Args:
        model: any layer.
        x: an input, or its shape as ``jax.ShapeDtypeStruct``, or a pytree of either.

    Raises:
        TypeError: ``model`` is not a layer.
        ValueError: ``x`` does not fit; the note of the error names the layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import inspection, layers
        >>> model = layers.serial(layers.dense(8), layers.relu, layers.named("head", layers.dense(2)))
        >>> table = inspection.summary(model, jax.ShapeDtypeStruct((32, 3), jnp.float32))
        >>> [(row.path, row.shape, row.params) for row in table.rows]
        [('dense_0', (32, 8), 32), ('relu_0', (32, 8), 0), ('head', (32, 2), 18)]
        >>> table.params
        50
    """
    expect_layer("summary", model)
    params, state = jax.eval_shape(model.init, jax.random.key(0), spec(x))
    jaxpr = jax.make_jaxpr(lambda p, s, a: model.apply(p, s, a)[0])(params, state, spec(x))
    shapes = list(_scoped(jaxpr.jaxpr, ""))
    rows: list[SummaryRow] = []
    shape: Any = next((a.shape for a in jax.tree.leaves(spec(x))), ())
    for path in _leaves(model, ()):
        # Where a layer computes nothing (dropout at rest, a flat input flattened), what went in comes out.
        name = "/".join(path)
        shape = next((s for scope, s in reversed(shapes) if scope == name or scope.startswith(f"{name}/")), shape)
        rows.append(SummaryRow(name or model.name or model.kind, shape, _count(params, path), _count(state, path)))
    return Summary(tuple(rows), _count(params, ()), _count(state, ()))


def _scoped(jaxpr: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The scope of every operation and the shape of what it makes, also inside loops, branches and what is compiled."""
    for equation in jaxpr.eqns:
        # What a transformation did to a scope, vmap(dense_0), does not change where it is.
        own = re.sub(r"\w+\(|\)", "", str(equation.source_info.name_stack))
        scope = "/".join(part for part in (prefix, own) if part)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _scoped(inner, scope)
        if equation.outvars:
            yield scope, equation.outvars[0].aval.shape


def _leaves(layer: Layer, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if not layer.children:
        yield path
    for name, child in layer.children:
        yield from _leaves(child, (*path, name))


def _count(tree: Tree, path: tuple[str, ...]) -> int:
    for name in path:
        tree = tree.get(name, {})
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
