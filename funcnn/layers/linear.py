"""Layers that multiply by a matrix, or look rows of one up."""

from collections.abc import Callable
from typing import Any

import jax
from jax.nn.initializers import glorot_uniform, zeros

from funcnn import checks, primitives
from funcnn.core import Layer, Tree, array_layer, param_dtype

Initializer = Callable[..., Any]


def dense(features: int, *, bias: bool = True, kernel_init: Initializer = glorot_uniform(), bias_init: Initializer = zeros) -> Layer:
    """A matrix product over the last axis: every output feature is a weighted sum of all input features.

    Formula: ``y = x @ kernel + bias``

    Shapes: ``(batch, ..., n) -> (batch, ..., features)``

    Params: ``kernel (n, features)``, ``bias (features,)`` unless ``bias=False``. State: none.

    Args:
        features: the number of output features.
        bias: whether to add one.
        kernel_init: from ``jax.nn.initializers``, as is ``bias_init``.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has no axis, or other features than the kernel was made for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> params, state = layers.dense(3).init(jax.random.key(0), jnp.ones((5, 2)))
        >>> jax.tree.map(jnp.shape, params)
        {'bias': (3,), 'kernel': (2, 3)}
        >>> y, state = layers.dense(3).apply(params, state, jnp.ones((5, 2)))
        >>> y.shape
        (5, 3)

    Reference: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    features = checks.expect_count("dense", "features", features)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        _expect_features(x)
        kernel_key, bias_key = jax.random.split(key)
        params = {"kernel": kernel_init(kernel_key, (x.shape[-1], features), param_dtype(x))}
        if bias:
            params["bias"] = bias_init(bias_key, (features,), param_dtype(x))
        return params, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        _expect_features(x)
        kernel = params["kernel"]
        if x.shape[-1] != kernel.shape[0]:
            checks.fail(
                "dense",
                f"{kernel.shape[0]} input features, as its kernel {tuple(kernel.shape)} has",
                f"{x.shape[-1]} in an input of shape {tuple(x.shape)}",
                "pass inputs of the shape that init was given, or init again",
            )
        y = primitives.matmul(x, kernel.astype(x.dtype))
        return (y + primitives.along_last(params["bias"].astype(x.dtype), y.ndim) if bias else y), state

    return array_layer(init, apply, "dense")


def _expect_features(x: Any) -> None:
    checks.expect_rank("dense", x, 1, "(batch, ..., features)", "pass an array with a last axis of features")
    checks.expect_floating("dense", x)
