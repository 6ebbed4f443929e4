"""Learning to learn: a network that one gradient step on ten points turns into any of many sine curves.

A task is a curve, amplitude 0.1 to 5 and phase 0 to pi. The loss of a task is that after a step on ten of its points,
and the outer run goes by its gradient, through the step: model-agnostic meta-learning (MAML). Without the step, at a
rate of 0, the same run trains one network on all tasks at once. Both are one program, a sweep over that rate.

Reference: Finn, Abbeel and Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", 2017.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funcnn import layers, losses, training
from funcnn.training import Aux, Objective

POINTS, STEPS = 10, 15_000

model = layers.serial(layers.dense(40), layers.relu, layers.dense(40), layers.relu, layers.dense(1))


def tasks(key, count=25):
    """Curves, ten points of each to learn from, and ten to be asked for; all new with every key."""
    amplitude_key, phase_key, x_key = jax.random.split(key, 3)
    amplitude = jax.random.uniform(amplitude_key, (count, 1, 1), minval=0.1, maxval=5.0)
    phase = jax.random.uniform(phase_key, (count, 1, 1), maxval=jnp.pi)
    x = jax.random.uniform(x_key, (count, 2 * POINTS, 1), minval=-5.0, maxval=5.0)
    y = amplitude * jnp.sin(x - phase)
    return {"given": (x[:, :POINTS], y[:, :POINTS]), "asked": (x[:, POINTS:], y[:, POINTS:])}


def error(params, points):
    """The mean squared error on the points of one curve."""
    x, y = points
    return jnp.mean(losses.squared_error(model.apply(params, {}, x)[0], y))


def adapted(params, points, rate):
    """The inner run: one gradient step."""
    return jax.tree.map(lambda p, slope: p - rate * slope, params, jax.grad(error)(params, points))


def errors(params, batch, rate):
    """For every task: the error on what is asked, after a step on what is given."""
    return jax.vmap(lambda given, asked: error(adapted(params, given, rate), asked))(batch["given"], batch["asked"])


def trainer(rate):
    """The outer run, over parameters to begin from."""

    def init(key, batch):
        return model.init(key, batch["given"][0])

    def loss(params, model_state, batch, *, key, training):
        del key, training  # nothing is drawn, and training is like testing
        return errors(params, batch, rate), Aux(model_state)

    return training.trainer(Objective(init, loss), optax.adam(optax.cosine_decay_schedule(3e-3, STEPS)))


def main():
    options = {"steps": STEPS, "steps_per_epoch": STEPS // 10, "progress": False}
    runs = training.sweep(trainer, jnp.array([0.01, 0.0]), tasks, key=jax.random.key(0), **options)

    new = tasks(jax.random.key(1), 2000)
    rates = jnp.array([0.0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02])
    table = jax.jit(jax.vmap(jax.vmap(lambda p, r: jnp.mean(errors(p, new, r)), (None, 0)), (0, None)))
    meta, pretrained = np.asarray(table(runs.state.params, rates))

    print("mean squared error on 2000 new tasks, after a step on ten points at the rate")
    print(" " * 22 + "".join(f"{rate:8.3f}" for rate in rates))
    print("trained through a step" + "".join(f"{value:8.3f}" for value in meta))
    print("pretrained on all     " + "".join(f"{value:8.3f}" for value in pretrained))
    after, best = meta[list(rates).index(0.01)], pretrained.min()
    print(f"after its step: {after:.3f}; pretrained, at its best rate: {best:.3f}; ratio {after / best:.2f}")


if __name__ == "__main__":
    main()
