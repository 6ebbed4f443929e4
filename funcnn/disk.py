"""What all that is saved has in common: a file that is there as a whole or not at all, and what wrote it."""

import contextlib
import importlib.metadata
import os
import uuid
from collections.abc import Generator
from typing import Any


@contextlib.contextmanager
def beside(path: str) -> Generator[str]:
    """A path beside this one to write a file to, which is forced to the disk and moved into its place at the end.

    Who reads at the same time finds the old file or the new one; where something is raised, the old one stays, and
    nothing else.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with beside(f"{folder}/a.txt") as place:
    ...         size = pathlib.Path(place).write_text("whole")
    ...     os.listdir(folder)
    ['a.txt']
    """
    place = f"{path}.{uuid.uuid4().hex}.part"
    try:
        yield place
        flush(place)
        os.replace(place, path)
        flush(os.path.dirname(path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(place)
        raise


def flush(path: str) -> None:
    """Force a file or a folder to the disk, so that what was made or moved there is there after a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads(..., object_pairs_hook=once)``: of a name that is there twice, JSON would take the last.

    >>> once([("loss", 1.0), ("loss", 2.0)])
    Traceback (most recent call last):
    ...
    ValueError: a name that is there twice
    """
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name that is there twice")
    return dict(pairs)


def versions_of(*packages: str) -> dict[str, str]:
    """The versions that are installed; ``"unknown"`` for what runs from a folder alone.

    >>> versions_of("none-of-this-name")
    {'none-of-this-name': 'unknown'}
    """
    versions: dict[str, str] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions
