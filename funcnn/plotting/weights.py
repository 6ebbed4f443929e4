"""Pictures of weights and gradients over time: how they are spread, and how that moves while a network learns."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from funcnn import checks, trees
from funcnn.plotting import styles

_MOST_PANELS = 24
_MOST_COLUMNS = 150
_LEVELS = 0.05, 0.5, 0.95


def histograms(
    values: Any,
    *patterns: str,
    bins: int | None = None,
    edges: Any = None,
    at: Any = None,
    unit: str = "step",
    quantity: str = "value",
    scale: str = "linear",
) -> Any:
    """How numbers are spread at each moment: a histogram as a column of colour, one picture for each array.

    The line is the median, and between the dashed ones are nine tenths of all numbers. What is not finite is in no bin;
    how many moments have some is said above the picture. Of more than 150 moments neighbours share a column, which is
    their mean; the axis says how many.

    Args:
        values: a sequence of params or gradients, one for each moment; or one tree whose arrays have an axis of moments
            in front, such as ``result.telemetry["weights"]``, where the trainer was asked for
            ``{"weights": lambda params, gradient, updates: params}``.
        patterns: which arrays, ``"**/kernel"``; all otherwise.
        bins: how many, between the least and the greatest number of an array; from 13 to 61 otherwise, the more the
            more numbers there are.
        edges: those of the bins, where ``values`` hold counts ``(moments, bins)`` that were made in the run already, by
            ``jnp.histogram`` for instance.
        at: the moments, growing; 1, 2, 3 and so on otherwise.
        unit: what they are.
        quantity: what the numbers are, with their unit.
        scale: ``"linear"``, or ``"log"`` for the size of the numbers, without sign; zeros are in no bin then, and the
            largest share of them is said above the picture; the hundredth part that is smallest is in the lowest bin.
            It suits gradients.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: ``bins`` is not a whole number, or a leaf is not an array of numbers.
        ValueError: a pattern without a match, more arrays than one figure has room for, arrays that change their shape,
            nothing finite, edges or moments that do not grow or do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import plotting
        >>> steps = [{"kernel": jnp.full((2, 3), 0.5)}, {"kernel": jnp.linspace(0, 1, 6).reshape(2, 3)}]
        >>> figure = plotting.histograms(steps, "kernel", bins=2)
        >>> figure.axes[0].collections[0].get_array().T.tolist()  # all in the second half, and then one half in each
        [[0.0, 1.0], [0.5, 0.5]]

    Reference: the histograms of TensorBoard.
    """
    where = "plotting.histograms"
    checks.expect_option(where, "scale", scale, styles.SCALES)
    bins = None if bins is None else checks.expect_count(where, "bins", bins)
    arrays = _by_path(where, values, patterns)
    moments = _moments(where, at, len(next(iter(arrays.values()))))
    if edges is None:
        spreads = {path: _binned(where, path, array, bins, scale) for path, array in arrays.items()}
    else:
        spreads = {path: _counted(where, path, array, edges, scale) for path, array in arrays.items()}
    drawn = [_pooled(moments, spread) for spread in spreads.values()]
    top = max(np.nanmax(spread.shares) for _, spread, _ in drawn)
    figure, every = styles.panels(len(arrays), 4.8, 3.2, 2)
    mesh = None
    for axes, (middle, spread, size), title in zip(every, drawn, styles.labels(list(arrays)), strict=True):
        mesh = _drawn(axes, middle, spread, top)
        axes.set_yscale(scale)
        axes.set_title("\n".join(filter(None, [title, *spread.said])), fontsize="small")
        axes.set_xlabel(unit if size == 1 else f"{unit} (columns of {size})")
        axes.set_ylabel(f"size of the {quantity}" if scale == "log" else quantity)
    figure.colorbar(mesh, ax=every, label="share of the numbers in a bin")
    return figure


class _Spread(NamedTuple):
    """The histograms of an array, and what they leave out."""

    shares: Any  # (moments, bins), NaN at moments without a finite number
    edges: Any
    levels: Any  # (3, moments): 5 %, 50 % and 95 %
    said: list[str]


def _by_path(where: str, values: Any, patterns: tuple[str, ...]) -> dict[str, Any]:
    """The arrays, each with an axis of moments in front."""
    patterns = patterns or ("**",)
    if isinstance(values, (list, tuple)) and not hasattr(values, "_fields"):
        each = [trees.select(tree, *patterns, where=where) for tree in values]
        if not each:
            checks.fail(where, "at least one moment", "an empty sequence", "pass params, or gradients, of each")
        for i, leaves in enumerate(each):
            if {path: np.shape(leaf) for path, leaf in leaves.items()} != {p: np.shape(a) for p, a in each[0].items()}:
                fix = "pass trees of one model"
                checks.fail(where, "the same arrays at each moment", f"others at the {i + 1}th", fix)
        found = {path: np.stack([_numbers(where, path, leaves[path]) for leaves in each]) for path in each[0]}
    else:
        found = {path: _numbers(where, path, a) for path, a in trees.select(values, *patterns, where=where).items()}
    lengths = {len(array) if array.ndim else 0 for array in found.values()}
    if len(lengths) > 1 or not lengths.pop():
        shapes = ", ".join(f"{path} {array.shape}" for path, array in found.items())
        checks.fail(where, "an axis of moments, of one length in all arrays", shapes, "pass a list for single params")
    if len(found) > _MOST_PANELS:
        fix = "choose by patterns, such as '**/kernel'"
        checks.fail(where, f"at most {_MOST_PANELS} arrays", f"{len(found)}", fix)
    return found


def _numbers(where: str, path: str, leaf: Any) -> Any:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if not jnp.issubdtype(dtype, jnp.number):
        fix = "choose arrays of numbers by patterns"
        checks.fail(where, f"numbers at {path!r}", f"{dtype}", fix, TypeError)
    return styles.real(where, repr(path), leaf)


def _moments(where: str, at: Any, count: int) -> Any:
    moments = np.arange(1.0, count + 1) if at is None else np.asarray(at, float)
    if moments.shape != (count,) or not (np.diff(moments) > 0).all():
        fix = "pass the number of the step of each"
        checks.fail(where, f"{count} moments that grow", f"at of shape {moments.shape}", fix)
    return moments


def _binned(where: str, path: str, array: Any, bins: int | None, scale: str) -> _Spread:
    rows = array.reshape(len(array), -1)
    said: list[str] = []
    bad = ~np.isfinite(rows)
    if bad.any():
        said.append(f"not finite at {bad.any(axis=1).sum()} of {len(rows)} moments")
    if scale == "log":
        zeros = (rows == 0).mean(axis=1).max()
        said += [f"up to {100 * zeros:.3g} % zeros"] if zeros else []
        rows = np.where(rows == 0, np.nan, np.abs(rows))
    finite = rows[np.isfinite(rows)]
    if not finite.size:
        checks.fail(where, f"a finite number{' that is not 0' * (scale == 'log')} at {path!r}", "none", "leave it out")
    # An odd number of them, so that a number that never moves is in the middle of one.
    bins = int(np.clip(2 * np.sqrt(rows.shape[1]), 12, 60)) | 1 if bins is None else bins
    if scale == "log":
        # Single numbers that happen to be next to 0 would take most of the axis.
        rows = np.maximum(rows, np.quantile(finite, 0.01))
        edges = np.geomspace(*_apart(np.quantile(finite, 0.01), finite.max(), 2.0, True), bins + 1)
    else:
        edges = np.linspace(*_apart(finite.min(), finite.max(), 0.5, False), bins + 1)
    kept = [row[np.isfinite(row)] for row in rows]
    shares = [np.histogram(row, edges)[0] / row.size if row.size else np.full(bins, np.nan) for row in kept]
    levels = [np.quantile(row, _LEVELS) if row.size else np.full(3, np.nan) for row in kept]
    return _Spread(np.array(shares), edges, np.array(levels).T, said)


def _apart(low: float, high: float, room: float, is_factor: bool) -> tuple[float, float]:
    """The limits of numbers, with room around them where they are all the same."""
    if low < high:
        return low, high
    return (low / room, high * room) if is_factor else (low - room, high + room)


def _counted(where: str, path: str, counts: Any, edges: Any, scale: str) -> _Spread:
    edges = np.asarray(edges, float)
    if edges.ndim != 1 or len(edges) < 2 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
        checks.fail(where, "finite edges that grow", f"edges of shape {edges.shape}", "pass those of jnp.histogram")
    styles.expect_scale(where, scale, edges)
    if counts.shape[1:] != (len(edges) - 1,):
        fix = "without edges, numbers are counted here"
        checks.fail(where, f"counts (moments, {len(edges) - 1}) at {path!r}", f"shape {counts.shape}", fix)
    known = np.isfinite(counts).all(axis=1)
    if (counts[known] < 0).any() or not counts[known].sum():
        checks.fail(where, f"counts of something at {path!r}", "none, or one below 0", "pass those of jnp.histogram")
    total = np.where(known, counts.sum(axis=1), 0)
    # Every array has as many numbers at one moment as at another: what is missing is beyond the edges, or not finite.
    least = 100 * (1 - total[known].min() / total.max())
    said = [f"up to {least:.3g} % in no bin"] if least > 0 else []
    shares = np.where(total[:, None] > 0, counts / np.where(total > 0, total, 1)[:, None], np.nan)
    sums = np.concatenate([np.zeros((len(counts), 1)), shares.cumsum(axis=1)], axis=1)
    levels = [np.interp(_LEVELS, row, edges) if np.isfinite(row).all() else np.full(3, np.nan) for row in sums]
    return _Spread(shares, edges, np.array(levels).T, said)


def _pooled(moments: Any, spread: _Spread) -> tuple[Any, _Spread, int]:
    """Neighbouring moments as one, where there are more than a picture has columns for: the means of each group."""
    size = -(-len(moments) // _MOST_COLUMNS)
    if size == 1:
        return moments, spread, 1

    def means(rows: Any) -> Any:
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        known = [group[np.isfinite(group).all(axis=1)] for group in groups]
        return np.array([rows.mean(axis=0) if len(rows) else np.full(rows.shape[1], np.nan) for rows in known])

    pooled = spread._replace(shares=means(spread.shares), levels=means(spread.levels.T).T)
    return means(moments[:, None])[:, 0], pooled, size


def _drawn(axes: Any, moments: Any, spread: _Spread, top: float) -> Any:
    from matplotlib.colors import PowerNorm

    half = np.diff(moments) / 2 if len(moments) > 1 else np.array([0.5])
    borders = np.concatenate(
        [[moments[0] - half[0]], moments[:-1] + half[: len(moments) - 1], [moments[-1] + half[-1]]]
    )
    # The root: few numbers in one bin have to be seen beside all numbers in another.
    norm = PowerNorm(0.5, styles.NONE, top)
    mesh = axes.pcolormesh(borders, spread.edges, spread.shares.T, cmap=styles.amounts(), norm=norm, rasterized=True)
    for level, dash in zip(spread.levels, ("--", "-", "--"), strict=True):
        styles.curve(axes, moments, level, styles.VERMILION, "", dash, 1.4)
    axes.set_xlim(borders[0], borders[-1])
    return mesh
