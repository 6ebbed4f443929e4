"""The law of a run, in bytes: however a run is driven, it is the same run.

Two networks with everything that has ever told programs apart: dropout, batch norm, Adam, a metric, validation with a
smaller last batch, and a smaller last training batch. Each way of driving a run is compared with ``jax.jit`` of
``run``.
"""

import functools
import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, metrics, training
from funcnn.training import driving

N, BATCH, EPOCHS = 27, 8, 6  # three whole batches and one of three examples
EPOCH_STEPS = 4
KEY = jax.random.key(7)
RNG = np.random.default_rng(0)


def drawn(n, shape):
    return RNG.normal(size=(n, *shape)).astype(np.float32), RNG.integers(0, 3, n).astype(np.int32)


def mlp():
    return layers.serial(
        layers.dense(10),
        layers.batch_norm(),
        layers.tanh,
        layers.dropout(0.3),
        layers.dense(6),
        layers.relu,
        layers.dense(3),
    )


def convolutional():
    return layers.serial(
        layers.conv(4, 3),
        layers.batch_norm(),
        layers.relu,
        layers.max_pool(2),
        layers.conv(5, 2),
        layers.relu,
        layers.flatten,
        layers.dropout(0.3),
        layers.dense(3),
    )


class Case:
    """A network with its data, and the run that all others are compared with."""

    def __init__(self, model, shape):
        self.model = model
        self.trainer = self.made(1e-2)
        self.data, self.validation = drawn(N, shape), drawn(13, shape)  # validated in a batch of 8 and one of 5
        self.options = {"epochs": EPOCHS, "batch_size": BATCH, "validation": self.validation}

    @functools.cached_property
    def whole(self):
        return jax.jit(lambda key: training.run(self.trainer, self.data, key=key, **self.options))(KEY)

    def made(self, rate):
        return training.supervised(
            self.model, losses.softmax_cross_entropy, optax.adam(rate), metrics={"accuracy": metrics.accuracy}
        )

    def fit(self, **options):
        return training.fit(self.trainer, self.data, key=KEY, progress=False, **{**self.options, **options})

    def steps(self, **options):
        return list(training.steps(self.trainer, self.data, key=KEY, **{**self.options, **options}))


@pytest.fixture(scope="module", params=["mlp", pytest.param("convolutional", marks=pytest.mark.slow)])
def case(request):
    if request.param == "mlp":
        return Case(mlp(), (5,))
    return Case(convolutional(), (7, 7, 2))


