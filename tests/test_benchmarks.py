"""What the benchmarks compare does equal work: from the same initial params the same losses, to rounding.

Nothing here is timed. Each workload is cut to a few examples and epochs, with a smaller last batch where there is one.
"""

import ast
import importlib
import json
import os
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import training

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
CUT = {  # examples, epochs, batch size
    "W1": (4, 200, None),
    "W2": (100, 60, None),
    "W3": (75, 4, 32),
    "W4": (21, 4, 8),
    "W5": (10, 3, 4),
}


@pytest.fixture(scope="module")
def benchmark():
    """A module of the benchmarks, which are scripts and no package."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


LONG = ("W3", "W4", "W5")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in CUT]
)
def cut(request, benchmark):
    """A workload that takes a moment: its name, how it is gone through, and its data."""
    examples, epochs, batch_size = CUT[request.param]
    workloads = benchmark("workloads")
    x, y = workloads.data(request.param)
    work = workloads.WORKLOADS[request.param]._replace(epochs=epochs, batch_size=batch_size)
    return request.param, work, jnp.asarray(x[:examples]), jnp.asarray(y[:examples])


def both(benchmark, cut):
    """The run of funcnn, and the one by hand from the same params in the same order."""
    name, work, x, y = cut
    options = {"epochs": work.epochs, "batch_size": work.batch_size}
    trainer, key = benchmark("by_funcnn").TRAINERS[name], jax.random.key(3)
    init_key, shuffle_key, _ = jax.random.split(key, 3)
    state = jax.jit(trainer.init)(init_key, (x, y))
    ours = jax.jit(lambda: training.run(trainer, (x, y), key=key, state=state, **options))()

    by_hand = benchmark("by_hand")
    params = [(layer["kernel"], layer["bias"]) for layer in state.params.values()]
    train = jax.jit(lambda: by_hand.trained(by_hand.NETWORKS[name], params, shuffle_key, x, y, *options.values()))
    with jax.numpy_rank_promotion("allow"):  # by hand a bias is added as people add it
        (params, _), losses = train()
    return ours, params, losses


def test_both_sides_do_the_same_work(benchmark, cut):
    ours, params, losses = both(benchmark, cut)
    assert losses.shape == (cut[1].epochs,)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(ours.history["loss"], losses, rtol=1e-5)
    for (kernel, bias), layer in zip(params, ours.state.params.values(), strict=True):
        np.testing.assert_allclose(layer["kernel"], kernel, rtol=0, atol=2e-5)
        np.testing.assert_allclose(layer["bias"], bias, rtol=0, atol=2e-5)


def test_both_sides_start_alike(benchmark, cut):
    """Params of the same shapes and of the same distribution: their initialisation is part of what is timed."""
    name, _, x, y = cut
    state = jax.jit(benchmark("by_funcnn").TRAINERS[name].init)(jax.random.key(0), (x, y))
    params = jax.jit(benchmark("by_hand").NETWORKS[name].init)(jax.random.key(0))
    for (kernel, bias), layer in zip(params, state.params.values(), strict=True):
        assert kernel.shape == layer["kernel"].shape
        assert not bias.any()
        assert not layer["bias"].any()
        if kernel.size > 1000:
            np.testing.assert_allclose(jnp.abs(kernel).max(), jnp.abs(layer["kernel"]).max(), rtol=0.02)


def test_every_workload_has_both_sides(benchmark):
    names = {*benchmark("workloads").WORKLOADS} - {"W7"}  # of the networks of W1
    assert names == set(benchmark("by_hand").NETWORKS) == set(benchmark("by_funcnn").TRAINERS)
    assert set(CUT) == set(benchmark("against_scan").NAMES) == names - {"W6"}


# ---- the transformer -------------------------------------------------------------------------------------------------


def as_by_hand(params):
    """The params of the model of funcnn, whose blocks are stacked, as by_hand has them."""
    own, forward = params["decoder"]["repeat_0"]["serial_0"].values()
    norms = [part["layer_norm_0"] for part in (own, forward)]
    attention, dense = own["attention_0"], forward["serial_0"]
    places = {name: attention[name] for name in ("query", "key", "value", "output")}
    places |= {"wide": dense["dense_0"], "narrow": dense["dense_1"], "norm_1": norms[0], "norm_2": norms[1]}

    def pair(layer):
        return layer.get("kernel", layer.get("scale")), layer["bias"]

    stacked = {name: pair(layer) for name, layer in places.items()}
    return {
        "embedding": params["table"]["embedding"],
        "positions": params["start"]["learned_positions_0"]["embedding"],
        "blocks": [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(4)],
        "norm": pair(params["decoder"]["layer_norm_0"]),
    }


@pytest.fixture(scope="module")
def transformers(benchmark):
    """Both sides' params, ours also as by hand has them, and some texts."""
    x, y = (jnp.asarray(each[:6]) for each in benchmark("workloads").data("W6"))
    state = jax.jit(benchmark("by_funcnn").TRAINERS["W6"].init)(jax.random.key(0), (x, y))
    return state, as_by_hand(state.params), jax.jit(benchmark("by_hand").NETWORKS["W6"].init)(jax.random.key(0)), x, y


