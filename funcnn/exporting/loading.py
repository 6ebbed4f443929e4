"""From a file to a function."""

import functools
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from funcnn import checks, primitives, trees
from funcnn.core import Tree, expect_key, spec
from funcnn.exporting.files import fail, read, with_key
from funcnn.exporting.lowering import expect_flatbuffers, first_line, returned, words


@dataclass(frozen=True, eq=False)
class Export:
    """What is in a file, a ``"model"`` or a ``"run"`` by its ``kind``: a function, compiled when it is called.

    ``takes`` and ``returns`` say dtype and shape by path, and ``arguments`` the names of what it is called with.
    ``params`` and ``state`` are those of a model. ``programs`` are what ``jax.export`` gave, by platform, and
    ``functions`` call them.
    """

    path: str
    kind: str
    arguments: tuple[str, ...]
    takes: dict[str, str]
    returns: dict[str, str]
    card: str
    versions: dict[str, str]
    sha256: str
    params: Tree
    state: Tree
    programs: dict[str, export.Exported]
    functions: dict[str, Callable[..., Any]]

    @property
    def platforms(self) -> tuple[str, ...]:
        """Where it runs."""
        return tuple(self.programs)

    def __call__(self, *arguments: Any) -> Any:
        """``y`` of ``x``, for a model; for a run the result, of ``(key, data)`` or ``(key, data, validation)``."""
        where = os.path.basename(self.path)
        here = "cpu" if primitives.platform() == "cpu" else export.default_export_platform()
        if here not in self.programs:
            checks.fail(
                where, f"one of the platforms {', '.join(self.platforms)}", here, "save it for this one as well"
            )
        if len(arguments) != len(self.arguments):
            expected, got = f"the arguments {', '.join(self.arguments)}", f"{len(arguments)} arguments"
            checks.fail(where, expected, got, "pass these, in this order", TypeError)
        given = dict(zip(self.arguments, arguments, strict=True))
        for path, leaf in jax.tree_util.tree_leaves_with_path(given):
            if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                fix = "pass arrays, such as jnp.asarray makes"
                checks.fail(f"{where}: {name}", "an array", type(leaf).__name__, fix, TypeError)
        if "key" in given:
            expect_key(f"{where}: key", given["key"])
        _expect_like(
            where, spec(given), dict(zip(self.arguments, _given(self.programs[here])[-len(given) :], strict=True))
        )
        return self.functions[here](*arguments)

    def __repr__(self) -> str:
        lists = [[f"{path}: {what}" for path, what in part.items()] for part in (self.takes, self.returns)]
        takes, gives = (", ".join([*lines[:4], *["..."][: len(lines) > 4]]) for lines in lists)
        return f"Export({self.kind} for {', '.join(self.platforms)}: {takes} -> {gives})"


def load(path: str | os.PathLike[str], *, sha256: str | None = None) -> Export:
    """Read a model or a training run, after its checksum was found to be right.

    Nothing of it is compiled before it is called, and then once for each shape. It can be called inside ``jit``,
    ``scan`` and ``lax.map``; it has no gradient, and ``vmap`` does not take it.

    Args:
        path: of the file.
        sha256: what the file is known to have, from where it was saved; without it, what it says of itself.

    Raises:
        ExportError: the file is damaged, cut off, of another kind, another than ``sha256`` says, or of a version of JAX
            that this one cannot read.
        ImportError: flatbuffers is missing, ``pip install 'funcnn[exporting]'``.
        OSError: there is no such file, or it may not be read.

    Example:
        >>> import pathlib, tempfile
        >>> from funcnn import exporting, layers
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "a.export"
        ...     _ = exporting.save_model(path, layers.tanh, {}, {}, jax.ShapeDtypeStruct((1, 3), "float32"))
        ...     _ = path.write_bytes(path.read_bytes()[:-1] + b"?")
        ...     exporting.load(path)
        Traceback (most recent call last):
        ...
        funcnn.exporting.files.ExportError: exporting.load: ...: expected the checksum that it holds, got another: ...
    """
    expect_flatbuffers("exporting.load")
    file = os.path.abspath(os.fspath(path))
    content = read(file, sha256)
    header, is_model = content.header, content.header["kind"] == "model"
    programs = [_deserialized(file, program, header["versions"]) for program in content.programs]
    arrays = {name: _as_jax(file, name, array) for name, array in content.arrays.items()}
    for program, place in zip(programs, header["programs"], strict=True):
        _expect_described(file, program, header, place["platforms"], arrays)
    takes = dict(zip(header["arguments"], _given(programs[0])[is_model:], strict=True))
    both = trees.nested({name: with_key(array, header["arrays"][name]) for name, array in arrays.items()})
    compiled = [jax.jit(program.call) for program in programs]
    functions = [functools.partial(function, arrays) for function in compiled] if is_model else compiled
    return Export(
        path=file,
        kind=header["kind"],
        arguments=tuple(takes),
        takes=words(takes),
        returns=words(returned(programs[0], header["kind"])),
        card=header["card"],
        versions=header["versions"],
        sha256=content.sha256,
        params=both.get("params", {}),
        state=both.get("state", {}),
        programs={name: program for program in programs for name in program.platforms},
        functions={name: call for program, call in zip(programs, functions, strict=True) for name in program.platforms},
    )


