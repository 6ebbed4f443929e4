"""Cross-validation against a loop over the folds; ensembles, and how well they know what they know."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_law import assert_same_bytes

from funcnn import data, layers, losses, metrics, training
from funcnn.training import Aux

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(22, 3)).astype(np.float32), RNG.integers(0, 2, 22).astype(np.int32)
MODEL = layers.serial(layers.dense(4), layers.tanh, layers.dense(2))
TRAINER = training.supervised(MODEL, losses.softmax_cross_entropy, optax.adam(0.01), {"accuracy": metrics.accuracy})


def folded(n=22, folds=4, given=None, **options):
    given = (X[:n], Y[:n]) if given is None else given
    options = {"epochs": 3, "batch_size": 5} | options
    return training.cross_validate(TRAINER, given, key=KEY, folds=folds, **options)


def alone(found, i, n=22, **options):
    """The run of one fold on the examples that are really there."""
    held = found.folds == i
    options = {"epochs": 3, "batch_size": 5} | options
    run = jax.jit(lambda key, train, held: training.run(TRAINER, train, key=key, validation=held, **options))
    return run(found.keys[i], (X[:n][~held], Y[:n][~held]), (X[:n][held], Y[:n][held]))


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_folds_are_even_and_depend_on_the_key():
    numbers = data.folds(23, 5, key=KEY)
    assert sorted(np.bincount(numbers).tolist()) == [4, 4, 5, 5, 5]
    np.testing.assert_array_equal(numbers, data.folds(23, 5, key=KEY))
    assert (numbers != data.folds(23, 5, key=jax.random.key(1))).any()
    assert (np.diff(numbers) < 0).any()  # not in the order of the examples


def test_each_class_is_spread_evenly_where_it_is_asked_for():
    labels = np.array(["a"] * 11 + ["b"] * 7 + ["c"] * 5)
    numbers = data.folds(23, 4, key=KEY, stratify=labels)
    for label, count in (("a", 11), ("b", 7), ("c", 5)):
        parts = np.bincount(numbers[labels == label], minlength=4)
        assert parts.sum() == count
        assert parts.max() - parts.min() <= 1
    assert np.ptp(np.bincount(numbers)) <= 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: data.folds(3, 4, key=KEY), ValueError, "data.folds: expected at most 3 folds, .* got 4; take fewer"),
        (lambda: data.folds(3, 1, key=KEY), ValueError, "count of at least 2, got 1"),
        (lambda: data.folds(3, 2, key=0), TypeError, "expected a JAX key"),
        (lambda: folded(folds=23), ValueError, "at most 22 folds"),
        (lambda: folded(folds=2.5), TypeError, "count as a whole number"),
        (lambda: folded(how="pmap"), ValueError, "how to be one of"),
        (lambda: folded(given=lambda key: (X, Y)), TypeError, "data as arrays, got a function"),
        (lambda: folded(given=(X, Y + 5)), ValueError, "class"),
        (lambda: folded(monitor="lost", patience=1, mode="min"), ValueError, "monitor: expected one of the columns"),
    ],
)
def test_what_cannot_be_folded_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_tree_that_cannot_be_weighed_needs_even_folds():
    def init(key, batch):
        return {"mean": jnp.zeros(3)}, {}

    def loss(params, model_state, batch, *, key, training):
        return jnp.mean((batch["x"] - params["mean"][None]) ** 2, axis=-1), Aux(model_state)

    trainer = training.trainer(training.Objective(init, loss), optax.sgd(0.1))
    found = training.cross_validate(trainer, {"x": X[:20]}, key=KEY, folds=4, epochs=2)
    assert found.history["validation_loss"].shape == (4, 2)
    with pytest.raises(
        TypeError, match=r"\(x, y\) or \(x, y, weights\), to weigh what fills up folds with 0, got a dict"
    ):
        training.cross_validate(trainer, {"x": X}, key=KEY, folds=4, epochs=2)


# ---- the runs --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_fold_is_its_run():
    found = folded(20, how="map")
    assert_same_bytes(found.members[2].result, alone(found, 2, 20))
    assert found.history["validation_loss"].shape == (4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vmap", "map", "auto"])
def test_folds_of_several_sizes_are_their_runs(how):
    """All at once: what has the weight 0 is then in no batch of its own."""
    found = folded(how=how, batch_size=None)
    assert len(set(np.bincount(found.folds))) == 2
    for i in range(4):
        expected = alone(found, i, batch_size=None)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            (found.members[i].result.history, found.members[i].result.state.params),
            (expected.history, expected.state.params),
        )


@pytest.mark.slow
def test_weights_and_early_stopping_go_into_each_fold():
    weights = RNG.uniform(size=22).astype(np.float32)
    given = {"epochs": 30, "monitor": "validation_loss", "patience": 2, "keep_best": True, "batch_size": None}
    found = folded(given=(X, Y, weights), **given)
    assert found.history["epochs_run"].shape == (4,)
    held = found.folds == 1
    expected = training.run(
        TRAINER, (X[~held], Y[~held], weights[~held]), key=found.keys[1],
        validation=(X[held], Y[held], weights[held]), **given,
    )  # fmt: skip
    np.testing.assert_allclose(found.history["loss"][1], expected.history["loss"], rtol=1e-4, atol=1e-6)
    assert found.members[1].result.best is not None


@pytest.mark.slow
def test_the_record_has_mean_and_deviation_over_folds():
    found = folded(20)
    last = found.history["validation_loss"][:, -1]
    assert found.mean("validation_loss") == pytest.approx(last.mean())
    assert found.deviation("validation_loss") == pytest.approx(last.std(ddof=1))
    table = found.table()
    assert table.columns == ("fold", "loss", "accuracy", "validation_loss", "validation_accuracy")
    assert [row[0] for row in table.rows] == [0, 1, 2, 3, "mean", "deviation"]
    assert table.rows[4][3] == pytest.approx(last.mean())
    assert repr(found).startswith("CrossValidation(4 folds, history: loss (4, 3)")
    assert found.state.params["dense_0"]["kernel"].shape == (4, 3, 4)


# ---- ensembles -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_member_of_an_ensemble_predicts():
    found = folded(20)
    y = training.predict_members(MODEL, found.state, X, batch_size=8)
    assert y.shape == (22, 4, 2)
    for i, member in enumerate(found.members):
        expected = training.predict(MODEL, member.result.state, X, batch_size=8)
        np.testing.assert_allclose(y[:, i], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="states of several members, got a step of shape"):
        training.predict_members(MODEL, found.members[0].result.state, X)


@pytest.mark.slow
def test_the_calibration_error_is_its_sum_over_bins():
    logits, labels = RNG.normal(size=(500, 4)).astype(np.float32) * 2, RNG.integers(0, 4, 500)
    p = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    metric = metrics.calibration_error(10)
    sums = [metric.measure(logits[part], labels[part]) for part in (slice(0, 200), slice(200, 500))]
    found = metric.compute(jax.tree.map(jnp.add, *sums))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    weights = (np.arange(500) < 300).astype(np.float32)
    np.testing.assert_allclose(
        metric.compute(metric.measure(logits, labels, weights)),
        metric.compute(metric.measure(logits[:300], labels[:300])),
        rtol=1e-5,
    )
