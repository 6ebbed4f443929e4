"""Metrics against scikit-learn; the law that sums add; weights; every message."""

from functools import reduce
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import losses, metrics

RNG = np.random.default_rng(0)
CLASSES = 4


def multiclass(n=60, tokens=()):
    """Scores that are right about half of the time; class 3 never occurs and is never predicted."""
    label = RNG.integers(0, 3, (n, *tokens))
    scores = RNG.normal(size=(n, *tokens, CLASSES)) + 1.5 * np.eye(CLASSES)[label]
    scores[..., 3] = -9
    return np.float32(scores), label


def binary(n=60):
    target = RNG.integers(0, 2, n)
    return np.float32(np.clip(RNG.normal(0.3 + 0.4 * target, 0.3), 0, 1)), target


def regression(n=60, outputs=(2,)):
    target = RNG.normal(size=(n, *outputs))
    return np.float32(target + RNG.normal(scale=0.7, size=target.shape)), np.float32(target)


def score(metric, outputs, targets, weights=None):
    return np.asarray(metric.compute(metric.measure(outputs, targets, weights)))


def sk_top_2(t, y, sample_weight):
    return sk.top_k_accuracy_score(t, y, k=2, labels=range(CLASSES), sample_weight=sample_weight)


def of_classes(function, **options):
    """A score of scikit-learn for predicted scores."""
    return lambda t, y, sample_weight: function(t, y.argmax(-1), sample_weight=sample_weight, **options)


def of_flags(function, **options):
    return lambda t, y, sample_weight: function(t, y > 0.5, sample_weight=sample_weight, **options)


def averaged(name, average):
    return of_classes(getattr(sk, f"{name}_score"), average=average, labels=range(CLASSES), zero_division=0)


def squared(outputs, targets):
    return jnp.square(outputs - targets)


ROWS = {  # the metric, data for it, the same in scikit-learn
    "accuracy": (metrics.accuracy, multiclass, of_classes(sk.accuracy_score)),
    "top_k": (metrics.top_k(2), multiclass, sk_top_2),
    "binary_accuracy": (metrics.binary_accuracy(), binary, of_flags(sk.accuracy_score)),
    "mean_absolute_error": (metrics.mean_absolute_error, regression, sk.mean_absolute_error),
    "mean_squared_error": (metrics.mean_squared_error, regression, sk.mean_squared_error),
    "r_squared": (metrics.r_squared, regression, sk.r2_score),
    "mean": (metrics.mean(losses.squared_error), regression, sk.mean_squared_error),
    "mean of elements": (metrics.mean(squared), regression, sk.mean_squared_error),
    "confusion_matrix": (metrics.confusion_matrix(4), multiclass, of_classes(sk.confusion_matrix, labels=range(4))),
    **{
        name: (getattr(metrics, name)(), binary, of_flags(getattr(sk, f"{name}_score")))
        for name in ("precision", "recall", "f1")
    },
    **{
        f"{name} {average}": (getattr(metrics, name)(CLASSES, average=average), multiclass, averaged(name, average))
        for name in ("precision", "recall", "f1")
        for average in ("macro", "micro", None)
    },
}  # fmt: skip


# ---- oracles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_values_are_scikit_learns(name, weighted):
    metric, data, oracle = ROWS[name]
    outputs, targets = data()
    weights = RNG.uniform(0, 2, len(targets)) * RNG.integers(0, 2, len(targets)) if weighted else None
    expected = oracle(targets, outputs, sample_weight=weights)
    np.testing.assert_allclose(score(metric, outputs, targets, weights), expected, rtol=2e-6)
    np.testing.assert_allclose(score(metric, jnp.asarray(outputs), jnp.asarray(targets), weights), expected, rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [(), (1,), (3,)], ids=str)
def test_r_squared_is_scikit_learns_where_the_mean_is_a_thousand_times_the_spread(outputs):
    for centre, batch in ((1000, 64), (-1024, 100), (10_000, 64)):
        target = np.float32(centre + RNG.normal(size=(6400, *outputs)))
        guess = np.float32(target + RNG.normal(scale=0.7, size=target.shape))
        measure = jax.jit(metrics.r_squared.measure)
        sums = [measure(guess[i : i + batch], target[i : i + batch]) for i in range(0, len(target), batch)]
        value = metrics.r_squared.compute(jax.tree.map(lambda *a: reduce(jnp.add, a), *sums))
        np.testing.assert_allclose(value, sk.r2_score(np.float64(target), np.float64(guess)), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-9, 1e-2, 1.0, 1e6, 1e9])
