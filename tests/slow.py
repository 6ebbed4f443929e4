"""Writes slow.txt: which tests, and how many of their cases, are left out of the tests of every day.

    pytest --durations=0 --durations-min=0.02 > LOG; python tests/slow.py LOG

Reads how long each test took, and adds those that take longest to what is in slow.txt, whose lines stay: they may be
changed by hand. The tests of every day are to take less than five minutes on two cores.
"""

import math
import re
import sys
from collections import Counter
from pathlib import Path

LIST = Path(__file__).with_name("slow.txt")
CASES, ONE = 1.0, 1.5  # seconds that the cases of one test may take, and a test that has one
KEPT = (  # whatever they take: what the library promises above all
    "tests/test_everyday.py::test_the_law_holds",
    "tests/test_interrupts.py::test_killed_at_random_and_resumed_each_time",
    "tests/test_checkpoints.py::test_a_run_that_goes_on_is_the_run_that_was_never_cut",
    "tests/test_stores.py::test_a_full_disk_ends_the_run_and_keeps_what_was_there",
    "tests/test_golden.py::test_a_checkpoint_is_gone_on_with",
    "tests/test_architecture.py::test_importing_the_library_imports_nothing_heavy",
)


def chosen(log: str) -> dict[str, int]:
    """The tests that take too long, and of how many cases of each one may stay: 0 where there is only one."""
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for taken, what, name in re.findall(r"^([\d.]+)s (call|setup|teardown)\s+([^\[\n]+)", log, re.MULTILINE):
        seconds[name.strip()] += float(taken)
        calls[name.strip()] += what == "call"
    steps: dict[str, int] = {}
    for name, total in seconds.items():
        count = calls[name]
        if name in KEPT or total < (CASES if count > 1 else ONE):
            continue
        steps[name] = math.ceil(count / max(1, round(CASES * count / total))) if count > 1 else 0
    return {name: step for name, step in steps.items() if step != 1}


def main() -> None:
    known = dict(reversed(line.split()) for line in LIST.read_text().splitlines()) if LIST.exists() else {}
    known = {name: str(step) for name, step in chosen(Path(sys.argv[1]).read_text()).items()} | known
    LIST.write_text("".join(f"{step} {name}\n" for name, step in sorted(known.items())))


if __name__ == "__main__":
    main()
