"""Metrics as accumulators: ``measure(outputs, targets, weights) -> sums``, ``compute(sums) -> array``.

The sums of batches add up to the sums of all examples, whatever the sizes of the batches, and so do those of
micro-batches and devices: a mean of means is never taken. What holds for all of them:

- ``weights`` are ``None`` or have the leading axes of the targets: ``(batch,)``, or ``(batch, tokens)`` for tokens. An
  example of weight 0 does not count at all, not even where its values are NaN.
- Shapes must agree: ``(n,)`` against ``(n, 1)`` is a ``ValueError``, never a broadcast to ``(n, n)``.
- Sums are float32, or float64 for float64 outputs: counts are exact up to 2^24 and right to seven digits beyond.
- The score of a class that never occurs, 0 / 0, is 0. A mean over no examples is NaN.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.targets import expect_distributions, over_classes, pair


class Metric(NamedTuple):
    """A pair of pure functions, for arrays of any size, that ``jit``, ``scan`` and ``vmap`` take.

    ``measure(outputs, targets, weights=None) -> sums``: a pytree of arrays that may be added to others.
    ``compute(sums) -> array``: the value for all that was added.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn.metrics import accuracy
        >>> one = accuracy.measure(jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), jnp.array([0, 1, 1]))
        >>> two = accuracy.measure(jnp.array([[0.3, 0.7]]), jnp.array([1]))
        >>> round(accuracy.compute(one).item(), 2), accuracy.compute(jax.tree.map(jnp.add, one, two)).item()
        (0.67, 0.75)
    """

    measure: Callable[..., Any]
    compute: Callable[[Any], Any]

    def __repr__(self) -> str:
        return f"Metric({', '.join(self._fields)})"


# ---- means -----------------------------------------------------------------------------------------------------------


def mean(function: Callable[[Any, Any], Any]) -> Metric:
    """The weighted mean of ``function(outputs, targets)``, such as a loss.

    Formula: ``sum w f / sum w``

    Shapes: ``function`` returns ``(batch, ...)``, whose leading axes the weights have.

    Raises:
        TypeError: what is given is not a function.
        ValueError: it returns a scalar, or the weights have other axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import metrics
        >>> worst = metrics.mean(lambda outputs, targets: jnp.abs(outputs - targets).max(axis=-1))
        >>> worst.compute(worst.measure(jnp.array([[1.0, 2.0], [0.0, 4.0]]), jnp.zeros((2, 2)))).item()
        3.0
    """
    if not callable(function):
        checks.fail("mean", "a function of outputs and targets", type(function).__name__, "pass a loss", TypeError)

    def measure(outputs: Any, targets: Any, weights: Any = None) -> dict[str, Any]:
        return _sums("mean", jnp.asarray(function(outputs, targets)), weights)

    return Metric(measure, _ratio)


def _sums(where: str, values: Any, weights: Any, dtype: Any = None) -> dict[str, Any]:
    values = values.astype(jnp.promote_types(dtype or values.dtype, jnp.float32))
    w = _spread(where, weights, values)
    return {"total": _weighted(w, values).sum(), "weight": w.sum()}


def _spread(where: str, weights: Any, values: Any) -> Any:
    """The weights with the shape and dtype of the values that they weigh."""
    shape = () if weights is None else jnp.shape(weights)
    if not values.ndim or (weights is not None and (not shape or values.shape[: len(shape)] != shape)):
        expected = f"values for each example and weights with their leading axes, such as {values.shape[:1]}"
        got = f"values {values.shape} and weights {'none' if weights is None else shape}"
        checks.fail(where, expected, got, "give one weight for each example, or for each token")
    w = jnp.asarray(1.0 if weights is None else weights, values.dtype)
    return jnp.broadcast_to(w.reshape(shape + (1,) * (values.ndim - len(shape))), values.shape)


def _weighted(w: Any, values: Any) -> Any:
    # 0 * NaN is NaN, but what has weight 0 must not count: padding may hold anything.
    return jnp.where(w != 0, w * values, 0.0)


def _ratio(sums: dict[str, Any]) -> Any:
    return sums["total"] / sums["weight"]


def _mean_error(where: str, size: Callable[[Any], Any]) -> Metric:
    def measure(outputs: Any, targets: Any, weights: Any = None) -> dict[str, Any]:
        y, t = pair(where, outputs, targets)
        return _sums(where, size(y - t), weights)

    return Metric(measure, _ratio)


mean_absolute_error = _mean_error("mean_absolute_error", jnp.abs)
"""The mean of ``|outputs - targets|`` over examples and outputs."""

mean_squared_error = _mean_error("mean_squared_error", jnp.square)
"""The mean of ``(outputs - targets)^2`` over examples and outputs."""


# ---- how often right -------------------------------------------------------------------------------------------------


def top_k(k: int) -> Metric:
    """How often the right class is among the ``k`` largest outputs; of equal ones the first counts as larger.

    Shapes: outputs ``(batch, ..., classes)``; targets integers ``(batch, ...)`` or rows ``(batch, ..., classes)``,
    where the largest entry is the class.

    Raises:
        TypeError: ``k`` is not a whole number, or labels are not integers.
        ValueError: ``k`` is below 1 or above the number of classes, or shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import metrics
        >>> outputs = jnp.array([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1]])
        >>> metrics.top_k(2).compute(metrics.top_k(2).measure(outputs, jnp.array([2, 2]))).item()
        0.5
    """
    return _top("top_k", checks.expect_count("top_k", "k", k))


def _top(where: str, k: int) -> Metric:
    def measure(outputs: Any, targets: Any, weights: Any = None) -> dict[str, Any]:
        y, label = _labelled(where, outputs, targets)
        if k > y.shape[-1]:
            checks.fail(where, f"at least {k} classes", f"outputs of shape {y.shape}", "choose a smaller k")
        index = jnp.arange(y.shape[-1]).reshape((1,) * label.ndim + (-1,))
        right = index == label[..., None]
        score = jnp.where(right, y, 0.0).sum(axis=-1, keepdims=True)
        behind = (y < score) | ((y == score) & (index >= label[..., None]))  # and NaN, which is neither, is ahead
        return _sums(where, right.any(axis=-1) & ((~behind).sum(axis=-1) < k), weights, y.dtype)

    return Metric(measure, _ratio)


def _labelled(where: str, outputs: Any, targets: Any) -> tuple[Any, Any]:
    y, t = over_classes(where, outputs, targets, "binary_accuracy, or a score without classes,")
    if t.ndim < y.ndim:
        return y, t
    expect_distributions(where, targets)  # or they are no classes at all, but what a regression is after
    return y, t.argmax(axis=-1)


accuracy = _top("accuracy", 1)
"""How often the largest output is that of the right class: ``top_k(1)``. For one output take ``binary_accuracy``."""


def binary_accuracy(*, threshold: Any = 0.5) -> Metric:
    """How often an output lies on the right side of a threshold.

    Formula: the mean of ``(outputs > threshold) == (targets > 0.5)`` over examples and outputs

    Shapes: outputs and targets have one shape, ``(batch, ...)``.

    Args:
        threshold: 0.5 for probabilities; 0 for logits. May be a tracer.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import metrics
        >>> metric = metrics.binary_accuracy(threshold=0.0)
        >>> metric.compute(metric.measure(jnp.array([2.0, -1.0, 0.5, 3.0]), jnp.array([1, 0, 0, 1]))).item()
        0.75
    """

    def measure(outputs: Any, targets: Any, weights: Any = None) -> dict[str, Any]:
        y, t = pair("binary_accuracy", outputs, targets)
        return _sums("binary_accuracy", ~jnp.isnan(y) & ((y > threshold) == (t > 0.5)), weights, y.dtype)

    return Metric(measure, _ratio)


# ---- scores of classes -----------------------------------------------------------------------------------------------


def precision(classes: int | None = None, *, average: str | None = "macro", threshold: Any = 0.5) -> Metric:
    """Of what was predicted to be a class, the share that is.

    Formula: ``hits / predicted``, 0 for a class that was never predicted

    Shapes: without ``classes``, outputs and targets of one shape with a yes or no in each, as for ``binary_accuracy``,
    and one score for all. With ``classes``, outputs ``(batch, ..., classes)`` and targets as for ``accuracy``.

    Args:
        classes: how many, or none for yes or no.
        average: over the classes, ``"macro"`` (their mean, empty ones included), ``"micro"`` (of the sums) or ``None``
            (a score for each class).
        threshold: for yes or no alone: 0.5 for probabilities, 0 for logits. May be a tracer.

    Raises:
        ValueError: an unknown average, or shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import metrics
        >>> outputs, targets = jnp.array([0.9, 0.8, 0.7, 0.1]), jnp.array([1, 0, 0, 1])
        >>> [round(m.compute(m.measure(outputs, targets)).item(), 2) for m in (metrics.precision(), metrics.recall())]
        [0.33, 0.5]
    """
    return _score("precision", classes, average, threshold, lambda hits, predicted, actual: (hits, predicted))


def recall(classes: int | None = None, *, average: str | None = "macro", threshold: Any = 0.5) -> Metric:
    """Of what is a class, the share that was predicted to be.

    Formula: ``hits / actual``, 0 for a class where that is 0 / 0. Shapes, Args and Raises as for ``precision``.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import metrics
        >>> outputs, targets = jnp.array([0.9, 0.8, 0.7, 0.1]), jnp.array([1, 0, 0, 1])
        >>> round(metrics.recall().compute(metrics.recall().measure(outputs, targets)).item(), 2)
        0.5
    """
    return _score("recall", classes, average, threshold, lambda hits, predicted, actual: (hits, actual))


def f1(classes: int | None = None, *, average: str | None = "macro", threshold: Any = 0.5) -> Metric:
    """The harmonic mean of precision and recall.

    Formula: ``2 hits / (predicted + actual)``, 0 for a class where that is 0 / 0. Shapes, Args and Raises as for
    ``precision``.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import metrics
        >>> outputs, targets = jnp.array([0.9, 0.8, 0.7, 0.1]), jnp.array([1, 0, 0, 1])
        >>> round(metrics.f1().compute(metrics.f1().measure(outputs, targets)).item(), 2)
        0.4
    """
    return _score("f1", classes, average, threshold, lambda hits, predicted, actual: (2 * hits, predicted + actual))


def _score(where: str, classes: int | None, average: str | None, threshold: Any, parts: Callable[..., Any]) -> Metric:
    checks.expect_option(where, "average", average, ["macro", "micro", None])
    classes = None if classes is None else checks.expect_count(where, "classes", classes, 2)

    def measure(outputs: Any, targets: Any, weights: Any = None) -> dict[str, Any]:
        if classes is None:
            y, t = pair(where, outputs, targets)
            guess, truth = (y > threshold).astype(y.dtype), (t > 0.5).astype(y.dtype)
        else:
            guess, truth = _one_hot(where, outputs, targets, classes)
        w = _spread(where, weights, guess if classes is None else guess[..., 0])
        w, axes = (w, None) if classes is None else (w[..., None], tuple(range(guess.ndim - 1)))
        products = {"hits": guess * truth, "predicted": guess, "actual": truth}
        return {name: (w * product).sum(axis=axes) for name, product in products.items()}

    def compute(sums: dict[str, Any]) -> Any:
        if average == "micro":
            sums = {name: value.sum() for name, value in sums.items()}
        part, whole = parts(**sums)
        score = jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
        return score.mean() if average == "macro" else score

    return Metric(measure, compute)


def _one_hot(where: str, outputs: Any, targets: Any, classes: int) -> tuple[Any, Any]:
    y, label = _labelled(where, outputs, targets)
    if y.shape[-1] != classes:
        checks.fail(where, f"{classes} classes", f"outputs of shape {y.shape}", "pass the number that the model has")
    return jax.nn.one_hot(y.argmax(axis=-1), classes, dtype=y.dtype), jax.nn.one_hot(label, classes, dtype=y.dtype)


def confusion_matrix(classes: int) -> Metric:
    """How often each class was taken for each: rows are true classes, columns predicted ones, as in scikit-learn.

    Shapes: outputs ``(batch, ..., classes)``, targets as ``accuracy`` takes them ``-> (classes, classes)``

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import metrics
        >>> metric = metrics.confusion_matrix(2)
        >>> outputs = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> metric.compute(metric.measure(outputs, jnp.array([0, 1, 1]))).tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """
    classes = checks.expect_count("confusion_matrix", "classes", classes, 2)

    def measure(outputs: Any, targets: Any, weights: Any = None) -> Any:
        guess, truth = _one_hot("confusion_matrix", outputs, targets, classes)
        truth = truth * _spread("confusion_matrix", weights, guess[..., 0])[..., None]
        return jnp.einsum("nt,np->tp", truth.reshape(-1, classes), guess.reshape(-1, classes), precision="highest")

    return Metric(measure, lambda sums: sums)


def calibration_error(bins: int = 15) -> Metric:
    """How far the confidence of predictions is from how often they are right: the expected calibration error.

    Formula: ``sum over bins of n_b / n * |accuracy_b - confidence_b|``, where the bins of equal width divide the
    confidence, the largest entry of ``softmax(outputs)``.

    Shapes: outputs ``(batch, ..., classes)``, logits or logarithms of probabilities; targets as for ``accuracy``.

    Args:
        bins: how many.

    Raises:
        TypeError: ``bins`` is not a whole number.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import metrics
        >>> metric, outputs = metrics.calibration_error(), jnp.log(jnp.array([[0.8, 0.2], [0.8, 0.2]]))
        >>> round(metric.compute(metric.measure(outputs, jnp.array([0, 1]))).item(), 3)
        0.3

    Reference: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", 2017.
    """
    bins = checks.expect_count("calibration_error", "bins", bins)

    def measure(outputs: Any, targets: Any, weights: Any = None) -> dict[str, Any]:
        y, label = _labelled("calibration_error", outputs, targets)
        confidence = jax.nn.softmax(y.astype(jnp.promote_types(y.dtype, jnp.float32))).max(axis=-1)
        w = _spread("calibration_error", weights, confidence)
        # Bins are open below and closed above, so that a confidence of 1 is in the last one.
        at = jnp.clip(jnp.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        member = jax.nn.one_hot(at, bins, dtype=confidence.dtype)
        surplus = (y.argmax(axis=-1) == label).astype(confidence.dtype) - confidence
        by_bin = _weighted(w, surplus)[..., None] * member
        return {"surplus": by_bin.reshape(-1, bins).sum(axis=0), "weight": w.sum()}

    return Metric(measure, lambda sums: jnp.abs(sums["surplus"]).sum() / sums["weight"])


# ---- explained variance ----------------------------------------------------------------------------------------------

# The variance of targets around 1000 with a spread of 1 is lost in float32 sums of squares, and what keeps it (Welford,
# Chan) are no sums. So each target goes to one of 864 bins, by its sign, its exponent and the next four bits, and each
# bin sums distances to an anchor of its own. These do add, and Chan's formula merges the bins without cancellation.
# Targets below 2^-10 share the first bin, whose anchor is 0, and those above 2^16 the last of their sign.
_LOW, _HIGH, _PARTS, _WIDTH = -9, 16, 16, 32
_CENTRES = np.ldexp(0.5 + (np.arange(_PARTS) + 0.5) / (2 * _PARTS), np.arange(_LOW, _HIGH + 1)[:, None]).ravel()
_ANCHORS = np.concatenate([np.zeros(_WIDTH), _CENTRES, -_CENTRES])


def _bin(t: Any) -> Any:
    fraction, exponent = jnp.frexp(jnp.abs(t))
    part = jnp.clip((2.0 * fraction - 1.0) * _PARTS, 0, _PARTS - 1).astype(int)
    place = (jnp.clip(exponent, _LOW, _HIGH) - _LOW) * _PARTS + part + jnp.where(t < 0, _CENTRES.size, 0)
    return jnp.where(exponent < _LOW, 0, _WIDTH + place)


def _measure_r_squared(outputs: Any, targets: Any, weights: Any = None) -> dict[str, Any]:
    y, t = pair("r_squared", outputs, targets)
    w = _spread("r_squared", weights, t)
    y, t, w = (jnp.where(w != 0, a, 0.0).reshape(-1, t.shape[-1] if t.ndim > 1 else 1) for a in (y, t, w))
    place = _bin(t)
    shift = t - jnp.asarray(_ANCHORS, t.dtype)[place]
    # A product of two short one-hot codes in place of a scatter, whose order of adding is not fixed on accelerators.
    row = jax.nn.one_hot(place // _WIDTH, _ANCHORS.size // _WIDTH, dtype=t.dtype)
    column = jax.nn.one_hot(place % _WIDTH, _WIDTH, dtype=t.dtype)
    moments = jnp.stack([w, w * shift, w * shift * shift])[..., None] * row[None]
    binned = jnp.einsum("snor,noc->sorc", moments, column, precision="highest")
    return {"residual": (w * (t - y) ** 2).sum(axis=0), "binned": binned.reshape(3, t.shape[-1], _ANCHORS.size)}


def _compute_r_squared(sums: dict[str, Any]) -> Any:
    residual, (weight, shift, square) = sums["residual"], sums["binned"]
    offset = shift / jnp.where(weight > 0, weight, 1.0)
    position = jnp.asarray(_ANCHORS, residual.dtype)[None] + offset
    mean = (weight * position).sum(axis=-1, keepdims=True) / weight.sum(axis=-1, keepdims=True)
    total = (square - shift * offset + weight * (position - mean) ** 2).sum(axis=-1)
    # Below the rounding of the sums there is no spread: the score is then 1 without error, else 0, as in scikit-learn.
    spread = ~(total <= 8 * jnp.finfo(total.dtype).eps * square.sum(axis=-1))  # NaN stays NaN
    score = jnp.where(spread, 1.0 - residual / jnp.where(spread, total, 1.0), jnp.where(residual == 0, 1.0, 0.0))
    return score.mean()


r_squared = Metric(_measure_r_squared, _compute_r_squared)
"""The share of the targets' variance that the outputs explain: ``1 - sum w (t - y)^2 / sum w (t - mean)^2``.

The last axis of arrays with more than one holds outputs, and the scores of these are averaged. In float32 the variance
is right to 1e-3 at a mean of a thousand times the spread; where targets vary less than rounding shows, the score is 0.
The targets should lie between 0.001 and 60,000 in size, and not all of
one beyond it. An output takes 2592 sums.
"""
