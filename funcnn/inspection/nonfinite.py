"""The operation to blame for a NaN or an infinity: a function is computed operation by operation, from its jaxpr."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jax.extend.core import Literal

from funcnn import checks
from funcnn.inspection.equations import Place, called, computed, last_uses, opened, places, scanned
from funcnn.inspection.findings import ARGUMENT, CONSTANT, NonFinite, finding, has_finite, has_nan, is_finite, is_number

# How sure it is that an origin is to blame. A NaN that was given or numbers that an operation made bad: sure. An
# infinity that was given may be there on purpose, the best loss so far; one written down is likely to, a mask.
_SURE, _GIVEN, _WRITTEN = range(3)


class _Origin(NamedTuple):
    """Where bad numbers come from: what is surest comes first, and then what was computed first."""

    doubt: int
    order: int
    finding: NonFinite


class _Value(NamedTuple):
    """What a variable holds, and the first origin of what is bad in it: ``None`` where it is finite, or a constant."""

    value: Any
    origin: _Origin | None = None


def first_nonfinite(f: Callable[..., Any], *args: Any) -> NonFinite | None:
    """The first operation of ``f(*args)`` that made a NaN or an infinity, or ``None`` where all outputs are finite.

    Rule: to blame is the first operation, in order of execution, that made bad numbers out of good ones, or NaN out of
    infinities that the program holds on purpose, such as the ``-inf`` of a mask. It counts only where the damage
    reaches an output, every operation on the way making something bad out of something bad; an argument that holds NaN
    comes before all operations, and an infinity that was given or written down after all.

    So numbers that turn bad and do no harm are not reported, whether a ``where`` drops them or a softmax gives them
    no weight. Whether an operation with bad operands would have made bad numbers anyway is found by computing it again
    with an ordinary number, 0.5, in their place.

    Functions under ``jit``, ``custom_jvp``, ``custom_vjp`` and ``checkpoint`` are entered, and so is the branch that a
    ``cond`` takes. A ``scan`` or ``while_loop`` is computed as a whole, and once more one iteration at a time where
    what came out is bad; a callback in it is called again. What else holds a program of its own (``shard_map``, Pallas
    kernels, solvers) is one operation.

    Operation by operation is slower than compiled, and not equal to the last bit: a number just beyond the largest may
    be found in one and not in the other.

    Args:
        f: a pure function; its outputs are any pytree. Nothing about layers or training is asked of it.
        args: arrays, or pytrees of them; close over what is static.

    Raises:
        TypeError: ``f`` is not a function, or is called inside of another that JAX traces.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import inspection, layers
        >>> model = layers.serial(layers.relu, layers.named("entropy", layers.function(lambda x: -x * jnp.log(x))))
        >>> found = inspection.first_nonfinite(lambda x: model.apply({}, {}, x)[0], jnp.array([0.5, -1.0, 2.0]))
        >>> found.operation, found.path, found.kind, found.count, found.size
        ('log', 'entropy', 'infinity', 1, 3)
        >>> str(found)
        'log in entropy (...) made 1 of 3 numbers infinite, from values between 0 and 2 (1 of them 0)'

    Reference: ``jax_debug_nans``, which stops at the first NaN whether it does harm or not and knows no layers, and
    ``torch.autograd.detect_anomaly``, for the backward pass.
    """
    expect_call("first_nonfinite", f, args)
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    order = itertools.count()
    given = [
        _given(path, leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf, aval.dtype), order)
        for (path, leaf), aval in zip(leaves_of(f, args), jaxpr.in_avals, strict=True)
    ]
    with jax.debug_nans(False), jax.debug_infs(False):
        outputs = _evaluated(jaxpr, given, Place(), order)
    bad = [output for output in outputs if not is_finite(output.value)]
    # What only passes through is no effect of anything, as long as there is something else.
    made = [output for output in bad if not any(output.value is argument.value for argument in given)]
    found = _first(output.origin for output in made or bad)
    if found is None and bad:
        path = next(path for (path, _), output in zip(_named(shapes), outputs, strict=True) if output is bad[0])
        return finding(CONSTANT, Place((path,)), bad[0].value, ())
    return found and found.finding


def leaves_of(f: Callable[..., Any], args: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of the arguments, with paths that begin with the name that ``f`` gives to the argument."""
    try:
        bound = inspect.signature(f).bind(*args).arguments
    except (TypeError, ValueError):  # a function without a signature
        bound = {str(i): argument for i, argument in enumerate(args)}
    for name, argument in bound.items():
        for path, leaf in _named(argument):
            yield f"{name}/{path}" if path else name, leaf


