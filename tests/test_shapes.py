"""Flattening and reshaping, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import layers

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("shape", "flat"), [((4, 2, 3, 5), (4, 30)), ((4, 6), (4, 6)), ((4,), (4, 1)), ((0, 2, 3), (0, 6))]
)
def test_flatten_keeps_the_batch_axis_and_the_order(shape, flat):
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    np.testing.assert_array_equal(layers.flatten.apply({}, {}, x)[0], x.reshape(flat))


@pytest.mark.parametrize(
    ("given", "sizes", "expected"),
    [
        ((4, 12), (3, 4), (4, 3, 4)),
        ((4, 12), (3, -1), (4, 3, 4)),
        ((4, 12), (-1,), (4, 12)),
        ((4, 2, 6), (-1, 3), (4, 4, 3)),
        ((4, 12), (np.int64(2), np.int64(-1), 3), (4, 2, 2, 3)),
        ((4, 1), (), (4,)),
        ((0, 12), (3, -1), (0, 3, 4)),
    ],
)
def test_reshape_keeps_the_batch_axis_and_the_order(given, sizes, expected):
    x = np.arange(np.prod(given, dtype=int)).reshape(given)
    y, _ = layers.reshape(*sizes).apply(*layers.reshape(*sizes).init(KEY, x), x)
    np.testing.assert_array_equal(y, x.reshape(expected))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            (5, 2),
            r"reshape: expected 10 entries in each example, as \(5, 2\) has, got 12 in \(12,\); make the sizes match",
        ),
        ((5, -1), r"reshape: expected a multiple of 5 entries in each example, as \(5, -1\) has, got 12 in \(12,\)"),
        ((4, 12), r"reshape: expected 48 entries in each example.*, the batch axis not counted"),
    ],
)
def test_reshape_refuses_other_sizes_in_init_and_in_apply(sizes, message):
    layer = layers.reshape(*sizes)
    with pytest.raises(ValueError, match=message):
        layer.init(KEY, jnp.ones((4, 12)))
    with pytest.raises(ValueError, match=message):
        jax.jit(layer.apply)({}, {}, jnp.ones((4, 12)))


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ((-1, -1), ValueError, r"reshape: expected at most one -1, got \(-1, -1\); give the other sizes"),
        ((0, 3), ValueError, "reshape: expected shape of at least 1, got 0"),
        ((-2,), ValueError, "reshape: expected shape of at least 1, got -2"),
        ((2.0,), TypeError, r"reshape: expected shape as a whole number, got float 2\.0"),
        (((28, 28),), TypeError, r"reshape: expected shape as a whole number, got tuple \(28, 28\)"),
    ],
)
def test_reshape_checks_its_sizes_at_once(sizes, error, message):
    with pytest.raises(error, match=message):
        layers.reshape(*sizes)


@pytest.mark.parametrize("layer", [layers.flatten, layers.reshape(1)], ids=lambda layer: layer.kind)
def test_an_input_without_a_batch_axis_is_refused(layer):
    with pytest.raises(
        ValueError, match=rf"{layer.kind}: expected at least 1 axes, \(batch, \.\.\.\), got shape \(\); add a batch"
    ):
        layer.init(KEY, jnp.ones(()))
