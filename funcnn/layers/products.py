"""Products with a weight along other axes, of two inputs, or by element; and the sum with one."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, ones, zeros

from funcnn import bits, checks, primitives
from funcnn.core import Layer, Tree, array_layer, expect_entries, expect_key, param_dtype, shown, spec, with_features
from funcnn.core import features as features_of

Initializer = Callable[..., Any]


def einsum(
    equation: str,
    shape: Sequence[int],
    *,
    bias: bool = False,
    kernel_init: Initializer = glorot_uniform(),
    bias_init: Initializer = zeros,
) -> Layer:
    """A product with a weight along axes that an equation names.

    Formula: ``y = einsum(equation, x, kernel) + bias``

    Shapes: as the equation says; its first operand is the input, its second the kernel. The batch comes first.

    Params: ``kernel (*shape)``; with ``bias=True`` ``bias``, of the shape of the output without its first axis.
    State: none.

    Args:
        equation: as in ``jnp.einsum``, such as ``"btf,fhd->bthd"``; ``...`` is allowed.
        shape: of the kernel.
        bias: whether to add one.
        kernel_init: from ``jax.nn.initializers``; of a kernel with several axes it takes the last two for in and out.
        bias_init: likewise.

    Raises:
        TypeError: the input is not floating, or the equation not a string.
        ValueError: the equation has not two operands and a result, or does not fit the shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> layer = layers.einsum("btf,fhd->bthd", (8, 2, 4))
        >>> params, state = layer.init(jax.random.key(0), jnp.ones((5, 6, 8)))
        >>> layer.apply(params, state, jnp.ones((5, 6, 8)))[0].shape
        (5, 6, 2, 4)

    Reference: ``nn.Einsum`` of Flax.
    """
    if not isinstance(equation, str):
        fix = 'write one such as "bf,fg->bg"'
        checks.fail("einsum", "an equation as a string", type(equation).__name__, fix, TypeError)
    if equation.count(",") != 1 or equation.count("->") != 1:
        fix = 'write "input,kernel->output", such as "bf,fg->bg"'
        checks.fail("einsum", "an equation with two operands and a result", repr(equation), fix)
    sizes = tuple(checks.expect_count("einsum", "shape", size) for size in shape)

    def product(x: Any, kernel: Any) -> Any:
        try:
            return jnp.einsum(equation, x, kernel)
        except (ValueError, TypeError) as error:
            got = f"an input of shape {tuple(x.shape)} and a kernel of shape {tuple(kernel.shape)}"
            checks.fail("einsum", f"shapes that fit {equation!r}", got, f"change one of them ({error})")

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        checks.expect_floating("einsum", x)
        kernel_key, bias_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        params = {"kernel": bits.draw(kernel_init, kernel_key, sizes, param_dtype(x))}
        y = jax.eval_shape(product, x, params["kernel"])
        if bias:
            params["bias"] = bias_init(bias_key, y.shape[1:], param_dtype(x))
        return params, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        checks.expect_floating("einsum", x)
        checks.expect_shape("einsum", "kernel", params["kernel"], sizes)
        y = product(x, params["kernel"].astype(x.dtype))
        if bias:
            checks.expect_shape("einsum", "bias", params["bias"], y.shape[1:])
        return (y + params["bias"].astype(x.dtype)[None] if bias else y), state

    return array_layer(init, apply, "einsum", ("kernel", "bias") if bias else ("kernel",))


def bias(*, bias_init: Initializer = zeros) -> Layer:
    """Adds a parameter to each feature.

    Formula: ``y = x + bias``

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params: ``bias (features,)``. State: none.

    Args:
        bias_init: from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has no axis, or other features than the params were made for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> params, state = layers.bias().init(jax.random.key(0), jnp.ones((5, 3)))
        >>> print(layers.bias().apply(params, state, jnp.ones((1, 3)))[0])
        [[1. 1. 1.]]

    Reference: ``hk.Bias`` of Haiku.
    """
    return _by_feature("bias", bias_init, jnp.add)


def scale(*, scale_init: Initializer = ones) -> Layer:
    """Multiplies each feature by a parameter.

    Formula: ``y = x scale``

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params: ``scale (features,)``. State: none.

    Args:
        scale_init: from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has no axis, or other features than the params were made for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> layer = layers.scale(scale_init=jax.nn.initializers.constant(0.1))
        >>> params, state = layer.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> print(layer.apply(params, state, jnp.ones((1, 3)))[0])
        [[0.1 0.1 0.1]]

    Reference: Touvron et al., "Going deeper with image transformers", 2021.
    """
    return _by_feature("scale", scale_init, jnp.multiply)


def _by_feature(kind: str, initializer: Initializer, operation: Callable[[Any, Any], Any]) -> Layer:
    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        _expect_features(x, kind)
        return {kind: bits.draw(initializer, key, x.shape[-1:], param_dtype(x))}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        _expect_features(x, kind)
        if params[kind].shape != x.shape[-1:]:
            got, fix = f"{x.shape[-1]} in an input of shape {tuple(x.shape)}", "pass inputs as init was given"
            checks.fail(kind, f"{params[kind].shape[0]} features", got, fix)
        return operation(x, primitives.along_last(params[kind].astype(x.dtype), x.ndim)), state

    return array_layer(init, apply, kind, (kind,))


def bilinear(
    features: int,
    *,
    bias: bool = True,
    kernel_init: Initializer = glorot_uniform(batch_axis=0),
    bias_init: Initializer = zeros,
) -> Layer:
    """A product of two inputs: every output feature is a weighted sum over all pairs of their features.

    Formula: ``y[..., f] = sum over i, j of a[..., i] kernel[f, i, j] b[..., j] + bias[f]``

    Shapes: a tuple of ``(batch, ..., n)`` and ``(batch, ..., m)`` ``-> (batch, ..., features)``

    Params: ``kernel (features, n, m)``, ``bias (features,)`` unless ``bias=False``. State: none.

    Args:
        features: the number of output features.
        bias: whether to add one.
        kernel_init: from ``jax.nn.initializers``.
        bias_init: likewise.

    Raises:
        TypeError: the input is not a tuple of two floating arrays.
        ValueError: the two differ in other axes than the last, or have other features than the kernel was made for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> layer, pair = layers.bilinear(4), (jnp.ones((5, 2)), jnp.ones((5, 3)))
        >>> params, state = layer.init(jax.random.key(0), pair)
        >>> params["kernel"].shape, layer.apply(params, state, pair)[0].shape
        ((4, 2, 3), (5, 4))

    Reference: ``torch.nn.Bilinear``.
    """
    features = checks.expect_count("bilinear", "features", features)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key("bilinear.init", key)
        a, b = pair_of(spec(x))
        kernel_key, bias_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        params = {"kernel": bits.draw(kernel_init, kernel_key, (features, a.shape[-1], b.shape[-1]), param_dtype(a))}
        if bias:
            params["bias"] = bias_init(bias_key, (features,), param_dtype(a))
        return params, {}

    def pair_of(x: Any) -> tuple[Any, Any]:
        pair = features_of("bilinear", x)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            got, fix = f"shape {shown(x)}", "pass (a, b)"
            checks.fail("bilinear", "a tuple of two arrays", got, fix, TypeError)
        a, b = pair
        for each in pair:
            checks.expect_floating("bilinear", each)
            checks.expect_rank(
                "bilinear", each, 1, "(batch, ..., features)", "pass arrays with a last axis of features"
            )
        if a.shape[:-1] != b.shape[:-1]:
            got = f"{tuple(a.shape)} and {tuple(b.shape)}"
            checks.fail("bilinear", "two arrays that differ in the last axis alone", got, "shapes are never broadcast")
        return a, b

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        expect_entries("bilinear", "params", params, ("kernel", "bias") if bias else ("kernel",))
        a, b = pair_of(jax.tree.map(jnp.asarray, x))
        dtype = jnp.result_type(a.dtype, b.dtype)
        kernel = params["kernel"].astype(dtype)
        if kernel.shape[1:] != (a.shape[-1], b.shape[-1]):
            got = f"{a.shape[-1]} and {b.shape[-1]}"
            fix = "pass inputs of the shapes that init was given, or init again"
            checks.fail("bilinear", f"{kernel.shape[1]} and {kernel.shape[2]} input features", got, fix)
        checks.expect_shape("bilinear", "kernel", kernel, (features, *kernel.shape[1:]))
        if bias:
            checks.expect_shape("bilinear", "bias", params["bias"], (features,))
        n, m = kernel.shape[1:]
        # One product over the first, then one by element over the second: a batch of matrices is never written out.
        left = primitives.matmul(a, jnp.moveaxis(kernel, 0, 1).reshape(n, features * m))
        y = jnp.sum(left.reshape(*a.shape[:-1], features, m) * b[..., None, :], axis=-1)
        y = y + primitives.along_last(params["bias"].astype(dtype), y.ndim) if bias else y
        return with_features(x, y), state

    return Layer(init, apply, "bilinear")


def _expect_features(x: Any, kind: str) -> None:
    checks.expect_rank(kind, x, 1, "(batch, ..., features)", "pass an array with a last axis of features")
    checks.expect_floating(kind, x)
