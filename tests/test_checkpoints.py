"""Saving a run and going on with it: the bits of the run that was never interrupted, or a plain sentence."""

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import checkpoints, layers, losses, metrics, training
from funcnn.checkpoints import keeping, stores
from funcnn.training import positions
from funcnn.training.fingerprints import digest, operations

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(50, 4)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)
HELD_OUT = X[:20], Y[:20]
WATCHED = {"validation": HELD_OUT, "monitor": "validation_loss", "keep_best": True}


def network(rate=1e-2, *, telemetry=None, dropout=0.2, optimizer=optax.adam, width=8):
    model = layers.serial(
        layers.dense(width), layers.batch_norm(), layers.relu, layers.dropout(dropout), layers.dense(2)
    )
    measured = {"accuracy": metrics.accuracy}
    return training.supervised(model, losses.softmax_cross_entropy, optimizer(rate), measured, telemetry=telemetry)


NETWORK = network()
MEASURED = network(telemetry={"slope": training.gradient_norm})


def passes():
    for begin in range(0, 50, 16):
        yield X[begin : begin + 16], Y[begin : begin + 16]


def shuffled():
    return grain.MapDataset.source(list(zip(X, Y, strict=True))).seed(1).shuffle()


def once():
    return iter(shuffled().repeat().batch(16).to_iter_dataset())


def plain_iterator():
    return itertools.cycle(list(passes()))


def drawn(key):
    return jax.random.normal(key, (8, 4)), jnp.zeros(8, jnp.int32)


CASES = {
    "arrays": (MEASURED, lambda: (X, Y), {"epochs": 6, "batch_size": 16, "patience": 5}),
    "steps": (MEASURED, lambda: (X, Y), {"steps": 23, "batch_size": 16, "on_nonfinite": "skip"}),
    "function": (NETWORK, lambda: drawn, {"steps": 23, "steps_per_epoch": 4}),
    "passes": (NETWORK, lambda: passes, {"epochs": 6}),
    "passes in steps": (MEASURED, lambda: passes, {"steps": 23, "steps_per_epoch": 5}),
    "grain iterator": (MEASURED, once, {"steps": 23, "steps_per_epoch": 5}),
    "grain dataset": (NETWORK, lambda: shuffled().batch(16).to_iter_dataset(), {"epochs": 6}),
    "iterator": (MEASURED, plain_iterator, {"steps": 23, "steps_per_epoch": 5}),
}


def fit(case, folder=None, *, until=None, resume=False, **more):
    trainer, data, options = CASES[case]
    options = {"key": KEY, "progress": False, **WATCHED, **options, **more}
    if folder is not None:
        options |= {"checkpoint": checkpoints.directory(folder, every=0.0), "resume": resume}
    if until is not None:
        options |= {"observers": [lambda event: event.step >= until], "every": 1}
    return training.fit(trainer, data(), **options)


@functools.cache
def never_cut(case):
    return digest(fit(case))


@pytest.mark.parametrize("case", [pytest.param(n, marks=[] if n == "arrays" else [pytest.mark.slow]) for n in CASES])
def test_a_run_that_goes_on_is_the_run_that_was_never_cut(case, tmp_path):
    whole = never_cut(case)
    cut = fit(case, tmp_path, until=9)
    assert int(cut.state.step) < 20
    assert digest(cut) != whole
    assert digest(fit(case, tmp_path, resume=True)) == whole
    # And once more, from its end, without a step.
    assert digest(fit(case, tmp_path, resume=True)) == whole


@pytest.mark.parametrize(
    ("case", "until"),
    [
        pytest.param(case, until, marks=pytest.mark.slow if case == "arrays" or until == turn else pytest.mark.long)
        for case, turn in zip(CASES, itertools.cycle((1, 4, 16)), strict=False)
        for until in (1, 3, 4, 5, 8, 16, 22)
    ],
)
def test_wherever_it_was_cut(case, until, tmp_path):
    fit(case, tmp_path, until=until)
    fit(case, tmp_path, until=until + 2, resume=True)
    assert digest(fit(case, tmp_path, resume=True)) == never_cut(case)


