"""``fit`` from the host: nothing compiled twice, numbers that go bad, Ctrl-C, observers and progress."""

import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, metrics, training
from funcnn.training.looks import by_clock

RNG = np.random.default_rng(0)
N, BATCH, EPOCHS, EPOCH_STEPS = 23, 5, 4, 5
X = RNG.normal(size=(N, 3)).astype(np.float32)
Y = (X[:, :1] - X[:, 1:2]).astype(np.float32)
KEY = jax.random.key(5)
OPTIONS = {"key": KEY, "epochs": EPOCHS, "batch_size": BATCH}
ROOT = Path(__file__).parent.parent


def trainer(loss=losses.squared_error, optimizer=None, **options):
    return training.supervised(layers.dense(1), loss, optax.adam(0.1) if optimizer is None else optimizer, **options)


@pytest.fixture(scope="module")
def line():
    """A trainer, which several tests share so that it is compiled once."""
    return trainer(metrics={"mae": metrics.mean_absolute_error})


@pytest.fixture(scope="module")
def whole(line):
    return training.fit(line, (X, Y), progress=False, **OPTIONS)


def host(tree):
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]


def assert_same_bytes(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert [a.tobytes() for a in host(found)] == [a.tobytes() for a in host(expected)]


# ---- compiling -------------------------------------------------------------------------------------------------------


def test_a_second_fit_compiles_nothing(line, whole, compilations):
    rng = np.random.default_rng(1)
    other = rng.normal(size=X.shape).astype(np.float32), rng.normal(size=Y.shape).astype(np.float32)
    for data, key, options in (
        ((X, Y), KEY, {}),
        ((X, Y), KEY, {"every": 3}),
        ((X, Y), KEY, {"every": 1, "observers": [lambda event: None]}),
        ((X, Y), KEY, {"progress": True}),
        (other, KEY, {"every": 3}),
        ((X.tolist(), Y.astype(np.float64)), KEY, {}),
    ):
        training.fit(line, data, **{**OPTIONS, "key": key, "progress": False, **options})
    list(training.steps(line, (X, Y), **OPTIONS))
    assert not compilations


def test_data_that_were_put_on_a_device_are_no_reason_to_compile_twice(compilations):
    """What is carried is there from the first chunk on, and not only behind it."""
    data = jax.device_put((X, Y), jax.devices()[0])
    assert all(a.committed for a in data)
    result = training.fit(trainer(), data, **OPTIONS, every=1, progress=False)
    assert all(leaf.committed for leaf in jax.tree.leaves(result.state))
    assert len(compilations) == 2  # its beginning and its steps


def test_validation_is_compiled_once_and_not_in_each_epoch(compilations):
    line, data = trainer(metrics={"mae": metrics.mean_absolute_error}), {"validation": (X[:7], Y[:7])}
    counts = []
    first = training.fit(
        line, (X, Y), progress=False, every=1, observers=[lambda e: counts.append(len(compilations))], **data, **OPTIONS
    )
    assert len(counts) == EPOCHS
    assert len(set(counts)) == 1
    compilations.clear()
    second = training.fit(line, (X, Y), progress=False, every=3, **data, **OPTIONS)
    assert not compilations
    assert_same_bytes(second, first)


@pytest.mark.slow
def test_a_second_fit_traces_nothing():
    chex.clear_trace_counter()
    counts = {}

    def counted(name, function, most=None):
        def call(*args):
            counts[name] = counts.get(name, 0) + 1
            return function(*args)

        return call if most is None else chex.assert_max_traces(function, n=most)

    plain, options = trainer(), {"progress": False, "validation": (X, Y), **OPTIONS}
    names = ("init", "step", "evaluate", "report")
    training.fit(plain._replace(**{name: counted(name, getattr(plain, name)) for name in names}), (X, Y), **options)
    # The checks of values trace ``init`` and ``evaluate`` at each call; ``step`` and ``report`` are not traced again.
    watched = plain._replace(**{name: counted(name, getattr(plain, name), counts[name]) for name in ("step", "report")})
    for every in (None, 3, 1):
        training.fit(watched, (X, Y), every=every, **options)


@pytest.mark.parametrize(("size", "shapes"), [(None, 1), (2, 1), (4, 2)])
def test_a_step_is_traced_once_for_each_shape_of_a_batch(size, shapes):
    traced = []

    def counted(y, target):
        traced.append(target.shape)
        return losses.squared_error(y, target)

    def of(rate):
        return training.supervised(layers.dense(1), counted, optax.sgd(rate))

    data, options = (X[:10], Y[:10]), {"epochs": 3, "batch_size": size}
    jax.make_jaxpr(lambda key: training.run(of(0.1), data, key=key, **options))(KEY)
    assert len(traced) == shapes
    traced.clear()
    training.fit(of(0.1), data, key=KEY, progress=False, **options)
    assert len(traced) == shapes + 1  # a whole batch once more, outside the program, for what the params must be
    traced.clear()
    training.sweep(of, [0.1, 0.2], data, key=KEY, progress=False, how="vmap", **options)
    assert len(traced) == shapes + 3  # of the first value: with numbers, with tracers


# ---- events and observers --------------------------------------------------------------------------------------------


def test_an_event_says_where_the_run_is(line, whole):
    events = []
    result = training.fit(line, (X, Y), progress=False, every=2, observers=[events.append], **OPTIONS)
    assert [(event.epoch, event.step) for event in events] == [(2, 10), (4, 20)]
    for event in events:
        assert sorted(event.metrics) == ["loss", "mae"]
        assert event.metrics["loss"] == whole.history["loss"][event.epoch - 1]
        assert type(event.metrics["loss"]) is float
    assert_same_bytes(events[-1].state, result.state)


@pytest.mark.slow
def test_every_counts_steps_where_the_run_does(line):
    seen = []
    options = {"key": KEY, "steps": 8, "batch_size": BATCH, "every": 3}
    training.fit(
        line, (X, Y), progress=False, observers=[lambda event: seen.append((event.epoch, event.step))], **options
    )
    assert seen == [(1, 3), (2, 6), (2, 8)]


@pytest.mark.slow
def test_within_an_epoch_an_event_reports_the_part_that_was_run(line):
    events = list(training.steps(line, (X, Y), **OPTIONS))
    assert [event.step for event in events] == list(range(1, 21))
    assert [event.epoch for event in events] == [e for e in (1, 2, 3, 4) for _ in range(5)]
    # The loss of the first k steps is the mean over their examples.
    singles, state = [], None
    step = training.compiled_step(line, batch_size=BATCH)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.split(KEY, 3)[1], 0), N))
    state = line.init(jax.random.split(KEY, 3)[0], (X[:BATCH], Y[:BATCH]))._replace(key=jax.random.split(KEY, 3)[2])
    for begin in range(0, N, BATCH):
        rows = order[begin : begin + BATCH]
        state, info = step(state, (X[rows], Y[rows]))
        singles.append((float(line.report(info)["loss"]) * len(rows), len(rows)))
        expected = sum(total for total, _ in singles) / sum(count for _, count in singles)
        assert events[begin // BATCH].metrics["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_steps_is_lazy(line):
    stream = training.steps(line, (X, Y), **{**OPTIONS, "epochs": 100_000})
    assert [event.step for event in itertools.islice(stream, 2)] == [1, 2]


def test_an_observer_that_returns_true_ends_the_run(line, whole):
    seen = []
    result = training.fit(
        line, (X, Y), progress=False, every=1, observers=[seen.append, lambda event: event.epoch == 2], **OPTIONS
    )
    assert [event.epoch for event in seen] == [1, 2]
    assert int(result.state.step) == 10
    assert {name: column.shape for name, column in result.history.items()} == {"loss": (2,), "mae": (2,)}
    for name, column in whole.history.items():
        assert result.history[name].tobytes() == np.asarray(column)[:2].tobytes()
    rest = training.fit(line, (X, Y), progress=False, state=result.state, **{**OPTIONS, "epochs": 2})
    assert_same_bytes(rest.state, whole.state)


def test_an_observer_that_raises_is_left_out_and_the_run_goes_on(line, whole):
    seen, calls = [], []

    def broken(event):
        calls.append(event.epoch)
        raise ZeroDivisionError("a plot of nothing")

    message = r"fit: the observer broken raised ZeroDivisionError\('a plot of nothing'\) and is not called again"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        result = training.fit(line, (X, Y), progress=False, every=1, observers=[broken, seen.append], **OPTIONS)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert calls == [1]
    assert [event.epoch for event in seen] == [1, 2, 3, 4]
    assert_same_bytes(result, whole)


def test_the_list_of_observers_is_not_changed(line):
    def broken(event):
        raise ValueError

    observers = [broken]
    with pytest.warns(RuntimeWarning):
        training.fit(line, (X, Y), progress=False, observers=observers, **OPTIONS)
    assert observers == [broken]


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_returns_the_result_of_the_last_chunk_and_says_so(line, whole, capfd):
    def interrupt(event):
        if event.epoch == 3:
            raise KeyboardInterrupt

    result = training.fit(line, (X, Y), progress=False, every=1, observers=[interrupt], **OPTIONS)
    assert capfd.readouterr().err == "fit: interrupted; this is the result after 15 of 20 steps\n"
    assert int(result.state.step) == 15
    assert [len(column) for column in result.history.values()] == [3, 3]
    rest = training.fit(line, (X, Y), progress=False, state=result.state, **{**OPTIONS, "epochs": 1})
    assert_same_bytes(rest.state, whole.state)


def test_ctrl_c_within_an_epoch_leaves_out_its_row(line, whole, capfd):
    def interrupt(event):
        if event.step == 7:
            raise KeyboardInterrupt

    options = {"key": KEY, "steps": 20, "batch_size": BATCH, "every": 1}
    result = training.fit(line, (X, Y), progress=False, observers=[interrupt], **options)
    assert "after 7 of 20 steps" in capfd.readouterr().err
    assert int(result.state.step) == 7
    assert result.history["loss"].tobytes() == np.asarray(whole.history["loss"])[:1].tobytes()


INTERRUPTED = """
import signal
import jax, numpy as np, optax
from funcnn import layers, losses, training

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.01))
looks = []

def look(event):
    looks.append(event.step)
    if len(looks) == 3:
        print("ready", flush=True)

options = {"key": jax.random.key(0), "batch_size": 8}
result = training.fit(line, (x, 2 * x), epochs=1_000_000, progress=False, observers=[look], **options)
step = int(result.state.step)
assert step == looks[-1], (step, looks)
assert len(result.history["loss"]) == step // 8
assert np.isfinite(result.history["loss"]).all()
print("went on", flush=True)
"""


def test_a_real_ctrl_c_in_the_middle_of_a_run():
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert out == "went on\n"
    assert re.search(r"^fit: interrupted; this is the result after \d+ of 8000000 steps$", err, re.MULTILINE), err


# ---- progress --------------------------------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_lines_on_standard_error(line, capfd):
    training.fit(line, (X, Y), **OPTIONS)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"(epoch \d/4  step \d+/20  loss [\d.e-]+  mae [\d.e-]+  \d+\.\d s, \d+\.\d s left\n)+", err), (
        err
    )
    assert "epoch 4/4  step 20/20" in err


