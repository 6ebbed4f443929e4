"""What the five projects had or promised is here: each place on the page exists, and is run by the tests."""

import importlib
import re
import runpy
from pathlib import Path

import pytest
from catalogue import LAYERS
from test_documents import DOCUMENTS
from test_examples import CLAIMS

ROOT = Path(__file__).parent.parent
MADE = runpy.run_path(str(ROOT / "docs" / "origins.py"))
ROWS = [
    (title, there, place)
    for title, (_, _, rows) in MADE["PROJECTS"].items()
    for there, here in rows.items()
    for place in here
]
PAGES = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
FACTORIES = {row.factory for row in LAYERS}  # which the laws are about
CODE = "\n".join(
    "\n".join(re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
    for path in DOCUMENTS
)
EXECUTED = PAGES | {f"examples/{name}" for name in CLAIMS}


def test_the_page_is_the_one_that_its_list_makes():
    assert (ROOT / "docs" / "origins.md").read_text(encoding="utf-8") == MADE["page"]()


def test_there_are_five_projects_and_nothing_without_a_place():
    assert len(MADE["PROJECTS"]) == 5
    assert all(here for _, _, rows in MADE["PROJECTS"].values() for here in rows.values())


@pytest.mark.parametrize("place", sorted({place for *_, place in ROWS}))
def test_each_place_is_there_and_is_run(place):
    """A page or an example is executed; a name has an example, is in the catalogue, or stands on such a page."""
    if place.startswith("tests/"):
        assert "\ndef test_" in (ROOT / place).read_text(encoding="utf-8")
        return
    if "/" in place:
        assert place in EXECUTED
        return
    home, name = place.split(".")
    found = getattr(importlib.import_module("optax" if home == "optax" else f"funcnn.{home}"), name)
    example = home != "optax" and re.search(rf"^ *>>> (?!.*\+SKIP).*\b{name}\b", found.__doc__ or "", re.MULTILINE)
    assert example or name in FACTORIES or re.search(rf"\b{home}\.{name}\b", CODE)
