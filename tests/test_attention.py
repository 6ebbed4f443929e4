"""Attention and positions against PyTorch and direct loops; masks, caches, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import numbers_for, quickly_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import inspection, layers, models
from funcnn.layers import attending

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def drawn(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def by_hand(params, x, context, heads, groups, mask=None, turn=lambda a: a):
    """Attention as nested loops over examples, heads and positions, in float64; zeros where all is masked."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    q, k, v = (
        a.astype(np.float64) @ params[name]["kernel"] + params[name].get("bias", 0)
        for name, a in (("query", x), ("key", context), ("value", context))
    )
    width = q.shape[-1] // heads
    out = np.zeros(q.shape)
    for b in range(len(x)):
        for h in range(heads):
            g = h // (heads // groups)
            own, other = slice(h * width, (h + 1) * width), slice(g * width, (g + 1) * width)
            queries, keys = turn(q[b, :, own]), turn(k[b, :, other])
            for t in range(x.shape[1]):
                seen = np.ones(context.shape[1], bool) if mask is None else mask[b, h, t]
                if seen.any():
                    scores = keys[seen] @ queries[t] / np.sqrt(width)
                    weights = np.exp(scores - scores.max())
                    out[b, t, own] = (weights / weights.sum()) @ v[b, seen, other]
    return out @ params["output"]["kernel"] + params["output"].get("bias", 0)


