"""Micro-batches: the gradient of the whole batch, whatever its weights, its terms and its last part."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_law import assert_same_bytes

from funcnn import layers, losses, metrics, penalties, training
from funcnn.training import Aux, Objective

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(13, 4)).astype(np.float32), RNG.normal(size=(13, 2)).astype(np.float32)
WEIGHTS = RNG.uniform(0, 3, 13).astype(np.float32) * (RNG.uniform(size=13) > 0.4)
MODEL = layers.serial(layers.dense(6), layers.tanh, layers.dense(2))
METRICS = {"mae": metrics.mean_absolute_error}


def close(found, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), found, expected)


def supervised(micro, model=MODEL, optimizer=None, penalty=None):
    optimizer = optimizer or optax.sgd(0.1)
    return training.supervised(model, losses.squared_error, optimizer, METRICS, penalty=penalty, micro_batch_size=micro)


def one_step(line, batch):
    state = line.init(KEY, batch)
    state, info = jax.jit(line.step)(state, batch)
    return state.params, line.report(info)


@pytest.mark.parametrize(
    "micro", [4, 13, pytest.param(1, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("batch", [(X, Y), (X, Y, WEIGHTS), (X, Y, np.zeros(13, np.float32))])
def test_a_step_is_that_of_the_whole_batch(micro, batch):
    penalty = penalties.l2(0.1)
    close(one_step(supervised(micro, penalty=penalty), batch), one_step(supervised(None, penalty=penalty), batch))


@pytest.mark.slow
def test_a_mean_of_means_would_be_noticed():
    # What the test above compares is not the mean of the gradients of the parts.
    parts = [one_step(supervised(None), tuple(a[i : i + 4] for a in (X, Y, WEIGHTS)))[0] for i in (0, 4, 8, 12)]
    mean = jax.tree.map(lambda *a: sum(a) / len(a), *parts)
    whole = one_step(supervised(4), (X, Y, WEIGHTS))[0]
    assert not np.allclose(mean["dense_0"]["kernel"], whole["dense_0"]["kernel"], atol=1e-3)


def several_terms(micro):
    def init(key, batch):
        return MODEL.init(key, batch["x"])

    def loss(params, model_state, batch, *, key, training):
        y, state = MODEL.apply(params, model_state, batch["x"])
        terms = {"near": losses.squared_error(y, batch["y"]), "far": jnp.abs(y - batch["y"])}
        weights = {"near": batch["w"], "far": jnp.ones(y.shape) * batch["w"][:, None] ** 2}
        return terms, Aux(state, y, batch["y"], weights, penalty=jnp.sum(params["dense_0"]["bias"] ** 2))

    return training.trainer(Objective(init, loss), optax.sgd(0.1), {}, micro_batch_size=micro)


@pytest.mark.slow
def test_several_terms_with_weights_of_their_own():
    batch = {"x": X, "y": Y, "w": WEIGHTS}
    close(one_step(several_terms(5), batch), one_step(several_terms(None), batch))


@pytest.mark.slow
def test_an_epoch_ends_with_a_step_on_what_is_left():
    options = {"key": KEY, "epochs": 3, "batch_size": 6}  # 6, 6 and 1
    optimizer = optax.adam(0.01)
    found = training.run(supervised(2, optimizer=optimizer), (X, Y, WEIGHTS), **options)
    expected = training.run(supervised(None, optimizer=optimizer), (X, Y, WEIGHTS), **options)
    assert int(found.state.step) == int(found.state.opt_state[0].count) == 9
    close(found.history, expected.history, rtol=1e-4)
    close(found.state.params, expected.state.params, rtol=1e-4)


@pytest.mark.slow
def test_the_law_holds():
    model = layers.serial(layers.dense(6), layers.batch_norm(), layers.dropout(0.3), layers.tanh, layers.dense(2))
    line = supervised(3, model, optax.adam(0.01))
    options = {"key": KEY, "epochs": 4, "batch_size": 8, "validation": (X, Y, WEIGHTS)}  # 3, 3, 2 and 3, 2
    whole = jax.jit(lambda: training.run(line, (X, Y, WEIGHTS), **options))()
    for every in (1, None):
        assert_same_bytes(training.fit(line, (X, Y, WEIGHTS), **options, every=every, progress=False), whole)
    assert not np.allclose(whole.state.model_state["batch_norm_0"]["mean"], 0)


def test_each_part_has_a_key_of_its_own():
    model = layers.serial(layers.dropout(0.5), layers.function(lambda x: x))
    seen = []

    def init(key, batch):
        return {"a": jnp.ones(())}, {}

    def loss(params, model_state, batch, *, key, training):
        y, _ = model.apply({}, {}, batch, key=key, training=training)
        jax.debug.callback(lambda a: seen.append(np.asarray(a)), y, ordered=True)
        return jnp.sum(params["a"] * y, axis=1), Aux({})

    line = training.trainer(Objective(init, loss), optax.sgd(0.0), micro_batch_size=4)
    batch = jnp.ones((8, 64))
    jax.jit(line.step)(line.init(KEY, batch), batch)
    jax.effects_barrier()
    assert len({a.tobytes() for a in seen}) == 2


@pytest.mark.slow
def test_less_memory_is_used():
    model = layers.serial(*[layer for _ in range(6) for layer in (layers.dense(128), layers.tanh)], layers.dense(2))
    x, y = jnp.zeros((2048, 128)), jnp.zeros((2048, 2))

    def memory(micro):
        line = supervised(micro, model)
        analysis = jax.jit(line.step).lower(line.init(KEY, (x, y)), (x, y)).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert memory(128) < memory(None) / 4


@pytest.mark.slow
def test_a_line_search_sees_the_whole_batch():
    found = one_step(supervised(4, optimizer=optax.lbfgs()), (X, Y, WEIGHTS))
    close(found, one_step(supervised(None, optimizer=optax.lbfgs()), (X, Y, WEIGHTS)), rtol=1e-4)


def test_what_cannot_be_cut_is_refused():
    def loss(params, model_state, batch, *, key, training):
        return {"a": params * batch["a"], "b": params * batch["b"]}, Aux(model_state)

    line = training.trainer(Objective(lambda key, batch: (jnp.ones(()), {}), loss), optax.sgd(0.1), micro_batch_size=2)
    batch = {"a": jnp.ones(3), "b": jnp.ones(5)}
    with pytest.raises(ValueError, match=r"expected batches of one length, .* got lengths \[3, 5\]; train on whole"):
        training.fit(line, batch, key=KEY, epochs=1, batch_size=None, progress=False)
    with pytest.raises(ValueError, match=r"micro_batch_size"):
        supervised(0)
