"""What the scripts share that measure several sides, each in fresh processes, and write one page about them."""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from against_scan import ROOT


def median_seconds(call: Callable[[], Any], seconds: float, least: int) -> float:
    """The median of calls for so long and at least so many, after one to warm up."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < least:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def command(
    title: str,
    sides: Sequence[str],
    one: Callable[[str], Any],
    page: Callable[[int, float], str],
    path: pathlib.Path,
) -> None:
    """The command line of such a script.

    ``--side``, which a fresh process is started with, prints what ``one`` measures of that side as JSON; otherwise
    ``page`` of the number of rounds and of the load before they began is the text of the file at ``path``.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, and no page")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one(options.side)))
        return
    text = page(1 if options.quick else options.rounds, os.getloadavg()[0])
    if options.quick:
        sys.stdout.write(text)
        return
    path.write_text(text, encoding="utf-8")
    print(f"written to {path.relative_to(ROOT)}")