def leaves(tree):
    """Path and host array of every leaf, keys as their data."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found[jax.tree_util.keystr(path)] = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    return found


def assert_same_bytes(found, expected):
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    different = [
        path for path, a in expected.items() if found[path].dtype != a.dtype or found[path].tobytes() != a.tobytes()
    ]
    assert different == [], {path: (found[path], expected[path]) for path in different[:3]}


def assert_close(found, expected, tolerance):
    found, expected = leaves(found), leaves(expected)
    assert found.keys() == expected.keys()
    for path, a in expected.items():
        np.testing.assert_allclose(found[path], a, rtol=tolerance, atol=tolerance, err_msg=path)


@pytest.mark.slow
def test_the_run_is_no_trivial_one(case):
    history = case.whole.history
    assert sorted(history) == ["accuracy", "loss", "validation_accuracy", "validation_loss"]
    assert {column.shape for column in history.values()} == {(EPOCHS,)}
    assert all(np.isfinite(column).all() for column in history.values())
    assert history["loss"][-1] < history["loss"][0]
    assert int(case.whole.state.step) == EPOCHS * EPOCH_STEPS
    assert not np.array_equal(*(case.whole.history[name] for name in ("loss", "validation_loss")))


@pytest.mark.slow
def test_run_compiled_by_the_caller_is_run(case):
    assert_same_bytes(training.run(case.trainer, case.data, key=KEY, **case.options), case.whole)


@pytest.mark.parametrize("every", [1, 3, EPOCHS, None])
def test_fit_in_chunks_of_epochs_is_run(case, every):
    seen = []
    result = case.fit(every=every, observers=[lambda event: seen.append(event.step)])
    if every is not None:
        assert seen == list(range(every * EPOCH_STEPS, EPOCHS * EPOCH_STEPS + 1, every * EPOCH_STEPS))
    assert_same_bytes(result, case.whole)


@pytest.mark.parametrize("seconds", [[0.03, 0.9, 0.055, 0.31, 0.02], [0.067, 0.5, 0.01]])
def test_fit_in_chunks_by_the_clock_is_run(case, monkeypatch, seconds):
    readings = (t for i in range(1000) for t in (10.0 * i, 10.0 * i + seconds[i % len(seconds)]))
    monkeypatch.setattr(driving, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    seen = [0]
    result = case.fit(observers=[lambda event: seen.append(event.step)])
    sizes = np.diff(seen).tolist()
    assert len(set(sizes)) > 2, sizes
    assert any(step % EPOCH_STEPS for step in seen), seen  # cut inside epochs
    assert any(a % EPOCH_STEPS and a // EPOCH_STEPS < b // EPOCH_STEPS for a, b in itertools.pairwise(seen)), seen
    assert_same_bytes(result, case.whole)


@pytest.mark.parametrize("every", [1, 7])
def test_steps_are_run(case, every):
    events = case.steps(every=every)
    taken = [event.step for event in events]
    assert taken == [*range(every, EPOCHS * EPOCH_STEPS, every), EPOCHS * EPOCH_STEPS]
    assert_same_bytes(events[-1].state, case.whole.state)
    if every == 1:
        rows = [event.metrics for event in events if event.step % EPOCH_STEPS == 0]
        history = {name: np.array([row[name] for row in rows], np.float32) for name in rows[0]}
        assert_same_bytes(history, case.whole.history)


def batches_by_hand(data, key, epochs):
    """The batches of a run, from the formula that the docstring of ``run`` gives."""
    _, shuffle_key, _ = jax.random.split(key, 3)
    for epoch in range(epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), N))
        for begin in range(0, N, BATCH):
            yield tuple(a[order[begin : begin + BATCH]] for a in data)


def started(case):
    """The state before the first step, compiled as everything is."""
    init_key, _, step_key = jax.random.split(KEY, 3)
    first = tuple(a[:BATCH] for a in case.data)
    return jax.jit(case.trainer.init)(init_key, first)._replace(key=step_key)


@pytest.mark.slow
def test_compiled_step_in_a_loop_of_your_own_is_run(case):
    state, step, rows, sums = started(case), training.compiled_step(case.trainer), [], None
    for i, batch in enumerate(batches_by_hand(case.data, KEY, EPOCHS)):
        state, info = step(state, batch)
        sums = info if i % EPOCH_STEPS == 0 else jax.tree.map(jnp.add, sums, info)
        if i % EPOCH_STEPS == EPOCH_STEPS - 1:
            rows.append(jax.jit(case.trainer.report)(sums))
    assert_same_bytes(state, case.whole.state)
    history = jax.tree.map(lambda *values: np.stack(values), *rows)
    assert_same_bytes(history, {name: case.whole.history[name] for name in history})


@pytest.mark.slow
def test_a_step_that_the_caller_compiled_is_run_to_rounding(case):
    state, step = started(case), jax.jit(case.trainer.step)
    for batch in batches_by_hand(case.data, KEY, EPOCHS):
        state, _ = step(state, batch)
    assert_close(state, case.whole.state, 1e-3)


@pytest.mark.slow
def test_two_runs_one_from_the_state_of_the_other_are_run(case):
    first = training.run(case.trainer, case.data, key=KEY, **{**case.options, "epochs": 2})
    options = {**case.options, "epochs": EPOCHS - 2}
    second = training.run(case.trainer, case.data, key=KEY, state=first.state, **options)
    assert_same_bytes(second.state, case.whole.state)
    history = jax.tree.map(lambda a, b: np.concatenate([a, b]), first.history, second.history)
    assert_same_bytes(history, case.whole.history)


@pytest.mark.slow
def test_members_of_a_map_are_runs_and_those_of_vmap_to_rounding(case):
    # Hyperparameters come as arrays: a Python float and a traced one differ by rounding.
    members = jnp.arange(2, dtype=jnp.uint32), jnp.array([1e-3, 1e-2])

    def member(pair):
        options = {**case.options, "epochs": 2}
        return training.run(case.made(pair[1]), case.data, key=jax.random.key(pair[0]), **options)

    mapped, alone = jax.jit(lambda pairs: jax.lax.map(member, pairs))(members), jax.jit(member)
    singles = [alone(jax.tree.map(lambda a, i=i: a[i], members)) for i in range(2)]
    assert_same_bytes(mapped, jax.tree.map(lambda *a: jnp.stack(a), *singles))
    if case.model.children[0][0] == "dense_0":  # once is enough for what is no promise of bits
        together = jax.jit(jax.vmap(member))(members)
        assert_close(together, jax.tree.map(lambda *a: jnp.stack(a), *singles), 1e-3)


# ---- other forms of a run --------------------------------------------------------------------------------------------


class Small:
    """A small network, of which many forms of a run are compiled."""

    def __init__(self):
        model = layers.serial(layers.dense(4), layers.tanh, layers.dropout(0.2), layers.dense(3))
        self.trainer = training.supervised(model, losses.softmax_cross_entropy, optax.sgd(0.1, momentum=0.9))
        self.data = drawn(N, (5,))
        self.options = {"epochs": 3, "batch_size": BATCH}


@pytest.fixture(scope="module")
def small():
    return Small()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"batch_size": None}, 3),
        ({"batch_size": 100}, 3),
        ({"epochs": None, "steps": 10}, 10),  # ends in the third epoch
        ({"epochs": None, "steps": 4}, 4),  # ends with it
        ({"shuffle": False}, 12),
        ({"drop_last": True, "epochs": None, "steps": 7}, 7),
        ({"batch_size": 9}, 9),  # no smaller last batch
        ({"batch_size": 20, "epochs": 2}, 4),  # one whole batch and a smaller one
        ({"validation": drawn(5, (5,))}, 12),  # in one batch, smaller than those of training
    ],
    ids=lambda value: (
        str(value).replace(" ", "") if not isinstance(value, dict) or "validation" not in value else "valid"
    ),
)
def test_every_form_of_run_is_that_of_fit_and_of_steps(small, options, steps):
    options = {"key": KEY, **small.options, **options}
    result = training.run(small.trainer, small.data, **options)
    assert int(result.state.step) == steps
    assert all(np.isfinite(leaf).all() for leaf in leaves(result).values())
    for every in (1, 2, None):
        assert_same_bytes(training.fit(small.trainer, small.data, progress=False, every=every, **options), result)
    *_, last = training.steps(small.trainer, small.data, every=2, **options)
    assert_same_bytes(last.state, result.state)


@pytest.mark.slow
def test_fit_and_steps_go_on_from_a_state_as_run_does(small):
    options = {"key": KEY, **small.options}
    whole = training.run(small.trainer, small.data, **options)
    first = training.fit(small.trainer, small.data, progress=False, **{**options, "epochs": 1})
    second = training.fit(small.trainer, small.data, progress=False, state=first.state, **{**options, "epochs": 2})
    assert_same_bytes(second.state, whole.state)
    np.testing.assert_array_equal(
        np.concatenate([first.history["loss"], second.history["loss"]]), whole.history["loss"]
    )
    *_, last = training.steps(small.trainer, small.data, state=first.state, **{**options, "epochs": 2})
    assert (last.epoch, last.step) == (2, 8)
    assert_same_bytes(last.state, whole.state)


def draw(key):
    noise_key, x_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (6, 5))
    return x, (x[:, 0] > 0.5).astype(jnp.int32) + (jax.random.uniform(noise_key, (6,)) < 0.1)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        pytest.param({"epochs": 7}, 7, marks=pytest.mark.slow),
        pytest.param({"epochs": 3, "steps_per_epoch": 5}, 3, marks=pytest.mark.slow),
        pytest.param({"steps": 11, "steps_per_epoch": 4}, 3, marks=pytest.mark.slow),
    ],
)
def test_a_function_of_the_key_is_data_in_every_form(small, options, rows):
    result = training.run(small.trainer, draw, key=KEY, **options)
    assert result.history["loss"].shape == (rows,)
    for every in (1, 2):
        fitted = training.fit(small.trainer, draw, key=KEY, progress=False, every=every, **options)
        assert_same_bytes(fitted, result)
    *_, last = training.steps(small.trainer, draw, key=KEY, every=3, **options)
    assert_same_bytes(last.state, result.state)


@pytest.mark.slow
def test_a_function_of_the_key_goes_on_where_it_was(small):
    options = {"key": KEY, "steps_per_epoch": 3}
    whole = training.run(small.trainer, draw, epochs=4, **options)
    first = training.run(small.trainer, draw, epochs=2, **options)
    second = training.run(small.trainer, draw, epochs=2, state=first.state, **options)
    assert_same_bytes(second.state, whole.state)


# ---- many devices ----------------------------------------------------------------------------------------------------

SHARDED = """
import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import test_law
from funcnn import losses, training

