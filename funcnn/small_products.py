"""Products of small matrices as multiplications and sums, for training loops that XLA compiles into one kernel on CPU.

Such a loop may not call a library, and every matrix product calls one but the smallest. Written as elementwise
operations and loops, a product stays inside. It is a primitive of its own: its two derivatives are such products as
well, each in the form that is fast for its shape, and it has every further derivative and a rule for batches.
"""

import math
import os
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

FLAG = "xla_cpu_small_while_loop_byte_threshold"
"""The option of XLA by which a loop on less data than so many bytes becomes one kernel."""

# Measured on two CPU cores, the 5000 steps of 2-16-8-1 on 100 points as one kernel, float32, microseconds a step; with
# matrix products the loop is no kernel and takes 12.3. The compiler vectorizes along the last axis where it is long:
# - The longest axis last, terms in a loop of several (_TERMS): 9.0 with four or eight, 9.4 with one; all terms of a
#   product in one expression: 26, for they are computed again wherever they are used.
# - A sum over the longest axis (the batch, for the gradient of a kernel) as sums of _LANES side by side: 5.7; twelve of
#   them in one expression, since a loop of fewer is vectorized along a short axis: 7.2 to 10.7.
_TERMS = 4
_LANES = 8
_LONG_TERMS = 16
# - Lanes of more than 400 sums are slow: 2-32-16-1 on 64 rows takes 45 with them, and 8.2 without.
_FEW = 400
MOST = 2**16
"""So many multiplications at most: beyond, a library is faster. docs/tiny_loop_times.md has loops around it."""


def wanted(x: Any, w: Any) -> bool:
    """Whether the product of two matrices is to be written out: a small one, where loops become one kernel."""
    sizes = *x.shape, w.shape[1]
    if FLAG not in os.environ.get("XLA_FLAGS", "") or not all(isinstance(size, int) for size in sizes):
        return False
    if x.shape[1] != w.shape[0] or _is_spread(x) or _is_spread(w):
        return False  # the first is for jnp.matmul to refuse
    return x.dtype == w.dtype and x.dtype in (jnp.float32, jnp.float64) and 0 < math.prod(sizes) <= MOST


def _is_spread(a: Any) -> bool:
    """Whether its type says how it lies on several devices: inside ``shard_map``, or on an explicit mesh."""
    mesh = jax.typeof(a).sharding.mesh
    return not (mesh.empty or mesh.are_all_axes_auto)


def product(x: Any, w: Any) -> Any:
    """``x @ w`` of two matrices of one dtype, as multiplications and sums."""
    return _small_product.bind(x, w)


def _written_out(x: Any, w: Any) -> Any:
    """The longest axis is the last one of what is computed, and is not summed over but in lanes."""
    (m, k), n = x.shape, w.shape[1]
    if k > max(m, n) and k >= 2 * _LANES and m * n <= _FEW:
        return _in_lanes(x, w.T)
    if m < n:
        return _outer(x, w)
    return _outer(w.T, x.T).T


def _outer(x: Any, w: Any) -> Any:
    """``x @ w`` as a sum of columns of ``x`` times rows of ``w``."""

    def term(i: Any) -> Any:
        return lax.dynamic_slice_in_dim(x, i, 1, 1) * lax.dynamic_slice_in_dim(w, i, 1, 0)

    return _summed(term, w.shape[0], _TERMS)


def _in_lanes(x: Any, w: Any) -> Any:
    """``x @ w.T``: the sums of each of ``_LANES`` neighbours along the long axis, and then the sum of those."""
    whole = x.shape[1] // _LANES

    def term(i: Any) -> Any:
        a, b = (lax.dynamic_slice_in_dim(each, i * _LANES, _LANES, 1) for each in (x, w))
        return a[:, None] * b[None]

    y = _summed(term, whole, _LONG_TERMS).sum(-1)
    rest = x[:, whole * _LANES :], w[:, whole * _LANES :]
    return y + (rest[0][:, None] * rest[1][None]).sum(-1) if rest[0].shape[1] else y


def _summed(term: Callable[[Any], Any], count: int, together: int) -> Any:
    """``term(0) + ... + term(count - 1)``, so many of them in one expression, and a loop around it."""

    def some(start: Any, number: int) -> Any:
        return reduce(jnp.add, [term(start + i) for i in range(number)])

    if count <= together:
        return some(0, count)
    together = min(together, count // 2)  # twice through the loop at least: XLA takes one of a single pass apart
    passes, begun = divmod(count, together)
    zeros = jnp.zeros_like(term(0))
    return lax.fori_loop(
        0, passes, lambda i, y: y + some(begun + i * together, together), some(0, begun) if begun else zeros
    )


# ---- the primitive ---------------------------------------------------------------------------------------------------


def _shape(x: Any, w: Any) -> Any:
    return x.update(shape=(x.shape[0], w.shape[1]), weak_type=False)


def _again(x: Any, w: Any) -> Any:
    """A product that a derivative or a batch asks for: written out if that one is small as well."""
    return product(x, w) if wanted(x, w) else jnp.matmul(x, w)


def _batched(arrays: Any, axes: Any) -> Any:
    """With one of them batched, its batch becomes rows, or columns; with both it is a product of batches."""
    (x, w), (of_x, of_w) = arrays, axes
    x = x if of_x is None else jnp.moveaxis(x, of_x, 0)
    w = w if of_w is None else jnp.moveaxis(w, of_w, 0)
    if of_w is None:
        return _again(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:2], w.shape[1]), 0
    if of_x is None:
        columns = jnp.moveaxis(w, 0, 1).reshape(w.shape[1], -1)
        return _again(x, columns).reshape(x.shape[0], w.shape[0], w.shape[2]), 1
    return jnp.matmul(x, w), 0


_small_product = Primitive("small_product")
_small_product.def_abstract_eval(_shape)
_small_product.def_impl(jax.jit(_written_out))
ad.defbilinear(_small_product, lambda dy, x, w: _again(dy, w.T), lambda dy, x, w: _again(x.T, dy))
batching.primitive_batchers[_small_product] = _batched
mlir.register_lowering(_small_product, mlir.lower_fun(_written_out, multiple_results=False))