def test_r_squared_does_not_depend_on_the_unit(scale):
    target = np.exp(RNG.normal(scale=2, size=500)) * RNG.choice([-1, 1], 500)
    guess = target + RNG.normal(size=500)
    value = score(metrics.r_squared, np.float32(scale * guess), np.float32(scale * target))
    np.testing.assert_allclose(value, sk.r2_score(target, guess), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.0, 1.0, 0.1, -1000.0, 1e7])
def test_r_squared_of_constant_targets_is_1_without_error_and_0_with(level):
    target = np.full(50, level, np.float32)
    for guess in (target, target + np.float32(1)):
        assert score(metrics.r_squared, guess, target) == sk.r2_score(target, guess)


def test_scores_of_classes_that_never_occur_are_0():
    outputs, targets = multiclass()
    for factory in (metrics.precision, metrics.recall, metrics.f1):
        values = score(factory(CLASSES, average=None), outputs, targets)
        assert values[3] == 0
        assert score(factory(CLASSES), outputs, targets) == pytest.approx(values.mean())
        assert score(factory(), np.zeros(3, np.float32), np.zeros(3, int)) == 0


def test_rows_of_the_confusion_matrix_are_true_classes():
    matrix = score(metrics.confusion_matrix(3), np.eye(3, dtype=np.float32)[[0, 2, 2]], np.array([0, 1, 1]))
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 0, 2], [0, 0, 0]])


def test_one_hot_targets_are_the_same_as_labels():
    outputs, targets = multiclass()
    for metric in (metrics.accuracy, metrics.top_k(2), metrics.f1(CLASSES), metrics.confusion_matrix(CLASSES)):
        for rows in (np.eye(CLASSES)[targets], np.eye(CLASSES, dtype=int)[targets]):
            np.testing.assert_array_equal(score(metric, outputs, rows), score(metric, outputs, targets))


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_takes_equal_outputs_in_order(k):
    outputs = np.zeros((4, 4), np.float32)
    assert score(metrics.top_k(k), outputs, np.arange(4)) == k / 4
    ranked = np.asarray(jax.lax.top_k(outputs, k)[1])
    assert [bool(score(metrics.top_k(k), outputs[:1], np.array([c]))) for c in range(4)] == [
        c in ranked[0] for c in range(4)
    ]


def test_a_threshold_belongs_to_the_negatives_and_may_be_a_tracer():
    outputs, targets = np.array([-0.5, 0.0, 2.0], np.float32), np.array([False, False, True])
    assert score(metrics.binary_accuracy(threshold=0.0), outputs, targets) == 1
    for factory in (metrics.binary_accuracy, metrics.precision, metrics.recall, metrics.f1):
        traced = jax.jit(lambda v, f=factory: f(threshold=v).compute(f(threshold=v).measure(outputs, targets)))
        np.testing.assert_allclose([traced(v) for v in (-1.0, 0.0, 3.0)], [score(factory(threshold=v), outputs, targets)
                                                                         for v in (-1.0, 0.0, 3.0)])  # fmt: skip


