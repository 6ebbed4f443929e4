"""Writes docs/notebooks/: the chapters of the course and four examples as Jupyter notebooks, from the same sources.

``python docs/notebooks.py`` writes them, without outputs; the tests hold that they are written, and execute them.
"""

import ast
import json
import os
import pathlib
import re
import textwrap

HERE = pathlib.Path(__file__).parent
NOTEBOOKS = HERE / "notebooks"
COURSE, EXAMPLES = HERE / "course", HERE.parent / "examples"
TAKEN = ("xor", "moons", "random_search", "optimizers")
"""The examples that are notebooks as well: those that end with something to look at, in seconds."""

ANSWERS = "### Answers"
FOLDED = {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
"""What is said of a cell whose code is shown on a click."""

_BLOCK = re.compile(r"^```(python|text|sh)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"^!\[[^\]]*\]\(pictures/[^)]*\)\n", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]*)")

Cell = tuple[str, str]  # "markdown" or "code", and what is in it


def notebooks() -> dict[pathlib.Path, str]:
    """The path of every notebook, and what is in it."""
    chapters = {f"{path.stem}.ipynb": chapter(path) for path in sorted(COURSE.glob("[0-9][0-9]_*.md"))}
    examples = {f"{name}.ipynb": example(EXAMPLES / f"{name}.py") for name in TAKEN}
    return {NOTEBOOKS / name: written(cells) for name, cells in (chapters | examples).items()}


# ---- a chapter -------------------------------------------------------------------------------------------------------


def chapter(path: pathlib.Path) -> list[Cell]:
    """Its prose and its code. What it prints and draws is left out, for that appears where a cell is executed."""
    text, cells, at = path.read_text(encoding="utf-8"), list[Cell](), 0
    for block in _BLOCK.finditer(text):
        cells.append(("markdown", prose(text[at : block.start()], path)))
        at = block.end()
        if block[1] == "python":
            cells.append(("code", shown(block[2])))
        elif block[1] == "sh":
            cells.append(("markdown", block[0]))
    cells.append(("markdown", prose(text[at:], path)))
    return [(kind, inside.strip("\n")) for kind, inside in cells if inside.strip()]


def shown(code: str) -> str:
    """What pyplot draws is shown in any case; another figure where it is the last thing in a cell."""
    is_last = re.search(r"^figure\.savefig\(.*\)\n\Z", code, re.MULTILINE)
    return f"{code}figure\n" if is_last and "plt." not in code else code


def prose(text: str, path: pathlib.Path) -> str:
    """Markdown as it reads in a notebook: lines are not cut, links lead to notebooks, answers have a heading."""
    text = _PICTURE.sub("", text).replace("<details><summary>Answers</summary>\n", f"{ANSWERS}\n")
    return _LINK.sub(lambda link: f"]({leading(link[1], path)}", text.replace("</details>\n", ""))


def leading(target: str, path: pathlib.Path) -> str:
    """A link from a notebook to what a page links to."""
    found = (path.parent / target).resolve()
    if found.parent == COURSE.resolve() and found.suffix == ".md" and found.stem != "README":
        return f"{found.stem}.ipynb"
    return pathlib.PurePath(os.path.relpath(found, NOTEBOOKS.resolve())).as_posix()


# ---- an example ------------------------------------------------------------------------------------------------------


def example(path: pathlib.Path) -> list[Cell]:
    """Its docstring, what it defines, and the lines of its ``main``, paragraph by paragraph."""
    source = path.read_text(encoding="utf-8")
    module, lines = ast.parse(source), source.splitlines()
    title, _, rest = (ast.get_docstring(module) or "").partition("\n\n")
    cells: list[Cell] = [("markdown", f"# {title.rstrip('.')}\n\n{rest}".strip().replace("``", "`"))]
    main = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    first = module.body[0].end_lineno or 0
    cells += [("code", part) for part in re.split(r"\n{3,}", "\n".join(lines[first : main.lineno - 1]).strip("\n"))]
    body = textwrap.dedent("\n".join(lines[main.lineno : main.end_lineno]))
    return cells + [("code", part) for part in re.split(r"\n{2,}(?=\S)", body)]


# ---- the format ------------------------------------------------------------------------------------------------------


def written(cells: list[Cell]) -> str:
    """A notebook of these cells, in the format of Jupyter, 4.5; the code of answers is folded away."""
    made, is_answer = [], False
    for i, (kind, text) in enumerate(cells):
        is_answer = is_answer or (kind == "markdown" and ANSWERS in text)
        settings = FOLDED if is_answer and kind == "code" else {}
        cell = {"cell_type": kind, "id": f"cell-{i}", "metadata": settings, "source": text.splitlines(keepends=True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all of them, and remove what is none of them."""
    NOTEBOOKS.mkdir(exist_ok=True)
    made = notebooks()
    for path in set(NOTEBOOKS.glob("*.ipynb")) - set(made):
        path.unlink()
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(made)} notebooks in {NOTEBOOKS.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
