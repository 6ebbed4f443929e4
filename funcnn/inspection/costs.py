"""Floating-point operations, counted from a jaxpr by the layers that they stand in, and what of it is needed at all."""

import math
from collections import Counter
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import Literal

from funcnn.inspection.equations import called, opened, scanned, scopes_of

Path = tuple[str, ...]
"""The names of scopes, the outermost first."""

Needed = tuple[bool, ...]
"""Of each output, or input, whether something reads it."""

# One operation for each element of the result, as XLA counts, and one for each of its "transcendentals".
_BY_ELEMENT = frozenset((
    "abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e",
    "cbrt", "ceil", "clamp", "complex", "conj", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc",
    "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "is_finite", "le", "lgamma",
    "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "polygamma", "pow",
    "random_gamma_grad", "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh",
    "sqrt", "square", "sub", "tan", "tanh", "zeta",
))  # fmt: skip
_REDUCED = frozenset(("argmax", "argmin", "reduce_max", "reduce_min", "reduce_prod", "reduce_sum"))
_RUNNING = frozenset(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"))
_WINDOWED = frozenset(("reduce_window_max", "reduce_window_min", "reduce_window_sum", "select_and_gather_add"))
_SCATTERED = frozenset((
    "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub", "scatter_add", "scatter_mul",
))  # fmt: skip
# They move, choose, draw or rename numbers and compute none; what is done to integers and booleans alone is free too.
_FREE = frozenset((
    "bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p", "copysign",
    "create_token", "debug_callback", "device_put", "dynamic_slice", "dynamic_update_slice", "empty", "expand_dims",
    "gather", "imag", "iota", "name", "optimization_barrier", "pad", "pvary", "random_bits", "random_wrap", "real",
    "reduce_precision", "reshape", "rev", "scatter", "sharding_constraint", "slice", "split", "squeeze",
    "stop_gradient", "tie", "transpose", "zeros_like",
))  # fmt: skip


class Counted(NamedTuple):
    """The ``operations`` of each path, and what could not be counted exactly: path and reason."""

    operations: Counter[Path]
    notes: frozenset[tuple[Path, str]]


class Ledger(NamedTuple):
    """What is remembered from one program to the next: counted jaxprs, and the branch that was the dearest one."""

    counted: dict[Any, Any]
    branches: dict[Any, int]


def ledger() -> Ledger:
    """An empty one."""
    return Ledger({}, {})


# ---- what is needed --------------------------------------------------------------------------------------------------


def needed(jaxpr: Any, outputs: Needed, known: Ledger) -> tuple[list[Needed], Needed]:
    """Of each operation which outputs are needed, all ``False`` where it is left away, and which inputs of the jaxpr.

    A compiler leaves away what nothing reads, such as the gradient of an input that nobody asked for.
    """
    jaxpr = opened(jaxpr)[0]
    key = "needed", id(jaxpr), outputs
    if key not in known.counted:
        read = {v for v, is_read in zip(jaxpr.outvars, outputs, strict=True) if is_read and not isinstance(v, Literal)}
        of_each: list[Needed] = []
        for equation in reversed(jaxpr.eqns):
            outs = tuple(v in read for v in equation.outvars)
            if equation.effects:
                outs = (True,) * len(outs)
            of_each.append(outs)
            if any(outs) or equation.effects:
                ins = _operands_needed(equation, outs, known)
                read |= {v for v, used in zip(equation.invars, ins, strict=True) if used and not isinstance(v, Literal)}
        # The jaxpr is kept, so that no other one gets its id.
        known.counted[key] = of_each[::-1], tuple(v in read for v in jaxpr.invars), jaxpr
    return known.counted[key][:2]


def _operands_needed(equation: Any, outputs: Needed, known: Ledger) -> Needed:
    name, inner = equation.primitive.name, called(equation)
    if inner is not None:
        return needed(inner, outputs, known)[1]
    if name == "cond":
        of_each = [needed(branch, outputs, known)[1] for branch in equation.params["branches"]]
        return (True, *(any(each) for each in zip(*of_each, strict=True)))
    if name == "scan":
        return needed(equation.params["jaxpr"], carried(equation, outputs, known), known)[1]
    return (True,) * len(equation.invars)


def carried(equation: Any, outputs: Needed, known: Ledger) -> Needed:
    """Which outputs of the body of a scan are needed: also what its next iteration reads."""
    constants, count = scanned(equation)
    while True:
        ins = needed(equation.params["jaxpr"], outputs, known)[1][constants : constants + count]
        more = (*(a or b for a, b in zip(ins, outputs[:count], strict=True)), *outputs[count:])
        if more == outputs:
            return outputs
        outputs = more


# ---- what it costs ---------------------------------------------------------------------------------------------------


def operations(jaxpr: Any, outputs: Needed, known: Ledger) -> Counted:
    """The floating-point operations that these outputs of a jaxpr need, by scope.

    What is compiled apart is entered. The body of a scan counts as often as it runs, that of a while loop once, and of
    a choice the dearest branch: of the branches of its gradient then the same one.
    """
    jaxpr = opened(jaxpr)[0]
    key = "operations", id(jaxpr), outputs
    if key not in known.counted:
        total: Counter[Path] = Counter()
        notes: set[tuple[Path, str]] = set()
        for equation, outs in zip(jaxpr.eqns, needed(jaxpr, outputs, known)[0], strict=True):
            if any(outs):
                scopes = scopes_of(equation.source_info.name_stack)[0]
                times, found = _of_one(equation, outs, known)
                for path, number in found.operations.items():
                    total[scopes + path] += times * number
                notes |= {(scopes + path, note) for path, note in found.notes}
        known.counted[key] = Counted(total, frozenset(notes)), jaxpr
    return known.counted[key][0]


def _of_one(equation: Any, outputs: Needed, known: Ledger) -> tuple[int, Counted]:
    """How often an operation runs what it holds, and the count of that."""
    name, inner = equation.primitive.name, called(equation)
    if inner is not None:
        return 1, operations(inner, outputs, known)
    if name == "scan":
        return equation.params["length"], operations(equation.params["jaxpr"], carried(equation, outputs, known), known)
    if name == "while":
        return 1, _of_while(equation, known)
    if name == "cond":
        return 1, _of_cond(equation, outputs, known)
    number = _own(equation)
    note = frozenset([((), f"{name} is not counted")]) if number is None else frozenset[tuple[Path, str]]()
    return 1, Counted(Counter({(): number or 0}), note)


def _of_while(equation: Any, known: Ledger) -> Counted:
    parts = [equation.params["cond_jaxpr"], equation.params["body_jaxpr"]]
    asked, body = (operations(part, (True,) * len(opened(part)[0].outvars), known) for part in parts)
    note = (), "a while loop runs as often as the data decide: its body is counted once"
    return Counted(asked.operations + body.operations, asked.notes | body.notes | {note})


def _of_cond(equation: Any, outputs: Needed, known: Ledger) -> Counted:
    branches = [operations(branch, outputs, known) for branch in equation.params["branches"]]
    info = equation.source_info
    place = scopes_of(info.name_stack)[0], source_info_util.summarize(info), len(branches)
    dearest = max(range(len(branches)), key=lambda i: branches[i].operations.total())
    branch = branches[known.branches.setdefault(place, dearest)]
    note = (), "of a choice the dearest branch is counted"
    return Counted(branch.operations, branch.notes | {note})


def _own(equation: Any) -> int | None:
    """The operations of one that holds no others, or ``None`` where it is not known what it does."""
    name, params = equation.primitive.name, equation.params
    given, made = ([v.aval for v in side] for side in (equation.invars, equation.outvars))
    if name in _FREE or not any(_is_floating(aval) for aval in (*given, *made)):
        return 0
    size = made[0].size if made else 0
    if name in _BY_ELEMENT:
        return size
    if name in _REDUCED:
        return max(given[0].size - size, 0)
    if name in _RUNNING:
        return size
    if name in _SCATTERED:
        return given[2].size
    if name in _WINDOWED:
        return size * math.prod(params["window_dimensions"])
    if name == "select_and_scatter_add":
        return given[0].size * (math.prod(params["window_dimensions"]) + 1)
    if name == "dot_general":
        (axes, _), _ = params["dimension_numbers"]
        return 2 * size * math.prod(given[0].shape[axis] for axis in axes)
    if name == "small_product":
        return 2 * size * given[0].shape[1]
    if name == "conv_general_dilated":
        return _of_convolution(params, given, made[0])
    return _rarer(name, params, given, size)


def _rarer(name: str, params: Any, given: list[Any], size: int) -> int | None:
    if name == "integer_pow":
        power = abs(params["y"])  # by squaring; what is below zero has a division as well
        products = max(power.bit_length() + power.bit_count() - 2, 0)
        return size * (products + (params["y"] < 0))
    if name == "one_minus_square":  # (1 - x) (1 + x)
        return 3 * size
    if name in ("sort", "top_k"):
        axis = params["dimension"] if name == "sort" else -1
        return given[0].size * max(given[0].shape[axis] - 1, 0).bit_length()
    if name == "fft":
        lengths = params["fft_lengths"]
        return 5 * max(size, given[0].size) * sum(max(n - 1, 0).bit_length() for n in lengths)
    if name == "cholesky":
        return given[0].size * given[0].shape[-1] // 3
    if name == "lu":
        return given[0].size * min(given[0].shape[-2:]) * 2 // 3
    if name == "triangular_solve":
        return size * given[0].shape[-1]
    return None


def _is_floating(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _of_convolution(params: Any, given: list[Any], made: Any) -> int:
    """Two for each product: padding and the holes of a dilated input are not multiplied."""
    numbers = params["dimension_numbers"]
    image, kernel = (aval.shape for aval in given)
    axes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    sides = zip(
        params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True
    )
    pairs = math.prod(
        _pairs(image[i], kernel[k], made.shape[o], stride, low, holes, spread)
        for (i, k, o), (stride, (low, _), holes, spread) in zip(axes, sides, strict=True)
    )
    batch, features = (made.shape[axis] for axis in numbers.out_spec[:2])
    return 2 * batch * features * kernel[numbers.rhs_spec[1]] * pairs


def _pairs(size: int, taps: int, outputs: int, stride: int, low: int, holes: int, spread: int) -> int:
    """How many pairs of an output ``o`` and a tap ``k`` meet an element: ``o stride + k spread - low = i holes``."""
    if outputs < taps:  # the same equation, and the shorter side is walked
        outputs, taps, stride, spread = taps, outputs, spread, stride
    period = holes // math.gcd(stride, holes)
    total = 0
    for k in range(taps):
        offset = k * spread - low
        first = max(0, -(offset // stride))
        last = min(outputs - 1, ((size - 1) * holes - offset) // stride)
        start = next((o for o in range(first, first + period) if (o * stride + offset) % holes == 0), None)
        if start is not None and start <= last:
            total += (last - start) // period + 1
    return total
