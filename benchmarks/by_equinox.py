"""Equinox: a jitted step on model and optimizer state, called for each batch, as in its MNIST example.

Between steps both stay flattened, as "Low-overhead training loops" on its page Tricks has it; Glorot kernels and zero
biases replace its own, as "Custom parameter initialisation" there. The losses of a run are read at its end. The runs of
W7 are side by side, made and stepped under ``eqx.filter_vmap``, as "Ensembling" on the same page.
"""

# Names and code say what a network is.
# ruff: noqa: D101, D102

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from workloads import Workload, rates, seeds

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7")

Loss = Callable[[Any, Any], Any]

# ---- networks: each for one example ----------------------------------------------------------------------------------


def is_affine(node: Any) -> bool:
    return isinstance(node, eqx.nn.Linear | eqx.nn.Conv)


def glorot(model: Any, key: Any) -> Any:
    """The model with Glorot uniform kernels and zero biases in all its linear layers and convolutions."""

    def affine(tree: Any) -> list[Any]:
        return [node for node in jax.tree.leaves(tree, is_leaf=is_affine) if is_affine(node)]

    initial = jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)
    old = affine(model)
    keys = jax.random.split(key, len(old))
    kernels = [initial(k, node.weight.shape) for k, node in zip(keys, old, strict=True)]
    model = eqx.tree_at(lambda tree: [node.weight for node in affine(tree)], model, kernels)
    biases = [jnp.zeros_like(node.bias) for node in old]
    return eqx.tree_at(lambda tree: [node.bias for node in affine(tree)], model, biases)


def xor(key: Any) -> Any:
    keys = jax.random.split(key, 3)
    first, second, third = (eqx.nn.Linear(a, b, key=k) for k, a, b in zip(keys, (2, 4, 4), (4, 4, 1), strict=True))
    sigmoid = eqx.nn.Lambda(jax.nn.sigmoid)
    return eqx.nn.Sequential([first, eqx.nn.Lambda(jnp.tanh), second, sigmoid, third, sigmoid])


def mlp(*sizes: int) -> Callable[[Any], Any]:
    def made(key: Any) -> Any:
        layers: list[Any] = []
        for k, a, b in zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False):
            layers += [eqx.nn.Linear(a, b, key=k), eqx.nn.Lambda(jax.nn.relu)]
        return eqx.nn.Sequential(layers[:-1])

    return made


def images(key: Any) -> Any:
    keys, relu, pool = jax.random.split(key, 4), eqx.nn.Lambda(jax.nn.relu), eqx.nn.MaxPool2d(2, 2)
    layers = [eqx.nn.Conv2d(1, 32, 3, padding=1, key=keys[0]), relu, pool]
    layers += [eqx.nn.Conv2d(32, 64, 3, padding=1, key=keys[1]), relu, pool, eqx.nn.Lambda(jnp.ravel)]
    layers += [eqx.nn.Linear(64 * 7 * 7, 128, key=keys[2]), relu, eqx.nn.Linear(128, 10, key=keys[3])]
    return eqx.nn.Sequential(layers)


class Block(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    linear1: eqx.nn.Linear
    linear2: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 3)
        biases = {f"use_{part}_bias": True for part in ("query", "key", "value", "output")}
        self.norm1, self.norm2 = eqx.nn.LayerNorm(128), eqx.nn.LayerNorm(128)
        self.attention = eqx.nn.MultiheadAttention(4, 128, **biases, key=keys[0])
        self.linear1 = eqx.nn.Linear(128, 512, key=keys[1])
        self.linear2 = eqx.nn.Linear(512, 128, key=keys[2])

    def __call__(self, x: Any, mask: Any) -> Any:
        h = jax.vmap(self.norm1)(x)
        x = x + self.attention(h, h, h, mask)
        h = jax.vmap(self.linear1)(jax.vmap(self.norm2)(x))
        return x + jax.vmap(self.linear2)(jax.nn.gelu(h))


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    positions: Any
    blocks: list[Block]
    norm: eqx.nn.LayerNorm

    def __init__(self, key: Any) -> None:
        embed_key, positions_key, *block_keys = jax.random.split(key, 6)
        self.embed = eqx.nn.Embedding(weight=0.02 * jax.random.normal(embed_key, (64, 128)))
        self.positions = 0.02 * jax.random.normal(positions_key, (64, 128))
        self.blocks = [Block(k) for k in block_keys]
        self.norm = eqx.nn.LayerNorm(128)

    def __call__(self, tokens: Any) -> Any:
        x = jax.vmap(self.embed)(tokens) + self.positions
        mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
        for block in self.blocks:
            x = block(x, mask)
        return jax.vmap(self.norm)(x) @ self.embed.weight.T


def squared(outputs: Any, y: Any) -> Any:
    return jnp.mean((outputs - y) ** 2)


