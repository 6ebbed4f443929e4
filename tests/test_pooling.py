"""Pooling against PyTorch, and what it says about wrong inputs and arguments."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quickly_compiled
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

    with quickly_compiled():
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


def test_an_average_of_many_takes_few_slices():
    """A moving average over a year: not one of each day."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 800, 1)), jnp.float32)
    mean = layers.avg_pool(365, strides=1, padding="VALID")
    y = mean.apply({}, {}, x)[0]
    exact = np.lib.stride_tricks.sliding_window_view(np.asarray(x, np.float64), 365, axis=1).mean(-1)
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-7)
    assert len(jax.make_jaxpr(lambda x: mean.apply({}, {}, x)[0])(x).eqns) < 60


def test_complex_numbers_have_no_largest_one():
    with pytest.raises(TypeError, match="max_pool: expected numbers with an order, got complex64; pool the real and"):
        layers.max_pool(2).apply({}, {}, jnp.ones((1, 4, 4, 1), jnp.complex64))


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


# ---- norms -----------------------------------------------------------------------------------------------------------


@quickly_compiled()
def agrees_with_the_norm_of_pytorch(torch, case, p):
    """PyTorch takes the power of the elements themselves, so it is given their sizes; its layer knows no padding."""
    shape, window, strides, padding = case
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layer = layers.lp_pool(window, p=p, strides=strides, padding=padding)

    @jax.jit
    def output_and_gradient(x):
        return jax.grad(lambda x: (lambda y: (jnp.sin(y).sum(), y))(layer.apply({}, {}, x)[0]), has_aux=True)(x)[::-1]

    y, gradient = output_and_gradient(x)
    leaf = torch.tensor(x, requires_grad=True)
    padded = torch.nn.functional.pad(torch.movedim(leaf, -1, 1), [n for n in reversed(padding) for _ in range(2)])
    pool = getattr(torch.nn.functional, f"avg_pool{len(window)}d")
    expected = torch.movedim((pool(padded.abs() ** p, window, strides) * np.prod(window)) ** (1 / p), 1, -1)
    torch.sin(expected).sum().backward()
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_lp_pool_and_its_gradient_are_those_of_pytorch(torch, p):
    agrees_with_the_norm_of_pytorch(torch, ((2, 5, 6, 3), (2, 3), (2, 1), (1, 1)), p)


@pytest.mark.slow
@settings(max_examples=20)
@given(case=poolings(), p=st.sampled_from([1, 1.5, 2, 3, 4]))
def test_lp_pool_is_that_of_pytorch_for_all_arguments(torch, case, p):
    agrees_with_the_norm_of_pytorch(torch, case, p)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 6, 7, 3)])
def test_lp_pool_of_positive_elements_is_the_layer_of_pytorch(torch, shape):
    x = np.random.default_rng(0).uniform(0.1, 2, shape).astype(np.float32)
    form = getattr(torch.nn.functional, f"lp_pool{len(shape) - 2}d")
    expected = torch.movedim(form(torch.movedim(torch.tensor(x), -1, 1), 3.0, 3, 2), 1, -1).numpy()
    np.testing.assert_allclose(layers.lp_pool(3, p=3, strides=2).apply({}, {}, x)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 8])
