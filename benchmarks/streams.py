"""Training from files larger than memory should be, against training from memory: docs/stream_times.md.

    python benchmarks/streams.py            writes the page, about a quarter of an hour and 2 GB of temporary files
    python benchmarks/streams.py --quick    small sizes; prints, and writes nothing

The reader is that of examples/files.py. A stream and arrays in memory take turns, each in a fresh process, which trains
twice: the first time compiles, and its memory is measured; the second is timed. Then a reader that is as slow as the
training, which the two should hide from each other.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from against_scan import in_process, machine, marked, ratio
from workloads import WORKLOADS, data

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "stream_times.md"
MEMORY_BAR, SPEED_BAR, OVERLAP_BAR = 400, 0.95, 1.15
EPOCHS = 3  # with the slow readers
BATCH = WORKLOADS["W4"].batch_size or 0
ROW = 4 * 784 + 4  # bytes of an example, in both files
MB = 10**6
WAITS, COMPUTES = "waits", "computes on one core"

Seconds = dict[str, list[float]]

# ---- memory ----------------------------------------------------------------------------------------------------------


def resident() -> dict[str, float]:
    """Megabytes of memory of this process, by what Linux calls them: now, the peak, and now without files."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[name].split()[0]) * 1024 / MB for name in ("VmRSS", "VmHWM", "RssAnon")}


@contextlib.contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """Megabytes above those at the beginning: the peak of all memory, and of that which is no file."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the peak
    before, ended = resident(), threading.Event()
    found = {"total": 0.0, "anonymous": 0.0}

    def sample() -> None:
        while not ended.wait(0.005):
            found["anonymous"] = max(found["anonymous"], resident()["RssAnon"] - before["RssAnon"])

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found["total"] = resident()["VmHWM"] - before["VmRSS"]


# ---- a stream of files and arrays in memory, each in a process of its own --------------------------------------------


def write_pair(folder: pathlib.Path, examples: int) -> None:
    """Random images and labels, written in parts."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, examples).astype(np.int32)
    np.save(folder / "labels.npy", labels)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.float32, (examples, 784))
    for begin in range(0, examples, 4096):
        part = images[begin : begin + 4096]
        part[:] = random.random(part.shape, np.float32)
    images.flush()


def files(folder: pathlib.Path) -> Any:
    """The stream of examples/files.py."""
    sys.path.append(str(ROOT / "examples"))
    from files import Files
    from mapped_files import npy

    return Files(npy, folder / "images.npy", folder / "labels.npy", batch_size=BATCH)


def trained(make: Callable[[], Any], epochs: int, steps: int) -> dict[str, float]:
    """``fit`` twice, on what ``make`` gives: memory of the first, steps per second of the second."""
    import jax
    from by_funcnn import TRAINERS

    from funcnn import training

    key, given = jax.block_until_ready(jax.random.key(0)), make()  # the backend has started

    def fit() -> None:
        options = {"key": key, "epochs": epochs, "batch_size": BATCH, "progress": False}
        result = jax.block_until_ready(training.fit(TRAINERS["W4"], given, **options))
        if int(result.state.step) != steps or not np.isfinite(result.history["loss"]).all():
            raise RuntimeError(f"expected {steps} steps with finite losses, got {result.state.step}")

    with peaks() as found:
        fit()
    begin, used = time.perf_counter(), time.process_time()
    fit()
    rate, work = steps / (time.perf_counter() - begin), 1e3 * (time.process_time() - used) / steps
    return {**found, "rate": rate, "work": work}