assert len(jax.devices()) == 8
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **more: (
        compiled.append(more.get("fun_name", "")) if event.endswith("backend_compile_duration") else None
    )
)
mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("batch"))
for model, shape in (test_law.mlp(), (5,)), (test_law.convolutional(), (7, 7, 2)):
    case = test_law.Case(model, shape)
    # Not with Adam, which makes steps of full size of the gradient of a bias before batch norm, which is rounding.
    trainer = training.supervised(model, losses.softmax_cross_entropy, optax.sgd(0.1))
    # As many examples as the devices divide; still with a smaller last batch.
    data = tuple(a[:24] for a in case.data)
    options = {"key": test_law.KEY, "epochs": 2, "batch_size": 10}
    single = training.run(trainer, data, **options)
    spread = jax.device_put(data, sharding)
    assert len(spread[0].sharding.device_set) == 8
    if shape == (5,):
        program = jax.jit(lambda d=spread: training.run(trainer, d, **options).state.params).lower().compile()
        assert "f32[2,3]" in program.as_text() and "f32[10,3]" not in program.as_text()  # each computes its part alone
        compiled.clear()
        result = training.fit(trainer, spread, every=1, progress=False, **options)
        assert sorted(name for name in compiled if "stage" not in name) == ["jit(_advance)", "jit(_start)"], compiled
    else:
        result = jax.jit(lambda d: training.run(trainer, d, **options))(spread)
    test_law.assert_close(result, single, 1e-3)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(result.state.params))
