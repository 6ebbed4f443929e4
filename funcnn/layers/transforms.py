"""From layer to layer: other weights in its place, another precision, less memory, nothing that is trained."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks, stacks, trees
from funcnn.core import Layer, Tree, expect_layer, spec

Initializer = Callable[..., Any]


def reparametrized(
    layer: Layer, f: Callable[[Tree], Tree], *, start: Callable[[Tree], Tree] = lambda params: params
) -> Layer:
    """The layer with params that are a function of those that are kept and trained.

    Formula: ``apply(params, ...) = layer.apply(f(params), ...)``

    Shapes: those of the layer.

    Params: what ``start`` makes of the layer's; ``f`` makes the layer's of them. State: the layer's.

    Args:
        layer: any layer.
        f: a pure function from the params that are kept to those of the layer.
        start: a pure function from the initial params of the layer to those that are kept.

    Raises:
        TypeError: ``layer`` is not a layer, or ``f`` or ``start`` not a function.
        ValueError: ``f`` of ``start`` of the initial params is another tree, or has other shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers, trees
        >>> def symmetric(params):
        ...     return trees.replace(params, {"kernel": lambda k: (k + k.T) / 2})
        >>> layer = layers.reparametrized(layers.dense(3, bias=False), symmetric)
        >>> params, state = layer.init(jax.random.key(0), jnp.eye(3))
        >>> y, state = layer.apply(params, state, jnp.eye(3))
        >>> bool(jnp.allclose(y, y.T))
        True

    Reference: ``torch.nn.utils.parametrize``.
    """
    expect_layer("reparametrized", layer)
    for name, function in (("f", f), ("start", start)):
        if not callable(function) or isinstance(function, Layer):
            got, fix = type(function).__name__, "pass a function from params to params"
            checks.fail("reparametrized", f"{name} as a function", got, fix, TypeError)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        params, state = layer.init(key, x)
        kept = start(params)
        _expect_same_tree(spec(params), jax.eval_shape(f, kept))
        return kept, state

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        return layer.apply(f(params), state, x, key=key, training=training)

    return layer._replace(init=init, apply=apply)


def mixed_precision(
    layer: Layer, *, compute: Any = jnp.bfloat16, params: Any = jnp.float32, output: Any = None
) -> Layer:
    """The layer computed in one dtype, with its weights kept in another.

    Formula: ``apply(params, x) = output(layer.apply(compute(params), compute(x)))``, each name a cast

    Shapes: those of the layer.

    Params: the layer's, in the dtype ``params``; so are the gradients, and what an optimizer keeps. State: the layer's;
    running averages keep the dtype that the layer gave them.

    Args:
        layer: any layer, or a whole model.
        compute: the dtype of activations and of the weights that meet them: ``jnp.bfloat16``, or ``jnp.float16``, which
            needs ``loss_scale`` in the trainer.
        params: the dtype of the weights that are kept.
        output: the dtype of the output; by default that of the input, or ``params`` where that is of whole numbers.

    Raises:
        TypeError: a dtype is not floating, or ``layer`` is not a layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model = layers.mixed_precision(layers.serial(layers.dense(8), layers.layer_norm(), layers.dense(2)))
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> y, state = model.apply(params, state, jnp.ones((5, 3)))
        >>> params["dense_0"]["kernel"].dtype, y.dtype
        (dtype('float32'), dtype('float32'))

    Notes:
        1. Norms, softmax and losses compute in float32 inside whatever their input is.
        2. ``scale`` and ``bias`` are not cast here, so that norms see all their digits; the layers that compute in the
           dtype of their input cast their bias themselves.

    Reference: Micikevicius et al., "Mixed precision training", 2017.
    """
    expect_layer("mixed_precision", layer)
    for name, dtype in (("compute", compute), ("params", params), ("output", params if output is None else output)):
        if not jnp.issubdtype(dtype, jnp.floating):
            got, fix = str(dtype), "pass one such as jnp.bfloat16"
            checks.fail("mixed_precision", f"{name} as a floating dtype", got, fix, TypeError)

    def computed(kept: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, a: a if getattr(path[-1], "key", None) in ("scale", "bias") else _cast(a, compute), kept
        )

    inner = reparametrized(layer, computed, start=lambda made: jax.tree.map(lambda a: _cast(a, params), made))

    stored = params

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(spec(x)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        dtype = output if output is not None else dtypes[0] if dtypes else stored
        lowered = jax.tree.map(lambda leaf: _cast(jnp.asarray(leaf), compute), x)
        y, state = inner.apply(params, state, lowered, key=key, training=training)
        raised = jax.tree.map(lambda leaf: _cast(leaf, dtype), y)
        if isinstance(y, dict) and isinstance(x, dict):  # side inputs are handed on as they came
            raised |= {name: x[name] for name in x if name in y and name != "x"}
        return raised, state

    return layer._replace(init=inner.init, apply=apply)


def remat(layer: Layer, *, policy: Callable[..., bool] | None = None) -> Layer:
    """The layer computed again for the gradient, instead of keeping what it computed on the way: time for memory.

    Formula: ``y = f(x)``, also its gradient

    Shapes: those of the layer.

    Params and State: those of the layer.

    Args:
        layer: any layer.
        policy: one of ``jax.checkpoint_policies``, for what is kept all the same; nothing without one.

    Raises:
        TypeError: ``layer`` is not a layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> block = layers.remat(layers.serial(layers.dense(8), layers.gelu, layers.dense(8)))
        >>> params, state = block.init(jax.random.key(0), jnp.ones((5, 8)))
        >>> block.apply(params, state, jnp.ones((5, 8)))[0].shape
        (5, 8)

    Reference: Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost", 2016; ``jax.checkpoint``.
    """
    expect_layer("remat", layer)

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        def again(p: Tree, s: Tree, a: Any, k: Any) -> tuple[Any, Tree]:
            return layer.apply(p, s, a, key=k, training=training)

        return jax.checkpoint(again, policy=policy)(params, state, x, key)

    return layer._replace(apply=apply)


def frozen(layer: Layer, params: Tree = None, state: Tree = None) -> Layer:
    """The layer as it is: its params are a part of the state, so that no optimizer sees them, and nothing changes them.

    Formula: ``y = f(x)``, computed as when not training

    Shapes: those of the layer.

    Params: none. State: the layer's params under ``params``, its state under ``state``.

    Args:
        layer: any layer.
        params: those that it is to have, for instance of a network that was trained before; initial ones otherwise.
        state: likewise.

    Raises:
        TypeError: ``layer`` is not a layer.
        ValueError: params or state are not those of this layer on this input.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> encoder = layers.dense(4)
        >>> trained, _ = encoder.init(jax.random.key(1), jnp.ones((5, 3)))
        >>> model = layers.serial(layers.frozen(encoder, trained), layers.relu, layers.named("head", layers.dense(2)))
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> sorted(params), bool((state["dense_0"]["params"]["kernel"] == trained["kernel"]).all())
        (['head'], True)

    Notes:
        1. Batch norm inside goes by its running averages and leaves them as they are, dropout does nothing, as in Keras
           for ``trainable=False``. In PyTorch ``requires_grad_(False)`` stops neither.
        2. Gradients go through to what stands before it.
        3. To freeze weights where they are, without moving them into the state: ``training.freeze``.

    Reference: ``freeze`` of Lux.jl.
    """
    expect_layer("frozen", layer)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        made = layer.init(key, x)
        kept = tuple(own if given is None else given for own, given in zip(made, (params, state), strict=True))
        for own, given in zip(made, kept, strict=True):
            _expect_same_tree(spec(own), spec(given), "frozen")
        return {}, {name: tree for name, tree in zip(("params", "state"), kept, strict=True) if jax.tree.leaves(tree)}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params, key, training
        held = jax.lax.stop_gradient(state)
        y, _ = layer.apply(held.get("params", {}), held.get("state", {}), x)
        return y, state

    return layer._replace(init=init, apply=apply)


def with_initializers(layer: Layer, rules: Mapping[str, Initializer]) -> Layer:
    """The layer with other initial params where a path matches, drawn by initializers of your own.

    Formula: ``y = f(x)``

    Shapes: those of the layer.

    Params and State: those of the layer.

    Args:
        layer: any layer, or a whole model.
        rules: from ``jax.nn.initializers``, by pattern over the paths of the params; the first that matches counts.

    Raises:
        TypeError: ``layer`` is not a layer, or a rule not an initializer: ``he_normal`` is none, ``he_normal()`` is.
        ValueError: a pattern matches nothing, or an initializer returns another shape or dtype than it is asked for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model = layers.serial(layers.dense(8), layers.relu, layers.dense(2))
        >>> model = layers.with_initializers(model, {"**/kernel": jax.nn.initializers.he_normal()})
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> params["dense_0"]["kernel"].shape
        (3, 8)

    Notes:
        1. Of params that ``repeat`` or ``ensemble`` stacks each is drawn for itself.

    Reference: ``Module.apply`` of PyTorch, where it is used to initialise.
    """
    expect_layer("with_initializers", layer)
    for pattern, initializer in rules.items():
        if not callable(initializer):
            got, fix = type(initializer).__name__, "pass one of jax.nn.initializers, called: he_normal()"
            checks.fail("with_initializers", f"an initializer for {pattern!r}", got, fix, TypeError)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        params, state = layer.init(key, x)
        labels = trees.labels(params, dict(zip(rules, range(len(rules)), strict=True)), -1, where="with_initializers")
        chosen, initializers = trees.select(labels, "**"), list(rules.values())

        def leaf(path: Any, a: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if chosen[name] < 0:
                return a
            # No name of a child has a "/" at its end: this key is nobody else's.
            own = jax.random.fold_in(key, zlib.crc32(f"{name}/".encode()))
            initializer, axes = initializers[chosen[name]], stacks.axes_of(layer, name)
            return stacks.drawn("with_initializers", name, initializer, own, (a.shape, a.dtype), axes)

        return jax.tree_util.tree_map_with_path(leaf, params), state

    return layer._replace(init=init)


def _cast(a: Any, dtype: Any) -> Any:
    return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a


def _drawn_up(a: Any) -> str:
    """The shape, and the dtype where it is no floating one: weights may be kept in any precision."""
    return f"{tuple(a.shape)}" if jnp.issubdtype(a.dtype, jnp.floating) else f"{a.dtype}{tuple(a.shape)}"


def _expect_same_tree(expected: Tree, got: Tree, where: str = "reparametrized") -> None:
    shapes = [{p: _drawn_up(a) for p, a in trees.select(t, "**").items()} if t else {} for t in (expected, got)]
    different = sorted(p for p in shapes[0] | shapes[1] if shapes[0].get(p) != shapes[1].get(p))
    if different:
        path = different[0]
        sides = [side.get(path, "nothing") for side in shapes]
        fix = "give params with the paths and shapes of the layer's own"
        checks.fail(where, f"{sides[0]} at {path!r}", sides[1], fix)
