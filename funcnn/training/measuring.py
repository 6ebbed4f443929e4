"""The sums of what is measured over data, batch by batch, inside of a program."""

from typing import Any

import jax
import jax.numpy as jnp

from funcnn.core import Tree
from funcnn.training.states import TrainState
from funcnn.training.trainers import Trainer

_BATCHES = 2**32 - 2  # a number of no step and of no evaluation of a batch


def evaluated(trainer: Trainer, state: TrainState, data: Tree, batch_size: int | None) -> Any:
    """The sums of ``trainer.evaluate`` over all data, in batches and a smaller last one, each with a key of its own."""
    n = len(jax.tree.leaves(data)[0])
    if batch_size is None or n <= batch_size or any(len(leaf) != n for leaf in jax.tree.leaves(data)):
        return trainer.evaluate(state, data)

    def batch(i: Any, size: int) -> Any:
        part = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, i * batch_size, size), data)
        return trainer.evaluate(evaluating(state, i), part)

    def body(sums: Any, i: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, batch(i, batch_size)), None

    full = n // batch_size
    infos = jax.eval_shape(lambda: batch(jnp.int32(0), batch_size))
    sums = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), infos)
    sums, _ = jax.lax.scan(body, sums, jnp.arange(full, dtype=jnp.int32))
    if n % batch_size:
        sums = jax.tree.map(jnp.add, sums, batch(jnp.int32(full), n % batch_size))
    return sums


def evaluating(state: TrainState, i: Any) -> TrainState:
    """The state with which batch ``i`` is evaluated: of the first it is the state itself."""

    def folded(key: Any) -> Any:
        return jnp.where(i == 0, key, jax.random.fold_in(jax.random.fold_in(key, _BATCHES), i))

    for _ in range(state.key.ndim):  # of several members
        folded = jax.vmap(folded)
    return state._replace(key=folded(state.key))
