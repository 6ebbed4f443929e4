"""Prose is executed: every Python block of README.md and docs/, every example, the commands, the links, the version.

The Python blocks of a document share one namespace and run in order. A block of ``text`` straight after one shows what
it prints, and must show exactly that. Code of another framework stands after ``<!-- skip: next "reason" -->``.
"""

import ast
import contextlib
import inspect
import io
import math
import re
import runpy
import textwrap
import unittest
from pathlib import Path

import pytest
from sybil import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

import funcnn

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("README.md"), *ROOT.glob("docs/**/*.md")])

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


# ---- what documents show ---------------------------------------------------------------------------------------------


class Recorded(PythonEvaluator):
    """Runs a block and remembers where it ended and what it printed."""

    def __call__(self, example):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            super().__call__(example)
        example.document.printed = (example.end, printed.getvalue())


def compare(example):
    """The text after a Python block is what that block printed; text elsewhere is text."""
    end, printed = getattr(example.document, "printed", (0, ""))
    between = example.document.text[end : example.start].strip().strip("`")
    if end == 0 or between.strip():
        return None
    shown = textwrap.dedent(example.parsed).strip()
    return None if printed.strip() == shown else f"Shown:\n{shown}\nPrinted:\n{printed.strip()}"


def parsers():
    python = PythonCodeBlockParser()
    python.codeblock_parser = CodeBlockParser("python", Recorded())
    return [python, CodeBlockParser("text", compare), SkipParser()]


def execute(path):
    for example in Document.parse(str(path), *parsers()):
        with contextlib.suppress(unittest.SkipTest):  # of this one block, by the directive before it
            example.evaluate()


@pytest.mark.slow
@pytest.mark.parametrize(  # the chapters of the course are executed in test_notebooks.py
    "path", [path for path in DOCUMENTS if path.parent.name != "course"], ids=lambda path: path.name
)
def test_every_snippet_runs_and_prints_what_is_shown(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # figures that a snippet saves
    execute(path)


BLOCK = "```python\n{}\n```\n"
SHOWN = "\n```text\n{}\n```\n"
SKIPPED = '<!-- skip: next "Keras" -->\n\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (BLOCK.format("x = 1") + BLOCK.format("print(x)") + SHOWN.format("1"), None),
        (BLOCK.format("print(1)") + SHOWN.format("2"), "Shown:\n2\nPrinted:\n1"),
        (BLOCK.format("x = 1") + SHOWN.format("2"), "Printed:"),
        (BLOCK.format("print(1)") + "\nSome words.\n" + SHOWN.format("2"), None),
        (SHOWN.format("not output"), None),
        (BLOCK.format("1 / 0"), "division by zero"),
        (BLOCK.format(">>> 1 + 1\n3"), "Expected:"),
        (BLOCK.format(">>> 1 + 1\n2"), None),
        (SKIPPED + BLOCK.format("import keras.nothing"), None),
        (SKIPPED + BLOCK.format("import keras.nothing") + BLOCK.format("1 / 0"), "division by zero"),
    ],
)
def test_a_wrong_snippet_is_noticed(text, error, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(Exception, match=re.escape(error)) if error else contextlib.nullcontext():
        execute(path)


@every_document
def test_every_skipped_snippet_has_a_reason(path):
    directives = re.findall(r"<!--+\s*skip:.*?--+>", path.read_text())
    assert [directive for directive in directives if not re.search(r'skip: next "[^"]+"', directive)] == []


@every_document
def test_every_python_block_is_found(path):
    """A block that is indented or misspelt would silently not run."""
    text = path.read_text()
    fences = re.findall(r"^[ \t>]*(?:```|~~~)[ \t]*(?:py|python|python3|pycon)\b", text, re.MULTILINE | re.IGNORECASE)
    assert fences == ["```python"] * len(fences)


@every_document
def test_every_link_inside_the_project_leads_somewhere(path):
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)|<img[^>]*src=\"([^\"]+)\"", path.read_text())
    local = [a or b for a, b in targets if not re.match(r"[a-z]+:", a or b)]
    assert [target for target in local if not (path.parent / target).exists()] == []