def child(side: str, folder: pathlib.Path, examples: int, rows: int) -> dict[str, float]:
    """In a fresh process: one side, over about as many steps as the other."""
    streamed, each = -(-examples // BATCH), -(-rows // BATCH)
    if side == "stream":
        return trained(lambda: files(folder), 1, streamed)
    epochs = max(1, round(streamed / each))
    return trained(lambda: tuple(array[:rows] for array in data("W4")), epochs, epochs * each)


def from_files(examples: int, rows: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """What the two sides measured, taking turns."""
    taken: dict[str, list[dict[str, float]]] = {"stream": [], "memory": []}
    with tempfile.TemporaryDirectory() as folder:
        write_pair(pathlib.Path(folder), examples)
        for _ in range(repeats):
            for side, measured in taken.items():
                measured.append(in_process(__file__, "--child", side, folder, str(examples), str(rows)))
                print(side, {name: round(value, 1) for name, value in measured[-1].items()}, flush=True)
    return taken


# ---- a slow reader ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Slow:
    """Batches of arrays, with something that takes its time before each."""

    x: Any
    y: Any
    wait: Callable[[], Any]

    def __len__(self) -> int:
        return -(-len(self.x) // BATCH)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for begin in range(0, len(self.x), BATCH):
            self.wait()
            yield self.x[begin : begin + BATCH], self.y[begin : begin + BATCH]


def computing(seconds: float) -> Callable[[], Any]:
    """A computation on one core that takes about so long there, and lets other threads run meanwhile."""
    numbers = np.linspace(0, 1, 10000)

    def compute(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            np.sin(numbers)
        return time.perf_counter() - begin

    each = statistics.median(compute(100) for _ in range(9)) / 100
    return lambda: compute(max(1, round(seconds / each)))


def overlap(rows: int, repeats: int) -> dict[str, Seconds]:
    """Seconds of some epochs, of each reader: it alone, the training of arrays in memory alone, and both together."""
    import jax
    from by_funcnn import TRAINERS

    from funcnn import training

    x, y = (array[:rows] for array in data("W4"))

    def fit(given: Any) -> Any:
        options = {"key": jax.random.key(0), "epochs": EPOCHS, "batch_size": BATCH, "progress": False}
        return jax.block_until_ready(training.fit(TRAINERS["W4"], given, **options).state.params)

    def seconds(call: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    fit((x, y))
    step = statistics.median(seconds(lambda: fit((x, y))) for _ in range(3)) / (EPOCHS * -(-rows // BATCH))
    taken: dict[str, Seconds] = {}
    for name, wait in {WAITS: lambda: time.sleep(step), COMPUTES: computing(step)}.items():
        stream = Slow(x, y, wait)
        fit(stream)
        calls = [
            lambda stream=stream: [None for _ in range(EPOCHS) for _ in stream],
            lambda: fit((x, y)),
            lambda stream=stream: fit(stream),
        ]
        taken[name] = {side: [] for side in ("reader", "training", "both")}
        for _ in range(repeats):
            for side, call in zip(taken[name], calls, strict=True):
                taken[name][side].append(seconds(call))
        print(name, {side: round(statistics.median(each), 2) for side, each in taken[name].items()}, flush=True)
    return taken


# ---- what is printed and written -------------------------------------------------------------------------------------

FILES_HEAD = """\
| | steps per second | processor, ms a step | peak of memory, MB above the beginning | of it no file |
|---|---|---|---|---|"""
OVERLAP_HEAD = """\
| the reader | reader alone, s | training alone, s | both, s | both / slower | bar | repeats |
|---|---|---|---|---|---|---|"""


def files_rows(examples: int, taken: dict[str, list[dict[str, float]]]) -> list[str]:
    """Both sides and their ratio: medians, but of memory the worst."""
    size = {"stream": f"a stream of {examples * ROW / MB:,.0f} MB of files", "memory": "arrays in memory"}
    rows, bars = [], {"stream": MEMORY_BAR, "memory": float("inf")}
    for side, measured in taken.items():
        rate, work = (statistics.median(each[name] for each in measured) for name in ("rate", "work"))
        total, anonymous = (max(each[name] for each in measured) for name in ("total", "anonymous"))
        rows.append(f"| {size[side]} | {rate:.0f} | {work:.2f} | {marked(total, bars[side], 0)} | {anonymous:.0f} |")
    ratios = [
        ratio([each[name] for each in taken["stream"]], [each[name] for each in taken["memory"]])
        for name in ("rate", "work")
    ]
    (speed, neighbours), (work, _) = ratios
    shown = f"{speed:.3f}" if speed >= SPEED_BAR else f"**{speed:.3f}**"
    rows.append(f"| ratio | {shown} ({neighbours:.3f}) | {work:.2f} | | |")
    rows.append(f"| bar | {SPEED_BAR} | | {MEMORY_BAR} | |")
    return rows


def overlap_row(name: str, times: Seconds) -> str:
    reader, training, both = (statistics.median(times[side]) for side in ("reader", "training", "both"))
    ratio, bar = both / max(reader, training), OVERLAP_BAR if name == WAITS else float("inf")
    cells = [name, *(f"{seconds:.2f}" for seconds in (reader, training, both)), marked(ratio, bar, 2)]
    return f"| {' | '.join([*cells, str(bar) if name == WAITS else '', str(len(times['both']))])} |"


def page(file_rows: list[str], overlap_rows: list[str], load: float, repeats: int) -> str:
    return f"""\
# Times of streams

```sh
python benchmarks/streams.py
```

wrote this page on {datetime.date.today()}: {machine()}, float32; load of the machine before it began {load:.1f}. What
is above its bar, or below that of the speed, is bold. All train the network of W4: {WORKLOADS["W4"].title}.

## From files

`fit` goes once through two `.npy` files, of images and labels, with the reader of [files.py](../examples/files.py):
mapped into memory one window after the other, shuffled, in batches of {BATCH}. Beside it `fit` on the arrays of W4, for
as many epochs as make about as many steps. The two take turns, {repeats} times, each in a fresh process, which trains
twice: steps per second, and the time of all cores together, are of the second time, when all is compiled; medians, in
brackets the median of the ratios of neighbours. The memory is that of the first time, compilation included, above that
of the process just before `fit`, which has the arrays in memory already; the worst of the repeats. The files were just
written, so they are in the system's cache: what is measured is this library and this reader, and not a disk.

{FILES_HEAD}
{chr(10).join(file_rows)}

## A slow reader

{EPOCHS} epochs of W4 from a reader that is as slow as the training: before each batch it waits for the time of one
step, or computes for as long. Medians of seconds.

{OVERLAP_HEAD}
{chr(10).join(overlap_rows)}

A reader that waits leaves the processor to the training. One that computes takes a core from it, and where the training
alone keeps all cores busy, as here, the work of both does not fit into the time of one: no bar is set for it.
"""


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, and no page")
    parser.add_argument("--size", type=float, default=2000, help="megabytes of the files; the page is of 2000 or more")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)  # what a fresh process is started with
    options = parser.parse_args()
    if options.child:
        side, folder, examples, rows = options.child
        print(json.dumps(child(side, pathlib.Path(folder), int(examples), int(rows))))
        return
    load = os.getloadavg()[0]
    size, rows, repeats = (20, 6000, 1) if options.quick else (options.size, 60000, options.repeats)
    examples = math.ceil(size * MB / ROW)
    file_rows = files_rows(examples, from_files(examples, rows, repeats))
    overlap_rows = [overlap_row(name, times) for name, times in overlap(rows, repeats).items()]
    print("", FILES_HEAD, *file_rows, "", OVERLAP_HEAD, *overlap_rows, sep="\n")
    if not options.quick and size >= 2000:
        PAGE.write_text(page(file_rows, overlap_rows, load, repeats), encoding="utf-8")
        print(f"written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
