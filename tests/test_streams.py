"""Runs on streams: the run on arrays, whatever is read when; and what becomes of a stream that breaks off."""

import itertools
import os
import signal
import threading
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_law import assert_same_bytes

from funcnn import layers, losses, metrics, training
from funcnn.training import streams

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
N, BATCH = 27, 8  # three whole batches and one of three examples
X, Y = RNG.normal(size=(N, 5)).astype(np.float32), RNG.integers(0, 3, N).astype(np.int32)
HELD_OUT = RNG.normal(size=(13, 5)).astype(np.float32), RNG.integers(0, 3, 13).astype(np.int32)
MODEL = layers.serial(layers.dense(6), layers.batch_norm(), layers.tanh, layers.dropout(0.3), layers.dense(3))


def trainer_of(rate):
    return training.supervised(MODEL, losses.softmax_cross_entropy, optax.adam(rate), {"accuracy": metrics.accuracy})


# What has ever told programs apart, for the law; and what compiles quickly, for all else.
TRAINER = trainer_of(1e-2)
PLAIN = training.supervised(layers.dense(3), losses.softmax_cross_entropy, optax.sgd(0.1))


def batches():
    for begin in range(0, N, BATCH):
        yield X[begin : begin + BATCH], Y[begin : begin + BATCH]


class Loader:
    """What can be iterated again, and knows how long it is."""

    def __iter__(self):
        return batches()

    def __len__(self):
        return 4


def fit(data=batches, trainer=PLAIN, **options):
    return training.fit(trainer, data, **{"key": KEY, "progress": False, **options})


def in_memory(**options):
    return fit((X, Y), batch_size=BATCH, shuffle=False, **options)