def test_progress_false_is_silence(line, capfd):
    training.fit(line, (X, Y), progress=False, **OPTIONS)
    assert capfd.readouterr() == ("", "")


ON_A_TERMINAL = """
import jax, numpy as np, optax
from funcnn import layers, losses, metrics, training

x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
mae = {"mae": metrics.mean_absolute_error}
line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1), mae)
training.fit(line, (x, 2 * x), key=jax.random.key(0), epochs=7, validation=(x, 2 * x))
"""


def shown_on_a_terminal(code, columns=160):
    """What a program writes to standard error where that is a terminal, without the control codes."""
    here, there = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=there, env=env)
    os.close(there)
    seen = b""
    try:
        while True:
            ready, _, _ = select.select([here], [], [], 120)
            assert ready, seen
            try:
                piece = os.read(here, 65536)
            except OSError:  # on Linux, the end of a terminal
                break
            if not piece:
                break
            seen += piece
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(here)
    assert process.returncode == 0, seen
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()), out


@pytest.mark.slow
@pytest.mark.parametrize("columns", [160, 80, 40])
def test_on_a_terminal_progress_is_a_bar_and_the_metrics_below_it(columns):
    """However narrow it is, no number is cut off."""
    seen, out = shown_on_a_terminal(ON_A_TERMINAL, columns)
    assert out == b""
    lines = [line.strip() for line in seen.replace("\r", "\n").splitlines()]
    assert max(map(len, lines)) <= columns
    last = " ".join(lines[max(i for i, line in enumerate(lines) if line.startswith("epoch 7/7 ")) :])
    pattern = r"epoch 7/7 ━+ 100% +0:00:\d\d left 0:00:00 +" + " +".join(
        rf"{name} +[\d.e-]+" for name in ("loss", "mae", "validation_loss", "validation_mae")
    )
    assert re.fullmatch(pattern, last.strip()), seen


