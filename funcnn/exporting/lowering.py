"""What is exported: programs for several platforms, of trees that are known wherever JAX is."""

import re
from collections.abc import Callable
from typing import Any

import jax
from jax import export

from funcnn import checks, trees
from funcnn.core import Tree, shown

# What the device of each platform is called while a program for it is traced.
DEVICES = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}
"""The platforms that ``jax.export`` knows."""


def expect_flatbuffers(where: str) -> None:
    """Raise an ``ImportError`` unless there is what ``jax.export`` writes and reads with."""
    checks.expect_package(where, "flatbuffers", "flatbuffers, with which jax.export writes and reads", "exporting")


def plain(tree: Any) -> Any:
    """The same tree of dicts, tuples and lists; the paths stay what they are."""
    if isinstance(tree, dict):
        return {str(name): plain(value) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        names: Any = getattr(tree, "_fields")  # noqa: B009  # pyright knows no fields of any tuple
        return {name: plain(value) for name, value in zip(names, tree, strict=True)}
    if isinstance(tree, (tuple, list)):
        return (tuple if isinstance(tree, tuple) else list)([plain(value) for value in tree])
    if tree is None or jax.tree_util.all_leaves([tree]):
        return tree
    return trees.nested(trees.select(tree, "**")) if jax.tree.leaves(tree) else {}


def lowered(where: str, function: Callable[..., Any], platforms: tuple[str, ...], *specs: Any) -> list[export.Exported]:
    """The function as a program for these platforms, or as several, where what is fast differs."""
    try:
        forms = _forms(function, platforms, specs)
        return [export.export(jax.jit(form), platforms=names)(*specs) for form, names in forms]
    except Exception as error:
        expected, got = f"a program that jax.export takes for {', '.join(platforms)}", first_line(error)
        fix = "leave out what calls Python, or the platform that lacks an operation"
        raise ValueError(f"{where}: expected {expected}, got {got}; {fix}") from error


def first_line(error: BaseException) -> str:
    """The kind of an error and the beginning of its message; JAX's are long."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _forms(
    function: Callable[..., Any], platforms: tuple[str, ...], specs: tuple[Any, ...]
) -> list[tuple[Callable[..., Any], list[str]]]:
    """The forms in which the function is traced, each with the platforms for which it is."""
    forms: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for platform in platforms:
        form = _traced_for(DEVICES[platform], function)
        text = re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(form)(*specs)))  # without the addresses of functions
        forms.setdefault(text, (form, []))[1].append(platform)
    return list(forms.values())


def _traced_for(device: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is traced for a kind of device, which need not be here: ``primitives`` asks for it."""

    def traced(*arguments: Any) -> Any:
        with jax.default_device(device):
            return function(*arguments)

    return traced


def returned(program: export.Exported, kind: str) -> Any:
    """What a program gives, as shapes and dtypes."""
    tree = jax.tree.unflatten(program.out_tree, program.out_avals)
    return {"y": tree} if kind == "model" else tree


def words(tree: Tree) -> dict[str, str]:
    """Dtype and shape of each leaf, by path: ``{"x": "float32 (batch, 64)"}``."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    return {name: f"{leaf.dtype} {shown(leaf)}" for name, leaf in named.items()}