@pytest.mark.slow
def test_a_stream_is_cut_in_the_middle_of_a_pass_that_is_an_epoch(tmp_path):
    """Between the looks of observers a run is saved at the end of any chunk."""
    whole = never_cut("passes")

    def breaks_off():
        breaks_off.passes += 1
        for number, batch in enumerate(passes()):
            if breaks_off.passes == 3 and number == 2:
                raise OSError("the disk was pulled out")
            yield batch

    breaks_off.passes = 0
    trainer, _, options = CASES["passes"]
    kept = checkpoints.directory(tmp_path)
    with pytest.raises(training.StreamError) as caught:
        training.fit(trainer, breaks_off, key=KEY, progress=False, **WATCHED, **options, checkpoint=kept)
    assert caught.value.step == 10
    assert checkpoints.load(tmp_path).step == 10
    assert digest(fit("passes", tmp_path, resume=True)) == whole


def sweep(folder=None, *, until=None, resume=False, how="vmap", rates=(1e-3, 1e-2), **more):
    options = {"key": KEY, "seeds": 2, "epochs": 6, "batch_size": 16, "how": how, "progress": False, "patience": 5}
    options |= WATCHED | more
    if folder is not None:
        options |= {"checkpoint": checkpoints.directory(folder, every=0.0), "resume": resume}
    if until is not None:
        looks = itertools.count(1)
        options |= {"observers": [lambda event: next(looks) >= until], "every": 1}
    return training.sweep(network, jnp.array(rates), (X, Y), **options).result


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vmap", pytest.param("map", marks=pytest.mark.slow)])
def test_a_sweep_goes_on(how, tmp_path):
    whole = digest(sweep(how=how))
    assert digest(sweep(tmp_path, until=2, how=how)) != whole
    assert checkpoints.load(tmp_path).history["loss"].shape == (4, 2)
    assert digest(sweep(tmp_path, resume=True, how=how)) == whole


@pytest.mark.slow
def test_a_sweep_in_groups_goes_on_in_the_same_groups(tmp_path):
    whole = digest(sweep(how="map", max_bytes=15_000))
    sweep(tmp_path, until=9, how="map", max_bytes=15_000)
    parts = [path.name for path in sorted((tmp_path / "parts").iterdir())]
    assert parts == ["members_000000_000000", "members_000001_000001"]
    assert len(checkpoints.verify(tmp_path)) >= 2
    # Now all of them would fit.
    assert digest(sweep(tmp_path, resume=True, how="map")) == whole


@pytest.mark.slow
def test_going_on_with_a_sweep_compares_its_members(tmp_path):
    sweep(tmp_path, until=2)
    with pytest.raises(training.ResumeError, match="the members are not the same"):
        sweep(tmp_path, resume=True, rates=(1e-3, 2e-2))


# ---- what is not the same --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A directory with a run of 12 steps, three epochs, which nobody goes on with."""
    folder = tmp_path_factory.mktemp("begun")
    fit("arrays", folder, until=12)
    return folder


@pytest.fixture
def copied(begun, tmp_path):
    """The same, to do something with."""
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def again(folder, trainer=MEASURED, data=(X, Y), *, resume=True, **changed):
    options = {"key": KEY, "progress": False, **WATCHED, **CASES["arrays"][2], **changed}
    return training.fit(trainer, data, checkpoint=checkpoints.directory(folder), resume=resume, **options)


