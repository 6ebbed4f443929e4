"""Runs that are killed: a script of its own, which trains, saves, goes on where it was, and says what came out.

``python checkpointed.py FOLDER NAME...`` prints, for each of the runs named, its name and the SHA-256 of all that it
gave: parameters, optimizer state, history, best state.
"""

import sys
import time
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from funcnn import checkpoints, data, layers, losses, metrics, training
from funcnn.training.fingerprints import digest

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 6)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)
HELD_OUT = X[:50], Y[:50]


def network(rate=3e-3):
    model = layers.serial(layers.dense(32), layers.batch_norm(), layers.relu, layers.dropout(0.2), layers.dense(2))
    optimizer = optax.adam(rate)
    return training.supervised(model, losses.softmax_cross_entropy, optimizer, {"accuracy": metrics.accuracy})


NETWORK = network()


def arrays(**kept):
    """Dropout, batch norm, early stopping, the best state kept, a smaller last batch."""
    watched = {"validation": HELD_OUT, "monitor": "validation_loss", "patience": 30, "keep_best": True}
    return training.fit(NETWORK, (X, Y), key=KEY, epochs=2000, batch_size=64, **watched, **kept)


def stream(**kept):
    """A Grain dataset, shuffled anew in each pass, of which an epoch is a part."""
    source = grain.MapDataset.source(list(zip(X, Y, strict=True))).seed(1).shuffle().repeat().batch(32)
    batches = iter(source.to_iter_dataset())
    return training.fit(NETWORK, batches, key=KEY, steps=500, steps_per_epoch=7, validation=HELD_OUT, **kept)


def passes(**kept):
    """A generator function, of which an epoch is a pass, with a smaller batch at its end."""

    def batches():
        for begin in range(0, 200, 32):
            yield X[begin : begin + 32], Y[begin : begin + 32]

    return training.fit(NETWORK, batches, key=KEY, epochs=100, validation=HELD_OUT, **kept)


def sweep(**kept):
    """Four members, side by side."""
    rates = jnp.array([1e-3, 1e-2])
    return training.sweep(network, rates, (X, Y), key=KEY, seeds=2, epochs=100, how="vmap", **kept).result


def groups(**kept):
    """Four members in groups of two."""
    rates = jnp.array([1e-3, 1e-2])
    options = {"key": KEY, "seeds": 2, "epochs": 60, "how": "map", "max_bytes": LITTLE, "monitor": "loss"}
    return training.sweep(network, rates, data.split((X, Y), 0.5, key=KEY)[0], patience=20, **options, **kept).result


LITTLE = 60_000  # bytes: two members of ``groups`` need less, and four need more
RUNS = {run.__name__: run for run in (arrays, stream, passes, sweep, groups)}


def breathes(event):
    """Give a save time to begin between two chunks, and a kill time to fall there."""
    del event
    time.sleep(0.02)


def main(folder, *names):
    for name in names:
        kept = {}
        if folder != "-":
            kept = {"checkpoint": checkpoints.directory(Path(folder) / name, every=0.0), "resume": True}
        options = {"every": 5, "observers": [breathes], "progress": False}
        print(name, digest(RUNS[name](**kept, **options)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
