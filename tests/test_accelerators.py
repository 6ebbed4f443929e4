"""What accelerators.py measures, in small and on the CPU: all sides train the same networks, and the table says it."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnn import losses, models

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LARGE = ("GPT", "ResNet-50", "MLPs")
COUNTS = {"GPT": 124_439_808, "ResNet-50": 25_557_032, "MLPs": 4096 * (64 * 32 + 32 + 32 * 10 + 10)}


@pytest.fixture(scope="module")
def benchmark():
    """A module of the benchmarks, which are scripts and no package."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
    """In half of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def small(benchmark, monkeypatch):
    """The tiny sizes; of ResNet-50 two blocks, since each of them takes seconds to compile."""
    monkeypatch.setitem(models._STAGES, 50, (1, 1))
    sizes = benchmark("one_large").SMALL
    return sizes | {"ResNet-50": sizes["ResNet-50"]._replace(blocks=(1, 1))}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("module", ["large_by_funcnn", "large_by_hand"])
def test_the_full_size_has_the_number_of_parameters_of_the_paper(benchmark, module, name):
    assert benchmark(module).parameters(name, benchmark("one_large").LARGE[name]) == COUNTS[name]


@pytest.mark.parametrize("name", LARGE)
def test_pytorch_has_as_many_parameters(benchmark, torch, name):
    del torch
    assert benchmark("large_by_torch").parameters(name, benchmark("one_large").LARGE[name]) == COUNTS[name]


@pytest.mark.parametrize("module", ["large_by_hand", "large_by_torch", "one_large"])
def test_the_other_sides_need_nothing_of_funcnn(module):
    assert not re.search(r"^\s*(from|import) funcnn", (BENCHMARKS / f"{module}.py").read_text(), re.MULTILINE)


def as_by_hand(name, params):
    """The params of the model of funcnn as large_by_hand has them."""

    def pair(layer):
        return layer.get("kernel", layer.get("scale")), layer["bias"]

    if name == "MLPs":
        return [pair(layer) for layer in params.values()]
    own, forward = params["decoder"]["repeat_0"]["serial_0"].values()
    parts = [own["attention_0"][part] for part in ("query", "key", "value")]
    blocks = {
        "inputs": tuple(jnp.concatenate([part[leaf] for part in parts], -1) for leaf in ("kernel", "bias")),
        "output": pair(own["attention_0"]["output"]),
        "wide": pair(forward["serial_0"]["dense_0"]),
        "narrow": pair(forward["serial_0"]["dense_1"]),
        "norm_1": pair(own["layer_norm_0"]),
        "norm_2": pair(forward["layer_norm_0"]),
    }
    return {
        "embedding": params["table"]["embedding"],
        "positions": params["start"]["learned_positions_0"]["embedding"],
        "blocks": blocks,
        "norm": pair(params["decoder"]["layer_norm_0"]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT", "MLPs"])
def test_the_same_params_give_the_same_loss_and_gradient(benchmark, name):
    size = benchmark("one_large").SMALL[name]._replace(compute="float32")
    x, y = (jnp.asarray(a[: size.batch_size]) for a in benchmark("one_large").large_data(name, size))
    model, by_hand = benchmark("large_by_funcnn").model(name, size), benchmark("large_by_hand")
    params = jax.jit(model.init)(jax.random.key(0), x)[0]
    # At the start biases are zero and norms do nothing: with other params, nothing may be left out unseen.
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape, np.float32), params)

    @jax.jit
    @jax.value_and_grad
    def ours(params):
        return losses.softmax_cross_entropy(model.apply(params, {}, x)[0], y).mean()

    loss, gradient = ours(params)
    theirs = jax.jit(jax.value_and_grad(lambda p: by_hand.loss(name, size, p, {}, x, y)[0]))
    with jax.numpy_rank_promotion("allow"):
        expected, expected_gradient = theirs(as_by_hand(name, params))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_gradient))
    for a, b in zip(*map(jax.tree.leaves, (as_by_hand(name, gradient), expected_gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest)


NEAR = {"GPT": 0.05, "ResNet-50": 0.5, "MLPs": 0.1}  # to log(classes), of the loss of the first epoch


def expect_training(name, size, train):
    first, *_, last = np.concatenate([train() for _ in range(1 if name == "MLPs" else 2)])
    np.testing.assert_allclose(first, np.log(size.classes), rtol=NEAR[name])
    assert last < 0.97 * first


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("module", ["large_by_funcnn", "large_by_hand"])
def test_jax_learns(benchmark, small, module, name):
    size = small[name]
    with jax.numpy_rank_promotion("allow" if module == "large_by_hand" else "raise"):
        train = benchmark(module).started(name, size, *benchmark("one_large").large_data(name, size), 0)
        expect_training(name, size, train)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_pytorch_learns(benchmark, torch, small, name):
    del torch
    size = small[name]._replace(compute="float32")  # bfloat16 is slow on a CPU
    data = benchmark("one_large").large_data(name, size)
    expect_training(name, size, benchmark("large_by_torch").started(name, size, *data, 0))


def test_pytorch_trains_the_other_seven_on_its_device(benchmark, torch):
    one_large, module = benchmark("one_large"), benchmark("large_by_torch")
    for name in ("W1", "W4", "W7"):
        work, x, y = one_large.seven(name, True)
        train, predict = module.on_device(benchmark("by_torch")).started(name, work, x, y, 0)
        train()
        assert np.isfinite(predict(x)).all()
    assert torch.from_numpy(x).numpy() is not None  # and PyTorch is what it was
    assert torch.get_default_device() == torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LARGE, "W3", "W7"])
def test_what_pytorch_compiles_is_the_same_training(benchmark, torch, small, monkeypatch, name):
    """Captured whole and then run as it is: what Inductor makes of it is not looked at here."""
    one_large = benchmark("one_large")
    graphs, compiler = [], torch.compile

    def captured(module, given):
        graphs.append(given)
        return module.forward

    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend=captured))
    monkeypatch.setitem(one_large.SMALL, name, small[name]._replace(compute="float32")) if name in LARGE else None
    losses = {}
    for side in ("torch", "compiled"):
        started = one_large.prepared(side, name, True, 0)()
        history = started.train()
        losses[side] = history if name in LARGE else started.loss()
        assert bool(graphs) == (side == "compiled")
    np.testing.assert_allclose(losses["compiled"], losses["torch"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT", "ResNet-50"])
def test_a_call_gives_up_its_state_and_asks_nothing_of_the_host(benchmark, small, name):
    ours, size, key = benchmark("large_by_funcnn"), small[name], jax.random.key(0)
    data = jax.device_put(benchmark("one_large").large_data(name, size))
    state = ours.start(name, size, key, data)
    text = ours.program(name, size).lower(state, key, data).compile().as_text()
    assert "while" in text
    assert not re.search(r"infeed|outfeed|callback|\b(send|recv)\(", text)
    new, history = ours.program(name, size)(state, key, data)
    assert history.shape == (size.epochs,)
    assert int(new.step) == size.steps
    arrays = jax.tree.leaves((state.params, state.model_state, state.opt_state))
    assert all(leaf.is_deleted() for leaf in arrays if leaf.size > 1)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, data)))


def test_operations_are_those_of_a_hand_computation(benchmark):
    """Two for each weight and row forward, four backward, and two of the first layer, whose input has no gradient."""
    one_large = benchmark("one_large")
    size = one_large.SMALL["MLPs"]
    products = size.members * size.batch_size * 2 * (2 * 64 * 32 + 3 * 32 * 10)
    np.testing.assert_allclose(one_large.operations("MLPs", small=True)["operations"], products, rtol=0.06)
    products = 64 * 2 * (2 * 784 * 512 + 3 * (512 * 512 + 512 * 10))  # W4 in small is one step of 64 rows
    np.testing.assert_allclose(one_large.operations("W4", small=True)["operations"], products, rtol=0.06)


def test_operations_of_gpt_are_about_six_for_each_parameter_and_token(benchmark):
    size = benchmark("one_large").LARGE["GPT"]
    attention = 12 * 12 * 768 * 1024  # of a token, both products of scores and of values
    expected = (6 * (COUNTS["GPT"] - 1024 * 768) + attention) * 8 * 1024
    np.testing.assert_allclose(benchmark("large_by_funcnn").operations("GPT", size), expected, rtol=0.05)


KINDS = {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989, "NVIDIA A100-SXM4-40GB": 312}
KINDS |= {"TPU v5 lite": 197, "TPU v5": 459, "TPU v5p": 459, "TPU v4": 275, "TPU v4 lite": None, "cpu": None}


@pytest.mark.parametrize("kind", KINDS)
def test_the_peak_of_a_device_is_known_by_its_kind(benchmark, kind):
    assert benchmark("one_large").peak_of(kind) == (KINDS[kind] and KINDS[kind] * 1e12)


@pytest.mark.slow
def test_a_fresh_process_says_what_it_took(benchmark, tmp_path):
    settings = {"small": True, "seconds": 0.0, "operations": 1e6, "peak": 1e12, "trace": str(tmp_path)}
    command = (benchmark("one_large").__file__, "train", "hand", "W1", json.dumps(settings))
    found = benchmark("against_scan").in_process(*command, limit=300)
    assert found["steps"] == 2
    np.testing.assert_allclose(found["share"], found["steps_per_second"] * 1e-6)
    assert 0 < found["last_loss"] < 1
    assert (found["platform"], found["device"]) == ("cpu", "cpu")
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert found["copies_to_host"] == 0  # a CPU has none


def test_copies_to_the_host_are_read_off_a_profile(benchmark, tmp_path):
    """Of a made-up profile: two of a GPU, beside a kernel, a copy to the device, and what the host calls a copy."""

    def plane(name, events):
        metadata = "".join(
            f'event_metadata {{ key: {i} value {{ id: {i} name: "{e}" }} }} ' for i, e in enumerate(events)
        )
        line = "".join(f"events {{ metadata_id: {i} }} " for i in range(len(events)))
        return f'planes {{ name: "{name}" lines {{ name: "Stream" {line} }} {metadata} }}\n'

    text = plane("/device:GPU:0", ["MemcpyD2H", "fusion_3", "MemcpyH2D", "copy DeviceToHost"])
    text += plane("/host:CPU", ["MemcpyD2H"])
    found = jax.profiler.ProfileData.text_proto_to_serialized_xspace(text)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "a.xplane.pb").write_bytes(found)
    assert benchmark("one_large").copies_to_host(str(tmp_path)) == 2


def record(side, name, number=0, **changes):
    """Made-up numbers of one process."""
    found = {"steps_per_second": 10.0, "steps": 20, "first_call": 30.0, "first_loss": 10.8, "last_loss": 9.5}
    there = {"platform": "gpu", "device": "a device", "memory": 2_000_000_000, "share": 0.4}
    return {"side": side, "name": name, "round": number, "operations": 1e12, **found, **there, **changes}


def test_the_table_has_medians_and_ratios(benchmark):
    script = benchmark("accelerators")
    records = [record("funcnn", "GPT", i, steps_per_second=rate) for i, rate in enumerate((9.0, 11.0, 30.0))]
    records += [record("hand", "GPT"), record("torch", "W1", platform="cpu", memory=None, share=None, first_loss=None)]
    lines = script.table(records).splitlines()
    assert lines[2] == "| GPT | funcnn | 11 (9 to 30) | 1.10 | 40.0% | 2.00 | 30.0 | 10.8 to 9.5 |"
    assert lines[3] == "| GPT | JAX by hand | 10 (10 to 10) | 1.00 | 40.0% | 2.00 | 30.0 | 10.8 to 9.5 |"
    assert lines[4] == "| W1 | PyTorch, eager (on the CPU) | 10 (10 to 10) |  |  |  | 30.0 | 9.5 |"
    assert len({line.count("|") for line in lines}) == 1
    page = script.page(records)
    assert all(part in page for part in (*lines, "a device", "accelerators.py", "Medians of 3 rounds", *LARGE))


def test_what_failed_is_in_its_cell_and_the_others_go_on(benchmark, monkeypatch, tmp_path):
    script = benchmark("accelerators")
    seen = []

    def fake(*arguments, limit):
        assert limit == script.LIMIT
        kind, *rest = arguments[1:]
        if kind == "operations":
            return {"operations": 5.0}
        side, name, settings = rest
        seen.append((side, name, json.loads(settings)))
        if side == "funcnn":
            raise subprocess.CalledProcessError(-9, "python")
        if side == "hand":
            raise subprocess.TimeoutExpired("python", limit)
        return {"failed": "not installed: torch"} if name == "GPT" else record(side, name, seen[-1][2]["seed"])

    monkeypatch.setattr(script, "in_process", fake)
    given = ["--workloads", "GPT,W1", "--sides", "funcnn,hand,torch", "--rounds", "2", "--keep"]
    options, names, sides = script.parsed([*given, str(tmp_path / "kept.jsonl")])
    records = script.measurements(names, sides, options)
    assert len(seen) == len(records) == 12
    assert {(settings["operations"], settings["peak"]) for _, _, settings in seen} == {(5.0, None)}
    text = script.table(records)
    for cell in ("ended with -9", f"took more than {script.LIMIT} s", "not installed: torch"):
        assert f"| failed: {cell} |" in text
    assert "| W1 | PyTorch, eager" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
    seen.clear()
    options.keep.write_text("".join(json.dumps({**each, "small": False}) + "\n" for each in records))
    script.measurements(names, sides, options)
    assert {pair[:2] for pair in seen} == {*((side, n) for side in ("funcnn", "hand") for n in names), ("torch", "GPT")}
    half = [record("funcnn", "GPT"), {"side": "funcnn", "name": "GPT", "round": 1, "failed": "out of memory"}]
    assert "| funcnn (1 of 2 rounds, failed: out of memory) | 10 " in script.table(half)


def test_reasons_are_short(benchmark):
    reason = benchmark("one_large").reason
    assert reason(ModuleNotFoundError("No module named 'torch'", name="torch")) == "not installed: torch"
    assert reason(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")) == "out of memory"
    assert reason(RuntimeError("CUDA out of memory. Tried to allocate")) == "out of memory"
    assert reason(ValueError("a | b\nand more")) == "ValueError: a / b"


def test_a_page_is_written_of_everything_on_a_device_that_is_no_cpu(benchmark):
    script = benchmark("accelerators")
    options, names, sides = script.parsed([])
    records = [record("funcnn", "GPT"), record("torch", "W1", platform="cpu")]
    assert script.whole(records, names, sides, options)
    assert not script.whole(records, names[1:], sides, options)
    assert not script.whole(records, *script.parsed(["--small"])[1:], script.parsed(["--small"])[0])
    assert not script.whole([record("funcnn", "GPT", platform="cpu")], names, sides, options)


def test_the_rounds_have_all_sides_each_in_an_order_of_its_own(benchmark):
    script = benchmark("accelerators")
    todo = script.jobs([*script.NAMES], [*script.SIDES], 2)
    first, second = ([job[:2] for job in todo if job.round == i] for i in (0, 1))
    assert set(first) == set(second)
    assert first != second
    assert set(first) == {(side, name) for side in ("funcnn", "hand", "torch", "compiled") for name in script.NAMES}


@pytest.mark.parametrize(
    ("argument", "said"), [("--workloads=GTP", "GPT, ResNet-50, MLPs, W1"), ("--sides=jax", "compiled, got jax")]
)
def test_what_is_misspelt_is_refused(benchmark, capsys, argument, said):
    with pytest.raises(SystemExit):
        benchmark("accelerators").main([argument])
    assert said in capsys.readouterr().err
