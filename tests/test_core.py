"""The contract: names, keys, specs, side inputs, and errors that say where."""

import gc
import weakref
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import core, layers

X = jnp.ones((5, 3))
NESTED = layers.serial(
    layers.named(
        "encoder",
        layers.serial(layers.residual(layers.dense(8), layers.relu, layers.dense(3)), layers.relu),
    ),
    layers.dense(2),
)


def notes(error):
    return getattr(error.value, "__notes__", [])


# ---- names ---------------------------------------------------------------------------------------------------------


def test_children_are_numbered_by_kind_and_have_an_entry_only_where_they_hold_something():
    model = layers.serial(layers.dense(4), layers.relu, layers.batch_norm(), layers.dense(4), layers.relu)
    assert [name for name, _ in model.children] == ["dense_0", "relu_0", "batch_norm_0", "dense_1", "relu_1"]
    params, state = model.init(jax.random.key(0), X)
    assert sorted(params) == ["batch_norm_0", "dense_0", "dense_1"]
    assert sorted(state) == ["batch_norm_0"]


def test_a_name_of_ones_own_is_part_of_the_path_and_takes_no_number():
    model = layers.serial(layers.named("stem", layers.dense(4)), layers.dense(4))
    params, _ = model.init(jax.random.key(0), X)
    assert sorted(params) == ["dense_0", "stem"]
    assert sorted(params["stem"]) == ["bias", "kernel"]


@pytest.mark.parametrize("name", ["", "a/b", "/"])
def test_a_name_that_could_not_stand_in_a_path_is_refused(name):
    with pytest.raises(ValueError, match=r"named: expected a name that is not empty and has no '/', got"):
        layers.named(name, layers.relu)


def test_a_name_must_be_a_string_and_differ_from_its_siblings():
    with pytest.raises(TypeError, match="named: expected a name, got int; pass a string"):
        layers.named(3, layers.relu)
    twin = layers.named("twin", layers.dense(2))
    with pytest.raises(ValueError, match="serial: expected different names, got 'twin' twice; give one another name"):
        layers.serial(twin, twin)
    with pytest.raises(ValueError, match="got 'dense_0' twice"):
        layers.parallel(layers.named("dense_0", layers.relu), layers.dense(2))


def test_print_draws_the_tree_of_layers():
    assert repr(NESTED).splitlines() == [
        "serial",
        "├── encoder: serial",
        "│   ├── residual_0",
        "│   │   ├── dense_0",
        "│   │   ├── relu_0",
        "│   │   └── dense_1",
        "│   └── relu_0",
        "└── dense_0",
    ]
    assert str(layers.relu) == "relu"
    assert repr(layers.named("head", layers.dense(2))) == "head: dense"


def test_the_jaxpr_carries_the_path_of_every_equation():
    params, state = NESTED.init(jax.random.key(0), X)
    jaxpr = jax.make_jaxpr(lambda p: NESTED.apply(p, state, X)[0])(params)
    scopes = {str(e.source_info.name_stack) for e in jaxpr.eqns if e.primitive.name == "dot_general"}
    assert scopes == {"encoder/residual_0/dense_0", "encoder/residual_0/dense_1", "dense_0"}
    text = jax.jit(lambda p: NESTED.apply(p, state, X)[0]).lower(params).compile().as_text()
    assert "encoder/residual_0/dense_1" in text


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_a_childs_key_depends_on_its_parents_and_its_name_alone():
    key = jax.random.key(3)
    model = layers.serial(layers.dense(4), layers.named("head", layers.dense(2)))
    params, _ = model.init(key, X)
    for name, child, x in (("dense_0", layers.dense(4), X), ("head", layers.dense(2), jnp.ones((5, 4)))):
        expected, _ = child.init(jax.random.fold_in(key, zlib.crc32(name.encode())), x)
        np.testing.assert_array_equal(params[name]["kernel"], expected["kernel"])


def test_an_inserted_layer_moves_nobodys_initialisation():
    key = jax.random.key(3)
    before, _ = layers.serial(layers.dense(3), layers.dense(3), layers.dense(2)).init(key, X)
    after, _ = layers.serial(
        layers.relu,
        layers.dense(3),
        layers.relu,
        layers.dropout(0.1),
        layers.batch_norm(),
        layers.dense(3),
        layers.dense(2),
    ).init(key, X)
    for name, tree in before.items():
        assert tree["kernel"].tobytes() == after[name]["kernel"].tobytes()
    kernels = [before[name]["kernel"] for name in ("dense_0", "dense_1")]
    assert not np.array_equal(*kernels)


