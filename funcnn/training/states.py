"""What training carries from one step to the next."""

from typing import Any, NamedTuple

from funcnn.core import Tree


class TrainState(NamedTuple):
    """All that the next step needs. ``key`` never changes: the key of a step is ``fold_in(key, step)``."""

    params: Tree
    model_state: Tree
    opt_state: Tree
    key: Any
    step: Any