def turned(a, base=10000.0):
    """Rotary positions as complex numbers: the halves are real and imaginary parts."""
    half = a.shape[-1] // 2
    z = a[:, :half] + 1j * a[:, half:]
    z = z * np.exp(1j * np.arange(len(a))[:, None] * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 4},
        pytest.param({"heads": 4, "key_value_heads": 2, "bias": False}, marks=pytest.mark.slow),
        pytest.param({"heads": 4, "key_value_heads": 1, "head_features": 6, "rotary": True}, marks=pytest.mark.slow),
        pytest.param({"heads": 2, "causal": True, "rotary": True}, marks=pytest.mark.slow),
    ],
)
def test_self_attention_is_its_formula(options):
    layer, x = layers.attention(**options), drawn(3, 7, 8)
    params, state = layer.init(KEY, x)
    params = jax.tree.map(lambda a: a + 0.1 * drawn(*a.shape), params)
    heads, groups = options["heads"], options.get("key_value_heads", options["heads"])
    mask = np.tril(np.ones((7, 7), bool)) if options.get("causal") else np.ones((7, 7), bool)
    turn = turned if options.get("rotary") else lambda a: a
    expected = by_hand(params, x, x, heads, groups, np.broadcast_to(mask, (3, heads, 7, 7)), turn)
    apply = jax.jit(layer.apply)
    np.testing.assert_allclose(apply(params, state, x)[0], expected, rtol=1e-5, atol=1e-5)
    half, _ = apply(params, state, jnp.asarray(x, jnp.bfloat16))
    np.testing.assert_allclose(half.astype(np.float32), expected, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_attention_in_float64_has_all_the_digits():
    """One of everything at once: grouped heads of a width of their own, rotary with its base, causal, and a mask."""
    options = {"key_value_heads": 2, "head_features": 6, "causal": True, "rotary": True, "rotary_base": 50.0}
    x, there = RNG.normal(size=(2, 5, 8)), np.array([[True, True, False, True, True], [False, True, True, True, False]])
    seen = np.tril(np.ones((5, 5), bool)) & there[:, None, None]
    with jax.enable_x64(True):
        layer, given = layers.attention(4, **options), {"x": jnp.asarray(x), "mask": there}
        params, state = layer.init(KEY, given)
        params = jax.tree.map(lambda a: a + 0.1 * RNG.normal(size=a.shape), params)
        y, _ = jax.jit(layer.apply)(params, state, given)
        params, y = jax.tree.map(np.asarray, (params, y["x"]))
    expected = by_hand(params, x, x, 4, 2, np.broadcast_to(seen, (2, 4, 5, 5)), lambda a: turned(a, 50.0))
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_a_causal_sequence_with_lengths_is_its_formula():
    x, lengths = drawn(2, 5, 8), np.array([3, 5])
    layer = layers.attention(2, causal=True, rotary=True, rotary_base=50.0)
    params, state = layer.init(KEY, x)
    seen = np.tril(np.ones((5, 5), bool)) & (np.arange(5) < lengths[:, None])[:, None, None]
    expected = by_hand(params, x, x, 2, 2, np.broadcast_to(seen, (2, 2, 5, 5)), lambda a: turned(a, 50.0))
    y, _ = jax.jit(lambda x: layer.apply(params, state, {"x": x, "lengths": lengths}))(x)
    np.testing.assert_allclose(y["x"], expected, rtol=1e-5, atol=1e-5)


def test_the_four_maps_and_their_biases_are_drawn_each_for_itself():
    draw = jax.nn.initializers.normal(1.0)
    params, _ = layers.attention(2, kernel_init=draw, bias_init=draw).init(KEY, drawn(1, 3, 8))
    firsts = [leaf.ravel()[:8] for leaf in jax.tree.leaves(params)]
    assert len(firsts) == 8
    assert len({value.item() for first in firsts for value in first}) == 64


def test_a_mask_of_none_hides_nothing():
    layer, x = layers.attention(2), drawn(2, 4, 8)
    params, state = layer.init(KEY, x)
    y, _ = layer.apply(params, state, {"x": x, "mask": None})
    np.testing.assert_array_equal(y["x"], layer.apply(params, state, x)[0])


@pytest.mark.slow
@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    time=st.integers(0, 5),
    keys=st.integers(0, 5),
    groups=st.integers(1, 3),
    each=st.integers(1, 2),
    half=st.integers(1, 3),
    kind=st.sampled_from(["self", "cross"]),
    causal=st.booleans(),
    rotary=st.booleans(),
    bias=st.booleans(),
    hidden=st.sampled_from([None, "some", "all"]),
)
def test_any_shape_and_option_is_the_formula(batch, time, keys, groups, each, half, kind, causal, rotary, bias, hidden):
    """Sequences of length zero and masks that hide everything among them."""
    cross = kind == "cross"
    causal, rotary, keys = causal and not cross, rotary and not cross, keys if cross else time
    heads, x, context = groups * each, drawn(batch, time, 4), drawn(batch, keys, 4)
    layer = layers.attention(
        heads, head_features=2 * half, key_value_heads=groups, cross=cross, causal=causal, rotary=rotary, bias=bias
    )
    seen = {None: True, "all": False}.get(hidden, RNG.random((batch, heads, time, keys)) < 0.5)
    seen = np.broadcast_to(seen, (batch, heads, time, keys))
    entries = {"x": x} | ({"context": context} if cross else {})
    if hidden is not None:
        entries["context_mask" if cross else "mask"] = seen
    params = numbers_for(layer, entries)
    with quickly_compiled():
        y = jax.jit(lambda params: layer.apply(params, {}, entries)[0])(params)
    seen = seen & np.tril(np.ones((time, keys), bool)) if causal else seen
    expected = by_hand(params, x, context if cross else x, heads, groups, seen, turned if rotary else lambda a: a)
    np.testing.assert_allclose(y["x"], expected, rtol=1e-4, atol=1e-5)


