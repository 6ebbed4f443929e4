"""Graphs of functions: every value is what eager JAX computes, every gradient what ``jax.grad`` gives for a nudge."""

import functools
import json
import math
import xml.etree.ElementTree as ElementTree

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quickly_compiled

from funcnn import inspection, layers, losses, models
from funcnn.inspection import graph
from funcnn.inspection.equations import computed
from funcnn.inspection.slots import ARGUMENT, OUTPUT


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@quickly_compiled()
def nudged(found, args):
    """The gradient of the output by each slot, as ``jax.grad`` gives it for a number that is added there.

    This walks the same operations, and leaves the derivative of all of them to JAX.
    """
    arguments = [jnp.asarray(leaf) for leaf in jax.tree.leaves(args)]
    nudges = {
        node.index: jnp.zeros_like(node.value)
        for node in found
        if not isinstance(node.value, tuple) and jnp.issubdtype(node.value.dtype, jnp.inexact)
    }

    def output(nudges):
        values, given = [], iter(arguments)
        for i, slot in enumerate(found.program.slots):
            if slot.equation is not None:
                outputs = computed(slot.equation, [values[k] for k in slot.inputs])
                value = outputs[0] if len(outputs) == 1 else tuple(outputs)
            elif slot.operation == OUTPUT:
                value = values[slot.inputs[0]][slot.output]
            else:
                value = next(given) if slot.operation == ARGUMENT else jnp.asarray(slot.value)
            values.append(value + nudges[i] if i in nudges else value)
        return values[found.output.index]

    return jax.jit(jax.grad(output))(nudges)


def expect_gradients(found, args, tolerance=1e-6):
    wanted = jax.device_get(nudged(found, args))
    assert wanted
    for node in found:
        if node.index in wanted:
            scale = tolerance * max(1.0, float(np.abs(wanted[node.index]).max(initial=0.0)))
            np.testing.assert_allclose(node.gradient, wanted[node.index], rtol=0, atol=scale, err_msg=node.label)
    expect_sums(found)


def expect_sums(found):
    """The gradient of a node is the sum of what was sent to it, and of what the output begins with."""
    sums = {node: jax.tree.map(np.zeros_like, node.gradient) for node in found}
    for node, cotangent in zip(found.outputs, found.cotangents, strict=True):
        if cotangent is not None:
            sums[node] = sums[node] + np.asarray(cotangent)
    for node in found:
        for given, sent in zip(node.inputs, node.sent, strict=True):
            if sent is not None and node.operation != OUTPUT:
                sums[given] = sums[given] + np.asarray(sent)
    for node in found:
        if not isinstance(node.value, tuple) and node.gradient is not None:
            np.testing.assert_allclose(node.gradient, sums[node], rtol=1e-12, atol=1e-12)


# ---- by hand ---------------------------------------------------------------------------------------------------------


def neuron(x1, x2, w1, w2, b):
    return jnp.tanh(inspection.name(x1 * w1 + x2 * w2 + b, "n"))


NEURON = 2.0, 0.0, -3.0, 1.0, 4.0


def test_the_neuron_of_micrograd_in_elixir():
    """tanh(-2); the slope of tanh is 1 - tanh**2, and that of n by each of its inputs is the other factor."""
    found = graph(neuron, *NEURON)
    assert math.isclose(found.output.value.item(), -0.9640275800758168, rel_tol=1e-15)
    slope = 1 - math.tanh(-2) ** 2
    by_hand = {"x1": -3 * slope, "x2": 1 * slope, "w1": 2 * slope, "w2": 0.0, "b": slope, "n": slope}
    for name, wanted in by_hand.items():
        assert math.isclose(found[name].gradient.item(), wanted, rel_tol=1e-14, abs_tol=1e-16), name
    of_n = graph(lambda x1, x2, w1, w2, b: x1 * w1 + x2 * w2 + b, *NEURON)
    assert [of_n[name].gradient.item() for name in ("x1", "w1", "x2", "w2")] == [-3.0, 2.0, 1.0, 0.0]
    assert [node.operation for node in found][5:] == ["mul", "mul", "add", "add", "tanh"]


