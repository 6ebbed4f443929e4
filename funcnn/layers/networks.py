"""Layers made of layers by an ordinary function, or by a choice that the data make."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks
from funcnn.core import (
    Layer,
    Tree,
    child_init,
    child_key,
    composite,
    expect_children,
    expect_key,
    expect_layer,
    expect_name,
    features,
    located,
    spec,
)


def network(forward: Callable[..., Any], **children: Layer) -> Layer:
    """An ordinary function over named layers, for everything that the other combinators do not fit.

    Formula: ``y = forward(x, encoder=..., head=...)``, where each child is a function of its input

    Shapes: whatever ``forward`` makes of them.

    Params and State: one entry for each child that has any, under its name.

    Args:
        forward: a pure function of ``x`` and of the children by name, written with ``jax.numpy``. A child that is
            called twice shares its params, threads its state, and draws anew. Children are called in the function
            itself, not inside a ``lax.scan``, ``lax.cond`` or ``jax.vmap`` of it: for these there are ``repeat``,
            ``condition`` and ``ensemble``.
        **children: the layers, by the names that they have in ``forward`` and in every path.

    Raises:
        TypeError: a child is not a layer, ``forward`` does not take the children by these names, or it calls one with
            anything else than one input.
        ValueError: ``forward`` leaves a child uncalled.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> def both(pair, encoder, head):
        ...     left, right = pair
        ...     return head(jnp.abs(encoder(left) - encoder(right)))
        >>> siamese = layers.network(both, encoder=layers.dense(4), head=layers.dense(1))
        >>> print(siamese)
        network
        ├── encoder: dense
        └── head: dense
        >>> pair = jnp.ones((5, 3)), jnp.zeros((5, 3))
        >>> params, state = siamese.init(jax.random.key(0), pair)
        >>> jax.tree.map(jnp.shape, params["encoder"])
        {'bias': (4,), 'kernel': (3, 4)}
        >>> siamese.apply(params, state, pair)[0].shape
        (5, 1)

    Reference: ``@compact`` of Lux.jl, ``Axon.block``.
    """
    if not callable(forward) or isinstance(forward, Layer):
        got = f"the layer {forward.kind}" if isinstance(forward, Layer) else type(forward).__name__
        fix = "pass a function first: network(lambda x, encoder: ..., encoder=...)"
        checks.fail("network", "a function", got, fix, TypeError)
    for name, layer in children.items():
        expect_name("network", name)
        expect_layer("network", layer)
    try:
        inspect.signature(forward).bind(None, **children)
    except TypeError as error:
        fix = "give its parameters the names of the children"
        got = str(error).removeprefix("got ")
        checks.fail("network", f"a function of x and of {sorted(children)}", got, fix, TypeError)

    def route(call: Callable[[str, Any], Any], x: Any) -> Any:
        return forward(x, **{name: _callable(name, partial(call, name)) for name in children})

    return composite("network", tuple(children.items()), route, computes=True)


def _callable(name: str, call: Callable[[Any], Any]) -> Callable[..., Any]:
    """What ``forward`` gets as a child."""

    def called(*given: Any) -> Any:
        if len(given) == 1:
            return call(given[0])
        fix = f"pass several inputs as one tuple: {name}((a, b))"
        return checks.fail("network", f"one argument, the input, for the child {name}", f"{len(given)}", fix, TypeError)

    called.__qualname__ = name  # so that Python names the child where an option is passed: it takes none
    return called


def condition(predicate: Callable[[Any], Any], on_true: Layer, on_false: Layer) -> Layer:
    """One of two layers, as a function of the input decides; only that one is computed.

    Formula: ``y = on_true(x) if predicate(x) else on_false(x)``

    Shapes: those of the two layers, which must be the same.

    Params and State: those of the layers, under ``on_true`` and ``on_false``; both are there, whichever is taken.

    Args:
        predicate: a pure function from the features of the whole batch to one boolean. It decides for all examples at
            once; for a choice by example take ``jnp.where`` in a ``network``. Under ``vmap`` both layers are computed.
        on_true: the layer where the predicate holds.
        on_false: the layer elsewhere.

    Raises:
        TypeError: an argument is not what it should be.
        ValueError: the outputs of the two differ in shape or dtype, or the predicate is not one boolean.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model = layers.condition(lambda x: x.mean() > 0, layers.identity, layers.function(jnp.negative))
        >>> [float(model.apply({}, {}, jnp.full((1, 1), value))[0].item()) for value in (2.0, -3.0)]
        [2.0, 3.0]

    Reference: ``Axon.cond``.
    """
    if not callable(predicate) or isinstance(predicate, Layer):
        checks.fail("condition", "a function first", type(predicate).__name__, "condition(predicate, a, b)", TypeError)
    children = {"on_true": on_true, "on_false": on_false}
    for layer in children.values():
        expect_layer("condition", layer)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key("condition.init", key)
        made = {name: child_init(name, layer, key, spec(x)) for name, layer in children.items()}
        _expect_alike(*(outputs for _, _, outputs in made.values()))
        kept = [{name: entry[i] for name, entry in made.items() if jax.tree.leaves(entry[i])} for i in (0, 1)]
        return kept[0], kept[1]

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        expect_children("condition", params, state, children, key)

        def branch(name: str) -> Callable[[Any], tuple[Any, Tree]]:
            def taken(a: Any) -> tuple[Any, Tree]:
                with located(name, a):
                    y, new = children[name].apply(
                        params.get(name, {}), state.get(name, {}), a, key=child_key(key, name), training=training
                    )
                return y, {**state, name: new} if name in state else state

            return taken

        chosen = jnp.asarray(predicate(features("condition", x)))
        if chosen.shape != () or chosen.dtype != bool:
            got, fix = f"{chosen.dtype}{chosen.shape}", "reduce it, for instance with jnp.all"
            checks.fail("condition", "a predicate that is one boolean", got, fix)
        branches = branch("on_true"), branch("on_false")
        _expect_alike(*(jax.eval_shape(lambda a, b=b: b(a)[0], x) for b in branches))
        return jax.lax.cond(chosen, *branches, jax.tree.map(jnp.asarray, x))

    return Layer(init, apply, "condition", children=tuple(children.items()))


def _expect_alike(first: Any, second: Any) -> None:
    found = [jax.tree.map(lambda a: f"{a.dtype}{tuple(a.shape)}", outputs) for outputs in (first, second)]
    if found[0] != found[1]:
        fix = "make them alike, for a program has one output shape"
        checks.fail("condition", f"outputs of both layers alike, {found[0]}", str(found[1]), fix)
