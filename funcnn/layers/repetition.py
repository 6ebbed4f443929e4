"""A layer many times over: in a row with weights of its own each time, in a row with the same, or side by side."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks, primitives
from funcnn.core import (
    Layer,
    Tree,
    child_key,
    composite,
    expect_children,
    expect_key,
    located,
    named_children,
    output_spec,
    spec,
)

# A transformer of four blocks of width 128 on 2048 positions, two CPU cores: 187 ms a step in a loop, which copies
# all that the gradient needs to a stack and back, and 150 written out; the first call takes as long.
_FEW = 4


def repeat(layer: Layer, n: int, *, remat: bool = False, unroll: int | None = None) -> Layer:
    """The same kind of layer ``n`` times in a row, each time with weights of its own, as one loop.

    It compiles in the time of a few layers, whatever ``n``, and computes what ``serial`` of ``n`` such layers would.

    Formula: ``y = f_n(... f_2(f_1(x)))``

    Shapes: those of the layer, whose output must have the shape and dtype of its input.

    Params and State: those of the layer under its name, each array with a leading axis of ``n``.

    Args:
        layer: any layer that keeps shape and dtype. Its ``i``-th key is ``fold_in(key, i)``.
        n: how many times.
        remat: whether to compute each layer again for the gradient, instead of keeping what it computed: memory for
            one layer and ``n`` inputs.
        unroll: how many layers one pass of the loop has: more compile longer, and copy less. All where it is ``None``
            and there are up to four of them on a CPU, without ``remat``; otherwise one, as it must be with ``remat``.

    Raises:
        TypeError: ``layer`` is not a layer, or ``n`` or ``unroll`` not a whole number.
        ValueError: the layer changes the shape or dtype, the params are of another number of layers, or both ``remat``
            and ``unroll`` are given.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> deep = layers.repeat(layers.residual(layers.layer_norm(), layers.dense(8), layers.relu), 64)
        >>> params, state = deep.init(jax.random.key(0), jnp.ones((5, 8)))
        >>> params["residual_0"]["dense_0"]["kernel"].shape
        (64, 8, 8)
        >>> deep.apply(params, state, jnp.ones((5, 8)))[0].shape
        (5, 8)

    Reference: ``layer_stack`` of Haiku, ``nn.scan`` of Flax.
    """
    n = checks.expect_count("repeat", "n", n)
    given = None if unroll is None else checks.expect_count("repeat", "unroll", unroll)
    if remat and given not in (None, 1):
        # In one pass XLA shares what is computed again with what was computed before, and nothing is saved.
        checks.fail("repeat", "unroll of 1 with remat", str(given), "leave unroll out, or remat")
    ((name, child),) = named_children("repeat", (layer,))

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key("repeat.init", key)
        x = spec(x)
        with located(name, x):
            params, state = jax.vmap(lambda k: child.init(k, x))(_keys(child_key(key, name), n))
            _expect_kept(x, output_spec(child, *_first(params, state), x))
        return _entry(name, params), _entry(name, state)

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        expect_children("repeat", params, state, {name: child}, key)
        x = jax.tree.map(jnp.asarray, x)
        stacked = params.get(name, {}), state.get(name, {})
        _expect_stacked("repeat", stacked, n)

        def body(a: Any, one: tuple[Tree, Tree, Any]) -> tuple[Any, Tree]:
            p, s, i = one
            k = None if key is None else jax.random.fold_in(child_key(key, name), i)
            y, new = child.apply(p, s, a, key=k, training=training)
            _expect_kept(a, spec(y))
            return y, new

        with located(name, x):
            few = n <= _FEW and not remat and primitives.platform() == "cpu"
            together = min(n, given or (n if few else 1))
            # Inside a scan nothing would be shared that this could keep apart.
            step = jax.checkpoint(body, prevent_cse=False) if remat else body
            y, new = jax.lax.scan(step, x, (*stacked, jnp.arange(n)), unroll=together)
        return y, _entry(name, new)

    return Layer(init, apply, "repeat", children=((name, child),))


def shared(layer: Layer, n: int) -> Layer:
    """One layer ``n`` times in a row, every time with the same weights.

    Formula: ``y = f(... f(f(x)))``

    Shapes: those of the layer, which must take what it gives.

    Params and State: those of the layer under its name; the state goes through all ``n`` calls.

    Args:
        layer: any layer that takes what it gives.
        n: how many times. Random layers inside draw anew each time.

    Raises:
        TypeError: ``layer`` is not a layer, or ``n`` not a whole number.
        ValueError: the layer does not take what it gives.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model = layers.shared(layers.dense(8), 3)
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 8)))
        >>> jax.tree.map(jnp.shape, params)
        {'dense_0': {'bias': (8,), 'kernel': (8, 8)}}
        >>> model.apply(params, state, jnp.ones((5, 8)))[0].shape
        (5, 8)

    Reference: ``RepeatedLayer`` of Lux.jl; Lan et al., "ALBERT", 2019. Where one layer acts in several places, write
    ``network`` and call it in each of them.
    """
    n = checks.expect_count("shared", "n", n)
    children = named_children("shared", (layer,))

    def route(call: Callable[[str, Any], Any], x: Any) -> Any:
        for _ in range(n):
            x = call(children[0][0], x)
        return x

    return composite("shared", children, route)


def ensemble(layer: Layer, n: int) -> Layer:
    """``n`` layers of one kind side by side on the same input, each with weights of its own, as one batched program.

    Formula: ``y[:, i] = f_i(x)``

    Shapes: ``(batch, ...) -> (batch, n, ...)``, where the layer makes ``(batch, ...)`` of it.

    Params and State: those of the layer under its name, each array with a leading axis of ``n``.

    Args:
        layer: any layer. Its ``i``-th key is ``fold_in(key, i)``.
        n: how many.

    Raises:
        TypeError: ``layer`` is not a layer, or ``n`` not a whole number.
        ValueError: the params are of another number of layers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> mean = layers.function(lambda y: y.mean(axis=1))
        >>> model = layers.serial(layers.ensemble(layers.dense(3), 5), mean)
        >>> params, state = model.init(jax.random.key(0), jnp.ones((4, 2)))
        >>> params["ensemble_0"]["dense_0"]["kernel"].shape, model.apply(params, state, jnp.ones((4, 2)))[0].shape
        ((5, 2, 3), (4, 3))

    Reference: Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive uncertainty estimation using deep
    ensembles", 2016. Ensembles that are trained each on its own are a sweep over seeds.
    """
    n = checks.expect_count("ensemble", "n", n)
    ((name, child),) = named_children("ensemble", (layer,))

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key("ensemble.init", key)
        x = spec(x)
        with located(name, x):
            params, state = jax.vmap(lambda k: child.init(k, x))(_keys(child_key(key, name), n))
            output_spec(child, *_first(params, state), x)
        return _entry(name, params), _entry(name, state)

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        expect_children("ensemble", params, state, {name: child}, key)
        stacked = params.get(name, {}), state.get(name, {})
        _expect_stacked("ensemble", stacked, n)
        keys = None if key is None else _keys(child_key(key, name), n)

        def member(p: Tree, s: Tree, k: Any) -> tuple[Any, Tree]:
            return child.apply(p, s, x, key=k, training=training)

        with located(name, x):
            y, new = jax.vmap(member, axis_size=n)(*stacked, keys)
        beside = isinstance(x, dict) and isinstance(y, dict) and "x" in y
        y = {**x, "x": _second(y["x"])} if beside else _second(y)
        return y, _entry(name, new)

    return Layer(init, apply, "ensemble", children=((name, child),))


def _second(y: Any) -> Any:
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), y)


def _keys(key: Any, n: int) -> Any:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))


def _entry(name: str, tree: Tree) -> Tree:
    return {name: tree} if jax.tree.leaves(tree) else {}


def _first(params: Tree, state: Tree) -> tuple[Tree, Tree]:
    """The shapes and dtypes of one layer."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (params, state))


def _expect_kept(x: Any, y: Any) -> None:
    before, after = (jax.tree.map(lambda a: f"{a.dtype}{tuple(a.shape)}", tree) for tree in (spec(x), y))
    if before != after:
        fix = "make the last layer give what the first one takes"
        checks.fail("repeat", f"a layer that keeps shape and dtype, {before}", str(after), fix)


def _expect_stacked(where: str, trees: Any, n: int) -> None:
    for leaf in jax.tree.leaves(trees):
        if jnp.ndim(leaf) == 0 or len(leaf) != n:
            fix = "pass what init of this very model returned"
            checks.fail(where, f"params and state with a leading axis of {n}", f"shape {jnp.shape(leaf)}", fix)
