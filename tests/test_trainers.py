"""The step of a trainer against PyTorch, by hand, and with every kind of optimizer that Optax has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from funcnn import layers, losses, metrics, training

RNG = np.random.default_rng(0)
N = 12
X = RNG.normal(size=(N, 4)).astype(np.float32)
Y = (X @ RNG.normal(size=(4, 1)) + 0.1 * RNG.normal(size=(N, 1))).astype(np.float32)
LABELS = RNG.integers(0, 3, N)
KEY = jax.random.key(0)
MLP = layers.serial(layers.dense(8), layers.tanh, layers.dense(3))
DENSE = ("dense_0", "dense_1")


def close(found, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), found, expected)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def twin_of(torch, params):
    """The same network in PyTorch, with the same weights."""
    twin = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for layer, name in zip((twin[0], twin[2]), DENSE, strict=True):
            layer.weight.copy_(torch.tensor(np.array(params[name]["kernel"]).T))
            layer.bias.copy_(torch.tensor(np.array(params[name]["bias"])))
    return twin


def optimizers(torch, name, params):
    adam = {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-6}
    return {
        "sgd": (optax.sgd(0.3), lambda: torch.optim.SGD(params, 0.3)),
        "momentum": (optax.sgd(0.1, momentum=0.9), lambda: torch.optim.SGD(params, 0.1, momentum=0.9)),
        "nesterov": (
            optax.sgd(0.1, momentum=0.9, nesterov=True),
            lambda: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True),
        ),
        "adam": (optax.adam(0.05, b1=0.8, b2=0.99, eps=1e-6), lambda: torch.optim.Adam(params, **adam)),
        "adamw": (
            optax.adamw(0.05, b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.1),
            lambda: torch.optim.AdamW(params, **adam, weight_decay=0.1),
        ),
    }[name]


def assert_same_as(twin, params):
    for layer, name in zip((twin[0], twin[2]), DENSE, strict=True):
        np.testing.assert_allclose(params[name]["kernel"].T, layer.weight.detach().numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(params[name]["bias"], layer.bias.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_five_steps_are_those_of_pytorch(torch, name):
    params, _ = MLP.init(KEY, X)
    twin = twin_of(torch, params)
    ours, make_theirs = optimizers(torch, name, twin.parameters())
    theirs, losses_of_pytorch = make_theirs(), []
    for _ in range(5):
        theirs.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(torch.tensor(X)), torch.tensor(LABELS))
        loss.backward()
        theirs.step()
        losses_of_pytorch.append(loss.item())
    line = training.supervised(MLP, losses.softmax_cross_entropy, ours)
    state = line.init(KEY, (X, LABELS))._replace(params=params)
    result = training.run(line, (X, LABELS), key=KEY, epochs=5, batch_size=None, state=state)
    assert_same_as(twin, result.state.params)
    np.testing.assert_allclose(result.history["loss"], losses_of_pytorch, rtol=1e-5)


def test_clipping_and_a_schedule_in_a_chain_are_those_of_pytorch(torch):
    params, _ = MLP.init(KEY, X)
    twin = twin_of(torch, params)
    theirs = torch.optim.SGD(twin.parameters(), 1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.7)
    norms = []
    for _ in range(5):
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(twin(torch.tensor(X)), torch.tensor(LABELS)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.3).item())
        theirs.step()
        schedule.step()
    assert max(norms) > 0.3
    chain = optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(optax.exponential_decay(1.0, 1, 0.7)))
    line = training.supervised(MLP, losses.softmax_cross_entropy, chain)
    state = line.init(KEY, (X, LABELS))._replace(params=params)
    result = training.run(line, (X, LABELS), key=KEY, epochs=5, batch_size=None, state=state)
    assert_same_as(twin, result.state.params)


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_a_step_with_weights_by_hand():
    line = training.supervised(
        layers.dense(1), losses.squared_error, optax.sgd(0.1), {"mse": metrics.mean_squared_error}
    )
    w = RNG.uniform(0, 2, N).astype(np.float32)
    w[[2, 5]] = 0
    state = line.init(KEY, (X, Y, w))
    after, info = jax.jit(line.step)(state, (X, Y, w))
    kernel, bias = (np.asarray(state.params[name], np.float64) for name in ("kernel", "bias"))
    error = X @ kernel + bias - Y
    gradient = 2 * X.T @ (w[:, None] * error) / w.sum()
    np.testing.assert_allclose(after.params["kernel"], kernel - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        after.params["bias"], bias - 0.2 * (w[:, None] * error).sum() / w.sum(), rtol=1e-4, atol=1e-6
    )
    expected = (w * error[:, 0] ** 2).sum() / w.sum()
    assert {k: float(v) for k, v in line.report(info).items()} == pytest.approx(
        {"loss": expected, "mse": expected}, rel=1e-5
    )
    assert int(after.step) == 1


@pytest.mark.slow
def test_a_row_of_weight_zero_is_no_row():
    line = training.supervised(MLP, losses.softmax_cross_entropy, optax.adam(0.1), {"accuracy": metrics.accuracy})
    w = np.ones(N, np.float32)
    w[-4:] = 0
    other = X.copy()
    other[-4:] = 1e6
    state = line.init(KEY, (X, LABELS))
    step = jax.jit(line.step)
    one, two, three = step(state, (X, LABELS, w)), step(state, (other, LABELS, w)), step(state, (X[:-4], LABELS[:-4]))
    close(one[0].params, two[0].params)
    close(one[0].params, three[0].params)
    close(line.report(one[1]), line.report(three[1]))


@pytest.mark.slow
def test_weights_of_ones_and_of_twos_are_none():
    line = training.supervised(MLP, losses.softmax_cross_entropy, optax.sgd(0.1), {"accuracy": metrics.accuracy})
    options = {"key": KEY, "epochs": 3, "batch_size": 5}
    plain = training.run(line, (X, LABELS), **options)
    for value in (1, 2.0):
        weighted = training.run(line, (X, LABELS, np.full(N, value)), **options)
        close(weighted.state.params, plain.state.params)
        close(weighted.history, plain.history)


@pytest.mark.slow
def test_metrics_and_losses_over_ragged_batches_are_those_of_everything():
    names = {
        "accuracy": metrics.accuracy,
        "f1": metrics.f1(3),
        "table": metrics.confusion_matrix(3),
        "own": metrics.mean(losses.softmax_cross_entropy),
    }
    line = training.supervised(MLP, losses.softmax_cross_entropy, optax.sgd(0.0), names)
    whole = {}
    for batch_size in (None, 5, 7, 11, 1):
        history = training.run(
            line, (X, LABELS), key=KEY, epochs=1, batch_size=batch_size, validation=(X, LABELS)
        ).history
        whole = whole or history
        close(history, whole)
        for name in names:
            close(history[f"validation_{name}"], history[name])
    np.testing.assert_allclose(whole["own"], whole["loss"], rtol=1e-6)
    from sklearn.metrics import confusion_matrix, f1_score

    state = training.run(line, (X, LABELS), key=KEY, epochs=1).state
    guess = np.asarray(MLP.apply(state.params, state.model_state, X)[0]).argmax(1)
    np.testing.assert_array_equal(whole["table"][0], confusion_matrix(LABELS, guess, labels=range(3)))
    assert float(whole["f1"][0]) == pytest.approx(
        f1_score(LABELS, guess, average="macro", labels=range(3), zero_division=0)
    )
    assert float(whole["accuracy"][0]) == pytest.approx((guess == LABELS).mean())


@pytest.mark.slow
def test_dropout_and_batch_norm_act_in_step_and_not_in_evaluate():
    model = layers.serial(layers.dense(8), layers.batch_norm(), layers.dropout(0.5), layers.dense(3))
    line = training.supervised(model, losses.softmax_cross_entropy, optax.sgd(0.1))
    state = line.init(KEY, (X, LABELS))
    after, _ = line.step(state, (X, LABELS))
    norm = after.model_state["batch_norm_0"]
    assert not np.array_equal(norm["mean"], state.model_state["batch_norm_0"]["mean"])
    reports = [
        line.report(line.evaluate(s, (X, LABELS)))["loss"] for s in (state, state, state._replace(step=jnp.int32(9)))
    ]
    assert float(reports[0]) == float(reports[1]) == float(reports[2])
    steps = [line.report(line.step(state._replace(step=jnp.int32(i)), (X, LABELS))[1])["loss"] for i in range(3)]
    assert len({float(value) for value in steps}) == 3  # each step has a key of its own
    outputs, _ = model.apply(state.params, state.model_state, X)
    expected = optax.softmax_cross_entropy_with_integer_labels(outputs, LABELS).mean()
    assert float(reports[0]) == pytest.approx(float(expected), rel=1e-5)


def test_init_reads_only_shapes():
    line = training.supervised(MLP, losses.softmax_cross_entropy, optax.adam(0.1))
    spec = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (X, jnp.asarray(LABELS)))
    one, two = line.init(KEY, (X, LABELS)), line.init(KEY, spec)
    close((one.params, one.opt_state), (two.params, two.opt_state))
    assert int(one.step) == 0
    assert jnp.array_equal(jax.random.key_data(one.key), jax.random.key_data(two.key))


# ---- optimizers ------------------------------------------------------------------------------------------------------


def regression(optimizer, **options):
    objective = training.supervised(layers.dense(1), losses.squared_error, optimizer, **options)
    return objective, (X, Y)


@pytest.mark.slow
def test_lbfgs_with_its_line_search_finds_the_least_squares():
    line, data = regression(optax.lbfgs(memory_size=5))
    result = training.run(line, data, key=KEY, epochs=15, batch_size=None)
    columns = np.concatenate([X, np.ones((N, 1), np.float32)], 1).astype(np.float64)
    expected = np.linalg.lstsq(columns, Y, rcond=None)[0]
    found = np.concatenate([result.state.params["kernel"], result.state.params["bias"][None]])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_reduce_on_plateau_is_given_the_loss():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2, rtol=0.0, atol=1e-3)
    line, data = regression(optax.chain(optax.sgd(0.3), plateau))
    result = training.run(line, data, key=KEY, epochs=40, batch_size=None)
    scale, loss = float(result.state.opt_state[-1].scale), np.asarray(result.history["loss"])
    best, bad, expected = np.inf, 0, 1.0
    for value in loss:
        best, bad = (value, 0) if value < best - 1e-3 else (best, bad + 1)
        if bad >= 2:
            expected, bad = expected / 2, 0
    assert scale == expected < 1


@pytest.mark.slow
def test_an_optimizer_is_given_value_gradient_and_a_function_of_params():
    seen = {}

    def update(updates, state, params=None, *, value, grad, value_fn, **extra):
        seen.update(
            value=value, grad=grad, at_params=value_fn(params), elsewhere=value_fn(jax.tree.map(jnp.zeros_like, params))
        )
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    line, data = regression(optax.GradientTransformationExtraArgs(lambda params: (), update))
    state = line.init(KEY, data)
    line.step(state, data)
    assert float(seen["value"]) == float(seen["at_params"])
    assert float(seen["elsewhere"]) == pytest.approx((Y**2).mean(), rel=1e-5)
    expected = jax.grad(lambda p: losses.squared_error(layers.dense(1).apply(p, {}, X)[0], Y).mean())(state.params)
    close(seen["grad"], expected)


@pytest.mark.slow
def test_evaluation_takes_the_params_that_it_is_told_to():
    optimizer = optax.contrib.schedule_free_sgd(0.2)
    line, data = regression(optimizer)
    averaging, _ = regression(optimizer)
    averaging = training.trainer(
        training.Objective(
            lambda key, batch: layers.dense(1).init(key, batch[0]),
            lambda p, s, b, **_: (losses.squared_error(layers.dense(1).apply(p, s, b[0])[0], b[1]), training.Aux(s)),
        ),
        optimizer,
        evaluation_params=lambda state: optax.contrib.schedule_free_eval_params(state.opt_state, state.params),
    )
    options = {"key": KEY, "epochs": 4, "batch_size": 5, "validation": data}
    one, two = training.run(line, data, **options), training.run(averaging, data, **options)
    close(one.state.params, two.state.params)
    close(one.history["loss"], two.history["loss"])
    averaged = optax.contrib.schedule_free_eval_params(two.state.opt_state, two.state.params)
    expected = ((X @ averaged["kernel"] + averaged["bias"][None] - Y) ** 2).mean()
    assert float(two.history["validation_loss"][-1]) == pytest.approx(float(expected), rel=1e-5)
    assert float(one.history["validation_loss"][-1]) != pytest.approx(float(expected), rel=1e-3)


def test_a_hyperparameter_may_be_a_tracer():
    def final(rate):
        line, data = regression(optax.sgd(rate))
        return training.run(line, data, key=KEY, epochs=3).history["loss"][-1]

    rates = jnp.array([0.01, 0.1])
    together = jax.jit(jax.vmap(final))(rates)
    np.testing.assert_allclose(together, [float(final(rate)) for rate in rates], rtol=1e-5)
    assert float(together[1]) < float(together[0])