MASKS = {
    "mask of keys": (lambda m: {"mask": m[:, 0, 0]}, lambda m: np.broadcast_to(m[:, :1, :1], m.shape)),
    "mask of pairs": (lambda m: {"mask": m[:, 0]}, lambda m: np.broadcast_to(m[:, :1], m.shape)),
    "mask of heads": (lambda m: {"mask": m}, lambda m: m),
    "lengths": (
        lambda m: {"lengths": np.array([5, 2, 0])},
        lambda m: np.broadcast_to((np.arange(5)[None] < np.array([[5], [2], [0]]))[:, None, None], m.shape),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("cross", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_masks_hide_what_they_say_and_leave_zeros_where_nothing_is_seen(name, cross):
    layer, x = layers.attention(2, cross=cross), drawn(3, 4 if cross else 5, 8)
    context = drawn(3, 5, 6) if cross else x
    mask = RNG.uniform(size=(3, 2, x.shape[1], 5)) > 0.5
    mask[1] = False  # hides everything
    give, means = MASKS[name]
    beside = {f"context_{k}" if cross else k: v for k, v in give(mask).items()} | (
        {"context": context} if cross else {}
    )
    params, state = layer.init(KEY, {"x": x} | beside)
    y, _ = layer.apply(params, state, {"x": x} | beside)
    np.testing.assert_allclose(y["x"], by_hand(params, x, context, 2, 2, means(mask)), rtol=1e-5, atol=1e-5)
    assert set(y) == {"x", *beside}

    def total(x):
        return jnp.sum(layer.apply(params, state, {"x": x} | beside)[0]["x"] ** 2)

    assert np.isfinite(jax.jvp(jax.grad(total), (jnp.asarray(x),), (jnp.asarray(x),))[1]).all()


@pytest.mark.slow
def test_nan_where_nobody_looks_stays_there_in_gradients_too():
    layer, x, there = (
        layers.attention(2),
        drawn(2, 4, 6),
        np.array([[True, True, True, False], [True, False, False, False]]),
    )
    params, state = layer.init(KEY, x)

    def total(params, x):
        y, _ = layer.apply(params, state, {"x": x, "mask": there})
        return jnp.sum(jnp.where(there[..., None], y["x"], 0) ** 2)

    holes = jnp.where(there[..., None], x, jnp.nan)
    np.testing.assert_allclose(total(params, holes), total(params, jnp.asarray(x)), rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(total)(params, holes)))


@pytest.mark.slow
def test_nan_where_somebody_looks_is_not_hidden():
    layer, x, context = layers.attention(1, cross=True), drawn(1, 2, 4), drawn(1, 3, 4)
    context[0, 2] = np.nan
    there = np.array([[[True, True, False], [False, True, True]]])  # only the second looks at it
    params, state = layer.init(KEY, {"x": x, "context": context})
    y, _ = layer.apply(params, state, {"x": x, "context": context, "context_mask": there})
    assert np.isnan(y["x"][0, 1]).all()


@pytest.mark.slow
def test_float16_compiles_and_is_its_rounding():
    layer, x = layers.attention(2), drawn(2, 4, 6)
    params, state = layer.init(KEY, x)
    y, _ = jax.jit(layer.apply)(params, state, jnp.asarray(x, jnp.float16))
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y, layer.apply(params, state, x)[0], rtol=0.01, atol=0.01)


def test_what_is_masked_has_no_influence():
    layer, x = layers.attention(2), drawn(2, 6, 4)
    params, state = layer.init(KEY, x)
    other = x.copy()
    other[:, 4:] = 100
    short, changed = ({"x": a, "lengths": np.array([4, 4])} for a in (x, other))
    a, b = (layer.apply(params, state, given)[0]["x"][:, :4] for given in (short, changed))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, layer.apply(params, state, x[:, :4])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cross", [pytest.param(False, marks=pytest.mark.slow), True])
def test_attention_and_its_gradients_are_pytorchs(torch, cross):
    x, context = drawn(3, 5, 8), drawn(3, 4, 8)
    layer = layers.attention(2, cross=cross)
    given = {"x": x, "context": context} if cross else x
    params, state = layer.init(KEY, given)
    params = jax.tree.map(lambda a: a + 0.1 * drawn(*a.shape), params)
    twin = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        for i, name in enumerate(("query", "key", "value")):
            twin.in_proj_weight[8 * i : 8 * i + 8] = torch.tensor(np.array(params[name]["kernel"]).T)
            twin.in_proj_bias[8 * i : 8 * i + 8] = torch.tensor(np.array(params[name]["bias"]))
        twin.out_proj.weight.copy_(torch.tensor(np.array(params["output"]["kernel"]).T))
        twin.out_proj.bias.copy_(torch.tensor(np.array(params["output"]["bias"])))
    theirs_x = torch.tensor(x, requires_grad=True)
    other = torch.tensor(context) if cross else theirs_x
    theirs, _ = twin(theirs_x, other, other, need_weights=False)
    (theirs**2).sum().backward()

    def total(params, x):
        y, _ = layer.apply(params, state, {"x": x, "context": context} if cross else x)
        y = y["x"] if cross else y
        return jnp.sum(y**2), y

    (slope, x_slope), y = jax.grad(total, argnums=(0, 1), has_aux=True)(params, jnp.asarray(x))
    np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x_slope, theirs_x.grad.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope["value"]["kernel"], twin.in_proj_weight.grad[16:].T.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope["query"]["kernel"], twin.in_proj_weight.grad[:8].T.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_rotary_weights_depend_on_distance_alone():
    layer, x = layers.attention(1, rotary=True), drawn(1, 4, 8)
    params, state = layer.init(KEY, x)
    at = [{"x": x, "positions": np.arange(4)[None] + shift} for shift in (0, 17)]
    first, shifted = (layer.apply(params, state, given)[0]["x"] for given in at)
    np.testing.assert_allclose(first, shifted, rtol=1e-4, atol=1e-5)
    stretched = layer.apply(params, state, {"x": x, "positions": 3 * np.arange(4)[None]})[0]["x"]
    assert not np.allclose(first, stretched, atol=1e-3)


def test_nothing_to_look_at_and_nothing_that_looks():
    layer = layers.attention(2, cross=True)
    params, state = layer.init(KEY, {"x": drawn(2, 3, 4), "context": drawn(2, 5, 4)})
    y, _ = layer.apply(params, state, {"x": drawn(2, 3, 4), "context": drawn(2, 0, 4)})
    np.testing.assert_array_equal(y["x"], np.zeros((2, 3, 4)))  # the bias of the output is zero
    own = layers.attention(2)
    params, state = own.init(KEY, drawn(2, 3, 4))
    assert own.apply(params, state, drawn(2, 0, 4))[0].shape == (2, 0, 4)
    assert own.apply(params, state, drawn(0, 3, 4))[0].shape == (0, 3, 4)
    causal = layers.attention(2, causal=True)
    assert causal.apply(params, state, drawn(0, 3, 4))[0].shape == (0, 3, 4)
    masked = {"x": drawn(0, 3, 4), "lengths": np.zeros(0, int)}
    assert causal.apply(params, state, masked)[0]["x"].shape == (0, 3, 4)


# ---- generation ------------------------------------------------------------------------------------------------------


def stacked(cache):
    kept = 6 if cache else None
    block = layers.residual(layers.layer_norm(), layers.attention(2, causal=True, rotary=True, cache=kept))
    return layers.serial(layers.learned_positions(6, cache=cache), layers.repeat(block, 2))


LATER = [pytest.param(pieces, marks=pytest.mark.slow) for pieces in ([1] * 6, [6], [1, 3, 2])]


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [[4, 2], *LATER])
def test_decoding_with_the_cache_is_the_full_pass(pieces):
    x = drawn(3, 6, 8)
    params, _ = stacked(False).init(KEY, x)
    same, state = stacked(True).init(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    expected, _ = stacked(False).apply(params, {}, x)
    found, begin = [], 0
    for size in pieces:
        y, state = stacked(True).apply(params, state, x[:, begin : begin + size])
        found.append(y)
        begin += size
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, rtol=1e-5, atol=1e-5)
    beyond, _ = stacked(True).apply(params, state, x[:, :1])
    assert np.isnan(beyond).all()


