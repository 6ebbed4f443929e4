"""Seven workloads by funcnn, by hand in JAX, and by five other libraries: docs/performance.md.

    python benchmarks/performance.py                 all of it, two hours; writes performance.jsonl and the page
    python benchmarks/performance.py --keep FILE     keeps each result in a file, and skips those that are there
    python benchmarks/performance.py --from FILE     writes them from such a file, measuring nothing; without FILE
                                                     the page from performance.jsonl
    python benchmarks/performance.py --anew --workloads W6   of these alone; the rest is what performance.jsonl has
    python benchmarks/performance.py --quick --workloads W1,W3 --sides run,scan,torch

Each measurement is a fresh process (one_run.py); in each round, which has a seed of its own, workloads and sides take
turns in an order drawn anew. A page is written of all workloads and sides alone; of fewer, and with --quick, it is
printed. With --anew the page says which workloads are of another day and revision than the rest.
"""

import argparse
import datetime
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from against_scan import ROOT, in_process, machine
from one_run import FUSED, OURS, RUN, SCAN, SIDES, TORCH
from performance_page import BLOCKS, page, with_glance
from workloads import WORKLOADS, data

PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"
RECORDS = ROOT / "benchmarks" / "performance.jsonl"  # what the page is of, measurement by measurement
ONE = str(ROOT / "benchmarks" / "one_run.py")
PEERS = ("flax", "equinox", "keras", "torch", "scikit-learn")
STEADY_SECONDS = 3
LIMIT = 1800  # seconds after which a process is given up

# Final losses over many seeds: of whom, and of how many rows where all of them would take too long.
COMPARED = (RUN, FUSED, SCAN, TORCH)
ROWS = {"W4": 6400, "W6": 320}

Record = dict[str, Any]


class Job(NamedTuple):
    """One measurement: ``train``, ``cached`` (with a filled cache of programs), ``losses`` or ``compile``."""

    kind: str
    side: str
    name: str
    round: int


def jobs(names: list[str], sides: list[str], rounds: int, seeds: int) -> list[Job]:
    """All that is to be measured, each round in an order of its own."""
    made: list[Job] = []
    for number in range(rounds):
        turn = [Job("train", side, name, number) for side in sides for name in names if name in SIDES[side].names]
        turn += [job._replace(kind="cached") for job in turn if job.side in OURS]
        if RUN in sides:
            turn += [Job("compile", RUN, str(blocks), number) for blocks in BLOCKS]
        random.Random(number).shuffle(turn)
        made += turn
    if seeds:
        pairs = [(side, name) for name in names for side in sides if side in COMPARED]
        made += [Job("losses", side, name, 0) for side, name in pairs if name in SIDES[side].names]
    return made


def arrays(folder: str, name: str, rows: int | None = None) -> str:
    """The path of the data of a workload, which are written where they are not yet."""
    path = pathlib.Path(folder) / f"{name}-{rows or 'all'}.npz"
    if not path.exists():
        x, y = data(name)
        work = WORKLOADS[name]
        np.savez(path, x=x[:rows], y=y[:rows], epochs=work.epochs, members=work.members)
    return str(path)


def arguments(job: Job, folder: str, seeds: int, seconds: float) -> list[str]:
    if job.kind == "compile":
        return [ONE, "compile", job.name]
    if job.kind == "losses":
        return [ONE, "losses", job.side, job.name, arrays(folder, job.name, ROWS.get(job.name)), str(seeds)]
    path = arrays(folder, job.name)
    return [ONE, "train", job.side, job.name, path, str(job.round), repr(time.time()), str(seconds)]


def measured(job: Job, folder: str, seeds: int, seconds: float = STEADY_SECONDS) -> Record:
    """What a fresh process found, or why it found nothing."""
    settings = dict(SIDES[job.side].settings)
    if job.kind == "cached":
        cache = pathlib.Path(folder) / f"programs-{job.side}-{job.name}"
        settings["FUNCNN_BENCH_CACHE"], seconds = str(cache), 0
    try:
        if job.kind == "cached" and not cache.exists():  # the first process fills the cache, and is not counted
            in_process(*arguments(job, folder, seeds, 0), settings=settings, limit=LIMIT)
        found = in_process(*arguments(job, folder, seeds, seconds), settings=settings, limit=LIMIT)
    except subprocess.CalledProcessError as error:
        found = {"failed": f"ended with {error.returncode}"}
    except subprocess.TimeoutExpired:
        found = {"failed": f"took more than {LIMIT} s"}
    if "failed" in found:
        print(f"{job.kind} {job.side} {job.name}: {found['failed']}", file=sys.stderr, flush=True)
    return job._asdict() | found


def job_of(record: Record) -> Job:
    return Job(*(record[field] for field in Job._fields))


