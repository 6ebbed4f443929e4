"""Dense layers and embeddings, against PyTorch and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import layers

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (2, 1, 3, 6), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_and_its_gradients_are_those_of_pytorch(torch, shape, bias):
    x = RNG.normal(size=shape).astype(np.float32)
    layer = layers.dense(3, bias=bias, bias_init=jax.nn.initializers.normal(1.0))
    params, state = layer.init(jax.random.key(0), x)
    twin = torch.nn.Linear(6, 3, bias=bias)
    with torch.no_grad():
        twin.weight.copy_(torch.tensor(np.array(params["kernel"]).T))
        if bias:
            twin.bias.copy_(torch.tensor(np.array(params["bias"])))
    given = torch.tensor(x, requires_grad=True)
    expected = twin(given)
    torch.sin(expected).sum().backward()
    np.testing.assert_allclose(layer.apply(params, state, x)[0], expected.detach().numpy(), rtol=1e-5, atol=1e-6)

    def total(params, x):
        return jnp.sin(layer.apply(params, state, x)[0]).sum()

    gradient, x_gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(params, x)
    np.testing.assert_allclose(x_gradient, given.grad.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient["kernel"], twin.weight.grad.numpy().T, rtol=1e-5, atol=1e-5)
    if bias:
        np.testing.assert_allclose(gradient["bias"], twin.bias.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_the_kernel_of_dense_is_glorot_uniform_and_its_bias_zero():
    params, _ = layers.dense(300).init(jax.random.key(0), jax.ShapeDtypeStruct((1, 500), jnp.float32))
    bound = np.sqrt(6 / 800)
    assert 0.999 * bound < np.abs(params["kernel"]).max() <= bound
    np.testing.assert_allclose(np.var(params["kernel"]), bound**2 / 3, rtol=0.01)
    assert not params["bias"].any()


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (0, ValueError, "dense: expected features of at least 1, got 0"),
        (
            2.0,
            TypeError,
            r"dense: expected features as a whole number, got float 2\.0; pass an int$",
        ),
        (True, TypeError, "dense: expected features as a whole number, got bool True"),
    ],
)
def test_the_number_of_features_is_checked_at_once(features, error, message):
    with pytest.raises(error, match=message):
        layers.dense(features)


def test_a_scalar_is_refused():
    with pytest.raises(
        ValueError, match=r"dense: expected at least 1 axes, \(batch, \.\.\., features\), got shape \(\); pass"
    ):
        layers.dense(2).init(jax.random.key(0), jnp.ones(()))


# ---- embedding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint8, np.int64])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 2), (0, 3)])
def test_embedding_and_its_gradient_are_those_of_pytorch(torch, shape, dtype):
    tokens = RNG.integers(0, 7, shape).astype(dtype)
    layer = layers.embedding(7, 3)
    params, state = layer.init(jax.random.key(0), tokens)
    twin = torch.nn.Embedding(7, 3, _weight=torch.tensor(np.array(params["embedding"])))
    expected = twin(torch.tensor(tokens.astype(np.int64)))
    torch.sin(expected).sum().backward()
    np.testing.assert_array_equal(layer.apply(params, state, tokens)[0], expected.detach().numpy())
    gradient = jax.jit(jax.grad(lambda p: jnp.sin(layer.apply(p, state, tokens)[0]).sum()))(params)
    np.testing.assert_allclose(gradient["embedding"], twin.weight.grad.numpy(), rtol=1e-6, atol=1e-6)


def test_embedding_starts_with_variance_one():
    params, _ = layers.embedding(200, 100).init(jax.random.key(0), jax.ShapeDtypeStruct((1,), jnp.int32))
    np.testing.assert_allclose([np.mean(params["embedding"]), np.std(params["embedding"])], [0, 1], atol=0.02)


@pytest.mark.parametrize(("worst", "got"), [(5, "0 to 5"), (-1, "-1 to 3"), (127, "0 to 127")])
def test_embedding_raises_where_it_sees_a_number_out_of_range(worst, got):
    layer = layers.embedding(5, 2)
    params, state = layer.init(jax.random.key(0), jnp.array([0]))
    tokens = jnp.array([[0, 3, worst]], jnp.int8)
    with pytest.raises(
        ValueError, match=rf"embedding: expected whole numbers from 0 to 4, got {got} in an input of shape \(1, 3\)"
    ):
        layer.apply(params, state, tokens)


@pytest.mark.parametrize("worst", [5, -1, -5, 127, -128])
def test_embedding_gives_nan_where_it_cannot_raise(worst):
    layer = layers.embedding(5, 2)
    params, state = layer.init(jax.random.key(0), jnp.array([0]))
    tokens = jnp.array([1, worst], jnp.int8)
    for apply in (jax.jit(layer.apply), jax.vmap(layer.apply, in_axes=(None, None, 0))):
        y, _ = apply(params, state, tokens)
        np.testing.assert_array_equal(y[0], params["embedding"][1])
        assert np.isnan(y[1]).all()


def test_embedding_of_more_symbols_than_the_dtype_counts():
    layer = layers.embedding(1000, 2)
    params, state = layer.init(jax.random.key(0), jnp.array([0]))
    tokens = jnp.array([0, 255], jnp.uint8)
    np.testing.assert_array_equal(
        jax.jit(layer.apply)(params, state, tokens)[0], params["embedding"][tokens.astype(int)]
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool_])
def test_embedding_refuses_what_is_not_whole(dtype):
    layer = layers.embedding(5, 2)
    message = rf"embedding: expected whole numbers, got {jnp.dtype(dtype)}\(3,\); convert them: x\.astype\(jnp\.int32\)"
    with pytest.raises(TypeError, match=message):
        layer.init(jax.random.key(0), jnp.ones(3, dtype))
    with pytest.raises(TypeError, match=message):
        layer.apply({"embedding": jnp.ones((5, 2))}, {}, jnp.ones(3, dtype))


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0)])
def test_embedding_checks_its_sizes(sizes):
    with pytest.raises(ValueError, match=r"embedding: expected (count|features) of at least 1, got 0"):
        layers.embedding(*sizes)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    features=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    bias=st.booleans(),
    draw=st.data(),
)
def test_dense_over_any_axes_is_the_tensor_product(sizes, features, bias, draw):
    rank = len(sizes)
    axes = draw.draw(st.lists(st.integers(1, rank - 1), min_size=1, max_size=rank - 1, unique=True))
    axes = [a - rank if draw.draw(st.booleans()) else a for a in axes]
    rng = np.random.default_rng(sum(sizes))
    x = rng.normal(size=sizes).astype(np.float32)
    layer = layers.dense(tuple(features), axis=tuple(axes), bias=bias)
    params, _ = layer.init(jax.random.key(0), x)
    params = jax.tree.map(lambda a: a + rng.normal(size=a.shape).astype(np.float32), params)
    y, _ = layer.apply(params, {}, x)
    summed = sorted(a % rank for a in axes)
    expected = np.tensordot(x, np.asarray(params["kernel"]), axes=(summed, range(len(summed))))
    expected = expected + np.asarray(params["bias"]) if bias else expected
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