ENDED = """
training.fit(
    line, (x, 2 * x), key=jax.random.key(0), epochs=7, validation=(x, 2 * x), monitor="validation_loss", mode="max",
    patience=2, observers=[lambda event: None], every=1,
)
"""


@pytest.mark.slow
def test_a_bar_of_a_run_that_ended_early_says_nothing_of_time_left():
    seen, _ = shown_on_a_terminal(ON_A_TERMINAL.rsplit("training.fit", 1)[0] + ENDED)
    last = [line for line in seen.replace("\r", "\n").splitlines() if line.strip()][-3:]
    assert re.search(r"epoch 3/7 .* 43% 0:00:\d\d *$", last[0]), seen
    assert last[1].strip().startswith("loss ")
    assert last[2].startswith(
        "fit: ended after epoch 3 of 7, 2 without an improvement of validation_loss; the best was"
    )


# ---- when the host looks ---------------------------------------------------------------------------------------------


def looked(beside, each, count=12):
    """The sizes of chunks, and what each took, of a run whose chunks and whose steps take so many seconds."""
    look, number, seconds, found = by_clock(), 0, 0.0, []
    for _ in range(count):
        size = look(number, number, seconds) - number
        number, seconds = number + size, beside + each * size
        found.append((size, seconds))
    return found


