"""Weights made of other weights: low-rank updates, and norms of the weights themselves."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import he_uniform

from funcnn import checks, stacks, trees
from funcnn.core import Layer, Tree, child_key, expect_entries, expect_key, expect_layer
from funcnn.layers.transforms import reparametrized

Initializer = Callable[..., Any]


Patterns = str | Sequence[str]


def lora(layer: Layer, rank: int, *, where: Patterns = "**/kernel", a_init: Initializer = he_uniform()) -> Layer:
    """The layer with a low-rank update beside some of its weights: what is there stays, and little has to be trained.

    Formula: ``kernel + a @ b`` in the place of each ``kernel``; ``b`` starts at zero, so the layer starts as it was.

    Shapes: those of the layer.

    Params: the layer's own under ``base``; under ``lora``, for each weight ``(..., n, features)`` that ``where`` names,
    ``a (..., n, rank)`` and ``b (rank, features)`` under its path. State: the layer's.

    Args:
        layer: any layer, or a whole model.
        rank: of the update.
        where: a pattern over the paths of the layer's params, or several: ``("**/query/kernel", "**/value/kernel")``.
        a_init: from ``jax.nn.initializers``.

    Raises:
        TypeError: ``layer`` is not a layer, or ``rank`` not a whole number.
        ValueError: a pattern matches nothing, or a weight that is no matrix; updates have other sizes than ``base``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, training, trees
        >>> model = layers.serial(layers.dense(64), layers.relu, layers.dense(2))
        >>> trained, state = model.init(jax.random.key(0), jnp.ones((5, 32)))
        >>> adapted = layers.lora(model, rank=2)
        >>> params, _ = adapted.init(jax.random.key(1), jnp.ones((5, 32)))
        >>> params = params | {"base": trained}
        >>> optimizer = training.freeze(optax.adam(1e-3), "base/**")
        >>> trees.count(params["base"]), trees.count(params["lora"])
        (2242, 324)
        >>> plain = layers.merged(params)
        >>> bool((plain["dense_0"]["kernel"] == trained["dense_0"]["kernel"]).all())
        True

    Notes:
        1. There is no ``alpha``: with an optimizer that scales its steps, as Adam does, it is another name for the
           learning rate.
        2. Of params that ``repeat`` or ``ensemble`` stacks each has an update of its own.

    Reference: Hu et al., "LoRA: low-rank adaptation of large language models", 2021.
    """
    expect_layer("lora", layer)
    rank = checks.expect_count("lora", "rank", rank)
    patterns = trees.patterns_of("lora", where)

    def whole(params: Tree) -> Tree:
        for path, a in trees.select(params["lora"], "**/a").items() if _is_adapted(params) else ():
            if a.shape[-1] != rank:
                got, fix = f"a of shape {a.shape} at {path!r}", "pass params of this rank, or choose theirs"
                checks.fail("lora", f"updates of rank {rank}", got, fix)
        return merged(params)

    inner = reparametrized(layer, whole)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        base, state = layer.init(key, x)
        if any(path.split("/")[-1] in ("a", "b") and "lora" in path.split("/") for path in trees.paths(base)):
            fix = "name the weights of both by one pattern, or merge the inner one first"
            checks.fail("lora", "a layer without another lora inside", "one", fix)
        updates: dict[str, Any] = {}
        for path, weight in trees.select(base, *patterns, where="lora").items():
            axes = stacks.axes_of(layer, path)
            if weight.ndim - axes < 2:
                got = f"shape {weight.shape} at {path!r}"
                checks.fail("lora", "weights with at least 2 axes", got, "narrow the pattern: where='**/kernel'")
            own = child_key(child_key(key, "lora"), path)
            of = (*weight.shape[:-1], rank), weight.dtype
            updates[f"{path}/a"] = stacks.drawn("lora", path, a_init, own, of, axes)
            updates[f"{path}/b"] = jnp.zeros((*weight.shape[:axes], rank, weight.shape[-1]), weight.dtype)
        return {"base": base, "lora": trees.nested(updates)}, state

    return layer._replace(init=init, apply=inner.apply)


def merged(params: Tree) -> Tree:
    """The plain params of a model from those with low-rank updates, wherever in the tree ``lora`` was.

    Formula: ``kernel + a @ b`` for each ``kernel`` that has them

    Args:
        params: nested dicts.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> update = {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 2))}
        >>> print(layers.merged({"base": {"kernel": jnp.zeros((3, 2))}, "lora": {"kernel": update}}))
        {'kernel': Array([[1., 1.],
               [1., 1.],
               [1., 1.]], dtype=float32)}
    """
    if not isinstance(params, dict):
        return params
    if not _is_adapted(params):
        return {name: merged(entry) for name, entry in params.items()}
    updates = trees.select(params["lora"], "**")
    left = sorted({path.rpartition("/")[0] for path in updates} - set(trees.paths(params["base"])))
    halves = [path for path in updates if f"{path[:-1]}{'b' if path[-1] == 'a' else 'a'}" not in updates]
    if left or halves:
        fix = "pass what init of this very model returned"
        checks.fail("lora", "an a and a b for weights that base has", f"{[*left, *halves]}", fix)

    def plain(path: Any, weight: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if f"{name}/a" not in updates:
            return weight
        a, b = updates[f"{name}/a"], updates[f"{name}/b"]
        _expect_factors(name, weight.shape, a.shape, b.shape)
        # The axes that b has in front are those of stacked params; a may have more, such as those of a window.
        b = b.reshape(*b.shape[:-2], *(1,) * (a.ndim - b.ndim), *b.shape[-2:])
        return weight + jnp.matmul(a, b)

    return jax.tree_util.tree_map_with_path(plain, params["base"])


def _expect_factors(path: str, whole: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> None:
    if min(len(a), len(b)) < 2 or a[:-1] != whole[:-1] or b != (*whole[: len(b) - 2], a[-1], whole[-1]):
        got, fix = f"a of shape {a} and b of shape {b}", "pass a base and updates that were made for each other"
        checks.fail("lora", f"an update for {path!r} of shape {whole}", got, fix)


def _is_adapted(params: Tree) -> bool:
    if not isinstance(params, dict) or set(params) != {"base", "lora"}:
        return False
    names = [path.rpartition("/")[2] for path in trees.paths(params["lora"])]
    return bool(names) and all(name in ("a", "b") for name in names)


def weight_norm(layer: Layer, *, where: Patterns = "**/kernel") -> Layer:
    """The layer with some weights split into a direction and a length, which are trained apart.

    Formula: ``kernel = scale * direction / |direction|``, with one length for each output feature

    Shapes: those of the layer.

    Params: the layer's; in the place of each ``kernel (..., features)`` that ``where`` names, ``direction (...,
    features)`` and ``scale (features,)``, which start so that nothing changes. State: the layer's.

    Args:
        layer: any layer, or a whole model.
        where: a pattern over the paths of the layer's params, or several.

    Raises:
        TypeError: ``layer`` is not a layer.
        ValueError: a pattern matches nothing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> layer = layers.weight_norm(layers.dense(4))
        >>> params, state = layer.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> jax.tree.map(jnp.shape, params)
        {'bias': (4,), 'kernel': {'direction': (3, 4), 'scale': (4,)}}

    Notes:
        1. Of params that ``repeat`` or ``ensemble`` stacks each is a weight of its own.

    Reference: Salimans and Kingma, "Weight normalization", 2016.
    """
    expect_layer("weight_norm", layer)
    patterns = trees.patterns_of("weight_norm", where)

    def split(params: Tree) -> Tree:
        leaves = trees.select(params, "**")
        for path, weight in trees.select(params, *patterns, where="weight_norm").items():
            del leaves[path]
            axes = stacks.axes_of(layer, path)
            length = _length(weight, axes).reshape(*weight.shape[:axes], weight.shape[-1])
            leaves |= {f"{path}/direction": weight, f"{path}/scale": length}
        return trees.nested(leaves)

    def whole(params: Tree) -> Tree:
        if not isinstance(params, dict):
            return params
        if set(params) != {"direction", "scale"} or isinstance(params["direction"], dict):
            return {name: whole(entry) for name, entry in params.items()}
        direction, scale = params["direction"], params["scale"]
        checks.expect_shape("weight_norm", "scale", scale, (*direction.shape[: scale.ndim - 1], direction.shape[-1]))
        length = _length(direction, scale.ndim - 1)
        return direction * (scale.reshape(length.shape) / length)

    return reparametrized(layer, whole, start=split)


def _length(weight: Any, axes: int) -> Any:
    """The norm over all axes but the last and the first ``axes``; they stay as axes of one."""
    squares = jnp.sum(jnp.square(weight), axis=tuple(range(axes, weight.ndim - 1)), keepdims=True)
    return jnp.sqrt(jnp.maximum(squares, _LEAST))  # a weight of zeros has no direction, and still a finite gradient


_LEAST = 1e-24
_SPECTRAL = "spectral_norm"


def spectral_norm(layer: Layer, *, where: Patterns = "**/kernel", iterations: int = 1, epsilon: Any = 1e-12) -> Layer:
    """The layer with some weights divided by their largest singular value, so that none stretches its input.

    Formula: ``kernel / sigma``, ``sigma = u W v`` for ``W = kernel`` as a matrix with one row for each output feature,
    with ``u`` and ``v`` from power iteration: ``v = W^T u / |W^T u|``, ``u = W v / |W v|``

    Shapes: those of the layer.

    Params: the layer's. State: the layer's, and under ``spectral_norm``, for each weight that ``where`` names, ``u``
    and ``v`` under its path; a step of training goes on with them.

    Args:
        layer: any layer, or a whole model.
        where: a pattern over the paths of the layer's params, or several.
        iterations: how many of them a step of training makes; at the beginning there are 15.
        epsilon: the least length that is divided by.

    Raises:
        TypeError: ``layer`` is not a layer, or ``iterations`` not a whole number.
        ValueError: a pattern matches nothing.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> layer = layers.spectral_norm(layers.dense(3, bias=False))
        >>> params, state = layer.init(jax.random.key(0), jnp.eye(3))
        >>> for _ in range(50):
        ...     weight, state = layer.apply(params, state, jnp.eye(3), training=True)
        >>> print(jnp.linalg.svd(weight)[1][0].round(3))
        1.0

    Notes:
        1. Of params that ``repeat`` or ``ensemble`` stacks each is a weight of its own.

    Reference: Miyato, Kataoka, Koyama and Yoshida, "Spectral normalization for generative adversarial networks", 2018.
    """
    expect_layer("spectral_norm", layer)
    iterations = checks.expect_count("spectral_norm", "iterations", iterations)
    patterns = trees.patterns_of("spectral_norm", where)

    def turned(weight: Any, vectors: Any, times: int) -> dict[str, Any]:
        def one(weight: Any, u: Any, v: Any) -> dict[str, Any]:
            matrix = _as_matrix(weight).astype(u.dtype)
            for _ in range(times):
                v = _unit(matrix.T @ u, epsilon)
                u = _unit(matrix @ v, epsilon)
            return {"u": u, "v": v}

        return stacks.of_each(one, vectors["u"].ndim - 1)(weight, vectors["u"], vectors["v"])

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key("spectral_norm.init", key)
        params, state = layer.init(key, x)
        if _SPECTRAL in state:
            fix = "name the weights of both by one pattern"
            checks.fail("spectral_norm", "a layer without another spectral_norm around the whole of it", "one", fix)
        found: dict[str, Any] = {}
        for path, weight in trees.select(params, *patterns, where="spectral_norm").items():
            axes = stacks.axes_of(layer, path)
            each, rows = weight.shape[:axes], math.prod(weight.shape[axes:-1])
            own = child_key(child_key(key, _SPECTRAL), path)
            u = stacks.of_each(lambda vector: _unit(vector, epsilon), axes)(
                jax.random.normal(own, (*each, weight.shape[-1]), weight.dtype)
            )
            found[path] = turned(weight, {"u": u, "v": jnp.zeros((*each, rows), weight.dtype)}, 15)
        return params, {**state, _SPECTRAL: trees.nested(found)}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        inner = {name: entry for name, entry in state.items() if name != _SPECTRAL}
        weights = trees.select(params, *patterns, where="spectral_norm")
        held = _vectors(state, weights)
        found: dict[str, Any] = {}
        for path, weight in weights.items():
            vectors = {name: held[f"{path}/{name}"] for name in ("u", "v")}
            if training:
                # What the vectors are does not depend on the weight, as in the paper: its gradient is that of u W v.
                vectors = jax.lax.stop_gradient(turned(weight, vectors, iterations))
            found[path] = vectors
        divided = trees.replace(params, {path: _divided(found[path]) for path in weights})
        y, inner = layer.apply(divided, inner, x, key=key, training=training)
        return y, {**inner, _SPECTRAL: trees.nested(found)}

    return layer._replace(init=init, apply=apply)


def _vectors(state: Tree, weights: dict[str, Any]) -> dict[str, Any]:
    """What the state holds for each weight, by path."""
    kept = state.get(_SPECTRAL) or {}
    held = trees.select(kept, "**") if kept else {}
    expect_entries("spectral_norm", "state", held, [f"{path}/{name}" for path in weights for name in ("u", "v")])
    for path, weight in weights.items():
        axes = held[f"{path}/u"].ndim - 1
        each, rows = weight.shape[:axes], math.prod(weight.shape[axes:-1])
        for name, size in (("u", weight.shape[-1]), ("v", rows)):
            checks.expect_shape(f"spectral_norm: {path}", name, held[f"{path}/{name}"], (*each, size), "state")
    return held


def _divided(vectors: Any) -> Callable[[Any], Any]:
    u, v = jnp.asarray(vectors["u"]), jnp.asarray(vectors["v"])

    def one(weight: Any, u: Any, v: Any) -> Any:
        sigma = u @ (_as_matrix(weight).astype(u.dtype) @ v)
        return (weight / jnp.where(sigma == 0, 1, sigma)).astype(weight.dtype)

    return lambda weight: stacks.of_each(one, u.ndim - 1)(weight, u, v)


def _as_matrix(weight: Any) -> Any:
    """One row for each output feature."""
    return jnp.asarray(weight).reshape(-1, weight.shape[-1]).T


def _unit(vector: Any, epsilon: Any) -> Any:
    length = jnp.sqrt(jnp.sum(jnp.square(vector)))
    return vector / jnp.maximum(length, epsilon)
