"""Whole networks, composed of the layers and of nothing else: to start from, and to read."""

from collections.abc import Sequence
from typing import Any

from jax.nn.initializers import normal

from funcnn import checks, layers
from funcnn.core import Layer, Tree, shown


def mlp(hidden: Sequence[int], features: int, *, activation: Layer = layers.relu, dropout: float = 0.0) -> Layer:
    """A multilayer perceptron: dense layers with activations between them.

    Formula: ``serial(dense(hidden[0]), activation, ..., dense(features))``

    Shapes: ``(batch, ..., n) -> (batch, ..., features)``

    Args:
        hidden: the features of the layers inside; without any, it is one dense layer.
        features: of the output.
        activation: after each layer inside.
        dropout: its rate after each activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import models
        >>> model = models.mlp([128, 64], 10)
        >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 784)))
        >>> model.apply(params, state, jnp.ones((5, 784)))[0].shape
        (5, 10)

    Reference: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986.
    """
    if isinstance(hidden, int):
        checks.fail("mlp", "the features of the layers inside, in a list", str(hidden), f"pass [{hidden}]", TypeError)
    inside: list[Layer] = []
    for count in hidden:
        inside += [layers.dense(count), activation, *_dropout(dropout)]
    return layers.serial(*inside, layers.dense(features))


def _dropout(rate: Any) -> list[Layer]:
    """Dropout, and nothing that would ask for a key at a rate of 0."""
    return [] if checks.is_concrete(rate) and checks.known(rate) == 0 else [layers.dropout(rate)]


