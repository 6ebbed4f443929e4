"""What all pictures share: colours that colour-blind eyes tell apart, axes, ticks, and words that fit."""

import textwrap
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from funcnn import checks

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""The palette of Okabe and Ito, "Color universal design", 2008, from what shows best on white to what shows least."""

BLUE, VERMILION, GREEN = COLOURS[:3]
"""The first of them by name; vermilion is also what is wrong."""

GREY = "#B8B8B8"
"""What is not there: cells without a number, members behind their median."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""So that classes differ in shape as well as in colour."""

DASHES = ("-", "--", "-.", ":")
"""So that curves differ when the colours are used up."""

MAP = "cividis"
"""From little to much: the map that looks the same to colour-blind eyes (Nuñez et al., 2018)."""

SCALES = ("linear", "log")
"""Of an axis."""

_WIDEST = 28  # letters of a label that fit beside a picture


def panels(count: int, width: float = 4.2, height: float = 3.2, columns: int = 3) -> tuple[Any, list[Any]]:
    """A figure with so many axes, in rows of at most ``columns``; the sizes, in inches, are those of one."""
    checks.expect_package("plotting", "matplotlib", "matplotlib, which draws", "plots")
    from funcnn.plotting.figures import Figure

    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in every[count:]:
        axes.remove()
    return figure, every[:count]


def colours(count: int) -> list[Any]:
    """So many colours: those of the palette, or, where they are too few, steps through a map."""
    return list(COLOURS[:count]) if count <= len(COLOURS) else ordered(count)


def ordered(count: int) -> list[Any]:
    """So many colours with an order: even steps through a map, but for its end, which is too light for a line."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count)))


def amounts() -> Any:
    """The map for how many there are: white for none at all, and the darker the more; grey for what is not known."""
    import matplotlib

    return matplotlib.colormaps[f"{MAP}_r"].with_extremes(under="white", bad=GREY)


NONE = 1e-9
"""What ``amounts`` begins with: below it there is none."""


def diverging() -> Any:
    """The map from vermilion over white to blue: for numbers on two sides of one that matters."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("vermilion_blue", [VERMILION, "#FFFFFF", BLUE]).with_extremes(bad=GREY)


def sequential() -> Any:
    """The map from little to much, grey for what is not finite."""
    import matplotlib

    return matplotlib.colormaps[MAP].with_extremes(bad=GREY)


def ink(colour: Any) -> str:
    """Black or white, whichever can be read on a colour, by its luminance as WCAG 2 defines it."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.18 else "white"


def real(where: str, what: str, values: Any) -> Any:
    """The values as an array of floating numbers; raise where they are none."""
    array = np.asarray(values)
    # What JAX has beyond NumPy, such as bfloat16, is of no kind of its own.
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        fix = "convert them: .astype(float), and of complex ones take .real or abs"
        checks.fail(where, f"{what} as real numbers", f"{array.dtype}{array.shape}", fix, TypeError)
    return array.astype(float)


def expect_scale(where: str, scale: Any, values: Any) -> None:
    """Raise unless this is a scale, on which all of the values that are finite can be drawn."""
    checks.expect_option(where, "scale", scale, SCALES)
    finite = np.asarray(values)[np.isfinite(values)]
    if scale == "log" and finite.size and finite.min() <= 0:
        fix = 'draw it with scale="linear"'
        checks.fail(where, "numbers above 0 on a logarithmic scale", f"one of {finite.min():.4g}", fix)


def curve(axes: Any, x: Any, y: Any, colour: Any, label: str, dash: str = "-", width: float = 1.8) -> None:
    """A curve with gaps where it is not finite, and a dot where a number stands alone between them."""
    y = np.where(np.isfinite(y), y, np.nan)
    (line,) = axes.plot(x, y, dash, color=colour, label=label, linewidth=width)
    if alone(y).size:
        line.set(marker="o", markersize=5, markevery=alone(y).tolist())


def alone(y: Any) -> Any:
    """Where a finite number has no finite neighbour, so that no line leads to it."""
    known = np.concatenate([[False], np.isfinite(y), [False]])
    return np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])


def not_finite(axes: Any, x: Any, label: str) -> None:
    """Crosses at the foot of a picture, where there is nothing else to draw."""
    if len(x):
        foot = axes.get_xaxis_transform()
        size = float(np.clip(200 / len(x), 2, 6))
        axes.plot(x, np.full(len(x), 0.03), "x", color=VERMILION, label=label, transform=foot, markersize=size)


def limited(axes: Any, values: Any) -> tuple[float, float]:
    """Set the limits of a linear axis to where most values are, and return them: a few may be of another size."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return -np.inf, np.inf
    first, last = np.quantile(finite, (0.1, 0.9))
    # Three times the span of most of them on each side: what a picture of them has room for.
    near = finite[np.abs(finite - (first + last) / 2) <= 3.5 * (last - first)] if last > first else finite
    low, high = near.min(), near.max()
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    return low - margin, high + margin