def test_the_host_looks_five_times_a_second():
    for each in (1e-6, 1e-3, 0.05):
        *_, (_, seconds) = looked(0.0, each)
        assert 0.1 < seconds <= 0.2 + 1e-9
    assert looked(0.0, 0.3)[-1] == (2, 0.6)  # a step that takes longer than that: two of them


def test_it_looks_less_often_where_that_costs_more():
    _, seconds = looked(0.04, 0.1)[-1]
    assert 0.04 / seconds < 0.04
    assert seconds <= 2
    assert looked(0.3, 0.1)[-1][1] == pytest.approx(2, abs=0.11)  # and not less often than that
    assert looked(1e-4, 1e-5)[-1][1] == pytest.approx(0.2, abs=0.01)


# ---- numbers that go bad ---------------------------------------------------------------------------------------------

FLAT = layers.dense(1, kernel_init=jax.nn.initializers.zeros)


def overflowing(bad):
    """A run whose loss is infinite at one step: a finite target, the square of which is not."""
    y = Y.copy()
    y[bad * BATCH] = 1e30
    line = training.supervised(FLAT, lambda p, t: (p - t)[:, 0] ** 2, optax.sgd(1e-3))
    return line, (X, y), "a loss that is NaN or infinite"


def root_at_zero(bad):
    """A run whose gradient is NaN at one step, where its loss is zero: the root of a square."""
    y = np.ones_like(Y)
    y[bad * BATCH] = 0
    line = training.supervised(FLAT, lambda p, t: jnp.sqrt((p - t)[:, 0] ** 2), optax.sgd(0.0))
    return line, (X, y), "an update that made a parameter NaN or infinite"


CAUSES = {overflowing: "integer_pow (test_fitting.py:", root_at_zero: "div in the backward pass (test_fitting.py:"}


def until_bad(line, data, **options):
    """The events of ``steps`` up to the error, and the error."""
    good = []
    try:
        for event in training.steps(line, data, **options):
            good.append(event)
    except training.NonFiniteError as error:
        return good, error
    raise AssertionError("all was finite")