def test_siblings_draw_independently_while_training():
    x = jnp.ones((4, 50))
    model = layers.parallel(layers.dropout(0.5), layers.dropout(0.5))
    (a, b), _ = model.apply({}, {}, x, key=jax.random.key(0), training=True)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"expected a JAX key, got int 0; pass jax\.random\.key\(0\)"),
        (None, r"expected a JAX key, got NoneType None; pass jax\.random\.key\(0\)"),
        (
            np.array([0, 7], np.uint32),
            r"expected a JAX key, got a raw array uint32\(2,\); .*, or jax\.random\.wrap_key_data",
        ),
        (jnp.array([0, 7], jnp.uint32), r"expected a JAX key, got a raw array uint32\(2,\)"),
        (
            jax.random.split(jax.random.key(0), 3),
            r"expected a JAX key, got an array of \(3,\) keys; use one of them, or",
        ),
    ],
)
def test_what_is_not_one_typed_key_is_refused_with_the_fix(key, message):
    for layer in (
        layers.dense(2),
        layers.relu,
        layers.identity,
        layers.serial(layers.dense(2)),
        layers.function(jnp.sin),
    ):
        with pytest.raises(TypeError, match=rf"{layer.kind}\.init: {message}"):
            layer.init(key, X)
    model = layers.serial(layers.dropout(0.5))
    if key is not None:
        with pytest.raises(TypeError, match=rf"serial\.apply: {message}"):
            model.apply({}, {}, X, key=key, training=True)
        with pytest.raises(TypeError, match=rf"dropout: {message}"):
            layers.dropout(0.5).apply({}, {}, X, key=key, training=True)


# ---- what is not a layer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (layers.dense, r"got the factory dense; call it: layers\.dense\(\.\.\.\)"),
        (layers.batch_norm, r"got the factory batch_norm; call it"),
        (jnp.tanh, r"got the function tanh; wrap it: layers\.function\(tanh\)"),
        (lambda x: x, r"got the function <lambda>; wrap it"),
        ([layers.relu, layers.relu], r"got list .*; unpack it: \*layers"),
        ((layers.relu.init, layers.relu.apply), r"got tuple .*; unpack it"),
        (None, r"got NoneType None; pass layers such as layers\.dense\(10\)"),
        (128, r"got int 128; pass layers such as"),
    ],
)
def test_what_is_not_a_layer_is_refused_with_the_fix(wrong, message):
    for factory in (layers.serial, layers.parallel, layers.residual, layers.concatenate):
        with pytest.raises(TypeError, match=rf"{factory.__name__}: expected a layer, {message}"):
            factory(layers.relu, wrong)
    with pytest.raises(TypeError, match=f"named: expected a layer, {message}"):
        layers.named("head", wrong)
    with pytest.raises(TypeError, match="expected a layer"):
        layers.residual(layers.relu, shortcut=128)


def test_a_layer_that_is_called_says_what_was_meant():
    with pytest.raises(
        TypeError, match=r"relu: a layer is a value and is not called, got relu\(\.\.\.\); write it without"
    ):
        layers.relu()
    with pytest.raises(TypeError, match=r"or layer\.apply\(params, state, x\) to compute"):
        layers.dense(3)(X)


# ---- errors that say where -----------------------------------------------------------------------------------------

PATH = "encoder / residual_0 / dense_1: input (5, 8)"


def broken():
    """Params whose innermost second kernel was made for other features: (7, 3) in place of (8, 3)."""
    params, state = NESTED.init(jax.random.key(0), X)
    params["encoder"]["residual_0"]["dense_1"]["kernel"] = jnp.ones((7, 3))
    return params, state


def total(params):
    return NESTED.apply(params, broken()[1], X)[0].sum()


TRANSFORMED = {
    "eager": total,
    "jit": jax.jit(total),
    "grad": jax.grad(total),
    "jvp": lambda p: jax.jvp(total, (p,), (p,)),
    "remat": jax.grad(jax.checkpoint(total)),
    "vmap": lambda p: jax.vmap(total, axis_size=2, in_axes=None)(p),
    "scan": lambda p: jax.lax.scan(lambda c, _: (c, total(p)), 0, None, length=2),
    "while": lambda p: jax.lax.while_loop(lambda c: c < 1.0, lambda c: c + total(p), 0.0),
    "jit(grad(scan))": jax.jit(
        jax.grad(lambda p: jax.lax.scan(lambda c, _: (c + total(p), None), 0.0, None, length=2)[0])
    ),
    "eval_shape": lambda p: jax.eval_shape(total, p),
}


