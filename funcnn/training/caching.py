"""Compiled programs in a directory, for the next process of the same script: JAX's cache, made safe to rely on."""

import atexit
import contextlib
import hashlib
import importlib
import os
import re
import stat
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from funcnn import checks

# The names of JAX, what we put beside them, and how that ends while it is written.
_PROGRAM, _DIGEST, _PART = re.compile(r".+-[0-9a-f]{64}-cache"), ".sha256", ".part"
_MISS, _COMPILED = "/jax/compilation_cache/cache_misses", "/jax/core/compile/backend_compile_duration"

# The directory whose new entries this process writes digests for; JAX has one for all.
_current: list[Path] = []
# What was compiled, and is about to be written.
_missed: list[str] = []


def cache_programs(directory: str | os.PathLike[str] | None = None, *, max_megabytes: int = 256) -> Path:
    """Keep what is compiled in a directory: the next process that runs the same script compiles nothing.

    It is the persistent cache of JAX, with what it lacks: each program has its SHA-256 beside it, and one that is
    damaged, cut off by a kill, or without its digest is removed here, before JAX reads it, and compiled again. Programs
    of other scripts, versions of JAX or machines are told apart by JAX. The bits are those without a cache.

    Formula: ``jax_compilation_cache_dir = directory``, with programs of any size and time to compile

    Args:
        directory: one that only you may write to, for what is in it is executed; it is made where it is missing.
            ``funcnn/programs`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``, where it is ``None``.
        max_megabytes: the oldest programs are removed here where there are more.

    Returns:
        The directory.

    Raises:
        PermissionError: the directory belongs to somebody else, others may write to it, or it cannot be written to.
        NotADirectoryError: it is a file, or below one.
        OSError: it cannot be made, for another reason.
        TypeError: it is not a path.
        ValueError: it is an empty text.

    Example:
        >>> from funcnn import training
        >>> training.cache_programs("~/.cache/my_project")  # doctest: +SKIP

    Notes:
        1. Call it at the beginning of a script: what was compiled before is not kept.
        2. Digests protect from damage, and the rights of the directory from other people; not from you.
        3. On some x86 processors JAX finds no program for the CPU again (https://github.com/jax-ml/jax/issues/38445):
           there nothing is gained.

    Reference: JAX, "Persistent compilation cache".
    """
    where = "cache_programs"
    checks.expect_count(where, "max_megabytes", max_megabytes)
    path = _standard(where) if directory is None else _given(where, directory)
    _expect_own(where, path)
    _clean(path, max_megabytes * 2**20)
    config: Any = jax.config
    config.update("jax_compilation_cache_dir", str(path))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Else XLA puts what it measured on a GPU beside the programs: read back unchecked, counted by nobody.
    config.update("jax_persistent_cache_enable_xla_caches", "none")
    compilation_cache.reset_cache()  # JAX asks for the directory once, when it first compiles
    if not _current:
        jax.monitoring.register_event_listener(_noticed)
        jax.monitoring.register_event_duration_secs_listener(_written)
        atexit.register(_record)
    _record()  # of a directory that was in use before
    _current[:] = [path]
    return path


def _given(where: str, directory: Any) -> Path:
    if not isinstance(directory, (str, os.PathLike)) or isinstance(os.fspath(directory), bytes):
        got, fix = type(directory).__name__, 'write the path as a text, such as "programs"'
        checks.fail(where, "the path of a directory", got, fix, TypeError)
    if not os.fspath(directory):
        checks.fail(where, "the path of a directory", "an empty text", 'for the working directory write "."')
    return _expanded(where, os.fspath(directory))


