"""Layers that change how large the spatial axes are: more or less at the borders, or a finer or coarser grid."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks, primitives, spatial
from funcnn.core import Layer

Counts = int | Sequence[int]
Borders = int | Sequence[int | Sequence[int]]

_MODES = ("constant", "edge", "reflect", "symmetric", "wrap")
_METHODS = ("nearest", "linear", "cubic", "lanczos3", "lanczos5")


def pad(padding: Borders, *, mode: str = "constant", value: Any = 0) -> Layer:
    """More elements at the borders of the spatial axes.

    Formula: ``y[b, i, f] = x[b, i - before, f]``, and outside of ``x`` ``value``, or what ``mode`` takes from inside

    Shapes: ``(batch, *spatial, n) -> (batch, *(spatial + before + after), n)`` for any number of spatial axes.

    Params and State: none.

    Args:
        padding: how many on both sides: a number, or one number or pair ``(before, after)`` for each spatial axis.
        mode: ``"constant"``; ``"edge"``, the last element again and again; ``"reflect"``, as in a mirror at the last
            element, and ``"symmetric"``, behind it; ``"wrap"``, as if the input went on from its other end.
        value: of the elements of ``"constant"``; may be a tracer.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: the mode has another name, or a ``value`` beside it; the input has no spatial axes, others than
            ``padding``, or an empty one from which the mode would take.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[1, 2, 3]])[..., None]
        >>> layers.pad(2).apply({}, {}, x)[0].ravel().tolist()
        [0, 0, 1, 2, 3, 0, 0]
        >>> layers.pad(((2, 1),), mode="reflect").apply({}, {}, x)[0].ravel().tolist()
        [3, 2, 1, 2, 3, 2]

    Reference: ``numpy.pad``. PyTorch calls ``"edge"`` replicate and ``"wrap"`` circular.
    """
    checks.expect_option("pad", "mode", mode, _MODES)
    _expect_borders("pad", "padding", padding)
    if mode != "constant" and checks.is_concrete(value) and checks.known(value) != 0:
        checks.fail("pad", f'no value with mode="{mode}"', str(value), 'leave it out, or mode="constant"')

    def padded(x: Any) -> Any:
        widths = ((0, 0), *_borders("pad", "padding", padding, x), (0, 0))
        if mode != "constant":
            spatial.expect_elements("pad", x)
            return jnp.pad(x, widths, mode=mode)
        if checks.is_concrete(value):
            return jnp.pad(x, widths, constant_values=jnp.asarray(value, x.dtype))
        # The gradient of jnp.pad by its value, and not by its input, raises in JAX 0.10 and 0.11.
        inside = jnp.pad(jnp.ones((1, *x.shape[1:-1], 1), bool), widths)
        return jnp.where(inside, jnp.pad(x, widths), jnp.asarray(value, x.dtype))

    return spatial.plain("pad", padded)


def crop(cropping: Borders) -> Layer:
    """Fewer elements at the borders of the spatial axes.

    Formula: ``y[b, i, f] = x[b, i + before, f]``

    Shapes: ``(batch, *spatial, n) -> (batch, *(spatial - before - after), n)`` for any number of spatial axes.

    Params and State: none.

    Args:
        cropping: how many to leave out on both sides: a number, or one number or pair ``(before, after)`` for each
            spatial axis.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: the input has no spatial axes or others than ``cropping``, or nothing would be left of one.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> layers.crop((1, (2, 0))).apply({}, {}, jnp.ones((5, 28, 28, 3)))[0].shape
        (5, 26, 26, 3)

    Reference: ``Cropping2D`` of Keras.
    """
    _expect_borders("crop", "cropping", cropping)

    def cropped(x: Any) -> Any:
        pairs = _borders("crop", "cropping", cropping, x)
        if any(low + high >= size for size, (low, high) in zip(x.shape[1:-1], pairs, strict=True)):
            fix = "leave out less, or pass a larger input"
            checks.fail("crop", f"less cropping than the sizes {tuple(x.shape[1:-1])}", str(pairs), fix)
        inside = (slice(low, size - high) for size, (low, high) in zip(x.shape[1:-1], pairs, strict=True))
        return x[(slice(None), *inside)]

    return spatial.plain("crop", cropped)


def resize(shape: Counts, *, method: str = "linear", antialias: bool = True) -> Layer:
    """The spatial axes at another resolution, the values between those of the input interpolated.

    Formula: ``y[b, i, f] = sum over j of w(i, j) x[b, j, f]``, the product over the spatial axes of weights by the
    distance of ``j`` from ``(i + 1/2) s / m - 1/2``, with ``s`` the size and ``m`` the new one

    Shapes: ``(batch, *spatial, n) -> (batch, *shape, n)`` for any number of spatial axes.

    Params and State: none.

    Args:
        shape: the new sizes: a number, the same for all spatial axes, or one for each.
        method: ``"nearest"``, ``"linear"``, ``"cubic"`` (Keys, a = -1/2), ``"lanczos3"`` or ``"lanczos5"``.
        antialias: whether to widen the weights where an axis becomes smaller, so that all elements count; it says
            nothing to ``"nearest"``.

    Raises:
        TypeError: a size is not a whole number, or the input is not floating and the method not ``"nearest"``.
        ValueError: the method has another name, or the input has no spatial axes, others than ``shape``, or an empty
            one.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.asarray([[0.0, 4.0, 8.0]])[..., None]
        >>> layers.resize(6).apply({}, {}, x)[0].ravel().tolist()
        [0.0, 1.0, 3.0, 5.0, 7.0, 8.0]

    Reference: ``jax.image.resize``. In PyTorch's ``interpolate`` this is ``align_corners=False``; ``antialias`` is off
    by default there, ``"nearest"`` is its ``"nearest-exact"``, and its ``"bicubic"`` has a = -3/4 without antialias.
    """
    checks.expect_option("resize", "method", method, _METHODS)
    spatial.expect_counts("resize", {"shape": shape})
    return _resized("resize", shape, lambda size, new: new, method, antialias)


def upsample(factor: Counts, *, method: str = "nearest") -> Layer:
    """The spatial axes at a multiple of their resolution.

    Formula: ``y[b, i, f] = x[b, floor(i / factor), f]``, or as ``resize`` with another ``method``

    Shapes: ``(batch, *spatial, n) -> (batch, *(spatial * factor), n)`` for any number of spatial axes.

    Params and State: none.

    Args:
        factor: a number, the same for all spatial axes, or one for each.
        method: ``"nearest"``, ``"linear"``, ``"cubic"``, ``"lanczos3"`` or ``"lanczos5"``.

    Raises:
        TypeError: a factor is not a whole number, or the input is not floating and the method not ``"nearest"``.
        ValueError: the method has another name, or the input has no spatial axes, others than ``factor``, or an empty
            one.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> layers.upsample(2).apply({}, {}, jnp.asarray([[1, 2, 3]])[..., None])[0].ravel().tolist()
        [1, 1, 2, 2, 3, 3]

    Reference: ``UpSampling2D`` of Keras.
    """
    checks.expect_option("upsample", "method", method, _METHODS)
    spatial.expect_counts("upsample", {"factor": factor})
    return _resized("upsample", factor, lambda size, times: size * times, method, True)


def _resized(kind: str, counts: Any, target: Any, method: str, antialias: bool) -> Layer:
    name = "shape" if kind == "resize" else "factor"

    def resized(x: Any) -> Any:
        spatial.expect_axes(kind, x, counts)
        spatial.expect_elements(kind, x)
        sizes, wanted = x.shape[1:-1], primitives.per_axis(kind, name, counts, x.ndim - 2)
        new = tuple(target(size, count) for size, count in zip(sizes, wanted, strict=True))
        if method == "nearest" and not any(m % size for m, size in zip(new, sizes, strict=True)):
            return _repeated(x, new)
        # In half precision the weights would be rounded as well.
        a = x if method == "nearest" else x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jax.image.resize(a, (x.shape[0], *new, x.shape[-1]), method, antialias).astype(x.dtype)

    return spatial.plain(kind, resized, floating=method != "nearest")


def _repeated(x: Any, new: tuple[int, ...]) -> Any:
    """Each element several times. A broadcast, whose gradient is a sum; that of a gather would be a scatter."""
    sizes = x.shape[1:-1]
    spread = [n for size, m in zip(sizes, new, strict=True) for n in (size, m // size)]
    split = [n for size in sizes for n in (size, 1)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    return jnp.broadcast_to(x, (x.shape[0], *spread, x.shape[-1])).reshape(x.shape[0], *new, x.shape[-1])


def _expect_borders(kind: str, name: str, value: Any) -> None:
    for entry in value if isinstance(value, (tuple, list)) else (value,):
        pair = entry if isinstance(entry, (tuple, list)) else (entry, entry)
        if len(pair) != 2:
            checks.fail(kind, f"{name} in pairs (before, after)", f"{tuple(pair)} in {value}", "give two numbers")
        for count in pair:
            checks.expect_count(kind, name, count, 0)


def _borders(kind: str, name: str, value: Any, x: Any) -> tuple[tuple[int, int], ...]:
    """A pair for each spatial axis of ``x``, if it has as many."""
    spatial.expect_axes(kind, x, value)
    entries = value if isinstance(value, (tuple, list)) else (value,) * (x.ndim - 2)
    return tuple(tuple(entry) if isinstance(entry, (tuple, list)) else (entry, entry) for entry in entries)
