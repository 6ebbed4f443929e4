"""Functions applied to every feature, as ready layers: the table of ``jax.nn`` and ``jax.numpy``, nothing of our own.

A function without a number to choose is a value, written without parentheses; one with a number is a factory, always
called.

=========================  ============================================  ===============================================
layer                      formula                                       as in
=========================  ============================================  ===============================================
``relu``                   ``max(x, 0)``                                 ``jax.nn.relu``
``relu6``                  ``min(max(x, 0), 6)``                         ``jax.nn.relu6``
``selu``                   ``1.0507 (x, or 1.6733 (e^x - 1) if x < 0)``  ``jax.nn.selu``
``gelu``                   ``x Phi(x)``, ``Phi`` of the normal law       ``jax.nn.gelu(approximate=False)`` [1]
``gelu_tanh``              the same with a ``tanh`` in place of ``Phi``  ``jax.nn.gelu(approximate=True)`` [1, 2]
``silu``                   ``x sigmoid(x)``, also known as swish         ``jax.nn.silu``
``mish``                   ``x tanh(softplus(x))``                       ``jax.nn.mish``
``hard_silu``              ``x hard_sigmoid(x)``                         ``jax.nn.hard_silu``
``sigmoid``                ``1 / (1 + e^-x)``                            ``jax.nn.sigmoid``
``log_sigmoid``            ``log(sigmoid(x))``                           ``jax.nn.log_sigmoid``
``hard_sigmoid``           ``relu6(x + 3) / 6``                          ``jax.nn.hard_sigmoid``
``tanh``                   ``tanh(x)``                                   ``jax.numpy.tanh``
``hard_tanh``              ``min(max(x, -1), 1)``                        ``jax.nn.hard_tanh``
``softplus``               ``log(1 + e^x)``                              ``jax.nn.softplus``
``softsign``               ``x / (1 + |x|)``                             ``jax.nn.soft_sign``
``softmax``                ``e^x / sum(e^x)`` over the last axis         ``jax.nn.softmax`` [2]
``log_softmax``            ``log(softmax(x))``                           ``jax.nn.log_softmax`` [2]
``glu``                    ``a sigmoid(b)``, ``a, b`` halves of ``x``    ``jax.nn.glu``, over the last axis
``sin``, ``cos``, ``exp``  as they say                                   ``jax.numpy``
``absolute``, ``square``   ``|x|``, ``x^2``                              ``jax.numpy``
``leaky_relu(slope)``      ``x, or slope x if x < 0``                    ``jax.nn.leaky_relu``
``elu(alpha)``             ``x, or alpha (e^x - 1) if x < 0``            ``jax.nn.elu``
``celu(alpha)``            ``x, or alpha (e^(x/alpha) - 1) if x < 0``    ``jax.nn.celu``
``squareplus(roundness)``  ``(x + sqrt(x^2 + roundness)) / 2``           ``jax.nn.squareplus`` [2]
``prelu()``                ``x, or alpha x if x < 0``, ``alpha`` param   PyTorch, one slope for each feature
=========================  ============================================  ===============================================

All keep shape and dtype (``glu`` halves the last axis), have neither params nor state (``prelu`` has its slopes), act
on any number of axes, and refuse integers: ``-x`` and ``x^2`` of an 8-bit image are not what anyone means. Another
function is one line away: ``layers.function(jnp.log1p)``.

1. Differs from ``jax.nn.gelu`` and Flax, whose default is the tanh form; the exact form is that of the paper and the
   default of PyTorch and Keras. The two differ by up to 5e-4: take the one that the weights were trained with.
2. Half precision is computed in float32 inside and rounded once: sums of exponentials would have too few bits, the
   square in ``squareplus`` and the cube in ``gelu_tanh`` too small a range.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from funcnn import layers
    >>> model = layers.serial(layers.relu, layers.leaky_relu(0.1), layers.softmax)
    >>> print(model)
    serial
    ├── relu_0
    ├── leaky_relu_0
    └── softmax_0
    >>> x = jnp.array([[-1.0, 0.0, 2.0]])
    >>> model.init(jax.random.key(0), x)
    ({}, {})
    >>> print(layers.relu.apply({}, {}, x)[0])
    [[0. 0. 2.]]
    >>> print(layers.softmax.apply({}, {}, x)[0].round(2))
    [[0.04 0.11 0.84]]
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import constant

from funcnn import bits, checks, primitives
from funcnn.core import Layer, Tree, array_layer, param_dtype


def _activation(kind: str, function: Callable[[Any], Any], axes: int = 0) -> Layer:
    def expect(x: Any) -> None:
        checks.expect_rank(kind, x, axes, "(batch, ..., features)", "pass an array with a last axis of features")
        checks.expect_floating(kind, x)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        del key
        expect(x)
        return {}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del params, key, training
        expect(x)
        return function(x), state

    return array_layer(init, apply, kind)


def _in_float32(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: function(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


def _gated(x: Any) -> Any:
    if x.shape[-1] % 2:
        fix = "give the layer before it twice the features"
        checks.fail("glu", "an even number of features", f"shape {tuple(x.shape)}", fix)
    return jax.nn.glu(x)


relu = _activation("relu", jax.nn.relu)
relu6 = _activation("relu6", jax.nn.relu6)
selu = _activation("selu", jax.nn.selu)
gelu = _activation("gelu", functools.partial(jax.nn.gelu, approximate=False))
gelu_tanh = _activation("gelu_tanh", _in_float32(functools.partial(jax.nn.gelu, approximate=True)))
silu = _activation("silu", jax.nn.silu)
mish = _activation("mish", jax.nn.mish)
hard_silu = _activation("hard_silu", jax.nn.hard_silu)
sigmoid = _activation("sigmoid", jax.nn.sigmoid)
log_sigmoid = _activation("log_sigmoid", jax.nn.log_sigmoid)
hard_sigmoid = _activation("hard_sigmoid", jax.nn.hard_sigmoid)
tanh = _activation("tanh", jnp.tanh)
hard_tanh = _activation("hard_tanh", jax.nn.hard_tanh)
softplus = _activation("softplus", jax.nn.softplus)
softsign = _activation("softsign", jax.nn.soft_sign)
softmax = _activation("softmax", _in_float32(jax.nn.softmax), axes=1)
log_softmax = _activation("log_softmax", _in_float32(jax.nn.log_softmax), axes=1)
glu = _activation("glu", _gated, axes=1)
sin = _activation("sin", jnp.sin)
cos = _activation("cos", jnp.cos)
exp = _activation("exp", jnp.exp)
absolute = _activation("absolute", jnp.abs)
square = _activation("square", jnp.square)


def leaky_relu(slope: Any = 0.01) -> Layer:
    """The rectifier that lets a part of what is negative through.

    Formula: ``y = x`` where ``x >= 0``, else ``slope x``

    Shapes: ``(...) -> (...)``

    Params and State: none.

    Args:
        slope: the factor of negative inputs; may be a tracer.

    Raises:
        TypeError: the input is not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> print(layers.leaky_relu(0.1).apply({}, {}, jnp.array([-2.0, 3.0]))[0])
        [-0.2  3. ]

    Reference: Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013.
    """
    return _activation("leaky_relu", lambda x: jax.nn.leaky_relu(x, jnp.asarray(slope, x.dtype)))


def elu(alpha: Any = 1.0) -> Layer:
    """The exponential linear unit: linear above zero, saturating at ``-alpha`` below.

    Formula: ``y = x`` where ``x > 0``, else ``alpha (e^x - 1)``

    Shapes: ``(...) -> (...)``

    Params and State: none.

    Args:
        alpha: minus the value far below zero; may be a tracer.

    Raises:
        TypeError: the input is not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> print(layers.elu(2.0).apply({}, {}, jnp.array([-9.0, 3.0]))[0].round(2))
        [-2.  3.]

    Reference: Clevert, Unterthiner and Hochreiter, "Fast and accurate deep network learning by exponential
    linear units", 2015.
    """
    return _activation("elu", lambda x: jax.nn.elu(x, jnp.asarray(alpha, x.dtype)))


def celu(alpha: Any = 1.0) -> Layer:
    """The exponential linear unit in the form whose derivative is continuous for every ``alpha``.

    Formula: ``y = x`` where ``x > 0``, else ``alpha (e^(x / alpha) - 1)``

    Shapes: ``(...) -> (...)``

    Params and State: none.

    Args:
        alpha: minus the value far below zero, above zero; may be a tracer.

    Raises:
        TypeError: the input is not floating.
        ValueError: ``alpha`` is not above zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> print(layers.celu(2.0).apply({}, {}, jnp.array([-2.0, 3.0]))[0].round(2))
        [-1.26  3.  ]

    Reference: Barron, "Continuously differentiable exponential linear units", 2017.
    """
    if checks.is_concrete(alpha) and not checks.known(alpha) > 0:
        checks.fail("celu", "alpha above 0", str(alpha), "x is divided by it; take relu for a corner at zero")
    return _activation("celu", lambda x: jax.nn.celu(x, jnp.asarray(alpha, x.dtype)))


def squareplus(roundness: Any = 4.0) -> Layer:
    """A smooth rectifier without exponentials.

    Formula: ``y = (x + sqrt(x^2 + roundness)) / 2``

    Shapes: ``(...) -> (...)``

    Params and State: none.

    Args:
        roundness: how wide the bend at zero is, 0 or more: 0 is ``relu``; may be a tracer.

    Raises:
        TypeError: the input is not floating.
        ValueError: ``roundness`` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import layers
        >>> print(layers.squareplus(4.0).apply({}, {}, jnp.array([0.0, 3.0]))[0].round(2))
        [1.  3.3]

    Reference: Barron, "Squareplus: a softplus-like algebraic rectifier", 2021.
    """
    checks.expect_between("squareplus", "roundness", roundness, 0.0, float("inf"))
    return _activation("squareplus", _in_float32(lambda x: jax.nn.squareplus(x, jnp.asarray(roundness, x.dtype))))


_QUARTER = constant(0.25)


def prelu(*, alpha_init: Callable[..., Any] = _QUARTER) -> Layer:
    """The leaky rectifier whose slope below zero is learned, one for each feature.

    Formula: ``y = x`` where ``x >= 0``, else ``alpha x``

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Params: ``alpha (features,)``. State: none.

    Args:
        alpha_init: from ``jax.nn.initializers``.

    Raises:
        TypeError: the input is not floating.
        ValueError: the input has no axis, or other features than ``alpha`` was made for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import layers
        >>> x = jnp.array([[-2.0, 3.0]])
        >>> params, state = layers.prelu().init(jax.random.key(0), x)
        >>> print(params["alpha"], layers.prelu().apply(params, state, x)[0])
        [0.25 0.25] [[-0.5  3. ]]

    Reference: He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015. PyTorch has one slope for all features by
    default. Without weight decay, which would draw it to ``relu``.
    """

    def expect(x: Any) -> None:
        checks.expect_rank("prelu", x, 1, "(batch, ..., features)", "pass an array with a last axis of features")
        checks.expect_floating("prelu", x)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect(x)
        return {"alpha": bits.draw(alpha_init, key, x.shape[-1:], param_dtype(x))}, {}

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        del key, training
        expect(x)
        alpha = params["alpha"]
        if alpha.shape != x.shape[-1:]:
            checks.fail(
                "prelu",
                f"{alpha.shape[0]} input features, as its alpha {tuple(alpha.shape)} has",
                f"{x.shape[-1]} in an input of shape {tuple(x.shape)}",
                "pass inputs of the shape that init was given, or init again",
            )
        return jnp.where(x >= 0, x, primitives.along_last(alpha.astype(x.dtype), x.ndim) * x), state

    return array_layer(init, apply, "prelu", ("alpha",))
