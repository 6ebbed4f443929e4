"""Pictures of many runs at once: the curves of the members of a sweep, and how they are spread."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from funcnn import checks
from funcnn.plotting import styles
from funcnn.training.records import Sweep

_MOST_BANDS, _MOST_NAMES = 4, 10  # values of a hyperparameter; beyond them there are medians alone, and no names


def sweep_curves(
    sweep: Any,
    name: str,
    *,
    by: str | None = None,
    quantiles: tuple[float, float] = (0.1, 0.9),
    scale: str = "linear",
) -> Any:
    """The curves of all members over the epochs, their median, and the band in which most of them are.

    Of each epoch the median and the band are those of the members that have a finite number there. A picture that a few
    diverging members would fill shows the others, and says how many leave it.

    Args:
        sweep: a ``Sweep``; without ``by`` also the ``Result`` of a mapped ``run``, or a history with a leading axis.
        name: the column of the history, ``"validation_loss"``.
        by: a hyperparameter whose values are to have a colour and a median each; ``"value"`` where the grid is an array
            without names.
        quantiles: the borders of the band; with more than four values of ``by`` there are medians alone.
        scale: ``"linear"`` or ``"log"``, of the quantity.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: what is no sweep, or has no hyperparameters though ``by`` asks for one.
        ValueError: an unknown name or hyperparameter, no finite number, quantiles that are none.

    Example:
        >>> import numpy as np
        >>> from funcnn import plotting
        >>> losses = np.array([[3.0, 2.0, 1.0], [4.0, 3.0, 2.0], [5.0, 4.0, 3.0]])
        >>> figure = plotting.sweep_curves({"loss": losses}, "loss")
        >>> figure.axes[0].get_lines()[0].get_ydata().tolist()
        [4.0, 3.0, 2.0]
    """
    where = "plotting.sweep_curves"
    curves, bad = columns(where, sweep, name)
    low, high = _expect_quantiles(where, quantiles)
    styles.expect_scale(where, scale, curves)
    values = None if by is None else swept(where, sweep, by)
    figure, (axes,) = styles.panels(1, 6, 4)
    every = [None] if values is None else np.unique(values).tolist()
    shades, bar = _shades(every)
    has_bands = len(every) <= _MOST_BANDS
    for i, (value, colour) in enumerate(zip(every, shades, strict=True)):
        group = curves if values is None else curves[values == value]
        told = f"median of {len(group)}" if by is None else styles.numbers(every)[i]
        dash = "-" if bar is not None or i % 2 == 0 else "--"
        if has_bands:
            _band(axes, group, (low, high), colour)
        _members(axes, group, "#606060" if values is None else colour, len(curves))
        styles.curve(axes, np.arange(1, curves.shape[1] + 1), _quantile(group, 0.5), colour, told, dash, 2.4)
    axes.set_yscale(scale)
    outside = _limited(axes, curves, scale)
    axes.set_title(_said(len(curves), bad, outside), fontsize="medium")
    axes.set_ylabel(styles.labels([name])[0])
    styles.epochs(axes, curves.shape[1])
    axes.grid(alpha=0.3)
    _legend(figure, axes, by, bar, (low, high) if has_bands else None)
    return figure


def columns(where: str, sweep: Any, name: str) -> tuple[Any, int]:
    """A column of all members, NaN where it is not finite, and of how many it is not as far as they went."""
    rows = getattr(sweep, "history", sweep)
    if not isinstance(rows, Mapping):
        fix = "pass what training.sweep gave"
        checks.fail(where, "a Sweep", type(sweep).__name__, fix, TypeError)
    known = [key for key, column in rows.items() if np.ndim(column) == 2]
    if name not in known:
        one = name in rows and np.ndim(rows[name]) == 1 and not known
        fix = "of one run draw plotting.history" if one else "choose one of them"
        checks.fail(
            where, f"a column with one number a member and epoch, {', '.join(known) or 'none'}", repr(name), fix
        )
    column = styles.real(where, name, rows[name])
    if column.size == 0:
        checks.fail(where, "at least one member and epoch", f"shape {column.shape}", "train for an epoch first")
    reached = np.asarray(rows.get("epochs_run", np.full(len(column), column.shape[1])))
    bad = ~np.isfinite(column) & (np.arange(column.shape[1])[None] < reached[:, None])
    return np.where(np.isfinite(column), column, np.nan), int(bad.any(axis=1).sum())


def swept(where: str, sweep: Any, name: str) -> Any:
    """The values of a hyperparameter, one for each member."""
    if not isinstance(sweep, Sweep):
        fix = "pass what training.sweep gave"
        checks.fail(where, f"a Sweep, which knows {name!r} of each member", type(sweep).__name__, fix, TypeError)
    grid = sweep.grid if isinstance(sweep.grid, dict) else {"value": sweep.grid}
    if name not in grid:
        checks.fail(where, f"a hyperparameter, {', '.join(map(str, grid))}", repr(name), "choose one of them")
    values = np.asarray(grid[name])
    if values.ndim != 1:
        got, fix = f"one of shape {values.shape[1:]}", "draw by another one"
        checks.fail(where, f"one number under {name!r}", got, fix)
    return values.astype(float)


def _expect_quantiles(where: str, quantiles: Any) -> tuple[float, float]:
    if len(quantiles) != 2 or not 0 <= quantiles[0] < quantiles[1] <= 1:
        fix = "pass two such as (0.1, 0.9)"
        checks.fail(where, "two quantiles from 0 to 1, the lower one first", f"{tuple(quantiles)}", fix)
    return float(quantiles[0]), float(quantiles[1])


def _quantile(group: Any, share: float) -> Any:
    """A quantile of each epoch over the members that are finite there; NaN where there is none."""
    known = [column[np.isfinite(column)] for column in group.T]
    return np.array([np.quantile(column, share) if column.size else np.nan for column in known])


def _band(axes: Any, group: Any, quantiles: tuple[float, float], colour: Any) -> None:
    low, high = (_quantile(group, share) for share in quantiles)
    at = np.arange(1, group.shape[1] + 1)
    if len(at) == 1:  # a band of no width
        axes.vlines(at, low, high, color=colour, alpha=0.35, linewidth=8)
    else:
        axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)


def _members(axes: Any, group: Any, colour: Any, count: int) -> None:
    """All curves at once, the fainter the more there are."""
    from matplotlib.collections import LineCollection

    at = np.arange(1, group.shape[1] + 1.0)
    alpha = float(np.clip(20 / count, 0.12, 0.6))
    lines = [np.stack([at, row], axis=1) for row in group]
    axes.add_collection(LineCollection(lines, colors=[colour], linewidths=0.8, alpha=alpha, zorder=1))
    dots = [(at[i], row[i]) for row in group for i in styles.alone(row)]
    if dots:
        axes.scatter(*zip(*dots, strict=True), color=colour, alpha=alpha, s=12, zorder=1)


def _limited(axes: Any, curves: Any, scale: str) -> int:
    """Set the limits to where most members are, and count those that leave them."""
    if scale == "log":
        return 0
    low, high = styles.limited(axes, curves)
    with np.errstate(invalid="ignore"):
        return int(((curves < low) | (curves > high)).any(axis=1).sum())


def _said(count: int, bad: int, outside: int) -> str:
    parts = [checks.counted(count, "member")]
    parts += [f"{bad} not finite"] if bad else []
    parts += [f"{outside} outside the picture"] if outside else []
    return ", ".join(parts)


def _shades(every: Sequence[Any]) -> tuple[list[Any], Any]:
    """A colour for each value, and what a bar of them is made of where they are too many for a legend."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    if len(every) <= _MOST_NAMES:
        return (styles.ordered(len(every)) if every[0] is not None else [styles.BLUE]), None
    is_wide = every[0] > 0 and every[-1] > 50 * every[0]
    bar = ScalarMappable((LogNorm if is_wide else Normalize)(every[0], every[-1]), "viridis")
    return [bar.to_rgba(value) for value in every], bar


def _legend(figure: Any, axes: Any, by: str | None, bar: Any, quantiles: tuple[float, float] | None) -> None:
    """Beside the picture: names, or a bar of colours."""
    from matplotlib.patches import Patch

    title = by and styles.labels([by])[0]
    if bar is not None:
        figure.colorbar(bar, ax=axes, label=title)
        return
    handles, _ = axes.get_legend_handles_labels()
    if quantiles is not None:
        low, high = (f"{100 * share:g}" for share in quantiles)
        handles.append(Patch(color=handles[0].get_color(), alpha=0.2, label=f"{low} % to {high} %"))
    styles.beside(figure, handles, title)
