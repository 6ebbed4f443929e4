"""Notebooks: written from the pages and the examples, executed as a student would, and fit to be read.

Those of examples are executed in test_examples.py, where it is known what the scripts print.
"""

import base64
import re
import runpy

import nbformat
import pytest
from test_course import COURSE, picture_of

MAKE = runpy.run_path(str(COURSE.parent / "notebooks.py"))
NOTEBOOKS = MAKE["NOTEBOOKS"]
WRITTEN = sorted(NOTEBOOKS.glob("*.ipynb"))
CHAPTERS = [path for path in WRITTEN if path.stem[0].isdigit()]

by_stem = {"ids": lambda path: path.stem}


def printed(cell, stream="stdout"):
    return "".join(output.text for output in cell.outputs if output.get("name") == stream)


def pictures(notebook):
    """The size in bytes of each figure that is shown."""
    shown = [output.data for cell in code_of(notebook) for output in cell.outputs if "data" in output]
    return [len(base64.b64decode(data["image/png"])) for data in shown if "image/png" in data]


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def expected(path):
    """What a page shows under each of its Python blocks; ``None`` where it shows nothing."""
    blocks = re.findall(r"^```python\n.*?^```\n(?:\s*```text\n(.*?)^```)?", path.read_text(), re.DOTALL | re.MULTILINE)
    return [shown.strip() or None for shown in blocks]


def expect_clean(notebook):
    """Nothing on standard error, and no bare representation of an object that nobody asked to see."""
    for cell in code_of(notebook):
        assert printed(cell, "stderr") == "", cell.source
        for output in cell.outputs:
            assert " object at 0x" not in output.get("data", {}).get("text/plain", ""), cell.source


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, **by_stem)
def test_a_chapter_prints_what_its_page_shows_and_draws_its_picture(path, executed_notebook, tmp_path):
    notebook, page = executed_notebook(path, tmp_path), COURSE / f"{path.stem}.md"
    shown = expected(page)
    assert len(shown) == len(code_of(notebook)) > 3
    for cell, text in zip(code_of(notebook), shown, strict=True):
        assert text is None or printed(cell).strip() == text
    expect_clean(notebook)
    assert min(pictures(notebook)) > 2_000  # in the notebook
    assert (tmp_path / picture_of(page)).stat().st_size > 2_000  # and on the page


def test_they_are_written_from_their_sources():
    assert {path: path.read_text() for path in WRITTEN} == MAKE["notebooks"]()


def test_there_is_one_of_every_chapter_and_of_four_examples():
    assert [path.stem for path in CHAPTERS] == [path.stem for path in sorted(COURSE.glob("[0-9]*.md"))]
    assert sorted(path.stem for path in set(WRITTEN) - set(CHAPTERS)) == sorted(MAKE["TAKEN"])


@pytest.mark.parametrize("path", WRITTEN, **by_stem)
def test_a_notebook_is_valid_has_no_outputs_and_links_to_what_is_there(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_of(notebook))
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "```" not in prose.replace("```sh", "").replace("\n```", "")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]*)", prose):
        assert (NOTEBOOKS / target).exists(), target
