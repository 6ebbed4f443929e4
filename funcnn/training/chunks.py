"""The parts in which a run is computed, and what is known after each."""

from typing import Any, NamedTuple

from funcnn.core import Tree
from funcnn.training.pieces import Piece
from funcnn.training.plans import Plan
from funcnn.training.positions import Position
from funcnn.training.programs import Carry


class Span(NamedTuple):
    """Steps whose data are on the device: all of a run, or a piece of a stream.

    Steps are numbered from 0, with a gap behind each epoch whose length was not known before; ``taken`` is how many
    there were.
    """

    plan: Plan
    arrays: Tree
    first: int
    stop: int
    taken: int = 0
    piece: Piece | None = None

    @property
    def ends(self) -> bool:
        """Whether an epoch ends here, as only now is known."""
        return self.piece is not None and self.piece.ends


class Chunk(NamedTuple):
    """A run after some of its steps."""

    number: int  # of the next step
    step: int  # how many were taken
    carry: Carry
    report: dict[str, Any]
    row: dict[str, Any]
    is_look: bool = True  # whether the host wanted to see this
    stopped: bool = False  # whether the run ended here, by its patience
    position: Position | None = None  # behind the last batch, where the data are a stream
