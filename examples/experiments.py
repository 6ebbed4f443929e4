"""Five networks on two half-circles, with fifty seeds each: what one run seems to show, and whether it is so.

The networks differ in depth and in learning rate; both are numbers of the run, so that all five, with all their seeds,
are one program: where a number is 0, the second layer is passed by. Training on one example at a time and on all at
once are two such programs; a third has the networks before training. The points are drawn once: the seeds are those of
the networks.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.stats import binomtest
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


def swept(batch_size, models=MODELS, epochs=EPOCHS):
    """Accuracy by model, seed and epoch, on what was trained on and on the rest."""
    grid = {"deep": jnp.array([deep for _, deep, _ in models]), "rate": jnp.array([rate for *_, rate in models])}
    options = {"seeds": SEEDS, "epochs": epochs, "batch_size": batch_size, "validation": TEST, "progress": False}
    found = training.sweep(trainer, grid, TRAIN, key=jax.random.key(0), combine="zip", **options).history
    return [np.asarray(found[name]).reshape(len(models), SEEDS, epochs) for name in ("accuracy", "validation_accuracy")]


def judged(finding, cases):
    """On how many seeds it is so, and on how many the other way round; by a sign test at 1 % whether that is chance."""
    print(finding)
    for case, (a, b) in cases.items():
        more, less = int((a > b).sum()), int((a < b).sum())
        clear = more != less and binomtest(more, more + less).pvalue < 0.01
        verdict = "undecided" if not clear else "confirmed" if more > less else "refuted"
        print(f"   {case:25} {more:2} of {SEEDS} seeds, on {less:2} the other way round: {verdict}")


def main():
    (each, each_test), (whole, whole_test) = swept(1), swept(None)
    for (name, *_), a, b in zip(MODELS, each_test, whole_test, strict=True):
        print(f"{name:21} one at a time {a[:, -1].mean():.3f}, all at once {b[:, -1].mean():.3f}")
    # At a rate of 0 nothing is learned: what the networks of these seeds say before training.
    start = swept(None, [("one layer", 0, 0.0), ("two layers", 1, 0.0)], epochs=1)[1][:, :, 0]
    for name, found in zip(("one layer", "two layers"), start, strict=True):
        print(f"before training, {name:10} {found.mean():.3f} ({found.min():.2f} to {found.max():.2f})")
    sides = [("one at a time", each, each_test), ("all at once", whole, whole_test)]
    deeper, faster, still, by_heart = {}, {}, {}, {}
    for how, seen, rest in sides:
        flat, deep, flat_slow, deep_slow, stays = rest[:, :, -1]
        deeper |= {f"0.1, {how}": (deep, flat), f"0.01, {how}": (deep_slow, flat_slow)}
        faster |= {f"one layer, {how}": (flat, flat_slow), f"two layers, {how}": (deep, deep_slow)}
        still[how], by_heart[how] = (start[1] + 0.02, stays), (seen[1, :, -1], deep)
    pairs = zip(MODELS[:4], each_test, whole_test, strict=False)
    judged("1. a second layer is better than one", deeper)
    judged("2. a rate of 0.1 is better than 0.01", faster)
    judged("3. a rate of 0.000001 gains less than 0.02 of accuracy, by two layers", still)
    judged("4. one at a time, in 100 times as many steps, is better", {m[0]: (a[:, -1], b[:, -1]) for m, a, b in pairs})
    judged("5. two layers at 0.1 are better on what they were trained on", by_heart)

    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axes, (how, seen, rest) in zip(panels, sides, strict=True):
        for (name, *_), curve, other in zip(MODELS, rest, seen, strict=True):
            [line] = axes.plot(range(1, EPOCHS + 1), curve.mean(axis=0), label=name)
            axes.plot(range(1, EPOCHS + 1), other.mean(axis=0), ":", color=line.get_color())
        axes.plot([], [], "k:", label="the same, while training")
        axes.set(xlabel="epoch", ylabel="accuracy, mean of 50 seeds", title=how)
    axes.legend(fontsize=8)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120, bbox_inches="tight")
    print(f"drawn in {FIGURE}")


if __name__ == "__main__":
    main()
