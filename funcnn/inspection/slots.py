"""A jaxpr as a list of slots, each with the operation that fills it and the places of its operands."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal

from funcnn import checks
from funcnn.inspection.equations import Place, called, opened, places

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


# Nodes of a graph.
_MOST = 100_000


def expect_size(where: str, count: int) -> None:
    """Raise where a graph has more nodes than anybody can look at, or the memory can hold."""
    if count > _MOST:
        fix = "put what repeats into jax.lax.scan or layers.repeat, which is one node that opens, or look at a part"
        checks.fail(where, f"at most {_MOST:,} nodes", f"{count:,}", fix)
