"""The fast forms of convolution and pooling, each with all its derivatives, against XLA's own and NumPy."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from funcnn import primitives

LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
HUGE = 10**9


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def plain(x, kernel, *, strides, padding, dilation, groups=1):
    """XLA's convolution, whose derivatives are JAX's own."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, None, dilation, LAYOUTS[len(strides)], feature_group_count=groups
    )


def operations(f, *args):
    return set(re.findall(r"\b(conv_general_dilated|dot_general|scan)\b", str(jax.make_jaxpr(f)(*args))))


def products(f, *args):
    return str(jax.make_jaxpr(f)(*args)).count("dot_general[")


# ---- convolution: every path ---------------------------------------------------------------------------------------

# name: input, kernel, strides, padding, dilation, groups, and the bounds that lead there: whole and chunk bytes
PATHS = {
    "line": ((3, 9, 2), (3, 2, 3), (2,), ((1, 2),), (2,), 1, (HUGE, HUGE)),
    "whole": ((2, 6, 7, 3), (3, 2, 3, 4), (1, 2), ((1, 0), (2, 1)), (1, 2), 1, (HUGE, HUGE)),
    "strided along the lines": ((2, 6, 7, 3), (3, 2, 3, 4), (2, 1), ((1, 0), (0, 1)), (2, 1), 1, (HUGE, HUGE)),
    "volume": ((2, 4, 5, 3, 2), (2, 3, 2, 2, 3), (2, 1, 1), ((1, 1), (0, 0), (0, 1)), (1, 1, 2), 1, (HUGE, HUGE)),
    "dilated volume": ((2, 4, 5, 3, 2), (2, 3, 2, 2, 3), (1, 2, 1), ((1, 1),) * 3, (2, 1, 1), 1, (HUGE, HUGE)),
    "groups": ((2, 5, 4, 6), (3, 3, 3, 4), (1, 2), ((1, 1), (0, 1)), (1, 1), 2, (HUGE, HUGE)),
    "one input for two outputs": ((2, 5, 4, 2), (3, 3, 1, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 2, (HUGE, HUGE)),
    "depthwise": ((2, 5, 6, 4), (3, 2, 1, 4), (2, 1), ((1, 1), (0, 1)), (1, 2), 4, (HUGE, HUGE)),
    # patches of 9 * 4 * 36 * 8 = 10368 bytes an example, and of 1728 a row
    "chunks": ((6, 6, 6, 4), (3, 3, 4, 2), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, (0, 25_000)),
    "a last chunk that is smaller": ((5, 6, 6, 4), (3, 3, 4, 2), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, (0, 25_000)),
    "chunks of groups": ((5, 6, 6, 4), (3, 3, 2, 2), (1, 1), ((1, 1), (1, 1)), (1, 1), 2, (0, 25_000)),
    "depthwise in chunks": ((5, 6, 6, 4), (3, 3, 1, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 4, (0, 25_000)),
    "side by side": ((2, 7, 9, 3), (2, 3, 3, 4), (2, 3), ((1, 0), (0, 1)), (1, 1), 1, (HUGE, HUGE)),
    "side by side, a volume": ((2, 4, 5, 6, 2), (2, 1, 3, 2, 3), (2, 1, 3), ((0, 0),) * 3, (1, 1, 1), 1, (HUGE, HUGE)),
    "groups side by side": ((2, 7, 9, 4), (2, 3, 2, 4), (2, 3), ((1, 0), (0, 1)), (1, 1), 2, (HUGE, HUGE)),
    "slabs": ((2, 9, 6, 4), (3, 3, 4, 2), (1, 1), ((0, 1), (1, 1)), (1, 1), 1, (0, 4_000)),
    "slabs with strides": ((2, 11, 6, 4), (3, 3, 4, 2), (3, 2), ((1, 1), (1, 1)), (2, 1), 1, (0, 2_500)),
    "slabs of one row": ((2, 5, 6, 1), (2, 2, 1, 2), (2, 1), ((0, 0), (0, 0)), (1, 1), 1, (0, 1)),
    "slabs of a line": ((2, 13, 3), (4, 3, 2), (1,), ((1, 1),), (1,), 1, (0, 300)),
}


EVERYDAY = ("line", "whole", "groups", "depthwise", "side by side", "chunks", "slabs", "slabs of a line")


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[] if path in EVERYDAY else [pytest.mark.slow]) for path in PATHS]
)
def test_every_path_of_conv_has_the_values_and_derivatives_of_plain_convolution(monkeypatch, x64, path):
    shape, kernel_shape, strides, padding, dilation, groups, bounds = PATHS[path]
    for name, bound in zip(("_WHOLE_BYTES", "_CHUNK_BYTES"), bounds, strict=True):
        monkeypatch.setattr(primitives, name, bound)
    rng = np.random.default_rng(0)
    at = tuple(rng.normal(size=s) for s in (shape, kernel_shape))
    along = tuple(rng.normal(size=s) for s in (shape, kernel_shape))
    options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}

    def everything(conv):
        def total(x, kernel):
            return jnp.sin(conv(x, kernel, **options)).sum()

        gradient = jax.grad(total, (0, 1))
        # Value, derivative along a direction, gradient, and Hessian-vector product, forward over reverse.
        return jax.jvp(partial(conv, **options), at, along), jax.jvp(gradient, at, along)

    ours = jax.jit(partial(everything, primitives.conv))()
    theirs = jax.jit(partial(everything, plain))()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), ours, theirs)

    found = operations(partial(primitives.conv, **options), *at)
    assert "conv_general_dilated" not in found
    assert ("scan" in found) == (bounds[0] == 0)
    assert ("dot_general" in found) == (not path.startswith("depthwise"))


