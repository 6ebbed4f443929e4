"""What training carries from one step to the next."""

from typing import Any, NamedTuple

import jax
import numpy as np

from funcnn import checks
from funcnn.core import Tree


class TrainState(NamedTuple):
    """All that the next step needs. ``key`` never changes: the key of a step is ``fold_in(key, step)``."""

    params: Tree
    model_state: Tree
    opt_state: Tree
    key: Any
    step: Any

    def __repr__(self) -> str:
        # The numbers are in the fields; all of them at once, with those of the optimizer, are too many to read.
        count = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self.params))
        return f"TrainState({count:,} parameters, step {self.step})"


def expect_state(where: str, state: Any) -> None:
    """Raise unless ``state`` is a ``TrainState`` or ``None``."""
    if state is not None and not isinstance(state, TrainState):
        fix = "pass result.state, or trainer.init(key, batch)._replace(params=...)"
        checks.fail(where, "state as a TrainState", type(state).__name__, fix, TypeError)
    if state is not None and np.ndim(state.step) != 0:
        fix = "take one, found.members[0].result.state; to ask all of them there is predict_members"
        checks.fail(where, "the state of one run", f"those of {np.shape(state.step)[0]} members", fix)
