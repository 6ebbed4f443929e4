"""funcnn against a hand-written ``jax.jit`` of ``lax.scan`` on the same networks: ratios, and docs/scan_times.md.

    python benchmarks/against_scan.py                  all of it, about 15 minutes; writes docs/scan_times.md
    python benchmarks/against_scan.py --quick          a few repeats of each, and writes nothing
    python benchmarks/against_scan.py --workloads W1,W3

Steady state: everything is compiled and warm, the sides take turns in an order drawn anew for each round, each call
waits for its result.
First result: a fresh process for each measurement, the sides taking turns; the clock runs from the data in memory to
the result: tracing, compilation, initialisation and the run. On both, a ratio is that of the medians; beside it stands
the median of the ratios of neighbours, which a load that comes and goes disturbs least.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from workloads import WORKLOADS, Workload, data

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scan_times.md"
NAMES = ("W1", "W2", "W3", "W4", "W5")  # performance.py has all of the workloads, and more sides
IMPORT_BAR = 50  # milliseconds that funcnn may add to jax and optax

# By hand, the initialisation is a compiled program of its own, or part of the run. A first result is compared with the
# faster of the two.
APART, TOGETHER, RUN, FIT = "by hand, init apart", "by hand, init and run together", "jit(run)", "fit"
SIDES = (APART, TOGETHER, RUN, FIT)

Call = Callable[[Any, Any, Any], Any]
Seconds = dict[str, list[float]]

# ---- the sides: a call takes key, x and y, waits, and returns the loss of each epoch ---------------------------------


def sides(name: str, work: Workload, chosen: Sequence[str] = SIDES) -> dict[str, Call]:
    """The calls by name; nothing is imported for those that are not chosen."""
    made: dict[str, Call] = {}
    if {APART, TOGETHER} & set(chosen):
        made |= by_hand_sides(name, work)
    if {RUN, FIT} & set(chosen):
        made |= by_funcnn_sides(name, work)
    return {side: made[side] for side in chosen}


def by_hand_sides(name: str, work: Workload) -> dict[str, Call]:
    import jax
    from by_hand import NETWORKS, trained

    net = NETWORKS[name]

    @jax.jit
    def init(key: Any) -> Any:
        init_key, shuffle_key = jax.random.split(key)
        return net.init(init_key), shuffle_key

    train = jax.jit(lambda params, key, x, y: trained(net, params, key, x, y, work.epochs, work.batch_size))
    whole = jax.jit(lambda key, x, y: train(*init(key), x, y))
    return {
        APART: lambda key, x, y: jax.block_until_ready(train(*init(key), x, y))[1],
        TOGETHER: lambda key, x, y: jax.block_until_ready(whole(key, x, y))[1],
    }


def by_funcnn_sides(name: str, work: Workload) -> dict[str, Call]:
    import jax
    from by_funcnn import TRAINERS

    from funcnn import training

    trainer, options = TRAINERS[name], {"epochs": work.epochs, "batch_size": work.batch_size}
    run = jax.jit(lambda key, x, y: training.run(trainer, (x, y), key=key, **options))

    def fit(key: Any, x: Any, y: Any) -> Any:
        return training.fit(trainer, (x, y), key=key, progress=False, **options)

    return {
        RUN: lambda key, x, y: jax.block_until_ready(run(key, x, y)).history["loss"],
        FIT: lambda key, x, y: jax.block_until_ready(fit(key, x, y)).history["loss"],
    }


# ---- steady state ----------------------------------------------------------------------------------------------------


def steady(name: str, work: Workload, seconds: float, least: int) -> Seconds:
    """Seconds of each call of each side, in turns, until ``seconds`` have passed and there are ``least`` of each."""
    import jax

    calls = sides(name, work)
    x, y = jax.device_put(data(name))
    key = jax.random.key(0)
    for call in calls.values():
        for _ in range(2):
            losses = np.asarray(call(key, x, y))
            if losses.shape != (work.epochs,) or not np.isfinite(losses).all():
                raise RuntimeError(f"{name}: expected {work.epochs} finite losses, got {losses}")
    times: Seconds = {side: [] for side in calls}
    end = time.perf_counter() + seconds
    order, shuffled = list(calls), random.Random(0)
    while time.perf_counter() < end or len(times[RUN]) < least:
        shuffled.shuffle(order)  # so that nobody always comes after the same one
        for side in order:
            begin = time.perf_counter()
            calls[side](key, x, y)
            times[side].append(time.perf_counter() - begin)
    return times


# ---- first results and imports, in processes of their own ------------------------------------------------------------


def first(name: str, side: str, folder: str, started: float) -> dict[str, float]:
    """In a fresh process: seconds from the data in memory to the result, and from the start of the process."""
    arrays = np.load(pathlib.Path(folder) / f"{name}.npz")
    x, y = arrays["x"], arrays["y"]
    import jax

    call = sides(name, WORKLOADS[name], [side])[side]
    begin = time.perf_counter()
    call(jax.random.key(0), x, y)
    return {"call": time.perf_counter() - begin, "process": time.time() - started}


IMPORTS = """
import gc, json, time
collected, begun = 0.0, 0.0
def watch(phase, info):
    global collected, begun
    if phase == "start":
        begun = time.perf_counter()
    else:
        collected += time.perf_counter() - begun