def test_windows_side_by_side_are_the_input_in_another_order():
    """Of any size: no slice for each of their elements, of which a vision transformer has 256."""
    x, kernel = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((16, 16, 3, 8), jnp.float32)
    options = {"strides": (16, 16), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    found = jax.make_jaxpr(partial(primitives.conv, **options))(x, kernel)
    assert len(found.eqns) < 12


def test_the_taps_of_a_large_depthwise_convolution_do_not_lie_in_memory_together():
    options = {"strides": (1, 1), "padding": ((3, 3), (3, 3)), "dilation": (1, 1), "groups": 32}
    x, kernel = jax.ShapeDtypeStruct((32, 32, 32, 32), jnp.float32), jax.ShapeDtypeStruct((7, 7, 1, 32), jnp.float32)
    gradient = jax.grad(lambda x, kernel: jnp.sin(primitives.conv(x, kernel, **options)).sum(), (0, 1))
    memory = jax.jit(gradient).lower(x, kernel).compile().memory_analysis().temp_size_in_bytes
    assert memory < 12 * 32**4 * 4  # 49 taps


def test_a_convolution_is_one_product():
    options = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    for inputs, dtype in ((1, "float32"), (16, "float32"), (16, "bfloat16")):
        x, kernel = jnp.ones((2, 5, 5, inputs), dtype), jnp.ones((3, 3, inputs, 4), dtype)
        assert products(partial(primitives.conv, **options), x, kernel) == 1


@pytest.mark.slow
def test_the_patches_of_a_large_batch_do_not_lie_in_memory_together(monkeypatch):
    options = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    x, kernel = jax.ShapeDtypeStruct((16, 64, 64, 64), jnp.float32), jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)

    def memory():
        gradient = jax.grad(lambda x, kernel: jnp.sin(primitives.conv(x, kernel, **options)).sum(), (0, 1))
        return jax.jit(gradient).lower(x, kernel).compile().memory_analysis().temp_size_in_bytes

    bounded = memory()
    monkeypatch.setattr(primitives, "_WHOLE_BYTES", HUGE)
    # What is left are about seven arrays of the size of the input: padded, cut, its gradient, the output and its own.
    assert bounded < 8 * 16 * 64 * 64 * 64 * 4
    assert bounded < 0.6 * memory()


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [(HUGE, HUGE), (0, 5_000)])
def test_conv_maps_over_kernels_and_over_kernels_and_inputs(monkeypatch, bounds):
    monkeypatch.setattr(primitives, "_WHOLE_BYTES", bounds[0])
    monkeypatch.setattr(primitives, "_CHUNK_BYTES", bounds[1])
    rng = np.random.default_rng(0)
    xs, kernels = rng.normal(size=(3, 4, 6, 6, 4)), rng.normal(size=(3, 3, 3, 2, 4))
    xs, kernels = xs.astype(np.float32), kernels.astype(np.float32)
    options = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 2}

    def gradient(x, kernel):
        return jax.grad(lambda x, k: jnp.sin(primitives.conv(x, k, **options)).sum(), (0, 1))(x, kernel)

    for axes in ((None, 0), (0, 0)):
        given = tuple(a if axis == 0 else a[0] for a, axis in zip((xs, kernels), axes, strict=True))
        mapped = jax.jit(jax.vmap(gradient, axes))(*given)
        for i in range(3):
            single = jax.jit(gradient)(*(a[i] if axis == 0 else a for a, axis in zip(given, axes, strict=True)))
            jax.tree.map(lambda m, s, i=i: np.testing.assert_allclose(m[i], s, rtol=1e-4, atol=1e-4), mapped, single)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv_in_half_precision_keeps_the_dtype_and_rounds_once(dtype, tolerance, groups):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 6, 4)), rng.normal(size=(3, 3, 4 // groups, 4))
    options = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": groups}
    x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    y = jax.jit(partial(primitives.conv, **options))(x, kernel)
    assert y.dtype == dtype
    exact = plain(x.astype(jnp.float32), kernel.astype(jnp.float32), **options)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_batch_of_nothing_gives_nothing_and_no_gradient(groups):
    options = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": groups}
    x, kernel = jnp.ones((0, 6, 6, 4)), jnp.ones((3, 3, 4 // groups, 4))
    assert primitives.conv(x, kernel, **options).shape == (0, 4, 4, 4)
    assert not jax.grad(lambda k: primitives.conv(x, k, **options).sum())(kernel).any()
    assert primitives.max_pool(x, (2, 2), (1, 2), ((0, 0), (0, 0))).shape == (0, 5, 3, 4)
    assert primitives.avg_pool(x, (2, 2), (1, 2), ((0, 0), (1, 1))).shape == (0, 5, 4, 4)


# ---- the platform --------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_cpu_conv_is_plain_convolution(monkeypatch):
    options = {"strides": (2, 1), "padding": ((1, 1), (0, 2)), "dilation": (1, 2), "groups": 2}
    x, kernel = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((2, 7, 6, 4), (3, 2, 2, 6)))
    here = primitives.conv(x, kernel, **options)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert operations(partial(primitives.conv, **options), x, kernel) == {"conv_general_dilated"}
    np.testing.assert_allclose(primitives.conv(x, kernel, **options), here, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "the device"])
def test_the_default_device_decides_before_the_backend(monkeypatch, device):
    cpu = jax.devices("cpu")[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert primitives.platform() == "gpu"
    with jax.default_device("cpu" if device == "cpu" else cpu):
        assert primitives.platform() == "cpu"


# ---- pooling -------------------------------------------------------------------------------------------------------


def numpy_pool(x, window, strides, padding, reduce, fill):
    """Every window by itself, in NumPy, over the last axis but one."""
    x = np.pad(x, [(0, 0), *padding, (0, 0)], constant_values=fill)
    for axis, (count, stride) in enumerate(zip(window, strides, strict=True), 1):
        x = np.lib.stride_tricks.sliding_window_view(x, count, axis)
        x = reduce(x, -1).take(range(0, x.shape[axis], stride), axis)
    return x


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((2,), (2,), ((0, 0),)),
        ((3,), (2,), ((1, 2),)),
        ((2,), (3,), ((0, 0),)),
        ((3, 2), (3, 2), ((0, 0), (1, 0))),
        ((3, 3), (1, 2), ((1, 1), (0, 2))),
        ((7, 8), (1, 3), ((0, 3), (4, 0))),
        ((9, 16), (2, 1), ((0, 0), (0, 0))),
        ((2, 1, 3), (2, 1, 1), ((0, 0), (0, 0), (1, 1))),
    ],
)
def test_pooling_is_that_of_numpy_window_by_window(window, strides, padding):
    x = np.random.default_rng(0).normal(size=(2, *[17, 18, 5][: len(window)], 3)).astype(np.float32)
    ours = jax.jit(lambda x: primitives.max_pool(x, window, strides, padding))(x)
    np.testing.assert_array_equal(ours, numpy_pool(x, window, strides, padding, np.max, -np.inf))
    ours = jax.jit(lambda x: primitives.avg_pool(x, window, strides, padding))(x)
    total, count = (numpy_pool(a, window, strides, padding, np.sum, 0) for a in (x, np.ones_like(x)))
    np.testing.assert_allclose(ours, total / count, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 3), (3, 1), (2, 3), (8, 2)])
