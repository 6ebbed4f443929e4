"""Keras 3 on JAX: ``compile`` and ``fit``, as in its guide Training and evaluation with the built-in methods.

A call of the compiled step makes up a batch; ``fit`` shuffles, and keeps the loss of each epoch. Adam's epsilon is that
of the others. Keras has no ``vmap`` over models, so W7 is a loop: one compiled model, into which the weights and the
rate of one run after the other are set.
"""

# Names and code say what a network is.
# ruff: noqa: D102

import os
from collections.abc import Callable
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from keras import initializers, layers, losses, ops, optimizers
from workloads import Workload, rates

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7")

STEPS = 16  # of a call of the training function: fewer callbacks between them

# ---- networks: Keras starts from Glorot uniform kernels and zero biases ----------------------------------------------


def xor() -> keras.Model:
    sizes = ((4, "tanh"), (4, "sigmoid"), (1, "sigmoid"))
    return keras.Sequential([keras.Input((2,)), *(layers.Dense(size, activation=by) for size, by in sizes)])


def mlp(*sizes: int) -> keras.Model:
    inputs, *hidden, outputs = sizes
    middle = [layers.Dense(size, activation="relu") for size in hidden]
    return keras.Sequential([keras.Input((inputs,)), *middle, layers.Dense(outputs)])


def images() -> keras.Model:
    middle: list[Any] = []
    for features in (32, 64):
        middle += [layers.Conv2D(features, 3, padding="same", activation="relu"), layers.MaxPooling2D(2)]
    middle += [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *middle])


class Positions(layers.Layer):
    """Adds what is learned for each position."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer=initializers.RandomNormal(stddev=0.02))

    def call(self, x: Any) -> Any:
        return x + self.table


def block(x: Any) -> Any:
    # Of its three axes Keras would take the first as a kernel's size, and start from a quarter of Glorot's range.
    glorot = initializers.RandomUniform(-((6 / 256) ** 0.5), (6 / 256) ** 0.5)
    h = layers.LayerNormalization(epsilon=1e-5)(x)
    x = x + layers.MultiHeadAttention(4, 32, kernel_initializer=glorot)(h, h, use_causal_mask=True)
    h = layers.LayerNormalization(epsilon=1e-5)(x)
    return x + layers.Dense(128)(layers.Dense(512, activation=ops.gelu)(h))


def transformer() -> keras.Model:
    tokens = keras.Input((64,), dtype="int32")
    embed = layers.ReversibleEmbedding(64, 128, embeddings_initializer=initializers.RandomNormal(stddev=0.02))
    x = Positions()(embed(tokens))
    for _ in range(4):
        x = block(x)
    return keras.Model(tokens, embed(layers.LayerNormalization(epsilon=1e-5)(x), reverse=True))


def classes() -> losses.Loss:
    return losses.SparseCategoricalCrossentropy(from_logits=True)


def adam(rate: float) -> optimizers.Optimizer:
    return optimizers.Adam(rate, epsilon=1e-8)


def compiled(name: str, steps: int = 1) -> keras.Model:
    networks: dict[str, Callable[[], Any]] = {
        "W1": lambda: (xor(), losses.MeanSquaredError(), optimizers.SGD(0.4)),
        "W2": lambda: (mlp(2, 16, 8, 1), losses.BinaryCrossentropy(from_logits=True), adam(0.01)),
        "W3": lambda: (mlp(64, 128, 64, 10), classes(), adam(1e-3)),
        "W4": lambda: (mlp(784, 512, 512, 10), classes(), adam(1e-3)),
        "W5": lambda: (images(), classes(), adam(1e-3)),
        "W6": lambda: (transformer(), classes(), optimizers.AdamW(1e-3, weight_decay=1e-4, epsilon=1e-8)),
    }
    model, loss, optimizer = networks[name]()
    model.compile(optimizer=optimizer, loss=loss, jit_compile=True, steps_per_execution=steps)
    return model


# ---- training --------------------------------------------------------------------------------------------------------


def fitted(model: keras.Model, work: Workload, x: np.ndarray, y: np.ndarray) -> None:
    shuffle, size = work.batch_size is not None, work.batch_size or len(x)
    model.fit(x, y, batch_size=size, epochs=work.epochs, shuffle=shuffle, verbose=0)
    jax.block_until_ready([variable.value for variable in model.trainable_variables])


def started(
    name: str, work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    """``train()``: a whole run of ``work.epochs`` epochs, waited for; and ``predict(x)``: raw outputs."""
    keras.utils.set_random_seed(seed)
    if name == "W7":
        return one_by_one(work, x, y)
    model = compiled(name, STEPS if work.batch_size else 1)

    def train() -> None:
        fitted(model, work, x, y)

    return train, lambda x: model.predict(x, batch_size=1024, verbose=0)


def one_by_one(
    work: Workload, x: np.ndarray, y: np.ndarray
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    weights = [xor().get_weights() for _ in range(work.members)]
    model = compiled("W1")

    def train() -> None:
        for number, rate in enumerate(rates(work.members)):
            model.optimizer.learning_rate = rate
            model.set_weights(weights[number])
            fitted(model, work, x, y)
            weights[number] = model.get_weights()

    def predict(x: np.ndarray) -> np.ndarray:
        outputs = []
        for member in weights:
            model.set_weights(member)
            outputs.append(model.predict(x, verbose=0))
        return np.stack(outputs)

    return train, predict
