"""Layers that draw random numbers while training."""

from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks
from funcnn.core import Layer, Tree, array_layer, expect_key


def dropout(rate: Any) -> Layer:
    """While training, sets each feature to zero with probability ``rate`` and scales up the others; else the identity.

    Formula: ``y = x m / (1 - rate)``, with ``m = 0`` with probability ``rate`` and 1 otherwise, drawn for each entry;
    ``y = 0`` at a rate of 1. So the mean of ``y`` is ``x``. The gradient by ``rate`` is that of the scale alone, with
    the draws held fixed.

    Shapes: ``(batch, ...) -> (batch, ...)``

    Params and State: none.

    Args:
        rate: the probability of dropping, from 0 to 1, both exact; may be a tracer.

    Raises:
        TypeError: there is no key while training, or the input is not floating.
        ValueError: ``rate`` is not between 0 and 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.ones((1, 8))
        >>> print(layers.dropout(0.5).apply({}, {}, x)[0])
        [[1. 1. 1. 1. 1. 1. 1. 1.]]
        >>> y, _ = layers.dropout(0.5).apply({}, {}, x, key=jax.random.key(0), training=True)
        >>> sorted(set(y.ravel().tolist()))
        [0.0, 2.0]
        >>> layers.dropout(0.5).apply({}, {}, x, training=True)
        Traceback (most recent call last):
        ...
        TypeError: dropout: expected a key when training, got None; pass key=jax.random.key(0) to apply, ...

    Notes:
        1. ``rate`` is the probability of dropping, as in PyTorch, Keras and Flax; in stax and in the paper it is that
           of keeping.

    Reference: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014.
    """
    checks.expect_between("dropout", "rate", rate, 0.0, 1.0)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        checks.expect_floating("dropout", x)
        return {}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params
        checks.expect_floating("dropout", x)
        if not training:
            return x, state
        if key is None:
            fix = "pass key=jax.random.key(0) to apply, a new one for each step"
            checks.fail("dropout", "a key when training", "None", fix, TypeError)
        expect_key("dropout", key)
        keep = 1.0 - jnp.asarray(rate, jnp.promote_types(x.dtype, jnp.float32))
        kept = jax.random.bernoulli(key, keep, x.shape)
        # At a rate of 1 nothing is kept, and dividing by one in place of zero keeps the gradients finite.
        scale = 1.0 / jnp.where(keep > 0, keep, 1.0)
        return jnp.where(kept, x * scale.astype(x.dtype), jnp.zeros((), x.dtype)), state

    return array_layer(init, apply, "dropout")