def convnet(channels: Sequence[int], features: int, *, kernel_size: int = 3, hidden: Sequence[int] = (128,)) -> Layer:
    """A convolutional network for images: convolution, activation and pooling in turn, and a perceptron on top.

    Formula: ``serial(conv(channels[0]), relu, max_pool(2), ..., flatten, dense(hidden[0]), relu, dense(features))``

    Shapes: ``(batch, height, width, n) -> (batch, features)``; each pooling halves the image.

    Args:
        channels: the features of each convolution.
        features: of the output.
        kernel_size: of each convolution.
        hidden: the features of the dense layers inside.

    Raises:
        ValueError: the input has other axes; grey images have one channel, ``x[..., None]``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import models
        >>> model, images = models.convnet([32, 64], 10), jnp.ones((5, 28, 28, 1))
        >>> params, state = model.init(jax.random.key(0), images)
        >>> model.apply(params, state, images)[0].shape
        (5, 10)

    Reference: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    body = [layer for c in channels for layer in (layers.conv(c, kernel_size), layers.relu, layers.max_pool(2))]
    return _of_images("convnet", layers.serial(*body, layers.flatten, mlp(hidden, features)))


def _of_images(kind: str, model: Layer) -> Layer:
    """The model, which takes images alone: a convolution would take an image without channels for a sequence."""

    def expect(x: Any) -> None:
        array = x.get("x") if isinstance(x, dict) else x
        shape = getattr(array, "shape", None)
        if shape is not None and len(shape) != 4:
            fix = "where the axis of channels is missing, add it: x[..., None]; where that of the batch is: x[None]"
            checks.fail(kind, "(batch, height, width, channels)", f"shape {tuple(shape)}", fix)

    def init(key: Any, x: Any) -> tuple[Tree, Tree]:
        expect(x)
        return model.init(key, x)

    def apply(params: Tree, state: Tree, x: Any, *, key: Any = None, training: bool = False) -> tuple[Any, Tree]:
        expect(x)
        return model.apply(params, state, x, key=key, training=training)

    return model._replace(init=init, apply=apply)


_STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def resnet(depth: int, features: int, *, width: int = 64, small: bool = False) -> Layer:
    """A residual network for images.

    Shapes: ``(batch, height, width, n) -> (batch, features)``

    Args:
        depth: 18, of blocks with two convolutions, or 50, of bottlenecks with three.
        features: of the output.
        width: features of the first stage; each of the three others has twice those of the one before.
        small: for images of 32 pixels and fewer: the first convolution has size 3, no stride, and no pooling behind it.

    Raises:
        ValueError: another depth, or an input with other axes; grey images have one channel, ``x[..., None]``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import models, trees
        >>> images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        >>> [trees.count(jax.eval_shape(models.resnet(d, 1000).init, jax.random.key(0), images)[0]) for d in (18, 50)]
        [11689512, 25557032]

    Notes:
        1. The bottleneck has its stride in the second convolution, as in PyTorch's and not in the paper.

    Reference: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2015.
    """
    checks.expect_option("resnet", "depth", depth, tuple(_STAGES))
    block = _basic if depth == 18 else _bottleneck
    stem = [_conv(width, 3, 1)] if small else [_conv(width, 7, 2)]
    pool = [] if small else [layers.max_pool(3, strides=2, padding=1)]
    stages: list[Layer] = []
    for i, count in enumerate(_STAGES[depth]):
        inside = width * 2**i
        changes = [i > 0 or block is _bottleneck, *[False] * (count - 1)]
        blocks = [block(inside, 2 if i and not j else 1, change) for j, change in enumerate(changes)]
        stages.append(layers.named(f"stage_{i}", layers.serial(*blocks)))
    head = layers.named("head", layers.dense(features))
    body = *stem, layers.batch_norm(), layers.relu, *pool, *stages, layers.global_avg_pool
    return _of_images("resnet", layers.serial(*body, head))


def _conv(features: int, size: int, stride: int) -> Layer:
    return layers.conv(features, size, strides=stride, padding=size // 2, bias=False)


def _basic(features: int, stride: int, change: bool) -> Layer:
    inside = (_conv(features, 3, stride), layers.batch_norm(), layers.relu, _conv(features, 3, 1), layers.batch_norm())
    return layers.serial(_residual(inside, features, stride, change), layers.relu)


def _bottleneck(features: int, stride: int, change: bool) -> Layer:
    first = _conv(features, 1, 1), layers.batch_norm(), layers.relu
    second = _conv(features, 3, stride), layers.batch_norm(), layers.relu
    last = _conv(4 * features, 1, 1), layers.batch_norm()
    return layers.serial(_residual((*first, *second, *last), 4 * features, stride, change), layers.relu)


def _residual(inside: tuple[Layer, ...], features: int, stride: int, change: bool) -> Layer:
    shortcut = layers.serial(_conv(features, 1, stride), layers.batch_norm()) if change else None
    return layers.residual(*inside, shortcut=shortcut)


def transformer(
    vocabulary: int,
    features: int,
    *,
    heads: int,
    blocks: int,
    length: int,
    kind: str = "decoder",
    norm: str = "pre",
    hidden: int | None = None,
    activation: Layer = layers.gelu,
    dropout: float = 0.0,
    cache: bool = False,
    remat: bool = False,
    implementation: str = "xla",
) -> Layer:
    """A transformer over tokens: a language model, an encoder, or both, one reading from the other.

    Shapes: a ``"decoder"`` gives scores, ``(batch, time) -> (batch, time, vocabulary)``, read out with the embedding;
    an ``"encoder"`` gives ``(batch, time, features)``; for ``"both"`` the input is a dict with ``"source"`` and
    ``"target"``, each an array ``(batch, time)`` or a dict of its own with ``"x"`` and ``"mask"`` or ``"lengths"``, and
    the output scores for the target.

    Args:
        vocabulary: the number of tokens.
        features: of each position.
        heads: of the attention.
        blocks: how many of them (of each kind); their params are stacked.
        length: of the longest sequence, for learned positions.
        kind: ``"decoder"``, ``"encoder"`` or ``"both"``.
        norm: ``"pre"``, before each part, and once at the end, or ``"post"``, after each.
        hidden: features inside the feed-forward part, ``4 * features`` unless it is given.
        activation: there.
        dropout: its rate after the embedding, after attention and after the feed-forward part.
        cache: of a decoder, for generation: see ``layers.attention``. The params are those of the model without.
        remat: whether blocks are computed again for the gradient.
        implementation: of attention, ``"xla"`` or ``"cudnn"``: see ``layers.attention``.

    Raises:
        ValueError: another kind or norm, or a cache for what is no decoder.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import models
        >>> model = models.transformer(65, 32, heads=4, blocks=2, length=16)
        >>> tokens = jnp.zeros((3, 16), jnp.int32)
        >>> params, state = model.init(jax.random.key(0), tokens)
        >>> model.apply(params, state, tokens)[0].shape
        (3, 16, 65)

    Reference: Vaswani et al., "Attention is all you need", 2017; Radford et al., "Language models are unsupervised
    multitask learners", 2019.
    """
    checks.expect_option("transformer", "kind", kind, ("decoder", "encoder", "both"))
    checks.expect_option("transformer", "norm", norm, ("pre", "post"))
    if cache and kind != "decoder":
        checks.fail("transformer", "kind='decoder' with a cache", repr(kind), "leave cache out")
    kept = length if cache else None

    def part(layer: Layer) -> tuple[Layer, ...]:
        inside = [layer, *_dropout(dropout)]
        if norm == "pre":
            return (layers.residual(layers.layer_norm(), *inside),)
        return layers.residual(*inside), layers.layer_norm()

    def stack(causal: bool, cross: bool) -> Layer:
        wide = 4 * features if hidden is None else hidden
        forward = layers.serial(layers.dense(wide), activation, layers.dense(features))
        between = part(layers.attention(heads, cross=True, implementation=implementation)) if cross else ()
        own = part(layers.attention(heads, causal=causal, cache=kept, implementation=implementation))
        block = layers.repeat(layers.serial(*own, *between, *part(forward)), blocks, remat=remat)
        return layers.serial(block, layers.layer_norm()) if norm == "pre" else block

    table = layers.embedding(vocabulary, features, readout=True, embedding_init=_SMALL)
    start = layers.serial(layers.learned_positions(length, cache=cache), *_dropout(dropout))
    if kind == "both":
        parts = {"source_start": start, "encoder": stack(False, False), "decoder": stack(True, True)}
        return layers.network(_translated, table=table, start=start, **parts)
    if kind == "encoder":
        return layers.serial(layers.named("table", table), layers.named("start", start), stack(False, False))
    return layers.network(
        lambda x, table, start, decoder: table(decoder(start(table(x)))),
        table=table,
        start=start,
        decoder=stack(True, False),
    )


# Of GPT-2: with features of variance one the scores that are read out would be far from zero.
_SMALL = normal(0.02)


def _translated(x: Any, table: Any, source_start: Any, start: Any, encoder: Any, decoder: Any) -> Any:
    if not isinstance(x, dict) or set(x) != {"source", "target"}:
        got = f"one with {sorted(x)}" if isinstance(x, dict) else f"an input of shape {shown(x)}"
        fix = 'pass {"source": tokens, "target": tokens}'
        checks.fail("transformer", "a dict with 'source' and 'target', for kind='both'", got, fix)
    source, target = (side if isinstance(side, dict) else {"x": side} for side in (x["source"], x["target"]))
    read = encoder(source_start(table(source)))
    beside = {"context": read["x"]} | {
        f"context_{name}": source[name] for name in ("mask", "lengths") if name in source
    }
    return table(decoder(start(table(target | beside))))["x"]


def autoencoder(hidden: Sequence[int], code: int, features: int, *, activation: Layer = layers.relu) -> Layer:
    """A network that gives back its input through a narrow middle.

    Formula: ``decoder(encoder(x))``, two perceptrons, the second the first one turned around

    Shapes: ``(batch, ..., features) -> (batch, ..., features)``

    Args:
        hidden: the features of the layers between input and code.
        code: the features of the middle.
        features: of the input, and of the output.
        activation: after each layer but the two last of their halves.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import models
        >>> model, x = models.autoencoder([32], 2, 64), jnp.ones((5, 64))
        >>> params, state = model.init(jax.random.key(0), x)
        >>> sorted(params), model.apply(params, state, x)[0].shape
        (['decoder', 'encoder'], (5, 64))

    Reference: Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural networks", 2006.
    """
    encoder = mlp(hidden, code, activation=activation)
    decoder = mlp([*reversed(list(hidden))], features, activation=activation)
    return layers.serial(layers.named("encoder", encoder), layers.named("decoder", decoder))
