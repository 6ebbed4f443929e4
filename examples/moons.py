"""Two interleaved half-circles, and the boundary that a small network draws between them.

A run is a function like any other, so it is then mapped over learning rates: one program trains eight networks.
The set-up is that of SmolML (rodmarkun/SmolML): 2-16-8-1, 100 points, 100 steps of Adam at 0.01 on all of them at once.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import make_moons

from funcnn import layers, losses, metrics, training

x, y = make_moons(100, noise=0.1, random_state=42)
y = y[:, None]  # one output a point

model = layers.serial(layers.dense(16), layers.relu, layers.dense(8), layers.relu, layers.dense(1), layers.sigmoid)


def train(key, rate=0.01):
    """The run as a pure function of its key and its learning rate."""
    measured = {"accuracy": metrics.binary_accuracy()}
    trainer = training.supervised(model, losses.binary_cross_entropy, optax.adam(rate), measured)
    return training.run(trainer, (x, y), key=key, epochs=100, batch_size=None)


def drawing(state, width=60, height=18):
    """The plane as text: what the network says by shading, the points by their label."""
    columns, rows = np.linspace(-1.5, 2.5, width), np.linspace(1.5, -1.0, height)
    plane = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    shades = np.array([" ", "."])[(training.predict(model, state, plane) > 0.5).astype(int)].reshape(height, width)
    for (a, b), label in zip(x, y, strict=True):
        shades[np.abs(rows - b).argmin(), np.abs(columns - a).argmin()] = "o#"[label.item()]
    return "\n".join("".join(row) for row in shades)


def main():
    key = jax.random.key(0)
    result = train(key)
    print(drawing(result.state))
    print(f"right: {jnp.sum((training.predict(model, result.state, x) > 0.5) == y)} of 100\n")

    rates = jnp.logspace(-4, -0.5, 8)
    history = jax.jit(jax.vmap(lambda rate: train(key, rate).history))(rates)
    for rate, loss, accuracy in zip(rates, history["loss"][:, -1], history["accuracy"][:, -1], strict=True):
        print(f"learning rate {rate:.4f}: loss {loss:.3f}, accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