def binary(logits: Any, y: Any) -> Any:
    return optax.sigmoid_binary_cross_entropy(logits, y).mean()


def classes(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


NETWORKS: dict[str, tuple[Callable[[Any], Any], Loss, optax.GradientTransformation]] = {
    "W1": (xor, squared, optax.sgd(0.4)),
    "W2": (mlp(2, 16, 8, 1), binary, optax.adam(0.01)),
    "W3": (mlp(64, 128, 64, 10), classes, optax.adam(1e-3)),
    "W4": (mlp(784, 512, 512, 10), classes, optax.adam(1e-3)),
    "W5": (images, classes, optax.adam(1e-3)),
    "W6": (Transformer, classes, optax.adamw(1e-3, weight_decay=1e-4)),
}

# ---- training --------------------------------------------------------------------------------------------------------


def updated(
    model: Any, opt_state: Any, optimizer: optax.GradientTransformation, loss: Loss, x: Any, y: Any
) -> tuple[Any, Any, Any]:
    value, gradients = eqx.filter_value_and_grad(lambda model: loss(jax.vmap(model)(x), y))(model)
    updates, opt_state = optimizer.update(gradients, opt_state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), opt_state, value


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
    if name == "W5":
        x = x.transpose(0, 3, 1, 2)
    random, inputs, targets = np.random.default_rng(seed), jnp.asarray(x), jnp.asarray(y)

    @eqx.filter_jit
    def created(key: Any) -> tuple[Any, Any]:
        network_key, kernel_key = jax.random.split(key)
        model = glorot(network(network_key), kernel_key)
        return model, optimizer.init(eqx.filter(model, eqx.is_array))

    arrays, static = eqx.partition(created(jax.random.key(seed)), eqx.is_array)
    flat, structure = jax.tree.flatten(arrays)

    @partial(jax.jit, donate_argnums=0)
    def step(flat: Any, x: Any, y: Any, rows: Any) -> tuple[Any, Any]:
        model, opt_state = eqx.combine(jax.tree.unflatten(structure, flat), static)
        x, y = (x, y) if rows is None else (x[rows], y[rows])
        model, opt_state, value = updated(model, opt_state, optimizer, loss, x, y)
        return jax.tree.leaves(eqx.filter((model, opt_state), eqx.is_array)), value

    @jax.jit
    def forward(flat: Any, x: Any) -> Any:
        model, _ = eqx.combine(jax.tree.unflatten(structure, flat), static)
        return jax.vmap(model)(x)

    def train() -> None:
        nonlocal flat
        history = []
        for _ in range(work.epochs):
            for rows in batches(random, len(x), work.batch_size):
                flat, value = step(flat, inputs, targets, rows)
                history.append(value)
        jax.device_get(history)
        jax.block_until_ready(flat)

    return train, lambda x: np.asarray(forward(flat, x.transpose(0, 3, 1, 2) if name == "W5" else x))


def ensemble(
    work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.4)
    inputs, targets = jnp.asarray(x), jnp.asarray(y)

    @eqx.filter_jit
    @eqx.filter_vmap
    def created(key: Any, rate: Any) -> tuple[Any, Any]:
        network_key, kernel_key = jax.random.split(key)
        model = glorot(xor(network_key), kernel_key)
        opt_state = optimizer.init(eqx.filter(model, eqx.is_array))
        opt_state.hyperparams["learning_rate"] = rate
        return model, opt_state

    keys = jax.random.split(jax.random.key(seed), 4)[seeds(work.members)]
    arrays, static = eqx.partition(created(keys, rates(work.members)), eqx.is_array)
    flat, structure = jax.tree.flatten(arrays)

    def unflattened(flat: Any) -> Any:
        return eqx.combine(jax.tree.unflatten(structure, flat), static)

    @eqx.filter_vmap(in_axes=(eqx.if_array(0), None, None))
    def stepped(state: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
        return updated(*state, optimizer, squared, x, y)

    @partial(jax.jit, donate_argnums=0)
    def step(flat: Any, x: Any, y: Any) -> tuple[Any, Any]:
        *state, value = stepped(unflattened(flat), x, y)
        return jax.tree.leaves(eqx.filter(state, eqx.is_array)), value

    @jax.jit
    def forward(flat: Any, x: Any) -> Any:
        side_by_side = eqx.filter_vmap(lambda model, x: jax.vmap(model)(x), in_axes=(eqx.if_array(0), None))
        return side_by_side(unflattened(flat)[0], x)

    def train() -> None:
        nonlocal flat
        history = []
        for _ in range(work.epochs):
            flat, value = step(flat, inputs, targets)
            history.append(value)
        jax.device_get(history)
        jax.block_until_ready(flat)

    return train, lambda x: np.asarray(forward(flat, x))