@pytest.mark.parametrize("how", TRANSFORMED)
def test_an_error_names_the_path_both_shapes_and_the_fix(how):
    message = (
        r"^dense: expected 7 input features, as its kernel \(7, 3\) has, got 8 in an input of shape \(5, 8\); "
        r"pass inputs of the shape that init was given, or init again\n"
    )
    with pytest.raises(ValueError, match=message) as error:
        TRANSFORMED[how](broken()[0])
    assert [note for note in notes(error) if "input (" in note] == [PATH]


def test_an_error_in_init_names_the_path_too_and_keeps_its_type():
    def fail(x):
        raise KeyError("mine")

    model = layers.serial(layers.dense(3), layers.named("middle", layers.parallel(layers.relu, layers.function(fail))))
    with pytest.raises(KeyError, match="mine") as error:
        model.init(jax.random.key(0), X)
    assert "middle / function_0: input (5, 3)" in notes(error)


def test_the_note_shows_the_shapes_of_a_tree():
    model = layers.serial(layers.embedding(4, 3))
    with pytest.raises(TypeError, match="embedding: expected whole numbers") as error:
        model.init(jax.random.key(0), {"x": X, "mask": jnp.ones(5)})
    assert "embedding_0: input {'mask': (5,), 'x': (5, 3)}" in notes(error)


@pytest.mark.parametrize("what", ["params", "state"])
def test_params_or_state_of_another_model_are_refused(what):
    model = layers.serial(layers.dense(2), layers.batch_norm())
    given = dict(zip(("params", "state"), model.init(jax.random.key(0), X), strict=True))
    wrong = {**given, what: {**given[what], "dense_7": {}}}
    with pytest.raises(
        ValueError, match=rf"serial: expected {what} for \['batch_norm_0', 'dense_0'\], got \['dense_7'\] as well"
    ):
        model.apply(wrong["params"], wrong["state"], X)
    with pytest.raises(TypeError, match=rf"serial: expected {what} as a dict, got list; pass what init returned"):
        model.apply(*{**given, what: []}.values(), X)


def test_a_layer_of_one_array_refuses_params_and_state_that_it_did_not_make():
    params, state = layers.dense(2).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"dense: expected no state, got \['index'\]; pass the state that init"):
        layers.dense(2).apply(params, {"index": jnp.zeros(())}, X)
    with pytest.raises(ValueError, match=r"dense: expected params with \['bias', 'kernel'\], got \['kernel'\]; pass"):
        layers.dense(2).apply({"kernel": params["kernel"]}, state, X)
    with pytest.raises(ValueError, match=r"sinusoidal_positions: expected state with \['index'\], got \[\]; pass the"):
        layers.sinusoidal_positions(cache=True).apply({}, {}, X[None, :, :2])


# ---- specs, side inputs --------------------------------------------------------------------------------------------


def test_the_spec_has_the_dtypes_that_jax_computes_in():
    given = {"a": np.ones((2, 3)), "b": 1, "c": jax.random.key(0), "d": np.arange(2)}
    found = core.spec(given)
    assert {k: (s.shape, str(s.dtype)) for k, s in found.items()} == {
        "a": ((2, 3), "float32"),
        "b": ((), "int32"),
        "c": ((), "key<fry>"),
        "d": ((2,), "int32"),
    }


def test_an_array_layer_refuses_a_tuple_and_says_what_to_do():
    with pytest.raises(
        TypeError, match=r"relu: expected one array, got a tuple of shapes \(\(5, 3\), \(5, 3\)\); send each"
    ):
        layers.relu.apply({}, {}, (X, X))


def test_side_inputs_pass_a_whole_model():
    model = layers.serial(
        layers.dense(3),
        layers.residual(layers.dense(3)),
        layers.concatenate(layers.relu, layers.identity),
        layers.flatten,
    )
    given = {"x": X, "lengths": jnp.arange(5)}
    params, state = model.init(jax.random.key(0), given)
    y, _ = model.apply(params, state, given)
    assert sorted(y) == ["lengths", "x"]
    np.testing.assert_array_equal(y["lengths"], given["lengths"])
    np.testing.assert_array_equal(y["x"], model.apply(params, state, X)[0])


