"""Writes docs/reference.md: every public name with its arguments and the first sentence of what is said about it.

``python docs/reference.py`` writes the page; the tests hold that it is written. Everything is read from the source,
nothing is imported.
"""

import ast
import pathlib
import re

PAGE = pathlib.Path(__file__).with_name("reference.md")
SOURCE = PAGE.parent.parent / "funcnn"

# What networks are built from, and then what layers are built from.
MODULES = (
    *("layers", "models", "losses", "metrics", "penalties", "training", "data", "trees", "weights"),
    *("checkpoints", "exporting", "inspection", "plotting", "core"),
)

HEAD = """# Every name

With its arguments and the first sentence of its documentation; `help(layers.dense)` shows the rest: formula, shapes,
params, errors and an example. A name with arguments is called, one without is a value. `python docs/reference.py`
writes this page from the source; a test checks that it is up to date.
"""


def page() -> str:
    """The page as text."""
    places = ", ".join(f"[{name}](#{name})" for name in MODULES)
    return "\n".join([f"{HEAD}\n{places}", *(section for name in MODULES for section in sections(name))]) + "\n"


def sections(name: str) -> list[str]:
    """What stands under a public module: its names, or, of a package, its modules with theirs."""
    if (SOURCE / f"{name}.py").exists():
        module = parsed(SOURCE / f"{name}.py")
        return [f"\n## {name}\n\n{said(ast.get_docstring(module))}\n", *entries(name, module, names(module))]
    package = parsed(SOURCE / name / "__init__.py")
    lines = [f"\n## {name}\n\n{said(ast.get_docstring(package))}"]
    for node in package.body:
        if isinstance(node, ast.ImportFrom):
            path = SOURCE.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
            module, public = parsed(path), {alias.name for alias in node.names}
            link = f"[{path.stem}.py](../{path.relative_to(SOURCE.parent).as_posix()})"
            lines.append(f"\n### {said(ast.get_docstring(module)).rstrip('.')}\n\n{link}\n")
            lines += entries(name, module, [known for known in names(module) if known in public])
    return lines


def parsed(path: pathlib.Path) -> ast.Module:
    """The syntax of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def names(module: ast.Module) -> list[str]:
    """The public names that a module defines, in the order of its source."""
    return [name for name in described(module) if not name.startswith("_")]


def entries(home: str, module: ast.Module, chosen: list[str]) -> list[str]:
    """One line for each of the names."""
    known = described(module)
    return [f"- `{home}.{name}{known[name][0]}`: {known[name][1]}" for name in chosen]


def described(module: ast.Module) -> dict[str, tuple[str, str]]:
    """The arguments and the sentence of each function, class and value of a module."""
    found: dict[str, tuple[str, str]] = {}
    # A class that is made and a function that is called look alike here: name(arguments).
    for node, after in zip(module.body, [*module.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = f"({arguments(node.args)})", said(ast.get_docstring(node))
        elif isinstance(node, ast.ClassDef):
            found[node.name] = f"({fields(node)})", said(ast.get_docstring(node))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, text = node.targets[0].id, ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = said(str(after.value.value))
            if name != "__all__":
                found[name] = "", text or row(name, ast.get_docstring(module) or "")
    return {name: entry for name, entry in found.items() if entry[1]}


def arguments(given: ast.arguments) -> str:
    """Names and defaults, without types."""
    for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
        if argument is not None:
            argument.annotation = None
    return re.sub(r"=_\w+", "=...", ast.unparse(given))  # a default that has no public name


def fields(node: ast.ClassDef) -> str:
    """What a record is made of, or the arguments of any other class."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return arguments(inner.args).removeprefix("self, ")
    made = [inner for inner in node.body if isinstance(inner, ast.AnnAssign)]
    return ", ".join(ast.unparse(a.target) + (f"={ast.unparse(a.value)}" if a.value else "") for a in made)


def said(text: str | None) -> str:
    """The first sentence, with code as Markdown marks it."""
    paragraph = " ".join((text or "").strip().partition("\n\n")[0].split())
    sentence = re.match(r".*?\.(?=\s|$)", paragraph)
    return (sentence.group() if sentence else paragraph).replace("``", "`")


def row(name: str, table: str) -> str:
    """What a table in the docstring of the module says of a name: its formula, and where it is from."""
    for line in table.splitlines():
        of, *rest = re.split(r" {2,}|(?<=``) (?=``)", line.strip())
        if f"``{name}``" in of.split(", ") and len(rest) == 2:
            each, origin = rest[0].split(", "), "as in " + re.sub(r" \[.*\]", "", rest[1])
            # Names in one row: the formulas in their order, or words that are about all of them.
            formula = each[of.split(", ").index(f"``{name}``")] if len(each) == of.count("``") // 2 else rest[0]
            return f"{formula}, {origin}.".replace("``", "`") if "``" in formula else f"{origin}.".replace("``", "`")
    return ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
