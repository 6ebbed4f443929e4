"""The second start of a script: without a cache of programs, with an empty one, and with one that is filled.

    python benchmarks/second_start.py            about three minutes; writes docs/start_times.md
    python benchmarks/second_start.py --quick    one repeat of each, and writes nothing

Each measurement is a fresh process that imports, loads the data, trains with ``fit`` and ends; the clock runs from its
start. The three take turns; medians. A second table takes the first start apart, and a list what XLA compiles of
each run.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from against_scan import ROOT, in_process, machine, marked, shown
from one_run import FUSED
from performance_page import CHOSEN
from workloads import WORKLOADS, data

PAGE = ROOT / "docs" / "start_times.md"
NAMES = ("W1", "W2", "W3", "W4")
WITHOUT, EMPTY, FILLED = "without", "empty", "filled"
BAR = 0.6  # of the process without a cache
PARTS = ("import jax", "import funcnn, optax", "data", "tracing", "lowering", "compiling", "running")

PARTS_HEAD = f"| | {' | '.join(PARTS)} | together |\n|{'---|' * (len(PARTS) + 2)}"

HEAD = """\
| | no cache, s | empty cache, s | filled cache, s | empty / none | filled / none | bar | compiled, filled |
|---|---|---|---|---|---|---|---|"""


def one(name: str, arrays: str, cache: str, started: float) -> dict[str, float]:
    """In a fresh process: seconds since it was started, and how many programs were compiled and not found."""
    from funcnn import training

    if cache:
        training.cache_programs(cache)
    import jax
    from by_funcnn import TRAINERS

    compiled: list[str] = []
    jax.monitoring.register_event_listener(
        lambda event, **_: compiled.append(event) if event.endswith("/cache_misses") else None
    )
    found, work = np.load(arrays), WORKLOADS[name]
    options = {"epochs": work.epochs, "batch_size": work.batch_size, "progress": False}
    result = training.fit(TRAINERS[name], (found["x"], found["y"]), key=jax.random.key(0), **options)
    loss = float(result.history["loss"][-1])
    return {"process": time.time() - started, "compiled": len(compiled), "loss": loss}


def parts(name: str, arrays: str, pieces_too: str) -> dict[str, float]:
    """In a fresh process: the seconds of each part of a run that is compiled, from the first import to the end.

    A cache of programs and one kernel for a loop are what the environment asks ``by_funcnn`` for.
    """
    marks = [time.perf_counter()]

    def passed() -> None:
        marks.append(time.perf_counter())

    import jax

    passed()
    from by_funcnn import TRAINERS, program  # which makes settings that have to be made before the first device

    jax.devices()
    passed()
    found, work, key = np.load(arrays), WORKLOADS[name], jax.random.key(0)
    data = jax.block_until_ready((jax.numpy.asarray(found["x"]), jax.numpy.asarray(found["y"])))
    passed()
    traced = program(name, work).trace(key, data)
    passed()
    lowered = traced.lower()
    passed()
    compiled = lowered.compile()
    passed()
    jax.block_until_ready(compiled(key, data))
    passed()
    seconds = dict(zip(PARTS, (after - before for before, after in itertools.pairwise(marks)), strict=True))
    return seconds | (pieces(TRAINERS[name], key, data, work.batch_size) if pieces_too else {})


def pieces(trainer: Any, key: Any, data: Any, batch_size: int | None) -> dict[str, float]:
    """The seconds that XLA takes for pieces of the run, each compiled as a program of its own."""
    import jax

    count = len(data[0])
    size = batch_size or count
    batch, rest = (tuple(a[:n] for a in data) for n in (size, count % size))
    state = jax.eval_shape(trainer.init, key, batch)
    programs = {
        "initialisation": (lambda k: trainer.init(k, batch), key),
        "a step": (lambda s: trainer.step(s, batch), state),
    }
    if size < count:
        programs["the order of an epoch"] = (lambda k: jax.random.permutation(k, count), key)
    if count % size:
        programs["a step on the smaller last batch"] = (lambda s: trainer.step(s, rest), state)
    seconds = {}
    for piece, (f, given) in programs.items():
        lowered = jax.jit(f).lower(given)
        begun = time.perf_counter()
        lowered.compile()
        seconds[piece] = time.perf_counter() - begun
    return seconds


def taken_apart(name: str, repeats: int) -> tuple[str, str, str]:
    """The rows of a workload, its parts without a cache and with a filled one; and the pieces of what is compiled.

    As in performance.py the loops of tiny networks are one kernel.
    """
    fused = {"FUNCNN_BENCH_FUSED": "1"} if CHOSEN[name] == FUSED else {}
    with tempfile.TemporaryDirectory() as folder:
        x, y = data(name)
        arrays, cached = pathlib.Path(folder) / "arrays.npz", {"FUNCNN_BENCH_CACHE": f"{folder}/programs"}
        np.savez(arrays, x=x, y=y)

        def median(settings: dict[str, str], pieces_too: str = "") -> dict[str, float]:
            found = [in_process(__file__, "--parts", name, str(arrays), pieces_too, settings=settings) for _ in counts]
            return {part: statistics.median(each[part] for each in found) for part in found[0]}

        counts = range(repeats)
        first = median(fused, "pieces")
        in_process(__file__, "--parts", name, str(arrays), "", settings=fused | cached)
        second = median(fused | cached)
    apart = ", ".join(f"{piece} {seconds:.2f}" for piece, seconds in first.items() if piece not in PARTS)
    return part_row(name, first), part_row(name, second), f"- {name}: {apart}."


def part_row(name: str, median: dict[str, float]) -> str:
    cells = " | ".join(f"{median[part]:.2f}" for part in PARTS)
    return f"| {name} | {cells} | {sum(median[part] for part in PARTS):.2f} |"


def measured(name: str, repeats: int) -> str:
    """The row of a workload."""
    times: dict[str, list[float]] = {WITHOUT: [], EMPTY: [], FILLED: []}
    losses, compiled = set[float](), 0
    with tempfile.TemporaryDirectory() as folder:
        x, y = data(name)
        arrays = pathlib.Path(folder) / "arrays.npz"
        np.savez(arrays, x=x, y=y)
        for i in range(-1, repeats):  # the first round fills the caches of the disk, and is not counted
            cache = f"{folder}/{i}"
            for side, path in ((WITHOUT, ""), (EMPTY, cache), (FILLED, cache)):
                found = in_process(__file__, "--one", name, str(arrays), path, repr(time.time()))
                losses.add(found["loss"])
                if i >= 0:
                    times[side].append(found["process"])
                    compiled += int(found["compiled"]) if side == FILLED else 0
    if len(losses) > 1:
        raise RuntimeError(f"{name}: expected one loss with and without a cache, got {sorted(losses)}")
    seconds = " | ".join(f"{statistics.median(each):.2f}" for each in times.values())
    ratios = f"{shown(times[EMPTY], times[WITHOUT])} | {shown(times[FILLED], times[WITHOUT], BAR)}"
    return f"| {name} | {seconds} | {ratios} | {BAR} | {marked(compiled, 0, 0)} |"


def page(rows: list[str], apart: list[tuple[str, str, str]], repeats: int, load: float) -> str:
    lines = "\n".join(rows)
    titles = "\n".join(f"- **{name}**: {WORKLOADS[name].title}" for name in NAMES)
    return f"""\
