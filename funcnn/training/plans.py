"""What is static about a run, how many steps of which sizes: decided, and checked, before anything is compiled."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from funcnn import checks
from funcnn import data as datasets
from funcnn.core import Tree
from funcnn.training.pieces import Buffer
from funcnn.training.positions import Position
from funcnn.training.sources import expect_end, is_stream, length_of, numbers_of
from funcnn.training.stopping import Monitor
from funcnn.training.streams import Reader

# What is given where nothing is said, which a stream need not have.
_BATCH_SIZE = 32


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
    streams: bool = False  # whether the batches of a piece are at hand, and not all data
    is_rest: bool = False  # whether this piece is the smaller last batch
    skips_nonfinite: bool = False  # whether a step whose numbers went bad is as if it had not been
    counts_steps: bool = False  # whether the length of the run was given in steps
    validation_size: int = 0  # examples to a batch of validation; 0 where all of them are one
    spread: Any = None  # how the examples lie on several devices, and so those of a batch; None on one

    @property
    def full(self) -> int:
        """Steps with a whole batch in an epoch."""
        if self.streams:
            return 0 if self.is_rest else self.epoch_steps
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
    _expect_one(where, epochs, steps)
    batch_size = expect_batch_size(where, batch_size)
    if is_stream(data):
        fix = "training.fit, training.steps and training.sweep take a stream; load it into arrays for all else"
        checks.fail(where, "arrays, or a function of a key", f"a stream ({type(data).__name__})", fix, TypeError)
    if callable(data):
        _expect_draws(where, data)
        if drop_last or not shuffle:
            got = "drop_last=True" if drop_last else "shuffle=False"
            checks.fail(
                where,
                "drop_last and shuffle only where data are arrays",
                got,
                "leave it out: the function draws each batch",
            )
        source, arrays, examples, size, spread = data, None, 0, 0, None
        epoch_steps = 1 if steps_per_epoch is None else checks.expect_count(where, "steps_per_epoch", steps_per_epoch)
    else:
        if steps_per_epoch is not None:
            checks.fail(
                where, "steps_per_epoch only where data is a function", "arrays", "an epoch uses every example once"
            )
        source, arrays = None, datasets.as_arrays(data, where=where, one_length=batch_size is not None)
        examples = len(jax.tree.leaves(arrays)[0])
        size = 0 if batch_size is None or batch_size >= examples else batch_size
        spread = _spread(where, arrays, size)
        epoch_steps = 1 if size == 0 else examples // size if drop_last else -(-examples // size)
    total = _total(where, epochs, steps, epoch_steps)
    plan = Plan(source, examples, size, epoch_steps, total, shuffle, stops_at_nonfinite, monitor)
    return plan._replace(counts_steps=epochs is None, validation_size=batch_size or 0, spread=spread), arrays


def _spread(where: str, arrays: Tree, size: int) -> NamedSharding | None:
    """How the axis of examples lies on several devices, where all arrays agree and a batch is a part of them.

    A batch that is drawn has to be told: otherwise each device would compute all of it.
    """
    found: set[NamedSharding | None] = set()
    for leaf in jax.tree.leaves(arrays) if size else ():
        of_type = getattr(jax.typeof(leaf), "sharding", None)
        if of_type is not None and any(axis is not None for axis in of_type.spec):
            fix = "make it with axis_types=(jax.sharding.AxisType.Auto,), or take batch_size=None"
            checks.fail(where, "data on a mesh of Auto axes", f"a mesh of Explicit axes, {of_type.spec}", fix)
        sharding = leaf.sharding if isinstance(leaf, jax.Array) and checks.is_concrete(leaf) else None
        if isinstance(sharding, NamedSharding) and len(sharding.spec) > 0 and sharding.spec[0] is not None:
            found.add(NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0])))
        else:
            found.add(None)
    return found.pop() if len(found) == 1 else None


def _expect_draws(where: str, function: Any) -> None:
    """Raise unless a function can be called with a key alone."""
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        name = getattr(function, "__name__", type(function).__name__)
        fix = "a stream is a generator function, one that yields, or what can be iterated"
        checks.fail(where, "a function key -> batch", f"{name}, which does not take one argument", fix, TypeError)
    except ValueError:
        return  # a builtin that does not say


def _total(where: str, epochs: int | None, steps: int | None, epoch_steps: int) -> int:
    """The steps of the whole run."""
    if epochs is not None:
        total = checks.expect_count(where, "epochs", epochs) * epoch_steps
    else:
        total = checks.expect_count(where, "steps", steps)
    if total >= 2**31:
        fix = "train in several runs, each from the state of the last"
        checks.fail(where, "fewer than 2**31 steps in all", str(total), fix)
    return total


def streamed(
    stream: Any,
    *,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    drop_last: bool,
    steps_per_epoch: int | None,
    stops_at_nonfinite: bool,
    monitor: Monitor | None,
    where: str,
    at: Position | None = None,
    notes_states: bool = False,
) -> tuple[Plan, Reader, Buffer]:
    """The plan of a run on a stream, its reader, and the first batches; or those of the same form, where it goes on.

    Where an epoch is a pass, whose length shows at its end, the steps of a run are numbered with gaps: every epoch has
    as many numbers as there is room for, and uses the first of them.
    """
    _expect_one(where, epochs, steps)
    options: dict[str, Any] = {"one_length": batch_size is not None, "at": at, "notes_states": notes_states}
    if drop_last:
        fix = "leave it out where the stream is made"
        checks.fail(where, "drop_last only where data are arrays", "a stream, whose batches are what they are", fix)
    if epochs is not None and steps_per_epoch is None:
        passes = checks.expect_count(where, "epochs", epochs)
        expect_end(where, stream, passes)
        epoch_steps = numbers_of(passes)
        if epoch_steps < 2:
            checks.fail(where, "fewer than 2**30 epochs", str(passes), "train in several runs, each from the last")
        total, reader = passes * epoch_steps, Reader(where, stream, passes, None, **options)
    else:
        per = length_of(stream) or 1 if steps_per_epoch is None else steps_per_epoch
        epoch_steps = checks.expect_count(where, "steps_per_epoch", per)
        total = _total(where, epochs, steps, epoch_steps)
        reader = Reader(where, stream, None, total, **options)
    try:
        buffer, size = reader.begin()
        if batch_size not in (None, _BATCH_SIZE, size):
            fix = "leave batch_size out, or make the batches of the stream of this size"
            checks.fail(where, f"batches of batch_size={batch_size}", f"{size} in the first of the stream", fix)
    except BaseException:
        reader.close()
        raise
    plan = Plan(None, 0, size, epoch_steps, total, False, stops_at_nonfinite, monitor, True)
    return plan._replace(counts_steps=epochs is None, validation_size=size if batch_size else 0), reader, buffer


def _expect_one(where: str, epochs: int | None, steps: int | None) -> None:
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else f"epochs={epochs} and steps={steps}"
        checks.fail(where, "either epochs or steps", got, "pass one of them")


def validation_arrays(plan: Plan, validation: Any, where: str) -> Tree:
    """The validation data as arrays; of one length where they are cut into batches."""
    if validation is None:
        return None
    if isinstance(validation, (int, float)):
        fix = "split first: train, test = data.split(everything, 0.2, key=key)"
        checks.fail(where, "validation as arrays", f"the number {validation}", fix, TypeError)
    if is_stream(validation):
        got = f"a stream ({type(validation).__name__})"
        checks.fail(where, "validation as arrays", got, "load it: all of it is evaluated after each epoch", TypeError)
    if callable(validation):
        checks.fail(
            where, "validation as arrays", "a function", "draw the validation data once, before the run", TypeError
        )
    # Where a function draws the data they may be of several lengths, and so may these; then they are one batch.
    one_length = plan.validation_size > 0 and plan.source is None
    return datasets.as_arrays(validation, where=f"{where}: validation", one_length=one_length)


def expect_batch_size(where: str, batch_size: Any) -> int | None:
    """``batch_size`` as an ``int``, or ``None`` for all examples at once."""
    if batch_size is None:
        return None
    if isinstance(batch_size, int) and batch_size < 1:
        fix = "choose 1 or more, or None for all examples at once"
        checks.fail(where, "batch_size of at least 1", str(batch_size), fix)
    return checks.expect_count(where, "batch_size", batch_size)