def test_what_is_used_twice_adds_up():
    found = graph(lambda x: x * x + jnp.sin(x), 3.0)
    x, square = found["x"], found.nodes[1]
    assert square.inputs == (x, x)
    assert [sent.item() for sent in square.sent] == [3.0, 3.0]
    assert math.isclose(x.gradient.item(), 6 + math.cos(3))
    assert [node.operation for node in found.consumers(x)] == ["mul", "sin"]


def test_the_steps_of_the_pass_back():
    found = graph(lambda x: x * x + x, 3.0)
    lines = [str(step) for step in found.steps()]
    assert lines == [
        "add 2: the gradient of the output by itself is 1",
        "add 2 sends 1 to mul 1: 0 + 1 = 1",
        "add 2 sends 1 to x: 0 + 1 = 1",
        "mul 1 sends 3 to x: 1 + 3 = 4",
        "mul 1 sends 3 to x: 4 + 3 = 7",
    ]
    ends = {step.into: step.after for step in found.steps()}
    assert all(node.gradient == ends[node] for node in found)


def test_nothing_flows_where_nothing_can():
    found = graph(lambda x, i: x[i] * 2.0 + jax.lax.stop_gradient(x).sum(), jnp.arange(3.0), 1)
    assert found["i"].gradient is None
    assert found["x"].gradient.tolist() == [0.0, 2.0, 0.0]
    unused = graph(lambda x, y: jnp.sin(x) * 0 + y, 1.0, 2.0)
    assert unused["x"].gradient.item() == 0.0


def test_nothing_comes_of_what_is_not_used():
    def f(x):
        jnp.log(jnp.sqrt(inspection.name(x, "x again")))  # at 0 both slopes are infinite
        return x * 2

    found = graph(f, 0.0)
    slopes = {node.operation: node.gradient.item() for node in found if node.operation != "constant"}
    assert slopes == {"argument": 2.0, "sqrt": 0.0, "log": 0.0, "mul": 1.0}
    assert found["x again"] is found["x"] is found[0] is found[np.int64(0)]
    with pytest.raises(LookupError, match="graph: expected one of 5 nodes, got number 5"):
        found[5]
    with pytest.raises(TypeError, match="graph: expected the name or number of a node"):
        found[[1]]
    assert [step.into.operation for step in found.steps()] == ["mul", "argument", "constant"]


def test_what_nobody_asks_for_needs_no_derivative():
    def doubled(x):
        return jax.lax.while_loop(lambda c: c < 100, lambda c: c * 2.0, x)

    for f in (
        lambda x: x * doubled(1.0),
        lambda x: x * doubled(jax.lax.stop_gradient(x)),
        lambda x: x * jax.random.truncated_normal(jax.random.key(0), -1.0, 1.0),
    ):
        found = graph(f, 2.0)
        np.testing.assert_allclose(found["x"].gradient, jax.grad(f)(2.0), rtol=1e-12)
    [box] = [node for node in found if node.is_box]  # what makes a truncated normal number has none either
    assert found.open(box).output.value == box.value
    with pytest.raises(ValueError, match=r"expected operations with a derivative in reverse, got while"):
        graph(doubled, 2.0)


def test_a_number_returned_twice_and_one_named_twice():
    def f(x):
        y = inspection.name(inspection.name(x * 3, "y"), "y")
        return y, y

    found = graph(f, 1.0, cotangent=(1.0, 10.0))
    assert (found["x"].gradient.item(), found["y"].operation) == (33.0, "mul")
    assert [str(step) for step in found.steps()][:2] == [
        "y: the gradient of the output by itself is 1",
        "y: the gradient of the output by itself is 11",
    ]


# ---- any function: against jax.grad ----------------------------------------------------------------------------------

