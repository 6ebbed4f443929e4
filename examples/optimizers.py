"""Five optimizers, one surface: where each goes from the same place, and how far it gets with its best rate.

A long valley with a bend in it, after Rosenbrock. The rate is half of every optimizer, so each is tried with sixty of
them, all in one program, and drawn with its best.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

FIGURE = pathlib.Path("figures/optimizers.png")
STEPS = 300
START = jnp.array([-1.5, 2.0])
OPTIMIZERS = {
    "SGD": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "AdaGrad": optax.adagrad,
    "RMSProp": optax.rmsprop,
    "Adam": optax.adam,
}
RATES = jnp.logspace(-5, 1, 60)


def valley(place):
    """Zero at (1, 1), at the end of a valley along the parabola."""
    a, b = place
    return (1 - a) ** 2 + 20 * (b - a**2) ** 2


def path(optimizer):
    """All places from the first to the last."""

    def step(carry, _):
        place, state = carry
        updates, state = optimizer.update(jax.grad(valley)(place), state, place)
        place = optax.apply_updates(place, updates)
        return (place, state), place

    _, places = jax.lax.scan(step, (START, optimizer.init(START)), length=STEPS)
    return jnp.concatenate([START[None], places])


def main():
    figure, axes = plt.subplots(figsize=(7, 5))
    a, b = jnp.linspace(-2, 2, 161), jnp.linspace(-1, 3, 161)
    heights = jax.vmap(jax.vmap(valley))(jnp.stack(jnp.meshgrid(a, b), -1))
    axes.contour(a, b, jnp.log10(heights + 1e-3), levels=20, colors="lightgray")
    print(f"height {valley(START):.1f} at the start; after {STEPS} steps, with the best of {len(RATES)} rates:")
    for name, make in OPTIMIZERS.items():
        paths = jax.jit(jax.vmap(lambda rate, make=make: path(make(rate))))(RATES)
        heights = jax.vmap(valley)(paths[:, -1])
        best = int(jnp.nanargmin(heights))
        near = float(jnp.mean(heights < 10 * heights[best]))
        print(f"{name:9} {heights[best]:.1e} at {RATES[best]:.4f}; {near:.0%} of the rates come within ten times that")
        axes.plot(*paths[best].T, ".-", markersize=3, linewidth=1, label=name)
    axes.plot(1, 1, "k*", markersize=12)
    axes.set(xlim=(-2, 2), ylim=(-1, 3), xlabel="first param", ylabel="second param")
    axes.legend()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120, bbox_inches="tight")
    print(f"drawn in {FIGURE}")


if __name__ == "__main__":
    main()
