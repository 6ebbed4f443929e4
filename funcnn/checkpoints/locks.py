"""One writer for each directory."""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Generator

_LOCK = "LOCK"
_held: set[int] = set()


def _let_go() -> None:
    """A process that was forked off has no part in the lock: it may live longer than the one that trains."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class RunLocked(RuntimeError):
    """Another run writes into this directory: process ``pid`` on ``host``."""

    def __init__(self, message: str, path: str, pid: int | None, host: str | None) -> None:
        super().__init__(message)
        self.path = path
        self.pid = pid
        self.host = host


@contextlib.contextmanager
def locked(path: str) -> Generator[Callable[[], bool]]:
    """The lock of a directory, which the system takes away from a process that ends, however it ends.

    It is given as a function that says whether the directory is still the one that was locked.
    """
    import fcntl

    name = os.path.join(path, _LOCK)
    handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(path, os.pread(handle, 4096, 0)) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        mine = os.fstat(handle)
        yield lambda: os.path.lexists(name) and os.path.samestat(mine, os.lstat(name))
    finally:
        if handle in _held:
            _held.remove(handle)
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _taken(path: str, content: bytes) -> RunLocked:
    try:
        owner = json.loads(content)
        pid, host = int(owner["pid"]), str(owner["host"])
    except (ValueError, KeyError, TypeError):
        pid = host = None
    got = "another run" if pid is None else f"the run of process {pid} on {host}"
    fix = "wait for its end, or choose another directory"
    return RunLocked(f"checkpoints: expected {path} to be free, got {got} writing into it; {fix}", path, pid, host)
