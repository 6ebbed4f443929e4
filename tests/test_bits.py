"""Random bits along one axis: the numbers of JAX, whatever is drawn, and fewer lines for the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

from funcnn import bits, layers, models

DRAWS = {
    "glorot_uniform": initializers.glorot_uniform(),
    "he_normal": initializers.he_normal(),
    "truncated": initializers.truncated_normal(),
    "orthogonal": initializers.orthogonal(),
    "integers": lambda key, shape: jax.random.randint(key, shape, 0, 1000),
    "bernoulli": lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
    "half": lambda key, shape: jax.random.normal(key, shape, jnp.bfloat16),
    "halves of a key": lambda key, shape: jax.random.uniform(jax.random.split(key)[1], shape),
    "folded": lambda key, shape: jax.random.normal(jax.random.fold_in(key, 7), shape),
}


@pytest.mark.parametrize("shape", [(64, 10), (3, 1), (1, 1), (3, 3, 1, 32), (5, 0), (7, 130), (1025, 1024)])
@pytest.mark.parametrize("name", DRAWS)
def test_the_numbers_are_those_of_the_key(name, shape):
    if (name == "orthogonal" and shape[0] > 1000) or (0 in shape and name not in ("integers", "bernoulli", "half")):
        shape = (6, 4)  # what takes long, or has no scale for no inputs
    key = jax.random.key(3)
    np.testing.assert_array_equal(DRAWS[name](bits.flat(key), shape), DRAWS[name](key, shape))


def test_with_64_bits_and_side_by_side():
    keys = jax.random.split(jax.random.key(5), 4)

    def drawn(key):
        return jax.random.normal(key, (6, 3))

    found = jax.vmap(lambda key: drawn(bits.flat(key)))(keys)
    np.testing.assert_array_equal(found, jax.vmap(drawn)(keys))
    np.testing.assert_array_equal(jax.lax.map(lambda key: drawn(bits.flat(key)), keys), found)
    with jax.enable_x64(True):
        expected = jax.random.uniform(keys[0], (6, 3), jnp.float64)
        np.testing.assert_array_equal(jax.random.uniform(bits.flat(keys[0]), (6, 3), jnp.float64), expected)


@pytest.mark.parametrize("name", ["rbg", "unsafe_rbg"])
def test_other_generators_stay(name):
    key = jax.random.key(0, impl=name)
    assert bits.flat(key) is key
    params, _ = layers.dense(3).init(key, jnp.ones((1, 2)))
    assert params["kernel"].shape == (2, 3)


def test_initializers_of_a_user_get_the_key_itself():
    def init(key, shape, dtype):
        chosen = jnp.where(jnp.array(True), key, jax.random.key(9))
        return jax.random.poisson(chosen, 2.0, shape).astype(dtype)

    layer = layers.dense(3, kernel_init=init)
    params, _ = layer.init(jax.random.key(1), jnp.ones((2, 5)))
    kernel_key, _ = jax.random.split(jax.random.key(1))
    np.testing.assert_array_equal(params["kernel"], jax.random.poisson(kernel_key, 2.0, (5, 3)))


def test_large_arrays_keep_their_axes():
    text = jax.jit(lambda key: jax.random.bits(bits.flat(key), (1025, 1024))).lower(jax.random.key(0)).as_text()
    assert "tensor<1025x1024xui32>" in text
    assert "tensor<1049600xui32>" not in text


def test_layers_draw_along_one_axis():
    def lowered(layer, x):
        return jax.jit(layer.init).lower(jax.random.key(0), x).as_text()

    text = lowered(layers.dense(10), jnp.ones((1, 64)))
    assert "tensor<640xui32>" in text
    assert "iota dim = 1 : tensor<64x10xui64>" not in text
    assert "tensor<64xui32>" in lowered(layers.attention(2), jnp.ones((1, 3, 8)))


def test_no_key_of_that_kind_is_left_behind():
    model = models.mlp([4], 2)
    seen = []

    def own(key, shape, dtype):
        seen.append(key.dtype)
        return jax.random.normal(key, shape, dtype)

    layers.dense(2, kernel_init=own).init(jax.random.key(0), jnp.ones((1, 3)))
    assert jnp.issubdtype(seen[0], jax.dtypes.prng_key)
    state = model.init(jax.random.key(0), jnp.ones((1, 3)))
    assert all(not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state))
