"""The points of a sweep: from what a user writes to one row of hyperparameters, and one seed, for each member."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funcnn import checks
from funcnn.core import Tree


def expanded(grid: Tree, combine: str, seeds: Any) -> tuple[Tree, Any]:
    """The hyperparameters of each member, the seeds of a point side by side, and the seed of each: all on the host."""
    checks.expect_option("sweep", "combine", combine, ("product", "zip"))
    chosen = _seeds(seeds)
    named = grid if isinstance(grid, dict) else {"": grid}
    if not named:
        checks.fail("sweep", "a grid with a name or more", "an empty one", "to vary the seed alone pass jnp.zeros(1)")
    for name in named:
        if not isinstance(name, str) or name == "seed":
            fix = "for seeds there is seeds=" if name == "seed" else "pass strings"
            checks.fail("sweep", "names of hyperparameters", repr(name), fix, TypeError)
    columns = {name: _column(name, values) for name, values in named.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if combine == "zip" and len(set(lengths.values())) > 1:
        checks.fail("sweep", "as many values under each name, to zip them", str(lengths), 'or pass combine="product"')
    count = max(lengths.values())
    points = [np.arange(count)] * len(columns)
    if combine == "product":
        points = [p.ravel() for p in np.meshgrid(*(np.arange(n) for n in lengths.values()), indexing="ij")]
    values = {
        name: np.repeat(column[point], len(chosen), axis=0)
        for (name, column), point in zip(columns.items(), points, strict=True)
    }
    return (values if isinstance(grid, dict) else values[""]), np.tile(chosen, len(points[0]))


def _seeds(seeds: Any) -> Any:
    if isinstance(seeds, str):
        checks.fail("sweep", "seeds as whole numbers", repr(seeds), "pass how many: seeds=8", TypeError)
    if isinstance(seeds, Sequence) or np.ndim(seeds) == 1:
        given = [checks.expect_count("sweep", "seeds", seed, 0) for seed in seeds]
    else:
        given = list(range(checks.expect_count("sweep", "seeds", seeds)))
    if any(seed >= 2**32 for seed in given):
        checks.fail("sweep", "seeds below 2**32", str(max(given)), "they are folded into a key as 32 bits")
    if not given or len(set(given)) < len(given):
        checks.fail("sweep", "different seeds, at least one", str(given), "pass how many: seeds=8")
    return np.asarray(given)


def _column(name: str, values: Any) -> Any:
    label = f"the values of {name!r}" if name else "the values"
    if callable(values) or isinstance(values, (str, bytes, dict, Iterator)):
        fix = "pass an array, such as jnp.logspace(-4, -1, 16)"
        checks.fail("sweep", f"{label} as an array", type(values).__name__, fix, TypeError)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        fix = "inside jit, vmap or grad map training.run yourself"
        checks.fail("sweep", f"{label} that are known", "a tracer", fix, TypeError)
    try:
        column = np.asarray(values)
    except ValueError:
        checks.fail("sweep", f"{label} of one shape", "a ragged list", "give each the same axes")
    kinds = (np.bool_, np.integer, jnp.floating)
    if not any(jnp.issubdtype(column.dtype, kind) for kind in kinds):
        fix = "sweep over what is no number in a loop of your own"
        checks.fail("sweep", f"{label} as numbers", str(column.dtype), fix, TypeError)
    if column.ndim == 0:
        checks.fail("sweep", f"{label} with an axis", "a single number", "pass a list of it: [1e-3]")
    if np.isnan(column.astype(np.float64) if column.dtype != bool else 0.0).any():
        checks.fail("sweep", f"{label} as numbers", "NaN", "look at how they are made; an infinite one may be meant")
    if not len(column):
        checks.fail("sweep", f"at least one of {label}", "none", "pass an array, such as jnp.logspace(-4, -1, 16)")
    return column