def test_generation_is_a_scan_and_compiles_once(compilations):
    x = jnp.asarray(drawn(3, 6, 8))
    model = stacked(True)
    params, state = model.init(KEY, x)

    @jax.jit
    def decoded(params, state):
        def step(state, a):
            y, state = model.apply(params, state, a[:, None])
            return state, y[:, 0]

        return jax.lax.scan(step, state, jnp.moveaxis(x, 1, 0))[1]

    expected, _ = stacked(False).apply(params, {}, x)
    np.testing.assert_allclose(jnp.moveaxis(decoded(params, state), 0, 1), expected, rtol=1e-5, atol=1e-5)
    step = jax.jit(model.apply)
    step(params, state, x[:, :1])
    before = len(compilations)
    for _ in range(5):
        _, state = step(params, state, x[:, :1])
    assert len(compilations) == before


@pytest.mark.slow
def test_the_cache_is_of_the_dtype_of_its_input_and_the_sequence_stays_in_its_own():
    layer, x = layers.attention(2, causal=True, cache=4), jnp.asarray(drawn(2, 4, 8), jnp.bfloat16)
    params, state = layer.init(KEY, x)
    dtypes = {name: str(leaf.dtype) for name, leaf in state.items()}
    assert dtypes == {"key": "bfloat16", "value": "bfloat16", "index": "int32"}
    for each in (x, x.astype(jnp.float32)):
        y, new = layer.apply(params, state, each)
        assert y.dtype == each.dtype
        assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, state)