a = time.perf_counter()
import jax, optax
b = time.perf_counter()
gc.callbacks.append(watch)
import funcnn
print(json.dumps({"jax, optax": b - a, "funcnn": time.perf_counter() - b, "collections": collected}))
"""


def in_process(*arguments: str, settings: dict[str, str] | None = None, limit: float | None = None) -> Any:
    """What a fresh process printed, as JSON: without a cache of programs, with one of byte code, as users have it.

    Nor has it settings of XLA, or numbers of threads, that somebody made outside.

    ``settings`` are added to its environment; after ``limit`` seconds it is ended.
    """
    unset = {"PYTHONDONTWRITEBYTECODE", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PYTHONPATH": str(ROOT), **(settings or {})}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=limit)
    return json.loads(done.stdout.splitlines()[-1])


def firsts(name: str, rounds: int) -> tuple[Seconds, Seconds]:
    """For each side the seconds of ``first``, in turns: of the calls, and of the whole processes."""
    calls: Seconds = {side: [] for side in SIDES}
    processes: Seconds = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        x, y = data(name)
        np.savez(pathlib.Path(folder) / f"{name}.npz", x=x, y=y)
        for i in range(-1, rounds):  # the first round fills the caches of the disk, and is not counted
            for side in SIDES if i >= 0 else (APART, RUN):
                seconds = in_process(__file__, "--first", name, side, folder, repr(time.time()))
                if i >= 0:
                    calls[side].append(seconds["call"])
                    processes[side].append(seconds["process"])
    return calls, processes


def imports(repeats: int) -> dict[str, float]:
    """Milliseconds to import jax and optax, then funcnn, and in that to collect garbage: medians of processes."""
    taken = [in_process("-c", IMPORTS) for _ in range(repeats + 1)][1:]
    return {name: statistics.median(seconds[name] for seconds in taken) * 1e3 for name in taken[0]}


# ---- what is printed and written -------------------------------------------------------------------------------------


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """The ratio of the medians, and the median of the ratios of neighbours."""
    neighbours = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return statistics.median(ours) / statistics.median(theirs), neighbours


def shown(ours: list[float], theirs: list[float], bar: float = float("inf")) -> str:
    medians, neighbours = ratio(ours, theirs)
    return f"{marked(medians, bar, 2)} ({neighbours:.2f})"


def marked(value: float, bar: float, digits: int) -> str:
    """Bold above the bar, with as many digits more as it takes to see that."""
    while value > bar >= float(f"{value:.{digits}f}"):
        digits += 1
    return f"{value:.{digits}f}" if value <= bar else f"**{value:.{digits}f}**"


def faster(times: Seconds) -> str:
    """Of the two forms by hand, the one with the smaller median."""
    return min((APART, TOGETHER), key=lambda side: statistics.median(times[side]))


STEADY_HEAD = """\
| | by hand, µs | `jit(run)`, µs | `fit`, µs | `jit(run)` / by hand | bar | `fit` / by hand | repeats |
|---|---|---|---|---|---|---|---|"""


def steady_row(name: str, work: Workload, steps: int, times: Seconds) -> str:
    hand = faster(times)
    each = [f"{statistics.median(times[side]) / steps * 1e6:,.1f}" for side in (hand, RUN, FIT)]
    ratios = [shown(times[RUN], times[hand], work.steady), f"{work.steady:.2f}", shown(times[FIT], times[hand])]
    return f"| {name} | " + " | ".join([*each, *ratios, str(len(times[hand]))]) + " |"


FIRST_HEAD = """\
| | by hand, s | `jit(run)`, s | `fit`, s | `jit(run)` / by hand | bar | `fit` / by hand | whole process | repeats |
|---|---|---|---|---|---|---|---|---|"""


def first_row(name: str, work: Workload, calls: Seconds, processes: Seconds) -> str:
    hand = faster(calls)
    each = [f"{statistics.median(calls[side]):.2f}" for side in (hand, RUN, FIT)]
    ratios = [shown(calls[RUN], calls[hand], work.first), f"{work.first:.2f}", shown(calls[FIT], calls[hand])]
    whole = shown(processes[RUN], processes[faster(processes)])
    return f"| {name} | " + " | ".join([*each, *ratios, whole, str(len(calls[hand]))]) + " |"


def import_line(taken: dict[str, float]) -> str:
    return (
        f"`import jax, optax` takes {taken['jax, optax']:.0f} ms, and `import funcnn` after it "
        f"{marked(taken['funcnn'], IMPORT_BAR, 0)} ms (bar: {IMPORT_BAR} ms), of which Python looks for garbage for "
        f"{taken['collections']:.0f} ms, among all that is there by then: medians of fresh processes."
    )


def installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def machine(others: Sequence[str] = ()) -> str:
    """Processor, cores, system, and the versions of Python, of what is measured, and of what others are installed."""
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "optax", "numpy", *others) if installed(name))
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {packages}"


def titled(name: str) -> str:
    """A line on a workload, for a list."""
    work = WORKLOADS[name]
    return f"- **{name}**: {work.title}; {'one epoch' if work.epochs == 1 else f'{work.epochs} epochs'}"


def page(rows: list[str], first_rows: list[str], imported: str, load: float) -> str:
    titles = "\n".join(titled(name) for name in NAMES)
    return f"""\
