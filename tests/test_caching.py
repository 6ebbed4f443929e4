"""Compiled programs in a directory: the second process compiles none, and what is damaged is compiled again."""

import atexit
import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from funcnn import training
from funcnn.training import caching
from funcnn.training.caching import _beside, _clean, _digest

PROGRAM = """
import collections, hashlib, json, os, sys
from funcnn import layers, losses, training
training.cache_programs(sys.argv[1])
import jax, numpy as np, optax
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
x = np.linspace(0, 1, 60, dtype=np.float32).reshape(20, 3)
model = layers.serial(layers.dense(4), layers.tanh, layers.dropout(0.2), layers.dense(1))
trainer = training.supervised(model, losses.squared_error, optax.adam(0.01))
result = training.fit(trainer, (x, x[:, :1]), key=jax.random.key(0), epochs=3, batch_size=8, progress=False)
states = [result.state.params]
if "all" in sys.argv:
    options = {"epochs": 2, "batch_size": 8}
    run = jax.jit(lambda key: training.run(trainer, (x, x[:, :1]), key=key, **options).state.params)
    rated = lambda rate: training.supervised(model, losses.squared_error, optax.adam(rate))
    rates = np.array([0.1, 0.01], np.float32)
    whole = training.sweep(rated, rates, (x, x[:, :1]), key=jax.random.key(1), progress=False, **options)
    states += [run(jax.random.key(1)), whole.state.params]
digest = hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(states))).hexdigest()
print(json.dumps([events["cache_misses"], events["cache_hits"], digest]), flush=True)
if "killed" in sys.argv:
    os.kill(os.getpid(), 9)
"""


def started(folder, *words):
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder), *words]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def executed(folder, *words):
    process = started(folder, *words)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(said)


def programs(folder):
    return sorted(path for path in folder.iterdir() if path.name.endswith("-cache"))


@pytest.mark.slow
def test_the_second_process_compiles_nothing_and_damage_is_mended(tmp_path):
    """By ``fit``, by a compiled ``run`` and by ``sweep``."""
    folder = tmp_path / "programs"
    misses, hits, digest = executed(folder, "all")
    assert misses == len(programs(folder)) > 0
    assert hits == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    assert executed(folder, "all") == [0, misses, digest]
    # A flipped bit in one, another cut off, and one whose digest is missing, as after a kill.
    flipped, cut, alone = programs(folder)[:3]
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-7])
    _beside(alone).unlink()
    assert executed(folder, "all") == [3, misses - 3, digest]
    assert executed(folder, "all") == [0, misses, digest]


@pytest.mark.slow
def test_kills_at_any_instant_leave_what_can_be_used(tmp_path):
    folder = tmp_path / "programs"
    began = time.perf_counter()
    misses, _, digest = executed(tmp_path / "whole")
    whole = time.perf_counter() - began
    for number in range(4):
        process = started(folder)
        time.sleep(whole * (0.3 + 0.15 * number))
        process.kill()
        process.communicate()
    first, hits, same = executed(folder)
    assert (first + hits, same) == (misses, digest)
    assert executed(folder) == [0, misses, digest]


@pytest.mark.slow
def test_what_a_process_compiled_that_was_killed_at_its_end_is_used(tmp_path):
    """Its last program as well, which is mostly the largest one."""
    folder = tmp_path / "programs"
    said, _ = started(folder, "killed").communicate()
    misses, _, digest = json.loads(said)
    assert executed(folder) == [0, misses, digest]


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    folder = tmp_path / "programs"
    both = [started(folder) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    digests = {json.loads(out)[2] for out, _ in said}
    assert len(digests) == 1
    misses, hits, digest = executed(folder)
    assert {digest} == digests
    assert executed(folder) == [0, misses + hits, digest]


def entry(folder, name, content=b"program", age=0.0):
    path = folder / f"{name}-{'0f' * 32}-cache"
    path.write_bytes(content)
    _beside(path).write_text(_digest(path))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_what_is_not_whole_is_removed(tmp_path):
    whole, other = entry(tmp_path, "whole"), entry(tmp_path, "other")
    other.write_bytes(b"pr0gram")
    lost, folder = (tmp_path / whole.name.replace("whole", name) for name in ("lost", "folder"))
    _beside(lost).write_text("0" * 64)
    folder.mkdir()
    bad = entry(tmp_path, "bad")
    _beside(bad).write_bytes(b"\xff\xfe")
    (tmp_path / "of_others.txt").write_text("left alone")
    for name in ("my-cache", "checksums.sha256", "wheel.whl.sha256"):
        (tmp_path / name).write_text("left alone")
    (tmp_path / "pip-cache").mkdir()
    (tmp_path / f"{whole.name}.sha256.{'0f' * 16}.part").write_text("cut off by a kill")
    others = {"of_others.txt", "my-cache", "checksums.sha256", "wheel.whl.sha256", "pip-cache"}
    _clean(tmp_path, 1000)
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".removed")}
    assert left == {*others, whole.name, whole.name + ".sha256"}
    assert sum(path.name.endswith(".removed") for path in tmp_path.iterdir()) == 1


