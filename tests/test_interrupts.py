"""Runs that are told to end, or killed: what comes back is the run that was never interrupted."""

import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from funcnn import checkpoints

ROOT = Path(__file__).parents[1]
RUNS = ("arrays", "stream", "passes", "sweep", "groups")


def process(*command, **environment):
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | environment
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=pipe, stderr=pipe, text=True, env=env)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder for compiled programs, so that the second process of a run needs less of our time."""
    return tmp_path_factory.mktemp("compiled")


def cached(compiled):
    """The settings by which compiled programs are kept in a folder."""
    return {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def training(folder, *names, compiled):
    return process(ROOT / "tests" / "checkpointed.py", folder, *names, **cached(compiled))


@pytest.fixture(scope="module")
def whole(compiled):
    """What a run gives that nobody interrupts."""

    @functools.cache
    def given(name):
        out, err = training("-", name, compiled=compiled).communicate(timeout=300)
        assert out.startswith(name), err
        return out.split()[1]

    return given


def killed(folder, name, wanted, kills, seed, compiled):
    """Train, kill at a random instant, go on; after the last kill, to the end. How many times it came to its end.

    The first kill, and every other one, counts from a save that the process has made, the rest from its start.
    """
    chance, ends = random.Random(seed), 0
    steps = []
    while len(steps) < kills:
        run, begun = training(folder, name, compiled=compiled), newest(folder / name)
        if len(steps) % 2:
            instant = time.monotonic() + chance.uniform(0.2, 3.0)
        else:
            while run.poll() is None and newest(folder / name) == begun:
                time.sleep(0.01)
            instant = time.monotonic() + chance.uniform(0.0, 0.5)
        while run.poll() is None and time.monotonic() < instant:
            time.sleep(0.001)
        run.kill()
        out, err = run.communicate()
        if run.returncode == -signal.SIGKILL:
            steps.append(newest(folder / name))
            continue
        assert not run.returncode, err
        assert out.split() == [name, wanted]
        ends += 1
        shutil.rmtree(folder)
    run = training(folder, name, compiled=compiled)
    out, err = run.communicate(timeout=300)
    assert not run.returncode, err
    assert out.split() == [name, wanted], err
    return ends, steps


def newest(folder):
    """The step of the newest checkpoint, 0 where there is none."""
    while True:
        try:
            return max((int(path.name) for path in folder.rglob("steps/*")), default=0)
        except FileNotFoundError:  # something was deleted while it was looked at
            continue


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("arrays", 3),
        pytest.param("stream", 3, marks=pytest.mark.slow),
        pytest.param("sweep", 4, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_and_resumed_each_time(whole, compiled, tmp_path, name, kills):
    """Three kills every day and in CI, ten before a release; more of them, and of all runs, in the test below."""
    _, steps = killed(tmp_path / "runs", name, whole(name), kills, seed=RUNS.index(name), compiled=compiled)
    assert len(steps) == kills
    assert any(step > 0 for step in steps), steps  # there was something to go on from


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_killed_forty_times_and_resumed_each_time(whole, compiled, tmp_path, name):
    seed = 100 + RUNS.index(name)
    ends, steps = killed(tmp_path / "runs", name, whole(name), 40, seed=seed, compiled=compiled)
    assert len(steps) == 40
    # Kills fell before the first save, and between saves.
    assert len(set(steps)) > 5, steps
    assert ends < 40


# ---- signals ---------------------------------------------------------------------------------------------------------

ENDLESS = """
    {first}
    import sys, time
    import checkpointed
    from funcnn import checkpoints
    {before}
    def watch(event):
        print(event.step, flush=True)
        time.sleep(0.01)
    kept = checkpoints.directory(sys.argv[1], every=1000.0)
    checkpointed.arrays(checkpoint=kept, resume=True, observers=[watch], every=1, progress=False)
    print("not reached")
"""
DISTRIBUTED = """
    import jax, socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=1, process_id=0)
"""


def endless(folder, compiled, before="", first=""):
    script = textwrap.dedent(ENDLESS).replace("{before}", textwrap.dedent(before))
    script = script.replace("{first}", textwrap.dedent(first))
    return process("-c", script, folder, **cached(compiled))


def until_step(run, step):
    for line in run.stdout:
        if re.fullmatch(r"\d+\n", line) and int(line) >= step:
            return
    raise AssertionError(run.stderr.read())


@pytest.mark.parametrize(
    ("number", "code", "first"),
    [
        (signal.SIGTERM, 143, ""),
        pytest.param(signal.SIGINT, 130, "", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, DISTRIBUTED, marks=pytest.mark.slow),
    ],
    ids=["SIGTERM", "SIGINT", "SIGTERM after jax.distributed.initialize"],
)
def test_a_signal_ends_a_run_with_all_of_it_saved(whole, compiled, tmp_path, number, code, first):
    run = endless(tmp_path / "arrays", compiled, first=first)
    until_step(run, 40)
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == code, err
    assert "not reached" not in out
    told = re.search(rf"fit: {number.name}: saved after (\d+) of \d+ steps; resume=True goes on from there", err)
    assert told, err
    assert checkpoints.load(tmp_path / "arrays").step == int(told[1])
    out, err = training(tmp_path, "arrays", compiled=compiled).communicate(timeout=120)
    assert out.split() == ["arrays", whole("arrays")], err


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(compiled, tmp_path):
    stuck = """
        from funcnn.checkpoints import keeping
        write = keeping.stores.write
        def slow(*given):
            print("9999999", flush=True)
            time.sleep(600)
        keeping.stores.write = slow
    """
    run = endless(tmp_path, compiled, stuck)
    until_step(run, 40)
    run.send_signal(signal.SIGTERM)
    until_step(run, 9_999_999)
    begin = time.monotonic()
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGTERM
    assert time.monotonic() - begin < 5
    assert not list((tmp_path / "steps").iterdir())


@pytest.mark.slow
def test_at_a_prompt_ctrl_c_gives_the_result(compiled, tmp_path):
    at_prompt = """
        sys.ps1 = ">>> "
        fit = checkpointed.training.fit
        def shown(*given, **named):
            result = fit(*given, **named)
            print("result", int(result.state.step), flush=True)
            sys.exit(7)
        checkpointed.training.fit = shown
    """
    run = endless(tmp_path, compiled, at_prompt)
    until_step(run, 40)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 7, err
    assert int(out.split()[-1]) == checkpoints.load(tmp_path).step


@pytest.mark.slow
def test_a_signal_that_was_ignored_stays_so(compiled, tmp_path):
    """As under nohup, or in the background of a script."""
    ignoring = """
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    """
    run = endless(tmp_path, compiled, ignoring)
    until_step(run, 40)
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 143


@pytest.mark.slow
def test_in_another_thread_signals_are_left_alone(compiled, tmp_path):
    script = """
        import signal, sys, threading
        import checkpointed
        from funcnn import checkpoints
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        seen = []
        def watch(event):
            seen.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before)
            return len(seen) > 2
        def train():
            kept = checkpoints.directory(sys.argv[1])
            checkpointed.arrays(checkpoint=kept, observers=[watch], every=1, progress=False)
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        assert all(seen), seen
        checkpointed.arrays(checkpoint=checkpoints.directory(sys.argv[1]), resume=True, observers=[watch], every=1,
                            progress=False)
        assert not seen[-1]
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    """
    run = process("-c", textwrap.dedent(script), tmp_path, **cached(compiled))
    _, err = run.communicate(timeout=60)
    assert not run.returncode, err
