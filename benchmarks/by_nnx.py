"""Flax NNX: a step with ``nnx.jit_partial`` on model and optimizer, called for each batch.

The step is that of the NNX basics; of ``nnx.jit``, ``nnx.cached_partial`` and the functional loop of its page
Performance considerations, and of ``nnx.jit_partial`` in its API reference, the last was the fastest. The losses of a
run are read at its end. The runs of W7 are side by side, under ``nnx.vmap``, as on the page Transformations.
"""

# Names and code say what a network is.
# ruff: noqa: D101, D102

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from workloads import Workload, rates, seeds

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7")

Loss = Callable[[Any, Any], Any]

glorot = nnx.initializers.glorot_uniform()
Dense = partial(nnx.Linear, kernel_init=glorot)
Conv = partial(nnx.Conv, kernel_size=(3, 3), kernel_init=glorot)
Norm = partial(nnx.LayerNorm, epsilon=1e-5)

# ---- networks --------------------------------------------------------------------------------------------------------


class Xor(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = Dense(2, 4, rngs=rngs)
        self.second = Dense(4, 4, rngs=rngs)
        self.third = Dense(4, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return nnx.sigmoid(self.third(nnx.sigmoid(self.second(nnx.tanh(self.first(x))))))


class Mlp(nnx.Module):
    def __init__(self, *sizes: int, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(Dense(a, b, rngs=rngs) for a, b in pairwise(sizes))

    def __call__(self, x: Any) -> Any:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Images(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(1, 32, rngs=rngs)
        self.conv2 = Conv(32, 64, rngs=rngs)
        self.linear1 = Dense(7 * 7 * 64, 128, rngs=rngs)
        self.linear2 = Dense(128, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        return self.linear2(nnx.relu(self.linear1(x)))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = Norm(128, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 128, kernel_init=glorot, decode=False, keep_rngs=False, rngs=rngs)
        self.norm2 = Norm(128, rngs=rngs)
        self.linear1 = Dense(128, 512, rngs=rngs)
        self.linear2 = Dense(512, 128, rngs=rngs)

    def __call__(self, x: Any, mask: Any) -> Any:
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.linear2(nnx.gelu(self.linear1(self.norm2(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        normal = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(64, 128, embedding_init=normal, rngs=rngs)
        self.positions = nnx.Param(normal(rngs.params(), (64, 128)))
        self.blocks = nnx.List(Block(rngs) for _ in range(4))
        self.norm = Norm(128, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens) + self.positions
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.embed.attend(self.norm(x))


def squared(outputs: Any, y: Any) -> Any:
    return jnp.mean((outputs - y) ** 2)


def binary(logits: Any, y: Any) -> Any:
    return optax.sigmoid_binary_cross_entropy(logits, y).mean()


def classes(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


NETWORKS: dict[str, tuple[Callable[..., nnx.Module], Loss, optax.GradientTransformation]] = {
    "W1": (Xor, squared, optax.sgd(0.4)),
    "W2": (partial(Mlp, 2, 16, 8, 1), binary, optax.adam(0.01)),
    "W3": (partial(Mlp, 64, 128, 64, 10), classes, optax.adam(1e-3)),
    "W4": (partial(Mlp, 784, 512, 512, 10), classes, optax.adam(1e-3)),
    "W5": (Images, classes, optax.adam(1e-3)),
    "W6": (Transformer, classes, optax.adamw(1e-3, weight_decay=1e-4)),
}

# ---- training --------------------------------------------------------------------------------------------------------


def updated(model: nnx.Module, optimizer: nnx.Optimizer, loss: Loss, x: Any, y: Any) -> Any:
    """The loss; model and optimizer are changed in place."""
    value, gradients = nnx.value_and_grad(lambda model: loss(model(x), y))(model)
    optimizer.update(model, gradients)
    return value


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
    network, loss, transformation = NETWORKS[name]
    random, inputs, targets = np.random.default_rng(seed), jnp.asarray(x), jnp.asarray(y)

    model = network(rngs=nnx.Rngs(seed))  # not compiled, which takes less time here than nnx.jit
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

    def step(model: nnx.Module, optimizer: nnx.Optimizer, x: Any, y: Any, rows: Any) -> Any:
        return updated(model, optimizer, loss, *((x, y) if rows is None else (x[rows], y[rows])))

    jitted = nnx.jit_partial(step, model, optimizer, graph=False, donate_argnums=0)
    forward = nnx.jit(lambda model, x: model(x))

    def train() -> None:
        history = []
        for _ in range(work.epochs):
            for rows in batches(random, len(x), work.batch_size):
                history.append(jitted(inputs, targets, rows))
        jax.device_get(history)
        jax.block_until_ready(nnx.state(model))

    return train, lambda x: np.asarray(forward(model, x))


def ensemble(
    work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    inputs, targets = jnp.asarray(x), jnp.asarray(y)
    transformation = optax.inject_hyperparams(optax.sgd)(learning_rate=0.4)

    @nnx.jit
    @nnx.vmap
    def created(key: Any, rate: Any) -> tuple[nnx.Module, nnx.Optimizer]:
        model = Xor(nnx.Rngs(key))
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
        optimizer.opt_state.hyperparams["learning_rate"][...] = rate
        return model, optimizer

    model, optimizer = created(jax.random.split(jax.random.key(seed), 4)[seeds(work.members)], rates(work.members))

    @partial(nnx.vmap, in_axes=(0, 0, None, None), graph=False)
    def step(model: nnx.Module, optimizer: nnx.Optimizer, x: Any, y: Any) -> Any:
        return updated(model, optimizer, squared, x, y)

    @nnx.jit
    @partial(nnx.vmap, in_axes=(0, None))
    def forward(model: nnx.Module, x: Any) -> Any:
        return model(x)

    jitted = nnx.jit_partial(step, model, optimizer, graph=False, donate_argnums=0)

    def train() -> None:
        history = [jitted(inputs, targets) for _ in range(work.epochs)]
        jax.device_get(history)
        jax.block_until_ready(nnx.state(model))

    return train, lambda x: np.asarray(forward(model, x))
