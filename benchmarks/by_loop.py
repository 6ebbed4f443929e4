"""By hand as well, with a loop in Python: a jitted step, its state donated, is called for each batch.

The networks are those of by_hand.py. Initialisation is compiled on its own, the rows of a batch are gathered inside the
step, and the losses of a run are read at its end. The step of W7 is mapped over all runs with ``jax.vmap``.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from by_hand import NETWORKS, WORKLOADS, ByHand, forward
from workloads import Workload, rates, seeds

__all__ = ["WORKLOADS", "started"]


@cache
def programs(name: str, members: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``init(key) -> state`` and ``step(state, x, y, rows) -> (state, loss)``, both compiled."""
    net = NETWORKS["W1" if name == "W7" else name]

    def init(key: Any) -> Any:
        params = net.init(key)
        return params, net.optimizer.init(params)

    def step(net: ByHand, state: Any, x: Any, y: Any, rows: Any) -> Any:
        params, opt_state = state
        x, y = (x, y) if rows is None else (x[rows], y[rows])
        loss, gradient = jax.value_and_grad(net.loss)(params, x, y)
        updates, opt_state = net.optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def member(state: Any, rate: Any, x: Any, y: Any) -> Any:
        return step(net._replace(optimizer=optax.sgd(rate)), state, x, y, None)

    def ensemble(state: Any, x: Any, y: Any, rows: Any) -> Any:
        del rows
        return jax.vmap(member, in_axes=(0, 0, None, None))(state, rates(members), x, y)

    if name == "W7":
        begun = jax.jit(lambda key: jax.vmap(init)(jax.random.split(key, 4)[seeds(members)]))
        return begun, jax.jit(ensemble, donate_argnums=0)
    return jax.jit(init), jax.jit(partial(step, net), donate_argnums=0)


def batches(random: np.random.Generator, n: int, size: int | None) -> Iterator[Any]:
    """The rows of each batch of an epoch, the last one smaller; ``None`` where all are one batch."""
    if size is None:
        yield None
        return
    order = random.permutation(n).astype(np.int32)
    for start in range(0, n, size):
        yield order[start : start + size]


def started(
    name: str, work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    """``train()``: a whole run of ``work.epochs`` epochs, waited for; and ``predict(x)``: raw outputs."""
    init, step = programs(name, work.members)
    random, inputs, targets = np.random.default_rng(seed), jnp.asarray(x), jnp.asarray(y)
    state = init(jax.random.key(seed))

    def train() -> None:
        nonlocal state
        history = []
        for _ in range(work.epochs):
            for rows in batches(random, len(x), work.batch_size):
                state, loss = step(state, inputs, targets, rows)
                history.append(loss)
        jax.device_get(history)
        jax.block_until_ready(state)

    return train, lambda x: np.asarray(forward(name)(state[0], x))
