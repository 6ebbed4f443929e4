"""Writes slow.txt and long.txt: what is left out of the tests of every day, and of those of CI.

    pytest --durations=0 --durations-min=0.02 > LOG; python tests/slow.py LOG
    pytest -m "slow and not long" --durations=0 --durations-min=0.02 > LOG; python tests/slow.py --long LOG

Reads how long each test took, and adds those that take longest to the list; of those that are in it already, and of
which the cases that are left take too long, fewer stay. A line has the name of a test, and of how many of its cases one
stays, beginning with the first; 0 where none does. The tests of every day are to take less than five minutes on two
cores, and all of CI less than forty.
"""

import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple


class Bound(NamedTuple):
    """How much time tests may take, and those that stay whatever they take."""

    path: Path
    cases: float  # seconds that all cases of a test may take
    one: float  # and a single case
    kept: tuple[str, ...]  # with all cases; the beginnings of their names
    first: tuple[str, ...] | None = None  # with the first case. None: every test is


# What the library promises above all, and documents, examples and laws, which have a choice of their own.
DAILY = Bound(
    Path(__file__).with_name("slow.txt"),
    1.0,
    1.5,
    (
        "tests/test_everyday.py::test_the_law_holds",
        "tests/test_interrupts.py::test_killed_at_random_and_resumed_each_time",
        "tests/test_checkpoints.py::test_a_run_that_goes_on_is_the_run_that_was_never_cut",
        "tests/test_stores.py::test_a_full_disk_ends_the_run_and_keeps_what_was_there",
        "tests/test_golden.py::test_a_checkpoint_is_gone_on_with",
        "tests/test_architecture.py::test_importing_the_library_imports_nothing_heavy",
    ),
)
IN_CI = Bound(
    Path(__file__).with_name("long.txt"),
    6.0,
    12.0,
    (
        "tests/test_documents.py::test_every_snippet_runs_and_prints_what_is_shown",
        "tests/test_examples.py::test_an_example_keeps_its_claims",
        "tests/test_examples.py::test_an_example_prints_as_a_notebook_what_it_prints_as_a_script",
        "tests/test_notebooks.py::test_a_chapter_prints_what_its_page_shows_and_draws_its_picture",
        "tests/test_website.py::test_every_link_leads_to_a_page_and_a_place_in_it",
        "tests/test_caching.py::test_the_second_process_compiles_nothing_and_damage_is_mended",
        "tests/test_laws.py",  # half of the longest ones
        "tests/test_recurrent.py::test_any_lengths_agree_with_packed_sequences",
        "tests/test_sweeps.py::test_a_variable_that_make_trainer_reads_may_change",
        "tests/test_streams.py::test_a_stream_is_read_again_for_each_group_of_members",
        "tests/test_stopping.py::test_reverse_mode_is_refused",
    ),
    (
        "tests/test_everyday.py::test_the_law_holds",
        "tests/test_law.py::test_members_of_a_map_are_runs_and_those_of_vmap_to_rounding",
        "tests/test_law.py::test_fit_in_chunks_of_epochs_is_run",
        "tests/test_runs.py::test_the_gradient_of_a_run_by_the_learning_rate",
        "tests/test_hypergradients.py::test_slopes_by_decay_weights_and_the_data_are_those_of_differences",
        "tests/test_stopping.py::test_it_is_the_unstopped_run_up_to_where_it_stops",
        "tests/test_sweeps.py::test_members_that_do_not_fit_are_cut_into_groups",
        "tests/test_sweeps.py::test_ctrl_c_keeps_the_members_that_were_begun",
        "tests/test_checkpoints.py::test_wherever_it_was_cut",
        "tests/test_sweeps.py::test_a_member_is_the_run_with_its_hyperparameters_and_its_key",
        "tests/test_sweeps.py::test_each_member_stops_where_its_own_rule_says",
        "tests/test_checkpoints.py::test_a_run_that_goes_on_is_the_run_that_was_never_cut",
        "tests/test_interrupts.py::test_a_signal_ends_a_run_with_all_of_it_saved",
        "tests/test_exporting.py::test_a_whole_run_gives_the_same_bits_without_funcnn",
        "tests/test_many_members.py::test_256_members_side_by_side_end_where_a_loop_over_all_of_them_ends",
        "tests/test_attention.py::test_decoding_with_the_cache_is_the_full_pass",
        "tests/test_sweeps.py::test_all_members_may_begin_with_one_state",
        "tests/test_sweeps.py::test_an_array_that_a_loss_holds_may_change",
    ),
)


def chosen(log: str, bound: Bound) -> dict[str, int]:
    """The tests that take too long, and of how many cases of each one may stay: 0 where none may."""
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for taken, what, name in re.findall(r"^([\d.]+)s (call|setup|teardown)\s+([^\[\n]+)", log, re.MULTILINE):
        seconds[name.strip()] += float(taken)
        calls[name.strip()] += what == "call"
    steps: dict[str, int] = {}
    for name, total in seconds.items():
        count = calls[name]
        if name.startswith(bound.kept) or total < (bound.cases if count > 1 else bound.one):
            continue
        steps[name] = math.ceil(count / max(1, round(bound.cases * count / total))) if count > 1 else 0
        too_long = bound.first is not None and name not in bound.first and total > bound.one * count
        if too_long and steps[name] == count:
            steps[name] = 0
    return {name: step for name, step in steps.items() if step != 1}


def main() -> None:
    bound = IN_CI if "--long" in sys.argv else DAILY
    known = dict(reversed(line.split()) for line in bound.path.read_text().splitlines()) if bound.path.exists() else {}
    for name, step in chosen(Path(sys.argv[-1]).read_text(), bound).items():
        known[name] = str(step * int(known.get(name, 1)))  # of the cases that were left
    bound.path.write_text("".join(f"{step} {name}\n" for name, step in sorted(known.items())))


if __name__ == "__main__":
    main()
