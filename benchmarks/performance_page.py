"""docs/performance.md, from the records of performance.py: nothing is measured here."""

import statistics
from typing import Any

from against_scan import marked, titled
from one_run import FUSED, LIBRARIES, OURS, RUN, SCAN, SIDES, TORCH
from workloads import WORKLOADS

Record = dict[str, Any]
Records = list[Record]

# One setting of ours for each workload: tiny networks with their loop as one kernel.
CHOSEN = {name: FUSED if name in SIDES[FUSED].names else RUN for name in WORKLOADS}
# What a step of ours may take at most, as a part of that of another side.
STEADY_BARS = {
    "W1": (SCAN, 0.15),
    "W2": (SCAN, 0.7),
    "W3": (SCAN, 1.0),
    "W4": (SCAN, 1.0),
    "W5": (TORCH, 1.3),
    "W6": (TORCH, 0.9),
    "W7": (SCAN, 0.15),
}
WHOLE_NAMES = ("W1", "W2", "W3", "W4")
WHOLE_BAR, CACHED_BAR, MEMORY_BAR, COMPILE_BAR = 1.0, 0.6, 1.1, 1.3
BLOCKS = (4, 256)

# ---- what the records say --------------------------------------------------------------------------------------------


def of(records: Records, kind: str, side: str, name: str) -> Records:
    """The measurements of one kind that did not fail, the last one of each round."""
    found = {
        record["round"]: record
        for record in records
        if (record["kind"], record.get("side"), record.get("name")) == (kind, side, name) and "failed" not in record
    }
    return list(found.values())


def failures(records: Records, side: str, name: str) -> list[str]:
    """Why, where a side was to be measured and no round of it came to an end."""
    if of(records, "train", side, name):
        return []
    return [r["failed"] for r in records if (r["kind"], r.get("side"), r.get("name")) == ("train", side, name)]


def times_more(record: Record) -> float:
    """How often what was trained has to be counted, where only some members of a sweep were."""
    return WORKLOADS[record["name"]].members / record["members"]