@pytest.mark.parametrize("bad", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])  # 4 is a smaller one
@pytest.mark.parametrize("case", [root_at_zero, overflowing])
def test_the_step_that_went_bad_is_named_whatever_the_chunks(case, bad):
    line, data, got = case(bad)
    options = {**OPTIONS, "shuffle": False}
    good, error = until_bad(line, data, **options)
    assert error.step == bad == len(good)
    for every in (1, 3, None):
        with pytest.raises(training.NonFiniteError) as caught:
            training.fit(line, data, progress=False, every=every, **options)
        error = caught.value
        assert (error.epoch, error.step) == (1, bad)
        assert f"got {got} in epoch 1 of 4, step {bad} (counted from 0), first by {CAUSES[case]}" in str(error)
        at_once = bad == 0 and case is overflowing  # before anything was learned
        advice = "look at the loss and at what it is given" if at_once else "lower the learning rate, or clip the"
        assert f"; {advice}" in str(error)
        assert all(np.isfinite(leaf).all() for leaf in host(error.result.state))
        assert int(error.result.state.step) == bad
        if good:
            assert_same_bytes(error.result.state, good[-1].state)
        assert len(error.result.history["loss"]) == 0


@pytest.mark.parametrize("every", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, None))])
def test_a_learning_rate_that_is_too_large(every):
    line, data = trainer(optimizer=optax.sgd(300.0)), (X, Y)
    good, _ = until_bad(line, data, **OPTIONS)
    assert 5 < len(good) < 20  # in a later epoch, so that there is a history
    with pytest.raises(FloatingPointError) as caught:
        training.fit(line, data, progress=False, every=every, **OPTIONS)
    error = caught.value
    assert error.step == len(good)
    assert error.epoch == error.step // EPOCH_STEPS + 1
    assert_same_bytes(error.result.state, good[-1].state)
    rows = [event.metrics["loss"] for event in good if event.step % EPOCH_STEPS == 0]
    np.testing.assert_array_equal(error.result.history["loss"], np.array(rows, np.float32))
    assert np.isfinite(rows).all()
    assert len(rows) >= 1


@pytest.mark.slow
def test_a_bad_step_in_the_very_last_chunk():
    line, data, _ = root_at_zero(2)
    with pytest.raises(training.NonFiniteError) as caught:
        training.fit(line, data, key=KEY, steps=3, batch_size=BATCH, shuffle=False, progress=False)
    assert caught.value.step == 2
    training.fit(line, data, key=KEY, steps=2, batch_size=BATCH, shuffle=False, progress=False)


@pytest.mark.slow
def test_a_run_may_go_on_with_what_is_not_finite():
    line, data = trainer(optimizer=optax.sgd(300.0)), (X, Y)
    result = training.fit(line, data, progress=False, on_nonfinite="continue", every=1, **OPTIONS)
    assert int(result.state.step) == 20
    assert not np.isfinite(result.history["loss"]).all()
    assert_same_bytes(result, training.run(line, data, **OPTIONS))


@pytest.mark.slow
def test_a_metric_that_is_nan_does_not_stop():
    nan = metrics.mean(lambda outputs, targets: jnp.log(-jnp.ones(len(outputs))))
    result = training.fit(trainer(metrics={"nan": nan}), (X, Y), progress=False, **OPTIONS)
    assert np.isnan(result.history["nan"]).all()
    assert np.isfinite(result.history["loss"]).all()
    assert int(result.state.step) == 20


@pytest.mark.slow
def test_a_hand_written_trainer_without_a_loss_stops_at_anything():
    def init(key, batch):
        return training.TrainState({"a": jnp.ones(())}, {}, (), key, jnp.zeros((), jnp.int32))

    def step(state, batch):
        value = jnp.where(state.step == 7, jnp.nan, 1.0)
        return state._replace(step=state.step + 1), {"score": value, "count": jnp.ones((), jnp.int32)}

    line = training.Trainer(init, step, lambda state, batch: {"score": jnp.ones(())}, lambda info: info)
    with pytest.raises(training.NonFiniteError) as caught:
        training.fit(line, X, progress=False, **OPTIONS)
    assert (caught.value.epoch, caught.value.step) == (2, 7)
    np.testing.assert_array_equal(caught.value.result.history["score"], [5.0])


