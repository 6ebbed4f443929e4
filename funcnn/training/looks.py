"""When the host looks at a run that is under way."""

from collections.abc import Callable

Looks = Callable[[int, int, float], int]
"""``(number, steps taken, seconds since the last look) -> the number at which to look next``."""

# The host looks up about five times a second: often enough for a person. Of a large network a chunk costs something
# beside its steps, for the memory in which it computes is new each time; then less often, so that it costs a small
# part of the time, but every two seconds at least, for an interrupt has to wait for the end of a chunk.
_SECONDS = 0.2
_SHARE = 0.03
_MOST_SECONDS = 2.0
_GROWTH = 32


def by_clock(seconds_each: float = _SECONDS) -> Looks:
    """A look after about so many seconds, from the time that the last one took."""
    size, least, beside = 0, 0.0, 0.0

    def next_look(number: int, step: int, seconds: float) -> int:
        nonlocal size, least, beside
        if size:
            # The first chunk is one step: what it takes, a chunk of any size takes at least.
            least = least or seconds
            if size > 1:
                beside = max(least - max(seconds - least, 0.0) / (size - 1), 0.0)
            wanted = max(seconds_each, 2 * least, min(beside / _SHARE, _MOST_SECONDS))
            size = max(1, min(size * _GROWTH, int(size * wanted / max(seconds, 1e-6))))
        size = size or 1
        return number + size

    return next_look


def by_count(count: int) -> Looks:
    """A look after every so many steps."""
    return lambda number, step, seconds: number + count - step % count


def by_epochs(count: int, epoch_steps: int) -> Looks:
    """A look after every so many epochs."""
    return lambda number, step, seconds: (number // (count * epoch_steps) + 1) * count * epoch_steps


def never(number: int, step: int, seconds: float) -> int:
    """No look."""
    del number, step, seconds
    return 2**31


def looking(every: int | None, epoch_steps: int, steps: int | None) -> Looks:
    """A look ``every`` so many epochs, or steps where a run is counted in these; by the clock otherwise."""
    if every is None:
        return by_clock()
    return by_epochs(every, epoch_steps) if steps is None else by_count(every)
