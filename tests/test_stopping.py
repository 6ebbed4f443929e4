"""Early stopping and the best state: the rule by hand, the law in bytes, members on their own, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_law import assert_same_bytes

from funcnn import layers, losses, metrics, training
from funcnn.training.stopping import Monitor, begin, watched
from funcnn.training.trainers import TrainState

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def drawn(n):
    return RNG.normal(size=(n, 5)).astype(np.float32), RNG.integers(0, 3, n).astype(np.int32)


TRAIN, HELD_OUT = drawn(27), drawn(13)
MODEL = layers.serial(layers.dense(6), layers.tanh, layers.dropout(0.3), layers.dense(3))
OPTIONS = {"epochs": 40, "batch_size": 8, "validation": HELD_OUT, "monitor": "validation_loss", "patience": 3}


def made(rate):
    optimizer = optax.adam(rate, eps_root=1e-8)
    return training.supervised(MODEL, losses.softmax_cross_entropy, optimizer, metrics={"accuracy": metrics.accuracy})


TRAINER = made(1e-2)


def run(trainer=TRAINER, **options):
    return training.run(trainer, TRAIN, key=KEY, **{**OPTIONS, **options})


NOTHING = np.finfo(np.float32).max  # the best value before there is one


def fit(trainer=TRAINER, **options):
    return training.fit(trainer, TRAIN, key=KEY, progress=False, **{**OPTIONS, **options})


# ---- the rule --------------------------------------------------------------------------------------------------------


def decided(values, **monitor):
    """The rule over a column of values: after how many epochs it ends (-1 for never), and the row of the best state."""
    options = {"mode": "min", "patience": 2, "min_delta": 0.0, "keep_best": True} | monitor
    state = TrainState({"row": jnp.int32(-1)}, {}, (), KEY, jnp.int32(0))
    monitor = Monitor("loss", **options)
    watch = begin(monitor, state)
    for row, value in enumerate(values):
        now = state._replace(params={"row": jnp.int32(row)})
        watch = watched(monitor, watch, jnp.int32(row), jnp.float32(value), now)
        stopped = -1 if watch.stopped is None else int(watch.stopped)  # without a patience there is no end to remember
        if stopped >= 0:
            break
    return stopped, int(watch.state.params["row"]), float(watch.best)


@pytest.mark.parametrize(
    ("values", "monitor", "expected"),
    [
        ([5, 4, 3, 2], {}, (-1, 3, 2)),
        ([5, 3, 4, 4, 1], {}, (4, 1, 3)),  # two epochs after the best one; 1 is never seen
        ([5, 3, 4, 2, 4, 4], {}, (6, 3, 2)),  # an improvement begins the count again
        ([5, 5, 5], {}, (3, 0, 5)),  # the same is no improvement
        ([1, 2, 3, 3, 2], {"mode": "max"}, (5, 2, 3)),
        ([5, 6], {"patience": 1}, (2, 0, 5)),
        ([5, 6, 7, 8], {"patience": None}, (-1, 0, 5)),
        ([5, 4.9, 4.8, 1], {"min_delta": 0.5}, (3, 2, 4.8)),  # too little for patience, and still the best
        ([5, 4.8, 4.4, 1], {"min_delta": 0.5}, (-1, 3, 1)),  # together they are enough
        ([np.nan, np.nan], {}, (2, -1, NOTHING)),  # NaN is never better
        ([np.nan, 5, np.nan, 4], {}, (-1, 3, 4)),
        ([np.inf, np.inf, 3], {}, (2, -1, NOTHING)),  # nor is infinity
    ],
)
def test_the_rule(values, monitor, expected):
    found = decided(values, **monitor)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# ---- the law ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_fit_stops_where_run_stops_with_the_same_bits(every):
    whole = jax.jit(lambda: run(keep_best=True))()
    rows = int(whole.epochs_run)
    assert 3 < rows < 40  # it does stop, and not at once
    result = fit(keep_best=True, every=every)
    assert int(result.epochs_run) == rows
    cut = {name: column[:rows] for name, column in whole.history.items() if name != "epochs_run"}
    assert_same_bytes(result.history, cut)  # without the number of rows, for it has no others
    assert_same_bytes((result.state, result.best), (whole.state, whole.best))
    after = {name: column[rows:] for name, column in whole.history.items() if name != "epochs_run"}
    assert all(np.isnan(column).all() for column in after.values())


@pytest.mark.slow
def test_it_is_the_unstopped_run_up_to_where_it_stops():
    stopped, best = fit(keep_best=True), int(np.argmin(fit().history["validation_loss"]))
    rows = int(stopped.epochs_run)
    plain = {"monitor": None, "patience": None}
    assert_same_bytes(stopped.state, fit(**plain, epochs=rows).state)
    assert_same_bytes(stopped.best, fit(**plain, epochs=best + 1).state)
    assert best == rows - 1 - 3
    assert int(stopped.state.step) == rows * 4


@pytest.mark.slow
def test_the_best_state_without_stopping_is_part_of_the_scan_and_has_gradients():
    def best_bias(rate):
        result = run(made(rate), epochs=5, patience=None, keep_best=True, batch_size=None)
        return result.best.params["dense_1"]["bias"][0], int(result.epochs_run)

    slope, epochs_run = jax.grad(best_bias, has_aux=True)(1e-2)
    assert np.isfinite(slope)
    assert slope != 0
    assert epochs_run == 5
    result = fit(epochs=5, patience=None, keep_best=True)
    assert "epochs_run" not in result.history
    assert_same_bytes(result.best, run(epochs=5, patience=None, keep_best=True).best)


@pytest.mark.slow
def test_more_is_better():
    result = fit(monitor="validation_accuracy", mode="max", patience=4, keep_best=True)
    column = result.history["validation_accuracy"]
    assert int(result.best.step) == 4 * (int(np.argmax(column)) + 1)
    assert training.evaluate(TRAINER, result.best, HELD_OUT, batch_size=8)["accuracy"] == column.max()


@pytest.mark.slow
def test_members_stop_on_their_own():
    rates = jnp.array([1e-3, 1e-2, 1e-1])
    together = jax.jit(jax.vmap(lambda rate: run(made(rate), keep_best=True)))(rates)
    assert len(set(together.epochs_run.tolist())) > 1
    one_by_one = jax.jit(lambda r: jax.lax.map(lambda rate: run(made(rate), keep_best=True), r))(rates)
    single = jax.jit(lambda rate: run(made(rate), keep_best=True))
    for i, rate in enumerate(rates):
        alone = single(rate)
        assert_same_bytes(jax.tree.map(lambda a, i=i: a[i], one_by_one), alone)
        assert int(together.epochs_run[i]) == int(alone.epochs_run)
        np.testing.assert_allclose(together.history["loss"][i], alone.history["loss"], rtol=1e-4)


@pytest.mark.slow
def test_steps_end_and_the_last_event_is_the_end_of_the_run():
    result = fit()
    for every in (1, 7):
        events = list(training.steps(TRAINER, TRAIN, key=KEY, **OPTIONS, every=every))
        assert events[-1].step == 4 * int(result.epochs_run)
        assert events[-1].epoch == int(result.epochs_run)
        assert events[-1].metrics["validation_loss"] == result.history["validation_loss"][-1]


@pytest.mark.slow
def test_a_second_fit_compiles_nothing(compilations):
    fit()
    before = len(compilations)
    fit()
    assert len(compilations) == before


@pytest.mark.slow
def test_it_says_why_it_ended(capsys):
    result = training.fit(TRAINER, TRAIN, key=KEY, **OPTIONS)
    best = result.history["validation_loss"].min()
    row = int(result.history["validation_loss"].argmin())
    assert row == int(result.epochs_run) - 4
    *_, last, why = capsys.readouterr().err.splitlines()
    assert why == (
        f"fit: ended after epoch {int(result.epochs_run)} of 40, 3 without an improvement of validation_loss; "
        f"the best was {best:.4g}, after epoch {row + 1}"
    )
    assert re.fullmatch(rf"epoch {int(result.epochs_run)}/40  step .* \d+\.\d s", last)  # nothing is left


@pytest.mark.slow
def test_a_run_that_goes_bad_hands_back_the_best():
    x, y = TRAIN
    bad = made(lambda count: jnp.where(count < 9, 1e-2, jnp.nan))
    with pytest.raises(training.NonFiniteError) as caught:
        training.fit(bad, (x, y), key=KEY, progress=False, **OPTIONS, keep_best=True)
    result = caught.value.result
    assert int(result.best.step) in (4, 8)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.best.params))
    assert int(result.epochs_run) == 2


# ---- differentiation -------------------------------------------------------------------------------------------------


def first_loss(rate):
    return run(made(rate), batch_size=None).history["loss"][1]


@pytest.mark.slow
def test_reverse_mode_is_refused():
    message = r"run: expected no early stopping under reverse-mode differentiation, got patience; train without"
    with pytest.raises(TypeError, match=message):
        jax.grad(first_loss)(1e-2)
    with pytest.raises(TypeError, match=message):
        jax.vmap(jax.grad(first_loss))(jnp.array([1e-2, 1e-3]))


@pytest.mark.slow
def test_forward_mode_goes_through():
    expected = jax.grad(
        lambda rate: run(made(rate), monitor=None, patience=None, epochs=3, batch_size=None).history["loss"][1]
    )(1e-2)
    np.testing.assert_allclose(jax.jacfwd(first_loss)(1e-2), expected, rtol=1e-3)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"monitor": None}, ValueError, r"expected monitor, for patience is about it, got none; say what is watched"),
        ({"monitor": None, "patience": None, "keep_best": True}, ValueError, r"monitor, for keep_best is about it"),
        ({"patience": None}, ValueError, r"expected patience or keep_best, with monitor, got neither; say after how"),
        ({"patience": 0}, ValueError, r"patience"),
        ({"patience": 2.5}, TypeError, r"patience"),
        ({"min_delta": -0.1}, ValueError, r"expected min_delta as a number from 0 on, got -0.1"),
        ({"min_delta": float("nan")}, ValueError, r"expected min_delta as a number from 0 on, got nan"),
        ({"mode": "auto"}, ValueError, r"expected mode .*'min'.*'max'.* got 'auto'"),
        ({"monitor": "validation_accuracy"}, ValueError, r"expected mode for 'validation_accuracy', got none"),
        (
            {"monitor": "val_loss"},
            ValueError,
            r"columns of the history, accuracy, loss, .*, got 'val_loss'; choose one",
        ),
        ({"validation": None}, ValueError, r"columns of the history, accuracy, loss, got .*; pass validation=\.\.\."),
        ({"monitor": losses.squared_error}, TypeError, r"expected monitor as a name, got function; name a column"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, error, message):
    for way in (run, fit):
        with pytest.raises(error, match=message):
            way(**options)


def test_a_metric_of_many_numbers_is_not_watched():
    both = {"table": metrics.confusion_matrix(3)}
    line = training.supervised(MODEL, losses.softmax_cross_entropy, optax.adam(1e-2), metrics=both)
    with pytest.raises(
        ValueError, match=r"expected one number under 'table', got one of shape \(3, 3\); watch a metric"
    ):
        fit(line, monitor="table", mode="max")


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_watch_begins_with_nothing_that_looks_as_if_it_had_gone_bad(mode):
    x = jnp.ones((8, 1))
    trainer = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1))
    options = {"epochs": 9, "monitor": "loss", "mode": mode, "patience": 2, "progress": False}
    expected = training.fit(trainer, (x, x), key=KEY, **options)
    with jax.debug_infs(True):
        found = training.fit(trainer, (x, x), key=KEY, **options)
    assert found.epochs_run == expected.epochs_run
    np.testing.assert_array_equal(found.history["loss"], expected.history["loss"])
