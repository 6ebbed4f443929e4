"""Layers that make one element of many neighbours: the largest of them, their mean or another norm."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from funcnn import checks, primitives, spatial
from funcnn.core import Layer

Counts = int | Sequence[int]
Padding = str | int | Sequence[int | Sequence[int]]


def max_pool(window: Counts, *, strides: Counts | None = None, padding: Padding = "VALID") -> Layer:
    """The largest element in a window that moves over the spatial axes, each feature for itself.

    Formula: ``y[b, i, f] = max over j of x[b, strides * i + j - before, f]``, ``j`` inside the window and the input.

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', n)`` for any number of spatial axes, with
    ``spatial' = (spatial + before + after - window) // strides + 1``: what does not fill a window is left out. With
    ``padding="SAME"`` ``spatial' = ceil(spatial / strides)``.

    Params and State: none.

    Args:
        window: a number, the same for all spatial axes, or one for each.
        strides: how far the window moves; by default as far as it is wide.
        padding: ``"VALID"`` (none), ``"SAME"``, or a number, or one number or pair for each spatial axis, less than the
            window. It never wins.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: the input has other axes than the window or is smaller, or an argument has the wrong length.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[1.0, 5.0, 2.0, 4.0, 9.0]])[..., None]
        >>> layers.max_pool(2).apply({}, {}, x)[0].ravel().tolist()
        [5.0, 4.0]
        >>> layers.max_pool(3, strides=1).apply({}, {}, x)[0].ravel().tolist()
        [5.0, 5.0, 9.0]

    Reference: Zhou and Chellappa, "Computation of optical flow using a neural network", 1988. As in PyTorch, the first
    of several equal elements, by rows, takes the whole gradient, and a NaN wins. Integers and booleans are taken as
    well.
    """
    return _pool("max_pool", window, strides, padding, primitives.max_pool)


def avg_pool(window: Counts, *, strides: Counts | None = None, padding: Padding = "VALID") -> Layer:
    """The mean of the elements in a window that moves over the spatial axes, each feature for itself.

    Formula: ``y[b, i, f] = mean over j of x[b, strides * i + j - before, f]``, ``j`` inside the window and the input.

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', n)``, as ``max_pool``.

    Params and State: none.

    Args:
        window: a number, the same for all spatial axes, or one for each.
        strides: how far the window moves; by default as far as it is wide.
        padding: ``"VALID"`` (none), ``"SAME"``, or a number, or one number or pair for each spatial axis, less than the
            window. It is not counted.

    Raises:
        TypeError: the input is not floating, or a count is not a whole number.
        ValueError: the input has other axes than the window or is smaller, or an argument has the wrong length.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[1.0, 5.0, 2.0, 4.0, 9.0]])[..., None]
        >>> layers.avg_pool(2).apply({}, {}, x)[0].ravel().tolist()
        [3.0, 3.0]
        >>> layers.avg_pool(2, padding="SAME").apply({}, {}, x)[0].ravel().tolist()
        [3.0, 3.0, 9.0]

    Reference: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    Differs from PyTorch's and Flax's default, as Keras does: (1) the mean is over the elements that are there and not
    over the zeros of the padding (``count_include_pad=False``), or the borders of an even image would fade.
    """
    return _pool("avg_pool", window, strides, padding, primitives.avg_pool, floating=True)


def lp_pool(window: Counts, *, p: Any = 2, strides: Counts | None = None, padding: Padding = "VALID") -> Layer:
    """The p-norm of the elements in a window that moves over the spatial axes, each feature for itself.

    Formula: ``y[b, i, f] = (sum over j of |x[b, strides * i + j - before, f]|^p)^(1 / p)``: between the sum of the
    sizes, at ``p = 1``, and the largest of them, far above.

    Shapes: ``(batch, *spatial, n) -> (batch, *spatial', n)``, as ``max_pool``.

    Params and State: none.

    Args:
        window: a number, the same for all spatial axes, or one for each.
        p: the power, from 1; may be a tracer.
        strides: how far the window moves; by default as far as it is wide.
        padding: as in ``max_pool``; zeros, which add nothing.

    Raises:
        TypeError: the input is not floating, or a count is not a whole number.
        ValueError: ``p`` is below 1 or infinite, the input has other axes than the window or is smaller, or an argument
            has the wrong length.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[3.0, -4.0, 0.0, 0.0, 9.0]])[..., None]
        >>> layers.lp_pool(2).apply({}, {}, x)[0].ravel().tolist()
        [5.0, 0.0]

    Reference: Sermanet, Chintala and LeCun, "Convolutional neural networks applied to house numbers digit
    classification", 2012. (1) PyTorch takes the power of the elements and not of their sizes: with an odd ``p`` they
    cancel, or give NaN. (2) Where all elements are zero, the norm has a corner, and the gradient is zero. (3) The
    second derivative at an element of zero is that of ``p = 2`` only where ``p`` is known before compilation.
    """
    _expect_power("lp_pool", p)

    def form(x: Any, widths: tuple[int, ...], moves: tuple[int, ...], pads: primitives.Pads) -> Any:
        def total(a: Any) -> Any:
            a = jnp.pad(a, ((0, 0), *pads, (0, 0)))
            return primitives.avg_pool(a, widths, moves, ((0, 0),) * len(widths)) * math.prod(widths)

        return _norm(x, p, total)

    return _pool("lp_pool", window, strides, padding, form, floating=True)


def blur_pool(*, size: int = 3, strides: Counts = 2) -> Layer:
    """Blurs with a small binomial filter and takes every second element: a shift of the input then shifts the output.

    Formula: ``y[b, i, f] = sum over j of c[j] x[b, strides * i + j - (size - 1) // 2, f]``, ``c`` the product over the
    spatial axes of ``[1, 1] / 2``, ``[1, 2, 1] / 4``, ``[1, 3, 3, 1] / 8``, ...; at its ends the input is reflected.

    Shapes: ``(batch, *spatial, n) -> (batch, *ceil(spatial / strides), n)`` for any number of spatial axes.

    Params and State: none.

    Args:
        size: of the filter: 3 is usual, 1 leaves it out.
        strides: a number, the same for all spatial axes, or one for each.

    Raises:
        TypeError: the input is not floating, or a count is not a whole number.
        ValueError: the input has no spatial axes, an empty one, or others than ``strides``.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[0.0, 4.0, 0.0, 8.0, 8.0]])[..., None]
        >>> layers.blur_pool().apply({}, {}, x)[0].ravel().tolist()
        [2.0, 3.0, 8.0]

    Reference: Zhang, "Making convolutional networks shift-invariant again", 2019. A maximum without strides before it
    makes its max-blur-pool: ``serial(max_pool(2, strides=1), blur_pool())``.
    """
    size = checks.expect_count("blur_pool", "size", size)
    spatial.expect_counts("blur_pool", {"strides": strides})

    def blurred(x: Any) -> Any:
        spatial.expect_axes("blur_pool", x, strides)
        spatial.expect_elements("blur_pool", x)
        moves = primitives.per_axis("blur_pool", "strides", strides, x.ndim - 2)
        before, none, every = (size - 1) // 2, ((0, 0),) * len(moves), (1,) * len(moves)
        a = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        a = jnp.pad(a, ((0, 0), *((before, size - 1 - before),) * len(moves), (0, 0)), mode="reflect")
        # The mean of two neighbours, again and again, is the binomial filter; only the last has strides.
        for _ in range(size - 2):
            a = primitives.avg_pool(a, (2,) * len(moves), every, none)
        return primitives.avg_pool(a, (min(size, 2),) * len(moves), moves, none).astype(x.dtype)

    return spatial.plain("blur_pool", blurred, floating=True)


def global_lp_pool(p: Any = 2) -> Layer:
    """The p-norm over all axes between batch and features.

    Formula: ``y[b, f] = (sum over i of |x[b, i, f]|^p)^(1 / p)``

    Shapes: ``(batch, *spatial, n) -> (batch, n)``

    Params and State: none.

    Args:
        p: the power, from 1; may be a tracer.

    Raises:
        TypeError: the input is not floating.
        ValueError: ``p`` is below 1 or infinite, or the input has no spatial axes or an empty one.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> layers.global_lp_pool(2).apply({}, {}, jnp.asarray([[[3.0], [0.0], [-4.0]]]))[0].tolist()
        [[5.0]]

    Reference: as ``lp_pool``, whose notes hold here.
    """
    _expect_power("global_lp_pool", p)
    return _global("global_lp_pool", lambda x, axis: _norm(x, p, lambda a: jnp.sum(a, axis)), floating=True)


def _expect_power(kind: str, p: Any) -> None:
    if checks.is_concrete(p) and not 1 <= checks.known(p) < math.inf:
        fix = "the largest of all sizes is serial(absolute, max_pool(...))"
        checks.fail(kind, "p of at least 1, and finite", str(p), fix)


def _norm(x: Any, p: Any, total: Callable[[Any], Any]) -> Any:
    """``total(|x|^p)^(1 / p)``, of half precision in float32, with derivatives that are finite at zero."""
    a = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if checks.is_concrete(p) and checks.known(p) % 2 == 0:
        powers = lax.integer_pow(a, int(p))
    else:
        powers = _power(jnp.abs(a), jnp.asarray(p, a.dtype))
    return _power(total(powers), 1 / jnp.asarray(p, a.dtype)).astype(x.dtype)


def _power(a: Any, p: Any) -> Any:
    """``a^p`` for ``a`` of zero and more, constant at zero: there its derivatives may be infinite, and give NaN."""
    return jnp.where(a == 0, 0, jnp.where(a == 0, 1, a) ** p)


def _pool(
    kind: str, window: Any, strides: Any, padding: Any, form: Callable[..., Any], *, floating: bool = False
) -> Layer:
    steps = window if strides is None else strides
    spatial.expect_counts(kind, {"window": window, "strides": steps})
    primitives.expect_padding(kind, padding)

    def pooled(x: Any) -> Any:
        spatial.expect_axes(kind, x, window)
        rank = x.ndim - 2
        widths = primitives.per_axis(kind, "window", window, rank)
        moves = primitives.per_axis(kind, "strides", steps, rank)
        pads = primitives.pads(kind, padding, x.shape[1:-1], widths, moves)
        if any(max(pair) >= width for width, pair in zip(widths, pads, strict=True)):
            fix = "or some windows would hold nothing else"
            checks.fail(kind, f"padding less than the window, {widths}", str(pads), fix)
        return form(x, widths, moves, pads)

    return spatial.plain(kind, pooled, floating=floating)


def _global(kind: str, form: Callable[..., Any], *, floating: bool = False) -> Layer:
    def pooled(x: Any) -> Any:
        spatial.expect_axes(kind, x)
        spatial.expect_elements(kind, x)
        return form(x, axis=tuple(range(1, x.ndim - 1)))

    return spatial.plain(kind, pooled, floating=floating)


global_avg_pool = _global("global_avg_pool", jnp.mean, floating=True)
"""The mean over all axes between batch and features: ``(batch, *spatial, n) -> (batch, n)``.

Example:
    >>> import jax.numpy as jnp
    >>> from funcnn import layers
    >>> layers.global_avg_pool.apply({}, {}, jnp.arange(6.0).reshape(1, 3, 2))[0].tolist()
    [[2.0, 3.0]]

Reference: Lin, Chen and Yan, "Network in network", 2013.
"""

global_max_pool = _global("global_max_pool", jnp.max)
"""The largest element over all axes between batch and features: ``(batch, *spatial, n) -> (batch, n)``.

Equal elements share the gradient, as in ``jnp.max`` and ``torch.amax``.

Example:
    >>> import jax.numpy as jnp
    >>> from funcnn import layers
    >>> layers.global_max_pool.apply({}, {}, jnp.arange(6.0).reshape(1, 3, 2))[0].tolist()
    [[4.0, 5.0]]

Reference: Oquab, Bottou, Laptev and Sivic, "Is object localization for free?", 2015.
"""