def test_what_is_still_being_written_gets_no_digest(tmp_path, monkeypatch):
    content = zlib.compress(bytes(range(256)) * 20)
    whole, half, empty = (entry(tmp_path, name) for name in ("whole", "half", "empty"))
    for path, written in ((whole, content), (half, content[: len(content) // 2]), (empty, b"")):
        path.write_bytes(written)
        _beside(path).unlink()
    monkeypatch.setattr(caching, "_current", [tmp_path])
    caching._record()
    assert [_beside(path).exists() for path in (whole, half, empty)] == [True, False, False]
    half.write_bytes(content)
    _beside(empty).mkdir()  # one that cannot be written does not keep the others from it
    caching._record()
    assert _beside(half).read_text() == _digest(whole)
    monkeypatch.setattr(caching, "_current", [tmp_path / "deleted meanwhile"])
    caching._record()


OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_persistent_cache_enable_xla_caches",
)


def test_nothing_but_programs_that_are_checked_is_put_there(tmp_path, monkeypatch):
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setattr(caching, "_current", [])
    for name in ("register_event_listener", "register_event_duration_secs_listener"):
        monkeypatch.setattr(jax.monitoring, name, lambda listener: None)
    monkeypatch.setattr(atexit, "register", lambda function: None)
    try:
        assert training.cache_programs(tmp_path) == tmp_path
        after = {name: getattr(jax.config, name) for name in OPTIONS}
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert list(after.values()) == [str(tmp_path), 0.0, -1, "none"]


ZSTANDARD = b"\x28\xb5\x2f\xfd"


class Zstandard:
    """What takes the place of the module that JAX compresses with, where there is one."""

    ZstdError = OverflowError

    @staticmethod
    def decompress(content):
        if not content.endswith(b"end"):
            raise OverflowError("cut off")
        return content


@pytest.mark.parametrize("installed", [{"compression.zstd"}, {"zstandard"}, {"compression.zstd", "zstandard"}, set()])
def test_what_is_compressed_with_zstandard_is_whole_where_it_ends(installed, monkeypatch):
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, Zstandard if name in installed else None)
    assert caching._is_complete(ZSTANDARD + b"program end") == bool(installed)
    assert not caching._is_complete(ZSTANDARD + b"progr")


def test_the_oldest_make_room(tmp_path):
    names = [entry(tmp_path, f"n{age}", bytes(400), age).name for age in (3.0, 2.0, 1.0)]
    _clean(tmp_path, 1000)
    assert [path.name for path in programs(tmp_path)] == sorted(names[1:])


def test_a_directory_that_others_may_write_to_is_refused(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(PermissionError, match=r"a directory that others cannot write to.*rwxrwx"):
        training.cache_programs(shared)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"cache_programs: expected a directory, got .*file, which is a file"):
        training.cache_programs(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="or below one"):
        training.cache_programs(tmp_path / "file" / "below")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    with pytest.raises(NotADirectoryError, match="a link that leads nowhere"):
        training.cache_programs(tmp_path / "link")
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(OSError, match="cache_programs: expected a directory that can be made"):
            training.cache_programs(tmp_path / name)
    for given in (5, True, ["x"], b"x"):
        with pytest.raises(TypeError, match="cache_programs: expected the path of a directory, got"):
            training.cache_programs(given)
    with pytest.raises(OSError, match=r"expected a home directory for ~, got ~no_such_user/x: .*; pass a directory"):
        training.cache_programs("~no_such_user/x")
    with pytest.raises(ValueError, match="got an empty text"):
        training.cache_programs("")
    with pytest.raises(ValueError, match="cache_programs: expected max_megabytes of at least 1"):
        training.cache_programs(tmp_path, max_megabytes=0)
    if os.getuid() == 0:
        shared.chmod(0o700)
        os.chown(shared, 12345, -1)
        with pytest.raises(PermissionError, match=r"a directory of your own.*belongs to user 12345"):
            training.cache_programs(shared)
