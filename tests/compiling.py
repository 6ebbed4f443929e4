"""Less to compile, for comparisons with other libraries: what these hold to rounding needs no optimized program."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def quickly_compiled():
    """Programs with few optimizations, which take a third less; a decorator as well.

    What is equal to the bit, and what is measured, is compiled as everywhere else.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def numbers_for(layer, x):
    """Params for a layer, no larger than its own: numbers of NumPy need no program for each new shape."""
    random = np.random.default_rng(1)
    params, _ = jax.eval_shape(layer.init, jax.random.key(0), x)

    def drawn(a):
        return jnp.asarray(0.5 * random.normal(size=a.shape) / max(1, np.prod(a.shape[:-1])) ** 0.5, a.dtype)

    return jax.tree.map(drawn, params)
