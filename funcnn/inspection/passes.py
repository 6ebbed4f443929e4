"""One pass forward through the operations of a jaxpr, and one back: every value, every gradient, and what each sent."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from funcnn import checks
from funcnn.inspection.equations import Place, called, computed, opened, places

ARGUMENT, CONSTANT, OUTPUT, LAYER = "argument", "constant", "output", "layer"
"""What stands as the operation where there is none: a value was given, written down, is one of several that came, or
the whole of a layer made it."""


class Slot(NamedTuple):
    """A place in a program that holds a value: ``inputs`` are the numbers of others before it.

    ``equation`` computes it; of an equation with several outputs, what it holds is a tuple, and ``output`` says which
    of them stands in a slot of its own. ``value`` is that of a constant, and ``within`` the operations of a layer.
    """

    operation: str
    inputs: tuple[int, ...] = ()
    equation: Any = None
    output: int | None = None
    value: Any = None
    place: Place = Place()
    within: Any = None


class Traced(NamedTuple):
    """A program: ``slots`` in an order in which they can be computed, those of the ``outputs``, and names of slots."""

    slots: tuple[Slot, ...]
    outputs: tuple[int, ...]
    names: dict[Any, tuple[int, ...]]


class Passed(NamedTuple):
    """What both passes gave, by slot; ``sent`` goes with its inputs, and is ``None`` where nothing can be sent."""

    values: list[Any]
    gradients: list[Any]
    sent: list[tuple[Any, ...]]


# ---- a jaxpr as slots ------------------------------------------------------------------------------------------------


def traced(
    closed: Any,
    names: Sequence[str],
    around: Place = Place(),  # noqa: B008 (it is a constant)
    enters: Callable[[Any], bool] = lambda _: False,
) -> Traced:
    """A jaxpr, closed or not, whose arguments have these names, with an empty one for those that have none.

    Operations that hold a jaxpr stand for what is in it where ``enters`` says so, and are one slot otherwise.
    """
    new = _Slots([], {})
    arguments = [new.add(Slot(ARGUMENT)) for _ in names]
    for name, number in zip(names, arguments, strict=True):
        if name:
            new.call(name, number)
    outputs = _inlined(new, closed, arguments, around, enters)
    return Traced(tuple(new.slots), tuple(outputs), new.names)


class _Slots(NamedTuple):
    """What is built up."""

    slots: list[Slot]
    names: dict[Any, tuple[int, ...]]

    def add(self, slot: Slot) -> int:
        self.slots.append(slot)
        return len(self.slots) - 1

    def call(self, name: str, number: int) -> None:
        if number not in self.names.get(name, ()):
            self.names[name] = (*self.names.get(name, ()), number)


def _inlined(
    new: _Slots, closed: Any, arguments: Sequence[int], around: Place, enters: Callable[[Any], bool]
) -> list[int]:
    """The slots of a jaxpr whose arguments stand in these, and those of its outputs."""
    jaxpr, constants = opened(closed)
    held = dict(zip(jaxpr.invars, arguments, strict=True))
    constant_of = dict(zip(jaxpr.constvars, constants, strict=True))

    def read(variable: Any, place: Place) -> int:
        if isinstance(variable, Literal):
            return new.add(Slot(CONSTANT, value=variable.val, place=place))
        if variable not in held:
            held[variable] = new.add(Slot(CONSTANT, value=constant_of[variable]))
        return held[variable]

    for equation, place in zip(jaxpr.eqns, places(jaxpr, around), strict=True):
        inputs = [read(variable, place) for variable in equation.invars]
        inner = called(equation)
        if equation.primitive.name == "name":  # says what something is called, and does nothing
            held[equation.outvars[0]] = inputs[0]
            new.call(equation.params["name"], inputs[0])
        elif inner is not None and enters(equation):
            held |= dict(zip(equation.outvars, _inlined(new, inner, inputs, place, enters), strict=True))
        else:
            number = new.add(Slot(_called(equation), tuple(inputs), equation, place=place))
            held |= _held(new, equation, number, place)
    return [read(variable, around) for variable in jaxpr.outvars]


def _held(new: _Slots, equation: Any, number: int, place: Place) -> dict[Any, int]:
    """Where the outputs of an operation stand: of several each has a slot, as far as it is read."""
    if len(equation.outvars) == 1:
        return {equation.outvars[0]: number}
    return {
        variable: new.add(Slot(OUTPUT, (number,), output=i, place=place))
        for i, variable in enumerate(equation.outvars)
        if type(variable).__name__ != "DropVar"
    }


def _called(equation: Any) -> str:
    """What an operation is called: what holds a function, by the name of that."""
    name = equation.params.get("name")
    if isinstance(name, str) and name and not name.startswith("<"):
        return name.lstrip("_")
    inner = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
    if equation.primitive.name in ("custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint", "closed_call"):
        info = getattr(opened(inner)[0], "debug_info", None)
        known = getattr(info, "func_name", "")
        return known if known and not known.startswith("<") else equation.primitive.name
    return equation.primitive.name


# ---- the two passes --------------------------------------------------------------------------------------------------


def passed(
    program: Traced,
    arguments: Sequence[Any],
    cotangents: Sequence[Any] | None,
    computes: Callable[[Slot, list[Any], bool, bool], tuple[Any, Any]] | None = None,
) -> Passed:
    """Both passes; without cotangents of the outputs the forward one alone. ``None`` is one of zeros.

    ``computes`` gives what an operation makes, and what takes the gradients of that to those of its operands; it is
    told whether there is a pass back, and whether an argument asks for the gradient.
    """
    values: list[Any] = []
    backs: list[Callable[[Any], Iterator[Any]] | None] = []
    given = iter(arguments)
    asked = _asked(program) if cotangents is not None else [False] * len(program.slots)
    for number, slot in enumerate(program.slots):
        back = None
        if slot.equation is not None:
            operands = [values[i] for i in slot.inputs]
            value, back = (computes or _computed)(slot, operands, cotangents is not None, asked[number])
        elif slot.output is not None:
            value = values[slot.inputs[0]][slot.output]
        else:
            value = next(given) if slot.operation == ARGUMENT else jnp.asarray(slot.value)
        values.append(value)
        backs.append(back)
    if cotangents is None:
        nothing = [None] * len(values)
        return Passed(values, nothing, [(None,) * len(slot.inputs) for slot in program.slots])
    gradients = [jax.tree.map(_zeros, value) for value in values]
    reached = [False] * len(values)
    for number, cotangent in zip(program.outputs, cotangents, strict=True):
        if cotangent is not None and gradients[number] is not None:
            gradients[number], reached[number] = gradients[number] + cotangent, True
    sent: list[tuple[Any, ...]] = [()] * len(values)
    for number in reversed(range(len(values))):
        slot = program.slots[number]
        sent[number] = _sent(slot, values, gradients[number], reached[number], backs[number])
        for i, share in zip(slot.inputs, sent[number], strict=True):
            if share is None or not reached[number]:
                continue
            reached[i] = True
            if slot.output is None:
                gradients[i] = gradients[i] + share
            else:
                gradients[i] = tuple(share if k == slot.output else g for k, g in enumerate(gradients[i]))
    return Passed(values, gradients, sent)


def evaluated(
    program: Traced,
    arguments: Sequence[Any],
    look: Callable[[int, list[Any], Any], Any],
    skips: Callable[[int], bool],
) -> list[Any]:
    """The values of all slots, each as ``look(number, operands, value)`` gives it back.

    What is skipped is not computed, and ``look`` makes it.
    """
    values: list[Any] = []
    given = iter(arguments)
    for number, slot in enumerate(program.slots):
        operands = [values[i] for i in slot.inputs]
        if slot.equation is not None:
            outputs = [None] if skips(number) else computed(slot.equation, operands)
            value = outputs[0] if len(outputs) == 1 else tuple(outputs)
        elif slot.output is not None:
            value = operands[0][slot.output]
        else:
            value = next(given) if slot.operation == ARGUMENT else jnp.asarray(slot.value)
        values.append(look(number, operands, value))
    return values


def _asked(program: Traced) -> list[bool]:
    """Of each slot whether a gradient by an argument goes through it; what is made of constants alone has none."""
    asked: list[bool] = []
    for slot in program.slots:
        inside = any(asked[i] for i in slot.inputs)
        asked.append(slot.operation == ARGUMENT or (inside and slot.operation != "stop_gradient"))
    return asked


def _zeros(value: Any) -> Any:
    """Where a gradient begins: none for whole numbers, truths and keys."""
    zeros = np.zeros if isinstance(value, np.generic) else jnp.zeros
    return zeros(value.shape, value.dtype) if _is_smooth(value) else None


def _is_smooth(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def _computed(slot: Slot, operands: list[Any], goes_back: bool, is_asked: bool) -> tuple[Any, Any]:
    """What an operation makes, and what takes the gradients of that to those of its operands.

    One without a derivative sends nothing where nobody asks for it.
    """
    smooth = [i for i, operand in enumerate(operands) if _is_smooth(operand)]

    def compute(*chosen: Any) -> tuple[list[Any], list[Any]]:
        every = list(operands)
        for i, operand in zip(smooth, chosen, strict=True):
            every[i] = operand
        outputs = computed(slot.equation, every)
        return [output for output in outputs if _is_smooth(output)], outputs

    if not smooth or not goes_back:
        outputs = computed(slot.equation, operands)
        return outputs[0] if len(outputs) == 1 else tuple(outputs), None
    try:
        _, pull, outputs = jax.vjp(compute, *(operands[i] for i in smooth), has_aux=True)
    except (ValueError, NotImplementedError) as error:
        if not is_asked:
            return _computed(slot, operands, False, False)
        raise _without_gradient(slot, error) from error

    def back(gradients: Any) -> Iterator[Any]:
        try:
            shares = pull([g for g in gradients if g is not None])
        except (ValueError, NotImplementedError) as error:
            if not is_asked:
                return iter([None] * len(operands))
            raise _without_gradient(slot, error) from error
        each = dict(zip(smooth, shares, strict=True))
        return (each.get(i) for i in range(len(operands)))

    return outputs[0] if len(outputs) == 1 else tuple(outputs), back


def _without_gradient(slot: Slot, error: Exception) -> Exception:
    where = "/".join(slot.place.scopes) or "graph"
    first = (str(error).splitlines() or [type(error).__name__])[0]
    source = f" ({slot.place.source})" if slot.place.source else ""
    return ValueError(
        f"{where}: expected operations with a derivative in reverse, got {slot.operation}{source}: {first}; "
        "pass gradients=False to see values alone"
    )


def _sent(slot: Slot, values: list[Any], gradient: Any, is_reached: bool, back: Any) -> tuple[Any, ...]:
    """What a slot sends back to each of its inputs."""
    if slot.output is not None:
        return (gradient,)
    if back is None:
        return (None,) * len(slot.inputs)
    if not is_reached:  # nothing comes of nothing
        return tuple(jax.tree.map(_zeros, values[i]) for i in slot.inputs)
    return tuple(back(gradient if isinstance(gradient, tuple) else (gradient,)))


# ---- what is checked before ------------------------------------------------------------------------------------------


# Nodes of a graph.
_MOST = 100_000


def expect_size(where: str, count: int) -> None:
    """Raise where a graph has more nodes than anybody can look at, or the memory can hold."""
    if count > _MOST:
        fix = "put what repeats into jax.lax.scan or layers.repeat, which is one node that opens, or look at a part"
        checks.fail(where, f"at most {_MOST:,} nodes", f"{count:,}", fix)
