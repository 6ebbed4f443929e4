"""The checks of values, on the host and before anything is compiled."""

from collections.abc import Sequence
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

    The losses check the values of targets that are known, layers those of tokens and lengths. So ``trainer.evaluate``
    is traced, not run, with floating inputs as shapes and all else of the data as it is.
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
                _traced(trainer, data, _state(trainer, data if arrays is None else arrays, state))
            except Exception as error:
                error.add_note(f"{where}: in {what} of shapes {shown(data)}")
                raise


def _traced(trainer: Trainer, data: Any, state: Any) -> None:
    x, *known = data
    batch = getattr(data, "_make", tuple)  # a named tuple stays one
    leaves, structure = jax.tree.flatten(x)
    floating = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    leaves = [leaf if i in floating else jnp.asarray(leaf) for i, leaf in enumerate(leaves)]

    def evaluated(shaped: list[Any], s: Any) -> Any:
        inputs = list(leaves)
        for i, leaf in zip(floating, shaped, strict=True):
            inputs[i] = leaf
        return trainer.evaluate(s, batch((jax.tree.unflatten(structure, inputs), *known)))

    jax.eval_shape(evaluated, [leaves[i] for i in floating], state)


def _is_traced(tree: Tree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _state(trainer: Trainer, data: Tree, state: TrainState | None) -> Any:
    return jax.eval_shape(trainer.init, jax.random.key(0), data) if state is None else state


# ---- states ----------------------------------------------------------------------------------------------------------


def _shapes(parts: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    return {
        f"{field}/{jax.tree_util.keystr(path, simple=True, separator='/')}": jnp.shape(leaf)
        for field, part in zip(TrainState._fields, parts, strict=False)
        for path, leaf in jax.tree_util.tree_leaves_with_path(part)
    }


def expect_like(where: str, found: Sequence[Any], expected: Sequence[Any], *, sizes: bool) -> None:
    """Raise unless the first fields of a state have the arrays that its model makes: by path, rank and ``sizes``.

    Ranks are compared before a step is traced, sizes after, for where they matter to a layer it says more.
    """
    got, want = _shapes(found), _shapes(expected)
    fix = "pass a state of this very model and optimizer"
    for path in [*want, *got]:
        if path not in got or path not in want:
            state = ("nothing", want[path]) if path in want else (got[path], "nothing")
            checks.fail(where, f"a state with {state[1]} at {path}", f"{state[0]}", fix)
        if len(got[path]) != len(want[path]) or (sizes and got[path] != want[path]):
            if got[path][1:] == want[path]:
                fix = "it seems to be of several mapped runs: take one, jax.tree.map(lambda a: a[0], state)"
            checks.fail(where, f"a state with {want[path]} at {path}", f"{got[path]}", fix)