def expect_call(where: str, f: Any, args: Sequence[Any]) -> None:
    """Raise unless this is a function, and its arguments are arrays or numbers with values."""
    if not callable(f):
        checks.fail(where, "a function", type(f).__name__, "pass f and its arguments apart", TypeError)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
        fix = "call it with numbers, outside of jit, grad and vmap"
        checks.fail(where, "arrays with values", "what JAX is tracing", fix, TypeError)
    for path, leaf in leaves_of(f, args):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
            got, fix = type(leaf).__name__, "close over what is static: lambda x: f(x, option)"
            checks.fail(f"{where}: {path}", "an array", got, fix, TypeError)


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _given(path: str, value: Any, order: Iterator[int]) -> _Value:
    if is_finite(value):
        return _Value(value)
    doubt = _SURE if has_nan(value) else _GIVEN
    return _Value(value, _Origin(doubt, next(order), finding(ARGUMENT, Place((path,)), value, (value,))))


def _first(origins: Iterable[_Origin | None]) -> _Origin | None:
    return min((origin for origin in origins if origin is not None), default=None)


# ---- one operation after the other -----------------------------------------------------------------------------------


def _evaluated(jaxpr: Any, inputs: Sequence[_Value], place: Place, order: Iterator[int]) -> list[_Value]:
    """The outputs of a jaxpr, each with the origin of what is bad in it."""
    jaxpr, constants = opened(jaxpr)
    held = dict(zip(jaxpr.constvars, map(_Value, constants), strict=True))
    held |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> _Value:
        return _Value(variable.val) if isinstance(variable, Literal) else held[variable]

    for equation, at, done in zip(jaxpr.eqns, places(jaxpr, place), last_uses(jaxpr), strict=True):
        outputs = _operation(equation, [read(v) for v in equation.invars], at, order)
        held |= dict(zip(equation.outvars, outputs, strict=True))
        for variable in done:
            del held[variable]
    return [read(v) for v in jaxpr.outvars]


def _operation(equation: Any, operands: list[_Value], place: Place, order: Iterator[int]) -> list[_Value]:
    name, jaxpr = equation.primitive.name, called(equation)
    if jaxpr is not None:
        return _evaluated(jaxpr, operands, place, order)
    if name == "cond":
        branches = equation.params["branches"]
        taken = min(max(int(operands[0].value), 0), len(branches) - 1)
        return _evaluated(branches[taken], operands[1:], place, order)
    outputs = computed(equation, [operand.value for operand in operands])
    good = [is_finite(output) for output in outputs]
    if all(good):
        return [_Value(output) for output in outputs]
    first = _first(operand.origin for operand in operands)
    known: list[_Origin | None] = [None] * len(outputs)
    if name in ("scan", "while") and (first is None or first.doubt):
        replayed = _scanned if name == "scan" else _repeated
        known = replayed(equation, operands, place, order)
    if not all(origin or fine for origin, fine in zip(known, good, strict=True)):
        origin = _origin(equation, operands, outputs, place, order)
        known = [found or origin for found in known]
    return [_Value(output, None if fine else origin) for output, origin, fine in zip(outputs, known, good, strict=True)]


def _origin(
    equation: Any, operands: list[_Value], outputs: list[Any], place: Place, order: Iterator[int]
) -> _Origin | None:
    """The origin of what is bad in the outputs of an operation: one of its operands', or the operation itself.

    An infinite constant, converted or broadcast, is one still, and has none until it meets other numbers.
    """
    known = _first(operand.origin for operand in operands)
    if known is not None and known.doubt == _SURE:
        return known
    values = [operand.value for operand in operands]
    written = known is None or known.doubt == _WRITTEN
    if _makes(equation, values) or (written and any(map(has_nan, outputs)) and not any(map(has_nan, values))):
        doubt = _SURE
    elif known is not None or not any(map(has_finite, values)):
        return known
    else:
        doubt = _WRITTEN
    bad = next(output for output in outputs if not is_finite(output))
    return _Origin(doubt, next(order), finding(equation.primitive.name, place, bad, values))


