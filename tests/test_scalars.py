"""The playground of single numbers: against PyTorch, against calculus, and against a run of the library."""

import importlib.util
import math
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, training
from funcnn.inspection import Value, backward, value

SPEC = importlib.util.spec_from_file_location("playground", Path(__file__).parents[1] / "examples" / "playground.py")
playground = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(playground)


# ---- against PyTorch -------------------------------------------------------------------------------------------------


def sane(x, _):
    z = 2 * x + 2 + x
    q = z.relu() + z * x
    h = (z * z).relu()
    return h + q + q * x


def many(a, b):
    """Most operations, each of them several times, in the manner of the test of micrograd."""
    c = a + b
    d = a * b + b**3
    c = c + c + 1
    c = c + 1 + c + (-a)
    d = d + d * 2 + (b + a).relu()
    d = d + 3 * d + (b - a).relu()
    e = c - d
    f = e**2
    return f / 2.0 + 10.0 / f


def smooth(a, b):
    return (a / b).exp() * (b * a).tanh() + (a - 2 * b).sigmoid() - (b * b + 1).log() ** 0.5 + 2**b


@pytest.mark.parametrize("expression", [sane, many, smooth])
def test_gradients_are_pytorchs(torch, expression):
    a, b = value(-4.0), value(2.0)
    output = expression(a, b)
    graph = backward(output)
    twins = [torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (-4.0, 2.0)]
    wanted = expression(*twins)
    wanted.backward()
    assert math.isclose(output.item(), wanted.item(), rel_tol=1e-14)
    assert math.isclose(graph[output].value, wanted.item(), rel_tol=1e-14)
    for ours, twin in zip((a, b), twins, strict=True):
        if twin.grad is not None:
            assert math.isclose(graph[ours].gradient, twin.grad.item(), rel_tol=1e-13)


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_the_neuron_of_the_text():
    output = playground.one_neuron()
    assert math.isclose(output.item(), -0.9640275800758168, rel_tol=1e-15)
    graph = backward(output)
    slope = 1 - math.tanh(-2) ** 2
    by_hand = {"x1": -3 * slope, "w1": 2 * slope, "x2": slope, "w2": 0.0, "b": slope, "n": slope, "o": 1.0}
    for name, wanted in by_hand.items():
        assert math.isclose(graph[name].gradient, wanted, rel_tol=1e-14), name
    of_n = backward(output.inputs[0])
    assert [of_n[name].gradient.item() for name in ("x1", "w1", "x2", "w2")] == [-3.0, 2.0, 1.0, 0.0]


def test_nothing_is_ever_overwritten():
    x = value(3.0, "x")
    y = x * x
    first, second = backward(y), backward(y)
    assert first[x].gradient == second[x].gradient == 6.0
    assert backward(y + x)[x].gradient == 7.0
    assert first[x].gradient == 6.0
    for name in ("given", "operation", "inputs", "item"):
        with pytest.raises(AttributeError):
            setattr(x, name, 4.0)
    assert x.item() == 3.0


def test_it_is_exact_in_64_bits_whatever_jax_is_set_to():
    assert not jax.config.jax_enable_x64
    assert (value(0.1) + 0.2).item() == 0.1 + 0.2
    assert (value(1e300) * 1e5).item() == 1e300 * 1e5
    assert backward(value(1.0) * 1e-300).output.value.item() == 1e-300
    assert jnp.ones(()).dtype == np.float32


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        (lambda x: -x, -1.0),
        (lambda x: 1 - x, -1.0),
        (lambda x: 6 / x, -1.5),
        (lambda x: 3**x, 9 * math.log(3)),
        (lambda x: x**-2, -2 / 8),
        (lambda x: (x - 5) ** 2, -6.0),
        (lambda x: sum([x, x, 2 * x]), 4.0),
        (lambda x: (x - 2).relu(), 0.0),
        (lambda x: x, 1.0),
    ],
    ids=[
        "negative",
        "from a number",
        "divided into",
        "exponent",
        "power",
        "power of negative",
        "sum",
        "corner",
        "itself",
    ],
)
def test_operations_with_plain_numbers(expression, wanted):
    x = value(2.0)
    graph = backward(expression(x))
    assert math.isclose(graph[x].gradient, wanted)
    assert all(np.isfinite(node.gradient) for node in graph if node.gradient is not None)
    assert math.isclose(expression(x).item(), graph.output.value)


def test_values_know_their_places():
    x = value(2.0, "x")
    graph = backward((x * 3).named("y") + x)
    assert graph["x"] is graph[x]
    assert graph["y"].operation == "mul"
    assert [node.operation for node in graph] == ["argument", "constant", "mul", "add"]
    assert "3" in str(graph)
    with pytest.raises(LookupError, match=r"got value\(2\.0\); it is no part of what was differentiated"):
        graph[value(2.0)]
    assert repr(x) == "value(2.0, 'x')"
    assert repr(x * 3) == "value(6.0)"


def test_a_long_chain_is_no_matter():
    x = value(1.0)
    total = x
    for _ in range(2500):
        total = total + x
    assert total.item() == 2501.0
    graph = backward(total)
    assert graph[x].gradient == 2501.0
    assert len(graph) == 2501


def test_too_many_are_refused(monkeypatch):
    monkeypatch.setattr("funcnn.inspection.slots._MOST", 10)
    with pytest.raises(ValueError, match="backward: expected at most 10 nodes, got 11"):
        backward(sum(value(1.0) for _ in range(6)))


