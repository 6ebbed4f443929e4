"""Padding, cropping and resizing against NumPy and PyTorch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quickly_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import layers

KEY = jax.random.key(0)


@quickly_compiled()
def computed(layer, x):
    """The output, and the gradient of its sine."""
    return jax.jit(jax.grad(lambda x: (lambda y: (jnp.sin(y).sum(), y))(layer.apply({}, {}, x)[0]), has_aux=True))(x)[
        ::-1
    ]


def through_matrix(form, x):
    """The gradient of ``sin(form(x)).sum()`` for a linear ``form`` of NumPy, from its columns."""
    columns = np.stack([form(e.reshape(x.shape)).ravel() for e in np.eye(x.size)], -1)
    return (np.cos(form(np.float64(x)).ravel()) @ columns).reshape(x.shape)


# ---- pad and crop ----------------------------------------------------------------------------------------------------


@st.composite
def borders(draw):
    rank = draw(st.integers(1, 3))
    sizes = draw(st.tuples(*[st.integers(1, 4)] * rank))
    pairs = draw(st.tuples(*[st.tuples(*[st.integers(0, 5)] * 2)] * rank))
    return (draw(st.integers(1, 2)), *sizes, draw(st.integers(1, 2))), pairs


def agrees_with_numpy(shape, pairs, mode):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y, gradient = computed(layers.pad(pairs, mode=mode), x)

    def form(a):
        return np.pad(a, ((0, 0), *pairs, (0, 0)), mode)

    np.testing.assert_array_equal(y, form(x))
    np.testing.assert_allclose(gradient, through_matrix(form, x), rtol=1e-5, atol=1e-5)
    back, _ = layers.crop(pairs).apply({}, {}, y)
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
def test_pad_is_that_of_numpy_and_crop_undoes_it(mode):
    agrees_with_numpy((2, 3, 4, 2), ((1, 0), (2, 3)), mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
@settings(max_examples=15)
@given(case=borders())
def test_pad_is_that_of_numpy_for_all_borders(mode, case):
    agrees_with_numpy(*case, mode)


@pytest.mark.parametrize(
    ("mode", "name"), [("constant", "constant"), ("edge", "replicate"), ("reflect", "reflect"), ("wrap", "circular")]
)
def test_pad_is_that_of_pytorch(torch, mode, name):
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.pad(torch.movedim(leaf, -1, 1), (2, 0, 1, 3), name).movedim(1, -1)
    torch.sin(expected).sum().backward()
    y, gradient = computed(layers.pad(((1, 3), (2, 0)), mode=mode), x)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [-3.0, np.inf])
def test_the_value_of_pad_may_be_traced(value):
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(np.float32)
    expected = np.pad(x, ((0, 0), (1, 0), (2, 2), (0, 0)), constant_values=value)
    for form in (jax.jit, lambda f: f):
        y = form(lambda v: layers.pad(((1, 0), 2), value=v).apply({}, {}, x)[0])(value)
        np.testing.assert_array_equal(y, expected)
    slope = jax.grad(lambda v: layers.pad(((1, 0), 2), value=v).apply({}, {}, x)[0].sum())(0.0)
    assert slope == expected.size - x.size


def test_a_number_a_pair_and_numbers_among_pairs():
    x = jnp.ones((2, 5, 6, 3))
    for padding, shape in ((1, (7, 8)), ((1, (2, 0)), (7, 8)), (((0, 1), (1, 2)), (6, 9))):
        assert layers.pad(padding).apply({}, {}, x)[0].shape == (2, *shape, 3)
    for cropping, shape in ((1, (3, 4)), ((1, (2, 0)), (3, 4)), (((0, 1), (1, 2)), (4, 3))):
        assert layers.crop(cropping).apply({}, {}, x)[0].shape == (2, *shape, 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layers.pad(-1), ValueError, "pad: expected padding of at least 0, got -1"),
        (lambda: layers.crop(1.0), TypeError, "crop: expected cropping as a whole number, got float 1.0"),
        (
            lambda: layers.pad(((1, 2, 3),)),
            ValueError,
            "pad: expected padding in pairs (before, after), got (1, 2, 3) in ((1, 2, 3),)",
        ),
        (lambda: layers.pad(1, mode="circular"), ValueError, "pad: expected mode to be one of ['constant', 'edge', "),
        (
            lambda: layers.pad(1, mode="edge", value=3.0),
            ValueError,
            'pad: expected no value with mode="edge", got 3.0; leave it out, or mode="constant"',
        ),
        (lambda: layers.resize(0), ValueError, "resize: expected shape of at least 1, got 0"),
        (lambda: layers.resize(3, method="bilinear"), ValueError, "resize: expected method to be one of ['nearest', "),
        (lambda: layers.upsample(0.5), TypeError, "upsample: expected factor as a whole number, got float 0.5"),
        (lambda: layers.upsample(2, method="lanczos"), ValueError, "upsample: expected method to be one of"),
    ],
)
def test_arguments_are_checked_at_once(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (layers.pad((1, 1)), (2, 9, 3), "pad: expected (batch, *spatial, features) with 2 spatial axes, got shape"),
        (layers.pad(1), (9, 3), "pad: expected at least 3 axes, (batch, *spatial, features), got shape (9, 3)"),
        (layers.pad(1, mode="wrap"), (2, 0, 3), "pad: expected spatial axes that are not empty, got shape (2, 0, 3)"),
        (
            layers.crop((2, 1)),
            (2, 4, 9, 3),
            "crop: expected less cropping than the sizes (4, 9), got ((2, 2), (1, 1)); leave out less",
        ),
        (layers.crop(1), (9, 3), "crop: expected at least 3 axes"),
        (layers.resize((2, 2)), (2, 9, 3), "resize: expected (batch, *spatial, features) with 2 spatial axes"),
        (layers.upsample(2), (2, 0, 3), "upsample: expected spatial axes that are not empty, got shape (2, 0, 3)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(layer, shape, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        layer.init(KEY, jnp.ones(shape))


# ---- resize and upsample ---------------------------------------------------------------------------------------------


def keys(d):
    d = np.abs(d)
    near, far = ((1.5 * d - 2.5) * d) * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0))


KERNELS = {
    "linear": lambda d: np.maximum(0, 1 - np.abs(d)),
    "cubic": keys,
    "lanczos3": lambda d: np.where(np.abs(d) < 3, np.sinc(d) * np.sinc(d / 3), 0),
    "lanczos5": lambda d: np.where(np.abs(d) < 5, np.sinc(d) * np.sinc(d / 5), 0),
}


def resized(x, shape, method, antialias=True):
    """By its definition: for each axis a matrix of weights, each row with the sum one."""
    for axis, m in enumerate(shape, 1):
        s = x.shape[axis]
        places = (np.arange(m) + 0.5) * s / m - 0.5
        if method == "nearest":
            x = np.take(x, np.floor((np.arange(m) + 0.5) * s / m).astype(int), axis)
            continue
        width = max(1.0, s / m) if antialias else 1.0
        weights = KERNELS[method]((np.arange(s) - places[:, None]) / width)
        weights /= weights.sum(1, keepdims=True)
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    return x


def agrees_with_its_definition(shape, new, method, antialias):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y, gradient = computed(layers.resize(new, method=method, antialias=antialias), x)

    def form(a):
        return resized(np.float64(a), new, method, antialias)

    np.testing.assert_allclose(y, form(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, through_matrix(form, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["nearest", "linear", "cubic", "lanczos3", "lanczos5"])
@pytest.mark.parametrize("antialias", [True, False])
def test_resize_is_what_it_says(method, antialias):
    agrees_with_its_definition((2, 5, 4, 2), (3, 7), method, antialias)


@pytest.mark.slow
@settings(max_examples=30)
@given(data=st.data(), rank=st.integers(1, 3), antialias=st.booleans())
@pytest.mark.parametrize("method", ["nearest", "linear", "cubic"])
def test_resize_is_what_it_says_for_all_sizes(method, data, rank, antialias):
    sizes, new = (data.draw(st.tuples(*[st.integers(1, 5)] * rank)) for _ in range(2))
    agrees_with_its_definition((data.draw(st.integers(1, 2)), *sizes, 2), new, method, antialias)


@pytest.mark.parametrize(
    ("method", "antialias", "mode"),
    [
        ("nearest", False, "nearest-exact"),
        ("linear", False, "bilinear"),
        ("linear", True, "bilinear"),
        ("cubic", True, "bicubic"),
    ],
)
@pytest.mark.parametrize("new", [(3, 11), (10, 2), (5, 8)])
def test_resize_is_that_of_pytorch(torch, method, antialias, mode, new):
    x = np.random.default_rng(0).normal(size=(2, 5, 8, 3)).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    options = {} if method == "nearest" else {"align_corners": False, "antialias": antialias}
    expected = torch.nn.functional.interpolate(torch.movedim(leaf, -1, 1), new, mode=mode, **options).movedim(1, -1)
    torch.sin(expected).sum().backward()
    y, gradient = computed(layers.resize(new, method=method, antialias=antialias), x)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("shape", "factor"), [((2, 3, 4, 2), (2, 3)), ((1, 5, 3), (4,)), ((1, 2, 1, 3, 2), (2, 3, 1))])
def test_upsample_repeats_each_element(shape, factor):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def form(a):
        for axis, times in enumerate(factor, 1):
            a = np.repeat(a, times, axis)
        return a

    y, gradient = computed(layers.upsample(factor), x)
    np.testing.assert_array_equal(y, form(x))
    np.testing.assert_allclose(gradient, through_matrix(form, x), rtol=1e-5, atol=1e-5)
    for method in ("linear", "cubic"):
        y, _ = layers.upsample(factor, method=method).apply({}, {}, x)
        new = [size * times for size, times in zip(shape[1:-1], factor, strict=True)]
        np.testing.assert_allclose(y, resized(np.float64(x), new, method), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_half_precision_is_interpolated_in_float32_and_rounded_once(method):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8, 3)), jnp.bfloat16)
    y, _ = layers.resize((7, 3), method=method).apply({}, {}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), resized(np.float64(x), (7, 3), method), rtol=2**-8, atol=1e-6)


def test_images_of_whole_numbers_are_resized_only_to_the_nearest():
    x = np.arange(24, dtype=np.uint8).reshape(1, 4, 6, 1)
    y, _ = layers.resize((3, 4), method="nearest").apply({}, {}, x)
    assert y.dtype == np.uint8
    np.testing.assert_array_equal(y, resized(x, (3, 4), "nearest"))
    for layer in (layers.resize(3), layers.upsample(2, method="linear")):
        with pytest.raises(TypeError, match=rf"^{layer.kind}: expected a floating input, got uint8\(1, 4, 6, 1\)"):
            layer.init(KEY, x)
