"""Training as a pure function: objectives, trainers, ``run``, and ``fit``, which drives it from the host."""

from funcnn.training.caching import cache_programs
from funcnn.training.evaluation import evaluate, predict, predict_members
from funcnn.training.events import Event, NonFiniteError, StreamError
from funcnn.training.fitting import fit, steps
from funcnn.training.interrupts import Interrupted
from funcnn.training.keepers import ResumeError, SaveError
from funcnn.training.kernels import fuse_small_loops
from funcnn.training.objectives import Aux, Objective
from funcnn.training.observers import json_lines
from funcnn.training.optimizers import average_of, averaged, freeze
from funcnn.training.rates import RateRange, find_learning_rate
from funcnn.training.records import Member, Sweep, Table
from funcnn.training.runs import Result, run
from funcnn.training.schedules import (
    cosine_decay_schedule,
    exponential_decay_schedule,
    piecewise_constant_schedule,
    warmup_cosine_decay_schedule,
)
from funcnn.training.states import TrainState
from funcnn.training.stepping import compiled_step
from funcnn.training.sweeps import sweep
from funcnn.training.telemetry import dead_units, gradient_norm, update_ratio
from funcnn.training.trainers import Trainer, supervised, trainer
from funcnn.training.validating import CrossValidation, cross_validate

__all__ = [
    "Aux",
    "CrossValidation",
    "Event",
    "Interrupted",
    "Member",
    "NonFiniteError",
    "Objective",
    "RateRange",
    "Result",
    "ResumeError",
    "SaveError",
    "StreamError",
    "Sweep",
    "Table",
    "TrainState",
    "Trainer",
    "average_of",
    "averaged",
    "cache_programs",
    "compiled_step",
    "cosine_decay_schedule",
    "cross_validate",
    "dead_units",
    "evaluate",
    "exponential_decay_schedule",
    "find_learning_rate",
    "fit",
    "freeze",
    "fuse_small_loops",
    "gradient_norm",
    "json_lines",
    "piecewise_constant_schedule",
    "predict",
    "predict_members",
    "run",
    "steps",
    "supervised",
    "sweep",
    "trainer",
    "update_ratio",
    "warmup_cosine_decay_schedule",
]
