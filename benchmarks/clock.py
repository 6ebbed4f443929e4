"""How long calls take: shared by the scripts that repeat something once it is compiled; imports nothing else."""

import time
from collections.abc import Callable
from typing import Any


def seconds_of(call: Callable[[], Any], seconds: float, least: int) -> list[float]:
    """What each call took: for so many ``seconds``, and ``least`` of them at least. ``call`` waits for its result."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < least:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken
