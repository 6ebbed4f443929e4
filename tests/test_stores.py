"""A directory of checkpoints under attack: damaged bytes, failing disks, two writers, files that nobody wrote."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from funcnn import checkpoints, layers, losses, training
from funcnn.checkpoints import stores
from funcnn.training.fingerprints import digest

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(0)
X = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]


TRAINER = training.supervised(layers.dense(2), losses.squared_error, optax.adam(0.1))


def fit(folder=None, *, until=None, resume=False, epochs=6, every=0.0):
    options = {"key": KEY, "epochs": epochs, "batch_size": 8, "every": 1, "progress": False}
    if until is not None:
        options["observers"] = [lambda event: event.epoch >= until]
    if folder is not None:
        options |= {"checkpoint": checkpoints.directory(folder, every=every), "resume": resume}
    return training.fit(TRAINER, (X, np.concatenate([X, -X], axis=1)), **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with two whole steps, after two epochs and after four."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    fit(folder, until=2, every=1000.0)
    fit(folder, until=4, every=1000.0, resume=True)
    assert [found.step for found in checkpoints.verify(folder)] == [12, 6]
    return folder


@pytest.fixture(scope="module")
def whole():
    return digest(fit())


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def newest(run):
    return run / "steps" / f"{12:012d}"


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---- what is in a step -----------------------------------------------------------------------------------------------

DTYPES = [
    *(np.bool_, np.int8, np.uint16, np.int32, np.uint64, np.float16, np.float32, np.float64, np.complex64),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3b11fnuz),
    *(ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.float4_e2m1fn, ml_dtypes.float6_e2m3fn),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_dtype_comes_back_to_the_bit(dtype, tmp_path):
    values = np.arange(6).reshape(2, 3).astype(np.float32) % 2
    leaves = {"a/b": values.astype(dtype), "a/c": values[0, 1].astype(dtype), "d": values.astype(dtype).T}
    stores.write(str(tmp_path / "step"), {"step": 3}, leaves)
    manifest, back = stores.read(str(tmp_path / "step"))
    assert manifest["about"] == {"step": 3}
    assert list(back) == list(leaves)
    for path, leaf in leaves.items():
        assert back[path].dtype == leaf.dtype
        assert back[path].shape == leaf.shape
        assert back[path].tobytes() == leaf.tobytes()


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=80)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.dictionaries(NAMES, arrays_of.arrays(np.float32, arrays_of.array_shapes(min_dims=0)), min_size=1, max_size=4))
def test_any_names_and_shapes_come_back(leaves):
    with tempfile.TemporaryDirectory() as folder:
        stores.write(f"{folder}/step", {"step": 1}, leaves)
        _, back = stores.read(f"{folder}/step")
    assert {path: leaf.tobytes() for path, leaf in back.items()} == {path: a.tobytes() for path, a in leaves.items()}
    assert all(back[path].shape == leaf.shape for path, leaf in leaves.items())


# ---- damage ----------------------------------------------------------------------------------------------------------


def flipped(content, place, bit):
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def flips(folder, spread):
    """Every ``spread``-th byte of all files, each with another bit flipped."""
    number = 0
    for path in files_of(folder):
        for place in range(path.stat().st_size):
            number += 1
            if number % spread == 0:
                yield path, place, number % 8


def small(folder):
    """A step with less than 4 kB of data."""
    leaves = {"state/params/dense/kernel": X, "state/params/dense/bias": np.ones(3, ml_dtypes.bfloat16)}
    stores.write(str(folder), {"step": 5, "keys": {}, "rows": 0, "rows_axis": 0}, leaves)


def expect_noticed(folder, spread):
    step = folder / "steps" / f"{5:012d}"
    step.parent.mkdir(parents=True)
    small(step)
    (good,) = checkpoints.verify(folder)
    assert good.is_good
    assert good.arrays == 2
    count = 0
    for path, place, bit in flips(step, spread):
        content = path.read_bytes()
        path.write_bytes(flipped(content, place, bit))
        (found,) = checkpoints.verify(folder)
        assert not found.is_good, (path, place, bit)
        assert str(path) in found.fault, (path, found.fault)
        if "kernel" in str(path):
            assert "(state/params/dense/kernel)" in found.fault
        path.write_bytes(content)
        count += 1
    assert checkpoints.verify(folder)[0].is_good
    return count


def test_flipped_bits_are_noticed(tmp_path):
    assert expect_noticed(tmp_path, 37) > 100


@pytest.mark.slow
def test_every_fifth_flipped_byte_is_noticed(tmp_path):
    assert expect_noticed(tmp_path, 5) > 600


@pytest.mark.long
def test_every_flipped_byte_is_noticed(tmp_path):
    assert expect_noticed(tmp_path, 1) > 3000


def expect_resumed_from_the_step_before(run, whole):
    """And with a save at the end alone: the disk is what takes the time."""
    with pytest.warns(RuntimeWarning, match="going on from the last step that is whole, 6") as said:
        result = fit(run, resume=True, every=1000.0)
    assert digest(result) == whole
    assert len(list((run / "damaged").iterdir())) == 1
    assert checkpoints.verify(run)[0].step == 18
    return str(said[0].message)


@pytest.mark.parametrize(
    "count", [6, pytest.param(20, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.long)]
)
def test_a_flipped_bit_makes_a_resume_fall_back(saved, whole, tmp_path, count):
    chance = random.Random(0)
    for number in range(count):
        run = tmp_path / str(number)
        shutil.copytree(saved, run)
        path = chance.choice(files_of(newest(run)))
        content = path.read_bytes()
        if not content:  # commit_success.txt
            continue
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        path.write_bytes(flipped(content, place, bit))
        message = expect_resumed_from_the_step_before(run, whole)
        assert path.name in message
        shutil.rmtree(run)


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "link": lambda path: (path.rename(path.parent.parent / "elsewhere"), path.symlink_to("../elsewhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_makes_a_resume_fall_back(run, whole, damage):
    path = next(path for path in files_of(newest(run)) if "kernel/c/" in str(path) and "params" in str(path))
    DAMAGES[damage](path)
    message = expect_resumed_from_the_step_before(run, whole)
    assert str(path) in message
    assert "state/params/kernel" in message or damage == "link"


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_whichever_file_is_damaged(saved, tmp_path, damage):
    for number, original in enumerate(files_of(newest(saved))):
        run = tmp_path / str(number)
        shutil.copytree(saved, run)
        path = run / original.relative_to(saved)
        before = path.read_bytes()
        DAMAGES[damage](path)
        faults = [found.fault for found in checkpoints.verify(run)]
        is_same = path.is_file() and not path.is_symlink() and path.read_bytes() == before
        assert bool(faults[0]) != is_same, path
        assert not faults[1]
        assert checkpoints.load(run).step == (12 if is_same else 6)
        shutil.rmtree(run)


def test_replaced_by_that_of_another_step(run, whole):
    """Whole in itself, and not what the manifest says."""
    older = run / "steps" / f"{6:012d}"
    path = next(path for path in files_of(newest(run)) if "params" in str(path) and "kernel/c/" in str(path))
    shutil.copy(older / path.relative_to(newest(run)), path)
    assert "another: the file is damaged" in expect_resumed_from_the_step_before(run, whole)


def test_a_file_that_no_save_wrote(run):
    (newest(run) / "arrays" / "state" / "zarr.json").write_text("{}")
    assert "expected only files that were saved" in checkpoints.verify(run)[0].fault


def test_a_step_under_the_name_of_another(run):
    newest(run).rename(run / "steps" / f"{13:012d}")
    assert "expected step 13, got another's" in checkpoints.verify(run)[0].fault


def test_where_all_are_damaged_nothing_is_begun_again(run):
    for step in (run / "steps").iterdir():
        (step / "manifest.json").unlink()
    with pytest.raises(
        checkpoints.CheckpointError, match=r"2 that are damaged: .*to begin again choose another directory"
    ):
        fit(run, resume=True)
    assert len(list((run / "steps").iterdir())) == 2
    with pytest.raises(checkpoints.CheckpointError, match="a manifest that can be read"):
        checkpoints.load(run)


# ---- files that nobody wrote -----------------------------------------------------------------------------------------


def signed(manifest):
    kept = {name: part for name, part in manifest.items() if name != "sha256"}
    text = json.dumps(kept, sort_keys=True).encode()
    return json.dumps({**kept, "sha256": hashlib.sha256(text).hexdigest()})


KERNEL = ("leaves", "state/params/kernel")
# What a manifest might say, with a checksum that is right.
SAID = [
    *((("about",), value) for value in (None, [], 3, "x", {}, {"step": "x"}, {"step": 1.5})),
    *(((part,), value) for part in ("leaves", "files") for value in (None, [], 3, {"a": 3}, {"a": {}})),
    *(((*KERNEL, "dtype"), value) for value in ("nothing", "object", "datetime64[s]", 3, None, "f4,f4")),
    *(((*KERNEL, "shape"), value) for value in ([2**62], [-1], [1.5], "11", None, [10**30], [2**20] * 2, [1, 1], [0])),
    *(((*KERNEL, "name"), value) for value in ("../x", "", "/etc/passwd", None, 3, "a/b")),
    *(((*KERNEL, "sha256"), value) for value in ("0" * 64, None)),
]


@pytest.mark.parametrize(("path", "value"), SAID, ids=[f"{path[-1]}={value!r}"[:40] for path, value in SAID])
def test_a_manifest_that_no_save_writes_is_refused_though_its_checksum_is_right(run, path, value):
    file = newest(run) / "manifest.json"
    manifest = json.loads(file.read_text())
    place = manifest
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    file.write_text(signed(manifest))
    begin = time.monotonic()
    found = checkpoints.verify(run)[0]
    assert not found.is_good
    assert time.monotonic() - begin < 5
    assert checkpoints.load(run).step == 6


TEXTS = {
    "deep": "[" * 100_000,
    "nan": '{"format": NaN}',
    "huge number": '{"format": 1e999, "sha256": ""}',
    "twice": '{"format": "funcnn checkpoint 1", "format": "x", "sha256": ""}',
    "list": "[]",
    "null": "null",
    "text": '"x"',
    "bytes": "\udcff",
    "other": '{"format": "funcnn checkpoint 2", "sha256": ""}',
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_are_no_manifest(run, text):
    path = newest(run) / "manifest.json"
    path.write_bytes(TEXTS[text].encode("utf-8", "surrogateescape"))
    fault = checkpoints.verify(run)[0].fault
    assert str(path) in fault


def mutants(folder, count):
    """A file of a step with some bytes changed, cut out, put in, or doubled."""
    chance = random.Random(1)
    paths = files_of(folder)
    for _ in range(count):
        path = chance.choice(paths)
        content = bytearray(path.read_bytes())
        for _ in range(chance.randint(1, 4)):
            place, size = chance.randrange(len(content) + 1), chance.randint(1, 16)
            what = chance.randrange(4)
            if what == 0:
                content[place : place + size] = chance.randbytes(size)
            elif what == 1:
                del content[place : place + size]
            elif what == 2:
                content[place:place] = chance.randbytes(size)
            else:
                content[place:place] = content[place : place + size]
        yield path, bytes(content)


@pytest.mark.parametrize(
    "count", [40, pytest.param(400, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.long)]
)
def test_fuzzed_checkpoints_are_refused_or_the_same(run, count):
    refused = 0
    for path, content in mutants(newest(run), count):
        before = path.read_bytes()
        path.write_bytes(content)
        found = checkpoints.verify(run)[0]
        assert found.is_good == (content == before), path
        refused += not found.is_good
        path.write_bytes(before)
    assert refused > 0.8 * count


def python(script, *given, **environment):
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, given)]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def answer(script, *given, **environment):
    process = python(script, *given, **environment)
    out, err = process.communicate(timeout=120)
    assert not process.returncode, err
    return out


def test_nothing_in_a_checkpoint_is_executed(run):
    script = """
        import os, sys
        import funcnn.checkpoints, jax
        from orbax.checkpoint import v1
        folder = sys.argv[1]
        funcnn.checkpoints.verify(folder)  # all that is imported late has been imported
        jax.block_until_ready(funcnn.checkpoints.load(folder).state.params)
        seen = []
        def hook(event, given):
            if event in ("exec", "compile", "import", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn",
                         "socket.connect", "pickle.find_class", "marshal.loads", "ctypes.dlopen"):
                seen.append((event, str(given)[:80]))
            if event == "open" and isinstance(given[0], str) and not given[0].startswith((folder, "/proc", "/sys")):
                seen.append((event, str(given)[:80]))
        sys.addaudithook(hook)
        assert all(found.is_good for found in funcnn.checkpoints.verify(folder))
        jax.block_until_ready(funcnn.checkpoints.load(folder).state.params)
        print(seen, flush=True)
        os._exit(0)  # CPython takes hooks down while other threads may still call them
    """
    assert answer(script, run).strip() == "[]"


def test_a_manifest_of_a_bomb_allocates_nothing(run):
    """A small file that says that it is large, under a limit of memory."""
    path = newest(run) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["leaves"]["state/params/kernel"]["shape"] = [2**20, 2**14]
    path.write_text(signed(manifest))
    script = """
        import resource, sys
        import funcnn.checkpoints
        from orbax.checkpoint import v1
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = funcnn.checkpoints.verify(sys.argv[1])[0]
        print(found.is_good, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    is_good, grown = answer(script, run).split()
    assert is_good == "False"
    assert int(grown) < 200_000  # kB; 64 GB is what it says


# ---- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [pytest.param(3, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["exit", "fail"])
def test_the_nth_file_operation_fails_or_the_process_ends_there(tmp_path, how, stride):
    command = [sys.executable, str(ROOT / "tests" / "failing_files.py"), str(tmp_path), how, str(stride)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert not found.returncode, found.stderr
    assert stride * int(found.stdout.split()[0]) > 30, found.stdout


ON_A_FULL_DISK = """
    import sys, test_stores
    from funcnn import checkpoints, training
    folder, wide = sys.argv[1], int(sys.argv[2])
    if wide:
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (wide, wide))
    try:
        test_stores.fit(folder, resume=True)
        print("done")
    except training.SaveError as error:
        assert error.step and int(error.result.state.step) == error.step, error.step
        print("full")
"""


@pytest.mark.parametrize("limit", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 200)), 3000])
def test_a_full_disk_ends_the_run_and_keeps_what_was_there(run, whole, limit):
    """Files of at most so many bytes; the manifest is larger."""
    assert answer(ON_A_FULL_DISK, run, limit).strip() == ("full" if limit else "done")
    if limit:
        assert [found.step for found in checkpoints.verify(run)] == [12, 6]
        assert not list((run / ".passing").iterdir())
        assert digest(fit(run, resume=True)) == whole


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if (
        not hasattr(os, "geteuid")
        or os.geteuid()
        or subprocess.run(options, capture_output=True, check=False).returncode
    ):
        pytest.skip("to mount a small disk takes the rights of an administrator")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_size(saved, whole, tmp_path):
    outcomes = []
    for size in range(160, 1600, 96):
        with small_disk(tmp_path / str(size), f"{size}k") as disk:
            try:
                shutil.copytree(saved, disk / "run")
            except shutil.Error:
                outcomes.append("too small")
                continue
            try:
                assert digest(fit(disk / "run", resume=True)) == whole
                outcomes.append("done")
            except training.SaveError:
                outcomes.append("full")
                assert checkpoints.load(disk / "run").step in (12, 13, 14, 15, 16, 17)
            assert not list((disk / "run" / ".passing").iterdir())
    assert outcomes[-1] == "done"
    assert "full" in outcomes


