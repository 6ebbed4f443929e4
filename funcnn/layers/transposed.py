"""The transposed convolution: as the gradient of a convolution, it lays a small kernel down at every position."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import glorot_uniform, zeros

from funcnn import bits, checks, primitives, spatial
from funcnn.core import Layer, Tree, array_layer, param_dtype

Initializer = Callable[..., Any]
Counts = int | Sequence[int]
Padding = str | int | Sequence[int | Sequence[int]]


def conv_transpose(
    features: int,
    kernel_size: Counts,
    *,
    strides: Counts = 1,
    padding: Padding = "SAME",
    output_padding: Counts = 0,
    dilation: Counts = 1,
    groups: int = 1,
    bias: bool = True,
    kernel_init: Initializer = glorot_uniform(),
    bias_init: Initializer = zeros,
) -> Layer:
    """A transposed convolution: every input lays its kernel down, ``strides`` apart, and what overlaps is summed.

    Formula: ``y[b, k, f] = bias[f] + sum over i, j, c of kernel[j, c, f] * x[b, i, c]`` where
    ``k = strides * i + dilation * j - before``, with one of each for each spatial axis; what falls outside is cut off.

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', features)`` for one, two or three spatial axes, features last.
    With ``padding="SAME"`` ``spatial' = spatial * strides``; else ``spatial' = (spatial - 1) * strides
    + dilation * (kernel_size - 1) + 1 - before - after + output_padding``.

    Params: ``kernel (*kernel_size, n // groups, features)``, ``bias (features,)`` unless ``bias=False``. State: none.

    Args:
        features: the number of output features.
        kernel_size: a number, the same for all the spatial axes that the input turns out to have, or one for each.
        strides: how many times larger the output is; as ``dilation``, a number or one for each spatial axis.
        padding: ``"SAME"``, ``"VALID"`` (none), or how much is cut off on both sides: a number, or one number or pair
            for each axis; the padding of the convolution of which this is the gradient.
        output_padding: how much less is cut off at the end, below ``strides`` or ``dilation``: a convolution with
            strides takes inputs of several sizes to one size, and this says to which to return. 0 with ``"SAME"``.
        dilation: the distance between neighbours in the window.
        groups: input and output features fall into so many groups that do not see one another.
        bias: whether to add one.
        kernel_init: from ``jax.nn.initializers``; it counts the window among the inputs.
        bias_init: likewise from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating, or a count is not a whole number.
        ValueError: the input has other axes or features than the kernel was made for, ``groups`` divides them not,
            nothing is left of the output, an argument has the wrong length or size, or the params have other sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model, images = layers.conv_transpose(8, 3, strides=2), jnp.ones((5, 14, 14, 4))
        >>> params, state = model.init(jax.random.key(0), images)
        >>> jax.tree.map(jnp.shape, params)
        {'bias': (8,), 'kernel': (3, 3, 4, 8)}
        >>> model.apply(params, state, images)[0].shape
        (5, 28, 28, 8)

    Reference: Zeiler, Krishnan, Taylor and Fergus, "Deconvolutional networks", 2010. (1) The kernel lies as in PyTorch
    and Keras; Flax lays it down flipped unless ``transpose_kernel=True``. (2) The numbers of ``padding`` and
    ``output_padding`` are PyTorch's; ``"SAME"`` is Keras's and cuts the smaller half at the front. (3) ``"VALID"`` cuts
    and adds nothing, as PyTorch's 0; Keras and Flax append zeros where the kernel is smaller than ``strides``.
    """
    features = checks.expect_count("conv_transpose", "features", features)
    groups = checks.expect_count("conv_transpose", "groups", groups)
    spatial.expect_groups("conv_transpose", features, groups)
    _expect_arguments(kernel_size, strides, padding, output_padding, dilation)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        spatial.expect_convolvable("conv_transpose", x, kernel_size)
        window = primitives.per_axis("conv_transpose", "kernel_size", kernel_size, len(x.shape) - 2)
        inputs = spatial.of_each_group("conv_transpose", x, groups)
        # The keys of split(key), each on its own: the one that a bias of zeros ignores is then not compiled.
        kernel_key, bias_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        params = {"kernel": bits.draw(kernel_init, kernel_key, (*window, inputs, features), param_dtype(x))}
        if bias:
            params["bias"] = bias_init(bias_key, (features,), param_dtype(x))
        return params, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        kernel = params["kernel"].astype(x.dtype)
        spatial.expect_kernel("conv_transpose", x, kernel, kernel_size, groups, features)
        if bias:
            checks.expect_shape("conv_transpose", "bias", params["bias"], (features,))
        steps, holes = (
            primitives.per_axis("conv_transpose", name, value, x.ndim - 2)
            for name, value in (("strides", strides), ("dilation", dilation))
        )
        spans = _spans(x.shape[1:-1], kernel.shape[:-2], steps, holes, padding, output_padding)
        y = _transposed(x, kernel, steps, holes, spans, groups)
        return (y + primitives.along_last(params["bias"].astype(x.dtype), y.ndim) if bias else y), state

    return array_layer(init, apply, "conv_transpose", ("kernel", "bias") if bias else ("kernel",))


def _expect_arguments(kernel_size: Any, strides: Any, padding: Any, output_padding: Any, dilation: Any) -> None:
    primitives.expect_padding("conv_transpose", padding)
    counts = {"kernel_size": kernel_size, "strides": strides, "dilation": dilation}
    spatial.expect_counts("conv_transpose", counts)
    for count in output_padding if isinstance(output_padding, (tuple, list)) else (output_padding,):
        checks.expect_count("conv_transpose", "output_padding", count, 0)
        if count and padding == "SAME":
            fix = 'give padding in numbers, or leave output_padding out: "SAME" says how large the output is'
            checks.fail("conv_transpose", 'output_padding of 0 with padding="SAME"', str(output_padding), fix)


def _spans(
    sizes: Sequence[int], window: Sequence[int], strides: Sequence[int], holes: Sequence[int], padding: Any, more: Any
) -> list[tuple[int, int]]:
    """Where the output begins in all that the kernels cover, and where it ends, for each axis."""
    where, rank = "conv_transpose", len(sizes)
    if 0 in sizes:
        checks.fail(where, "spatial axes that are not empty", f"sizes {tuple(sizes)}", "pass a larger input")
    extents = [(count - 1) * hole + 1 for count, hole in zip(window, holes, strict=True)]
    if padding == "SAME":
        starts = [max(extent - stride, 0) // 2 for extent, stride in zip(extents, strides, strict=True)]
        return [(a, a + size * stride) for a, size, stride in zip(starts, sizes, strides, strict=True)]
    # Of a convolution, whose output these sizes would be, the padding is checked against its input.
    whole = [(size - 1) * stride + extent for size, stride, extent in zip(sizes, strides, extents, strict=True)]
    pairs = primitives.pads(where, padding, whole, [1] * rank, [1] * rank)
    added = more if isinstance(more, (tuple, list)) else (more,) * rank
    if len(added) != rank:
        fix = "give output_padding one number for each spatial axis, or one for all of them"
        checks.fail(where, f"output_padding for {rank} spatial axes", f"{len(added)} in {tuple(added)}", fix)
    for count, stride, hole in zip(added, strides, holes, strict=True):
        if count >= max(stride, hole):
            fix = "choose less: a convolution takes no more inputs than this to one size"
            checks.fail(where, f"output_padding below strides or dilation, {max(stride, hole)}", str(count), fix)
    spans = [(low, size - high + n) for size, (low, high), n in zip(whole, pairs, added, strict=True)]
    if any(start >= end for start, end in spans):
        fix = "take less padding, a larger kernel or a larger input"
        checks.fail(where, "an output of at least 1 in each spatial axis", f"{[b - a for a, b in spans]}", fix)
    return spans


def _transposed(
    x: Any, kernel: Any, strides: Sequence[int], holes: Sequence[int], spans: list[tuple[int, int]], groups: int
) -> Any:
    """A convolution of ``x`` with stride 1 makes the ``strides`` outputs that belong to one place as features of it.

    Output ``s * q + r`` is the sum over ``m`` of ``x[q - m] * kernel[s * m + r]``: for each ``r`` a convolution with
    every ``s``-th row of the kernel, flipped. Nothing is multiplied by the zeros that a convolution of ``x`` with
    zeros in between would meet, ``s`` times as many in each axis, and it is the form that is fast in a loop on CPU.
    """
    rank, features = len(strides), kernel.shape[-1]
    # Where the stride is 1 the convolution itself is dilated; elsewhere zeros fill the kernel.
    steps = [hole if stride == 1 else 1 for stride, hole in zip(strides, holes, strict=True)]
    rows = _rows(kernel, strides, [hole // step for hole, step in zip(holes, steps, strict=True)])
    first = [start // stride for (start, _), stride in zip(spans, strides, strict=True)]
    last = [-(-end // stride) for (_, end), stride in zip(spans, strides, strict=True)]
    around = [(count - 1) * step for count, step in zip(rows.shape, steps, strict=False)]
    pads = tuple((e - a, b - n) for e, a, b, n in zip(around, first, last, x.shape[1:-1], strict=True))
    y = primitives.conv(x, rows, strides=(1,) * rank, padding=pads, dilation=steps, groups=groups)
    y = y.reshape(*y.shape[:-1], features, *strides)
    order = [axis for i in range(rank) for axis in (i + 1, rank + 2 + i)]
    y = y.transpose(0, *order, rank + 1)
    y = y.reshape(x.shape[0], *((b - a) * stride for a, b, stride in zip(first, last, strides, strict=True)), features)
    starts = [start - a * stride for (start, _), a, stride in zip(spans, first, strides, strict=True)]
    ends = [at + end - start for at, (start, end) in zip(starts, spans, strict=True)]
    return lax.slice(y, (0, *starts, 0), (x.shape[0], *ends, features))


def _rows(kernel: Any, strides: Sequence[int], holes: Sequence[int]) -> Any:
    """The kernel flipped, ``(*window, n, features * product of strides)``: every stride-th row a kernel of its own."""
    rank = len(strides)
    extents = [(count - 1) * hole + 1 for count, hole in zip(kernel.shape, holes, strict=False)]
    wanted = [-(-extent // stride) * stride for extent, stride in zip(extents, strides, strict=True)]
    margins = [(0, b - a, hole - 1) for a, b, hole in zip(extents, wanted, holes, strict=True)]
    kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*margins, (0, 0, 0), (0, 0, 0)])
    split = [size for a, stride in zip(wanted, strides, strict=True) for size in (a // stride, stride)]
    kernel = lax.rev(kernel.reshape(*split, *kernel.shape[-2:]), range(0, 2 * rank, 2))
    order = [*range(0, 2 * rank, 2), 2 * rank, 2 * rank + 1, *range(1, 2 * rank, 2)]
    kernel = kernel.transpose(order)
    return kernel.reshape(*kernel.shape[: rank + 1], kernel.shape[rank + 1] * math.prod(strides))