@pytest.mark.slow
def test_both_transformers_are_one_network(benchmark, transformers):
    """The same params give the same scores and the same gradients."""
    state, ours, theirs, x, y = transformers
    model, net = benchmark("by_funcnn").MODELS["W6"], benchmark("by_hand").NETWORKS["W6"]
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)
    assert sum(leaf.size for leaf in jax.tree.leaves(theirs)) == 809_728
    # At the start biases are zero and norms do nothing: with other params, nothing may be left out unseen.
    keys = jax.random.split(jax.random.key(1), 200)
    leaves, tree = jax.tree.flatten(state.params)
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=False)]
    params = jax.tree.unflatten(tree, moved)
    loss = benchmark("by_funcnn").losses.softmax_cross_entropy
    scores = jax.jit(lambda params: model.apply(params, {}, x)[0])
    gradient = jax.jit(jax.grad(lambda params: loss(model.apply(params, {}, x)[0], y).mean()))(params)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(net.outputs)(as_by_hand(params), x)
        expected_gradient = jax.jit(jax.grad(net.loss))(as_by_hand(params), x, y)
    np.testing.assert_allclose(scores(params), expected, rtol=0, atol=1e-4)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_gradient))
    for a, b in zip(*map(jax.tree.leaves, (as_by_hand(gradient), expected_gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest)


@pytest.mark.slow
def test_both_transformers_start_alike(transformers):
    _, ours, theirs, _, _ = transformers
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a.std(), b.std(), rtol=0.05)
        np.testing.assert_allclose(jnp.abs(a).mean(), jnp.abs(b).mean(), rtol=0.05)


# ---- what is trained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rest", "steps"), [("W3", 29, 900), ("W4", 96, 469), ("W5", 40, 48)])
def test_the_last_batch_is_a_smaller_one(benchmark, name, rest, steps):
    work = benchmark("workloads").WORKLOADS[name]
    examples = {"W3": 1437, "W4": 60000, "W5": 1000}[name]
    assert examples % work.batch_size == rest
    assert work.steps(examples) == steps
    assert f"{examples} " in work.title


PEERS = ("by_linen", "by_nnx", "by_equinox", "by_keras", "by_torch", "by_sklearn")


@pytest.mark.parametrize("module", ["by_hand", "by_loop", "transformer_by_hand", "workloads", *PEERS])
def test_the_other_side_needs_nothing_of_funcnn(module):
    assert not re.search(r"^\s*(from|import) funcnn", (BENCHMARKS / f"{module}.py").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_the_four_calls_of_a_workload(benchmark):
    script, workloads = benchmark("against_scan"), benchmark("workloads")
    work = workloads.WORKLOADS["W1"]._replace(epochs=5)
    with jax.numpy_rank_promotion("allow"):
        losses = {
            side: call(jax.random.key(0), *workloads.data("W1")) for side, call in script.sides("W1", work).items()
        }
    assert list(losses) == list(script.SIDES)
    assert {len(column) for column in losses.values()} == {5}
    np.testing.assert_allclose(losses[script.APART], losses[script.TOGETHER], rtol=1e-6)
    np.testing.assert_array_equal(losses[script.RUN], losses[script.FIT])


def test_the_page_shows_ratios_and_marks_what_is_above_its_bar(benchmark):
    script, work = benchmark("against_scan"), benchmark("workloads").WORKLOADS["W1"]
    times = {script.APART: [1.0, 2.0, 4.0], script.TOGETHER: [9.0, 9.0, 9.0], script.RUN: [2.0, 2.0, 3.0]}
    times[script.FIT] = [4.0, 4.0, 4.0]
    assert script.ratio(times[script.RUN], times[script.APART]) == (1.0, 1.0)
    assert script.ratio(times[script.FIT], times[script.APART]) == (2.0, 2.0)
    row = script.steady_row("W1", work, 1000, times)
    assert row == "| W1 | 2,000.0 | 2,000.0 | 4,000.0 | 1.00 (1.00) | 1.03 | 2.00 (2.00) | 3 |"
    slow = {**times, script.RUN: [3.0, 3.0, 3.0]}
    assert "| **1.50** (1.50) | 1.15 |" in script.first_row("W1", work, slow, slow)
    line = script.import_line({"jax, optax": 400.0, "funcnn": 51.0, "collections": 20.0})
    page = script.page([row], ["| first |"], line, 0.5)
    assert all(part in page for part in (row, "| first |", "**51** ms", "for 20 ms", *script.NAMES))
    for head in (script.STEADY_HEAD, script.FIRST_HEAD):
        assert len({text.count("|") for text in head.splitlines()}) == 1


# ---- all sides, in processes of their own ----------------------------------------------------------------------------


def test_every_side_has_the_workloads_that_are_measured_of_it(benchmark):
    """Read and not imported: not every library is installed here."""
    one_run = benchmark("one_run")
    assert set(one_run.OURS) | set(one_run.LIBRARIES) | {"scan", "loop"} == set(one_run.SIDES)
    for side in one_run.SIDES.values():
        tree = ast.parse((BENCHMARKS / f"{side.module}.py").read_text())
        values = [
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WORKLOADS"
        ]
        names = {name for value in values for name in re.findall(r"'(W\d)'", ast.unparse(value))}
        if side.module in ("by_hand", "by_loop"):
            names = set(benchmark(side.module).WORKLOADS)
        assert set(side.names) <= names, side.title


@pytest.mark.parametrize(
    ("name", "outputs", "y", "loss", "accuracy"),
    [
        ("W1", [[0.9], [0.4]], [[1.0], [1.0]], (0.01 + 0.36) / 2, 0.5),
        ("W7", [[[0.9], [0.4]], [[1.0], [1.0]]], [[1.0], [1.0]], 0.37 / 4, 0.75),
        ("W2", [[0.25], [2.0]], [[1.0], [0.0]], (np.log1p(np.exp(-0.25)) + np.log1p(np.exp(2))) / 2, 0.5),
        ("W3", [[1.0, 1.0], [900.0, 0.0]], [0, 0], np.log(2) / 2, 1.0),
        ("W6", [[[0.0, 2.0], [0.0, 0.0]]], [[1, 1]], (np.log1p(np.exp(-2)) + np.log(2)) / 2, 0.5),
    ],
)
def test_losses_and_accuracies_are_those_of_a_hand_computation(benchmark, name, outputs, y, loss, accuracy):
    found = benchmark("one_run").judged(name, np.array(outputs, np.float32), np.array(y))
    np.testing.assert_allclose(found, (loss, accuracy), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_a_result_does_not_depend_on_how_many_rows_are_predicted_together(benchmark, monkeypatch, rows):
    one_run, x, y = benchmark("one_run"), np.arange(14.0).reshape(7, 2) % 5, np.arange(7) % 2
    whole = one_run.result("W3", lambda x: x, x, y)
    monkeypatch.setitem(one_run.AT_ONCE, "W3", rows)
    np.testing.assert_allclose(one_run.result("W3", lambda x: x, x, y), whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("side", "name"),
    [
        *(pytest.param(s, n, marks=pytest.mark.slow) for s, n in (("run", "W1"), ("loop", "W1"), ("fused", "W7"))),
        *(pytest.param(s, "W1", marks=pytest.mark.long) for s in ("fit", "fused", "scan")),
        *(pytest.param(s, "W7", marks=pytest.mark.long) for s in ("run", "scan", "loop")),
    ],
)
def test_a_fresh_process_trains_and_says_what_it_took(benchmark, tmp_path, side, name):
    one_run, script = benchmark("one_run"), benchmark("against_scan")
    x, y = benchmark("workloads").data(name)
    np.savez(tmp_path / "arrays.npz", x=x, y=y, epochs=3000, members=8)
    command = (one_run.__file__, "train", side, name, str(tmp_path / "arrays.npz"), "1", repr(time.time()))
    found = script.in_process(*command, "0.01", settings=one_run.SIDES[side].settings, limit=300)
    assert (found["steps"], found["members"]) == (3000, 8)
    assert found["process"] > found["first"] > found["steady"] > 0
    memory = [found["memory"][part] for part in ("begin", "imported", "trained", "end")]
    assert memory == sorted(memory)
    assert 10 < memory[0] < memory[-1] < 2000
    assert 0 < found["loss"] < (0.05 if name == "W1" else 0.25)  # of a constant 0.5 it is 0.25
    assert found["accuracy"] >= 0.5


def measurements(benchmark, side, name, number, **changes):
    """Made-up numbers of one process."""
    found = {"process": 2.0, "first": 1.0, "steady": 0.5, "steps": 1000, "loss": 0.25, "accuracy": 0.75}
    members = min(benchmark("workloads").WORKLOADS[name].members, benchmark("one_run").SIDES[side].members)
    memory = {"begin": 30.0, "imported": 100.0, "trained": 200.0, "end": 300.0}
    job = {"kind": "train", "side": side, "name": name, "round": number}
    return {**job, **found, "members": members, "memory": memory, **changes}


MACHINE = {"kind": "machine", "machine": "a machine", "date": "2026-01-01", "load": 0.5}


def test_the_page_of_all_sides_marks_what_is_above_its_bar(benchmark):
    pages = benchmark("performance_page")
    records = [MACHINE]
    for number, steady in enumerate((0.1, 0.2, 0.9)):  # medians 0.2 and 1.0
        records += [measurements(benchmark, "run", "W3", number, steady=steady, loss=steady)]
        records += [
            measurements(benchmark, "scan", "W3", number, steady=5 * steady, memory={"trained": 100.0, "end": 150.0})
        ]
    records += [
        measurements(benchmark, "run", "W5", 0, steady=1.5),
        measurements(benchmark, "torch", "W5", 0, steady=1.0),
    ]
    records += [
        measurements(benchmark, side, "W3", 0, process=process) for side, process in (("torch", 4.0), ("sklearn", 1.0))
    ]
    records += [measurements(benchmark, "run", "W3", 0, kind="cached", process=0.5, steady=None)]
    rows = pages.bar_rows(records)
    by_name = {row.split("|")[1].strip(): row for row in rows}
    assert len(by_name) == len(rows) == 7 + 1 + 4 + 4 + 7 + 7 + 1
    assert by_name["W3, a step"].endswith("| scan by hand | 0.20 | 1.00 | 0.20 to 0.20 |")
    assert by_name["W5, a step"].endswith("| PyTorch, eager | **1.50** | 1.30 |  |")
    assert by_name["W5, a step: the goal"].endswith("| PyTorch, eager | **1.50** | 1.00 |  |")
    assert by_name["W3, whole process"].endswith("| scikit-learn, the best library | **2.00** | 1.00 |  |")
    assert by_name["W3, second process, cache"].endswith("| 0.50 | 0.60 |  |")
    assert by_name["W3, peak memory"].endswith("| **2.00** | 1.10 | 2.00 to 2.00 |")
    assert by_name["W3, peak memory, later runs"].endswith("| **2.00** | 1.10 | 2.00 to 2.00 |")
    assert by_name["W1, a step"].endswith("| not measured | 0.15 |  |")
    row = pages.side_row(records, "run", "W3")
    cells = "200.0 | 0.20 | 2.00 | 2.00 | 0.50 | 0.2 (0.1 to 0.9) | 0.750 | 200 / 300"
    assert row == f"| funcnn, `jit(run)` | {cells} |"
    assert row in pages.page(records)


def test_the_page_of_all_sides_says_what_is_missing_and_what_is_scaled(benchmark):
    pages = benchmark("performance_page")
    failed = {"kind": "train", "side": "keras", "name": "W3", "round": 0, "failed": "not installed: keras"}
    records = [MACHINE, failed, measurements(benchmark, "keras", "W7", 0, steady=0.1, process=3.0)]
    assert pages.side_row(records, "keras", "W3") == "| Keras on JAX | not installed: keras | | | | | | | |"
    assert pages.side_row(records, "torch", "W3") is None
    scaled = pages.side_row(records, "keras", "W7")
    assert scaled.startswith("| Keras on JAX (4 runs, times scaled) | 6,400.0 |  | 9.30 | 1.00 |")
    second = [*records, measurements(benchmark, "torch", "W7", 1)]
    assert pages.side_row(second, "keras", "W7").startswith("| Keras on JAX (4 runs, times scaled; 1 rounds) |")
    again = [*records, measurements(benchmark, "keras", "W3", 0)]  # a later attempt counts
    assert "not installed" not in pages.side_row(again, "keras", "W3")
    page = pages.page(records)
    assert "a machine" in page
    assert "Not measured." in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_table_of_the_readme_has_a_row_for_each_workload_and_names_the_fastest(benchmark):
    pages = benchmark("performance_page")
    steady = {("run", "W3"): 1.0, ("fit", "W3"): 1.5, ("scan", "W3"): 2.0, ("torch", "W3"): 4.0, ("nnx", "W3"): 3.0}
    records = [MACHINE, *(measurements(benchmark, *pair, 0, steady=taken) for pair, taken in steady.items())]
    records += [measurements(benchmark, "sklearn", "W3", 0, steady=None, process=0.5)]
    rows = pages.glance(records).splitlines()[2:]
    assert [row.split("|")[1].split(",")[0].strip() for row in rows] == [
        title.split(",")[0] for title in pages.SHORT.values()
    ]
    assert rows[2] == "| digits, 64-128-64-10 | 0.50 | 0.75 | 0.25 | 0.33 (Flax NNX) | 4.00 (scikit-learn) |"
    readme = f"before\n\n{pages.GLANCE_HEAD}\n| old |\n\nafter\n"
    assert pages.with_glance(readme, records) == f"before\n\n{pages.glance(records)}\n\nafter\n"
    assert pages.glance(records) in pages.page(records)
    tiny = [*records, measurements(benchmark, "torch", "W3", 0, steady=256.0)]  # the last measurement of a round counts
    assert "| 0.50 | 0.75 | 0.004 |" in pages.glance(tiny)


def test_the_page_explains_what_is_above_its_bar_and_nothing_else(benchmark):
    pages = benchmark("performance_page")
    slow, fast = ([MACHINE, measurements(benchmark, "run", "W6", 0, steady=steady),
                   measurements(benchmark, "torch", "W6", 0, steady=1.0)] for steady in (1.2, 0.8))  # fmt: skip
    assert re.findall(r"^- \*\*(.*)\*\*: ", pages.rest(pages.bar_rows(slow)), re.MULTILINE) == ["W6, a step"]
    assert pages.rest(pages.bar_rows(fast)) == "Every ratio is below its bar.\n"
    both = pages.rest(
        ["| W3, whole process | a | b | **1.71** | 1.00 |", "| W4, whole process | a | b | **1.02** | 1.00 |"]
    )
    assert re.findall(r"^- \*\*(.*)\*\*: ", both, re.MULTILINE) == ["W3, whole process; W4, whole process"]
    assert "not explained" in pages.rest(["| W1, a step | a | b | **0.20** | 0.15 |"])
    assert pages.rest(pages.bar_rows(slow)) in pages.page(slow)


def test_the_time_to_compile_is_that_of_the_longest_over_that_of_the_shortest(benchmark):
    pages = benchmark("performance_page")
    job = {"kind": "compile", "side": "run", "round": 0}
    records = [
        {**job, "name": str(blocks), "seconds": seconds}
        for blocks, seconds in zip(pages.BLOCKS, (0.5, 0.4, 0.6, 0.55), strict=True)
    ]
    assert pages.bar_rows(records)[-1].endswith("| **1.50** | 1.30 | |")
    assert pages.bar_rows(records[1:])[-1].endswith("| not measured | 1.30 | |")


def test_the_page_and_the_table_of_the_readme_are_of_the_records(benchmark):
    script = benchmark("performance")
    records = script.read(script.RECORDS)
    assert script.PAGE.read_text() == script.page(records), "python benchmarks/performance.py --from"
    readme = script.README.read_text()
    assert readme == script.with_glance(readme, records)


def test_the_records_are_of_all_sides_and_of_five_rounds(benchmark):
    script = benchmark("performance")
    records = script.read(script.RECORDS)
    wanted = script.jobs(list(script.WORKLOADS), list(script.SIDES), 5, 20)
    measured = [record for record in records if record["kind"] != "machine" and "failed" not in record]
    assert sorted(map(script.job_of, measured)) == sorted(wanted)
    assert all(len(record["losses"]) == 20 for record in records if record["kind"] == "losses")


def test_the_products_of_a_transformer_are_those_of_its_step(benchmark):
    """Counted apart: of four blocks the dense layers, and the two products of attention; then the scores."""
    products = benchmark("products")
    forward = sum(product.operations * product.count for product in products.PRODUCTS)
    width, rows = 128, 32 * 64
    blocks = 4 * (2 * rows * width * (3 + 1 + 4 + 4) * width + 2 * 2 * 32 * 4 * 64 * 64 * 32)
    assert forward == blocks + 2 * rows * width * 64
    found = {
        side: {"products": [[factor * 1e-3] * 3] * 7, "parts": [factor * 1e-3] * 6, "step": factor * 0.1}
        for side, factor in (("jax", 2), ("torch", 1))
    }
    count, parts = 3 * sum(product.count for product in products.PRODUCTS), sum(part[-1] for part in products.PARTS)
    rows = products.sums(found)
    assert rows[0] == f"| matrix products | {2 * count:.3f} | {count:.3f} | 2.00 |"
    assert rows[-2] == f"| together | {2 * (count + parts):.3f} | {count + parts:.3f} | 2.00 |"
    assert rows[-1] == "| the whole step | 200.000 | 100.000 | 2.00 |"
    assert products.speeds(found) == pytest.approx([3 * forward / 1e6 / (2 * count), 3 * forward / 1e6 / count])
    assert all(row in products.page(found, 1, 0.0) for row in [*rows, *products.product_rows(found)])
    small = products.Product("small", 2, 3, 4, 5, 1)
    left, right, gradient = products.arrays(small)
    for form, shape in zip(
        products.forms(lambda x: x.swapaxes(-1, -2)), ((2, 3, 5), (2, 3, 4), (2, 4, 5)), strict=True
    ):
        assert form(left, right, gradient).shape == shape


@pytest.mark.slow
def test_the_sides_of_a_convolution_are_the_same_operation(benchmark, torch):
    """In their values, but for where the edges lie: strides and padding of PyTorch, means at the rim."""
    convolutions = benchmark("convolutions")
    for case in convolutions.CASES:
        small = case._replace(batch=2, size=8)
        x, kernel = map(jnp.asarray, convolutions.arrays(small))
        ours, plain = (jax.jit(make(small))(x, kernel) for make in (convolutions.by_funcnn, convolutions.by_lax))
        operation, *given = convolutions.by_torch(small)
        theirs = operation(*given).movedim(1, -1)
        assert ours.shape == plain.shape == tuple(theirs.shape), case.title
        inner = (slice(None), *[slice(1, -1)] * case.dimensions) if case.kind == "average" else ...
        np.testing.assert_allclose(ours[inner], plain[inner], rtol=1e-4, atol=1e-4, err_msg=case.title)
        if case.strides == 1:
            np.testing.assert_allclose(ours[inner], theirs.numpy()[inner], rtol=1e-4, atol=1e-4, err_msg=case.title)


def test_the_page_of_convolutions_has_a_row_for_each_case_and_batch(benchmark):
    convolutions = benchmark("convolutions")
    found = {
        side: [{"seconds": seconds, "megabytes": 10 * seconds}] * len(convolutions.CASES)
        for side, seconds in (("funcnn", 1.0), ("plain", 4.0), ("torch", 2.0))
    }
    found |= {
        side: [{"seconds": seconds, "megabytes": seconds}] * len(convolutions.BATCHES)
        for side, seconds in (("whole", 1.0), ("chunks", 2.0))
    }
    rows, bounds = convolutions.case_rows(found), convolutions.bound_rows(found)
    assert len({row.split("|")[1] for row in rows}) == len(convolutions.CASES)
    assert rows[2].startswith(
        "| convolution 3x3: 28x28x32 to 64, stride 2 | 1000.00 | 4000.00 | 2000.00 | 0.25 | 0.50 |"
    )
    assert bounds[1] == "| 16 | 29 | 1000.0 | 2000.0 | 2.00 | 1 | 2 |"
    assert all(row in convolutions.page(found, 1, 0.0) for row in [*rows, *bounds])


def test_the_loops_that_are_one_kernel_are_those_within_the_bound(benchmark):
    loops = benchmark("tiny_loops")
    assert loops.Case((2, 16, 8, 1), 100).largest == 100 * 16 * 8
    assert min(case.largest for case in loops.CASES) < loops.small_products.MOST  # cases on both sides of it, and at it
    assert max(case.largest for case in loops.CASES) > 4 * loops.small_products.MOST
    times = {"plain": 2.0, "fused": 1.0, "by hand": 1.9, "by hand, fused": 1.5}
    found = {side: [times[side]] * len(loops.CASES) for side in loops.SIDES}
    rows = loops.rows(found)
    assert rows[1] == "| 2-16-8-1 on 100 rows | 12,800 | 2.0 | 1.0 | 0.50 | yes | 1.9 | 1.5 |"
    assert ["| yes |" in row for row in rows] == [case.largest <= 2**16 for case in loops.CASES]
    assert all(row in loops.page(found, 1, 0.0) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("tiny_loops", "b.STEPS, b.SECONDS, b.CASES = 2, 0, b.CASES[:1]"),
        ("deep_starts", "b.CASES = b.CASES[:2]"),
    ],
)
def test_each_side_is_timed_in_a_process_of_its_own(benchmark, name, small):
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)])}
    for side in benchmark(name).SIDES:
        code = f"import json, {name} as b; {small}; print(json.dumps([b.one({side!r}), len(b.CASES)]))"
        found, count = benchmark("against_scan").in_process("-c", code, settings=places)
        assert len(found) == count > 0
        assert all(0 < taken < 1e6 for taken in found)