@pytest.mark.parametrize("shape", [(2, 7, 3), (2, 3, 4, 3), (1, 2, 3, 2, 3)])
def test_global_lp_pool_is_the_norm_of_numpy(p, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.linalg.norm(x.reshape(shape[0], -1, shape[-1]).astype(np.float64), p, 1)
    np.testing.assert_allclose(layers.global_lp_pool(p).apply({}, {}, x)[0], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_derivatives_of_a_norm_are_finite_at_zero_and_zero_where_all_is(p):
    x = jnp.asarray([0.0, 0.0, 0.0, 3.0, -4.0, 0.0]).reshape(1, 6, 1)

    def total(x, p):
        return layers.lp_pool(2, p=p).apply({}, {}, x)[0].sum()

    for slope in (jax.grad(lambda x: total(x, p)), jax.jit(lambda x: jax.grad(total)(x, p))):
        np.testing.assert_allclose(slope(x).ravel(), [0, 0, 0, 1, -1, 0], atol=1e-6)
    assert np.isfinite(jax.grad(total, 1)(x, p))
    assert np.isfinite(jax.jvp(jax.grad(lambda x: total(x, p)), (x,), (jnp.ones_like(x),))[1]).all()


@pytest.mark.slow
def test_the_curvature_of_the_euclidean_norm_is_right_beside_zero():
    x = jnp.asarray([0.0, 3.0, 4.0]).reshape(1, 3, 1)
    hessian = jax.hessian(lambda x: layers.global_lp_pool(2).apply({}, {}, x)[0].sum())(x).reshape(3, 3)
    a = np.asarray(x).ravel()
    np.testing.assert_allclose(hessian, np.eye(3) / 5 - np.outer(a, a) / 125, atol=1e-6)


def test_a_norm_does_not_hide_what_is_not_a_number():
    x = jnp.asarray([1.0, jnp.nan, 1.0, 2.0]).reshape(1, 4, 1)
    for p in (2, 3):
        assert np.isnan(layers.lp_pool(2, p=p).apply({}, {}, x)[0]).ravel().tolist() == [True, False]


@pytest.mark.parametrize("p", [2, 3])
def test_norms_of_half_precision_are_rounded_once(p):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 30, 3)) * 300, jnp.float16)
    expected = np.linalg.norm(np.float64(x).reshape(2, -1, 3), p, 1)
    y, _ = layers.global_lp_pool(p).apply({}, {}, x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(np.float64(y), expected, rtol=2**-11 * 1.01)


# ---- blur ------------------------------------------------------------------------------------------------------------


def blurred(x, size, strides):
    """By its definition, one axis after the other, with the filter of binomial coefficients."""
    weights = (np.poly1d([0.5, 0.5]) ** (size - 1)).coeffs
    for axis, stride in enumerate(strides, 1):
        before = (size - 1) // 2
        around = [(before, size - 1 - before) if a == axis else (0, 0) for a in range(x.ndim)]
        padded = np.pad(x, around, "reflect")
        taps = [np.take(padded, range(j, j + x.shape[axis], stride), axis) for j in range(size)]
        x = sum(c * tap for c, tap in zip(weights, taps, strict=True))
    return x


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("shape", "strides"), [((1, 6, 9, 2), (2, 3)), ((1, 2, 1, 4, 2), (1, 2, 2))])
def test_blur_pool_is_what_it_says(size, shape, strides):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    apply = jax.jit(lambda x: layers.blur_pool(size=size, strides=strides).apply({}, {}, x)[0])
    np.testing.assert_allclose(apply(x), blurred(np.float64(x), size, strides), rtol=1e-5, atol=1e-6)
    half = jnp.asarray(x, jnp.bfloat16)
    assert apply(half).dtype == jnp.bfloat16
    exact = blurred(np.float64(half), size, strides)
    np.testing.assert_allclose(np.float64(apply(half)), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 5])
def test_blur_pool_and_its_gradient_are_a_convolution_of_pytorch(torch, size):
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    weights = torch.tensor((np.poly1d([0.5, 0.5]) ** (size - 1)).coeffs.astype(np.float32))
    kernel = torch.outer(weights, weights).expand(3, 1, size, size)
    padded = torch.nn.functional.pad(torch.movedim(leaf, -1, 1), ((size - 1) // 2, size // 2) * 2, "reflect")
    expected = torch.movedim(torch.nn.functional.conv2d(padded, kernel, None, 2, groups=3), 1, -1)
    torch.sin(expected).sum().backward()
    layer = layers.blur_pool(size=size)
    y, _ = layer.apply({}, {}, x)
    gradient = jax.jit(jax.grad(lambda x: jnp.sin(layer.apply({}, {}, x)[0]).sum()))(x)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layers.lp_pool(2, p=0.5), ValueError, "lp_pool: expected p of at least 1, and finite, got 0.5; the"),
        (lambda: layers.global_lp_pool(np.inf), ValueError, "global_lp_pool: expected p of at least 1, and finite"),
        (lambda: layers.lp_pool(0), ValueError, "lp_pool: expected window of at least 1, got 0"),
        (lambda: layers.lp_pool(2, padding="same"), ValueError, "lp_pool: expected padding to be one of"),
        (lambda: layers.blur_pool(size=0), ValueError, "blur_pool: expected size of at least 1, got 0"),
        (lambda: layers.blur_pool(strides=2.0), TypeError, "blur_pool: expected strides as a whole number, got float"),
    ],
)
def test_arguments_of_norms_and_blur_are_checked_at_once(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (layers.lp_pool(3), (2, 2, 3), "lp_pool: expected a window no larger than the input, (2,) in its spatial axes"),
        (layers.blur_pool(), (28, 28), "blur_pool: expected at least 3 axes, (batch, *spatial, features), got shape"),
        (layers.blur_pool(strides=(2, 2)), (2, 9, 3), "blur_pool: expected (batch, *spatial, features) with 2 spatial"),
        (layers.blur_pool(), (2, 0, 3), "blur_pool: expected spatial axes that are not empty, got shape (2, 0, 3)"),
        (layers.global_lp_pool(), (2, 0, 3), "global_lp_pool: expected spatial axes that are not empty"),
    ],
)
def test_inputs_that_norms_and_blur_cannot_take_are_refused(layer, shape, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        layer.init(jax.random.key(0), jnp.ones(shape))


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
