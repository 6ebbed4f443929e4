"""Every example is run as a reader would run it, and must print what it promises."""

import ast
import functools
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from test_notebooks import MAKE, NOTEBOOKS, code_of, expect_clean, printed

ROOT = Path(__file__).parent.parent


class Claim(NamedTuple):
    """A pattern with one number, and the range in which each number that it finds must lie."""

    pattern: str
    low: float
    high: float
    count: int = 1  # how often it must be found


# What experiments.py finds, in which case, on how many of its seeds at least and at most, and what follows.
VERDICTS = [
    ("1. a second layer is better", "0.1, one at a time", 5, 35, "undecided"),
    ("1. a second layer is better", "0.1, all at once", 30, 45, "confirmed"),
    ("1. a second layer is better", "0.01, one at a time", 46, 50, "confirmed"),
    ("1. a second layer is better", "0.01, all at once", 15, 35, "undecided"),
    ("2. a rate of 0.1 is better", "one layer, one at a time", 46, 50, "confirmed"),
    ("2. a rate of 0.1 is better", "two layers, one at a time", 5, 35, "undecided"),
    ("2. a rate of 0.1 is better", "one layer, all at once", 43, 50, "confirmed"),
    ("2. a rate of 0.1 is better", "two layers, all at once", 43, 50, "confirmed"),
    ("3. a rate of 0.000001 gains less", "one at a time", 46, 50, "confirmed"),
    ("3. a rate of 0.000001 gains less", "all at once", 46, 50, "confirmed"),
    *(
        ("4. one at a time", f"{network}, {rate}", 43, 50, "confirmed")
        for network in ("one layer", "two layers")
        for rate in ("0.1", "0.01")
    ),
    ("5. two layers at 0.1 are better on what they were trained on", "one at a time", 46, 50, "confirmed"),
    ("5. two layers at 0.1 are better on what they were trained on", "all at once", 30, 50, "confirmed"),
]


def verdict(finding, case, low, high, word):
    """The line of a case below its finding."""
    below, line = r"[^\n]*\n(?:   [^\n]*\n)*?", rf"   {re.escape(case)} +(\d+) of 50 [^\n]*: {word}$"
    return Claim(rf"^{re.escape(finding)}{below}{line}", low, high)


