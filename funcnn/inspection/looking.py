"""Looking at what comes out of the layers of a model, and at the gradients of a loss by it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcnn import checks, trees
from funcnn.core import Layer, Tree, expect_layer
from funcnn.inspection.equations import called, opened, scanned
from funcnn.inspection.outputs import Activations
from funcnn.inspection.passes import evaluated
from funcnn.inspection.slots import ARGUMENT, Traced, traced


def activations(
    model: Layer,
    params: Tree,
    state: Tree,
    x: Any,
    *patterns: str,
    key: Any = None,
    training: bool = False,
) -> Activations:
    """What came out of the layers whose paths match, in one pass of the model.

    Rule: the outputs of a layer are what the operations in its name scope made and others read; nothing is
    instrumented. Computed as one program, they equal what the model computes to rounding, and to the bit under
    ``jax.disable_jit()``. A layer that computes nothing, as dropout at rest, has none; nor has one inside of a ``cond``
    or ``while``.

    Args:
        model: any layer.
        params: as ``result.state.params``.
        state: as ``result.state.model_state``.
        x: an input, or a pytree of them.
        patterns: of paths, such as ``"encoder/*"``; all layers without layers of their own where there are none.
        key: for layers that draw.
        training: whether the layers behave as they do in training.

    Raises:
        TypeError: ``model`` is not a layer.
        ValueError: a pattern matches no layer that computes something.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import inspection, layers
        >>> model = layers.serial(layers.dense(8), layers.relu, layers.named("head", layers.dense(2)))
        >>> x = jax.random.normal(jax.random.key(1), (5, 3))
        >>> params, state = model.init(jax.random.key(0), x)
        >>> found = inspection.activations(model, params, state, x)
        >>> [(path, found[path].shape) for path in found]
        [('dense_0', (5, 8)), ('relu_0', (5, 8)), ('head', (5, 2))]
        >>> found.statistics["relu_0"].smallest
        0.0
    """
    probe = _Probe.of("activations", model, params, state, x, patterns, key, training)
    return probe.records(jax.jit(probe.outputs)({})[1])


def gradients(
    model: Layer,
    params: Tree,
    state: Tree,
    x: Any,
    *patterns: str,
    loss: Callable[[Any], Any],
    key: Any = None,
    training: bool = False,
) -> Activations:
    """The gradients of a loss by what came out of the layers whose paths match.

    Args:
        model: any layer.
        params: as ``result.state.params``.
        state: as ``result.state.model_state``.
        x: an input, or a pytree of them.
        patterns: of paths, such as ``"encoder/*"``; all layers without layers of their own where there are none.
        loss: a pure function from what the model gives to one number.
        key: for layers that draw.
        training: whether the layers behave as they do in training.

    Raises:
        TypeError: ``model`` is not a layer.
        ValueError: a pattern matches no layer that computes something; ``loss`` does not give one number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import inspection, layers
        >>> model = layers.serial(layers.dense(8), layers.relu, layers.dense(2))
        >>> x = jax.random.normal(jax.random.key(1), (5, 3))
        >>> params, state = model.init(jax.random.key(0), x)
        >>> found = inspection.gradients(model, params, state, x, "dense_*", loss=lambda y: (y**2).sum())
        >>> y = model.apply(params, state, x)[0]
        >>> bool(jnp.allclose(found["dense_1"], 2 * y))
        True
    """
    probe = _Probe.of("gradients", model, params, state, x, patterns, key, training)
    if not callable(loss):
        fix = "pass a function of the outputs, such as lambda y: losses.squared_error(y, target).mean()"
        checks.fail("gradients", "loss as a function", type(loss).__name__, fix, TypeError)

    def total(nudges: dict[str, Any]) -> Any:
        value = loss(probe.outputs(nudges)[0])
        if jnp.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            got = f"{jnp.result_type(value)}{jnp.shape(value)}"
            checks.fail("gradients", "a loss that is one floating number", got, "take the mean")
        return value

    shapes = jax.eval_shape(probe.outputs, {})[1]
    smooth = {path: a for path, a in shapes.items() if jnp.issubdtype(a.dtype, jnp.inexact)}
    nudges = {path: jnp.zeros(a.shape, a.dtype) for path, a in smooth.items()}
    found = probe.records(jax.jit(jax.grad(total))(nudges)).arrays
    return Activations(found, dict.fromkeys(found, "gradient"))


# ---- a model with places where one can look --------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where outputs of layers are: slots of a program by path, and those inside of its loops."""

    program: Traced
    found: dict[str, int]
    loops: dict[int, "_Place"]

    def paths(self) -> list[str]:
        """All paths, in the order in which they are computed."""
        order = [(slot, path) for slot, inner in self.loops.items() for path in inner.paths()]
        order += [(slot, path) for path, slot in self.found.items()]
        return [path for _, path in sorted(order, key=lambda pair: pair[0])]

    def operations(self) -> dict[str, str]:
        """What made each."""
        found = {path: self.program.slots[slot].operation for path, slot in self.found.items()}
        for inner in self.loops.values():
            found |= inner.operations()
        return found