# The second start

[`training.cache_programs`](recipes.md#a-cache-of-compiled-programs) keeps compiled programs in a directory. What
does that bring?

{titles}

```sh
python benchmarks/second_start.py
```

wrote this page on {datetime.date.today()}: {machine()}; load of the machine before it began {load:.1f};
{repeats} repeats. Seconds of `jax.jit` of `training.run`, from the start of Python to the trained parameters, imports,
loading, tracing and the run included; medians. A ratio above its bar is bold; in brackets each measurement divided by
the one beside it in time, and of these ratios the median. An empty cache is filled, which costs what is written; that
it takes less than none is chance. The last column counts programs that were compiled although the cache was filled, in
all repeats. The loss is the same bits in all.

{HEAD}
{lines}

## Where the first seconds go

Of `jax.jit(run)` in seconds, here of W1 and W2 after `fuse_small_loops`; a process each, medians. The start of Python
is not in it, nor its end. Without a cache:

{PARTS_HEAD}
{chr(10).join(row for row, _, _ in apart)}

With a cache that is filled, where in place of compiling the program is read back:

{PARTS_HEAD.replace("compiling", "reading back")}
{chr(10).join(row for _, row, _ in apart)}

Seconds that XLA takes where these pieces are compiled as programs of their own, which together is more than as parts of
one:

{chr(10).join(line for _, _, line in apart)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat of each, and no page")
    parser.add_argument("--parts", nargs=3, help=argparse.SUPPRESS)  # likewise
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # what a fresh process is started with
    options = parser.parse_args()
    if options.one:
        name, arrays, cache, started = options.one
        print(json.dumps(one(name, arrays, cache, float(started))))
        return
    if options.parts:
        print(json.dumps(parts(*options.parts)))
        return
    load, repeats = os.getloadavg()[0], 1 if options.quick else 5
    print(HEAD)
    rows: list[str] = []
    for name in NAMES:
        rows.append(measured(name, repeats))
        print(rows[-1], flush=True)
    apart = [taken_apart(name, repeats) for name in NAMES]
    print("\n".join(part for pair in apart for part in pair))
    if not options.quick:
        PAGE.write_text(page(rows, apart, repeats, load))
        print(f"written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
