"""Matrix product, convolution and pooling in the forms that are fast, chosen by static shape and platform, in one place."""

import math
from typing import Any

import jax.numpy as jnp


def matmul(x: Any, kernel: Any) -> Any:
    """``x @ kernel`` over the last axis of ``x``, with all other axes as one.

    The gradients that JAX derives for a product with several batch axes contract over all of them and are slow on CPU;
    with one batch axis they are plain matrix products.
    """
    if x.ndim <= 2:
        return jnp.matmul(x, kernel)
    y = jnp.matmul(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def along_last(vector: Any, ndim: int) -> Any:
    """A vector of features with axes of size one before it, so that it meets ``ndim`` axes without implicit promotion."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)
