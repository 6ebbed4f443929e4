"""Pictures of functions of one number: activations side by side, with their slopes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Layer, shown
from funcnn.plotting import styles


def activations(
    functions: Sequence[Any] | Mapping[str, Any], *, low: float = -4.0, high: float = 4.0, points: int = 401
) -> Any:
    """Activation functions in one picture, and beside it their derivatives as ``jax.grad`` gives them.

    Args:
        functions: layers such as ``layers.relu``, or functions of an array such as ``jnp.tanh``, under the names that
            they have; or a dict of them under names of your own. Each has to act on every number by itself.
        low: where the axis begins;
        high: and where it ends.
        points: on it.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: what is neither a layer nor a function.
        ValueError: none at all, two of one name, one without a name, one that mixes the numbers of an array, limits
            that are none.

    Example:
        >>> from funcnn import layers, plotting
        >>> figure = plotting.activations([layers.relu, layers.tanh], points=5)
        >>> [line.get_ydata().tolist() for line in figure.axes[1].get_lines() if line.get_label() == "relu"]
        [[0.0, 0.0, 0.0, 1.0, 1.0]]
    """
    where = "plotting.activations"
    named = _named(where, functions)
    checks.expect_count(where, "points", points, 2)
    if not -np.inf < low < high < np.inf:
        checks.fail(where, "low < high", f"{low} and {high}", "pass finite limits")
    x = jnp.linspace(low, high, points)
    figure, (values, slopes) = styles.panels(2, 4.6, 3.8)
    shades = styles.colours(len(named))
    for i, ((name, function), label) in enumerate(zip(named.items(), styles.labels(list(named)), strict=True)):
        drawn, slope = _evaluated(where, name, function, x)
        # Curves that coincide are seen by their dashes.
        dash = styles.DASHES[i % len(styles.DASHES)]
        for axes, y in ((values, drawn), (slopes, slope)):
            styles.curve(axes, np.asarray(x), np.asarray(y, float), shades[i], label, dash)
    for axes, label in ((values, "f(x)"), (slopes, "derivative of f(x)")):
        axes.set_xlabel("x")
        axes.set_ylabel(label)
        axes.set_xlim(low, high)
        axes.grid(alpha=0.3)
        # Next to a pole there is nothing else to see.
        styles.limited(axes, np.concatenate([line.get_ydata() for line in axes.get_lines()]))
        axes.axhline(0, color="black", linewidth=0.6, zorder=0.5)
    styles.beside(figure, values.get_legend_handles_labels()[0])
    return figure


def _named(where: str, given: Any) -> dict[str, Callable[[Any], Any]]:
    """Functions of an array by name."""
    if isinstance(given, (Layer, str)) or callable(given) or not isinstance(given, (Mapping, Sequence)):
        fix = "pass a list, [layers.relu, layers.tanh]"
        checks.fail(where, "a sequence or a dict of functions", type(given).__name__, fix, TypeError)
    found: dict[str, Callable[[Any], Any]] = {}
    for item in given.items() if isinstance(given, Mapping) else ((None, each) for each in given):
        name, function = item[0], item[1]
        if not isinstance(function, Layer) and not callable(function):
            fix = "pass layers such as layers.relu, or functions"
            checks.fail(where, "layers or functions", f"{type(function).__name__} {function!r}", fix, TypeError)
        if name is None:
            name = function.kind if isinstance(function, Layer) else getattr(function, "__name__", "<lambda>")
        if name == "<lambda>" or name in found:
            got = "a function without one" if name == "<lambda>" else f"{name!r} twice"
            checks.fail(where, "a name for each function", got, "pass a dict, with names of your own")
        found[name] = _applied(function) if isinstance(function, Layer) else function
    if not found:
        checks.fail(where, "at least one function", "none", "pass [layers.relu]")
    return found


def _applied(layer: Layer) -> Callable[[Any], Any]:
    """A layer as a function of an array, as it is before it was trained."""

    def apply(x: Any) -> Any:
        column = x.reshape(-1, 1)
        params, state = layer.init(jax.random.key(0), column)
        return layer.apply(params, state, column)[0].reshape(-1)

    return apply


def _evaluated(where: str, name: str, function: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """The values and the slopes of a function, which gives a number the same alone as among others."""
    fix = "draw what acts on each number by itself"
    given = jax.eval_shape(function, x)
    if getattr(given, "shape", None) != x.shape:
        checks.fail(where, f"{name} to keep the shape {x.shape}", shown(given), fix)
    half = len(x) // 2
    # The slope of each number is that of the sum, where every number is by itself.
    slopes = jax.grad(lambda x: function(x).sum())
    y, slope, some = jax.jit(lambda x: (function(x), slopes(x), function(x[:half])))(x)
    if not np.allclose(some, y[:half], rtol=1e-4, atol=1e-6, equal_nan=True):
        checks.fail(where, f"{name} to act on each number by itself", "one that mixes them", fix)
    return y, slope
