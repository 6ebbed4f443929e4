"""Our side: the same networks, as a user of funcnn writes them, and ``jax.jit`` of ``training.run``.

The runs of W7 are one ``training.sweep``. Two settings are made before anything else where the environment asks for
them: ``FUNCNN_BENCH_FUSED=1`` is ``training.fuse_small_loops()``, and ``FUNCNN_BENCH_CACHE=<directory>`` is
``training.cache_programs(directory)``.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from workloads import Workload, rates

from funcnn import layers, losses, models, training

if os.environ.get("FUNCNN_BENCH_FUSED") == "1":
    training.fuse_small_loops()
if os.environ.get("FUNCNN_BENCH_CACHE"):
    training.cache_programs(os.environ["FUNCNN_BENCH_CACHE"])

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7")

xor = layers.serial(layers.dense(4), layers.tanh, layers.dense(4), layers.sigmoid, layers.dense(1), layers.sigmoid)


def mlp(*sizes: int):
    *hidden, outputs = sizes
    return layers.serial(
        *(part for size in hidden for part in (layers.dense(size), layers.relu)), layers.dense(outputs)
    )


images = layers.serial(
    layers.conv(32, 3),
    layers.relu,
    layers.max_pool(2),
    layers.conv(64, 3),
    layers.relu,
    layers.max_pool(2),
    layers.flatten,
    layers.dense(128),
    layers.relu,
    layers.dense(10),
)

MODELS = {
    "W1": xor,
    "W2": mlp(16, 8, 1),
    "W3": mlp(128, 64, 10),
    "W4": mlp(512, 512, 10),
    "W5": images,
    "W6": models.transformer(64, 128, heads=4, blocks=4, length=64, activation=layers.gelu_tanh),
}

TRAINERS = {
    "W1": training.supervised(MODELS["W1"], losses.squared_error, optax.sgd(0.4)),
    "W2": training.supervised(MODELS["W2"], losses.sigmoid_cross_entropy, optax.adam(0.01)),
    "W3": training.supervised(MODELS["W3"], losses.softmax_cross_entropy, optax.adam(1e-3)),
    "W4": training.supervised(MODELS["W4"], losses.softmax_cross_entropy, optax.adam(1e-3)),
    "W5": training.supervised(MODELS["W5"], losses.softmax_cross_entropy, optax.adam(1e-3)),
    "W6": training.supervised(MODELS["W6"], losses.softmax_cross_entropy, optax.adamw(1e-3, weight_decay=1e-4)),
}

# ---- as the other libraries are called -------------------------------------------------------------------------------


def xor_trainer(rate: Any) -> training.Trainer:
    return training.supervised(xor, losses.squared_error, optax.sgd(rate))


@cache
def program(name: str, work: Workload) -> Callable[[Any, Any], training.Result]:
    """The compiled run: ``(key, (x, y)) -> result``."""
    trainer, options = TRAINERS[name], {"epochs": work.epochs, "batch_size": work.batch_size}
    return jax.jit(lambda key, data: training.run(trainer, data, key=key, **options))


def started(
    name: str, work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    """``train()``: a whole run from its initialisation on, waited for; and ``predict(x)``: raw outputs."""
    key, data = jax.random.key(seed), (jnp.asarray(x), jnp.asarray(y))
    if name == "W7":
        return swept(work, key, data)
    run = program(name, work)
    state: Any = None

    def train() -> None:
        nonlocal state
        state = jax.block_until_ready(run(key, data)).state

    return train, lambda x: np.asarray(training.predict(MODELS[name], state, x))


def swept(
    work: Workload, key: Any, data: tuple[Any, Any]
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    each = min(4, work.members)  # seeds of each rate
    grid, options = jnp.asarray(rates(work.members)[::each]), {"epochs": work.epochs, "batch_size": None}
    state: Any = None

    def train() -> None:
        nonlocal state
        found = training.sweep(xor_trainer, grid, data, key=key, seeds=each, how="auto", progress=False, **options)
        state = jax.block_until_ready(found.state)

    def predict(x: np.ndarray) -> np.ndarray:
        return np.asarray(training.predict_members(xor, state, x)).swapaxes(0, 1)

    return train, predict
