"""What holds for every test: strict numerics, no window, and no oracle left out where all of them are required."""

import gc
import importlib.util
import os
from collections import Counter
from pathlib import Path

import hypothesis
import jax
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # before matplotlib is imported, also by the examples

# (n,) against (n, 1) is the commonest silent mistake in this kind of code: implicit promotion of ranks raises.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run, and no time limit on one: the first of a new shape compiles.
hypothesis.settings.register_profile("funcnn", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("funcnn")

ORACLES_REQUIRED = os.environ.get("FUNCNN_REQUIRE_ORACLES", "") not in ("", "0")


def pytest_configure(config):
    """Stop at once where the oracles are required and missing: the tests that need them would prove nothing."""
    del config
    if ORACLES_REQUIRED and importlib.util.find_spec("torch") is None:
        raise pytest.UsageError("FUNCNN_REQUIRE_ORACLES is set and torch is missing; pip install 'funcnn[oracles]'")


def listed(name):
    """What ``python tests/slow.py`` wrote, by test: 3 keeps the first case of every three, and 0 keeps none."""
    lines = (Path(__file__).parent / name).read_text().splitlines()
    return {test: int(step) for step, test in map(str.split, lines)}


SLOW = listed("slow.txt")  # what is measured to be too slow for every day
LONG = listed("long.txt")  # and of that, what is too slow for CI

# The files that take longest, each as a whole in one process: begun last, one of them would keep the others waiting.
LONGEST = (
    *("test_laws.py", "test_documents.py", "test_examples.py", "test_notebooks.py", "test_interrupts.py"),
    *("test_exporting.py", "test_sweeps.py", "test_many_members.py", "test_checkpoints.py", "test_stores.py"),
    *("test_graphs.py", "test_law.py", "test_recurrent.py", "test_everyday.py"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The longest files first; cases that the lists leave out, and the examples of the layers, are marked."""
    place = {name: i for i, name in enumerate(LONGEST)}
    cases, slow_cases = Counter(), Counter()
    for item in items:
        name = item.nodeid.split("[")[0]
        if name in SLOW and not any(map(item.get_closest_marker, ("slow", "long"))):
            if not SLOW[name] or cases[name] % SLOW[name]:
                item.add_marker(pytest.mark.slow)
            cases[name] += 1
        if isinstance(item, pytest.DoctestItem) and "layers" in item.path.parts:
            item.add_marker(pytest.mark.slow)
        if name in LONG and item.get_closest_marker("slow") and not item.get_closest_marker("long"):
            if not LONG[name] or slow_cases[name] % LONG[name]:
                item.add_marker(pytest.mark.long)
            slow_cases[name] += 1
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def torch():
    """PyTorch, where it is installed."""
    return pytest.importorskip("torch", reason="the oracles extra is not installed")


@pytest.fixture
def key():
    """A typed key, the same for every test."""
    return jax.random.key(0)


FRESH = """
import os, sys
os.chdir({folder!r})
if "matplotlib.pyplot" in sys.modules:
    sys.modules["matplotlib.pyplot"].close("all")
get_ipython().run_line_magic("reset", "-f")
"""


@pytest.fixture(scope="module")
def executed_notebook(tmp_path_factory):
    """A function of a path and of an empty folder: the notebook with its outputs, by a kernel that begins afresh there.

    A cell that fails is an error. It is one kernel for all notebooks of a file, since it takes seconds to start.
    """
    import nbformat
    from nbclient import NotebookClient

    settings = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # figures are shown
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=600, kernel_name="python3")

    def executed(path, folder):
        begin = nbformat.v4.new_code_cell(FRESH.format(folder=str(folder)))
        notebook = nbformat.read(path, as_version=4)
        for each in (nbformat.v4.new_notebook(cells=[begin]), notebook):
            client.nb = each
            client.execute(cleanup_kc=False)
        return notebook

    with client.setup_kernel(env=settings, cwd=str(tmp_path_factory.mktemp("kernel"))):
        yield executed


# Each compiled program takes some of the maps of memory that Linux gives a process, 65,530 of them, and XLA crashes
# where there are no more. A process of the slow tests compiles that many.
_MAPS = 8_000


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget what was compiled for the tests of other files, before there is too much of it."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MAPS:
        jax.clear_caches()
        gc.collect()


_compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: _compiled.append(event) if event.endswith("backend_compile_duration") else None
)


@pytest.fixture
def compilations():
    """A list that grows by one entry for every program that XLA compiles."""
    _compiled.clear()
    return _compiled