# Times beside a hand-written scan

What does the library cost over plain JAX? Five of the seven networks of [performance.md](performance.md), which has the
transformer and the sweep as well: each is trained by funcnn and, in the same run, by a hand-written
`jax.jit` of `lax.scan` ([by_hand.py](../benchmarks/by_hand.py)) that does the same work: the same shuffling, the same
smaller last batch, the loss of each epoch as all that is reported.

{titles}

By hand, W5 has its convolution gradients written out in a form that XLA runs well inside a loop on a CPU, and
`reduce_window` for pooling ([convolution_times.md](convolution_times.md) has convolutions as JAX derives them).

```sh
python benchmarks/against_scan.py
```

wrote this page on {datetime.date.today()}: {machine()}, float32; load of the machine before it began {load:.1f}. Times
depend on the machine and on what else it does, so that only ratios can be compared with those of another page. A ratio
above its bar is bold. In brackets: each measurement divided by the one beside it in time, and of these ratios the
median, which a load that comes and goes disturbs least.

## Steady state

Microseconds a step: a whole run, initialisation included, divided by its steps. Everything is compiled and warm, the
sides take turns, each is waited for; medians.

{STEADY_HEAD}
{chr(10).join(rows)}

`fit` is driven from Python: before a run it checks every number in the data, and between chunks of steps it comes back
to show progress, to look for NaN and for Ctrl-C. Of a short run that is most of what it costs more; of a large network
it is that each chunk has its memory anew.

## Time to the first result

Seconds from the data in memory to the trained parameters: tracing, compilation, initialisation and the run, in a fresh
process each time and without a compilation cache; medians. By hand, the initialisation is compiled as well, apart from
the run or together with it; the faster of the two is shown. `whole process` is the ratio for `jit(run)` from the
start of Python, imports and the loading of the data included.

{FIRST_HEAD}
{chr(10).join(first_rows)}

## Import

{imported}
"""


# ---- the command -----------------------------------------------------------------------------------------------------


def measured(names: list[str], quick: bool) -> tuple[list[str], list[str], str]:
    """The rows of both tables and the line on imports, printed as they come."""
    rows: list[str] = []
    first_rows: list[str] = []
    print(STEADY_HEAD)
    for name in names:
        work = WORKLOADS[name]
        times = steady(name, work, 2 if quick else 30, 3 if quick else 9)
        rows.append(steady_row(name, work, work.steps(len(data(name)[0])), times))
        print(rows[-1], flush=True)
    print(f"\n{FIRST_HEAD}")
    for name in names:
        first_rows.append(first_row(name, WORKLOADS[name], *firsts(name, 1 if quick else 5)))
        print(first_rows[-1], flush=True)
    imported = import_line(imports(3 if quick else 15))
    print(f"\n{imported}")
    return rows, first_rows, imported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default=",".join(NAMES), help="such as W1,W3; the page is of all of them")
    parser.add_argument("--quick", action="store_true", help="few repeats, and no page")
    parser.add_argument("--first", nargs=4, help=argparse.SUPPRESS)  # what a fresh process is started with
    options = parser.parse_args()
    if options.first:
        name, side, folder, started = options.first
        print(json.dumps(first(name, side, folder, float(started))))
        return
    names = options.workloads.split(",")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"expected workloads among {', '.join(NAMES)}, got {', '.join(unknown)}")
    load = os.getloadavg()[0]
    rows, first_rows, imported = measured(names, options.quick)
    if not options.quick and names == list(NAMES):
        PAGE.write_text(page(rows, first_rows, imported, load))
        print(f"written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
