"""What is to be made small: a pure pair of functions, from which a trainer is built.

The total that a trainer minimises is, over all terms, ``sum(losses * weights) / sum(weights)``, plus the penalty. It
is kept as sums until it is reported, so that batches, micro-batches and devices add up to what one large batch would
give.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Layer, Tree, expect_layer, shown


class Aux(NamedTuple):
    """What a loss hands back besides the losses: the new ``model_state``, and what metrics and weights are taken from.

    ``outputs`` and ``targets`` go to the metrics. ``weights`` (none means ones) multiply the losses: an array whose
    shape begins that of the losses, or a dict of them by term. ``penalty`` is a scalar that is added to the total.
    """

    model_state: Tree
    outputs: Any = None
    targets: Any = None
    weights: Any = None
    penalty: Any = 0.0


class Objective(NamedTuple):
    """A pure pair: ``init(key, batch)`` and ``loss(params, model_state, batch, *, key, training)``.

    ``init`` returns ``(params, model_state)`` and reads only shapes and dtypes. ``loss`` returns ``(losses, Aux)``:
    ``losses`` is an array with a leading example axis, or a dict of such arrays, one for each term, whose lengths may
    differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcnn.training import Aux, Objective  # by name: the argument ``training`` would hide the module
        >>> def init(key, batch):
        ...     return {"slope": jnp.zeros(())}, {}
        >>> def loss(params, model_state, batch, *, key, training):
        ...     x, y = batch
        ...     return (params["slope"] * x - y) ** 2, Aux(model_state)
        >>> objective = Objective(init, loss)
        >>> losses, aux = objective.loss({"slope": 2.0}, {}, (jnp.ones(3), jnp.zeros(3)), key=None, training=True)
        >>> losses.shape
        (3,)
    """

    init: Callable[..., tuple[Tree, Tree]]
    loss: Callable[..., tuple[Any, Aux]]


def supervised_objective(
    model: Layer, loss: Callable[[Any, Any], Any], penalty: Callable[[Tree], Any] | None = None
) -> Objective:
    """The objective of a model from ``x`` to a prediction of ``y``, on batches ``(x, y)`` or ``(x, y, weights)``."""
    expect_layer("supervised", model)

    def init(key: Any, batch: Any) -> tuple[Tree, Tree]:
        x, _, _ = unpacked(batch)
        return model.init(key, x)

    def objective_loss(params: Tree, model_state: Tree, batch: Any, *, key: Any, training: bool) -> tuple[Any, Aux]:
        x, y, weights = unpacked(batch)
        outputs, new_state = model.apply(params, model_state, x, key=key, training=training)
        outputs = predicted(x, outputs)
        losses = loss(outputs, y)
        _expect_losses_of(losses, outputs, y)
        extra: Any = 0.0
        if training:
            added = auxiliary_losses(new_state)
            if penalty is not None:
                added = [*added, penalty(params)]
            if added:
                extra = sum(added[1:], start=added[0])
        return losses, Aux(new_state, outputs, y, weights, extra)

    return Objective(init, objective_loss)


def predicted(x: Any, outputs: Any) -> Any:
    """What a model says of ``x``: its output, without the side inputs that it handed on."""
    handed_on = isinstance(x, dict) and isinstance(outputs, dict) and "x" in outputs and set(outputs) <= set(x)
    return outputs["x"] if handed_on else outputs


def unpacked(batch: Any) -> tuple[Any, Any, Any]:
    """``(x, y, weights)`` of a batch of a supervised objective; ``weights`` is ``None`` where there are none."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        got = f"{len(batch)} elements" if isinstance(batch, (tuple, list)) else f"one of shape {shown(batch)}"
        checks.fail(
            "supervised", "batches (x, y) or (x, y, weights)", got, "pass data=(x, y), or write an Objective", TypeError
        )
    x, y, *rest = batch
    return x, y, rest[0] if rest else None


def auxiliary_losses(model_state: Tree) -> list[Any]:
    """What layers put under ``auxiliary_loss`` in their state: scalars, added up where ``repeat`` stacked them."""
    leaves = jax.tree_util.tree_leaves_with_path(model_state)
    return [jnp.sum(leaf) for path, leaf in leaves if getattr(path[-1], "key", None) == "auxiliary_loss"]


