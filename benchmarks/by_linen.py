"""Flax Linen: a jitted step on a ``TrainState``, called for each batch, as in its Quick start.

The rows of a batch are gathered inside the step, which is faster than to index in NumPy; the losses of a run are read
at its end. The runs of W7 are side by side, with ``jax.vmap`` over initialisation and step, where its guide on
ensembling has ``jax.pmap`` over devices.
"""

# Names and code say what a network is.
# ruff: noqa: D101, D102

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from workloads import Workload, rates, seeds

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7")

Loss = Callable[[Any, Any], Any]

Dense = partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())
Conv = partial(nn.Conv, kernel_size=(3, 3), kernel_init=nn.initializers.glorot_uniform())

# ---- networks --------------------------------------------------------------------------------------------------------


class Xor(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.tanh(Dense(4)(x))
        x = nn.sigmoid(Dense(4)(x))
        return nn.sigmoid(Dense(1)(x))


class Mlp(nn.Module):
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        *hidden, outputs = self.sizes
        for size in hidden:
            x = nn.relu(Dense(size)(x))
        return Dense(outputs)(x)


class Images(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for features in (32, 64):
            x = nn.relu(Conv(features)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        x = nn.relu(Dense(128)(x))
        return Dense(10)(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any, mask: Any) -> Any:
        attention = nn.MultiHeadDotProductAttention(num_heads=4, kernel_init=nn.initializers.glorot_uniform())
        x = x + attention(nn.LayerNorm(epsilon=1e-5)(x), mask=mask)
        h = nn.gelu(Dense(512)(nn.LayerNorm(epsilon=1e-5)(x)))
        return x + Dense(128)(h)


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        embed = nn.Embed(64, 128, embedding_init=nn.initializers.normal(0.02))
        x = embed(tokens) + self.param("positions", nn.initializers.normal(0.02), (64, 128))
        mask = nn.make_causal_mask(tokens)
        for _ in range(4):
            x = Block()(x, mask)
        return embed.attend(nn.LayerNorm(epsilon=1e-5)(x))


def squared(outputs: Any, y: Any) -> Any:
    return jnp.mean((outputs - y) ** 2)


def binary(logits: Any, y: Any) -> Any:
    return optax.sigmoid_binary_cross_entropy(logits, y).mean()


def classes(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


NETWORKS: dict[str, tuple[nn.Module, Loss, optax.GradientTransformation]] = {
    "W1": (Xor(), squared, optax.sgd(0.4)),
    "W2": (Mlp((16, 8, 1)), binary, optax.adam(0.01)),
    "W3": (Mlp((128, 64, 10)), classes, optax.adam(1e-3)),
    "W4": (Mlp((512, 512, 10)), classes, optax.adam(1e-3)),
    "W5": (Images(), classes, optax.adam(1e-3)),
    "W6": (Transformer(), classes, optax.adamw(1e-3, weight_decay=1e-4)),
}

# ---- training --------------------------------------------------------------------------------------------------------


def updated(state: TrainState, loss: Loss, x: Any, y: Any) -> tuple[TrainState, Any]:
    value, gradients = jax.value_and_grad(lambda params: loss(state.apply_fn(params, x), y))(state.params)
    return state.apply_gradients(grads=gradients), value


def batches(random: np.random.Generator, n: int, size: int | None) -> Iterator[Any]:
    """The rows of each batch of an epoch, the last one smaller; ``None`` where all are one batch."""
    if size is None:
        yield None
        return
    order = random.permutation(n).astype(np.int32)
    for start in range(0, n, size):
        yield order[start : start + size]


def started(
    name: str, work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    """``train()``: a whole run of ``work.epochs`` epochs, waited for; and ``predict(x)``: raw outputs."""
    if name == "W7":
        return ensemble(work, x, y, seed)
    network, loss, optimizer = NETWORKS[name]
    random, inputs, targets = np.random.default_rng(seed), jnp.asarray(x), jnp.asarray(y)
    params = jax.jit(network.init)(jax.random.key(seed), inputs[:1])
    state = TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)
    forward = jax.jit(network.apply)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, x: Any, y: Any, rows: Any) -> tuple[TrainState, Any]:
        return updated(state, loss, x, y) if rows is None else updated(state, loss, x[rows], y[rows])

    def train() -> None:
        nonlocal state
        history = []
        for _ in range(work.epochs):
            for rows in batches(random, len(x), work.batch_size):
                state, value = step(state, inputs, targets, rows)
                history.append(value)
        jax.device_get(history)
        jax.block_until_ready(state)

    return train, lambda x: np.asarray(forward(state.params, x))


def ensemble(
    work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    network = Xor()
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.4)
    inputs, targets = jnp.asarray(x), jnp.asarray(y)

    @jax.jit
    @jax.vmap
    def init(key: Any, rate: Any) -> TrainState:
        params = network.init(key, inputs)
        state = TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)
        state.opt_state.hyperparams["learning_rate"] = rate
        return state

    @partial(jax.jit, donate_argnums=0)
    @partial(jax.vmap, in_axes=(0, None, None))
    def step(state: TrainState, x: Any, y: Any) -> tuple[TrainState, Any]:
        return updated(state, squared, x, y)

    forward = jax.jit(jax.vmap(network.apply, in_axes=(0, None)))
    state = init(jax.random.split(jax.random.key(seed), 4)[seeds(work.members)], rates(work.members))

    def train() -> None:
        nonlocal state
        history = []
        for _ in range(work.epochs):
            state, value = step(state, inputs, targets)
            history.append(value)
        jax.device_get(history)
        jax.block_until_ready(state)

    return train, lambda x: np.asarray(forward(state.params, x))