@pytest.mark.slow
def test_a_folder_that_may_not_be_written_to(saved):
    script = """
        import os, sys, test_stores
        from orbax.checkpoint import v1  # as long as it may be read
        if not os.geteuid():
            os.setuid(65534)  # nobody: for an administrator all folders may be written to
        try:
            test_stores.fit(sys.argv[1], resume=True)
        except PermissionError as error:
            print(error.filename)
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shutil.copytree(saved, run)
        Path(folder).chmod(0o755)
        everything = [run, *run.rglob("*")]
        for path in everything:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            assert answer(script, run).strip() == str(run / "LOCK")
        finally:
            for path in everything:
                path.chmod(0o755 if path.is_dir() else 0o644)
        assert all(found.is_good for found in checkpoints.verify(run))


# ---- two at once -----------------------------------------------------------------------------------------------------

HOLDS = """
    import sys, time
    from funcnn import checkpoints
    with checkpoints.directory(sys.argv[1]).opened():
        print("held", flush=True)
        time.sleep(600)
"""


def test_a_second_writer_is_told_at_once_who_the_first_is(run, whole):
    holder = python(HOLDS, run)
    try:
        assert holder.stdout.readline().strip() == "held"
        begin = time.monotonic()
        with pytest.raises(checkpoints.RunLocked, match=f"the run of process {holder.pid} on") as caught:
            fit(run, resume=True)
        assert time.monotonic() - begin < 1
        assert caught.value.pid == holder.pid
        assert checkpoints.load(run).step == 12  # who reads needs no lock
    finally:
        holder.kill()
        holder.communicate()
    assert digest(fit(run, resume=True)) == whole  # the lock died with its holder


def test_the_lock_does_not_live_on_in_a_worker(run):
    """As those of a data loader, when the process that trains is killed."""
    script = """
        import os, sys, time
        from funcnn import checkpoints
        with checkpoints.directory(sys.argv[1]).opened():
            if not os.fork():
                print("held", flush=True)
                time.sleep(20)
                os._exit(0)
            time.sleep(600)
    """
    holder = python(script, run)
    assert holder.stdout.readline().strip() == "held"
    with pytest.raises(checkpoints.RunLocked), checkpoints.directory(run).opened():
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()  # which the worker has as well
    holder.stderr.close()
    with checkpoints.directory(run).opened():
        pass


def test_the_same_process_is_no_exception(run):
    kept = checkpoints.directory(run)
    with kept.opened(), pytest.raises(checkpoints.RunLocked, match=f"process {os.getpid()}"), kept.opened():
        pass
    with kept.opened():
        pass


def test_a_path_that_is_a_file(run):
    with pytest.raises(NotADirectoryError, match=r"expected a directory at .*LOCK, got a file"):
        fit(run / "LOCK")


def test_a_tilde_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoints.directory("~/runs").path == str(tmp_path / "runs")


def test_what_is_no_file_is_refused_and_not_waited_for(run):
    step = newest(run)
    (step / "arrays" / "commit_success.txt").unlink()
    os.mkfifo(step / "arrays" / "commit_success.txt")
    assert "something else" in checkpoints.verify(run)[0].fault
    (step / "manifest.json").unlink()
    os.mkfifo(step / "manifest.json")
    assert "something else" in checkpoints.verify(run)[0].fault
