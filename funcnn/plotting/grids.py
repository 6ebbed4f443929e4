"""Pictures of many runs over what they differ in: a column of the history, by two hyperparameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from funcnn import checks
from funcnn.plotting import styles
from funcnn.plotting.sweeps import columns, swept
from funcnn.training.records import Sweep
from funcnn.training.stopping import mode_of

_MOST_TEXTS = 120  # cells of a map that have room for their number


def sweep_map(
    sweep: Sweep,
    name: str,
    x: str,
    y: str,
    *,
    fixed: Mapping[str, float] | None = None,
    at: str = "last",
    mode: str | None = None,
    scale: str = "linear",
) -> Any:
    """A column of the history over two hyperparameters, by colour: the mean over the seeds of each point.

    A cross is where a seed of the point has no finite number. Hyperparameters that make no grid, those drawn at random
    for instance, are dots on axes of their own; an axis is logarithmic where they span more than a factor of fifty.

    Args:
        sweep: what ``training.sweep`` gave.
        name: the column of the history, ``"validation_accuracy"``.
        x: the hyperparameter along the one axis, a name in the grid;
        y: and along the other.
        fixed: the values of all others that were swept, ``{"width": 32}``.
        at: ``"last"``, the last epoch of each member, or ``"best"``, the best one.
        mode: ``"min"`` where less is better, ``"max"`` where more is; the best point is framed where this is known, as
            it is of a loss. ``at="best"`` needs it.
        scale: ``"linear"`` or ``"log"``, of the colours.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: what is no sweep.
        ValueError: an unknown name, others that are not fixed, a value that was not tried, or no finite number.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, plotting, training
        >>> def make(h):
        ...     return training.supervised(layers.dense(1), losses.squared_error, optax.sgd(h["rate"], h["momentum"]))
        >>> grid = {"rate": jnp.array([0.01, 0.1]), "momentum": jnp.array([0.0, 0.9])}
        >>> x = jnp.linspace(-1, 1, 8)[:, None]
        >>> found = training.sweep(make, grid, (x, 2 * x), key=jax.random.key(0), epochs=2, progress=False)
        >>> figure = plotting.sweep_map(found, "loss", "rate", "momentum")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()], figure.axes[0].images[0].get_array().shape
        (['0.01', '0.1'], (2, 2))
    """
    where = "plotting.sweep_map"
    checks.expect_option(where, "at", at, ("last", "best"))
    curves, _ = columns(where, sweep, name)
    if mode is not None or at == "best" or name.endswith("loss"):
        mode = mode_of(where, name, mode)
    chosen = _where(where, sweep, (x, y), fixed or {})
    along, up = (swept(where, sweep, key)[chosen] for key in (x, y))
    points, means = _points(np.stack([along, up]), _ends(sweep, curves, at, mode, name)[chosen])
    if not np.isfinite(means).any():
        checks.fail(where, f"a finite {name} at one point", "none", "lower the learning rates of the grid")
    styles.expect_scale(where, scale, means)
    figure, (axes,) = styles.panels(1, 6.4, 4.4)
    drawn = (_cells if _is_grid(points) else _dots)(axes, points, means, scale)
    figure.colorbar(drawn, ax=axes, label=styles.labels([name])[0])
    _marked(figure, axes, points, means, mode)
    seeds = -(-int(chosen.sum()) // len(means))
    mean = f"mean of {checks.counted(seeds, 'seed')}" if seeds > 1 else "one seed"
    others = [f"{key} {value:g}" for key, value in (fixed or {}).items()]
    axes.set_title(", ".join([f"{at} epoch, {mean}", *others]), fontsize="medium")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure


def _where(where: str, sweep: Any, axes: tuple[str, str], fixed: Mapping[str, float]) -> Any:
    """Which members have the fixed values; all other hyperparameters have to be on an axis, or the same everywhere."""
    for key in (*axes, *fixed):
        swept(where, sweep, key)
    if axes[0] == axes[1] or set(axes) & set(fixed):
        fix = "name another one"
        checks.fail(where, "two hyperparameters, neither of them fixed", f"{axes[0]!r} and {axes[1]!r}", fix)
    chosen = np.ones(len(sweep.seeds), bool)
    for key, value in fixed.items():
        # The grid is float32 where the value that was written is float64.
        chosen &= np.isclose(swept(where, sweep, key), value, rtol=1e-5, atol=0)
        if not chosen.any():
            tried = ", ".join(styles.numbers(np.unique(swept(where, sweep, key))))
            checks.fail(where, f"a value of {key!r} that was tried, {tried}", f"{value}", "choose one of them")
    for key in sweep.grid:
        if key not in axes and len(np.unique(np.asarray(sweep.grid[key])[chosen], axis=0)) > 1:
            fix = f"fix it: fixed={{{key!r}: ...}}"
            checks.fail(where, "all hyperparameters on an axis or fixed", f"several values of {key!r}", fix)
    return chosen


def _ends(sweep: Any, curves: Any, at: str, mode: str | None, name: str) -> Any:
    """One number for each member, NaN where there is none."""
    if at == "last":
        return np.asarray(sweep.final(name), float)
    worst = np.inf if mode == "min" else -np.inf
    kept = np.where(np.isfinite(curves), curves, worst)
    return kept.min(axis=1) if mode == "min" else kept.max(axis=1)


def _points(pairs: Any, values: Any) -> tuple[Any, Any]:
    """The points ``(2, n)`` of the grid, and the mean over the members of each; NaN where one is not finite."""
    points, index = np.unique(pairs, axis=1, return_inverse=True)
    groups = [values[index.ravel() == i] for i in range(points.shape[1])]
    return points, np.array([group.mean() if np.isfinite(group).all() else np.nan for group in groups])


def _is_grid(points: Any) -> bool:
    """Whether at least half of all combinations are there."""
    return len(np.unique(points[0])) * len(np.unique(points[1])) <= 2 * points.shape[1]


def _norm(means: Any, scale: str) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    finite = means[np.isfinite(means)]
    return (LogNorm if scale == "log" else Normalize)(finite.min(), finite.max())


def _cells(axes: Any, points: Any, means: Any, scale: str) -> Any:
    """A cell for each combination, with its number where there is room; white where it was not tried."""
    (across, i), (up, j) = (np.unique(values, return_inverse=True) for values in points)
    table = np.full((len(up), len(across)), np.nan)
    table[j, i] = means
    norm, shades = _norm(means, scale), styles.sequential().with_extremes(bad="white")
    image = axes.imshow(table, cmap=shades, norm=norm, origin="lower", aspect="auto")
    for row, column in np.argwhere(np.isfinite(table)) if table.size <= _MOST_TEXTS else ():
        value = table[row, column]
        colour = styles.ink(shades(norm(value)))
        axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=colour, fontsize="small")
    styles.ticks(axes, "x", styles.numbers(across), 10)
    styles.ticks(axes, "y", styles.numbers(up), 12)
    return image


def _dots(axes: Any, points: Any, means: Any, scale: str) -> Any:
    known = np.isfinite(means)
    for name, values in zip(("x", "y"), points, strict=True):
        if values.min() > 0 and values.max() > 50 * values.min():
            axes.set(**{f"{name}scale": "log"})
    shown = {"cmap": styles.sequential(), "norm": _norm(means, scale), "edgecolors": "black", "linewidths": 0.5}
    return axes.scatter(*points[:, known], c=means[known], s=60, **shown)


def _marked(figure: Any, axes: Any, points: Any, means: Any, mode: str | None) -> None:
    """Crosses where a number is not finite, and a ring around the best point."""
    at = points
    if axes.images:
        at = np.stack([np.unique(values, return_inverse=True)[1] for values in points])
    bad = ~np.isfinite(means)
    if bad.any():
        axes.plot(*at[:, bad], "x", color=styles.VERMILION, markersize=12, markeredgewidth=2.5, label="not finite")
    if mode is not None:
        best = np.argmin(np.where(bad, np.inf, means if mode == "min" else -means))
        ring = {"markersize": 24, "markerfacecolor": "none", "markeredgewidth": 2.5}
        axes.plot(*at[:, best : best + 1], "o", color=styles.VERMILION, label="best", **ring)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, markerscale=0.5)
