"""Penalties: functions from parameters to a scalar that is added to the loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks, trees

KERNELS = "**/kernel"
"""What is penalized where no pattern says otherwise: weights, but no biases, scales or embeddings."""


def l1(strength: Any, *patterns: str) -> Callable[[Any], Any]:
    """The sum of absolute values, which draws small weights to exactly 0.

    Formula: ``strength * sum |w|``, over the parameters whose path matches a pattern (see ``funcnn.trees``).

    The gradient at 0 is 0: a weight that is exactly 0 is not pushed either way.

    Args:
        strength: at least 0; may be a tracer.
        patterns: by default ``"**/kernel"``; ``"**"`` is all parameters.

    Raises:
        ValueError: a negative strength; when called, a pattern that matches nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import penalties
        >>> params = {"dense_0": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([5.0, 5.0])}}
        >>> penalties.l1(0.5)(params).item(), penalties.l1(0.5, "**")(params).item()
        (1.5, 6.5)

    Reference: Tibshirani, "Regression shrinkage and selection via the lasso", 1996.
    """
    # Not jnp.abs, whose gradient at 0 is 1 in JAX.
    return _penalty("l1", strength, patterns, lambda w: w * jax.lax.stop_gradient(jnp.sign(w)))


def l2(strength: Any, *patterns: str) -> Callable[[Any], Any]:
    """The sum of squares, which draws all weights towards 0.

    Formula: ``strength * sum w^2``, over the parameters whose path matches a pattern (see ``funcnn.trees``).

    Its gradient is ``2 * strength * w``. Keras' ``l2(strength)`` is the same. PyTorch's ``weight_decay=d`` adds
    ``d * w`` to the gradient, which is ``strength = d / 2``, and does so for biases too (pattern ``"**"``). Adam
    rescales the gradient of a penalty like any other; for decay that is not rescaled take ``optax.adamw``.

    Args:
        strength: at least 0; may be a tracer.
        patterns: by default ``"**/kernel"``; ``"**"`` is all parameters.

    Raises:
        ValueError: a negative strength; when called, a pattern that matches nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import penalties
        >>> params = {"dense_0": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([5.0, 5.0])}}
        >>> penalties.l2(0.5)(params).item(), penalties.l2(0.5, "dense_0/bias")(params).item()
        (2.5, 25.0)

    Reference: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems", 1970.
    """
    return _penalty("l2", strength, patterns, jnp.square)


def _penalty(name: str, strength: Any, patterns: tuple[str, ...], size: Callable[[Any], Any]) -> Callable[[Any], Any]:
    if isinstance(strength, (str, dict)) or callable(strength):
        fix = f"begin with the strength: {name}(1e-4, {KERNELS!r})"
        checks.fail(name, "a strength, then patterns", f"{type(strength).__name__} {strength!r}", fix, TypeError)
    checks.expect_between(name, "strength", strength, 0.0, float("inf"))
    patterns = patterns or (KERNELS,)

    def penalty(params: Any) -> Any:
        leaves = [jnp.asarray(leaf) for leaf in trees.select(params, *patterns, where=name).values()]
        # In float32 at least: the squares of half precision overflow, and their sum loses what is small.
        return strength * sum(size(w.astype(jnp.promote_types(w.dtype, jnp.float32))).sum() for w in leaves)

    return penalty