@pytest.mark.slow
def test_training_leaves_the_cache_alone():
    x = drawn(3, 6, 8)
    params, state = stacked(True).init(KEY, x)
    y, new = stacked(True).apply(params, state, x, training=True)
    np.testing.assert_allclose(y, stacked(False).apply(params, {}, x)[0], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, new, state)


# ---- positions -------------------------------------------------------------------------------------------------------


def test_positions_are_their_formulas():
    x = drawn(2, 5, 6)
    t, i = np.arange(5)[:, None], np.arange(3)[None]
    waves = np.concatenate([np.sin(t / 10000 ** (2 * i / 6)), np.cos(t / 10000 ** (2 * i / 6))], -1)
    np.testing.assert_allclose(layers.sinusoidal_positions().apply({}, {}, x)[0], x + waves, rtol=1e-5, atol=1e-6)
    layer = layers.learned_positions(9)
    params, state = layer.init(KEY, x)
    np.testing.assert_allclose(layer.apply(params, state, x)[0], x + np.asarray(params["embedding"])[:5], rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: layers.sinusoidal_positions(cache=True), lambda: layers.learned_positions(6, cache=True)]
)
def test_positions_go_on_from_call_to_call(make):
    layer, x = make(), drawn(2, 6, 4)
    params, state = layer.init(KEY, x)
    whole = layer.apply(params, state, x)[0]
    first, middle = layer.apply(params, state, x[:, :4])
    rest, _ = layer.apply(params, middle, x[:, 4:])
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), whole, rtol=1e-6, atol=1e-6)


def test_positions_that_were_never_learned_are_no_numbers():
    layer, x = layers.learned_positions(4, cache=True), drawn(2, 3, 6)
    params, state = layer.init(KEY, x)
    _, state = layer.apply(params, state, x)
    y, _ = layer.apply(params, state, x)
    np.testing.assert_allclose(y[:, 0], x[:, 0] + np.asarray(params["embedding"])[3], rtol=1e-6)
    assert np.isnan(y[:, 1:]).all()


def test_waves_are_of_their_base():
    x, t, i = drawn(2, 5, 6), np.arange(5)[:, None], np.arange(3)[None]
    waves = np.concatenate([np.sin(t / 50 ** (2 * i / 6)), np.cos(t / 50 ** (2 * i / 6))], -1)
    y, _ = layers.sinusoidal_positions(base=50.0).apply({}, {}, x)
    np.testing.assert_allclose(y, x + waves, rtol=1e-5, atol=1e-6)


# ---- what is refused -------------------------------------------------------------------------------------------------

X = drawn(2, 5, 8)


