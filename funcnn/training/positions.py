"""How far a stream has been gone through, in memory and as JSON has it."""

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from funcnn import checks


class Position(NamedTuple):
    """How far a stream has been gone through."""

    taken: int = 0  # batches in all
    passes: int = 0  # whole ones
    batches: int = 0  # of the pass under way
    state: Any = None  # of the iterator, where it is one that knows
    first: str = ""  # what the first batch of that pass came to, where nobody knows

    def after_pass(self) -> "Position":
        """The same, when the pass under way has come to its end."""
        return self._replace(passes=self.passes + 1, batches=0)


def written(position: Position) -> dict[str, Any]:
    """A position as JSON has it."""
    return position._asdict() | {"state": _plain(position.state)}


def read_position(written: dict[str, Any]) -> Position:
    """A position as it was written."""
    return Position(**written)._replace(state=_back(written["state"]))


def _plain(value: Any) -> Any:
    """The state of an iterator, of which JSON has all but bytes."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {"dict": {name: _plain(part) for name, part in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [_plain(part) for part in value]}
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Mapping):
        value = next(name for name in value if not isinstance(name, str))
    fix = "give it a get_state() of numbers, texts, bytes, lists and dicts"
    return checks.fail(
        "checkpoint", "a state of the stream's iterator that can be written down", type(value).__name__, fix
    )


def _back(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items()))
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "dict":
        return {name: _back(part) for name, part in content.items()}
    parts = [_back(part) for part in content]
    return tuple(parts) if kind == "tuple" else parts
