"""What each layer of a model holds, gives and costs, by its path, read off three programs that are traced alone."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr

from funcnn.core import Layer, Tree
from funcnn.inspection.costs import Counted, Ledger, Path, ledger, needed, operations
from funcnn.inspection.flows import Flow, flow, kept, owner

# What these hold runs in a loop of theirs.
_LOOPING = ("repeat", "recurrent")
# Their children all get what they get themselves. In a network nobody knows, in others each gets what came before it.
_SIDE_BY_SIDE = ("add", "concatenate", "condition", "multiply", "parallel")


class Program(NamedTuple):
    """What was read off a model whose root is shown as ``name``: paths are those of its layers, ``()`` the root.

    ``paths`` come in order of execution, groups after what they hold, each with whether it is a group. The ``columns``
    are numbers of params, of state, bytes, operations forward and backward, and bytes of activations.
    """

    name: str
    paths: tuple[tuple[Path, bool], ...]
    columns: tuple[Counter[Path], ...]
    outputs: Mapping[Path, tuple[jax.ShapeDtypeStruct, ...]]
    times: Mapping[Path, int]
    params: Tree
    notes: tuple[str, ...]


def read(model: Layer, x: Tree, training: bool) -> Program:
    """A model on inputs of these shapes: it is initialised and applied once each, with shapes alone."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(model.init, key, x)

    def applied(params: Tree, state: Tree, x: Any, key: Any) -> tuple[Any, Tree]:
        # Without training there is no key: a layer that asked for one then would be at fault.
        return model.apply(params, state, x, key=key if training else None, training=training)

    jaxpr, (y, new) = jax.make_jaxpr(applied, return_shape=True)(params, state, x, key)
    counts = len(jax.tree.leaves(y)), len(jax.tree.leaves(new))
    known = ledger()
    forward = operations(jaxpr, (True,) * sum(counts), known)
    both, activations = _differentiated(jaxpr, (params, state, x, key), counts[0], known)
    found = flow(model, jaxpr, (True,) * counts[0] + (False,) * counts[1], known)
    ahead, backward = _by_layer(model, forward.operations.items(), found.loops), Counter[Path]()
    if both is not None:
        # Less where JAX moves out of a loop what is the same each time.
        together = _by_layer(model, both.operations.items(), found.loops)
        backward = Counter({path: max(0, number - ahead[path]) for path, number in together.items()})
    name = model.name or model.kind
    notes = forward.notes | (both.notes if both is not None else frozenset())
    return Program(
        name,
        tuple(_paths(model, (), found.first)),
        (*_held(model, params, state), ahead, backward, _by_layer(model, activations, found.loops)),
        _outputs(model, found, x, y),
        dict(_times(model, (), 1, found.loops)),
        params,
        tuple(sorted({f"{'/'.join(owner(model, scopes)) or name}: {note}" for scopes, note in notes})),
    )


def _differentiated(
    jaxpr: Any, given: tuple[Tree, ...], outputs: int, known: Ledger
) -> tuple[Counted | None, list[tuple[Path, int]]]:
    """The operations of value and gradient together, and the bytes that are kept from one for the other."""
    leaves = jax.tree.leaves(given)
    trained = [i for i, leaf in enumerate(jax.tree.leaves(given[0])) if is_trained(leaf)]
    smooth = [i for i, aval in enumerate(jaxpr.out_avals[:outputs]) if is_trained(aval)]
    others = [i for i in range(len(jaxpr.out_avals)) if i not in smooth]
    if not trained or not smooth:
        return None, []

    def linearized(leaves: list[Any]) -> Any:
        def applied(moved: list[Any]) -> tuple[list[Any], list[Any]]:
            ins = [*leaves]
            for i, leaf in zip(trained, moved, strict=True):
                ins[i] = leaf
            outs = eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *ins)
            return [outs[i] for i in smooth], [outs[i] for i in others]

        y, back, rest = jax.vjp(applied, [leaves[i] for i in trained], has_aux=True)
        return y, rest, back

    ahead, (y, _, back) = jax.make_jaxpr(linearized, return_shape=True)(leaves)
    behind = jax.make_jaxpr(lambda back, y: back(y))(back, y)
    whole = (True,) * len(behind.out_avals)
    is_read = needed(behind, whole, known)[1][: len(jax.tree.leaves(back))]
    first = operations(ahead, (*(True for _ in jaxpr.out_avals), *is_read), known)
    second = operations(behind, whole, known)
    activations = kept(ahead, is_read, behind)
    counted = Counted(first.operations + second.operations, first.notes | second.notes)
    return counted, [(scopes, bytes_of(aval)) for scopes, aval in activations]


