"""What is read of a stream at once, and where it lies in memory."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnn.core import Tree
from funcnn.training.positions import Position

_ALIGNED = 64  # bytes


class Buffer(NamedTuple):
    """What a compiled program is given of a stream."""

    batches: Tree  # along an axis in front; only the first ones count
    base: Any  # the number of the first one among all steps of the run
    last: Any  # the number of steps after which the epoch ends; -1 where it goes on


class Piece(NamedTuple):
    """Batches that were read, and what came after them."""

    batches: Tree  # on the device, along an axis in front; None where there are none
    size: int  # how many there are
    is_rest: bool = False  # whether it is one smaller batch
    ends: bool = False  # whether the pass ended here
    positions: tuple[Position, ...] = ()  # behind each of the batches
    error: BaseException | None = None
    room: Any = None  # the memory that they are in, to be used again


class Form(NamedTuple):
    """The structure of a whole batch, and the shape and dtype of each array in it."""

    structure: Any = None  # not known before the first batch
    shapes: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[Any, ...] = ()

    @property
    def spec(self) -> Tree:
        """The batch as shapes."""
        pairs = zip(self.shapes, self.dtypes, strict=True)
        return jax.tree.unflatten(self.structure, [jax.ShapeDtypeStruct(*pair) for pair in pairs])

    @property
    def size(self) -> int:
        """How many examples are in a whole batch."""
        return self.shapes[0][0]

    @property
    def names(self) -> str:
        """The dtypes, in words."""
        return ", ".join(map(str, self.dtypes))

    def buffers(self, count: int) -> list[Any]:
        """Room for so many batches, and for two at least: XLA makes another program of the choice among one."""
        return [_room((max(count, 2), *s), dtype) for s, dtype in zip(self.shapes, self.dtypes, strict=True)]


def _room(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array that is not filled, at a place in memory at which a CPU takes it as it is, without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    begin = -memory.ctypes.data % _ALIGNED
    return memory[begin : begin + size].view(dtype).reshape(shape)
