"""funcnn against a hand-written ``jax.jit(lax.scan)`` of the same network, in the same run: ratios, and docs/performance.md.

    python benchmarks/against_scan.py                  all of it, about ten minutes; writes docs/performance.md
    python benchmarks/against_scan.py --quick          a tenth of that, and writes nothing
    python benchmarks/against_scan.py --workloads W1,W3

Steady state: everything is compiled and warm, the sides take turns (A B C A B C ...), each call waits for its result.
First result: a fresh process for each measurement, the sides taking turns; the clock runs from the data in memory to the result,
tracing, compilation and initialisation included. On both, a ratio is that of the medians; beside it stands the median of the
ratios of neighbours, which a load that comes and goes disturbs least.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from workloads import WORKLOADS, Workload, data

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
IMPORT_BAR = 0.050  # seconds that funcnn may add to jax and optax

# The hand-written run, initialised by a program of its own or within the run; what a first result is compared with is the
# faster of the two.
HAND, HAND_ONE = "hand-written", "hand-written, one program"
RUN, FIT = "jit(run)", "fit"


# ---- the sides: key and data to a result, as a call that waits for it --------------------------------------------------------


def sides(name: str, work: Workload, chosen: list[str]) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """The calls ``(key, x, y) -> history of the loss``; only those chosen import what they need."""
    made: dict[str, Callable[[Any, Any, Any], Any]] = {}
    if {HAND, HAND_ONE} & set(chosen):
        made |= by_hand_sides(name, work)
    if {RUN, FIT} & set(chosen):
        made |= by_funcnn_sides(name, work)
    return {side: made[side] for side in chosen}


def by_hand_sides(name: str, work: Workload) -> dict[str, Callable[[Any, Any, Any], Any]]:
    import jax
    from by_hand import NETWORKS, trained

    net = NETWORKS[name]
    init = jax.jit(lambda key: (net.init((keys := jax.random.split(key))[0]), keys[1]))
    train = jax.jit(lambda params, key, x, y: trained(net, params, key, x, y, work.epochs, work.batch_size))
    one = jax.jit(lambda key, x, y: train(*init(key), x, y))
    return {
        HAND: lambda key, x, y: jax.block_until_ready(train(*init(key), x, y))[1],
        HAND_ONE: lambda key, x, y: jax.block_until_ready(one(key, x, y))[1],
    }


def by_funcnn_sides(name: str, work: Workload) -> dict[str, Callable[[Any, Any, Any], Any]]:
    import jax
    from by_funcnn import TRAINERS

    from funcnn import training

    trainer, options = TRAINERS[name], {"epochs": work.epochs, "batch_size": work.batch_size}
    run = jax.jit(lambda key, x, y: training.run(trainer, (x, y), key=key, **options))
    return {
        RUN: lambda key, x, y: jax.block_until_ready(run(key, x, y)).history["loss"],
        FIT: lambda key, x, y: jax.block_until_ready(
            training.fit(trainer, (x, y), key=key, progress=False, **options)
        ).history["loss"],
    }


# ---- steady state ----------------------------------------------------------------------------------------------------------


def steady(name: str, work: Workload, seconds: float, least: int) -> dict[str, list[float]]:
    """Seconds of each call of each side, in turns, until ``seconds`` have passed and each had ``least`` of them."""
    import jax

    calls = sides(name, work, [HAND, RUN, FIT])
    x, y = jax.device_put(data(name))
    key = jax.random.key(0)
    for call in calls.values():
        for _ in range(2):
            losses = np.asarray(call(key, x, y))
            assert losses.shape == (work.epochs,), losses.shape
            assert np.isfinite(losses).all()
    times: dict[str, list[float]] = {side: [] for side in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[HAND]) < least:
        for side, call in calls.items():
            begin = time.perf_counter()
            call(key, x, y)
            times[side].append(time.perf_counter() - begin)
    return times


# ---- first results and imports, in processes of their own --------------------------------------------------------------------


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
import json, time
a = time.perf_counter()
import jax, optax
b = time.perf_counter()
import funcnn
print(json.dumps({"jax, optax": b - a, "funcnn": time.perf_counter() - b}))
"""


def in_process(*arguments: str) -> dict[str, float]:
    """What a fresh process printed, as JSON; without a compilation cache, with one of byte code, as users have it."""
    unset = {"PYTHONDONTWRITEBYTECODE", "JAX_COMPILATION_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def firsts(name: str, pairs: int) -> dict[str, list[dict[str, float]]]:
    """For each side what ``first`` gave, in turns, after one round that is thrown away."""
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in (HAND, HAND_ONE, RUN, FIT)}
    with tempfile.TemporaryDirectory() as folder:
        x, y = data(name)
        np.savez(pathlib.Path(folder) / f"{name}.npz", x=x, y=y)
        for i in range(pairs + 1):
            for side, results in taken.items():
                seconds = in_process(__file__, "--first", name, side, folder, repr(time.time()))
                if i:
                    results.append(seconds)
    return taken


def imports(repeats: int) -> dict[str, list[float]]:
    """Seconds to import jax and optax, and then funcnn, each pair in a fresh process."""
    taken = [in_process("-c", IMPORTS) for _ in range(repeats + 1)][1:]
    return {name: [seconds[name] for seconds in taken] for name in taken[0]}


# ---- what is printed and written -----------------------------------------------------------------------------------------


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """The ratio of the medians, and the median of the ratios of neighbours."""
    neighbours = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return statistics.median(ours) / statistics.median(theirs), neighbours


def verdict(value: float, bar: float) -> str:
    return f"{value:.2f}" if value <= bar else f"**{value:.2f}**"


