"""Matrix product, convolution and pooling in the forms that are fast, chosen by static shape and platform."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcnn import checks, small_products

Pads = tuple[tuple[int, int], ...]
"""How many elements come before and after each spatial axis."""


def platform() -> str:
    """Where a program traced now will run: the platform of ``jax.default_device`` if it is set, else the backend's."""
    device = getattr(jax.config, "jax_default_device")  # noqa: B009  # pyright knows no attributes made at run time
    return jax.default_backend() if device is None else getattr(device, "platform", device)


def matmul(x: Any, kernel: Any) -> Any:
    """``x @ kernel`` over the last axis of ``x``, with all other axes as one.

    The gradients that JAX derives for several batch axes are slow on CPU; for one they are plain matrix products.
    Small ones are written out where loops become one kernel.
    """
    if x.ndim > 2:
        y = matmul(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), kernel)
        return y.reshape(*x.shape[:-1], kernel.shape[-1])
    if x.ndim == kernel.ndim == 2 and platform() == "cpu" and small_products.wanted(x, kernel):
        return small_products.product(x, kernel)
    return jnp.matmul(x, kernel)


def along_last(vector: Any, ndim: int) -> Any:
    """A vector of features with axes of size one before it, so that it meets ``ndim`` axes without promotion."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


# ---- windows: what convolution and pooling share ---------------------------------------------------------------------


def per_axis(where: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    """One count for each of ``rank`` spatial axes; a number means the same in all of them."""
    if not isinstance(value, (tuple, list)):
        return (checks.expect_count(where, name, value),) * rank
    if len(value) != rank:
        fix = f"give {name} one number for each spatial axis, or one for all of them"
        checks.fail(where, f"{name} for {rank} spatial axes", f"{len(value)} in {tuple(value)}", fix)
    return tuple(checks.expect_count(where, name, v) for v in value)


def expect_padding(where: str, padding: Any) -> None:
    """Raise unless ``padding`` is ``"SAME"``, ``"VALID"``, a whole number, or one number or pair for each axis."""
    if isinstance(padding, str):
        checks.expect_option(where, "padding", padding, ("SAME", "VALID"))
        return
    for entry in padding if isinstance(padding, (tuple, list)) else (padding,):
        pair = entry if isinstance(entry, (tuple, list)) else (entry, entry)
        if len(pair) != 2:
            checks.fail(where, "padding in pairs (before, after)", f"{tuple(pair)} in {padding}", "give two numbers")
        for count in pair:
            checks.expect_count(where, "padding", count, 0)


def pads(where: str, padding: Any, sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int]) -> Pads:
    """The padding of each spatial axis as a pair, if a window of these extents fits into the padded input."""
    if 0 in sizes:
        checks.fail(where, "spatial axes that are not empty", f"sizes {tuple(sizes)}", "pass a larger input")
    if isinstance(padding, str):
        pairs = tuple(lax.padtype_to_pads(sizes, extents, strides, padding))
    else:
        entries = padding if isinstance(padding, (tuple, list)) else (padding,) * len(sizes)
        if len(entries) != len(sizes):
            fix = "give a number, or a pair (before, after), for each spatial axis"
            checks.fail(where, f"padding for {len(sizes)} spatial axes", f"{len(entries)} in {tuple(padding)}", fix)
        pairs = tuple(tuple(entry) if isinstance(entry, (tuple, list)) else (entry, entry) for entry in entries)
    padded = tuple(size + low + high for size, (low, high) in zip(sizes, pairs, strict=True))
    if any(extent > size for extent, size in zip(extents, padded, strict=True)):
        checks.fail(
            where,
            f"a window no larger than the input, {padded} in its spatial axes with padding",
            f"a window that covers {tuple(extents)}",
            'take a smaller window, less dilation or fewer poolings before, or padding="SAME"',
        )
    return pairs


def _padded(x: Any, padding: Pads, value: Any) -> Any:
    if not any(itertools.chain(*padding)):
        return x
    return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])


def _outputs(size: int, extent: int, stride: int) -> int:
    return (size - extent) // stride + 1


# ---- convolution -----------------------------------------------------------------------------------------------------

# In a lax.scan on a CPU the gradients that JAX derives for lax.conv_general_dilated are naive loops. Each form here and
# plain convolution, case by case: benchmarks/convolutions.py, which wrote docs/convolution_times.md. Tried and not
# faster: a convolution with gradients in the canonical form; a product for each position of the kernel, or for each of
# its rows, summed. Of groups (14.9 ms where PyTorch takes 3.2): a product for each group, 12.7 to 15.0; features first,
# 12.1; groups merged into block diagonals, 13.2 to 13.6.

# Patches of up to this many bytes are made at once. Beyond it chunks bound the memory, and take about as long: the
# second table of docs/convolution_times.md has both. A lower bound saves a small network nothing: the most memory it
# ever has is that of compiling, which chunks make larger.
_WHOLE_BYTES = 32 * 2**20
_CHUNK_BYTES = 8 * 2**20
# Up to so many positions of a kernel are a slice each; more of them would take long to compile.
_FEW_TAPS = 32


def conv(
    x: Any, kernel: Any, *, strides: Sequence[int], padding: Pads, dilation: Sequence[int], groups: int = 1
) -> Any:
    """A convolution (cross-correlation) over 1, 2 or 3 spatial axes, features last: ``NHWC`` inputs, ``HWIO`` kernels.

    On CPU it is a matrix product over patches: it has every derivative and batching rule, and is as fast inside a loop
    as outside. Beyond ``_WHOLE_BYTES`` of patches the batch, and then the first spatial axis, go through in chunks of
    about ``_CHUNK_BYTES`` each, made anew for the gradient: this bounds the memory. Elsewhere it is XLA's convolution.

    Example:
        >>> x = jnp.arange(5.0).reshape(1, 5, 1)
        >>> conv(x, jnp.ones((3, 1, 1)), strides=(1,), padding=((1, 1),), dilation=(1,)).ravel().tolist()
        [1.0, 3.0, 6.0, 9.0, 7.0]
    """
    if platform() != "cpu":
        layout = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[len(strides)]
        return lax.conv_general_dilated(
            x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=layout, feature_group_count=groups
        )
    x = _padded(x, padding, 0)
    if kernel.shape[-2] == 1 and kernel.shape[-1] == groups > 1:
        return _in_chunks(_depthwise, x, kernel, strides, dilation)
    return _in_chunks(_products if groups == 1 else _grouped, x, kernel, strides, dilation)


def _taps(
    x: Any, axes: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[Any]:
    """For every position in the window, along these axes of ``x``, what lies under it as the window moves."""
    taps: list[Any] = []
    for offset in itertools.product(*(range(count) for count in window)):
        start, limit, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
        for axis, i, count, stride, hole in zip(axes, offset, window, strides, dilation, strict=True):
            last = (_outputs(x.shape[axis], (count - 1) * hole + 1, stride) - 1) * stride
            start[axis], limit[axis], step[axis] = i * hole, i * hole + last + 1, stride
        taps.append(lax.slice(x, start, limit, step))
    return taps


def _products(x: Any, kernel: Any, strides: Sequence[int], dilation: Sequence[int]) -> Any:
    """Patches times kernel in one matrix product."""
    *window, _, features = kernel.shape
    if tuple(window) == tuple(strides) and set(dilation) == {1}:
        patches = x if math.prod(window) == 1 else _side_by_side(x, window)
    elif math.prod(window) <= _FEW_TAPS:
        patches = jnp.concatenate(_taps(x, range(1, x.ndim - 1), window, strides, dilation), -1)
    else:
        patches = x
        for axis in range(x.ndim - 2, 0, -1):
            patches = _along(patches, axis, window[axis - 1], strides[axis - 1], dilation[axis - 1])
    return matmul(patches, kernel.reshape(-1, features))


def _along(x: Any, axis: int, count: int, stride: int, hole: int) -> Any:
    """The patches along one axis, as features: runs of neighbours at every place, and then such runs behind each other.

    Each is a slice, so that there are about twice the root of ``count`` of them. The runs are no longer than that takes
    as much memory as the patches.
    """
    run = min(math.isqrt(count), max(1, count // stride))
    runs = x if run == 1 else jnp.concatenate(_taps(x, [axis], [run], [1], [hole]), -1)
    whole = count // run
    outputs = _outputs(x.shape[axis], (count - 1) * hole + 1, stride)

    def under(a: Any, first: int) -> Any:
        return lax.slice_in_dim(a, first * hole, first * hole + (outputs - 1) * stride + 1, stride, axis)

    rest = [under(x, i) for i in range(whole * run, count)]
    return jnp.concatenate([*(under(runs, i * run) for i in range(whole)), *rest], -1)


def _side_by_side(x: Any, window: Sequence[int]) -> Any:
    """The patches of windows that follow one another: the input in another order, whatever their size."""
    outputs = [size // count for size, count in zip(x.shape[1:-1], window, strict=True)]
    x = x[:, *(slice(number * count) for number, count in zip(outputs, window, strict=True))]
    for axis in range(len(window), 0, -1):  # one after the other, for what lies on several devices
        x = x.reshape(*x.shape[:axis], outputs[axis - 1], window[axis - 1], *x.shape[axis + 1 :])
    order = (*range(1, 2 * len(window), 2), *range(2, 2 * len(window) + 1, 2))
    x = x.transpose(0, *order, x.ndim - 1)
    return x.reshape(*x.shape[: len(window) + 1], math.prod(window) * x.shape[-1])


def _grouped(x: Any, kernel: Any, strides: Sequence[int], dilation: Sequence[int]) -> Any:
    """The groups as a batch of products."""
    inputs = kernel.shape[-2]
    groups = x.shape[-1] // inputs
    x = jnp.moveaxis(x.reshape(*x.shape[:-1], groups, inputs), -2, 0)
    kernel = jnp.moveaxis(kernel.reshape(*kernel.shape[:-1], groups, kernel.shape[-1] // groups), -2, 0)
    y = jnp.moveaxis(jax.vmap(lambda a, k: _products(a, k, strides, dilation))(x, kernel), 0, -2)
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])


def _depthwise(x: Any, kernel: Any, strides: Sequence[int], dilation: Sequence[int]) -> Any:
    """A sum of products by element, which is faster than a batch of products with one column each."""
    *window, _, features = kernel.shape
    taps = _taps(x, range(1, x.ndim - 1), window, strides, dilation)
    dtype = jnp.promote_types(x.dtype, jnp.float32)  # in half precision each sum would be rounded
    weights = kernel.reshape(-1, features).astype(dtype)
    products = [tap.astype(dtype) * along_last(weights[i], x.ndim) for i, tap in enumerate(taps)]
    return reduce(jnp.add, products).astype(x.dtype)


def _in_chunks(form: Callable[..., Any], x: Any, kernel: Any, strides: Sequence[int], dilation: Sequence[int]) -> Any:
    """``form``, some examples, or some rows of one, at a time where their patches would take too much memory."""
    window = kernel.shape[:-2]
    extents = [(count - 1) * hole + 1 for count, hole in zip(window, dilation, strict=True)]
    outputs = [_outputs(*along) for along in zip(x.shape[1:-1], extents, strides, strict=True)]
    row_bytes = math.prod(window) * math.prod(outputs[1:]) * x.shape[-1] * x.dtype.itemsize
    # A symbolic batch, in an export, goes through whole, or one by one where examples are of more than _CHUNK_BYTES.
    examples = x.shape[0] if isinstance(x.shape[0], int) else _WHOLE_BYTES // _CHUNK_BYTES
    if math.prod(window) == 1 or examples * outputs[0] * row_bytes <= _WHOLE_BYTES:
        return form(x, kernel, strides, dilation)

    compute: Callable[[Any], Any] = partial(form, kernel=kernel, strides=strides, dilation=dilation)
    rows = max(1, min(outputs[0], _CHUNK_BYTES // row_bytes))
    if rows == outputs[0]:
        return _mapped(compute, x, max(1, _CHUNK_BYTES // (rows * row_bytes)))
    y = _mapped(compute, _slabs(x, rows, outputs[0], extents[0], strides[0]), 1)
    y = jnp.moveaxis(y.reshape(-1, x.shape[0], *y.shape[1:]), 0, 1)
    return y.reshape(x.shape[0], -1, *y.shape[3:])[:, : outputs[0]]


def _slabs(x: Any, rows: int, outputs: int, extent: int, stride: int) -> Any:
    """What each run of ``rows`` output rows sees of the first spatial axis, as examples, all first runs first."""
    count, height = -(-outputs // rows), (rows - 1) * stride + extent
    missing = max(0, (count - 1) * rows * stride + height - x.shape[1])
    x = _padded(x, ((0, missing), *[(0, 0)] * (x.ndim - 3)), 0)
    starts = (i * rows * stride for i in range(count))
    return jnp.concatenate([lax.slice_in_dim(x, start, start + height, axis=1) for start in starts])


def _mapped(compute: Callable[[Any], Any], x: Any, size: int) -> Any:
    """``compute`` over chunks of ``size`` examples, the last one smaller; for the gradient each is computed again."""
    whole = x.shape[0] // size * size
    again = jax.checkpoint(compute, prevent_cse=False)
    y = lax.collapse(lax.map(again, x[:whole].reshape(-1, size, *x.shape[1:])), 0, 2)
    return y if whole == x.shape[0] else jnp.concatenate([y, again(x[whole:])])


# ---- pooling ---------------------------------------------------------------------------------------------------------

# Windows side by side are an axis that is reduced once, those that overlap are slices: benchmarks/convolutions.py has
# both beside reduce_window. Tried and slower: the maximum of slices for windows side by side. From seven elements on
# the width is doubled, which takes fewer slices, and compiles at any width.
_DOUBLED_WIDTH = 7


def max_pool(x: Any, window: Sequence[int], strides: Sequence[int], padding: Pads) -> Any:
    """The largest element under the window, or NaN; of equal ones the first, by rows, takes the gradient."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        fix = "pool the real and the imaginary parts"
        checks.fail("max_pool", "numbers with an order", str(x.dtype), fix, TypeError)
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype != bool and jnp.iinfo(x.dtype).min
    return _pooled(_padded(x, padding, lowest), window, strides, _largest_of_block, _largest_under)