SQUARE = functools.partial(jax.jit, inline=False)(lambda a: a * a)
# What is compared differs by more than rounding: two sums of the same numbers in another order are no question.
APART = 0.0137
BINARY = {
    "add": jnp.add,
    "multiply": jnp.multiply,
    "maximum": lambda a, b: jnp.maximum(a, b + APART),
    "where": lambda a, b: jnp.where(a > b + APART, a, 0.5 * b),
    "column": lambda a, b: a + b[:, :1],
    "row": lambda a, b: a * b.sum(0, keepdims=True),
    "product": lambda a, b: a @ b.T @ a / 6,
    "joined": lambda a, b: jnp.concatenate([a[:1], b[1:]]),
    "cond": lambda a, b: jax.lax.cond(a.sum() > b.sum() + APART, jnp.sin, jnp.cos, a - b),
    "scan": lambda a, b: jax.lax.scan(lambda c, row: (jnp.tanh(c + row), c * 0.5), a[0], b)[1],
}
UNARY = {
    "sin": jnp.sin,
    "tanh": jnp.tanh,
    "exp": lambda a: jnp.exp(-a * a),
    "mean": lambda a: a - a.mean(),
    "sorted": lambda a: jnp.sort(a, axis=1),
    "taken": lambda a: a[jnp.array([1, 1]), :],
    "reversed": lambda a: a[:, ::-1],
    "softmax": lambda a: jax.nn.softmax(a, axis=1),
    "relu": lambda a: jax.nn.relu(a + APART),
    "called": SQUARE,
    "remat": jax.checkpoint(lambda a: jnp.sin(a) * a),
    "many": lambda a: jnp.split(a, [1], axis=1)[1].sum() * a,
    "loop": lambda a: jax.lax.fori_loop(0, 3, lambda i, c: c * 0.9 + jnp.sin(c) * i, a),
}


@st.composite
def programs(draw):
    """Operations in a row, each on what came before; the earlier ones may be used again and again."""
    steps = []
    for count in range(2, 2 + draw(st.integers(1, 6))):
        name = draw(st.sampled_from([*BINARY, *UNARY]))
        steps.append((name, *(draw(st.integers(0, count - 1)) for _ in range(1 + (name in BINARY)))))
    numbers = st.lists(st.integers(-20, 20), min_size=12, max_size=12)
    return steps, np.array(draw(numbers), np.float64).reshape(2, 2, 3) / 8


def run_of(steps):
    def run(a, b):
        values = [a, b]
        for name, *given in steps:
            values.append((BINARY | UNARY)[name](*(values[i] for i in given)))
        return jnp.sum(values[-1] * values[-2]) + values[0].sum()

    return run


def expect_random(program):
    steps, (a, b) = program
    # Away from corners, where a subgradient is a choice.
    a, b = a + 1e-3 * np.sqrt(np.arange(1.0, 7).reshape(2, 3)), b - 1e-3 * np.sqrt(np.arange(11.0, 17).reshape(2, 3))
    run = run_of(steps)
    found = graph(run, a, b)
    np.testing.assert_allclose(found.output.value, run(a, b), rtol=1e-12)
    expect_gradients(found, (a, b))


@hypothesis.given(program=programs())
@hypothesis.settings(max_examples=3)
def test_a_few_random_functions(program):
    expect_random(program)


@pytest.mark.slow
@hypothesis.given(program=programs())
@hypothesis.settings(max_examples=30)
def test_random_functions(program):
    expect_random(program)


@pytest.mark.long
@hypothesis.given(program=programs())
@hypothesis.settings(max_examples=150)
def test_many_random_functions(program):
    expect_random(program)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BINARY, *UNARY])
