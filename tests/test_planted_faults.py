"""Ten ways in which numbers go bad, each planted in a network, and each found at its layer and operation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, training
from funcnn.inspection import first_nonfinite

KEY = jax.random.key(0)
X = jnp.abs(jax.random.normal(jax.random.key(1), (4, 3))) + 0.1
Y = jnp.array([0, 1, 1, 0])


def network(name, function):
    """A function between two layers, under a name."""
    return layers.serial(layers.relu, layers.named(name, layers.function(function)), layers.dense(2))


def loss_of(model, x, dtype=jnp.float32):
    params, state = model.init(KEY, jnp.zeros(x.shape, dtype))

    def loss(params, x):
        return losses.softmax_cross_entropy(model.apply(params, state, x)[0], Y).mean()

    return loss, params


def root(x):
    return jnp.sqrt(jnp.abs(x))


def hidden_root(x):
    """Finite on the way forward: what is 0 is left out, but only after its root was taken."""
    return jnp.where(x != 0.0, jnp.sqrt(jnp.abs(x)), 0.0)


def unit(x):
    return x / jnp.sqrt((x**2).sum(axis=-1, keepdims=True))


def mean_of_positive(x):
    mask = x > 1e3
    return (x * mask).sum(axis=0, keepdims=True) / mask.sum(axis=0, keepdims=True) + 0 * x


# name of the layer, what it does, what goes in, and the operation that makes the first bad number, NaN or infinity
FORWARD = {
    "log of zero": ("entropy", lambda x: -x * jnp.log(x), X.at[1, 2].set(0.0), "log", "infinity"),
    "overflow in exp": ("scale", jnp.exp, X.at[0, 0].set(100.0), "exp", "infinity"),
    "zero by zero in a norm": ("unit", unit, X.at[2].set(0.0), "div", "NaN"),
    "the count of an empty mask": ("pool", mean_of_positive, X, "div", "NaN"),
    "infinite logits": ("logits", lambda x: x / (x - x[:1]).max(), X.at[1:].set(X[0]), "div", "infinity"),
}


@pytest.mark.parametrize("fault", FORWARD)
def test_on_the_way_forward(fault):
    name, function, x, operation, kind = FORWARD[fault]
    loss, params = loss_of(network(name, function), x)
    assert not np.isfinite(loss(params, x))
    for f in (loss, jax.grad(loss), jax.jit(loss)):
        found = first_nonfinite(f, params, x)
        assert (found.operation, found.path, found.kind, found.is_backward) == (operation, name, kind, False)
        assert "test_planted_faults.py" in found.source or operation == "exp"


@pytest.mark.parametrize("function", [root, hidden_root], ids=["the slope of a root at zero", "only on the way back"])
def test_on_the_way_back(function):
    x = X.at[3].set(0.0)
    model = layers.serial(layers.dense(3, bias=False), layers.named("root", layers.function(function)), layers.dense(2))
    loss, params = loss_of(model, x)
    assert np.isfinite(loss(params, x))
    assert first_nonfinite(loss, params, x) is None
    found = first_nonfinite(jax.grad(loss), params, x)
    assert (found.path, found.is_backward) == ("root", True)
    assert "backward pass of root" in str(found)


def test_half_precision_that_is_too_large():
    model = layers.mixed_precision(layers.serial(layers.dense(3), layers.relu, layers.dense(2)), compute=jnp.float16)
    loss, params = loss_of(model, X)
    params["dense_0"]["kernel"] = jnp.full((3, 3), 2.0)
    found = first_nonfinite(loss, params, jnp.full((4, 3), 2e4))
    assert found.kind == "infinity"
    assert (found.operation, found.path) == ("dot_general", "dense_0")
    assert {operand.dtype for operand in found.inputs} == {"float16"}


def test_one_row_of_the_data():
    trainer = training.supervised(layers.dense(2), losses.softmax_cross_entropy, optax.sgd(0.1))
    state = trainer.init(KEY, (X, Y))
    found = first_nonfinite(trainer.step, state, (X.at[2].set(jnp.nan), Y))
    assert (found.operation, found.path, found.count, found.size) == ("argument", "batch/0", 3, 12)


def test_a_learning_rate_that_explodes():
    model = layers.serial(layers.dense(4), layers.named("head", layers.dense(1)))
    trainer = training.supervised(model, losses.squared_error, optax.sgd(1e30))
    with pytest.raises(training.NonFiniteError, match=r"first by dot_general in head ") as caught:
        training.fit(trainer, (X, X[:, :1]), key=KEY, epochs=20, batch_size=2, progress=False)
    assert "lower the learning rate" in str(caught.value)
