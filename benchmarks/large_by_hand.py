"""The larger workloads as a person writes them in plain JAX and Optax: one ``lax.scan`` over the steps of an epoch.

It needs nothing of funcnn. The carry is donated. Weights are float32 and cast for the products; norms, softmax and loss
are float32. The blocks of GPT are stacked and scanned, and computed again for the gradient; on a GPU their attention is
cuDNN's (``FUNCNN_BENCH_ATTENTION=xla`` takes XLA's). The MLPs are ``jax.vmap`` of a whole run over keys and rates.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn.initializers import glorot_uniform, normal
from one_large import Large, rates

Params = Any
Stats = Any  # running averages

# ---- GPT -------------------------------------------------------------------------------------------------------------


def gpt_init(size: Large, key: Any) -> tuple[Params, Stats]:
    keys, n, width = jax.random.split(key, 6), size.blocks[0], size.width
    glorot = glorot_uniform(batch_axis=0)
    inputs = glorot_uniform(batch_axis=(0, 1))(keys[0], (n, 3, width, width)).swapaxes(1, 2)  # each kernel is Glorot's
    blocks = {
        "inputs": (inputs.reshape(n, width, 3 * width), jnp.zeros((n, 3 * width))),
        "output": (glorot(keys[1], (n, width, width)), jnp.zeros((n, width))),
        "wide": (glorot(keys[2], (n, width, 4 * width)), jnp.zeros((n, 4 * width))),
        "narrow": (glorot(keys[3], (n, 4 * width, width)), jnp.zeros((n, width))),
        "norm_1": (jnp.ones((n, width)), jnp.zeros((n, width))),
        "norm_2": (jnp.ones((n, width)), jnp.zeros((n, width))),
    }
    return {
        "embedding": normal(0.02)(keys[4], (size.classes, width)),
        "positions": normal(0.02)(keys[5], (size.shape[0], width)),
        "blocks": blocks,
        "norm": (jnp.ones(width), jnp.zeros(width)),
    }, {}


def norm(params: Params, x: Any) -> Any:
    wide, (scale, bias) = x.astype(jnp.float32), params
    wide = wide - wide.mean(-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-5) * scale + bias
    return wide.astype(x.dtype)


def dense(params: Params, x: Any) -> Any:
    kernel, bias = params
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def attention(params: Params, x: Any, heads: int) -> Any:
    q, k, v = (a.reshape(*x.shape[:2], heads, -1) for a in jnp.split(dense(params["inputs"], x), 3, axis=-1))
    kernel = os.environ.get("FUNCNN_BENCH_ATTENTION", "cudnn") if jax.default_backend() == "gpu" else "xla"
    seen = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kernel)
    return dense(params["output"], seen.reshape(x.shape))


def gpt(size: Large, params: Params, stats: Stats, tokens: Any) -> tuple[Any, Stats]:
    embedding = params["embedding"].astype(size.compute)
    x = embedding[tokens] + params["positions"].astype(size.compute)

    def block(x: Any, one: Params) -> tuple[Any, None]:
        x = x + attention(one, norm(one["norm_1"], x), size.heads)
        hidden = jax.nn.gelu(dense(one["wide"], norm(one["norm_2"], x)), approximate=True)
        return x + dense(one["narrow"], hidden), None

    x, _ = jax.lax.scan(jax.checkpoint(block, prevent_cse=False), x, params["blocks"])
    return norm(params["norm"], x) @ embedding.T, stats


# ---- ResNet-50 -------------------------------------------------------------------------------------------------------


def bottlenecks(size: Large) -> Iterator[tuple[str, int, int, int, bool]]:
    """Of each block: its name, features before and inside, stride, and whether its shortcut is a convolution."""
    before = size.width
    for i, count in enumerate(size.blocks):
        inside = size.width * 2**i
        for j in range(count):
            yield f"{i}.{j}", before, inside, 2 if i and not j else 1, not j
            before = 4 * inside


def resnet_init(size: Large, key: Any) -> tuple[Params, Stats]:
    shapes = {"stem": (7, 7, size.shape[-1], size.width)}
    for name, before, inside, _, changes in bottlenecks(size):
        shapes |= {f"{name}.a": (1, 1, before, inside), f"{name}.b": (3, 3, inside, inside)}
        shapes |= {f"{name}.c": (1, 1, inside, 4 * inside)}
        shapes |= {f"{name}.shortcut": (1, 1, before, 4 * inside)} if changes else {}
    last = 4 * size.width * 2 ** (len(size.blocks) - 1)
    keys = jax.random.split(key, len(shapes) + 1)
    params = {
        name: (glorot_uniform()(k, shape), jnp.ones(shape[-1]), jnp.zeros(shape[-1]))
        for k, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    stats = {name: (jnp.zeros(shape[-1]), jnp.ones(shape[-1])) for name, shape in shapes.items()}
    return params | {"head": (glorot_uniform()(keys[-1], (last, size.classes)), jnp.zeros(size.classes))}, stats


def conv_norm(params: Params, stats: Stats, x: Any, stride: int) -> tuple[Any, Stats]:
    """A convolution and batch norm; the variance is ``mean(x^2) - mean(x)^2``, one pass, as people write it."""
    (kernel, scale, bias), edge = params, (params[0].shape[0] // 2,) * 2
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), (edge, edge), dimension_numbers=layout
    )
    wide = y.astype(jnp.float32)
    mean = wide.mean((0, 1, 2))
    var = jnp.maximum((wide * wide).mean((0, 1, 2)) - mean * mean, 0.0)
    n = y.size // y.shape[-1]
    stats = tuple(0.9 * old + 0.1 * new for old, new in zip(stats, (mean, var * (n / (n - 1))), strict=True))
    return ((wide - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias).astype(y.dtype), stats


def resnet(size: Large, params: Params, stats: Stats, images: Any) -> tuple[Any, Stats]:
    new: dict[str, Any] = {}

    def layer(name: str, x: Any, stride: int = 1) -> Any:
        y, new[name] = conv_norm(params[name], stats[name], x, stride)
        return y

    x = jax.nn.relu(layer("stem", images.astype(size.compute), 2))
    edges = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)
    for name, _, _, stride, changes in bottlenecks(size):
        y = jax.nn.relu(layer(f"{name}.a", x))
        y = jax.nn.relu(layer(f"{name}.b", y, stride))
        shortcut = layer(f"{name}.shortcut", x, stride) if changes else x
        x = jax.nn.relu(shortcut + layer(f"{name}.c", y))
    return dense(params["head"], x.mean((1, 2))), new


# ---- MLPs ------------------------------------------------------------------------------------------------------------


def mlp_init(size: Large, key: Any) -> tuple[Params, Stats]:
    sizes = (*size.shape, size.width, size.classes)
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, sizes, sizes[1:], strict=False)
    return [(glorot_uniform()(k, (a, b)), jnp.zeros(b)) for k, a, b in pairs], {}


def mlp(size: Large, params: Params, stats: Stats, x: Any) -> tuple[Any, Stats]:
    del size
    first, second = params
    return dense(second, jax.nn.relu(dense(first, x))), stats


# ---- training --------------------------------------------------------------------------------------------------------


class ByHand(NamedTuple):
    """``init(size, key) -> params, stats``, ``outputs(size, params, stats, x) -> logits, stats``, and the optimizer."""

    init: Callable[[Large, Any], tuple[Params, Stats]]
    outputs: Callable[[Large, Params, Stats, Any], tuple[Any, Stats]]
    optimizer: Callable[..., optax.GradientTransformation]


NETWORKS = {
    "GPT": ByHand(gpt_init, gpt, lambda: optax.adamw(6e-4, weight_decay=0.1)),
    "ResNet-50": ByHand(resnet_init, resnet, lambda: optax.sgd(0.1, momentum=0.9)),
    "MLPs": ByHand(mlp_init, mlp, optax.adam),
}


def parameters(name: str, size: Large) -> int:
    """How many there are, of all members."""
    params, _ = jax.eval_shape(lambda: NETWORKS[name].init(size, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(params)) * size.members


def loss(name: str, size: Large, params: Params, stats: Stats, x: Any, y: Any) -> tuple[Any, Stats]:
    logits, stats = NETWORKS[name].outputs(size, params, stats, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), y).mean(), stats


def start(name: str, size: Large, key: Any, *given: Any) -> Any:
    """The carry before training: params, running averages, and what the optimizer keeps."""
    params, stats = NETWORKS[name].init(size, key)
    return params, stats, NETWORKS[name].optimizer(*given).init(params)


def trained(name: str, size: Large, carry: Any, key: Any, x: Any, y: Any, *given: Any) -> Any:
    """The steps of a measured call: the carry, and the losses of the epochs."""
    optimizer, whole = NETWORKS[name].optimizer(*given), len(x) // size.batch_size * size.batch_size

    def step(carry: Any, rows: Any) -> Any:
        params, stats, kept = carry
        value_and_gradient = jax.value_and_grad(lambda *a: loss(name, size, *a), has_aux=True)
        (value, stats), gradient = value_and_gradient(params, stats, x[rows], y[rows])
        updates, kept = optimizer.update(gradient, kept, params)
        return (optax.apply_updates(params, updates), stats, kept), value

    def epoch(carry: Any, key: Any) -> Any:
        order = jax.random.permutation(key, len(x))[:whole].reshape(-1, size.batch_size)
        carry, losses = jax.lax.scan(step, carry, order)
        return carry, losses.mean()

    return jax.lax.scan(epoch, carry, jax.random.split(key, size.epochs))


@cache
def program(name: str, size: Large) -> Callable[..., Any]:
    """The compiled call: ``(carry, key, x, y) -> carry, losses``; of the MLPs ``(keys, rates, x, y) -> losses``."""

    def member(key: Any, rate: Any, x: Any, y: Any) -> Any:
        init_key, shuffle_key = jax.random.split(key)
        return trained(name, size, start(name, size, init_key, rate), shuffle_key, x, y, rate)

    def members(keys: Any, rates: Any, x: Any, y: Any) -> Any:
        carry, losses = jax.vmap(member, in_axes=(0, 0, None, None))(keys, rates, x, y)
        return carry, losses.mean(0)

    if name == "MLPs":
        return jax.jit(members)
    return jax.jit(lambda *a: trained(name, size, *a), donate_argnums=0)


def started(name: str, size: Large, x: np.ndarray, y: np.ndarray, seed: int) -> Callable[[], np.ndarray]:
    """``train()``: a measured call, waited for; it gives the losses of its epochs."""
    call, key, data = program(name, size), jax.random.key(seed), jax.device_put((x, y))
    if name == "MLPs":
        keys, each = jax.random.split(key, size.members), jnp.repeat(jnp.asarray(rates(size)), size.seeds)
        return lambda: np.asarray(jax.block_until_ready(call(keys, each, *data))[1])
    carry = jax.jit(lambda key: start(name, size, key))(key)

    def train() -> np.ndarray:
        nonlocal carry
        carry, losses = jax.block_until_ready(call(carry, key, *data))
        return np.asarray(losses)

    return train
