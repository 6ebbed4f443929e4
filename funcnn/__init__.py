"""Neural networks on JAX in which a training run is one pure function."""

from funcnn import (
    checkpoints,
    checks,
    core,
    data,
    exporting,
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
    "checkpoints",
    "checks",
    "core",
    "data",
    "exporting",
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
