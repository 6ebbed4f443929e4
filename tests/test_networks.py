"""``network``, ``condition``, ``repeat``, ``shared`` and ``ensemble``: what they compute, written out by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, training, trees
from funcnn.core import child_key
from funcnn.layers import repetition

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
BLOCK = layers.serial(layers.dense(6), layers.batch_norm(), layers.tanh, layers.dropout(0.3))


def close(found, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), found, expected)


def notes(error):
    return [note for note in getattr(error.value, "__notes__", []) if ": input" in note]


# ---- network ---------------------------------------------------------------------------------------------------------


def test_a_network_is_its_function():
    model = layers.network(
        lambda x, encoder, head: head(jnp.concatenate([encoder(x), x**2], axis=-1)) * encoder(-x),
        encoder=layers.dense(3),
        head=layers.dense(3),
    )
    params, state = model.init(KEY, X)
    y, _ = model.apply(params, state, X)
    dense = {name: lambda a, p=p: a @ p["kernel"] + p["bias"][None] for name, p in params.items()}
    close(y, dense["head"](jnp.concatenate([dense["encoder"](X), X**2], -1)) * dense["encoder"](-X))


@pytest.mark.slow
def test_a_network_of_layers_in_a_row_starts_as_serial():
    named = layers.serial(layers.named("a", layers.dense(4)), layers.named("b", layers.dense(2)))
    model = layers.network(lambda x, a, b: b(a(x)), a=layers.dense(4), b=layers.dense(2))
    close(model.init(KEY, X), named.init(KEY, X))


def test_a_child_called_twice_threads_its_state_and_draws_anew():
    norm = layers.batch_norm(momentum=0.5)
    model = layers.network(lambda x, norm: norm(norm(x) + 3), norm=norm)
    params, state = model.init(KEY, X)
    _, new = model.apply(params, state, X, training=True)
    once, middle = norm.apply(params["norm"], state["norm"], X, training=True)
    _, expected = norm.apply(params["norm"], middle, once + 3, training=True)
    close(new["norm"], expected)
    drawn = layers.network(lambda x, drop: (drop(x), drop(x)), drop=layers.dropout(0.5))
    first, second = drawn.apply({}, {}, jnp.ones((4, 50)), key=KEY, training=True)[0]
    assert not np.array_equal(first, second)


def test_init_computes_nothing_of_the_function():
    seen = []

    def forward(x, a):
        jax.debug.callback(lambda v: seen.append(v), x.sum())
        return a(jnp.log(x))  # of zeros: minus infinity

    model = layers.network(forward, a=layers.dense(3))
    with jax.debug_nans(True), jax.debug_infs(True):
        params, _ = model.init(KEY, jax.ShapeDtypeStruct((10**6, 4), jnp.float32))
    assert params["a"]["kernel"].shape == (4, 3)


def test_networks_in_networks_are_traced_once_at_each_level():
    calls = []

    def forward(x, inner):
        calls.append(1)
        return inner(x)

    model = layers.dense(6)
    for _ in range(8):
        model = layers.network(forward, inner=model)
    model.init(KEY, X)
    assert len(calls) <= 8 * 9 / 2 + 8  # once by itself, and once for the shape that each one around it asks for


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: layers.network(layers.relu),
            TypeError,
            "expected a function, got the layer relu; pass a function first",
        ),
        (
            lambda: layers.network(lambda x, a: x, b=layers.relu),
            TypeError,
            r"a function of x and of \['b'\], got missing",
        ),
        (
            lambda: layers.network(lambda x, a: x, a=jnp.tanh),
            TypeError,
            "expected a layer, got the function tanh; wrap it",
        ),
        (lambda: layers.network(lambda x, a: x, a=layers.dropout), TypeError, "got the factory dropout; call it"),
        (
            lambda: layers.network(lambda x, **children: x, **{"a/b": layers.relu}),
            ValueError,
            r"network: expected a name that is not empty and has no '/', got 'a/b'",
        ),
        (
            lambda: layers.network(lambda x, a: x, a=layers.relu).init(KEY, X),
            ValueError,
            r"expected every child to be called, got none for \['a'\]; call it, or leave it out",
        ),
        (
            lambda: layers.network(lambda x, a: a(x), a=layers.dense(2)).apply({}, {}, X),
            ValueError,
            r"dense: expected params with \['bias', 'kernel'\], got \[\]",
        ),
        (
            lambda: layers.network(lambda x, a: a(x), a=layers.dense(2)).apply({"b": {}}, {}, X),
            ValueError,
            r"network: expected params for \['a'\], got \['b'\] as well",
        ),
    ],
)
def test_what_a_network_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_errors_inside_a_network_name_the_path():
    inner = layers.network(lambda x, body: body(x), body=layers.serial(layers.dense(6), layers.dense(4)))
    model = layers.network(lambda x, first: first(x), first=inner)
    params, state = model.init(KEY, X)
    params["first"]["body"]["dense_1"]["kernel"] = jnp.ones((7, 4))
    with pytest.raises(ValueError, match="expected 7 input features") as error:
        model.apply(params, state, X)
    assert notes(error) == ["first / body / dense_1: input (5, 6)"]


# ---- condition -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_condition_takes_one_layer_and_leaves_the_other_as_it_was():
    model = layers.condition(lambda x: x[0, 0] > 0, BLOCK, layers.serial(layers.dense(6), layers.batch_norm()))
    params, state = model.init(KEY, X)
    for sign, taken, other in ((1, "on_true", "on_false"), (-1, "on_false", "on_true")):
        x = jnp.abs(X) * sign
        y, new = jax.jit(lambda x: model.apply(params, state, x, key=KEY, training=True))(x)
        child = dict(model.children)[taken]
        expected, changed = child.apply(params[taken], state[taken], x, key=child_key(KEY, taken), training=True)
        close((y, new[taken]), (expected, changed))
        close(new[other], state[other])


@pytest.mark.slow
def test_each_layer_of_a_condition_draws_by_its_own_name():
    model = layers.condition(lambda x: x[0, 0] > 0, layers.dropout(0.5), layers.dropout(0.5))
    for sign, taken in ((1.0, "on_true"), (-1.0, "on_false")):
        x = jnp.full((4, 50), sign)
        y, _ = model.apply({}, {}, x, key=KEY, training=True)
        expected, _ = layers.dropout(0.5).apply({}, {}, x, key=child_key(KEY, taken), training=True)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layers.condition(True, layers.relu, layers.relu), TypeError, "expected a function first, got bool"),
        (lambda: layers.condition(jnp.all, layers.relu, jnp.sin), TypeError, "got the function sin; wrap it"),
        (
            lambda: layers.condition(lambda x: x > 0, layers.relu, layers.relu).apply({}, {}, X),
            ValueError,
            r"a predicate that is one boolean, got bool\(5, 6\); reduce it",
        ),
        (
            lambda: layers.condition(lambda x: x.sum() > 0, layers.dense(3), layers.relu).init(KEY, X),
            ValueError,
            r"outputs of both layers alike, float32\(5, 3\), got float32\(5, 6\)",
        ),
        (
            lambda: layers.condition(lambda x: x.sum() > 0, layers.flatten, layers.relu).apply({}, {}, X[None]),
            ValueError,
            r"outputs of both layers alike, float32\(1, 30\), got float32\(1, 5, 6\)",
        ),
    ],
)
def test_what_a_condition_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- repeat, shared, ensemble ----------------------------------------------------------------------------------------


def by_layer(layer, n, params, state, x, key):
    """The layers of ``repeat`` one after the other, and their states."""
    states = []
    for i in range(n):
        p, s = (jax.tree.map(lambda a, i=i: a[i], tree) for tree in (params, state))
        x, new = layer.apply(p, s, x, key=jax.random.fold_in(key, i), training=True)
        states.append(new)
    return x, jax.tree.map(lambda *a: jnp.stack(a), *states)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_repeat_is_its_layers_one_after_the_other_with_gradients(remat):
    model = layers.repeat(BLOCK, 4, remat=remat)
    params, state = model.init(KEY, X)
    ours = jax.jit(lambda p: model.apply(p, state, X, key=KEY, training=True))
    inner = child_key(KEY, "serial_0")

    def theirs(p):
        return by_layer(BLOCK, 4, p["serial_0"], state["serial_0"], X, inner)

    (y, new), (expected, states) = ours(params), theirs(params)
    close((y, new["serial_0"]), (expected, states))
    slopes = [jax.jit(jax.grad(lambda p, f=f: jnp.sum(f(p)[0] ** 2)))(params) for f in (ours, theirs)]
    close(*slopes, rtol=1e-4)


def test_repeat_equals_serial_of_the_same_blocks():
    block = layers.residual(layers.layer_norm(), layers.dense(6), layers.tanh)
    deep, chain = layers.repeat(block, 3), layers.serial(*[block] * 3)
    params, state = deep.init(KEY, X)
    apart = {f"residual_{i}": jax.tree.map(lambda a, i=i: a[i], params["residual_0"]) for i in range(3)}
    close(deep.apply(params, state, X)[0], chain.apply(apart, {}, X)[0])
    firsts = [leaf[0] for leaf in jax.tree.leaves(params)], [leaf[1] for leaf in jax.tree.leaves(params)]
    assert any(not np.array_equal(a, b) for a, b in zip(*firsts, strict=True))  # weights of its own for each


@pytest.mark.parametrize("many", [layers.repeat, layers.ensemble])
def test_each_of_many_is_drawn_from_its_own_key(many):
    params, _ = many(layers.dense(6), 3).init(KEY, X)
    for i in range(3):
        expected, _ = layers.dense(6).init(jax.random.fold_in(child_key(KEY, "dense_0"), i), X)
        close(params["dense_0"]["kernel"][i], expected["kernel"], rtol=1e-6)


def test_layers_of_repeat_draw_each_from_its_own_key_while_training():
    drop, ones = layers.dropout(0.5), jnp.ones((4, 50))
    y, _ = layers.repeat(drop, 2).apply({}, {}, ones, key=KEY, training=True)
    expected = ones
    for i in range(2):
        key = jax.random.fold_in(child_key(KEY, "dropout_0"), i)
        expected, _ = drop.apply({}, {}, expected, key=key, training=True)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.slow
def test_repeat_keeps_memory_for_one_layer_where_it_computes_again():
    block = layers.serial(layers.dense(64), layers.tanh, layers.dense(64), layers.tanh, layers.dense(64), layers.tanh)
    x = jnp.ones((256, 64))

    def memory(remat):
        model = layers.repeat(block, 16, remat=remat)
        params, state = model.init(KEY, x)
        slope = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, state, x)[0])))
        return slope.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert memory(True) < 0.6 * memory(False)
    with pytest.raises(ValueError, match="repeat: expected unroll of 1 with remat, got 2; leave unroll out"):
        layers.repeat(block, 16, remat=True, unroll=2)


def test_repeat_is_one_loop_whatever_its_depth():
    def program(n):
        model = layers.repeat(BLOCK, n)
        specs = jax.eval_shape(lambda: model.init(KEY, X))
        slope = jax.grad(lambda p, s: jnp.sum(model.apply(p, s, X, key=KEY, training=True)[0]))
        return str(jax.make_jaxpr(slope)(*specs)).count(" = ")

    assert program(64) == program(4)


def test_the_layer_that_is_repeated_is_traced_once():
    """Also by a loop in a loop, which would trace it four times otherwise."""
    traced = []

    def counted(x):
        traced.append(x.shape)
        return jnp.tanh(x)

    block = layers.serial(layers.dense(6), layers.function(counted))
    model = layers.repeat(layers.repeat(block, 5), 6)
    specs = jax.eval_shape(lambda: model.init(KEY, X))
    traced.clear()
    jax.make_jaxpr(lambda p, s: model.apply(p, s, X)[0])(*specs)
    assert traced == [X.shape]


@pytest.mark.parametrize("unroll", [1, 2, 3, 7])
def test_layers_that_are_written_out_compute_the_same(unroll):
    block = layers.residual(layers.layer_norm(), layers.dense(6), layers.tanh)
    params, state = layers.repeat(block, 3).init(KEY, X)

    def loss(params, **options):
        return jnp.sum(layers.repeat(block, 3, **options).apply(params, state, X)[0] ** 2)

    close(*(jax.value_and_grad(lambda p, o=o: loss(p, **o))(params) for o in ({"unroll": unroll}, {"unroll": 1})))


def test_few_layers_are_written_out_on_a_cpu(monkeypatch):
    def together(n, **options):
        model = layers.repeat(layers.dense(6), n, **options)
        params, state = jax.eval_shape(model.init, KEY, X)
        text = str(jax.make_jaxpr(lambda p: model.apply(p, state, X)[0])(params))
        return int(re.search(r"unroll=(\d+)", text).group(1))

    assert [together(n) for n in (1, 4, 5, 300)] == [1, 4, 1, 1]
    assert together(4, remat=True) == 1
    assert (together(4, unroll=2), together(9, unroll=3), together(3, unroll=8)) == (2, 3, 3)
    monkeypatch.setattr(repetition.primitives, "platform", lambda: "gpu")
    assert together(4) == 1


def test_an_unroll_that_is_none_is_refused():
    with pytest.raises(ValueError, match="repeat: expected unroll of at least 1, got 0"):
        layers.repeat(layers.dense(6), 3, unroll=0)
    with pytest.raises(TypeError, match="unroll"):
        layers.repeat(layers.dense(6), 3, unroll=1.5)


def test_shared_is_the_same_layer_again():
    model = layers.shared(layers.serial(layers.dense(6), layers.tanh), 3)
    params, _ = model.init(KEY, X)
    p = params["serial_0"]["dense_0"]
    expected = X
    for _ in range(3):
        expected = jnp.tanh(expected @ p["kernel"] + p["bias"][None])
    close(model.apply(params, {}, X)[0], expected)


@pytest.mark.slow
def test_shared_threads_state_and_draws_anew():
    model = layers.shared(layers.serial(layers.batch_norm(momentum=0.5), layers.dropout(0.5)), 2)
    params, state = model.init(KEY, X)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(200, 6)), jnp.float32) + 1
    y, new = model.apply(params, state, x, key=KEY, training=True)
    assert not np.allclose(new["serial_0"]["batch_norm_0"]["mean"], 0.5 * x.mean(0))
    # What is dropped first is normalised and no zero any more; drawn twice alike, the two would meet.
    norm, drop = layers.batch_norm(momentum=0.5), layers.dropout(0.5)
    first = norm.apply(params["serial_0"]["batch_norm_0"], state["serial_0"]["batch_norm_0"], x, training=True)[0]
    inner = child_key(child_key(KEY, "serial_0"), "dropout_0")
    dropped = drop.apply({}, {}, first, key=inner, training=True)[0] == 0
    assert 0.4 < float((y == 0).mean()) < 0.6
    assert 0.15 < float(((y == 0) & dropped).mean()) < 0.35


@pytest.mark.slow
def test_an_ensemble_is_its_members_side_by_side():
    model = layers.ensemble(BLOCK, 3)
    params, state = model.init(KEY, X)
    y, new = model.apply(params, state, X, key=KEY, training=True)
    assert y.shape == (5, 3, 6)
    for i in range(3):
        p, s = (jax.tree.map(lambda a, i=i: a[i], tree["serial_0"]) for tree in (params, state))
        key = jax.random.fold_in(child_key(KEY, "serial_0"), i)
        expected, changed = BLOCK.apply(p, s, X, key=key, training=True)
        close((y[:, i], jax.tree.map(lambda a, i=i: a[i], new["serial_0"])), (expected, changed))


@pytest.mark.slow
def test_an_ensemble_is_trained_like_any_layer():
    mean = layers.function(lambda y: y.mean(axis=1))
    model = layers.serial(layers.ensemble(layers.serial(layers.dense(8), layers.tanh, layers.dense(1)), 4), mean)
    line = training.supervised(model, losses.squared_error, optax.adam(0.05))
    result = training.fit(line, (X, X[:, :1] ** 2), key=KEY, epochs=100, batch_size=None, progress=False)
    assert result.history["loss"][-1] < 0.1 * result.history["loss"][0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layers.repeat(layers.dense(6), 0), ValueError, "repeat: expected n of at least 1, got 0"),
        (lambda: layers.repeat(layers.dense, 2), TypeError, "got the factory dense; call it"),
        (lambda: layers.repeat(3, layers.dense(6)), TypeError, "repeat: expected n as a whole number, got Layer"),
        (
            lambda: layers.repeat(layers.dense(3), 2).init(KEY, X),
            ValueError,
            r"keeps shape and dtype, float32\(5, 6\), got float32\(5, 3\); make the last layer give what the first",
        ),
        (
            lambda: layers.repeat(layers.dense(6), 3).apply(layers.repeat(layers.dense(6), 2).init(KEY, X)[0], {}, X),
            ValueError,
            r"a leading axis of 3, got shape \(2, 6\)",
        ),
        (
            lambda: layers.repeat(layers.function(lambda x: x.astype(jnp.bfloat16)), 2).apply({}, {}, X),
            ValueError,
            r"keeps shape and dtype, float32\(5, 6\), got bfloat16\(5, 6\); make the last layer give",
        ),
        (lambda: layers.shared(layers.dense(3), 2).init(KEY, X), ValueError, "expected 6 input features"),
        (
            lambda: layers.ensemble(layers.dense(6), 3).apply(
                layers.ensemble(layers.dense(6), 2).init(KEY, X)[0], {}, X
            ),
            ValueError,
            r"ensemble: expected params and state with a leading axis of 3, got shape \(2, 6\)",
        ),
        (
            lambda: layers.ensemble(layers.residual(layers.dense(3)), 2).init(KEY, X),
            ValueError,
            r"residual: expected an output of the shape of the input, \(5, 6\), got \(5, 3\)",
        ),
        (
            lambda: layers.ensemble(layers.dense(6), 3).apply(layers.dense(6).init(KEY, X)[0], {}, X),
            ValueError,
            r"ensemble: expected params for \['dense_0'\], got \['bias', 'kernel'\] as well",
        ),
    ],
)
def test_what_repetition_refuses(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_paths_of_what_is_repeated_name_the_layer():
    model = layers.serial(layers.repeat(layers.serial(layers.dense(6), layers.dense(6)), 2))
    params, state = model.init(KEY, X)
    assert trees.paths(params)[0] == "repeat_0/serial_0/dense_0/bias"
    params["repeat_0"]["serial_0"]["dense_1"]["kernel"] = jnp.ones((2, 7, 6))
    with pytest.raises(ValueError, match="expected 7 input features") as error:
        jax.jit(model.apply)(params, state, X)
    assert notes(error) == ["repeat_0 / serial_0 / dense_1: input (5, 6)"]


# ---- add, multiply, split --------------------------------------------------------------------------------------------


def test_joining_and_splitting():
    two = layers.split(2)
    left, right = two.apply({}, {}, X)[0]
    close(layers.add().apply({}, {}, (left, right))[0], X[:, :3] + X[:, 3:])
    close(layers.multiply().apply({}, {}, (left, right))[0], X[:, :3] * X[:, 3:])
    close(layers.concatenate().apply({}, {}, (left, right))[0], X)
    close(jnp.concatenate(layers.split((1, 2, 3)).apply({}, {}, X)[0], -1), X)
    model = layers.add(layers.relu, layers.function(jnp.negative), layers.identity)
    close(model.apply({}, {}, X)[0], jax.nn.relu(X))


@pytest.mark.parametrize("join", [layers.add, layers.multiply])
def test_a_tuple_that_is_joined_hands_its_side_inputs_on(join):
    y, _ = layers.serial(layers.split(2), join()).apply({}, {}, {"x": X, "mask": jnp.arange(5)})
    assert {name: a.shape for name, a in y.items()} == {"mask": (5,), "x": (5, 3)}


@pytest.mark.parametrize("axis", [1, -2])
def test_an_axis_in_the_middle_is_split(axis):
    x = jnp.arange(60.0).reshape(5, 6, 2)
    for parts, ends in (((1, 2, 3), [1, 3]), (3, [2, 4])):
        found, _ = layers.split(parts, axis=axis).apply({}, {}, x)
        for a, b in zip(found, np.split(np.asarray(x), ends, 1), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.add(layers.dense(1), layers.identity).init(KEY, X), None),
        (
            lambda: layers.add().apply({}, {}, (X, X[:, :1])),
            r"add: expected outputs of one shape, got \[\(5, 6\), \(5, 1\)\]",
        ),
        (lambda: layers.multiply().apply({}, {}, X), r"multiply: expected a tuple of arrays, got \(5, 6\)"),
        (lambda: layers.split(4).init(KEY, X), r"split: expected an axis that 4 parts divide, got 6 in \(5, 6\)"),
        (lambda: layers.split((4, 3)).init(KEY, X), r"parts that are 6 together, got \[4, 3\], 7 together"),
        (lambda: layers.split(5, axis=0).init(KEY, X), r"an axis of each example, got axis 0 of shape \(5, 6\)"),
        (lambda: layers.split(5, axis=-2).init(KEY, X), r"an axis of each example, got axis -2 of shape \(5, 6\)"),
    ],
)
def test_what_joining_refuses(make, message):
    if message is None:
        params, state = make()
        with pytest.raises(ValueError, match="add: expected outputs of one shape"):
            layers.add(layers.dense(1), layers.identity).apply(params, state, X)
        return
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "got"),
    [
        (lambda x, f: f(x, x), "2"),
        (lambda x, f: f(), "0"),
    ],
)
def test_a_child_is_called_with_its_input_alone(call, got):
    model = layers.network(call, f=layers.dense(3))
    params, state = layers.network(lambda x, f: f(x), f=layers.dense(3)).init(KEY, X)
    message = f"network: expected one argument, the input, for the child f, got {got}; pass several inputs as one tup"
    for run in (lambda: model.init(KEY, X), lambda: model.apply(params, state, X)):
        with pytest.raises(TypeError, match=message):
            run()
    model = layers.network(lambda x, f: f(x, training=True), f=layers.dense(3))
    with pytest.raises(TypeError, match=r"^f\(\) got an unexpected keyword argument 'training'"):
        model.apply(params, state, X)


@pytest.mark.parametrize(
    ("forward", "got"),
    [
        (lambda x: x, "an unexpected keyword argument 'head'"),
        (lambda x, head, encoder: x, "missing a required argument: 'encoder'"),
    ],
)
def test_a_function_that_takes_other_children_is_refused_in_whole_sentences(forward, got):
    with pytest.raises(TypeError, match=rf"^network: expected a function of x and of \['head'\], got {got}; give its"):
        layers.network(forward, head=layers.relu)
