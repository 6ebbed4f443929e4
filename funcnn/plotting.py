"""Pictures of a run: figures are returned, never shown by force. Needs matplotlib (``pip install funcnn[plots]``)."""

from typing import Any

import numpy as np

from funcnn import checks


def history(history: Any) -> Any:
    """The curves of a run over its epochs: one picture for each quantity, training and validation in it.

    Args:
        history: a ``Result`` of ``run`` or ``fit``, or its ``history``.

    Returns:
        A ``matplotlib`` ``Figure``; save it with ``figure.savefig("curves.png")``.

    Raises:
        ValueError: there is no curve to draw.

    Example:
        >>> import numpy as np
        >>> from funcnn import plotting
        >>> figure = plotting.history({"loss": np.array([2.0, 1.0]), "validation_loss": np.array([2.2, 1.5])})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss']
    """
    from matplotlib.figure import Figure

    rows = getattr(history, "history", history)
    curves = {name: np.asarray(column) for name, column in rows.items() if np.ndim(column) == 1}
    names = [
        name for name in curves if not (name.startswith("validation_") and name.removeprefix("validation_") in curves)
    ]
    if not names or not all(len(curves[name]) for name in names):
        checks.fail(
            "plotting.history", "a history with at least one epoch", f"{list(rows)}", "train for an epoch first"
        )
    figure = Figure(figsize=(5 * len(names), 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for label, key, style in (("training", name, "-"), ("validation", f"validation_{name}", "--")):
            if key in curves:
                axes.plot(np.arange(1, len(curves[key]) + 1), curves[key], style, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def learning_rates(found: Any) -> Any:
    """The loss while the learning rate grows, and the rate that is suggested.

    Args:
        found: what ``training.find_learning_rate`` gave.

    Returns:
        A ``matplotlib`` ``Figure``.

    Example:
        >>> import numpy as np
        >>> from funcnn import plotting, training
        >>> rates, losses = np.array([1e-3, 1e-2, 1e-1]), np.array([3.0, 2.0, 4.0])
        >>> figure = plotting.learning_rates(training.RateRange(rates, losses, losses, 1e-2))
        >>> figure.axes[0].get_xscale(), figure.axes[0].get_title()
        ('log', 'suggested: 0.01')
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, alpha=0.3, label="of each batch")
    axes.plot(found.rates, found.smoothed, label="smoothed")
    axes.axvline(found.suggestion, color="black", linestyle=":")
    axes.set_title(f"suggested: {found.suggestion:.2g}")
    axes.set_xscale("log")
    # Where a run diverges the loss is of another size, and would hide the rest.
    low, high = np.nanmin(found.losses), found.losses[: max(1, len(found.losses) // 10)].max()
    axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low) if high > low else None)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
