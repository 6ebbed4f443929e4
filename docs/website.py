"""Writes the site: all pages of docs/, the documentation of every public name, the examples and what links lead to.

python docs/website.py            into site/
python docs/website.py FOLDER     elsewhere

Needs no network. What Sphinx warns of, and a link that leads nowhere, is an error.
"""

import ast
import importlib
import inspect
import io
import os
import pathlib
import re
import runpy
import shutil
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
REFERENCE = runpy.run_path(str(HERE / "reference.py"))

_LINK = re.compile(r"^```.*?^```$|`[^`\n]+`|\]\((?!https?:|mailto:|#)([^)#\s]+)([^)\s]*)\)", re.MULTILINE | re.DOTALL)
_ONE_LINE = re.compile(r"^(Formula|Shapes|Params|Reference|Source): ")

GUIDES = ("coming_from", "recipes", "sweeps", "streams", "checkpoints", "exporting", "graphs", "summaries", "gallery")
TIMES = (
    "performance",
    "product_times",
    "convolution_times",
    "tiny_loop_times",
    "start_times",
    "deep_start_times",
    "scan_times",
    "sweep_times",
    "size_times",
    "stream_times",
    "checkpoint_times",
)
ABOUT = ("design", "adding_a_layer", "parity", "origins", "changelog")

OPTIONS = {
    "project": "funcnn",
    "html_title": "funcnn",
    "extensions": ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"],
    "html_theme": "furo",
    "html_static_path": [str(HERE / "site.css")],
    "html_favicon": str(HERE / "site.svg"),
    "html_css_files": ["site.css"],
    "html_show_copyright": False,
    "html_show_sourcelink": False,
    "myst_heading_anchors": 4,
    "autodoc_member_order": "bysource",
    "autodoc_preserve_defaults": True,
    "python_maximum_signature_line_length": 90,
    "napoleon_use_rtype": False,
    "copybutton_prompt_text": r">>> |\.\.\. |\$ ",
    "copybutton_prompt_is_regexp": True,
    "pygments_style": "friendly",
    "html_theme_options": {"navigation_with_keys": True},
}


# ---- pages -----------------------------------------------------------------------------------------------------------


def staged(folder: pathlib.Path) -> None:
    """Put the sources of all pages into a folder, with links that lead to one another."""
    linked = set[pathlib.Path]()
    pages = {ROOT / "README.md": folder / "readme.md"}
    pages |= {path: folder / path.relative_to(HERE) for path in sorted(HERE.glob("**/*.md"))}
    for path, place in pages.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(relinked(path, place, folder, linked), encoding="utf-8")
    for pictures in (HERE / "pictures", HERE / "course" / "pictures"):
        shutil.copytree(pictures, folder / pictures.relative_to(HERE))
    shutil.copytree(HERE / "notebooks", folder / "notebooks")
    linked |= set((ROOT / "examples").glob("*.py"))
    written_api(folder / "api", linked)
    for path in sorted(linked):
        place = folder / of_source(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(listing(path), encoding="utf-8")
    add_contents(folder)


def relinked(path: pathlib.Path, place: pathlib.Path, folder: pathlib.Path, linked: set[pathlib.Path]) -> str:
    """The text of a page, its links rewritten from files of the repository to pages of the site."""

    def leading(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]  # code
        target = (path.parent / found[1]).resolve()
        return f"]({relative(on_site(target, folder, linked), place)}{found[2]})"

    return _LINK.sub(leading, path.read_text(encoding="utf-8"))


def on_site(target: pathlib.Path, folder: pathlib.Path, linked: set[pathlib.Path]) -> pathlib.Path:
    """Where a file or a folder of the repository is among the sources of the site."""
    if target == ROOT / "README.md":
        return folder / "readme.md"
    if target == ROOT / "examples":
        return folder / "examples.md"
    if target == HERE / "notebooks":
        return folder / "notebooks.md"
    if target.is_relative_to(HERE) and target.suffix not in (".py", ""):
        return folder / target.relative_to(HERE)
    if not target.is_file():
        raise FileNotFoundError(f"{target} is no file, and no folder that is a page of the site")
    linked.add(target)
    return folder / of_source(target)


def of_source(path: pathlib.Path) -> pathlib.Path:
    """The page that shows a file of the repository."""
    return pathlib.Path("source") / path.relative_to(ROOT).with_suffix(path.suffix + ".md")


def relative(target: pathlib.Path, place: pathlib.Path) -> str:
    """A link from one page to another."""
    return pathlib.PurePath(os.path.relpath(target, place.parent)).as_posix()


def listing(path: pathlib.Path) -> str:
    """A file of the repository as a page."""
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    language = {".py": "python", ".csv": "text", ".txt": "text", ".md": "markdown"}.get(path.suffix, "sh")
    return f"---\norphan: true\n---\n\n# {name}\n\n`````{{code-block}} {language}\n{text}\n`````\n"


# ---- the documentation of every public name --------------------------------------------------------------------------


def written_api(folder: pathlib.Path, linked: set[pathlib.Path]) -> None:
    """A page for each public module, in reStructuredText, which is what docstrings are written in."""
    folder.mkdir()
    for home in REFERENCE["MODULES"]:
        parts = [heading(home, "="), f".. automodule:: funcnn.{home}\n"]
        path = REFERENCE["SOURCE"] / f"{home}.py"
        if path.exists():
            parts += documented(home, path, None)
            linked.add(path)
        else:
            for node in REFERENCE["parsed"](path.with_suffix("") / "__init__.py").body:
                if isinstance(node, ast.ImportFrom):
                    inner = REFERENCE["SOURCE"].joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
                    linked.add(inner)
                    parts += section(home, str(node.module), inner, {alias.name for alias in node.names})
        (folder / f"{home}.rst").write_text("\n".join(parts), encoding="utf-8")


def section(home: str, module: str, path: pathlib.Path, public: set[str]) -> list[str]:
    """What a package takes from one of its modules."""
    title = REFERENCE["said"](ast.get_docstring(REFERENCE["parsed"](path))).rstrip(".").replace("`", "")
    source = path.relative_to(ROOT).as_posix()
    link = f":doc:`{source} </source/{source}>`\n"
    return [heading(title, "-"), f".. automodule:: {module}\n", link, *documented(home, path, public)]


def documented(home: str, path: pathlib.Path, public: set[str] | None) -> list[str]:
    """The directives for the names of a module, under their public path."""
    tree = REFERENCE["parsed"](path)
    known, module, parts = REFERENCE["described"](tree), importlib.import_module(f"funcnn.{home}"), list[str]()
    for name in REFERENCE["names"](tree):
        if public is not None and name not in public:
            continue
        found = getattr(module, name)
        if inspect.isclass(found):
            parts.append(f".. autoclass:: funcnn.{home}.{name}\n   :members:\n")
        elif inspect.isroutine(found):
            parts.append(f".. autofunction:: funcnn.{home}.{name}\n")
        else:
            said = known[name][1].replace("`", "``")
            parts.append(f".. py:data:: {name}\n   :module: funcnn.{home}\n\n   {said}\n")
    return parts


def heading(title: str, under: str) -> str:
    """A heading in reStructuredText."""
    return f"{title}\n{under * len(title)}\n"


def marked(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before a docstring is read: a title is not said twice, and the words that begin a line of their own are bold."""
    del app, obj, options
    if what == "module" and name.count(".") > 1:  # under a heading that is its first sentence
        end = lines.index("") if "" in lines else len(lines)
        paragraph = " ".join(lines[:end])
        if REFERENCE["said"](paragraph) == paragraph.replace("``", "`"):
            del lines[: end + 1]
    lines[:] = [_ONE_LINE.sub(r"**\1:** ", line) for line in lines]


# ---- contents --------------------------------------------------------------------------------------------------------


def add_contents(folder: pathlib.Path) -> None:
    """The pages in their order, at the side of every page; the examples and the notebooks on pages of their own."""
    chapters = sorted(path.stem for path in (folder / "course").glob("[0-9][0-9]_*.md"))
    examples = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
    lines = [f"- [{name}](source/examples/{name}.md): {summary(ROOT / 'examples' / name)}" for name in examples]
    (folder / "examples.md").write_text("# Examples\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    names = sorted(path.name for path in (folder / "notebooks").glob("*.ipynb"))
    lines = [f"- [{name}](notebooks/{name})" for name in names]
    said = "The course and four examples as Jupyter notebooks, to download and to execute.\n"
    (folder / "notebooks.md").write_text("\n".join(["# Notebooks", "", said, *lines]) + "\n", encoding="utf-8")
    for name in chapters:
        append(folder / "course" / f"{name}.md", f"[This chapter as a notebook](../notebooks/{name}.ipynb)\n")
    append(folder / "course" / "README.md", contents("", chapters))
    api = [f"api/{home}" for home in REFERENCE["MODULES"]]
    append(
        folder / "index.md",
        contents("Begin", ["The first five minutes <readme>", "The course <course/README>", "examples", "notebooks"])
        + contents("Guides", GUIDES)
        + contents("Every name", ["reference", *api])
        + contents("Times", TIMES)
        + contents("About", ABOUT),
    )


def summary(path: pathlib.Path) -> str:
    """The first sentence of what a file says of itself."""
    return REFERENCE["said"](ast.get_docstring(REFERENCE["parsed"](path)))


def contents(caption: str, names: Any) -> str:
    """A part of the contents at the side of every page."""
    options = f":caption: {caption}\n:hidden:\n" if caption else ":hidden:\n"
    return f"\n```{{toctree}}\n{options}\n" + "\n".join(names) + "\n```\n"


def append(path: pathlib.Path, text: str) -> None:
    """Add a paragraph to a page."""
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + text, encoding="utf-8")


# ---- the whole -------------------------------------------------------------------------------------------------------


def built(target: pathlib.Path) -> str:
    """Write the site into a folder; what was wrong, in a text that is empty where nothing was."""
    from sphinx.application import Sphinx

    warned = io.StringIO()
    with tempfile.TemporaryDirectory() as place:
        sources = pathlib.Path(place) / "sources"
        sources.mkdir()
        staged(sources)
        trees = pathlib.Path(place) / "trees"
        app = Sphinx(sources, None, target, trees, "html", OPTIONS, status=None, warning=warned, freshenv=True)
        app.connect("autodoc-process-docstring", marked, priority=900)
        app.build()
    return re.sub(r"\x1b\[[\d;]*m", "", warned.getvalue()).replace(str(sources), "").strip()


def main() -> None:
    """Write the site, or say what is wrong with it."""
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").resolve()
    if target.exists() and not (target / ".buildinfo").exists() and not (target.is_dir() and not any(target.iterdir())):
        sys.exit(f"expected a folder that is empty or holds the site, got {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".site-") as folder:
        made = pathlib.Path(folder) / "site"
        wrong = built(made)
        if wrong:  # what was there before stays
            sys.exit(wrong)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    print(f"{len(list(target.glob('**/*.html')))} pages in {target}")


if __name__ == "__main__":
    main()
