"""What is saved of a run in its directory: a thread that writes, the last steps that were saved."""

import contextlib
import os
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from funcnn import disk
from funcnn.checkpoints import stores
from funcnn.checkpoints.manifests import CheckpointError, manifest_of
from funcnn.training.keepers import Found

_STEPS, _DAMAGED, _NOTES, _PARTS = "steps", "damaged", "programs", "parts"
# What is under way, or about to be deleted, and nobody's once its writer is gone.
_PASSING = ".passing"
# What has to be finite for a step to be worth keeping beyond the last ones.
_PARAMS = "state/params"


def steps_of(path: str) -> list[tuple[int, str]]:
    """The steps that were saved in a directory, the newest first, each with its folder."""
    folder = os.path.join(path, _STEPS)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(((int(name), os.path.join(folder, name)) for name in names if name.isdecimal()), reverse=True)


def parts_of(path: str) -> list[str]:
    """The names of the parts that there are, for groups of a large sweep."""
    try:
        return sorted(name for name in os.listdir(os.path.join(path, _PARTS)) if not name.startswith("."))
    except FileNotFoundError:
        return []


class Keeper:
    """The directory of one run, or of a part of one, while it is locked."""

    def __init__(self, path: str, every: float, keep: int, is_ours: Callable[[], bool]) -> None:
        self.path, self._every, self._keep, self._is_ours = path, every, keep, is_ours
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._last = time.monotonic()
        self._step = -1
        self._parts: list[Keeper] = []
        for name in (_STEPS, _NOTES):
            os.makedirs(os.path.join(self.path, name), exist_ok=True)
        shutil.rmtree(os.path.join(self.path, _PASSING), ignore_errors=True)
        os.makedirs(os.path.join(self.path, _PASSING), exist_ok=True)

    def is_new(self) -> bool:
        """Whether nothing was saved here yet."""
        return not steps_of(self.path)

    def newest(self) -> Found | None:
        """The last step that is whole; damaged ones are moved aside, and said to be."""
        faults: list[str] = []
        for step, folder in steps_of(self.path):
            try:
                stored = stores.read(folder)
            except CheckpointError as error:
                faults.append(str(error))
                continue
            for _, damaged in steps_of(self.path)[: len(faults)]:
                self._put_aside(damaged)
            if faults:
                _warn(f"{'; '.join(faults)}; going on from the last step that is whole, {step}")
            self._step = step
            return Found(stored.manifest["about"], stored.leaves)
        if faults:
            got = f"{len(faults)} that are damaged: {'; '.join(faults)}"
            fix = "to begin again choose another directory"
            raise CheckpointError(
                f"checkpoints: {self.path}: expected a step that is whole, got {got}; {fix}", self.path
            )
        return None

    def _put_aside(self, folder: str) -> None:
        place = os.path.join(self.path, _DAMAGED)
        os.makedirs(place, exist_ok=True)
        os.rename(folder, os.path.join(place, f"{os.path.basename(folder)}.{uuid.uuid4().hex[:8]}"))

    def due(self) -> bool:
        """Whether ``every`` has gone by, and nothing is under way."""
        if self._error is not None:
            return True  # to be raised
        is_idle = self._thread is None or not self._thread.is_alive()
        return is_idle and time.monotonic() - self._last >= self._every

    def keep(self, step: int, about: dict[str, Any], leaves: dict[str, Any], *, wait: bool = False) -> None:
        """Begin to write a step, or write it; raises what went wrong with the last one that was begun."""
        self._join()
        error, self._error = self._error, None
        if error is not None and not wait:
            raise error
        if step == self._step:
            return
        self._last = time.monotonic()
        if wait:
            self._write(step, about, leaves)
            return

        def write() -> None:
            try:
                self._write(step, about, leaves)
            except BaseException as failure:  # for the thread that trains
                self._error = failure

        # Not a daemon: what was begun is brought to its end.
        self._thread = threading.Thread(target=write, name="funcnn checkpoint")
        self._thread.start()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, about: dict[str, Any], leaves: dict[str, Any]) -> None:
        params = [np.asarray(leaf) for path, leaf in leaves.items() if path.startswith(_PARAMS)]
        is_finite = all(np.isfinite(leaf).all() for leaf in params if leaf.dtype.kind in "fcV")
        if not self._is_ours():
            raise OSError(f"the directory {self.path} was deleted or replaced while the run went on")
        passing = os.path.join(self.path, _PASSING, uuid.uuid4().hex)
        try:
            stores.write(passing, {**about, "is_finite": bool(is_finite)}, leaves)
            place = os.path.join(self.path, _STEPS, f"{step:012d}")
            if os.path.lexists(place):
                self._put_aside(place)
            os.rename(passing, place)
            disk.flush(os.path.join(self.path, _STEPS))
        except BaseException:
            _remove(passing)
            raise
        self._step = step
        self._forget()

    def _forget(self) -> None:
        """Delete the steps that are no longer wanted; each is moved away first, so that nobody reads half of it."""
        found = steps_of(self.path)
        kept = {step for step, _ in found[: self._keep]}
        if not any(_is_finite(folder) for step, folder in found if step in kept):
            kept |= set([step for step, folder in found if _is_finite(folder)][:1])
        for step, folder in found:
            if step not in kept:
                passing = os.path.join(self.path, _PASSING, uuid.uuid4().hex)
                with contextlib.suppress(OSError):
                    os.rename(folder, passing)
                    shutil.rmtree(passing)

    def note(self, name: str, text: str) -> None:
        """Keep a text, by which a later error can say more; without it, it says less."""
        place = os.path.join(self.path, _NOTES, f"{name}.txt")
        if os.path.exists(place):
            return
        passing = os.path.join(self.path, _PASSING, uuid.uuid4().hex)
        with contextlib.suppress(OSError):
            with open(passing, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(passing, place)

    def noted(self, name: str) -> str | None:
        """A text that was kept."""
        try:
            with open(os.path.join(self.path, _NOTES, f"{os.path.basename(name)}.txt"), encoding="utf-8") as file:
                return file.read()
        except (OSError, ValueError):
            return None

    def part(self, name: str) -> "Keeper":
        """The place of a run that is a part of this one."""
        part = Keeper(os.path.join(self.path, _PARTS, name), self._every, self._keep, self._is_ours)
        self._parts.append(part)
        return part

    def parts(self) -> list[str]:
        """The names of the parts that there are."""
        return parts_of(self.path)

    def close(self) -> None:
        """Wait for what is under way, and say what went wrong with it, if nobody else did."""
        for part in self._parts:
            part.close()
        self._join()
        if self._error is not None:
            _warn(f"checkpoints: {self.path}: the last save failed: {self._error!r}")
            self._error = None


def _remove(folder: str) -> None:
    """Delete what was begun; threads of Orbax may still be about to write there."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not os.path.lexists(folder):
            return


def _is_finite(folder: str) -> bool:
    try:
        return bool(manifest_of(folder)["about"]["is_finite"])
    except (CheckpointError, KeyError):
        return False


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
