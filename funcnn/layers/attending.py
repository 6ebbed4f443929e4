"""Attention: every position takes a weighted mean over others, and the weights are computed from what is there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import glorot_uniform, zeros

from funcnn import bits, checks, primitives
from funcnn.core import (
    Layer,
    Tree,
    asks_for_shapes_alone,
    child_key,
    expect_entries,
    expect_key,
    features,
    param_dtype,
    shown,
    spec,
    with_features,
)

Initializer = Callable[..., Any]


class _Options(NamedTuple):
    heads: int
    groups: int  # heads that keys and values have
    width: int | None  # features of a head, where they are given
    cross: bool
    causal: bool
    rotary_base: Any  # None without
    length: int | None  # of the cache
    implementation: str
    bias: bool
    kernel_init: Initializer
    bias_init: Initializer

    def shapes(self, n: int, m: int) -> dict[str, tuple[int, int]]:
        """Those of the four kernels, for a sequence of ``n`` and a context of ``m`` features."""
        width = self.width_of(n)
        inner, outer = self.heads * width, self.groups * width
        return {"query": (n, inner), "key": (m, outer), "value": (m, outer), "output": (inner, n)}

    @property
    def beside(self) -> tuple[str, str]:
        """The names of mask and lengths among the side inputs."""
        return ("context_mask", "context_lengths") if self.cross else ("mask", "lengths")

    def width_of(self, n: int) -> int:
        """The features of a head, for an input of ``n`` features."""
        if self.width is None and n % self.heads:
            fix = "choose another number, or give head_features"
            checks.fail("attention", f"features that {self.heads} heads divide", str(n), fix)
        each = n // self.heads if self.width is None else self.width
        if self.rotary_base is not None and each % 2:
            checks.fail("attention", "an even number of head_features, to turn halves", str(each), "choose another")
        return each


def attention(
    heads: int,
    *,
    head_features: int | None = None,
    key_value_heads: int | None = None,
    cross: bool = False,
    causal: bool = False,
    rotary: bool = False,
    rotary_base: float | None = None,
    cache: int | None = None,
    implementation: str = "xla",
    bias: bool = True,
    kernel_init: Initializer = glorot_uniform(),
    bias_init: Initializer = zeros,
) -> Layer:
    """Multi-head attention: of a sequence to itself, or to another one that comes beside it as ``"context"``.

    Formula: ``y = concatenate over heads of (softmax(q k^T / sqrt(head_features)) v) @ output``, with
    ``q = x @ query``, ``k = context @ key`` and ``v = context @ value``; ``context`` is ``x`` unless ``cross=True``.

    Shapes: ``(batch, time, n) -> (batch, time, n)``; a context is ``(batch, keys, m)``, otherwise ``keys = time``.

    Side inputs: of a dict, next to the sequence under ``"x"``: ``"mask"``, booleans for what may be
    looked at, ``(batch, keys)``, ``(batch or 1, time, keys)`` or ``(batch or 1, heads or 1, time, keys)``; or
    ``"lengths"``, whole numbers ``(batch,)``, of what is looked at; ``"positions"``, whole numbers ``(batch, time)``,
    for ``rotary``. With ``cross=True`` in their place ``"context"``, which has to be there, ``"context_mask"`` and
    ``"context_lengths"``. All are handed on. Where everything is masked, what comes out of the heads is zero.

    Params: ``query``, ``key``, ``value`` and ``output``, each with a ``kernel`` and, unless ``bias=False``, a ``bias``.
    State: none; with ``cache``: ``key`` and ``value (batch, cache, key_value_heads, head_features)``, ``index``.

    Args:
        heads: the number of heads.
        head_features: the features of each; ``n / heads`` otherwise.
        key_value_heads: heads of keys and values, each for several heads of queries; as many otherwise.
        cross: whether keys and values come from ``"context"``.
        causal: whether a position sees only itself and what came before.
        rotary: whether queries and keys are turned by their position, half against half, which makes the weights a
            function of distance.
        rotary_base: of the wave lengths, with ``rotary``; 10,000 unless it is given.
        cache: the longest sequence, for generation: while not training, keys and values are kept in the state, and what
            comes in goes on from there. Needs ``causal``. Beyond that length the output is NaN.
        implementation: ``"xla"``, or ``"cudnn"``: flash attention, which keeps no matrix of weights, on an NVIDIA GPU,
            in half precision (``mixed_precision``), with a multiple of 8 up to 128 features a head, lengths in place
            of masks, and first derivatives only. With a cache, while not training, it is ``"xla"`` all the same.
        bias: whether the four maps have one.
        kernel_init: from ``jax.nn.initializers``.
        bias_init: likewise.

    Raises:
        TypeError: the input is not floating, or not of half precision for cuDNN, its context is of another dtype, or a
            mask not boolean.
        ValueError: heads that do not divide, cuDNN where there is no GPU, axes or masks of another shape than they
            should have, params or state of other sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> layer, x = layers.attention(4, causal=True), jnp.ones((2, 6, 8))
        >>> params, state = layer.init(jax.random.key(0), x)
        >>> params["query"]["kernel"].shape, layer.apply(params, state, x)[0].shape
        ((8, 8), (2, 6, 8))
        >>> masked = {"x": x, "lengths": jnp.array([6, 3])}
        >>> layer.apply(params, state, masked)[0]["x"].shape
        (2, 6, 8)

    Notes:
        1. Softmax is computed in float32 whatever the dtype (``jax.nn.dot_product_attention``).
        2. There is no dropout on the weights: put ``dropout`` behind the layer.

    Reference: Vaswani et al., "Attention is all you need", 2017; Ainslie et al., "GQA", 2023; Su et al., "RoFormer",
    2021.
    """
    heads = checks.expect_count("attention", "heads", heads)
    groups = heads if key_value_heads is None else checks.expect_count("attention", "key_value_heads", key_value_heads)
    if heads % groups:
        checks.fail("attention", f"key_value_heads that divide {heads} heads", str(groups), "choose a divisor")
    width = None if head_features is None else checks.expect_count("attention", "head_features", head_features)
    length = None if cache is None else checks.expect_count("attention", "cache", cache)
    if cross and (causal or rotary):
        fix = "the two sequences have no common order: leave causal and rotary out"
        checks.fail("attention", "cross=True without causal and rotary", "both", fix)
    if length and not causal:
        checks.fail("attention", "causal=True with a cache", "causal=False", "what came first cannot see what comes")
    checks.expect_option("attention", "implementation", implementation, ("xla", "cudnn"))
    if rotary_base is not None and not rotary:
        checks.fail("attention", "rotary=True with a rotary_base", "rotary=False", "leave rotary_base out")
    base = (10000.0 if rotary_base is None else rotary_base) if rotary else None
    options = _Options(heads, groups, width, cross, causal, base, length, implementation, bias, kernel_init, bias_init)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key("attention.init", key)
        return _started(options, key, spec(x))

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key
        return _applied(options, params, state, jax.tree.map(jnp.asarray, x), training)

    return Layer(init, apply, "attention")


def _started(options: _Options, key: Any, x: Any) -> tuple[Tree, Tree]:
    a, context = _sequences(x, options.cross)
    width, dtype = options.width_of(a.shape[-1]), param_dtype(a)
    params: dict[str, Any] = {}
    for name, shape in options.shapes(a.shape[-1], context.shape[-1]).items():
        own = child_key(key, name)
        params[name] = {"kernel": bits.draw(options.kernel_init, jax.random.fold_in(own, 0), shape, dtype)}
        if options.bias:
            params[name]["bias"] = options.bias_init(jax.random.fold_in(own, 1), shape[-1:], dtype)
    if options.length is None:
        return params, {}
    kept = jnp.zeros((a.shape[0], options.length, options.groups, width), a.dtype)
    return params, {"key": kept, "value": kept, "index": jnp.zeros((), jnp.int32)}


def _applied(options: _Options, params: Tree, state: Tree, x: Any, training: bool) -> tuple[Any, Tree]:
    a, context = _sequences(x, options.cross)
    expect_entries("attention", "params", params, ("query", "key", "value", "output"))
    expect_entries("attention", "state", state, ("key", "value", "index") if options.length else ())
    width = options.width_of(a.shape[-1])
    for name, shape in options.shapes(a.shape[-1], context.shape[-1]).items():
        _expect_map(params[name], name, context if name in ("key", "value") else a, shape, options.bias)

    mask = _mask(x, a, context, options)
    if mask is not None:
        # Numbers that are none, where nobody looks: they would come back as zero times NaN, in gradients too.
        hidden = ~jnp.any(mask, axis=(1, 2))[..., None] & ~jnp.isfinite(context)
        whole, context = context is a, jnp.where(hidden, jnp.zeros((), context.dtype), context)
        a = context if whole else a

    q, k, v = (
        y.reshape(*y.shape[:2], count, width)
        for y, count in zip(_inputs(params, a, context), (options.heads, options.groups, options.groups), strict=True)
    )
    cached = options.length is not None and not training
    start = state["index"] if cached else 0
    if options.rotary_base is not None:
        positions = _positions(x, a, start)
        q, k = _rotated(q, positions, options.rotary_base), _rotated(k, positions, options.rotary_base)
    if cached:
        if mask is not None:
            fix = "generate without: sequences of one length, from their first position on"
            checks.fail("attention", "no mask or lengths with a cache", "one", fix)
        state = _kept(state, k, v, options.length)
        k, v = state["key"].astype(a.dtype), state["value"].astype(a.dtype)
    not_yet_half = asks_for_shapes_alone() and q.dtype == jnp.float32
    if options.implementation == "cudnn" and not (cached or not_yet_half):
        y = _by_cudnn(q, k, v, x, options)
    else:
        if options.causal:
            before = jnp.arange(k.shape[1])[None, :] <= start + jnp.arange(a.shape[1])[:, None]
            mask = before[None, None] if mask is None else mask & before[None, None]
        y = _attended(q, k, v, mask)
    y = _mapped(params["output"], y.reshape(*a.shape[:2], options.heads * width))
    if cached:
        y = jnp.where(state["index"] > options.length, jnp.nan, y)
    return with_features(x, y), state


def _by_cudnn(q: Any, k: Any, v: Any, x: Any, options: _Options) -> Any:
    """Flash attention of cuDNN, which passes over what comes later, or beyond a length, and keeps no weights.

    A mask would become an array of scores there, with a gradient: as large as the weights, and not for odd lengths.
    """
    where, width = "for implementation='cudnn'", q.shape[-1]
    mask, lengths = (x.get(name) if isinstance(x, dict) else None for name in options.beside)
    if primitives.platform() not in ("gpu", "cuda"):
        fix = "leave implementation out"
        checks.fail("attention", f"an NVIDIA GPU {where}", f"the platform {primitives.platform()}", fix)
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        fix = "wrap the network in layers.mixed_precision, or leave implementation out"
        checks.fail("attention", f"float16 or bfloat16 {where}", str(q.dtype), fix, TypeError)
    if width % 8 or width > 128:
        fix = "choose head_features, or leave implementation out"
        checks.fail("attention", f"a multiple of 8 up to 128 features a head {where}", str(width), fix)
    if mask is not None:
        fix = "give lengths, or leave implementation out"
        checks.fail("attention", f"{options.beside[1]} or nothing {where}", options.beside[0], fix)
    if 0 in (q.shape[1], k.shape[1]):
        return jnp.zeros(q.shape, q.dtype)
    if lengths is not None:
        lengths = jnp.asarray(lengths).astype(jnp.int32)
    y = jax.nn.dot_product_attention(
        q, k, v, is_causal=options.causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return y if lengths is None else jnp.where((lengths > 0)[:, None, None, None], y, jnp.zeros((), y.dtype))


def _attended(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """``jax.nn.dot_product_attention``, with zeros where the mask hides everything, and for no keys at all."""
    if 0 in (q.shape[1], k.shape[1]):
        return jnp.zeros(q.shape, q.dtype)
    on_cpu = primitives.platform() == "cpu"
    if q.dtype == jnp.float16 and on_cpu:
        # There XLA has no product of float16 that is summed in float32.
        q32, k32, v32 = (a.astype(jnp.float32) for a in (q, k, v))
        return _attended(q32, k32, v32, mask).astype(q.dtype)
    written_out = q.dtype == jnp.float64 or (on_cpu and q.dtype == jnp.float32)
    attend = _written_out if written_out else jax.nn.dot_product_attention
    if mask is None:
        return attend(q, k, v)
    y = attend(q, k, v, mask=jnp.broadcast_to(mask, (q.shape[0], mask.shape[1], q.shape[1], k.shape[1])))
    seen = jnp.any(mask, axis=-1)
    return jnp.where(jnp.moveaxis(seen, 1, 2)[..., None], y, jnp.zeros((), y.dtype))


def _written_out(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    """The formula itself, for float64, where ``jax.nn.dot_product_attention`` has float32 inside, and on CPU.

    Heads that share keys are rows of one product, since a fifth axis would keep XLA from fusing the gradient of the
    softmax; and the sums over keys are divided where they are few, after the product with the values, which is to be
    less than the largest number of its dtype.
    """
    batch, time, heads, width = q.shape
    keys, groups = k.shape[1:3]
    shared = heads // groups
    q = q.reshape(batch, time, groups, shared, width).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, groups, shared * time, width)  # one axis at a time, for what lies on several devices
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = q @ k.swapaxes(2, 3) * width**-0.5
    if mask is not None:
        if shared > 1:
            mask = jnp.broadcast_to(mask, (batch, heads, time, keys))
            mask = mask.reshape(batch, groups, shared, time, keys).reshape(scores.shape)
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    exponentials = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    y = exponentials @ v / exponentials.sum(axis=-1, keepdims=True)
    y = y.reshape(batch, groups, shared, time, v.shape[-1])
    return y.reshape(batch, heads, time, v.shape[-1]).swapaxes(1, 2)


def _rotated(x: Any, positions: Any, base: Any) -> Any:
    """``x (batch, time, heads, features)``, its halves turned against each other by angles that grow with position."""
    half = x.shape[-1] // 2
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    frequency = base ** (-jnp.arange(half, dtype=dtype) / half)
    angle = positions.astype(dtype)[:, :, None, None] * frequency[None, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = (part.astype(dtype) for part in jnp.split(x, 2, axis=-1))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _inputs(params: Tree, a: Any, context: Any) -> list[Any]:
    """Queries, keys and values; of one sequence in one product, which is faster than three, with its gradients too."""
    if context is not a:
        return [_mapped(params[name], of) for name, of in (("query", a), ("key", context), ("value", context))]
    maps = [params[name] for name in ("query", "key", "value")]
    joined = jax.tree.map(lambda *parts: jnp.concatenate([part.astype(a.dtype) for part in parts], axis=-1), *maps)
    widths = [one["kernel"].shape[-1] for one in maps]
    return jnp.split(_mapped(joined, a), np.cumsum(widths)[:-1].tolist(), axis=-1)


def _mapped(params: Tree, x: Any) -> Any:
    y = primitives.matmul(x, params["kernel"].astype(x.dtype))
    return y + primitives.along_last(params["bias"].astype(x.dtype), y.ndim) if "bias" in params else y


def _expect_map(params: Tree, name: str, x: Any, shape: tuple[int, int], bias: bool) -> None:
    where = f"attention: {name}"
    expect_entries(where, "params", params, ("kernel", "bias") if bias else ("kernel",))
    kernel = params["kernel"]
    if name != "output" and kernel.ndim == 2 and x.shape[-1] != kernel.shape[0]:
        checks.fail(
            "attention",
            f"{kernel.shape[0]} features for {name}, as its kernel {tuple(kernel.shape)} has",
            f"{x.shape[-1]} in an input of shape {tuple(x.shape)}",
            "pass inputs of the shape that init was given, or init again",
        )
    checks.expect_shape(where, "kernel", kernel, shape)
    if bias:
        checks.expect_shape(where, "bias", params["bias"], shape[-1:])


def _sequences(x: Any, cross: bool) -> tuple[Any, Any]:
    """The sequence and what it looks at: the same array, or the context."""
    a = features("attention", x)
    if cross and not (isinstance(x, dict) and "context" in x):
        got, fix = f"shape {shown(x)}", 'pass {"x": x, "context": context}'
        checks.fail("attention", 'a dict with "x" and "context", for cross=True', got, fix)
    context = x["context"] if cross else a
    for name, each in (("x", a), ("context", context)):
        if isinstance(each, (tuple, dict)) or len(each.shape) != 3:
            fix = "reshape the input; of one example add a batch axis: x[None]"
            checks.fail("attention", f"{name} as (batch, time, features)", f"shape {shown(each)}", fix)
        checks.expect_floating("attention", each, "embed the tokens first")
    if a.dtype != context.dtype:
        got, fix = f"{a.dtype} and {context.dtype}", "cast one of them: context.astype(x.dtype)"
        checks.fail("attention", "x and the context of one dtype", got, fix, TypeError)
    if a.shape[0] != context.shape[0]:
        got = f"{a.shape[0]} and {context.shape[0]}"
        checks.fail(
            "attention", "as many examples in x as in the context", got, "give each sequence a context of its own"
        )
    return a, context


def _mask(x: Any, a: Any, context: Any, options: _Options) -> Any:
    """What may be looked at, with four axes, ``(batch, heads or 1, time or 1, keys)``; ``None`` for everything."""
    names = options.beside
    given = {name: x[name] for name in names if isinstance(x, dict) and x.get(name) is not None}
    if not given:
        return None
    if len(given) > 1:
        checks.fail("attention", f"one of {list(names)}", "both", "leave one out")
    (batch, time), keys = a.shape[:2], context.shape[1]
    ((name, value),) = given.items()
    value = jnp.asarray(value)
    if name.endswith("lengths"):
        checks.expect_lengths("attention", name, value, batch, keys)
        return (jnp.arange(keys)[None] < value[:, None])[:, None, None]
    if value.dtype != bool:
        checks.fail("attention", f"{name} of booleans", str(value.dtype), "True for what may be looked at", TypeError)
    shapes = [(batch, keys), (batch, time, keys), (batch, 1, time, keys), (batch, options.heads, time, keys)]
    if value.shape not in shapes and value.shape not in [(1, *shape[1:]) for shape in shapes[1:]]:
        expected = ", ".join(map(str, dict.fromkeys(shapes)))
        every = f"one for all examples has a batch axis of 1: {name}[None]"
        fix = every if value.shape == (time, keys) else "batch first, keys last"
        checks.fail("attention", f"{name} of one of the shapes {expected}", str(value.shape), fix)
    if value.ndim == 4:
        return value
    return value[:, None, None] if value.ndim == 2 else value[:, None]


def _positions(x: Any, a: Any, start: Any) -> Any:
    batch, time = a.shape[:2]
    if not isinstance(x, dict) or "positions" not in x:
        return jnp.broadcast_to(start + jnp.arange(time)[None], (batch, time))
    positions = jnp.asarray(x["positions"])
    if positions.shape != (batch, time):
        got = str(positions.shape)
        checks.fail("attention", f"positions of shape {(batch, time)}", got, "give one for each element of x")
    return positions


def _kept(state: Tree, k: Any, v: Any, length: Any) -> Tree:
    """The state with keys and values written behind those that are there."""
    if state["key"].shape[0] != k.shape[0]:
        fix = "the cache is of the batch that init was given: init again with this one"
        checks.fail("attention", f"{state['key'].shape[0]} examples, as the cache has", str(k.shape[0]), fix)
    if state["key"].shape[1] < k.shape[1]:
        fix = "make the cache as long as the sequence"
        checks.fail("attention", f"at most {state['key'].shape[1]} positions, as the cache has", str(k.shape[1]), fix)
    for name in ("key", "value"):
        checks.expect_shape("attention", name, state[name], (k.shape[0], length, *k.shape[2:]), "state")
    index, zero = state["index"], jnp.int32(0)
    at = (zero, index, zero, zero)
    return {
        "key": jax.lax.dynamic_update_slice(state["key"], k.astype(state["key"].dtype), at),
        "value": jax.lax.dynamic_update_slice(state["value"], v.astype(state["value"].dtype), at),
        "index": index + k.shape[1],
    }