def is_trained(leaf: Any) -> bool:
    """Whether there is a gradient by such a leaf: not by integers, and not by keys."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def bytes_of(leaf: Any) -> int:
    """The bytes of an array of this shape and dtype, also of one of keys."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize


# ---- by layer --------------------------------------------------------------------------------------------------------


def _by_layer(model: Layer, of: Any, loops: Mapping[Path, int]) -> Counter[Path]:
    found: Counter[Path] = Counter()
    for names, number in of:
        found[_owner(model, names, loops)] += number
    return found


def _owner(model: Layer, names: Path, loops: Mapping[Path, int]) -> Path:
    """The layer that names lead to, also those that begin inside of a loop.

    What is the same in each iteration, a mask, JAX moves out of the loop for the gradient, without the names around it.
    """
    path = owner(model, names)
    if path or not names:
        return path
    inside = {(*loop, *found) for loop in loops if (found := owner(_at(model, loop), names))}
    return inside.pop() if len(inside) == 1 else ()


def _at(layer: Layer, path: Path) -> Layer:
    for name in path:
        layer = dict(layer.children)[name]
    return layer


def _held(model: Layer, params: Tree, state: Tree) -> tuple[Counter[Path], ...]:
    """By layer, how many numbers its params and its state are, and the bytes of both."""
    named = [
        [(tuple(str(getattr(part, "key", part)) for part in path), leaf) for path, leaf in jax.tree.leaves_with_path(t)]
        for t in (params, state)
    ]
    numbers = [_by_layer(model, ((path, math.prod(leaf.shape)) for path, leaf in leaves), {}) for leaves in named]
    return *numbers, _by_layer(model, ((path, bytes_of(leaf)) for leaves in named for path, leaf in leaves), {})


def _paths(layer: Layer, path: Path, first: Mapping[Path, int]) -> Iterator[tuple[Path, bool]]:
    # What computes nothing stands where it was written, after the one before it.
    at, order = -1, list[int]()
    for name, _ in layer.children:
        at = first.get((*path, name), at)
        order.append(at)
    for i in sorted(range(len(order)), key=order.__getitem__):
        name, child = layer.children[i]
        yield from _paths(child, (*path, name), first)
    yield path, bool(layer.children)


def _times(layer: Layer, path: Path, times: int, loops: Mapping[Path, int]) -> Iterator[tuple[Path, int]]:
    yield path, times
    for name, child in layer.children:
        own = loops.get((*path, name), 1) if layer.kind in _LOOPING else 1
        yield from _times(child, (*path, name), times * own, loops)


_Specs = tuple[jax.ShapeDtypeStruct, ...]


def _outputs(model: Layer, found: Flow, x: Tree, y: Tree) -> dict[Path, _Specs]:
    """What comes out of each layer: of one that computes nothing, dropout at rest, what went in."""
    outputs: dict[Path, _Specs] = {}

    def through(layer: Layer, path: Path, given: _Specs) -> _Specs:
        at, together = given, list[jax.ShapeDtypeStruct]()
        apart = layer.kind == "parallel" and len(given) == len(layer.children)
        for i, (name, child) in enumerate(layer.children):
            if layer.kind == "network":
                at = ()
            elif layer.kind in _SIDE_BY_SIDE or name == "shortcut":
                at = given[i : i + 1] if apart else given
            at = through(child, (*path, name), at)
            together += at
        made = tuple(jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in found.outputs.get(path, ()))
        outputs[path] = made or (tuple(together) if layer.kind in _SIDE_BY_SIDE else at)
        return outputs[path]

    through(model, (), _features(x))
    return outputs | {(): _features(y)}


def _features(x: Tree) -> _Specs:
    return tuple(jax.tree.leaves(x["x"] if isinstance(x, dict) and "x" in x else x))
