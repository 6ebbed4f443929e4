"""W6 by hand: a character transformer in plain JAX, its blocks written out one after the other.

Its leading axes are one wherever only the features matter: matrix products and layer norms of (batch * time, features),
whose gradients are fast on a CPU; attention alone sees batch, time and heads.
"""

from typing import Any

import jax
import jax.numpy as jnp

Params = Any

VOCABULARY = LENGTH = 64
WIDTH, HEADS, HIDDEN, BLOCKS = 128, 4, 512, 4

glorot = jax.nn.initializers.glorot_uniform()
small = jax.nn.initializers.normal(0.02)


def init(key: Any) -> Params:
    embedding_key, position_key, *block_keys = jax.random.split(key, 2 + BLOCKS)
    return {
        "embedding": small(embedding_key, (VOCABULARY, WIDTH)),
        "positions": small(position_key, (LENGTH, WIDTH)),
        "blocks": [block_init(block_key) for block_key in block_keys],
        "norm": norm_init(),
    }


def norm_init() -> Params:
    return jnp.ones(WIDTH), jnp.zeros(WIDTH)


def block_init(key: Any) -> Params:
    sizes = {"query": WIDTH, "key": WIDTH, "value": WIDTH, "output": WIDTH, "wide": HIDDEN}
    *keys, last_key = jax.random.split(key, len(sizes) + 1)
    dense = {
        name: (glorot(k, (WIDTH, size)), jnp.zeros(size)) for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    narrow = glorot(last_key, (HIDDEN, WIDTH)), jnp.zeros(WIDTH)
    return {**dense, "narrow": narrow, "norm_1": norm_init(), "norm_2": norm_init()}


def norm(params: Params, x: Any) -> Any:
    scale, bias = params
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale + bias


def dense(params: Params, x: Any) -> Any:
    kernel, bias = params
    return x @ kernel + bias


def attention(params: Params, x: Any, batch: int) -> Any:
    q, k, v = (
        dense(params[name], x).reshape(batch, -1, HEADS, WIDTH // HEADS).swapaxes(1, 2)
        for name in ("query", "key", "value")
    )
    scores = q @ k.swapaxes(2, 3) * (WIDTH // HEADS) ** -0.5
    time = scores.shape[-1]
    scores = jnp.where(jnp.tril(jnp.ones((time, time), bool)), scores, -jnp.inf)
    seen = jax.nn.softmax(scores) @ v
    return dense(params["output"], seen.swapaxes(1, 2).reshape(x.shape))


def scores(params: Params, tokens: Any) -> Any:
    """Scores for the next token at each position, ``(batch, time) -> (batch, time, vocabulary)``."""
    batch, time = tokens.shape
    x = (params["embedding"][tokens] + params["positions"][:time]).reshape(-1, WIDTH)
    for block in params["blocks"]:
        x = x + attention(block, norm(block["norm_1"], x), batch)
        x = x + dense(block["narrow"], jax.nn.gelu(dense(block["wide"], norm(block["norm_2"], x))))
    return (norm(params["norm"], x) @ params["embedding"].T).reshape(batch, time, VOCABULARY)