@pytest.mark.slow
def test_a_function_as_data_is_validated_on_arrays_and_these_are_checked(line):
    def draw(key):
        x = jax.random.normal(key, (6, 3))
        return x, x[:, :1] - x[:, 1:2]

    options = {"key": KEY, "epochs": 3, "steps_per_epoch": 4, "progress": False}
    result = training.fit(line, draw, validation=(X, Y), **options)
    found = training.evaluate(line, result.state, (X, Y))
    assert found["loss"] == pytest.approx(float(result.history["validation_loss"][-1]), rel=1e-6)
    with pytest.raises(ValueError, match="squared_error: expected a target of the prediction's shape"):
        training.fit(line, draw, validation=(X, Y[:, 0]), **options)


def test_the_data_are_not_changed(line):
    x, y = X.copy(), Y.copy()
    training.fit(line, (x, y), progress=False, **OPTIONS)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_a_step_that_is_skipped_is_as_if_it_had_not_been():
    """As for Optax, whose wrapper of the optimizer leaves params and its own state where gradients went bad."""
    x = X.copy()
    x[2 * BATCH] = 1e30
    data, options = (x, Y), {**OPTIONS, "shuffle": False}

    def loss(prediction, target):
        return (prediction - target)[:, 0] ** 2

    line = training.supervised(FLAT, loss, optax.sgd(1e-3))
    skipped = training.fit(line, data, progress=False, on_nonfinite="skip", **options)
    wrapped = training.supervised(FLAT, loss, optax.apply_if_finite(optax.sgd(1e-3), 100))
    other = training.fit(wrapped, data, progress=False, on_nonfinite="continue", **options)
    for a, b in zip(jax.tree.leaves(skipped.state.params), jax.tree.leaves(other.state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(skipped.history["skipped_steps"], 1)
    assert np.isfinite(skipped.history["loss"]).all()
    assert int(skipped.state.step) == int(other.state.step)
    # The mean is that of the others.
    kept = np.delete(np.arange(len(X)), np.arange(2 * BATCH, 3 * BATCH))
    alone = training.fit(
        line, (X[kept], Y[kept]), progress=False, key=options["key"], epochs=1, batch_size=BATCH, shuffle=False
    )
    np.testing.assert_allclose(skipped.history["loss"][0], alone.history["loss"][0], rtol=1e-5)


def test_nothing_is_known_of_an_epoch_of_which_all_was_skipped():
    x, y = np.ones((4, 1), np.float32), np.full((4, 1), 1e30, np.float32)
    line = training.supervised(FLAT, lambda p, t: (p - t)[:, 0] ** 2, optax.sgd(1e-3))
    options = {"key": KEY, "epochs": 3, "progress": False, "on_nonfinite": "skip", "monitor": "loss", "keep_best": True}
    result = training.fit(line, (x, y), **options)
    assert np.isnan(result.history["loss"]).all()
    np.testing.assert_array_equal(result.history["skipped_steps"], 1)


def test_an_optimizer_that_went_bad_is_a_step_that_is_skipped():
    """Its momentum is infinite, of a gradient that is, while the loss and the signs that it takes are not."""
    line = training.supervised(FLAT, lambda p, t: 10 * jnp.abs(p - t)[:, 0], optax.lion(1e-2))
    x, y = np.ones((4, 1), np.float32), np.ones((4, 1), np.float32)
    x[2] = 3e38
    options = {"key": KEY, "epochs": 2, "batch_size": 1, "shuffle": False, "progress": False}
    result = training.fit(line, (x, y), **options, on_nonfinite="skip")
    assert all(np.isfinite(leaf).all() for leaf in host(result.state.opt_state))
    assert result.history["skipped_steps"].tolist() == [1, 1]


@pytest.mark.slow
def test_too_many_skipped_in_a_row_end_the_run():
    x, y = np.ones((100, 1), np.float32), np.full((100, 1), 1e30, np.float32)
    line = training.supervised(FLAT, lambda p, t: (p - t)[:, 0] ** 2, optax.sgd(1e-3))
    with pytest.raises(training.NonFiniteError, match="got 20 steps in a row whose numbers went bad") as caught:
        training.fit(line, (x, y), key=KEY, epochs=3, batch_size=1, progress=False, on_nonfinite="skip")
    assert caught.value.step == 19
    assert all(np.isfinite(leaf).all() for leaf in host(caught.value.result.state.params))
