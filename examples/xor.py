"""XOR, the smallest problem that no straight line solves: learned once, and then from a thousand seeds at once.

A training run is a pure function of its key, so a study of a thousand networks is one ``jax.vmap``. The set-up is that
of micrograd in Elixir (luisgabrielroldan/micrograd): 2-4-4-1, 2000 steps on all four rows, SGD at 0.1 on the sum of the
squared errors, which is 0.4 on their mean. Its own test asks for outputs within 0.08 of the targets.
"""

import jax
import jax.numpy as jnp
import optax

from funcnn import layers, losses, training

x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
y = jnp.array([[0.0], [1.0], [1.0], [0.0]])

model = layers.serial(layers.dense(4), layers.tanh, layers.dense(4), layers.sigmoid, layers.dense(1), layers.sigmoid)
trainer = training.supervised(model, losses.squared_error, optax.sgd(0.4))


def outputs(key):
    """What a network that was trained from this key says about the four rows."""
    state = training.run(trainer, (x, y), key=key, epochs=2000).state
    return model.apply(state.params, state.model_state, x)[0]


def learned(key):
    """Whether all four are within 0.08 of their targets."""
    return jnp.all(jnp.abs(outputs(key) - y) < 0.08)


def main():
    print(model, end="\n\n")

    answers = outputs(jax.random.key(0))
    for row, answer in zip(x, answers, strict=True):
        print(f"{row[0]:.0f} xor {row[1]:.0f} = {answer.item():.3f}")
    print(f"right: {jnp.sum((answers > 0.5) == (y > 0.5))} of 4\n")

    keys = jax.vmap(jax.random.key)(jnp.arange(1000))
    share = jax.jit(jax.vmap(learned))(keys).mean()
    print(f"all four within 0.08 of the target: {share:.1%} of 1000 seeds")


if __name__ == "__main__":
    main()