def test_each_operation(name):
    """Beside what ``nudged`` finds, which walks the same graph: ``jax.grad`` of the function, and its differences."""
    a, b, *along = np.random.default_rng(0).normal(size=(4, 2, 3))
    run = run_of([(name, 1, 0)[: 2 + (name in BINARY)]])
    found = graph(run, a, b)
    expect_gradients(found, (a, b))
    slopes = found["a"].gradient, found["b"].gradient
    for slope, wanted in zip(slopes, jax.jit(jax.grad(run, (0, 1)))(a, b), strict=True):
        np.testing.assert_allclose(slope, wanted, rtol=1e-9, atol=1e-12)
    ahead, behind = (run(a + h * along[0], b + h * along[1]) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(np.vdot(slopes, along), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-7)


TOKENS = np.array([[1, 4, 2, 0], [3, 3, 1, 2]])
MODELS = {
    "mlp": (models.mlp([5], 2), np.random.default_rng(1).normal(size=(3, 4))),
    "convnet": (models.convnet([2], 2, hidden=[3]), np.random.default_rng(1).normal(size=(2, 6, 6, 1))),
    "resnet": (models.resnet(18, 2, width=2, small=True), np.random.default_rng(1).normal(size=(2, 8, 8, 1))),
    "transformer": (models.transformer(5, 4, heads=2, blocks=2, length=4), TOKENS),
    "autoencoder": (models.autoencoder([3], 2, 4), np.random.default_rng(1).normal(size=(3, 4))),
}


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("convnet", "transformer")),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("resnet", "autoencoder")),
    ],
)
def test_models(name):
    model, x = MODELS[name]
    params, state = jax.jit(model.init)(jax.random.key(0), x)
    params = jax.tree.map(lambda a: a.astype(np.float64), params)

    def loss(params):
        outputs, _ = model.apply(params, state, x, training=True, key=jax.random.key(1))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs))

    found = graph(loss, params)
    expect_gradients(found, (params,))
    with quickly_compiled():
        wanted = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params))
    for path, gradient in wanted:
        name = "params/" + jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(found[name].gradient, gradient, rtol=1e-6, atol=1e-9)
    folded = found.fold()
    assert len(folded) < len(found)
    for path, _ in wanted:
        name = "params/" + jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(folded[name].gradient, found[name].gradient, rtol=1e-12, atol=1e-15)


# ---- boxes -----------------------------------------------------------------------------------------------------------


def only(found, operation):
    [node] = [node for node in found if node.operation == operation]
    return node


def test_a_function_under_jit_opens():
    found = graph(lambda x: jnp.sum(SQUARE(x) * 3), jnp.array([1.0, 2.0]))
    box = next(node for node in found if node.is_box)
    inside = found.open(box)
    assert [node.operation for node in inside] == ["argument", "mul"]
    assert inside.nodes[0].gradient.tolist() == found["x"].gradient.tolist() == [6.0, 12.0]
    assert inside.output.gradient.tolist() == box.gradient.tolist() == [3.0, 3.0]
    expect_sums(inside)


@pytest.mark.parametrize("reverse", [False, True])
def test_each_iteration_of_a_scan_is_what_it_is_in_a_row(reverse):
    """The same loop written out has a node for each operation of each iteration."""
    rows = jnp.array([0.5, -1.0, 2.0, 0.25])

    def body(c, row, w):
        c = inspection.name(jnp.tanh(c * w + row), "new")
        return c, c * c

    def loop(x, w):
        last, out = jax.lax.scan(lambda c, row: body(c, row, w), x, rows, reverse=reverse)
        return last + jnp.sum(out * rows)

    def written_out(x, w):
        out = {}
        for i in range(4)[::-1] if reverse else range(4):
            x, out[i] = body(x, rows[i], w)
        return x + sum(out[i] * rows[i] for i in range(4))

    found, whole = graph(loop, 0.3, 0.7), graph(written_out, 0.3, 0.7)
    assert math.isclose(found["w"].gradient, whole["w"].gradient, rel_tol=1e-12)
    for i in range(4):
        inside = found.open(only(found, "scan"), i)
        expect_sums(inside)
        twin = whole.nodes[whole.names["new"][3 - i if reverse else i]]
        assert math.isclose(inside["new"].value, twin.value, rel_tol=1e-12)
        assert math.isclose(inside["new"].gradient, twin.gradient, rel_tol=1e-12)
    with pytest.raises(ValueError, match=r"expected an iteration of the 4 of scan \d+, got 4; count from 0"):
        found.open(only(found, "scan"), 4)
    with pytest.raises(TypeError, match=r"expected an iteration for a loop, .*, got none; pass graph.open\(node, 0\)"):
        found.open(only(found, "scan"))


