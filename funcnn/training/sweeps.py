"""``sweep``: many runs as one program, over hyperparameters and seeds."""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnn import checks
from funcnn.core import expect_key
from funcnn.training import progress as progresses
from funcnn.training.driving import Driver
from funcnn.training.fitting import Observer, driven, expect_observers
from funcnn.training.grids import expanded
from funcnn.training.looks import looking
from funcnn.training.members import Members
from funcnn.training.preparing import prepared
from funcnn.training.probes import concrete_trainer, fastest, same_maker, step_of
from funcnn.training.records import Sweep, joined
from funcnn.training.sources import is_once
from funcnn.training.stopping import monitored
from funcnn.training.trainers import Trainer, TrainState


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
            it is alone); ``"auto"`` takes what is faster for networks of this size on this platform.
        max_bytes: of memory for one program; more members are cut into equal groups that run one after the other. By
            default what the device has, and on a CPU three quarters of what is free.
        progress: as for ``fit``, with the medians of all members; so are ``every`` and ``observers``, whose event has
            states and metrics with a leading axis.

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
    values, chosen = expanded(grid, combine, seeds)
    first = jax.tree.map(lambda a: a[0], values)
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
    )
    count, results = 0, []
    with contextlib.ExitStack() as stack:
        stack.callback(run.close)
        jaxpr = step_of(make_trainer, first, run, state)
        how = fastest(jaxpr.jaxpr, run.plan) if how == "auto" else how
        maker = Members(same_maker(make_trainer, jaxpr), how, values)
        keys = jax.vmap(lambda s: jax.random.fold_in(key, s))(jnp.asarray(chosen, jnp.uint32))
        for part in _groups(maker, run, keys, state, max_bytes):
            if count:
                run = run.again()
                stack.callback(run.close)
            group = run._replace(members=maker._replace(values=jax.tree.map(lambda a, p=part: a[p], values)))
            begun, next_look = group.start(keys[part], state), looking(every, run.plan.epoch_steps, steps)
            result, is_whole = driven(group, begun, next_look, list(observers), progress)
            results.append(result)
            count = min(count + len(part), len(chosen))
            if not is_whole:
                break
    if count < len(chosen):
        progresses.say(f"sweep: {count} of {len(chosen)} members were begun; these are in the result")
    named = {name: values[name] for name in grid} if isinstance(grid, dict) else {"": values}  # in the given order
    begun = {name: column[:count] for name, column in named.items()}
    begun = begun if isinstance(grid, dict) else begun[""]
    return Sweep(begun, chosen[:count], keys[:count], joined(results, count), len(set(chosen.tolist())))


def _groups(maker: Members, run: Driver, keys: Any, state: TrainState | None, max_bytes: int | None) -> list[Any]:
    """The members in equal groups that fit in memory, the last one filled up with the last member."""
    count = len(keys)
    limit = _memory() if max_bytes is None else checks.expect_count("sweep", "max_bytes", max_bytes)
    size = count
    while size > 1:
        part = np.arange(size)
        members = maker._replace(values=jax.tree.map(lambda a, p=part: a[p], maker.values))
        if max_bytes is None and _TINY * members.carried(run, keys[part], state) < limit:
            break  # nowhere near: the answer is not worth compiling for
        needed = members.memory(run, keys[part], state)
        if needed <= limit:
            break
        # Members take equal parts of what the data leave, or about that: asked again, until it fits.
        size = math.ceil(count / max(math.ceil(count / size) + 1, math.ceil(count / max(1, size * limit // needed))))
    if size < count and run.reader is not None and is_once(run.reader.source):
        fix = "pass what can be iterated again, or allow more with max_bytes"
        got = f"an iterator, gone after one pass, and members that do not fit in {limit:,} bytes together"
        checks.fail("sweep", "a stream that is read once for each group of members", got, fix)
    padded = np.minimum(np.arange(math.ceil(count / size) * size), count - 1)
    return list(padded.reshape(-1, size))


# What a step needs beside what is carried, at most, where nothing is known of it.
_TINY = 50


def _memory() -> int:
    """The bytes that a program may take: of the device where it says so, of what is free in the machine otherwise."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 2**62  # a machine that does not say
    return int(0.75 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
