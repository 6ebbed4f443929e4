"""The larger workloads by funcnn: ``jax.jit`` of ``training.run``, whose state is given up for the new one.

On a GPU the attention of GPT is cuDNN's (``FUNCNN_BENCH_ATTENTION=xla`` takes XLA's). The MLPs are one
``training.sweep``, a whole run from its initialisation on.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from one_large import Large, rates

from funcnn import inspection, layers, losses, models, trees
from funcnn.core import Layer
from funcnn.training import Trainer, TrainState, run, supervised, sweep


def model(name: str, size: Large, *, remat: bool = True, counted: bool = False) -> Layer:
    """The network of a workload, of one member; to be counted without a kernel that nobody looks into."""
    if name == "GPT":
        kernel = os.environ.get("FUNCNN_BENCH_ATTENTION", "cudnn") if jax.default_backend() == "gpu" else "xla"
        options = {"heads": size.heads, "blocks": size.blocks[0], "length": size.shape[0], "remat": remat}
        options["implementation"] = "xla" if counted or size.compute == "float32" else kernel
        net = models.transformer(size.classes, size.width, activation=layers.gelu_tanh, **options)
    elif name == "ResNet-50":
        net = models.resnet(50, size.classes, width=size.width)
    else:
        net = models.mlp([size.width], size.classes)
    return net if size.compute == "float32" else layers.mixed_precision(net, compute=size.compute)


def batch(name: str, size: Large) -> Any:
    """The shape and dtype of the inputs of a step."""
    return jax.ShapeDtypeStruct((size.batch_size, *size.shape), jnp.int32 if name == "GPT" else jnp.float32)


def parameters(name: str, size: Large) -> int:
    """How many there are, of all members."""
    params, _ = jax.eval_shape(model(name, size).init, jax.random.key(0), batch(name, size))
    return trees.count(params) * size.members


def operations_of(net: Layer, x: Any) -> float:
    """Floating-point operations of value and gradient on a batch."""
    table = inspection.summary(net, x, training=True)
    if table.notes:
        raise RuntimeError(f"operations that are not counted: {table.notes}")
    return float(table.forward + table.backward)


def operations(name: str, size: Large) -> float:
    """Those of a step of all members; what ``remat`` computes again is not what was asked for, and does not count."""
    return operations_of(model(name, size, remat=False, counted=True), batch(name, size)) * size.members


# ---- training --------------------------------------------------------------------------------------------------------


@cache
def trainer(name: str, size: Large) -> Trainer:
    optimizer = optax.adamw(6e-4, weight_decay=0.1) if name == "GPT" else optax.sgd(0.1, momentum=0.9)
    return supervised(model(name, size), losses.softmax_cross_entropy, optimizer)


@cache
def program(name: str, size: Large) -> Callable[[TrainState, Any, Any], tuple[TrainState, Any]]:
    """The compiled call: ``(state, key, (x, y)) -> state, losses of the epochs``, which takes the state for itself."""

    def call(state: TrainState, key: Any, data: Any) -> tuple[TrainState, Any]:
        options = {"epochs": size.epochs, "batch_size": size.batch_size, "drop_last": True}
        result = run(trainer(name, size), data, key=key, state=state, **options)
        return result.state, result.history["loss"]

    return jax.jit(call, donate_argnums=0)


def start(name: str, size: Large, key: Any, data: Any) -> TrainState:
    """The state before training."""
    return jax.jit(trainer(name, size).init)(key, jax.tree.map(lambda a: a[: size.batch_size], data))


def started(name: str, size: Large, x: np.ndarray, y: np.ndarray, seed: int) -> Callable[[], np.ndarray]:
    """``train()``: a measured call, waited for; it gives the losses of its epochs."""
    key, data = jax.random.key(seed), jax.device_put((x, y))
    if name == "MLPs":
        return swept(size, key, data)
    state = start(name, size, key, data)

    def train() -> np.ndarray:
        nonlocal state
        state, history = jax.block_until_ready(program(name, size)(state, key, data))
        return np.asarray(history)

    return train


def swept(size: Large, key: Any, data: Any) -> Callable[[], np.ndarray]:
    net, grid = model("MLPs", size), jnp.asarray(rates(size))
    options = {"epochs": size.epochs, "batch_size": size.batch_size, "drop_last": True, "progress": False}

    def make(rate: Any) -> Trainer:
        return supervised(net, losses.softmax_cross_entropy, optax.adam(rate))

    def train() -> np.ndarray:
        found = sweep(make, grid, data, key=key, seeds=size.seeds, how="vmap", **options)
        return np.asarray(jax.block_until_ready(found).history["loss"]).mean(0)

    return train
