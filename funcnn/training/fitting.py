"""``fit``: a run with progress, observers and errors; and ``steps``, the lazy stream of events beneath it."""

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from funcnn import checks
from funcnn.training.chunks import Chunk
from funcnn.training.driving import Driver
from funcnn.training.events import Event
from funcnn.training.keepers import Keeping, ResumeError, expect_keeping
from funcnn.training.keeping import begun, found_in, position_of
from funcnn.training.looks import by_count, looking
from funcnn.training.preparing import prepared
from funcnn.training.runs import Result
from funcnn.training.stopping import monitored
from funcnn.training.trainers import Trainer, TrainState
from funcnn.training.watching import Observer, driven, expect_observers


def steps(
    trainer: Trainer,
    data: Any,
    *,
    key: Any,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = 32,
    validation: Any = None,
    state: TrainState | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    steps_per_epoch: int | None = None,
    monitor: str | None = None,
    mode: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    keep_best: bool = False,
    every: int = 1,
) -> Iterator[Event]:
    """The lazy stream of a run: one ``Event`` after every step, or after every so many.

    The arguments are those of ``fit``, with ``every`` counted in steps. Arguments and data are checked at the call,
    nothing is run before the first event is asked for, and nothing more than was asked for; an early stop ends it.

    Raises:
        NonFiniteError: a loss or a parameter became NaN or infinite.
        StreamError: a stream of batches broke off.

    Example:
        >>> import itertools, jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.1))
        >>> data = jnp.ones((10, 1)), jnp.ones((10, 1))
        >>> stream = training.steps(line, data, key=jax.random.key(0), epochs=100, batch_size=4)
        >>> [(event.epoch, event.step) for event in itertools.islice(stream, 5)]
        [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]

    Reference: the lazy streams of Elixir.
    """
    every = checks.expect_count("steps", "every", every)
    run = prepared(
        "steps",
        trainer,
        data,
        validation,
        key,
        state,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        steps_per_epoch=steps_per_epoch,
        stops_at_nonfinite=True,
        monitor=monitored("steps", monitor, mode, patience, min_delta, keep_best),
    )
    try:
        carry = run.start(key, state)
    except BaseException:
        run.close()
        raise
    events = _events(run, run.chunks(Chunk(0, 0, carry, {}, {}), by_count(every)))
    weakref.finalize(events, run.close)  # who goes through it may stop anywhere, even before it begins, and forget it
    return events


def _events(run: Driver, chunks: Iterator[Chunk]) -> Iterator[Event]:
    with contextlib.closing(run):
        for chunk in chunks:
            run.trained(chunk.position)
            if chunk.is_look:
                yield run.event(chunk)


