"""docs/performance.md, from the records of performance.py: nothing is measured here."""

import statistics
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

from against_scan import marked, titled
from one_run import FIT, FUSED, LIBRARIES, OURS, RUN, SCAN, SIDES, TORCH
from workloads import WORKLOADS

Record = dict[str, Any]
Records = list[Record]
Seconds = Callable[[Records, str, str], float | None]

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
BLOCKS = (4, 8, 64, 256)  # four are written out on a CPU, more are a loop

# ---- what the records say --------------------------------------------------------------------------------------------


def of(records: Records, kind: str, side: str, name: str) -> Records:
    """The measurements of one kind that did not fail, the last one of each round."""
    found = {
        record["round"]: record
        for record in records
        if (record["kind"], record.get("side"), record.get("name")) == (kind, side, name) and "failed" not in record
    }
    return list(found.values())


def rounds_of(records: Records) -> int:
    """How many rounds there were."""
    return len({record["round"] for record in records if record["kind"] == "train"})


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
    """Megabytes at most, up to the end of the first run."""
    return middle([r["memory"]["trained"] for r in of(records, "train", side, name)])


def memory_of_all(records: Records, side: str, name: str) -> float | None:
    """Megabytes at most of the process, predictions and the other runs included."""
    return middle([r["memory"]["end"] for r in of(records, "train", side, name)])


