"""What came out of layers, as arrays by path and as a table of what one looks for in them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from funcnn import checks

# Within this of an end of their range, outputs of a bounded function hardly have a gradient.
_NEAR = 0.01
_BOUNDED = {"tanh": (-1.0, 1.0), "logistic": (0.0, 1.0), "erf": (-1.0, 1.0)}


class Statistics(NamedTuple):
    """What one looks for in an array.

    ``mean`` and ``std``, ``smallest`` and ``largest`` are of its finite numbers, of which there are ``size`` less
    ``nonfinite``. ``zeros`` is the share that is 0, and ``dead`` the share of units (places on the last axis) that are
    0 for every example. ``saturated`` is the share within 0.01 of an end of the range where a tanh, sigmoid or erf made
    them, ``None`` elsewhere.
    """

    shape: tuple[int, ...]
    dtype: str
    size: int
    mean: float
    std: float
    smallest: float
    largest: float
    zeros: float
    dead: float
    saturated: float | None
    nonfinite: int


# eq=False: arrays have no truth.
@dataclass(frozen=True, eq=False)
class Activations:
    """Arrays by path of the layer, in the order in which they are computed; printed as a table.

    A layer that is called several times is ``"path"``, ``"path (2)"`` and so on; what is inside of a loop, as that of
    ``layers.repeat``, has an axis for its iterations in front. ``made`` is the operation that made each,
    or ``"gradient"``.
    """

    arrays: dict[str, Any]
    made: dict[str, str]

    def __getitem__(self, path: str) -> Any:
        if path not in self.arrays:
            fix = "take one of these, or ask for more patterns"
            checks.fail("activations", f"one of the paths {', '.join(self.arrays)}", repr(path), fix, LookupError)
        return self.arrays[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def statistics(self) -> dict[str, Statistics]:
        """Of each array, what one looks for."""
        return {path: _statistics(np.asarray(array), self.made[path]) for path, array in self.arrays.items()}

    def histogram(self, path: str, bins: int | Sequence[float] = 30) -> tuple[Any, Any]:
        """How many of the finite numbers lie in each bin, and the edges of the bins; as ``numpy.histogram``."""
        array = np.asarray(self[path]).astype(np.float64)
        return np.histogram(array[np.isfinite(array)], bins)

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "shape", "mean", "std", "smallest", "largest", "zeros", "dead", "saturated", "not finite")
        ]
        for path, one in self.statistics.items():
            numbers = [f"{value:.3g}" for value in (one.mean, one.std, one.smallest, one.largest)]
            shares = ["" if share is None else f"{share:.1%}" for share in (one.zeros, one.dead, one.saturated)]
            rows.append((path, str(one.shape), *numbers, *shares, str(one.nonfinite or "")))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)


def _statistics(array: Any, made: str) -> Statistics:
    numbers = array.astype(np.float64) if array.dtype.kind != "c" else np.abs(array)
    finite = numbers[np.isfinite(numbers)]
    ends = _BOUNDED.get(made)
    saturated = None
    if ends is not None and finite.size:
        saturated = float(np.mean((finite < ends[0] + _NEAR) | (finite > ends[1] - _NEAR)))
    units = numbers.reshape(-1, numbers.shape[-1]) if numbers.ndim > 1 else numbers.reshape(1, -1)
    return Statistics(
        shape=array.shape,
        dtype=str(array.dtype),
        size=array.size,
        mean=float(finite.mean()) if finite.size else float("nan"),
        std=float(finite.std()) if finite.size else float("nan"),
        smallest=float(finite.min()) if finite.size else float("nan"),
        largest=float(finite.max()) if finite.size else float("nan"),
        zeros=float(np.mean(numbers == 0)) if array.size else 0.0,
        dead=float(np.mean((units == 0).all(axis=0))) if array.size else 0.0,
        saturated=saturated,
        nonfinite=array.size - finite.size,
    )