def measurements(todo: list[Job], known: list[Record], keep: pathlib.Path | None, seeds: int) -> list[Record]:
    """What is known and what is measured now; failures that are known are tried again."""
    done = {job_of(record) for record in known if record["kind"] != "machine" and "failed" not in record}
    todo = [job for job in todo if job not in done]
    records = list(known)
    with tempfile.TemporaryDirectory() as folder:
        for side in sorted({job.side for job in todo}):  # fills the caches of the disk, and is not counted
            measured(Job("train", side, "W1", 0), folder, 0, 0)
        for i, job in enumerate(todo):
            records.append(measured(job, folder, seeds))
            kept(records[-1:], keep)
            print(f"{i + 1} of {len(todo)}: {' '.join(map(str, job))}: {in_short(records[-1])}", flush=True)
    return records


def in_short(record: Record) -> str:
    shown = {
        key: record[key] for key in ("process", "steady", "loss", "seconds", "failed") if record.get(key) is not None
    }
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
    )


def lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def kept(records: Iterable[Record], keep: pathlib.Path | None) -> None:
    if keep:
        with keep.open("a", encoding="utf-8") as file:
            file.write(lines(records))


def read(path: pathlib.Path) -> list[Record]:
    """The records of a file; a last line that was cut off is left out."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: left out {line[:40]!r}", file=sys.stderr)
    return records


def chosen(given: str, known: Iterable[str], parser: argparse.ArgumentParser) -> list[str]:
    names = given.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return names


def revision() -> str:
    """Of the code that is measured; whether it was changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def begun(keep: pathlib.Path | None, parser: argparse.ArgumentParser) -> list[Record]:
    """What was measured before, on this machine; the first record says on which one, and when."""
    here, code = machine(PEERS), revision()
    known = read(keep) if keep and keep.exists() else []
    if keep and keep.exists() and not keep.read_text(encoding="utf-8").endswith("\n"):
        with keep.open("a", encoding="utf-8") as file:  # after a line that was cut off
            file.write("\n")
    if known and known[0].get("machine") != here:
        parser.error(f"{keep} is of another machine or of other versions: {known[0].get('machine')}, and not {here}")
    if known and known[0].get("code") != code:
        parser.error(f"{keep} is of another revision of funcnn: {known[0].get('code')}, and not {code}")
    if not known:
        known = [{"kind": "machine", "machine": here, "date": str(datetime.date.today()), "load": os.getloadavg()[0]}]
        known[0] |= {"code": code}
        kept(known, keep)
    return known


def renewed(old: list[Record], new: list[Record], names: list[str]) -> list[Record]:
    """The old records, with what is new of some workloads instead of theirs."""
    about = [record | {"anew": names} for record in new[:1]]
    found = [record for record in new if record.get("name") in names]
    abouts = [record for record in old if record["kind"] == "machine" and not set(record.get("anew", ())) & set(names)]
    rest = [record for record in old if record["kind"] != "machine" and record.get("name") not in names]
    return abouts + about + rest + found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="such as W1,W3")
    parser.add_argument("--sides", default=",".join(SIDES), help="such as run,scan,torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=20, help="of the table of final losses; 0 leaves it out")
    parser.add_argument("--quick", action="store_true", help="one round, no table of final losses, and no page")
    parser.add_argument("--keep", type=pathlib.Path, help="a file to which each result is added")
    help_anew = "of the workloads chosen; the rest of the page stays as it is in performance.jsonl"
    parser.add_argument("--anew", action="store_true", help=help_anew)
    help_from = "a file of results, instead of measuring; without a name performance.jsonl"
    parser.add_argument("--from", type=pathlib.Path, nargs="?", const=RECORDS, dest="source", help=help_from)
    options = parser.parse_args()
    names, sides = chosen(options.workloads, WORKLOADS, parser), chosen(options.sides, SIDES, parser)
    printed = options.quick or not (options.anew or set(names) == set(WORKLOADS)) or set(sides) != set(SIDES)
    if options.anew and (printed or options.source):
        parser.error("--anew is for a page: expected all sides, without --quick and --from")
    if options.source:
        records = read(options.source)
    else:
        if not printed and revision().endswith("-dirty"):
            parser.error("a page says of which revision of funcnn it is: commit what is changed, or give --quick")
        rounds, seeds = (1, 0) if options.quick else (options.rounds, options.seeds)
        known = begun(options.keep, parser)
        old = read(RECORDS) if options.anew else []
        if old and old[0]["machine"] != known[0]["machine"]:
            parser.error(f"{RECORDS} is of another machine or of other versions: {old[0]['machine']}")
        todo = [job for job in jobs(names, sides, rounds, seeds) if job.kind != "compile" or not options.anew]
        records = measurements(todo, known, options.keep, seeds)
        if options.anew:
            records = renewed(old, records, names)
    text = page(records)
    if printed and (options.quick or not options.source):
        print(text)
        return
    RECORDS.write_text(lines(records), encoding="utf-8")
    PAGE.write_text(text, encoding="utf-8")
    README.write_text(with_glance(README.read_text(encoding="utf-8"), records), encoding="utf-8")
    print(f"written to {RECORDS.relative_to(ROOT)}, {PAGE.relative_to(ROOT)} and the table of README.md")


if __name__ == "__main__":
    main()
