"""What JAX has for those who extend it, all that is used of it in one place: it may change from release to release."""

import importlib
import sys
import types
from typing import Any

_PALLAS = "jax.extend.pallas"


class _Later(types.ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # which is how imports ask
        return getattr(self._imported(), name)

    def __dir__(self) -> list[str]:
        return dir(self._imported())

    def _imported(self) -> types.ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


def _begun_without_pallas() -> None:
    """Import ``jax.extend`` without its part for Pallas, which takes longer than all of this library."""
    if "jax.extend" in sys.modules or _PALLAS in sys.modules:
        return
    sys.modules[_PALLAS] = later = _Later(_PALLAS)
    try:
        extend = importlib.import_module("jax.extend")
    except BaseException:
        sys.modules.pop(_PALLAS, None)
        raise
    if getattr(extend, "pallas", None) is not later:  # a JAX that has none
        sys.modules.pop(_PALLAS, None)


_begun_without_pallas()

from jax.extend import source_info_util  # noqa: E402
from jax.extend.core import Literal, Primitive, jaxpr_as_fun  # noqa: E402
from jax.extend.random import define_prng_impl, threefry2x32_p, threefry_prng_impl  # noqa: E402

__all__ = [
    "Literal",
    "Primitive",
    "define_prng_impl",
    "jaxpr_as_fun",
    "source_info_util",
    "threefry2x32_p",
    "threefry_prng_impl",
]
