"""Layers that draw random numbers while training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks
from funcnn.core import (
    Layer,
    Tree,
    array_layer,
    composite,
    expect_key,
    features,
    named_children,
    shown,
    with_features,
)


def dropout(rate: Any) -> Layer:
    """While training, sets each feature to zero with probability ``rate`` and scales up the others; else the identity.

    Formula: ``y = x m / (1 - rate)``, with ``m = 0`` with probability ``rate`` and 1 otherwise, drawn for each entry;
    ``y = 0`` at a rate of 1. So the mean of ``y`` is ``x``. The gradient by ``rate`` is that of the scale alone, with
    the draws held fixed.

    Shapes: ``(batch, ...) -> (batch, ...)``

    Params and State: none.

    Args:
        rate: the probability of dropping, from 0 to 1, both exact; may be a tracer.

    Raises:
        TypeError: there is no key while training, or the input is not floating.
        ValueError: ``rate`` is not between 0 and 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.ones((1, 8))
        >>> print(layers.dropout(0.5).apply({}, {}, x)[0])
        [[1. 1. 1. 1. 1. 1. 1. 1.]]
        >>> y, _ = layers.dropout(0.5).apply({}, {}, x, key=jax.random.key(0), training=True)
        >>> sorted(set(y.ravel().tolist()))
        [0.0, 2.0]
        >>> layers.dropout(0.5).apply({}, {}, x, training=True)
        Traceback (most recent call last):
        ...
        TypeError: dropout: expected a key when training, got None; pass key=jax.random.key(0) to apply, ...

    Notes:
        1. ``rate`` is the probability of dropping, as in PyTorch, Keras and Flax; in stax and in the paper it is that
           of keeping.

    Reference: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014.
    """
    checks.expect_between("dropout", "rate", rate, 0.0, 1.0)
    return _drawing("dropout", lambda key, x: _dropped(key, rate, x, x.shape))


def spatial_dropout(rate: Any) -> Layer:
    """As ``dropout``, but of each example a feature is set to zero as a whole, at all positions, or not at all.

    Formula: ``y[b, i, f] = x[b, i, f] m[b, f] / (1 - rate)``, with ``m = 0`` with probability ``rate`` and 1 otherwise;
    ``y = 0`` at a rate of 1.

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params and State: none.

    Args:
        rate: the probability of dropping, from 0 to 1, both exact; may be a tracer.

    Raises:
        TypeError: there is no key while training, or the input is not floating.
        ValueError: ``rate`` is not between 0 and 1, or the input has fewer than two axes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> y, _ = layers.spatial_dropout(0.5).apply({}, {}, jnp.ones((1, 3, 4)), key=jax.random.key(0), training=True)
        >>> bool((y == y[:, :1]).all())
        True

    Reference: Tompson et al., "Efficient object localization using convolutional networks", 2015. PyTorch's
    ``Dropout1d`` to ``Dropout3d`` in one.
    """
    checks.expect_between("spatial_dropout", "rate", rate, 0.0, 1.0)
    return _drawing("spatial_dropout", lambda key, x: _dropped(key, rate, x, _of_each_feature(x)), 2)


def alpha_dropout(rate: Any) -> Layer:
    """While training, sets entries to the low end of ``selu``, mean zero and variance one preserved; else the identity.

    Formula: ``y = a (x m + s (1 - m)) + b``, with ``m = 0`` with probability ``rate`` and 1 otherwise, ``s = -1.7581``,
    the limit of ``selu`` below, ``a = ((1 - rate) (1 + rate s^2))^(-1/2)`` and ``b = -a rate s``; ``y = 0`` at a rate
    of 1.

    Shapes: ``(batch, ...) -> (batch, ...)``

    Params and State: none.

    Args:
        rate: the probability of dropping, from 0 to 1, both exact; may be a tracer.

    Raises:
        TypeError: there is no key while training, or the input is not floating.
        ValueError: ``rate`` is not between 0 and 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> y, _ = layers.alpha_dropout(0.5).apply({}, {}, jnp.ones((1, 8)), key=jax.random.key(0), training=True)
        >>> [round(value, 2) for value in sorted(set(y.ravel().tolist()))]
        [-0.78, 1.67]

    Reference: Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", 2017.
    """
    checks.expect_between("alpha_dropout", "rate", rate, 0.0, 1.0)
    return _drawing("alpha_dropout", lambda key, x: _saturated(key, rate, x, x.shape))


def feature_alpha_dropout(rate: Any) -> Layer:
    """As ``alpha_dropout``, but of each example a feature is set as a whole, at all positions, or not at all.

    Formula: that of ``alpha_dropout``, with one ``m`` for each feature of each example

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params and State: none.

    Args:
        rate: the probability of dropping, from 0 to 1, both exact; may be a tracer.

    Raises:
        TypeError: there is no key while training, or the input is not floating.
        ValueError: ``rate`` is not between 0 and 1, or the input has fewer than two axes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> x, key = jnp.ones((1, 3, 4)), jax.random.key(0)
        >>> y, _ = layers.feature_alpha_dropout(0.5).apply({}, {}, x, key=key, training=True)
        >>> bool((y == y[:, :1]).all())
        True

    Reference: as ``alpha_dropout``; the layer of this name in PyTorch.
    """
    checks.expect_between("feature_alpha_dropout", "rate", rate, 0.0, 1.0)
    return _drawing("feature_alpha_dropout", lambda key, x: _saturated(key, rate, x, _of_each_feature(x)), 2)


def gaussian_noise(std: Any) -> Layer:
    """While training, adds normal noise to each entry; else the identity.

    Formula: ``y = x + std z``, with ``z`` of mean zero and variance one, drawn for each entry

    Shapes: ``(batch, ...) -> (batch, ...)``

    Params and State: none.

    Args:
        std: the standard deviation of the noise, 0 or more; may be a tracer.

    Raises:
        TypeError: there is no key while training, or the input is not floating.
        ValueError: ``std`` is negative.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> y, _ = layers.gaussian_noise(0.1).apply({}, {}, jnp.ones((99, 99)), key=jax.random.key(0), training=True)
        >>> round(float(y.mean()), 2), round(float(y.std()), 2)
        (1.0, 0.1)

    Reference: Bishop, "Training with noise is equivalent to Tikhonov regularization", 1995.
    """
    checks.expect_between("gaussian_noise", "std", std, 0.0, float("inf"))

    def noisy(key: Any, x: Any) -> Any:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return (x.astype(dtype) + jnp.asarray(std, dtype) * jax.random.normal(key, x.shape, dtype)).astype(x.dtype)

    return _drawing("gaussian_noise", noisy)


def stochastic_depth(layer: Layer, rate: Any) -> Layer:
    """A layer with its input added, as ``residual``, that is left out for some of the examples while training.

    Formula: ``y = x + m f(x) / (1 - rate)`` while training, with ``m = 0`` with probability ``rate`` and 1 otherwise,
    drawn for each example, and ``y = x`` at a rate of 1; else ``y = x + f(x)``.

    Shapes: those of the layer, whose output must have the shape of its input.

    Params and State: those of the layer, under its name.

    Args:
        layer: any layer; it is computed for all the examples, and its state is that of all.
        rate: the probability of leaving it out, from 0 to 1, both exact; may be a tracer.

    Raises:
        TypeError: ``layer`` is not a layer, or there is no key while training.
        ValueError: ``rate`` is not between 0 and 1, or the layer changes the shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model, x = layers.stochastic_depth(layers.dense(3), 0.5), jnp.ones((8, 3))
        >>> params, state = model.init(jax.random.key(0), x)
        >>> jax.tree.map(jnp.shape, params)
        {'dense_0': {'bias': (3,), 'kernel': (3, 3)}}
        >>> y, _ = model.apply(params, state, x, key=jax.random.key(0), training=True)
        >>> sorted({bool((row == 1).all()) for row in y})
        [False, True]

    Reference: Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", 2016. It scales down what
    is kept when not training; here, as in ``dropout`` and torchvision, it is scaled up while training.
    """
    checks.expect_between("stochastic_depth", "rate", rate, 0.0, 1.0)
    drop = _drawing("example_dropout", lambda key, x: _dropped(key, rate, x, (x.shape[0],) + (1,) * (x.ndim - 1)), 1)
    (name, _), (dropped, _) = children = named_children("stochastic_depth", (layer, drop))

    def combine(x: Any, y: Any) -> Any:
        kept, y = features("stochastic_depth", x), features("stochastic_depth", y)
        if jnp.shape(kept) != jnp.shape(y):
            fix = "make them equal"
            checks.fail("stochastic_depth", f"an output of the shape of the input, {shown(kept)}", shown(y), fix)
        return with_features(x, jnp.add(kept, y))

    return composite("stochastic_depth", children, lambda call, x: call(dropped, call(name, x)), combine)


def _drawing(kind: str, drawn: Callable[[Any, Any], Any], axes: int = 0) -> Layer:
    def expect(x: Any) -> None:
        checks.expect_floating(kind, x)
        checks.expect_rank(kind, x, axes, "(batch, ..., features)", "add a batch axis: x[None]")

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        expect(x)
        return {}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params
        expect(x)
        if not training:
            return x, state
        if key is None:
            fix = "pass key=jax.random.key(0) to apply, a new one for each step"
            checks.fail(kind, "a key when training", "None", fix, TypeError)
        expect_key(kind, key)
        return drawn(key, x), state

    return array_layer(init, apply, kind)


def _dropped(key: Any, rate: Any, x: Any, shape: tuple[int, ...]) -> Any:
    keep = _kept_part(rate, x)
    kept = jax.random.bernoulli(key, keep, shape)
    # At a rate of 1 nothing is kept, and dividing by one in place of zero keeps the gradients finite.
    scale = 1.0 / jnp.where(keep > 0, keep, 1.0)
    return jnp.where(kept, x * scale.astype(x.dtype), jnp.zeros((), x.dtype))


_SELU_LOW = -1.7580993408473766  # the scale of selu times its alpha, with the constants of the paper


def _saturated(key: Any, rate: Any, x: Any, shape: tuple[int, ...]) -> Any:
    keep = _kept_part(rate, x)
    kept = jax.random.bernoulli(key, keep, shape)
    a = jax.lax.rsqrt(jnp.where(keep > 0, keep, 1.0) * (1.0 + (1.0 - keep) * _SELU_LOW**2))
    y = a * (jnp.where(kept, x.astype(keep.dtype), _SELU_LOW) - (1.0 - keep) * _SELU_LOW)
    return jnp.where(keep > 0, y, 0.0).astype(x.dtype)


def _kept_part(rate: Any, x: Any) -> Any:
    return 1.0 - jnp.asarray(rate, jnp.promote_types(x.dtype, jnp.float32))


def _of_each_feature(x: Any) -> tuple[int, ...]:
    return (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
