"""The manifest of a saved step: what every file and every array of it comes to."""

import hashlib
import json
import operator
import os
import re
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from funcnn import disk

FORMAT = "funcnn checkpoint 1"
"""What the manifest of a step begins with."""
MANIFEST = "manifest.json"
"""Its name."""
# A manifest is some hundred bytes for each array.
_MOST = 2**28


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or none; ``path`` is the file, ``leaf`` the array, where it is known."""

    def __init__(self, message: str, path: str, leaf: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.leaf = leaf


def fail(path: str, expected: str, got: str, leaf: str | None = None) -> NoReturn:
    """Raise that a file is not what it should be."""
    place = path if leaf is None else f"{path} ({leaf})"
    raise CheckpointError(f"checkpoints: {place}: expected {expected}, got {got}", path, leaf)


def write_manifest(folder: str, about: Mapping[str, Any], leaves: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Write down what a step holds, with a checksum of all that is said."""
    manifest = {
        "format": FORMAT,
        "time": time.time(),
        "packages": disk.versions_of("funcnn", "jax", "numpy", "orbax-checkpoint"),
        "about": dict(about),
        "leaves": leaves,
        "files": files,
    }
    manifest["sha256"] = _digest(manifest)
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(manifest, file, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _digest(manifest: Mapping[str, Any]) -> str:
    kept = {name: part for name, part in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def manifest_of(folder: str) -> dict[str, Any]:
    """What the manifest of a step says, if it is whole."""
    path = os.path.join(folder, MANIFEST)
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
        fail(path, "a file", "something else")
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST + 1)
    except OSError as error:
        fail(path, "a manifest that can be read", str(error))
    if len(content) > _MOST:
        fail(path, f"at most {_MOST} bytes", "more")
    try:
        manifest = json.loads(content, object_pairs_hook=disk.once, parse_constant=_refuse)
        digest, form = manifest["sha256"], manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        fail(path, "a manifest", f"{len(content)} bytes that are none ({type(error).__name__})")
    if form != FORMAT:
        fail(path, f"the format {FORMAT!r}", repr(form)[:80])
    if digest != _digest(manifest):
        fail(path, "the content that its checksum was made of", "another: the file is damaged")
    try:
        _expect_form(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fail(path, "a manifest as save writes it", f"another ({error!r})")
    return manifest


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no number")


def _expect_form(manifest: Mapping[str, Any]) -> None:
    operator.index(manifest["about"]["step"])
    for about in manifest["leaves"].values():
        size = np.prod([operator.index(n) for n in about["shape"]], dtype=object) * dtype_of(about["dtype"]).itemsize
        if not 0 < size < 2**60 or not isinstance(about["sha256"], str):
            raise ValueError(f"an array of {size} bytes")
        if not re.fullmatch("[A-Za-z0-9_-]+", about["name"]):
            raise ValueError(f"the name {about['name']!r}")
    for about in manifest["files"].values():
        operator.index(about["bytes"])


def dtype_of(name: Any) -> Any:
    """The dtype of this name, those of ``ml_dtypes`` among them."""
    import ml_dtypes

    if not isinstance(name, str):
        raise TypeError(f"{name!r} for a dtype")
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