SLOPE = {"slope": training.gradient_norm}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"trainer": network(2e-2, telemetry=SLOPE)}, ["there was `mul -0.01", "there is `mul -0.02"]),
        pytest.param(
            {"trainer": network(dropout=0.3, telemetry=SLOPE)},
            ["what is computed is not the same"],
            marks=pytest.mark.slow,
        ),
        ({"data": (X + 1, Y)}, ["the data are not the same"]),
        ({"validation": (X[1:21], Y[:20])}, ["the validation data are not the same"]),
        pytest.param({"key": jax.random.key(1)}, ["the key is not the same"], marks=pytest.mark.slow),
        pytest.param({"epochs": 7}, ["epochs was 6 and is 7"], marks=pytest.mark.slow),
        pytest.param(
            {"batch_size": 10},
            ["batch_size was 16 and is 10", "steps_per_epoch was 4 and is 5"],
            marks=pytest.mark.slow,
        ),
        pytest.param({"shuffle": False}, ["shuffle was True and is False"], marks=pytest.mark.slow),
        ({"patience": 3}, ["monitor was"]),
        pytest.param({"on_nonfinite": "continue"}, ["on_nonfinite was raise and is continue"], marks=pytest.mark.slow),
    ],
    ids=["rate", "dropout", "data", "validation", "key", "epochs", "batch_size", "shuffle", "patience", "nonfinite"],
)
def test_what_changed_is_said_and_asks_for_a_word(begun, changed, words):
    with pytest.raises(training.ResumeError, match='resume="changed"') as caught:
        again(begun, **changed)
    for word in words:
        assert word in str(caught.value)
    assert str(begun) in str(caught.value)


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (
            network(width=9, telemetry=SLOPE),
            ["state/params/dense_0/kernel: was float32(4, 8), is float32(4, 9)", "and 26 more"],
        ),
        (network(optimizer=optax.sgd, telemetry=SLOPE), ["state/opt_state/0/mu/dense_0/kernel: was float32(4, 8), is"]),
        (NETWORK, ["telemetry/slope: was float32(24,), is not there"]),
    ],
    ids=["width", "optimizer", "telemetry"],
)
def test_another_model_or_optimizer_is_refused_by_path(begun, trainer, words):
    for resume in (True, "changed"):
        with pytest.raises(training.ResumeError, match="expected the run that was begun there") as caught:
            again(begun, trainer, resume=resume)
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"monitor": None, "patience": None, "keep_best": False},
            r"monitor was 'validation_loss' with mode='min', patience=\d+, min_delta=0\.0, keep_best=True and is None",
        ),
        ({"keep_best": False}, r"monitor was 'validation_loss' with .* and is 'validation_loss' with .*=False"),
        (
            {"validation": None, "monitor": "loss", "keep_best": False},
            r"monitor was .* and is 'loss' with .*; there is no validation any more",
        ),
    ],
    ids=["nothing", "no best", "no validation"],
)
def test_what_is_watched_is_said_and_not_its_arrays(begun, changed, said):
    with pytest.raises(training.ResumeError, match=f"got another: {said}; resume it with the model") as caught:
        again(begun, resume="changed", **changed)
    assert "watch/" not in str(caught.value)


@pytest.mark.slow
def test_with_the_word_it_goes_on(copied):
    before = checkpoints.load(copied)
    result = again(copied, network(2e-2, telemetry=SLOPE), (X + 1, Y), epochs=9, resume="changed")
    assert result.history["loss"].shape == (9,)
    np.testing.assert_array_equal(result.history["loss"][:3], before.history["loss"])
    assert result.telemetry["slope"].shape == (36,)
    # From there on it is the changed run.
    again_result = again(copied, network(2e-2, telemetry=SLOPE), (X + 1, Y), epochs=9)
    assert digest(again_result) == digest(result)


@pytest.mark.slow
def test_more_epochs_are_what_they_would_have_been(copied):
    whole = fit("arrays", epochs=9)
    longer = again(copied, epochs=9, resume="changed")
    assert digest(longer.state) == digest(whole.state)
    assert digest(longer.history) == digest(whole.history)


@pytest.mark.slow
def test_a_run_that_was_ended_by_its_patience_goes_on_with_more(tmp_path):
    options = {"epochs": 40, "batch_size": 50, "monitor": "loss", "min_delta": 1.0}
    assert fit("arrays", tmp_path, patience=2, **options).epochs_run == 3
    assert fit("arrays", tmp_path, patience=2, resume="changed", **options).epochs_run == 3
    longer = fit("arrays", tmp_path, patience=5, resume="changed", **options)
    assert digest(longer) == digest(fit("arrays", patience=5, **options))


@pytest.mark.slow
def test_more_passes_are_what_they_would_have_been(tmp_path):
    """The steps of a run on passes are numbered by how many passes there are to be."""
    fit("passes", tmp_path, until=9)
    longer = fit("passes", tmp_path, resume="changed", epochs=11)
    assert digest(longer) == digest(fit("passes", epochs=11))


def test_a_key_of_another_kind_is_refused(begun):
    for resume in (True, "changed"):
        with pytest.raises(training.ResumeError, match=r"expected keys of the kinds .*threefry2x32.*, got .*rbg"):
            again(begun, key=jax.random.key(0, impl="rbg"), resume=resume)


@pytest.mark.slow
def test_an_epoch_that_was_begun_keeps_its_steps(tmp_path):
    """Rows of the history are epochs, and what is counted in steps would end too early."""
    fit("steps", tmp_path, until=12)
    with pytest.raises(training.ResumeError, match=r"expected epochs of 4 steps, as .*, got 5; where a run is counted"):
        fit("steps", tmp_path, batch_size=10, resume="changed")


