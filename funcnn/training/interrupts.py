"""SIGINT and SIGTERM, noted while a chunk is computed and acted on after it."""

import contextlib
import signal
import sys
import threading
from collections.abc import Generator
from typing import Any


class Interrupted(SystemExit):
    """A run with a checkpoint was told to end, by SIGINT or SIGTERM, and has been saved.

    ``result`` is the ``Result`` up to there. Nobody has to catch this: the process ends with the conventional exit
    code, 130 or 143.
    """

    def __init__(self, number: int, result: Any) -> None:
        super().__init__(128 + number)
        self.result = result


class Signals:
    """Which signal came, if any."""

    def __init__(self) -> None:
        self.number = 0

    @property
    def name(self) -> str:
        """As the system calls it."""
        return signal.Signals(self.number).name

    @property
    def ends_process(self) -> bool:
        """Whether the process ends for it: not where somebody sits in front of it and pressed Ctrl-C."""
        return self.number == signal.SIGTERM or not is_interactive()


def is_interactive() -> bool:
    """Whether statements are typed at a prompt, or run in a notebook."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


@contextlib.contextmanager
def noted() -> Generator[Signals]:
    """Note the first signal; a second one does what it does without us. In the main thread: no other may do so.

    Handlers are set here and not when the library is imported, so that they come after those of
    ``jax.distributed.initialize``, which take SIGTERM for themselves.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What is ignored, as under nohup, stays so.
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def note(number: int, frame: Any) -> None:
        del frame
        signals.number = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # who asks twice wants it at once

    for number in before:
        signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            # None: somebody set one outside of Python, which cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