def test_of_equal_elements_the_first_by_rows_takes_the_gradient(window, stride):
    x = np.random.default_rng(0).integers(0, 3, (2, 9, 10, 2)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: primitives.max_pool(x, (window,) * 2, (stride,) * 2, ((0, 0),) * 2).sum()))(x)
    expected = np.zeros_like(x)
    for b, i, j, f in np.ndindex(2, (9 - window) // stride + 1, (10 - window) // stride + 1, 2):
        under = x[b, i * stride : i * stride + window, j * stride : j * stride + window, f]
        row, column = np.unravel_index(np.argmax(under), under.shape)
        expected[b, i * stride + row, j * stride + column, f] += 1
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 1), (8, 1)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nan_or_an_infinity_is_neither_lost_nor_spread(window, stride, bad):
    x = np.random.default_rng(0).normal(size=(1, 24, 1)).astype(np.float32)
    x[0, 10] = bad
    ours = primitives.max_pool(x, (window,), (stride,), ((0, 0),))
    np.testing.assert_array_equal(ours, numpy_pool(x, (window,), (stride,), ((0, 0),), np.max, 0))


@pytest.mark.slow
@pytest.mark.parametrize("pool", [primitives.max_pool, primitives.avg_pool])
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (7, 1)])
def test_pooling_has_all_derivatives(x64, pool, window, stride):
    rng = np.random.default_rng(0)
    x, along = rng.normal(size=(2, 2, 8, 9, 2))

    @jax.jit
    def total(x):
        return jnp.sin(pool(x, (window,) * 2, (stride,) * 2, ((1, 0), (0, 1)))).sum()

    gradient = jax.jit(jax.grad(total))
    derivative = jax.jit(lambda x: jax.jvp(total, (x,), (along,))[1])
    step = 1e-6  # no two elements are so close that it changes which is larger
    slope = (total(x + step * along) - total(x - step * along)) / (2 * step)
    np.testing.assert_allclose((gradient(x) * along).sum(), slope, rtol=1e-7)
    np.testing.assert_allclose(derivative(x), slope, rtol=1e-7)
    change = (gradient(x + step * along) - gradient(x - step * along)) / (2 * step)
    forward = jax.jit(lambda x: jax.jvp(jax.grad(total), (x,), (along,))[1])(x)
    reverse = jax.jit(jax.grad(lambda x: (jax.grad(total)(x) * along).sum()))(x)
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(forward, change, atol=1e-7)
    np.testing.assert_allclose(reverse, change, atol=1e-7)


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 32)])
def test_a_mean_in_half_precision_is_summed_in_single(window, stride):
    x = jnp.full((1, 128, 1), 2048.0, "float16")  # the sum of 64 is more than float16 can hold
    y = jax.jit(lambda x: primitives.avg_pool(x, (window,), (stride,), ((0, 0),)))(x)
    assert y.dtype == "float16"
    np.testing.assert_array_equal(y, 2048)
