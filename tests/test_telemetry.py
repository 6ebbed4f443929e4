"""Numbers of every step: what a loop by hand measures, stacked, under the law."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_law import assert_same_bytes

from funcnn import layers, losses, penalties, training

KEY = jax.random.key(3)
RNG = np.random.default_rng(1)
N, BATCH = 22, 8
X, Y = RNG.normal(size=(N, 5)).astype(np.float32), RNG.integers(0, 3, N).astype(np.int32)


def biases(key, shape, dtype):
    """Three of the units begin dead, and one nearly so."""
    return jnp.zeros(shape, dtype).at[:4].set(jnp.array([-20, -20, -20, -1.5], dtype))


MODEL = layers.serial(layers.dense(9, bias_init=biases), layers.relu, layers.dense(3))
ALL = {
    "gradient_norm": training.gradient_norm,
    "update_ratio": training.update_ratio,
    "dead_units": training.dead_units,
    "bias": lambda params, gradient, updates: params["dense_0"]["bias"],
}


def made(rate, telemetry=ALL, **options):
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate))
    return training.supervised(MODEL, losses.softmax_cross_entropy, optimizer, telemetry=telemetry, **options)


TRAINER = made(0.05)
RUN = {"key": KEY, "epochs": 3, "batch_size": BATCH, "shuffle": False}


@pytest.fixture(scope="module")
def whole():
    return jax.jit(lambda: training.run(TRAINER, (X, Y), **RUN))()


def by_hand():
    """What each step was like, measured outside: gradients by ``jax.grad``, activations by the layers."""
    step = jax.jit(TRAINER.step)
    _, _, step_key = jax.random.split(KEY, 3)
    first = X[:BATCH], Y[:BATCH]
    state = TRAINER.init(jax.random.split(KEY, 3)[0], first)._replace(key=step_key)
    rows = []
    for _ in range(3):
        for begin in range(0, N, BATCH):
            x, y = X[begin : begin + BATCH], Y[begin : begin + BATCH]

            def loss(params, x=x, y=y):
                return losses.softmax_cross_entropy(MODEL.apply(params, {}, x)[0], y).mean()

            gradient, before = jax.device_get((jax.grad(loss)(state.params), state.params))
            state, _ = step(state, (x, y))
            hidden = np.maximum(x @ before["dense_0"]["kernel"] + before["dense_0"]["bias"], 0)
            ratios = {
                f"{name}/kernel": np.linalg.norm(state.params[name]["kernel"] - before[name]["kernel"])
                / np.linalg.norm(before[name]["kernel"])
                for name in ("dense_0", "dense_1")
            }
            dead = {"dense_0/kernel": (hidden == 0).all(axis=0).mean(), "dense_1/kernel": 0.0}
            norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(gradient)))
            rows.append(
                {"gradient_norm": norm, "update_ratio": ratios, "dead_units": dead, "bias": before["dense_0"]["bias"]}
            )
    return jax.tree.map(lambda *values: np.stack(values), *rows)


@pytest.mark.slow
def test_it_is_what_a_loop_by_hand_measures(whole):
    expected = by_hand()
    assert 0 < expected["dead_units"]["dense_0/kernel"].max() < 1
    assert jax.tree.structure(whole.telemetry) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), whole.telemetry, expected)


@pytest.mark.parametrize("every", [1, 2, None])
def test_fit_gives_it_bit_for_bit(whole, every):
    fitted = training.fit(TRAINER, (X, Y), progress=False, every=every, **RUN)
    assert_same_bytes(fitted, whole)
    assert jax.tree.leaves(fitted.telemetry)[0].shape[0] == 9


def test_it_changes_nothing_else(whole):
    plain = jax.jit(lambda: training.run(made(0.05, None), (X, Y), **RUN))()
    assert plain.telemetry is None
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain.state.params, whole.state.params
    )
    assert sorted(plain.history) == sorted(whole.history)


@pytest.mark.slow
def test_it_ends_where_the_run_ends(whole):
    seen = training.fit(TRAINER, (X, Y), progress=False, every=1, observers=[lambda event: event.epoch == 2], **RUN)
    assert_same_bytes(seen.telemetry, jax.tree.map(lambda a: a[:6], whole.telemetry))
    options = {**RUN, "epochs": 9, "monitor": "loss", "patience": 1, "min_delta": 10.0}
    stopped = jax.jit(lambda: training.run(TRAINER, (X, Y), **options))()
    steps = 3 * int(stopped.epochs_run)
    norms = stopped.telemetry["gradient_norm"]
    assert steps == 6
    assert np.isfinite(norms[:steps]).all()
    assert np.isnan(norms[steps:]).all()
    fitted = training.fit(TRAINER, (X, Y), progress=False, **options)
    assert fitted.telemetry["gradient_norm"].shape == (6,)
    np.testing.assert_array_equal(fitted.telemetry["gradient_norm"], norms[:6])


@pytest.mark.slow
def test_it_shows_how_a_run_went_bad():
    wild = training.supervised(
        layers.dense(1), losses.squared_error, optax.sgd(1e9), telemetry={"norm": training.gradient_norm}
    )
    with pytest.raises(training.NonFiniteError) as error:
        training.fit(wild, (X, X[:, :1]), key=KEY, epochs=9, progress=False)
    norms = error.value.result.telemetry["norm"]
    assert norms.shape == (error.value.step,)
    assert (np.diff(norms) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["map", "vmap"])
def test_members_of_a_sweep_have_it_each(whole, how):
    found = training.sweep(made, jnp.array([0.01, 0.05]), (X, Y), progress=False, how=how, **RUN)
    assert found.telemetry["update_ratio"]["dense_0/kernel"].shape == (2, 9)
    member = found.members[1]
    alone = training.fit(TRAINER, (X, Y), progress=False, **{**RUN, "key": member.key})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), member.result.telemetry, alone.telemetry
    )


@pytest.mark.slow
def test_a_stream_has_it_where_its_steps_are_counted(whole):
    def batches():
        yield from ((X[b : b + BATCH], Y[b : b + BATCH]) for b in range(0, N, BATCH))

    streamed = training.fit(TRAINER, batches, key=KEY, epochs=3, steps_per_epoch=3, progress=False)
    assert_same_bytes(streamed, whole)
    with pytest.raises(ValueError, match="expected a known number of steps, for telemetry"):
        training.fit(TRAINER, batches, key=KEY, epochs=3, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"micro_batch_size": 3}, {"loss_scale": 1024.0}, {"loss_scale": "dynamic"}], ids=str
)
def test_the_gradient_is_that_of_the_whole_batch_and_unscaled(whole, options):
    result = training.fit(made(0.05, **options), (X, Y), progress=False, **RUN)
    np.testing.assert_allclose(
        result.telemetry["gradient_norm"], whole.telemetry["gradient_norm"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_what_is_frozen_has_no_updates():
    optimizer = training.freeze(optax.sgd(0.1), "dense_0/**")
    frozen = training.supervised(
        MODEL, losses.softmax_cross_entropy, optimizer, telemetry={"ratio": training.update_ratio}
    )
    ratios = training.fit(frozen, (X, Y), progress=False, **RUN).telemetry["ratio"]
    assert (ratios["dense_0/kernel"] == 0).all()
    assert (ratios["dense_1/kernel"] > 0).all()


@pytest.mark.parametrize(
    ("telemetry", "error", "message"),
    [
        ([training.gradient_norm], TypeError, "expected telemetry as a dict, got list"),
        ({"norm": 3}, TypeError, "expected a function under 'norm', got int"),
        ({"": training.gradient_norm}, ValueError, "expected names of telemetry, got ''"),
    ],
)
def test_what_is_no_telemetry_is_refused(telemetry, error, message):
    with pytest.raises(error, match=message):
        made(0.1, telemetry)


def test_dead_units_cannot_be_seen_under_a_penalty():
    trainer = made(0.1, {"dead": training.dead_units}, penalty=penalties.l2(1e-3))
    with pytest.raises(ValueError, match=r"dead_units: expected no penalty.*add_decayed_weights"):
        training.fit(trainer, (X, Y), progress=False, **RUN)


def test_a_compiled_step_gives_it_too():
    state = TRAINER.init(KEY, (X, Y))
    for batch in ((X[:BATCH], Y[:BATCH]), (X[:3], Y[:3])):  # a whole batch, and a smaller last one
        _, info = training.compiled_step(TRAINER, batch_size=BATCH)(state, batch)
        _, expected = TRAINER.step(state, batch)
        assert jax.tree.structure(info) == jax.tree.structure(expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), info, expected)
