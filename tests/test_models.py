"""Whole models: their sizes, their parts, what they learn, and what they refuse. PyTorch's are in the examples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from funcnn import data, layers, losses, metrics, models, training, trees
from funcnn.training import Aux, Objective

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 11, (3, 6)).astype(np.int32)
SIZE = {"heads": 2, "blocks": 2, "length": 8}


def started(model, x):
    params, state = model.init(KEY, x)
    return params, state, model.apply(params, state, x)[0]


def test_a_perceptron_is_dense_layers_with_activations():
    params, _, y = started(models.mlp([5, 4], 3, activation=layers.tanh), jnp.ones((2, 6)))
    assert trees.paths(params) == [f"dense_{i}/{name}" for i in range(3) for name in ("bias", "kernel")]
    assert y.shape == (2, 3)
    with_dropout = models.mlp([5], 3, dropout=0.5)
    assert [name for name, _ in with_dropout.children] == ["dense_0", "relu_0", "dropout_0", "dense_1"]
    with pytest.raises(TypeError, match=r"mlp: expected the features of the layers .*, in a list, got 5; pass \[5\]"):
        models.mlp(5, 3)


@pytest.mark.parametrize(("depth", "count"), [(18, 11_689_512), (50, 25_557_032)])
def test_a_resnet_has_the_size_of_the_published_one(depth, count):
    # The numbers that torchvision gives for resnet18 and resnet50.
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    model = models.resnet(depth, 1000)
    params, state = jax.eval_shape(model.init, KEY, images)
    assert trees.count(params) == count
    y, _ = jax.eval_shape(lambda p, s, x: model.apply(p, s, x), params, state, images)
    assert y.shape == (2, 1000)


@pytest.mark.slow
def test_a_small_resnet_does_not_shrink_small_images_at_once():
    model = models.resnet(18, 10, width=4, small=True)
    _, _, y = started(model, jnp.ones((2, 8, 8, 1)))
    assert y.shape == (2, 10)
    with pytest.raises(ValueError, match=r"resnet: expected depth to be one of \[18, 50\], got 34"):
        models.resnet(34, 10)


@pytest.mark.slow
def test_a_decoder_sees_nothing_that_comes_after():
    model = models.transformer(11, 16, **SIZE)
    params, state, y = started(model, TOKENS)
    other = TOKENS.copy()
    other[:, 4:] = (other[:, 4:] + 1) % 11
    changed, _ = model.apply(params, state, other)
    np.testing.assert_allclose(y[:, :4], changed[:, :4], rtol=1e-5, atol=1e-6)
    assert not np.allclose(y[:, 4:], changed[:, 4:], atol=1e-4)


@pytest.mark.slow
def test_a_decoder_reads_out_with_its_embedding():
    model = models.transformer(11, 16, **SIZE)
    params, state, _ = started(model, TOKENS)
    tables = [path for path in trees.paths(params) if params_at(params, path).shape == (11, 16)]
    assert tables == ["table/embedding"]
    slope = jax.grad(lambda p: model.apply(p, state, TOKENS)[0].sum())(params)["table"]["embedding"]
    assert np.abs(slope).max(1).min() > 0  # every row is read out, also those of tokens that do not occur


def params_at(params, path):
    return trees.select(params, path)[path]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["pre", pytest.param("post", marks=pytest.mark.slow)])
def test_generation_with_the_cache_is_the_full_pass(norm):
    model, cached = (models.transformer(11, 16, **SIZE, norm=norm, cache=cache) for cache in (False, True))
    params, _, expected = started(model, TOKENS)
    same, state = cached.init(KEY, TOKENS)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    step, found = jax.jit(cached.apply), []
    for t in range(TOKENS.shape[1]):
        y, state = step(params, state, TOKENS[:, t : t + 1])
        found.append(y)
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["pre", pytest.param("post", marks=pytest.mark.slow)])
def test_an_encoder_looks_both_ways_and_not_at_what_is_masked(norm):
    model = models.transformer(11, 16, **SIZE, kind="encoder", norm=norm)
    params, state, y = started(model, TOKENS)
    assert y.shape == (3, 6, 16)
    other = TOKENS.copy()
    other[:, 5] = (other[:, 5] + 1) % 11
    assert not np.allclose(model.apply(params, state, other)[0][:, 0], y[:, 0], atol=1e-5)
    lengths = np.array([5, 5, 5])
    short, changed = (model.apply(params, state, {"x": x, "lengths": lengths})[0]["x"] for x in (TOKENS, other))
    np.testing.assert_allclose(short[:, :5], changed[:, :5], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_both_read_from_the_source_as_far_as_it_goes():
    model = models.transformer(11, 16, **SIZE, kind="both")
    given = {"source": {"x": TOKENS, "lengths": np.array([4, 4, 4])}, "target": TOKENS[:, :3]}
    params, state, y = started(model, given)
    assert y.shape == (3, 3, 11)
    far, near = TOKENS.copy(), TOKENS.copy()
    far[:, 5], near[:, 0] = (far[:, 5] + 1) % 11, (near[:, 0] + 1) % 11
    for source, same in ((far, True), (near, False)):
        changed, _ = model.apply(params, state, given | {"source": given["source"] | {"x": source}})
        assert np.allclose(changed, y, atol=1e-6) == same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "decode"}, "transformer: expected kind to be one of"),
        ({"norm": "none"}, "transformer: expected norm to be one of"),
        ({"kind": "encoder", "cache": True}, "kind='decoder' with a cache, got 'encoder'"),
        ({"heads": 3}, "attention: expected features that 3 heads divide, got 16"),
        ({"length": 5}, "learned_positions: expected at most 5 elements, got 6"),
    ],
)
def test_what_a_transformer_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        models.transformer(11, 16, **(SIZE | options)).init(KEY, TOKENS)


def test_both_need_both():
    with pytest.raises(ValueError, match="transformer: expected a dict with 'source' and 'target'"):
        models.transformer(11, 16, **SIZE, kind="both").init(KEY, TOKENS)


# ---- what they learn -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_transformer_learns_to_copy_what_came_before():
    """The second half of each sequence repeats the first: only attention can know it."""

    def draw(key):
        half = jax.random.randint(key, (32, 6), 0, 11)
        return jnp.concatenate([half, half], 1)

    model = models.transformer(11, 32, heads=2, blocks=2, length=12)

    def loss(params, model_state, batch, *, key, training):
        scores, state = model.apply(params, model_state, batch[:, :-1], key=key, training=training)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, batch[:, 1:])
        return each[:, 5:], Aux(state, scores[:, 5:], batch[:, 6:])

    line = training.trainer(
        Objective(lambda key, batch: model.init(key, jax.ShapeDtypeStruct((32, 11), batch.dtype)), loss),
        optax.adam(3e-3),
        {"accuracy": metrics.accuracy},
    )
    result = training.fit(line, draw, key=KEY, steps=600, steps_per_epoch=100, progress=False)
    assert result.history["accuracy"][-1] > 0.95


@pytest.mark.slow
def test_a_low_rank_update_adapts_to_inverted_digits_and_merges():
    images, labels = load_digits(return_X_y=True)
    train, test = data.split((images / 16, labels), 0.2, key=KEY, stratify=labels)
    inverted_train, inverted_test = ((1 - x, y) for x, y in (train, test))
    model = models.mlp([256, 256], 10)
    cross_entropy, accuracy = losses.softmax_cross_entropy, {"accuracy": metrics.accuracy}
    plain = training.supervised(model, cross_entropy, optax.adam(1e-3), accuracy)
    trained = training.fit(plain, train, key=KEY, epochs=20, progress=False).state

    def measured(line, state, held_out):
        return float(training.evaluate(line, state, held_out)["accuracy"])

    assert measured(plain, trained, test) > 0.96
    before = measured(plain, trained, inverted_test)
    assert before < 0.6

    adapted = layers.lora(model, 4)
    line = training.supervised(adapted, cross_entropy, training.freeze(optax.adam(5e-3), "base/**"), accuracy)
    start = line.init(KEY, inverted_train)
    start = start._replace(params=start.params | {"base": trained.params})
    assert trees.count(start.params["lora"]) < 0.05 * trees.count(start.params)
    assert trees.count(start.opt_state) <= 2 * trees.count(start.params["lora"]) + 2  # two moments, a count
    after = training.fit(line, inverted_train, key=KEY, epochs=100, state=start, progress=False).state
    assert measured(line, after, inverted_test) > 0.93
    jax.tree.map(np.testing.assert_array_equal, after.params["base"], trained.params)
    merged = trained._replace(params=layers.merged(after.params))
    outputs = [training.predict(m, s, inverted_test[0]) for m, s in ((adapted, after), (model, merged))]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["convnet", "resnet"])
@pytest.mark.parametrize("shape", [(10, 28, 28), (28, 28), (2, 3, 28, 28, 1)])
def test_images_have_an_axis_of_channels(name, shape):
    model = {"convnet": models.convnet([4, 4], 10), "resnet": models.resnet(18, 10, width=4)}[name]
    message = rf"^{name}: expected \(batch, height, width, channels\), got shape .*add it: x\[\.\.\., None\]; where t"
    for x in (jnp.ones(shape), {"x": jnp.ones(shape)}):
        for call in (lambda x=x: model.init(KEY, x), lambda x=x: model.apply({}, {}, x)):
            with pytest.raises(ValueError, match=message):
                call()
