"""What counts as a stream of batches, and what can be known of it before it is read."""

import array
import collections
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from funcnn import checks

# What is as good as endless: no run has so many steps.
_ENDLESS = 2**31
# Sequences of numbers, which are data and no batches.
_NUMBERS = (str, bytes, range, memoryview, array.array, collections.deque, set, frozenset)


def is_stream(data: Any) -> bool:
    """Whether this is an iterable of batches, or a generator function, rather than data."""
    if inspect.isgeneratorfunction(data):
        return True
    if callable(data) or isinstance(data, _NUMBERS) or not isinstance(data, Iterable):
        return False
    return jax.tree_util.all_leaves([data]) and not hasattr(data, "__array__") and not hasattr(data, "columns")


def is_list_of_arrays(batch: list[Any]) -> bool:
    """Whether a list is what PyTorch's loaders make of a tuple, and not rows of numbers."""
    return any(hasattr(part, "__array__") or isinstance(part, (dict, tuple)) for part in batch)


def is_once(source: Any) -> bool:
    """Whether a stream can be gone through only once."""
    return isinstance(source, Iterator)


def length_of(source: Any) -> int | None:
    """How many batches a pass has, where the stream says so and it has an end."""
    length = _length(source)
    return length if length is not None and 0 < length < _ENDLESS else None


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except Exception:  # loaders that do not know raise what they like
        return None


def numbers_of(passes: int) -> int:
    """How many numbers there are for the steps of an epoch that is one of so many passes."""
    return (2**31 - 1) // (passes + 1)


def expect_end(where: str, source: Any, epochs: int | None) -> None:
    """Raise where epochs are passes over a stream that has not so many, or whose pass never ends."""
    fix = "pass steps_per_epoch, or steps instead of epochs"
    if (_length(source) or 0) >= _ENDLESS:
        checks.fail(where, "a stream whose end is the end of an epoch", "one without end", fix)
    if is_once(source) and epochs is not None and epochs > 1:
        fix = f"pass what can be iterated again, such as a generator function without calling it; or {fix[5:]}"
        checks.fail(
            where, f"a stream for {epochs} epochs", f"an iterator ({type(source).__name__}), gone after one", fix
        )


def begun(source: Any) -> Iterator[Any]:
    """The iterator of a pass."""
    return iter(source() if inspect.isgeneratorfunction(source) else source)


def position_of(iterator: Any) -> Any:
    """Where an iterator stands, if it is of those that say so and can be set back, as Grain's are."""
    if not (hasattr(iterator, "get_state") and hasattr(iterator, "set_state")):
        return None
    return iterator.get_state()
