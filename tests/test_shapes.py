"""Flattening, reshaping, transposing and taking patches, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


# ---- transpose and patches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "order"),
    [((2, 1, 3), (0, 2, 1, 3)), ((-1, 1, 2), (0, 3, 1, 2)), ((3, -2, 1), (0, 3, 2, 1)), ((), (0, 3, 2, 1))],
)
def test_transpose_is_that_of_numpy_with_the_batch_in_its_place(axes, order):
    x = np.arange(120).reshape(2, 3, 4, 5)
    layer = layers.transpose(*axes)
    np.testing.assert_array_equal(layer.apply(*layer.init(KEY, x), x)[0], np.transpose(x, order))


def test_transpose_of_a_batch_of_numbers_is_the_batch():
    np.testing.assert_array_equal(layers.transpose().apply({}, {}, np.arange(3))[0], [0, 1, 2])


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ((0, 1, 2, 3), ValueError, r"transpose: expected axes other than the batch, 0, got \(0, 1, 2, 3\); it stays"),
        ((1, 2.0), TypeError, r"transpose: expected axes as a whole number, got float 2\.0"),
        (((2, 1, 3),), TypeError, r"transpose: expected axes as a whole number, got tuple \(2, 1, 3\)"),
    ],
)
def test_transpose_checks_its_axes_at_once(axes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        layers.transpose(*axes)


@pytest.mark.parametrize("axes", [(1, 2), (1, 2, 2), (1, 2, 4), (1, 2, -4), (1, 3, -1)])
def test_transpose_refuses_axes_that_the_input_has_not_or_once_more(axes):
    message = r"^transpose: expected the 3 axes after the batch of an input of shape \(2, 3, 4, 5\), in any order, got"
    for call in (layers.transpose(*axes).init, lambda _, x: layers.transpose(*axes).apply({}, {}, x)):
        with pytest.raises(ValueError, match=message):
            call(KEY, jnp.ones((2, 3, 4, 5)))


def taken(x, size, strides):
    """With NumPy's windows, whose axes come last, behind the features."""
    rank = len(size)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, range(1, rank + 1))
    windows = windows[(slice(None), *(slice(None, None, stride) for stride in strides))]
    return np.moveaxis(windows, rank + 1, -1).reshape(*windows.shape[: rank + 1], -1)


def agrees_with_numpy(shape, size, strides):
    x = np.arange(1.0, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    layer = layers.patches(size, strides=strides)
    y, back = jax.vjp(jax.jit(lambda x: layer.apply({}, {}, x)[0]), x)
    expected = taken(x, size, size if strides is None else strides)
    np.testing.assert_array_equal(y, expected)
    # The gradient of the sum of all patches counts how often each element is taken.
    places = taken(np.arange(x.size).reshape(shape), size, size if strides is None else strides)
    np.testing.assert_array_equal(back(jnp.ones_like(y))[0].ravel(), np.bincount(places.ravel(), minlength=x.size))


@pytest.mark.parametrize(
    ("shape", "size", "strides"),
    [
        ((2, 6, 7, 3), (2, 3), None),
        ((1, 5, 7, 2), (3, 2), (1, 3)),
        ((2, 9, 2), (4,), (2,)),
        ((1, 4, 5, 3, 2), (2, 2, 1), None),
    ],
)
def test_patches_are_the_windows_of_numpy(shape, size, strides):
    agrees_with_numpy(shape, size, strides)


@pytest.mark.slow
@settings(max_examples=25)
@given(data=st.data(), rank=st.integers(1, 3))
def test_patches_are_the_windows_of_numpy_for_all_arguments(data, rank):
    size = data.draw(st.tuples(*[st.integers(1, 3)] * rank))
    strides = data.draw(st.none() | st.tuples(*[st.integers(1, 4)] * rank))
    sizes = [data.draw(st.integers(width, 6)) for width in size]
    agrees_with_numpy((data.draw(st.integers(1, 2)), *sizes, data.draw(st.integers(1, 3))), size, strides)


@pytest.mark.slow
def test_a_dense_layer_over_patches_is_a_convolution():
    x = np.random.default_rng(0).normal(size=(2, 8, 9, 3)).astype(np.float32)
    conv = layers.conv(5, (2, 3), strides=(2, 3), padding="VALID")
    params, _ = conv.init(KEY, x)
    model = layers.serial(layers.patches((2, 3)), layers.dense(5))
    ours, _ = model.apply({"dense_0": {**params, "kernel": params["kernel"].reshape(-1, 5)}}, {}, x)
    np.testing.assert_allclose(ours, conv.apply(params, {}, x)[0], rtol=1e-5, atol=1e-6)


def test_patches_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"^patches: expected size of at least 1, got 0"):
        layers.patches(0)
    with pytest.raises(ValueError, match=r"^patches: expected strides for 2 spatial axes, got 1 in \(2,\)"):
        layers.patches((2, 2), strides=(2,))
    with pytest.raises(ValueError, match=r"^patches: expected a window no larger than the input, \(3, 9\) in its"):
        layers.patches(4).init(KEY, jnp.ones((2, 3, 9, 1)))
    with pytest.raises(ValueError, match=r"^patches: expected \(batch, \*spatial, features\) with 2 spatial axes, got"):
        layers.patches((4, 4)).init(KEY, jnp.ones((2, 9, 1)))
