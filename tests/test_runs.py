"""A run as a pure function: its keys and its order by the documented formula, and what can be differentiated."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, metrics, training

RNG = np.random.default_rng(0)
N, BATCH, EPOCHS = 23, 5, 3
X = RNG.normal(size=(N, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, N)
KEY = jax.random.key(11)


def named(key, name):
    """The key of a child, as the design says."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


# ---- the formula, by hand --------------------------------------------------------------------------------------------


def by_hand(rate, dropped, validation):
    """A whole run in plain JAX and Optax: two dense layers, tanh and dropout between them, cross-entropy, Adam."""
    init_key, shuffle_key, step_key = jax.random.split(KEY, 3)
    glorot = jax.nn.initializers.glorot_uniform()
    params = [
        (glorot(jax.random.split(named(init_key, name))[0], shape), jnp.zeros(shape[1]))
        for name, shape in (("dense_0", (4, 6)), ("dense_1", (6, 3)))
    ]

    def outputs(params, x, mask):
        (a, b), (c, d) = params
        return jnp.where(mask, jnp.tanh(x @ a + b[None]) / (1 - dropped), 0) @ c + d[None]

    def loss(params, x, y, mask):
        return -jax.nn.log_softmax(outputs(params, x, mask))[jnp.arange(len(x)), y]

    @jax.jit
    def stepped(params, opt_state, x, y, key):
        mask = jax.random.bernoulli(key, 1 - dropped, (len(x), 6))
        seen, right = loss(params, x, y, mask), outputs(params, x, mask).argmax(1) == y
        gradient = jax.grad(lambda p: loss(p, x, y, mask).mean())(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, seen, right

    optimizer = optax.adam(rate)
    opt_state, step, history = optimizer.init(params), 0, []
    for epoch in range(EPOCHS):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), N))
        seen, right = [], []
        for begin in range(0, N, BATCH):
            x, y = (a[order[begin : begin + BATCH]] for a in (X, LABELS))
            key = named(jax.random.fold_in(step_key, step), "dropout_0")
            params, opt_state, losses_of_batch, right_in_batch = stepped(params, opt_state, x, y, key)
            seen.append(losses_of_batch)
            right.append(right_in_batch)
            step += 1
        x, y = validation
        everything = jnp.tanh(x @ params[0][0] + params[0][1][None]) @ params[1][0] + params[1][1][None]
        evaluated = -jax.nn.log_softmax(everything)[jnp.arange(len(x)), y]
        history.append(
            {
                "loss": np.concatenate(seen).mean(),
                "accuracy": np.concatenate(right).mean(),
                "validation_loss": evaluated.mean(),
                "validation_accuracy": (everything.argmax(1) == y).mean(),
            }
        )
    return params, {name: [row[name] for row in history] for name in history[0]}


