"""Eight hyperparameters of a training run, tuned by gradient through the whole run.

A small network learns digits from 197 images, in 120 steps. The loss on 800 others at the end of that run is a function
of the numbers that the run was given, and ``jax.grad`` goes back through every step of it. So the numbers are trained
as weights are: they are the params of an ``Objective`` whose loss is a training run, itself trained by ``fit``, every
outer step on runs from new keys. What was gained is measured on the last 800 images, which neither run has seen.

The numbers live on the whole line, and ``exp`` or ``sigmoid`` takes them to where they make sense. Derivatives through
a run want smooth activations, and an ``eps_root`` for Adam, whose square root has none at zero.

Reference: Maclaurin et al., "Gradient-based hyperparameter optimization through reversible learning", 2015.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from funcnn import data, layers, losses, metrics, training
from funcnn.training import Aux, Objective

EPOCHS, BATCH, OUTER_STEPS, RUNS = 30, 50, 100, 4

# What a number is called, where it begins, and which function takes it there from the whole line.
BEGIN = {
    "learning rate": (0.01, jnp.exp),
    "share of it at the end": (0.1, jax.nn.sigmoid),
    "beta 1": (0.9, jax.nn.sigmoid),
    "beta 2": (0.999, jax.nn.sigmoid),
    "weight decay": (0.01, jnp.exp),
    "label smoothing": (0.1, jax.nn.sigmoid),
    "noise on the pixels": (0.1, jnp.exp),
    "scale of the first weights": (1.0, jnp.exp),
}


def numbers(raw):
    return {name: to(raw[name]) for name, (_, to) in BEGIN.items()}


def trainer(h):
    """Of the inner runs, from eight numbers."""
    kernel_init = jax.nn.initializers.variance_scaling(h["scale of the first weights"], "fan_avg", "uniform")
    dense = functools.partial(layers.dense, kernel_init=kernel_init)
    model = layers.serial(layers.gaussian_noise(h["noise on the pixels"]), dense(32), layers.tanh, dense(10))
    rate = optax.cosine_decay_schedule(h["learning rate"], EPOCHS * 4, alpha=h["share of it at the end"])
    decay = h["weight decay"]
    optimizer = optax.adamw(rate, b1=h["beta 1"], b2=h["beta 2"], eps_root=1e-8, weight_decay=decay)
    loss = functools.partial(losses.softmax_cross_entropy, label_smoothing=h["label smoothing"])
    # The loss by which runs are compared is without the smoothing, which is one of the numbers: a metric.
    measured = {"cross_entropy": metrics.mean(losses.softmax_cross_entropy)}
    return training.supervised(model, loss, optimizer, measured)


def final(raw, train, held_out, keys):
    """The cross-entropy on held-out data at the end of a run, for every key."""
    made = trainer(numbers(raw))

    def one(key):
        run = training.run(made, train, key=key, epochs=EPOCHS, batch_size=BATCH, remat=True)
        return made.report(made.evaluate(run.state, held_out))["cross_entropy"]

    return jax.vmap(one)(keys)


def main():
    key = jax.random.key(0)
    x, y = load_digits(return_X_y=True)
    known, third = data.split((x / 16, y), 800 / 1797, key=key, stratify=y)
    validation, train = data.split(known, 197 / 997, key=key, stratify=known[1])

    def init(key, batch):
        inverse = {jnp.exp: jnp.log, jax.nn.sigmoid: jax.scipy.special.logit}
        return {name: inverse[to](jnp.float32(begin)) for name, (begin, to) in BEGIN.items()}, {}

    def loss(raw, model_state, keys, *, key, training):
        return final(raw, train, validation, keys), Aux(model_state)

    outer = training.trainer(Objective(init, loss), optax.adam(optax.cosine_decay_schedule(0.1, OUTER_STEPS)))
    result = training.fit(
        outer, lambda key: jax.random.split(key, RUNS), key=key, steps=OUTER_STEPS, steps_per_epoch=10
    )
    begin, tuned = init(key, None)[0], result.state.params
    for name in BEGIN:
        print(f"{name:>26}: {numbers(begin)[name]:7.4f} -> {numbers(tuned)[name]:7.4f}")

    keys = jax.random.split(jax.random.fold_in(key, 1), 8)
    measured = jax.jit(lambda raw, part: final(raw, train, part, keys).mean())
    others = [begin | {"learning rate": jnp.log(rate)} for rate in jnp.logspace(-3, 0, 13)]
    best = min(others, key=lambda raw: measured(raw, validation))
    print(f"{'mean of 8 new runs':>26}:  begin   best rate alone   all eight")
    for name, part in (("validation loss", validation), ("loss on a third part", third)):
        before, alone, after = (measured(raw, part) for raw in (begin, best, tuned))
        print(f"{name:>26}: {before:6.3f} {alone:17.3f} {after:11.3f}")


if __name__ == "__main__":
    main()