def applied(layer, given, at_init=X):
    params, state = layer.init(KEY, at_init)
    return layer.apply(params, state, given)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: layers.attention(3).init(KEY, X),
            ValueError,
            "attention: expected features that 3 heads divide",
        ),
        (lambda: layers.attention(4, key_value_heads=3), ValueError, "key_value_heads that divide 4 heads, got 3"),
        (
            lambda: layers.attention(2, head_features=3, rotary=True).init(KEY, X),
            ValueError,
            "an even number",
        ),
        (lambda: layers.attention(2, cache=8), ValueError, "causal=True with a cache"),
        (lambda: layers.attention(2, rotary_base=500.0), ValueError, "rotary=True with a rotary_base"),
        (lambda: layers.attention(2, implementation="flash"), ValueError, "implementation to be one of"),
        (
            lambda: applied(layers.attention(2, implementation="cudnn"), X),
            ValueError,
            "attention: expected an NVIDIA GPU for implementation='cudnn', got the platform cpu; leave implementation",
        ),
        (lambda: layers.attention(2, cross=True, causal=True), ValueError, "cross=True without causal and rotary"),
        (
            lambda: layers.attention(2, cross=True).init(KEY, X),
            ValueError,
            'a dict with "x" and "context"',
        ),
        (
            lambda: layers.attention(2).init(KEY, X[0]),
            ValueError,
            r"x as \(batch, time, features\), got shape",
        ),
        (
            lambda: layers.attention(2).init(KEY, np.zeros((2, 5, 8), int)),
            TypeError,
            "embed the tokens",
        ),
        (lambda: applied(layers.attention(2), X[..., :6]), ValueError, "expected 8 features for query"),
        (
            lambda: applied(layers.attention(2), {"x": X, "mask": np.ones((2, 4), bool)}),
            ValueError,
            r"mask of one of the shapes \(2, 5\), \(2, 5, 5\), \(2, 1, 5, 5\), \(2, 2, 5, 5\), got \(2, 4\)",
        ),
        (
            lambda: applied(layers.attention(2), {"x": X, "mask": np.ones((2, 5))}),
            TypeError,
            "mask of booleans",
        ),
        (
            lambda: applied(layers.attention(2), {"x": X, "lengths": np.ones(3, int)}),
            ValueError,
            r"lengths of shape \(2,\), got \(3,\); give one for each",
        ),
        (lambda: applied(layers.attention(2), {"x": X, "lengths": np.ones(2)}), TypeError, "lengths of whole numbers"),
        (
            lambda: applied(layers.attention(2), {"x": X, "lengths": [3, 6]}),
            ValueError,
            "lengths from 0 to 5, the steps",
        ),
        (
            lambda: layers.attention(2, causal=True, cache=5).apply(layers.attention(2).init(KEY, X)[0], {}, X),
            ValueError,
            r"attention: expected state with \['index', 'key', 'value'\], got \[\]",
        ),
        (
            lambda: applied(layers.attention(2), {"x": X, "lengths": np.ones(2, int), "mask": np.ones((2, 5), bool)}),
            ValueError,
            r"one of \['mask', 'lengths'\], got both",
        ),
        (
            lambda: applied(layers.attention(2, causal=True, cache=5), X[:1]),
            ValueError,
            "expected 2 examples, as the cache has, got 1",
        ),
        (
            lambda: applied(layers.attention(2, causal=True, cache=4), X, X[:, :4]),
            ValueError,
            "at most 4 positions, as the cache has, got 5",
        ),
        (
            lambda: layers.attention(2).apply({}, {}, X),
            ValueError,
            r"attention: expected params with \['key', 'output', 'query', 'value'\], got \[\]",
        ),
        (
            lambda: applied(layers.attention(2, causal=True, cache=5), {"x": X, "mask": np.ones((2, 5), bool)}),
            ValueError,
            "attention: expected no mask or lengths with a cache, got one; generate without",
        ),
        (
            lambda: applied(layers.attention(2, rotary=True), {"x": X, "positions": np.arange(5)[None]}),
            ValueError,
            r"attention: expected positions of shape \(2, 5\), got \(1, 5\); give one for each element of x",
        ),
        (
            lambda: layers.attention(2, cross=True).init(KEY, {"x": X, "context": X[:1]}),
            ValueError,
            "attention: expected as many examples in x as in the context, got 2 and 1",
        ),
        (
            lambda: applied(layers.learned_positions(9), X[..., :1]),
            ValueError,
            r"learned_positions: expected 8 features, got 1 in an input of shape \(2, 5, 1\)",
        ),
        (lambda: layers.learned_positions(4).init(KEY, X), ValueError, "at most 4 elements, got 5"),
        (lambda: layers.sinusoidal_positions().init(KEY, X[..., :5]), ValueError, "an even number of features, got 5"),
        (
            lambda: layers.learned_positions(9).init(KEY, X[0]),
            ValueError,
            r"\(batch, time, features\), got",
        ),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_path_is_named():
    model = layers.serial(layers.residual(layers.layer_norm(), layers.attention(2)))
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="mask of one of the shapes") as error:
        jax.jit(model.apply)(params, state, {"x": X, "mask": np.ones((5, 5), bool)})
    assert "residual_0 / attention_0: input {'mask': (5, 5), 'x': (2, 5, 8)}" in error.value.__notes__


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"cross": True}])
def test_one_mask_for_all_examples_has_a_batch_axis_of_one(options):
    layer, name = layers.attention(2, **options), "context_mask" if options.get("cross") else "mask"
    x, pairs = drawn(3, 4, 8), np.tril(np.ones((4, 4), bool))
    given = {"x": x, "context": x}
    params, state = layer.init(KEY, given)
    expected, _ = layer.apply(params, state, {**given, name: np.broadcast_to(pairs, (3, 4, 4))})
    for mask in (pairs[None], pairs[None, None], np.broadcast_to(pairs, (1, 2, 4, 4))):
        y, _ = layer.apply(params, state, {**given, name: mask})
        np.testing.assert_array_equal(y["x"], expected["x"])
    with pytest.raises(ValueError, match=rf"got \(4, 4\); one for all examples has a batch axis of 1: {name}\[None\]"):
        layer.apply(params, state, {**given, name: pairs})


