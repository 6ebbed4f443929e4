"""What the scripts share that measure several sides, each in fresh processes, and write one page about them."""

import argparse
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from against_scan import ROOT, in_process
from clock import seconds_of

ROUNDS = 5
sys.path.insert(0, str(ROOT))  # funcnn is that of this repository, also where it is not installed


def called(name: str, rounds: int) -> str:
    """The command that writes a page of so many rounds."""
    return f"python benchmarks/{name}.py" + ("" if rounds == ROUNDS else f" --rounds {rounds}")


def median_seconds(call: Callable[[], Any], seconds: float, least: int) -> float:
    """The median of calls for so long and at least so many, after one to warm up."""
    call()
    return statistics.median(seconds_of(call, seconds, least))


def medians(script: str, sides: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Of each number that ``one`` gives of a side the median of rounds, in which the sides take turns."""
    found: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, of in found.items():
            of.append(in_process(script, "--side", side))
    return {side: [statistics.median(each) for each in zip(*of, strict=True)] for side, of in found.items()}


def command(
    title: str,
    sides: Sequence[str],
    one: Callable[[str], Any],
    measured: Callable[[int], Any],
    page: Callable[[Any, int, float], str],
    path: pathlib.Path,
) -> None:
    """The command line of such a script.

    ``--side``, which a fresh process is started with, prints what ``one`` measures of that side as JSON; otherwise what
    is ``measured`` in so many rounds is written to the file at ``path``: ``page(found, rounds, load before)``.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="one round, and no page")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one(options.side)))
        return
    load, rounds = os.getloadavg()[0], 1 if options.quick else options.rounds
    text = page(measured(rounds), rounds, load)
    if options.quick:
        sys.stdout.write(text)
        return
    path.write_text(text, encoding="utf-8")
    print(f"written to {path.relative_to(ROOT)}")
