"""Layers that tell a sequence where each of its elements stands."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.nn.initializers import normal

from funcnn import bits, checks
from funcnn.core import Layer, Tree, array_layer, param_dtype

Initializer = Callable[..., Any]


def sinusoidal_positions(*, base: float = 10000.0, cache: bool = False) -> Layer:
    """Adds waves of many lengths to a sequence, from which positions and distances can be read.

    Formula: ``y[b, t] = x[b, t] + p[t]``, the first half of ``p[t]`` ``sin(t f)``, the other ``cos(t f)``, with
    ``f[i] = base ** (-2 i / features)``

    Shapes: ``(batch, time, features) -> (batch, time, features)``, an even number of features.

    Params: none. State: none; with ``cache``, ``index``.

    Args:
        base: of the wave lengths, which go from ``2 pi`` to ``base * 2 pi``.
        cache: for generation: while not training, positions go on from call to call.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has other axes, or an odd number of features.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> y, _ = layers.sinusoidal_positions().apply({}, {}, jnp.zeros((1, 2, 2)))
        >>> [round(float(value), 2) for value in y.ravel()]
        [0.0, 1.0, 0.84, 0.54]

    Notes:
        1. Sines stand in the first half and cosines in the second, as in the authors' own code; the paper alternates
           them, which is the same up to the order of features.

    Reference: Vaswani et al., "Attention is all you need", 2017.
    """

    def table(positions: Any, features: int) -> Any:
        frequency = base ** (-2 * jnp.arange(features // 2, dtype=jnp.float32) / features)
        angle = positions.astype(jnp.float32)[:, None] * frequency[None]
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        expect_input(x)
        return {}, _start(cache)

    def expect_input(x: Any) -> None:
        _expect_sequence("sinusoidal_positions", x)
        if x.shape[-1] % 2:
            fix = "make them even, half for sines and half for cosines"
            checks.fail("sinusoidal_positions", "an even number of features", str(x.shape[-1]), fix)

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params, key
        expect_input(x)
        positions, state = _positions(state, x.shape[1], training)
        return x + table(positions, x.shape[-1]).astype(x.dtype)[None], state

    return array_layer(init, apply, "sinusoidal_positions", (), tuple(_start(cache)))


def learned_positions(length: int, *, cache: bool = False, embedding_init: Initializer = normal(0.02)) -> Layer:
    """Adds a vector to each element of a sequence, which is learned for its position.

    Formula: ``y[b, t] = x[b, t] + embedding[t]``

    Shapes: ``(batch, time, features) -> (batch, time, features)``, with ``time`` up to ``length``.

    Params: ``embedding (length, features)``. State: none; with ``cache``, ``index``.

    Args:
        length: of the longest sequence.
        cache: for generation: while not training, positions go on from call to call. Beyond ``length`` they give NaN.
        embedding_init: from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has other axes, is longer, or has other features than the params were made for, or these
            are of another length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> layer = layers.learned_positions(10)
        >>> params, state = layer.init(jax.random.key(0), jnp.zeros((2, 6, 4)))
        >>> params["embedding"].shape, layer.apply(params, state, jnp.zeros((2, 6, 4)))[0].shape
        ((10, 4), (2, 6, 4))

    Reference: Gehring et al., "Convolutional sequence to sequence learning", 2017.
    """
    length = checks.expect_count("learned_positions", "length", length)

    def expect_input(x: Any) -> None:
        _expect_sequence("learned_positions", x)
        if x.shape[1] > length:
            got = f"{x.shape[1]} in an input of shape {tuple(x.shape)}"
            checks.fail("learned_positions", f"at most {length} elements", got, "raise length, or cut the sequence")

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_input(x)
        return {"embedding": bits.draw(embedding_init, key, (length, x.shape[-1]), param_dtype(x))}, _start(cache)

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key
        expect_input(x)
        embedding = params["embedding"].astype(x.dtype)
        if embedding.ndim == 2 and embedding.shape[-1] != x.shape[-1]:
            got, fix = f"{x.shape[-1]} in an input of shape {tuple(x.shape)}", "pass inputs as init was given"
            checks.fail("learned_positions", f"{embedding.shape[-1]} features", got, fix)
        checks.expect_shape("learned_positions", "embedding", embedding, (length, x.shape[-1]))
        positions, state = _positions(state, x.shape[1], training)
        chosen = embedding.at[positions].get(mode="fill", fill_value=jnp.nan) if state else embedding[: x.shape[1]]
        return x + chosen[None], state

    return array_layer(init, apply, "learned_positions", ("embedding",), tuple(_start(cache)))


def _start(cache: bool) -> Tree:
    return {"index": jnp.zeros((), jnp.int32)} if cache else {}


def _positions(state: Tree, time: int, training: bool) -> tuple[Any, Tree]:
    """The positions of a sequence, and the state after it; training begins each sequence at zero."""
    if not state or training:
        return jnp.arange(time), state
    return state["index"] + jnp.arange(time), {"index": state["index"] + time}


def _expect_sequence(kind: str, x: Any) -> None:
    if len(x.shape) != 3:
        fix = "embed the tokens first; of one example add a batch axis: x[None]"
        checks.fail(kind, "(batch, time, features)", f"shape {tuple(x.shape)}", fix)
    checks.expect_floating(kind, x)
