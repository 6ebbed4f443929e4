"""Ten workloads on a GPU or a TPU, by funcnn, in plain JAX and by PyTorch: docs/accelerator_times.md.

    python benchmarks/accelerators.py                      all of it; writes the page
    python benchmarks/accelerators.py --small              tiny sizes, one round, for a CPU; prints
    python benchmarks/accelerators.py --keep FILE          keeps each result in a file, and skips those that are there
    python benchmarks/accelerators.py --workloads GPT,W4 --sides funcnn,hand --rounds 1 --trace profiles

The last says for each call how often a device copied something to the host, read off the profile. Both libraries have
to be installed for the device, on an NVIDIA GPU so:

    pip install -e . "jax[cuda13]" && pip install torch --index-url https://download.pytorch.org/whl/cu130

Each measurement is a fresh process (one_large.py); in each round workloads and sides take turns in an order drawn anew.
A page is written of all workloads and sides alone, measured on a device that is no CPU; otherwise it is printed.
"""

import argparse
import datetime
import json
import pathlib
import random
import statistics
import subprocess
import sys
from typing import Any, NamedTuple

from against_scan import ROOT, in_process, machine
from one_large import HAND, LARGE, NAMES, OF_JAX, SIDES
from performance import chosen, kept, read
from workloads import WORKLOADS

PAGE = ROOT / "docs" / "accelerator_times.md"
ONE = str(ROOT / "benchmarks" / "one_large.py")
PACKAGES = ("jaxlib", "torch")
LIMIT = 1800  # seconds after which a process is given up

Record = dict[str, Any]


class Job(NamedTuple):
    """One measurement."""

    side: str
    name: str
    round: int


def jobs(names: list[str], sides: list[str], rounds: int) -> list[Job]:
    """All that is to be measured, each round in an order of its own."""
    made: list[Job] = []
    for number in range(rounds):
        turn = [Job(side, name, number) for side in sides for name in names if name in SIDES[side].names]
        random.Random(number).shuffle(turn)
        made += turn
    return made


# ---- fresh processes -------------------------------------------------------------------------------------------------


def found_by(*arguments: str) -> Record:
    """What a fresh process found, or why it found nothing."""
    try:
        return in_process(ONE, *arguments, limit=LIMIT)
    except subprocess.CalledProcessError as error:
        return {"failed": f"ended with {error.returncode}"}  # -9 is what a system does that has no memory left
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {LIMIT} s"}
    except (IndexError, json.JSONDecodeError):
        return {"failed": "printed no result"}


def settings(job: Job, options: argparse.Namespace, operations: float | None) -> str:
    given: Record = {"seed": job.round, "small": options.small, "operations": operations, "peak": options.peak}
    given |= {"seconds": 0.0} if options.small else {}
    if options.trace and job.side in OF_JAX:
        given["trace"] = str(options.trace.resolve() / f"{job.name}-{job.side}-{job.round}")
    return json.dumps(given)


def counted(names: list[str], small: bool) -> dict[str, float | None]:
    """The operations of a step of each workload, where they could be counted."""
    made: dict[str, float | None] = {}
    for name in names:
        found = found_by("operations", name, json.dumps({"small": small}))
        made[name] = found.get("operations")
        if "failed" in found:
            print(f"operations of {name}: {found['failed']}", file=sys.stderr, flush=True)
    return made


def measurements(names: list[str], sides: list[str], options: argparse.Namespace) -> list[Record]:
    """What is known of this device and what is measured now; failures that are known are tried again."""
    known = read(options.keep) if options.keep and options.keep.exists() else []
    records = [record for record in known if "failed" not in record and record["small"] == options.small]
    done = {Job(*(record[field] for field in Job._fields)) for record in records}
    todo = [job for job in jobs(names, sides, options.rounds) if job not in done]
    if known and not options.keep.read_text(encoding="utf-8").endswith("\n"):
        with options.keep.open("a", encoding="utf-8") as file:  # after a line that was cut off
            file.write("\n")
    operations = counted([name for name in names if any(job.name == name for job in todo)], options.small)
    for i, job in enumerate(todo):
        found = found_by("train", job.side, job.name, settings(job, options, operations[job.name]))
        records.append(job._asdict() | {"small": options.small, "operations": operations[job.name]} | found)
        kept(records[-1:], None if options.trace else options.keep)  # a profile takes time as well
        rate = found.get("steps_per_second")
        said = f"failed: {found['failed']}" if rate is None else f"{rate:.4g} steps a second"
        if "copies_to_host" in found:
            said += f", {found['copies_to_host']:.4g} copies to the host in a call of {found['steps']} steps"
        print(f"{i + 1} of {len(todo)}: {job.name} {job.side} {job.round}: {said}", file=sys.stderr, flush=True)
    return records


# ---- what is printed and written -------------------------------------------------------------------------------------

HEAD = """\
| | | steps/s (least to most) | to JAX by hand | of the peak | memory, GB | first call, s | loss, first to last |
|---|---|---|---|---|---|---|---|"""


def of(records: list[Record], side: str, name: str) -> list[Record]:
    return [record for record in records if (record["side"], record["name"]) == (side, name)]


def middle(records: list[Record], field: str) -> float | None:
    """The median over the rounds in which it is known."""
    values = [record[field] for record in records if record.get(field) is not None]
    return statistics.median(values) if values else None


