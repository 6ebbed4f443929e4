"""Pictures of one run: its history, and the search for its learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from funcnn import checks
from funcnn.plotting import styles
from funcnn.training.rates import RateRange
from funcnn.training.stopping import mode_of

_VALIDATION = "validation_"


def history(
    history: Any,
    *,
    names: Sequence[str] | None = None,
    monitor: str | None = None,
    mode: str | None = None,
    scale: str = "linear",
) -> Any:
    """The curves of a run over its epochs: one picture for each quantity, training and validation in it.

    The best epoch is marked in all of them. Where a number is not finite the curve has a gap, and a cross stands at the
    foot; epochs that an early stop left out are not drawn.

    Args:
        history: a ``Result`` of ``run`` or ``fit``, or its ``history``.
        names: which quantities, ``("loss", "accuracy")``; all that are one number an epoch otherwise.
        monitor: the column by which an epoch is best; ``"validation_loss"`` otherwise, where there is one.
        mode: ``"min"`` where less of it is better, ``"max"`` where more is; needed unless it is a loss.
        scale: ``"linear"`` or ``"log"``, of the quantities.

    Returns:
        A ``matplotlib`` ``Figure``; save it with ``figure.savefig("curves.png")``.

    Raises:
        ValueError: there is no curve to draw, none of a name, a monitor without ``mode``, or numbers that a logarithmic
            scale has no place for.

    Example:
        >>> import numpy as np
        >>> from funcnn import plotting
        >>> figure = plotting.history({"loss": np.array([2.0, 1.0]), "validation_loss": np.array([2.2, 1.5])})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss']
        >>> figure.axes[0].get_legend_handles_labels()[1]
        ['training', 'validation', 'best epoch: 2']
    """
    where = "plotting.history"
    curves = _curves(where, history)
    chosen = _chosen(where, curves, names)
    best, said = _best(where, curves, monitor, mode)
    figure, every = styles.panels(len(chosen), 4.6, 3.4)
    for axes, name in zip(every, chosen, strict=True):
        drawn = {label: curves[key] for label, key in _pair(curves, name).items()}
        styles.expect_scale(where, scale, np.concatenate(list(drawn.values())))
        # Told apart by dashes too, for print without colours.
        for (label, y), colour, dash in zip(drawn.items(), (styles.BLUE, styles.VERMILION), ("-", "--"), strict=False):
            styles.curve(axes, np.arange(1, len(y) + 1), y, colour, label, dash)
        bad = np.unique(np.concatenate([np.flatnonzero(~np.isfinite(y)) + 1 for y in drawn.values()]))
        styles.not_finite(axes, bad, "not finite")
        if best is not None:
            _mark(axes, curves, best, name)
        axes.set_title(said, fontsize="medium") if said else None
        axes.set_yscale(scale)
        axes.set_ylabel(styles.labels([name])[0])
        styles.epochs(axes, max(map(len, drawn.values())))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _curves(where: str, given: Any) -> dict[str, Any]:
    """The columns that are one number an epoch, as far as the run went."""
    rows = getattr(given, "history", given)
    if not isinstance(rows, Mapping):
        fix = "pass what run or fit gave, or a dict of arrays"
        checks.fail(where, "a Result or its history", type(given).__name__, fix, TypeError)
    reached = np.asarray(rows["epochs_run"]) if "epochs_run" in rows else None
    count = int(reached) if reached is not None and reached.ndim == 0 else None
    rows = {str(name): np.asarray(column) for name, column in rows.items() if name != "epochs_run"}
    flat = {name: column for name, column in rows.items() if column.ndim == 1}
    curves = {name: styles.real(where, name, column[:count]) for name, column in flat.items()}
    if not curves or not all(len(column) for column in curves.values()):
        many = any(column.ndim > 1 for column in rows.values()) and not curves
        shown = ", ".join(f"{name} {column.shape}" for name, column in rows.items())
        fix = "of many runs draw plotting.sweep_curves" if many else "train for an epoch first"
        checks.fail(where, "a history with at least one epoch", shown or "an empty one", fix)
    return curves


def _chosen(where: str, curves: dict[str, Any], names: Sequence[str] | None) -> list[str]:
    """The quantities to draw, each of which has its validation beside it."""
    known = [
        name for name in curves if name.removeprefix(_VALIDATION) == name or name[len(_VALIDATION) :] not in curves
    ]
    if names is None:
        return known
    if isinstance(names, str) or not names:
        checks.fail(where, "names as a sequence of at least one", repr(names), f"choose of {known}", TypeError)
    for name in names:
        if name not in known:
            fix = "choose of them, each is drawn with its validation"
            checks.fail(where, f"names of quantities, {', '.join(known)}", repr(name), fix)
    return list(names)


def _pair(curves: dict[str, Any], name: str) -> dict[str, str]:
    """The columns of a quantity by what they are called in the picture."""
    if name.startswith(_VALIDATION):
        return {"validation": name}
    found = {"training": name, "validation": _VALIDATION + name}
    return {label: key for label, key in found.items() if key in curves}


def _best(where: str, curves: dict[str, Any], monitor: str | None, mode: str | None) -> tuple[int | None, str]:
    """The best epoch, counted from 1, and what there is to say where there is none."""
    if monitor is None:
        if mode is not None:
            fix = 'say what is compared, for instance monitor="validation_loss"'
            checks.fail(where, "monitor, for mode is about it", "none", fix)
        if _VALIDATION + "loss" not in curves:
            return None, ""
        monitor = _VALIDATION + "loss"
    elif monitor not in curves:
        checks.fail(where, f"monitor as a column, {', '.join(curves)}", repr(monitor), "choose one of them")
    column = curves[monitor] * (1 if mode_of(where, monitor, mode) == "min" else -1)
    if not np.isfinite(column).any():
        return None, f"no best epoch: {monitor} is nowhere finite"
    return int(np.argmin(np.where(np.isfinite(column), column, np.inf))) + 1, ""


def _mark(axes: Any, curves: dict[str, Any], best: int, name: str) -> None:
    """A line through the best epoch, and a star behind the curve that validation has there."""
    axes.axvline(best, color="black", linestyle=":", linewidth=1.2)
    drawn = curves[list(_pair(curves, name).values())[-1]]
    if best <= len(drawn):
        star = {"markersize": 12, "markeredgecolor": "white"}
        axes.plot([best], [drawn[best - 1]], "*", color="black", label=f"best epoch: {best}", zorder=1.9, **star)


def learning_rates(found: Any) -> Any:
    """The loss while the learning rate grows, and the rate that is suggested.

    Args:
        found: what ``training.find_learning_rate`` gave.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: it is something else.
        ValueError: no loss is finite.

    Example:
        >>> import numpy as np
        >>> from funcnn import plotting, training
        >>> rates, losses = np.array([1e-3, 1e-2, 1e-1]), np.array([3.0, 2.0, 4.0])
        >>> figure = plotting.learning_rates(training.RateRange(rates, losses, losses, 1e-2))
        >>> figure.axes[0].get_xscale(), figure.axes[0].get_title()
        ('log', 'suggested: 0.01')

    Reference: Smith, "Cyclical learning rates for training neural networks", 2017.
    """
    where = "plotting.learning_rates"
    if not isinstance(found, RateRange):
        fix = "pass what training.find_learning_rate gave"
        checks.fail(where, "a RateRange", type(found).__name__, fix, TypeError)
    losses = np.asarray(found.losses, float)
    first = losses[: max(1, len(losses) // 10)]
    if not np.isfinite(first).any():
        checks.fail(where, "a finite loss at the first rates", f"{first[0]}", "begin the search with lower rates")
    figure, (axes,) = styles.panels(1, 5, 3.5)
    axes.plot(found.rates, losses, color=styles.GREY, linewidth=1, label="of each batch")
    styles.curve(axes, found.rates, np.asarray(found.smoothed, float), styles.BLUE, "smoothed")
    axes.axvline(found.suggestion, color="black", linestyle=":")
    axes.set_title(f"suggested: {found.suggestion:.2g}")
    axes.set_xscale("log")
    # Where a run diverges the loss is of another size, and would hide the rest.
    low, high = losses[np.isfinite(losses)].min(), first[np.isfinite(first)].max()
    axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low) if high > low else None)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
