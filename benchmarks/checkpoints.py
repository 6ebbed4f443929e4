"""What it costs to save a run while it goes on: docs/checkpoint_times.md.

    python benchmarks/checkpoints.py            writes the page, about five minutes
    python benchmarks/checkpoints.py --quick    once each; prints, and writes nothing

First examples/digits.py as it is and with a folder to save in, in turns, each in a fresh process. Then a network of so
many megabytes: how long a save holds up the thread that trains, how long it takes in all, and how long reading takes.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from against_scan import machine, marked, ratio

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "checkpoint_times.md"
BAR = 1.05
REPEATS = 7
SIZES = 1, 10, 100  # megabytes of all that is saved

# ---- digits.py -------------------------------------------------------------------------------------------------------


def seconds_of(*arguments: str) -> float:
    """A whole process of examples/digits.py."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        command = [sys.executable, str(ROOT / "examples" / "digits.py"), *(f"{folder}/{name}" for name in arguments)]
        subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - begin


def digits(repeats: int) -> dict[str, list[float]]:
    """Seconds with and without, in turns; the first time fills the caches of the disk, and is not counted."""
    seconds_of("run")
    taken: dict[str, list[float]] = {"saved": [], "not saved": []}
    for _ in range(repeats):
        taken["not saved"].append(seconds_of())
        taken["saved"].append(seconds_of("run"))
    return taken


# ---- one save --------------------------------------------------------------------------------------------------------


def saves(megabytes: int, repeats: int) -> dict[str, float]:
    """Milliseconds: that a save holds up the thread which trains, of a copy of all, of the save, of reading it."""
    import jax
    import optax

    from funcnn import checkpoints, layers, losses, training

    width = int((megabytes * 1e6 / 4 / 3) ** 0.5)  # one square matrix, and two of Adam
    x = np.ones((8, width), np.float32)
    trainer = training.supervised(layers.dense(width), losses.squared_error, optax.adam(1e-3))
    found: dict[str, list[float]] = {name: [] for name in ("held up", "copy", "save", "read")}
    with tempfile.TemporaryDirectory() as folder:
        kept = checkpoints.directory(folder, every=1e6)
        options = {"key": jax.random.key(0), "batch_size": 8, "progress": False, "checkpoint": kept}
        training.fit(trainer, (x, x), epochs=1, **options)
        with kept.opened() as keeper:
            about, leaves = keeper.newest() or (None, None)
            leaves = {path: jax.device_put(leaf) for path, leaf in leaves.items()}
            for step in range(2, repeats + 3):
                begin = time.perf_counter()
                keeper.keep(step, {**about, "step": step}, leaves)
                held = time.perf_counter()
                for thread in threading.enumerate():
                    if thread.name == "funcnn checkpoint":
                        thread.join()
                saved = time.perf_counter()
                for leaf in leaves.values():
                    np.array(leaf)
                copied = time.perf_counter()
                checkpoints.load(folder)
                times = held - begin, copied - saved, saved - begin, time.perf_counter() - copied
                for name, each in zip(found, times, strict=True):
                    found[name].append(1e3 * each)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


# ---- what is printed and written -------------------------------------------------------------------------------------

HEAD = """\
| saved | held up, ms | a copy of it in memory, ms | the save in all, ms | reading it, ms |
|---|---|---|---|---|"""


def row(megabytes: int, found: dict[str, float]) -> str:
    return f"| {megabytes} MB | {' | '.join(f'{value:.1f}' for value in found.values())} |"


def digits_rows(taken: dict[str, list[float]]) -> list[str]:
    medians, neighbours = ratio(taken["saved"], taken["not saved"])
    rows = [f"| {name} | {statistics.median(times):.2f} |" for name, times in taken.items()]
    return [*rows, f"| ratio (bar {BAR}) | {marked(medians, BAR, 3)} ({neighbours:.3f}) |"]


def page(digit_rows: list[str], save_rows: list[str], load: float, repeats: int) -> str:
    return f"""\
# Times of checkpoints

```sh
python benchmarks/checkpoints.py{"" if repeats == REPEATS else f" --repeats {repeats}"}
```

wrote this page on {datetime.date.today()}: {machine()}; load of the machine before it began {load:.1f}. What is above
its bar is bold.

## A whole script

[digits.py](../examples/digits.py) as it is, and with a folder in which it is saved at most every ten seconds and at its
end: seconds of the whole process, imports and compilation included, in turns, {repeats} times each; medians, in
brackets the median of the ratios of neighbours.

| | seconds |
|---|---|
{chr(10).join(digit_rows)}

## One save

One matrix with Adam. Held up is the thread that trains, by a call that begins a save; the rest is done by another
thread, down to the disk (`fsync`), with checksums of each array and each file. Reading compares all of these. Medians
of {repeats}.

{HEAD}
{chr(10).join(save_rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="once each, small, and no page")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # what a fresh process is started with
    options = parser.parse_args()
    if options.child:
        megabytes, repeats = map(int, options.child)
        print(json.dumps(saves(megabytes, repeats)))
        return
    load = os.getloadavg()[0]
    repeats, sizes = (1, SIZES[:1]) if options.quick else (options.repeats, SIZES)
    save_rows = [row(size, in_child(size, repeats)) for size in sizes]
    print(HEAD, *save_rows, sep="\n", flush=True)
    digit_rows = digits_rows(digits(repeats))
    print(*digit_rows, sep="\n")
    if not options.quick:
        PAGE.write_text(page(digit_rows, save_rows, load, repeats), encoding="utf-8")
        print(f"written to {PAGE.relative_to(ROOT)}")


def in_child(megabytes: int, repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(megabytes), str(repeats)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
