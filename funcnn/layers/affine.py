"""Layers that multiply by a matrix, or look rows of one up."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import glorot_uniform, normal, zeros

from funcnn import bits, checks, primitives
from funcnn.core import Layer, Tree, array_layer, param_dtype

Initializer = Callable[..., Any]


def dense(
    features: int | Sequence[int],
    *,
    axis: int | Sequence[int] = -1,
    bias: bool = True,
    kernel_init: Initializer = glorot_uniform(),
    bias_init: Initializer = zeros,
) -> Layer:
    """A matrix product over the last axis, or over several: every output is a weighted sum of all inputs there.

    Formula: ``y = x @ kernel + bias``

    Shapes: ``(batch, ..., n) -> (batch, ..., features)``; with several axes, those of ``features`` come last.

    Params: ``kernel (n, features)``, ``bias (features,)`` unless ``bias=False``; with several axes ``kernel (*n,
    *features)`` and ``bias (*features,)``. State: none.

    Args:
        features: the number of output features, or the shape of them.
        axis: the axis that is summed over, or several; not that of the batch.
        bias: whether to add one.
        kernel_init: from ``jax.nn.initializers``; it sees a matrix, also where there are several axes.
        bias_init: likewise.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has no such axis, or other features than the kernel was made for, or the params have other
            output features.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> params, state = layers.dense(3).init(jax.random.key(0), jnp.ones((5, 2)))
        >>> jax.tree.map(jnp.shape, params)
        {'bias': (3,), 'kernel': (2, 3)}
        >>> y, state = layers.dense(3).apply(params, state, jnp.ones((5, 2)))
        >>> y.shape
        (5, 3)
        >>> heads = layers.dense((4, 16), axis=(1, 2))
        >>> params, state = heads.init(jax.random.key(0), jnp.ones((5, 2, 3, 7)))
        >>> params["kernel"].shape, heads.apply(params, state, jnp.ones((5, 2, 3, 7)))[0].shape
        ((2, 3, 4, 16), (5, 7, 4, 16))

    Reference: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    shape = tuple(checks.expect_count("dense", "features", f) for f in _several(features))
    axes = _several(axis)
    plain = axes == (-1,) and not isinstance(features, Sequence)

    def summed(x: Any) -> tuple[int, ...]:
        _expect_features(x)
        if plain:
            return (len(x.shape) - 1,)
        rank = len(x.shape)
        found = tuple(sorted({a % rank for a in axes if isinstance(a, int) and -rank <= a < rank}))
        if len(found) != len(axes) or 0 in found:
            got = f"axis={axis} for an input of shape {tuple(x.shape)}"
            checks.fail(
                "dense", "different axes of the input, without that of the batch", got, "count them from the end"
            )
        return found

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        sizes = tuple(x.shape[a] for a in summed(x))
        # The keys of split(key), each on its own: the one that a bias of zeros ignores is then not compiled.
        kernel_key, bias_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        kernel = bits.draw(kernel_init, kernel_key, (math.prod(sizes), math.prod(shape)), param_dtype(x))
        params = {"kernel": kernel if plain else kernel.reshape(*sizes, *shape)}
        if bias:
            params["bias"] = bias_init(bias_key, shape, param_dtype(x))
        return params, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        found, kernel = summed(x), params["kernel"]
        sizes = tuple(x.shape[a] for a in found)
        if kernel.shape[: len(sizes)] != sizes:
            _fail_features("dense", kernel, sizes, x)
        _expect_outputs(kernel, len(sizes), shape)
        if bias:
            checks.expect_shape("dense", "bias", params["bias"], shape)
        kernel = kernel.astype(x.dtype)
        if not plain:
            kept = [a for a in range(x.ndim) if a not in found]
            x = x.transpose(*kept, *found)
            x = x.reshape(*x.shape[: len(kept)], math.prod(sizes))
            kernel = kernel.reshape(math.prod(sizes), math.prod(shape))
        y = primitives.matmul(x, kernel)
        y = y if plain else y.reshape(*y.shape[:-1], *shape)
        return (y + params["bias"].astype(x.dtype).reshape((1,) * (y.ndim - len(shape)) + shape) if bias else y), state

    return array_layer(init, apply, "dense", ("kernel", "bias") if bias else ("kernel",))


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _fail_features(kind: str, kernel: Any, sizes: tuple[int, ...], x: Any) -> NoReturn:
    checks.fail(
        kind,
        f"{_listed(kernel.shape[: len(sizes)])} input features, as its kernel {tuple(kernel.shape)} has",
        f"{_listed(sizes)} in an input of shape {tuple(x.shape)}",
        "pass inputs of the shape that init was given, or init again",
    )


def _expect_outputs(kernel: Any, inputs: int, features: tuple[int, ...]) -> None:
    if kernel.shape[inputs:] != features:
        got = f"{_listed(kernel.shape[inputs:])} in a kernel of shape {tuple(kernel.shape)}"
        fix = "pass the params that init of this very model returned"
        checks.fail("dense", f"{_listed(features)} output features", got, fix)


def _listed(sizes: tuple[int, ...]) -> str:
    return str(sizes[0] if len(sizes) == 1 else sizes)


def embedding(count: int, features: int, *, readout: bool = False, embedding_init: Initializer = normal(1.0)) -> Layer:
    """A table of vectors, one for each of ``count`` symbols; the input says which.

    Formula: ``y = embedding[x]``, the product of a one-hot vector and a matrix; with ``readout``, of a floating input
    ``y = x @ embedding.T``, one score for each symbol.

    Shapes: ``(batch, ...) -> (batch, ..., features)``; reading out, ``(batch, ..., features) -> (batch, ..., count)``

    Params: ``embedding (count, features)``. State: none.

    Args:
        count: the number of symbols; inputs run from 0 to ``count - 1``.
        features: the number of output features.
        readout: whether a floating input is read out: in a ``network`` that calls the layer at both ends, the two share
            one table.
        embedding_init: from ``jax.nn.initializers``. The default gives features of variance one, as the layers after it
            expect.

    Raises:
        TypeError: the input is not of whole numbers.
        ValueError: an input is negative or ``count`` and more, or the table has another shape.

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

    def reads_out(x: Any) -> bool:
        if not readout or not jnp.issubdtype(x.dtype, jnp.floating):
            _expect_integers(x)
            return False
        if not x.shape or x.shape[-1] != features:
            got, fix = f"{x.dtype}{tuple(x.shape)}", "if these are symbols, convert them: x.astype(jnp.int32)"
            checks.fail("embedding", f"whole numbers to look up, or {features} features to read out", got, fix)
        return True

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        dtype = param_dtype(x) if reads_out(x) else jnp.float32
        return {"embedding": bits.draw(embedding_init, key, (count, features), dtype)}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        table = jnp.asarray(params["embedding"])
        checks.expect_shape("embedding", "embedding", table, (count, features))
        if reads_out(x):
            return primitives.matmul(x, table.T.astype(x.dtype)), state
        if checks.is_concrete(x):
            _expect_rows(x, count)
        return table.at[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False), state

    return array_layer(init, apply, "embedding", ("embedding",))


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


def _expect_features(x: Any, kind: str = "dense") -> None:
    checks.expect_rank(kind, x, 1, "(batch, ..., features)", "pass an array with a last axis of features")
    checks.expect_floating(kind, x)