# ---- how it is computed ----------------------------------------------------------------------------------------------


def products(layer, x):
    params, state = layer.init(jax.random.key(0), x)
    return str(jax.make_jaxpr(lambda params: layer.apply(params, state, x)[0])(params)).count("dot_general[")


def test_one_sequence_is_mapped_in_one_product():
    x = drawn(2, 5, 8)
    assert products(layers.attention(2), x) == 4  # its three maps at once, scores, values, output
    assert products(layers.attention(2, cross=True), {"x": x, "context": drawn(2, 3, 8)}) == 6


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_graph_has_the_weights_of_every_head(groups, platform, monkeypatch):
    monkeypatch.setattr(attending.primitives, "platform", lambda: platform)
    x, alone = drawn(1, 5, 8), layers.attention(2, key_value_heads=groups, bias=False, head_features=4)
    params, state = alone.init(KEY, x)
    layer = layers.serial(alone)
    graph = inspection.graph(
        lambda params: layer.apply({"attention_0": params}, {"attention_0": state}, x)[0], params, gradients=False
    )
    [exponentials] = [node for node in graph if node.path == "attention_0" and node.operation == "exp"]
    maps = exponentials.value.reshape(2, 5, 5)
    q = (x @ params["query"]["kernel"]).reshape(5, 2, 4)
    k = (x @ params["key"]["kernel"]).reshape(5, groups, 4).repeat(2 // groups, axis=1)
    expected = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / 2)
    np.testing.assert_allclose(maps / maps.sum(-1, keepdims=True), expected, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True, "heads"])
def test_on_a_cpu_it_is_what_jax_computes(groups, masked, monkeypatch):
    x = drawn(3, 6, 16).astype(jnp.float32)
    layer = layers.attention(4, key_value_heads=groups)
    given = x
    if masked:
        shape = (3, 4, 6, 6) if masked == "heads" else (3, 6)
        mask = jax.random.bernoulli(jax.random.key(1), 0.7, shape).at[..., 0].set(True)
        given = {"x": x, "mask": mask}
    params, state = layer.init(jax.random.key(0), given)

    def loss(params):
        y, _ = layer.apply(params, state, given)
        return jnp.sum(jnp.sin(y["x"] if masked else y))

    calls, attend = [], jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, **k: calls.append(1) or attend(*a, **k))
    found = jax.jit(jax.value_and_grad(loss))(params)
    assert not calls
    monkeypatch.setattr(attending.primitives, "platform", lambda: "gpu")
    expected = jax.jit(jax.value_and_grad(lambda params: loss(params)))(params)
    assert calls
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def asked(monkeypatch):
    """A stand-in for a GPU: what cuDNN is asked for, in the order of the calls; XLA computes it."""
    calls, attend = [], jax.nn.dot_product_attention

    def written_down(q, k, v, mask=None, *, implementation=None, **given):
        calls.append((implementation, given.get("is_causal"), given.get("key_value_seq_lengths") is not None))
        return attend(q, k, v, mask=mask, **given)

    monkeypatch.setattr(attending.primitives, "platform", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", written_down)
    return calls


@pytest.mark.parametrize(
    ("options", "beside", "expected"),
    [
        ({}, {}, (False, False)),
        ({"causal": True}, {}, (True, False)),  # what comes later is left to the kernel, which passes over it
        ({}, {"lengths": np.array([3, 0])}, (False, True)),
        ({"causal": True, "rotary": True}, {"lengths": np.array([3, 5])}, (True, True)),
    ],
)
def test_cudnn_is_asked_for_the_same_attention(asked, options, beside, expected):
    given = {"x": jnp.asarray(drawn(2, 5, 16), jnp.bfloat16), **beside}
    plain, fused = (layers.attention(2, **options, implementation=name) for name in ("xla", "cudnn"))
    params, state = fused.init(KEY, given)
    wanted, got = (layer.apply(params, state, given)[0]["x"] for layer in (plain, fused))
    assert [call[0] for call in asked] == [None, "cudnn"]
    assert asked[1][1:] == expected
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (got, wanted)), rtol=0.02, atol=0.02)


