"""Neural networks on JAX in which a training run is one pure function."""

from funcnn import (
    checks,
    core,
    data,
    inspection,
    layers,
    losses,
    metrics,
    models,
    penalties,
    plotting,
    primitives,
    spatial,
    stacks,
    targets,
    training,
    trees,
    weights,
)

__all__ = [
    "__version__",
    "checks",
    "core",
    "data",
    "inspection",
    "layers",
    "losses",
    "metrics",
    "models",
    "penalties",
    "plotting",
    "primitives",
    "spatial",
    "stacks",
    "targets",
    "training",
    "trees",
    "weights",
]

__version__ = "0.1.0"
