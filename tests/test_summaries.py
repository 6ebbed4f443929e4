"""Summaries: what is counted equals what is computed by hand, the params themselves, and what XLA counts."""

import csv
import io
import itertools
import math
from html.parser import HTMLParser

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from jax import lax

from funcnn import inspection, layers, models, trees
from funcnn.core import Layer
from funcnn.inspection import costs, tables

KEY = jax.random.key(0)
F32 = jnp.float32
IMAGES = jax.ShapeDtypeStruct((8, 28, 28, 1), F32)
TOKENS = jax.ShapeDtypeStruct((2, 6), jnp.int32)
SMALL = layers.serial(layers.dense(8), layers.relu, layers.named("head", layers.dense(2)))
SPEC = jax.ShapeDtypeStruct((32, 3), F32)


def spec(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def rows(model, x=SPEC, **options):
    return {row.path: row for row in inspection.summary(model, x, **options).rows}


def block(features=8, hidden=16, activation=layers.tanh):
    inside = layers.dense(hidden), activation, layers.dense(features)
    return layers.serial(layers.residual(layers.layer_norm(), *inside))


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_a_perceptron_by_hand():
    """Batch 32, 3 -> 8 -> 2: a product is 2 m n k, a bias m n, its gradient a sum over 32 rows of 31 additions."""
    table = inspection.summary(SMALL, SPEC, optimizer=optax.adam(1e-3))
    first, relu, head = table.rows
    assert first.forward == 2 * 32 * 3 * 8 + 32 * 8
    assert first.backward == 2 * 32 * 3 * 8 + 31 * 8  # of the kernel and of the bias; of the input nobody asks
    assert (relu.forward, relu.backward) == (
        32 * 8,
        2 * 32 * 8,
    )  # forward a maximum, backward a comparison and a choice
    assert head.backward == 2 * (2 * 32 * 8 * 2) + 31 * 2  # of the kernel, of its input, of the bias
    # What the gradient reads: where relu was positive, one byte each, and what it gave; the input is there anyway.
    assert [row.activations for row in table.rows] == [0, 32 * 8 * (1 + 4), 0]
    assert [row.bytes for row in table.rows] == [4 * 32, 0, 4 * 18]
    assert table.gradients == table.bytes == 200
    assert table.optimizer == 2 * 200 + 4  # two moments and a counter
    assert table.memory == 200 + 200 + 404 + 1280
    assert table.notes == ()


def test_what_is_read_twice_is_kept_once():
    """Two products read what relu gave, each reshaped for itself: 24 numbers, and a byte for each that was positive."""
    model = layers.serial(layers.dense(4), layers.relu, layers.concatenate(layers.dense(2), layers.dense(3)))
    table = inspection.summary(model, spec(2, 3, 5))
    assert {row.path: row.activations for row in table.rows if row.activations} == {"relu_0": 24 * (4 + 1)}


def test_shares():
    table = inspection.summary(SMALL, SPEC)
    assert table.shares("params") == (32 / 50, 0, 18 / 50)
    assert sum(table.shares("operations")) == pytest.approx(1)
    assert table.shares("state") == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="shares: expected column to be one of"):
        table.shares("rows")


