"""The public surface as equations: what is named is what is there, once, documented and shown in use."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import funcnn

ROOT = Path(funcnn.__file__).parent
# What the layers are built from, not what networks are built from: documented, but without an example for each name.
FOUNDATION = {
    f"funcnn.{name}"
    for name in (
        "bits",
        "checks",
        "core",
        "disk",
        "draws",
        "primitives",
        "small_products",
        "spatial",
        "stacks",
        "targets",
        "trees",
    )
}

MODULES = {name: importlib.import_module(name) for _, name, _ in pkgutil.walk_packages(funcnn.__path__, "funcnn.")}
PACKAGES = {name: module for name, module in MODULES.items() if hasattr(module, "__path__")}
HOMES = {name: module for name, module in MODULES.items() if name.count(".") == 1}  # where users find names


def tree(module):
    return ast.parse(Path(module.__file__).read_text())


def assigned(node):
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def defined(module):
    """The public names that a module defines itself, in the order of its source."""
    names = []
    for node in tree(module).body:
        names += [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else assigned(node)
    return [name for name in names if not name.startswith("_")]


def imported(module):
    nodes = [node for node in tree(module).body if isinstance(node, ast.ImportFrom)]
    return [alias.asname or alias.name for node in nodes for alias in node.names]


def public(module):
    """Name and value of everything that users may take from a module."""
    names = getattr(module, "__all__", None) or (imported(module) if module in PACKAGES.values() else defined(module))
    return {name: getattr(module, name) for name in names}


HOME_NAMES = [(home, name) for home, module in HOMES.items() for name in public(module)]


def test_the_root_names_the_modules_and_the_version_and_nothing_else():
    modules = {module.name for module in pkgutil.iter_modules(funcnn.__path__)}
    assert funcnn.__all__ == sorted(["__version__", *modules])
    assert all(isinstance(getattr(funcnn, name), ModuleType) for name in modules)
    assert {name for name in vars(funcnn) if not name.startswith("_")} == modules


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_names_all_that_it_imports_and_defines_nothing(name):
    package = PACKAGES[name]
    assert package.__all__ == sorted(imported(package))
    assert defined(package) == []
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert {name for name in vars(package) if not name.startswith("_")} == {*package.__all__, *modules}


@pytest.mark.parametrize("name", [name for name in MODULES if name not in PACKAGES])
def test_a_list_of_names_is_sorted_and_complete(name):
    names = getattr(MODULES[name], "__all__", None)
    assert names is None or names == sorted(defined(MODULES[name]))


def test_every_layer_is_reachable():
    reachable = {id(value) for value in public(funcnn.layers).values()}
    for path, module in MODULES.items():
        for name, value in public(module).items() if path.startswith("funcnn.layers.") else ():
            if inspect.isfunction(value) or isinstance(value, funcnn.core.Layer):
                assert id(value) in reachable, f"layers does not name {path}.{name}"


def test_each_name_has_one_import_path():
    paths = {}
    for home, module in HOMES.items():
        for name, value in public(module).items():
            if inspect.isfunction(value) or inspect.isclass(value) or isinstance(value, funcnn.core.Layer):
                paths.setdefault(id(value), []).append(f"{home}.{name}")
    assert [found for found in paths.values() if len(found) > 1] == []


def test_no_name_shadows_a_module():
    for name, module in MODULES.items():
        stem = name.rpartition(".")[2]
        assert stem not in public(module), name
        package = MODULES.get(name.rpartition(".")[0], funcnn)
        assert getattr(package, stem) is module, f"{name} is hidden by what its package imports"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    assert (MODULES[name].__doc__ or "").strip()


@pytest.mark.parametrize("name", [name for name in MODULES if name not in PACKAGES])
def test_every_public_name_is_documented(name):
    """A function or class by its docstring; a value by a string after it, or by its row in the module's docstring."""
    module = MODULES[name]
    body = tree(module).body
    for i, node in enumerate(body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
        for value in assigned(node):
            described = i + 1 < len(body) and isinstance(body[i + 1], ast.Expr)
            aliased = isinstance(getattr(node, "value", None), (ast.Subscript, ast.BinOp))  # a type under a short name
            named = f"``{value}``" in (module.__doc__ or "")
            assert value.startswith("_") or described or aliased or named or value == "__all__", value


@pytest.mark.parametrize(("home", "name"), [pair for pair in HOME_NAMES if pair[0] not in FOUNDATION])
def test_every_public_function_shows_its_use(home, name):
    value = getattr(HOMES[home], name)
    if inspect.isfunction(value):
        assert "Example:" in (value.__doc__ or ""), f"{home}.{name} has no Example"
        assert ">>> " in value.__doc__, f"the Example of {home}.{name} is not run"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_misspelt_option_is_never_swallowed(path):
    found = [
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.args.kwarg is not None
    ]
    # Layer.__call__ takes everything, to explain that a layer is not called; an update hands on what Optax passes;
    # network takes its children by name; a listener is handed what JAX has to say of an event.
    allowed = {
        ROOT / "core.py": ["__call__"],
        ROOT / "training" / "caching.py": ["_noticed", "_written"],
        ROOT / "training" / "optimizers.py": ["update", "update"],
        ROOT / "layers" / "networks.py": ["network"],
    }
    assert found == allowed.get(path, [])
