"""Gradient accumulation: the gradient of a batch from micro-batches, of which one is in memory at a time.

The gradient of ``sum(l w) / sum(w)`` is not the mean of the gradients of its parts, where the parts have different
weights. So the weights of the whole batch are added up first, and each part is divided by the weight of all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcnn import checks
from funcnn.core import Tree
from funcnn.training.objectives import mean_of

Measure = Callable[[Tree, Tree, Any, Any], tuple[Any, Tree]]
"""``(params, model_state, batch, key) -> (info, model_state)``"""


class Total(NamedTuple):
    """The total over a batch as a function of the params, and with its gradient."""

    value: Callable[[Tree, Tree, Any, Any], Any]  # (params, model_state, batch, key) -> total
    # (params, model_state, batch, key, scale) -> total, scale times its gradient, model_state, info
    slope: Callable[[Tree, Tree, Any, Any, Any], tuple[Any, Tree, Tree, Any]]


def total_of(info: dict[str, Any]) -> Any:
    """What is made small: the sum of the means of all terms, and the penalty."""
    means = [mean_of(sums) for sums in info["losses"].values()]
    if "penalty" in info:
        means.append(mean_of(info["penalty"]))
    return sum(means[1:], start=means[0])


def whole(measure: Measure) -> Total:
    """The total over a batch, all at once."""

    def total(params: Tree, model_state: Tree, batch: Any, key: Any) -> tuple[Any, tuple[Tree, Any]]:
        info, model_state = measure(params, model_state, batch, key)
        return total_of(info), (model_state, info)

    def value(params: Tree, model_state: Tree, batch: Any, key: Any) -> Any:
        return total(params, model_state, batch, key)[0]

    def slope(params: Tree, model_state: Tree, batch: Any, key: Any, scale: Any) -> tuple[Any, Tree, Tree, Any]:
        def scaled(params: Tree) -> tuple[Any, tuple[Any, Tree, Any]]:
            value, (new_state, info) = total(params, model_state, batch, key)
            return value if scale is None else value * scale, (value, new_state, info)

        gradient, (value, new_state, info) = jax.grad(scaled, has_aux=True)(params)
        return value, gradient, new_state, info

    return Total(value, slope)


def accumulated(measure: Measure, size: int) -> Total:
    """The total over micro-batches of ``size`` examples and a smaller last one; weights are taken as constants."""

    def value(params: Tree, model_state: Tree, batch: Any, key: Any) -> Any:
        parts = _Parts(measure, size, batch, key)
        if not parts.several():
            return whole(measure).value(params, model_state, batch, key)

        def add(carry: tuple[Tree, Any], i: Any, count: int) -> tuple[Tree, Any]:
            info, state = parts.info(params, carry[0], i, count)
            return state, jax.tree.map(jnp.add, carry[1], info)

        return total_of(parts.fold(add, (model_state, parts.none(params, model_state)))[1])

    def slope(params: Tree, model_state: Tree, batch: Any, key: Any, scale: Any) -> tuple[Any, Tree, Tree, Any]:
        parts = _Parts(measure, size, batch, key)
        if not parts.several():
            return whole(measure).slope(params, model_state, batch, key, scale)
        none = parts.none(params, model_state)

        def weigh(weights: dict[str, Any], i: Any, count: int) -> dict[str, Any]:
            terms = parts.info(params, model_state, i, count)[0]["losses"]
            return {name: weights[name] + sums[1] for name, sums in terms.items()}

        # Only weights come out of this, so that the compiler leaves away whatever they do not need.
        weights = parts.fold(weigh, {name: sums[1] for name, sums in none["losses"].items()})

        def total(params: Tree, state: Tree, i: Any, count: int) -> tuple[Any, tuple[Tree, Any]]:
            info, state = parts.info(params, state, i, count)
            value = total_of({"losses": {name: (sums[0], weights[name]) for name, sums in info["losses"].items()}})
            value = value + info["penalty"][0] if "penalty" in info else value
            return value if scale is None else value * scale, (state, info)

        def add(carry: tuple[Tree, Tree, Any], i: Any, count: int) -> tuple[Tree, Tree, Any]:
            more, (state, info) = jax.grad(total, has_aux=True)(params, carry[1], i, count)
            return jax.tree.map(jnp.add, carry[0], more), state, jax.tree.map(jnp.add, carry[2], info)

        begin = jax.tree.map(jnp.zeros_like, params), model_state, none
        gradient, model_state, info = parts.fold(add, begin)
        return total_of(info), gradient, model_state, info

    return Total(value, slope)


class _Parts(NamedTuple):
    """A batch in micro-batches."""

    measure: Measure
    size: int
    batch: Any
    key: Any

    def examples(self) -> int:
        lengths = {len(leaf) for leaf in jax.tree.leaves(self.batch)}
        if len(lengths) != 1:
            fix = "train on whole batches: leave micro_batch_size out"
            got = f"lengths {sorted(lengths)}"
            checks.fail("trainer", "batches of one length, to be cut into micro-batches", got, fix)
        return lengths.pop()

    def several(self) -> bool:
        return self.examples() > self.size

    def info(self, params: Tree, model_state: Tree, i: Any, count: int) -> tuple[Any, Tree]:
        """The info of one part; a penalty counts by the part's share of the examples."""
        cut = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, i * self.size, count), self.batch)
        info, model_state = self.measure(params, model_state, cut, jax.random.fold_in(self.key, i))
        if "penalty" in info:
            share = count / self.examples()
            info = info | {"penalty": jax.tree.map(lambda a: a * share, info["penalty"])}
        return info, model_state

    def none(self, params: Tree, model_state: Tree) -> Any:
        """The sums over no parts at all."""
        shapes = jax.eval_shape(lambda: self.info(params, model_state, 0, self.size)[0])
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    def fold(self, body: Callable[[Any, Any, int], Any], carry: Any) -> Any:
        """``body(carry, i, count)`` over all parts, of which one is in memory at a time."""
        full, rest = divmod(self.examples(), self.size)
        indices = jnp.arange(full, dtype=jnp.int32)
        carry = jax.lax.scan(lambda c, i: (body(c, i, self.size), None), carry, indices)[0]
        return body(carry, full, rest) if rest else carry
