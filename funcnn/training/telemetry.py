"""What a training step can say of itself: numbers of every single step, stacked over the run.

A telemetry is a function ``(params, gradient, updates) -> array, or tree of arrays``: of the params before the step,
the gradient as the optimizer gets it, and what is added to the params.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from funcnn import checks
from funcnn.core import Tree

Telemetry = Callable[[Tree, Tree, Tree], Any]


def gradient_norm(params: Tree, gradient: Tree, updates: Tree) -> Any:
    """The norm of the gradient, before the optimizer clips or scales it.

    Formula: ``sqrt(sum of the squares of all its entries)``

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import training
        >>> print(training.gradient_norm({}, {"a": jnp.array([3.0]), "b": jnp.array([4.0])}, {}))
        5.0

    Reference: ``optax.tree.norm``.
    """
    del params, updates
    return optax.tree.norm(gradient)


def update_ratio(params: Tree, gradient: Tree, updates: Tree) -> dict[str, Any]:
    """How large the step is beside the weights, for each array of two or more axes, by path.

    Formula: ``norm(update) / norm(weights)``; about 1e-3 is usual. Of weights that are all zero it is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import training
        >>> weights = {"dense_0": {"kernel": jnp.ones((2, 2))}}
        >>> updates = {"dense_0": {"kernel": jnp.full((2, 2), 0.01)}}
        >>> {path: round(float(ratio), 3) for path, ratio in training.update_ratio(weights, {}, updates).items()}
        {'dense_0/kernel': 0.01}

    Reference: Karpathy, "Building makemore, part 3", 2022.
    """
    del gradient
    moved = _by_path(updates)
    kept = {path: weights for path, weights in _by_path(params).items() if weights.ndim > 1}
    sizes = {path: optax.tree.norm(weights) for path, weights in kept.items()}
    return {
        path: jnp.where(size > 0, optax.tree.norm(moved[path]) / jnp.where(size > 0, size, 1), 0)
        for path, size in sizes.items()
    }


def dead_units(params: Tree, gradient: Tree, updates: Tree) -> dict[str, Any]:
    """The share of the units of each layer that learn nothing in this step, by the path of its kernel.

    A unit, one index on the last axis of a kernel, is dead where no example of the batch has a gradient by any of its
    weights: the outputs of a ReLU that are 0 for all examples. A ``penalty`` has a gradient of its own everywhere, so
    with one it raises.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import training
        >>> gradient = {"dense_0": {"kernel": jnp.array([[0.0, 0.3, 0.0, 0.1], [0.0, 0.2, 0.0, 0.0]])}}
        >>> {path: float(share) for path, share in training.dead_units({}, gradient, {}).items()}
        {'dense_0/kernel': 0.5}

    Reference: Lu et al., "Dying ReLU and initialization", 2019.
    """
    del params, updates
    kernels = {path: leaf for path, leaf in _by_path(gradient).items() if path.rpartition("/")[2] == "kernel"}
    return {
        path: jnp.mean(jnp.all(leaf == 0, axis=tuple(range(leaf.ndim - 1))), dtype=jnp.float32)
        for path, leaf in kernels.items()
    }


def _by_path(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nothing(info: Any) -> tuple[Any, dict[str, Any]]:
    """The telemetry of a trainer that was asked for none."""
    return info, {}


def split(info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sums of an info, and what is of a single step."""
    return {name: part for name, part in info.items() if name != "telemetry"}, info["telemetry"]


def expect_telemetry(where: str, given: Any) -> dict[str, Telemetry]:
    """The telemetry that is asked for, by name."""
    if not isinstance(given, Mapping):
        fix = 'give each a name: {"gradient_norm": training.gradient_norm}'
        checks.fail(where, "telemetry as a dict", type(given).__name__, fix, TypeError)
    for name, function in given.items():
        if not isinstance(name, str) or not name:
            checks.fail(where, "names of telemetry", repr(name), "name it by a string")
        if not callable(function):
            fix = "pass functions (params, gradient, updates) -> arrays"
            checks.fail(where, f"a function under {name!r}", type(function).__name__, fix, TypeError)
    return dict(given)


def measured(
    asked: Mapping[str, Telemetry], info: dict[str, Any], params: Tree, gradient: Tree, updates: Tree
) -> dict[str, Any]:
    """The info of a step with what was asked for."""
    if dead_units in asked.values() and "penalty" in info:
        fix = "let the optimizer pull at the weights, with optax.add_decayed_weights or optax.adamw"
        checks.fail("dead_units", "no penalty, whose gradient is nowhere 0", "one", fix)
    return info | {"telemetry": {name: _asked(name, asked[name], params, gradient, updates) for name in asked}}


def _asked(name: str, function: Telemetry, params: Tree, gradient: Tree, updates: Tree) -> Any:
    try:
        return jax.tree.map(jnp.asarray, function(params, gradient, updates))
    except Exception as error:
        error.add_note(f"telemetry {name!r}: a function (params, gradient, updates) -> arrays")
        raise
