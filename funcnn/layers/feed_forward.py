"""Feed-forward blocks in which one half of the features is the gate of the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, zeros

from funcnn import bits, checks, primitives
from funcnn.core import Layer, Tree, array_layer, child_key, expect_entries, param_dtype

Initializer = Callable[..., Any]


def swiglu(hidden: int, *, bias: bool = False, kernel_init: Initializer = glorot_uniform()) -> Layer:
    """A gated feed-forward block, its gate a ``silu``.

    Formula: ``y = (silu(x @ gate) (x @ value)) @ output``

    Shapes: ``(batch, ..., n) -> (batch, ..., n)``

    Params: ``gate`` and ``value``, each with a ``kernel (n, hidden)``, ``output`` with a ``kernel (hidden, n)``, each
    with a ``bias`` where ``bias=True``. State: none.

    Args:
        hidden: the features inside.
        bias: whether the three maps have one.
        kernel_init: from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has no axis, or other features than the kernels were made for, or these other sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> params, state = layers.swiglu(16).init(jax.random.key(0), jnp.ones((5, 4)))
        >>> params["gate"]["kernel"].shape, layers.swiglu(16).apply(params, state, jnp.ones((5, 4)))[0].shape
        ((4, 16), (5, 4))

    Reference: Shazeer, "GLU variants improve transformer", 2020.
    """
    return _gated("swiglu", hidden, jax.nn.silu, bias, kernel_init)


def geglu(hidden: int, *, bias: bool = False, kernel_init: Initializer = glorot_uniform()) -> Layer:
    """A gated feed-forward block, its gate a ``gelu``, the exact one.

    Formula: ``y = (gelu(x @ gate) (x @ value)) @ output``

    Shapes: ``(batch, ..., n) -> (batch, ..., n)``

    Params: ``gate`` and ``value``, each with a ``kernel (n, hidden)``, ``output`` with a ``kernel (hidden, n)``, each
    with a ``bias`` where ``bias=True``. State: none.

    Args:
        hidden: the features inside.
        bias: whether the three maps have one.
        kernel_init: from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has no axis, or other features than the kernels were made for, or these other sizes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> params, state = layers.geglu(16).init(jax.random.key(0), jnp.ones((5, 4)))
        >>> layers.geglu(16).apply(params, state, jnp.ones((5, 4)))[0].shape
        (5, 4)

    Reference: Shazeer, "GLU variants improve transformer", 2020.
    """
    return _gated("geglu", hidden, lambda a: jax.nn.gelu(a, approximate=False), bias, kernel_init)


def _gated(kind: str, hidden: int, activation: Callable[[Any], Any], bias: bool, kernel_init: Initializer) -> Layer:
    hidden = checks.expect_count(kind, "hidden", hidden)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect_input(x)
        n, params = x.shape[-1], {}
        for name, shape in (("gate", (n, hidden)), ("value", (n, hidden)), ("output", (hidden, n))):
            params[name] = {"kernel": bits.draw(kernel_init, child_key(key, name), shape, param_dtype(x))}
            if bias:
                params[name]["bias"] = zeros(key, shape[1:], param_dtype(x))
        return params, {}

    def expect_input(x: Any) -> None:
        checks.expect_rank(kind, x, 1, "(batch, ..., features)", "pass an array with a last axis of features")
        checks.expect_floating(kind, x)

    def mapped(params: Tree, name: str, x: Any, outputs: int) -> Any:
        params, where = params[name], f"{kind}: {name}"
        expect_entries(where, "params", params, ("kernel", "bias") if bias else ("kernel",))
        checks.expect_shape(where, "kernel", params["kernel"], (x.shape[-1], outputs))
        if bias:
            checks.expect_shape(where, "bias", params["bias"], (outputs,))
        y = primitives.matmul(x, params["kernel"].astype(x.dtype))
        return y + primitives.along_last(params["bias"].astype(x.dtype), y.ndim) if bias else y

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        expect_input(x)
        inputs = params["gate"]["kernel"].shape[0]
        if x.shape[-1] != inputs:
            got = f"{x.shape[-1]} in an input of shape {tuple(x.shape)}"
            checks.fail(kind, f"{inputs} input features", got, "pass inputs of the shape that init was given")
        gated = jnp.multiply(activation(mapped(params, "gate", x, hidden)), mapped(params, "value", x, hidden))
        return mapped(params, "output", gated, inputs), state

    return array_layer(init, apply, kind, ("gate", "value", "output"))
