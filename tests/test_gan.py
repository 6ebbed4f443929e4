"""A trainer written by hand: two networks with opposite aims and an optimizer each, in one run like any other.

``Trainer`` is four pure functions, so what ``training.supervised`` does not foresee is four functions more. Here the
generator and the discriminator take turns within a step, and the run is compiled, driven and evaluated as usual.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, training

pytestmark = pytest.mark.slow  # its run compiles for long

MEAN, STD, NOISE, EPOCHS = 4.0, 0.5, 4, 150


class Pair(NamedTuple):
    """Something for the generator and something for the discriminator: their parameters, or their optimizer states."""

    generator: Any
    discriminator: Any


def alternating_gan(generator, discriminator, optimizers):
    """A trainer whose step first improves the discriminator, then the generator against the improved one."""

    def samples(params, key, n):
        return generator.apply(params, {}, jax.random.normal(key, (n, NOISE)))[0]

    def logits(params, x):
        return discriminator.apply(params, {}, x)[0]

    def told_apart(params, real, made):
        """The loss of the discriminator: it should say yes to what is real, and no to what is made."""
        return jnp.mean(jax.nn.softplus(-logits(params, real))) + jnp.mean(jax.nn.softplus(logits(params, made)))

    def fooled(params, discriminator_params, key, n):
        """The loss of the generator: the discriminator should say yes."""
        return jnp.mean(jax.nn.softplus(-logits(discriminator_params, samples(params, key, n))))

    def init(key, batch):
        generator_key, discriminator_key, state_key = jax.random.split(key, 3)
        noise = jax.ShapeDtypeStruct((len(batch), NOISE), batch.dtype)
        params = Pair(generator.init(generator_key, noise)[0], discriminator.init(discriminator_key, batch)[0])
        opt_state = Pair(*(optimizer.init(p) for optimizer, p in zip(optimizers, params, strict=True)))
        return training.TrainState(params, {}, opt_state, state_key, jnp.zeros((), jnp.int32))

    def improved(index, params, opt_state, gradient):
        updates, opt_state = optimizers[index].update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def step(state, batch):
        (g, d), (g_opt, d_opt), n = state.params, state.opt_state, len(batch)
        first_key, second_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        d_loss, gradient = jax.value_and_grad(told_apart)(d, batch, samples(g, first_key, n))
        d, d_opt = improved(1, d, d_opt, gradient)
        g_loss, gradient = jax.value_and_grad(fooled)(g, d, second_key, n)
        g, g_opt = improved(0, g, g_opt, gradient)
        state = state._replace(params=Pair(g, d), opt_state=Pair(g_opt, d_opt), step=state.step + 1)
        return state, {"generator": g_loss * n, "discriminator": d_loss * n, "count": jnp.float32(n)}

    def evaluate(state, batch):
        (g, d), n = state.params, len(batch)
        key = jax.random.fold_in(state.key, jnp.uint32(2**31))
        sums = {"generator": fooled(g, d, key, n), "discriminator": told_apart(d, batch, samples(g, key, n))}
        return {name: value * n for name, value in sums.items()} | {"count": jnp.float32(n)}

    def report(info):
        means = {name: info[name] / info["count"] for name in ("generator", "discriminator")}
        return {"loss": means["generator"] + means["discriminator"], **means}

    return SimpleNamespace(trainer=training.Trainer(init, step, evaluate, report), samples=samples)


@pytest.fixture(scope="module")
def gan():
    generator = layers.serial(layers.dense(16), layers.tanh, layers.dense(1))
    hidden = [layers.dense(32), layers.leaky_relu(0.2)]
    # Without momentum, and with a generator that comes to rest: two networks that each follow where the other has been
    # go round in circles.
    optimizers = optax.adam(optax.linear_schedule(3e-3, 0.0, EPOCHS * 8), b1=0.0), optax.adam(6e-3, b1=0.0)
    return alternating_gan(generator, layers.serial(*hidden, *hidden, layers.dense(1)), optimizers)


@pytest.fixture(scope="module")
def real():
    return np.random.default_rng(0).normal(MEAN, STD, (1000, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def arguments(real):
    """Of a run: its last batch is smaller, and its validation data are cut into batches too."""
    return {"key": jax.random.key(0), "epochs": EPOCHS, "batch_size": 128, "validation": real[:200]}


@pytest.fixture(scope="module")
def result(gan, real, arguments):
    return training.run(gan.trainer, real, **arguments)


def test_it_learns_the_distribution(gan, result):
    made = gan.samples(result.state.params.generator, jax.random.key(1), 4000)
    assert made.mean() == pytest.approx(MEAN, abs=0.1)
    assert made.std() == pytest.approx(STD, abs=0.1)
    assert result.state.step == EPOCHS * 8


def test_it_did_not_know_it_before(gan, real):
    state = jax.jit(gan.trainer.init)(jax.random.key(0), real[:128])
    made = gan.samples(state.params.generator, jax.random.key(1), 4000)
    assert abs(made.mean() - MEAN) > 2.0


def test_in_the_end_nobody_can_tell(result):
    """Against a discriminator that cannot do better than guess, both losses are those of a guess."""
    last = {name: values[-20:].mean() for name, values in result.history.items()}
    assert last["discriminator"] == pytest.approx(2 * np.log(2), abs=0.05)
    assert last["generator"] == pytest.approx(np.log(2), abs=0.05)
    assert last["validation_discriminator"] == pytest.approx(2 * np.log(2), abs=0.05)


@pytest.mark.parametrize("every", [7, None])
def test_fit_in_chunks_is_run_to_the_bit(gan, real, arguments, result, every):
    driven = training.fit(gan.trainer, real, **arguments, every=every, progress=False)
    keys = jax.random.key_data(driven.state.key), jax.random.key_data(result.state.key)
    chex.assert_trees_all_equal(*keys)
    chex.assert_trees_all_equal(driven.state._replace(key=0), result.state._replace(key=0))
    chex.assert_trees_all_equal(driven.history, result.history)


def test_evaluate_gives_what_the_history_ends_with(gan, real, result):
    report = training.evaluate(gan.trainer, result.state, real[:200], batch_size=128)
    for name, value in report.items():
        assert value == pytest.approx(result.history[f"validation_{name}"][-1].item(), rel=1e-5)