def avg_pool(x: Any, window: Sequence[int], strides: Sequence[int], padding: Pads) -> Any:
    """The mean of the elements under the window; padding is not counted. Half precision is summed in float32."""
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = _pooled(_padded(exact, padding, 0), window, strides, jnp.sum, _sum_under)
    counts = np.ones((1,) * x.ndim)
    for axis, (low, high) in enumerate(padding):
        there = np.pad(np.ones(x.shape[axis + 1]), (low, high))
        under = np.convolve(there, np.ones(window[axis]), "valid")[:: strides[axis]] if low or high else window[axis]
        counts = counts * np.reshape(under, [-1 if a == axis + 1 else 1 for a in range(x.ndim)])
    return (total / jnp.asarray(counts, total.dtype)).astype(x.dtype)


def _pooled(
    x: Any, window: Sequence[int], strides: Sequence[int], of_block: Callable[..., Any], under: Callable[..., Any]
) -> Any:
    """One axis after the other: windows that follow one another are an axis of their own, others are slices.

    Last axis first: then the first of equal elements along each axis is the first by rows.
    """
    for axis in range(x.ndim - 2, 0, -1):
        count, stride = window[axis - 1], strides[axis - 1]
        if count == stride:
            outputs = x.shape[axis] // count
            blocks = lax.slice_in_dim(x, 0, outputs * count, axis=axis)
            x = of_block(blocks.reshape(*x.shape[:axis], outputs, count, *x.shape[axis + 1 :]), axis + 1)
        else:
            x = under(x, axis, count, stride)
    return x


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest_of_block(blocks: Any, axis: int) -> Any:
    return blocks.max(axis)