def steady_row(name: str, steps: int, bar: float, times: dict[str, list[float]]) -> str:
    each = [f"{statistics.median(times[side]) / steps * 1e6:,.1f}" for side in (HAND, RUN, FIT)]
    run, run_pairs = ratio(times[RUN], times[HAND])
    fit, fit_pairs = ratio(times[FIT], times[HAND])
    figures = [f"{verdict(run, bar)} ({run_pairs:.2f})", f"{bar:.2f}", f"{fit:.2f} ({fit_pairs:.2f})", str(len(times[HAND]))]
    return f"| {name} | " + " | ".join(each + figures) + " |"


def first_row(name: str, bar: float, taken: dict[str, list[dict[str, float]]]) -> str:
    calls = {side: [seconds["call"] for seconds in results] for side, results in taken.items()}
    whole = {side: [seconds["process"] for seconds in results] for side, results in taken.items()}
    best = min((HAND, HAND_ONE), key=lambda side: statistics.median(calls[side]))
    each = [f"{statistics.median(calls[side]):.2f}" for side in (HAND, HAND_ONE, RUN, FIT)]
    run, run_pairs = ratio(calls[RUN], calls[best])
    fit, fit_pairs = ratio(calls[FIT], calls[best])
    process = ratio(whole[RUN], whole[best])[0]
    figures = [f"{verdict(run, bar)} ({run_pairs:.2f})", f"{bar:.2f}", f"{fit:.2f} ({fit_pairs:.2f})", f"{process:.2f}"]
    return f"| {name} | " + " | ".join([*each, *figures]) + " |"


STEADY_HEAD = """\
| | hand-written, µs | `jit(run)`, µs | `fit`, µs | `run` / hand-written | bar | `fit` / hand-written | calls of each |
|---|---|---|---|---|---|---|---|"""
FIRST_HEAD = """\
| | hand-written, two programs, s | one program, s | `jit(run)`, s | `fit`, s | `run` / the faster | bar | `fit` / the faster | whole process, `run` |
|---|---|---|---|---|---|---|---|---|"""


def machine() -> str:
    """One line on the machine: processor, cores, memory, versions."""
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "optax", "numpy"))
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {packages}"


def page(tables: dict[str, list[str]], imported: str) -> str:
    titles = "\n".join(f"- **{name}**: {work.title}" + _length(work) for name, work in WORKLOADS.items())
    return f"""\
# Performance

*Written by `benchmarks/against_scan.py` on {datetime.date.today()}: {machine()}, float32.*

How much does a library cost over plain JAX? Each network is trained twice in the same run: by funcnn, and by a hand-written
`jax.jit` of `lax.scan` (`benchmarks/by_hand.py`) that does the same work: the same shuffling, the same smaller last batch, the loss
as the only thing reported. The hand-written W5 already has convolution gradients that XLA runs fast inside a loop; the plain form
is about nine times slower still.

{titles}

```sh
python benchmarks/against_scan.py
```

Times depend on the machine; ratios much less. A ratio above its bar is bold. In brackets stands the median of the ratios of
neighbouring measurements, which a load that comes and goes disturbs least.

## Steady state

Time of a step, everything compiled and warm: a whole run, initialisation included, over its steps. The sides take turns; medians.

{STEADY_HEAD}
{chr(10).join(tables["steady"])}

`fit` also checks every number of the data before each run, and looks up between chunks of steps.

## Time to the first result

From the data in memory to the trained parameters: tracing, compilation, initialisation and the run. A fresh process for each
measurement, without a compilation cache; medians. By hand the initialisation is compiled too, apart from the run or together with
it; the faster of the two is what we are measured against. The last column is the same ratio for the whole process, imports included.

{FIRST_HEAD}
{chr(10).join(tables["first"])}

## Import

{imported}
"""


def _length(work: Workload) -> str:
    return f"; {work.epochs} epochs" if work.epochs > 1 else "; one epoch"


# ---- the command ---------------------------------------------------------------------------------------------------------


def measured(names: list[str], quick: bool) -> tuple[dict[str, list[str]], str]:
    """The rows of both tables and the line on imports, printed as they come."""
    tables: dict[str, list[str]] = {"steady": [], "first": []}
    print(STEADY_HEAD)
    for name in names:
        work = WORKLOADS[name]
        times = steady(name, work, 2 if quick else 20, 3 if quick else 9)
        tables["steady"].append(steady_row(name, work.steps(len(data(name)[0])), work.steady, times))
        print(tables["steady"][-1], flush=True)
    print(FIRST_HEAD)
    for name in names:
        tables["first"].append(first_row(name, WORKLOADS[name].first, firsts(name, 1 if quick else 7)))
        print(tables["first"][-1], flush=True)
    seconds = {name: statistics.median(taken) * 1e3 for name, taken in imports(3 if quick else 15).items()}
    imported = (
        f"`import jax, optax` takes {seconds['jax, optax']:.0f} ms, `import funcnn` after it {verdict(seconds['funcnn'], 50)} ms "
        f"(bar: {IMPORT_BAR * 1e3:.0f} ms; medians of fresh processes)."
    )
    print(imported)
    return tables, imported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="such as W1,W3; the page is written for all of them only")
    parser.add_argument("--quick", action="store_true", help="few repeats, and no page")
    parser.add_argument("--first", nargs=4, help=argparse.SUPPRESS)  # what a fresh process is started with
    options = parser.parse_args()
    if options.first:
        name, side, folder, started = options.first
        print(json.dumps(first(name, side, folder, float(started))))
        return
    names = options.workloads.split(",")
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        parser.error(f"expected workloads among {', '.join(WORKLOADS)}, got {', '.join(unknown)}")
    tables, imported = measured(names, options.quick)
    if not options.quick and len(names) == len(WORKLOADS):
        PAGE.write_text(page(tables, imported))
        print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
