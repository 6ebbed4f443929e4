"""Params and state of a model of other sizes: each layer refuses them, by name and with both shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import layers

KEY = jax.random.key(0)
IMAGES, MATRIX, SEQUENCE = jnp.ones((2, 6, 6, 4)), jnp.ones((2, 4)), jnp.ones((2, 3, 4))
MAPS, TOKENS = jnp.ones((2, 3, 5, 5, 2)), jnp.zeros((2, 3), jnp.int32)
OWN = "pass the params that init of this very model returned"
cell_of = {"elman": layers.elman_cell, "lstm": layers.lstm_cell, "gru": layers.gru_cell}

# The layer, the one whose params it gets, their input, and the message. Both take inputs of one shape.
CASES = {
    "conv, another window": (
        layers.conv(8, 3),
        layers.conv(8, 5),
        IMAGES,
        f"conv: expected a kernel of shape (3, 3, 4, 8), got (5, 5, 4, 8); {OWN}",
    ),
    "conv, other outputs": (
        layers.conv(8, (3, 3)),
        layers.conv(6, 3),
        IMAGES,
        f"conv: expected a kernel of shape (3, 3, 4, 8), got (3, 3, 4, 6); {OWN}",
    ),
    "conv_transpose": (
        layers.conv_transpose(8, 3, strides=2),
        layers.conv_transpose(8, 2, strides=2),
        IMAGES,
        f"conv_transpose: expected a kernel of shape (3, 3, 4, 8), got (2, 2, 4, 8); {OWN}",
    ),
    "depthwise_conv": (
        layers.depthwise_conv(3),
        layers.depthwise_conv(5),
        IMAGES,
        f"depthwise_conv: expected a kernel of shape (3, 3, 1, 4), got (5, 5, 1, 4); {OWN}",
    ),
    "depthwise_conv, an odd multiple": (
        layers.depthwise_conv(3, multiplier=2),
        layers.conv(9, 3, groups=1),
        jnp.ones((2, 6, 6, 1)),
        "depthwise_conv: expected 4 input features in 4 groups, as its kernel (3, 3, 1, 9) has, got 1 in",
    ),
    "separable_conv": (
        layers.separable_conv(8, 3),
        layers.separable_conv(6, 3),
        IMAGES,
        f"conv: expected a kernel of shape (1, 1, 4, 8), got (1, 1, 4, 6); {OWN}",
    ),
    "dense": (
        layers.dense(16),
        layers.dense(32),
        MATRIX,
        f"dense: expected 16 output features, got 32 in a kernel of shape (4, 32); {OWN}",
    ),
    "dense, a shape": (
        layers.dense((2, 3)),
        layers.dense((3, 2)),
        MATRIX,
        f"dense: expected (2, 3) output features, got (3, 2) in a kernel of shape (4, 3, 2); {OWN}",
    ),
    "embedding, another count": (
        layers.embedding(10, 4),
        layers.embedding(11, 4),
        TOKENS,
        f"embedding: expected an embedding of shape (10, 4), got (11, 4); {OWN}",
    ),
    "embedding, other features": (
        layers.embedding(10, 4),
        layers.embedding(10, 5),
        TOKENS,
        f"embedding: expected an embedding of shape (10, 4), got (10, 5); {OWN}",
    ),
    "learned_positions": (
        layers.learned_positions(5),
        layers.learned_positions(8),
        SEQUENCE,
        f"learned_positions: expected an embedding of shape (5, 4), got (8, 4); {OWN}",
    ),
    "swiglu": (
        layers.swiglu(6),
        layers.swiglu(8),
        MATRIX,
        f"swiglu: gate: expected a kernel of shape (4, 6), got (4, 8); {OWN}",
    ),
    "geglu": (
        layers.geglu(6, bias=True),
        layers.geglu(8, bias=True),
        MATRIX,
        f"geglu: gate: expected a kernel of shape (4, 6), got (4, 8); {OWN}",
    ),
    "einsum": (
        layers.einsum("bf,fg->bg", (4, 3)),
        layers.einsum("bf,fg->bg", (4, 5)),
        MATRIX,
        f"einsum: expected a kernel of shape (4, 3), got (4, 5); {OWN}",
    ),
    "conv_lstm_cell": (
        layers.recurrent(layers.conv_lstm_cell(3, 3)),
        layers.recurrent(layers.conv_lstm_cell(3, 5)),
        MAPS,
        f"conv_lstm_cell: expected a kernel of shape (3, 3, 2, 12), got (5, 5, 2, 12); {OWN}",
    ),
    "attention, other key_value_heads": (
        layers.attention(4, key_value_heads=2),
        layers.attention(4),
        SEQUENCE,
        f"attention: key: expected a kernel of shape (4, 2), got (4, 4); {OWN}",
    ),
    "attention, other head_features": (
        layers.attention(2, head_features=3),
        layers.attention(2),
        SEQUENCE,
        f"attention: query: expected a kernel of shape (4, 6), got (4, 4); {OWN}",
    ),
    **{
        f"{name}_cell": (
            layers.recurrent(cell(3)),
            layers.recurrent(cell(5)),
            SEQUENCE,
            f"{name}_cell: expected a kernel of shape (4, {3 * gates}), got (4, {5 * gates}); {OWN}",
        )
        for (name, cell), gates in zip(cell_of.items(), (1, 4, 3), strict=True)
    },
}


def made(layer, x):
    """Params and state of zeros, and nothing compiled."""
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(layer.init, KEY, x))


def shapes(layer, params, state, x):
    return jax.eval_shape(lambda params, x: layer.apply(params, state, x), params, x)


@pytest.mark.parametrize("case", CASES)
def test_params_of_a_layer_of_other_sizes_are_refused(case):
    layer, other, x, message = CASES[case]
    params, state = made(other, x)
    with pytest.raises(ValueError, match=r"expected .*, got .*; pass ") as error:
        shapes(layer, params, state, x)
    assert str(error.value).startswith(message), str(error.value)


SINGLE = {
    "conv": (layers.conv(8, 3), IMAGES, {}),
    "depthwise_conv": (layers.depthwise_conv(3), IMAGES, {"kernel": "5 input features in 5 groups"}),
    "conv_transpose": (layers.conv_transpose(8, 3), IMAGES, {}),
    "dense": (layers.dense(3), MATRIX, {"kernel": "output features"}),
    "einsum": (layers.einsum("bf,fg->bg", (4, 3)), MATRIX, {}),
    "elman_cell": (layers.elman_cell(3), MATRIX, {}),
    "lstm_cell": (layers.lstm_cell(3), MATRIX, {}),
    "gru_cell": (layers.gru_cell(3), MATRIX, {}),
    "conv_lstm_cell": (layers.conv_lstm_cell(3, 3), IMAGES, {}),
    "group_norm": (layers.group_norm(2), MATRIX, {"bias": "7 input features", "scale": "7 input features"}),
    "batch_norm": (layers.batch_norm(), MATRIX, {"bias": "7 input features", "scale": "7 input features"}),
    "gate": (layers.swiglu(6, bias=True), MATRIX, {}),
    "query": (layers.attention(2), SEQUENCE, {}),
}


def another(leaf):
    """One more output feature, and seven of a vector."""
    return jnp.ones((7,) if leaf.ndim == 1 else (*leaf.shape[:-1], leaf.shape[-1] + 1))


@pytest.mark.parametrize("name", SINGLE)
def test_every_entry_is_checked(name):
    layer, x, messages = SINGLE[name]
    params, state = made(layer, x)
    shapes(layer, params, state, x)
    whole, treedef = jax.tree_util.tree_flatten_with_path(params)
    for i, (path, leaf) in enumerate(whole):
        changed = treedef.unflatten([another(a) if i == j else a for j, (_, a) in enumerate(whole)])
        entry = path[-1].key
        expected = f"a {entry} of shape {leaf.shape}, got {another(leaf).shape}; {OWN}"
        with pytest.raises(ValueError, match=r"expected .*, got .*; pass ") as error:
            shapes(layer, changed, state, x)
        assert messages.get(entry, expected) in str(error.value)


def test_a_kernel_of_another_rank_is_refused():
    params = {"kernel": jnp.ones((3, 4, 8)), "bias": jnp.ones(8)}
    for make, message in (
        (layers.conv(8, (3, 3)), r"conv: expected a kernel of shape \(3, 3, 4, 8\), got \(3, 4, 8\); pass the params"),
        (layers.conv(8, 3), r"conv: expected \(batch, \*spatial, features\) with 1 spatial axes, got shape"),
        (layers.conv_transpose(8, (3, 3)), r"expected a kernel of shape \(3, 3, 4, 8\), got \(3, 4, 8\); pass the"),
    ):
        with pytest.raises(ValueError, match=message):
            make.apply(params, {}, IMAGES)


def test_a_cache_of_another_model_is_refused():
    def cached(heads, cache):
        return layers.attention(heads, causal=True, cache=cache)

    x = jnp.ones((2, 3, 8))
    params, _ = made(cached(4, 5), x)
    for other, shape in ((cached(4, 7), (2, 7, 4, 2)), (cached(2, 5), (2, 5, 2, 4))):
        _, state = made(other, x)
        with pytest.raises(ValueError, match=r"expected .*, got .*; pass ") as error:
            shapes(cached(4, 5), params, state, x)
        message = f"attention: expected a key of shape (2, 5, 4, 2), got {shape}; {OWN.replace('params', 'state')}"
        assert str(error.value) == message


def test_a_low_rank_update_of_another_base_is_refused():
    adapted = layers.lora(layers.dense(3), 2)
    params, state = made(adapted, MATRIX)
    base, _ = made(layers.dense(3), jnp.ones((2, 6)))
    message = (
        r"lora: expected an update for 'kernel' of shape \(6, 3\), got a of shape \(4, 2\) and b of shape \(2, 3\); "
        r"pass a base and updates that were made for each other"
    )
    for call in (
        lambda p: layers.merged(p),
        lambda p: adapted.apply(p, state, jnp.ones((2, 6))),
    ):
        with pytest.raises(ValueError, match=message):
            call(params | {"base": base})
    with pytest.raises(
        ValueError, match=r"lora: expected updates of rank 3, got a of shape \(4, 2\) at 'kernel/a'; pass"
    ):
        layers.lora(layers.dense(3), 3).apply(params, state, MATRIX)
    halves = params["lora"]["kernel"]
    with pytest.raises(ValueError, match=r"got a of shape \(4, 2\) and b of shape \(1, 3\)"):
        layers.merged(params | {"lora": {"kernel": halves | {"b": jnp.ones((1, 3))}}})


def test_the_parts_of_a_normed_weight_fit_each_other():
    layer = layers.weight_norm(layers.dense(3))
    params, state = made(layer, MATRIX)
    params["kernel"]["scale"] = jnp.ones(5)
    with pytest.raises(ValueError, match=r"weight_norm: expected a scale of shape \(3,\), got \(5,\); pass the params"):
        layer.apply(params, state, MATRIX)
    layer = layers.spectral_norm(layers.dense(3))
    params, state = made(layer, MATRIX)
    _, other = made(layer, jnp.ones((2, 6)))
    with pytest.raises(ValueError, match=r"spectral_norm: kernel: expected a v of shape \(4,\), got \(6,\); pass the "):
        layer.apply(params, other, MATRIX)
    with pytest.raises(ValueError, match=r"expected state with \['kernel/u', 'kernel/v'\], got \[\]; pass the state"):
        layer.apply(params, {}, MATRIX)


def test_the_input_is_named_first_where_it_does_not_fit():
    for layer, given, other, message in (
        (layers.dense(16), jnp.ones((2, 4)), jnp.ones((2, 5)), "dense: expected 4 input features, as its kernel"),
        (layers.conv(3, 3), IMAGES, IMAGES[..., :2], "conv: expected 4 input features, as its kernel"),
        (layers.lstm_cell(3), MATRIX, MATRIX[:, :2], "lstm_cell: expected 4 input features, as its kernel"),
        (layers.attention(1), SEQUENCE, SEQUENCE[..., :2], "attention: expected 4 features for query, as its kernel"),
        (layers.swiglu(3), MATRIX, MATRIX[:, :2], "swiglu: expected 4 input features"),
        (layers.learned_positions(9), SEQUENCE, SEQUENCE[..., :2], "learned_positions: expected 4 features, got 2"),
    ):
        params, state = made(layer, given)
        with pytest.raises(ValueError, match=message):
            layer.apply(params, state, other)


def test_weights_that_numpy_holds_are_taken():
    params, state = layers.dense(3).init(KEY, MATRIX)
    y, _ = layers.dense(3).apply(jax.tree.map(np.asarray, params), state, MATRIX)
    assert y.shape == (2, 3)