# ---- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, 24), max_size=3), weighted=st.booleans())
def test_sums_of_ragged_parts_are_the_sums_of_all(name, cuts, weighted):
    metric, data, _ = ROWS[name]
    outputs, targets = data(24)
    weights = np.float32(RNG.uniform(0, 2, 24)) if weighted else None
    edges = [0, *sorted(cuts), 24]  # parts may be empty
    measure = jax.jit(metric.measure)
    parts = [measure(outputs[a:b], targets[a:b], None if weights is None else weights[a:b]) for a, b in pairwise(edges)]
    total = jax.tree.map(lambda *sums: reduce(jnp.add, sums), *parts)
    whole = measure(outputs, targets, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), total, whole)
    np.testing.assert_allclose(metric.compute(total), metric.compute(whole), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_weight_of_0_excludes_an_example_even_where_it_is_nan(name):
    metric, data, _ = ROWS[name]
    outputs, targets = data(12)
    weights = np.arange(12) % 3
    kept = weights > 0
    outputs = outputs.copy()
    outputs[~kept] = np.nan
    expected = score(metric, outputs[kept], targets[kept], weights[kept])
    np.testing.assert_allclose(score(metric, outputs, targets, weights), expected, rtol=1e-6)
    if targets.dtype == np.float32:
        targets[~kept] = np.nan
        np.testing.assert_allclose(score(metric, outputs, targets, weights), expected, rtol=1e-6)
    whole_weights = metric.compute(metric.measure(outputs[kept], targets[kept], np.ones(kept.sum())))
    np.testing.assert_allclose(score(metric, outputs[kept], targets[kept]), whole_weights, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_metrics_can_be_jitted_scanned_and_mapped(name):
    metric, data, _ = ROWS[name]
    outputs, targets = (jnp.asarray(a) for a in data(12))
    weights = jnp.linspace(0, 1, 12)
    batched = jax.tree.map(lambda a: a.reshape(3, 4, *a.shape[1:]), (outputs, targets, weights))
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(metric.measure, *jax.tree.map(lambda a: a[0], batched)))
    scanned = jax.jit(
        lambda b: jax.lax.scan(lambda s, x: (jax.tree.map(jnp.add, s, metric.measure(*x)), None), zero, b)[0]
    )
    mapped = jax.jit(lambda b: jax.tree.map(lambda a: a.sum(axis=0), jax.vmap(metric.measure)(*b)))
    for sums in (scanned(batched), mapped(batched)):
        np.testing.assert_allclose(jax.jit(metric.compute)(sums), score(metric, outputs, targets, weights), rtol=1e-5)


@pytest.mark.parametrize("name", ["accuracy", "top_k", "confusion_matrix", "f1 macro"])
def test_tokens_count_one_by_one_with_weights_for_examples_or_tokens(name):
    metric, _, oracle = ROWS[name]
    outputs, targets = multiclass(7, (5,))
    flat = outputs.reshape(-1, CLASSES), targets.ravel()
    for weights in (None, RNG.uniform(0, 2, 7), RNG.integers(0, 2, (7, 5)), RNG.integers(0, 2, (7, 5)) > 0):
        each = (
            None
            if weights is None
            else np.broadcast_to(weights if weights.ndim > 1 else weights[:, None], (7, 5)).ravel()
        )
        expected = oracle(flat[1], flat[0], sample_weight=each)
        np.testing.assert_allclose(score(metric, outputs, targets, weights), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean_squared_error", "r_squared"])
def test_the_last_axis_of_a_regression_holds_outputs(name):
    metric, _, oracle = ROWS[name]
    outputs, targets = regression(9, (4, 2))
    weights = RNG.uniform(0, 2, (9, 4))
    expected = oracle(targets.reshape(-1, 2), outputs.reshape(-1, 2), sample_weight=weights.ravel())
    np.testing.assert_allclose(score(metric, outputs, targets, weights), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_sums_are_float32_of_half_precision_and_float64_under_x64(name):
    metric, data, _ = ROWS[name]
    outputs, targets = data(8)
    half = metric.measure(jnp.asarray(outputs, jnp.bfloat16), targets)
    assert {a.dtype for a in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        double = metric.measure(jnp.asarray(outputs, jnp.float64), targets)
        assert {a.dtype for a in jax.tree.leaves(double)} == {jnp.dtype("float64")}


@pytest.mark.slow
def test_counts_in_half_precision_do_not_stop_at_256():
    outputs = jnp.ones((1000, 2), jnp.bfloat16).at[:, 0].set(0)
    assert score(metrics.accuracy, outputs, np.ones(1000, int)) == 1
    assert score(metrics.confusion_matrix(2), outputs, np.ones(1000, int))[1, 1] == 1000


@pytest.mark.slow
def test_a_mean_over_nothing_is_nan():
    assert np.isnan(score(metrics.accuracy, np.zeros((0, 3), np.float32), np.zeros(0, int)))
    assert np.isnan(score(metrics.mean_squared_error, np.ones(2, np.float32), np.ones(2), np.zeros(2)))
    assert np.isnan(score(metrics.r_squared, np.ones(2, np.float32), np.ones(2), np.zeros(2)))


@pytest.mark.slow
def test_outputs_of_nan_are_never_right():
    nan = np.full((2, 3), np.nan, np.float32)
    for k in (1, 2, 3):
        assert score(metrics.top_k(k), nan, np.array([0, 2])) == 0
    assert score(metrics.binary_accuracy(), nan[0], np.array([0, 1, 0])) == 0
    for metric in (metrics.mean_squared_error, metrics.mean_absolute_error, metrics.r_squared):
        assert np.isnan(score(metric, nan[0], np.arange(3)))
        assert np.isnan(score(metric, np.arange(3.0), nan[0]))


# ---- what is refused -------------------------------------------------------------------------------------------------

SCORES, LABELS = multiclass(6)
COLUMN, ROW = np.zeros((6, 1), np.float32), np.zeros(6, np.float32)
M = SimpleNamespace(**{name: metric for name, (metric, _, _) in ROWS.items()})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: M.accuracy.measure(COLUMN, LABELS), ValueError, "accuracy: expected a prediction (batch, ..., cl"),
        (lambda: M.accuracy.measure(COLUMN, LABELS), ValueError, "got shape (6, 1); use binary_accuracy"),
        (lambda: M.accuracy.measure(ROW, LABELS), ValueError, "got shape (6,); use binary_accuracy"),
        (lambda: M.accuracy.measure(SCORES, LABELS[:, None]), ValueError, "shape (6, 1); drop the last axis: target"),
        (lambda: M.accuracy.measure(SCORES, ROW), TypeError, "accuracy: expected integer labels, got float32(6,)"),
        (lambda: M.accuracy.measure(SCORES.argmax(-1), LABELS), ValueError, "over at least 2 classes, got shape (6,)"),
        (lambda: M.accuracy.measure(SCORES, LABELS, np.ones((6, 1))), ValueError,
         "accuracy: expected values for each example and weights with their leading axes, such as (6,), "
         "got values (6,) and weights (6, 1); give one weight"),
        (lambda: M.accuracy.measure(SCORES, LABELS, np.ones(5)), ValueError, "got values (6,) and weights (5,)"),
        (lambda: M.accuracy.measure(SCORES, LABELS, 1.0), ValueError, "got values (6,) and weights ()"),
        (lambda: M.f1.measure(ROW, ROW, np.ones(5)), ValueError, "f1: expected values for each example and weights"),
        (lambda: M.mean_squared_error.measure(COLUMN, ROW), ValueError,
         "mean_squared_error: expected a target of the prediction's shape (6, 1), got (6,); add the last axis"),
        (lambda: M.r_squared.measure(ROW, COLUMN), ValueError, "r_squared: expected a target of the prediction's"),
        (lambda: M.binary_accuracy.measure(COLUMN, ROW), ValueError, "binary_accuracy: expected a target of the"),
        (lambda: M.precision.measure(SCORES, LABELS), ValueError, "for integer labels choose a function over"),
        (lambda: metrics.f1(3).measure(SCORES, LABELS), ValueError, "f1: expected 3 classes, got outputs of shape (6"),
        (lambda: metrics.confusion_matrix(5).measure(SCORES, LABELS), ValueError, "confusion_matrix: expected 5 clas"),
        (lambda: metrics.f1(4, average="mean"), ValueError, "f1: expected average to be one of ['macro', 'mi"),
        (lambda: metrics.recall(1), ValueError, "recall: expected classes of at least 2, got 1"),
        (lambda: metrics.confusion_matrix(2.0), TypeError, "confusion_matrix: expected classes as a whole number"),
        (lambda: metrics.top_k(0), ValueError, "top_k: expected k of at least 1, got 0"),
        (lambda: metrics.top_k(5).measure(SCORES, LABELS), ValueError, "top_k: expected at least 5 classes, got out"),
        (lambda: metrics.mean("accuracy"), TypeError, "mean: expected a function of outputs and targets, got str"),
        (lambda: metrics.mean(lambda y, t: (y - t).mean()).measure(ROW, ROW), ValueError,
         "mean: expected values for each example"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_a_fix(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