try:
    training.fit(trainer, iter([spread]), key=test_law.KEY, epochs=1, progress=False)
except ValueError as error:
    assert "batch 0 of the stream: expected arrays of NumPy or of one device, got arrays that lie on 8" in str(error)
else:
    raise AssertionError("a stream over several devices is not refused")
first, second = (jax.device_put(data, device) for device in jax.devices()[:2])
begun = jax.device_put(trainer.init(test_law.KEY, data), jax.devices()[2])
for given, message in (
    ({"validation": second}, "got data on cpu:0 and validation on cpu:1; put it in one place with jax.device_put"),
    ({"state": begun}, "got data on cpu:0 and state on cpu:2; put"),
    ({"validation": spread, "state": begun}, "got data on cpu:0 and validation on 8 devices and state on cpu:2; put"),
    ({"key": jax.device_put(test_law.KEY, jax.devices()[3])}, "got data on cpu:0 and key on cpu:3; put"),
):
    try:
        compiled.clear()
        training.fit(trainer, first, **{"key": test_law.KEY, "epochs": 1, "progress": False, **given})
    except ValueError as error:
        assert str(error).startswith("fit: expected all that is given on the same devices, " + message), error
        assert not compiled
    else:
        raise AssertionError(f"{list(given)}: arrays on several devices are not refused")
explicit = NamedSharding(jax.make_mesh((8,), ("batch",)), PartitionSpec("batch"))
try:
    training.fit(trainer, jax.device_put(data, explicit), key=test_law.KEY, epochs=1, batch_size=8, progress=False)
except ValueError as error:
    assert "expected data on a mesh of Auto axes" in str(error)
else:
    raise AssertionError("a mesh of Explicit axes is not refused")
print("all close")
"""


@pytest.mark.slow
def test_a_batch_spread_over_eight_devices_is_run_to_rounding():
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all close"