@pytest.mark.slow
def test_fewer_epochs_than_were_run_are_refused(copied):
    with pytest.raises(
        training.ResumeError, match="expected more than the 12 steps that the run has taken, got 2 epochs; train"
    ):
        again(copied, epochs=2, resume="changed")


def test_a_directory_with_a_run_is_not_begun_again(begun):
    with pytest.raises(training.ResumeError, match=r"expected no run in .*, got a run that was saved after 12 steps"):
        again(begun, resume=False)


def test_to_resume_needs_a_directory():
    with pytest.raises(ValueError, match="expected checkpoint, for resume is about it, got none"):
        training.fit(NETWORK, (X, Y), key=KEY, epochs=1, resume=True)
    with pytest.raises(ValueError, match=r"resume to be one of \[False, True, 'changed'\]"):
        training.fit(NETWORK, (X, Y), key=KEY, epochs=1, resume="yes")
    with pytest.raises(TypeError, match="checkpoint as a directory of checkpoints, got str"):
        training.fit(NETWORK, (X, Y), key=KEY, epochs=1, checkpoint="runs/a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "a path, got 3"),
        (("",), "a path, got ''"),
        (("a", {"every": -1}), "every in seconds, from 0 on, got -1"),
        (("a", {"every": float("nan")}), "every in seconds"),
        (("a", {"every": True}), "every in seconds"),
        (("a", {"keep": 0}), "keep of at least 1, got 0"),
        (("a", {"keep": 1.5}), "keep as a whole number"),
    ],
)
def test_arguments_of_a_directory(arguments, message):
    path, options = arguments[0], arguments[1] if len(arguments) > 1 else {}
    with pytest.raises((ValueError, TypeError), match=message):
        checkpoints.directory(path, **options)


# ---- what is saved when ----------------------------------------------------------------------------------------------


def waiting(event):
    """An observer that waits until what is under way is saved."""
    for thread in threading.enumerate():
        if thread.name == "funcnn checkpoint":
            thread.join()


@pytest.mark.slow
def test_the_last_steps_stay(tmp_path):
    kept = checkpoints.directory(tmp_path, every=0.0, keep=2)

    training.fit(NETWORK, (X, Y), key=KEY, epochs=6, checkpoint=kept, every=1, observers=[waiting], progress=False)
    found = [verified.step for verified in checkpoints.verify(tmp_path)]
    assert len(found) == 2
    assert found[0] == 12
    assert found[1] < 12
    assert not list((tmp_path / ".passing").iterdir())


def test_nothing_is_saved_before_its_time_but_the_end(tmp_path):
    kept = checkpoints.directory(tmp_path, every=1000.0)
    training.fit(NETWORK, (X, Y), key=KEY, epochs=6, checkpoint=kept, every=1, progress=False)
    assert [verified.step for verified in checkpoints.verify(tmp_path)] == [12]


def test_a_save_does_not_stop_the_training(tmp_path, monkeypatch):
    """While one is written, which takes its time here, epochs go by; and no second one is begun."""
    events, writes = [], []

    def slow(folder, about, leaves):
        writes.append(("begin", len(events)))
        time.sleep(0.5)
        stores.write.__wrapped__(folder, about, leaves)
        writes.append(("end", len(events)))

    slow.__wrapped__ = stores.write
    monkeypatch.setattr(keeping.stores, "write", slow)
    kept = checkpoints.directory(tmp_path, every=0.0)

    def watch(event):
        events.append(event)
        time.sleep(0.01)

    training.fit(NETWORK, (X, Y), key=KEY, epochs=30, checkpoint=kept, every=1, observers=[watch], progress=False)
    assert [name for name, _ in writes] == ["begin", "end"] * (len(writes) // 2)
    assert writes[1][1] - writes[0][1] > 10


def test_a_save_that_failed_is_raised_after_the_next_chunk(tmp_path, monkeypatch):
    whole = digest(fit("arrays"))
    calls = []

    def full(folder, about, leaves):
        calls.append(about["step"])
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(keeping.stores, "write", full)
    with pytest.raises(training.SaveError, match="no space left on device; make room, then resume") as caught:
        fit("arrays", tmp_path, every=1, observers=[waiting])
    error = caught.value
    assert error.step < 24
    assert int(error.result.state.step) == error.step
    assert not list((tmp_path / "steps").iterdir())
    monkeypatch.undo()
    assert digest(fit("arrays", tmp_path, resume=True)) == whole


@pytest.mark.slow
def test_the_state_before_numbers_went_bad_is_saved(tmp_path):
    x = X.copy()
    x[31] = 1e30
    kept = checkpoints.directory(tmp_path, every=1000.0)
    trainer = training.supervised(layers.dense(2), losses.softmax_cross_entropy, optax.sgd(1e10))
    options = {"key": KEY, "epochs": 3, "batch_size": 5, "shuffle": False, "progress": False, "every": 1}
    with pytest.raises(training.NonFiniteError):
        training.fit(trainer, (x, Y), checkpoint=kept, **options)
    found = checkpoints.load(tmp_path)
    assert found.step < 7
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.state.params))


