"""The members of a sweep in groups that fit in memory, each with a place of its own where it is kept."""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from funcnn import checks
from funcnn.core import Tree
from funcnn.training.driving import Driver
from funcnn.training.keepers import Found, Keeper
from funcnn.training.keeping import found_in, position_of
from funcnn.training.members import Members
from funcnn.training.probes import bytes_of, made_bytes
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
        points = members_of(maker.values, part)
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
    limit = _memory(run) if max_bytes is None else checks.expect_count("sweep", "max_bytes", max_bytes)
    size = count
    while size > 1:
        part = np.arange(size)
        members = maker._replace(values=members_of(maker.values, part))
        chunk = members.chunk(run, members_of(keys, part), state)
        most = _most(chunk.jaxpr)
        if max_bytes is None and _BESIDE * most < limit:
            break  # nowhere near: the answer is not worth compiling for
        needed = _needed(chunk, most)
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


def members_of(tree: Tree, part: Any) -> Tree:
    """The members of these numbers; all of them are there already, and a gather would be a program to compile."""
    return jax.tree.map(lambda a: a if np.array_equal(part, np.arange(len(a))) else a[part], tree)


# How many times what a program makes it may need: XLA copies, and some operations have a work space of their own.
_BESIDE = 2


def _most(jaxpr: Any) -> int:
    """The bytes of all that a program is given and makes, as if nothing of it were given back before the end."""
    return bytes_of(v.aval for v in jaxpr.jaxpr.invars) + bytes_of(jaxpr.consts) + made_bytes(jaxpr.jaxpr)


def _needed(chunk: Any, most: int) -> int:
    """The bytes that a program needs, as the compiled one says; on platforms where it says nothing, ``most``."""
    analysis: Any = chunk.lower().compile().memory_analysis()
    if analysis is None:
        return most
    return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes


def _memory(run: Driver) -> int:
    """The bytes that a program on these data may take, they among them, where they lie or else would be put."""
    arrays = [a for a in jax.tree.leaves((run.arrays, run.held_out)) if isinstance(a, jax.Array)]
    shards = [shard for a in arrays if checks.is_concrete(a) for shard in a.addressable_shards]
    devices = {shard.device for shard in shards} or {_default_device()}
    # The data are there already, so they do not count as free; but a program needs no room for them again.
    return min(_free(d) + bytes_of(shard.data for shard in shards if shard.device == d) for d in devices)


def _default_device() -> Any:
    device = getattr(jax.config, "jax_default_device")  # noqa: B009  # pyright knows no attributes made at run time
    return jax.local_devices(backend=device)[0] if device is None or isinstance(device, str) else device


def _free(device: Any) -> int:
    """Nearly all that is free on a device that says so, or three quarters of what is in the machine otherwise."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    free = 2**62  # a machine that does not say
    available = re.search(r"^MemAvailable: +(\d+) kB$", _text(Path("/proc/meminfo")), re.MULTILINE)
    if available:  # files that were read make room
        free = int(available[1]) * 1024
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(0.75 * min([free, *_left(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]))


def _left(mine: Path, root: Path) -> Iterator[int]:
    """What is left of the memory that Linux allows a container, or another group of processes that this one is in."""
    for line in _text(mine).splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds:  # version 2
            top, limit, used, files = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            top, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            files = "total_inactive_file"
        else:
            continue
        place = top / path.lstrip("/")
        # A limit holds for all below it. In a container the path may be that outside of it, and the top is its own.
        for folder in [place, *(parent for parent in place.parents if parent.is_relative_to(top))]:
            most, now = _text(folder / limit).strip(), _text(folder / used).strip()
            if most.isdecimal() and now.isdecimal():  # "max" where there is no limit
                again = re.search(rf"^{files} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                yield max(int(most) - int(now) + (int(again[1]) if again else 0), 0)  # files that were read make room


def _text(path: Path) -> str:
    """What is in a file; nothing where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
