"""What made a step go bad: which operation, and what can be done about it."""

from typing import TYPE_CHECKING, Any

from funcnn.core import Tree
from funcnn.training.programs import Carry, Program
from funcnn.training.trainers import TrainState

if TYPE_CHECKING:
    from funcnn.inspection import NonFinite


def cause(program: Program, carry: Carry, number: int) -> "NonFinite | None":
    """What made the step of this number bad, as far as it can be found: the first operation, and its layer."""
    try:
        from funcnn import inspection  # which no run needs that goes well

        def step(state: TrainState, batch: Tree) -> Any:  # whatever the names of these are in trainer.step
            return program.trainer.step(state, batch)

        return inspection.first_nonfinite(step, carry.state, program.batch_at(carry, number))
    except Exception:  # to look for it must not hide what happened
        return None


def advice_for(found: "NonFinite | None", at_once: bool) -> str:
    """What to do about it; ``at_once`` means that nothing had been learned yet."""
    if found is not None and found.operation == "argument" and found.path.partition("/")[0] == "batch":
        return "leave such examples out of the batches, or fill them in"
    if at_once:
        return "look at the loss and at what it is given, such as logits where it takes probabilities, or large numbers"
    return "lower the learning rate, or clip the gradient with optax.clip_by_global_norm"
