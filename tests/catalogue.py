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
    inside: str | None = None  # the kind of the layer that the row makes, where it is not the one of its name
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
GIVES_A_TUPLE = "gives a tuple of outputs, each with side inputs of its own"
no_side_inputs = (("side_inputs", GIVES_A_TUPLE),)

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
    LayerRow("add", lambda: layers.add(layers.dense(3), layers.serial(layers.dense(3), layers.tanh)), draws=True),
    LayerRow("multiply", lambda: layers.multiply(layers.identity, layers.dense(6)), draws=True),
    LayerRow("split", lambda: layers.split((2, 4)), integers=True, exceptions=no_side_inputs),
    LayerRow("split(equal)", lambda: layers.split(3), integers=True, exceptions=no_side_inputs),
    LayerRow(
        "condition",
        lambda: layers.condition(lambda x: x.max() < 1e4, layers.serial(layers.dense(3), layers.tanh), layers.dense(3)),
        draws=True,
    ),
    LayerRow(
        "network",
        lambda: layers.network(
            lambda x, body, head: head(body(body(x))),
            body=layers.serial(layers.dense(6), layers.tanh, layers.dropout(0.2)),
            head=layers.dense(3),
        ),
        draws=True,
        needs_key=True,
    ),
    LayerRow(
        "repeat",
        lambda: layers.repeat(layers.serial(layers.dense(6), layers.tanh, layers.dropout(0.2)), 3),
        draws=True,
        needs_key=True,
    ),
    LayerRow(
        "repeat(remat)",
        lambda: layers.repeat(layers.residual(layers.batch_norm(), layers.dense(6)), 2, remat=True),
        draws=True,
        looks_across_batch=True,
    ),
    LayerRow("shared", lambda: layers.shared(layers.serial(layers.dense(6), layers.tanh), 3), draws=True),
    LayerRow(
        "ensemble",
        lambda: layers.ensemble(layers.serial(layers.dense(3), layers.dropout(0.2)), 3),
        draws=True,
        needs_key=True,
    ),
    # layer to layer
    LayerRow(
        "reparametrized",
        lambda: layers.reparametrized(layers.dense(3), lambda p: jax.tree.map(jnp.tanh, p)),
        draws=True,
        inside="dense",
    ),
    LayerRow(
        "mixed_precision",
        lambda: layers.mixed_precision(layers.serial(layers.dense(6), layers.layer_norm(), layers.dense(3))),
        draws=True,
        inside="serial",
        exceptions=(
            ("derivatives", "half precision has too few digits for differences"),
            ("precision", "computes in bfloat16 whatever the input is"),
        ),
    ),
    LayerRow("remat", lambda: layers.remat(layers.serial(layers.dense(3), layers.tanh)), draws=True, inside="serial"),
    LayerRow("frozen", lambda: layers.frozen(layers.dense(3)), entries=("params",), draws=True, inside="dense"),
    LayerRow(
        "with_initializers",
        lambda: layers.with_initializers(layers.dense(3), {"kernel": jax.nn.initializers.he_normal()}),
        draws=True,
        inside="dense",
    ),
    LayerRow("lora", lambda: layers.lora(layers.dense(3), 2), draws=True, inside="dense"),
    LayerRow("weight_norm", lambda: layers.weight_norm(layers.dense(3)), draws=True, inside="dense"),
    LayerRow(
        "spectral_norm",
        lambda: layers.spectral_norm(layers.dense(3)),
        draws=True,
        inside="dense",
        exceptions=(("derivatives", "power iteration is taken as constant, as in the paper"),),
    ),
    # products
    LayerRow(
        "einsum",
        lambda: layers.einsum("btf,fhd->bthd", (5, 2, 3), bias=True),
        (4, 2, 5),
        ("kernel", "bias"),
        draws=True,
    ),
    LayerRow("dense(several)", lambda: layers.dense((2, 3), axis=(1, 3)), (4, 2, 3, 5), draws=True),
    LayerRow(
        "bilinear",
        lambda: layers.serial(
            layers.parallel(layers.identity, layers.tanh), layers.function(tuple), layers.bilinear(3)
        ),
        draws=True,
        inside="serial",
        exceptions=(("side_inputs", "takes two arrays"),),
    ),
    LayerRow("bias", layers.bias, entries=("bias",)),
    LayerRow("scale", layers.scale, entries=("scale",)),
    LayerRow("embedding(readout)", lambda: layers.embedding(5, 6, readout=True), draws=True),
    LayerRow("swiglu", lambda: layers.swiglu(8), entries=("kernel",) * 3, draws=True),
    LayerRow("geglu", lambda: layers.geglu(8, bias=True), entries=("kernel", "bias") * 3, draws=True),
    # sequences
    LayerRow(
        "attention",
        lambda: layers.attention(2, causal=True, rotary=True),
        (2, 5, 8),
        entries=("kernel", "bias") * 4,
        draws=True,
    ),
    LayerRow(
        "attention(grouped)",
        lambda: layers.attention(4, key_value_heads=2, head_features=3, bias=False),
        (2, 5, 8),
        draws=True,
    ),
    LayerRow("sinusoidal_positions", layers.sinusoidal_positions, (2, 5, 6)),
    LayerRow("learned_positions", lambda: layers.learned_positions(7), (2, 5, 6), entries=("embedding",), draws=True),
    # recurrent: a cell given x alone starts from zeros and gives (carry, y)
    LayerRow("elman_cell", lambda: layers.elman_cell(3), entries=("kernel", "recurrent_kernel", "bias"), draws=True),
    LayerRow("lstm_cell", lambda: layers.lstm_cell(3), entries=("kernel", "recurrent_kernel", "bias"), draws=True),
    LayerRow(
        "gru_cell",
        lambda: layers.gru_cell(3),
        entries=("kernel", "recurrent_kernel", "bias", "recurrent_bias"),
        draws=True,
    ),
    LayerRow(
        "conv_lstm_cell",
        lambda: layers.conv_lstm_cell(2, 3),
        (2, 4, 3, 2),
        entries=("kernel", "recurrent_kernel", "bias"),
        draws=True,
    ),
    LayerRow("recurrent", lambda: layers.recurrent(layers.gru_cell(3)), (2, 4, 3), draws=True),
    LayerRow(
        "recurrent(carry)",
        lambda: layers.recurrent(layers.lstm_cell(3), reverse=True, return_sequences=False, return_carry=True),
        (2, 4, 3),
        draws=True,
        hyper=(lambda bias: layers.recurrent(layers.lstm_cell(3, forget_bias=bias)), 1.0),
    ),
    LayerRow("recurrent(maps)", lambda: layers.recurrent(layers.conv_lstm_cell(2, 3)), (2, 3, 4, 2), draws=True),
    LayerRow("bidirectional", lambda: layers.bidirectional(layers.elman_cell(3)), (2, 4, 3), draws=True),
    # activations with params
    LayerRow(
        "prelu",
        layers.prelu,
        entries=("alpha",),
        hyper=(lambda alpha: layers.prelu(alpha_init=jax.nn.initializers.constant(alpha)), 0.3),
    ),
    # convolution
    LayerRow(
        "conv_transpose",
        lambda: layers.conv_transpose(3, 3, strides=2),
        (2, 3, 4, 2),
        entries=("kernel", "bias"),
        draws=True,
        hyper=(lambda scale: layers.conv_transpose(2, 3, kernel_init=jax.nn.initializers.normal(scale)), 0.3),
    ),
    LayerRow(
        "conv_transpose(sequence)",
        lambda: layers.conv_transpose(4, 3, strides=3, padding=1, output_padding=2, dilation=2, groups=2),
        (2, 4, 2),
        draws=True,
    ),
    LayerRow("conv_transpose(volume)", lambda: layers.conv_transpose(2, 2, bias=False), (2, 2, 3, 2, 2), draws=True),
    LayerRow(
        "depthwise_conv",
        lambda: layers.depthwise_conv(3, multiplier=2),
        (2, 4, 5, 2),
        entries=("kernel", "bias"),
        draws=True,
    ),
    LayerRow(
        "separable_conv",
        lambda: layers.separable_conv(3, 3, strides=2),
        (2, 4, 5, 2),
        entries=("depthwise", "pointwise", "kernel", "bias"),
        draws=True,
    ),
    # pooling
    LayerRow("lp_pool", lambda: layers.lp_pool(2), (2, 4, 5, 3), hyper=(lambda p: layers.lp_pool(2, p=p), 3.0)),
    LayerRow("lp_pool(overlapping)", lambda: layers.lp_pool(3, p=3, strides=2, padding="SAME"), (2, 6, 3)),
    LayerRow("blur_pool", layers.blur_pool, (2, 4, 5, 3)),
    LayerRow("adaptive_avg_pool", lambda: layers.adaptive_avg_pool((2, 3)), (2, 4, 5, 3)),
    LayerRow("adaptive_max_pool", lambda: layers.adaptive_max_pool((2, 3)), (2, 4, 5, 3), integers=True),
    LayerRow("global_lp_pool", layers.global_lp_pool, (2, 4, 5, 3), hyper=(layers.global_lp_pool, 3.0)),
    # normalization
    LayerRow(
        "group_norm",
        lambda: layers.group_norm(2),
        (2, 3, 5, 6),
        entries=("scale", "bias"),
        hyper=(lambda epsilon: layers.group_norm(2, epsilon=epsilon), 1e-3),
    ),
    LayerRow(
        "instance_norm",
        layers.instance_norm,
        (2, 3, 5, 4),
        entries=("scale", "bias"),
        hyper=(lambda epsilon: layers.instance_norm(epsilon=epsilon), 1e-3),
    ),
    LayerRow(
        "rms_norm",
        layers.rms_norm,
        entries=("scale",),
        hyper=(lambda epsilon: layers.rms_norm(epsilon=epsilon), 1e-3),
    ),
    # shapes
    LayerRow("transpose", lambda: layers.transpose(2, 1, 3), (4, 2, 3, 2), integers=True),
    LayerRow("patches", lambda: layers.patches(2), (2, 4, 5, 3), integers=True),
    LayerRow("patches(overlapping)", lambda: layers.patches((3, 2), strides=(1, 2)), (2, 4, 5, 3), integers=True),
    LayerRow(
        "pad",
        lambda: layers.pad(((1, 0), 2)),
        (2, 4, 5, 3),
        integers=True,
        hyper=(lambda value: layers.pad(1, value=value), 0.5),
    ),
    LayerRow("pad(mode)", lambda: layers.pad(2, mode="reflect"), (2, 4, 5, 3), integers=True),
    LayerRow("crop", lambda: layers.crop(((1, 0), 2)), (2, 4, 5, 3), integers=True),
    LayerRow("resize", lambda: layers.resize((3, 7)), (2, 4, 5, 3)),
    LayerRow("upsample", lambda: layers.upsample((2, 3)), (2, 3, 2, 3), integers=True),
    LayerRow("upsample(linear)", lambda: layers.upsample(2, method="linear"), (2, 5, 3)),
    # chance
    LayerRow(
        "spatial_dropout",
        lambda: layers.spatial_dropout(0.4),
        (4, 3, 6),
        needs_key=True,
        hyper=(layers.spatial_dropout, 0.4),
    ),
    LayerRow("alpha_dropout", lambda: layers.alpha_dropout(0.4), needs_key=True, hyper=(layers.alpha_dropout, 0.4)),
    LayerRow(
        "feature_alpha_dropout",
        lambda: layers.feature_alpha_dropout(0.4),
        (4, 3, 6),
        needs_key=True,
        hyper=(layers.feature_alpha_dropout, 0.4),
    ),
    LayerRow("gaussian_noise", lambda: layers.gaussian_noise(0.4), needs_key=True, hyper=(layers.gaussian_noise, 0.4)),
    LayerRow(
        "stochastic_depth",
        lambda: layers.stochastic_depth(layers.serial(layers.dense(6), layers.tanh), 0.4),
        needs_key=True,
        draws=True,
        hyper=(lambda rate: layers.stochastic_depth(layers.dense(6), rate), 0.4),
    ),
]