LOSS = r"\d\.\de[+-]\d\d"
CLAIMS = {
    "activations.py": [
        Claim(r"^sigmoid +0\.25 ([\d.]+) \(", 0.05, 0.5),  # nothing comes back through six of them
        Claim(r"^sigmoid .*\) ([\d.]+) \(", 0.75, 1.0),  # and with layer norm it does
        Claim(r"^(?:tanh|relu|selu|gelu) +[\d.]+ ([\d.]+) \(", 0.8, 1.0, count=4),
    ],
    "compare.py": [
        Claim(r"^XOR +funcnn +([\d.]+) ", 1.0, 1.0),
        Claim(r"^moons +funcnn +([\d.]+) ", 0.98, 1.0),
        Claim(r"^iris +funcnn +([\d.]+) ", 0.97, 1.0),
        Claim(r"^diabetes +funcnn +([\d.]+) ", 0.6, 1.0),
        Claim(r"^(?:XOR|moons) +(?:torch|sklearn) +([\d.]+) ", 1.0, 1.0, count=4),
        Claim(r"^iris +(?:torch|sklearn) +([\d.]+) ", 0.98, 0.994, count=2),
        Claim(r"^diabetes +(?:torch|sklearn) +([\d.]+) ", 0.6, 1.0, count=2),
    ],
    "diabetes.py": [
        Claim(r"linear regression: R² ([\d.-]+)", 0.3, 0.7),
        Claim(r"network: +R² ([\d.-]+)", 0.5, 0.7),
        Claim(r"network:.*MAE ([\d.]+)", 35.0, 47.0),
    ],
    "digits.py": [Claim(r"(?i)test accuracy\D*([\d.]+)", 0.985, 1.0)],
    "experiments.py": [
        Claim(r"^before training, \w+ layers? +([\d.]+) ", 0.4, 0.6, count=2),
        *(verdict(*row) for row in VERDICTS),
    ],
    "files.py": [
        Claim(r"^test accuracy ([\d.]+)", 0.95, 1.0),
        Claim(r"^damaged.idx: expected .*, got ([\d.]+): it was cut off; ", 92047, 92047),
    ],
    "from_pytorch.py": [
        Claim(r"^ResNet-18: .* of a logit ([\d.e+-]+)$", 0.0, 1e-4),
        Claim(r"^GPT-2, small: .* of a logit ([\d.e+-]+)$", 0.0, 1e-4),
    ],
    "heights.py": [
        Claim(r"right: (\d+) of 10\b", 10, 10),
        Claim(r"standardised: all ten on ([\d.]+)% of 1000 seeds", 94.0, 100.0),
        Claim(r"raw inputs +: all ten on ([\d.]+)% of 1000 seeds", 0.0, 20.0),
    ],
    "hypergradient.py": [  # at the beginning, with the best learning rate alone, with all eight numbers tuned
        Claim(r"validation loss: +([\d.]+) +[\d.]+ +[\d.]+$", 0.3, 0.4),
        Claim(r"third part: +([\d.]+) +[\d.]+ +[\d.]+$", 0.32, 0.42),
        Claim(r"third part: +[\d.]+ +([\d.]+) +[\d.]+$", 0.29, 0.37),
        Claim(r"validation loss: +[\d.]+ +[\d.]+ +([\d.]+)$", 0.0, 0.23),
        Claim(r"third part: +[\d.]+ +[\d.]+ +([\d.]+)$", 0.0, 0.25),
    ],
    "iris.py": [
        Claim(r"held out: accuracy ([\d.]+)", 0.93, 1.0),
        Claim(r"setosa +(\d+) +0 +0$", 10, 10),
        Claim(r"right: (\d+) of 150\b", 147, 150),
    ],
    "maml.py": [
        Claim(r"after its step: ([\d.]+);", 0.3, 0.45),
        Claim(r"pretrained, at its best rate: ([\d.]+);", 2.1, 2.5),
        Claim(r"at its best rate: [\d.]+; ratio ([\d.]+)$", 0.0, 1 / 3),
    ],
    "mislabelled.py": [
        Claim(r"found by influence (\d+)", 20, 30, count=5),
        Claim(r"by own loss (\d+) of 30$", 28, 30, count=5),
        Claim(r"other digits: ([\d.]+)$", 0.205, 0.23),
        Claim(r"suspects by influence: ([\d.]+)", 0.15, 0.199),
        Claim(r"suspects by .*, by own loss: ([\d.]+)$", 0.2, 0.22),
    ],
    "moons.py": [
        Claim(r"right: (\d+) of 100\b", 95, 100),
        Claim(r"learning rate 0\.0001: .*accuracy ([\d.]+)$", 0.3, 0.9),  # too small to arrive
        Claim(r"learning rate 0\.0(?:100|316): .*accuracy ([\d.]+)$", 0.97, 1.0, count=2),
    ],
    "optimizers.py": [
        Claim(r"^SGD +([\d.e+-]+) at ", 1e-4, 1.0),
        Claim(r"^(?:momentum|Adam) +([\d.e+-]+) at ", 0.0, 1e-6, count=2),
    ],
    "pinn.py": [
        Claim(r"relative L2 error against the exact solution: ([\d.]+)", 0.0, 0.05),
        Claim(rf"^ *6000 +({LOSS}) +{LOSS} +{LOSS}$", 0.0, 1e-3),
    ],
    "playground.py": [
        Claim(r"^o +tanh +(-0\.964) +1  n$", -0.964, -0.964),
        Claim(r"^mul 5 sends (-0\.212) to x1:", -0.212, -0.212),
        Claim(r"xor [01] = ([\d.]+), and should be 0$", 0.0, 0.08, count=2),
        Claim(r"xor [01] = ([\d.]+), and should be 1$", 0.92, 1.0, count=2),
        Claim(r"-> ([\d.]+), and should be 1$", 0.92, 1.0, count=2),
        Claim(r"-> (-[\d.]+), and should be -1$", -1.0, -0.92, count=2),
    ],
    "random_search.py": [
        Claim(r"in the middle, ([\d.]+) at best$", 0.2, 0.5),
        Claim(r"^gradient descent: better than the best after (\d+) steps$", 1, 100),
        Claim(r"the best of them is right on ([\d.]+) of the points$", 0.8, 0.93),
        Claim(r"right on ([\d.]+)$", 0.99, 1.0),
    ],
    "xor.py": [
        Claim(r"(?:0 xor 0|1 xor 1) = ([\d.]+)", 0.0, 0.08, count=2),
        Claim(r"(?:0 xor 1|1 xor 0) = ([\d.]+)", 0.92, 1.0, count=2),
        Claim(r"right: (\d) of 4\b", 4, 4),
        Claim(r"within 0.08 of the target: ([\d.]+)% of 1000 seeds", 94.0, 100.0),
    ],
}
DRAWN = ("activations.py", "compare.py", "digits.py", "experiments.py", "optimizers.py", "random_search.py")
FIGURES = {name: {f"figures/{Path(name).stem}.png"} for name in DRAWN} | {"playground.py": {"figures/neuron.svg"}}
PARTS = ("mapped_files.py", "pytorch_networks.py")  # of other examples