class _Probe(NamedTuple):
    """A model, traced, with the places at which one looks."""

    place: _Place
    arguments: list[Any]
    form: Any

    @classmethod
    def of(
        cls,
        where: str,
        model: Layer,
        params: Tree,
        state: Tree,
        x: Any,
        patterns: tuple[str, ...],
        key: Any,
        training: bool,
    ) -> "_Probe":
        expect_layer(where, model)

        def apply(params: Tree, state: Tree, x: Any) -> Any:
            return model.apply(params, state, x, key=key, training=training)[0]

        jaxpr, form = jax.make_jaxpr(apply, return_shape=True)(params, state, x)
        program = traced(jaxpr, [""] * len(jaxpr.in_avals), enters=_enters)
        leaves = tuple("/".join(path) for path, is_leaf in _paths(model, ()) if is_leaf)
        every = _looked_at(program, lambda _: True)
        known = list(dict.fromkeys(path.rpartition(" (")[0] or path for path in every.paths()))
        if not known:
            fix = "pass a model that computes something"
            checks.fail(where, "layers that compute something", "none", fix)
        wanted = trees.chosen(where, known, patterns) if patterns else {p for p in known if p in leaves} or set(known)
        place = _looked_at(program, wanted.__contains__)
        arguments = [jnp.asarray(leaf) for leaf in jax.tree.leaves((params, state, x))]
        return cls(place, arguments, jax.tree.structure(form))

    def outputs(self, nudges: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What the model gives, and what came out at the places, where ``nudges`` are added to it."""
        outputs, found = _evaluated(self.place, self.arguments, nudges)
        return jax.tree.unflatten(self.form, outputs), found

    def records(self, found: Mapping[str, Any]) -> Activations:
        """The arrays in order."""
        made = self.place.operations()
        arrays = {path: found[path] for path in self.place.paths() if path in found}
        return Activations(arrays, {path: made[path] for path in arrays})


def _paths(layer: Layer, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], bool]]:
    yield path, not layer.children
    for name, child in layer.children:
        yield from _paths(child, (*path, name))


def _enters(equation: Any) -> bool:
    """Whether an operation stands for what it holds: not where a rule of its own says what its gradient is."""
    return called(equation) is not None and equation.primitive.name not in ("custom_jvp_call", "custom_vjp_call")


def _looked_at(program: Traced, wants: Callable[[str], bool], around: int = 0) -> _Place:
    """The slots that hold what comes out of the layers that are wanted; ``around`` names of paths are further out."""
    readers: dict[int, list[int]] = {}
    for number, slot in enumerate(program.slots):
        for i in slot.inputs:
            readers.setdefault(i, []).append(number)
    found: dict[str, int] = {}
    loops: dict[int, _Place] = {}
    for number, slot in enumerate(program.slots):
        scopes = slot.place.scopes
        if slot.equation is not None and slot.equation.primitive.name == "scan":
            inner = traced(slot.equation.params["jaxpr"], _no_names(slot.equation), slot.place, _enters)
            place = _looked_at(inner, wants, len(scopes))
            if place.found or place.loops:
                loops[number] = place
        several = slot.equation is not None and len(slot.equation.outvars) > 1
        if slot.operation == ARGUMENT or several or (slot.equation is None and slot.output is None):
            continue
        for depth in range(around + 1, len(scopes) + 1):
            path = "/".join(scopes[:depth])
            outside = number in program.outputs or any(
                program.slots[i].place.scopes[:depth] != scopes[:depth] for i in readers.get(number, ())
            )
            if outside and wants(path):
                count = sum(known.rpartition(" (")[0] == path or known == path for known in found)
                found[f"{path} ({count + 1})" if count else path] = number
    return _Place(program, found, loops)


def _no_names(equation: Any) -> list[str]:
    return [""] * len(opened(equation.params["jaxpr"])[0].invars)


def _evaluated(place: _Place, arguments: Sequence[Any], nudges: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The outputs of a program, and what is in the places."""
    # What a layer gives may be what the one around it gives as well.
    at: dict[int, list[str]] = {}
    for path, slot in place.found.items():
        at.setdefault(slot, []).append(path)
    found: dict[str, Any] = {}

    def look(number: int, operands: list[Any], value: Any) -> Any:
        if number in place.loops:
            outputs, inside = _scanned(place, number, operands, nudges)
            found.update(inside)
            value = outputs[0] if len(outputs) == 1 else outputs
        for path in at.get(number, ()):
            value = value + nudges[path] if path in nudges else value
        found.update(dict.fromkeys(at.get(number, ()), value))
        return value

    values = evaluated(place.program, arguments, look, skips=place.loops.__contains__)
    return [values[i] for i in place.program.outputs], found


def _scanned(
    place: _Place, number: int, operands: list[Any], nudges: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The outputs of a loop, and what is in the places inside, by iteration."""
    inner, params = place.loops[number], place.program.slots[number].equation.params
    fixed, count = scanned(place.program.slots[number].equation)
    consts, carry, over = operands[:fixed], operands[fixed : fixed + count], operands[fixed + count :]
    inside = {path: nudges[path] for path in inner.paths() if path in nudges}

    def step(carry: list[Any], row: tuple[list[Any], dict[str, Any]]) -> tuple[list[Any], Any]:
        outputs, found = _evaluated(inner, [*consts, *carry, *row[0]], row[1])
        return outputs[:count], (outputs[count:], found)

    last, (stacked, found) = jax.lax.scan(
        step, carry, (over, inside), length=params["length"], reverse=params["reverse"]
    )
    return (*last, *stacked), found
