"""Burgers' equation, solved by a network that has never seen a solution: a physics-informed neural network.

    u_t + u u_x = (0.01 / pi) u_xx     for 0 <= t <= 1 and -1 <= x <= 1
    u(0, x) = -sin(pi x),  u(t, -1) = u(t, 1) = 0

The data are a function of the key, so every step sees new points: a dict of three arrays of different lengths. The
objective is a pair of functions, and its loss is a dict of terms, each logged under its name. Derivatives of the
network by its inputs are ``jax.jvp`` of ``model.apply``.

Reference: Raissi, Perdikaris and Karniadakis, "Physics-informed neural networks", 2019.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funcnn import layers, training
from funcnn.training import Aux, Objective

VISCOSITY = 0.01 / np.pi
STEPS = 6000

model = layers.serial(*[layers.dense(24), layers.tanh] * 4, layers.dense(1), layers.function(lambda y: y[:, 0]))


def points(key):
    """Where the equation, the initial values and the boundary values are to hold, as rows of (t, x)."""
    inside_key, initial_key, boundary_key = jax.random.split(key, 3)
    t, x = jnp.zeros(64), jnp.ones(32)
    return {
        "equation": jax.random.uniform(inside_key, (512, 2), minval=jnp.array([[0.0, -1.0]])),
        "initial": jnp.stack([t, jax.random.uniform(initial_key, t.shape, minval=-1.0)], axis=1),
        "boundary": jnp.stack([jax.random.uniform(boundary_key, (64,)), jnp.concatenate([-x, x])], axis=1),
    }


def init(key, batch):
    return model.init(key, batch["equation"])


def loss(params, model_state, batch, *, key, training):
    del key, training  # nothing is drawn, and training is like testing

    def u(points):
        return model.apply(params, model_state, points)[0]

    def along(f, direction):
        """The derivative of ``f`` in one direction, at every row of its argument."""
        return lambda points: jax.jvp(f, (points,), (jnp.zeros_like(points) + jnp.array([direction]),))[1]

    inside, initial, boundary = batch["equation"], batch["initial"], batch["boundary"]
    u_t, u_x = along(u, [1.0, 0.0]), along(u, [0.0, 1.0])
    u_xx = along(u_x, [0.0, 1.0])
    residual = u_t(inside) + u(inside) * u_x(inside) - VISCOSITY * u_xx(inside)
    terms = {
        "equation": residual**2,
        "initial": (u(initial) + jnp.sin(jnp.pi * initial[:, 1])) ** 2,
        "boundary": u(boundary) ** 2,
    }
    return terms, Aux(model_state)


def exact(t, x):
    """The solution by the transformation of Cole and Hopf, its integrals by Gauss-Hermite quadrature."""
    z, weights = np.polynomial.hermite.hermgauss(100)
    y = x[..., None] - np.sqrt(4 * VISCOSITY * t)[..., None] * z
    weights = weights * np.exp(-(np.cos(np.pi * y) + 1) / (2 * np.pi * VISCOSITY))
    return -(np.sin(np.pi * y) * weights).sum(-1) / weights.sum(-1)


def main():
    optimizer = optax.contrib.muon(optax.cosine_decay_schedule(0.01, STEPS))
    trainer = training.trainer(Objective(init, loss), optimizer)
    result = training.fit(trainer, points, key=jax.random.key(0), steps=STEPS, steps_per_epoch=STEPS // 10)

    terms = ["equation", "initial", "boundary"]
    print("  step " + " ".join(f"{name:>9}" for name in terms))
    for row in range(10):
        print(f"{(row + 1) * STEPS // 10:6} " + " ".join(f"{result.history[name][row]:9.1e}" for name in terms))

    t, x = np.meshgrid(np.linspace(0, 1, 101), np.linspace(-1, 1, 201), indexing="ij")
    solution = exact(t, x)
    answer = training.predict(model, result.state, np.stack([t, x], -1).reshape(-1, 2), batch_size=1000)
    error = np.linalg.norm(answer.reshape(t.shape) - solution) / np.linalg.norm(solution)
    print(f"relative L2 error against the exact solution: {error:.4f}")


if __name__ == "__main__":
    main()
