"""One saved step on the disk: arrays by Orbax, and a manifest of what all of it comes to.

Orbax does not notice when bits have changed on the disk. So a manifest names every file with its size and SHA-256, and
every array with its path, dtype, shape and SHA-256, and has a SHA-256 itself. No file is given to Orbax before it has
been compared. That is against damage, not against malice: who changes a file on purpose can change the manifest with
it. Nothing in a file is ever executed.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from funcnn import checks, disk
from funcnn.checkpoints.manifests import MANIFEST, dtype_of, fail, manifest_of, write_manifest

_ARRAYS = "arrays"
# What an array takes on a disk beside its numbers: two files and four folders, in blocks, and a line of the manifest.
_BESIDE = 2**15
# What is written as it is; all other dtypes as bytes, with an axis more.
_PLAIN = frozenset(
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
    ]
)


# Orbax in two threads of a process: one deletes what the other is about to move.
_one_at_a_time = threading.Lock()


class Stored(NamedTuple):
    """What a step holds: the manifest, and the arrays by path."""

    manifest: dict[str, Any]
    leaves: dict[str, Any]


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(folder: str, about: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Write a step into a folder that is not there yet, down to the disk. Who reads looks elsewhere meanwhile."""
    os.mkdir(folder)
    arrays: dict[str, Any] = {}
    described: dict[str, dict[str, Any]] = {}
    for index, (path, leaf) in enumerate(leaves.items()):
        array = np.asarray(np.asarray(leaf), order="C")
        name = f"{index:05d}_{re.sub('[^A-Za-z0-9_-]', '_', path)[-60:]}"
        data = _bytes(array)
        described[path] = {
            "name": name,
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        raw = array.dtype.name not in _PLAIN
        arrays[name] = data.reshape(*array.shape, array.dtype.itemsize) if raw else array
    _expect_room(folder, sum(array.nbytes + _BESIDE for array in arrays.values()))
    with _orbax() as (orbax, context), context:
        orbax.save(os.path.join(folder, _ARRAYS), arrays)
    files = {name: _flushed(os.path.join(folder, name)) for name in _files(folder)}
    write_manifest(folder, about, described, files)
    for place, _, _ in os.walk(folder):
        disk.flush(place)


def _expect_room(folder: str, size: int) -> None:
    """Raise where a disk is full: Orbax says so at length, and in several threads."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(
            errno.ENOSPC, f"no space left on device: about {size:,} bytes are needed, {free:,} are free", folder
        )


def _bytes(array: Any) -> Any:
    """An array as bytes, without a copy."""
    return array.reshape(-1).view(np.uint8)


@contextlib.contextmanager
def _orbax() -> Generator[tuple[Any, Any]]:
    """Orbax, each array in files of its own, so that it is known which one a damaged file belongs to."""
    expect_orbax()
    orbax = imported()
    log = logging.getLogger("absl")
    with _one_at_a_time:
        context = orbax.Context()
        context.array.saving.use_ocdbt = False
        log.addFilter(_is_no_news)
        try:
            yield orbax, context
        finally:
            log.removeFilter(_is_no_news)


def imported() -> Any:
    """Orbax, which takes as long to import as a save takes."""
    from orbax.checkpoint import v1

    return v1


def expect_orbax() -> None:
    """Raise an ``ImportError`` where it is not installed."""
    expected = "the package orbax-checkpoint, which writes the arrays"
    checks.expect_package("checkpoints", "orbax", expected, "checkpoints")


def _is_no_news(record: logging.LogRecord) -> bool:
    """Leave out what Orbax says of every checkpoint of this layout, and of errors that are raised as well."""
    text = record.getMessage()
    expected = "OCDBT" in text or "TensorStore data files not found" in text or "raised an exception" in text
    return not expected


def _files(folder: str) -> Iterator[str]:
    """The names of all files below a folder, relative to it; a link is none of ours."""
    for place, folders, names in os.walk(folder):
        for name in [*names, *folders]:
            path = os.path.join(place, name)
            if os.path.islink(path):
                fail(path, "a file or a folder", "a link")
        for name in names:
            path = os.path.join(place, name)
            if not os.path.isfile(path):
                fail(path, "a file or a folder", "something else")
            relative = os.path.relpath(path, folder).replace(os.sep, "/")
            if relative != MANIFEST:
                yield relative


def _flushed(path: str) -> dict[str, Any]:
    """A file forced to the disk, and what it comes to."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# ---- reading ---------------------------------------------------------------------------------------------------------


def expect_files(folder: str, manifest: Mapping[str, Any]) -> None:
    """Raise unless all files of a step, and no others, are there to the byte."""
    wanted, found = manifest["files"], list(_files(folder))
    names = {about["name"]: path for path, about in manifest["leaves"].items()}
    for name, about in wanted.items():
        leaf = next((names[part] for part in name.split("/") if part in names), None)
        path = os.path.join(folder, name)
        if name not in found:
            fail(path, "a file", "none: it was deleted or renamed", leaf)
        try:
            size = os.path.getsize(path)
            if size != about["bytes"]:
                fail(path, f"{about['bytes']} bytes", f"{size}: the file was cut off or replaced", leaf)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            fail(path, "a file that can be read", str(error), leaf)
        if digest != about["sha256"]:
            fail(path, "the content that its checksum was made of", "another: the file is damaged", leaf)
    for name in found:
        if name not in wanted:
            fail(os.path.join(folder, name), "only files that were saved", "another; move it away")


def read(folder: str) -> Stored:
    """A step as it was saved: every byte of it is compared before it is used."""
    manifest = manifest_of(folder)
    expect_files(folder, manifest)
    described = manifest["leaves"]
    like = {}
    for about in described.values():
        dtype, shape = dtype_of(about["dtype"]), tuple(about["shape"])
        raw = about["dtype"] not in _PLAIN
        like[about["name"]] = _Spec((*shape, dtype.itemsize), np.dtype(np.uint8)) if raw else _Spec(shape, dtype)
    path = os.path.join(folder, _ARRAYS)
    try:
        with _orbax() as (orbax, context), context:
            arrays = orbax.load(path, {name: np.empty(*spec) for name, spec in like.items()})
    except ImportError:
        raise
    except Exception as error:  # whatever it says of it, it cannot be read
        fail(path, "arrays as Orbax writes them", f"what it cannot read ({error})")
    leaves: dict[str, Any] = {}
    for leaf, about in described.items():
        array, spec = arrays[about["name"]], like[about["name"]]
        if array.shape != spec.shape or array.dtype != spec.dtype:
            fail(path, f"{spec.dtype}{spec.shape}", f"{array.dtype}{array.shape}", leaf)
        array = np.asarray(array, order="C")
        if hashlib.sha256(_bytes(array)).hexdigest() != about["sha256"]:
            fail(path, "the numbers that were saved", "others", leaf)
        raw = about["dtype"] not in _PLAIN
        leaves[leaf] = _bytes(array).view(dtype_of(about["dtype"])).reshape(about["shape"]) if raw else array
    return Stored(manifest, leaves)


class _Spec(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any