@pytest.mark.slow
def test_where_numbers_go_bad_and_the_run_goes_on_the_last_good_step_stays(tmp_path):
    kept = checkpoints.directory(tmp_path, every=0.0, keep=1)

    trainer = network(1e3, optimizer=lambda rate: optax.chain(optax.sgd(1.0), optax.scale_by_schedule(grows)))
    options = {"key": KEY, "epochs": 12, "progress": False, "every": 1, "on_nonfinite": "continue"}
    result = training.fit(trainer, (X, Y), checkpoint=kept, observers=[waiting], **options)
    assert np.isnan(result.state.params["dense_0"]["kernel"]).all()
    newest, good = checkpoints.verify(tmp_path)
    assert newest.step == 24
    assert good.step < 10
    assert np.isfinite(checkpoints.load(tmp_path, step=good.step).state.params["dense_0"]["kernel"]).all()


def grows(count):
    return jnp.where(count > 8, jnp.inf, 0.0)


@pytest.mark.slow
def test_the_state_right_before_is_saved_whatever_the_chunks(tmp_path):
    x = X.copy()
    x[31] = 1e30
    trainer = training.supervised(layers.dense(2), losses.softmax_cross_entropy, optax.sgd(1e10))
    options = {"key": KEY, "epochs": 3, "batch_size": 5, "shuffle": False, "progress": False}
    with pytest.raises(training.NonFiniteError) as caught:
        training.fit(trainer, (x, Y), checkpoint=checkpoints.directory(tmp_path), **options)
    found = checkpoints.load(tmp_path)
    assert found.step == caught.value.step == int(caught.value.result.state.step)
    assert digest(found.state.params) == digest(caught.value.result.state.params)
    # An epoch that was begun ends as it was begun.
    with pytest.raises(training.ResumeError, match=r"expected epochs of 10 steps, .*, in the middle of one, got 5"):
        training.fit(
            trainer,
            (x, Y),
            checkpoint=checkpoints.directory(tmp_path),
            **options | {"batch_size": 10, "resume": "changed"},
        )
    # The natural cure.
    more = {**options, "on_nonfinite": "skip", "resume": "changed"}
    result = training.fit(trainer, (x, Y), checkpoint=checkpoints.directory(tmp_path), **more)
    assert int(result.state.step) == 30
    assert result.history["skipped_steps"].sum() > 0


@pytest.mark.slow
def test_two_runs_in_two_threads(tmp_path):
    """Each with a directory of its own; and somebody who reads."""
    whole = digest(fit("arrays"))

    def train(name):
        return [digest(fit("arrays", tmp_path / f"{name}{number}")) for number in range(3)]

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(train, name) for name in "ab"]
        reader = pool.submit(lambda: [checkpoints.load(FINISHED) for _ in range(20)])
        assert [run.result() for run in runs] == [[whole] * 3] * 2
        assert len(reader.result()) == 20


FINISHED = Path(__file__).parent / "golden" / "0.1.0" / "run"


@pytest.mark.slow
def test_a_directory_that_was_replaced_is_not_written_to(tmp_path):
    def replaces(event):
        if event.epoch == 3:
            shutil.rmtree(tmp_path / "run")
            with checkpoints.directory(tmp_path / "run").opened():
                pass

    options = {"key": KEY, "epochs": 6, "batch_size": 16, "every": 1, "progress": False, "observers": [replaces]}
    kept = checkpoints.directory(tmp_path / "run", every=1000.0)

    with pytest.raises(training.SaveError, match="was deleted or replaced while the run went on"):
        training.fit(NETWORK, (X, Y), checkpoint=kept, **options)
    assert not list((tmp_path / "run" / "steps").iterdir())


