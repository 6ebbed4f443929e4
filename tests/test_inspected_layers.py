"""What comes out of layers, against the layers applied by hand, and gradients by it against those of what follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import inspection, layers, models
from funcnn.core import child_key

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 4))
MODEL = layers.serial(
    layers.dense(5),
    layers.batch_norm(),
    layers.tanh,
    layers.dropout(0.4),
    layers.named("head", layers.serial(layers.dense(3), layers.relu)),
    layers.dense(2),
)
PARAMS, STATE = MODEL.init(KEY, X)


def by_hand(x, *, training=False, key=None):
    """Each layer of MODEL by itself."""
    found = {}
    for name, layer in MODEL.children:
        params, state = PARAMS.get(name, {}), STATE.get(name, {})
        own = None if key is None else child_key(key, name)
        if name == "head":
            inner = x
            for part, child in layer.children:
                inner, _ = child.apply(params.get(part, {}), {}, inner)
                found[f"head/{part}"] = inner
        x, _ = layer.apply(params, state, x, training=training, key=own)
        found[name] = x
    return found


@pytest.mark.parametrize("training", [False, True])
def test_what_comes_out_of_each_layer(training):
    key = KEY if training else None
    found = inspection.activations(MODEL, PARAMS, STATE, X, "**", training=training, key=key)
    wanted = by_hand(X, training=training, key=key)
    # Dropout at rest computes nothing.
    assert set(found) == set(wanted) - (set() if training else {"dropout_0"})
    for path in found:
        np.testing.assert_allclose(found[path], wanted[path], rtol=1e-6, atol=1e-7, err_msg=path)
    assert list(found)[:3] == ["dense_0", "batch_norm_0", "tanh_0"]


def test_to_the_bit_operation_by_operation():
    with jax.disable_jit():
        found = inspection.activations(MODEL, PARAMS, STATE, X, "**")
        wanted = by_hand(X)
        for path in found:
            np.testing.assert_array_equal(found[path], wanted[path], err_msg=path)


def test_layers_without_layers_are_what_is_meant():
    assert list(inspection.activations(MODEL, PARAMS, STATE, X)) == [
        "dense_0",
        "batch_norm_0",
        "tanh_0",
        "head/dense_0",
        "head/relu_0",
        "dense_1",
    ]
    assert list(inspection.activations(MODEL, PARAMS, STATE, X, "head/*", "dense_0")) == [
        "dense_0",
        "head/dense_0",
        "head/relu_0",
    ]
    alone = layers.dense(2)
    params, _ = alone.init(KEY, X)
    with pytest.raises(ValueError, match="activations: expected layers that compute something, got none"):
        inspection.activations(alone, params, {}, X)  # it has no name scope: it is what apply gives


def test_gradients_are_those_of_what_follows():
    def loss(y):
        return jnp.sum(y**2)

    found = inspection.gradients(MODEL, PARAMS, STATE, X, "**", loss=loss)
    wanted = by_hand(X)

    def rest(name):
        """From what came out of this layer to the loss."""
        names = [child for child, _ in MODEL.children]
        later = MODEL.children[names.index(name) + 1 :]

        def run(x):
            for child, layer in later:
                x, _ = layer.apply(PARAMS.get(child, {}), STATE.get(child, {}), x)
            return loss(x)

        return run

    for name in ("dense_0", "batch_norm_0", "tanh_0", "head", "dense_1"):
        np.testing.assert_allclose(found[name], jax.grad(rest(name))(wanted[name]), rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["head/relu_0"], found["head"])
    kernel = jax.grad(lambda p: loss(MODEL.apply(p, STATE, X)[0]))(PARAMS)["dense_0"]["kernel"]
    np.testing.assert_allclose(X.T @ found["dense_0"], kernel, rtol=1e-5, atol=1e-6)


def test_iterations_of_a_loop_have_an_axis():
    block = layers.serial(layers.dense(4), layers.tanh)
    model = layers.serial(layers.repeat(block, 3), layers.dense(1))
    params, state = model.init(KEY, X)
    found = inspection.activations(model, params, state, X)
    gradients = inspection.gradients(model, params, state, X, "**/tanh_0", loss=jnp.sum)
    x, path = X, next(path for path in found if path.endswith("tanh_0"))
    assert found[path].shape == (3, 6, 4)
    assert list(inspection.activations(model, params, state, X, "**")) == [
        "repeat_0/serial_0/dense_0",
        "repeat_0/serial_0/tanh_0",
        "repeat_0",  # the loop is what the repeated layer is
        "repeat_0/serial_0",
        "dense_0",
    ]
    stacked = params["repeat_0"]
    for i in range(3):
        x, _ = block.apply(jax.tree.map(lambda a, i=i: a[i], stacked.get("serial_0", stacked)), {}, x)
        np.testing.assert_allclose(found[path][i], x, rtol=1e-6)
    np.testing.assert_allclose(gradients[path][2], jnp.ones((6, 1)) @ params["dense_0"]["kernel"].T, rtol=1e-6)
    before = gradients[path][2] * (1 - found[path][2] ** 2) @ stacked.get("serial_0", stacked)["dense_0"]["kernel"][2].T
    np.testing.assert_allclose(gradients[path][1], before, rtol=1e-5)


def test_a_loop_from_the_end():
    def summed(x):
        def step(carry, row):
            with jax.named_scope("inner"):
                carry = jnp.sin(carry + row)
            return carry * 2, carry * 3

        return jax.lax.scan(step, jnp.zeros(x.shape[1]), x, reverse=True)[1]

    model = layers.serial(layers.named("back", layers.function(summed)), layers.relu)
    found = inspection.activations(model, {}, {}, X, "**/inner")
    carry, wanted = np.zeros(4), []
    for row in np.asarray(X)[::-1]:
        wanted.append(np.sin(carry + row))
        carry = wanted[-1] * 2
    np.testing.assert_allclose(found["back/inner"], wanted[::-1], rtol=1e-4)


def test_a_layer_that_is_called_twice():
    def body(x, *, dense):
        return dense(jnp.tanh(dense(x)))

    model = layers.network(body, dense=layers.dense(4))
    params, state = model.init(KEY, X)
    found = inspection.activations(model, params, state, X)
    assert list(found) == ["dense", "dense (2)"]
    np.testing.assert_allclose(found["dense"], X @ params["dense"]["kernel"], rtol=1e-5)  # the bias begins with 0
    np.testing.assert_allclose(found["dense (2)"], model.apply(params, state, X)[0], rtol=1e-6)


@pytest.mark.slow
def test_models():
    tokens = jnp.array([[1, 4, 2, 0], [3, 3, 1, 2]])
    model = models.transformer(5, 8, heads=2, blocks=2, length=4)
    params, state = model.init(KEY, tokens)
    found = inspection.activations(model, params, state, tokens, "**")
    np.testing.assert_allclose(list(found.arrays.values())[-1], model.apply(params, state, tokens)[0], rtol=1e-5)
    # The sum of squares has twice its argument for a gradient.
    last = list(found)[-1]
    gradients = inspection.gradients(model, params, state, tokens, last.partition(" (")[0], loss=lambda y: (y**2).sum())
    np.testing.assert_allclose(gradients[last], 2 * found[last], rtol=1e-5, atol=1e-6)


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_dead_units_and_saturated_ones():
    model = layers.serial(layers.function(lambda x: x), layers.relu, layers.named("squashed", layers.tanh))
    x = jnp.array([[1.0, -1.0, 9.0], [0.0, -2.0, 7.0]])
    found = inspection.activations(model, {}, {}, x)
    relu, squashed = found.statistics["relu_0"], found.statistics["squashed"]
    assert (relu.zeros, relu.dead, relu.saturated) == (0.5, 1 / 3, None)
    assert (relu.smallest, relu.largest, relu.nonfinite, relu.size) == (0.0, 9.0, 0, 6)
    assert np.isclose(relu.mean, 17 / 6)
    assert squashed.saturated == 2 / 6
    gates = inspection.activations(layers.serial(layers.sigmoid, layers.relu), {}, {}, jnp.array([[-9.0, 0.0, 9.0]]))
    assert gates.statistics["sigmoid_0"].saturated == 2 / 3
    turned = layers.serial(layers.named("turned", layers.function(lambda x: x * 1j)), layers.function(jnp.abs))
    assert inspection.activations(turned, {}, {}, jnp.array([[-3.0, 4.0]])).statistics["turned"].mean == 3.5
    assert "33.3%" in str(found)
    counts, edges = found.histogram("relu_0", [0.0, 0.5, 2.0, 10.0])
    assert counts.tolist() == [3, 1, 2]
    assert edges.tolist() == [0.0, 0.5, 2.0, 10.0]


def test_what_is_not_finite_is_counted():
    model = layers.serial(layers.named("log", layers.function(jnp.log)), layers.relu)
    found = inspection.activations(model, {}, {}, jnp.array([[1.0, 0.0, -1.0]]))
    one = found.statistics["log"]
    assert one.nonfinite == 2
    assert (one.mean, one.smallest, one.largest) == (0.0, 0.0, 0.0)
    assert sum(found.histogram("log")[0]) == 1
    assert str(found).splitlines()[1].endswith("2")
    empty = inspection.activations(model, {}, {}, jnp.ones((0, 3)))
    assert np.isnan(empty.statistics["log"].mean)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: inspection.activations(MODEL, PARAMS, STATE, X, "deep/*"),
            ValueError,
            "activations: expected a pattern",
        ),
        (lambda: inspection.activations(MODEL, PARAMS, STATE, X)["dense"], LookupError, "one of the paths dense_0, "),
        (lambda: inspection.activations(3, PARAMS, STATE, X), TypeError, "activations: expected a layer"),
        (lambda: inspection.activations(MODEL, PARAMS, STATE, X[:, :2]), ValueError, "dense"),
        (
            lambda: inspection.gradients(MODEL, PARAMS, STATE, X, loss=3),
            TypeError,
            "gradients: expected loss as a func",
        ),
        (
            lambda: inspection.gradients(MODEL, PARAMS, STATE, X, loss=lambda y: y),
            ValueError,
            r"got float32\(6, 2\); take",
        ),
        (
            lambda: inspection.gradients(MODEL, PARAMS, STATE, X, "x", loss=jnp.sum),
            ValueError,
            "gradients: expected a pat",
        ),
    ],
)
def test_what_cannot_be_looked_at(call, error, message):
    with pytest.raises(error, match=message):
        call()
