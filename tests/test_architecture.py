"""The shape of the house: what may be imported when, how large a file may grow, who may print, what to keep out."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "funcnn").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
# Needed by few, or slow to import: inside the function that needs them.
HEAVY = {"flatbuffers", "grain", "matplotlib", "orbax", "pandas", "rich", "safetensors", "scipy", "sklearn", "torch"}
LIGHT = {"funcnn", "jax", "numpy", "optax", "chex"} | set(sys.stdlib_module_names)
# Soft limits: a file or a function beyond them is listed here with its reason.
LINES, FUNCTION_LINES = 300, 50
LONGER = {
    "core.py": "the contract and the one walk over children; more than half are docstrings and comments",
    "layers/adapters.py": "three ways to make weights of weights; half of it are docstrings",
    "layers/attending.py": "one layer, with all that can be beside its input; a third of it is the docstring",
    "layers/cells.py": "four cells and what they share; half of it are docstrings",
    "layers/combinators.py": "seven small combinators; two thirds are docstrings",
    "layers/normalization.py": "five norms and what they share; more than half are docstrings",
    "primitives.py": "products, convolution and pooling share their windows; two fifths are docstrings and comments",
    "trees.py": "small functions over paths; half of it are docstrings",
    "data.py": "one story, from what people have to arrays; a third of it are docstrings",
    "losses.py": "many small functions, and two thirds of it are docstrings",
    "weights.py": "what is written and what is read are one format; a third of it are docstrings",
    "metrics.py": "many small functions, and half of it are docstrings",
    "training/streams.py": "a reader and its thread, which share what they know of the stream",
}
# What a person watches while it runs; everything else returns text.
MAY_PRINT = {"training/progress.py"}

every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "funcnn")))


def relative(path):
    return path.relative_to(ROOT / "funcnn").as_posix()


def imports_at_the_top(tree):
    """The packages that importing the module imports: all but what stands in functions or under TYPE_CHECKING."""
    found, todo = set(), list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            todo += [] if typing_only else list(ast.iter_child_nodes(node))
    return found


@every_source
def test_a_module_imports_only_what_is_light(path):
    drawn = {"io", "matplotlib"} if relative(path) == "plotting/figures.py" else set()  # imported by a function alone
    assert imports_at_the_top(TREES[path]) <= LIGHT | drawn


def printed(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.split()


def test_importing_the_library_imports_nothing_heavy():
    everything = "[getattr(funcnn, name) for name in funcnn.__all__]"
    program = f"import sys, jax, optax; before = set(sys.modules); import funcnn; {everything}"
    loaded = {name.partition(".")[0] for name in printed(f"{program}; print(*(set(sys.modules) - before))")}
    assert "funcnn" in loaded
    assert loaded & HEAVY == set()


RUN = """
import sys, funcnn, jax, optax
trainer = funcnn.training.supervised(funcnn.layers.dense(1), funcnn.losses.squared_error, optax.sgd(0.1))
examples = jax.numpy.ones((2, 1)), jax.numpy.ones((2, 1))
funcnn.training.fit(trainer, examples, key=jax.random.key(0), epochs=1, progress=False)
names = [name for name in funcnn.__all__ if f"funcnn.{name}" in sys.modules]
print(*names)
assert set(dir(funcnn)) >= set(funcnn.__all__)
print(funcnn.inspection.first_nonfinite.__name__, "inspection" in vars(funcnn), hasattr(funcnn, "inspections"))
"""


def test_what_no_run_needs_is_imported_when_it_is_asked_for():
    *imported, found, there, misspelt = printed(RUN)
    assert set(imported) & {"checkpoints", "exporting", "inspection", "plotting"} == set()
    assert "training" in imported
    assert (found, there, misspelt) == ("first_nonfinite", "True", "False")


@every_source
def test_a_file_is_short(path):
    lines = path.read_text().count("\n")
    assert lines <= LINES or relative(path) in LONGER, f"{lines} lines: divide it, or give the reason in LONGER"


def test_a_longer_file_is_longer():
    for name in LONGER:
        assert (ROOT / "funcnn" / name).read_text().count("\n") > LINES, f"{name} is short again: take it off the list"


@every_source
def test_a_function_is_short(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = node.end_lineno - first.lineno + 1
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines of code"


@every_source
def test_only_what_a_person_watches_prints(path):
    calls = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
    prints = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not prints or relative(path) in MAY_PRINT


@every_source
def test_nothing_is_changed_behind_the_back(path):
    """No globals are rebound, and the configuration of JAX is the user's."""
    assert not [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Global)]
    assert "jax.config.update(" not in re.sub(r"\"[^\"]*\"|'[^']*'", "", path.read_text())


@every_source
def test_a_module_is_named_for_what_it_holds(path):
    assert path.stem not in {"utils", "util", "misc", "helpers", "common", "base"}
    assert path.stem == "__init__" or not path.stem.startswith("_")


# Written in halves, so that this file does not hold them.
MARKERS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b")
MACHINE = re.compile(r"(?<![\w.~/-])/(work|home|root|farm|tmp|opt|Users)/\w")  # a path of somebody's machine
SUPPRESSIONS = re.compile("no" + r"qa|type: " + r"ignore|pyright: " + "ignore")
TEXTS = {".py", ".md", ".toml", ".cfg", ".yml", ".yaml", ".sh", ".txt", ".csv", ""}
FOREIGN = {"build", "dist", "figures", "__pycache__", "LICENSE"}  # and what is hidden: environments, caches


def ours(parts):
    hidden = {part for part in parts if part.startswith(".")} - {".ci", ".gitignore"}
    return not hidden and not FOREIGN & set(parts)


def texts():
    paths = [path for path in ROOT.rglob("*") if path.suffix in TEXTS and ours(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def test_the_texts_are_found():
    assert {Path(__file__), ROOT / "funcnn/core.py", ROOT / ".ci/run", ROOT / "pyproject.toml"} <= set(texts())


@pytest.mark.parametrize("forbidden", [MARKERS, MACHINE], ids=["markers", "machine"])
def test_what_is_left_over_is_not_left_behind(forbidden):
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(errors="replace").split("\n"), 1):
            if forbidden.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_the_checkers_are_seldom_silenced():
    found = [path for path in SOURCES for _ in SUPPRESSIONS.findall(path.read_text())]
    assert len(found) <= 5, found


@pytest.mark.parametrize("listing", ["slow.txt", "long.txt"])
def test_what_is_said_to_be_slow_is_there(listing):
    """A line of a test that has another name by now would have no effect."""
    for line in (ROOT / "tests" / listing).read_text().splitlines():
        step, name = line.split()
        path, test = name.split("::")
        last = test.split(".")[-1]
        assert re.search(rf"^\s*(def|class) {last}\b", (ROOT / path).read_text(), re.MULTILINE), name
        assert int(step) != 1, name
