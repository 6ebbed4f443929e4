"""The course: every chapter is built like all the others. They are executed as notebooks, in test_notebooks.py."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

COURSE = Path(__file__).parent.parent / "docs" / "course"
MAKE = runpy.run_path(str(COURSE / "make.py"))
CHAPTERS = MAKE["CHAPTERS"]

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def picture_of(path):
    [picture] = re.findall(r"\]\(pictures/([^)]+)\)", path.read_text())
    return picture


def test_there_are_twenty_two_and_two_more():
    assert [int(path.name[:2]) for path in CHAPTERS] == list(range(1, 25))


@every_chapter
def test_a_chapter_is_short_and_has_all_its_parts(path):
    text = path.read_text()
    prose = re.sub(r"```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 900
    number = int(path.name[:2])
    assert text.startswith(f"# {number}. ")
    assert "## The same in funcnn" in text
    [exercises] = re.findall(r"^## Exercises\n(.*?)<details>", text, re.DOTALL | re.MULTILINE)
    assert re.findall(r"^(\d)\. ", exercises, re.MULTILINE) == ["1", "2", "3"]
    [answers] = re.findall(r"<details><summary>Answers</summary>\n(.*?)</details>", text, re.DOTALL)
    assert "```python" in answers
    assert "```text" in answers
    assert picture_of(path) == f"{path.stem}.png"
    assert (COURSE / "pictures" / f"{path.stem}.png").stat().st_size > 2_000


@every_chapter
def test_a_picture_is_that_of_the_code_above_it(path):
    with Image.open(COURSE / "pictures" / f"{path.stem}.png") as picture:
        assert picture.info.get("Source") == MAKE["mark"](path), f"python docs/course/make.py {path.name[:2]}"


@every_chapter
def test_each_chapter_leads_to_the_next_one(path):
    following = CHAPTERS[CHAPTERS.index(path) + 1 :][:1]
    assert re.findall(r"^Next: \[.*\]\((.*)\)$", path.read_text(), re.MULTILINE) == [other.name for other in following]


def test_the_page_of_contents_has_all_of_them():
    assert re.findall(r"\]\((\d\d_\w+\.md)\)", (COURSE / "README.md").read_text()) == [path.name for path in CHAPTERS]
