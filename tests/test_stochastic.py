"""Dropout and its kin: their laws of large numbers, their ends, and what they ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from funcnn import layers

KEY = jax.random.key(1)


def dropped(rate, x, key=KEY):
    return layers.dropout(rate).apply({}, {}, x, key=key, training=True)[0]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_that_of_dropping_and_what_is_kept_is_scaled(rate):
    y = dropped(rate, jnp.full((400, 500), 3.0))
    kept = y != 0
    n = y.size
    deviation = np.sqrt(n * rate * (1 - rate))
    np.testing.assert_allclose(n - kept.sum(), n * rate, atol=5 * deviation)
    np.testing.assert_allclose(y[kept], 3 / (1 - rate), rtol=1e-6)
    for axis in (0, 1):  # nothing is dropped by whole rows or columns
        assert kept.sum(axis).min() > 0
        assert kept.sum(axis).max() < y.shape[axis]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_both_ends_are_exact(dtype, compiled):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 20)), dtype)
    run = jax.jit(dropped) if compiled else dropped
    np.testing.assert_array_equal(run(0.0, x), x)
    np.testing.assert_array_equal(run(1.0, x), jnp.zeros_like(x))
    assert run(1.0, x).dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_gradients_by_input_and_by_rate_are_right_and_finite(rate):
    x = jnp.linspace(-2.0, 2.0, 64)
    kept = dropped(rate, jnp.ones(64)) != 0
    by_rate, by_input = jax.jit(jax.grad(lambda rate, x: dropped(rate, x).sum(), argnums=(0, 1)))(rate, x)
    scale = 1 / (1 - rate) if rate < 1 else 0.0
    np.testing.assert_allclose(by_input, kept * scale, rtol=1e-6)
    np.testing.assert_allclose(by_rate, jnp.sum(kept * x) * scale**2, rtol=1e-5, atol=1e-6)
    second = jax.grad(jax.grad(lambda rate: dropped(rate, x).sum()))(rate)
    assert np.isfinite(second)


def test_rates_may_be_mapped():
    rates = jnp.array([0.0, 0.25, 1.0])
    y = jax.vmap(dropped, in_axes=(0, None))(rates, jnp.ones((40, 50)))
    fractions = np.asarray((y == 0).mean((1, 2)))
    assert fractions[0] == 0
    assert fractions[2] == 1
    assert abs(fractions[1] - 0.25) < 0.05


def test_an_infinite_input_that_is_dropped_is_zero():
    y = dropped(0.5, jnp.full(100, jnp.inf))
    assert sorted(set(np.asarray(y).tolist())) == [0.0, np.inf]


def test_without_a_key_it_says_which_layer_and_what_to_do():
    message = r"^dropout: expected a key when training, got None; pass key=jax\.random\.key\(0\) to apply"
    model = layers.serial(layers.dense(3), layers.named("noise", layers.dropout(0.5)))
    params, state = model.init(KEY, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match=message) as error:
        jax.jit(model.apply, static_argnames="training")(params, state, jnp.ones((2, 3)), training=True)
    assert "noise: input (2, 3)" in error.value.__notes__
    model.apply(params, state, jnp.ones((2, 3)))


@pytest.mark.parametrize("rate", [-0.1, 1.1, 50, float("nan"), np.float32(2.0), jnp.float32(-1.0)])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(
        ValueError, match=r"dropout: expected rate from 0\.0 to 1\.0, got .*; choose rate in this range"
    ):
        layers.dropout(rate)


# ---- whole features, saturation, noise -------------------------------------------------------------------------------


def drawn(layer, x, key=KEY):
    return layer.apply({}, {}, x, key=key, training=True)[0]


@pytest.mark.parametrize("shape", [(300, 40), (300, 7, 40), (300, 2, 3, 40), (300, 2, 1, 2, 40)])
@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_spatial_dropout_drops_features_of_each_example_as_a_whole(shape, rate):
    y = np.asarray(drawn(layers.spatial_dropout(rate), jnp.full(shape, 3.0))).reshape(300, -1, 40)
    assert (y == y[:, :1]).all()
    kept = y[:, 0] != 0
    np.testing.assert_allclose(y[:, 0][kept], 3 / (1 - rate), rtol=1e-6)
    np.testing.assert_allclose(kept.sum(), kept.size * (1 - rate), atol=5 * np.sqrt(kept.size * rate * (1 - rate)))
    assert len({row.tobytes() for row in kept}) > 290
    assert len({row.tobytes() for row in kept.T}) == 40


# The limit of selu below: minus its scale times its alpha, with the digits of the paper.
LOW = -1.0507009873554805 * 1.6732632423543772


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
def test_alpha_dropout_keeps_mean_and_variance(name, rate):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 1, 300)).astype(np.float32)
    y = np.float64(drawn(getattr(layers, name)(rate), x))
    np.testing.assert_allclose([y.mean(), y.var()], [0, 1], atol=0.02)
    a = 1 / np.sqrt((1 - rate) * (1 + rate * LOW**2))
    value = a * LOW - a * LOW * rate
    dropped = np.isclose(y, value, atol=1e-6)
    np.testing.assert_allclose(dropped.mean(), rate, atol=0.01)
    np.testing.assert_allclose(y[~dropped], (a * x - a * LOW * rate)[~dropped], rtol=1e-4, atol=1e-5)


def test_alpha_dropout_is_that_of_pytorch_where_it_drops_the_same(torch):
    """The draws differ, so each of the two values that an entry can take is compared."""
    x = np.full((1, 2000), 0.7, np.float32)
    for rate in (0.0, 0.25, 0.8, 1.0):
        expected = torch.nn.functional.alpha_dropout(torch.tensor(x), rate, training=True).unique().tolist()
        y = np.unique(drawn(layers.alpha_dropout(rate), x)).tolist()
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_feature_alpha_dropout_sets_features_as_a_whole():
    x = np.random.default_rng(0).normal(size=(50, 4, 5, 20)).astype(np.float32)
    y = np.asarray(drawn(layers.feature_alpha_dropout(0.4), x))
    dropped = np.isclose(y, y[:, :1, :1], atol=1e-6).all((1, 2))
    assert 0.3 < dropped.mean() < 0.5
    a = 1 / np.sqrt(0.6 * (1 + 0.4 * LOW**2))
    before, after = (np.moveaxis(array, -1, 1)[~dropped] for array in (x, y))
    np.testing.assert_allclose(after, a * before - a * LOW * 0.4, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spatial_dropout", "alpha_dropout", "feature_alpha_dropout"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_ends_of_the_other_dropouts_are_exact(name, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 20)), dtype)
    run = jax.jit(lambda rate: drawn(getattr(layers, name)(rate), x))
    np.testing.assert_array_equal(run(0.0), x)
    np.testing.assert_array_equal(run(1.0), jnp.zeros_like(x))
    assert run(0.5).dtype == dtype
    for rate in (0.0, 0.3, 1.0):
        slope, second = jax.jit(jax.value_and_grad(jax.grad(lambda rate: drawn(getattr(layers, name)(rate), x).sum())))(
            rate
        )
        assert np.isfinite([slope, second]).all()


@pytest.mark.parametrize("std", [0.0, 0.5, 3.0])
def test_gaussian_noise_has_its_mean_and_deviation(std):
    noise = np.float64(drawn(layers.gaussian_noise(std), jnp.full((200, 300), 2.0)) - 2.0).ravel()
    if std == 0:
        assert not noise.any()
        return
    assert stats.kstest(noise / std, "norm").pvalue > 1e-3
    slope = jax.grad(lambda s: drawn(layers.gaussian_noise(s), jnp.zeros((200, 300))).sum())(std)
    np.testing.assert_allclose(slope, noise.sum() / std, rtol=1e-2)


def test_the_noise_of_half_precision_is_rounded_once():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 20)), jnp.bfloat16)
    wide = drawn(layers.gaussian_noise(0.1), x.astype(jnp.float32))
    np.testing.assert_array_equal(drawn(layers.gaussian_noise(0.1), x), wide.astype(jnp.bfloat16))


# ---- stochastic depth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_stochastic_depth_leaves_the_branch_out_for_whole_examples(rate):
    model = layers.stochastic_depth(layers.named("branch", layers.dense(4)), rate)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 3, 4)), jnp.float32)
    params, state = model.init(KEY, x)
    assert list(params) == ["branch"]
    branch = np.asarray(x @ params["branch"]["kernel"])
    np.testing.assert_allclose(model.apply(params, state, x)[0], x + branch, rtol=1e-5, atol=1e-5)
    y, _ = jax.jit(lambda x: model.apply(params, state, x, key=KEY, training=True))(x)
    kept = ~(np.asarray(y) == np.asarray(x)).all((1, 2))
    np.testing.assert_allclose(kept.mean(), 1 - rate, atol=5 * np.sqrt(rate * (1 - rate) / 2000))
    scale = 1 / (1 - rate) if rate < 1 else 0.0
    np.testing.assert_allclose(y[kept], (x + branch * scale)[kept], rtol=1e-5, atol=1e-5)


def test_stochastic_depth_scales_what_it_keeps_and_threads_the_state():
    model = layers.stochastic_depth(layers.batch_norm(momentum=0.0), 0.5)
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (64, 4)), jnp.float32)
    params, state = model.init(KEY, x)
    y, new = model.apply(params, state, x, key=KEY, training=True)
    np.testing.assert_allclose(new["batch_norm_0"]["mean"], np.mean(x, 0), rtol=1e-5)
    a = np.float64(x)
    change = (np.float64(y) - a) / ((a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5))
    assert set(np.unique(change.round(2)).tolist()) == {0.0, 2.0}


def test_the_branch_and_its_dropping_have_keys_of_their_own():
    model = layers.stochastic_depth(layers.dropout(0.5), 0.5)
    x = jnp.ones((400, 1))
    y = np.asarray(model.apply({}, {}, x, key=KEY, training=True)[0])
    np.testing.assert_allclose((y == 5).mean(), 0.25, atol=0.1)


def test_what_stochastic_depth_cannot_do_it_refuses():
    with pytest.raises(TypeError, match=r"^stochastic_depth: expected a layer, got the factory batch_norm; call it"):
        layers.stochastic_depth(layers.batch_norm, 0.5)
    with pytest.raises(ValueError, match=r"^stochastic_depth: expected rate from 0\.0 to 1\.0, got 1\.5"):
        layers.stochastic_depth(layers.relu, 1.5)
    model = layers.serial(layers.stochastic_depth(layers.dense(3), 0.5))
    message = (
        r"^stochastic_depth: expected an output of the shape of the input, \(2, 4\), got \(2, 3\); make them equal"
    )
    with pytest.raises(ValueError, match=message) as error:
        model.init(KEY, jnp.ones((2, 4)))
    assert "stochastic_depth_0: input (2, 4)" in error.value.__notes__
    params, state = model.init(KEY, jnp.ones((2, 3)))
    with pytest.raises(
        TypeError, match=r"^example_dropout: expected a key when training, got None; pass key="
    ) as error:
        model.apply(params, state, jnp.ones((2, 3)), training=True)
    assert "stochastic_depth_0 / example_dropout_0: input (2, 3)" in error.value.__notes__


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.spatial_dropout(-0.1), r"^spatial_dropout: expected rate from 0\.0 to 1\.0, got -0\.1"),
        (lambda: layers.alpha_dropout(1.1), r"^alpha_dropout: expected rate from"),
        (lambda: layers.feature_alpha_dropout(2), r"^feature_alpha_dropout: expected rate from"),
        (lambda: layers.gaussian_noise(-1.0), r"^gaussian_noise: expected std from 0\.0 to inf, got -1\.0"),
        (
            lambda: layers.spatial_dropout(0.1).init(KEY, jnp.ones(3)),
            r"^spatial_dropout: expected at least 2 axes, \(batch, \.\.\., features\), got shape \(3,\); add a batch",
        ),
        (
            lambda: layers.feature_alpha_dropout(0.1).apply({}, {}, jnp.ones(3)),
            r"^feature_alpha_dropout: expected at least 2 axes",
        ),
    ],
)
def test_rates_and_ranks_of_the_others_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
