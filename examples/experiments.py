"""Five networks on two half-circles, with fifty seeds each: what one run seems to show, and whether it is so.

The networks differ in depth and in learning rate; both are numbers of the run, so that all five, with all their seeds,
are one program: where a number is 0, the second layer is passed by. Training on one example at a time and on all at
once are two such programs. The points are drawn once: the seeds are those of the networks.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import make_moons

from funcnn import layers, losses, metrics, training

FIGURE = pathlib.Path("figures/experiments.png")
SEEDS, EPOCHS = 50, 100
# Name, whether there is a second hidden layer, learning rate.
MODELS = [("one layer, 0.1", 0, 0.1), ("two layers, 0.1", 1, 0.1), ("one layer, 0.01", 0, 0.01)]
MODELS += [("two layers, 0.01", 1, 0.01), ("two layers, 0.000001", 1, 1e-6)]
x, y = make_moons(200, noise=0.15, random_state=1)
x, y = x.astype(np.float32), y[:, None].astype(np.float32)
TRAIN, TEST = (x[:100], y[:100]), (x[100:], y[100:])


def forward(x, first, second, last, deep):
    hidden = jax.nn.relu(first(x))
    deeper = jax.nn.relu(second(hidden))
    return last(jnp.where(deep, deeper, hidden))


def trainer(h):
    """The network with a second hidden layer where ``deep`` is 1, at its rate."""
    parts = {"first": layers.dense(16), "second": layers.dense(16), "last": layers.dense(1)}
    model = layers.network(lambda x, first, second, last: forward(x, first, second, last, h["deep"] > 0), **parts)
    measured = {"accuracy": metrics.binary_accuracy(threshold=0.0)}
    return training.supervised(model, losses.sigmoid_cross_entropy, optax.sgd(h["rate"]), measured)


def swept(batch_size, epochs=EPOCHS):
    """Accuracy by model, seed and epoch, on what was trained on and on the rest."""
    grid = {"deep": jnp.array([deep for _, deep, _ in MODELS]), "rate": jnp.array([rate for *_, rate in MODELS])}
    options = {"seeds": SEEDS, "epochs": epochs, "batch_size": batch_size, "validation": TEST, "progress": False}
    found = training.sweep(trainer, grid, TRAIN, key=jax.random.key(0), combine="zip", **options).history
    return [np.asarray(found[name]).reshape(len(MODELS), SEEDS, epochs) for name in ("accuracy", "validation_accuracy")]


def untrained(key, deep):
    """The accuracy of a network that has just been drawn."""
    begun = trainer({"deep": deep, "rate": 0.1})
    state = begun.init(key, TRAIN)
    return begun.report(begun.evaluate(state, TEST))["accuracy"]


def said(finding, a, b):
    """How often the first is larger, seed by seed, and how often smaller."""
    more, less = int((a > b).sum()), int((a < b).sum())
    verdict = "confirmed" if more > 0.9 * SEEDS else "refuted" if less >= SEEDS / 2 else "undecided"
    print(f"{finding}: so on {more} of {SEEDS} seeds, the other way round on {less}: {verdict}")


def main():
    each, each_test = swept(1)
    _, whole_test = swept(None)
    for (name, *_), a, b in zip(MODELS, each_test, whole_test, strict=True):
        print(f"{name:21} one at a time {a[:, -1].mean():.3f}, all at once {b[:, -1].mean():.3f}")
    for name, deep in (("one layer", 0), ("two layers", 1)):
        found = np.asarray(jax.jit(jax.vmap(untrained, (0, None)))(jax.random.split(jax.random.key(0), SEEDS), deep))
        print(f"before training, {name:10} {found.mean():.3f} ({found.min():.2f} to {found.max():.2f})")
    flat, deep, _, slow, still = each_test[:, :, -1]
    said("1. a second layer is better than one", deep, flat)
    said("2. a rate of 0.1 is better than 0.01, of two layers", deep, slow)
    said("3. a rate of 0.000001 gains less than 0.02 of accuracy", 0.02 + each_test[4, :, 0], still)
    said("4. one at a time gets further than all at once", deep, whole_test[1, :, -1])
    said("5. it is better on what it was trained on", each[1, :, -1], deep)

    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for (name, *_), curve in zip(MODELS, each_test, strict=True):
        axes.plot(range(1, EPOCHS + 1), curve.mean(axis=0), label=name)
    axes.plot(range(1, EPOCHS + 1), each[1].mean(axis=0), "k:", label="two layers, 0.1, on what was trained on")
    axes.set(xlabel="epoch", ylabel="accuracy, mean of 50 seeds")
    axes.legend(fontsize=8)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120, bbox_inches="tight")
    print(f"drawn in {FIGURE}")


if __name__ == "__main__":
    main()
