"""What is static about a run, how many steps of which sizes: decided, and checked, before anything is compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from funcnn import checks
from funcnn import data as datasets
from funcnn.core import Tree
from funcnn.training.stopping import Monitor


class Plan(NamedTuple):
    """All that is static about a run: it decides which program is compiled."""

    source: Callable[[Any], Any] | None  # draws a batch from a key; None where the data are arrays
    examples: int  # of the arrays; 0 where a function draws the batches
    batch_size: int  # 0 where all examples are one batch
    epoch_steps: int  # steps to an epoch, a smaller last batch included
    steps: int  # of the whole run
    shuffle: bool
    stops_at_nonfinite: bool
    monitor: Monitor | None = None

    @property
    def full(self) -> int:
        """Steps with a whole batch in an epoch."""
        return min(self.epoch_steps, self.examples // self.batch_size) if self.batch_size else self.epoch_steps

    @property
    def shuffles(self) -> bool:
        """Whether an epoch draws an order: not where one batch holds everything."""
        return self.batch_size > 0 and self.shuffle

    @property
    def draws(self) -> bool:
        """Whether the batches of a run depend on its key."""
        return self.source is not None or self.shuffles

    @property
    def epochs(self) -> int:
        """Rows of the history; the last epoch may be cut short by ``steps``."""
        return -(-self.steps // self.epoch_steps)


def planned(
    data: Any,
    *,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    drop_last: bool = False,
    steps_per_epoch: int | None = None,
    shuffle: bool = True,
    stops_at_nonfinite: bool = True,
    monitor: Monitor | None = None,
    where: str = "run",
) -> tuple[Plan, Tree]:
    """The plan of a run and its data as arrays, every argument checked."""
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else f"epochs={epochs} and steps={steps}"
        checks.fail(where, "either epochs or steps", got, "pass one of them")
    batch_size = expect_batch_size(where, batch_size)
    if callable(data):
        source, arrays, examples, size = data, None, 0, 0
        epoch_steps = 1 if steps_per_epoch is None else checks.expect_count(where, "steps_per_epoch", steps_per_epoch)
    else:
        if steps_per_epoch is not None:
            checks.fail(
                where, "steps_per_epoch only where data is a function", "arrays", "an epoch uses every example once"
            )
        source, arrays = None, datasets.as_arrays(data, where=where, one_length=batch_size is not None)
        examples = len(jax.tree.leaves(arrays)[0])
        size = 0 if batch_size is None or batch_size >= examples else batch_size
        epoch_steps = 1 if size == 0 else examples // size if drop_last else -(-examples // size)
    if epochs is not None:
        total = checks.expect_count(where, "epochs", epochs) * epoch_steps
    else:
        total = checks.expect_count(where, "steps", steps)
    if total >= 2**31:
        checks.fail(
            where, "fewer than 2**31 steps in all", str(total), "train in several runs, each from the state of the last"
        )
    return Plan(source, examples, size, epoch_steps, total, shuffle, stops_at_nonfinite, monitor), arrays


def validation_arrays(plan: Plan, validation: Any, where: str) -> Tree:
    """The validation data as arrays; of one length where they are cut into batches."""
    if validation is None:
        return None
    if isinstance(validation, (int, float)):
        fix = "split first: train, test = data.split(everything, 0.2, key=key)"
        checks.fail(where, "validation as arrays", f"the number {validation}", fix, TypeError)
    if callable(validation):
        checks.fail(
            where, "validation as arrays", "a function", "draw the validation data once, before the run", TypeError
        )
    return datasets.as_arrays(validation, where=f"{where}: validation", one_length=plan.batch_size > 0)


def expect_batch_size(where: str, batch_size: Any) -> int | None:
    """``batch_size`` as an ``int``, or ``None`` for all examples at once."""
    if batch_size is None:
        return None
    if isinstance(batch_size, int) and batch_size < 1:
        fix = "choose 1 or more, or None for all examples at once"
        checks.fail(where, "batch_size of at least 1", str(batch_size), fix)
    return checks.expect_count(where, "batch_size", batch_size)
