"""The places in which runs are kept, as training sees them: names, arrays by path, and what else JSON can hold."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from funcnn import checks


class Found(NamedTuple):
    """What was kept: all that is not arrays, as JSON has it, and the arrays by path."""

    about: dict[str, Any]
    leaves: Mapping[str, Any]


class Keeper(Protocol):
    """A place for one run."""

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        ...

    def is_new(self) -> bool:
        """Whether nothing was kept here yet."""
        ...

    def newest(self) -> Found | None:
        """The last that was kept and is whole."""
        ...

    def due(self) -> bool:
        """Whether it is time to keep something."""
        ...

    def keep(self, step: int, about: dict[str, Any], leaves: dict[str, Any], *, wait: bool = False) -> None:
        """Begin to keep this, or wait until it is kept; raises what went wrong with the last."""
        ...

    def note(self, name: str, text: str) -> None:
        """Keep a text beside it, which may be lost."""
        ...

    def noted(self, name: str) -> str | None:
        """A text that was kept."""
        ...

    def part(self, name: str) -> "Keeper":
        """A place within this one, for a run that is a part of a larger one."""
        ...

    def parts(self) -> list[str]:
        """The names of the parts that there are."""
        ...


class Keeping(Protocol):
    """What ``fit`` takes as ``checkpoint``."""

    def opened(self) -> AbstractContextManager[Keeper]:
        """The place, for one at a time; closed when what is under way has been kept."""
        ...


class ResumeError(ValueError):
    """A run that was kept is not the one that is to go on."""


class SaveError(OSError):
    """A run could not be saved, and was ended; ``result`` holds it after all steps up to then, ``step`` of them."""

    def __init__(self, message: str, result: Any, step: int) -> None:
        super().__init__(message)
        self.result = result
        self.step = step


def expect_keeping(where: str, checkpoint: Any, resume: Any) -> None:
    """Raise unless these are a place for checkpoints and what to do with those that are there."""
    checks.expect_option(where, "resume", resume, (False, True, "changed"))
    if checkpoint is not None and not hasattr(checkpoint, "opened"):
        fix = 'pass checkpoint=checkpoints.directory("runs/a")'
        checks.fail(where, "checkpoint as a directory of checkpoints", type(checkpoint).__name__, fix, TypeError)
    if checkpoint is None and resume:
        fix = 'pass checkpoint=checkpoints.directory("runs/a")'
        checks.fail(where, "checkpoint, for resume is about it", "none", fix)