def numbered(batch=BATCH):
    """A Grain dataset of the examples in order."""
    return grain.MapDataset.range(N).map(lambda i: (X[i], Y[i])).batch(batch)


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    deadline = time.monotonic() + 5
    while any(thread.name == "funcnn stream" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a reader goes on after its run"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole():
    return in_memory(trainer=TRAINER, epochs=3, validation=HELD_OUT)


# ---- the law ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 1, 2])
@pytest.mark.parametrize(
    "source",
    [
        batches,
        pytest.param(Loader(), marks=pytest.mark.slow),
        pytest.param(numbered(), marks=pytest.mark.slow),
        numbered().to_iter_dataset(),
    ],
    ids=["function", "loader", "grain map", "grain iter"],
)
def test_a_stream_of_the_batches_is_the_run_on_the_arrays(whole, source, every):
    assert_same_bytes(fit(source, TRAINER, epochs=3, validation=HELD_OUT, every=every), whole)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_where_pieces_are_cut_changes_nothing(whole, monkeypatch, size):
    monkeypatch.setattr(streams, "_BATCHES", size)
    assert_same_bytes(fit(trainer=TRAINER, epochs=3, validation=HELD_OUT), whole)


def test_a_slow_reader_is_used_as_it_comes(whole, monkeypatch):
    monkeypatch.setattr(streams, "_SECONDS", 0.0)
    seen = []
    result = fit(trainer=TRAINER, epochs=3, validation=HELD_OUT, observers=[lambda event: seen.append(event.step)])
    assert_same_bytes(result, whole)
    assert seen[-1] == 12


@pytest.mark.slow
def test_epochs_of_so_many_steps_are_counted_across_passes():
    counted = fit(steps_per_epoch=4, epochs=2)
    assert_same_bytes(counted, in_memory(epochs=2))
    assert_same_bytes(fit(Loader(), steps=6), in_memory(steps=6))  # its length makes the epochs
    assert_same_bytes(fit(iter(batches()), epochs=1), in_memory(epochs=1))
    rows = fit(steps=6)
    assert rows.history["loss"].shape == (6,)  # where nothing says what an epoch is, a step is a row
    assert_same_bytes(rows.state, in_memory(steps=6).state)
    assert fit(steps=6, steps_per_epoch=5).history["loss"].shape == (2,)


@pytest.mark.slow
def test_passes_may_differ_in_length():
    lengths = iter([2, 3, 1])

    class Changing:
        def __iter__(self):
            return itertools.islice(batches(), next(lengths))

    result = fit(Changing(), epochs=3)
    first = in_memory(steps=2)
    assert int(result.state.step) == 6
    np.testing.assert_array_equal(result.history["loss"][0], first.history["loss"][0])


@pytest.mark.slow
def test_steps_of_a_stream():
    events = list(training.steps(PLAIN, batches, key=KEY, epochs=2))
    assert [(event.epoch, event.step) for event in events] == [(1 + i // 4, i + 1) for i in range(8)]
    assert_same_bytes(events[-1].state, in_memory(epochs=2).state)
    assert [event.step for event in training.steps(PLAIN, batches, key=KEY, epochs=2, every=3)] == [3, 6, 8]
    three = list(itertools.islice(training.steps(PLAIN, batches, key=KEY, epochs=100), 3))
    assert [event.step for event in three] == [1, 2, 3]


@pytest.mark.slow
def test_it_stops_early_where_the_run_on_arrays_does():
    options = {"epochs": 30, "validation": HELD_OUT, "monitor": "validation_loss", "patience": 2, "keep_best": True}
    options |= {"min_delta": 0.03}
    whole = in_memory(**options)
    assert 2 < whole.epochs_run < 30
    assert_same_bytes(fit(**options), whole)
    assert_same_bytes(fit(Loader(), steps_per_epoch=4, **options), whole)


@pytest.mark.slow
def test_a_run_goes_on_from_a_state():
    first = fit(epochs=1)
    assert_same_bytes(fit(epochs=2, state=first.state).state, in_memory(epochs=3).state)


@pytest.mark.slow
def test_numbers_that_go_bad_end_it_at_the_last_good_state():
    options = {"epochs": 9}
    wild = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(1e9))
    data = X, X[:, :1]

    def stream():
        yield from ((data[0][b : b + BATCH], data[1][b : b + BATCH]) for b in range(0, N, BATCH))

    with pytest.raises(training.NonFiniteError) as expected:
        training.fit(wild, data, key=KEY, batch_size=BATCH, shuffle=False, progress=False, **options)
    with pytest.raises(training.NonFiniteError) as found:
        training.fit(wild, stream, key=KEY, progress=False, **options)
    assert str(found.value) == str(expected.value)
    assert_same_bytes(found.value.result, expected.value.result)


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_nothing_is_read_beyond_what_is_used():
    drawn = itertools.count()
    one = (X[:BATCH], Y[:BATCH])
    endless = (one for _ in iter(lambda: next(drawn), -1))
    fit(endless, steps=10)
    assert next(drawn) == 10


def test_a_reader_is_at_most_a_few_pieces_ahead(monkeypatch):
    monkeypatch.setattr(streams, "_BATCHES", 2)
    read, ahead = itertools.count(1), []

    def counted():
        for _ in range(60):
            last[0] = next(read)
            yield X[:BATCH], Y[:BATCH]

    last = [0]

    def look(event):
        time.sleep(0.002)  # what is to be read in this time has been read
        ahead.append(last[0] - event.step)

    fit(counted, steps=60, observers=[look], every=1)
    assert len(ahead) > 10
    assert 2 <= max(ahead) <= 3 * 2 + 1  # under way, in the queue, being filled


@pytest.mark.parametrize(
    "source",
    [
        [[X[:8], Y[:8]], [X[8:16], Y[8:16]]],  # what PyTorch's loaders make of tuples
        [(jnp.asarray(X[:8]), jnp.asarray(Y[:8])), (X[8:16].astype(np.float64), Y[8:16].astype(np.int64))],
        [(X[:8].tolist(), Y[:8].tolist()), (X[8:16], Y[8:16])],
    ],
    ids=["lists", "other arrays", "numbers"],
)
def test_a_batch_may_be_of_what_data_may_be_of(source):
    assert_same_bytes(fit(iter(source), epochs=1), fit((X[:16], Y[:16]), epochs=1, batch_size=8, shuffle=False))


def test_a_batch_may_be_a_dict_of_arrays_of_different_lengths():
    def init(key, batch):
        return {"slope": jnp.zeros(())}, {}

    def loss(params, model_state, batch, *, key, training):
        pulls = {name: (params["slope"] * x - 1) ** 2 for name, x in batch.items()}
        return pulls, Aux(model_state)

    Aux = training.Aux
    terms = training.trainer(training.Objective(init, loss), optax.sgd(0.1))
    points = {"inside": X[:, 0], "border": X[:5, 1]}
    whole = training.fit(terms, points, key=KEY, epochs=4, batch_size=None, progress=False)
    streamed = training.fit(terms, iter([points] * 4), key=KEY, steps=4, batch_size=None, progress=False)
    assert_same_bytes(streamed, whole)


def test_a_smaller_batch_may_be_smaller_in_one_array_alone():
    """And the memory that it was in is not that of a whole one."""

    def loss(params, model_state, batch, *, key, training):
        return {name: (params["slope"] * x - 1) ** 2 for name, x in batch.items()}, Aux(model_state)

    Aux = training.Aux
    objective = training.Objective(lambda key, batch: ({"slope": jnp.zeros(())}, {}), loss)
    terms = training.trainer(objective, optax.sgd(0.1))
    whole = {"border": X[:5, 1], "inside": X[:20, 0]}
    rest = whole | {"inside": X[:7, 0]}
    order = [whole, rest, whole, rest, whole, whole]
    result = training.fit(terms, iter(order), key=KEY, steps=6, batch_size=None, progress=False)
    slope = 0.0
    for batch in order:
        slope -= 0.1 * sum(np.mean(2 * (slope * x - 1) * x) for x in batch.values())
    np.testing.assert_allclose(result.state.params["slope"], slope, rtol=1e-5)


@pytest.mark.slow
def test_the_precision_is_that_of_the_caller():
    with jax.enable_x64(True):
        result = fit(iter([(X[:8].astype(np.float64), Y[:8])]), epochs=1)
        assert {leaf.dtype for leaf in jax.tree.leaves(result.state.params)} == {jnp.dtype("float64")}


def test_evaluate_reads_a_stream():
    state = fit(epochs=1).state
    expected = training.evaluate(PLAIN, state, (X, Y), batch_size=BATCH)
    found = training.evaluate(PLAIN, state, batches)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-6)
    with pytest.raises(OSError, match="gone") as error:
        training.evaluate(PLAIN, state, broken(OSError("gone")))
    assert "evaluate: while the stream was read" in error.value.__notes__
    with pytest.raises(ValueError, match="one without end"):
        training.evaluate(PLAIN, state, numbered().repeat())


@pytest.mark.slow
def test_evaluate_waits_for_a_piece_before_its_memory_is_used_again(monkeypatch):
    monkeypatch.setattr(streams, "_BATCHES", 1)
    model = layers.serial(layers.dense(512), layers.relu, layers.dense(512), layers.relu, layers.dense(1))
    wide = training.supervised(model, losses.squared_error, optax.sgd(0.1))
    x = RNG.normal(size=(40, 256, 512)).astype(np.float32) * np.arange(1, 41, dtype=np.float32)[:, None, None]
    state = wide.init(KEY, (x[0], x[0, :, :1]))
    expected = training.evaluate(wide, state, (x.reshape(-1, 512), x[..., :1].reshape(-1, 1)), batch_size=256)
    found = training.evaluate(wide, state, ((rows, rows[:, :1]) for rows in x))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)


