"""Members of a sweep on several cores at once: the same bits, in the same order, and only where it helps."""

import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_law import assert_same_bytes

from funcnn import checkpoints, layers, losses, metrics, training
from funcnn.training import cores, probes, sweeps

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
Y = (X.sum(1, keepdims=True) > 0).astype(np.float32)
RATES = np.float32([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])


def made(rate):
    model = layers.serial(layers.dense(4), layers.tanh, layers.dropout(0.1), layers.dense(1))
    accuracy = {"accuracy": metrics.binary_accuracy()}
    return training.supervised(model, losses.sigmoid_cross_entropy, optax.adam(rate), accuracy)


def swept(data=(X, Y), key=0, **options):
    given = {"key": jax.random.key(key), "epochs": 5, "batch_size": 5, "how": "map", "progress": False, **options}
    return training.sweep(made, RATES.astype(data[0].dtype), data, **given)


@pytest.fixture
def divided(monkeypatch):
    """A sweep on so many cores, and how many parts were computed, by which threads."""
    waited, parts = cores._waited, []

    def counted(*given):
        parts.append((threading.current_thread().name, int(given[-1])))
        return waited(*given)

    def on(count):
        monkeypatch.setattr(sweeps, "cores_for", lambda *given: count)
        parts.clear()
        return parts

    monkeypatch.setattr(cores, "_waited", counted)
    return on


MORE = [pytest.param(count, marks=pytest.mark.slow) for count in (2, 4, 100)]


@pytest.mark.parametrize("count", [3, 7, *MORE])
def test_members_are_the_same_on_however_many_cores(divided, count):
    """Seven of them: in parts that overlap, in fewer parts than cores, each alone, and more cores than members."""
    options = {"validation": (X[:4], Y[:4]), "keep_best": True, "monitor": "validation_loss", "patience": 2}
    divided(1)
    whole = swept(**options)
    parts = divided(count)
    found = swept(**options)
    assert_same_bytes((found.state, found.history), (whole.state, whole.history))
    size = -(-len(RATES) // min(count, len(RATES)))
    begins = {min(begin, len(RATES) - size) for begin in range(0, len(RATES), size)}
    assert {begin for _, begin in parts} == begins
    assert {begin for name, begin in parts if name == threading.current_thread().name} == {0}


def test_what_was_kept_goes_on_on_other_cores(divided, tmp_path):
    divided(1)
    whole = swept()
    divided(3)

    def stop(event):
        if event.epoch == 2:
            raise KeyboardInterrupt

    begun = swept(checkpoint=checkpoints.directory(tmp_path), observers=[stop], every=1)
    assert begun.history["epochs_run"].tolist() == [2] * len(RATES)
    divided(2)
    found = swept(checkpoint=checkpoints.directory(tmp_path), resume=True)
    assert_same_bytes((found.state, found.history), (whole.state, whole.history))


def test_settings_of_a_thread_hold_for_its_sweep(divided):
    with jax.enable_x64(True):
        data = X.astype(np.float64), Y.astype(np.float64)
        divided(1)
        whole = swept(data)
        parts = divided(2)
        found = swept(data)
    assert found.history["loss"].dtype == np.float64
    assert parts
    assert_same_bytes((found.state, found.history), (whole.state, whole.history))


def test_a_program_is_compiled_once(divided, monkeypatch):
    divided(2)
    swept()
    known = dict(cores._compiled_programs)
    swept(key=1)
    assert dict(cores._compiled_programs) == known
    monkeypatch.setattr(cores, "_MOST", 1)
    swept(epochs=6)
    swept(epochs=7)
    assert len(cores._compiled_programs) == 1


def test_a_program_is_that_of_a_place(monkeypatch):
    monkeypatch.setattr(cores, "_compiled_programs", cores.collections.OrderedDict())
    monkeypatch.setattr(cores, "_MOST", 2)
    traced = SimpleNamespace(jaxpr="program", lower=lambda: SimpleNamespace(compile=object))
    first, second, third = (SimpleNamespace(sharding=name) for name in "abc")
    found = cores._compiled(traced, first)
    assert cores._compiled(traced, second) is not found
    assert cores._compiled(traced, first) is found
    cores._compiled(traced, third)  # the second was not used for the longest time
    assert cores._compiled(traced, first) is found


def test_an_error_in_a_part_is_that_of_the_sweep(divided, monkeypatch):
    divided(2)
    monkeypatch.setattr(cores, "_waited", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        swept()


def test_where_no_thread_begins_the_parts_follow_one_another(divided, monkeypatch):
    divided(1)
    whole = swept()
    parts = divided(3)

    def refused(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(cores.threading, "Thread", type("Thread", (threading.Thread,), {"start": refused}))
    found = swept()
    assert {name for name, _ in parts} == {threading.current_thread().name}
    assert_same_bytes((found.state, found.history), (whole.state, whole.history))


@pytest.mark.parametrize("setting", ["debug_nans", "debug_infs", "disable_jit"])
def test_where_jax_looks_into_a_program_nothing_is_divided(setting):
    assert cores.can_divide(jnp.ones(3))
    with getattr(jax, setting)(True):
        assert not cores.can_divide(jnp.ones(3))


def test_it_is_for_kernels_in_turn_without_effects(monkeypatch):
    plan, x = SimpleNamespace(draws=False), jnp.ones(3)
    kernel = jax.make_jaxpr(jnp.tanh)(x)
    monkeypatch.setattr(cores, "usable", lambda: 5)
    assert probes.cores_for(kernel, plan, "map") == 1  # each operation of a member is divided already
    monkeypatch.setattr(probes, "fuses_small_loops", lambda: True)
    assert probes.cores_for(kernel, plan, "map") == 5
    assert probes.cores_for(kernel, plan, "vmap") == 1
    assert probes.cores_for(kernel, SimpleNamespace(draws=True), "map") == 1
    assert probes.cores_for(jax.make_jaxpr(lambda x: x @ x)(x), plan, "map") == 1
    printing = jax.make_jaxpr(lambda x: jax.debug.print("{}", x, ordered=True))(x)
    assert probes.cores_for(printing, plan, "map") == 1


def test_values_on_one_device_are_divided_alone():
    there = SimpleNamespace(sharding=SimpleNamespace(device_set={0, 1}))
    assert cores.can_divide((jnp.ones(3), np.int32(0), jax.random.key(0)))
    assert not cores.can_divide((jnp.ones(3), there))
    asked = []
    jax.jit(lambda x: asked.append(cores.can_divide((jnp.ones(3), x))))(jnp.ones(3))
    assert asked == [False]


def test_a_sweep_inside_a_transformation_is_refused_as_ever(divided):
    divided(2)
    with pytest.raises(TypeError, match=r"use training\.run inside jit"):
        jax.jit(lambda x: swept((x, Y)))(X)


def test_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: {0, 3, 7}, raising=False)
    assert cores.usable() == 3
    monkeypatch.delattr(cores.os, "sched_getaffinity")
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 5)
    assert cores.usable() == 5
    monkeypatch.setattr(cores.os, "cpu_count", lambda: None)
    assert cores.usable() == 1