def test_the_branch_that_was_taken_opens():
    def f(x):
        return jax.lax.cond(x > 0, lambda x: x * 2, lambda x: jnp.sin(x), x)

    for x, operation in ((1.0, "mul"), (-1.0, "sin")):
        found = graph(f, x)
        inside = found.open(only(found, "cond"))
        assert inside.output.operation == operation
        assert inside["x"].gradient == found["x"].gradient


def test_a_loop_of_unknown_length_has_values_alone():
    def f(x):
        return jax.lax.while_loop(lambda c: c < 100, lambda c: c * inspection.name(c + 1, "next"), x)

    with pytest.raises(
        ValueError, match=r"expected operations with a derivative in reverse, got while .*gradients=False"
    ):
        graph(f, 2.0)
    found = graph(f, 2.0, gradients=False)
    assert found.output.value == 6 * 7 * 43
    assert [found.open(found.output, i)["next"].value.item() for i in range(3)] == [3.0, 7.0, 43.0]
    assert all(node.gradient is None for node in found)
    with pytest.raises(ValueError, match="expected an iteration of the 3 of while"):
        found.open(found.output, 3)


def test_a_rule_of_ones_own_is_what_goes_back():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    found = graph(lambda x: 3.0 * rounded(x), 1.6)
    assert found["x"].gradient == 3.0
    box = next(node for node in found if node.is_box)
    assert box.operation == "rounded"
    assert [node.gradient for node in found.open(box)] == [None, None]


def test_what_cannot_be_opened():
    found = graph(lambda x: SQUARE(x) + x, 1.0)
    with pytest.raises(
        TypeError, match=r"graph.open: expected a node that holds operations, got x, which is one; leave"
    ):
        found.open("x")
    with pytest.raises(TypeError, match="which is no loop; leave it out"):
        found.open(1, 0)
    with pytest.raises(ValueError, match=r"graph.open: expected a node of this graph, got x of another one"):
        found.open(graph(lambda x: x, 1.0)["x"])


# ---- names, forms, errors --------------------------------------------------------------------------------------------


def test_names():
    found = graph(lambda p, x: inspection.name(p["w"] * x, "n") + inspection.name(x, "same"), {"w": 2.0}, 3.0)
    assert found["p/w"].gradient == 3.0
    assert found["n"].operation == "mul"
    assert found["same"] is found["x"]
    assert found[found["n"].index] is found["n"]
    with pytest.raises(LookupError, match=r"expected one of the names p/w, x, n, same, got 'm'; inspection.name\(x, "):
        found["m"]
    twice = graph(lambda x: inspection.name(x * 2, "n") + inspection.name(x * 3, "n"), 1.0)
    with pytest.raises(LookupError, match=r"expected one node of the name 'n', got 2; graph.nodes has them"):
        twice["n"]
    with pytest.raises(TypeError, match="expected a name, got 3; pass a text"):
        inspection.name(1.0, 3)
    assert jax.grad(lambda x: inspection.name(x, "n") ** 2)(3.0) == 6.0