# ---- Grain -----------------------------------------------------------------------------------------------------------


def shuffled(seed=3):
    return grain.MapDataset.range(N).shuffle(seed=seed).map(lambda i: (X[i], Y[i])).repeat().batch(BATCH)


@pytest.mark.slow
@pytest.mark.parametrize("as_iterator", [iter, lambda dataset: iter(dataset.to_iter_dataset())], ids=["map", "iter"])
def test_a_grain_iterator_stands_where_training_ended(as_iterator):
    whole = fit(as_iterator(shuffled()), steps=20)
    reader = as_iterator(shuffled())
    first = fit(reader, steps=20, every=1, observers=[lambda event: event.step == 7])
    assert int(first.state.step) == 7
    assert reader.get_state() == {"next_index": 7}  # though it was read ahead
    again = as_iterator(shuffled())
    again.set_state(reader.get_state())
    assert_same_bytes(fit(again, steps=13, state=first.state).state, whole.state)
    assert_same_bytes(fit(reader, steps=13, state=first.state).state, whole.state)


def test_a_grain_iterator_stands_at_the_last_good_step():
    wild = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(1e9))
    dataset = grain.MapDataset.range(N).map(lambda i: (X[i], X[i, :1])).repeat().batch(BATCH)
    reader = iter(dataset)
    with pytest.raises(training.NonFiniteError) as error:
        training.fit(wild, reader, key=KEY, steps=50, progress=False)
    assert error.value.step > 0
    assert reader.get_state() == {"next_index": error.value.step}


