"""Training as a pure function: objectives, trainers, ``run``, and ``fit``, which drives it from the host."""

from funcnn.training.driving import Event, NonFiniteError
from funcnn.training.evaluation import evaluate, predict
from funcnn.training.fitting import fit, steps
from funcnn.training.kernels import fuse_small_loops
from funcnn.training.objectives import Aux, Objective
from funcnn.training.optimizers import freeze
from funcnn.training.records import Member, Sweep, Table
from funcnn.training.runs import Result, run
from funcnn.training.states import TrainState
from funcnn.training.stepping import compiled_step
from funcnn.training.sweeps import sweep
from funcnn.training.trainers import Trainer, supervised, trainer

__all__ = [
    "Aux",
    "Event",
    "Member",
    "NonFiniteError",
    "Objective",
    "Result",
    "Sweep",
    "Table",
    "TrainState",
    "Trainer",
    "compiled_step",
    "evaluate",
    "fit",
    "freeze",
    "fuse_small_loops",
    "predict",
    "run",
    "steps",
    "supervised",
    "sweep",
    "trainer",
]