def fastest(records: Records, name: str, seconds: Seconds) -> str | None:
    """Of the other libraries the one that takes the least."""
    taken = {side: found for side in LIBRARIES if (found := seconds(records, side, name)) is not None}
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
| | funcnn | compared with | ratio | target | single rounds |
|---|---|---|---|---|---|"""


class Compared(NamedTuple):
    """Our side and another one in a workload, by one number of each."""

    ours: str
    other: str
    name: str
    number: Seconds

    def ratio(self, records: Records) -> float | None:
        """Of the medians."""
        other = whole if self.number is cached else self.number
        return over(self.number(records, self.ours, self.name), other(records, self.other, self.name))

    def rounds(self, records: Records) -> str:
        """The least and the largest ratio of one round."""
        of_rounds = [[r for r in records if r.get("round") == number] for number in range(rounds_of(records))]
        found = [ratio for each in of_rounds if (ratio := self.ratio(each)) is not None]
        return f"{min(found):.2f} to {max(found):.2f}" if len(found) > 1 else ""


def bar_row(what: str, compared: Compared | None, bar: float, records: Records, beside: str = "") -> str:
    if compared is None:
        return f"| {what} | | | not measured | {bar:.2f} | |"
    ours, theirs = (titled_side(side, compared.name) for side in (compared.ours, compared.other))
    found = compared.ratio(records)
    shown = "not measured" if found is None else marked(found, bar, 2)
    return f"| {what} | {ours} | {theirs}{beside} | {shown} | {bar:.2f} | {compared.rounds(records)} |"


def bar_rows(records: Records) -> list[str]:
    """A row for each bar: the measured ratio, in bold where it is above."""
    rows: list[str] = []
    for name, (other, bar) in STEADY_BARS.items():
        what = "256 runs" if name == "W7" else "a step"
        rows.append(bar_row(f"{name}, {what}", Compared(CHOSEN[name], other, name, steady), bar, records))
    rows.append(bar_row("W5, a step: the goal", Compared(RUN, TORCH, "W5", steady), 1.0, records))
    for what, seconds, bar in (("whole process", whole, WHOLE_BAR), ("second process, cache", cached, CACHED_BAR)):
        for name in WHOLE_NAMES:
            best = fastest(records, name, whole)
            compared = best and Compared(CHOSEN[name], best, name, seconds)
            rows.append(bar_row(f"{name}, {what}", compared or None, bar, records, ", the best library"))
    for what, megabytes in (("peak memory", memory), ("peak memory, later runs", memory_of_all)):
        for name, ours in CHOSEN.items():
            rows.append(bar_row(f"{name}, {what}", Compared(ours, SCAN, name, megabytes), MEMORY_BAR, records))
    found = [seconds for blocks in BLOCKS if (seconds := compile_seconds(records, blocks)) is not None]
    ratio = max(found) / min(found) if len(found) == len(BLOCKS) else None
    what = f"`repeat` of {', '.join(map(str, BLOCKS[:-1]))} and {BLOCKS[-1]} blocks: the longest"
    shown = "not measured" if ratio is None else marked(ratio, COMPILE_BAR, 2)
    return [*rows, f"| time to compile | {what} | the shortest | {shown} | {COMPILE_BAR:.2f} | |"]


# ---- the table of the README -----------------------------------------------------------------------------------------

SHORT = {
    "W1": "XOR, 2-4-4-1",
    "W2": "moons, 2-16-8-1",
    "W3": "digits, 64-128-64-10",
    "W4": "wide MLP, 784-512-512-10",
    "W5": "CNN, 2 convolutions",
    "W6": "transformer, 4 blocks",
    "W7": "XOR, 256 runs",
}
GLANCE_HEAD = """\
| funcnn / others | step / scan | `fit` / scan | step / PyTorch eager | step / fastest | process / fastest |
|---|---|---|---|---|---|"""


def glance_cell(records: Records, name: str, seconds: Seconds, other: str | None, ours: str | None = None) -> str:
    found = other and over(seconds(records, ours or CHOSEN[name], name), seconds(records, other, name))
    if not found:
        return ""
    return f"{found:.2f}" if found >= 0.095 else f"{found:.1g}"


def glance_rows(records: Records) -> list[str]:
    """A row for each workload; a library is named beside its ratio."""
    rows: list[str] = []
    for name, title in SHORT.items():
        cells = [
            glance_cell(records, name, steady, SCAN),
            glance_cell(records, name, steady, SCAN, FIT) if name in SIDES[FIT].names else "",
            glance_cell(records, name, steady, TORCH),
        ]
        for seconds in (steady, whole):
            other = fastest(records, name, seconds)
            named = f" ({SIDES[other].title.removesuffix(', eager')})" if other else ""
            cells.append(glance_cell(records, name, seconds, other) + named)
        fused = ", fused" if CHOSEN[name] == FUSED else ""
        rows.append(f"| {title}{fused} | " + " | ".join(cells) + " |")
    return rows


def glance(records: Records) -> str:
    """The table that stands on the page and in the README."""
    return "\n".join([GLANCE_HEAD, *glance_rows(records)])


def with_glance(readme: str, records: Records) -> str:
    """The README with this table in the place of the one that it has."""
    head = GLANCE_HEAD.splitlines()[0]
    start = readme.index(head)
    return readme[:start] + glance(records) + readme[readme.index("\n\n", start) :]


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
    notes = [f"{taken[0]['members']} runs, times scaled"] if times_more(taken[0]) > 1 else []
    notes += [f"{len(taken)} rounds"] if len(taken) < rounds_of(records) else []
    tried = {r["round"] for r in records if (r["kind"], r.get("side"), r.get("name")) == ("train", side, name)}
    notes += [f"{len(tried) - len(taken)} failed"] if len(tried) > len(taken) else []
    title = titled_side(side, name) + (f" ({'; '.join(notes)})" if notes else "")
    mine, process, best = steady(records, side, name), whole(records, side, name), fastest(records, name, whole)
    cells = [
        number(mine and mine * (1e3 if name == "W7" else 1e6), 1),
        number(over(mine, steady(records, SCAN, name)), 2),
        number(process, 2),
        number(over(process, whole(records, best, name)) if best else None, 2),
        number(cached(records, side, name), 2) if side in OURS else "",
        spread([r["loss"] for r in taken]),
        f"{statistics.median(r['accuracy'] for r in taken):.3f}",
        f"{number(memory(records, side, name), 0)} / {number(memory_of_all(records, side, name), 0)}",
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
                rows.append(f"| {name} | {titled_side(side, name)} | {' | '.join(cells)} | {len(record['losses'])} |")
        if not any(of(records, "losses", side, name) for side in SIDES):
            rows.append(f"| {name} | | not measured | | | |")
    return rows


def quantiles(values: list[float]) -> tuple[float, float]:
    """What a tenth of the values is below, and what a tenth is above."""
    if len(values) < 2:
        return values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def of_later(about: dict[str, Any]) -> str:
    """Which workloads were measured on another day than the rest."""
    of_day = f"on {about['date']} with funcnn {about['code']}, load {about['load']:.1f}"
    return f"; measured again: {', '.join(about['anew'])} {of_day}"


# ---- the page --------------------------------------------------------------------------------------------------------


def page(records: Records) -> str:
    """The whole page; what was not measured says so."""
    about = next((record for record in records if record["kind"] == "machine"), None)
    wrote = f"{about['date']}: {about['machine']}, float32; load of the machine before it began {about['load']:.1f}"
    wrote += f"; funcnn {about['code']}" if "code" in about else ""
    wrote += "".join(of_later(record) for record in records if "anew" in record)
    wrote = textwrap.fill(f"wrote this page on {wrote}; {rounds_of(records)} rounds. {MACHINES}", 120)
    bars = bar_rows(records)
    sections = "\n".join(workload_section(records, name) for name in WORKLOADS)
    times = ", ".join(f"{blocks} blocks {number(compile_seconds(records, blocks), 2)} s" for blocks in BLOCKS)
    return f"""\
