"""Pictures of what a model says: over a plane of inputs, and class against class."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from funcnn import checks
from funcnn.plotting import styles

_MOST_TEXTS = 25  # classes of a confusion matrix that leave room for numbers
_MOST_CLASSES = 2_000  # more cells than a picture has points


def decision_boundary(
    predict: Callable[[Any], Any],
    x: Any,
    y: Any = None,
    *,
    threshold: float | None = None,
    class_names: Sequence[str] | None = None,
    input_names: tuple[str, str] = ("input 0", "input 1"),
    resolution: int = 200,
) -> Any:
    """What a function of two inputs says all over the plane, and where it changes its mind.

    Args:
        predict: from inputs ``(n, 2)`` to classes, as whole numbers ``(n,)`` or as scores ``(n, classes)`` of which the
            largest counts; or to one score, ``(n,)`` or ``(n, 1)``. Of a model
            ``lambda x: training.predict(model, result.state, x)``.
        x: points ``(n, 2)``, which say what part of the plane is drawn.
        y: their classes as whole numbers, ``(n,)`` or ``(n, 1)``, or a number for each where ``predict`` gives a score.
        threshold: the score at the boundary; needed unless all scores are from 0 to 1, where it is 0.5.
        class_names: what the classes are called, from the first.
        input_names: what the two inputs are, with their units: ``("height (cm)", "weight (kg)")``.
        resolution: points of the plane along each axis.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: classes that are not whole numbers.
        ValueError: inputs that are not two finite numbers, outputs of another shape, a score without a threshold, names
            that are too few.

    Example:
        >>> import numpy as np
        >>> from funcnn import plotting
        >>> x = np.array([[0.0, 0.0], [1.0, 1.0]])
        >>> figure = plotting.decision_boundary(lambda x: x.sum(axis=1), x, np.array([0, 1]), threshold=1.0)
        >>> figure.axes[0].get_title()
        'boundary at a score of 1'
    """
    where = "plotting.decision_boundary"
    x = _expect_points(where, x)
    checks.expect_count(where, "resolution", resolution, 2)
    low, high = x.min(axis=0), x.max(axis=0)
    margin = np.where(high > low, 0.1 * (high - low), 1.0)
    sides = [np.linspace(a, b, resolution) for a, b in zip(low - margin, high + margin, strict=True)]
    plane = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2).astype(x.dtype)
    if not callable(predict):
        fix = "pass one of the inputs, such as lambda x: training.predict(model, state, x)"
        checks.fail(where, "predict as a function", type(predict).__name__, fix, TypeError)
    if len(input_names) != 2:
        checks.fail(where, "two input_names", f"{len(input_names)}", "name both inputs")
    said = np.asarray(predict(plane))
    styles.real(where, "what predict gives", said)
    y = None if y is None else _expect_targets(where, y, len(x))
    figure, (axes,) = styles.panels(1, 6, 4.4)
    if _is_score(where, said, len(plane)):
        values = said.reshape(resolution, resolution).astype(float)
        _score(where, figure, axes, (x, y), sides, values, threshold, class_names)
    else:
        if threshold is not None:
            fix = "leave it out: the largest score counts"
            checks.fail(where, "a threshold for one score alone", f"outputs of shape {said.shape}", fix)
        _regions(where, figure, axes, (x, y), sides, said, class_names)
    axes.set_xlabel(input_names[0])
    axes.set_ylabel(input_names[1])
    return figure


def _expect_points(where: str, x: Any) -> Any:
    x = np.asarray(x)
    numbers = styles.real(where, "points", x)
    x = x if np.issubdtype(x.dtype, np.floating) else numbers.astype(np.float32)
    if x.ndim != 2 or x.shape[1] != 2 or not len(x):
        checks.fail(
            where, "points of shape (n, 2)", str(x.shape), "choose two of the inputs, and fix others in predict"
        )
    if not np.isfinite(x).all():
        checks.fail(where, "finite points", f"{(~np.isfinite(x)).any(axis=1).sum()} that are not", "leave them out")
    return x


def _expect_targets(where: str, y: Any, n: int) -> Any:
    y = np.asarray(y)
    if not np.isfinite(styles.real(where, "targets", y)).all():
        checks.fail(where, "finite targets", f"{np.sum(~np.isfinite(y))} that are not", "leave them out")
    if y.shape not in [(n,), (n, 1)]:
        fix = "give a class or a number for each point; of rows take .argmax(-1)"
        checks.fail(where, f"targets of shape {(n,)}", str(y.shape), fix)
    return y.reshape(-1)


def _is_score(where: str, said: Any, n: int) -> bool:
    """Whether what a model says is one score for each point; classes otherwise."""
    whole = not np.issubdtype(said.dtype, np.floating)
    if said.shape == (n,) or said.shape == (n, 1):
        return not whole
    if said.ndim != 2 or len(said) != n or whole:
        fix = "return classes (n,), scores (n, classes), or one score (n,)"
        checks.fail(where, f"an output for each of {n} inputs", f"{said.dtype}{said.shape}", fix)
    return False


def _score(
    where: str, figure: Any, axes: Any, points: Any, sides: Any, values: Any, threshold: float | None, names: Any
) -> None:
    from matplotlib.colors import Normalize

    finite = values[np.isfinite(values)]
    if not finite.size:
        checks.fail(where, "a finite score somewhere", "none", "look for the first with inspection.first_nonfinite")
    if threshold is None:
        if finite.min() < 0 or finite.max() > 1:
            got, fix = f"scores from {finite.min():.3g} to {finite.max():.3g}", "of logits the threshold is 0.0"
            checks.fail(where, "a threshold, or scores from 0 to 1", got, fix)
        threshold = 0.5
    reach = float(np.abs(finite - threshold).max()) or 1.0
    # Both sides as deep as the deeper one, so that white is the threshold.
    shown = {"cmap": styles.diverging(), "norm": Normalize(threshold - reach, threshold + reach)}
    image = axes.imshow(values, extent=_extent(sides), origin="lower", aspect="auto", alpha=0.75, **shown)
    figure.colorbar(image, ax=axes, label="score")
    is_there = finite.min() < threshold < finite.max()
    if is_there:
        axes.contour(*sides, values, levels=[threshold], colors="black", linewidths=1.5)
    side = "above" if finite.min() >= threshold else "below"
    said = f"boundary at a score of {threshold:g}" if is_there else f"all scores are {side} {threshold:g}"
    axes.set_title(said + _bad(values), fontsize="medium")
    x, y = points
    if y is not None and len(np.unique(y)) > 2:
        if names is not None:
            checks.fail(where, "two classes, to be named", f"{len(np.unique(y))} different targets", "leave names out")
        axes.scatter(*x.T, c=y, s=28, edgecolors="black", linewidths=0.7, **shown)
    else:
        classes = np.unique(y) if y is not None else ()
        # The class of the higher number is on the blue side.
        colours = [styles.VERMILION, styles.BLUE][-len(classes) :] if len(classes) else []
        _points(where, figure, axes, points, classes, colours, names)


def _regions(where: str, figure: Any, axes: Any, points: Any, sides: Any, said: Any, names: Any) -> None:
    from matplotlib.colors import ListedColormap, to_rgb

    y = points[1]
    if y is not None and not np.issubdtype(y.dtype, np.integer) and y.dtype != bool:
        fix = "convert them: y.astype(int)"
        checks.fail(where, "classes as whole numbers", f"{y.dtype}{y.shape}", fix, TypeError)
    found = said.reshape(-1).astype(int) if said.ndim == 1 or said.shape[1] == 1 else said.argmax(axis=1)
    known = np.ones(len(said), bool) if said.ndim == 1 else np.isfinite(said.astype(float)).all(axis=1)
    scores = range(said.shape[1]) if said.ndim == 2 and said.shape[1] > 1 else ()
    classes = np.unique([*found[known], *scores, *(y if y is not None else ())]).astype(int)
    colours = styles.colours(len(classes))
    pale = ListedColormap([[0.45 + 0.55 * c for c in to_rgb(colour)] for colour in colours]).with_extremes(
        bad=styles.GREY
    )
    index = np.where(known, np.searchsorted(classes, found), np.nan).reshape(len(sides[1]), len(sides[0]))
    shown = {"cmap": pale, "vmin": -0.5, "vmax": len(classes) - 0.5, "interpolation": "nearest"}
    axes.imshow(index, extent=_extent(sides), origin="lower", aspect="auto", **shown)
    for i in np.unique(index[np.isfinite(index)]):
        if (index != i).any():
            axes.contour(*sides, (index == i).astype(float), levels=[0.5], colors="black", linewidths=0.8)
    axes.set_title("classes" + _bad(index), fontsize="medium")
    _points(where, figure, axes, points, classes, colours, names)


def _points(where: str, figure: Any, axes: Any, points: Any, classes: Any, colours: Any, names: Any) -> None:
    """The points, each class with a colour and a shape; without classes all of them alike."""
    x, y = points
    if y is None:
        axes.scatter(*x.T, color="black", s=10, alpha=0.6)
        return
    if names is not None and len(names) < len(classes):
        checks.fail(where, f"a name for each of {len(classes)} classes", f"{len(names)}", "name them all")
    shown = styles.labels([names[i] if names is not None else f"class {k}" for i, k in enumerate(classes)])
    for i, k in enumerate(classes):
        edge = {"edgecolors": "white" if styles.ink(colours[i]) == "white" else "black", "linewidths": 0.7}
        marker = styles.MARKERS[i % len(styles.MARKERS)]
        axes.scatter(*x[y == k].T, color=[colours[i]], marker=marker, s=34, label=shown[i], **edge)
    styles.beside(figure, axes.get_legend_handles_labels()[0])


def _bad(values: Any) -> str:
    share = 1 - np.isfinite(values).mean()
    return f", {100 * share:.2g} % not finite (grey)" if share else ""


def _extent(sides: Any) -> tuple[float, float, float, float]:
    """The borders of an image whose pixels have their middle at the points."""
    halves = [(side[1] - side[0]) / 2 for side in sides]
    return tuple(edge for side, h in zip(sides, halves, strict=True) for edge in (side[0] - h, side[-1] + h))


def confusion_matrix(
    truth: Any, predicted: Any = None, *, class_names: Sequence[str] | None = None, shares: bool = False
) -> Any:
    """How often each class was taken for each: rows are true classes, columns predicted ones.

    Args:
        truth: the matrix that ``metrics.confusion_matrix`` measures; or, with ``predicted``, the true classes ``(n,)``.
        predicted: the classes that a model chose ``(n,)``, or its scores ``(n, classes)``.
        class_names: what the classes are called; their numbers otherwise.
        shares: whether to show the share of each row, in percent, instead of counts. A row without examples has none.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: classes that are not whole numbers.
        ValueError: a matrix that is not square, counts that are none, no example, or names that do not fit.

    Example:
        >>> import numpy as np
        >>> from funcnn import plotting
        >>> figure = plotting.confusion_matrix(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]))
        >>> figure.axes[0].images[0].get_array().tolist(), figure.axes[0].get_title()
        ([[2.0, 0.0], [1.0, 1.0]], '3 of 4 right, 75 %')
    """
    from matplotlib.colors import PowerNorm

    where = "plotting.confusion_matrix"
    counts = _counted(where, truth, predicted, class_names)
    classes = len(counts)
    if class_names is not None and len(class_names) != classes:
        checks.fail(where, f"a name for each of {classes} classes", f"{len(class_names)}", "name them all")
    of_row = counts.sum(axis=1, keepdims=True)
    shown = np.where(of_row > 0, 100 * counts / np.where(of_row > 0, of_row, 1), np.nan) if shares else counts
    names = styles.labels(range(classes) if class_names is None else class_names)
    longest = max(len(line) for name in names for line in name.split("\n"))
    size = min(max(3.6, 1.6 + 0.42 * classes), 10) + 0.06 * longest
    figure, (axes,) = styles.panels(1, size + 1.2, size)
    shades = styles.amounts()
    # The root: a single mistake has to be seen beside all that is right.
    norm = PowerNorm(0.5, styles.NONE, 100 if shares else counts.max())
    image = axes.imshow(shown, cmap=shades, norm=norm)
    figure.colorbar(image, ax=axes, label="share of the true class (%)" if shares else "examples", shrink=0.8)
    fits = {"ha": "center", "va": "center", "fontsize": "small" if classes < 15 else "x-small"}
    for (i, j), value in np.ndenumerate(shown) if classes <= _MOST_TEXTS else ():
        text = "–" if np.isnan(value) else f"{value:.0f}" if shares or value == round(value) else f"{value:.3g}"
        axes.text(j, i, text, color=styles.ink(shades(norm(value))) if value else "#909090", **fits)
    for side in ("x", "y"):
        styles.ticks(axes, side, class_names or range(classes), 25)
    total, right = counts.sum(), np.trace(counts)
    # Down, so that 100 % means all of them.
    share = np.floor(1e5 * right / total) / 1e3
    axes.set_title(f"{right:.10g} of {total:.10g} right, {share:.{5 if share > 99 else 3}g} %", fontsize="medium")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


def _counted(where: str, truth: Any, predicted: Any, names: Any) -> Any:
    """The matrix of counts, whichever way it is given."""
    counts = np.asarray(truth)
    if predicted is not None:
        counts = _tallied(where, counts, np.asarray(predicted), names)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        fix = "of classes (n,) pass the predicted ones too"
        checks.fail(where, "a square matrix (classes, classes)", f"shape {counts.shape}", fix)
    counts = styles.real(where, "counts", counts)
    if not np.isfinite(counts).all() or (counts < 0).any() or not counts.sum():
        checks.fail(where, "counts of at least one example", f"from {counts.min()} to {counts.max()}", "pass counts")
    return counts


def _tallied(where: str, truth: Any, predicted: Any, names: Any) -> Any:
    classes = predicted.shape[1] if predicted.ndim == 2 else 0
    if not np.isfinite(styles.real(where, "predicted classes, or scores,", predicted)).all():
        fix = "look for the first with inspection.first_nonfinite"
        checks.fail(where, "finite scores", f"{np.sum(~np.isfinite(predicted))} that are not", fix)
    predicted = predicted.argmax(axis=1) if predicted.ndim == 2 else predicted
    if truth.ndim != 1 or truth.shape != predicted.shape or not len(truth):
        got = f"{truth.shape} and {predicted.shape}"
        checks.fail(where, "true and predicted classes of one length", got, "pass one of each for every example")
    for each in (truth, predicted):
        if not np.issubdtype(each.dtype, np.integer):
            fix = "convert them: .astype(int)"
            checks.fail(where, "classes as whole numbers", f"{each.dtype}{each.shape}", fix, TypeError)
    if min(truth.min(), predicted.min()) < 0:
        checks.fail(where, "classes from 0 on", f"{min(truth.min(), predicted.min())}", "number them from 0")
    classes = max(classes, int(truth.max()) + 1, int(predicted.max()) + 1, len(names) if names is not None else 0)
    if classes > _MOST_CLASSES:
        got, fix = f"{classes:,}", "number the classes from 0 without gaps, or draw a part of them"
        checks.fail(where, f"at most {_MOST_CLASSES:,} classes", got, fix)
    # In 64 bits: the number of a cell is larger than those of the classes.
    return np.bincount(
        truth.astype(np.int64) * classes + predicted.astype(np.int64), minlength=classes * classes
    ).reshape(classes, classes)