every_example = pytest.mark.parametrize("name", sorted(CLAIMS))


@functools.cache
def executed(name):
    """What a run of the example gave, and the files that it left; run once, in an empty folder, warnings as errors."""
    if "pytorch" in name or name == "compare.py":
        pytest.importorskip("torch", reason="the oracles extra is not installed")
    settings = {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    settings["JAX_NUMPY_RANK_PROMOTION"] = "raise"
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **settings},
            capture_output=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
        )
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        left = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return done, left


def test_every_example_has_its_claims():
    assert sorted(path.name for path in (ROOT / "examples").glob("*.py")) == sorted([*CLAIMS, *PARTS])


@every_example
def test_an_example_is_short_and_says_what_it_shows(name):
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    assert text.count("\n") <= 100
    assert len(ast.get_docstring(ast.parse(text)) or "") > 80


@pytest.mark.slow
@every_example
def test_an_example_keeps_its_claims(name):
    done, _ = executed(name)
    assert done.returncode == 0, done.stderr
    for claim in CLAIMS[name]:
        found = re.findall(claim.pattern, done.stdout, re.MULTILINE)
        assert len(found) == claim.count, f"{claim.pattern}\n{done.stdout}"
        assert all(claim.low <= float(number) <= claim.high for number in found), f"{claim.pattern}\n{done.stdout}"


@pytest.mark.slow
def test_compare_leaves_out_with_a_line_what_is_not_installed():
    """Each of the four sides has a line on each of the four networks: what it reached, or that it is not there."""
    done, _ = executed("compare.py")
    for side in ("funcnn", "torch", "keras", "sklearn"):
        lines = re.findall(rf"^(?:XOR|moons|iris|diabetes) +{side} +(.*)$", done.stdout, re.MULTILINE)
        there = importlib.util.find_spec(side) is not None
        wanted = r"[\d.]+ after 300 epochs, loss " if there else f"left out: No module named '{side}'$"
        assert [bool(re.match(wanted, line)) for line in lines] == [True] * 4, done.stdout


def rows_of_the_readme():
    """Examples, and what the table of the README says that they show."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| \[\w+\.py\]\(examples/.*\|$", text, re.MULTILINE):
        names, _, result = row.strip("| ").split(" | ")
        for name in re.findall(r"\(examples/(\w+\.py)\)", names):
            yield name, result


def numbers(text):
    """Each number as it is written, and a unit of its last digit."""
    for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace(",", "")):
        digits, _, power = number.partition("e")
        yield number, 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "result"), list(rows_of_the_readme()), ids=lambda value: value.split()[0])
def test_the_readme_says_what_an_example_prints(name, result):
    """Each number of the row is printed, as it stands or as a part of one: to a unit of its last digit, or to 5 %.

    Other versions and other machines round otherwise, and training multiplies it.
    """
    done, _ = executed(name)
    printed = [float(number) for number, _ in numbers(done.stdout)]
    assert printed, done.stderr
    for number, unit in numbers(result):
        said = float(number)
        near = max(1.01 * unit, 0.05 * said if unit < 1 else 0)
        assert any(abs(each * scale - said) <= near for each in printed for scale in (1, 100)), (
            f"{number}\n{done.stdout}"
        )


@pytest.mark.slow
@every_example
def test_an_example_prints_what_fits_on_a_screen(name):
    """Standard error holds the progress of ``fit`` and nothing else."""
    done, _ = executed(name)
    lines = done.stdout.splitlines()
    assert 0 < len(lines) <= 60
    assert max(map(len, lines)) <= 120
    assert [line for line in done.stderr.splitlines() if not line.startswith("epoch ")] == []


@pytest.mark.slow
@every_example
def test_an_example_leaves_no_files_but_figures(name):
    _, left = executed(name)
    assert set(left) == FIGURES.get(name, set())
    assert all(size > 4_000 for size in left.values())  # an empty figure is smaller


@pytest.mark.slow
@pytest.mark.parametrize("stem", MAKE["TAKEN"])
def test_an_example_prints_as_a_notebook_what_it_prints_as_a_script(stem, executed_notebook, tmp_path):
    notebook = executed_notebook(NOTEBOOKS / f"{stem}.ipynb", tmp_path)
    expect_clean(notebook)
    done, _ = executed(f"{stem}.py")
    assert "".join(map(printed, code_of(notebook))) == done.stdout != ""