def _deserialized(path: str, program: bytearray, versions: Mapping[str, str]) -> export.Exported:
    version = versions.get("jax")
    try:
        exported = export.deserialize(program)
        if version != jax.__version__:
            exported.mlir_module()  # whether it can be read would otherwise show when it is called first
    except Exception as error:
        fix = "take the version that wrote it, or a newer one, or save it with this one"
        fail(path, f"a program that jax {jax.__version__} can read", f"one of jax {version} ({first_line(error)})", fix)
    return exported


def _as_jax(path: str, name: str, array: Any) -> Any:
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        fix = "set jax.config.update('jax_enable_x64', True)"
        fail(path, f"{name} of at most 32 bits", str(array.dtype), fix)
    return jnp.asarray(array)


def _expect_described(
    path: str,
    program: export.Exported,
    header: Mapping[str, Any],
    platforms: Sequence[str],
    arrays: Mapping[str, Any],
) -> None:
    """Raise unless a program is for these platforms, and takes what the header says, arrays of the file included."""
    given, names = _given(program), header["arguments"]
    own, rest = (given[0], given[1:]) if header["kind"] == "model" and given else ({}, given)
    if len(rest) != len(names) or words(own) != words(dict(arrays)) or [*program.platforms] != platforms:
        expected = f"a program of {', '.join(names)} and of the arrays in the file, for {', '.join(platforms)}"
        got = f"one of {textwrap.shorten(str(words(given)), 300)} for {', '.join(program.platforms)}"
        fail(path, expected, got)


def _given(program: export.Exported) -> tuple[Any, ...]:
    """What a program takes, as shapes and dtypes."""
    return jax.tree.unflatten(program.in_tree, program.in_avals)[0]


def _expect_like(where: str, given: Tree, wanted: Tree) -> None:
    """Raise unless arguments have the structure, dtypes and shapes that the program takes."""
    found, expected = words(given), words(wanted)
    if jax.tree.structure(given) != jax.tree.structure(wanted):
        a, b = (textwrap.shorten(", ".join(f"{p}: {w}" for p, w in part.items()), 300) for part in (expected, found))
        checks.fail(where, a, b, "pass arrays in the same dicts, tuples and lists")
    batches: set[Any] = set()
    for path, a, b in zip(found, jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        if a.dtype != b.dtype:
            fix = f"convert it: .astype({str(b.dtype)!r})"
            checks.fail(f"{where}: {path}", expected[path], found[path], fix, TypeError)
        free = [axis for axis, size in enumerate(b.shape) if export.is_symbolic_dim(size)]
        fits = [axis in free or size == b.shape[axis] for axis, size in enumerate(a.shape[: b.ndim])]
        if a.ndim != b.ndim or not all(fits):
            checks.fail(f"{where}: {path}", expected[path], found[path], "pass an array of this shape")
        batches |= {a.shape[axis] for axis in free}
    if len(batches) > 1 or 0 in batches:
        got = " and ".join(str(size) for size in sorted(batches))
        checks.fail(where, "one number of examples, from 1 on, in all arrays", got, "give every example a row in each")
