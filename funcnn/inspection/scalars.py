"""Numbers that remember what they were made of, to play with: a thin face on ``graph``."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from funcnn import checks
from funcnn.inspection.arithmetic import both_ways, operation
from funcnn.inspection.graphs import Graph, made
from funcnn.inspection.passes import Passed, passed
from funcnn.inspection.slots import ARGUMENT, CONSTANT, Slot, Traced, expect_size


# eq=False: two values with the same number are two nodes of a graph.
@dataclass(frozen=True, eq=False)
class Value:
    """An immutable number of 64 bits, and what it was made of; made by ``value`` and by what is computed with them.

    It knows ``+ - * / **``, also with plain numbers, and ``exp()``, ``log()``, ``tanh()``, ``sigmoid()``, ``relu()``;
    ``sum`` of Python adds up a list. ``item()`` is the plain number. Nothing is ever written into it: gradients are
    those of the graph that ``backward`` gives.
    """

    operation: str
    inputs: tuple["Value", ...]
    given: float | None = None
    name: str = ""

    def item(self) -> float:
        """The number, as Python has it."""
        return self._number

    @functools.cached_property
    def _number(self) -> float:
        with jax.enable_x64(True):
            for each in _ordered(self):
                if "_number" not in each.__dict__ and each is not self:
                    each.__dict__["_number"] = _computed(each)
            return _computed(self)

    def named(self, name: str) -> "Value":
        """The same number of the same inputs under a name, which ``graph[name]`` finds and pictures show."""
        if not isinstance(name, str) or not name:
            checks.fail("Value.named", "a name", repr(name), 'pass a text such as "n"', TypeError)
        return Value(self.operation, self.inputs, self.given, name)

    def __add__(self, other: "Value | float") -> "Value":
        return _made("+", self, other)

    def __radd__(self, other: "Value | float") -> "Value":
        # What ``sum`` begins with is no part of the sum.
        return self if isinstance(other, int) and other == 0 else _made("+", other, self)

    def __sub__(self, other: "Value | float") -> "Value":
        return _made("-", self, other)

    def __rsub__(self, other: "Value | float") -> "Value":
        return _made("-", other, self)

    def __mul__(self, other: "Value | float") -> "Value":
        return _made("*", self, other)

    def __rmul__(self, other: "Value | float") -> "Value":
        return _made("*", other, self)

    def __truediv__(self, other: "Value | float") -> "Value":
        return _made("/", self, other)

    def __rtruediv__(self, other: "Value | float") -> "Value":
        return _made("/", other, self)

    def __pow__(self, other: "Value | float") -> "Value":
        return _made("**", self, other)

    def __rpow__(self, other: "Value | float") -> "Value":
        return _made("**", other, self)

    def __neg__(self) -> "Value":
        return _made("negative", self)

    def exp(self) -> "Value":
        """``e ** x``."""
        return _made("exp", self)

    def log(self) -> "Value":
        """The natural logarithm."""
        return _made("log", self)

    def tanh(self) -> "Value":
        """``(e ** 2x - 1) / (e ** 2x + 1)``."""
        return _made("tanh", self)

    def sigmoid(self) -> "Value":
        """``1 / (1 + e ** -x)``."""
        return _made("sigmoid", self)

    def relu(self) -> "Value":
        """``max(x, 0)``, with the gradient 0 at 0."""
        return _made("relu", self)

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if form else repr(self)

    # What looks at the number leaves the graph: it has to be asked for, by ``item``.
    def __bool__(self) -> bool:
        return checks.fail("Value", "a number, not a truth", repr(self), "compare numbers: x.item() > 0", TypeError)

    def __lt__(self, other: "Value | float") -> bool:
        fix = "compare numbers, x.item() < 0; or x.relu() for the larger of x and 0"
        return checks.fail("Value", "no comparison, which has no slope", repr(self), fix, TypeError)

    __gt__ = __le__ = __ge__ = __lt__

    # Functions of NumPy refuse it, and leave operators to it.
    __array_ufunc__ = None

    def __getattr__(self, name: str) -> Any:
        hints = {
            "grad": "the gradient is backward(output)[x].gradient",
            "backward": "call backward(output), which gives a graph",
            "data": "the number is x.item()",
        }
        hint = hints.get(name, "the functions of a value are listed in help(Value)")
        raise AttributeError(f"Value: expected one of its attributes, got {name!r}; {hint}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"value({self.item()!r}{f', {self.name!r}' if self.name else ''})"


def value(number: float, name: str = "") -> Value:
    """A number to compute with, whose gradient ``backward`` tells.

    Args:
        number: any real number.
        name: by which the graph knows it, ``graph["x1"]``.

    Example:
        >>> from funcnn.inspection import backward, value
        >>> x = value(3.0, "x")
        >>> y = x * x + 2 * x
        >>> y
        value(15.0)
        >>> backward(y)[x].gradient.item()
        8.0

    Reference: Karpathy, micrograd, https://github.com/karpathy/micrograd; its port to Elixir, in which nothing is
    overwritten either.
    """
    if isinstance(number, Tracer):
        fix = "of functions inside of jit and grad, inspection.graph(f, x) shows every number"
        checks.fail("value", "a number", "what JAX is tracing", fix, TypeError)
    if isinstance(number, (Value, bool)) or not isinstance(number, (int, float, np.number, np.ndarray, jax.Array)):
        checks.fail("value", "a real number", type(number).__name__, "pass a float", TypeError)
    if np.ndim(number) or np.asarray(number).dtype.kind not in "iufOV":  # V is bfloat16, O a large integer
        fix = "make one for each number, or use inspection.graph, which knows arrays"
        checks.fail("value", "a real number", f"{np.asarray(number).dtype}{np.shape(number)}", fix, TypeError)
    if not isinstance(name, str):
        checks.fail("value", "a name", repr(name), 'pass a text such as "x1"', TypeError)
    try:
        return Value("", (), float(number), name)
    except OverflowError:
        return checks.fail("value", "a number that 64 bits can hold", "a larger one", "make it smaller", ValueError)


def backward(output: Value) -> Graph:
    """The graph of all that a number was made of, with the gradient of it by each: ``graph[x].gradient``.

    It is the graph of ``inspection.graph``, and a new one at each call: there is nothing to set to zero.

    Args:
        output: what is differentiated.

    Raises:
        TypeError: it is no ``Value``.

    Example:
        >>> from funcnn.inspection import backward, value
        >>> x, w, b = value(2.0, "x"), value(-3.0, "w"), value(6.5, "b")
        >>> n = (x * w + b).named("n")
        >>> graph = backward(n.tanh())
        >>> graph
        node    operation   value  gradient  inputs
        x       argument        2    -2.359
        w       argument       -3     1.573
        b       argument      6.5    0.7864
        mul 3   mul            -6    0.7864  x, w
        n       add           0.5    0.7864  mul 3, b
        tanh 5  tanh       0.4621         1  n
        >>> round(graph[n].gradient.item(), 4), graph["w"].value.item()
        (0.7864, -3.0)
    """
    if not isinstance(output, Value):
        checks.fail("backward", "a value", type(output).__name__, "compute it from inspection.value", TypeError)
    order = _ordered(output)
    leaves = [each for each in order if not each.inputs]
    expect_size("backward", len(order))
    place = {each: i for i, each in enumerate([*leaves, *(each for each in order if each.inputs)])}
    program = _program(place)
    with jax.enable_x64(True):
        found = passed(program, [np.float64(each.given) for each in leaves], [np.float64(1.0)], both_ways)
    return _graph(program, found, [each.operation == CONSTANT for each in leaves])


def _program(place: dict[Value, int]) -> Traced:
    """The numbers as slots in their order, with what is asked for by name or by ``Value``."""
    slots, names = list[Slot](), dict[Any, tuple[int, ...]]()
    for each, number in place.items():
        inputs = tuple(place[given] for given in each.inputs)
        slots.append(operation(each.operation).slot._replace(inputs=inputs) if inputs else Slot(ARGUMENT))
        for name in (each, each.name) if each.name else (each,):
            names[name] = (*names.get(name, ()), number)
    return Traced(tuple(slots), (len(slots) - 1,), names)


def _graph(program: Traced, found: Passed, are_constant: list[bool]) -> Graph:
    """The graph, in which a plain number of a formula is a constant.

    It is nobody's variable, and the power of a negative number has no slope by its exponent: it has no gradient.
    """
    slots = list(program.slots)
    for i, is_constant in enumerate(are_constant):
        if is_constant:
            slots[i] = Slot(CONSTANT, value=found.values[i])
            found.gradients[i] = None
    for i, slot in enumerate(slots):
        shares = zip(slot.inputs, found.sent[i], strict=True)
        found.sent[i] = tuple(None if slots[k].operation == CONSTANT else share for k, share in shares)
    return made(program._replace(slots=tuple(slots)), found, [np.float64(1.0)])


def _made(operation: str, *inputs: "Value | float") -> Value:
    return Value(operation, tuple(map(_as_value, inputs)))


def _as_value(number: "Value | float") -> Value:
    """A plain number in a formula is a constant of it."""
    return number if isinstance(number, Value) else Value(CONSTANT, (), value(number).given)


def _computed(each: Value) -> float:
    if not each.inputs:
        return float(each.given or 0.0)
    return float(operation(each.operation).forward(*(np.float64(given.item()) for given in each.inputs)))


def _ordered(output: Value) -> list[Value]:
    """All that a number was made of, each after its inputs; without recursion, for sums can be long."""
    order: dict[Value, None] = {}
    open_: list[tuple[Value, int]] = [(output, 0)]
    while open_:
        each, done = open_.pop()
        if each in order:
            continue
        if done < len(each.inputs):
            open_.append((each, done + 1))
            open_.append((each.inputs[done], 0))
        else:
            order[each] = None
    return list(order)
