"""Pictures of a loss as a function of the params: on a plane through them, and on a line between two of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Tree, expect_key, shown
from funcnn.plotting import styles


def landscape(
    loss: Callable[[Tree], Any],
    params: Tree,
    *,
    key: Any,
    span: float = 1.0,
    resolution: int = 25,
    batch_size: int | None = None,
    scale: str = "linear",
) -> Any:
    """The loss on a plane through the params, in two random directions that are as large as the weights themselves.

    Formula: ``loss(params + a d + b e)``; ``d`` and ``e`` are normal, and each filter in them, what leads to one
    output, has the norm that the same filter has in the params. Arrays with fewer than two axes, and
    whole numbers, stay as they are.

    Args:
        loss: from params to one number, ``lambda params: objective(params, data)``.
        params: those in the middle of the plane.
        key: for the directions.
        span: how far the plane reaches, from ``-span`` to ``span``; at 1 a step is as large as the weights.
        resolution: points along each axis.
        batch_size: how many points are computed at once; all of them in one ``vmap`` otherwise, which takes memory for
            as many copies of the params and of what the loss computes.
        scale: ``"linear"`` or ``"log"``, of the loss.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: no key, or a resolution that is not a whole number.
        ValueError: a loss that is not one number or finite nowhere, params without a floating array of two axes, a span
            that is not above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import plotting
        >>> def bowl(params):
        ...     return jnp.sum((params["kernel"] - 1) ** 2)
        >>> figure = plotting.landscape(bowl, {"kernel": jnp.ones((2, 2))}, key=jax.random.key(0), resolution=5)
        >>> round(float(figure.axes[0].images[0].get_array()[2, 2]), 6)  # in the middle
        0.0

    Reference: Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", 2018.
    """
    where = "plotting.landscape"
    expect_key(where, key)
    checks.expect_count(where, "resolution", resolution, 2)
    if not 0 < span < np.inf:
        checks.fail(where, "a span above 0", f"{span}", "1 is as far as the weights are large")
    _expect_loss(where, loss, params, scale)
    first, second = _directions(where, key, params)
    steps = jnp.linspace(-span, span, resolution)
    plane = jnp.stack(jnp.meshgrid(steps, steps), axis=-1).reshape(-1, 2)

    def at(point: Any) -> Any:
        return loss(jax.tree.map(lambda p, d, e: _like(p, p + point[0] * d + point[1] * e), params, first, second))

    values = _computed(where, at, plane, batch_size).reshape(resolution, resolution)
    centre = float(np.asarray(loss(params)))
    styles.expect_scale(where, scale, values)
    figure, (axes,) = styles.panels(1, 5.6, 4.6)
    _plane(figure, axes, np.asarray(steps, float), values, scale)
    axes.plot([0], [0], "X", color=styles.VERMILION, markersize=11, markeredgecolor="white", label="the params")
    bad = (~np.isfinite(values)).sum()
    said = f", {bad} of {values.size} points not finite (grey)" if bad else ""
    axes.set_title(f"loss of the params: {centre:.4g}{said}", fontsize="medium")
    axes.set_xlabel("first direction (norms of the filters)")
    axes.set_ylabel("second direction (norms of the filters)")
    axes.locator_params(nbins=5)
    axes.legend(loc="upper right")
    return figure


def interpolation(
    loss: Callable[[Tree], Any],
    first: Tree,
    second: Tree,
    *,
    beyond: float = 0.25,
    resolution: int = 61,
    batch_size: int | None = None,
    scale: str = "linear",
) -> Any:
    """The loss along the straight line from some params to others: what lies between two solutions, or start and end.

    Formula: ``loss((1 - t) first + t second)``; what is not floating is that of the first.

    Args:
        loss: from params to one number.
        first: the params at 0;
        second: and at 1.
        beyond: how far the line goes on at both ends.
        resolution: points on it.
        batch_size: as for ``landscape``.
        scale: ``"linear"`` or ``"log"``, of the loss.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        TypeError: a resolution that is not a whole number.
        ValueError: params of different form, a loss that is not one number, or finite nowhere.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn import plotting
        >>> figure = plotting.interpolation(lambda p: p**2, jnp.array(-1.0), jnp.array(1.0), beyond=0.0, resolution=3)
        >>> figure.axes[0].get_lines()[0].get_ydata().tolist()
        [1.0, 0.0, 1.0]

    Reference: Goodfellow, Vinyals and Saxe, "Qualitatively characterizing neural network optimization problems", 2015.
    """
    where = "plotting.interpolation"
    checks.expect_count(where, "resolution", resolution, 2)
    if not 0 <= beyond < np.inf:
        checks.fail(where, "beyond from 0 on", f"{beyond}", "0 draws the line between the two alone")
    forms = [jax.tree.map(jnp.shape, tree) for tree in (first, second)]
    if jax.tree.structure(first) != jax.tree.structure(second) or forms[0] != forms[1]:
        checks.fail(where, "params of one form", f"{forms[0]} and {forms[1]}", "pass those of one model")
    _expect_loss(where, loss, first, scale)
    steps = jnp.linspace(-beyond, 1 + beyond, resolution)

    def at(t: Any) -> Any:
        return loss(jax.tree.map(lambda a, b: _like(a, (1 - t) * a + t * b), first, second))

    values = _computed(where, at, steps, batch_size)
    styles.expect_scale(where, scale, values)
    figure, (axes,) = styles.panels(1, 5.4, 3.6)
    styles.curve(axes, np.asarray(steps, float), values, styles.BLUE, "loss")
    styles.not_finite(axes, np.asarray(steps, float)[~np.isfinite(values)], "not finite")
    for place, name, marker, params in ((0.0, "first", "o", first), (1.0, "second", "s", second)):
        axes.axvline(place, color="black", linestyle=":", linewidth=1)
        end = float(np.asarray(loss(params)))
        axes.plot([place], [end], marker, color=styles.VERMILION, markersize=8, label=f"{name}: {end:.4g}", zorder=5)
    axes.set_yscale(scale)
    axes.set_xlabel("from the first params (0) to the second (1)")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _like(old: Any, new: Any) -> Any:
    """A new leaf in the dtype of the old one; what is not floating stays."""
    dtype = jnp.result_type(old)
    return new.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else old


def _expect_loss(where: str, loss: Callable[[Tree], Any], params: Tree, scale: str) -> None:
    checks.expect_option(where, "scale", scale, styles.SCALES)
    given = jax.eval_shape(loss, params)
    if getattr(given, "shape", None) != () or not jnp.issubdtype(given.dtype, jnp.floating):
        checks.fail(where, "a loss that is one number", shown(given), "take its mean over the examples")


def _directions(where: str, key: Any, params: Tree) -> tuple[Tree, Tree]:
    """Two random directions, each filter of which has the norm that it has in the params."""
    leaves, structure = jax.tree.flatten(params)
    moves = [jnp.ndim(leaf) > 1 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    if not any(moves):
        fix = "along a line, interpolation takes any params"
        checks.fail(where, "params with a floating array of two axes or more", "none", fix)

    def drawn(key: Any, leaf: Any) -> Any:
        noise = jax.random.normal(key, leaf.shape, leaf.dtype)
        norms = [jnp.sqrt(jnp.sum(a * a, axis=tuple(range(a.ndim - 1)), keepdims=True)) for a in (leaf, noise)]
        return noise * (norms[0] / norms[1])

    def both(key: Any, leaves: list[Any]) -> tuple[Tree, Tree]:
        first, second = (
            [drawn(jax.random.fold_in(k, i), a) if moves[i] else jnp.zeros_like(a) for i, a in enumerate(leaves)]
            for k in jax.random.split(key)
        )
        return jax.tree.unflatten(structure, first), jax.tree.unflatten(structure, second)

    return jax.jit(both)(key, leaves)


def _computed(where: str, at: Callable[[Any], Any], points: Any, batch_size: int | None) -> Any:
    """The loss at all points, by one compiled program."""
    if batch_size is None:
        values = jax.jit(jax.vmap(at))(points)
    else:
        size = checks.expect_count(where, "batch_size", batch_size)
        values = jax.jit(lambda points: jax.lax.map(at, points, batch_size=size))(points)
    values = np.asarray(values).astype(float)
    if not np.isfinite(values).any():
        checks.fail(where, "a finite loss at one point", "none", "look for the first with inspection.first_nonfinite")
    return values


def _plane(figure: Any, axes: Any, steps: Any, values: Any, scale: str) -> None:
    """The loss by colour, and lines of the same loss with their numbers."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    finite = values[np.isfinite(values)]
    low, high = finite.min(), finite.max()
    half = (steps[1] - steps[0]) / 2
    extent = (steps[0] - half, steps[-1] + half) * 2
    norm = (LogNorm if scale == "log" else Normalize)(low, high)
    image = axes.imshow(values, extent=extent, origin="lower", cmap=styles.sequential(), norm=norm)
    figure.colorbar(image, ax=axes, label="loss")
    levels = np.geomspace(low, high, 9) if scale == "log" else MaxNLocator(9).tick_values(low, high)
    levels = [level for level in levels if low < level < high]
    if levels:
        lines = axes.contour(steps, steps, values, levels=levels, colors="white", linewidths=0.8)
        axes.clabel(lines, fmt="%.3g", fontsize="x-small")