@pytest.mark.slow
def test_what_ends_the_process_from_an_observer_is_saved_first(tmp_path):
    def leaves(event):
        if event.epoch == 3:
            sys.exit(3)

    options = {"key": KEY, "epochs": 6, "batch_size": 16, "every": 1, "progress": False, "observers": [leaves]}
    with pytest.raises(SystemExit):
        training.fit(NETWORK, (X, Y), checkpoint=checkpoints.directory(tmp_path, every=1000.0), **options)
    assert checkpoints.load(tmp_path).step == 12


def test_any_failure_to_save_has_the_result(tmp_path, monkeypatch):
    def broken(folder, about, leaves):
        raise MemoryError

    monkeypatch.setattr(keeping.stores, "write", broken)
    with pytest.raises(training.SaveError) as caught:
        fit("arrays", tmp_path)
    assert int(caught.value.result.state.step) == caught.value.step


# ---- streams that are not the same -----------------------------------------------------------------------------------


class Shuffled:
    """Passes that differ, from a generator of its own."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def __iter__(self):
        order = self.random.permutation(48).reshape(3, 16)
        return ((X[rows], Y[rows]) for rows in order)


@pytest.mark.slow
@pytest.mark.parametrize(("until", "is_told"), [(2, False), (4, True), (6, True)])
def test_an_order_that_a_stream_does_not_give_again_is_noticed(until, is_told, tmp_path):
    def train(**more):
        options = {"key": KEY, "steps": 12, "every": 1, "progress": False, "validation": HELD_OUT}
        return training.fit(NETWORK, Shuffled(), **options, **more)

    kept = {"checkpoint": checkpoints.directory(tmp_path)}
    train(**kept, observers=[lambda event: event.step >= until])
    if not is_told:
        assert digest(train(**kept, resume=True)) == digest(train())
        return
    with pytest.raises(ValueError, match="begins with the batch that it began with, got another one"):
        train(**kept, resume=True)
    assert int(train(**kept, resume="changed").state.step) == 12


@pytest.mark.slow
def test_a_stream_is_not_gone_on_with_on_arrays(tmp_path):
    fit("passes", tmp_path, until=9)
    trainer, _, options = CASES["passes"]
    options = {"key": KEY, "progress": False, **WATCHED, **options, "resume": "changed"}
    with pytest.raises(training.ResumeError, match="expected a stream, with which it was begun, got arrays"):
        training.fit(trainer, (X, Y), checkpoint=checkpoints.directory(tmp_path), batch_size=16, **options)


def test_a_state_that_cannot_be_written_down_is_refused_before_training(tmp_path):
    class Odd:
        def __iter__(self):
            return self

        def __next__(self):
            return X[:16], Y[:16]

        def get_state(self):
            return {0: 3}

        def set_state(self, state):
            del state

    with pytest.raises(ValueError, match="a state of the stream's iterator that can be written down, got int"):
        training.fit(NETWORK, Odd(), key=KEY, steps=3, checkpoint=checkpoints.directory(tmp_path), progress=False)


def test_paths_of_two_arrays_that_are_one_are_refused_before_training(tmp_path):
    def init(key, batch):
        return {"a/b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}}, {}

    objective = training.Objective(init, lambda p, s, b, *, key, training: ((b - p["a/b"]) ** 2, Aux(s)))
    terms = training.trainer(objective, optax.sgd(0.1))
    with pytest.raises(ValueError, match="a path of its own for each array"):
        training.fit(terms, jnp.ones(4), key=KEY, epochs=1, checkpoint=checkpoints.directory(tmp_path))


Aux = training.Aux


def test_a_traced_run_cannot_be_kept(tmp_path):
    def loss(rate):
        kept = checkpoints.directory(tmp_path)
        return training.fit(network(rate), (X, Y), key=KEY, epochs=1, checkpoint=kept).history["loss"][-1]

    with pytest.raises(TypeError, match=r"use training\.run inside jit, vmap or grad"):
        jax.jit(loss)(0.1)


@pytest.mark.slow
def test_more_epochs_do_not_hide_another_rate(begun):
    with pytest.raises(
        training.ResumeError, match=r"epochs was 6 and is 7.*there was `mul -0\.01.*, there is `mul -0\.02"
    ):
        again(begun, network(2e-2, telemetry=SLOPE), epochs=7)


def test_a_run_that_had_ended_says_so(tmp_path, capsys):
    fit("arrays", tmp_path)
    capsys.readouterr()
    fit("arrays", tmp_path, resume=True)
    assert "had ended after 24 steps; this is its result" in capsys.readouterr().err


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_what_was_saved_can_be_loaded_beside_the_run(begun):
    result = fit("arrays", until=12)
    found = checkpoints.load(begun)
    assert found.step == 12
    assert digest(found.state.params) == digest(result.state.params)
    assert digest(found.state.model_state) == digest(result.state.model_state)
    assert digest(found.best.params) == digest(result.best.params)
    assert set(found.history) == set(result.history) - {"epochs_run"}
    for name, column in found.history.items():
        np.testing.assert_array_equal(column, result.history[name])
    assert "0/mu/dense_0/kernel" in found.state.opt_state
    model = layers.serial(layers.dense(8), layers.batch_norm(), layers.relu, layers.dropout(0.2), layers.dense(2))
    np.testing.assert_array_equal(training.predict(model, found.state, X), training.predict(model, result.state, X))


@pytest.mark.slow
def test_a_state_like_that_of_a_trainer_trains_on(begun):
    like = MEASURED.init(KEY, (X[:16], Y[:16]))
    found = checkpoints.load(begun, like=like)
    assert digest(found.state) == digest(fit("arrays", until=12).state)
    assert jax.tree.structure(found.state) == jax.tree.structure(like)
    training.fit(MEASURED, (X, Y), key=KEY, epochs=1, state=found.state, progress=False)
    other = network(width=9).init(KEY, (X[:16], Y[:16]))
    with pytest.raises(ValueError, match=r"params/.*: expected float32\(9,\), as in like, got float32\(8,\)"):
        checkpoints.load(begun, like=other)


def test_a_step_that_is_not_there(begun, tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match=r"expected step 7, got .*12; choose one of them"):
        checkpoints.load(begun, step=7)
    with pytest.raises(checkpoints.CheckpointError, match="expected a step, got none; pass the directory"):
        checkpoints.load(tmp_path)
    with pytest.raises(checkpoints.CheckpointError, match="expected a run that was saved, got none"):
        checkpoints.verify(tmp_path)


@pytest.mark.slow
def test_a_reader_sees_one_step_or_another_while_they_are_saved(tmp_path):
    about = {"keys": {}, "rows": 0, "rows_axis": 0}

    def leaves(step):
        return {"state/params/a": np.full(1000, step), "state/key": np.int32(step), "state/step": np.int32(step)}

    script = f"""
        import time
        from funcnn import checkpoints
        seen, end = set(), time.monotonic() + 20
        while time.monotonic() < end and 40 not in seen:
            try:
                found = checkpoints.load({str(tmp_path)!r})
            except checkpoints.CheckpointError as error:
                assert not seen and "got none" in str(error), error
                continue
            assert found.step >= max(seen, default=0), (found.step, seen)
            assert set(found.state.params["a"].tolist()) == {{found.step}} == {{int(found.state.step)}}
            seen.add(found.step)
        print(len(seen))
    """
    reader = python(script)
    time.sleep(1.5)
    with checkpoints.directory(tmp_path, keep=1).opened() as keeper:
        for step in range(1, 41):
            arrays = {path: leaf.astype(np.int32) for path, leaf in leaves(step).items()}
            keeper.keep(step, {"step": step, **about}, arrays, wait=True)
            time.sleep(0.03)
    out, err = reader.communicate(timeout=60)
    assert not reader.returncode, err
    assert int(out) > 3


def python(script, *given, **environment):
    """A process that runs a script."""
    command = [sys.executable, "-c", textwrap.dedent(script), *given]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)


# ---- several devices -------------------------------------------------------------------------------------------------

ON_DEVICES = """
    import sys
    import jax, jax.numpy as jnp, numpy as np, optax
    from funcnn import checkpoints, layers, losses, training
    folder, epochs, devices = sys.argv[1], int(sys.argv[2]), jax.device_count()
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 4)).astype(np.float32)
    y = np.tanh(x @ random.normal(size=(4, 1))).astype(np.float32)
    data = jax.device_put((x, y), spread)
    model = layers.serial(layers.dense(16), layers.tanh, layers.dense(1))
    trainer = training.supervised(model, losses.squared_error, optax.adam(1e-2))
    stop = [lambda event: event.epoch >= epochs]
    kept = {} if folder == "-" else {"checkpoint": checkpoints.directory(folder), "resume": True}
    options = {"key": jax.random.key(0), "epochs": 30, "batch_size": 16, "observers": stop, "every": 1}
    result = training.fit(trainer, data, progress=False, **options, **kept)
    print(devices, len(result.state.params["dense_0"]["kernel"].devices()), *result.history["loss"][[0, -1]])