def fit(
    trainer: Trainer,
    data: Any,
    *,
    key: Any,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = 32,
    validation: Any = None,
    state: TrainState | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    steps_per_epoch: int | None = None,
    monitor: str | None = None,
    mode: str | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    keep_best: bool = False,
    progress: bool = True,
    every: int | None = None,
    observers: Sequence[Observer] = (),
    on_nonfinite: str = "raise",
    checkpoint: Keeping | None = None,
    resume: bool | str = False,
) -> Result:
    """``run``, driven from the host: with progress, observers, and an answer to Ctrl-C and to numbers that go bad.

    It gives what ``run`` gives, bit for bit, on one machine and one set of versions. A second call with the same
    trainer and shapes compiles nothing. Ctrl-C ends it after the chunk under way, and returns the result up to there.

    A stream of batches is read ahead, and moved to the device, by a thread, while the last batches are computed with.
    It gives what arrays of the same batches give, bit for bit. Its batches have one size, except for smaller ones of
    one other size, as at the end of a pass. Without ``steps_per_epoch``, an epoch is a pass.

    Args:
        trainer: as for ``run``; so are ``key``, ``epochs``, ``validation``, ``state``, ``monitor``, ``mode``,
            ``patience``, ``min_delta`` and ``keep_best``.
        data: as for ``run``; or a stream: an iterable of batches, such as a Grain dataset or a PyTorch loader, or a
            generator function, which is called for each pass. A Grain iterator stands where training ended,
            afterwards, whatever was read ahead.
        steps: as for ``run``; passes over a stream follow on one another.
        batch_size: as for ``run``; the batches of a stream are what they are, and so is their order, for all of
            ``shuffle`` and ``drop_last``.
        shuffle: as for ``run``; so is ``drop_last``.
        steps_per_epoch: where ``data`` is a function or a stream: how many steps make one row of the history. For a
            function, and for a stream of unknown length that is counted in steps, 1 otherwise.
        progress: a bar on a terminal and in a notebook, lines elsewhere, both on standard error; ``False`` for none.
        every: epochs (steps, where the run is counted in steps) between two looks of the host; by the clock otherwise.
        observers: functions of an ``Event``, called at each look. One that returns ``True`` ends the run. One that
            raises is left out from there on, with a warning.
        on_nonfinite: ``"raise"`` ends the run at the first loss or parameter that is NaN or infinite. ``"skip"`` leaves
            params, states and sums as they were before such a step, as ``optax.apply_if_finite`` does, counts them in
            ``history["skipped_steps"]``, and ends the run after 20 in a row. ``"continue"`` goes on.
        checkpoint: where the run is saved while it goes on, ``checkpoints.directory("runs/a")``. SIGTERM and SIGINT
            then end it after the chunk under way, with everything saved, and end the process with the exit code 143 or
            130 (at a prompt, Ctrl-C gives the result instead); a second one ends it at once.
        resume: whether to go on with the run that is saved there, if there is one, from the bits of its last whole
            step. All other arguments have to be those that it was begun with; ``"changed"`` allows others, as far as
            the arrays fit.

    Returns:
        A ``Result``; where the run was ended early, with the epochs that it finished.

    Raises:
        NonFiniteError: a number went bad; its ``result`` holds the last good state.
        StreamError: a stream raised, ended too early, or gave a batch unlike the others; its ``result`` holds the state
            after all batches before.
        SaveError: a checkpoint could not be written; its ``result`` holds the state up to then.
        ResumeError: what is saved there is not this run, with a list of what differs; or it is, and ``resume`` is not
            set.
        TypeError, ValueError: before anything is compiled, on arguments, shapes and values that cannot be right.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> x = jnp.linspace(-1, 1, 20)[:, None]
        >>> line = training.supervised(layers.dense(1), losses.squared_error, optax.sgd(0.3))
        >>> result = training.fit(line, (x, 3 * x + 1), key=jax.random.key(0), epochs=30, batch_size=5, progress=False)
        >>> result.history["loss"].shape, round(result.state.params["kernel"].item(), 3)
        ((30,), 3.0)
        >>> def batches():
        ...     for begin in range(0, 20, 5):
        ...         yield x[begin:begin + 5], 3 * x[begin:begin + 5] + 1
        >>> result = training.fit(line, batches, key=jax.random.key(0), epochs=30, progress=False)
        >>> result.history["loss"].shape, round(result.state.params["kernel"].item(), 3)
        ((30,), 3.0)
    """
    checks.expect_option("fit", "on_nonfinite", on_nonfinite, ("raise", "skip", "continue"))
    expect_keeping("fit", checkpoint, resume)
    expect_observers("fit", observers)
    every = None if every is None else checks.expect_count("fit", "every", every)
    with contextlib.ExitStack() as stack:
        keeper = None if checkpoint is None else stack.enter_context(checkpoint.opened())
        if keeper is not None and keeper.parts():
            raise ResumeError(f"fit: expected no sweep in {keeper.path}, got one in parts; choose another directory")
        found = found_in("fit", keeper, resume)
        run = prepared(
            "fit",
            trainer,
            data,
            validation,
            key,
            state,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            steps_per_epoch=steps_per_epoch,
            stops_at_nonfinite=on_nonfinite != "continue",
            skips_nonfinite=on_nonfinite == "skip",
            monitor=monitored("fit", monitor, mode, patience, min_delta, keep_best),
            at=position_of(found, resume),
            is_kept=keeper is not None,
        )
        stack.callback(run.close)
        next_look = looking(every, run.plan.epoch_steps, steps)
        chunk, kept = begun(run, keeper, found, key, state, resume)
        return driven(run, chunk, next_look, list(observers), progress, kept)[0]