@pytest.mark.parametrize(
    ("f", "shapes", "count"),
    [
        (lambda a: a + a, [(3, 4)], 12),
        (lambda a: jnp.exp(a), [(3, 4)], 12),
        (lambda a: a.sum(), [(3, 4)], 11),
        (lambda a: a.max(axis=0), [(3, 4)], 8),
        (lambda a: a**3, [(5,)], 10),
        (lambda a: a**8, [(5,)], 15),
        (lambda a: lax.integer_pow(a, -2), [(5,)], 10),
        (lambda a: a**0, [(5,)], 0),
        (lambda a: a.T.reshape(-1)[:3].astype(jnp.bfloat16), [(3, 4)], 0),
        (lambda a: jnp.cumsum(a), [(7,)], 7),
        (lambda a: (a * 0 > 0).astype(jnp.int32).sum() * 3, [(4,)], 8),  # integers are no floating-point numbers
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (lambda a: jnp.zeros(3).at[jnp.array([0, 0])].add(a[:2]), [(3,)], 2),
        (lambda a: lax.scan(lambda c, _: (c * a, None), a, length=5)[0], [(3,)], 15),
        (lambda a: lax.scan(lambda c, x: (c + x, jnp.exp(c)), a[0], a)[0], [(4, 2)], 8),  # what is stacked nobody reads
        (lambda a: lax.fori_loop(0, 6, lambda i, c: c * 2.0, a), [(3,)], 18),
        (lambda a: jax.checkpoint(jnp.sin)(a), [(3,)], 3),
        (lambda a: jax.jit(jnp.sin)(a), [(3,)], 3),
        (lambda a: lax.cond(True, lambda v: v, lambda v: jnp.sin(v) + 1, a), [(3,)], 6),
        (lambda a: jnp.sort(a), [(8,)], 24),
        (lambda a: lax.reduce_window(a, -jnp.inf, lax.max, (2,), (2,), "VALID"), [(8,)], 8),
        (lambda a: jnp.fft.fft(a).real, [(8,)], 5 * 8 * 3),
    ],
)
def test_operations_by_hand(f, shapes, count):
    jaxpr = jax.make_jaxpr(f)(*(spec(*shape) for shape in shapes))
    assert costs.operations(jaxpr, (True,) * len(jaxpr.out_avals), costs.ledger()).operations.total() == count


