"""Pooling against PyTorch, and what it says about wrong inputs and arguments."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import layers


@st.composite
def poolings(draw):
    """What PyTorch can pool too: a window no larger than the input, and padding of at most half of it on both sides."""
    rank = draw(st.integers(1, 3))
    window = draw(st.tuples(*[st.integers(1, 4)] * rank))
    strides = draw(st.none() | st.tuples(*[st.integers(1, 4)] * rank))
    padding = tuple(draw(st.integers(0, count // 2)) for count in window)
    sizes = tuple(draw(st.integers(count, 9)) for count in window)
    return (draw(st.integers(1, 2)), *sizes, draw(st.integers(1, 3))), window, strides, padding


@settings(max_examples=12)
@given(case=poolings(), ties=st.booleans())
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling_and_its_gradient_are_those_of_pytorch(torch, kind, case, ties):
    shape, window, strides, padding = case
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x = np.round(x) if ties else x
    layer = getattr(layers, f"{kind}_pool")(window, strides=strides, padding=padding)
    weigh = np.random.default_rng(1).normal(size=jax.eval_shape(lambda x: layer.apply({}, {}, x)[0], x).shape)
    weigh = weigh.astype(np.float32)

    @jax.jit
    def output_and_gradient(x):
        y, gradient_at = jax.vjp(lambda x: layer.apply({}, {}, x)[0], x)
        return y, *gradient_at(weigh)

    y, gradient = output_and_gradient(x)
    pool = getattr(torch.nn.functional, f"{kind}_pool{len(window)}d")
    options = {"count_include_pad": False} if kind == "avg" else {}
    leaf = torch.tensor(x, requires_grad=True)
    expected = torch.movedim(pool(torch.movedim(leaf, -1, 1), window, strides, padding, **options), 1, -1)
    (expected * torch.tensor(weigh)).sum().backward()
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 7, 3), (2, 6, 7, 3), (1, 5, 4, 3, 3)])
def test_global_pooling_is_that_of_pytorch(torch, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    axes = tuple(range(1, len(shape) - 1))
    for layer, form in ((layers.global_avg_pool, torch.mean), (layers.global_max_pool, torch.amax)):
        ours = layer.apply({}, {}, x)[0]
        assert ours.shape == (shape[0], shape[-1])
        np.testing.assert_allclose(ours, form(torch.tensor(x), axes).numpy(), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: layers.global_avg_pool.apply({}, {}, x)[0].sum())(x)
    np.testing.assert_allclose(gradient, 1 / np.prod(shape[1:-1]), rtol=1e-6)


def test_equal_elements_share_the_gradient_of_global_max_pool():
    x = jnp.asarray([1.0, 3.0, 3.0, 2.0]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: layers.global_max_pool.apply({}, {}, x)[0].sum())(x)
    assert gradient.ravel().tolist() == [0.0, 0.5, 0.5, 0.0]


def test_same_covers_every_element_and_counts_no_padding():
    x = jnp.arange(1.0, 6.0).reshape(1, 5, 1)
    assert layers.max_pool(2, padding="SAME").apply({}, {}, -x)[0].ravel().tolist() == [-1.0, -3.0, -5.0]
    assert layers.avg_pool(2, padding="SAME").apply({}, {}, x)[0].ravel().tolist() == [1.5, 3.5, 5.0]
    assert layers.avg_pool(3, strides=1, padding="SAME").apply({}, {}, x)[0].ravel().tolist() == [
        1.5,
        2.0,
        3.0,
        4.0,
        4.5,
    ]
    # Where the padding is odd the larger half comes after, as in TensorFlow.
    assert layers.max_pool(2, strides=1, padding="SAME").apply({}, {}, x)[0].ravel().tolist() == [
        2.0,
        3.0,
        4.0,
        5.0,
        5.0,
    ]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool"])
@pytest.mark.parametrize("strides", [2, 1])
def test_the_largest_of_whole_numbers_and_of_booleans_keeps_their_dtype(dtype, strides):
    x = np.random.default_rng(0).integers(-128, 0, (2, 5, 3)).astype(dtype)
    y = layers.max_pool(2, strides=strides, padding=1).apply({}, {}, x)[0]
    low = False if dtype == "bool" else np.iinfo(dtype).min
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)), constant_values=low)
    expected = np.maximum(padded[:, :-1], padded[:, 1:])[:, ::strides]
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)


def test_pooling_and_side_inputs():
    x = {"x": jnp.ones((2, 4, 4, 3)), "lengths": jnp.asarray([4, 2])}
    for layer in (layers.max_pool(2), layers.avg_pool(2), layers.global_avg_pool, layers.global_max_pool):
        y, state = layer.apply({}, {}, x)
        assert y["lengths"] is x["lengths"]
        assert y["x"].shape[0] == 2
        assert state == {}


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
@pytest.mark.parametrize(
    ("window", "options", "error", "message"),
    [
        (0, {}, ValueError, "expected window of at least 1, got 0; choose 1 or more"),
        (2.0, {}, TypeError, "expected window as a whole number, got float 2.0"),
        (2, {"strides": 0}, ValueError, "expected strides of at least 1, got 0"),
        (2, {"strides": (1, 0)}, ValueError, "expected strides of at least 1, got 0"),
        ((2, 2), {"strides": (2,)}, ValueError, "expected strides for 2 spatial axes, got 1 in (2,); give strides one"),
        (2, {"padding": "valid"}, ValueError, "expected padding to be one of ['SAME', 'VALID'], got 'valid'"),
        (2, {"padding": -1}, ValueError, "expected padding of at least 0, got -1"),
    ],
)
def test_arguments_are_checked_at_once(kind, window, options, error, message):
    with pytest.raises(error, match="^" + re.escape(f"{kind}: {message}")):
        getattr(layers, kind)(window, **options)


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
@pytest.mark.parametrize(
    ("window", "options", "shape", "message"),
    [
        (
            8,
            {},
            (2, 9, 7, 3),
            "expected a window no larger than the input, (9, 7) in its spatial axes with padding, got a window that "
            'covers (8, 8); take a smaller window, less dilation or fewer poolings before, or padding="SAME"',
        ),
        (
            2,
            {},
            (28, 28),
            "expected at least 3 axes, (batch, *spatial, features), got shape (28, 28); if the axis of features",
        ),
        (
            (2, 2),
            {},
            (5, 28, 28),
            "expected (batch, *spatial, features) with 2 spatial axes, got shape (5, 28, 28); if the axis of features "
            "is missing, add it: x[..., None]; if that of the batch is, x[None]",
        ),
        (2, {"strides": (1, 2)}, (2, 9, 3), "expected strides for 1 spatial axes, got 2 in (1, 2); give strides"),
        (2, {"padding": (1, 1)}, (2, 9, 3), "expected padding for 1 spatial axes, got 2 in (1, 1); give a number"),
        (
            (2, 3),
            {"padding": 2},
            (2, 9, 9, 3),
            "expected padding less than the window, (2, 3), got ((2, 2), (2, 2)); or some",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_init_and_apply(kind, window, options, shape, message):
    layer = getattr(layers, kind)(window, **options)
    for call in (lambda x: layer.init(jax.random.key(0), x), lambda x: layer.apply({}, {}, x)):
        with pytest.raises(ValueError, match="^" + re.escape(f"{kind}: {message}")):
            call(jnp.ones(shape))


@pytest.mark.parametrize("kind", ["global_avg_pool", "global_max_pool"])
def test_global_pooling_needs_something_to_pool(kind):
    layer = getattr(layers, kind)
    with pytest.raises(ValueError, match=rf"^{kind}: expected at least 3 axes, .*, got shape \(2, 3\)"):
        layer.apply({}, {}, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=rf"^{kind}: expected spatial axes that are not empty, got shape \(2, 0, 3\)"):
        layer.apply({}, {}, jnp.ones((2, 0, 3)))


@pytest.mark.parametrize("layer", [layers.avg_pool(2), layers.global_avg_pool])
def test_the_mean_of_whole_numbers_is_refused(layer):
    with pytest.raises(
        TypeError, match=rf"^{layer.kind}: expected a floating input, got uint8\(2, 4, 4, 3\); convert it"
    ):
        layer.apply({}, {}, np.zeros((2, 4, 4, 3), np.uint8))


def test_a_global_pooling_is_not_called():
    with pytest.raises(TypeError, match="global_avg_pool: a layer is a value and is not called"):
        layers.global_avg_pool()