def test_cudnn_is_not_asked_for_attention_in_float32(asked):
    layer = layers.attention(2, implementation="cudnn")
    with pytest.raises(TypeError, match="expected float16 or bfloat16 for implementation='cudnn', got float32; wrap"):
        applied(layer, X)
    half, x = layers.mixed_precision(layer), drawn(2, 5, 16)
    params, state = half.init(KEY, x)
    half.apply(params, state, x)
    assert asked == [("cudnn", False, False)]


def test_a_transformer_in_mixed_precision_asks_cudnn_alone(asked):
    net = models.transformer(7, 16, heads=2, blocks=1, length=5, implementation="cudnn")
    tokens = jnp.zeros((2, 5), jnp.int32)
    model = layers.mixed_precision(net)
    params, state = model.init(KEY, tokens)
    asked.clear()  # in init, whose params are in float32, for the shape
    assert model.apply(params, state, tokens)[0].shape == (2, 5, 7)
    assert asked == [("cudnn", True, False)]
    with pytest.raises(TypeError, match="expected float16 or bfloat16 for implementation='cudnn', got float32; wrap"):
        net.apply(params, state, tokens)


def test_what_cudnn_has_not_is_refused_before_it_is_asked(asked):
    half = jnp.asarray(drawn(2, 5, 24), jnp.bfloat16)
    layer = layers.attention(2, implementation="cudnn")
    with pytest.raises(ValueError, match=r"expected a multiple of 8 up to 128 features a head .*, got 12; choose head"):
        applied(layer, half, half)
    wide, mask = layers.attention(2, head_features=16, implementation="cudnn"), np.ones((2, 5), bool)
    with pytest.raises(ValueError, match="expected lengths or nothing for implementation='cudnn', got mask; give len"):
        applied(wide, {"x": half, "mask": mask}, half)
    assert asked == []


def test_generation_is_not_asked_of_cudnn(asked):
    layer = layers.attention(2, causal=True, cache=8, implementation="cudnn")
    x = jnp.asarray(drawn(2, 5, 16), jnp.bfloat16)
    params, state = layer.init(KEY, x)
    layer.apply(params, state, x)
    layer.apply(params, state, x, training=True)
    assert [call[0] for call in asked] == [None, "cudnn"]


def test_a_transformer_hands_its_implementation_on():
    tokens = jnp.zeros((2, 5), jnp.int32)
    for kind in ("decoder", "encoder"):
        model = models.transformer(7, 8, heads=2, blocks=1, length=5, kind=kind, implementation="cudnn")
        with pytest.raises(ValueError, match="expected an NVIDIA GPU"):
            model.apply(*model.init(KEY, tokens), tokens)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_batch_on_an_explicit_mesh_is_what_it_is_on_one_device(groups):
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1])
    layer, x = layers.attention(4, key_value_heads=groups), drawn(2, 6, 8)
    params, state = layer.init(KEY, x)
    expected = layer.apply(params, state, x)[0]
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
        np.testing.assert_allclose(layer.apply(params, state, spread)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_context_of_another_dtype_is_refused(ours, theirs):
    x = {"x": jnp.ones((2, 3, 8), ours), "context": jnp.ones((2, 5, 8), theirs)}
    layer = layers.attention(2, cross=True)
    message = f"attention: expected x and the context of one dtype, got {ours} and {theirs}; cast one of them"
    with pytest.raises(TypeError, match=message):
        layer.init(KEY, x)