def _expect_losses_of(losses: Any, outputs: Any, targets: Any) -> None:
    """Raise where a loss was reduced to a scalar, or where two shapes were broadcast to a third."""
    if isinstance(losses, dict):
        fix = "for several terms write an Objective, whose loss returns a dict of them"
        checks.fail("supervised", "an array of losses", f"a dict with {sorted(losses)}", fix, TypeError)
    fix = "return one loss for each example; the trainer takes the mean"
    if jnp.ndim(losses) == 0:
        checks.fail("supervised", "losses with a leading axis of examples", "a scalar", fix)
    leaves = [*jax.tree.leaves(outputs), *jax.tree.leaves(targets)]
    shape = jnp.shape(losses)
    if not any(jnp.shape(leaf)[: len(shape)] == shape for leaf in leaves):
        checks.fail(
            "supervised",
            f"losses whose shape begins that of the outputs {shown(outputs)} or of the targets {shown(targets)}",
            str(shape),
            "the two were broadcast against each other: give them equal shapes, for instance y[:, None]",
        )


# ---- the total, as sums ----------------------------------------------------------------------------------------------


def loss_sums(losses: Any, weights: Any, where: str = "trainer") -> dict[str, tuple[Any, Any]]:
    """``{term: (sum(losses * weights), sum(weights))}``; a single array of losses is the term ``""``."""
    if isinstance(losses, (tuple, list)):
        fix = "return an array, or a dict of arrays by name"
        checks.fail(where, "losses as an array or a dict", f"a {type(losses).__name__}", fix, TypeError)
    terms = losses if isinstance(losses, dict) else {"": losses}
    if not terms:
        checks.fail(
            where, "at least one term of losses", "an empty dict", "return an array of losses, or a dict of them"
        )
    given = weights if isinstance(weights, dict) else dict.fromkeys(terms, weights)
    unknown = sorted(set(given) - set(terms))
    if unknown:
        checks.fail(
            where,
            f"weights for the terms {sorted(terms)}",
            f"{unknown} as well",
            "name weights as the losses are named",
        )
    return {name: _weighted(where, name, term, given.get(name)) for name, term in terms.items()}


def _weighted(where: str, name: str, losses: Any, weights: Any) -> tuple[Any, Any]:
    label = f"losses of {name!r}" if name else "losses"
    if jnp.ndim(losses) == 0:
        checks.fail(where, f"{label} with a leading axis of examples", "a scalar", "return one loss for each example")
    losses = jnp.asarray(losses, jnp.promote_types(losses.dtype, jnp.float32))
    if weights is None:
        return jnp.sum(losses), jnp.asarray(losses.size, losses.dtype)
    shape = jnp.shape(weights)
    _expect_weights(where, label, weights)
    if losses.shape[: len(shape)] != shape:
        checks.fail(
            where,
            f"weights whose shape begins that of the {label}, {losses.shape}",
            str(shape),
            "give one weight for each example, or for each of its parts",
        )
    spread = jnp.broadcast_to(jnp.reshape(weights, shape + (1,) * (losses.ndim - len(shape))), losses.shape)
    spread = spread.astype(losses.dtype)
    # A loss under the weight 0 does not count, not even where it is infinite.
    return jnp.sum(jnp.where(spread == 0, jnp.zeros_like(losses), losses) * spread), jnp.sum(spread)


def _expect_weights(where: str, label: str, weights: Any) -> None:
    """Raise where weights are known, as they are before compilation, and cannot be meant."""
    if not checks.is_concrete(weights) or not np.size(weights):
        return
    least = np.asarray(weights).min()
    if least < 0:
        fix = "leave out what does not count, or give it the weight 0"
        checks.fail(where, f"weights of the {label} from 0 on", str(least), fix)


def mean_of(sums: tuple[Any, Any]) -> Any:
    """``sum(losses * weights) / sum(weights)``, and 0 where all weights are 0."""
    total, weight = sums
    return total / jnp.where(weight == 0, jnp.ones_like(weight), weight)
