"""Losses: ``(prediction, target) -> losses of shape (batch,)``, one for each example and never reduced over the batch.

What holds for all of them:

- Axes after the batch are averaged. For one loss a token, make tokens the batch: ``logits.reshape(-1, classes)``.
- Shapes must agree: ``(n,)`` against ``(n, 1)`` is a ``ValueError``, never a broadcast to ``(n, n)``.
- A prediction that is not floating is a ``TypeError``. The target is cast to its dtype. Half precision is computed in
  float32, and so returned.
- The values of a target are checked where they are known before compilation: in a NumPy array, or in a ``jax.Array``
  that is no tracer. Under ``jit`` a label out of range gives NaN.
- Options are keywords, and the numbers among them may be tracers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from funcnn import checks, targets

# ---- regression ------------------------------------------------------------------------------------------------------


def squared_error(prediction: Any, target: Any) -> Any:
    """The square of the difference; its mean over the batch is the mean squared error.

    Formula: ``(prediction - target)^2``

    Shapes: ``(batch, ...), (batch, ...) -> (batch,)``

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> losses.squared_error(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 4.0]])).tolist()
        [2.0, 4.5]
    """
    return _per_example(optax.squared_error(*targets.pair("squared_error", prediction, target)))


def absolute_error(prediction: Any, target: Any) -> Any:
    """The absolute difference, whose gradient at 0 is 0.

    Formula: ``|prediction - target|``

    Shapes: ``(batch, ...), (batch, ...) -> (batch,)``

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> losses.absolute_error(jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])).tolist()
        [1.0, 2.0]
    """
    p, t = targets.pair("absolute_error", prediction, target)
    return _per_example((p - t) * jax.lax.stop_gradient(jnp.sign(p - t)))  # in JAX the gradient of abs at 0 is 1


def huber(prediction: Any, target: Any, *, delta: Any = 1.0) -> Any:
    """Quadratic near 0 and linear beyond ``delta``, so that outliers pull with a bounded force.

    Formula: ``e^2 / 2`` where ``|e| <= delta``, else ``delta * (|e| - delta / 2)``, with ``e = prediction - target``

    Shapes: ``(batch, ...), (batch, ...) -> (batch,)``

    Args:
        prediction: what the network says.
        target: what is right.
        delta: where the line begins, above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> losses.huber(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])).tolist()
        [0.125, 2.5]

    Reference: Huber, "Robust estimation of a location parameter", 1964.
    """
    if checks.is_concrete(delta) and not checks.known(delta) > 0:
        checks.fail("huber", "delta above 0", str(delta), "choose where the loss turns from quadratic to linear")
    p, t = targets.pair("huber", prediction, target)
    return _per_example(optax.huber_loss(p, t, delta=delta))


def log_cosh(prediction: Any, target: Any) -> Any:
    """The logarithm of the hyperbolic cosine: like ``e^2 / 2`` near 0, like ``|e| - log 2`` far away, and smooth.

    Formula: ``log(cosh(prediction - target))``

    Shapes: ``(batch, ...), (batch, ...) -> (batch,)``

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> [round(v, 4) for v in losses.log_cosh(jnp.array([1.0, -3.0]), jnp.array([0.0, 0.0])).tolist()]
        [0.4338, 2.3093]
    """
    return _per_example(optax.log_cosh(*targets.pair("log_cosh", prediction, target)))


def cosine_distance(prediction: Any, target: Any, *, epsilon: Any = 1e-12) -> Any:
    """One minus the cosine of the angle between vectors along the last axis: 0 for one direction, 2 for opposite ones.

    Formula: ``1 - p . t / (|p| |t|)``, each squared length at least ``epsilon``: a vector of zeros is at distance 1.

    Shapes: ``(batch, ..., n), (batch, ..., n) -> (batch,)``

    Args:
        prediction: vectors along the last axis.
        target: the vectors that they should point along.
        epsilon: the least squared length, so that the gradient at 0 is finite (up to ``epsilon ** -0.5``).

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> losses.cosine_distance(jnp.array([[2.0, 0.0], [0.0, 3.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])).tolist()
        [0.0, 1.0]
    """
    p, t = targets.pair("cosine_distance", prediction, target, 2, "(batch, ..., n)")
    return _per_example(optax.cosine_distance(p, t, epsilon=epsilon))


# ---- one of several classes ------------------------------------------------------------------------------------------


def softmax_cross_entropy(prediction: Any, target: Any, *, label_smoothing: Any = 0.0) -> Any:
    """Cross-entropy of a softmax over the last axis, from logits: the outputs of a last layer without an activation.

    Formula: ``-sum_c q_c log softmax(prediction)_c`` with ``q = (1 - s) * target + s / classes``, where the target of
    an integer label is one-hot and ``s = label_smoothing``

    Shapes: ``(batch, ..., classes)`` against integer labels ``(batch, ...)`` or rows of probabilities
    ``(batch, ..., classes)`` ``-> (batch,)``

    Args:
        prediction: logits.
        target: labels from 0 to ``classes - 1``, or rows that sum to 1.
        label_smoothing: from 0 to 1.

    Raises:
        TypeError: labels that are not integers.
        ValueError: fewer than two classes, other shapes, labels out of range, rows that do not sum to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> logits = jnp.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> print(losses.softmax_cross_entropy(logits, jnp.array([0, 2])).round(4))
        [0.2395 1.0986]

    Reference: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2015 (label smoothing).
    """
    logits, t = _over_classes("softmax_cross_entropy", prediction, target, label_smoothing)
    return _per_example(_cross_entropy(jax.nn.log_softmax(logits), t, label_smoothing))


def categorical_cross_entropy(prediction: Any, target: Any, *, label_smoothing: Any = 0.0, epsilon: Any = 1e-7) -> Any:
    """Cross-entropy of probabilities over the last axis: the outputs of a softmax. From logits it is more exact.

    Formula: ``-sum_c q_c log p_c``, with ``q`` as in ``softmax_cross_entropy`` and ``p`` clipped to ``[epsilon, 1]``.
    The clip acts on the value alone: the gradient at ``p = 0`` is ``-q / epsilon``, so that it can be unlearned.

    Shapes: ``(batch, ..., classes)`` against integer labels ``(batch, ...)`` or rows of probabilities
    ``(batch, ..., classes)`` ``-> (batch,)``

    Args:
        prediction: probabilities that sum to 1 over the last axis; that is not checked.
        target: labels from 0 to ``classes - 1``, or rows that sum to 1.
        label_smoothing: from 0 to 1.
        epsilon: the least probability.

    Raises:
        TypeError: labels that are not integers.
        ValueError: fewer than two classes, other shapes, labels out of range, rows that do not sum to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> losses.categorical_cross_entropy(jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.array([0, 1]))
        Array([ 0.6931472, 16.118095 ], dtype=float32)
    """
    p, t = _over_classes("categorical_cross_entropy", prediction, target, label_smoothing)
    return _per_example(_cross_entropy(jnp.log(_clipped(p, epsilon, 1.0)), t, label_smoothing))


def kl_divergence(prediction: Any, target: Any) -> Any:
    """Kullback-Leibler divergence over the last axis: *log*-probabilities predicted, probabilities as the target.

    Formula: ``sum_c target_c * (log(target_c) - prediction_c)``, where ``0 log 0 = 0``

    Shapes: ``(batch, ..., classes), (batch, ..., classes) -> (batch,)``

    The arguments are those of PyTorch and Optax: end the network in ``layers.log_softmax``. Keras takes probabilities.

    Raises:
        ValueError: other shapes, or rows of the target that do not sum to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> print(losses.kl_divergence(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[1.0, 0.0]])).round(4))
        [0.6931]

    Reference: Kullback and Leibler, "On information and sufficiency", 1951.
    """
    p, t = targets.pair("kl_divergence", prediction, target, 2, "(batch, ..., classes)")
    targets.expect_distributions("kl_divergence", target)
    # Differs from Optax, where a target of 0 is multiplied by what may be infinite: NaN in value or in the gradient.
    positive = jnp.where(t > 0, t, 1.0)
    return _per_example(jnp.where(t > 0, t * (jnp.log(positive) - p), 0.0).sum(axis=-1))


# ---- yes or no -------------------------------------------------------------------------------------------------------


def sigmoid_cross_entropy(prediction: Any, target: Any, *, label_smoothing: Any = 0.0) -> Any:
    """Binary cross-entropy of a sigmoid, from logits: each output is a yes or no of its own.

    Formula: ``-q log sigmoid(x) - (1 - q) log sigmoid(-x)`` with ``q = (1 - s) * target + s / 2``,
    where ``s = label_smoothing``

    Shapes: ``(batch, ...), (batch, ...) -> (batch,)``

    Args:
        prediction: logits.
        target: from 0 to 1, or booleans.
        label_smoothing: from 0 to 1.

    Raises:
        ValueError: other shapes, or targets outside 0 to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> print(losses.sigmoid_cross_entropy(jnp.array([0.0, 2.0]), jnp.array([1, 1])).round(4))
        [0.6931 0.1269]
    """
    logits, t = _yes_or_no("sigmoid_cross_entropy", prediction, target, label_smoothing)
    return _per_example(optax.sigmoid_binary_cross_entropy(logits, t))


def binary_cross_entropy(prediction: Any, target: Any, *, label_smoothing: Any = 0.0, epsilon: Any = 1e-7) -> Any:
    """Binary cross-entropy of probabilities: the outputs of a sigmoid. From logits it is more exact.

    Formula: ``-q log p - (1 - q) log(1 - p)``, with ``q`` as in ``sigmoid_cross_entropy`` and ``p`` clipped to
    ``[epsilon, 1 - epsilon]``. The clip acts on the value alone: the gradient at 0 and 1 is about ``1 / epsilon``.

    Shapes: ``(batch, ...), (batch, ...) -> (batch,)``

    Args:
        prediction: probabilities; that they are is not checked.
        target: from 0 to 1, or booleans.
        label_smoothing: from 0 to 1.
        epsilon: the least probability, and the least distance from 1; float32 cannot resolve less than 6e-8.

    Raises:
        ValueError: other shapes, or targets outside 0 to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> losses.binary_cross_entropy(jnp.array([0.5, 0.0]), jnp.array([1, 1]))
        Array([ 0.6931472, 16.118095 ], dtype=float32)
    """
    p, t = _yes_or_no("binary_cross_entropy", prediction, target, label_smoothing)
    p = _clipped(p, epsilon, 1.0 - epsilon)
    return _per_example(-t * jnp.log(p) - (1.0 - t) * jnp.log1p(-p))


def hinge(prediction: Any, target: Any) -> Any:
    """The hinge of support vector machines: 0 once a score is on its side of the margin.

    Formula: ``max(0, 1 - target * prediction)``, with targets -1 and 1. For 0 and 1, pass ``2 * target - 1``.

    Shapes: ``(batch, ...), (batch, ...) -> (batch,)``

    Raises:
        TypeError: boolean targets.
        ValueError: other shapes, or targets that are neither -1 nor 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import losses
        >>> losses.hinge(jnp.array([0.5, -2.0]), jnp.array([1, -1])).tolist()
        [0.5, 0.0]

    Reference: Cortes and Vapnik, "Support-vector networks", 1995.
    """
    p, t = targets.pair("hinge", prediction, target)
    if targets.array(target).dtype == bool:
        checks.fail("hinge", "targets -1 and 1", "booleans", "convert them: 2 * target.astype(int) - 1", TypeError)
    known = targets.known(target)
    if known is not None and not (abs(known) == 1).all():
        found = f"values from {known.min()} to {known.max()}"
        checks.fail("hinge", "targets -1 and 1", found, "map 0 and 1 to them: 2 * target - 1")
    return _per_example(optax.hinge_loss(p, t))


# ---- what they share -------------------------------------------------------------------------------------------------


def _over_classes(where: str, prediction: Any, target: Any, label_smoothing: Any) -> tuple[Any, Any]:
    checks.expect_between(where, "label_smoothing", label_smoothing, 0, 1)
    p, t = targets.over_classes(where, prediction, target, "sigmoid_cross_entropy or binary_cross_entropy")
    if t.ndim == p.ndim:
        targets.expect_distributions(where, target)
    else:
        targets.expect_labels(where, target, p.shape[-1])
    return p, t


def _cross_entropy(log_p: Any, target: Any, label_smoothing: Any) -> Any:
    if target.ndim < log_p.ndim:
        # Differs from Optax, which subtracts the logit of the label from the log-sum-exp of all: at logits of 1e4 that
        # leaves three digits of float32. This is no slower (its gradient is no scatter), and every label out of range,
        # -1 among them, gives NaN.
        number = log_p.shape[-1]
        hit = target[..., None] == jnp.arange(number).reshape((1,) * target.ndim + (number,))
        loss = -jnp.where(hit, log_p, 0.0).sum(axis=-1)
        loss = jnp.where((target >= 0) & (target < number), loss, jnp.nan)
    else:
        # 0 * -inf is 0 here: a class that a logit of -inf rules out costs nothing where the target excludes it too.
        loss = -(target * jnp.where((target == 0) & jnp.isneginf(log_p), 0.0, log_p)).sum(axis=-1)
    if targets.is_zero(label_smoothing):
        return loss
    return (1.0 - label_smoothing) * loss - label_smoothing * log_p.mean(axis=-1)


def _yes_or_no(where: str, prediction: Any, target: Any, label_smoothing: Any) -> tuple[Any, Any]:
    checks.expect_between(where, "label_smoothing", label_smoothing, 0, 1)
    p, t = targets.pair(where, prediction, target)
    targets.expect_probabilities(where, target)
    return p, t if targets.is_zero(label_smoothing) else (1.0 - label_smoothing) * t + 0.5 * label_smoothing


def _clipped(p: Any, low: Any, high: Any) -> Any:
    # The value of clip(p), to the bit, with the derivative of p: that of clip is 0 where a prediction is most wrong.
    return jax.lax.stop_gradient(jnp.clip(p, low, high)) + (p - jax.lax.stop_gradient(p))


def _per_example(losses: Any) -> Any:
    return losses.mean(axis=tuple(range(1, losses.ndim))) if losses.ndim > 1 else losses