def test_the_passes_are_walked_and_boxes_open_in_64_bits():
    x = value(1 / 3, "x")
    graph = backward((x * x + x / 7).relu().tanh())
    assert not jax.config.jax_enable_x64
    ends = {step.into: step.after for step in graph.steps()}
    assert all(end.dtype == np.float64 and end == node.gradient for node, end in ends.items())
    [relu] = [node for node in graph if node.operation == "relu"]
    inside = graph.open(relu)
    assert inside.output.value.dtype == np.float64
    assert inside.output.value.item() == relu.value


def test_constants_have_no_gradient():
    graph = backward(value(-3.0, "x") ** 3)
    power = graph.output
    assert [node.operation for node in graph] == ["argument", "constant", "pow"]
    assert graph[1].gradient is None
    assert power.sent[1] is None
    assert power.sent[0] == 27.0


def test_two_of_one_name_are_both_known():
    graph = backward(value(1.0, "w") * value(2.0, "w"))
    with pytest.raises(LookupError, match="expected one node of the name 'w', got 2"):
        graph["w"]


def test_an_expression_is_compiled_once(compilations):
    def loss(w):
        return sum(((value(x) * w).tanh() - 0.5) ** 2 for x in (1.0, 2.0))

    gradients = []
    for w in (0.1, 0.2, 0.3):
        w = value(w)
        compilations.clear()
        gradients.append(backward(loss(w))[w].gradient.item())
    assert not compilations
    assert len(set(gradients)) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: value("2"), "value: expected a real number, got str; pass a float"),
        (lambda: value(True), "value: expected a real number, got bool"),
        (lambda: value(1j), "value: expected a real number, got complex"),
        (lambda: value(np.ones(2)), r"got float64\(2,\); make one for each number, or use inspection.graph"),
        (lambda: value(1.0, 3), "value: expected a name, got 3"),
        (lambda: value(1.0).named(""), "Value.named: expected a name, got ''"),
        (lambda: value(1.0) + "1", "value: expected a real number, got str"),
        (lambda: value(1.0) * jnp.ones(3), r"got float32\(3,\)"),
        (lambda: backward(3.0), "backward: expected a value, got float; compute it from inspection.value"),
        (lambda: value(value(1.0)), "value: expected a real number, got Value"),
        (lambda: value(np.array("a")), "value: expected a real number, got <U1"),
        (lambda: jax.grad(lambda a: value(a).item())(1.0), "value: expected a number, got what JAX is tracing"),
        (lambda: bool(value(0.0)), r"Value: expected a number, not a truth, got value\(0.0\); compare numbers"),
        (lambda: max(value(1.0), 0), "Value: expected no comparison, which has no slope.* or x.relu()"),
        (lambda: math.exp(value(1.0)), "must be real number"),
        (lambda: np.exp(value(1.0)), "does not support ufuncs"),
        (lambda: np.ones(2) + value(1.0), r"got float64\(2,\)"),
    ],
)
def test_what_is_no_number(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_habits_of_micrograd_and_of_printing():
    x = value(2.0)
    with pytest.raises(AttributeError, match=r"got 'grad'; the gradient is backward\(output\)\[x\].gradient"):
        x.grad  # noqa: B018
    with pytest.raises(AttributeError, match=r"got 'backward'; call backward\(output\)"):
        (x * 2).backward()
    assert f"{x:.3f} {x}" == "2.000 value(2.0)"
    assert (jnp.float32(3) * x).item() == (x * np.float64(3)).item() == 6.0
    with pytest.raises(ValueError, match="value: expected a number that 64 bits can hold"):
        x + 10**400


# ---- a network -------------------------------------------------------------------------------------------------------


def network(seed):
    chance = random.Random(seed)
    return playground.new([2, 4, 4, 1], lambda: chance.uniform(-1, 1))


def as_arrays(values):
    """The params of the same network in layers of the library."""
    return {
        f"dense_{i}": {
            "kernel": jnp.array([[w.item() for w in neuron["weights"]] for neuron in layer]).T,
            "bias": jnp.array([neuron["bias"].item() for neuron in layer]),
        }
        for i, layer in enumerate(values)
    }


@pytest.mark.slow
def test_fifty_updates_are_those_of_a_run():
    model = layers.serial(
        layers.dense(4), layers.tanh, layers.dense(4), layers.sigmoid, layers.dense(1), layers.sigmoid
    )
    begun = network(0)
    trained = playground.trained(begun, 50, playground.XOR, playground.SIGMOIDS)
    with jax.enable_x64(True):
        x, y = (jnp.array(column, jnp.float64) for column in zip(*playground.XOR, strict=True))
        trainer = training.supervised(model, losses.squared_error, optax.sgd(0.4))
        state = trainer.init(jax.random.key(0), (x, y[:, None]))._replace(params=as_arrays(begun))
        result = training.run(trainer, (x, y[:, None]), key=jax.random.key(0), epochs=50, batch_size=None, state=state)
        wanted = as_arrays(trained)
        assert jax.tree.structure(wanted) == jax.tree.structure(result.state.params)
        for ours, theirs in zip(jax.tree.leaves(wanted), jax.tree.leaves(result.state.params), strict=True):
            assert theirs.dtype == np.float64
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert isinstance(begun[0][0]["bias"], Value)
    assert begun[0][0]["bias"].item() == 0.0
