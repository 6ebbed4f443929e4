"""Tables for people: one list of columns and rows as a terminal, a notebook, Markdown and a spreadsheet show it."""

import csv
import html
import io
from collections.abc import Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """The ``columns``, the ``rows`` and the last row, the ``total``, as texts, and ``lines`` beneath.

    The first ``left`` columns stand on the left, all others are numbers and stand on the right.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...]
    lines: tuple[str, ...] = ()
    left: int = 2


def drawn(table: Table) -> Any:
    """The table as rich draws it, as wide as the terminal allows."""
    # It is imported only where somebody looks at it.
    from rich.console import Group
    from rich.table import Table as Drawn
    from rich.text import Text

    made = Drawn()
    for i, name in enumerate(table.columns):
        made.add_column(Text(name), justify="left" if i < table.left else "right", overflow="fold")
    for row in table.rows:
        made.add_row(*map(Text, row))
    made.add_section()
    made.add_row(*map(Text, table.total))
    return Group(made, *map(Text, table.lines))


def text(table: Table, width: int = 160) -> str:
    """The table as plain text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(drawn(table))
    return "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))


def markdown(table: Table) -> str:
    """The table in Markdown, the lines as a paragraph each."""
    aligned = [":---" if i < table.left else "---:" for i in range(len(table.columns))]
    total = [f"**{cell}**" if cell else "" for cell in map(_escaped, table.total)]
    rows = [table.columns, aligned, *([_escaped(cell) for cell in row] for row in table.rows), total]
    grid = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join([grid, *map(_escaped, table.lines)])


def _escaped(cell: str) -> str:
    for sign in "\\|*_`<":
        cell = cell.replace(sign, f"\\{sign}")
    return cell


def as_html(table: Table) -> str:
    """The table in HTML, for a notebook; it brings no style sheet along."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ("left" if i < table.left else "right" for i in range(len(cells)))
        inside = (
            f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(inside)}</tr>"

    head, total = line("th", table.columns), line("th", table.total)
    body = "\n".join(line("td", row) for row in table.rows)
    beneath = "".join(f"\n<p>{html.escape(each)}</p>" for each in table.lines)
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n<tfoot>{total}</tfoot>\n</table>{beneath}"


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Comma-separated values, with all their digits."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return file.getvalue()


# ---- numbers as people read them -------------------------------------------------------------------------------------


def scaled(number: int, unit: str = "") -> str:
    """A number of up to three digits and a prefix of powers of 1000.

    >>> scaled(999), scaled(1500), scaled(70_553_706_496), scaled(999_950_000, "B")
    ('999', '1.5 k', '70.6 G', '1 GB')
    """
    value, prefixes = number, iter("kMGTPEZY")
    prefix, shown = "", str(number)
    while len(shown.partition(".")[0]) > 3 and (next_prefix := next(prefixes, "")):
        value, prefix = value / 1000, next_prefix
        shown = f"{value:.{max(0, 3 - len(str(int(value))))}f}"
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return f"{shown} {prefix}{unit}".rstrip()


def percent(share: float) -> str:
    """A share as whole percent, and what is less as such.

    >>> percent(0.5), percent(0.001), percent(0.0)
    ('50', '< 1', '0')
    """
    return "< 1" if 0 < share < 0.01 else f"{100 * share:.0f}"