def test_medians_are_of_rounds_in_which_the_sides_take_turns(benchmark, monkeypatch):
    sided, asked = benchmark("sided"), []

    def in_process(script, option, side):
        asked.append(side)
        return [len(asked), 10 * len(asked)]

    monkeypatch.setattr(sided, "in_process", in_process)
    assert sided.medians("a.py", ("a", "b"), 3) == {"a": [3, 30], "b": [4, 40]}
    assert asked == ["a", "b"] * 3


@pytest.mark.parametrize("module", ["by_torch", "large_by_torch"])
def test_each_kernel_of_attention_begins_from_glorot_also_in_one_layer(benchmark, torch, module):
    """Queries, keys and values of one layer are three kernels: drawn as one they would be smaller."""
    found = benchmark(module)
    if module == "by_torch":
        block, width = found.initialised(found.Transformer()).blocks[0], 128
        kernels = block.attention.inputs.weight.chunk(3)
    else:
        size = benchmark("one_large").LARGE["GPT"]._replace(width=128, heads=4, blocks=(1,))
        width, kernels = 128, found.initialised(found.Gpt(size)).blocks[0].inputs.weight.chunk(3)
    for kernel in kernels:
        assert 0.98 * (6 / (2 * width)) ** 0.5 < kernel.abs().max() <= (6 / (2 * width)) ** 0.5