@given(*[st.integers(1, 9)] * 3, *[st.integers(1, 4)] * 3, st.integers(0, 5))
def test_what_a_window_meets_is_counted(size, taps, outputs, stride, holes, spread, low):
    met = sum(
        0 <= at <= (size - 1) * holes and at % holes == 0
        for o, k in itertools.product(range(outputs), range(taps))
        for at in [o * stride + k * spread - low]
    )
    assert costs._pairs(size, taps, outputs, stride, low, holes, spread) == met


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME"},
        {"padding": "VALID", "window_strides": (2, 1)},
        {"padding": [(3, 0), (1, 2)], "rhs_dilation": (2, 1)},
        {"padding": "SAME", "groups": 2},
    ],
)
def test_a_convolution_and_its_gradients_as_xla_counts_them(options):
    """XLA's own convolution, as off the CPU: padding is not multiplied, nor are the holes in a gradient's input."""
    options = {"window_strides": (1, 1)} | options
    groups = options.pop("groups", 1)

    def conv(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, dimension_numbers=layout, feature_group_count=groups, **options)

    def both(x, kernel, ct):
        y, back = jax.vjp(conv, x, kernel)
        return y, back(ct)

    given = spec(3, 11, 7, 4), spec(3, 2, 4 // groups, 6)
    given = *given, jax.eval_shape(conv, *given)
    jaxpr = jax.make_jaxpr(both)(*given)
    counted = costs.operations(jaxpr, (True,) * 3, costs.ledger()).operations.total()
    assert counted == jax.jit(both).lower(*given).cost_analysis()["flops"]


# ---- against XLA -----------------------------------------------------------------------------------------------------


def unrolled(features):
    """Blocks one after the other: XLA counts the body of a loop once, so ``repeat`` would not be compared at all."""
    attention = layers.residual(layers.layer_norm(), layers.attention(4, causal=True))
    forward = layers.residual(layers.layer_norm(), layers.dense(4 * features), layers.gelu, layers.dense(features))
    start = layers.embedding(64, features), layers.learned_positions(16)
    return layers.serial(*start, attention, forward, layers.layer_norm(), layers.dense(64))


# Wide enough that it does not count what XLA makes of one function: an erf is a polynomial of 60 operations there and
# one here, and of comparisons in max pooling it counts what is done to the booleans.
AGAINST_XLA = {
    "dense": (models.mlp([256, 128], 10), spec(64, 784)),
    "convolutional": (models.convnet([32, 64], 10), IMAGES),
    # With channels enough for the products: cheap operations XLA computes twice rather than keep what they gave.
    "normalized": (
        layers.serial(layers.conv(32, 3, bias=False), layers.batch_norm(), layers.tanh, layers.global_avg_pool),
        spec(8, 14, 14, 16),
    ),
    "transformer": (unrolled(1024), spec(4, 16, dtype=jnp.int32)),
    # A loop of one round: XLA counts it as often as it runs.
    "one block": (
        models.transformer(64, 1024, heads=4, blocks=1, length=16), spec(4, 16, dtype=jnp.int32)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AGAINST_XLA)
def test_operations_are_those_that_xla_counts(name):
    check_against_xla(*AGAINST_XLA[name], training=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", AGAINST_XLA)
def test_operations_of_training_are_those_that_xla_counts(name):
    check_against_xla(*AGAINST_XLA[name], training=True)


def test_convolutions_off_the_cpu_are_those_that_xla_counts(monkeypatch):
    monkeypatch.setattr("funcnn.primitives.platform", lambda: "gpu")
    check_against_xla(*AGAINST_XLA["convolutional"], training=False)


def check_against_xla(model, x, training):
    """Within 5 %, of the program as it is written and as it is compiled; transcendental functions are apart there."""
    params, state = jax.eval_shape(model.init, KEY, x)

    def forward(params, state, x):
        return model.apply(params, state, x, key=KEY, training=training)

    def both(params, state, x, ct):
        y, back, new = jax.vjp(lambda p: forward(p, state, x), params, has_aux=True)
        return y, new, back(ct)

    y = jax.eval_shape(forward, params, state, x)[0]
    table = inspection.summary(model, x, training=training)
    programs = {table.forward: (forward, ()), table.forward + table.backward: (both, (y,))}
    for counted, (f, more) in programs.items():
        lowered = jax.jit(f).lower(params, state, x, *more)
        for analysis in (lowered.cost_analysis(), lowered.compile().cost_analysis()):
            theirs = analysis["flops"] + (analysis.get("transcendentals") or 0)
            assert counted == pytest.approx(theirs, rel=0.05)


# ---- what runs several times, and what does not ----------------------------------------------------------------------


def test_a_loop_counts_as_often_as_it_runs():
    """Against the same layers one by one, which XLA would count too."""
    looped = inspection.summary(layers.repeat(block(), 5), spec(4, 8))
    apart = inspection.summary(layers.serial(*[block() for _ in range(5)]), spec(4, 8))
    # In the loop also the input of the first block has a gradient, and the input of each is kept.
    one = inspection.summary(block(), spec(4, 8))
    assert (looped.params, looped.bytes, looped.forward) == (apart.params, apart.bytes, apart.forward)
    assert looped.forward == 5 * one.forward
    assert apart.backward <= looped.backward <= apart.backward + (apart.backward - 5 * one.backward) / 4 + 1
    assert {row.times for row in looped.rows} == {5}
    assert "residual_0/dense_0 ×5" in repr(looped)
    (whole,) = inspection.summary(layers.repeat(block(), 5), spec(4, 8), depth=1).rows
    assert (whole.path, whole.times, whole.forward) == ("serial_0", 5, looped.forward)


def test_loops_in_loops():
    row = rows(layers.repeat(layers.serial(layers.repeat(layers.dense(8), 3)), 4), spec(2, 8))
    assert row["serial_0/repeat_0/dense_0"].times == 12
    assert row["serial_0/repeat_0/dense_0"].forward == 12 * (2 * 2 * 8 * 8 + 2 * 8)


def test_what_is_the_same_in_each_round_belongs_to_its_layer():
    """JAX computes it once, before the loop, for the gradient, and forgets where it was."""
    shift = layers.function(lambda x: x * jnp.exp(jnp.arange(8.0))[None])
    found = rows(layers.repeat(layers.serial(layers.dense(8), shift), 3), spec(4, 8))
    assert list(found) == ["serial_0/dense_0", "serial_0/function_0", "serial_0"]
    assert [row.activations for row in found.values()] == [0, 4 * 8, 3 * 4 * (4 * 8)]  # the input of each round
    assert found["serial_0/function_0"].forward == 3 * (8 + 4 * 8)


def test_a_recurrent_cell_counts_for_each_step():
    def table(steps):
        return inspection.summary(layers.recurrent(layers.gru_cell(4)), spec(2, steps, 3))

    of = [table(steps) for steps in (3, 4, 5)]
    assert of[2].forward - of[1].forward == of[1].forward - of[0].forward == of[0].forward / 3
    assert of[2].backward - of[1].backward == of[1].backward - of[0].backward > 0
    assert of[0].params == of[2].params
    assert [(row.path, row.times, row.shape) for row in of[2].rows] == [("gru_cell_0", 5, (2, 5, 4))]


def test_a_layer_that_is_called_twice_has_its_params_once():
    once, thrice = (inspection.summary(layers.shared(layers.dense(3), n), SPEC) for n in (1, 3))
    assert (thrice.params, thrice.forward) == (once.params, 3 * once.forward)
    siamese = layers.network(
        lambda pair, encoder, head: head(encoder(pair[0]) - encoder(pair[1])),
        head=layers.dense(1), encoder=layers.dense(4),
    )  # fmt: skip
    found = rows(siamese, (spec(5, 3), spec(5, 3)))
    assert list(found) == ["encoder", "network", "head"] or list(found) == ["encoder", "head", "network"]
    assert [a.shape for a in found["encoder"].outputs] == [(5, 4), (5, 4)]
    assert found["encoder"].params == 16
    assert found["network"].forward == 20


@pytest.mark.parametrize("dear", ["on_true", "on_false"])
def test_of_a_choice_the_dearest_branch_counts(dear):
    cheap = "on_false" if dear == "on_true" else "on_true"
    branches = {cheap: layers.dense(3), dear: layers.serial(layers.dense(9), layers.dense(3))}
    table = inspection.summary(layers.condition(lambda x: x.mean() > 0, **branches), SPEC)
    found = {row.path: row for row in table.rows}
    alone = inspection.summary(branches[dear], SPEC)
    assert (found[cheap].forward, found[cheap].backward, found[cheap].shape) == (0, 0, (32, 3))
    assert table.params == 12 + alone.params
    inside = [row for path, row in found.items() if path.startswith(dear)]
    assert sum(row.forward for row in inside) == alone.forward
    assert sum(row.backward for row in inside) == alone.backward
    assert table.notes == ("condition: of a choice the dearest branch is counted",)


def test_what_cannot_be_counted_is_said():
    def halved(x):
        return lax.while_loop(lambda a: a.sum() > 1, lambda a: a / 2, x)

    table = inspection.summary(layers.serial(layers.named("loop", layers.function(halved))), SPEC)
    assert table.forward == 95 + 1 + 96
    assert table.notes == ("loop: a while loop runs as often as the data decide: its body is counted once",)
    assert table.notes[0] in repr(table)
    qr = layers.named("qr", layers.function(lambda x: jnp.linalg.qr(x)[0]))
    notes = inspection.summary(layers.serial(qr), SPEC).notes
    assert notes
    assert all(note.startswith("qr: ") and note.endswith(" is not counted") for note in notes)


def test_what_nothing_needs_is_free():
    def wasteful(x):
        jnp.exp(x)
        return x + 1

    assert inspection.summary(layers.function(wasteful), SPEC).forward == 96


def test_computing_again_costs_operations_and_saves_memory():
    plain, again = (inspection.summary(layers.repeat(block(), 6, remat=remat), spec(4, 8)) for remat in (False, True))
    assert again.forward == plain.forward
    ends = sum(row.forward for row in plain.rows if row.path in ("serial_0/residual_0/dense_1", "serial_0/residual_0"))
    assert again.backward == plain.backward + plain.forward - ends  # no gradient reads what the block gives
    assert again.activations == 6 * 4 * 8 * 4  # the input of each block
    assert plain.activations > 3 * again.activations


def test_frozen_layers_have_state_and_no_gradient():
    model = layers.serial(layers.frozen(layers.dense(8)), layers.relu, layers.dense(2))
    table = inspection.summary(model, SPEC)
    first, relu, last = table.rows
    assert (first.params, first.state, first.bytes) == (0, 32, 128)
    assert first.forward == 2 * 32 * 3 * 8 + 32 * 8
    assert (first.backward, relu.backward) == (0, 0)
    assert last.backward == 2 * 32 * 8 * 2 + 31 * 2
    assert (table.params, table.state, table.gradients) == (18, 32, 72)


def test_weights_that_a_wrapper_holds_are_those_of_the_layer():
    table = inspection.summary(layers.serial(layers.lora(SMALL, 2)), SPEC)
    params, _ = layers.serial(layers.lora(SMALL, 2)).init(KEY, SPEC)
    assert table.params == trees.count(params)
    assert [row.params for row in table.rows[:3]] == [32 + 2 * (3 + 8), 0, 18 + 2 * (8 + 2)]


def test_dropout_counts_when_training():
    model = layers.serial(layers.dense(4), layers.dropout(0.5))
    rest, busy = (inspection.summary(model, SPEC, training=training) for training in (False, True))
    assert rest.rows[1].forward == 0 < busy.rows[1].forward
    assert [row.shape for row in rest.rows] == [row.shape for row in busy.rows] == [(32, 4)] * 2
    norms = [inspection.summary(layers.serial(layers.batch_norm()), SPEC, training=t) for t in (False, True)]
    assert norms[0].forward < norms[1].forward
    assert [len(norm.rows[0].outputs) for norm in norms] == [1, 1]  # its statistics are state, no output


# ---- rows ------------------------------------------------------------------------------------------------------------

MODELS = {
    "perceptron": (models.mlp([16, 8], 3, dropout=0.1), SPEC),
    "convolutional": (models.convnet([4], 3), spec(2, 8, 8, 1)),
    "resnet": (models.resnet(18, 5, width=4, small=True), spec(2, 8, 8, 3)),
    "transformer": (models.transformer(11, 16, heads=4, blocks=2, length=8), TOKENS),
    "both": (
        models.transformer(11, 16, heads=4, blocks=2, length=8, kind="both"), {"source": TOKENS, "target": TOKENS}
    ),
    "autoencoder": (models.autoencoder([8], 2, 3), SPEC),
    "bidirectional": (
        layers.bidirectional(layers.lstm_cell(4)), {"x": spec(2, 5, 3), "lengths": spec(2, dtype=jnp.int32)}
    ),
    "ensemble": (layers.ensemble(SMALL, 3), SPEC),
    "one layer": (layers.dense(3), SPEC),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_totals_are_those_of_the_params_and_of_the_rows(name):
    model, x = MODELS[name]
    params, state = jax.eval_shape(model.init, KEY, x)
    whole = inspection.summary(model, x, training=True)
    assert whole.params == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert whole.state == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
    assert whole.bytes == sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves((params, state)))
    assert len({row.path for row in whole.rows}) == len(whole.rows)
    for depth in (1, 2, 3):
        table = inspection.summary(model, x, training=True, depth=depth)
        assert all(row.path.count("/") < depth for row in table.rows)
        assert table[1:] == whole[1:]
        for column in ("params", "state", "bytes", "forward", "backward", "activations"):
            assert sum(getattr(row, column) for row in table.rows) == getattr(whole, column)
    # What JAX moves out of loops for the gradient, a mask, is still that of the layer.
    assert not model.children or all(row.path != model.kind for row in whole.rows)


def test_rows_come_in_the_order_in_which_they_run():
    assert list(rows(SMALL)) == ["dense_0", "relu_0", "head"]
    many = layers.serial(*[layers.dense(3)] * 12)
    assert list(rows(many)) == [f"dense_{i}" for i in range(12)]
    turned = layers.network(lambda x, b, a: b(a(x)), b=layers.dense(1), a=layers.dense(2))
    assert list(rows(turned)) == ["a", "b"]
    with_sum = layers.serial(layers.residual(layers.dense(3), shortcut=layers.dense(3)), layers.relu)
    assert list(rows(with_sum)) == ["residual_0/dense_0", "residual_0/shortcut", "residual_0", "relu_0"]
    assert rows(with_sum)["residual_0"].forward == 96
    assert list(rows(with_sum, depth=1)) == ["residual_0", "relu_0"]


def test_what_computes_nothing_gives_what_it_gets():
    def shapes(model, x=SPEC):
        return {path: [a.shape for a in row.outputs] for path, row in rows(model, x).items()}

    model = layers.serial(layers.dropout(0.5), layers.concatenate(layers.dense(4), layers.identity), layers.flatten)
    assert shapes(model) == {
        "dropout_0": [(32, 3)],
        "concatenate_0/dense_0": [(32, 4)],
        "concatenate_0/identity_0": [(32, 3)],
        "flatten_0": [(32, 7)],
    }
    pair = layers.parallel(layers.identity, layers.dense(2))
    assert shapes(pair, (spec(5, 1), spec(5, 3))) == {"identity_0": [(5, 1)], "dense_0": [(5, 2)]}
    assert shapes(pair, (spec(5, 1), spec(5, 3)))["identity_0"] == [(5, 1)]
    assert shapes(layers.serial(layers.parallel(layers.identity, layers.relu))) == {
        "parallel_0/identity_0": [(32, 3)],
        "parallel_0/relu_0": [(32, 3)],
    }


def test_outputs_have_dtypes_and_side_inputs_are_none_of_them():
    x = {"x": spec(2, 5, 3, dtype=jnp.bfloat16), "mask": spec(2, 5, dtype=bool)}
    (row,) = rows(layers.recurrent(layers.gru_cell(4)), x).values()
    assert (row.shape, row.dtype) == ((2, 5, 4), jnp.bfloat16)
    carry = rows(layers.recurrent(layers.lstm_cell(4), return_carry=True), spec(2, 5, 3))
    assert sorted(a.shape for a in carry["lstm_cell_0"].outputs) == [(2, 4), (2, 4), (2, 5, 4)]


def test_inside_of_a_transformer():
    model = models.transformer(11, 16, heads=4, blocks=2, length=8)
    found = rows(model, TOKENS)
    assert found["decoder/repeat_0/serial_0/residual_1/serial_0/dense_0"].shape == (2, 6, 64)
    assert [a.shape for a in found["table"].outputs] == [(2, 6, 16), (2, 6, 11)]
    assert "network" not in found


# ---- from shapes alone -----------------------------------------------------------------------------------------------


def test_seventy_billion_params_take_no_memory_and_few_traces(compilations):
    calls = []

    def seen(x):
        calls.append(x.shape)
        return jax.nn.gelu(x)

    wide = {"heads": 64, "blocks": 80, "length": 4096, "hidden": 36864}
    model = models.transformer(32000, 8192, **wide, activation=layers.function(seen))
    before = [id(a) for a in jax.live_arrays()]
    table = inspection.summary(model, spec(4, 2048, dtype=jnp.int32), optimizer=optax.adam(1e-3))
    assert [id(a) for a in jax.live_arrays()] == before
    assert compilations == []
    assert len(calls) <= 12  # for 80 blocks: where layers hold layers, init asks each of them for shapes
    assert 69e9 < table.params < 71e9
    assert table.optimizer == 2 * 4 * table.params + 4
    # Each weight of a product is multiplied once for each token: 2 forward, 4 backward; attention comes on top.
    products = 2 * 8192 * (table.params - 33554432)
    assert products < table.forward < 1.06 * products
    assert 1.99 * table.forward < table.backward < 2.01 * table.forward


def test_sizes_beyond_32_bits():
    row = rows(layers.serial(layers.dense(3), layers.relu), spec(2**33, 4))["dense_0"]
    assert row.forward == 2 * 2**33 * 4 * 3 + 2**33 * 3
    signal = lax.conv_general_dilated
    jaxpr = jax.make_jaxpr(lambda x, k: signal(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")))(
        spec(1, 2**30, 1), spec(3, 1, 1)
    )
    assert costs.operations(jaxpr, (True,), costs.ledger()).operations.total() == 2 * (3 * 2**30 - 2)


@pytest.mark.parametrize("model", [layers.serial(), layers.relu, layers.dropout(0.1), layers.flatten, layers.identity])
def test_without_params_there_is_no_gradient(model):
    table = inspection.summary(model, SPEC, training=True, optimizer=optax.adam(1e-3))
    assert (table.params, table.bytes, table.backward, table.activations, table.gradients) == (0,) * 5
    assert len(table.rows) <= 1
    assert "total" in repr(table)
    assert "nan" not in table.csv() + table.markdown() + table.html()


def test_integers_and_keys():
    tokens = layers.serial(layers.embedding(5, 3), layers.function(lambda x: x.sum((1, 2)).astype(jnp.int32)))
    assert inspection.summary(tokens, TOKENS).backward == 0  # what is an integer has no gradient

    def init(key, x):
        return {}, {"key": key, "count": jnp.zeros((), jnp.int32)}

    def apply(params, state, x, *, key=None, training=False):
        return x + jax.random.normal(state["key"], x.shape), state

    noisy = Layer(init, apply, "noise")
    (row,) = rows(noisy).values()
    assert (row.state, row.bytes) == (2, 12)

    def counted(params, state, x, *, key=None, training=False):
        return x * params["scale"] * params["count"], state

    made = {"scale": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}
    table = inspection.summary(Layer(lambda key, x: (made, {}), counted, "counted"), SPEC)
    assert (table.params, table.bytes, table.gradients) == (2, 8, 4)
    drawn = layers.function(lambda key: jax.random.normal(key, (3,)))
    assert inspection.summary(drawn, KEY).rows[0].shape == (3,)


def test_inside_of_jit_vmap_and_a_sweep():
    found = []

    @jax.jit
    def counted(x, rate):
        model = layers.serial(layers.dense(4), layers.dropout(rate), layers.dense(2))
        found.append(inspection.summary(model, x, training=True))
        return x * found[-1].params

    counted(jnp.ones((2, 3)), 0.5)
    assert found[0].params == 26
    jax.vmap(lambda x: found.append(inspection.summary(SMALL, x)) or x)(jnp.ones((7, 32, 3)))
    assert found[1] == inspection.summary(SMALL, SPEC)
    mapped = inspection.summary(layers.function(jax.vmap(jnp.sin)), SPEC)
    assert mapped.forward == 96


def test_half_precision_and_arrays():
    assert inspection.summary(SMALL, np.ones((32, 3))) == inspection.summary(SMALL, SPEC)
    half = inspection.summary(SMALL, spec(32, 3, dtype=jnp.bfloat16))
    assert {row.dtype for row in half.rows} == {jnp.dtype(jnp.bfloat16)}
    assert half.params == 50
    assert half.bytes == 200


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((layers.dense, SPEC), {}, TypeError, "summary: expected a layer, got the factory dense; call it"),
        ((SMALL, (32, 3)), {}, TypeError, r"got the numbers \(32, 3\); for an input of this shape pass jax.ShapeDtype"),
        ((SMALL, "digits"), {}, TypeError, "summary: expected an input of arrays, got a str in it; pass an array"),
        ((SMALL, SPEC), {"depth": 0}, ValueError, "summary: expected depth of at least 1, got 0"),
        ((SMALL, SPEC), {"depth": 1.5}, TypeError, "summary: expected depth as a whole number"),
        ((SMALL, SPEC), {"optimizer": optax.adam}, TypeError, "expected an optimizer, got a function; call it"),
        ((SMALL, SPEC), {"optimizer": 3}, TypeError, "expected an optimizer, got a int; pass one such as"),
        ((models.convnet([4], 2), SPEC), {}, ValueError, r"convnet: expected \(batch, height, width, channels\)"),
    ],
)
def test_what_is_refused(args, options, error, message):
    with pytest.raises(error, match=message):
        inspection.summary(*args, **options)


def test_a_wrong_shape_names_the_layer():
    model = layers.serial(layers.named("encoder", layers.serial(layers.dense(3), layers.conv(2, 3))))
    with pytest.raises(ValueError, match="conv") as raised:
        inspection.summary(model, SPEC)
    assert any("encoder / conv_0: input (32, 3)" in note for note in raised.value.__notes__)


def test_a_symbolic_size_is_refused():
    (batch,) = jax.export.symbolic_shape("b")
    with pytest.raises(ValueError, match="expected an input of a known shape"):
        inspection.summary(SMALL, spec(batch, 3))


# ---- how it looks ----------------------------------------------------------------------------------------------------


class Cells(HTMLParser):
    """The cells of the one table of a page, row by row."""

    def __init__(self, page):
        super().__init__()
        self.rows = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, text):
        if self.lasttag in ("td", "th") and text.strip():
            self.rows[-1][-1] += text


def test_one_table_in_four_forms():
    named = layers.serial(layers.named("a<b>|*", layers.dense(8)), layers.batch_norm())
    table = inspection.summary(named, SPEC, optimizer=optax.sgd(0.1))
    read = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["path"] for row in read] == ["a<b>|*", "batch_norm_0"]
    assert [int(row["forward"]) for row in read] == [row.forward for row in table.rows]
    assert [float(row["share_of_operations"]) for row in read] == list(table.shares("operations"))
    assert {row["shape"] for row in read} == {"(32, 8)"}
    cells = Cells(table.html()).rows
    assert table.html() == table._repr_html_()
    assert cells[1][0] == "a<b>|*"
    assert {len(row) for row in cells} == {10}
    assert cells[-1][0] == "total"
    assert cells[-1][2] == f"{table.params:,}"
    lines = table.markdown().split("\n\n")[0].split("\n")
    assert lines[2].startswith(r"| a\<b>\|\* | (32, 8) float32 | 32 |")
    assert {line.replace(r"\|", "").count("|") for line in lines} == {11}
    text = repr(table)
    assert all(max(map(len, text.split("\n"))) <= 160 and row.path in text for row in table.rows)
    assert "memory to train: params and state 256 B, gradients 192 B," in text
    assert "optimizer 0 B; together" in text


def test_brackets_are_no_markup():
    model = layers.serial(layers.named("[bold]x[red]", layers.relu))
    assert "[bold]x[red]" in repr(inspection.summary(model, SPEC))


def test_a_column_of_nothing_is_left_out():
    assert "state" not in repr(inspection.summary(SMALL, SPEC)).split("\n")[1]
    assert "state" in repr(inspection.summary(layers.batch_norm(), SPEC)).split("\n")[1]


@pytest.mark.parametrize("number", [0, 5, 999, 1000, 9994, 9996, 123456, 999_499, 999_500, 10**12, 7 * 10**30])
def test_a_scaled_number_keeps_three_digits(number):
    digits, *unit = tables.scaled(number, "B").split(" ")
    power = "kMGTPEZY".find(unit[0][0]) + 1 if unit[0] != "B" else 0
    assert float(digits) * 1000**power == pytest.approx(number, rel=0.006)
    assert number > 10**27 or len(digits.replace(".", "")) <= 3
