"""Every law over the whole catalogue: what is true of one layer is true of all, or its row says why not."""

import inspect
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import GIVES_A_TUPLE, LAYERS, LayerRow

from funcnn import layers
from funcnn.core import Layer

KEY = jax.random.key(7)
HALVES = {"bfloat16": 4e-2, "float16": 6e-3}  # dtype: distance from the result in float32


@pytest.fixture
def quickly_compiled() -> Iterator[None]:
    """For laws that hold before XLA optimizes, of derivatives, transformations, precision: it takes a third less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# One of each sort every day; over all the others the laws that compile much are held by ``pytest -m slow``.
SAMPLE = {
    *("dense", "conv", "batch_norm", "dropout", "repeat", "mixed_precision", "recurrent"),
}


def over(rows: list[LayerRow], *, every_day: bool = False, half: bool = False, plain: bool = False) -> Any:
    """Of a law that takes long, ``half``: every second row, ``plain``: the further rows of a layer are long tests."""
    marks = {row.name: [] if every_day or row.name in SAMPLE else [pytest.mark.slow] for row in rows}
    for row in rows[1::2] if half else ():
        marks[row.name] = [*marks[row.name], *([] if row.name in SAMPLE else [pytest.mark.long])]
    for row in rows if plain else ():
        if row.name != row.factory in marks and row.name not in SAMPLE:
            marks[row.name] = [*marks[row.name], pytest.mark.long]
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=marks[row.name]) for row in rows])


MADE: dict[Any, tuple[Layer, Any, Any]] = {}


def made(row: LayerRow, x: Any) -> tuple[Layer, Any, Any]:
    """The layer of a row, with its first params and state; made once for each kind of input: nothing changes them."""
    place = (row.name, x.shape, str(x.dtype), jax.config.jax_enable_x64)
    if place not in MADE:
        layer = row.layer()
        MADE[place] = (layer, *layer.init(jax.random.key(7), x))
    return MADE[place]


def names(tree: Any) -> list[str]:
    return [path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def same_bytes(a: Any, b: Any) -> None:
    chex.assert_trees_all_equal_structs(a, b)
    assert [np.asarray(u).tobytes() for u in jax.tree.leaves(a)] == [
        np.asarray(v).tobytes() for v in jax.tree.leaves(b)
    ]


# ---- init ----------------------------------------------------------------------------------------------------------


def test_every_layer_is_in_the_catalogue() -> None:
    assert {row.factory for row in LAYERS} == set(layers.__all__) - {"merged"}  # a function of params
    assert len({row.name for row in LAYERS}) == len(LAYERS)


@over(LAYERS, every_day=True)
def test_it_keeps_to_the_contract(row: LayerRow) -> None:
    layer = row.layer()
    init = inspect.signature(layer.init).parameters
    apply = inspect.signature(layer.apply).parameters
    assert list(init) == ["key", "x"]
    assert list(apply) == ["params", "state", "x", "key", "training"]
    assert [(p.kind.name, p.default) for p in list(apply.values())[3:]] == [
        ("KEYWORD_ONLY", None),
        ("KEYWORD_ONLY", False),
    ]
    assert layer.kind == (row.inside or row.factory) or row.factory == "named"


@over([row for row in LAYERS if row.name == row.factory])
def test_its_docstring_says_what_it_holds(row: LayerRow) -> None:
    layer, params, state = made(row, row.input())
    if not layer.children and not row.inside and row.factory != "named":
        assert sorted(names((params, state))) == sorted(row.entries)
    public = getattr(layers, row.factory)
    text = inspect.getdoc(
        public if callable(public) and not isinstance(public, Layer) else inspect.getmodule(public.apply)
    )
    assert text is not None
    for entry in row.entries:
        assert f"``{entry}" in text
    if not isinstance(public, Layer):
        for part in ("Shapes:", "Example:", "Reference:", "Formula:"):
            assert part in text
        for argument in inspect.signature(public).parameters:
            assert re.search(rf"Args:.* \**{argument}: ", text, re.DOTALL)


@over(LAYERS)
def test_one_key_gives_one_tree_and_another_key_another(row: LayerRow) -> None:
    layer, x = row.layer(), row.input()
    first, again = layer.init(jax.random.key(7), x), layer.init(jax.random.key(7), x)
    same_bytes(first, again)
    other = layer.init(jax.random.key(8), x)
    chex.assert_trees_all_equal_structs(first, other)
    differs = any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))
    assert differs == row.draws


@over(LAYERS, every_day=True)
def test_params_and_state_that_would_be_broadcast_are_refused(row: LayerRow) -> None:
    x = row.input()
    layer, *trees = made(row, x)
    leaves, structure = jax.tree.flatten(trees)
    for i, leaf in enumerate(leaves):
        if leaf.size > 1:
            one = leaf[tuple(slice(1) for _ in leaf.shape)]
            params, state = jax.tree.unflatten(structure, [*leaves[:i], one, *leaves[i + 1 :]])
            with pytest.raises((ValueError, TypeError), match="expected"):
                layer.apply(params, state, x)


@over(LAYERS)
def test_init_reads_shapes_and_dtypes_only(row: LayerRow) -> None:
    layer, x = row.layer(), row.input()
    expected = layer.init(KEY, x)
    same_bytes(layer.init(KEY, jax.ShapeDtypeStruct(x.shape, x.dtype)), expected)
    same_bytes(layer.init(KEY, np.full_like(x, 99 if row.count else np.nan)), expected)
    same_bytes(layer.init(KEY, jnp.asarray(x)), expected)


@pytest.mark.slow
@over(LAYERS, half=True)
def test_init_is_the_same_program_compiled_and_mapped(row: LayerRow) -> None:
    layer, x = row.layer(), jnp.asarray(row.input())
    expected = layer.init(KEY, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(layer.init, KEY, x), expected)
    keys = jnp.stack([jax.random.key(8), KEY])
    both = jax.jit(lambda key, keys, x: (layer.init(key, x), jax.vmap(layer.init, in_axes=(0, None))(keys, x)))
    compiled, mapped = both(KEY, keys, x)
    chex.assert_trees_all_close(compiled, expected, rtol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[1], mapped), expected, rtol=1e-6)


# ---- apply ---------------------------------------------------------------------------------------------------------


@over(LAYERS, half=True)
def test_compiled_equals_eager_and_traces_once(row: LayerRow) -> None:
    """At rest and training in one program: most layers compute the same in both, which is compiled once."""
    x = jnp.asarray(row.input())
    layer, params, state = made(row, x)

    def both(p: Any, s: Any, x: Any, key: Any) -> Any:
        return [layer.apply(p, s, x, key=key, training=training) for training in (False, True)]

    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(both, n=1))
    eager = both(params, state, x, KEY)
    chex.assert_trees_all_close(compiled(params, state, x, KEY), eager, rtol=2e-6, atol=1e-6)
    compiled(params, state, jnp.asarray(row.input(seed=1)), jax.random.key(9))
    specs = jax.eval_shape(lambda p, s, x: both(p, s, x, KEY), params, state, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(specs, eager)
    for y, new in eager:
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        if not row.ignores_input:
            assert all(leaf.shape[0] == x.shape[0] for leaf in jax.tree.leaves(y))
    same_bytes(eager[0][1], state)


@over(LAYERS)
def test_each_example_stands_for_itself(row: LayerRow) -> None:
    x = jnp.asarray(row.input())
    layer, params, state = made(row, x)
    if row.ignores_input:
        same_bytes(layer.apply(params, state, x)[0], layer.apply(params, state, x[:1])[0])
        return
    alone = jax.jit(jax.vmap(lambda a: jax.tree.map(lambda y: y[0], layer.apply(params, state, a[None])[0])))(x)
    chex.assert_trees_all_close(alone, layer.apply(params, state, x)[0], rtol=2e-6, atol=1e-6)


@over([row for row in LAYERS if not row.ignores_input])
def test_only_the_rows_that_say_so_look_across_the_batch(row: LayerRow) -> None:
    x = jnp.asarray(row.input())
    layer, params, state = made(row, x)
    others = x.at[1:].set(jnp.asarray(row.input(seed=1))[1:])
    first, second = (layer.apply(params, state, a, key=KEY, training=True)[0] for a in (x, others))
    equal = [
        bool(jnp.allclose(a[0], b[0], rtol=1e-5)) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True)
    ]
    assert all(equal) != row.looks_across_batch


@over(LAYERS)
def test_not_training_needs_no_key_and_draws_nothing(row: LayerRow) -> None:
    layer, params, state = made(row, row.input())
    x = jnp.asarray(row.input())
    expected = layer.apply(params, state, x)
    same_bytes(layer.apply(params, state, x), expected)
    same_bytes(layer.apply(params, state, x, key=jax.random.key(1)), expected)


@over(LAYERS)
def test_training_draws_from_the_key_alone(row: LayerRow) -> None:
    layer, params, state = made(row, row.input())
    x = jnp.asarray(row.input())
    first, again, other = (layer.apply(params, state, x, key=jax.random.key(i), training=True) for i in (1, 1, 2))
    same_bytes(first, again)
    equal = all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))
    assert equal != row.needs_key
    if not row.needs_key:
        same_bytes(layer.apply(params, state, x, training=True), first)
        return
    with pytest.raises(TypeError, match=r"\w+: expected a key when training, got None; pass key=jax\.random\.key"):
        layer.apply(params, state, x, training=True)


@over(LAYERS)
def test_nothing_that_is_given_changes(row: LayerRow) -> None:
    x = row.input()
    layer, params, state = made(row, x)
    given = jax.tree.map(np.array, (params, state, x))
    before = [leaf.tobytes() for leaf in jax.tree.leaves(given)]
    y, new = layer.apply(*given, key=KEY, training=True)
    layer.init(KEY, given[2])
    assert [leaf.tobytes() for leaf in jax.tree.leaves(given)] == before
    expected = layer.apply(params, state, jnp.asarray(x), key=KEY, training=True)
    same_bytes((y, new), expected)
    chex.assert_trees_all_equal_shapes_and_dtypes((y, new), expected)


@over([row for row in LAYERS if row.except_from("side_inputs") in (None, GIVES_A_TUPLE)])
def test_side_inputs_are_handed_on(row: LayerRow) -> None:
    x, other = jnp.asarray(row.input()), np.array([True, False])
    layer = row.layer()
    given = {"other": other, "x": x}
    params, state = layer.init(KEY, given)
    same_bytes((params, state), layer.init(KEY, x))
    y, new = layer.apply(params, state, given, key=KEY, training=True)
    plain, plain_new = layer.apply(params, state, x, key=KEY, training=True)
    same_bytes(new, plain_new)
    assert list(given) == ["other", "x"]
    if row.except_from("side_inputs"):
        same_bytes(tuple(output["x"] for output in y), plain)
        return
    same_bytes(y["x"], plain)
    np.testing.assert_array_equal(y["other"], other)
    with pytest.raises(ValueError, match=r"expected the features under 'x', got a dict with \['other'\]; rename"):
        layer.apply(params, state, {"other": other}, key=KEY) if row.factory != "identity" else layers.relu.init(
            KEY, {"other": other}
        )


@over([row for row in LAYERS if not row.integers and row.count is None and row.factory != "embedding"])
def test_whole_numbers_are_refused_with_the_fix(row: LayerRow) -> None:
    pixels = np.ones(row.shape, np.uint8)
    layer, params, state = made(row, row.input())
    attempts = [lambda: layers.serial(layer).init(KEY, pixels), lambda: layer.apply(params, state, pixels)]
    if params:
        attempts.append(lambda: layer.init(KEY, pixels))
    for attempt in attempts:
        with pytest.raises(
            TypeError,
            match=r"\w+: expected a floating input, got uint8\(.*\); (convert it: x\.astype|embed the tokens)",
        ):
            attempt()


@over([row for row in LAYERS if row.integers and not row.ignores_input and row.factory != "function"], every_day=True)
def test_whole_numbers_stay_whole(row: LayerRow) -> None:
    pixels = np.ones(row.shape, np.uint8)
    layer = row.layer()
    y, _ = layer.apply(*layer.init(KEY, pixels), pixels)
    assert {leaf.dtype for leaf in jax.tree.leaves(y)} == {jnp.dtype("uint8")}


# ---- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
@over([row for row in LAYERS if not row.except_from("derivatives")], half=True)
def test_derivatives_match_finite_differences(row: LayerRow) -> None:
    """Forward, reverse, and the second in both orders, along one random direction of params and input, in float64."""
    with jax.enable_x64(True):
        given = row.input(np.float64)
        layer, params, state = made(row, given)
        assert row.count is not None or {a.dtype for a in jax.tree.leaves((params, state))} <= {jnp.dtype("float64")}
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        rng = np.random.default_rng(5)
        direction, x_direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), (params, given))

        def along(t: Any) -> Any:
            moved = jax.tree.map(lambda p, d: p + t * d, params, direction)
            x = given if row.count is not None else given + t * x_direction
            out = jax.tree.leaves(layer.apply(moved, state, x, key=jax.random.key(3), training=True))
            assert {a.dtype for a in out} == {jnp.dtype("float64")}
            return sum(jnp.sum(jnp.sin(a + jnp.arange(a.size).reshape(a.shape))) for a in out)

        @jax.jit
        def derivatives(t: Any) -> Any:
            reverse = jax.grad(along)
            forward_over_reverse = jax.jvp(reverse, (t,), (1.0,))[1]
            return along(t), reverse(t), jax.jvp(along, (t,), (1.0,))[1], forward_over_reverse, jax.grad(reverse)(t)

        h = 1e-5
        (before, slope_before, *_), (_, *found), (after, slope_after, *_) = (derivatives(t) for t in (-h, 0.0, h))
        slope, curvature = (after - before) / (2 * h), (slope_after - slope_before) / (2 * h)
        np.testing.assert_allclose(found, [slope, slope, curvature, curvature], rtol=1e-7, atol=1e-8)


@pytest.mark.usefixtures("quickly_compiled")
@over([row for row in LAYERS if row.count is None], plain=True)
def test_derivatives_are_finite_where_functions_have_corners_or_saturate(row: LayerRow) -> None:
    layer, params, state = made(row, row.input())

    @jax.jit
    def derivatives(x: Any) -> Any:
        def total(px: Any) -> Any:
            y, new = layer.apply(px[0], state, px[1], key=KEY, training=True)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((y, new)))

        gradient = jax.grad(total)
        return gradient((params, x)), jax.jvp(gradient, ((params, x),), ((params, x),))[1]

    for value in (0.0, 1.0, 30.0, -30.0):
        chex.assert_tree_all_finite(derivatives(jnp.full(row.shape, value)))


# ---- precision -----------------------------------------------------------------------------------------------------


def outcome(row: LayerRow, x: Any) -> Any:
    """Params and state, and what ``apply`` makes of them while training, from a key."""
    layer = row.layer()
    params, state = layer.init(KEY, x)
    return (params, state), layer.apply(params, state, x, key=KEY, training=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@over([row for row in LAYERS if row.count is None], every_day=True)
def test_the_dtype_of_the_input_is_kept(row: LayerRow, dtype: str) -> None:
    weights, (y, new) = jax.eval_shape(lambda x: outcome(row, x), jax.ShapeDtypeStruct(row.shape, dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(y)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves((weights, new))} <= {jnp.dtype("float32")}


@over([row for row in LAYERS if row.count is None], every_day=True)
def test_float32_stays_float32_under_x64(row: LayerRow) -> None:
    with jax.enable_x64(True):
        found = jax.eval_shape(lambda x: outcome(row, x), jax.ShapeDtypeStruct(row.shape, np.float32))
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@over([row for row in LAYERS if row.count is None], plain=True)
def test_sixteen_bits_come_near_to_thirty_two(row: LayerRow, dtype: str) -> None:
    layer, params, state = made(row, jax.ShapeDtypeStruct(row.shape, dtype))
    x = jnp.asarray(row.input(), dtype)

    @jax.jit
    def outputs(params: Any, x: Any) -> Any:
        return layer.apply(params, state, x, key=KEY, training=True)[0]

    y = jax.tree.map(lambda a: a.astype(jnp.float32), outputs(params, x))
    plain, _ = layer.apply(params, state, x.astype(jnp.float32), key=KEY, training=True)
    chex.assert_trees_all_close(y, plain, rtol=HALVES[dtype], atol=HALVES[dtype])


# ---- transformations -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
@over([row for row in LAYERS if row.hyper is not None])
def test_a_numeric_hyperparameter_may_be_traced_mapped_and_differentiated(row: LayerRow) -> None:
    assert row.hyper is not None
    factory, value = row.hyper
    x = jnp.asarray(row.input())

    def outputs(h: Any) -> Any:
        layer = factory(h)
        return layer.apply(*layer.init(KEY, x), x, key=KEY, training=True)

    def total(h: Any) -> Any:
        return sum(jnp.sum(jnp.square(a)) for a in jax.tree.leaves(outputs(h)))

    known = jnp.asarray(value, jnp.float32)  # closed over inside a trace, where nothing may be asked of it
    # One program: most of the time goes into compiling.
    all_of_it = jax.jit(
        lambda h, pair: (outputs(value), outputs(h), outputs(known), jax.vmap(outputs)(pair), jax.grad(total)(h))
    )
    expected, traced, closed_over, mapped, slope = all_of_it(value, jnp.array([value / 2, value]))
    chex.assert_trees_all_close(traced, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(closed_over, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[1], mapped), expected, rtol=1e-5, atol=1e-6)
    assert any(not np.allclose(a[0], a[1]) for a in jax.tree.leaves(mapped))
    assert np.isfinite(slope)
    with jax.enable_x64(True):
        for leaf in jax.tree.leaves(jax.eval_shape(outputs, jnp.float64(value))):
            assert leaf.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
@over(LAYERS, half=True)
def test_a_scan_equals_the_loop_with_keys_used_once_and_no_leaks(row: LayerRow) -> None:
    """The gradient inside goes through remat too."""
    x = jnp.asarray(row.input())
    with jax.checking_leaks(), jax.debug_key_reuse(True):
        layer = row.layer()

        def step(params: Any, state: Any, key: Any) -> Any:
            def total(params: Any) -> Any:
                y, new = jax.checkpoint(lambda p: layer.apply(p, state, x, key=key, training=True))(params)
                return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(y)), (y, new)

            gradient, (y, new) = jax.grad(total, has_aux=True)(params)
            return new, (y, gradient)

        def whole(init_key: Any, key: Any) -> Any:
            params, state = layer.init(init_key, x)
            return params, state, jax.lax.scan(partial(step, params), state, jax.random.split(key, 3))

        params, state, (final, (scanned, gradients)) = jax.jit(whole)(jax.random.key(7), jax.random.key(5))
    looped = []
    for key in jax.random.split(jax.random.key(5), 3):
        y, state = layer.apply(params, state, x, key=key, training=True)
        looped.append(y)
    chex.assert_trees_all_close(final, state, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(scanned, jax.tree.map(lambda *a: jnp.stack(a), *looped), rtol=1e-5, atol=1e-6)
    chex.assert_tree_all_finite(gradients)
