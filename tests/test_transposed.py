"""The transposed convolution against PyTorch, against the convolution that it turns around, and its errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import numbers_for, quickly_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import layers


def differentiated(layer):
    """A function of params and input to the output and the gradients of its sine, compiled."""

    @jax.jit
    def outputs_and_gradients(params, x):
        def total(params, x):
            y, _ = layer.apply(params, {}, x)
            return jnp.sin(y).sum(), y

        gradients, y = jax.grad(total, (0, 1), has_aux=True)(params, x)
        return y, gradients

    return outputs_and_gradients


def in_torch(torch, x, kernel, bias, strides, padding, output_padding, dilation, groups):
    """Features first and back; of each group of inputs PyTorch has the kernels of its own group of outputs."""
    rank = x.ndim - 2
    *window, inputs, features = kernel.shape
    kernel = kernel.reshape(*window, inputs, groups, features // groups)
    kernel = torch.movedim(kernel, (rank + 1, rank, rank + 2), (0, 1, 2)).reshape(-1, features // groups, *window)
    form = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    # Its gradient for odd strides of memory is an internal error there.
    x, kernel = torch.movedim(x, -1, 1).contiguous(), kernel.contiguous()
    y = form(x, kernel, bias, strides, padding, output_padding, groups, dilation)
    return torch.movedim(y, 1, -1)


@quickly_compiled()
def agrees_with_torch(torch, shape, features, window, strides, padding, output_padding, dilation, groups, bias):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layer = layers.conv_transpose(
        features,
        window,
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        bias_init=jax.nn.initializers.normal(1.0),
    )
    params = numbers_for(layer, x)
    y, (gradients, x_gradient) = differentiated(layer)(params, x)
    given = {name: torch.tensor(np.array(value), requires_grad=True) for name, value in {**params, "x": x}.items()}
    kernel, offset = given["kernel"], given.get("bias")
    expected = in_torch(torch, given["x"], kernel, offset, strides, padding, output_padding, dilation, groups)
    torch.sin(expected).sum().backward()
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    # A gradient of a weight is a sum over all outputs, here of thousands: each addition rounds.
    rtol = max(1e-5, np.finfo(np.float32).eps * y.size / 8)
    for name, gradient in {**gradients, "x": x_gradient}.items():
        np.testing.assert_allclose(gradient, given[name].grad.numpy(), rtol=rtol, atol=5e-5, err_msg=name)


@pytest.mark.parametrize(
    "case",
    [
        ((2, 4, 5, 3), 4, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1, True),
        ((1, 5, 4), 6, (2,), (3,), (0,), (2,), (1,), 2, False),
        ((2, 3, 4, 2), 2, (3, 2), (2, 3), (2, 1), (0, 1), (2, 3), 2, True),
        ((1, 1, 4, 3), 3, (5, 1), (1, 1), (1, 0), (0, 0), (1, 1), 3, True),
        ((1, 2, 3, 2, 2), 3, (3, 2, 2), (2, 1, 2), (1, 0, 0), (1, 0, 1), (1, 2, 1), 1, True),
    ],
)
def test_conv_transpose_and_its_gradients_are_those_of_pytorch(torch, case):
    agrees_with_torch(torch, *case)


@st.composite
def transposed(draw):
    """What PyTorch takes: the same padding on both sides, and output padding below stride or dilation."""
    rank = draw(st.integers(1, 3))

    def one_each(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    groups = draw(st.integers(1, 3))
    inputs, features = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    window, strides, dilation, sizes = one_each(1, 4), one_each(1, 4), one_each(1, 3), one_each(1, 5)
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilation, strict=True))
    whole = [
        (n - 1) * s + (w - 1) * d + 1 + m for n, s, w, d, m in zip(sizes, strides, window, dilation, more, strict=True)
    ]
    padding = tuple(draw(st.integers(0, min(3, (size - 1) // 2))) for size in whole)
    shape = (draw(st.integers(1, 2)), *sizes, inputs)
    return shape, features, window, strides, padding, more, dilation, groups, draw(st.booleans())


@pytest.mark.slow
@settings(max_examples=40)
@given(case=transposed())
def test_conv_transpose_is_that_of_pytorch_for_all_arguments(torch, case):
    agrees_with_torch(torch, *case)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((2, 0), (0, 1))])
@pytest.mark.parametrize(("window", "strides", "dilation"), [((3, 4), (2, 2), 1), ((3, 2), (1, 3), 2), ((1, 5), 2, 1)])
def test_it_is_the_gradient_of_the_convolution_with_its_arguments(padding, window, strides, dilation):
    """An oracle that is compiled by XLA: the transpose of ``lax.conv_general_dilated``, odd padding included."""
    steps = strides if isinstance(strides, tuple) else (strides,) * 2
    rng = np.random.default_rng(0)
    sizes = [4 * steps[0], 5 * steps[1]]
    kernel = rng.normal(size=(*window, 3, 4)).astype(np.float32)
    pads = padding if isinstance(padding, (str, tuple)) else ((padding, padding),) * 2
    if padding != "SAME":
        extents = [(w - 1) * dilation + 1 for w in window]
        around = [(0, 0)] * 2 if padding == "VALID" else pads
        sizes = [3 * s + e - a - b for s, e, (a, b) in zip(steps, extents, around, strict=True)]

    def conv(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, steps, pads, rhs_dilation=(dilation,) * 2, dimension_numbers=numbers
        )

    y, back = jax.vjp(conv, jnp.zeros((2, *sizes, 3)))
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    layer = layers.conv_transpose(3, window, strides=strides, padding=padding, dilation=dilation, bias=False)
    ours, _ = layer.apply({"kernel": jnp.swapaxes(kernel, -1, -2)}, {}, cotangent)
    np.testing.assert_allclose(ours, back(cotangent)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_makes_the_input_larger_by_the_strides(window, strides, dilation):
    layer = layers.conv_transpose(2, window, strides=strides, dilation=dilation)
    x = jax.ShapeDtypeStruct((1, 4, 5, 3), jnp.float32)
    params, _ = jax.eval_shape(layer.init, jax.random.key(0), x)
    y = jax.eval_shape(layer.apply, params, {}, x)[0]
    assert y.shape == (1, 4 * strides, 5 * strides, 2)


@pytest.mark.slow
def test_half_precision_is_that_of_its_rounding(torch):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 8)), jnp.bfloat16)
    layer = layers.conv_transpose(6, 3, strides=2, padding=1, bias=False)
    params, _ = layer.init(jax.random.key(0), x)
    params = {"kernel": params["kernel"].astype(jnp.bfloat16)}
    wide, kernel = (torch.tensor(np.float64(a)) for a in (x, params["kernel"]))
    expected = in_torch(torch, wide, kernel, None, 2, 1, 0, 1, 1).numpy()
    y = layer.apply(params, {}, x)[0]
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), expected, rtol=2**-8, atol=2**-20)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 3), {}, ValueError, "expected features of at least 1, got 0"),
        ((8, 3.0), {}, TypeError, "expected kernel_size as a whole number, got float 3.0"),
        ((8, 3), {"groups": 3}, ValueError, "expected features that 3 groups divide, got 8; choose a multiple"),
        ((8, (3, 3)), {"strides": (2,)}, ValueError, "expected strides for 2 spatial axes, got 1 in (2,)"),
        ((8, 3), {"padding": "same"}, ValueError, "expected padding to be one of ['SAME', 'VALID'], got 'same'"),
        ((8, 3), {"output_padding": -1, "padding": 1}, ValueError, "expected output_padding of at least 0, got -1"),
        (
            (8, 3),
            {"output_padding": 1},
            ValueError,
            'expected output_padding of 0 with padding="SAME", got 1; give padding in numbers, or leave',
        ),
    ],
)
def test_arguments_are_checked_at_once(arguments, options, error, message):
    with pytest.raises(error, match="^" + re.escape(f"conv_transpose: {message}")):
        layers.conv_transpose(*arguments, **options)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            layers.conv_transpose(8, 3),
            (2, 9),
            "expected (batch, *spatial, features) with 1 or 2 or 3 spatial axes, got",
        ),
        (
            layers.conv_transpose(8, 3, groups=2),
            (2, 9, 3),
            "expected input features that 2 groups divide, got 3 in an input of shape (2, 9, 3); choose groups",
        ),
    ],
)
def test_inputs_of_another_kind_are_refused_by_init(layer, shape, message):
    with pytest.raises(ValueError, match="^" + re.escape(f"conv_transpose: {message}")):
        layer.init(jax.random.key(0), jnp.ones(shape))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (2, 9, 9, 4), "expected 3 input features, as its kernel (3, 3, 3, 8) has, got 4 in an input of shape"),
        ({}, (2, 0, 9, 3), "expected spatial axes that are not empty, got sizes (0, 9); pass a larger input"),
        ({"padding": 2}, (2, 1, 2, 3), "expected an output of at least 1 in each spatial axis, got [-1, 0]; take less"),
        ({"padding": (1,)}, (2, 9, 9, 3), "expected padding for 2 spatial axes, got 1 in (1,)"),
        (
            {"padding": 1, "strides": 2, "output_padding": 2},
            (2, 9, 9, 3),
            "expected output_padding below strides or dilation, 2, got 2; choose less",
        ),
        (
            {"padding": 1, "strides": 2, "output_padding": (1, 0, 1)},
            (2, 9, 9, 3),
            "expected output_padding for 2 spatial axes, got 3 in (1, 0, 1); give output_padding one number",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_apply(options, shape, message):
    layer = layers.conv_transpose(8, 3, **options)
    params = {"kernel": jnp.ones((3, 3, 3, 8)), "bias": jnp.ones(8)}
    with pytest.raises(ValueError, match="^" + re.escape(f"conv_transpose: {message}")):
        layer.apply(params, {}, jnp.ones(shape))
