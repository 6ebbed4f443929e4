"""Pictures of attention: which position looks at which, head by head."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from funcnn import checks
from funcnn.plotting import styles

_MOST_HEADS = 16


def attention(
    weights: Any,
    *,
    query_names: Sequence[str] | None = None,
    key_names: Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
) -> Any:
    """The weights of attention as maps, heads side by side: each row is a query, and shares itself out among the keys.

    All maps have one scale of colours. Rows without a number, where everything was masked, are grey.

    Args:
        weights: ``(heads, queries, keys)`` or ``(queries, keys)``, after the softmax.
        query_names: words or tokens, one for each query; their positions otherwise.
        key_names: likewise for the keys; where there are as many of them as queries, the names of these otherwise.
        heads: which ones; of more than 16 the first, as the titles say.

    Returns:
        A ``matplotlib`` ``Figure``.

    Raises:
        ValueError: other axes, weights that are below 0 or add up to more than 1, names that do not fit, a head that
            there is not.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcnn import plotting
        >>> q, k = jax.random.normal(jax.random.key(0), (2, 4, 5, 8))  # of 4 heads, 5 positions and 8 features
        >>> weights = jax.nn.softmax(jnp.einsum("hqf,hkf->hqk", q, k) / 8**0.5)
        >>> figure = plotting.attention(weights, query_names="the cat sat down .".split())
        >>> [axes.get_title() for axes in figure.axes[:4]]
        ['head 0 of 4', 'head 1 of 4', 'head 2 of 4', 'head 3 of 4']

    Reference: Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and translate", 2015.
    """
    where = "plotting.attention"
    w = _expect_weights(where, weights)
    count, queries, keys = w.shape
    names = _expect_names(where, "query_names", query_names, queries)
    fallback = query_names if keys == queries else None
    others = _expect_names(where, "key_names", key_names if key_names is not None else fallback, keys)
    chosen = list(range(min(count, _MOST_HEADS))) if heads is None else list(heads)
    if not chosen or not all(head in range(count) for head in chosen):
        checks.fail(where, f"heads from 0 to {count - 1}", f"{chosen}", "choose some that there are")
    width = float(np.clip(0.28 * keys + 1, 2.6, 5 if len(chosen) < 5 else 3.4))
    figure, every = styles.panels(len(chosen), width, float(np.clip((width - 0.8) * queries / keys, 1.4, 6)) + 0.9, 4)
    top = np.where(np.isfinite(w[chosen]), w[chosen], 0).max() or 1.0
    image = None
    for axes, head in zip(every, chosen, strict=True):
        image = axes.imshow(w[head], cmap=styles.sequential(), vmin=0, vmax=top, interpolation="nearest")
        axes.set_title(f"head {head} of {count}", fontsize="medium")
        styles.ticks(axes, "x", others, 40 if key_names is not None or fallback is not None else 10)
        styles.ticks(axes, "y", names, 40 if query_names is not None else 10)
        axes.set_xlabel("key")
        axes.set_ylabel("query")
    figure.colorbar(image, ax=every, label="weight", shrink=0.8, aspect=30, fraction=0.05)
    return figure


def _expect_weights(where: str, weights: Any) -> Any:
    w = styles.real(where, "weights", weights)
    w = w[None] if w.ndim == 2 else w
    if w.ndim != 3 or not w.size:
        fix = "choose an example, weights[0]" if w.ndim == 4 else "reshape them"
        checks.fail(where, "weights (heads, queries, keys)", f"shape {w.shape}", fix)
    finite = np.where(np.isfinite(w), w, 0)
    if not np.isfinite(w).any():
        checks.fail(where, "a finite weight", "none", "look for the first with inspection.first_nonfinite")
    if finite.min() < 0 or finite.sum(axis=-1).max() > 1.01:  # half precision adds up to 1 within a percent
        got = f"rows with a least weight of {finite.min():.3g} and a sum of {finite.sum(axis=-1).max():.3g}"
        checks.fail(
            where, "weights from 0 on, which add up to 1 in a row", got, "pass them after the softmax over keys"
        )
    return w


def _expect_names(where: str, what: str, names: Any, count: int) -> list[str]:
    if names is None:
        return [str(i) for i in range(count)]
    if isinstance(names, str) or len(names) != count:
        got = "a string" if isinstance(names, str) else f"{len(names)}"
        checks.fail(where, f"{what}, {count} of them", got, "give one to each position, in a list")
    return [str(name) for name in names]
