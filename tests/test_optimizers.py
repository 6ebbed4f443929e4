"""``freeze``: what is frozen does not move, has no state and costs nothing; what is not, moves as alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, training, trees

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BATCH = RNG.normal(size=(8, 3)).astype(np.float32), RNG.normal(size=(8, 1)).astype(np.float32)
MODEL = layers.serial(layers.named("encoder", layers.dense(4)), layers.tanh, layers.dense(1))
SGD, ADAMW = optax.sgd(0.1, momentum=0.9), optax.adamw(0.1, weight_decay=0.5)


def trained(optimizer, steps=3):
    line = training.supervised(MODEL, losses.squared_error, optimizer)
    before = line.init(KEY, BATCH)
    return before, training.fit(line, BATCH, key=KEY, steps=steps, state=before, progress=False).state


def moved(before, after):
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    return {path for path, is_moved in trees.select(changed, "**").items() if is_moved}


@pytest.mark.parametrize(
    ("freeze", "left"),
    [
        (lambda o: training.freeze(o, "encoder/**"), {"dense_0/kernel", "dense_0/bias"}),
        (lambda o: training.freeze(o, "**/bias", "encoder/kernel"), {"dense_0/kernel"}),
        (lambda o: training.freeze(training.freeze(o, "encoder/**"), "**/bias"), {"dense_0/kernel"}),
        (
            lambda o: training.freeze(training.freeze(o, "encoder/kernel"), "encoder/**"),
            {"dense_0/kernel", "dense_0/bias"},
        ),
    ],
)
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.clip_by_global_norm(1.0), ADAMW),
        pytest.param(SGD, marks=pytest.mark.slow),
        pytest.param(optax.lbfgs(), marks=pytest.mark.slow),
    ],
    ids=["adamw", "sgd", "lbfgs"],
)
def test_what_is_frozen_stays_and_has_no_state(freeze, left, optimizer):
    before, after = trained(freeze(optimizer))
    assert moved(before, after) == left
    shapes = {leaf.shape for leaf in trees.select(before.params, "**").values()}
    kept = {trees.select(before.params, "**")[path].shape for path in left}
    state_shapes = {leaf.shape[-2:] for leaf in jax.tree.leaves(before.opt_state)}
    assert not state_shapes & (shapes - kept)


def test_all_may_be_frozen():
    before, after = trained(training.freeze(ADAMW, "**"))
    assert moved(before, after) == set()


def test_what_is_not_frozen_moves_as_in_a_run_of_it_alone():
    before, after = trained(training.freeze(SGD, "encoder/**"))
    features, _ = MODEL.children[0][1].apply(before.params["encoder"], {}, BATCH[0])
    head = training.supervised(layers.dense(1), losses.squared_error, SGD)
    data = np.tanh(features), BATCH[1]
    alone = head.init(KEY, data)._replace(params=before.params["dense_0"])
    alone = training.fit(head, data, key=KEY, steps=3, state=alone, progress=False).state
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.params["dense_0"], alone.params
    )


@pytest.mark.slow
def test_what_no_gradient_needs_is_not_computed():
    model = layers.serial(layers.named("encoder", layers.dense(256)), layers.tanh, layers.dense(1))
    x, y = jnp.ones((64, 256)), jnp.ones((64, 1))

    def flops(optimizer):
        line = training.supervised(model, losses.squared_error, optimizer)
        compiled = jax.jit(line.step).lower(line.init(KEY, (x, y)), (x, y)).compile()
        return compiled.cost_analysis()["flops"]

    product = 2 * 64 * 256 * 256
    assert flops(training.freeze(optax.sgd(0.1), "encoder/**")) < flops(optax.sgd(0.1)) - 0.9 * product


def test_a_pattern_without_a_match_is_refused():
    line = training.supervised(MODEL, losses.squared_error, training.freeze(SGD, "encodr/**"))
    with pytest.raises(
        ValueError, match=r"freeze: expected a pattern that matches a path, got 'encodr/\*\*'; the nearest"
    ):
        line.init(KEY, BATCH)
    composed = training.freeze(training.freeze(SGD, "encodr/**"), "encoder/**")
    with pytest.raises(ValueError, match=r"got 'encodr/\*\*'"):
        training.supervised(MODEL, losses.squared_error, composed).init(KEY, BATCH)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((SGD,), ValueError, r"freeze: expected at least one pattern, got none"),
        ((SGD, ["encoder/**"]), TypeError, r"freeze: expected a pattern such as .*, got list"),
        ((SGD, ""), ValueError, r"freeze: expected a pattern such as .*, got an empty one"),
        (("encoder/**", SGD), TypeError, r"freeze: expected an Optax optimizer, got str"),
        ((optax.adam, "encoder/**"), TypeError, r"freeze: expected an Optax optimizer, got the factory adam"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        training.freeze(*arguments)


# ---- averages --------------------------------------------------------------------------------------------------------


def averaging(optimizer, **options):
    return training.supervised(
        layers.serial(layers.dense(3), layers.tanh, layers.dense(1)), losses.squared_error, optimizer, **options
    )


ROWS = np.random.default_rng(1).normal(size=(12, 2)).astype(np.float32)
SUMS = ROWS.sum(1, keepdims=True)


@pytest.mark.slow
def test_the_average_is_that_of_the_params_after_each_step_and_is_evaluated():
    trainer = averaging(training.averaged(optax.adam(0.05), 0.8), evaluation_params=training.average_of)
    plain = averaging(optax.adam(0.05))
    options = {"key": KEY, "epochs": 3, "batch_size": 5}
    result = training.run(trainer, (ROWS, SUMS), validation=(ROWS, SUMS), **options)
    first = plain.init(jax.random.split(KEY, 3)[0], (ROWS[:5], SUMS[:5])).params
    average = jax.tree.map(np.asarray, first)
    for event in training.steps(plain, (ROWS, SUMS), **options):
        average = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * np.asarray(p), average, event.state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), training.average_of(result.state), average)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result.state.params, event.state.params)
    expected = training.evaluate(plain, event.state._replace(params=average), (ROWS, SUMS))
    np.testing.assert_allclose(result.history["validation_loss"][-1], expected["loss"], rtol=1e-5)


@pytest.mark.slow
def test_an_average_and_what_is_frozen_go_together():
    for optimizer in (
        training.freeze(training.averaged(optax.sgd(0.1), 0.5), "dense_0/*"),
        training.averaged(training.freeze(optax.sgd(0.1), "dense_0/*"), 0.5),
    ):
        result = training.run(averaging(optimizer), (ROWS, SUMS), key=KEY, epochs=2, batch_size=None)
        average = training.average_of(result.state)
        np.testing.assert_allclose(average["dense_0"]["kernel"], result.state.params["dense_0"]["kernel"], rtol=1e-6)
        assert (average["dense_1"]["kernel"] != result.state.params["dense_1"]["kernel"]).any()


def test_a_state_without_an_average_has_none():
    state = averaging(optax.adam(0.1)).init(KEY, (ROWS, SUMS))
    with pytest.raises(ValueError, match=r"average_of: expected one average .* got 0; wrap the optimizer"):
        training.average_of(state)
    with pytest.raises(ValueError, match=r"decay from 0\.0 to 1\.0, got 1\.5"):
        training.averaged(optax.adam(0.1), 1.5)


def test_the_rate_falls_on_a_plateau():
    """By the loss of each step, inside the program: the value goes to the transformations that ask for it."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2, accumulation_size=1)
    trainer = averaging(optax.chain(optax.sgd(0.0), plateau))
    result = training.run(trainer, (ROWS, SUMS), key=KEY, epochs=9, batch_size=None)
    assert result.state.opt_state[1].scale == 0.5**4  # after the first step nothing is better, four times two steps


def test_an_average_of_half_precision_moves():
    """In bfloat16 a thousandth of a param is less than the next number is away."""
    optimizer, params = training.averaged(optax.identity(), 0.999), jnp.ones(3, jnp.bfloat16)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(2000):
        _, state = update(jnp.zeros_like(params), state, 1.5 * params)
    train_state = training.TrainState(params, {}, state, KEY, jnp.int32(0))
    found = training.average_of(train_state)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), 1.5 - 0.5 * 0.999**2000, rtol=0.01)
