"""Optax optimizers made for a part of the params, or with their average beside them."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcnn import checks, trees
from funcnn.core import Tree
from funcnn.training.trainers import TrainState, expect_optimizer


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


class Averaged(NamedTuple):
    """The state of ``averaged``: that of the optimizer inside, and the average of the params."""

    optimizer: Any
    average: Tree


def averaged(optimizer: optax.GradientTransformation, decay: Any = 0.999) -> optax.GradientTransformation:
    """The optimizer, with an exponential moving average of the params beside them, to evaluate with.

    It goes around the whole optimizer: inside of ``optax.chain`` it would not see what comes behind it.

    Formula: ``average <- decay * average + (1 - decay) * params`` after each step, beginning with the initial params;
    of params in half precision in float32, where a step would be less than they can hold

    Args:
        optimizer: any Optax ``GradientTransformation``.
        decay: of the average, from 0 to 1; may be a tracer.

    Raises:
        TypeError: the optimizer is none.
        ValueError: ``decay`` is known and not from 0 to 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> optimizer = training.averaged(optax.sgd(0.1), decay=0.9)
        >>> line = training.supervised(
        ...     layers.dense(1), losses.squared_error, optimizer, evaluation_params=training.average_of
        ... )
        >>> x = jnp.linspace(-1, 1, 20)[:, None]
        >>> result = training.run(line, (x, 3 * x), key=jax.random.key(0), epochs=9, validation=(x, 3 * x))
        >>> bool((training.average_of(result.state)["kernel"] < result.state.params["kernel"]).all())
        True

    Reference: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """
    expect_optimizer("averaged", optimizer)
    checks.expect_between("averaged", "decay", decay, 0.0, 1.0)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Tree) -> Averaged:
        return Averaged(inner.init(params), jax.tree.map(_exact, params))

    def update(updates: Tree, state: Any, params: Any = None, **extra: Any) -> tuple[Tree, Averaged]:
        updates, own = inner.update(updates, state.optimizer, params, **extra)
        after: Any = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: (decay * a + (1 - decay) * _exact(p)).astype(a.dtype), state.average, after)
        return updates, Averaged(own, average)

    return optax.GradientTransformationExtraArgs(init, update)


def _exact(a: Any) -> Any:
    """An array of floating numbers with at least the digits of float32."""
    a = jnp.asarray(a)
    return a.astype(jnp.promote_types(a.dtype, jnp.float32)) if jnp.issubdtype(a.dtype, jnp.floating) else a


def average_of(state: TrainState) -> Tree:
    """The averaged params in a state, for ``evaluation_params``; those that are frozen are taken as they are.

    Raises:
        ValueError: the optimizer keeps no average, or several.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> line = training.supervised(layers.dense(1), losses.squared_error, training.averaged(optax.sgd(0.1)))
        >>> state = line.init(jax.random.key(0), (jnp.ones((4, 2)), jnp.ones((4, 1))))
        >>> sorted(training.average_of(state))
        ['bias', 'kernel']
    """
    found = [
        node
        for node in jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, Averaged))
        if isinstance(node, Averaged)
    ]
    if len(found) != 1:
        got, fix = f"{len(found)}", "wrap the optimizer: training.averaged(optimizer)"
        checks.fail("average_of", "one average in the state of the optimizer", got, fix)
    return jax.tree.map(
        lambda a, p: p if _is_taken(a) else a.astype(p.dtype), found[0].average, state.params, is_leaf=_is_taken
    )
