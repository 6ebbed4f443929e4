"""Training as a pure function: objectives, trainers, ``run``, and ``fit``, which drives it from the host."""

from funcnn.training.driving import Event, NonFiniteError, compiled_step
from funcnn.training.evaluation import evaluate, predict
from funcnn.training.fitting import fit, steps
from funcnn.training.objectives import Aux, Objective
from funcnn.training.optimizers import freeze
from funcnn.training.runs import Result, run
from funcnn.training.states import TrainState
from funcnn.training.trainers import Trainer, supervised, trainer

__all__ = [
    "Aux",
    "Event",
    "NonFiniteError",
    "Objective",
    "Result",
    "TrainState",
    "Trainer",
    "compiled_step",
    "evaluate",
    "fit",
    "freeze",
    "predict",
    "run",
    "steps",
    "supervised",
    "trainer",
]
