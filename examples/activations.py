"""Which activation? Eight of them raced in one network on the digits, four seeds each; some are drawn.

What stands between the layers decides what comes back through them. Each activation is trained in the same deep and
narrow network: first without any help, then with layer norm in front of each, which takes most of the difference away.
All eight are one sweep, since which of them is taken is a number.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from funcnn import data, layers, losses, metrics, plotting, training

FIGURE = pathlib.Path("figures/activations.png")
DEPTH, WIDTH, SEEDS, EPOCHS = 6, 32, 4, 10
NAMES = ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "softplus", "gelu")

images, labels = load_digits(return_X_y=True)
key = jax.random.key(0)
train, test = data.split((images / 16, labels), 0.3, key=key, stratify=labels)


def activation(name):
    """The function of this name; some layers take arguments, which stay as they are."""
    made = getattr(layers, name)
    made = made if name not in ("leaky_relu", "elu") else made()
    return lambda x: made.apply({}, {}, x)[0]


FUNCTIONS = {name: activation(name) for name in NAMES}


def accuracies(norm):
    """What each network is right on, by activation and seed: which activation it has is a number of the run."""

    def trainer(number):
        bend = layers.function(lambda x: jax.lax.switch(number, list(FUNCTIONS.values()), x))
        block = [layers.dense(WIDTH), *([layers.layer_norm()] if norm else []), bend]
        model = layers.serial(*(part for _ in range(DEPTH) for part in block), layers.dense(10))
        return training.supervised(
            model, losses.softmax_cross_entropy, optax.adam(1e-3), {"accuracy": metrics.accuracy}
        )

    options = {"epochs": EPOCHS, "batch_size": 64, "validation": test, "how": "map", "progress": False}
    found = training.sweep(trainer, jnp.arange(len(NAMES)), train, key=key, seeds=SEEDS, **options)
    return np.asarray(found.history["validation_accuracy"])[:, -1].reshape(len(NAMES), SEEDS)


def main():
    figure = plotting.activations({name: getattr(layers, name) for name in ("sigmoid", "tanh", "relu", "selu", "gelu")})
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120, bbox_inches="tight")

    print(f"digits, {DEPTH} layers of {WIDTH}, {SEEDS} seeds: accuracy on the rest, mean (least to most)")
    print(f"{'activation':12} {'slope at 0':>10} {'plain':>22} {'with layer norm':>22}")
    for name, *found in zip(NAMES, accuracies(norm=False), accuracies(norm=True), strict=True):
        slope = jax.grad(lambda z, name=name: FUNCTIONS[name](z[None, None]).sum())(jnp.float32(1e-3))
        shown = [f"{a.mean():.3f} ({a.min():.3f} to {a.max():.3f})" for a in found]
        print(f"{name:12} {slope:10.2f} {shown[0]:>22} {shown[1]:>22}")
    print(f"drawn in {FIGURE}")


if __name__ == "__main__":
    main()