def number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, form)


def row(records: list[Record], side: str, name: str) -> str | None:
    """A line of the table; none where nothing was tried."""
    own = of(records, side, name)
    if not own:
        return None
    good, start = [record for record in own if "failed" not in record], f"| {name} | {SIDES[side].title}"
    if not good:
        return f"{start} | failed: {own[-1]['failed']} | | | | | |"
    start += "" if len(good) == len(own) else f" ({len(good)} of {len(own)} rounds, failed: {failure(own)})"
    start += " (on the CPU)" if on_cpu(good) and not on_cpu(of_jax(records)) else ""
    rates = [record["steps_per_second"] for record in good]
    steps, hand = statistics.median(rates), middle(of(records, HAND, name), "steps_per_second")
    losses = " to ".join(number(middle(good, f"{which}_loss"), ".4g") for which in ("first", "last"))
    cells = [
        f"{steps:,.4g} ({min(rates):,.4g} to {max(rates):,.4g})",
        number(hand and steps / hand, ".2f"),
        number(middle(good, "share"), ".1%"),
        number(middle(good, "memory"), ".2f", 1e-9),
        number(middle(good, "first_call"), ".1f"),
        losses.removeprefix(" to "),
    ]
    return f"{start} | " + " | ".join(cells) + " |"


def failure(records: list[Record]) -> str:
    return next(record["failed"] for record in reversed(records) if "failed" in record)


def of_jax(records: list[Record]) -> list[Record]:
    return [record for record in records if record["side"] in OF_JAX and "failed" not in record]


def on_cpu(records: list[Record]) -> bool:
    """Whether any of it ran there, or nothing ran at all."""
    return not records or any(record["platform"] == "cpu" for record in records)


def table(records: list[Record]) -> str:
    rows = [row(records, side, name) for name in NAMES for side in SIDES]
    return "\n".join([HEAD, *(line for line in rows if line)])


def titles() -> str:
    of_seven = {name: f"{work.title}; epochs in a call: {work.epochs}" for name, work in WORKLOADS.items()}
    of_large = {name: f"{size.title}; steps in a call: {size.steps}" for name, size in LARGE.items()}
    return "\n".join(f"- **{name}**: {title}" for name, title in (of_large | of_seven).items())


def page(records: list[Record]) -> str:
    kinds = ", ".join(sorted({record["device"] for record in of_jax(records)})) or "no device"
    rounds = max(record["round"] for record in records) + 1
    return f"""\
# Times on an accelerator

{titles()}

```sh
pip install -e . "jax[cuda13]" && pip install torch --index-url https://download.pytorch.org/whl/cu130
python benchmarks/accelerators.py
```

wrote this page on {datetime.date.today()}: {kinds}; {machine(PACKAGES)}. Medians of {rounds} rounds, in each of which
every measurement is a fresh process. Steps a second are those of the median call of at least three, compiled and warm;
the data are on the device, and each call is waited for. A call of the MLPs and of W1 to W7 is a whole run from its
initialisation on, in PyTorch W1 to W7 without it; of the others it goes on with the parameters of the one before.

The share of the peak is that of products of bfloat16 without sparsity, whatever the dtype of the workload, and the
operations of a step are those of `inspection.summary`, forward and backward, the same for all sides and without what is
computed again. JAX computes the blocks of GPT again for the gradient, PyTorch keeps them. The attention of GPT is
flash attention on all sides on a GPU, in JAX that of cuDNN. Products of float32 are TensorFloat-32 on a GPU. By funcnn
the MLPs and W7 are a sweep, which is driven from the host: that costs about a tenth of a second a call. The first
call is from data in the memory of the host to the first result, with all that is compiled. The losses are of the first
epoch that was trained and of the last one; of W1 to W7, of all rows after training. Memory is the most that the arrays
of a process had at once, where the device says so.

{table(records)}
"""


# ---- the command -----------------------------------------------------------------------------------------------------


def parsed(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str], list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default=",".join(NAMES), help="such as GPT,W4")
    parser.add_argument("--sides", default=",".join(SIDES), help="such as funcnn,hand")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="tiny sizes, one round, and no page: for a CPU")
    parser.add_argument("--keep", type=pathlib.Path, help="a file to which each result is added; of one machine")
    parser.add_argument("--trace", type=pathlib.Path, help="a directory for profiles of the steady state, of JAX")
    parser.add_argument("--peak", type=float, help="of the device, in operations a second")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"expected at least 1 round, got {options.rounds}")
    options.rounds = 1 if options.small else options.rounds
    return options, chosen(options.workloads, NAMES, parser), chosen(options.sides, SIDES, parser)


def whole(records: list[Record], names: list[str], sides: list[str], options: argparse.Namespace) -> bool:
    """Whether this is what the page is of."""
    every = set(names) == set(NAMES) and set(sides) == set(SIDES)
    return every and not options.small and not options.trace and not on_cpu(of_jax(records))


def main(arguments: list[str] | None = None) -> None:
    options, names, sides = parsed(arguments)
    records = measurements(names, sides, options)
    print(table(records))
    if whole(records, names, sides, options):
        PAGE.write_text(page(records), encoding="utf-8")
        print(f"written to {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
