"""Numbers that remember what they were made of, to play with: a thin face on ``graph``."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.inspection.graphs import Graph, made
from funcnn.inspection.passes import CONSTANT, Passed, Traced, passed, traced
from funcnn.inspection.tracing import name as naming

# What an operation of two or of one number is in JAX.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "+": jax.lax.add,
    "-": jax.lax.sub,
    "*": jax.lax.mul,
    "/": jax.lax.div,
    "**": jax.lax.pow,
    "negative": jax.lax.neg,
    "exp": jax.lax.exp,
    "log": jax.lax.log,
    "tanh": jax.lax.tanh,
    "sigmoid": jax.lax.logistic,
    "relu": jax.nn.relu,
}


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
    if isinstance(number, (Value, bool)) or not isinstance(number, (int, float, np.number, np.ndarray, jax.Array)):
        checks.fail("value", "a real number", type(number).__name__, "pass a float", TypeError)
    if np.ndim(number) or np.iscomplexobj(number):
        fix = "make one for each number, or use inspection.graph, which knows arrays"
        checks.fail("value", "a real number", f"{np.asarray(number).dtype}{np.shape(number)}", fix, TypeError)
    if not isinstance(name, str):
        checks.fail("value", "a name", repr(name), 'pass a text such as "x1"', TypeError)
    return Value("", (), float(number), name)


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
    place = {each: i for i, each in enumerate(order)}
    structure = tuple((each.operation, tuple(place[given] for given in each.inputs)) for each in order)
    given = [each.given for each in order if not each.inputs]
    with jax.enable_x64(True):
        program = _program(structure)
        found = program.run(np.asarray(given, np.float64))
    return _graph(program.traced, found, order)


class _Program(NamedTuple):
    """The operations of a number, whatever the numbers that it was made of, and both passes through them."""

    traced: Traced
    run: Callable[[Any], Passed]


# Training computes the same expression again and again, from other numbers.
@functools.lru_cache(maxsize=64)
def _program(structure: tuple[tuple[str, tuple[int, ...]], ...]) -> _Program:
    count = sum(not inputs for _, inputs in structure)

    def compute(*numbers: Any) -> Any:
        each, left = list[Any](), iter(numbers)
        for i, (operation, inputs) in enumerate(structure):
            result = _OPERATIONS[operation](*(each[k] for k in inputs)) if inputs else next(left)
            each.append(naming(result, f"#{i}"))
        return each[-1]

    zeros = [jax.ShapeDtypeStruct((), np.float64)] * count
    program = traced(jax.make_jaxpr(compute)(*zeros), [""] * count)

    @jax.jit
    def passes(numbers: Any) -> tuple[Any, Any, Any]:
        found = passed(program, list(numbers), [jnp.ones((), np.float64)])
        sent = [share for shares in found.sent for share in shares]
        return jnp.stack(found.values), jnp.stack(found.gradients), jnp.stack(sent) if sent else jnp.zeros(0)

    def run(numbers: Any) -> Passed:
        values, gradients, sent = (np.asarray(column) for column in passes(numbers))
        shares = iter(sent)
        return Passed(list(values), list(gradients), [tuple(next(shares) for _ in s.inputs) for s in program.slots])

    return _Program(program, run)


def _graph(program: Traced, found: Passed, order: Sequence[Value]) -> Graph:
    """The graph with what is asked for by name or by ``Value``, and plain numbers as constants."""
    slots, names = list(program.slots), dict[Any, tuple[int, ...]]()
    for i, each in enumerate(order):
        number = program.names[f"#{i}"]
        names[each] = number
        if each.name:
            names[each.name] = (*names.get(each.name, ()), *number)
        if each.operation == "constant":
            slots[number[0]] = slots[number[0]]._replace(operation=CONSTANT)
            found.gradients[number[0]] = None
    # A plain number in a formula is nobody's variable, and the power of a negative number has no slope by its exponent.
    for i, slot in enumerate(slots):
        shares = zip(slot.inputs, found.sent[i], strict=True)
        found.sent[i] = tuple(None if slots[k].operation == CONSTANT else share for k, share in shares)
    return made(program._replace(slots=tuple(slots), names=names), found, [np.ones(())])


def _made(operation: str, *inputs: "Value | float") -> Value:
    return Value(operation, tuple(map(_as_value, inputs)))


def _as_value(number: "Value | float") -> Value:
    """A plain number in a formula is a constant of it."""
    return number if isinstance(number, Value) else Value("constant", (), value(number).given)


def _computed(each: Value) -> float:
    if not each.inputs:
        return float(each.given or 0.0)
    return float(_OPERATIONS[each.operation](*(jnp.asarray(i.item(), np.float64) for i in each.inputs)))


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