def _standard(where: str) -> Path:
    return _expanded(where, os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "funcnn" / "programs"


def _expanded(where: str, path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:  # a container in which the user has no home
        checks.fail(where, "a home directory for ~", f"{path}: {error}", "pass a directory", OSError)


def _expect_own(where: str, path: Path) -> None:
    """Raise unless this is a directory in which nobody else can put a program; make it where there is none."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (FileExistsError, NotADirectoryError):
        what = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "a file, or below one"
        checks.fail(where, "a directory", f"{path}, which is {what}", "choose another path", NotADirectoryError)
    except PermissionError:
        checks.fail(where, "a directory that can be made", str(path), "choose another path", PermissionError)
    except (OSError, ValueError) as error:  # a name that is too long, or with a zero in it
        checks.fail(where, "a directory that can be made", f"{path}: {error}", "choose another path", OSError)
    if not os.access(path, os.W_OK | os.X_OK):
        checks.fail(where, "a directory that can be written to", str(path), "choose another path", PermissionError)
    if hasattr(os, "getuid"):  # not on Windows, where a home is its owner's
        about = path.stat()
        if about.st_uid != os.getuid():
            got = f"{path}, which belongs to user {about.st_uid}"
            checks.fail(where, "a directory of your own", got, "choose another path", PermissionError)
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            got = f"{path} with the rights {stat.filemode(about.st_mode)}"
            fix = f"its programs are executed: chmod go-w {path}"
            checks.fail(where, "a directory that others cannot write to", got, fix, PermissionError)


def _clean(path: Path, most: int) -> None:
    """Remove what is damaged or has no digest, digests without a program, and the oldest where there is too much."""
    whole: list[tuple[float, int, Path]] = []
    for entry in list(path.iterdir()):
        if re.fullmatch(rf"{_PROGRAM.pattern}{_DIGEST}\.[0-9a-f]{{32}}{_PART}", entry.name):
            entry.unlink(missing_ok=True)  # of a process that was killed; one that writes it just now can do without
            continue
        program = path / entry.name.removesuffix(_DIGEST)
        if not _PROGRAM.fullmatch(program.name):
            continue  # somebody else's
        if entry != program:
            if not program.is_file():
                _remove(entry)
        elif _is_whole(entry):
            with contextlib.suppress(FileNotFoundError):  # another process removed it just now
                about = entry.stat()
                whole.append((about.st_mtime, about.st_size, entry))
        else:
            _remove(entry)
    total = sum(size for _, size, _ in whole)
    for _, size, entry in sorted(whole):
        if total <= most:
            break
        _remove(entry)
        total -= size


def _is_whole(entry: Path) -> bool:
    try:
        return _beside(entry).read_text() == _digest(entry)
    except (OSError, UnicodeDecodeError):
        return False


def _remove(entry: Path) -> None:
    """Another process may have been faster; and a folder of that name is not ours, but JAX would stumble over it."""
    for each in (entry, _beside(entry)):
        if each.is_dir() and not each.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                each.rename(each.with_name(f"{each.name}.{uuid.uuid4().hex}.removed"))
        else:
            each.unlink(missing_ok=True)


def _beside(entry: Path) -> Path:
    return entry.with_name(entry.name + _DIGEST)


def _digest(entry: Path) -> str:
    return hashlib.sha256(entry.read_bytes()).hexdigest()


def _is_complete(content: bytes) -> bool:
    """Whether an entry was written to its end: JAX compresses it, with Zstandard where there is any, else with zlib."""
    if not content.startswith(b"\x28\xb5\x2f\xfd"):
        return _unzips(zlib.decompress, content, zlib.error)
    for name in ("compression.zstd", "zstandard"):  # of Python 3.14 and later, and the package for those before
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            return _unzips(module.decompress, content, module.ZstdError)
    return False


def _unzips(unzip: Callable[[bytes], bytes], content: bytes, error: type[Exception]) -> bool:
    try:
        return bool(unzip(content))
    except error:
        return False


# ---- the digests of what this process compiles -----------------------------------------------------------------------


def _noticed(event: str, **_: Any) -> None:
    """JAX says that it compiled something, and is about to write it."""
    if event == _MISS:
        _missed.append(event)


def _written(event: str, duration_secs: float, **_: Any) -> None:
    """JAX says that it is done with a program: if it was compiled, it is there. A kill may end what comes next."""
    del duration_secs
    if event == _COMPILED and _missed:
        _missed.clear()
        _record()


def _record() -> None:
    """Write the digests that are missing; a cache is no reason to end a run where the disk is full.

    What another thread or process is writing, or a kill has cut off, is left without one.
    """
    for path in _current:
        for entry in _without(path):
            with contextlib.suppress(OSError):
                content = entry.read_bytes()
                if _is_complete(content):
                    _put(_beside(entry), hashlib.sha256(content).hexdigest())


def _put(path: Path, text: str) -> None:
    """Whole or not at all, but not forced to the disk: after a loss of power a digest may be missing."""
    place = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_PART}")
    try:
        place.write_text(text)
        place.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            place.unlink()
        raise


def _without(path: Path) -> Iterator[Path]:
    try:
        names = set(os.listdir(path))
    except OSError:  # it was deleted
        return iter(())
    return (path / name for name in sorted(names) if _PROGRAM.fullmatch(name) and name + _DIGEST not in names)
