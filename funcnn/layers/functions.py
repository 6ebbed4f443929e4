"""Layers that are a plain function, a free parameter, or nothing at all."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from funcnn import bits, checks
from funcnn.core import Layer, Tree, expect_entries, expect_key, features, spec, with_features


def _unchanged(key: Any, x: Any) -> tuple[Tree, Tree]:
    del x
    expect_key("identity.init", key)
    return {}, {}


def _handed_on(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
    del params, key, training
    return jax.tree.map(jnp.asarray, x), state


identity = Layer(_unchanged, _handed_on, "identity")
"""What comes in, unchanged, be it an array, a dict with side inputs or any other pytree: a branch that does nothing."""


def function(f: Callable[[Any], Any]) -> Layer:
    """Any pure function without parameters, as a layer.

    Formula: ``y = f(x)``

    Shapes: whatever ``f`` makes of them. It sees the batch axis, and pytrees as they are: for example a tuple from
    ``parallel``. Of a dict with side inputs it sees the entry ``"x"``, and the rest is handed on.

    Params and State: none.

    Args:
        f: the function; it is traced, so it must be pure and written with ``jax.numpy``.

    Raises:
        TypeError: ``f`` is a layer already, or cannot be called.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> product = layers.function(lambda pair: pair[0] * pair[1])
        >>> model = layers.serial(layers.parallel(layers.dense(4), layers.dense(4)), product)
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> model.apply(params, state, jnp.ones((5, 3)))[0].shape
        (5, 4)

    Reference: ``Lambda`` of Keras.
    """
    if isinstance(f, Layer):
        checks.fail("function", "a function", f"the layer {f.kind}", "use the layer itself", TypeError)
    if not callable(f):
        checks.fail("function", "a function", f"{type(f).__name__} {f!r}", "pass something like jnp.log1p", TypeError)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key("function.init", key)
        features("function", x)
        return {}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params, key, training
        return with_features(x, f(jax.tree.map(jnp.asarray, features("function", x)))), state

    return Layer(init, apply, "function")


def parameter(shape: int | Sequence[int], init: Callable[..., Any]) -> Layer:
    """A free parameter, whatever the input: the unknown coefficient of an equation, a learned query, a temperature.

    Formula: ``y = value``

    Shapes: any ``-> shape``: without a batch axis, since it is one value for all examples.

    Params: ``value (*shape)``. State: none.

    Args:
        shape: of the parameter; ``()`` is a single number.
        init: from ``jax.nn.initializers``; ``constant(0.5)`` starts at a known value.

    Raises:
        TypeError: ``init`` is not an initializer, or ``shape`` is not made of whole numbers.
        ValueError: params of another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> viscosity = layers.parameter((), jax.nn.initializers.constant(0.5))
        >>> params, state = viscosity.init(jax.random.key(0), jnp.ones((5, 3)))
        >>> print(params, viscosity.apply(params, state, jnp.ones((5, 3)))[0])
        {'value': Array(0.5, dtype=float32)} 0.5

    Reference: Raissi, Perdikaris and Karniadakis, "Physics-informed neural networks", 2019, section 4.
    """
    axes = shape if isinstance(shape, Sequence) else (shape,)
    sizes = tuple(checks.expect_count("parameter", "shape", size) for size in axes)
    if not callable(init):
        fix = "pass one of jax.nn.initializers, such as constant(0.5)"
        checks.fail("parameter", "an initializer", f"{type(init).__name__} {init!r}", fix, TypeError)

    def initial(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_key("parameter.init", key)
        dtypes = _floating_dtypes(spec(features("parameter", x)))
        return {"value": bits.draw(init, key, sizes, jnp.float64 if jnp.float64 in dtypes else jnp.float32)}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        expect_entries("parameter", "params", params, ("value",))
        checks.expect_shape("parameter", "value", params["value"], sizes)
        value, dtypes = params["value"], _floating_dtypes(spec(features("parameter", x)))
        return with_features(x, value.astype(jnp.result_type(*dtypes)) if dtypes else value), state

    return Layer(initial, apply, "parameter")


def _floating_dtypes(specs: Tree) -> list[Any]:
    return [leaf.dtype for leaf in jax.tree.leaves(specs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