@pytest.mark.slow
def test_a_grain_iterator_stands_at_the_last_event_that_was_asked_for():
    reader = iter(shuffled())
    events = training.steps(PLAIN, reader, key=KEY, steps=50)
    assert [next(events).step for _ in range(3)] == [1, 2, 3]
    events.close()
    assert reader.get_state() == {"next_index": 3}
    options = {"steps": 50, "steps_per_epoch": 5, "monitor": "loss", "patience": 1, "min_delta": 10.0}
    reader = iter(shuffled())
    events = training.steps(PLAIN, reader, key=KEY, **options)
    assert [event.step for event in events][-1] == 10
    assert reader.get_state() == {"next_index": 10}
    reader = iter(numbered())
    training.evaluate(PLAIN, fit(epochs=1).state, reader)
    assert next(reader, None) is None


@pytest.mark.slow
def test_a_slow_grain_iterator_is_waited_for():
    def slow(i):
        time.sleep(0.1)
        return X[i], Y[i]

    options = grain.ReadOptions(num_threads=0)
    reader = iter(grain.MapDataset.range(N).map(slow).repeat().batch(BATCH).to_iter_dataset(options))
    fit(reader, steps=9, every=1, observers=[lambda event: event.step == 2])
    assert reader.get_state() == {"next_index": 2}


# ---- what breaks off -------------------------------------------------------------------------------------------------


def broken(error, after=6):
    """A stream that raises, or gives something else, after so many batches."""

    def stream():
        yield from itertools.islice(itertools.cycle([(X[:8], Y[:8]), (X[8:16], Y[8:16])]), after)
        if isinstance(error, BaseException):
            raise error
        yield error

    return stream


GOOD = X[:16], Y[:16]


