"""What is made small: sums by term and weight, what counts in training alone, and what an objective may hand back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, metrics, training
from funcnn.core import Layer
from funcnn.training import objectives

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype(np.float32)
Y = RNG.normal(size=(6, 2)).astype(np.float32)
W = np.array([0.5, 2.0, 0.0, 1.0, 0.0, 3.0], np.float32)
KEY = jax.random.key(0)


def means(found):
    return {name: float(objectives.mean_of(sums)) for name, sums in found.items()}


def test_a_term_is_the_weighted_mean_of_its_losses():
    values = RNG.normal(size=6).astype(np.float32)
    assert means(objectives.loss_sums(values, None))[""] == pytest.approx(values.mean(), rel=1e-6)
    assert means(objectives.loss_sums(values, W))[""] == pytest.approx((values * W).sum() / W.sum(), rel=1e-6)


def test_weights_spread_over_the_axes_that_they_lack():
    values = RNG.normal(size=(6, 4)).astype(np.float32)
    expected = (values * W[:, None]).sum() / (4 * W.sum())
    assert means(objectives.loss_sums(values, W))[""] == pytest.approx(expected, rel=1e-6)
    mask = RNG.integers(0, 2, (6, 4))
    expected = values[mask == 1].mean()
    assert means(objectives.loss_sums(values, mask))[""] == pytest.approx(expected, rel=1e-6)
    assert means(objectives.loss_sums(values, mask == 1))[""] == pytest.approx(expected, rel=1e-6)


def test_sums_of_batches_add_up_to_the_sums_of_all():
    values = RNG.normal(size=6).astype(np.float32)
    parts = [objectives.loss_sums(values[a:b], W[a:b]) for a, b in ((0, 4), (4, 6))]
    total = jax.tree.map(jnp.add, *parts)
    assert means(total)[""] == pytest.approx(means(objectives.loss_sums(values, W))[""], rel=1e-6)


def test_a_term_without_weight_is_zero_and_not_nan():
    # In a batch of a run; weights that are known and all zero are refused.
    assert means(jax.jit(objectives.loss_sums)(np.ones(6, np.float32), np.zeros(6)))[""] == 0


def test_an_infinite_loss_of_weight_zero_does_not_count():
    values = np.where(W == 0, np.inf, 2.0).astype(np.float32)
    assert means(objectives.loss_sums(values, W))[""] == 2


@pytest.mark.parametrize("weights", [[1, -0.5, 2], [-0.5, 0, 0]])
def test_weights_that_cannot_be_meant(weights):
    message = "trainer: expected weights of the losses from 0 on, got -0.5; leave out what does not count, or give it"
    with pytest.raises(ValueError, match=message):
        objectives.loss_sums(np.ones(3, np.float32), np.array(weights, np.float32))


def test_half_precision_is_summed_in_float32():
    values = jnp.ones(5000, jnp.float16)
    total, count = objectives.loss_sums(values, None)[""]
    assert (total.dtype, float(total), float(count)) == (jnp.float32, 5000, 5000)


def test_terms_of_different_lengths_with_weights_of_their_own():
    terms = {"inner": np.arange(6.0, dtype=np.float32), "edge": np.array([2.0, 4.0], np.float32)}
    found = means(objectives.loss_sums(terms, {"inner": W}))
    assert found == pytest.approx({"inner": (np.arange(6) * W).sum() / W.sum(), "edge": 3.0})


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ({}, None, r"trainer: expected at least one term of losses, got an empty dict; return an array"),
        ({"a": np.ones(3)}, {"b": np.ones(3)}, r"expected weights for the terms \['a'\], got \['b'\] as well; name"),
        ({"a": np.float32(1)}, None, r"expected losses of 'a' with a leading axis of examples, got a scalar; return"),
        (
            {"a": jnp.ones(3)},
            {"a": np.ones(2)},
            r"whose shape begins that of the losses of 'a', \(3,\), got \(2,\); give",
        ),
        (jnp.ones((3, 2)), np.ones(2), r"expected weights whose shape begins that of the losses, \(3, 2\), got \(2,\)"),
    ],
)
def test_terms_and_weights_that_do_not_meet(terms, weights, message):
    with pytest.raises(ValueError, match=message):
        objectives.loss_sums(terms, weights)


# ---- the supervised objective ----------------------------------------------------------------------------------------


def noisy_loss_layer(value):
    """The identity, which puts a loss of its own into its state."""

    def init(key, x):
        return {}, {"auxiliary_loss": jnp.zeros(())}

    def apply(params, state, x, *, key=None, training=False):
        return x, {"auxiliary_loss": jnp.float32(value)}

    return Layer(init, apply, "noisy")


def test_the_supervised_objective_by_hand():
    model = layers.dense(2)
    objective = objectives.supervised_objective(model, losses.squared_error, lambda p: 0.1 * jnp.sum(p["kernel"] ** 2))
    params, state = objective.init(KEY, (X, Y))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, (params, state), model.init(KEY, X)))
    for is_training in (True, False):
        found, aux = objective.loss(params, state, (X, Y, W), key=KEY, training=is_training)
        outputs = X @ params["kernel"] + params["bias"][None]
        np.testing.assert_allclose(found, ((outputs - Y) ** 2).mean(1), rtol=1e-5)
        np.testing.assert_allclose(aux.outputs, outputs, rtol=1e-5)
        assert aux.targets is Y
        assert aux.weights is W
        expected = 0.1 * float((params["kernel"] ** 2).sum()) if is_training else 0
        assert float(aux.penalty) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_losses_that_layers_put_into_their_state_count_in_training_alone():
    inner = layers.serial(
        layers.dense(2), noisy_loss_layer(0.25), layers.named("deep", layers.serial(noisy_loss_layer(2.0)))
    )
    line = training.supervised(inner, losses.squared_error, optax.sgd(0.1), penalty=lambda params: jnp.float32(0.5))
    state = line.init(KEY, (X, Y))
    assert len(objectives.auxiliary_losses(state.model_state)) == 2
    after, info = line.step(state, (X, Y))
    rows, evaluated = line.report(info), line.report(line.evaluate(state, (X, Y)))
    assert float(rows["penalty"]) == 2.75
    assert float(rows["loss"] - evaluated["loss"]) == pytest.approx(2.75, rel=1e-5)
    assert "penalty" not in evaluated
    assert sorted(float(v) for v in objectives.auxiliary_losses(after.model_state)) == [0.25, 2.0]


def test_the_gradient_of_a_loss_in_the_state_reaches_the_params():
    def init(key, x):
        return {"scale": jnp.ones(())}, {"auxiliary_loss": jnp.zeros(())}

    def apply(params, state, x, *, key=None, training=False):
        return x, {"auxiliary_loss": params["scale"] ** 2}

    model = layers.serial(Layer(init, apply, "shrinking"), layers.dense(2))
    line = training.supervised(model, losses.squared_error, optax.sgd(0.1))
    state, _ = line.step(line.init(KEY, (X, Y)), (X, Y))
    assert float(state.params["shrinking_0"]["scale"]) == pytest.approx(0.8)


def test_the_penalty_pulls_and_stands_in_the_history():
    line = training.supervised(
        layers.dense(2), losses.squared_error, optax.sgd(0.1), penalty=lambda p: 0.5 * jnp.sum(p["kernel"] ** 2)
    )
    plain = training.supervised(layers.dense(2), losses.squared_error, optax.sgd(0.1))
    state = line.init(KEY, (X, Y))
    one, two = line.step(state, (X, Y))[0], plain.step(state, (X, Y))[0]
    difference = two.params["kernel"] - one.params["kernel"]
    np.testing.assert_allclose(difference, 0.1 * state.params["kernel"], rtol=1e-4, atol=1e-7)
    options = {"key": KEY, "epochs": 2, "validation": (X, Y)}
    history = training.run(line, (X, Y), **options).history
    assert sorted(history) == ["loss", "penalty", "validation_loss"]


# ---- objectives of your own ------------------------------------------------------------------------------------------


def two_terms(batch_weights=None):
    """A slope and a bias from collocation points and from boundary points."""

    def init(key, batch):
        return {"slope": jnp.float32(2.0), "bias": jnp.float32(0.5)}, {}

    def loss(params, model_state, batch, **_):
        inner = (params["slope"] * batch["inner"] - 1) ** 2
        edge = (params["bias"] + params["slope"] * batch["edge"]) ** 2
        return {"inner": inner, "edge": edge}, training.Aux(model_state, weights=batch_weights)

    return training.Objective(init, loss)


@pytest.mark.slow
def test_terms_of_different_lengths_are_summed_and_each_is_logged():
    batch = {"inner": np.linspace(0, 1, 7, dtype=np.float32), "edge": np.array([0.0, 1.0], np.float32)}
    line = training.trainer(two_terms(), optax.sgd(0.1))
    state = line.init(KEY, batch)
    after, info = line.step(state, batch)
    rows = line.report(info)
    inner, edge = ((2 * batch["inner"] - 1) ** 2).mean(), ((0.5 + 2 * batch["edge"]) ** 2).mean()
    assert {k: float(v) for k, v in rows.items()} == pytest.approx({"loss": inner + edge, "inner": inner, "edge": edge})
    slope = (2 * (2 * batch["inner"] - 1) * batch["inner"]).mean() + (
        2 * (0.5 + 2 * batch["edge"]) * batch["edge"]
    ).mean()
    assert float(after.params["slope"]) == pytest.approx(2 - 0.1 * slope, rel=1e-5)
    result = training.run(line, batch, key=KEY, epochs=3, batch_size=None)
    assert sorted(result.history) == ["edge", "inner", "loss"]
    np.testing.assert_allclose(result.history["loss"], result.history["edge"] + result.history["inner"], rtol=1e-6)
    assert float(result.history["loss"][0]) == pytest.approx(inner + edge, rel=1e-6)


def test_weights_by_term():
    batch = {"inner": np.ones(3, np.float32), "edge": np.array([0.0, 1.0], np.float32)}
    line = training.trainer(two_terms({"edge": np.array([1.0, 0.0], np.float32)}), optax.sgd(0.1))
    rows = line.report(line.evaluate(line.init(KEY, batch), batch))
    assert {k: float(v) for k, v in rows.items()} == pytest.approx({"loss": 1.25, "inner": 1.0, "edge": 0.25})


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (
            lambda s: (jnp.ones(3), s),
            TypeError,
            r"trainer: expected a loss that returns \(losses, Aux\), got ArrayImpl, dict; return losses, Aux",
        ),
        (
            lambda s: (jnp.float32(1), training.Aux(s)),
            ValueError,
            "losses with a leading axis of examples, got a scalar",
        ),
        (
            lambda s: (jnp.ones(3), training.Aux(s, penalty=jnp.ones(2))),
            ValueError,
            r"trainer: expected a scalar penalty, got shape \(2,\); sum it",
        ),
        (
            lambda s: (jnp.ones(3), training.Aux(s)),
            ValueError,
            r"trainer: expected Aux with outputs, for the metrics, got none; return Aux\(model_state, outputs, ",
        ),
    ],
)
def test_what_a_loss_may_not_return(returned, error, message):
    objective = training.Objective(
        lambda key, batch: ({"a": jnp.ones(())}, {}), lambda p, s, b, *, key, training: returned(s)
    )
    line = training.trainer(objective, optax.sgd(0.1), metrics={"accuracy": metrics.accuracy})
    with pytest.raises(error, match=message):
        line.evaluate(line.init(KEY, X), X)


@pytest.mark.slow
def test_a_loss_may_draw_from_its_key_and_change_its_state():
    def init(key, batch):
        return {"a": jax.random.normal(key, ())}, {"calls": jnp.zeros((), jnp.int32)}

    def loss(params, model_state, batch, *, key, training):
        noise = jax.random.normal(key, batch.shape)
        calls = model_state["calls"] + (1 if training else 0)
        return (params["a"] - batch + noise) ** 2, objectives.Aux({"calls": calls})

    line = training.trainer(training.Objective(init, loss), optax.sgd(0.01))
    x = np.ones(10, np.float32)
    result = training.run(line, x, key=KEY, epochs=4, batch_size=5, validation=x)
    assert int(result.state.model_state["calls"]) == 8
    assert len(set(np.asarray(result.history["loss"]).tolist())) == 4
