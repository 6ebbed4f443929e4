"""A log in JSON lines: what an event holds, one line for each, and no harm where it cannot be written."""

import contextlib
import json
import os
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnn import layers, losses, metrics, training

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
Y = np.arange(10, dtype=np.int32) % 2
TABLE = {"table": metrics.confusion_matrix(2)}


def plain(rate):
    return training.supervised(layers.dense(2), losses.softmax_cross_entropy, optax.sgd(rate), TABLE)


def read(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


OPTIONS = {"key": KEY, "epochs": 3, "every": 1, "progress": False}


def test_each_event_is_a_line_and_a_second_run_adds_to_them(tmp_path):
    log = tmp_path / "log.jsonl"
    result = training.fit(plain(0.1), (X, Y), **OPTIONS, observers=[training.json_lines(log)])
    rows = read(log)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 1), (2, 2), (3, 3)]
    np.testing.assert_allclose([row["loss"] for row in rows], result.history["loss"], rtol=1e-6)
    np.testing.assert_array_equal([row["table"] for row in rows], result.history["table"])
    assert rows[0]["time"] <= rows[2]["time"]
    training.fit(plain(0.1), (X, Y), **OPTIONS, observers=[training.json_lines(str(log))])
    assert len(read(log)) == 6


@pytest.mark.slow
def test_a_sweep_has_a_list_of_its_members_and_null_for_what_is_no_number(tmp_path):
    log = tmp_path / "log.jsonl"
    training.sweep(plain, jnp.array([0.1, jnp.inf]), (X, Y), **OPTIONS, observers=[training.json_lines(log)])
    rows = read(log)
    assert len(rows) == 3
    assert rows[-1]["loss"][0] > 0
    assert rows[-1]["loss"][1] is None


def test_a_log_that_cannot_be_written_harms_nobody(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    observer = training.json_lines(folder / "log.jsonl")
    folder.rmdir()
    with pytest.warns(RuntimeWarning, match=r"observer written raised FileNotFoundError.* not called again"):
        result = training.fit(plain(0.1), (X, Y), **OPTIONS, observers=[observer])
    assert result.history["loss"].shape == (3,)


def test_a_path_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(TypeError, match="json_lines: expected a path, got int"):
        training.json_lines(3)
    with pytest.raises(ValueError, match=r"a folder that is there, got .*nowhere; make it first"):
        training.json_lines(tmp_path / "nowhere" / "log.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device here is full by nature")
def test_a_full_disk_harms_nobody():
    def full(event):
        with open("/dev/full", "w") as log:
            log.write("a line")

    whole = training.fit(plain(0.1), (X, Y), **OPTIONS)
    with pytest.warns(RuntimeWarning, match=r"observer full raised OSError\(28, .*not called again"):
        result = training.fit(plain(0.1), (X, Y), **OPTIONS, observers=[full])
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_pipe_that_nobody_reads_from_harms_nobody(monkeypatch, is_terminal):
    whole = training.fit(plain(0.1), (X, Y), **OPTIONS)
    read_end, write_end = os.pipe()
    os.close(read_end)
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if is_terminal else "0")  # what rich goes by
    stream = os.fdopen(write_end, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fit: the observer progress raised BrokenPipeError")
        result = training.fit(plain(0.1), (X, Y), **{**OPTIONS, "progress": True})
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError):
        stream.close()  # it may still hold what could not be written
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"])
