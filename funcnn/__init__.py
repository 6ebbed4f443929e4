"""Neural networks on JAX in which a training run is one pure function."""

import importlib as _importlib
import typing as _typing

from funcnn import (
    bits,
    checks,
    core,
    data,
    disk,
    draws,
    layers,
    losses,
    metrics,
    models,
    penalties,
    primitives,
    small_products,
    spatial,
    stacks,
    targets,
    training,
    trees,
    weights,
)

if _typing.TYPE_CHECKING:
    from funcnn import checkpoints, exporting, inspection, plotting

__all__ = [
    "__version__",
    "bits",
    "checkpoints",
    "checks",
    "core",
    "data",
    "disk",
    "draws",
    "exporting",
    "inspection",
    "layers",
    "losses",
    "metrics",
    "models",
    "penalties",
    "plotting",
    "primitives",
    "small_products",
    "spatial",
    "stacks",
    "targets",
    "training",
    "trees",
    "weights",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> _typing.Any:
    """A module that a run can do without is imported when somebody asks for it."""
    if name in __all__:
        return _importlib.import_module(f"funcnn.{name}")
    raise AttributeError(f"module 'funcnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *(name for name in __all__ if name not in globals())]
