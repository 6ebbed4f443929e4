"""Recurrent cells and layers: against PyTorch, against themselves step by step, and on tasks that need memory."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import numbers_for, quickly_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnn import layers, losses, training
from funcnn.core import Layer

KEY = jax.random.key(7)
SPREAD = {"bias_init": jax.nn.initializers.normal(0.5)}
CELLS = {"elman": layers.elman_cell, "lstm": layers.lstm_cell, "gru": layers.gru_cell}
every_cell = pytest.mark.parametrize("cell", list(CELLS))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def made(layer, x):
    return layer.init(KEY, x)[0]


def outputs(layer, params, x, state=None):
    return layer.apply(params, state or {}, x)[0]


def close(a, b, tolerance=1e-5):
    shapes = jax.tree.map(np.shape, a), jax.tree.map(np.shape, b)
    assert shapes[0] == shapes[1]
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_layer(torch, cell, params, inputs, bidirectional=False, nonlinearity="tanh"):
    """The layer of PyTorch with our weights: matrices transposed, one bias for both of its biases but in the GRU."""
    features = params[0]["recurrent_kernel"].shape[0]
    options = {"batch_first": True, "bidirectional": bidirectional, "bias": "bias" in params[0]}
    if cell == "elman":
        layer = torch.nn.RNN(inputs, features, nonlinearity=nonlinearity, **options)
    else:
        layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](inputs, features, **options)
    with torch.no_grad():
        for tree, end in zip(jax.tree.map(np.asarray, params), ("", "_reverse"), strict=False):
            values = {"weight_ih_l0": tree["kernel"].T, "weight_hh_l0": tree["recurrent_kernel"].T}
            if "bias" in tree:
                own = tree.get("recurrent_bias", np.zeros(0))
                hidden = np.concatenate([np.zeros(tree["bias"].size - own.size), own])
                values |= {"bias_ih_l0": tree["bias"], "bias_hh_l0": hidden}
            for name, value in values.items():
                getattr(layer, name + end).copy_(torch.from_numpy(np.array(value, np.float32)))
    return layer


def torch_gradients(layer, like, end=""):
    """The gradients of PyTorch under our names."""

    def of(name):
        return getattr(layer, f"{name}_l0{end}").grad.numpy()

    found = {"kernel": of("weight_ih").T, "recurrent_kernel": of("weight_hh").T}
    if "bias" in like:
        found["bias"] = of("bias_ih")
    if "recurrent_bias" in like:
        found["recurrent_bias"] = of("bias_hh")[-like["recurrent_bias"].size :]
    return found


def torch_carry(carry, direction):
    """The final carry of one direction: a tensor, or the pair of an LSTM."""
    if isinstance(carry, tuple):
        return tuple(part[direction].detach().numpy() for part in carry)
    return carry[direction].detach().numpy()


def loss_of(y, carry, weights):
    return (y * weights).sum() + sum((part**2).sum() for part in (carry if isinstance(carry, tuple) else (carry,)))


@quickly_compiled()
def against_torch(torch, cell, layer, x, start, **options):
    """Outputs, last carry and all gradients of one direction, from a carry that is given."""
    ((name, _),) = layer.children
    params = numbers_for(layer, x)
    weights = random(*x.shape[:2], start[0].shape[-1], seed=1)
    start = start if cell == "lstm" else start[:1]
    ours_start = start if cell == "lstm" else start[0]

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def total(given):
        params, x, start = given
        y, carry = outputs(layer, params, {"x": x, "carry": start})["x"]
        return loss_of(y, carry, weights), (y, carry)

    (value, (y, carry)), (gradient, x_gradient, start_gradient) = total((params, x, ours_start))

    theirs = torch_layer(torch, cell, [params[name]], x.shape[-1], **options)
    x_there = torch.from_numpy(x).requires_grad_()
    start_there = [torch.from_numpy(part[None]).requires_grad_() for part in start]
    y_there, carry_there = theirs(x_there, tuple(start_there) if cell == "lstm" else start_there[0])
    value_there = loss_of(y_there, carry_there, torch.from_numpy(weights))
    value_there.backward()

    close(y, y_there.detach().numpy())
    close(carry, torch_carry(carry_there, 0))
    close(value, value_there.detach().numpy())
    close(gradient[name], torch_gradients(theirs, params[name]))
    close(x_gradient, x_there.grad.numpy())
    close(jax.tree.leaves(start_gradient), [part.grad.numpy()[0] for part in start_there])


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "bias"), [("elman", True), ("lstm", True), ("gru", True), ("gru", False)])
def test_outputs_carry_and_gradients_are_those_of_pytorch(torch, cell, bias):
    layer = layers.recurrent(CELLS[cell](4, bias=bias, **SPREAD), return_carry=True)
    against_torch(torch, cell, layer, random(3, 5, 2), (random(3, 4, seed=2), random(3, 4, seed=3)))


@pytest.mark.slow
def test_an_elman_cell_with_relu_is_that_of_pytorch(torch):
    layer = layers.recurrent(layers.elman_cell(4, activation=jax.nn.relu, **SPREAD), return_carry=True)
    start = (random(3, 4, seed=2),)
    against_torch(torch, "elman", layer, random(3, 5, 2), start, nonlinearity="relu")


@pytest.mark.slow
@settings(max_examples=25)
@given(
    cell=st.sampled_from(list(CELLS)),
    batch=st.integers(1, 4),
    time=st.integers(1, 9),
    inputs=st.integers(1, 5),
    features=st.integers(1, 5),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_agrees_with_pytorch(torch, cell, batch, time, inputs, features, bias, seed):
    layer = layers.recurrent(CELLS[cell](features, bias=bias, **SPREAD), return_carry=True)
    start = (random(batch, features, seed=seed + 1), random(batch, features, seed=seed + 2))
    against_torch(torch, cell, layer, random(batch, time, inputs, seed=seed), start)


def packed(torch, theirs, x, lengths):
    """PyTorch on the same sequences, packed."""
    rnn = torch.nn.utils.rnn
    sequences = rnn.pack_padded_sequence(x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False)
    y, carry = theirs(sequences)
    return rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], carry


@quickly_compiled()
def against_packed(torch, cell, lengths, time=6, padding=np.nan):
    """Both directions over sequences of these lengths; what stands in the padding must not be read."""
    lengths = np.asarray(lengths)
    x, shape = random(len(lengths), time, 2), (len(lengths), time, 6)
    there = np.arange(time)[None, :, None] < lengths[:, None, None]
    layer = layers.bidirectional(CELLS[cell](3, **SPREAD), return_carry=True)
    params, weights = numbers_for(layer, x), random(*shape, seed=1)

    def total(given):
        params, x = given
        y, (forward, backward) = outputs(layer, params, {"x": x, "lengths": lengths})["x"]
        return loss_of(y, jax.tree.map(lambda a, b: jnp.stack((a, b)), forward, backward), weights), (y, forward)

    (value, (y, forward)), (gradient, x_gradient) = jax.jit(jax.value_and_grad(total, has_aux=True))(
        (params, np.where(there, x, padding).astype(np.float32))
    )
    cells = [next(iter(params[name].values())) for name in ("forward", "backward")]
    theirs = torch_layer(torch, cell, cells, 2, bidirectional=True)
    x_there = torch.from_numpy(x).requires_grad_()
    y_there, carry_there = packed(torch, theirs, x_there, lengths)
    value_there = loss_of(y_there, carry_there, torch.from_numpy(weights))
    value_there.backward()
    close(y, y_there.detach().numpy())
    close(forward, torch_carry(carry_there, 0))
    close(value, value_there.detach().numpy())
    close(x_gradient, x_there.grad.numpy())
    for name, end in (("forward", ""), ("backward", "_reverse")):
        ((_, found),) = gradient[name].items()
        close(found, torch_gradients(theirs, found, end))


@pytest.mark.slow
@every_cell
def test_both_directions_over_lengths_are_those_of_pytorch_over_packed_sequences(torch, cell):
    against_packed(torch, cell, [6, 1, 4])


@pytest.mark.slow
@settings(max_examples=20)
@given(cell=st.sampled_from(list(CELLS)), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_any_lengths_agree_with_packed_sequences(torch, cell, lengths):
    against_packed(torch, cell, lengths, padding=np.inf)


@pytest.mark.slow
@every_cell
def test_bfloat16_is_pytorch_to_its_rounding(torch, cell):
    layer, x = layers.recurrent(CELLS[cell](4, **SPREAD), return_carry=True), random(3, 5, 2)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float32), made(layer, x))
    y, carry = outputs(layer, params, jnp.asarray(x, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves((y, carry))} == {jnp.dtype("bfloat16")}
    ((_, weights),) = params.items()
    theirs = torch_layer(torch, cell, [weights], 2)
    with torch.no_grad():
        y_there, _ = theirs(torch.from_numpy(x).to(torch.bfloat16).float())
    # Three roundings of at most 2^-9 in a step, the carry's among them, and outputs below 1.
    np.testing.assert_allclose(y.astype(np.float32), y_there.numpy(), atol=3 * 5 * 2.0**-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "window"), [((5,), 3), ((4, 5), (3, 2))], ids=["one spatial axis", "two, a window of its own for each"]
)
def test_conv_lstm_and_its_gradients_are_a_loop_of_pytorchs_convolutions(torch, sizes, window):
    x = random(2, 3, *sizes, 2)
    layer = layers.recurrent(layers.conv_lstm_cell(3, window, **SPREAD))
    params, weights = numbers_for(layer, x), random(2, 3, *sizes, 3, seed=1)

    def total(params, x):
        y = outputs(layer, params, x)
        return (y * weights).sum(), y

    with quickly_compiled():
        (gradient, x_gradient), y = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, x)

    (name,) = params
    there = {k: torch.from_numpy(np.array(v)).requires_grad_() for k, v in params[name].items()}
    x_there = torch.from_numpy(x).requires_grad_()
    conv = getattr(torch.nn.functional, f"conv{len(sizes)}d")

    def same(a, kernel):
        for i, count in enumerate(reversed(kernel.shape[:-2])):  # of an even window the larger half comes after
            before = (count - 1) // 2
            a = torch.nn.functional.pad(a, (0, 0) * i + (before, count - 1 - before))
        return conv(a, torch.movedim(kernel, (-1, -2), (0, 1)))

    h = c = torch.zeros(2, 3, *sizes)
    steps = []
    for t in range(3):
        gates = same(torch.movedim(x_there[:, t], -1, 1), there["kernel"]) + same(h, there["recurrent_kernel"])
        i, f, g, o = (gates + there["bias"].reshape(1, -1, *[1] * len(sizes))).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        steps.append(torch.movedim(h, 1, -1))
    y_there = torch.stack(steps, 1)
    (y_there * torch.from_numpy(weights)).sum().backward()
    close(y, y_there.detach().numpy())
    close(gradient[name], {k: v.grad.numpy() for k, v in there.items()})
    close(x_gradient, x_there.grad.numpy())


# ---- cells as layers -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    [*(make(3) for make in CELLS.values()), pytest.param(layers.conv_lstm_cell(3, 3), marks=pytest.mark.slow)],
    ids=repr,
)
def test_the_whole_is_its_pieces_and_its_steps(cell):
    x = random(2, 6, *((4, 2) if cell.kind == "conv_lstm_cell" else (2,)))
    layer = layers.recurrent(cell, return_carry=True)
    params = made(layer, x)
    whole, last = outputs(layer, params, x)
    first, carry = outputs(layer, params, x[:, :4])
    rest = outputs(layer, params, {"x": x[:, 4:], "carry": carry})
    assert list(rest) == ["x"]  # the carry is used up
    close(jnp.concatenate((first, rest["x"][0]), 1), whole)
    close(rest["x"][1], last)
    carry = None
    for t in range(6):
        carry, y = outputs(cell, params[f"{cell.kind}_0"], (carry, x[:, t]))
        close(y, whole[:, t])
    close(carry, last)


@pytest.mark.slow
@every_cell
def test_no_carry_is_zeros(cell):
    cell, x = CELLS[cell](3, **SPREAD), random(2, 2)
    params = made(cell, (None, x))
    alone, paired = outputs(cell, params, x), outputs(cell, params, (None, x))
    zeros = jax.tree.map(jnp.zeros_like, alone[0])
    close(alone, paired, 0)
    close(outputs(cell, params, (zeros, x)), alone, 0)


@pytest.mark.slow
def test_a_given_carry_is_taken_in_the_dtype_of_the_input():
    layer, x = layers.recurrent(layers.lstm_cell(3), return_carry=True), jnp.ones((2, 4, 2), jnp.bfloat16)
    params = made(layer, x)
    carry = (jnp.ones((2, 3)), jnp.ones((2, 3)))
    for leaf in jax.tree.leaves(outputs(layer, params, {"x": x, "carry": carry})):
        assert leaf.dtype == jnp.bfloat16


@pytest.mark.slow
def test_each_gate_begins_orthogonal_and_with_the_fans_of_a_layer_alone():
    params = made(layers.lstm_cell(20), jnp.ones((1, 30)))
    for part in np.split(params["recurrent_kernel"], 4, axis=-1):
        np.testing.assert_allclose(part.T @ part, np.eye(20), atol=1e-5)
    limit = np.sqrt(6 / (30 + 20))
    assert 0.95 * limit < np.abs(params["kernel"]).max() <= limit
    np.testing.assert_array_equal(params["bias"].reshape(4, 20).sum(1), [0, 20, 0, 0])  # the forget gate starts open
    other = made(layers.lstm_cell(2, forget_bias=-1, bias_init=jax.nn.initializers.ones), jnp.ones((1, 3)))
    np.testing.assert_array_equal(other["bias"], [1, 1, 0, 0, 1, 1, 1, 1])


# ---- masks and lengths -----------------------------------------------------------------------------------------------

MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_masked_is_as_if_it_were_not_there(reverse):
    x = random(4, 5, 2)
    layer, last_layer = (
        layers.recurrent(layers.lstm_cell(3, **SPREAD), reverse=reverse, return_sequences=kept, return_carry=True)
        for kept in (True, False)
    )
    params, start = made(layer, x), (random(4, 3, seed=1), random(4, 3, seed=2))
    side = {"mask": MASK, "carry": start}
    y, carry = outputs(layer, params, {"x": np.where(MASK[..., None], x, np.nan), **side})["x"]
    last, last_carry = outputs(last_layer, params, {"x": x, **side})["x"]
    close(last_carry, carry, 0)
    for i, seen in enumerate(MASK):
        own = tuple(part[i : i + 1] for part in start)
        alone, alone_carry = outputs(layer, params, {"x": x[i : i + 1, seen], "carry": own})["x"]
        close(y[i, seen], alone[0])
        close(tuple(part[i : i + 1] for part in carry), alone_carry)
        np.testing.assert_array_equal(y[i, ~seen], 0)
        close(last[i], alone[0, 0 if reverse else -1] if seen.any() else jnp.zeros(3))


@pytest.mark.slow
def test_lengths_are_a_mask_and_gradients_of_the_padding_are_zero():
    x, lengths = random(4, 5, 2), np.array([5, 2, 0, 3])
    mask = np.arange(5)[None] < lengths[:, None]
    model = layers.serial(layers.recurrent(layers.gru_cell(3), reverse=True), layers.recurrent(layers.elman_cell(2)))
    params = made(model, x)

    @jax.jit
    def gradient(x, side):
        return jax.grad(lambda p, x: jnp.square(outputs(model, p, {"x": x, **side})["x"]).sum(), (0, 1))(params, x)

    garbage = np.where(mask[..., None], x, np.inf).astype(np.float32)
    of_params, of_x = gradient(garbage, {"lengths": lengths})
    close((of_params, of_x), gradient(x, {"mask": mask}), 0)
    np.testing.assert_array_equal(of_x[~mask], 0)
    y = outputs(model, params, {"x": garbage, "lengths": lengths})
    np.testing.assert_array_equal(y["lengths"], lengths)  # both layers saw them, and so may the next
    np.testing.assert_array_equal(y["x"][~mask], 0)


@pytest.mark.slow
def test_zero_steps_no_examples_and_one_give_what_they_should():
    start = jnp.full((2, 3), 0.5)
    layer = layers.recurrent(layers.gru_cell(3), return_carry=True)
    params = made(layer, jnp.ones((2, 4, 2)))
    y, carry = outputs(layer, params, {"x": jnp.ones((2, 0, 2)), "carry": start})["x"]
    assert y.shape == (2, 0, 3)
    close(carry, start, 0)
    last = layers.recurrent(layers.gru_cell(3), return_sequences=False)
    np.testing.assert_array_equal(outputs(last, params, jnp.ones((2, 0, 2))), np.zeros((2, 3)))
    empty = {"x": jnp.ones((0, 4, 2)), "lengths": np.zeros(0, int)}
    assert outputs(last, params, empty)["x"].shape == (0, 3)
    x = random(3, 4, 2)
    close(outputs(last, params, x[:1]), outputs(last, params, x)[:1])


@pytest.mark.slow
def test_lengths_that_are_not_known_mean_all_steps_or_none():
    x = random(2, 4, 2)
    layer = layers.recurrent(layers.gru_cell(3))
    params = made(layer, x)
    y = jax.jit(lambda n: outputs(layer, params, {"x": x, "lengths": n})["x"])(np.array([9, -1]))
    close(y[0], outputs(layer, params, x)[0])
    np.testing.assert_array_equal(y[1], 0)


# ---- both directions, names, cells of one's own ----------------------------------------------------------------------


@pytest.mark.slow
def test_both_directions_are_two_layers_whose_outputs_are_joined_or_added():
    x, cells = random(2, 5, 2), (layers.gru_cell(3), layers.elman_cell(3))
    joined = layers.bidirectional(*cells)
    params = made(joined, x)
    forward = outputs(layers.recurrent(cells[0]), params["forward"], x)
    backward = outputs(layers.recurrent(cells[1]), params["backward"], x[:, ::-1])[:, ::-1]
    close(outputs(joined, params, x), jnp.concatenate((forward, backward), -1))
    close(outputs(layers.bidirectional(*cells, merge="add"), params, x), forward + backward)
    ends = outputs(layers.bidirectional(*cells, return_sequences=False), params, x)
    close(ends, jnp.concatenate((forward[:, -1], backward[:, 0]), -1))


def test_both_directions_go_on_from_their_own_carry():
    x, start = random(2, 5, 2), (random(2, 3, seed=1), random(2, 3, seed=2))
    model = layers.bidirectional(layers.gru_cell(3), return_carry=True)
    params = made(model, {"x": x, "carry": start})
    y, (forward, backward) = outputs(model, params, {"x": x, "carry": start, "mask": np.ones((2, 5), bool)})["x"]
    one_way = outputs(layers.recurrent(layers.gru_cell(3)), params["forward"], {"x": x, "carry": start[0]})["x"]
    back = outputs(layers.recurrent(layers.gru_cell(3), reverse=True), params["backward"], {"x": x, "carry": start[1]})[
        "x"
    ]
    close(y, jnp.concatenate((one_way, back), -1))
    close((forward, backward), (one_way[:, -1], back[:, 0]))


@pytest.mark.slow
def test_paths_are_the_names_of_the_cells():
    x = jnp.ones((2, 5, 2))
    stack = layers.serial(
        layers.recurrent(layers.lstm_cell(3)),
        layers.bidirectional(layers.gru_cell(2), layers.named("back", layers.elman_cell(2))),
        layers.named("last", layers.recurrent(layers.named("memory", layers.gru_cell(2, bias=False)))),
    )
    params = made(stack, x)
    found = {"/".join(k.key for k in path[:-1]) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert found == {
        "recurrent_0/lstm_cell_0",
        "bidirectional_0/forward/gru_cell_0",
        "bidirectional_0/backward/back",
        "last/memory",
    }
    assert repr(stack.children[0][1]) == "recurrent\n└── lstm_cell_0"
    one, other = made(layers.bidirectional(layers.elman_cell(2)), x).values()
    assert not np.array_equal(one["elman_cell_0"]["kernel"], other["elman_cell_0"]["kernel"])


def test_a_cell_is_any_layer_from_carry_and_x_to_carry_and_y():
    x = random(2, 5, 3)
    total = layers.function(lambda pair: (sum(p for p in pair if p is not None),) * 2)
    close(outputs(layers.recurrent(total), {}, x), np.cumsum(x, 1))
    each_step = layers.recurrent(layers.parallel(layers.identity, layers.dense(4)))
    params = made(each_step, x)
    close(outputs(each_step, params, x), outputs(layers.dense(4), params["parallel_0"]["dense_0"], x))


@pytest.mark.slow
def test_each_step_has_a_key_of_its_own_and_the_state_of_the_one_before():
    x = jnp.ones((2, 50, 3))
    noisy = layers.recurrent(layers.parallel(layers.identity, layers.dropout(0.5)))
    y, _ = noisy.apply({}, {}, x, key=KEY, training=True)
    assert len(np.unique(y.reshape(2, 50, 3).transpose(1, 0, 2).reshape(50, 6), axis=0)) > 30

    def count(params, state, pair, *, key=None, training=False):
        del params, key, training
        carry, x = pair
        return (carry, x + state["steps"]), {"steps": state["steps"] + 1}

    counting = layers.recurrent(Layer(lambda key, x: ({}, {"steps": jnp.zeros(())}), count, "counting"))
    params, state = counting.init(KEY, x)
    y, new = counting.apply(params, state, x)
    np.testing.assert_array_equal(y[0, :, 0], 1 + np.arange(50))
    assert new["counting_0"]["steps"] == 50


# ---- errors ----------------------------------------------------------------------------------------------------------

LAYER, X = layers.recurrent(layers.lstm_cell(3)), np.ones((2, 5, 4), np.float32)
GOOD = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones(4, np.float32), ValueError, "recurrent: expected at least 2 axes, (batch, time, ...), got shape (4,)"),
        (X[:, :, 0], ValueError, "lstm_cell: expected at least 2 axes, (batch, ..., features), got shape (2,)"),
        (X[..., :3], ValueError, "lstm_cell: expected 4 input features, as its kernel (4, 12) has, got 3 in an input"),
        (X.astype(int), TypeError, "lstm_cell: expected a floating input, got int"),
        ((X, X), TypeError, "recurrent: expected one array, got a tuple of shapes ((2, 5, 4), (2, 5, 4)); send each"),
        ({"mask": X}, ValueError, "recurrent: expected the features under 'x', got a dict with ['mask']; rename"),
        (
            {"x": X, "mask": np.ones((2, 4), bool)},
            ValueError,
            "recurrent: expected a mask of shape (2, 5), got (2, 4); it has the shape (batch, time) of the input",
        ),
        ({"x": X, "mask": np.ones((2, 1, 5), bool)}, ValueError, "expected a mask of shape (2, 5), got (2, 1, 5)"),
        (
            {"x": X, "mask": np.ones((2, 5))},
            TypeError,
            "recurrent: expected a mask of booleans, got float64(2, 5); convert it: mask.astype(bool)",
        ),
        ({"x": X, "lengths": np.ones(5, int)}, ValueError, "recurrent: expected lengths of shape (2,), got (5,); give"),
        ({"x": X, "lengths": np.ones(2)}, TypeError, "recurrent: expected lengths of whole numbers, got float64(2,)"),
        (
            {"x": X, "lengths": np.array([3, 6])},
            ValueError,
            "recurrent: expected lengths from 0 to 5, the steps that there are, got 3 to 6; count the valid steps",
        ),
        ({"x": X, "lengths": np.array([-1, 5])}, ValueError, "expected lengths from 0 to 5"),
        (
            {"x": X, "lengths": np.array([5, 5]), "mask": np.ones((2, 5), bool)},
            ValueError,
            "recurrent: expected a mask or lengths, got both; leave one of them out",
        ),
        ({"x": X, "carry": GOOD}, ValueError, "lstm_cell: expected a carry of shape ((2, 3), (2, 3)), got (2, 3);"),
        (
            {"x": X, "carry": (GOOD, GOOD[:1])},
            ValueError,
            "got ((2, 3), (1, 3)); pass the carry that this cell gave for a batch of this size, or None to start",
        ),
    ],
)
def test_inputs_that_cannot_be_meant_are_refused(x, error, message):
    params = made(LAYER, X)
    with pytest.raises(error, match=re.escape(message)):
        outputs(LAYER, params, x)


def test_missing_weights_are_named():
    params = made(LAYER, X)["lstm_cell_0"]
    del params["bias"]
    with pytest.raises(ValueError, match=r"params with \['bias', 'kernel', 'recurrent_kernel'\], got \['kernel', 'rec"):
        outputs(LAYER, {"lstm_cell_0": params}, X)


def test_an_error_says_where_in_the_network():
    model = layers.serial(layers.dense(2), layers.bidirectional(layers.lstm_cell(3)))
    with pytest.raises(ValueError, match="expected a mask of shape") as caught:
        model.init(KEY, {"x": X, "mask": np.ones(5, bool)})
    notes = [note for note in caught.value.__notes__ if note.startswith("bidirectional_0 / forward: input ")]
    assert len(notes) == 1
    wrong = {"lstm_cell_0": made(layers.lstm_cell(3), np.ones((1, 9), np.float32))}
    with pytest.raises(ValueError, match="expected 9 input features") as caught:
        jax.jit(jax.grad(lambda x: outputs(LAYER, wrong, x).sum()))(X)
    assert "lstm_cell_0: input (2, 5, 4)" in caught.value.__notes__


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layers.recurrent(layers.lstm_cell), TypeError, "recurrent: expected a layer, got the factory lstm_ce"),
        (lambda: layers.bidirectional(3), TypeError, "bidirectional: expected a layer, got int 3"),
        (lambda: layers.elman_cell(0), ValueError, "elman_cell: expected features of at least 1, got 0"),
        (lambda: layers.gru_cell(2.0), TypeError, "gru_cell: expected features as a whole number, got float 2.0"),
        (lambda: layers.elman_cell(2, activation=layers.relu), TypeError, "expected activation as a function of an"),
        (lambda: layers.conv_lstm_cell(2, (3, 0)), ValueError, "conv_lstm_cell: expected kernel_size of at least 1"),
        (
            lambda: layers.bidirectional(layers.gru_cell(2), merge="concat"),
            ValueError,
            "bidirectional: expected merge to be one of ['concatenate', 'add'], got 'concat'; check the spelling",
        ),
        (
            lambda: layers.serial(
                layers.bidirectional(layers.gru_cell(2), layers.gru_cell(3), merge="add"), layers.dense(2)
            ).init(KEY, X),
            ValueError,
            "bidirectional: expected outputs that fit together to add, got (2, 5, 2) and (2, 5, 3)",
        ),
        (
            lambda: made(layers.recurrent(layers.conv_lstm_cell(2, (3, 3))), X),
            ValueError,
            "conv_lstm_cell: expected (batch, *spatial, features) with 2 spatial axes, got shape (2, 4)",
        ),
        (lambda: made(layers.recurrent(layers.dense(2)), X), TypeError, "dense: expected one array, got a tuple"),
        (
            lambda: made(layers.recurrent(layers.function(lambda pair: pair[1])), X),
            TypeError,
            "recurrent: expected a cell that gives a tuple (carry, y), got (2, 4); pass a cell such as lstm_cell(32)",
        ),
        (
            lambda: made(layers.bidirectional(layers.gru_cell(2)), {"x": X, "carry": np.zeros((2, 2))}),
            ValueError,
            "bidirectional: expected a carry (forward, backward), got (2, 2); pass the carry that it gave with return",
        ),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


# ---- what needs memory is learned ------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_adding_problem_of_length_100_is_learned():
    """Hochreiter and Schmidhuber, 1997, 5.4: the sum of two marked numbers of 100; to say 1 always costs 0.167."""

    def batch(key):
        value_key, first_key, second_key = jax.random.split(key, 3)
        values = jax.random.uniform(value_key, (64, 100))
        first = jax.random.randint(first_key, (64,), 0, 50)
        second = jax.random.randint(second_key, (64,), 50, 100)
        marks = jax.nn.one_hot(first, 100) + jax.nn.one_hot(second, 100)
        return jnp.stack((values, marks), -1), jnp.sum(values * marks, 1, keepdims=True)

    model = layers.serial(layers.recurrent(layers.gru_cell(32), return_sequences=False), layers.dense(1))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    trainer = training.supervised(model, losses.squared_error, optimizer)
    result = training.fit(trainer, batch, key=jax.random.key(0), steps=1500, progress=False)
    x, y = jax.jit(jax.vmap(batch))(jax.random.split(jax.random.key(1), 16))
    found = training.predict(model, result.state, x.reshape(-1, 100, 2), batch_size=1024)
    error = np.mean(np.square(found - y.reshape(-1, 1)))
    assert np.mean(np.square(1 - y)) == pytest.approx(1 / 6, rel=0.1)
    assert error < 0.01, error


REBER = {  # node: (symbol, next node)
    0: (("B", 1),),
    1: (("T", 2), ("P", 3)),
    2: (("S", 2), ("X", 4)),
    3: (("T", 3), ("V", 5)),
    4: (("X", 3), ("S", 6)),
    5: (("P", 4), ("V", 6)),
    6: (("E", 7),),
}
SYMBOLS = "BTPSXVE"


def reber(rng):
    """A word of the embedded grammar, with the set of legal symbols before each of its letters but the first."""
    node, inner = 0, []
    while node in REBER:
        symbol, following = REBER[node][rng.integers(len(REBER[node]))]
        inner.append((symbol, "".join(s for s, _ in REBER[node])))
        node = following
    side = "TP"[rng.integers(2)]
    return [("B", "B"), (side, "TP"), *inner, (side, side), ("E", "E")]


def reber_words(seed, count, longest=32):
    """Words as one-hot letters with lengths, the letter after each, and which letters may come after each."""
    rng, words = np.random.default_rng(seed), []
    while len(words) < count:
        word = reber(rng)
        if len(word) <= longest:
            words.append(word)
    lengths = np.array([len(word) - 1 for word in words], np.int32)
    letters = np.zeros((count, longest), np.int32)
    legal = np.zeros((count, longest - 1, 7), bool)
    for i, word in enumerate(words):
        letters[i, : len(word)] = [SYMBOLS.index(symbol) for symbol, _ in word]
        for t, (_, choices) in enumerate(word[1:]):
            legal[i, t, [SYMBOLS.index(symbol) for symbol in choices]] = True
    x = {"x": np.eye(7, dtype=np.float32)[letters[:, :-1]], "lengths": lengths}
    return x, letters[:, 1:], legal, np.arange(longest - 1)[None] < lengths[:, None]


@pytest.mark.slow
def test_the_embedded_reber_grammar_is_learned():
    """Hochreiter and Schmidhuber, 1997, 5.1: the last letter but one is the second, some twenty letters before."""
    x, following, _, seen = reber_words(0, 1024)
    model = layers.serial(layers.recurrent(layers.lstm_cell(32)), layers.dense(7))
    trainer = training.supervised(
        model,
        lambda out, y: optax.softmax_cross_entropy_with_integer_labels(out, y),
        optax.adam(1e-2),
    )
    data = (x, following, seen.astype(np.float32))
    result = training.fit(trainer, data, key=jax.random.key(0), epochs=30, progress=False)
    x, _, legal, seen = reber_words(1, 500)
    chances = jax.nn.softmax(training.predict(model, result.state, x, batch_size=500))
    told_apart = np.where(legal, chances, 1).min(-1) > np.where(legal, 0, chances).max(-1)
    assert told_apart[seen].mean() > 0.999  # every legal letter before every illegal one
    rows, last = np.arange(500), x["lengths"] - 2
    right = (chances[rows, last].argmax(-1) == legal[rows, last].argmax(-1)).mean()
    assert right > 0.99, right  # one of two by chance
