"""Ten thousand networks drawn at random, against one that goes down its slope.

Chance is where learning begins: draw params, keep the best. ``jax.vmap`` makes ten thousand networks of one line, so
the try is cheap. Then gradient descent starts from another one, and the picture shows both.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import make_moons

from funcnn import layers, losses, training

FIGURE = pathlib.Path("figures/random_search.png")
DRAWN, STEPS = 10_000, 1000

x, y = make_moons(200, noise=0.1, random_state=0)
x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
model = layers.serial(layers.dense(8), layers.tanh, layers.dense(2))


def measured(params):
    """The mean loss, and the share of right answers."""
    scores, _ = model.apply(params, {}, x)
    return losses.softmax_cross_entropy(scores, y).mean(), (scores.argmax(-1) == y).mean()


def at_random(key):
    """Loss and accuracy of a network that nobody trained."""
    params, _ = model.init(key, x)
    return measured(params)


def descended(key):
    """The run from a network at random, and its accuracy at the end."""
    trainer = training.supervised(model, losses.softmax_cross_entropy, optax.sgd(1.0))
    result = training.run(trainer, (x, y), key=key, epochs=STEPS, batch_size=None)
    return result.history["loss"], measured(result.state.params)


def main():
    keys = jax.random.split(jax.random.key(0), DRAWN)
    lost, right = jax.jit(jax.vmap(at_random))(keys)
    best = int(lost.argmin())
    print(f"{DRAWN} networks at random: loss {jnp.median(lost):.2f} in the middle, {lost[best]:.3f} at best")
    print(f"the best of them is right on {right[best]:.3f} of the points")

    curve, (last, accuracy) = jax.jit(descended)(jax.random.key(1))
    passed = int((curve < lost[best]).argmax())
    print(f"gradient descent: better than the best after {passed} steps")
    print(f"after {STEPS} steps its loss is {last:.3f}, and it is right on {accuracy:.3f}")

    figure, (left, other) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, width_ratios=(1, 2))
    left.hist(jnp.log10(lost), bins=60, orientation="horizontal")
    left.set(xlabel="networks at random", ylabel="log10 of the loss")
    other.plot(jnp.log10(curve), label="gradient descent")
    other.plot(jnp.log10(jax.lax.cummin(lost[:STEPS])), label="the best of so many at random")
    other.set(xlabel="networks that were looked at")
    other.legend()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120, bbox_inches="tight")
    print(f"drawn in {FIGURE}")


if __name__ == "__main__":
    main()
