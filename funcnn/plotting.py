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
