"""Layers that shift and scale their input to mean zero and variance one, or scale it to mean square one."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks
from funcnn.core import Layer, Tree, array_layer, param_dtype
from funcnn.primitives import along_last


def layer_norm(*, epsilon: Any = 1e-5, scale: bool = True, bias: bool = True) -> Layer:
    """Normalises the features of each position by their own mean and variance.

    Formula: ``y = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias``, mean and variance over the last axis

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params: ``scale (features,)`` unless ``scale=False``, ``bias (features,)`` unless ``bias=False``. State: none.

    Args:
        epsilon: added to the variance; may be a tracer.
        scale: whether each feature is scaled by a parameter that starts at one.
        bias: whether a parameter that starts at zero is added to each feature.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has no axis, or other features than the params were made for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
        >>> params, state = layers.layer_norm().init(jax.random.key(0), x)
        >>> print(layers.layer_norm().apply(params, state, x)[0].round(2))
        [[-1.22  0.    1.22]
         [-1.22  0.    1.22]]

    Notes:
        1. ``epsilon`` is PyTorch's; Flax takes 1e-6 and Keras 1e-3.
        2. Half precision is normalised in float32 and rounded once.

    Reference: Ba, Kiros and Hinton, "Layer normalization", 2016.
    """
    checks.expect_between("layer_norm", "epsilon", epsilon, 0.0, float("inf"))

    def normalised(params: Tree, x: Any) -> Any:
        # One batch axis: reductions and their gradients over a matrix are faster on CPU than over more axes.
        a = _widened(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return _scaled(*_centered(a, (-1,), epsilon), params)

    return _stateless("layer_norm", normalised, lambda x: None, scale, bias)


def batch_norm(*, momentum: Any = 0.9, epsilon: Any = 1e-5, scale: bool = True, bias: bool = True) -> Layer:
    """Normalises each feature: by the batch's mean and variance while training, by their running averages otherwise.

    Formula: ``y = (x - mean) / sqrt(var + epsilon) * scale + bias``. While training, ``mean`` and ``var`` are those of
    each feature over all other axes, ``n`` values, and the state becomes ``momentum * old + (1 - momentum) * new``,
    the new variance times ``n / (n - 1)``.

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params: ``scale (features,)`` unless ``scale=False``, ``bias (features,)`` unless ``bias=False``.
    State: ``mean (features,)`` from zero, ``var (features,)`` from one.

    Args:
        momentum: the part of the running averages that is kept at each step, from 0 to 1; may be a tracer.
        epsilon: added to the variance; may be a tracer.
        scale: whether each feature is scaled by a parameter that starts at one.
        bias: whether a parameter that starts at zero is added to each feature.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has fewer than two axes or other features than the state was made for, or there is one
            single value of each feature to normalise while training: its variance would be zero.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
        >>> layer = layers.batch_norm()
        >>> params, state = layer.init(jax.random.key(0), x)
        >>> y, state = layer.apply(params, state, x, training=True)
        >>> print(y.round(2))
        [[-1. -1.]
         [ 1.  1.]]
        >>> print(state["mean"], state["var"])
        [0.2 2. ] [ 1.1 20.9]

    Notes:
        1. ``momentum`` is the part kept, as in Keras and Flax (default 0.99 in both). PyTorch's is the part replaced:
           its default 0.1 is 0.9 here.
        2. The running variance averages the unbiased estimate, as in the paper and PyTorch, so that its expectation
           does not depend on the batch size; Keras and Flax average the biased one. While training, all normalise by
           the biased one.
        3. ``epsilon`` is PyTorch's and Flax's; Keras takes 1e-3.
        4. The variance is the mean of squared distances from the mean. ``mean(x^2) - mean(x)^2``, which Flax takes, is
           one pass less, and has hardly a digit right in float32 where the mean is a thousand times the deviation.
        5. Half precision is normalised in float32 and rounded once.
        6. A layer before it needs no bias: it would be subtracted with the mean.

    Reference: Ioffe and Szegedy, "Batch normalization: accelerating deep network training", 2015.
    """
    checks.expect_between("batch_norm", "momentum", momentum, 0.0, 1.0)
    checks.expect_between("batch_norm", "epsilon", epsilon, 0.0, float("inf"))

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        _expect_batch(x)
        shape, dtype = x.shape[-1:], param_dtype(x)
        return _affine(x, scale, bias), {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key
        _expect_batch(x, {**state, **params})
        a = _widened(x)
        mean, var = state["mean"].astype(a.dtype), state["var"].astype(a.dtype)
        if training:
            axes, n = tuple(range(x.ndim - 1)), _values_of_each_feature(x)
            mean = jnp.mean(a, axes)
            var = jnp.mean(jnp.square(a - along_last(mean, a.ndim)), axes)
            new = {"mean": mean, "var": var * (n / (n - 1))}
            state = {k: (momentum * old + (1 - momentum) * new[k]).astype(old.dtype) for k, old in state.items()}
        y = _scaled(a - along_last(mean, a.ndim), along_last(jax.lax.rsqrt(var + epsilon), a.ndim), params)
        return y.astype(x.dtype), state

    return array_layer(init, apply, "batch_norm", _names(scale, bias), ("mean", "var"))


def rms_norm(*, epsilon: Any = 1e-6, scale: bool = True) -> Layer:
    """Scales the features of each position by their own root mean square: ``layer_norm`` without the mean.

    Formula: ``y = x / sqrt(mean(x^2) + epsilon) * scale``, the mean over the last axis

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params: ``scale (features,)`` unless ``scale=False``. State: none.

    Args:
        epsilon: added to the mean square; may be a tracer. PyTorch takes 1.2e-7 in float32.
        scale: whether each feature is scaled by a parameter that starts at one.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has no axis, or other features than the params were made for.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> print(layers.rms_norm(scale=False).apply({}, {}, jnp.array([[0.0, 0.0, 6.0, 0.0]]))[0].round(2))
        [[0. 0. 2. 0.]]

    Reference: Zhang and Sennrich, "Root mean square layer normalization", 2019.
    """
    checks.expect_between("rms_norm", "epsilon", epsilon, 0.0, float("inf"))

    def normalised(params: Tree, x: Any) -> Any:
        a = _widened(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return _scaled(a, jax.lax.rsqrt(jnp.mean(jnp.square(a), axis=-1, keepdims=True) + epsilon), params)

    return _stateless("rms_norm", normalised, lambda x: None, scale, False)


def group_norm(groups: int, *, epsilon: Any = 1e-5, scale: bool = True, bias: bool = True) -> Layer:
    """Normalises each example by the mean and variance of groups of neighbouring features, over all positions.

    Formula: ``y = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias``, mean and variance over the features of a
    group and all axes between batch and features

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params: ``scale (features,)`` unless ``scale=False``, ``bias (features,)`` unless ``bias=False``. State: none.

    Args:
        groups: how many; they must divide the features.
        epsilon: added to the variance; may be a tracer.
        scale: whether each feature is scaled by a parameter that starts at one.
        bias: whether a parameter that starts at zero is added to each feature.

    Raises:
        TypeError: the input is not floating, or ``groups`` is not a whole number.
        ValueError: the input has fewer than two axes, features that ``groups`` do not divide, or others than at init.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
        >>> print(layers.group_norm(2, scale=False, bias=False).apply({}, {}, x)[0].round(2))
        [[-1.  1. -1.  1.]]

    Reference: Wu and He, "Group normalization", 2018.
    """
    groups = checks.expect_count("group_norm", "groups", groups)
    checks.expect_between("group_norm", "epsilon", epsilon, 0.0, float("inf"))

    def expect(x: Any) -> None:
        checks.expect_rank("group_norm", x, 2, "(batch, ..., features)", "add a batch axis: x[None]")
        if x.shape[-1] % groups:
            got = f"{x.shape[-1]} in an input of shape {tuple(x.shape)}"
            checks.fail("group_norm", f"features that {groups} groups divide", got, "choose groups that divide them")

    return _stateless("group_norm", lambda p, x: _by_groups(x, groups, epsilon, p), expect, scale, bias)


def instance_norm(*, epsilon: Any = 1e-5, scale: bool = True, bias: bool = True) -> Layer:
    """Normalises each feature of each example by its own mean and variance over all positions.

    Formula: as ``group_norm`` with a group for each feature; there are no running averages, training or not.

    Shapes: ``(batch, *spatial, features) -> (batch, *spatial, features)`` for any number of spatial axes.

    Params: ``scale (features,)`` unless ``scale=False``, ``bias (features,)`` unless ``bias=False``. State: none.

    Args:
        epsilon: added to the variance; may be a tracer.
        scale: whether each feature is scaled by a parameter that starts at one. In PyTorch it is not, by default.
        bias: whether a parameter that starts at zero is added to each feature. Likewise.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has one position only, where the variance would be zero, or other features than at init.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
        >>> print(layers.instance_norm(scale=False, bias=False).apply({}, {}, x)[0].round(2))
        [[[-1. -1.]
          [ 1.  1.]]]

    Reference: Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016.
    """
    checks.expect_between("instance_norm", "epsilon", epsilon, 0.0, float("inf"))

    def expect(x: Any) -> None:
        if math.prod(x.shape[1:-1]) == 1:
            fix = "a single one has no variance; normalise over the features with layer_norm"
            expected = "(batch, *spatial, features) with at least 2 positions"
            checks.fail("instance_norm", expected, f"shape {tuple(x.shape)}", fix)

    return _stateless("instance_norm", lambda p, x: _by_groups(x, x.shape[-1], epsilon, p), expect, scale, bias)


def _stateless(
    kind: str, normalised: Callable[[Tree, Any], Any], expect: Callable[[Any], None], scale: bool, bias: bool
) -> Layer:
    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        _expect_features(kind, x)
        expect(x)
        return _affine(x, scale, bias), {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        _expect_features(kind, x)
        expect(x)
        _expect_sizes(kind, x, params)
        return normalised(params, x).astype(x.dtype).reshape(x.shape), state

    return array_layer(init, apply, kind, _names(scale, bias))


def _centered(a: Any, axes: tuple[int, ...], epsilon: Any) -> tuple[Any, Any]:
    centered = a - jnp.mean(a, axes, keepdims=True)
    return centered, jax.lax.rsqrt(jnp.mean(jnp.square(centered), axes, keepdims=True) + epsilon)


def _by_groups(x: Any, groups: int, epsilon: Any, params: Tree) -> Any:
    batch, positions, features = x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]
    a = _widened(x).reshape(batch, positions, groups, features // groups)
    centered, factor = _centered(a, (1, 3), epsilon)
    factor = jnp.broadcast_to(factor, (batch, 1, groups, features // groups))
    return _scaled(centered.reshape(batch, positions, features), factor.reshape(batch, 1, features), params)


def _affine(x: Any, scale: bool, bias: bool) -> Tree:
    shape, dtype = x.shape[-1:], param_dtype(x)
    return ({"scale": jnp.ones(shape, dtype)} if scale else {}) | ({"bias": jnp.zeros(shape, dtype)} if bias else {})


def _names(scale: bool, bias: bool) -> list[str]:
    return [name for name, is_there in (("scale", scale), ("bias", bias)) if is_there]


def _widened(x: Any) -> Any:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _scaled(centered: Any, factor: Any, params: Tree) -> Any:
    factor = factor.astype(centered.dtype)  # a traced epsilon may be wider than the input
    if "scale" in params:
        factor = factor * along_last(params["scale"].astype(centered.dtype), centered.ndim)
    y = centered * factor
    return y + along_last(params["bias"].astype(y.dtype), y.ndim) if "bias" in params else y


def _values_of_each_feature(x: Any) -> int:
    count = math.prod(x.shape[:-1])
    if count == 1:
        checks.fail(
            "batch_norm",
            "at least 2 values of each feature when training",
            f"1 in an input of shape {tuple(x.shape)}",
            "take a larger batch, or drop_last=True where one example is left over; one value has no variance",
        )
    return count


def _expect_batch(x: Any, made: Tree | None = None) -> None:
    checks.expect_rank("batch_norm", x, 2, "(batch, ..., features)", "add a batch axis: x[None]")
    _expect_features("batch_norm", x)
    _expect_sizes("batch_norm", x, made or {})


def _expect_features(where: str, x: Any) -> None:
    checks.expect_rank(where, x, 1, "(batch, ..., features)", "pass an array with a last axis of features")
    checks.expect_floating(where, x)


def _expect_sizes(where: str, x: Any, made: Tree) -> None:
    for name, array in made.items():
        if array.shape != x.shape[-1:]:
            checks.fail(
                where,
                f"{array.shape[0]} input features, as its {name} {tuple(array.shape)} has",
                f"{x.shape[-1]} in an input of shape {tuple(x.shape)}",
                "pass inputs of the shape that init was given, or init again",
            )
