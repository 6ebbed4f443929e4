"""What is told of a run that is under way: what an observer sees, and what went wrong."""

from typing import Any, NamedTuple

from funcnn.training.runs import Result
from funcnn.training.states import TrainState


class Event(NamedTuple):
    """What is known between two chunks of a run.

    ``epoch`` is the epoch under way or just ended, counted from 1; ``step`` is how many steps were taken; ``state``
    is the ``TrainState`` after them; ``metrics`` holds what is reported, as numbers: of the whole epoch, with its
    validation, where it has just ended, and of the part of it that was run otherwise.
    """

    epoch: int
    step: int
    state: TrainState
    metrics: dict[str, Any]


class NonFiniteError(FloatingPointError):
    """A loss or a parameter became NaN or infinite.

    ``result`` is the ``Result`` up to the last good state, ``epoch`` (counted from 1) and ``step`` (counted from 0)
    say where.
    """

    chunk: Any = None  # the run up to that state, to be kept

    def __init__(self, message: str, result: Result, epoch: int, step: int) -> None:
        super().__init__(message)
        self.result = result
        self.epoch = epoch
        self.step = step


class StreamError(RuntimeError):
    """A stream raised, ended too early, or gave a batch that cannot be used.

    ``result`` is the ``Result`` after all batches that came before, ``step`` how many these were. What the stream
    itself raised is the ``__cause__``.
    """

    def __init__(self, message: str, result: Any, step: int) -> None:
        super().__init__(message)
        self.result = result
        self.step = step
