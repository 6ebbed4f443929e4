"""Layers made of layers: each names its children, gives each a key, and collects params and state by name."""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import checks
from funcnn.core import (
    Layer,
    Tree,
    composite,
    expect_key,
    expect_layer,
    expect_name,
    features,
    named_children,
    shown,
    with_features,
)


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


def add(*layers: Layer) -> Layer:
    """Several layers on the same input, their outputs added; without layers, the arrays of a tuple added.

    Formula: ``add(f, g)(x) = f(x) + g(x)``

    Shapes: the outputs must have one shape; they are never broadcast.

    Params and State: one entry for each child that has any, under its name.

    Args:
        *layers: each gets the whole input.

    Raises:
        ValueError: the shapes differ, or there are neither layers nor a tuple.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> model = layers.add(layers.dense(4), layers.serial(layers.dense(8), layers.tanh, layers.dense(4)))
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> model.apply(params, state, jnp.ones((5, 3)))[0].shape
        (5, 4)
        >>> layers.add().apply({}, {}, (jnp.ones(2), 2 * jnp.ones(2)))[0].tolist()
        [3.0, 3.0]

    Reference: ``FanInSum`` of stax.
    """
    return _joining("add", layers, jnp.add)


def multiply(*layers: Layer) -> Layer:
    """Several layers on the same input, their outputs multiplied by element: a gate; without layers, those of a tuple.

    Formula: ``multiply(f, g)(x) = f(x) g(x)``

    Shapes: the outputs must have one shape; they are never broadcast.

    Params and State: one entry for each child that has any, under its name.

    Args:
        *layers: each gets the whole input.

    Raises:
        ValueError: the shapes differ, or there are neither layers nor a tuple.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> gate = layers.serial(layers.dense(3), layers.sigmoid)
        >>> gated = layers.multiply(layers.identity, gate)
        >>> params, state = gated.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> gated.apply(params, state, jnp.ones((5, 3)))[0].shape
        (5, 3)

    Reference: Dauphin, Fan, Auli and Grangier, "Language modeling with gated convolutional networks", 2016.
    """
    return _joining("multiply", layers, jnp.multiply)


def _joining(kind: str, layers: tuple[Layer, ...], operation: Callable[[Any, Any], Any]) -> Layer:
    children = named_children(kind, layers)

    def route(call: Callable[[str, Any], Any], x: Any) -> Any:
        return tuple(call(name, x) for name, _ in children) if children else x

    def combine(x: Any, outputs: Any) -> Any:
        if not isinstance(outputs, tuple) or not outputs:
            checks.fail(kind, "a tuple of arrays", shown(outputs), f"give {kind} the layers whose outputs it joins")
        arrays = [jnp.asarray(features(kind, output)) for output in outputs]
        if len({a.shape for a in arrays}) > 1:
            shapes = str([a.shape for a in arrays])
            checks.fail(kind, "outputs of one shape", shapes, "make them equal: shapes are never broadcast")
        return with_features(x if children else outputs[0], reduce(operation, arrays))

    return composite(kind, children, route, combine)


def split(parts: int | Sequence[int], *, axis: int = -1) -> Layer:
    """One array in several along an axis, as a tuple: what ``parallel``, ``add`` and ``concatenate`` take.

    Formula: ``concatenate(split(n)(x)) = x``

    Shapes: ``(batch, ..., n) -> a tuple of (batch, ..., n_i)``

    Params and State: none.

    Args:
        parts: how many equal parts, or the size of each.
        axis: along which; not that of the batch.

    Raises:
        TypeError: a size is not a whole number.
        ValueError: the sizes are not those of the axis, or the axis is that of the batch or not there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> [part.shape for part in layers.split((4, 2)).apply({}, {}, jnp.ones((5, 6)))[0]]
        [(5, 4), (5, 2)]
        >>> [part.shape for part in layers.split(3).apply({}, {}, jnp.ones((5, 6)))[0]]
        [(5, 2), (5, 2), (5, 2)]

    Reference: ``numpy.split``.
    """
    if isinstance(parts, Sequence):
        sizes = [checks.expect_count("split", "parts", part) for part in parts]
        count = 0
    else:
        sizes, count = [], checks.expect_count("split", "parts", parts)

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params, key, training
        a = jnp.asarray(features("split", x))
        if not -a.ndim <= axis < a.ndim or axis % a.ndim == 0:
            checks.fail(
                "split", "an axis of each example", f"axis {axis} of shape {a.shape}", "take one after the batch"
            )
        n = a.shape[axis]
        if count and n % count:
            checks.fail(
                "split", f"an axis that {count} parts divide", f"{n} in {a.shape}", "give the sizes of the parts"
            )
        if not count and sum(sizes) != n:
            checks.fail("split", f"parts that are {n} together", f"{sizes}, {sum(sizes)} together", "change the sizes")
        ends = list(accumulate(sizes or [n // count] * count))[:-1]
        return tuple(with_features(x, part) for part in jnp.split(a, ends, axis)), state

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key("split.init", key)
        jax.eval_shape(lambda a: apply({}, {}, a)[0], x)  # so that a wrong shape is an error already here
        return {}, {}

    return Layer(init, apply, "split")


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    i = range(len(shape))[axis] if -len(shape) <= axis < len(shape) else len(shape)
    return shape[:i] + shape[i + 1 :]
