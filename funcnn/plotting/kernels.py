"""Pictures of what a convolution looks for: its filters as images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from funcnn import checks, trees
from funcnn.plotting import styles

_MOST_ROWS, _MOST_TILES = 32, 256  # features along each side, or in all where one side has none
_GAP = 2  # pixels between two filters, each weight of which is several


def filters(
    kernel: Any, *, inputs: Sequence[int] | None = None, outputs: Sequence[int] | None = None, rgb: bool = False
) -> Any:
    """The filters of a convolution as images: blue for weights above 0, vermilion for those below, white for 0.

    One row for each input feature, one column for each output feature; of a single input the outputs fill a square. Of
    more than 32 features (256 in a square) the first are drawn, and the title says so.

    Args:
        kernel: ``(height, width, inputs, outputs)``, or ``(width, inputs, outputs)`` of one axis:
            ``params["conv_0"]["kernel"]``.
        inputs: which input features;
        outputs: and which output features, by their numbers.
        rgb: whether the three inputs are red, green and blue, and a filter is one picture of that colour; grey is 0.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: params instead of one kernel.
        ValueError: a kernel with other axes, nothing finite, a feature that there is not, ``rgb`` without three
            inputs.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import plotting
        >>> figure = plotting.filters(jnp.ones((3, 3, 2, 8)), outputs=[0, 5])
        >>> figure.axes[0].get_title(), [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ('2 of 8 outputs, 3 x 3', ['0', '5'])
    """
    where = "plotting.filters"
    a = _kernel(where, kernel)
    height, width, n, m = a.shape
    rows = _features(where, "inputs", inputs, n, _MOST_ROWS)
    is_square = rgb or len(rows) == 1
    columns = _features(where, "outputs", outputs, m, _MOST_TILES if is_square else _MOST_ROWS)
    if rgb and (n != 3 or inputs is not None):
        checks.fail(where, "all of three inputs, for rgb=True", f"{n}" if n != 3 else "a choice", "leave it out")
    bound = float(np.abs(a[np.isfinite(a)]).max()) or 1.0
    across = int(np.ceil(np.sqrt(len(columns)))) if is_square else len(columns)
    if rgb:
        tiles = 0.5 + 0.5 * np.where(np.isfinite(a), a, 0)[..., columns].transpose(3, 0, 1, 2) / bound
    else:
        tiles = a[:, :, rows][..., columns].transpose(2, 3, 0, 1).reshape(-1, height, width)
    down = -(-len(tiles) // across)
    figure, (axes,) = styles.panels(
        1, min(10, 2.2 + 0.5 * across), min(9, 1.2 + 0.5 * down * (height / width if height > 1 else 1))
    )
    picture, pitch = _mosaic(tiles, across, 1.0 if rgb else np.nan)
    shown = {"cmap": styles.diverging(), "vmin": -bound, "vmax": bound, "interpolation": "nearest"}
    image = axes.imshow(picture, **shown)
    if not rgb:
        figure.colorbar(image, ax=axes, label="weight", shrink=0.8)
    _numbered(axes, rows, columns, pitch, is_square)
    axes.set_title(_said(a, 0 if rgb else len(rows), len(columns)), fontsize="medium")
    return figure


def _kernel(where: str, kernel: Any) -> Any:
    if isinstance(kernel, dict):
        large = [path for path, leaf in trees.select(kernel, "**", where=where).items() if np.ndim(leaf) in (3, 4)]
        got = f"params, with such arrays at {large}"
        checks.fail(where, "one kernel", got, 'pass it alone, such as params["conv_0"]["kernel"]', TypeError)
    a = styles.real(where, "a kernel", kernel)
    a = a[None] if a.ndim == 3 else a
    if a.ndim != 4 or not a.size:
        fix = "of three spatial axes pass a slice, kernel[i]"
        checks.fail(where, "a kernel (height, width, inputs, outputs)", f"shape {a.shape}", fix)
    if not np.isfinite(a).any():
        checks.fail(where, "a finite weight", "none", "look for the first with inspection.first_nonfinite")
    return a


def _features(where: str, name: str, chosen: Sequence[int] | None, count: int, most: int) -> list[int]:
    if chosen is None:
        return list(range(min(count, most)))
    found = [int(i) for i in chosen]
    if not found or not all(0 <= i < count for i in found):
        checks.fail(where, f"{name} from 0 to {count - 1}", f"{found}", "choose some that there are")
    return found


def _mosaic(tiles: Any, across: int, between: float) -> tuple[Any, tuple[int, int]]:
    """Tiles ``(n, height, width, ...)`` row by row with a narrow gap, and how far it is from one to the next."""
    # What is a line is drawn as stripes.
    sides = tiles.shape[1:3]
    times = [max(1, round(12 / (side if 1 in sides else max(sides)))) for side in sides]
    tiles = tiles.repeat(times[0], axis=1).repeat(times[1], axis=2)
    height, width = (size + _GAP for size in tiles.shape[1:3])
    down = -(-len(tiles) // across)
    picture = np.full((down * height - _GAP, across * width - _GAP, *tiles.shape[3:]), between)
    for i, tile in enumerate(tiles):
        top, left = i // across * height, i % across * width
        picture[top : top + height - _GAP, left : left + width - _GAP] = tile
    return picture, (height, width)


def _numbered(axes: Any, rows: list[int], columns: list[int], pitch: tuple[int, int], is_square: bool) -> None:
    """The numbers of the features at the sides of the picture."""
    if is_square:
        axes.set_xticks([])
        axes.set_yticks([])
        whole = columns == list(range(columns[0], columns[-1] + 1))
        several = (
            f"{columns[0]} to {columns[-1]}"
            if whole
            else ", ".join(map(str, columns[:12])) + " …" * (len(columns) > 12)
        )
        axes.set_xlabel(f"outputs {several}, row by row" if len(columns) > 1 else f"output {columns[0]}")
        return
    for name, chosen, length in (("x", columns, pitch[1]), ("y", rows, pitch[0])):
        every = max(1, -(-len(chosen) // 16))
        at = [i * length + (length - _GAP - 1) / 2 for i in range(0, len(chosen), every)]
        (axes.set_xticks if name == "x" else axes.set_yticks)(at, [str(i) for i in chosen[::every]])
    axes.set_xlabel("output feature")
    axes.set_ylabel("input feature")


def _said(a: Any, rows: int, columns: int) -> str:
    """What of a kernel is there to see."""
    height, width, n, m = a.shape
    parts = [(rows, n, "inputs")] if rows else []
    left = [f"{shown} of {count} {what}" for shown, count, what in [*parts, (columns, m, "outputs")] if shown < count]
    bad = int((~np.isfinite(a)).sum())
    left += [f"{bad} not finite"] if bad else []
    return ", ".join([*(left or [checks.counted(m, "filter")]), f"{height} x {width}"])