@_largest_of_block.defjvp
def _(axis: int, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    """Of the one taken: a selection, and so is the gradient. JAX's own shares it, and a gather's would be a scatter."""
    (blocks,), (tangent,) = primals, tangents
    index = jnp.argmax(blocks, axis, keepdims=True)
    chosen = lax.broadcasted_iota(index.dtype, blocks.shape, axis) == index
    of_chosen = jnp.where(chosen, tangent, jnp.zeros((), tangent.dtype)).sum(axis, dtype=tangent.dtype)
    return _largest_of_block(blocks, axis), of_chosen


def _largest_under(x: Any, axis: int, count: int, stride: int) -> Any:
    width = 1
    while count >= _DOUBLED_WIDTH and 2 * width < count:
        x = reduce(_larger, _taps(x, [axis], [2], [1], [width]))
        width *= 2
    # What is left are windows of ``width``: as many as cover ``count``, the last two of them overlapping.
    if width > 1:
        return reduce(_larger, _taps(x, [axis], [2], [stride], [count - width]))
    return _under(_larger, x, axis, count, stride)


def _sum_under(x: Any, axis: int, count: int, stride: int) -> Any:
    """Sums of one, two, four, ... elements: those that are binary digits of ``count`` stand side by side."""
    if count < _DOUBLED_WIDTH:
        return _under(jnp.add, x, axis, count, stride)
    reach, parts, offset, width = (_outputs(x.shape[axis], count, stride) - 1) * stride, [], 0, 1
    while width <= count:
        if count & width:
            parts.append(lax.slice_in_dim(x, offset, offset + reach + 1, stride, axis))
            offset += width
        if 2 * width <= count:
            x = reduce(jnp.add, _taps(x, [axis], [2], [1], [width]))
        width *= 2
    return reduce(jnp.add, parts)


def _under(combine: Callable[[Any, Any], Any], x: Any, axis: int, count: int, stride: int) -> Any:
    return reduce(combine, _taps(x, [axis], [count], [stride], [1]))


def _larger(a: Any, b: Any) -> Any:
    return jnp.where((a >= b) | (a != a), a, b)
