"""The form of the files: two lines of JSON, then arrays and programs, one after another.

The first line has the checksum of all that follows, and can only be one text: no bit is without a guard. The second is
the header: ``kind``, ``card``, ``arguments``, ``takes``, ``returns``, ``versions``; ``arrays`` by path, each with
``dtype``, ``shape``, ``offset`` and, where it is a key, ``key``; ``programs``, each with ``platforms``, ``offset`` and
``size``. Offsets count from the end of the second line.
"""

import hashlib
import json
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks, disk
from funcnn.core import Tree

_FORMAT = "funcnn export 1"
# What JSON raises that ``write`` has not made.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class ExportError(ValueError):
    """A file that is damaged, no export, or one that this version of JAX cannot run; ``path`` is where it is."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


class Content(NamedTuple):
    """What is in a file whose checksum is right."""

    header: dict[str, Any]
    arrays: dict[str, Any]  # by path, in NumPy, of keys the data
    programs: list[bytearray]
    sha256: str  # of the whole file


class Stored(NamedTuple):
    """The arrays of a tree as they are stored, what the header says of them, and how they are a tree again."""

    arrays: dict[str, Any]
    header: dict[str, Any]
    restored: Callable[[Mapping[str, Any]], Tree]


def fail(path: str, expected: str, got: str, fix: str = "take another copy of the file") -> NoReturn:
    """Raise an ``ExportError`` in the one format."""
    raise ExportError(f"exporting.load: {path}: expected {expected}, got {got}; {fix}", path)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def stored(where: str, tree: Tree) -> Stored:
    """The arrays of a tree by path."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree)
    arrays: dict[str, Any] = {}
    header: dict[str, Any] = {}
    offset = 0
    for path, leaf in pairs:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        array, key = _array(f"{where}: {name}", leaf)
        arrays[name] = array
        header[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "offset": offset, **key}
        offset += array.nbytes

    def restored(weights: Mapping[str, Any]) -> Tree:
        return jax.tree.unflatten(treedef, [with_key(weights[name], about) for name, about in header.items()])

    return Stored(arrays, header, restored)


def with_key(array: Any, about: Mapping[str, Any]) -> Any:
    """An array as it was saved: a key, where the header says that it was one."""
    return jax.random.wrap_key_data(array, impl=about["key"]) if "key" in about else array


def _array(where: str, leaf: Any) -> tuple[Any, dict[str, str]]:
    """A leaf in the dtype in which JAX computes with it, row by row; of a key its data, and its kind."""
    if not hasattr(leaf, "dtype") or isinstance(leaf, jax.ShapeDtypeStruct):
        checks.fail(where, "an array", type(leaf).__name__, "pass trained params", TypeError)
    if not checks.is_concrete(leaf):
        checks.fail(where, "an array", "a tracer", "save outside of jit", TypeError)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf)), {"key": str(jax.random.key_impl(leaf))}
    if not _is_number(leaf.dtype):
        checks.fail(where, "an array of numbers", str(leaf.dtype), "leave it out", TypeError)
    array = np.asarray(leaf)
    dtype = jax.dtypes.canonicalize_dtype(array.dtype.newbyteorder("="))
    return np.asarray(array.astype(dtype, copy=False), order="C"), {}


def _is_number(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    arrays: Sequence[Any],
    programs: Sequence[tuple[Sequence[str], bytes]],
) -> str:
    """Write a file beside its place, and move it there; what ``sha256sum`` says of it."""
    offset = sum(array.nbytes for array in arrays)
    places: list[dict[str, Any]] = []
    for platforms, program in programs:
        places.append({"platforms": list(platforms), "offset": offset, "size": len(program)})
        offset += len(program)
    line = json.dumps({**header, "programs": places}).encode() + b"\n"
    bodies = [array.reshape(-1).view(np.uint8).data for array in arrays if array.size]
    parts = [line, *bodies, *(program for _, program in programs)]
    parts = [_first_line(_sha256(parts)), *parts]
    with disk.beside(os.path.abspath(os.fspath(path))) as place:
        _write(place, parts)
    return _sha256(parts)


def _first_line(digest: str) -> bytes:
    return json.dumps({"format": _FORMAT, "sha256": digest}).encode() + b"\n"


def _sha256(parts: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _write(path: str, parts: Sequence[Any]) -> None:
    """A file of these parts."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(path: str, sha256: str | None) -> Content:
    """What is in a file, its checksum verified before anything is made of it."""
    if os.path.exists(path) and not os.path.isfile(path):
        fail(path, "a file", "a folder or a device", "pass the path of a file")
    form = _first_line("")[: -len('"}\n')]
    with open(path, "rb") as file:
        begin = file.read(len(form))  # before all of it is in memory
        content = begin + file.read() if begin == form else begin
    if begin != form:
        fail(path, "a file of exporting.save_model or save_run", "one that begins otherwise")
    digest = _sha256([content])
    if sha256 is not None and digest != sha256:
        fail(path, f"a file of the SHA-256 {sha256}", digest, "take the file that was meant")
    begin = len(_first_line(digest))
    if content[:begin] != _first_line(_sha256([memoryview(content)[begin:]])):
        fail(path, "the checksum that it holds", "another: the file is damaged")
    try:
        header, end = _header(content, begin)
        body = memoryview(content)[end:]
        arrays, end = _arrays(header["arrays"], body)
        programs = _programs(header["programs"], body, end)
    except _MALFORMED as error:
        fail(path, "a header as save_model and save_run write it", f"one that cannot be read ({error!r})")
    return Content(header, arrays, programs, digest)


def _header(content: bytes, begin: int) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    end = content.index(b"\n", begin) + 1
    header = json.loads(content[begin:end])
    texts = header["card"], *header["versions"].values(), *header["arguments"]
    if header["kind"] not in ("model", "run") or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{header['kind']} of {texts}")
    return header, end


def _arrays(header: Mapping[str, Any], body: memoryview) -> tuple[dict[str, Any], int]:
    """The arrays, which follow one another, and where they end."""
    arrays: dict[str, Any] = {}
    end = 0
    for name, about in header.items():
        dtype, shape = jnp.dtype(about["dtype"]), [operator.index(size) for size in about["shape"]]
        if not _is_number(dtype) or min(shape, default=0) < 0 or about["offset"] != end:
            raise ValueError(f"{name} of {about}")
        arrays[name] = np.ndarray(shape, dtype, body, end)
        end += math.prod(shape) * dtype.itemsize
        with_key(arrays[name], about)  # or raise, if it is none
    return arrays, end


def _programs(header: Sequence[Mapping[str, Any]], body: memoryview, end: int) -> list[bytearray]:
    """The programs, which follow the arrays and one another up to the end of the file."""
    programs: list[bytearray] = []
    for about in header:
        size = operator.index(about["size"])
        if about["offset"] != end or size < 1 or not all(isinstance(name, str) for name in about["platforms"]):
            raise ValueError(f"a program of {about}")
        programs.append(bytearray(body[end : end + size]))
        end += size
    if end != len(body) or not programs:
        raise ValueError(f"{len(programs)} programs up to {end}, and not to {len(body)}")
    return programs