@pytest.mark.parametrize(
    ("f", "args", "options", "message"),
    [
        (jnp.sin, (jnp.ones(3),), {}, r"one floating number, got float32\(3,\); sum it up, or pass cotangent"),
        (lambda x: (x, x), (1.0,), {}, r"got float64\(\), float64\(\); sum it up"),
        (lambda x: x > 0, (1.0,), {}, r"one floating number, got bool\(\)"),
        (lambda: {}, (), {}, "got nothing"),
        (jnp.sin, (jnp.ones(3),), {"cotangent": jnp.ones(2)}, r"expected cotangent of \[\(3,\)\], got \[\(2,\)\]"),
        (jnp.sin, (jnp.ones(3),), {"cotangent": (jnp.ones(3),)}, "expected cotangent as"),
    ],
)
def test_what_it_cannot_begin_with(f, args, options, message):
    with pytest.raises(ValueError, match=message):
        graph(f, *args, **options)


def test_a_key_is_an_argument_as_any_other():
    found = graph(lambda key, x: jnp.sum(x * jax.random.normal(key, (3,))), jax.random.key(0), 2.0)
    assert found["key"].gradient is None
    assert "key<fry>" in str(found)
    assert json.loads(found.to_json())["nodes"][0]["value"] == {"dtype": "key<fry>", "shape": []}
    ElementTree.fromstring(found.to_svg())


def test_what_is_static_is_closed_over():
    with pytest.raises(TypeError, match=r"graph: mode: expected an array, got str; close over what is static"):
        graph(lambda x, mode: x if mode == "a" else 2 * x, 1.0, "a")


def test_what_is_no_function_or_traced():
    with pytest.raises(TypeError, match="graph: expected a function, got float; pass f and its arguments apart"):
        graph(2.0, 3.0)
    with pytest.raises(TypeError, match="graph: expected arrays with values, got what JAX is tracing"):
        jax.jit(lambda x: graph(jnp.sin, x).output.value)(1.0)


@pytest.mark.parametrize("name", ["a\nb", "null\x00", "esc\x1b[0m", "<&>\"'", "ключ"])
def test_any_name_can_be_drawn(name):
    found = graph(lambda x: inspection.name(x * 2, name), 1.0)
    assert found[name].value.item() == 2.0
    ElementTree.fromstring(found.to_svg())
    assert len(found.to_dot().splitlines()) == 3 + 2 + 1 + 1
    assert len(found.to_mermaid().splitlines()) == 1 + 2 + 1


@pytest.mark.parametrize(
    ("cotangent", "error", "message"),
    [
        (np.ones(2), ValueError, r"cotangent of \[\(\)\], got \[\(2,\)\]"),
        ((1.0,), ValueError, r"cotangent as PyTreeDef\(\*\), got PyTreeDef\(\(\*,\)\)"),
        ("a", TypeError, r"cotangent of float64\(\), got <U1; pass numbers"),
        (1j, TypeError, r"cotangent of float64\(\), got complex128"),
    ],
)
def test_a_cotangent_that_is_none(cotangent, error, message):
    with pytest.raises(error, match=f"^graph: expected {message}"):
        graph(jnp.sin, 1.0, cotangent=cotangent)


def test_a_cotangent_of_ones_own():
    found = graph(
        lambda x: {"a": x * 2, "b": x.astype(int)},
        jnp.array([1.0, 2.0]),
        cotangent={"a": jnp.array([1.0, 10.0]), "b": 0 * jnp.arange(2)},
    )
    assert found["x"].gradient.tolist() == [2.0, 20.0]
    assert len(found.outputs) == 2
    with pytest.raises(ValueError, match=r"graph.output: expected a function with one output, got 2"):
        found.output  # noqa: B018


def test_a_graph_of_too_many_nodes_is_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr("funcnn.inspection.slots._MOST", 50)
    computing = []
    monkeypatch.setattr("funcnn.inspection.passes.computed", lambda *given: computing.append(given))

    def long(x):
        for _ in range(100):
            x = jnp.sin(x)
        return x

    with pytest.raises(
        ValueError, match=r"graph: expected at most 50 nodes, got 100; put what repeats into jax.lax.scan"
    ):
        graph(long, 1.0)
    with pytest.raises(ValueError, match="at most 50 nodes, got 61"):  # 30 operations, as many numbers, and x
        graph(lambda x: functools.reduce(jnp.multiply, [x] + [2.0] * 30), 1.0)
    assert not computing


