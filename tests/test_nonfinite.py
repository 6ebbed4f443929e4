"""The cause of bad numbers: the operation, its layer and its line, found for faults that are planted here.

What is expected is known from how each fault was planted; that values are computed rightly is told by JAX itself,
which computes the same operations one by one under ``jax.disable_jit``.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from funcnn import inspection, layers, losses, models, training
from funcnn.inspection import nonfinite
from funcnn.inspection.equations import Place

find = inspection.first_nonfinite
NUMBERS = jnp.array([0.5, 0.0, 2.0])
MASK = jnp.array([[True, False, True], [True, True, False]])


def here(function):
    """What stands as the source of a function of this file that has one line."""
    return f"test_nonfinite.py:{inspect.getsourcelines(function)[1]} ({function.__name__})"


def applied(model, *args, seed=0):
    """A pure function of the input of a model, and its params and state."""
    params, state = model.init(jax.random.key(seed), *args)
    return lambda x: model.apply(params, state, x)[0]


# ---- one operation ---------------------------------------------------------------------------------------------------


def halved_f16(x):
    return jnp.exp(x.astype(jnp.float16))


ONE = {  # a function, its input, and what is found: operation, kind, how many of how many, the range of its operands
    "log of zero": (lambda x: jnp.log(x), NUMBERS, "log", "infinity", 1, 3, [(0, 2, 1)]),
    "log below zero": (lambda x: jnp.log(x - 1), NUMBERS, "log", "NaN", 2, 3, [(-1, 1, 0)]),
    "zero by zero": (lambda x: x / x, NUMBERS, "div", "NaN", 1, 3, [(0, 2, 1)] * 2),
    "one by zero": (lambda x: 1 / x, NUMBERS, "div", "infinity", 1, 3, [(1, 1, 0), (0, 2, 1)]),
    "too large for float16": (halved_f16, jnp.array([1.0, 20.0]), "exp", "infinity", 1, 2, [(1, 20, 0)]),
    "too large for bfloat16": (jnp.exp, jnp.array([1, 200], jnp.bfloat16), "exp", "infinity", 1, 2, [(1, 200, 0)]),
    "too large for float8": (
        lambda x: x.astype(jnp.float8_e4m3fn), jnp.array([1.0, 1e9]), "convert_element_type", "NaN", 1, 2, [(1, 1e9, 0)]
    ),
    "whole numbers": (
        lambda x: x.astype(jnp.float16), jnp.array([1, 70000]), "convert_element_type", "infinity", 1, 2, [(1, 7e4, 0)]
    ),
    "complex": (lambda x: jnp.log(x * 1j), NUMBERS, "log", "infinity", 1, 3, [(0, 2, 1)]),
    "a sum": (jnp.sum, jnp.array([3e38, 2e38]), "reduce_sum", "infinity", 1, 1, [(2e38, 3e38, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_the_operation_and_its_operands(name):
    f, x, operation, kind, count, size, ranges = ONE[name]
    found = find(f, x)
    assert (found.operation, found.kind, found.count, found.size) == (operation, kind, count, size)
    assert (found.path, found.is_backward, found.iterations) == ("", False, ())
    got = [(a.smallest, a.largest, a.zeros) for a in found.inputs]
    assert got == [tuple(map(pytest.approx, r)) for r in ranges]
    assert all(a.nonfinite == 0 for a in found.inputs)
    assert [(a.shape, a.dtype) for a in found.inputs][-1][0] == x.shape


def test_what_is_finite_is_no_finding():
    assert find(lambda x: jnp.log(x + 1), NUMBERS) is None
    assert find(lambda: jnp.ones(3)) is None
    assert find(lambda key, n, flag: (key, n + 1, ~flag), jax.random.key(0), jnp.arange(3), jnp.array(True)) is None


def test_the_first_of_several_in_order_of_execution():
    found = find(lambda x: jnp.log(x) + 1 / x, NUMBERS)
    assert found.operation == "log"
    assert find(lambda x: 1 / x + jnp.log(x), NUMBERS).operation == "div"


def test_only_the_cause_is_named_and_not_what_spreads_it():
    def spread(x):
        return jnp.sin(jnp.cumsum(jnp.log(x)) * 3).sum() / 2

    assert find(spread, NUMBERS).operation == "log"


def test_another_cause_is_told_from_one_that_does_no_harm():
    def f(x):
        harmless = jnp.where(x > 0, jnp.log(x), 0.0)
        return harmless + 1 / x

    assert find(f, NUMBERS).operation == "div"


def test_large_arrays_are_looked_at_where_they_are():
    x = jnp.ones(2**20 + 1).at[7].set(0)
    found = find(jnp.log, x)
    assert (found.count, found.size, found.inputs[0].zeros) == (1, 2**20 + 1, 1)
    assert find(jnp.log, x + 1) is None


def test_the_line_and_the_function():
    def culprit(x): return jnp.log(x)  # fmt: skip

    found = find(lambda x: culprit(x) + 1, NUMBERS)
    assert found.source == here(culprit)
    assert find(jax.jit(lambda x: jax.jit(culprit)(x) + 1), NUMBERS).source == here(culprit)

    # What JAX computes inside of its own functions comes from the line that calls them.
    def caller(x): return jax.nn.log_softmax(x - jnp.inf)  # fmt: skip

    assert find(caller, NUMBERS).source == here(caller)


# ---- as a sentence ---------------------------------------------------------------------------------------------------


def test_a_sentence():
    def entropy(x):
        with jax.named_scope("encoder"), jax.named_scope("dense_1"):
            return -x * jnp.log(x)

    line = inspect.getsourcelines(entropy)[1] + 2
    assert str(find(entropy, NUMBERS)) == (
        f"log in encoder/dense_1 (test_nonfinite.py:{line}) made 1 of 3 numbers infinite, "
        f"from values between 0 and 2 (1 of them 0)"
    )
    found = str(find(lambda a, b: lax.scan(lambda c, r: (c * r, None), a, b)[0], 1.0, jnp.array([1e30, 1e30])))
    assert found.startswith("mul (test_nonfinite.py:")
    assert found.endswith(") at iteration 1 made a number infinite, from the value 1e+30")


def test_a_sentence_about_the_backward_pass():
    found = str(find(jax.grad(lambda x: jnp.sqrt(x)), 0.0))
    assert found.startswith("div in the backward pass (test_nonfinite.py:")
    assert found.endswith(") made a number infinite, from the value 0.5 and the value 0")


def test_a_sentence_about_an_argument():
    x = jnp.array([1, jnp.nan, jnp.inf])
    assert str(find(lambda weights: weights["a"] + 1, {"a": x})) == "1 of 3 numbers in the argument, weights/a, is NaN"
    assert str(find(lambda x: (x, jnp.inf), 0.0)) == "a number in the constant among the outputs, 1, is infinite"


# ---- infinities that are meant ---------------------------------------------------------------------------------------


def masked(s, mask):
    return jax.nn.softmax(jnp.where(mask, s, -jnp.inf))


@pytest.mark.slow
def test_masks_do_no_harm():
    s = jnp.ones((2, 3))
    assert find(masked, s, MASK) is None
    assert find(jax.value_and_grad(lambda s: masked(s, MASK)[0, 0]), s) is None
    assert find(lambda x: jnp.max(x, where=MASK, initial=-jnp.inf), s) is None
    assert find(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"), s) is None


def test_a_mask_is_not_blamed_for_what_comes_after():
    found = find(lambda s: jnp.log(masked(s, MASK)), jnp.ones((2, 3)))
    assert (found.operation, found.count, found.inputs[0].zeros) == ("log", 2, 2)
    found = find(lambda s: jnp.where(MASK, s * 1e38 * 1e38, -jnp.inf).sum(), jnp.ones((2, 3)))
    assert found.operation == "mul"


def test_where_a_mask_leaves_nothing_the_operation_that_makes_nan_is_named():
    found = find(masked, jnp.ones((2, 3)), MASK.at[1].set(False))
    assert (found.operation, found.kind, found.count, found.size) == ("sub", "NaN", 3, 6)
    assert found.inputs[0].nonfinite == 4  # three of the empty row, and one that was masked in the other


def test_infinity_minus_infinity():
    found = find(lambda x: (x - jnp.inf) + jnp.inf, NUMBERS)
    assert (found.operation, found.kind, found.count) == ("add", "NaN", 3)
    assert find(lambda x: x * jnp.inf, NUMBERS).kind == "NaN"  # 0 * inf


def test_an_operation_with_infinite_operands_is_blamed_for_what_it_makes_of_the_finite_ones():
    """The mask is not at fault that exp(1000) is too large."""
    found = find(lambda x: jnp.exp(jnp.where(x > 0, x * 2000, -jnp.inf)), NUMBERS)
    assert (found.operation, found.kind, found.count) == ("exp", "infinity", 2)


def test_a_written_infinity_that_is_an_output_is_found_last():
    found = find(lambda s: jnp.where(MASK, s, -jnp.inf), jnp.ones((2, 3)))
    assert (found.operation, found.kind, found.count, found.size) == ("select_n", "infinity", 2, 6)
    assert find(lambda s: -jnp.broadcast_to(jnp.inf, s.shape), NUMBERS).operation == "constant"
    assert find(lambda s: (jnp.where(MASK, s, -jnp.inf), jnp.log(s - 1)), jnp.ones((2, 3))).operation == "log"
    assert find(lambda x: (x, jnp.inf), 0.0).operation == "constant"


def test_constants_that_a_function_closes_over():
    bias = np.array([[0.0, -np.inf, 0.0]], np.float32)
    assert find(lambda s: jax.nn.softmax(s + bias), jnp.ones((1, 3))) is None
    kernel = np.array([[1.0], [np.nan], [1.0]], np.float32)
    found = find(lambda s: (s + 1) @ kernel, jnp.ones((2, 3)))
    assert (found.operation, found.kind, found.inputs[1].nonfinite) == ("dot_general", "NaN", 1)


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_an_argument_that_holds_nan_is_named_by_its_path():
    tree = {"encoder": {"kernel": jnp.ones((2, 2)).at[0, 1].set(jnp.nan)}, "bias": (1.0, 2.0)}
    found = find(lambda params, x: x @ params["encoder"]["kernel"], tree, jnp.zeros((1, 2)))
    assert (found.operation, found.path, found.kind) == ("argument", "params/encoder/kernel", "NaN")
    assert (found.count, found.size, found.source) == (1, 4, "")
    assert find(lambda *rows: rows[0] + rows[1], 1.0, np.float32(np.nan)).path == "rows/1"


def test_an_argument_that_holds_infinity_is_named_where_all_else_comes_of_it():
    kernel = jnp.eye(2).at[0, 0].set(jnp.inf)
    assert find(lambda kernel, x: jnp.sin(x @ kernel), kernel, jnp.zeros((1, 2))).path == "kernel"  # 0 * inf is NaN


def test_arguments_that_do_no_harm_are_not_named():
    def step(best, x):
        return jnp.minimum(best, x), best, jnp.log(x)

    assert find(lambda x: jnp.where(jnp.isnan(x), 0.0, x), jnp.array([1.0, jnp.nan])) is None
    assert find(step, jnp.inf, 0.0).operation == "log"  # best goes through unchanged, and no harm comes of it
    assert find(lambda best, x: (jnp.minimum(best, x + jnp.inf), 1 / x), jnp.inf, 0.0).operation == "div"
    assert find(lambda past, x: (past, 1 / x), jnp.array([1.0, jnp.nan]), 0.0).operation == "div"
    assert find(lambda best: best, jnp.inf).path == "best"


def test_what_is_no_function_or_has_no_value_is_refused():
    with pytest.raises(TypeError, match=r"first_nonfinite: expected a function, got .*; pass f"):
        find(NUMBERS, NUMBERS)
    with pytest.raises(
        TypeError, match=r"first_nonfinite: mode: expected an array, got str; close over what is static"
    ):
        find(lambda x, mode: x, 1.0, "fast")
    with pytest.raises(TypeError, match=r"first_nonfinite: expected arrays with values, got .*; call it"):
        jax.jit(lambda x: find(jnp.log, x))(NUMBERS)


# ---- backward --------------------------------------------------------------------------------------------------------


def test_the_derivative_of_a_square_root_at_zero():
    def norm(x):
        with jax.named_scope("norm"):
            return jnp.sqrt((x**2).sum())

    value = find(jax.value_and_grad(norm), jnp.zeros(3))
    assert (value.operation, value.path, value.is_backward, value.kind) == ("div", "norm", True, "infinity")
    assert value.source.endswith("(norm)")
    assert find(norm, jnp.zeros(3)) is None


def test_nan_in_the_backward_pass_alone():
    def safe(x):
        return jnp.where(x > 0, jnp.log(x), 0.0).sum()

    found = find(jax.value_and_grad(safe), NUMBERS)
    assert (found.operation, found.kind, found.is_backward, found.count) == ("div", "NaN", True, 1)


def test_what_a_value_needs_is_not_of_the_backward_pass():
    def loss(w):
        return ((jnp.ones((2, 3)) @ w) ** 2).sum()

    for f in (jax.value_and_grad(loss), jax.grad(loss)):
        found = find(f, jnp.full((3, 2), 2e38))
        assert (found.operation, found.is_backward) == ("dot_general", False)


def test_what_leads_to_other_operations_is_not_of_the_backward_pass():
    """Of what is compiled, ``jax.grad`` alone keeps only what the gradient needs, and not the value itself."""

    def loss(w):
        hidden = jnp.ones((2, 3)) @ w
        deeper = jnp.sin(hidden)
        return (deeper**2).sum()

    found = find(jax.grad(jax.jit(loss)), jnp.full((3, 2), 2e38))
    assert (found.operation, found.is_backward) == ("dot_general", False)


def test_rules_of_ones_own():
    @jax.custom_vjp
    def twice(x):
        return 2 * x

    def back(x, g):
        with jax.named_scope("back"):
            return (g / x,)

    twice.defvjp(lambda x: (twice(x), x), back)
    found = find(jax.grad(lambda x: twice(x).sum()), NUMBERS)
    assert (found.operation, found.path.split("/")[-1], found.is_backward) == ("div", "back", True)
    assert find(lambda x: jnp.log(twice(x)), NUMBERS).operation == "log"
    assert find(lambda x: twice(jnp.log(x)), NUMBERS).operation == "log"

    @jax.custom_jvp
    def odd(x):
        return 1 / x

    odd.defjvp(lambda x, t: (odd(x[0]), t[0]))
    assert find(odd, NUMBERS).operation == "div"
    assert find(jax.grad(lambda x: odd(x).sum()), NUMBERS) is None  # 1, by its own rule


def test_checkpoints_are_entered_and_their_layers_named_once():
    model = layers.serial(layers.named("again", layers.remat(layers.named("root", layers.function(jnp.sqrt)))))

    def loss(x):
        return applied(model, x)(x).sum()

    found = find(jax.value_and_grad(loss), NUMBERS)
    assert (found.operation, found.is_backward) == ("div", True)
    assert found.path.startswith("again")
    assert found.path.count("again") == 1
    assert find(jax.checkpoint(lambda x: jnp.log(x)), NUMBERS).operation == "log"


# ---- loops and branches ----------------------------------------------------------------------------------------------


def test_the_iteration_of_a_scan():
    def body(c, a):
        return c * a, jnp.log(c)

    x = jnp.array([1.0, 2.0, 0.0, 3.0, 4.0])
    found = find(lambda x: lax.scan(body, 1.0, x), x)
    assert (found.operation, found.iterations, found.source.split()[-1]) == ("log", (3,), "(body)")
    found = find(lambda x: lax.scan(body, 1.0, x, reverse=True), x)
    assert found.iterations == (1,)  # the position along x, which is gone through from its end
    assert find(lambda x: lax.scan(body, 1.0, x)[0], x) is None


def test_the_iteration_of_a_while_loop():
    def squared(x, n):
        return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * c[1]), (0, x))[1]

    found = find(squared, jnp.array([1.0, 10.0]), 50)
    assert (found.operation, found.iterations, found.count) == ("mul", (5,), 1)  # 10 to the power of 64
    assert find(squared, jnp.array([1.0, 10.0]), 5) is None
    assert find(lambda x: lax.fori_loop(0, 9, lambda i, c: c * c, x), jnp.array([10.0])).iterations == (5,)


def test_nested_loops():
    def rows(x):
        return lax.scan(lambda c, row: (lax.scan(lambda d, a: (d * a, None), c, row)[0], None), 1.0, x)[0]

    x = jnp.ones((4, 3)).at[2, 0].set(1e30).at[3, 1].set(1e30)
    found = find(rows, x)
    assert (found.operation, found.iterations) == ("mul", (3, 1))
    assert " at iteration 1 within iteration 3 made " in str(found)


def test_a_loop_that_is_only_given_bad_numbers_is_not_blamed():
    def f(x):
        return lax.scan(lambda c, a: (c + a, c), 0.0, jnp.log(x))

    assert find(f, NUMBERS).operation == "log"
    assert find(lambda x: lax.scan(lambda c, a: (c + a, c), 0.0, x), NUMBERS.at[1].set(jnp.inf)).path == "x"


def test_what_is_good_in_the_outputs_of_an_operation_is_not_blamed_on_what_is_bad():
    def ordered(x):
        logs, same = lax.sort((jnp.log(x), x), num_keys=1)
        return 1 / same, jnp.isfinite(logs)

    assert find(ordered, NUMBERS).operation == "div"

    def f(x):
        total, logs = lax.scan(lambda c, a: (c + a, jnp.log(a)), 0.0, x)
        return 1 / (total - 2.5), jnp.where(x > 0, logs, 0.0)

    assert find(f, NUMBERS).operation == "div"


def test_a_bad_row_is_not_blamed_for_another():
    def body(c, a):
        return c, jnp.where(a < 3, -jnp.inf, a) + jnp.inf

    found = find(lambda x: lax.scan(body, 0.0, x), jnp.array([1.0, jnp.inf]))
    assert (found.operation, found.kind, found.iterations) == ("add", "NaN", (0,))


def test_a_loop_that_begins_at_infinity():
    def largest(x):
        return lax.scan(lambda m, a: (jnp.maximum(m, a), jnp.exp(m - jnp.maximum(m, a))), -jnp.inf, x)

    assert find(largest, NUMBERS) is None
    found = find(lambda x: largest(jnp.log(x) - jnp.inf), NUMBERS + 1)
    assert (found.operation, found.kind, found.iterations) == ("sub", "NaN", (0,))  # -inf - -inf


def test_the_branch_that_is_taken():
    def f(x, i):
        return lax.switch(i, [lambda x: x, lambda x: jnp.log(x), lambda x: 1 / x], x)

    assert [find(f, NUMBERS, i) and find(f, NUMBERS, i).operation for i in (0, 1, 2, 7)] == [None, "log", "div", "div"]
    assert find(lambda x: lax.cond(x[0] > 0, jnp.log, jnp.sin, x), NUMBERS).operation == "log"


def test_calls_and_maps():
    assert find(jax.jit(lambda x: jax.jit(jnp.log)(x)), NUMBERS).operation == "log"
    assert find(jax.vmap(lambda x: lax.cond(x > 0, jnp.log, lambda x: 1 / x, x)), NUMBERS).operation == "div"
    assert find(lambda x: jax.jvp(jnp.log, (x,), (x,)), NUMBERS).operation == "log"


def test_callbacks_and_random_numbers():
    seen = []

    def f(key, x):
        jax.debug.callback(lambda a: seen.append(float(a)), x[0])
        y = jax.pure_callback(lambda a: np.asarray(a) - 1, x, x)
        return key, jnp.log(y) + jax.random.normal(key, x.shape)

    assert find(f, jax.random.key(0), NUMBERS + 2) is None
    assert seen == [2.5]
    assert find(f, jax.random.key(0), NUMBERS).operation == "log"


# ---- layers ----------------------------------------------------------------------------------------------------------


def divided(x): return x / jnp.zeros(())  # fmt: skip


def network():
    def route(x, first, second):
        return second(first(x))

    return layers.network(route, first=layers.dense(2), second=layers.function(divided))


PATHS = {
    "a serial": (lambda: layers.serial(layers.dense(2), layers.named("norm", layers.function(divided))), "norm"),
    "a serial in a serial": (
        lambda: layers.serial(layers.named("deep", layers.serial(layers.relu, layers.function(divided)))),
        "deep/function_0",
    ),
    "a residual": (
        lambda: layers.serial(layers.residual(layers.dense(3), layers.function(divided))), "residual_0/function_0"
    ),
    "a network": (network, "second"),
    "a jitted function": (
        lambda: layers.serial(layers.named("compiled", layers.function(jax.jit(lambda x: jax.jit(divided)(x))))),
        "compiled",
    ),
    "a repeated layer": (
        lambda: layers.named("stack", layers.repeat(layers.serial(layers.dense(3), layers.function(divided)), 3)),
        "function_0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("way", [lambda f: f, lambda f: jax.value_and_grad(lambda x: f(x).sum()), jax.vmap])
def test_the_path_of_a_layer(name, way):
    make, path = PATHS[name]
    found = find(
        way(applied(make(), jnp.ones((2, 3)))), jnp.ones((2, 3)) if way is not jax.vmap else jnp.ones((4, 2, 3))
    )
    assert found.operation == "div"
    assert found.path.removeprefix("serial_0/") == path
    assert found.source == here(divided)
    assert not found.is_backward
    assert found.iterations == ((0,) if "repeat" in name else ())


@pytest.mark.slow
def test_the_time_step_of_a_recurrent_layer():
    cell = layers.elman_cell(1, activation=jnp.exp)
    model = layers.serial(layers.named("memory", layers.recurrent(cell)), layers.dense(1))
    x = jnp.ones((2, 7, 1)).at[1].set(-1)
    params, state = model.init(jax.random.key(0), x)
    params["memory"] = jax.tree.map(jnp.ones_like, params["memory"])
    params["memory"]["elman_cell_0"]["bias"] = jnp.zeros(1)

    def loss(p, x):
        return model.apply(p, state, x)[0].sum()

    # By hand: h = exp(1 + h) from 0 on is 2.7, 41, 2e18 and infinite, while exp(h - 1) stays below 1.
    for f in (loss, jax.value_and_grad(loss)):
        found = find(f, params, x)
        assert (found.operation, found.path, found.iterations) == ("exp", "memory/elman_cell_0", (3,))
        assert (found.count, found.size, found.is_backward) == (1, 2, False)
    assert find(loss, params, x[:, :3]) is None


# ---- training steps --------------------------------------------------------------------------------------------------

IMAGES = jax.random.normal(jax.random.key(1), (8, 6, 6, 1)), jnp.arange(8) % 3
TOKENS = jax.random.randint(jax.random.key(2), (2, 5), 0, 7), jax.random.randint(jax.random.key(3), (2, 5), 0, 7)


def convolutional():
    deep = layers.serial(layers.conv(4, 3), layers.batch_norm(), layers.relu)
    parts = layers.conv(2, 3), layers.relu, layers.max_pool(2), layers.named("deep", deep), layers.flatten
    return layers.serial(*parts, layers.dropout(0.1), layers.dense(3))


def attentive():
    return models.transformer(7, 8, heads=2, blocks=2, length=5)


def trained(model, batch, optimizer, steps):
    """A trainer, and the last state of at most so many steps from which the next step is all finite, or is not."""
    trainer = training.supervised(model, losses.softmax_cross_entropy, optimizer)
    state = trainer.init(jax.random.key(0), batch)
    step = jax.jit(trainer.step)
    for _ in range(steps):
        after, info = step(state, batch)
        if not all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves((after.params, trainer.report(info)))):
            break
        state = after
    return trainer, state


@pytest.fixture(scope="module")
def vision():
    return trained(convolutional(), IMAGES, optax.adam(1e-3), 1)


def changed(state, path, change):
    """A state with other numbers in one of its params."""
    leaves = jax.tree.map_with_path(
        lambda at, a: change(a) if jax.tree_util.keystr(at, simple=True, separator="/") == path else a, state.params
    )
    return state._replace(params=leaves)


@pytest.mark.slow
def test_a_good_step_is_no_finding(vision):
    trainer, state = vision
    assert find(trainer.step, state, IMAGES) is None
    assert find(jax.jit(trainer.step), state, IMAGES) is None


@pytest.mark.slow
def test_the_layer_of_a_huge_weight(vision):
    trainer, state = vision
    x, y = IMAGES
    bad = changed(state, "deep/conv_0/kernel", lambda a: a * 1e38 * 10)
    assert find(trainer.step, bad, (10 * x, y)).path in ("deep/conv_0", "deep/batch_norm_0")
    bad = changed(state, "dense_0/kernel", lambda a: jnp.full_like(a, 3e38))
    found = find(trainer.step, bad, IMAGES)
    assert (found.operation, found.path, found.is_backward) == ("dot_general", "dense_0", False)
    assert max(a.largest for a in found.inputs) == pytest.approx(3e38)


@pytest.mark.slow
def test_a_weight_that_is_nan(vision):
    trainer, state = vision
    bad = changed(state, "deep/conv_0/kernel", lambda a: a.at[0, 0, 0, 0].set(jnp.nan))
    found = find(trainer.step, bad, IMAGES)
    assert (found.operation, found.path) == ("argument", "train_state/params/deep/conv_0/kernel")
    assert (found.kind, found.count) == ("NaN", 1)


@pytest.mark.slow
def test_data(vision):
    trainer, state = vision
    x, y = IMAGES
    found = find(trainer.step, state, (x.at[3].set(jnp.nan), y))
    assert (found.path, found.count, found.size) == ("batch/0", 36, 288)
    found = find(trainer.step, state, (x * 1e30, y))
    assert (found.operation, found.path, found.kind) == ("square", "deep/batch_norm_0", "infinity")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.adam(1e30), optax.sgd(1e30)], ids=["adam", "sgd"])
def test_a_learning_rate_that_is_far_too_large(optimizer):
    trainer, state = trained(convolutional(), IMAGES, optimizer, 5)
    found = find(trainer.step, state, IMAGES)
    assert (found.operation, found.path, found.is_backward) == ("dot_general", "deep/conv_0", False)
    assert max(a.largest for a in found.inputs) > 1e28


@pytest.mark.slow
def test_the_block_of_a_transformer():
    trainer, state = trained(attentive(), TOKENS, optax.adam(1e30), 5)
    found = find(trainer.step, state, TOKENS)
    assert found.path == "decoder/repeat_0/serial_0/residual_0/attention_0"
    assert (found.operation, found.iterations, found.is_backward) == ("dot_general", (0,), False)
    # The second block alone.
    path = "decoder/repeat_0/serial_0/residual_1/serial_0/dense_1/kernel"
    state = changed(trainer.init(jax.random.key(0), TOKENS), path, lambda a: a.at[1].set(3e38))
    found = find(trainer.step, state, TOKENS)
    assert found.path == path.removesuffix("/kernel")
    assert found.iterations == (1,)


@pytest.mark.slow
def test_the_optimizer_has_no_layer():
    line = training.supervised(layers.dense(1), losses.squared_error, optax.adam(1e-3))
    batch = jnp.full((2, 1), 1e-5), jnp.full((2, 1), 1e25)
    state = line.init(jax.random.key(0), batch)
    state = changed(state, "kernel", jnp.zeros_like)
    found = find(lambda state: line.step(state, batch)[0], state)
    assert (found.operation, found.path, found.is_backward) == ("integer_pow", "", False)


@pytest.mark.slow
def test_micro_batches():
    model = layers.serial(layers.dense(3), layers.named("bad", layers.function(lambda x: x / (x - x))))
    trainer = training.supervised(model, losses.softmax_cross_entropy, optax.sgd(0.1), micro_batch_size=2)
    batch = jnp.ones((6, 2)), jnp.zeros(6, jnp.int32)
    found = find(trainer.step, trainer.init(jax.random.key(0), batch), batch)
    assert (found.operation, found.path, found.iterations) == ("div", "bad", (0,))


# ---- that what is computed is right ----------------------------------------------------------------------------------


def evaluated(f, *args):
    """The outputs of ``f``, computed operation by operation as for a search."""
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    inputs = [nonfinite._Value(a) for a in jax.tree.leaves(args)]
    outputs = [a.value for a in nonfinite._evaluated(jaxpr, inputs, Place(), itertools.count())]
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def mixed(key, x):
    half = (x.astype(jnp.bfloat16) ** 2).astype(jnp.float32)
    chosen = lax.switch(x[0].astype(int), [jnp.sin, jnp.cos], x)
    return jax.random.split(key), jnp.sort(half * chosen), jax.nn.gelu(jnp.cumsum(x)), x > 1, jnp.argsort(x)


FINITE = {
    "kinds of numbers": (mixed, jax.random.key(0), NUMBERS),
    "mask": (masked, jnp.ones((2, 3)), MASK),
    "gradient": (jax.value_and_grad(lambda x: jnp.tanh(x).sum() ** 3), NUMBERS),
    "checkpoint": (jax.value_and_grad(jax.checkpoint(lambda x: jnp.tanh(jnp.sin(x)).sum())), NUMBERS),
}


@pytest.mark.parametrize("name", FINITE)
def test_values_are_those_of_eager_evaluation(name):
    f, *args = FINITE[name]
    with jax.disable_jit():
        expected = f(*args)
    for a, b in zip(jax.tree.leaves(evaluated(f, *args)), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
def test_a_training_step_has_the_values_of_eager_evaluation(vision):
    trainer, state = vision
    with jax.disable_jit():
        expected, info = trainer.step(state, IMAGES)
    got, got_info = evaluated(trainer.step, state, IMAGES)
    pairs = zip(
        jax.tree.leaves((got.params, got.model_state, got.opt_state, got_info)),
        jax.tree.leaves((expected.params, expected.model_state, expected.opt_state, info)),
        strict=True,
    )
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def test_under_the_debugging_of_jax_and_in_double_precision():
    with jax.debug_nans(True):
        assert find(lambda x: x / x, NUMBERS).operation == "div"
    with jax.enable_x64(True):
        x = jnp.array([1e200, 1.0])
        assert x.dtype == jnp.float64
        assert find(lambda x: x * 1e100, x) is None
        assert find(lambda x: x * x, x).inputs[0].largest == 1e200


def test_what_no_operation_needs_any_more_is_forgotten():
    size, most = 12_347, []

    def count(_):
        most.append(sum(a.shape == (size,) for a in jax.live_arrays()))
        return np.zeros((), np.float32)

    def f(x):
        for _ in range(20):
            x = jnp.sin(x) * 2
        return jnp.log(x + 3) + jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32), x[0])

    assert find(f, jnp.ones(size)) is None
    assert max(most) <= 3  # the input, what the callback is for, and nothing of what came between


def test_the_records_are_frozen():
    found = find(jnp.log, 0.0)
    with pytest.raises(AttributeError):
        found.path = "elsewhere"
    assert isinstance(found, inspection.NonFinite)
    assert isinstance(found.inputs[0], inspection.Operand)
    assert found == find(functools.partial(jnp.log), 0.0)