def middle(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def steady(records: Records, side: str, name: str) -> float | None:
    """Seconds of a step, or of all runs of a sweep."""
    taken = [r for r in of(records, "train", side, name) if r["steady"] is not None]
    return middle([r["steady"] * times_more(r) / (1 if name == "W7" else r["steps"]) for r in taken])


def whole(records: Records, side: str, name: str) -> float | None:
    """Seconds of the process up to the trained network; of members that are missing, those of the steady state."""
    taken = of(records, "train", side, name)
    return middle([r["process"] + (times_more(r) - 1) * (r["steady"] or 0) for r in taken])


def cached(records: Records, side: str, name: str) -> float | None:
    return middle([r["process"] for r in of(records, "cached", side, name)])


def memory(records: Records, side: str, name: str) -> float | None:
    return middle([r["memory"]["trained"] for r in of(records, "train", side, name)])


def best_library(records: Records, name: str) -> str | None:
    """Of the other libraries the one whose whole process is the shortest."""
    taken = {side: seconds for side in LIBRARIES if (seconds := whole(records, side, name)) is not None}
    return min(taken, key=taken.__getitem__) if taken else None


def compile_seconds(records: Records, blocks: int) -> float | None:
    return middle([r["seconds"] for r in of(records, "compile", RUN, str(blocks))])


def over(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def titled_side(side: str, name: str) -> str:
    """What a side is called in a table; the runs of W7 are one sweep."""
    return SIDES[side].title.replace("`jit(run)`", "`sweep`") if name == "W7" else SIDES[side].title


# ---- the table of bars -----------------------------------------------------------------------------------------------

BARS_HEAD = """\
| | of funcnn | beside | ratio | at most |
|---|---|---|---|---|"""


def bar_row(what: str, ours: str, theirs: str, found: float | None, bar: float) -> str:
    shown = "not measured" if found is None else marked(found, bar, 2)
    return f"| {what} | {ours} | {theirs} | {shown} | {bar:.2f} |"


def bar_rows(records: Records) -> list[str]:
    """A row for each bar: the measured ratio, in bold where it is above."""
    rows: list[str] = []
    for name, (other, bar) in STEADY_BARS.items():
        ours = CHOSEN[name]
        found = over(steady(records, ours, name), steady(records, other, name))
        what = "256 runs" if name == "W7" else "a step"
        rows.append(bar_row(f"{name}, {what}", titled_side(ours, name), titled_side(other, name), found, bar))
    for what, seconds, bar in (("whole process", whole, WHOLE_BAR), ("second process, cache", cached, CACHED_BAR)):
        for name in WHOLE_NAMES:
            ours, best = CHOSEN[name], best_library(records, name)
            found = over(seconds(records, ours, name), whole(records, best, name)) if best else None
            beside = f"{titled_side(best, name)}, the best library" if best else "the best library"
            rows.append(bar_row(f"{name}, {what}", titled_side(ours, name), beside, found, bar))
    for name, ours in CHOSEN.items():
        found = over(memory(records, ours, name), memory(records, SCAN, name))
        rows.append(
            bar_row(f"{name}, peak memory", titled_side(ours, name), titled_side(SCAN, name), found, MEMORY_BAR)
        )
    few, many = BLOCKS
    found = over(compile_seconds(records, many), compile_seconds(records, few))
    return [*rows, bar_row("time to compile", f"`repeat` of {many} blocks", f"of {few}", found, COMPILE_BAR)]


# ---- the table of a workload -----------------------------------------------------------------------------------------


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def head(name: str) -> str:
    time = "256 runs, ms" if name == "W7" else "a step, µs"
    return f"""\
| | {time} | / scan by hand | whole process, s | / best library | with cache, s | final loss | accuracy | peak, MB |
|---|---|---|---|---|---|---|---|---|"""


def spread(losses: list[float]) -> str:
    """The median, and from where to where."""
    return f"{statistics.median(losses):.3g} ({min(losses):.3g} to {max(losses):.3g})"


def side_row(records: Records, side: str, name: str) -> str | None:
    """The row of a side; ``None`` where it was not to be measured."""
    taken, failed = of(records, "train", side, name), failures(records, side, name)
    if not taken:
        return f"| {titled_side(side, name)} | {failed[-1]} | | | | | | | |" if failed else None
    title = titled_side(side, name) + (
        f" ({taken[0]['members']} runs, times scaled)" if times_more(taken[0]) > 1 else ""
    )
    mine, process, best = steady(records, side, name), whole(records, side, name), best_library(records, name)
    cells = [
        number(mine and mine * (1e3 if name == "W7" else 1e6), 1),
        number(over(mine, steady(records, SCAN, name)), 2),
        number(process, 2),
        number(over(process, whole(records, best, name)) if best else None, 2),
        number(cached(records, side, name), 2) if side in OURS else "",
        spread([r["loss"] for r in taken]),
        f"{statistics.median(r['accuracy'] for r in taken):.3f}",
        number(memory(records, side, name), 0),
    ]
    return f"| {title} | " + " | ".join(cells) + " |"


def workload_section(records: Records, name: str) -> str:
    rows = [row for side in SIDES if (row := side_row(records, side, name))]
    table = "\n".join([head(name), *rows]) if rows else "Not measured."
    return f"### {name}\n\n{WORKLOADS[name].title}.\n\n{table}\n"


# ---- final losses over many seeds ------------------------------------------------------------------------------------

LOSSES_HEAD = """\
| | | median | from (10 %) | to (90 %) | seeds |
|---|---|---|---|---|---|"""


def loss_rows(records: Records) -> list[str]:
    """Medians and quantiles; a median of ours outside those of the scan by hand is bold."""
    rows = []
    for name in WORKLOADS:
        reference = of(records, "losses", SCAN, name)
        bounds = quantiles(reference[0]["losses"]) if reference else (float("-inf"), float("inf"))
        for side in SIDES:
            for record in of(records, "losses", side, name):
                low, high = quantiles(record["losses"])
                median = statistics.median(record["losses"])
                outside = side in OURS and not bounds[0] <= median <= bounds[1]
                cells = [f"**{median:.4g}**" if outside else f"{median:.4g}", f"{low:.4g}", f"{high:.4g}"]
                rows.append(f"| {name} | {SIDES[side].title} | {' | '.join(cells)} | {len(record['losses'])} |")
    return rows


def quantiles(values: list[float]) -> tuple[float, float]:
    """What a tenth of the values is below, and what a tenth is above."""
    if len(values) < 2:
        return values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[-1]


# ---- the page --------------------------------------------------------------------------------------------------------


def page(records: Records) -> str:
    """The whole page; what was not measured says so."""
    about = next((record for record in records if record["kind"] == "machine"), None)
    wrote = f"{about['date']}: {about['machine']}, float32; load of the machine before it began {about['load']:.1f}"
    rounds = len({record["round"] for record in records if record["kind"] == "train"})
    sections = "\n".join(workload_section(records, name) for name in WORKLOADS)
    times = ", ".join(f"{blocks} blocks {number(compile_seconds(records, blocks), 2)} s" for blocks in BLOCKS)
    return f"""\
# Performance

How fast does a network get trained, from the first import to the trained network and step after step, and how much
memory does it take? The same seven trainings by funcnn, by hand in plain JAX, and by other libraries, each as its own
documentation writes it ([benchmarks](../benchmarks)).

```sh
python3 -m venv .bench && .bench/bin/pip install -r benchmarks/requirements.txt --extra-index-url https://download.pytorch.org/whl/cpu
.bench/bin/python benchmarks/performance.py
```

wrote this page on {wrote}; {rounds} rounds. Times depend on the machine, ratios much less.

{chr(10).join(titled(name) for name in WORKLOADS)}

## In short

Ratios of medians: what funcnn takes, divided by what stands beside it, and what it should take at most. Above that the
ratio is bold. For W1, W2 and W7 a program of funcnn begins with `training.fuse_small_loops()`; nothing else is set.

{BARS_HEAD}
{chr(10).join(bar_rows(records))}

{HOW}
{sections}
## Final losses over many seeds

{LOSSES}

{LOSSES_HEAD}
{chr(10).join(loss_rows(records))}

## Time to compile

`layers.repeat` of residual dense blocks of width 64: the gradient is traced and compiled for {times}.

{DIFFERENCES}"""


HOW = """\
## All sides

Each measurement is a fresh process, in each round with another seed; workloads and sides take turns in an order drawn
anew; medians. **A step**: a whole run, once everything is compiled, divided by its steps; for W7 all its runs.
**Whole process**: from the start of Python to the trained network, imports, loading and compiling included, without a
cache of compiled programs; **with cache**: the same for a second process, after `training.cache_programs` in the first
one. **Final loss** (median, least to most) and **accuracy** are computed by NumPy, alike for all sides, from what the
network says after its first run about the rows that it was trained on. **Peak**: the most memory that the process had
until then.
"""

LOSSES = """\
Does the faster way train the same? The final losses over the seeds of W1 to W6, W4 and W6 on fewer rows: the median,
and what a tenth of the seeds is below and above. Bold is a median of funcnn that is outside of these two of the scan by
hand."""

DIFFERENCES = """\
## What is not the same

All sides begin from Glorot uniform kernels and zero biases, and take the examples in an order drawn for each epoch, in
batches of one size, with a smaller last one. What differs:

- Random numbers are those of each library, so that losses agree over seeds, not one by one.
- A run of funcnn and of the scan by hand begins with initialisation, each time anew; the others go on training.
- Fused is after `training.fuse_small_loops()`: XLA compiles a loop of funcnn into one kernel, with other rounding.
- `fit` checks all numbers of the data before a run, and looks at those of the run between its steps.
- By hand, the gradients of the convolution in W5 are written out in the one form that XLA runs fast inside a loop.
- PyTorch reads the loss of each step, as its tutorial has it, and its images have their channels first, which Equinox
  has as well. Its runs of W7 are side by side under `torch.vmap`.
- Keras trains the runs of W7 one after the other: four of them, and their time is scaled up to 256; its loss there is
  that of these four, which have the smallest rate.
- scikit-learn draws biases at random; its W1 has tanh in both hidden layers and minimises cross entropy. It has no
  convolutions, no transformers and no rate for each run.
- W7 by funcnn is one call of `training.sweep(how="auto")`, which is driven from the host, as `fit` is.
"""
