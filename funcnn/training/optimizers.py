"""Optax optimizers made for a part of the params."""

from collections.abc import Hashable
from typing import Any

import jax
import optax

from funcnn import trees
from funcnn.core import Tree
from funcnn.training.trainers import expect_optimizer


def freeze(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformation:
    """The optimizer, with the params whose path matches a pattern left as they are.

    Formula: ``params <- params`` where a path matches, ``params <- params + update`` elsewhere

    It keeps no state for what is frozen, decays no frozen weight, and can be applied to what it returns. What is not
    needed for the gradients of the others is not computed either.

    Args:
        optimizer: any Optax ``GradientTransformation``.
        *patterns: such as ``"encoder/**"`` or ``"**/bias"``, as in ``funcnn.trees``.

    Raises:
        TypeError: an argument is of another type.
        ValueError: when params are at hand: a pattern matches none of them.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> model = layers.serial(layers.named("encoder", layers.dense(4)), layers.tanh, layers.dense(1))
        >>> optimizer = training.freeze(optax.adam(0.1), "encoder/**")
        >>> line = training.supervised(model, losses.squared_error, optimizer)
        >>> batch = jnp.ones((8, 3)), jnp.ones((8, 1))
        >>> before = line.init(jax.random.key(0), batch)
        >>> after, info = line.step(before, batch)
        >>> moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
        >>> moved["encoder"]["kernel"], moved["dense_0"]["kernel"]
        (False, True)

    Reference: ``optax.partition`` with ``optax.set_to_zero``.
    """
    expect_optimizer("freeze", optimizer)
    trees.expect_patterns("freeze", patterns)

    def labels(params: Tree) -> Tree:
        # What another freeze around this one has taken away stands there as a node, and still has a path.
        is_leaf = _is_taken
        chosen = trees.mask(jax.tree.map(_present, params, is_leaf=is_leaf), *patterns, where="freeze")
        return jax.tree.map(
            lambda p, frozen: p if _is_taken(p) else "frozen" if frozen else "trained", params, chosen, is_leaf=is_leaf
        )

    transforms: dict[Hashable, optax.GradientTransformation] = {"trained": optimizer, "frozen": optax.set_to_zero()}
    parts = optax.with_extra_args_support(optax.partition(transforms, labels, mask_compatible_extra_args=True))

    def update(updates: Tree, state: Any, params: Tree | None = None, **extra: Any) -> tuple[Tree, Any]:
        if "value_fn" in extra:  # asks with the trained params alone
            value_fn = extra["value_fn"]
            extra["value_fn"] = lambda some: value_fn(
                jax.tree.map(lambda a, b: b if _is_taken(a) else a, some, params, is_leaf=_is_taken)
            )
        return parts.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(parts.init, update)


def _is_taken(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _present(leaf: Any) -> int:
    return 0
