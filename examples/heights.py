"""Ten people, their weight and their height: a network that learned nothing, until its inputs were standardised.

Data and set-up are those of a tutorial in Elixir and Nx (Yashaswini-Sharma/NeuralNetwork, neural_network.exs): 2-3-3-1,
sigmoids throughout, mean binary cross-entropy, 1001 steps of gradient descent at 0.1 on all ten rows. Pounds and inches
saturate the sigmoids. ``data.standardize`` is a layer, so that whoever uses the model still passes pounds and inches.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funcnn import data, layers, losses, training

table = np.loadtxt(Path(__file__).with_name("heights.csv"), delimiter=",", skiprows=1, dtype=np.float32)
x, y = table[:, :2], table[:, 2:]

network = [layers.dense(3), layers.sigmoid, layers.dense(3), layers.sigmoid, layers.dense(1), layers.sigmoid]
raw = layers.serial(*network)
model = layers.serial(data.standardize(x), *network)


def probabilities(model, key):
    """What a model that was trained from this key says about the ten rows."""
    trainer = training.supervised(model, losses.binary_cross_entropy, optax.sgd(0.1))
    state = training.run(trainer, (x, y), key=key, epochs=1001).state
    return model.apply(state.params, state.model_state, x)[0]


def right(model, key):
    """How many of the ten it gets right."""
    return jnp.sum((probabilities(model, key) > 0.5) == (y > 0.5))


def main():
    answers = probabilities(model, jax.random.key(0))
    print("  lb   in  label  probability")
    for (weight, height, label), p in zip(table, answers, strict=True):
        print(f"{weight:4.0f} {height:4.0f} {label:6.0f} {p.item():12.3f}")
    print(f"right: {jnp.sum((answers > 0.5) == (y > 0.5))} of 10\n")

    keys = jax.vmap(jax.random.key)(jnp.arange(1000))
    for name, variant in [("raw inputs", raw), ("standardised", model)]:
        scores = jax.jit(jax.vmap(lambda key, variant=variant: right(variant, key)))(keys)
        print(f"{name:12}: all ten on {jnp.mean(scores == 10):.1%} of 1000 seeds")


if __name__ == "__main__":
    main()