def _makes(equation: Any, values: list[Any]) -> bool:
    """Whether an operation makes bad numbers also where its bad operands are replaced by ordinary ones."""
    if all(map(is_finite, values)):
        return True
    ordinary = [
        a if is_finite(a) else jnp.where(jnp.isfinite(a), a, jnp.asarray(0.5, jnp.result_type(a))) for a in values
    ]
    return not equation.effects and not all(map(is_finite, computed(equation, ordinary)))


# ---- loops: as a whole first, then one iteration at a time -----------------------------------------------------------


def _scanned(equation: Any, operands: list[_Value], place: Place, order: Iterator[int]) -> list[_Origin | None]:
    """Of each output of a scan, the origin of what is bad in it."""
    body, length = equation.params["jaxpr"], equation.params["length"]
    fixed, count = scanned(equation)
    constants, carry, over = operands[:fixed], operands[fixed : fixed + count], operands[fixed + count :]
    rows = jax.jit(lambda arrays, i: [jax.lax.dynamic_index_in_dim(a, i, keepdims=False) for a in arrays])
    whole = _whole(body)
    stacked: list[_Origin | None] = [None] * (len(equation.outvars) - count)
    place = place._replace(goes_back=(False,) * count + place.goes_back[count:])  # the next iteration reads the carry
    for i in reversed(range(length)) if equation.params["reverse"] else range(length):
        row = rows([a.value for a in over], i)
        row = [_Value(a, None if is_finite(a) else b.origin) for a, b in zip(row, over, strict=True)]
        outputs = _iteration(body, whole, [*constants, *carry, *row], _within(place, i), order)
        carry = outputs[:count]
        stacked = [_first((a, b.origin)) for a, b in zip(stacked, outputs[count:], strict=True)]
    return [value.origin for value in carry] + stacked


def _repeated(equation: Any, operands: list[_Value], place: Place, order: Iterator[int]) -> list[_Origin | None]:
    """Of each output of a while loop, the origin of what is bad in it."""
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    first = equation.params["cond_nconsts"]
    last = first + equation.params["body_nconsts"]
    asked, constants, carry = operands[:first], operands[first:last], operands[last:]
    goes_on, whole = _whole(condition), _whole(body)
    place = place._replace(goes_back=())
    for i in itertools.count():
        if not goes_on([a.value for a in (*asked, *carry)])[0][0]:
            break
        carry = _iteration(body, whole, [*constants, *carry], _within(place, i), order)
    return [value.origin for value in carry]


def _iteration(
    body: Any, whole: Callable[..., Any], inputs: list[_Value], place: Place, order: Iterator[int]
) -> list[_Value]:
    """One pass through the body of a loop: compiled, and operation by operation where something new is bad."""
    outputs, finite = whole([a.value for a in inputs])
    good = np.asarray(finite)
    known = _first(a.origin for a in inputs)
    if good.all() or (known is not None and known.doubt == _SURE):
        return [_Value(a, None if fine else known) for a, fine in zip(outputs, good, strict=True)]
    return _evaluated(body, inputs, place, order)


def _within(place: Place, i: int) -> Place:
    return place._replace(iterations=(*place.iterations, i))


def _whole(jaxpr: Any) -> Callable[[list[Any]], tuple[list[Any], Any]]:
    """A jaxpr, compiled: its outputs, and of each whether it is finite."""
    inner, constants = opened(jaxpr)

    def run(values: list[Any]) -> tuple[list[Any], Any]:
        outputs = eval_jaxpr(inner, constants, *values)
        return outputs, jnp.stack([jnp.isfinite(a).all() if is_number(a) else jnp.array(True) for a in outputs])

    return jax.jit(run)
