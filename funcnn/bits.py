"""Random bits for initial weights, drawn along one axis: the same numbers, compiled in a fraction of the time."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl

# XLA on CPU nests a loop for each axis around the twenty rounds of the generator, and writes a short last axis out,
# element by element: the kernel of 64-10 alone came to 17,600 lines for LLVM. Along one axis, a whole run is compiled
# in two thirds of the time: digits 3.0 s and now 2.0, a wide perceptron 3.1 and 2.1. The bits are counted through, so
# that the shape makes no difference to them.
_SMALL = 2**20  # elements: beyond, an array may be sharded along one of its axes


def _random_bits(key: Any, bit_width: int, shape: tuple[int, ...]) -> Any:
    count = math.prod(shape)
    along = (count,) if count <= _SMALL else shape
    return threefry_prng_impl.random_bits(key, bit_width, along).reshape(shape)


_FLAT = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape,
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    random_bits=_random_bits,
    fold_in=threefry_prng_impl.fold_in,
    name="threefry2x32_flat",
    tag="ffry",
)


@functools.cache
def key_types() -> dict[Any, Any]:
    """The generator by the dtype of its keys: Threefry as JAX has it, and along one axis."""
    data = jax.ShapeDtypeStruct(threefry_prng_impl.key_shape, jnp.uint32)
    impls = (threefry_prng_impl, _FLAT)
    return {jax.eval_shape(lambda a, i=impl: jax.random.wrap_key_data(a, impl=i), data).dtype: impl for impl in impls}


def draw(initializer: Any, key: Any, shape: Any, dtype: Any) -> Any:
    """What an initializer of JAX draws, along one axis; one of somebody else gets the key as it is."""
    of_jax = str(getattr(initializer, "__module__", "")).startswith("jax.")
    return initializer(flat(key) if of_jax else key, shape, dtype)


def flat(key: Any) -> Any:
    """The key, such that all that is drawn from it is drawn along one axis; those of other generators as they are."""
    if jax.random.key_impl(key) != threefry_prng_impl.name:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_FLAT)