def test_the_runs_of_each_rate_begin_from_the_same_seeds(benchmark):
    work = benchmark("workloads")
    assert work.seeds(10).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [set(work.rates(256)[i : i + 4]) for i in (0, 4)] == [{x} for x in work.rates(256)[[0, 4]]]


def test_final_losses_outside_of_the_reference_are_marked(benchmark):
    pages = benchmark("performance_page")
    assert pages.quantiles([float(i) for i in range(11)]) == (1.0, 9.0)
    job = {"kind": "losses", "name": "W1", "round": 0}
    reference = {**job, "side": "scan", "losses": [float(i) for i in range(11)]}
    for ours, shown in (([8.9] * 3, "8.9"), ([9.1] * 3, "**9.1**"), ([0.5] * 3, "**0.5**")):
        rows = pages.loss_rows([reference, {**job, "side": "run", "losses": ours}])
        assert rows[0].startswith(f"| W1 | funcnn, `jit(run)` | {shown} | ")
        assert rows[1] == "| W1 | scan by hand | 5 | 1 | 9 | 11 |"


def test_what_is_known_is_not_measured_again(benchmark, tmp_path, monkeypatch):
    script, keep, measured = benchmark("performance"), tmp_path / "kept.jsonl", []

    def fake(job, folder, seeds, seconds=0):
        if seconds or seeds:
            measured.append(job)
        return job._asdict() | ({"failed": "no"} if job.side == "scan" else {})

    monkeypatch.setattr(script, "measured", fake)
    todo = [script.Job("train", side, "W1", number) for side in ("run", "scan") for number in (0, 1)]
    script.measurements(todo[:3], [MACHINE], keep, 1)
    assert measured == todo[:3]
    with keep.open("a") as file:
        file.write('{"kind": "tra')  # cut off by a kill
    records = script.read(keep)
    assert [script.job_of(record) for record in records] == todo[:3]
    measured.clear()
    script.measurements(todo, [MACHINE, *records], None, 1)
    assert measured == todo[2:]  # what failed is tried again