def beside(figure: Any, handles: Sequence[Any], title: str | None = None) -> None:
    """A legend to the right of a figure, which grows by as much as it needs."""
    names = [handle.get_label() for handle in handles]
    lines = sum(name.count("\n") + 1.3 for name in names) + (2 if title else 0)
    width, height = figure.get_size_inches()
    columns = max(1, int(np.ceil(0.17 * lines / height)))
    widest = max(len(line) for name in [*names, title or ""] for line in name.split("\n"))
    figure.set_size_inches(width + columns * (0.5 + 0.085 * widest), height)
    figure.legend(handles=handles, title=title, loc="outside right upper", ncols=columns)


def epochs(axes: Any, count: int, name: str = "epoch") -> None:
    """The axis of whole numbers from 1 to ``count``."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=8, steps=[1, 2, 5, 10]))
    margin = 0.5 if count == 1 else 0.03 * (count - 1)
    axes.set_xlim(1 - margin, count + margin)


def labels(names: Sequence[Any]) -> list[str]:
    r"""Names as labels: in two lines where they are long, without their middle where they are longer still.

    >>> labels(["relu", "a" * 40 + "b" * 40])
    ['relu', 'aaaaaaaaaaaaaaaaaaaaaaaaaaa…\nbbbbbbbbbbbbbbbbbbbbbbbbbbbb']
    """
    whole = [str(name) for name in names]
    short = [_fitted(name) for name in whole]
    # Two names that differ in their middle alone would be one.
    return [
        cut if short.count(cut) == 1 else textwrap.fill(name, _WIDEST) for name, cut in zip(whole, short, strict=True)
    ]


def _fitted(name: str) -> str:
    if len(name) <= _WIDEST:
        return name
    lines = textwrap.wrap(name, _WIDEST)
    return "\n".join(lines) if len(lines) == 2 else f"{name[: _WIDEST - 1]}…\n{name[-_WIDEST:]}"


def ticks(axes: Any, along: str, names: Sequence[Any], most: int) -> None:
    """Names at 0, 1, 2, ... along ``x`` or ``y``; of more than ``most`` every second, third and so on."""
    every = max(1, -(-len(names) // most))
    at = list(range(0, len(names), every))
    shown = labels([names[i] for i in at])
    if along == "y":
        axes.set_yticks(at, shown)
        return
    crowded = sum(max(map(len, name.split("\n"))) + 2 for name in shown) > 44
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(at, shown, **slanted)


def numbers(values: Any) -> list[str]:
    """Numbers as labels, all of them with as many digits as tell them apart."""
    every = [[f"{value:.{digits}g}" for value in values] for digits in (3, 4, 5, 6, 9, 17)]
    return next((shown for shown in every if len(set(shown)) == len(set(values))), every[-1])