"""


@pytest.mark.slow
def test_saved_on_one_device_resumed_on_eight_and_back(tmp_path):
    def on(devices, folder, epochs):
        process = python(ON_DEVICES, folder, str(epochs), JAX_NUM_CPU_DEVICES=str(devices))
        out, err = process.communicate(timeout=120)
        assert not process.returncode, err
        count, used, *numbers = out.split()
        assert int(count) == devices
        assert int(used) == devices
        return [float(number) for number in numbers], err

    whole, _ = on(1, "-", 30)
    on(1, str(tmp_path), 10)
    _, said = on(8, str(tmp_path), 20)
    assert "saved under devices 1: it goes on, and is equal to rounding" in said
    last, said = on(1, str(tmp_path), 30)
    assert "saved under devices 8" in said
    np.testing.assert_allclose(last, whole, rtol=1e-4)
    assert last[1] < 0.5 * last[0]


# ---- the parts -------------------------------------------------------------------------------------------------------


def test_positions_are_written_and_read_back():
    state = {"next": 5, "raw": b"\x00\xff", "list": [1, (2, None)], "dict": {"a": True, "b": 1.5}, "n": np.int64(3)}
    position = positions.Position(7, 1, 3, state)
    back = positions.read_position(json.loads(json.dumps(positions.written(position))))
    assert back == position
    assert isinstance(back.state["list"][1], tuple)
    with pytest.raises(ValueError, match="expected a state of the stream's iterator that can be written down"):
        positions.written(position._replace(state=object()))


@pytest.mark.slow
def test_the_lines_of_a_program_are_the_same_in_another_process():
    script = """
        import jax, jax.numpy as jnp, optax
        from funcnn import layers, losses, training
        from funcnn.training.fingerprints import digest, operations
        import numpy as np
        cell = layers.recurrent(layers.gru_cell(4))
        model = layers.serial(layers.dense(8), layers.gelu, layers.dropout(0.1), cell, layers.dense(2))
        trainer = training.supervised(model, losses.softmax_cross_entropy, optax.adamw(1e-3))
        batch = jnp.ones((4, 5, 3)), jnp.zeros((4, 5), jnp.int32)
        state = trainer.init(jax.random.key(0), batch)
        lines = operations(jax.make_jaxpr(trainer.step)(state, batch))
        print(len(lines), digest(np.frombuffer("\\n".join(lines).encode(), np.uint8)))
    """
    found = [python(script, PYTHONHASHSEED=seed).communicate(timeout=120)[0] for seed in ("1", "2")]
    assert found[0] == found[1]
    assert int(found[0].split()[0]) > 100


def test_a_program_is_told_from_another():
    x, other = jnp.arange(3.0), jnp.array([0.0, 1.0, 5.0])

    def lines(f):
        return operations(jax.make_jaxpr(f)(x))

    base = lines(lambda a: jnp.sin(a) * 2 + x)
    assert base == lines(lambda b: jnp.sin(b) * 2 + x)
    for f in (
        lambda a: jnp.sin(a) * 3 + x,
        lambda a: jnp.cos(a) * 2 + x,
        lambda a: jnp.sin(a) * 2 + other,
        lambda a: jnp.sin(x) * 2 + a,
        lambda a: (jnp.sin(a) * 2 + x).sum(),
    ):
        assert lines(f) != base
    looped = lines(lambda a: jax.lax.fori_loop(0, 3, lambda i, c: c * 2, a))
    assert looped != lines(lambda a: jax.lax.fori_loop(0, 3, lambda i, c: c * 3, a))
    assert looped != lines(lambda a: jax.lax.fori_loop(0, 4, lambda i, c: c * 2, a))