def test_a_page_is_of_a_revision(benchmark, monkeypatch, capsys):
    script = benchmark("performance")
    monkeypatch.setattr(script, "revision", lambda: "0123abc-dirty")
    monkeypatch.setattr(script.sys, "argv", ["performance.py"])
    with pytest.raises(SystemExit):
        script.main()
    assert "commit what is changed" in capsys.readouterr().err


def test_a_workload_is_measured_anew_beside_the_rest(benchmark):
    script, pages = benchmark("performance"), benchmark("performance_page")
    old = script.read(script.RECORDS)
    job = script.Job("train", "run", "W6", 0)
    found = next(record for record in old if record["kind"] == "train" and script.job_of(record) == job)
    new = [old[0] | {"date": "2031-01-02", "code": "0123abc"}, found | {"steady": 1e3}]
    records = script.renewed(script.renewed(old, new, ["W6"]), new, ["W6"])
    assert [record for record in records if record.get("name") == "W6"] == new[1:]
    rest = [record for record in old if record["kind"] != "machine" and record["name"] != "W6"]
    assert [record for record in records if record["kind"] != "machine" and record["name"] != "W6"] == rest
    text = " ".join(pages.page(records).split())
    assert f"wrote this page on {old[0]['date']}" in text
    assert f"funcnn {old[0]['code']};" in text
    assert text.count("; measured again: W6 on 2031-01-02 with funcnn 0123abc, load") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "is of another machine or of other versions"),
        (["--sides", "run"], "expected all sides"),
        (["--quick"], "without --quick"),
        (["--from"], "without --quick and --from"),
    ],
)
def test_what_cannot_stand_beside_the_rest_is_refused_before_it_is_measured(
    benchmark, monkeypatch, capsys, given, message
):
    script = benchmark("performance")
    monkeypatch.setattr(script, "machine", lambda others: "a toaster")
    monkeypatch.setattr(script, "revision", lambda: "0123abc")
    monkeypatch.setattr(script, "measurements", lambda *given: pytest.fail("measured"))
    monkeypatch.setattr(script.sys, "argv", ["performance.py", "--anew", "--workloads", "W6", *given])
    with pytest.raises(SystemExit):
        script.main()
    assert message in capsys.readouterr().err


