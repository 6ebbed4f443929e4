"""Convolution over one, two or three spatial axes: a small kernel that is the same wherever it is laid."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.nn.initializers import glorot_uniform, zeros

from funcnn import checks, primitives
from funcnn.core import Layer, Tree, array_layer, param_dtype

Initializer = Callable[..., Any]
Counts = int | Sequence[int]
Padding = str | int | Sequence[int | Sequence[int]]


def conv(
    features: int,
    kernel_size: Counts,
    *,
    strides: Counts = 1,
    padding: Padding = "SAME",
    dilation: Counts = 1,
    groups: int = 1,
    bias: bool = True,
    kernel_init: Initializer = glorot_uniform(),
    bias_init: Initializer = zeros,
) -> Layer:
    """A convolution: every output is a weighted sum of the features in a window that moves over the spatial axes.

    Formula: ``y[b, i, f] = bias[f] + sum over j, c of kernel[j, c, f] * x[b, strides * i + dilation * j - before, c]``,
    with one ``i`` and one ``j`` for each spatial axis, ``before`` the padding before it, and zeros outside of ``x``.

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', features)`` for one, two or three spatial axes, features last
    (``NWC``, ``NHWC``, ``NDHWC``). With ``padding="SAME"`` ``spatial' = ceil(spatial / strides)``; else
    ``spatial' = (spatial + before + after - dilation * (kernel_size - 1) - 1) // strides + 1``.

    Params: ``kernel (*kernel_size, n // groups, features)``, ``bias (features,)`` unless ``bias=False``. State: none.

    Args:
        features: the number of output features.
        kernel_size: a number, the same for all the spatial axes that the input turns out to have, or one for each.
        strides: how far the window moves; as ``dilation``, a number for all spatial axes or one for each.
        padding: ``"SAME"``, ``"VALID"`` (none), or zeros on both sides: a number, or one number or pair for each axis.
        dilation: the distance between neighbours in the window.
        groups: input and output features fall into so many groups that do not see one another; as many as there are
            input features make a depthwise convolution.
        bias: whether to add one.
        kernel_init: from ``jax.nn.initializers``; it counts the window among the inputs.
        bias_init: likewise from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating, or a count is not a whole number.
        ValueError: the input has other axes or features than the kernel was made for, ``groups`` divides them not, the
            window is larger than the input, or an argument has the wrong length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model, images = layers.conv(8, 3, strides=2), jnp.ones((5, 28, 28, 1))
        >>> params, state = model.init(jax.random.key(0), images)
        >>> jax.tree.map(jnp.shape, params)
        {'bias': (8,), 'kernel': (3, 3, 1, 8)}
        >>> model.apply(params, state, images)[0].shape
        (5, 14, 14, 8)

    Reference: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    Differs from it and from the definition in mathematics: (1) the kernel is not flipped, as in all libraries of
    today. Differs from PyTorch: (2) features come last; (3) the padding is ``"SAME"`` unless said otherwise, and where
    it is odd the larger half comes after, also with strides, as in TensorFlow.
    """
    features = checks.expect_count("conv", "features", features)
    groups = checks.expect_count("conv", "groups", groups)
    if features % groups:
        checks.fail("conv", f"features that {groups} groups divide", str(features), "choose a multiple of groups")
    primitives.expect_padding("conv", padding)
    for name, value in (("kernel_size", kernel_size), ("strides", strides), ("dilation", dilation)):
        primitives.per_axis("conv", name, value, _rank(kernel_size, value))

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        _expect_input(x, kernel_size)
        inputs, window = x.shape[-1], primitives.per_axis("conv", "kernel_size", kernel_size, len(x.shape) - 2)
        if inputs % groups:
            got = f"{inputs} in an input of shape {tuple(x.shape)}"
            checks.fail("conv", f"input features that {groups} groups divide", got, "choose groups that divide both")
        # The keys of split(key), each on its own: the one that a bias of zeros ignores is then not compiled.
        kernel_key, bias_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        params = {"kernel": kernel_init(kernel_key, (*window, inputs // groups, features), param_dtype(x))}
        if bias:
            params["bias"] = bias_init(bias_key, (features,), param_dtype(x))
        return params, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        kernel = params["kernel"].astype(x.dtype)
        _expect_input(x, kernel.shape[:-2])
        _expect_features(x, kernel.shape, groups)
        rank = x.ndim - 2
        steps = primitives.per_axis("conv", "strides", strides, rank)
        holes = primitives.per_axis("conv", "dilation", dilation, rank)
        extents = [(count - 1) * hole + 1 for count, hole in zip(kernel.shape, holes, strict=False)]
        pads = primitives.pads("conv", padding, x.shape[1:-1], extents, steps)
        y = primitives.conv(x, kernel, strides=steps, padding=pads, dilation=holes, groups=groups)
        return (y + primitives.along_last(params["bias"].astype(x.dtype), y.ndim) if bias else y), state

    return array_layer(init, apply, "conv")


def _rank(kernel_size: Any, value: Any) -> int:
    """As many axes as ``kernel_size`` fixes; where it fixes none, as many as ``value`` has, to check the rest of it."""
    sized = kernel_size if isinstance(kernel_size, (tuple, list)) else value
    return len(sized) if isinstance(sized, (tuple, list)) else 1


def _expect_input(x: Any, kernel_size: Any) -> None:
    checks.expect_floating("conv", x)
    ranks = (len(kernel_size),) if isinstance(kernel_size, (tuple, list)) else (1, 2, 3)
    rank, shape = len(x.shape) - 2, tuple(x.shape)
    if rank not in ranks or rank > 3:
        axes = " or ".join(str(r) for r in ranks)
        fix = "reshape the input"
        if rank + 1 in ranks:
            fix = "if the axis of features is missing, add it: x[..., None]; if that of the batch is, x[None]"
        checks.fail("conv", f"(batch, *spatial, features) with {axes} spatial axes", f"shape {shape}", fix)


def _expect_features(x: Any, kernel_shape: tuple[int, ...], groups: int) -> None:
    expected, got = kernel_shape[-2] * groups, x.shape[-1]
    if got == expected:
        return
    fix = "pass inputs of the shape that init was given, or init again"
    if x.shape[1] == expected:
        fix = "features come last, here and at init: jnp.moveaxis(x, 1, -1) where they come first"
    of = f" in {groups} groups" if groups > 1 else ""
    checks.fail(
        "conv",
        f"{expected} input features{of}, as its kernel {tuple(kernel_shape)} has",
        f"{got} in an input of shape {tuple(x.shape)}, {expected} against {got} features",
        fix,
    )