@pytest.mark.parametrize("error", [OSError("disk gone"), StopIteration(), SystemExit(3), MemoryError()], ids=repr)
def test_a_reader_that_raises_hands_back_the_state_of_all_that_it_read(error):
    with pytest.raises(training.StreamError, match="after 6 steps") as caught:
        fit(broken(error), epochs=2, steps_per_epoch=4)
    expected = fit(GOOD, epochs=3, batch_size=8, shuffle=False)
    assert caught.value.step == 6
    assert_same_bytes(caught.value.result.state, expected.state)
    assert caught.value.result.history["loss"].shape == (1,)
    cause = caught.value.__cause__
    assert type(error) in (type(cause), type(cause.__cause__))  # Python makes a RuntimeError of a StopIteration


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X[:8, :4], Y[:8]), r"batch 6 of the stream: expected batches like the first one, \(\(8, 5\), \(8,\)\), got"),
        ((X[:9], Y[:9]), r"got shapes \[\(9, 5\), \(9,\)\]"),
        ((X[:8], Y[:8], Y[:8]), r"expected batches like the first one"),
        (X[:8], r"expected batches like the first one"),
        ((X[:8], X[:8, 0]), r"expected batches like the first one"),
        ((X[:8] * np.nan, Y[:8]), r"expected finite numbers, got NaN or infinity in array\[0\]"),
        ((X[:8], Y[:0]), r"expected 1 or more examples, got empty data"),
        ((X[:8], [str(y) for y in Y[:8]]), r"expected numbers, got strings"),
        (None, r"expected at least one array, got NoneType"),
    ],
    ids=["width", "larger", "structure", "structure 2", "dtype", "NaN", "empty", "strings", "nothing"],
)
def test_a_batch_that_cannot_be_used_ends_it_with_the_state_before(batch, message):
    with pytest.raises(training.StreamError, match=message) as caught:
        fit(broken(batch), epochs=1)
    assert str(caught.value).startswith("fit: batch 6 of the stream")
    assert str(caught.value).endswith("the .result of this error holds the state after 6 steps")
    assert_same_bytes(caught.value.result.state, fit(GOOD, epochs=3, batch_size=8, shuffle=False).state)


@pytest.mark.slow
def test_smaller_batches_are_of_one_size():
    one, two, three = ((X[:n], Y[:n]) for n in (8, 3, 2))
    result = fit(iter([one, two, one, two]), steps=4)
    assert int(result.state.step) == 4
    with pytest.raises(training.StreamError, match=r"and smaller ones of \[\(3, 5\), \(3,\)\], got shapes \[\(2, 5\)"):
        fit(iter([one, two, one, three]), steps=4)


@pytest.mark.slow
def test_a_stream_that_is_too_short_says_so():
    with pytest.raises(training.StreamError, match="expected a stream of 9 batches, got the end after 4") as caught:
        fit(iter(batches()), steps=9)
    assert_same_bytes(caught.value.result.state, in_memory(epochs=1).state)
    passes = iter([batches(), iter(())])

    class Once:
        def __iter__(self):
            return next(passes)

    with pytest.raises(training.StreamError, match="expected a stream of batches, got the end after 4"):
        fit(Once(), epochs=2)


def test_steps_that_are_refused_leave_no_thread():
    other = training.supervised(layers.dense(3), losses.softmax_cross_entropy, optax.adam(0.1))
    with pytest.raises(ValueError, match="opt_state"):
        training.steps(PLAIN, batches, key=KEY, epochs=1, state=other.init(KEY, (X, Y)))


def test_a_pass_that_is_longer_than_there_are_numbers_says_so(monkeypatch):
    monkeypatch.setattr(streams, "numbers_of", lambda passes: 4)
    with pytest.raises(training.StreamError, match="expected passes of at most 3 batches") as caught:
        fit(epochs=2)
    assert caught.value.step == 3
    assert caught.value.result.history["loss"].shape == (0,)


def test_a_length_that_raises_is_none():
    class Unknown(Loader):
        def __len__(self):
            raise NotImplementedError

    assert_same_bytes(fit(Unknown(), epochs=1), in_memory(epochs=1))


def test_ctrl_c_while_nothing_comes(capsys, monkeypatch):
    monkeypatch.setattr(streams, "_BATCHES", 1)
    never = threading.Event()

    def stuck():
        yield X[:8], Y[:8]
        yield X[:8], Y[:8]
        never.wait()

    def interrupt(event):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    result = fit(stuck, steps=9, every=1, observers=[interrupt])
    never.set()
    assert "fit: interrupted; this is the result after 1 of 9 steps" in capsys.readouterr().err
    assert int(result.state.step) == 1  # the second waits for what comes after it


def test_progress_of_a_stream_whose_length_nobody_knows(capsys):
    fit(epochs=2, progress=True)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("epoch 2/2  step 8  loss ")
    fit(Loader(), epochs=2, progress=True)
    assert capsys.readouterr().err.splitlines()[-1].startswith("epoch 2/2  step 8/8  loss ")