@pytest.mark.slow
def test_a_run_is_what_its_formula_says():
    validation = RNG.normal(size=(9, 4)).astype(np.float32), RNG.integers(0, 3, 9)
    params, history = by_hand(0.02, 0.25, validation)
    model = layers.serial(layers.dense(6), layers.tanh, layers.dropout(0.25), layers.dense(3))
    line = training.supervised(
        model, losses.softmax_cross_entropy, optax.adam(0.02), metrics={"accuracy": metrics.accuracy}
    )
    result = training.run(line, (X, LABELS), key=KEY, epochs=EPOCHS, batch_size=BATCH, validation=validation)
    for name, (kernel, bias) in zip(("dense_0", "dense_1"), params, strict=True):
        np.testing.assert_allclose(result.state.params[name]["kernel"], kernel, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(result.state.params[name]["bias"], bias, rtol=2e-4, atol=2e-6)
    assert result.history.keys() == history.keys()
    for name, column in history.items():
        np.testing.assert_allclose(result.history[name], column, rtol=2e-5, err_msg=name)
    _, _, step_key = jax.random.split(KEY, 3)
    assert jnp.array_equal(jax.random.key_data(result.state.key), jax.random.key_data(step_key))


# ---- order -----------------------------------------------------------------------------------------------------------


def counting(n):
    """A trainer that learns nothing and reports which examples it was given."""

    def init(key, batch):
        return training.TrainState({}, {}, (), key, jnp.zeros((), jnp.int32))

    def step(state, batch):
        info = {"seen": jnp.zeros(n, jnp.int32).at[batch].add(1), "steps": jnp.ones((), jnp.int32)}
        info["order"] = jnp.zeros((n, n), jnp.int32).at[state.step % n, : len(batch)].set(batch)
        return state._replace(step=state.step + 1), info

    def evaluate(state, batch):
        return {"seen": jnp.zeros(n, jnp.int32).at[batch].add(1), "steps": jnp.ones((), jnp.int32)}

    return training.Trainer(init, step, evaluate, lambda info: info)


@pytest.mark.parametrize("batch_size", [1, 5, 22, 23, 24, None])
def test_every_example_is_used_once_an_epoch(batch_size):
    history = training.run(counting(N), np.arange(N), key=KEY, epochs=4, batch_size=batch_size).history
    np.testing.assert_array_equal(history["seen"], np.ones((4, N)))
    steps = 1 if batch_size in (None, 23, 24) else -(-N // batch_size)
    np.testing.assert_array_equal(history["steps"], [steps] * 4)


def test_the_smaller_last_batch_is_dropped_on_request_and_never_the_same():
    options = {"key": KEY, "epochs": 6, "batch_size": 5, "drop_last": True}
    history = training.run(counting(N), np.arange(N), **options).history
    np.testing.assert_array_equal(history["seen"].sum(1), [20] * 6)
    np.testing.assert_array_equal(history["steps"], [4] * 6)
    assert history["seen"].max() == 1
    assert len({tuple(np.flatnonzero(row == 0)) for row in np.asarray(history["seen"])}) > 1


def test_validation_takes_every_example_once():
    history = training.run(counting(N), np.arange(4), key=KEY, epochs=2, batch_size=3, validation=np.arange(N)).history
    np.testing.assert_array_equal(history["validation_seen"], np.ones((2, N)))
    np.testing.assert_array_equal(history["validation_steps"], [8, 8])


def test_epochs_have_orders_of_their_own_and_without_shuffle_that_of_the_data():
    shuffled, plain = (
        training.run(counting(N), np.arange(N), key=KEY, epochs=3, batch_size=1, shuffle=shuffle).history["order"]
        for shuffle in (True, False)
    )
    orders = {tuple(np.asarray(epoch)[:, 0].tolist()) for epoch in shuffled}
    assert len(orders) == 3
    assert all(sorted(order) == list(range(N)) for order in orders)
    # Row ``step % N`` of every epoch: each epoch has N steps.
    assert all(np.asarray(epoch)[:, 0].tolist() == list(range(N)) for epoch in plain)


def test_a_run_that_ends_within_an_epoch_reports_the_part_of_it():
    history = training.run(counting(N), np.arange(N), key=KEY, steps=7, batch_size=5, validation=np.arange(3)).history
    np.testing.assert_array_equal(history["steps"], [5, 2])
    np.testing.assert_array_equal(history["seen"].sum(1), [23, 10])
    np.testing.assert_array_equal(history["validation_steps"], [1, 1])


def test_a_function_draws_its_batches_from_the_key_of_the_step():
    def draw(key):
        return jax.random.randint(key, (4,), 0, N)

    _, shuffle_key, _ = jax.random.split(KEY, 3)
    drawn = [np.asarray(draw(jax.random.fold_in(shuffle_key, step))) for step in range(6)]
    expected = [np.bincount(np.concatenate(drawn[i : i + 2]), minlength=N) for i in (0, 2, 4)]
    history = training.run(counting(N), draw, key=KEY, epochs=3, steps_per_epoch=2).history
    np.testing.assert_array_equal(history["seen"], expected)
    alone = training.run(counting(N), draw, key=KEY, steps=6).history
    np.testing.assert_array_equal(alone["seen"], [np.bincount(d, minlength=N) for d in drawn])


def test_data_may_be_any_tree_of_one_length():
    def init(key, batch):
        return {"a": jnp.zeros(())}, {}

    def loss(params, model_state, batch, **_):
        return (params["a"] - batch["x"] * batch["deep"][0][:, 0]) ** 2, training.Aux(model_state)

    data = {"x": np.ones(7, np.float32), "deep": (np.full((7, 2), 3, np.float32),)}
    line = training.trainer(training.Objective(init, loss), optax.sgd(0.4))
    result = training.run(line, data, key=KEY, epochs=9, batch_size=3)
    assert float(result.state.params["a"]) == pytest.approx(3, abs=1e-3)


# ---- states ----------------------------------------------------------------------------------------------------------


def test_a_warm_start_keeps_params_and_optimizer():
    line = training.supervised(layers.dense(3), losses.softmax_cross_entropy, optax.sgd(0.0, momentum=0.9))
    state = line.init(KEY, (X, LABELS))
    loaded = state._replace(params=jax.tree.map(lambda a: a + 1, state.params), step=jnp.int32(5))
    result = training.run(line, (X, LABELS), key=KEY, epochs=1, state=loaded)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, result.state.params, loaded.params))
    assert int(result.state.step) == 6
    assert any(np.any(leaf) for leaf in jax.tree.leaves(result.state.opt_state))


