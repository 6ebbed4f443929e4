"""The learning-rate range test: what it suggests trains, and does not diverge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, plotting, training
from funcnn.training.rates import _suggested

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3)).astype(np.float32) * np.float32([1.0, 2.0, 0.5])
Y = X @ np.float32([[1.0], [-2.0], [3.0]])


def line(rate):
    return training.supervised(layers.dense(1), losses.squared_error, optax.sgd(rate))


@pytest.fixture(scope="module")
def found():
    return training.find_learning_rate(line, (X, Y), key=KEY, low=1e-5, high=10.0)


def test_the_suggestion_is_below_what_is_stable_and_not_far_below(found):
    ones = np.concatenate([X, np.ones((200, 1), np.float32)], 1)
    stable = 2 / np.linalg.eigvalsh(2 * ones.T @ ones / 200).max()
    assert stable / 500 < found.suggestion < stable  # with so few weights most is learned on the way up
    assert found.rates[0] == pytest.approx(1e-5)
    assert found.rates[-1] == pytest.approx(10.0)
    assert found.losses.shape == found.smoothed.shape == (150,)
    assert "suggested" in repr(found)


@pytest.mark.slow
def test_what_is_suggested_trains_and_a_hundredth_of_it_hardly(found):
    last = [
        training.run(line(rate), (X, Y), key=KEY, epochs=20).history["loss"][-1]
        for rate in (found.suggestion, found.suggestion / 100)
    ]
    assert last[0] < 0.5 * last[1]


def test_it_is_where_a_known_curve_falls_fastest():
    rates = np.logspace(-4, 0, 200)
    losses_of = 1 - 1 / (1 + (1e-2 / rates) ** 2) + np.where(rates > 0.3, (rates - 0.3) * 100, 0)
    suggestion = _suggested("test", rates, losses_of).suggestion
    assert 1e-2 / 1.2 < suggestion < 1e-2 * 1.2
    broken = np.where(rates > 0.3, np.nan, losses_of)
    assert _suggested("test", rates, broken).suggestion == suggestion
    with pytest.raises(ValueError, match="a loss that falls at some rate, got one that only grows"):
        _suggested("test", rates, np.exp(np.arange(200)))


@pytest.mark.slow
def test_more_steps_suggest_about_the_same():
    labels = (Y[:, 0] > 0).astype(np.int32)

    def network(rate):
        model = layers.serial(layers.dense(16), layers.tanh, layers.dense(2))
        return training.supervised(model, losses.softmax_cross_entropy, optax.adam(rate))

    found = [
        training.find_learning_rate(network, (X, labels), key=jax.random.key(i), steps=steps).suggestion
        for steps in (50, 150, 600)
        for i in (1, 2)
    ]
    assert min(found) > 1e-3
    assert max(found) < 0.3


def test_a_loss_that_is_never_finite_and_a_rate_that_is_not_used_are_refused():
    with pytest.raises(ValueError, match="a finite loss at the first rates, got nan"):
        _suggested("test", np.logspace(-4, 0, 20), np.full(20, np.nan))
    with pytest.raises(ValueError, match=r"a make_trainer\(rate\) that uses the rate, got one that does not"):
        training.find_learning_rate(lambda rate: line(0.1), (X, Y), key=KEY)


def test_what_makes_no_trainer_of_a_schedule_says_so():
    with pytest.raises(TypeError, match="expected a function that makes a trainer from a rate, got Trainer"):
        training.find_learning_rate(line(0.1), (X, Y), key=KEY)
    with pytest.raises(TypeError) as error:
        training.find_learning_rate(lambda rate: line(rate * 0.1), (X, Y), key=KEY)
    assert any("is a schedule, a function of the step" in note for note in error.value.__notes__)


def test_it_is_drawn(found):
    axes = plotting.learning_rates(found).axes[0]
    assert axes.get_xscale() == "log"
    drawn = [line.get_xdata() for line in axes.get_lines()]
    assert any(len(x) == 150 for x in drawn)
    assert any(np.allclose(x, found.suggestion) for x in drawn)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"low": 1.0, "high": 0.1}, ValueError, r"0 < low < high, got 1\.0 and 0\.1"),
        ({"low": 0.0}, ValueError, "0 < low < high"),
        ({"steps": 3}, ValueError, "steps of at least 10"),
        ({"data": lambda key: (X, Y)}, TypeError, "data as arrays, got a function"),
        ({"data": (X, jnp.full_like(Y, jnp.nan))}, ValueError, "finite numbers"),
    ],
)
def test_what_cannot_be_tried_is_refused(options, error, message):
    given = options.pop("data", (X, Y))
    with pytest.raises(error, match=message):
        training.find_learning_rate(line, given, key=KEY, **options)