def test_arguments_are_left_alone():
    x = np.array([1.0, 2.0])
    found = graph(lambda x: jnp.sum(x * x), x)
    assert x.tolist() == [1.0, 2.0]
    with pytest.raises(AttributeError):
        found.nodes = ()
    with pytest.raises(AttributeError):
        found["x"].gradient = 0


# ---- by layers -------------------------------------------------------------------------------------------------------

NETWORK = layers.serial(
    layers.dense(3), layers.tanh, layers.named("deep", layers.serial(layers.dense(4), layers.relu)), layers.dense(2)
)


@pytest.fixture
def network():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
    labels = jnp.array([0, 1, 1, 0, 1])
    params, _ = NETWORK.init(jax.random.key(0), x)
    return graph(
        lambda params, x: losses.softmax_cross_entropy(NETWORK.apply(params, {}, x)[0], labels).mean(), params, x
    )


def test_nodes_know_their_layers(network):
    found = {node.path for node in network}
    assert {"dense_0", "tanh_0", "deep/dense_0", "deep/relu_0", "dense_1"} <= found
    assert all(node.source for node in network if node.path and node.operation != "constant")


def test_layers_fold_and_open(network):
    folded = network.fold()
    assert [node.label for node in folded if node.is_box][:4] == ["dense_0", "tanh_0", "deep", "dense_1"]
    assert [node.label for node in network.fold(2) if node.is_box][2:4] == ["deep/dense_0", "deep/relu_0"]
    for node in folded:
        if node.name in network.names:
            np.testing.assert_array_equal(node.gradient, network[node.name].gradient)
    expect_sums(folded)
    deep = folded.open("deep")
    expect_sums(deep)
    twins = {node.operation: node for node in network if node.path.startswith("deep")}
    for node in deep:
        if node.operation in ("dot_general", "relu"):
            np.testing.assert_array_equal(node.value, twins[node.operation].value)
            np.testing.assert_array_equal(node.gradient, twins[node.operation].gradient)
    assert next(i.label for i in folded["deep"].inputs) == "tanh_0"
    with pytest.raises(TypeError, match=r"graph.open: expected no iteration for a layer, got 0"):
        folded.open("deep", 0)
    with pytest.raises(ValueError, match="depth of at least 1"):
        network.fold(0)


def test_a_layer_with_two_outputs_and_one_that_comes_twice():
    split = layers.function(lambda x: (x * 2, x * 3))
    shared = layers.named("twice", layers.dense(3))
    x = jnp.ones((2, 3))
    params, _ = shared.init(jax.random.key(0), x)

    def f(params, x):
        with jax.named_scope("split"):
            a, b = split.apply({}, {}, x)[0]
        for _ in range(2):
            with jax.named_scope("twice"):
                a = shared.apply(params, {}, a)[0]
            a = jnp.sin(a)
        return jnp.sum(a * b)

    found = graph(f, params, x)
    folded = found.fold()
    labels = [node.label for node in folded if node.operation in ("layer", "output")]
    assert labels == ["split", "split[0]", "split[1]", "twice", "twice (2)"]
    np.testing.assert_allclose(folded["params/kernel"].gradient, found["params/kernel"].gradient, rtol=1e-12)
    expect_sums(folded)
    for name in ("split", "twice", "twice (2)"):
        expect_sums(folded.open(name))
    last = graph(lambda p: jax.named_scope("head")(shared.apply)(p, {}, x)[0], params, cotangent=2 * x)
    assert last.fold().outputs[0].label == "head"
    expect_sums(last.fold().open("head"))


# ---- how it is shown -------------------------------------------------------------------------------------------------


