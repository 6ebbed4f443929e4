"""Convolution over one, two or three spatial axes: a small kernel that is the same wherever it is laid."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, zeros

from funcnn import bits, checks, primitives, spatial
from funcnn.core import Layer, Tree, array_layer, composite, param_dtype

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
            window is larger than the input, an argument has the wrong length, or the params are of other sizes.

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
    spatial.expect_groups("conv", features, groups)

    def kernel(key: Any, x: Any, window: tuple[int, ...]) -> Any:
        inputs = spatial.of_each_group("conv", x, groups)
        return bits.draw(kernel_init, key, (*window, inputs, features), param_dtype(x))

    initial = kernel, bias_init if bias else None
    sizes = (lambda kernel: groups), (lambda inputs: features)
    return _convolving("conv", initial, sizes, kernel_size, strides, padding, dilation)


def depthwise_conv(
    kernel_size: Counts,
    *,
    multiplier: int = 1,
    strides: Counts = 1,
    padding: Padding = "SAME",
    dilation: Counts = 1,
    bias: bool = True,
    kernel_init: Initializer = glorot_uniform(),
    bias_init: Initializer = zeros,
) -> Layer:
    """A convolution of each feature by itself, with one or several kernels of its own.

    Formula: ``y[b, i, c * multiplier + m] = bias[..] + sum over j of
    kernel[j, 0, c * multiplier + m] * x[b, strides * i + dilation * j - before, c]``, as in ``conv``.

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', n * multiplier)`` for one, two or three spatial axes; the sizes
    are those of ``conv``.

    Params: ``kernel (*kernel_size, 1, n * multiplier)``, ``bias (n * multiplier,)`` unless ``bias=False``. State: none.

    Args:
        kernel_size: a number, the same for all the spatial axes that the input turns out to have, or one for each.
        multiplier: how many outputs each feature has.
        strides: how far the window moves; as ``dilation``, a number for all spatial axes or one for each.
        padding: ``"SAME"``, ``"VALID"`` (none), or zeros on both sides: a number, or one number or pair for each axis.
        dilation: the distance between neighbours in the window.
        bias: whether to add one.
        kernel_init: from ``jax.nn.initializers``; called for each feature, with the window and its outputs alone.
        bias_init: likewise from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating, or a count is not a whole number.
        ValueError: the input has other axes or features than the kernel was made for or is smaller than the window,
            an argument has the wrong length, or the params are of other sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model, images = layers.depthwise_conv(3, multiplier=2), jnp.ones((5, 28, 28, 4))
        >>> params, state = model.init(jax.random.key(0), images)
        >>> jax.tree.map(jnp.shape, params)
        {'bias': (8,), 'kernel': (3, 3, 1, 8)}
        >>> model.apply(params, state, images)[0].shape
        (5, 28, 28, 8)

    Reference: Sifre, "Rigid-motion scattering for image classification", 2014. Differs from Keras and Flax: the
    variance of the kernel does not shrink with the number of features, since each output sees only one of them.
    """
    multiplier = checks.expect_count("depthwise_conv", "multiplier", multiplier)

    def kernel(key: Any, x: Any, window: tuple[int, ...]) -> Any:
        keys = jax.random.split(key, x.shape[-1])
        each = jax.vmap(lambda key: bits.draw(kernel_init, key, (*window, 1, multiplier), param_dtype(x)))(keys)
        return jnp.moveaxis(each, 0, -2).reshape(*window, 1, x.shape[-1] * multiplier)

    initial = kernel, bias_init if bias else None
    sizes = (lambda kernel: kernel.shape[-1] // multiplier), (lambda inputs: inputs * multiplier)
    return _convolving("depthwise_conv", initial, sizes, kernel_size, strides, padding, dilation)


def separable_conv(
    features: int,
    kernel_size: Counts,
    *,
    multiplier: int = 1,
    strides: Counts = 1,
    padding: Padding = "SAME",
    dilation: Counts = 1,
    bias: bool = True,
    kernel_init: Initializer = glorot_uniform(),
    bias_init: Initializer = zeros,
) -> Layer:
    """A convolution in two: each feature by itself over the window, then a mixture of the features at each point.

    Formula: ``y = conv(features, 1)(depthwise_conv(kernel_size)(x))``, the first without a bias

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', features)``, the sizes those of ``conv``.

    Params: those of two children, ``depthwise`` with ``kernel (*kernel_size, 1, n * multiplier)``, and ``pointwise``
    with ``kernel (1, ..., n * multiplier, features)`` and ``bias (features,)`` unless ``bias=False``. State: none.

    Args:
        features: the number of output features.
        kernel_size: a number, the same for all the spatial axes that the input turns out to have, or one for each.
        multiplier: how many features the first convolution makes of each.
        strides: how far the window moves; as ``dilation``, a number for all spatial axes or one for each.
        padding: ``"SAME"``, ``"VALID"`` (none), or zeros on both sides: a number, or one number or pair for each axis.
        dilation: the distance between neighbours in the window.
        bias: whether to add one in the end.
        kernel_init: of both kernels, from ``jax.nn.initializers``.
        bias_init: likewise from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating, or a count is not a whole number.
        ValueError: as ``depthwise_conv``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model, images = layers.separable_conv(8, 3), jnp.ones((5, 28, 28, 4))
        >>> params, state = model.init(jax.random.key(0), images)
        >>> jax.tree.map(jnp.shape, params)
        {'depthwise': {'kernel': (3, 3, 1, 4)}, 'pointwise': {'bias': (8,), 'kernel': (1, 1, 4, 8)}}
        >>> model.apply(params, state, images)[0].shape
        (5, 28, 28, 8)

    Reference: Chollet, "Xception: deep learning with depthwise separable convolutions", 2017.
    """
    features = checks.expect_count("separable_conv", "features", features)
    multiplier = checks.expect_count("separable_conv", "multiplier", multiplier)
    _expect_arguments("separable_conv", kernel_size, strides, padding, dilation)
    depthwise = depthwise_conv(
        kernel_size,
        multiplier=multiplier,
        strides=strides,
        padding=padding,
        dilation=dilation,
        bias=False,
        kernel_init=kernel_init,
    )
    pointwise = conv(features, 1, bias=bias, kernel_init=kernel_init, bias_init=bias_init)
    children = (("depthwise", depthwise), ("pointwise", pointwise))
    return composite("separable_conv", children, lambda call, x: call("pointwise", call("depthwise", x)))


def _convolving(
    kind: str,
    initial: tuple[Initializer, Initializer | None],
    sizes: tuple[Callable[[Any], int], Callable[[int], int]],
    kernel_size: Any,
    strides: Any,
    padding: Any,
    dilation: Any,
) -> Layer:
    """The pair of ``init`` and ``apply``; ``sizes`` tell groups from a kernel, and features from the input's."""
    _expect_arguments(kind, kernel_size, strides, padding, dilation)
    (kernel_of, bias_init), (groups_of, features_of) = initial, sizes

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        spatial.expect_convolvable(kind, x, kernel_size)
        window = primitives.per_axis(kind, "kernel_size", kernel_size, len(x.shape) - 2)
        # The keys of split(key), each on its own: the one that a bias of zeros ignores is then not compiled.
        kernel_key, bias_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        params = {"kernel": kernel_of(kernel_key, x, window)}
        if bias_init is not None:
            params["bias"] = bias_init(bias_key, params["kernel"].shape[-1:], param_dtype(x))
        return params, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        kernel = params["kernel"].astype(x.dtype)
        groups, features, rank = groups_of(kernel), features_of(x.shape[-1] if x.ndim else 0), x.ndim - 2
        spatial.expect_kernel(kind, x, kernel, kernel_size, groups, features)
        if bias_init is not None:
            checks.expect_shape(kind, "bias", params["bias"], (features,))
        steps = primitives.per_axis(kind, "strides", strides, rank)
        holes = primitives.per_axis(kind, "dilation", dilation, rank)
        extents = [(count - 1) * hole + 1 for count, hole in zip(kernel.shape, holes, strict=False)]
        pads = primitives.pads(kind, padding, x.shape[1:-1], extents, steps)
        y = primitives.conv(x, kernel, strides=steps, padding=pads, dilation=holes, groups=groups)
        return (y if bias_init is None else y + primitives.along_last(params["bias"].astype(x.dtype), y.ndim)), state

    return array_layer(init, apply, kind, ("kernel",) if bias_init is None else ("kernel", "bias"))


def _expect_arguments(kind: str, kernel_size: Any, strides: Any, padding: Any, dilation: Any) -> None:
    primitives.expect_padding(kind, padding)
    spatial.expect_counts(kind, {"kernel_size": kernel_size, "strides": strides, "dilation": dilation})
