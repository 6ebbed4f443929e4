"""``evaluate`` and ``predict``: the same numbers whatever the batches, and one program for any number of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, metrics, training
from funcnn.training import Aux

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 5)).astype(np.float32)
LABELS = RNG.integers(0, 3, 100)
KEY = jax.random.key(0)
MODEL = layers.serial(layers.dense(6), layers.batch_norm(), layers.relu, layers.dropout(0.5), layers.dense(3))
LINE = training.supervised(
    MODEL,
    losses.softmax_cross_entropy,
    optax.sgd(0.1),
    {"accuracy": metrics.accuracy, "table": metrics.confusion_matrix(3)},
)


@pytest.fixture(scope="module")
def state():
    return training.fit(LINE, (X, LABELS), key=KEY, epochs=1, progress=False).state


def by_hand(state, x):
    """The network with its running averages and without dropout, in NumPy."""
    p, norm = state.params, state.model_state["batch_norm_0"]
    h = x @ np.asarray(p["dense_0"]["kernel"]) + np.asarray(p["dense_0"]["bias"])
    h = (h - norm["mean"][None]) / np.sqrt(norm["var"] + 1e-5)[None]
    h = h * p["batch_norm_0"]["scale"][None] + p["batch_norm_0"]["bias"][None]
    return np.maximum(h, 0) @ np.asarray(p["dense_1"]["kernel"]) + np.asarray(p["dense_1"]["bias"])


@pytest.mark.parametrize("rows", [0, 1, 10, 32, 33, 100])
def test_predict_is_the_network_without_training(state, rows):
    found = training.predict(MODEL, state, X[:rows])
    assert (found.shape, found.dtype) == ((rows, 3), jnp.float32)
    np.testing.assert_allclose(found, by_hand(state, X[:rows]), rtol=1e-4, atol=1e-5)


def test_predict_compiles_once_for_any_number_of_rows(state, compilations):
    training.predict(MODEL, state, X[:7])
    compilations.clear()
    for rows in (1, 10, 32, 33, 100):
        for x in (X[:rows], X[:rows].tolist(), X[:rows].astype(np.float64)):
            training.predict(MODEL, state, x)
    assert not compilations


def test_predict_of_jax_arrays_compiles_nothing_either(state, compilations):
    arrays = [jnp.asarray(X[:rows]) for rows in (1, 10, 33, 100)]
    training.predict(MODEL, state, arrays[0])
    compilations.clear()
    for x in arrays:
        training.predict(MODEL, state, x)
    assert not compilations


def test_the_batch_size_of_predict_changes_nothing_but_rounding(state):
    whole = training.predict(MODEL, state, X, batch_size=100)
    for batch_size in (1, 7, 1000):
        np.testing.assert_allclose(
            training.predict(MODEL, state, X, batch_size=batch_size), whole, rtol=1e-5, atol=1e-6
        )


def test_a_row_is_predicted_alone_as_among_others(state):
    whole = training.predict(MODEL, state, X)
    for i in (0, 31, 32, 99):
        np.testing.assert_allclose(training.predict(MODEL, state, X[i : i + 1])[0], whole[i], rtol=1e-5, atol=1e-6)


def test_trees_go_in_and_come_out():
    model = layers.parallel(layers.dense(2), layers.dense(3))
    pair = (X[:9], X[:9, :2])
    line = training.supervised(model, lambda y, t: losses.squared_error(y[0], t), optax.sgd(0.1))
    state = line.init(KEY, (pair, np.zeros((9, 2), np.float32)))
    found = training.predict(model, state, pair, batch_size=4)
    expected, _ = model.apply(state.params, state.model_state, pair)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    nothing = training.predict(model, state, (X[:0], X[:0, :2]))
    assert jax.tree.map(jnp.shape, nothing) == ((0, 2), (0, 3))


# ---- evaluate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 32, 33, 100, 1000])
def test_evaluate_is_the_mean_over_everything(state, batch_size):
    from sklearn.metrics import confusion_matrix, log_loss

    outputs = by_hand(state, X)
    probabilities = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    found = training.evaluate(LINE, state, (X, LABELS), batch_size=batch_size)
    assert sorted(found) == ["accuracy", "loss", "table"]
    assert found["loss"] == pytest.approx(log_loss(LABELS, probabilities), rel=1e-4)
    assert found["accuracy"] == pytest.approx((outputs.argmax(1) == LABELS).mean(), rel=1e-6)
    np.testing.assert_array_equal(found["table"], confusion_matrix(LABELS, outputs.argmax(1)))
    assert type(found["loss"]) is float


def test_evaluate_weighs_rows(state):
    w = np.where(np.arange(100) < 30, 2.0, 0.0)
    found = training.evaluate(LINE, state, (X, LABELS, w))
    alone = training.evaluate(LINE, state, (X[:30], LABELS[:30]))
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(alone["accuracy"], rel=1e-5)


@pytest.mark.slow
def test_evaluate_is_the_validation_of_a_run(state):
    result = training.fit(LINE, (X, LABELS), key=KEY, epochs=1, progress=False, validation=(X[:50], LABELS[:50]))
    found = training.evaluate(LINE, result.state, (X[:50], LABELS[:50]))
    assert found["loss"] == pytest.approx(float(result.history["validation_loss"][-1]), rel=1e-6)
    np.testing.assert_array_equal(found["table"], result.history["validation_table"][-1])


def test_a_second_evaluate_compiles_nothing(state, compilations):
    training.evaluate(LINE, state, (X, LABELS))
    compilations.clear()
    training.evaluate(LINE, state, (X[::-1].copy(), LABELS[::-1].copy()))
    assert not compilations


def test_neither_changes_what_it_is_given(state):
    before = jax.tree.map(np.array, (state.params, state.model_state))
    x = X.copy()
    training.predict(MODEL, state, x)
    training.evaluate(LINE, state, (x, LABELS))
    np.testing.assert_array_equal(x, X)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.model_state), before)


# ---- side inputs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def padded():
    rng = np.random.default_rng(0)
    x = {"x": rng.integers(0, 9, (12, 5)), "lengths": rng.integers(1, 6, 12)}
    model = layers.serial(
        layers.embedding(9, 4),
        layers.bidirectional(layers.elman_cell(3), return_sequences=False),
        layers.named("head", layers.dense(2)),
    )
    trainer = training.supervised(model, losses.softmax_cross_entropy, optax.sgd(0.1), {"accuracy": metrics.accuracy})
    return model, trainer, (x, rng.integers(0, 2, 12))


@pytest.mark.slow
def test_side_inputs_that_are_handed_on_are_no_part_of_the_prediction(padded):
    model, trainer, (x, y) = padded
    result = training.run(trainer, (x, y), key=jax.random.key(0), epochs=1, batch_size=5)
    expected, _ = model.apply(result.state.params, result.state.model_state, x)
    found = training.predict(model, result.state, x, batch_size=5)
    np.testing.assert_allclose(found, expected["x"], rtol=1e-5, atol=1e-6)
    report = training.evaluate(trainer, result.state, (x, y))
    assert report["accuracy"] == pytest.approx(np.mean(np.argmax(expected["x"], -1) == y))
    assert training.predict(model, result.state, jax.tree.map(lambda a: a[:0], x)).shape == (0, 2)


@pytest.mark.slow
def test_a_dict_that_a_model_makes_itself_is_the_prediction(padded):
    def two(d):
        return {"x": d["x"], "twice": 2 * d["x"]}

    model = layers.network(lambda d, m: two(m(d)), m=padded[0])
    state = training.TrainState(*model.init(jax.random.key(0), padded[2][0]), (), jax.random.key(0), 0)
    assert sorted(training.predict(model, state, padded[2][0])) == ["twice", "x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x | {"x": x["x"] + 5}, r"embedding: expected whole numbers from 0 to 8, got 5 to 13"),
        (lambda x: x | {"lengths": x["lengths"] + 5}, r"recurrent: expected lengths from 0 to 5, .* got 6 to 10"),
    ],
)
def test_tokens_and_lengths_that_cannot_be_are_found_before_training(padded, change, message):
    _, trainer, (x, y) = padded
    with pytest.raises(ValueError, match=message):
        training.fit(trainer, (change(x), y), key=jax.random.key(0), epochs=1, progress=False)


def test_the_states_of_a_sweep_are_not_the_state_of_a_run():
    def line(rate):
        return training.supervised(layers.dense(1), losses.squared_error, optax.sgd(rate))

    data = jnp.ones((4, 2)), jnp.ones((4, 1))
    key = jax.random.key(0)
    state = line(0.1).init(key, data)
    several = jax.tree.map(lambda a: jnp.stack([a, a, a]), state._replace(key=None))._replace(
        key=jax.random.split(key, 3)
    )
    for call in (
        lambda: training.evaluate(line(0.1), several, data),
        lambda: training.fit(line(0.1), data, key=key, epochs=1, state=several, progress=False),
        lambda: training.run(line(0.1), data, key=key, epochs=1, state=several),
    ):
        with pytest.raises(ValueError, match=r"expected the state of one run, got those of 3 members; take one"):
            call()


def drawing(rate=0.1):
    """A trainer whose loss is a number that is drawn for each example, as those of models that sample are."""

    def loss(params, model_state, batch, *, key, training):
        del params, training
        return jax.random.normal(key, (len(batch[0]),)), Aux(model_state)

    return training.trainer(training.Objective(lambda key, batch: ({"a": jnp.zeros(1)}, {}), loss), optax.sgd(rate))


def test_each_batch_is_evaluated_with_a_key_of_its_own():
    trainer, rows = drawing(), (X[:12],)
    state = trainer.init(KEY, rows)
    first = training.evaluate(trainer, state, (X[:4],))["loss"]
    found = training.evaluate(trainer, state, rows, batch_size=4)["loss"]
    assert abs(found - first) > 1e-3  # the mean of three equal draws would be the first
    assert first == pytest.approx(float(trainer.report(trainer.evaluate(state, (X[:4],)))["loss"]), rel=1e-5)
    streamed = training.evaluate(trainer, state, iter([(X[i : i + 4],) for i in (0, 4, 8)]))["loss"]
    np.testing.assert_allclose(streamed, found, rtol=1e-6)


def test_so_is_each_batch_of_validation_of_each_member():
    options = {"key": KEY, "epochs": 1, "batch_size": 4, "validation": (X[:12],), "progress": False}
    swept = training.sweep(drawing, jnp.array([0.1, 0.2]), (X[:12],), seeds=2, **options)
    for member in swept.members:
        last = training.evaluate(drawing(), member.result.state, (X[:12],), batch_size=4)["loss"]
        np.testing.assert_allclose(member.result.history["validation_loss"][-1], last, rtol=1e-5)


@pytest.mark.parametrize("data", [(X, LABELS), lambda key: (jnp.asarray(X[:8]), jnp.asarray(LABELS[:8]))])
def test_validation_comes_in_batches_also_where_training_does_not(data):
    """A batch as large as all of the data, or batches that a function draws, say nothing of how large validation is."""
    sizes = []

    def seen(prediction, target):
        sizes.append(len(prediction))
        return losses.softmax_cross_entropy(prediction, target)

    line = training.supervised(layers.dense(3), seen, optax.sgd(0.1))
    held_out = np.tile(X, (5, 1)), np.tile(LABELS, 5)
    result = training.run(line, data, key=KEY, epochs=1, batch_size=150, validation=held_out)
    assert max(sizes) == 150
    everything = training.evaluate(line, result.state, held_out, batch_size=None)["loss"]
    np.testing.assert_allclose(result.history["validation_loss"], [everything], rtol=1e-5)
