"""Layers made of layers: each names its children, gives each a key, and collects params and state by name."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from funcnn import checks
from funcnn.core import Layer, composite, expect_layer, expect_name, features, named_children, shown, with_features


def serial(*layers: Layer) -> Layer:
    """One layer after the other: the output of each is the input of the next.

    Formula: ``serial(f, g, h)(x) = h(g(f(x)))``; without layers it is the identity.

    Shapes: those of the layers, in turn.

    Params and State: one entry for each child that has any, under its name: ``dense_0``, ``dense_1``, or as ``named``.

    Args:
        *layers: in the order in which they act.

    Raises:
        TypeError: an argument is not a layer.
        ValueError: two children have one name, or params or state belong to another model.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model = layers.serial(layers.dense(8), layers.relu, layers.named("head", layers.dense(2)))
        >>> print(model)
        serial
        ├── dense_0
        ├── relu_0
        └── head: dense
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> sorted(params)
        ['dense_0', 'head']
        >>> model.apply(params, state, jnp.ones((5, 3)))[0].shape
        (5, 2)

    Reference: ``stax.serial`` of JAX's example libraries.
    """
    children = named_children("serial", layers)

    def route(call: Callable[[str, Any], Any], x: Any) -> Any:
        for name, _ in children:
            x = call(name, x)
        return x

    return composite("serial", children, route)


def named(name: str, layer: Layer) -> Layer:
    """The same layer under a name of your own, which is then part of every path: ``encoder/dense_0/kernel``.

    Formula: ``named(name, f)(x) = f(x)``

    Shapes: those of the layer.

    Params and State: those of the layer; what holds it keeps them under ``name``.

    Args:
        name: not empty, without ``/``, and different from those of its siblings.
        layer: any layer.

    Raises:
        TypeError: ``name`` is not a string, or ``layer`` is not a layer.
        ValueError: the name is empty or contains ``/``.

    Example:
        >>> from funcnn import layers
        >>> layers.named("head", layers.dense(2)).name
        'head'

    Reference: the second argument of ``nn.Module.add_module`` in PyTorch.
    """
    expect_name("named", name)
    expect_layer("named", layer)
    return layer._replace(name=name)


def parallel(*layers: Layer) -> Layer:
    """Several layers side by side, with a tuple of their outputs.

    Formula: ``parallel(f, g)((a, b)) = (f(a), g(b))``, and ``parallel(f, g)(x) = (f(x), g(x))`` for an ``x`` that is
    not a tuple.

    Shapes: those of each layer.

    Params and State: one entry for each child that has any, under its name.

    Args:
        *layers: as many as the tuple has inputs.

    Raises:
        ValueError: the input is a tuple of another length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model = layers.parallel(layers.dense(4), layers.dense(2))
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> jax.tree.map(jnp.shape, model.apply(params, state, jnp.ones((5, 3)))[0])
        ((5, 4), (5, 2))

    Reference: ``Parallel`` of Lux.jl.
    """
    children = named_children("parallel", layers)

    def route(call: Callable[[str, Any], Any], x: Any) -> Any:
        if not isinstance(x, tuple):
            return tuple(call(name, x) for name, _ in children)
        if len(x) != len(children):
            checks.fail(
                "parallel",
                f"a tuple of {len(children)} inputs, one for each layer",
                f"{len(x)} of shapes {shown(x)}",
                "give as many inputs as layers, or one that is not a tuple for all of them",
            )
        return tuple(call(name, a) for (name, _), a in zip(children, x, strict=True))

    return composite("parallel", children, route)


def residual(*layers: Layer, shortcut: Layer | None = None) -> Layer:
    """Layers one after the other, and their input added to what comes out.

    Formula: ``y = x + h(x)``, with ``h`` the layers in turn, or ``y = shortcut(x) + h(x)``.

    Shapes: what comes out of the layers must have the shape of the input, or of what ``shortcut`` makes of it.

    Params and State: one entry for each child that has any, under its name; the shortcut's is ``shortcut``.

    Args:
        *layers: in the order in which they act.
        shortcut: a layer for the other way, where the shapes differ; without it the input itself is added.

    Raises:
        ValueError: the two shapes differ; they are never broadcast.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model = layers.residual(layers.dense(8), layers.relu, layers.dense(3))
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> model.apply(params, state, jnp.ones((5, 3)))[0].shape
        (5, 3)

    Reference: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2015.
    """
    ends = () if shortcut is None else (named("shortcut", shortcut),)
    children = named_children("residual", (*layers, *ends))
    chain = children[: len(layers)]

    def route(call: Callable[[str, Any], Any], x: Any) -> Any:
        y = x
        for name, _ in chain:
            y = call(name, y)
        return (call("shortcut", x) if ends else x), y

    def combine(x: Any, outputs: Any) -> Any:
        kept, y = (features("residual", output) for output in outputs)
        if jnp.shape(kept) != jnp.shape(y):
            checks.fail(
                "residual",
                f"an output of the shape of the {'shortcut' if ends else 'input'}, {shown(kept)}",
                shown(y),
                "make them equal, for instance with shortcut=layers.dense(...)",
            )
        return with_features(x, jnp.add(kept, y))

    return composite("residual", children, route, combine)


def concatenate(*layers: Layer, axis: int = -1) -> Layer:
    """Several layers on the same input, their outputs joined; without layers, the arrays of a tuple joined.

    Formula: ``concatenate(f, g)(x) = [f(x), g(x)]``

    Shapes: the outputs must agree in all axes but ``axis``.

    Params and State: one entry for each child that has any, under its name.

    Args:
        *layers: each gets the whole input; their outputs are joined in this order.
        axis: along which to join, the last one unless it is given.

    Raises:
        ValueError: the shapes differ outside ``axis``, or there are neither layers nor a tuple.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model = layers.concatenate(layers.dense(4), layers.identity)
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> model.apply(params, state, jnp.ones((5, 3)))[0].shape
        (5, 7)

    Reference: Szegedy et al., "Going deeper with convolutions", 2014.
    """
    children = named_children("concatenate", layers)

    def route(call: Callable[[str, Any], Any], x: Any) -> Any:
        return tuple(call(name, x) for name, _ in children) if children else x

    def combine(x: Any, outputs: Any) -> Any:
        if not isinstance(outputs, tuple) or not outputs:
            fix = "give concatenate the layers whose outputs it joins"
            checks.fail("concatenate", "a tuple of arrays", shown(outputs), fix)
        arrays = [jnp.asarray(features("concatenate", output)) for output in outputs]
        shapes = [a.shape for a in arrays]
        if len({_without(shape, axis) for shape in shapes}) > 1 or not -arrays[0].ndim <= axis < arrays[0].ndim:
            fix = "make the other axes equal"
            checks.fail("concatenate", f"shapes that agree in all axes but {axis}", str(shapes), fix)
        return with_features(x if children else outputs[0], jnp.concatenate(arrays, axis))

    return composite("concatenate", children, route, combine)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    i = range(len(shape))[axis] if -len(shape) <= axis < len(shape) else len(shape)
    return shape[:i] + shape[i + 1 :]
