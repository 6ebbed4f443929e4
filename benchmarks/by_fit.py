"""Our side, driven from the host: ``training.fit``, which checks the data and looks after the numbers of a run.

Networks and settings are those of by_funcnn.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from by_funcnn import MODELS, TRAINERS, swept
from workloads import Workload

from funcnn import training

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7")


def started(
    name: str, work: Workload, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[Callable[[], None], Callable[[np.ndarray], np.ndarray]]:
    """``train()``: a whole run from its initialisation on, waited for; and ``predict(x)``: raw outputs."""
    key, data = jax.random.key(seed), (jnp.asarray(x), jnp.asarray(y))
    if name == "W7":
        return swept(work, key, data)
    options = {"epochs": work.epochs, "batch_size": work.batch_size, "progress": False}
    state: Any = None

    def train() -> None:
        nonlocal state
        state = jax.block_until_ready(training.fit(TRAINERS[name], data, key=key, **options)).state

    return train, lambda x: np.asarray(training.predict(MODELS[name], state, x))