# Performance

How fast does a network train, from the first import to the trained network and step after step, and how much memory
does it take? The same seven trainings by funcnn, by hand in plain JAX, and by other libraries, each as its own
documentation writes it ([performance.py](../benchmarks/performance.py)).

```sh
python3 -m venv .bench && .bench/bin/pip install -r benchmarks/requirements.txt --extra-index-url https://download.pytorch.org/whl/cpu
.bench/bin/python benchmarks/performance.py
```

{wrote}

{chr(10).join(titled(name) for name in WORKLOADS)}

## In short

Ratios of medians: what funcnn takes, divided by what the other side takes. Fused is a program that begins with
`training.fuse_small_loops()`, a setting of XLA that a scan by hand could be given as well
([tiny_loop_times.md](tiny_loop_times.md) has that), and products written out for it; nothing else is set. A step is one
of `jax.jit` of `training.run`, of the 256 runs all of one `training.sweep`; the column of `fit` is without the setting.
The libraries are called step by step from Python, as their documentation does.

{glance(records)}

## Targets

The same ratios, each with the target that funcnn has set itself; one above it is bold. Beside the ratio of the medians:
the least and the largest ratio of a single round. A second process of funcnn, with a filled cache of programs, is
compared with a process of the other side without one: scikit-learn has none, and those on JAX could have one too. Peak
memory is that of the process up to the end of its first run, of later runs that up to its own end.

{BARS_HEAD}
{chr(10).join(bars)}

### Why some targets are missed

{rest(bars)}
{HOW}
{sections}
## Final losses over many seeds

{LOSSES}

{LOSSES_HEAD}
{chr(10).join(loss_rows(records))}

## Time to compile

`layers.repeat` of residual dense blocks of width 64: the gradient is traced and compiled for {times}.

{DIFFERENCES}
{MORE}"""


MACHINES = (
    "Times depend on the machine, and only ratios can be compared with other pages; how far they vary is beside them."
)

HOW = """\
## All sides

Each measurement is a fresh process, in each round with another seed; workloads and sides take turns in an order drawn
anew; medians, of fewer rounds where a row says so. **A step**: a whole run, once everything is compiled, divided by its
steps; for W7, the time of all 256 runs. **Whole process**: from the start of Python to the trained network, imports,
loading and compiling included, without a cache of compiled programs; **with cache**: the same for a second process,
after `training.cache_programs` in the first one. **Final loss** (median and range) and **accuracy** are computed by
NumPy, alike for all sides, from what the network says after its first run about the rows that it was trained on; of
five seeds, where "Final losses" below has twenty. **Peak**, two numbers: the most memory that the process had up to the
end of the first run, for JAX mostly while it compiles; and up to its own end, predictions and the repeated runs
included.
"""

LOSSES = """\
Does the faster way train the same? The final losses over the seeds, of W4 and W6 on fewer rows, of W7 the mean of its
runs: the median, and the 10th and 90th percentiles. Bold: the median of funcnn lies outside the percentiles of the scan
by hand. (The labels of W4 and W5 are random, so that little is learned there, and little can differ.)"""

SAME = """\
the operations are those of the scan by hand; within one process, in turns, [scan_times.md](scan_times.md) has the two
beside one another."""

# What is known of a ratio above its bar, by what its row begins with; rows that meet theirs are not explained.
REST = {
    "W6, a step": """\
most of it is matrix products, which take longer in XLA than in PyTorch, above all in attention and for weight
gradients; [product_times.md](product_times.md) has each of them. Tried without gain: weight gradients transposed, in
parts, or of copies; the oneDNN, XNNPACK and YNNPACK paths of XLA; keeping products instead of computing them twice.
Kept: batch and positions as one axis, one product for query, key and value, and up to four blocks without a loop.""",
    "whole process": """\
importing JAX, tracing and compiling are most of it (of W4 about half, where training is the rest), and the fastest
library needs neither, or compiles less; [start_times.md](start_times.md) divides a start into its parts. Tried without
enough gain: lower levels of optimization in XLA, its code generated in two parts at once, random bits written out
instead of in a loop. A smaller last batch is a second program; filled up with rows that do not count it would be
another step. Kept: a step is traced once, the weights of all layers are drawn together
([deep_start_times.md](deep_start_times.md)), initialisation is a part of the one program. From the second process on,
`training.cache_programs` leaves out the compiling.""",
    "second process, cache": """\
