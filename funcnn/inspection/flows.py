"""What goes through the layers of a network, read off its jaxpr: what each gives, and what it keeps for a gradient."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend.core import Literal

from funcnn.core import Layer
from funcnn.inspection.costs import Ledger, Needed, Path, carried, needed
from funcnn.inspection.equations import called, opened, scanned, scopes_of

# The same numbers under another shape or name: nothing new is kept.
_VIEWS = frozenset(
    ("copy", "copy_p", "expand_dims", "name", "optimization_barrier", "reshape", "squeeze", "stop_gradient")
)


def owner(layer: Layer, names: Path) -> Path:
    """The path of the innermost layer that scopes, or the names on the way to a weight, lead to.

    Names that are no children are passed over: a wrapper may put some between, as ``lora`` does with ``base``, and a
    function may have scopes of its own.
    """
    path: Path = ()
    for name in names:
        child = dict(layer.children).get(name)
        if child is not None:
            layer, path = child, (*path, name)
    return path


class Flow(NamedTuple):
    """By the path of a layer: the ``outputs`` that leave it, when it ran ``first``, and the ``loops`` that stand there.

    ``outputs`` are the avals of what is made inside of a layer and read outside of it, in the order in which they are
    made; ``loops`` the lengths of the outermost scans.
    """

    outputs: dict[Path, list[Any]]
    first: dict[Path, int]
    loops: dict[Path, int]


def flow(model: Layer, jaxpr: Any, outputs: Needed, known: Ledger) -> Flow:
    """The flow through the layers of a model, as far as these outputs of its jaxpr need it."""
    found = Flow({}, {}, {})
    _walk(model, jaxpr, outputs, (), found, known)
    return found


def _walk(model: Layer, jaxpr: Any, outputs: Needed, around: Path, found: Flow, known: Ledger) -> None:
    jaxpr = opened(jaxpr)[0]
    inside = owner(model, around)
    lives = needed(jaxpr, outputs, known)[0]
    places = [around + scopes_of(equation.source_info.name_stack)[0] for equation in jaxpr.eqns]
    owners = [owner(model, place) for place in places]
    readers: dict[Any, list[Path]] = {}
    for equation, path, outs in zip(jaxpr.eqns, owners, lives, strict=True):
        for variable in equation.invars if any(outs) else ():
            if not isinstance(variable, Literal):
                readers.setdefault(variable, []).append(path)
    # An output is read outside of all layers that begin in this jaxpr.
    for variable, is_read in zip(jaxpr.outvars, outputs, strict=True):
        if is_read and not isinstance(variable, Literal):
            readers.setdefault(variable, []).append(inside)
    for equation, place, path, outs in zip(jaxpr.eqns, places, owners, lives, strict=True):
        if not any(outs):
            continue
        for depth in range(len(path) + 1):
            found.first.setdefault(path[:depth], len(found.first))
        if equation.primitive.name == "scan":
            found.loops.setdefault(path, equation.params["length"])
        for body, used in _bodies(equation, outs, known):
            _walk(model, body, used, place, found, known)
        for variable in equation.outvars:
            for depth in range(len(inside) + 1, len(path) + 1):
                if any(reader[:depth] != path[:depth] for reader in readers.get(variable, ())):
                    found.outputs.setdefault(path[:depth], []).append(variable.aval)


def _bodies(equation: Any, outputs: Needed, known: Ledger) -> Iterator[tuple[Any, Needed]]:
    """The jaxprs that an operation holds, with what is needed of them."""
    name, inner = equation.primitive.name, called(equation)
    if inner is not None:
        yield inner, outputs
    elif name == "scan":
        yield equation.params["jaxpr"], carried(equation, outputs, known)
    elif name == "cond":
        for branch in equation.params["branches"]:
            yield branch, outputs
    elif name == "while":
        body = equation.params["body_jaxpr"]
        yield body, (True,) * len(opened(body)[0].outvars)


# ---- what is kept for the gradient -----------------------------------------------------------------------------------


def kept(jaxpr: Any, outputs: Needed, gradient: Any) -> Iterator[tuple[Path, Any]]:
    """Of the last outputs, those that the ``gradient`` takes first, the scopes in which each was made, and its aval.

    Those that were given are left out; what is handed out several times, also under other shapes, is kept once.
    """
    jaxpr, behind = opened(jaxpr)[0], opened(gradient)[0]
    # What is the same in each iteration of a loop, a mask, JAX moves out of it, without the scopes around: they are
    # those of the loop in the gradient that reads it.
    loops = [(_variables(e), scopes_of(e.source_info.name_stack)[0]) for e in behind.eqns if e.primitive.name == "scan"]
    first = len(jaxpr.outvars) - len(outputs)
    seen: set[Any] = set()
    known: dict[int, dict[Any, Any]] = {}
    for i, (variable, is_read) in enumerate(zip(jaxpr.outvars[first:], outputs, strict=True)):
        origin = _origin(jaxpr, variable, known) if is_read else None
        if isinstance(origin, _Origin) and origin.identity not in seen:
            seen.add(origin.identity)
            around = next((scopes for read, scopes in loops if behind.invars[i] in read), ())
            is_inside = origin.scopes[:1] == around[:1]
            yield origin.scopes if is_inside else around + origin.scopes, variable.aval


def _variables(equation: Any) -> set[Any]:
    return {v for v in equation.invars if not isinstance(v, Literal)}


class _Origin(NamedTuple):
    """The operation that made a value: the ``scopes`` around it, and what tells it from all others."""

    scopes: Path
    identity: tuple[Any, ...]


def _origin(jaxpr: Any, variable: Any, known: dict[int, dict[Any, Any]]) -> Any:
    """Where a value comes from: an ``_Origin``, or the input, constant or number that it is.

    ``known`` is what made each variable, for each jaxpr that was looked into before.
    """
    if id(jaxpr) not in known:
        known[id(jaxpr)] = {made: equation for equation in jaxpr.eqns for made in equation.outvars}
    makers = known[id(jaxpr)]
    while not isinstance(variable, Literal) and variable in makers:
        equation = makers[variable]
        name = equation.primitive.name
        if name in _VIEWS:
            variable = equation.invars[list(equation.outvars).index(variable)]
            continue
        scopes = scopes_of(equation.source_info.name_stack)[0]
        own = _Origin(scopes, (id(equation), id(variable)))
        body = equation.params["jaxpr"] if name == "scan" else called(equation)
        if body is None:
            return own
        body, i = opened(body)[0], list(equation.outvars).index(variable)
        inner = _origin(body, body.outvars[i], known)
        if isinstance(inner, _Origin):
            # What a scan carries out is one thing, what it stacks another.
            if name == "scan" and i < scanned(equation)[1]:
                return own
            return _Origin(scopes + inner.scopes, (id(equation), *inner.identity))
        if isinstance(inner, Literal) or inner not in body.invars:
            return own
        at = body.invars.index(inner)
        if name == "scan" and at < sum(scanned(equation)):
            return own  # stacked anew for each iteration
        variable = equation.invars[at]
    return variable
