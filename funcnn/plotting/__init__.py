"""Pictures of runs and models: figures are returned, never shown by force. Needs matplotlib (``funcnn[plots]``)."""

from funcnn.plotting.attending import attention
from funcnn.plotting.functions import activations
from funcnn.plotting.grids import sweep_map
from funcnn.plotting.kernels import filters
from funcnn.plotting.landscapes import interpolation, landscape
from funcnn.plotting.predictions import confusion_matrix, decision_boundary
from funcnn.plotting.runs import history, learning_rates
from funcnn.plotting.sweeps import sweep_curves
from funcnn.plotting.weights import histograms

__all__ = [
    "activations",
    "attention",
    "confusion_matrix",
    "decision_boundary",
    "filters",
    "histograms",
    "history",
    "interpolation",
    "landscape",
    "learning_rates",
    "sweep_curves",
    "sweep_map",
]
