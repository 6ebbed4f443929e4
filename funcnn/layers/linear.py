"""Layers that multiply by a matrix, or look rows of one up."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import glorot_uniform, normal, zeros

from funcnn import checks, primitives
from funcnn.core import Layer, Tree, array_layer, param_dtype

Initializer = Callable[..., Any]


def dense(
    features: int, *, bias: bool = True, kernel_init: Initializer = glorot_uniform(), bias_init: Initializer = zeros
) -> Layer:
    """A matrix product over the last axis: every output feature is a weighted sum of all input features.

    Formula: ``y = x @ kernel + bias``

    Shapes: ``(batch, ..., n) -> (batch, ..., features)``

    Params: ``kernel (n, features)``, ``bias (features,)`` unless ``bias=False``. State: none.

    Args:
        features: the number of output features.
        bias: whether to add one.
        kernel_init: from ``jax.nn.initializers``.
        bias_init: likewise.

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
        # The keys of split(key), each on its own: the one that a bias of zeros ignores is then not compiled.
        kernel_key, bias_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
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


def embedding(count: int, features: int, *, embedding_init: Initializer = normal(1.0)) -> Layer:
    """A table of vectors, one for each of ``count`` symbols; the input says which.

    Formula: ``y = embedding[x]``, the product of a one-hot vector and a matrix

    Shapes: ``(batch, ...) -> (batch, ..., features)``

    Params: ``embedding (count, features)``. State: none.

    Args:
        count: the number of symbols; inputs run from 0 to ``count - 1``.
        features: the number of output features.
        embedding_init: from ``jax.nn.initializers``. The default gives features of variance one, as the layers after it
            expect.

    Raises:
        TypeError: the input is not of whole numbers.
        ValueError: an input is negative or ``count`` and more.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> layer, tokens = layers.embedding(10, 4), jnp.array([[1, 2, 3], [9, 0, 1]])
        >>> params, state = layer.init(jax.random.key(0), tokens)
        >>> layer.apply(params, state, tokens)[0].shape
        (2, 3, 4)
        >>> layer.apply(params, state, jnp.array([[1, 10]]))
        Traceback (most recent call last):
        ...
        ValueError: embedding: expected whole numbers from 0 to 9, got 1 to 10 in an input of shape (1, 2); ...

    Notes:
        1. Inside ``jit``, ``vmap`` or a scan values are not known, and nothing can be raised. There a number out of
           range gives NaN, which is seen, and no gradient; plain indexing in JAX would take the last row in silence,
           or count a negative number from the end.

    Reference: Bengio, Ducharme, Vincent and Jauvin, "A neural probabilistic language model", 2003.
    """
    count = checks.expect_count("embedding", "count", count)
    features = checks.expect_count("embedding", "features", features)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        _expect_integers(x)
        return {"embedding": embedding_init(key, (count, features), jnp.float32)}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        _expect_integers(x)
        table = jnp.asarray(params["embedding"])
        if checks.is_concrete(x):
            _expect_rows(x, table.shape[0])
        return table.at[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False), state

    return array_layer(init, apply, "embedding")


def _expect_integers(x: Any) -> None:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        fix = "convert them: x.astype(jnp.int32)"
        checks.fail("embedding", "whole numbers", f"{x.dtype}{tuple(x.shape)}", fix, TypeError)


def _expect_rows(x: Any, count: int) -> None:
    values = np.asarray(x)
    if values.size and (values.min() < 0 or values.max() >= count):
        checks.fail(
            "embedding",
            f"whole numbers from 0 to {count - 1}",
            f"{values.min()} to {values.max()} in an input of shape {values.shape}",
            "number the symbols from 0, or raise count",
        )


def _expect_features(x: Any) -> None:
    checks.expect_rank("dense", x, 1, "(batch, ..., features)", "pass an array with a last axis of features")
    checks.expect_floating("dense", x)
