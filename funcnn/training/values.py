"""The checks of values, on the host and before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funcnn import checks
from funcnn.core import Tree, shown
from funcnn.training.trainers import Trainer, TrainState


def expect_finite(where: str, what: str, tree: Tree) -> None:
    """Raise where an array holds NaN or infinity, and say in which row the first one is."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, Tracer) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        array = np.asarray(leaf)
        good = np.isfinite(array)
        if not good.all():
            index = tuple(int(i) for i in np.argwhere(~good)[0])
            checks.fail(
                where,
                "finite numbers",
                f"{array[index]} in {what}{jax.tree_util.keystr(path)} at {list(index)}, and {(~good).sum()} in all",
                "leave these rows out, or fill them in",
            )


def expect_values(where: str, trainer: Trainer, arrays: Tree, held_out: Tree, state: TrainState | None) -> None:
    """Raise where data hold NaN or infinity, or targets that the loss or a metric refuses.

    The losses check the values of targets that are known. So ``trainer.evaluate`` is traced, not run, with the inputs
    as shapes and all else of the data as it is.
    """
    if state is not None:
        expect_finite(where, "state.params", state.params)
        expect_finite(where, "state.model_state", state.model_state)
    for what, data in (("data", arrays), ("validation", held_out)):
        if data is None:
            continue
        expect_finite(where, what, data)
        if isinstance(data, tuple) and len(data) > 1 and not _is_traced(data):
            try:
                _traced(trainer, data, _state(trainer, arrays, state))
            except Exception as error:
                error.add_note(f"{where}: in {what} of shapes {shown(data)}")
                raise


def _traced(trainer: Trainer, data: Any, state: Any) -> None:
    x, *known = data
    batch = getattr(data, "_make", tuple)  # a named tuple stays one
    jax.eval_shape(lambda a, s: trainer.evaluate(s, batch((a, *known))), x, state)


def _is_traced(tree: Tree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _state(trainer: Trainer, data: Tree, state: TrainState | None) -> Any:
    return jax.eval_shape(trainer.init, jax.random.key(0), data) if state is None else state
