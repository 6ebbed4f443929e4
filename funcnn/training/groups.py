"""The members of a sweep in groups that fit in memory, each with a place of its own where it is kept."""

import contextlib
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from funcnn import checks
from funcnn.training.driving import Driver
from funcnn.training.keepers import Found, Keeper
from funcnn.training.keeping import found_in, position_of
from funcnn.training.members import Members
from funcnn.training.runs import Result
from funcnn.training.sources import is_once
from funcnn.training.states import TrainState

Train = Callable[[Driver, Keeper | None, Found | None, Any], tuple[Result, bool]]
"""From a group, its place, what was found there, and the numbers of its members: what came out, and whether all."""


def trained_in_groups(
    stack: contextlib.ExitStack,
    run: Driver,
    maker: Members,
    parts: list[Any],
    keeper: Keeper | None,
    first: tuple[Keeper | None, Found | None],
    resume: Any,
    train: Train,
) -> tuple[list[Result], int]:
    """The results of the groups, and how many members were begun; ``first`` is where the first one is kept."""
    total, count, results = int(parts[-1][-1]) + 1, 0, list[Result]()
    for part in parts:
        place, found = first
        if count or found is None:
            place = place_of(keeper, count, len(part), total)
            found = found_in("sweep", place, resume)
        if count:
            run = run.again(position_of(found, resume))
            stack.callback(run.close)
        points = jax.tree.map(lambda a, p=part: a[p], maker.values)
        result, is_whole = train(run._replace(members=maker._replace(values=points)), place, found, part)
        results.append(result)
        count = min(count + len(part), total)
        if not is_whole:
            break
    return results, count


def kept_size(keeper: Keeper | None, count: int) -> int | None:
    """How many members are a group in what was kept, if anything was; how many fit in memory may have changed."""
    if keeper is None:
        return None
    parts = [name for name in keeper.parts() if re.fullmatch(r"members_\d+_\d+", name)]
    if parts:
        return min(count, int(parts[0].rpartition("_")[2]) + 1)
    return None if keeper.is_new() else count


def place_of(keeper: Keeper | None, begin: int, size: int | None, count: int) -> Keeper | None:
    """Where a group is kept: in a part of its own, where there are several."""
    if keeper is None or size is None or size >= count:
        return keeper
    return keeper.part(f"members_{begin:06d}_{begin + size - 1:06d}")


def groups_of(maker: Members, run: Driver, keys: Any, state: TrainState | None, max_bytes: int | None) -> list[Any]:
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
    return grouped(count, size)


def grouped(count: int, size: int) -> list[Any]:
    """The numbers of the members in groups of one size, the last one filled up with the last member."""
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