def test_the_rounds_have_all_sides_each_in_an_order_of_its_own(benchmark):
    script = benchmark("performance")
    todo = script.jobs(["W1", "W5"], ["run", "fused", "torch", "sklearn"], 2, 3)
    assert len(set(todo)) == len(todo)
    first, second = ([job for job in todo if job.round == i and job.kind != "losses"] for i in (0, 1))
    assert {job._replace(round=0) for job in second} == set(first)
    assert [job._replace(round=0) for job in second] != first
    pairs = {(job.side, job.name) for job in first if job.kind == "train"}
    assert pairs == {(s, n) for s in ("run", "torch") for n in ("W1", "W5")} | {("fused", "W1"), ("sklearn", "W1")}
    assert {job.side for job in todo if job.kind == "cached"} == {"run", "fused"}
    assert {job.name for job in first if job.kind == "compile"} == {"4", "8", "64", "256"}
    assert {(job.side, job.name) for job in todo if job.kind == "losses"} == pairs - {("sklearn", "W1")}


@pytest.mark.slow
def test_a_first_start_is_taken_apart(benchmark):
    start = benchmark("second_start")
    first, second, pieces = start.taken_apart("W1", 1)
    compiling = []
    for row in (first, second):
        *cells, total = [float(cell) for cell in row.strip("| ").split(" | ")[1:]]
        assert len(cells) == len(start.PARTS)
        assert total == pytest.approx(sum(cells), abs=0.05)
        assert min(cells) >= 0
        assert cells[start.PARTS.index("import jax")] > 0.1
        compiling.append(cells[start.PARTS.index("compiling")])
    assert compiling[1] < compiling[0] / 2  # it is read back
    assert re.findall(r"[a-z ]+(?= \d)", pieces.partition(":")[2]) != []
    text = start.page(["| W1 |"], [(first, second, pieces)], 1, 0.0)
    assert all(part in text for part in (first, second, pieces))


@pytest.mark.slow
def test_cost_is_measured_over_every_size(benchmark):
    sizes, in_process = benchmark("sizes"), benchmark("against_scan").in_process
    assert sizes.size("devices", 4).devices == 4
    assert [sizes.size(what, 1)._asdict()[what] for what in sizes.VARIED] == [1] * len(sizes.VARIED)
    small = sizes.Size(width=8, depth=2, batch=8, members=1, devices=2)
    found = [in_process(sizes.__file__, "--one", json.dumps(small), side) for side in (sizes.OURS, sizes.HAND)]
    assert all(each["first"] > each["step"] > 0 and each["peak"] > 50 for each in found)
    assert sizes.row(2, *found).count("|") == 11


def test_the_starts_of_deep_models_are_compared(benchmark):
    starts = benchmark("deep_starts")
    found = {"apart": [2.0] * len(starts.CASES), "together": [1.0] * len(starts.CASES)}
    rows = starts.rows(found)
    assert rows[0] == "| `models.mlp([4], 1)` | 2.00 | 1.00 | 0.50 |"
    assert rows[2] == "| `models.mlp([64] * 10, 10)` | 2.00 | 1.00 | 0.50 |"
    assert all(row in starts.page(found, 1, 0.0) for row in rows)
