"""What the benchmarks compare does equal work: from the same initial params the same losses, to rounding.

Nothing here is timed. Each workload is cut to a few examples and epochs, with a smaller last batch where there is one.
"""

import importlib
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import training

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
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
    names = set(benchmark("workloads").WORKLOADS)
    assert names == set(benchmark("by_hand").NETWORKS) == set(benchmark("by_funcnn").TRAINERS) == set(CUT)


@pytest.mark.parametrize(("name", "rest", "steps"), [("W3", 29, 900), ("W4", 96, 469), ("W5", 40, 48)])
def test_the_last_batch_is_a_smaller_one(benchmark, name, rest, steps):
    work = benchmark("workloads").WORKLOADS[name]
    examples = {"W3": 1437, "W4": 60000, "W5": 1000}[name]
    assert examples % work.batch_size == rest
    assert work.steps(examples) == steps
    assert f"{examples} " in work.title


@pytest.mark.parametrize("module", ["by_hand", "workloads"])
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
    line = script.import_line({"jax, optax": 400.0, "funcnn": 51.0})
    page = script.page([row], ["| first |"], line, 0.5)
    assert all(part in page for part in (row, "| first |", "**51** ms", *benchmark("workloads").WORKLOADS))
    for head in (script.STEADY_HEAD, script.FIRST_HEAD):
        assert len({text.count("|") for text in head.splitlines()}) == 1