@pytest.mark.slow
def test_columns_of_the_history_may_be_arrays():
    line = training.supervised(
        layers.dense(3), losses.softmax_cross_entropy, optax.sgd(0.1), metrics={"table": metrics.confusion_matrix(3)}
    )
    history = training.run(
        line, (X, LABELS), key=KEY, epochs=2, batch_size=BATCH, validation=(X[:7], LABELS[:7])
    ).history
    assert history["table"].shape == history["validation_table"].shape == (2, 3, 3)
    np.testing.assert_array_equal(history["table"].sum((1, 2)), [N, N])
    np.testing.assert_array_equal(history["validation_table"].sum(2), [np.bincount(LABELS[:7], minlength=3)] * 2)


def test_run_goes_through_numbers_that_are_not_finite():
    line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(1e6))
    result = training.run(line, (X, X[:, :1]), key=KEY, epochs=20)
    loss = np.asarray(result.history["loss"])
    assert np.isfinite(loss[:2]).all()
    assert np.isnan(loss[-1])
    assert int(result.state.step) == 20


# ---- derivatives -----------------------------------------------------------------------------------------------------

SMOOTH = layers.serial(layers.dense(5), layers.tanh, layers.dense(1))


def final_loss(make_optimizer, dtype):
    """The validation loss after a run with a smaller last batch, as a function of the learning rate."""
    x = np.sin(np.arange(28.0)).reshape(14, 2).astype(dtype)
    y = (x[:, :1] * x[:, 1:]).astype(dtype)

    def loss(rate):
        line = training.supervised(SMOOTH, losses.squared_error, make_optimizer(rate))
        options = {"key": KEY, "epochs": 6, "batch_size": 4, "validation": (x[11:], y[11:])}
        return training.run(line, (x[:11], y[:11]), **options).history["validation_loss"][-1]

    return loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_optimizer", "rate"),
    [
        (lambda rate: optax.sgd(rate, momentum=0.5), 0.1),
        (lambda rate: optax.adam(rate, eps_root=1e-8), 0.02),
    ],
    ids=["sgd", "adam"],
)
def test_the_gradient_of_a_run_by_the_learning_rate(make_optimizer, rate):
    with jax.enable_x64(True):
        loss = jax.jit(final_loss(make_optimizer, np.float64))
        rate, h = jnp.float64(rate), 1e-4 * rate
        one, two = ((loss(rate + s * h) - loss(rate - s * h)) / (2 * s * h) for s in (1, 2))
        expected = (4 * one - two) / 3  # Richardson: the error is of fourth order
        assert abs(expected) > 1e-4
        assert loss(rate).dtype == jnp.float64
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(rate), expected, rtol=1e-6)
        np.testing.assert_allclose(jax.jvp(loss, (rate,), (jnp.ones_like(rate),))[1], expected, rtol=1e-6)


@pytest.mark.slow
def test_the_gradient_by_the_data_and_by_the_initial_params():
    line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1))
    x, y = X, X[:, :1]
    state = line.init(KEY, (x, y))

    def loss(params, x):
        result = training.run(line, (x, y), key=KEY, epochs=2, batch_size=BATCH, state=state._replace(params=params))
        return result.history["loss"][-1]

    by_params, by_data = jax.jit(jax.grad(loss, argnums=(0, 1)))(state.params, x)
    assert by_data.shape == x.shape
    assert all(np.any(leaf) for leaf in jax.tree.leaves(by_params))
    direction = RNG.normal(size=x.shape).astype(np.float32)
    change = (loss(state.params, x + 1e-2 * direction) - loss(state.params, x - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose((by_data * direction).sum(), change, rtol=1e-2)


def test_what_is_looked_at_is_short_and_has_no_addresses():
    model = layers.serial(layers.dense(3), layers.tanh, layers.dense(2))
    trainer = training.supervised(model, losses.softmax_cross_entropy, optax.adam(0.1), {"accuracy": metrics.accuracy})
    result = training.run(trainer, (X, LABELS % 2), key=KEY, epochs=2, batch_size=None)
    assert repr(result) == "Result(state of 23 parameters, history: accuracy (2,), loss (2,))"
    assert repr(result.state) == "TrainState(23 parameters, step 2)"
    assert repr(trainer) == "Trainer(init, step, evaluate, report, telemetry)"
    assert repr(metrics.accuracy) == "Metric(measure, compute)"
    seen = []
    jax.jit(lambda state: seen.append(repr(state)) or state.step)(result.state)
    assert re.fullmatch(r"TrainState\(23 parameters, step .*Tracer.*\)", seen[0])


def test_a_function_that_draws_knows_no_order_and_no_last_batch():
    for option in ({"drop_last": True}, {"shuffle": False}):
        with pytest.raises(ValueError, match="run: expected drop_last and shuffle only where data are arrays, got"):
            training.run(counting(N), lambda key: jnp.arange(4), key=KEY, epochs=1, **option)
