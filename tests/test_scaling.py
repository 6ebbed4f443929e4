"""Loss scaling: small gradients survive float16, large ones cost a step and no more, and nothing else changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from test_law import assert_same_bytes

from funcnn import data, layers, losses, metrics, training
from funcnn.training import Aux, Objective

KEY = jax.random.key(0)
X, Y = (np.random.default_rng(0).normal(size=(12, n)).astype(np.float32) for n in (4, 1))
MODEL = layers.serial(layers.dense(6), layers.tanh, layers.dense(1))


def made(loss_scale, micro=None, optimizer=None):
    optimizer = optimizer or optax.sgd(0.1)
    return training.supervised(MODEL, losses.squared_error, optimizer, micro_batch_size=micro, loss_scale=loss_scale)


def close(found, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), found, expected)


OPTIONS = {"key": KEY, "epochs": 3, "batch_size": 12, "progress": False}


@functools.cache
def unscaled(micro):
    return training.fit(made(None, micro), (X, Y), **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("loss_scale", ["dynamic", *(pytest.param(n, marks=pytest.mark.slow) for n in (1024.0, 3))])
@pytest.mark.parametrize("micro", [None, pytest.param(5, marks=pytest.mark.slow)])
def test_in_float32_it_changes_nothing(loss_scale, micro):
    found, expected = training.fit(made(loss_scale, micro), (X, Y), **OPTIONS), unscaled(micro)
    close(found.history, expected.history)
    close(found.state.params, expected.state.params)


def shrinking(factor, dtype, loss_scale, rate=1.0):
    """The loss is ``factor * p``, its gradient passes through ``dtype``."""

    def loss(params, model_state, batch, *, key, training):
        return (params.astype(dtype).astype(jnp.float32) * factor)[None] * batch, Aux(
            {"steps": model_state["steps"] + 1}
        )

    objective = Objective(lambda key, batch: (jnp.ones(()), {"steps": jnp.zeros(())}), loss)
    return training.trainer(objective, optax.sgd(rate), loss_scale=loss_scale)


def test_a_gradient_too_small_for_float16_is_kept():
    batch = jnp.ones(1)
    moved = {}
    for loss_scale in (None, "dynamic"):
        line = shrinking(1e-8, jnp.float16, loss_scale, rate=1e8)  # the least of float16 is 6e-8
        state, _ = jax.jit(line.step)(line.init(KEY, batch), batch)
        moved[loss_scale] = 1 - float(state.params)
    assert moved[None] == 0
    np.testing.assert_allclose(moved["dynamic"], 1.0, rtol=2e-3)


def test_a_step_with_gradients_too_large_leaves_everything_and_halves_the_scale():
    line, batch = shrinking(100.0, jnp.float16, "dynamic", rate=1e-4), jnp.ones(1)
    state = line.init(KEY, batch)
    step = jax.jit(line.step)
    scales = []
    while float(state.params) == 1.0 and len(scales) < 20:
        assert float(state.model_state["steps"]) == 0
        scales.append(float(state.opt_state.scale))
        state, info = step(state, batch)
        assert np.isfinite(line.report(info)["loss"])
    assert len(scales) > 1
    assert scales == [2.0 ** (15 - i) for i in range(len(scales))]
    assert int(state.step) == len(scales)
    assert scales[-1] == 2.0**9  # 100 times this is the first that float16 holds
    np.testing.assert_allclose(state.params, 1 - 0.01, rtol=1e-4)


@pytest.mark.slow
def test_it_grows_after_a_long_time(monkeypatch):
    monkeypatch.setattr(training.scaling, "_PERIOD", 3)
    line = made("dynamic")
    result = training.run(line, (X, Y), key=KEY, epochs=7, batch_size=None)
    assert float(result.state.opt_state.scale) == 2.0**17
    assert int(result.state.opt_state.good) == 1


@pytest.mark.slow
def test_the_law_holds():
    line = made("dynamic", optimizer=optax.adam(0.01))
    options = {"key": KEY, "epochs": 4, "batch_size": 5}
    whole = jax.jit(lambda: training.run(line, (X, Y), **options))()
    for every in (1, None):
        assert_same_bytes(training.fit(line, (X, Y), **options, every=every, progress=False), whole)


@pytest.mark.parametrize(
    ("value", "error"),
    [("static", TypeError), (0, ValueError), (-1.0, ValueError), (float("nan"), ValueError), ([1], TypeError)],
)
def test_what_cannot_be_meant_is_refused(value, error):
    with pytest.raises(error, match="loss_scale"):
        made(value)


@pytest.mark.slow
def test_digits_in_half_precision_are_learned_as_in_float32():
    images, labels = load_digits(return_X_y=True)
    train, test = data.split((images.reshape(-1, 8, 8, 1) / 16, labels), 0.2, key=KEY, stratify=labels)
    model = layers.serial(
        *(layers.conv(16, 3), layers.batch_norm(), layers.relu, layers.max_pool(2)),
        *(layers.conv(32, 3), layers.batch_norm(), layers.relu, layers.max_pool(2)),
        *(layers.flatten, layers.dropout(0.3), layers.dense(10)),
    )
    found = {}
    for dtype, loss_scale in ((jnp.float32, None), (jnp.bfloat16, None), (jnp.float16, "dynamic")):
        line = training.supervised(
            layers.mixed_precision(model, compute=dtype),
            losses.softmax_cross_entropy,
            optax.adam(3e-3),
            {"accuracy": metrics.accuracy},
            loss_scale=loss_scale,
        )
        result = training.fit(line, train, key=KEY, epochs=20, batch_size=64, progress=False)
        assert {leaf.dtype for leaf in jax.tree.leaves(result.state.params)} == {jnp.dtype("float32")}
        found[jnp.dtype(dtype).name] = float(training.evaluate(line, result.state, test)["accuracy"])
    assert found["float32"] > 0.98, found
    assert min(found.values()) >= found["float32"] - 0.005, found
