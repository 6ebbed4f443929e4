"""One format for every error: where, what was expected, what came, and a fix. All of them run before compilation."""

import importlib.util
import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def fail(where: str, expected: str, got: str, fix: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise ``error`` with the message ``where: expected ..., got ...; fix``.

    >>> fail("dense", "at least 2 axes, (batch, features)", "shape (3,)", "add a batch axis: x[None]")
    Traceback (most recent call last):
    ...
    ValueError: dense: expected at least 2 axes, (batch, features), got shape (3,); add a batch axis: x[None]
    """
    raise error(f"{where}: expected {expected}, got {got}; {fix}")


def expect_package(where: str, module: str, expected: str, extra: str) -> None:
    """Raise an ``ImportError`` unless there is this module, which an extra of funcnn brings; it is not imported."""
    if importlib.util.find_spec(module) is None:
        fail(where, expected, "none", f"pip install 'funcnn[{extra}]'", ImportError)


def is_concrete(value: Any) -> bool:
    """Whether the value of a hyperparameter is known now; a tracer's is not, and its range is not checked."""
    return not isinstance(value, Tracer)


def known(value: Any) -> Any:
    """The value of a hyperparameter on the host, or ``None`` where it is a tracer.

    A JAX array that is known is compared inside the trace, where there is one, and cannot be branched on there.
    """
    return np.asarray(value)[()] if is_concrete(value) else None


def expect_count(where: str, name: str, value: Any, minimum: int = 1) -> int:
    """``value`` as an ``int``, if it is a whole number of at least ``minimum`` that is known before compilation."""
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:  # a float, a string, a tracer
        count = None
    if count is None:
        fix = "pass an int" if is_concrete(value) else "pass an int, for it has to be known before compilation"
        fail(where, f"{name} as a whole number", f"{type(value).__name__} {value}", fix, TypeError)
    if count < minimum:
        fail(where, f"{name} of at least {minimum}", str(value), f"choose {minimum} or more")
    return count


def counted(count: int, what: str) -> str:
    """A number with its noun.

    >>> counted(1, "step"), counted(20, "step")
    ('1 step', '20 steps')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"


def expect_between(where: str, name: str, value: Any, low: float, high: float) -> None:
    """Raise unless ``low <= value <= high``; a tracer passes."""
    if is_concrete(value) and not low <= known(value) <= high:
        fail(where, f"{name} from {low} to {high}", str(value), f"choose {name} in this range")


def expect_option(where: str, name: str, value: Any, options: Sequence[Any]) -> None:
    """Raise unless ``value`` is one of ``options``."""
    if value not in options:
        fail(where, f"{name} to be one of {list(options)}", repr(value), "check the spelling")


def expect_lengths(where: str, name: str, lengths: Any, batch: int, time: int) -> None:
    """Raise unless these are the lengths of ``batch`` sequences, whole numbers up to ``time`` as far as is known."""
    dtype = lengths.dtype if hasattr(lengths, "dtype") else np.asarray(lengths).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        got, fix = f"{dtype}{np.shape(lengths)}", f"convert them: {name}.astype(jnp.int32)"
        fail(where, f"{name} of whole numbers", got, fix, TypeError)
    if np.shape(lengths) != (batch,):
        fix = "give one for each example"
        fail(where, f"{name} of shape {(batch,)}", f"{np.shape(lengths)}", fix)
    if isinstance(lengths, jax.ShapeDtypeStruct) or not is_concrete(lengths) or not batch:
        return
    low, high = known(lengths).min(), known(lengths).max()
    if low < 0 or high > time:
        fix = "count the valid steps of each sequence"
        fail(where, f"{name} from 0 to {time}, the steps that there are", f"{low} to {high}", fix)


def expect_rank(where: str, x: Any, minimum: int, axes: str, fix: str = "reshape the input") -> None:
    """Raise unless ``x`` has at least ``minimum`` axes; ``axes`` says what they mean."""
    if len(x.shape) < minimum:
        fail(where, f"at least {minimum} axes, {axes}", f"shape {tuple(x.shape)}", fix)


def expect_shape(where: str, name: str, array: Any, shape: Sequence[int], what: str = "params") -> None:
    """Raise unless an entry of params, or of ``what`` it is, has the shape in which this layer makes it.

    >>> expect_shape("conv", "kernel", np.ones((5, 5, 1, 4)), (3, 3, 1, 8))
    Traceback (most recent call last):
    ...
    ValueError: conv: expected a kernel of shape (3, 3, 1, 8), got (5, 5, 1, 4); pass the params that init of ...
    """
    if np.shape(array) != tuple(shape):
        fix = f"pass the {what} that init of this very model returned"
        article = "an" if name[0] in "aeiou" else "a"
        fail(where, f"{article} {name} of shape {tuple(shape)}", str(np.shape(array)), fix)


def expect_floating(where: str, x: Any, fix: str = "convert it: x.astype(jnp.float32), and images also / 255") -> None:
    """Raise a ``TypeError`` unless ``x`` has a floating dtype."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        fail(where, "a floating input", f"{x.dtype}{tuple(x.shape)}", fix, TypeError)
