"""What is said of the operation that made a number bad, and of the numbers that went into it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from funcnn.inspection.equations import Place


class Operand(NamedTuple):
    """What went into an operation: ``smallest`` and ``largest`` are of its finite numbers, ``None`` without any.

    Of complex numbers they are magnitudes. ``zeros`` and ``nonfinite`` say how many there are.
    """

    shape: tuple[int, ...]
    dtype: str
    smallest: float | None
    largest: float | None
    zeros: int
    nonfinite: int

    def __str__(self) -> str:
        if self.smallest is None:
            return "values that are not finite"
        notes = [f"{self.zeros} of them 0"] if self.zeros and self.smallest != self.largest else []
        notes += [f"{self.nonfinite} of them not finite"] if self.nonfinite else []
        note = f" ({', '.join(notes)})" if notes else ""
        if self.smallest != self.largest:
            return f"values between {self.smallest:.3g} and {self.largest:.3g}{note}"
        return f"{'values of' if self.shape else 'the value'} {self.smallest:.3g}{note}"


# Not a named tuple: those have a method of the name count.
@dataclass(frozen=True)
class NonFinite:
    """The operation that made the first bad number, or what held it from the start; ``str()`` of it is a sentence.

    ``operation`` is the name of a primitive such as ``"log"``; or ``"argument"``, or ``"constant"`` for one that is an
    output as it is. ``path`` is the layer, or the path of that argument or output. ``is_backward`` is whether it
    serves a gradient alone, and ``source`` the innermost line outside of JAX, ``"file.py:12 (function)"``. ``kind`` is
    ``"NaN"`` or ``"infinity"``, and ``count`` of the ``size`` numbers are of that kind. ``inputs`` are the operands.
    ``iterations`` are those of the loops around it, from the outermost in and counted from 0: of a scan, the position
    along what it goes over.
    """

    operation: str
    path: str
    is_backward: bool
    source: str
    kind: str
    count: int
    size: int
    inputs: tuple[Operand, ...]
    iterations: tuple[int, ...]

    def __str__(self) -> str:
        bad = "NaN" if self.kind == "NaN" else "infinite"
        numbers = f"{self.count} of {self.size} numbers" if self.size > 1 else "a number"
        if self.operation in (ARGUMENT, CONSTANT):
            held = self.operation + (" among the outputs" if self.operation == CONSTANT else "")
            name = f", {self.path}," if self.path else ""
            return f"{numbers} in the {held}{name} {'are' if self.count > 1 else 'is'} {bad}"
        layer = f" in {self.path}" if self.path else ""
        if self.is_backward:
            layer = f" in the backward pass{f' of {self.path}' if self.path else ''}"
        source = f" ({self.source.partition(' (')[0]})" if self.source else ""
        loop = " within iteration ".join(str(i) for i in reversed(self.iterations))
        return (
            f"{self.operation}{layer}{source}{f' at iteration {loop}' if loop else ''} made {numbers} {bad}"
            f"{_origins(self.inputs)}"
        )


_SHOWN = 3  # operands in a sentence
_LARGE = 2**20

ARGUMENT, CONSTANT = "argument", "constant"
"""What stands as the operation where none made the number: it was given, or written down."""


def finding(operation: str, place: Place, made: Any, inputs: Sequence[Any]) -> NonFinite:
    """What is said of an operation that made an array that is not finite."""
    array = np.asarray(made)
    nans = int(np.isnan(array).sum())
    return NonFinite(
        operation,
        "/".join(place.scopes),
        place.is_backward,
        place.source,
        "NaN" if nans else "infinity",
        nans or int((~np.isfinite(array)).sum()),
        array.size,
        tuple(_operand(value) for value in inputs),
        place.iterations,
    )


def is_number(value: Any) -> bool:
    """Whether a value can be NaN or infinite: neither keys and tokens can, nor whole numbers."""
    dtype = getattr(value, "dtype", None)
    return isinstance(value, (float, complex)) if dtype is None else bool(jnp.issubdtype(dtype, jnp.inexact))


def is_finite(value: Any) -> bool:
    """Whether nothing in a value is NaN or infinite."""
    if not is_number(value):
        return True
    # To compile this for every shape takes longer than to look, until an array is large, and perhaps on a device.
    if np.size(value) > _LARGE:
        return bool(jnp.isfinite(value).all())
    return bool(np.isfinite(np.asarray(value)).all())


def has_finite(value: Any) -> bool:
    """Whether there are finite numbers in a value."""
    return is_number(value) and bool(np.isfinite(np.asarray(value)).any())


def has_nan(value: Any) -> bool:
    """Whether something in a value is NaN."""
    return is_number(value) and bool(np.isnan(np.asarray(value)).any())


def _operand(value: Any) -> Operand:
    shape, dtype = tuple(np.shape(value)), str(getattr(value, "dtype", type(value).__name__))
    if not is_number(value) and not jnp.issubdtype(getattr(value, "dtype", np.dtype(object)), np.integer):
        return Operand(shape, dtype, None, None, 0, 0)
    array = np.asarray(value)
    array = np.abs(array) if np.iscomplexobj(array) else array.astype(np.float64)
    finite = array[np.isfinite(array)]
    ends = (float(finite.min()) + 0.0, float(finite.max()) + 0.0) if finite.size else (None, None)
    return Operand(shape, dtype, *ends, int((finite == 0).sum()), array.size - finite.size)


def _origins(inputs: Sequence[Operand]) -> str:
    """The operands that can be to blame: floating ones, or the whole numbers where there are no others."""
    known = [a for a in inputs if a.smallest is not None or a.nonfinite]
    floating = [a for a in known if not a.dtype.startswith(("int", "uint"))]
    texts = list(dict.fromkeys(map(str, floating or known)))
    texts = [*texts[:_SHOWN], "others"] if len(texts) > _SHOWN else texts
    return f", from {' and '.join(texts)}" if texts else ""
