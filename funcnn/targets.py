"""What predictions and targets must be: their shapes and dtypes always, their values where these are known.

Values are known before compilation in a NumPy array, or in a ``jax.Array`` that is no tracer. They are read on the
host, never by JAX: under ``jit`` or ``eval_shape`` a computation of JAX would make a tracer of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks


def array(x: Any) -> Any:
    """``x`` if it belongs to JAX, and otherwise as a NumPy array, whose values stay known under a trace."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


def known(x: Any) -> np.ndarray[Any, Any] | None:
    """The values on the host, or ``None`` where there are none to read: in tracers, on other hosts, in empty arrays."""
    x = array(x)
    if not checks.is_concrete(x) or not x.size or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    return np.asarray(x)


def is_zero(value: Any) -> bool:
    """Whether an option is known to be 0, so that what it asks for need not be computed."""
    return checks.is_concrete(value) and bool(checks.known(value) == 0)


def pair(where: str, prediction: Any, target: Any, rank: int = 1, axes: str = "(batch, ...)") -> tuple[Any, Any]:
    """Prediction and target, which must be of one shape, in the dtype to compute in."""
    p, t = _floating(where, prediction, rank, axes), _numbers(where, target)
    if p.shape != t.shape:
        checks.fail(where, f"a target of the prediction's shape {p.shape}", str(t.shape), _reshaped(p.shape, t.shape))
    return p, jnp.asarray(t, p.dtype)


def over_classes(where: str, prediction: Any, target: Any, one_output: str) -> tuple[Any, Any]:
    """Scores over the last axis in the dtype to compute in, and integer labels or rows of that shape.

    ``one_output`` names the function for a single output, where there is nothing to choose from.
    """
    p, t = _array_of_scores(where, prediction, one_output), _numbers(where, target)
    if t.shape == p.shape:
        return p, jnp.asarray(t, p.dtype)
    if t.shape != p.shape[:-1]:
        last = t.shape == (*p.shape[:-1], 1)
        fix = "drop the last axis: target[..., 0]" if last else "give one label for each row of the prediction"
        checks.fail(where, f"integer labels {p.shape[:-1]} or rows {p.shape}", f"a target of shape {t.shape}", fix)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        checks.fail(where, "integer labels", f"{t.dtype}{t.shape}", "convert them: target.astype(int)", TypeError)
    return p, jnp.asarray(t)


def expect_labels(where: str, target: Any, number: int) -> None:
    """Raise a ``ValueError`` if a label is known to be outside ``0`` to ``number - 1``."""
    t = known(target)
    if t is not None and not (t.min() >= 0 and t.max() < number):
        expected = f"labels from 0 to {number - 1} for {number} classes"
        fix = "count classes from 0, or give the last layer more features"
        checks.fail(where, expected, f"labels from {t.min()} to {t.max()}", fix)


def expect_probabilities(where: str, target: Any) -> None:
    """Raise a ``ValueError`` if a value is known to be outside 0 to 1."""
    t = known(target)
    if t is not None and not (t.min() >= 0 and t.max() <= 1):
        fix = "map the two classes to 0 and 1; from -1 and 1: (target + 1) / 2"
        checks.fail(where, "targets from 0 to 1", f"values from {t.min()} to {t.max()}", fix)


def expect_distributions(where: str, target: Any) -> None:
    """Raise a ``ValueError`` if a row is known not to be one of probabilities."""
    t = known(target)
    if t is None:
        return
    sums = t.sum(axis=-1, dtype=np.float64)
    # Rows that were rounded to half precision sum to 1 only to a few units in their last place.
    tolerance = max(1e-3, 4 * float(jnp.finfo(t.dtype).eps)) if jnp.issubdtype(t.dtype, jnp.floating) else 0.0
    worst = sums.flat[np.abs(sums - 1).argmax()]
    if not (abs(worst - 1) <= tolerance and t.min() >= 0):
        found = f"a row that sums to {worst:.6g}, with values from {t.min()} to {t.max()}"
        fix = "divide each by its sum, or pass integer labels"
        checks.fail(where, "rows of probabilities that sum to 1", found, fix)


def _floating(where: str, prediction: Any, rank: int, axes: str) -> Any:
    p = array(prediction)
    checks.expect_rank(where, p, rank, f"{axes}, of the prediction", "keep the batch axis: a row for each example")
    checks.expect_floating(where, p, "pass what the network puts out: numbers, not the classes that they mean")
    p = jnp.asarray(p)
    return p.astype(jnp.promote_types(p.dtype, jnp.float32))


def _array_of_scores(where: str, prediction: Any, one_output: str) -> Any:
    shape = array(prediction).shape
    if len(shape) < 2 or shape[-1] < 2:
        expected = "a prediction (batch, ..., classes) over at least 2 classes"
        checks.fail(where, expected, f"shape {shape}", f"use {one_output} for one output")
    return _floating(where, prediction, 2, "(batch, ..., classes)")


def _numbers(where: str, target: Any) -> Any:
    t = array(target)
    if not (jnp.issubdtype(t.dtype, jnp.number) or t.dtype == bool):
        fix = "encode it, for instance names of classes as integers"
        checks.fail(where, "a target of numbers", f"{t.dtype}{t.shape}", fix, TypeError)
    return t


def _reshaped(prediction: tuple[int, ...], target: tuple[int, ...]) -> str:
    if prediction == (*target, 1):
        return "add the last axis: target[..., None], for shapes are never broadcast"
    if (*prediction, 1) == target:
        return "drop the last axis: target[..., 0], for shapes are never broadcast"
    if prediction[:-1] == target:
        return "give one target for each output, or for integer labels choose a function over classes"
    return "make them equal, for shapes are never broadcast"