def test_the_table():
    text = str(graph(lambda x, w: jnp.sum(jnp.tanh(x @ w) * 2), jnp.ones((2, 3)), jnp.zeros((3, 1))))
    lines = text.splitlines()
    assert lines[0].split() == ["node", "operation", "value", "gradient", "inputs"]
    assert lines[1].split() == ["x", "argument", "2x3:", "1", "2x3:", "0"]
    assert [line.split()[0] for line in lines[1:]] == ["x", "w", "dot_general", "tanh", "mul", "reduce_sum"]
    assert lines[5].endswith("tanh 3, 2")


def test_a_large_graph_is_shown_by_layers(network, monkeypatch):
    monkeypatch.setattr("funcnn.inspection.drawings._ROWS", 20)
    lines = str(network).splitlines()
    assert any(line.startswith("deep ") for line in lines)
    assert lines[-1] == f"{len(network)} nodes by layers; graph.fold().open('dense_0') shows those of one"
    monkeypatch.setattr("funcnn.inspection.drawings._ROWS", 3)
    assert "nodes more" in str(network)
    assert "deep" in network.to_mermaid()


def test_in_the_language_of_graphviz_and_of_mermaid():
    found = graph(lambda x: inspection.name(2 * jax.nn.silu(x), 'a "b" <c>'), 1.0)
    dot = found.to_dot()
    assert dot.startswith("digraph {")
    assert dot.endswith("}")
    assert 'n1 [label="silu 1\\nvalue 0.7311\\ngradient 2", peripheries=2];' in dot
    assert 'label="a \\"b\\" <c> = mul, with 2\\n' in dot
    assert '  n0 -> n1 [label="1.855"];' in dot
    mermaid = found.to_mermaid().splitlines()
    assert mermaid[0] == "flowchart LR"
    assert '  n1[["silu 1<br/>value 0.7311<br/>gradient 2"]]' in mermaid
    assert '  n0 -->|"1.855"| n1' in mermaid
    assert "&quot;b&quot; &lt;c&gt;" in mermaid[3]


def test_json_has_everything():
    found = graph(lambda x, i: jnp.sum(x[i] * jnp.inf) + jnp.arange(200.0).sum(), jnp.array([1.0, 2.0]), 1)
    read = json.loads(found.to_json())
    assert read["outputs"] == [found.output.index]
    assert len(read["nodes"]) == len(found)
    x = read["nodes"][0]
    assert x["value"] == {"dtype": "float64", "shape": [2], "numbers": [1.0, 2.0]}
    assert x["gradient"]["numbers"] == [0.0, "inf"]
    assert read["nodes"][1]["gradient"] is None
    large = next(node for node in read["nodes"] if node["value"].get("shape") == [200])
    assert large["value"]["largest"] == 199.0
    for node, wanted in zip(read["nodes"], found, strict=True):
        assert node["inputs"] == [given.index for given in wanted.inputs]
        assert len(node["sent"]) == len(node["inputs"])


def test_a_picture_needs_no_other_program(network):
    for found in (network, graph(neuron, *NEURON), graph(lambda: 1.0)):
        root = ElementTree.fromstring(found.to_svg())
        texts = [element.text for element in root.iter() if element.tag.endswith("text")]
        drawn = [node for node in found if node.operation != "constant" or node.value.ndim]
        assert sum(element.tag.endswith("rect") for element in root.iter()) == len(drawn) + 1
        edges = sum(given in drawn for node in drawn for given in node.inputs)
        arrows = [element for element in root.iter() if "marker-end" in element.attrib]
        assert len(arrows) == edges
        assert all(node.name in texts or f"{node.name} = {node.operation}" in texts for node in drawn if node.name)
    assert found._repr_svg_() == found.to_svg()


def test_boxes_do_not_lie_on_one_another(network):
    root = ElementTree.fromstring(network.to_svg())
    rects = [element.attrib for element in root.iter() if element.tag.endswith("rect")][1:]
    spans = [tuple(float(r[k]) for k in ("x", "y", "width", "height")) for r in rects]
    for i, (x, y, w, h) in enumerate(spans):
        for a, b, c, d in spans[:i]:
            assert x >= a + c or a >= x + w or y >= b + d or b >= y + h
