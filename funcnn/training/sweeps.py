"""``sweep``: many runs as one program, over hyperparameters and seeds."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import Tree, expect_key
from funcnn.training import progress as progresses
from funcnn.training.driving import Driver
from funcnn.training.fingerprints import digest
from funcnn.training.grids import expanded
from funcnn.training.groups import grouped, groups_of, kept_size, members_of, place_of, trained_in_groups
from funcnn.training.keepers import Found, Keeper, Keeping, expect_keeping
from funcnn.training.keeping import begun, found_in, position_of
from funcnn.training.looks import looking
from funcnn.training.members import Members
from funcnn.training.preparing import prepared
from funcnn.training.probes import concrete_trainer, cores_for, fastest, same_maker, step_of
from funcnn.training.records import Sweep, joined
from funcnn.training.runs import Result
from funcnn.training.stopping import monitored
from funcnn.training.trainers import Trainer, TrainState
from funcnn.training.watching import Observer, driven, expect_observers


def sweep(
    make_trainer: Callable[[Any], Trainer],
    grid: Any,
    data: Any,
    *,
    key: Any,
    seeds: int | Sequence[int] = 1,
    combine: str = "product",
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
    how: str = "auto",
    max_bytes: int | None = None,
    progress: bool = True,
    every: int | None = None,
    observers: Sequence[Observer] = (),
    checkpoint: Keeping | None = None,
    resume: bool | str = False,
) -> Sweep:
    """Many runs as one compiled program: one for each point of a grid of hyperparameters, and for each seed.

    Formula: the member with hyperparameters ``h`` and seed ``s`` is ``run(make_trainer(h), data, key=fold_in(key, s))``

    Args:
        make_trainer: from hyperparameters to a trainer. It is called with tracers: numbers that the model, the loss,
            the penalty, the schedule or the optimizer computes with can be swept, those that decide shapes cannot.
        grid: an array, of which ``make_trainer`` gets one entry, or a dict of arrays by name, of which it gets a dict
            of entries.
        data: as for ``fit``; a stream is shared by all members.
        epochs: as for ``run``; so are ``steps``, ``batch_size``, ``validation``, ``state`` (where every member begins),
            ``shuffle``, ``drop_last``, ``steps_per_epoch``, and, for each member on its own, ``monitor``, ``mode``,
            ``patience``, ``min_delta`` and ``keep_best``.
        key: the source of the keys of all members.
        seeds: how many, or which: whole numbers. The same seed has the same key at every point of the grid.
        combine: of a dict with several entries, ``"product"`` takes all combinations, ``"zip"`` the first of each, the
            second of each, and so on.
        how: ``"vmap"`` computes all members side by side, ``"map"`` one after the other (each is then, to the bit, what
            it is alone; where each is one kernel, after ``fuse_small_loops``, as many at once as there are cores);
            ``"auto"`` takes what is faster for networks of this size on a CPU, and ``"vmap"`` elsewhere.
        max_bytes: of memory for one program; more members are cut into equal groups that run one after the other. By
            default what the device has, and on a CPU three quarters of what is free.
        progress: as for ``fit``, with the medians of all members; so are ``every`` and ``observers``, whose event has
            states and metrics with a leading axis.
        checkpoint: as for ``fit``; so is ``resume``. Where members are cut into groups, each has a part of the
            directory to itself.

    Returns:
        A ``Sweep``. A member whose numbers go bad has NaN in its history from there on, and stops nobody else.

    Raises:
        TypeError: a hyperparameter that decides shapes, or that an optimizer branches on.
        ValueError: an empty grid, lengths that differ under ``"zip"``, a name in the grid that nothing reads.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcnn import layers, losses, training
        >>> def trainer(h):
        ...     return training.supervised(layers.dense(1), losses.squared_error, optax.sgd(h["rate"], h["momentum"]))
        >>> x = jnp.linspace(-1, 1, 20)[:, None]
        >>> grid = {"rate": jnp.array([0.001, 0.01, 0.1]), "momentum": jnp.array([0.0, 0.9])}
        >>> found = training.sweep(trainer, grid, (x, 3 * x), key=jax.random.key(0), seeds=2, epochs=10, progress=False)
        >>> found.history["loss"].shape
        (12, 10)
        >>> best = found.best("loss")
        >>> round(best.hyperparameters["rate"], 3), best.result.history["loss"].shape
        (0.1, (10,))

    Reference: Lu et al., "Discovered policy optimisation", 2022, whose agents are trained in one ``vmap`` (purejaxrl).
    """
    expect_key("sweep", key)
    checks.expect_option("sweep", "how", how, ("auto", "vmap", "map"))
    expect_observers("sweep", observers)
    every = None if every is None else checks.expect_count("sweep", "every", every)
    expect_keeping("sweep", checkpoint, resume)
    points, chosen = expanded(grid, combine, seeds)
    values, first = (jax.tree.map(jnp.asarray, tree) for tree in (points, jax.tree.map(lambda a: a[0], points)))
    with contextlib.ExitStack() as stack:
        keeper = None if checkpoint is None else stack.enter_context(checkpoint.opened())
        size = kept_size(keeper, len(chosen))
        place = place_of(keeper, 0, size, len(chosen))
        found = found_in("sweep", place, resume)
        run = prepared(
            "sweep",
            concrete_trainer(make_trainer, first),
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
            stops_at_nonfinite=False,
            monitor=monitored("sweep", monitor, mode, patience, min_delta, keep_best),
            at=position_of(found, resume),
            is_kept=keeper is not None,
        )
        stack.callback(run.close)
        jaxpr = step_of(make_trainer, first, run, state)
        how = fastest(jaxpr.jaxpr, run.plan) if how == "auto" else how
        cores = min(cores_for(jaxpr, run.plan, how), len(chosen))
        maker = Members(same_maker(make_trainer, jaxpr), how, values, cores)
        keys = jax.vmap(lambda s: jax.random.fold_in(key, s))(chosen.astype(np.uint32))
        parts = groups_of(maker, run, keys, state, max_bytes) if size is None else grouped(len(chosen), size)

        def trained(group: Driver, place: Keeper | None, found: Found | None, part: Any) -> tuple[Result, bool]:
            members, own = group.members, members_of(keys, part)
            extra = {} if place is None else {"members": digest((members and members.values, own)), "how": how}
            chunk, kept = begun(group, place, found, key, state, resume, extra, own)
            next_look = looking(every, group.plan.epoch_steps, steps)
            return driven(group, chunk, next_look, list(observers), progress, kept)

        results, count = trained_in_groups(stack, run, maker, parts, keeper, (place, found), resume, trained)
    return _sweep(grid, values, chosen, keys, results, count)


def _sweep(grid: Any, values: Tree, chosen: Any, keys: Any, results: list[Result], count: int) -> Sweep:
    """The members that were begun, in the order and by the names that were given."""
    if count < len(chosen):
        progresses.say(f"sweep: {count} of {len(chosen)} members were begun; these are in the result")
    named = {name: values[name] for name in grid} if isinstance(grid, dict) else {"": values}  # in the given order
    points = {name: column[:count] for name, column in named.items()}
    points = points if isinstance(grid, dict) else points[""]
    return Sweep(points, chosen[:count], keys[:count], joined(results, count), len(set(chosen.tolist())))