# ---- what cannot be meant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (lambda: iter(batches()), {"epochs": 2}, ValueError, "expected a stream for 2 epochs, got an iterator"),
        (lambda: numbered().repeat(), {"epochs": 2}, ValueError, "whose end is the end of an epoch, got one without"),
        (lambda: batches, {"epochs": 1, "drop_last": True}, ValueError, "expected drop_last only where data are arr"),
        (lambda: batches, {"epochs": 1, "batch_size": 16}, ValueError, "expected batches of batch_size=16, got 8 in"),
        (lambda: batches, {}, ValueError, "expected either epochs or steps"),
        (lambda: batches, {"epochs": 0}, ValueError, "expected epochs of at least 1"),
        (lambda: batches, {"steps": 4, "steps_per_epoch": 0}, ValueError, "expected steps_per_epoch of at least 1"),
        (lambda: iter(()), {"epochs": 1}, ValueError, "expected a stream of batches, got one without any"),
        (lambda: iter([3.0]), {"epochs": 1}, ValueError, "batch 0 of the stream: expected an axis of examples"),
        (lambda: broken(OSError("gone"), 0), {"epochs": 1}, OSError, "gone"),
        (lambda: iter([(X[:8], Y[:7])]), {"epochs": 1}, ValueError, "7"),
        (lambda: iter([(X[:8], Y[:8] + 3)]), {"epochs": 1}, ValueError, "classes"),
        (lambda: batches, {"epochs": 1, "validation": batches}, TypeError, "validation"),
        (lambda: (iter(X), iter(Y)), {"epochs": 1}, TypeError, "zip"),
        (
            lambda: batches,
            {"epochs": 1, "validation": Loader()},
            TypeError,
            "validation as arrays, got a stream",
        ),
        (lambda: list(batches()), {"epochs": 1}, TypeError, r"a list of tuples of arrays.*iter\(batches\)"),
        (lambda: lambda: batches(), {"epochs": 1}, TypeError, "a function key -> batch, got <lambda>, which does not"),
        (lambda: zip(X, Y[:, None], strict=True), {"epochs": 1}, ValueError, "5 at .0. and 1 at .1."),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_trained(source, options, error, message):
    with pytest.raises(error, match=message):
        fit(source(), **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda: training.run(TRAINER, batches, key=KEY, epochs=1),
        lambda: training.cross_validate(TRAINER, Loader(), key=KEY, epochs=1),
        lambda: training.find_learning_rate(trainer_of, numbered(), key=KEY),
    ],
    ids=["run", "cross_validate", "find_learning_rate"],
)
def test_what_takes_no_stream_says_so(call):
    with pytest.raises(TypeError, match=r"got a stream.*; training\.fit, training\.steps and training\.sweep take"):
        call()


# ---- sweeps ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["map", "vmap"])
def test_members_may_share_a_stream(how):
    options = {"key": KEY, "epochs": 2, "how": how, "progress": False, "validation": HELD_OUT}
    rates = jnp.array([1e-3, 1e-2, 3e-2])
    found = training.sweep(trainer_of, rates, batches, **options)
    expected = training.sweep(trainer_of, rates, (X, Y), batch_size=BATCH, shuffle=False, **options)
    assert_same_bytes(found.history, expected.history)
    assert_same_bytes(found.state.params, expected.state.params)


@pytest.mark.slow
def test_a_stream_is_read_again_for_each_group_of_members():
    options = {"key": KEY, "epochs": 2, "how": "map", "progress": False, "max_bytes": 20_000}
    rates = jnp.array([1e-3, 1e-2, 3e-2])
    found = training.sweep(trainer_of, rates, batches, **options)
    expected = training.sweep(trainer_of, rates, (X, Y), batch_size=BATCH, shuffle=False, **options)
    assert_same_bytes(found.history, expected.history)
    with pytest.raises(ValueError, match="a stream that is read once for each group of members"):
        training.sweep(trainer_of, rates, iter(batches()), **{**options, "epochs": 1})