nothing is compiled any more. What is left is importing JAX, of the tiny networks about half of the target, the data,
tracing, lowering to the language of XLA and reading the program back: [start_times.md](start_times.md) has the seconds
of each. Without tracing nobody knows whether it is the same program, for what a trainer reads may have changed since
the last process.""",
    "peak memory, later runs": """\
up to the end of the first run it is within the target (the rows above); this row has the compiling of the
predictions in it as well, which come before the later runs.""",
    "peak memory": """\
the most memory that a process ever has is that of compiling, and a convolution as a product of patches is a larger
program; one that comes from the cache of programs stays below.""",
    "W5, a step: the goal": """\
convolutions are products of patches, which [convolution_times.md](convolution_times.md) measures case by case; the rest
are these products and Adam.""",
    "W5, a step": """\
convolutions are products of patches, which [convolution_times.md](convolution_times.md) measures case by case; the rest
are these products and Adam.""",
    "W7, 256 runs": """\
about half of it is not training: each call of `sweep` checks the data and traces a step anew, for what a trainer
reads may have changed since the last call. The scan by hand varies more from round to round than the target allows
for.""",
    "W3, a step": SAME,
    "W4, a step": SAME,
    "time to compile": """\
four blocks are written out on a CPU; from eight on one block is compiled for all, and what remains is noise.""",
}


def wrapped(text: str) -> str:
    """An entry of a list."""
    return textwrap.fill(text, 120, initial_indent="- ", subsequent_indent="  ", break_long_words=False) + "\n"


def rest(rows: list[str]) -> str:
    """What is known of the bold rows."""
    missed = [(row.split(" | ")[0].strip("| "), row) for row in rows if "**" in row]
    if not missed:
        return "Every ratio is below its bar.\n"
    known: dict[str, list[str]] = {}
    for name, _ in missed:
        text = next((text for part, text in REST.items() if name.endswith(part)), "not explained.")
        known.setdefault(text, []).append(name)
    return "".join(wrapped(f"**{'; '.join(names)}**: {text}") for text, names in known.items())


DIFFERENCES = """\
## What is not the same

All sides begin from Glorot uniform kernels and zero biases, and take the examples in an order drawn for each epoch, in
batches of one size, with a smaller last one. What differs:

- Random numbers are those of each library, so that losses agree over seeds, not one by one.
- A run of funcnn and of the scan by hand begins with initialisation, each time anew; the others go on training.
- Fused is after `training.fuse_small_loops()`: XLA compiles a loop of funcnn into one kernel, with other rounding.
- `fit` checks all numbers of the data before a run, and looks at those of the run between its steps.
- By hand, the gradients of the convolution in W5 are written out in a form that XLA runs well inside a loop; pooling is
  `lax.reduce_window`, whose gradient is slow there.
- PyTorch is eager, without `torch.compile`. It reads the loss of each step, takes batches by indexing tensors, which is
  faster than its `DataLoader`, and has fused optimizers. Its images have their channels first, as those of Equinox.
  Its runs of W7 are side by side under `torch.vmap`.
- Numbers of threads are those that each library chooses.
- In W6 the embedding and the positions begin from a normal distribution with a deviation of 0.02, on all sides.
- The runs of W7 begin from four seeds, the same ones at each rate.
- Keras trains the runs of W7 one after the other: four of them, and their time is scaled up to 256; its loss there is
  that of these four, which have the smallest rate. It takes 16 steps at a time, shuffles in NumPy, and its `epsilon`,
  as that of scikit-learn, is added before the correction of the bias.
- scikit-learn draws biases at random; its W1 has tanh in both hidden layers and minimises cross entropy. It has no
  convolutions, no transformers and no rate for each run. Its optimizer begins anew with each measured run.
- W7 by funcnn is one call of `training.sweep(how="auto")`, which is driven from the host, as `fit` is.
"""

MORE = """\
## More times

- [scan_times.md](scan_times.md): beside plain JAX, in one process and in turns.
- [start_times.md](start_times.md): the first seconds, part by part, without a cache of programs and with one;
  [deep_start_times.md](deep_start_times.md): the weights of deep models.
- [tiny_loop_times.md](tiny_loop_times.md): a whole loop as one kernel, by the size of the network.
- [sweep_times.md](sweep_times.md): many runs, side by side and one after the other.
- [size_times.md](size_times.md): against width, depth, batch, members and devices.
- [convolution_times.md](convolution_times.md) and [product_times.md](product_times.md): the operations of W5 and W6,
  one by one.
- [stream_times.md](stream_times.md) and [checkpoint_times.md](checkpoint_times.md): data that are read, and states that
  are written.
- On a GPU or TPU [accelerators.py](../benchmarks/accelerators.py) writes a page of its own. It has not run on one yet.
"""