# ---- the commands and the version ------------------------------------------------------------------------------------

SET_UP = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/"


def test_the_first_two_commands_of_the_readme():
    commands = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert [command.strip() for command in commands[:2]] == [SET_UP + "python examples/digits.py", SET_UP + "pytest"]


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "docs/changelog.md").read_text(), re.MULTILINE)
    assert versions[0] == funcnn.__version__
    assert versions == sorted(versions, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


# ---- the table of parity ---------------------------------------------------------------------------------------------

PARITY = runpy.run_path(str(ROOT / "docs" / "parity.py"))


def test_the_table_of_parity_is_the_one_that_its_list_makes():
    assert (ROOT / "docs" / "parity.md").read_text(encoding="utf-8") == PARITY["page"]()


@pytest.mark.parametrize("library", PARITY["TABLES"])
def test_the_table_of_parity_names_what_is_there(library):
    for there, here in PARITY["TABLES"][library].items():
        assert there
        named = re.findall(rf"\b({'|'.join(PARITY['MODULES'])})\.(\w+)", here)
        for module, name in named:
            assert hasattr(getattr(funcnn, module), name), f"{module}.{name}"
        assert named or len(here) > 20, f"{there} has neither a name nor a reason"
    listed = {
        name
        for table in PARITY["TABLES"].values()
        for here in table.values()
        for name in re.findall(r"layers\.(\w+)", here)
    }
    ours_alone = {
        *("absolute", "square", "squareplus", "sin", "cos", "stochastic_depth", "swiglu", "geglu", "learned_positions"),
        *("named", "with_initializers", "merged"),
    }
    assert not listed & ours_alone
    assert listed | ours_alone == set(funcnn.layers.__all__)


# ---- the reference ---------------------------------------------------------------------------------------------------

REFERENCE = runpy.run_path(str(ROOT / "docs" / "reference.py"))


def test_the_reference_is_what_the_source_says():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == REFERENCE["page"](), "write it anew: python docs/reference.py"


@pytest.mark.parametrize("home", REFERENCE["MODULES"])
def test_the_reference_has_every_public_name_with_a_sentence(home):
    entries = re.findall(rf"^- `{home}\.(\w+)(.*?)`: (.*)$", REFERENCE["page"](), re.MULTILINE)
    names = [name for name, _, _ in entries]
    module = getattr(funcnn, home)
    values = {name: getattr(module, name) for name in names}
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == f"funcnn.{home}"
    }
    assert len(set(names)) == len(names)
    assert set(getattr(module, "__all__", own)) <= set(names)
    for name, given, sentence in entries:
        assert sentence.endswith("."), f"{name} has no sentence: {sentence!r}"
        if inspect.isfunction(values[name]):
            taken = ast.parse(f"def {name}{given}: ...").body[0].args
            found = [*taken.args, taken.vararg, *taken.kwonlyargs, taken.kwarg]
            assert [a.arg for a in found if a] == list(inspect.signature(values[name]).parameters), name
        if isinstance(values[name], funcnn.core.Layer):
            assert not given, name


@every_document
def test_every_printed_line_is_shown(path):
    """A block that prints, and is not followed by what it prints, is checked by nobody."""
    parts = re.findall(r"^```python\n(.*?)^```\n+(```text\n)?", path.read_text(), re.DOTALL | re.MULTILINE)
    assert [code for code, shown in parts if re.search(r"^\s*print\(", code, re.MULTILINE) and not shown] == []


def test_the_picture_of_the_readme_is_that_of_its_code():
    """And what is said below it: 64 inputs, a hidden layer, 10 classes; 1,438 digits in batches."""
    make = runpy.run_path(str(ROOT / "docs" / "pictures" / "make.py"))
    drawn = (ROOT / "docs" / "pictures" / "run.svg").read_text(encoding="utf-8")
    assert f"<!-- Source {make['mark']()} -->" in drawn, "python docs/pictures/make.py"
    width, steps = make["WIDTH"], make["EPOCHS"] * math.ceil(1438 / make["BATCH"])
    weights = 64 * width + width + width * 10 + 10
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{make['MEMBERS']} networks of {weights:,} weights learn to read digits for {steps} steps" in text
