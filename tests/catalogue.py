"""Everything the library offers, once, for ``test_laws.py`` to hold every law over. To add a layer is to add a row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import layers
from funcnn.core import Layer


class LayerRow(NamedTuple):
    """A layer, the input to try it on, and what is true of it, as data."""

    name: str
    layer: Callable[[], Layer]
    shape: tuple[int, ...] = (4, 6)
    entries: tuple[str, ...] = ()  # the names of its own params and state, which its docstring must describe
    count: int | None = None  # the input is of whole numbers below this, and not of floating ones
    integers: bool = False  # takes whole numbers, since it neither computes nor has weights
    needs_key: bool = False  # draws while training
    draws: bool = False  # draws its initial weights
    looks_across_batch: bool = False  # while training
    ignores_input: bool = False  # so its output has no batch axis
    hyper: tuple[Callable[[Any], Layer], float] | None = None  # a numeric hyperparameter to trace
    exceptions: tuple[tuple[str, str], ...] = ()  # a law that does not hold, and why

    @property
    def factory(self) -> str:
        """The public name, of which there may be several rows."""
        return self.name.split("(")[0]

    def input(self, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
        """A NumPy input; away from zero, where some activations have a corner."""
        rng = np.random.default_rng(seed)
        if self.count is not None:
            return rng.integers(0, self.count, self.shape, dtype=np.int32)
        return (rng.uniform(0.1, 2.0, self.shape) * rng.choice([-1.0, 1.0], self.shape)).astype(dtype)

    def except_from(self, law: str) -> str | None:
        """The reason for which a law does not hold, if there is one."""
        return dict(self.exceptions).get(law)


half = jax.nn.initializers.constant(0.5)
no_side_inputs = (
    ("side_inputs", "gives a tuple with one output for each child, each with the side inputs of its own"),
)

LAYERS = [
    # values
    *(
        LayerRow(name, lambda name=name: getattr(layers, name))
        for name in (
            *("relu", "relu6", "selu", "gelu", "gelu_tanh", "silu", "mish", "hard_silu", "sigmoid", "log_sigmoid"),
            *("hard_sigmoid", "tanh", "hard_tanh", "softplus", "softsign", "softmax", "log_softmax", "glu"),
            *("sin", "cos", "exp", "absolute", "square"),
        )
    ),
    LayerRow("identity", lambda: layers.identity, integers=True),
    LayerRow("flatten", lambda: layers.flatten, (4, 2, 3, 2), integers=True),
    # activations with a number
    LayerRow("leaky_relu", lambda: layers.leaky_relu(0.1), hyper=(layers.leaky_relu, 0.1)),
    LayerRow("elu", lambda: layers.elu(0.7), hyper=(layers.elu, 0.7)),
    LayerRow("celu", lambda: layers.celu(0.7), hyper=(layers.celu, 0.7)),
    LayerRow("squareplus", lambda: layers.squareplus(2.0), hyper=(layers.squareplus, 2.0)),
    # linear
    LayerRow("dense", lambda: layers.dense(3), entries=("kernel", "bias"), draws=True),
    LayerRow("dense(axes)", lambda: layers.dense(3), (4, 2, 3, 5), draws=True),
    LayerRow("dense(bias=False)", lambda: layers.dense(3, bias=False), draws=True),
    LayerRow(
        "dense(kernel_init)",
        lambda: layers.dense(3, kernel_init=jax.nn.initializers.normal(0.3)),
        draws=True,
        hyper=(lambda scale: layers.dense(3, kernel_init=jax.nn.initializers.normal(scale)), 0.3),
    ),
    LayerRow("embedding", lambda: layers.embedding(5, 3), entries=("embedding",), count=5, draws=True),
    LayerRow("embedding(axis)", lambda: layers.embedding(5, 3), (4,), count=5, draws=True),
    # convolution and pooling
    LayerRow(
        "conv",
        lambda: layers.conv(3, 3),
        (2, 4, 5, 2),
        entries=("kernel", "bias"),
        draws=True,
        hyper=(lambda scale: layers.conv(2, 3, kernel_init=jax.nn.initializers.normal(scale)), 0.3),
    ),
    LayerRow("conv(sequence)", lambda: layers.conv(3, 3, padding="VALID", dilation=2), (2, 7, 2), draws=True),
    LayerRow("conv(volume)", lambda: layers.conv(2, 2, bias=False), (2, 3, 2, 3, 2), draws=True),
    LayerRow("conv(groups)", lambda: layers.conv(4, (3, 2), strides=(2, 1), groups=2), (2, 5, 4, 2), draws=True),
    LayerRow("max_pool", lambda: layers.max_pool(2), (2, 4, 5, 3), integers=True),
    LayerRow("max_pool(overlapping)", lambda: layers.max_pool(3, strides=1, padding=1), (2, 4, 5, 3), integers=True),
    LayerRow("avg_pool", lambda: layers.avg_pool(2), (2, 4, 5, 3)),
    LayerRow("avg_pool(overlapping)", lambda: layers.avg_pool(3, strides=2, padding="SAME"), (2, 6, 3)),
    LayerRow("global_avg_pool", lambda: layers.global_avg_pool, (2, 4, 5, 3)),
    LayerRow("global_max_pool", lambda: layers.global_max_pool, (2, 4, 5, 3), integers=True),
    # normalization
    LayerRow(
        "layer_norm",
        layers.layer_norm,
        entries=("scale", "bias"),
        hyper=(lambda epsilon: layers.layer_norm(epsilon=epsilon), 1e-3),
    ),
    LayerRow("layer_norm(axes)", layers.layer_norm, (2, 3, 2, 5)),
    LayerRow("layer_norm(plain)", lambda: layers.layer_norm(scale=False, bias=False)),
    LayerRow(
        "batch_norm",
        layers.batch_norm,
        entries=("scale", "bias", "mean", "var"),
        looks_across_batch=True,
        hyper=(lambda momentum: layers.batch_norm(momentum=momentum), 0.8),
    ),
    LayerRow(
        "batch_norm(images)",
        layers.batch_norm,
        (3, 2, 4, 5),
        looks_across_batch=True,
        hyper=(lambda epsilon: layers.batch_norm(epsilon=epsilon), 1e-3),
    ),
    LayerRow("batch_norm(plain)", lambda: layers.batch_norm(scale=False, bias=False), looks_across_batch=True),
    # shapes, functions, chance
    LayerRow("reshape", lambda: layers.reshape(3, -1), integers=True),
    LayerRow("function", lambda: layers.function(lambda x: jnp.sin(x) * x), integers=True),
    LayerRow(
        "parameter",
        lambda: layers.parameter((2,), half),
        entries=("value",),
        integers=True,
        ignores_input=True,
        hyper=(lambda value: layers.parameter((), jax.nn.initializers.constant(value)), 0.5),
    ),
    LayerRow("dropout", lambda: layers.dropout(0.4), needs_key=True, hyper=(layers.dropout, 0.4)),
    # combinators
    LayerRow("named", lambda: layers.named("head", layers.dense(3)), draws=True),
    LayerRow(
        "serial", lambda: layers.serial(layers.dense(3), layers.tanh, layers.dense(2)), entries=("dense_0",), draws=True
    ),
    LayerRow(
        "serial(nested)",
        lambda: layers.serial(
            layers.serial(layers.dense(8), layers.batch_norm(), layers.gelu, layers.dropout(0.2)),
            layers.residual(layers.layer_norm(), layers.dense(8), layers.silu, layers.dropout(0.2)),
            layers.named("head", layers.dense(3)),
        ),
        needs_key=True,
        draws=True,
        looks_across_batch=True,
        hyper=(lambda rate: layers.serial(layers.dense(8), layers.dropout(rate), layers.dense(2)), 0.2),
    ),
    LayerRow(
        "parallel",
        lambda: layers.parallel(layers.dense(3), layers.batch_norm()),
        draws=True,
        looks_across_batch=True,
        exceptions=no_side_inputs,
    ),
    LayerRow("residual", lambda: layers.residual(layers.dense(6), layers.tanh), draws=True),
    LayerRow(
        "residual(shortcut)", lambda: layers.residual(layers.dense(3), shortcut=layers.dense(3, bias=False)), draws=True
    ),
    LayerRow("concatenate", lambda: layers.concatenate(layers.dense(3), layers.identity), draws=True),
]