# ---- layers that users write -----------------------------------------------------------------------------------------


def of_apply(apply, name=None):
    return core.Layer(lambda key, x: ({}, {}), apply, "mine", name)


@pytest.mark.parametrize(
    ("apply", "got"),
    [
        (lambda params, state, x, **options: x, r"an array of shape \(5, 3\)"),
        (lambda params, state, x, **options: [x, state], "a list"),
        (lambda params, state, x, **options: (x, x), "a tuple of .*"),
        (lambda params, state, x, **options: (x, state, x), "a tuple of .*, dict, .*"),
        (lambda params, state, x, **options: None, "a NoneType"),
    ],
)
@pytest.mark.parametrize("rows", [2, 5])  # an array of two rows can be taken apart as if it were a pair
def test_an_apply_that_gives_no_pair_is_named(apply, got, rows):
    x = jnp.ones((rows, 3))
    model = layers.serial(layers.relu, of_apply(apply, "own"))
    got = got.replace("5", str(rows))
    message = rf"mine: expected \(y, state\) from apply of own, got {got}; return both, the state as a dict: {{}} where"
    for call in (lambda: model.init(jax.random.key(0), x), lambda: model.apply({}, {}, x)):
        with pytest.raises(TypeError, match=message) as error:
            call()
        assert f"own: input ({rows}, 3)" in error.value.__notes__


@pytest.mark.parametrize(
    "layer",
    [
        of_apply(lambda params, state, x, **options: (x, state))._replace(kind="a/b"),
        of_apply(lambda params, state, x, **options: (x, state), "a/b"),
        of_apply(lambda params, state, x, **options: (x, state))._replace(kind=""),
    ],
)
def test_a_name_that_is_no_name_in_a_path_is_refused(layer):
    for make in (layers.serial, layers.parallel, layers.residual, lambda layer: layers.repeat(layer, 2)):
        with pytest.raises(ValueError, match=r"expected a name that is not empty and has no '/', got '(a/b)?'; '/' s"):
            make(layer)


def test_the_output_of_a_layer_is_traced_once_for_the_same_shapes():
    calls = []

    def apply(params, state, x, *, key=None, training=False):
        calls.append(x.shape)
        return x, state

    layer = core.Layer(lambda key, x: ({}, {}), apply, "own")
    model = layers.serial(layer, layers.dense(2))
    for _ in range(3):
        model.init(jax.random.key(0), X)
    assert calls == [(5, 3)]
    model.init(jax.random.key(0), jnp.ones((5, 4)))
    assert calls == [(5, 3), (5, 4)]


def test_what_was_traced_for_shapes_is_not_what_runs():
    asked = []

    class Own:  # a callable without a hash
        __hash__ = None

        def __call__(self, params, state, x, *, key=None, training=False):
            return apply(params, state, x)

    def apply(params, state, x, *, key=None, training=False):
        asked.append(core.asks_for_shapes_alone())
        return x, state

    for of in (apply, Own()):
        asked.clear()
        layer = core.Layer(lambda key, x: ({}, {}), of, "own")
        layers.serial(layer, layers.dense(2)).init(jax.random.key(0), X)
        assert asked == [True]
        jax.make_jaxpr(lambda *given, of=of: of(*given))({}, {}, X)
        if of is apply:
            jax.jit(of)({}, {}, X)
        assert set(asked[1:]) == {False}


def test_a_layer_that_is_gone_is_kept_nowhere():
    layer = core.Layer(lambda key, x: ({}, {}), lambda params, state, x, *, key=None, training=False: (x, state), "own")
    seen = weakref.ref(layer.apply)
    layers.serial(layer, layers.dense(2)).init(jax.random.key(0), X)
    del layer
    gc.collect()
    assert seen() is None


def test_a_layer_that_failed_is_asked_again():
    works = []

    def apply(params, state, x, *, key=None, training=False):
        if not works:
            raise RuntimeError("not yet")
        return x, state

    model = layers.serial(core.Layer(lambda key, x: ({}, {}), apply, "own"), layers.dense(2))
    with pytest.raises(RuntimeError, match="not yet"):
        model.init(jax.random.key(0), X)
    works.append(True)
    params, _ = model.init(jax.random.key(0), X)
    assert sorted(params) == ["dense_0"]
