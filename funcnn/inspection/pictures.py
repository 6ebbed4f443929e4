"""A graph as a picture, drawn without another program: nodes in columns, by how far they are from the arguments."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from funcnn.inspection.drawings import edges, lines_of, number, readable, shown

_LETTER, _LINE, _PAD, _BETWEEN, _BESIDE = 6.7, 15, 8, 22, 90
# Colours that differ for everybody (Okabe and Ito), with black letters on them.
_FILLS = {"argument": "#cfe8f7", "box": "#fdebc8", "": "#ffffff"}
_SWEEPS = 8


class _Box(NamedTuple):
    """Where a node stands, in pixels: its left upper corner, and its size."""

    x: float
    y: float
    width: float
    height: float


def svg(graph: Any) -> str:
    """The graph as SVG."""
    graph = readable(graph)
    nodes, arrows = shown(graph), edges(graph)
    columns = _columns(nodes, arrows)
    boxes = _placed(columns)
    width = max((box.x + box.width for box in boxes.values()), default=0) + _PAD
    height = max((box.y + box.height for box in boxes.values()), default=0) + _PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="monospace" font-size="11">',
        '<defs><marker id="to" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    labels: list[str] = []
    for given, node, sent in arrows:
        line, label = _arrow(boxes[given], boxes[node], "" if sent is None else number(sent))
        parts.append(line)
        labels.append(label)
    parts += [_drawn(node, boxes[node]) for node in nodes]
    return "\n".join([*parts, *labels, "</svg>"])


def _columns(nodes: Sequence[Any], arrows: Sequence[tuple[Any, Any, Any]]) -> list[list[Any]]:
    """The nodes by their distance from the arguments, and each column in an order in which few arrows cross."""
    before: dict[Any, list[Any]] = {node: [] for node in nodes}
    after: dict[Any, list[Any]] = {node: [] for node in nodes}
    for given, node, _ in arrows:
        before[node].append(given)
        after[given].append(node)
    rank: dict[Any, int] = {}
    for node in nodes:
        rank[node] = 1 + max((rank[given] for given in before[node]), default=-1)
    for node in reversed(nodes):  # what is used late stands near to where it is used
        if not before[node] and after[node]:
            rank[node] = min(rank[other] for other in after[node]) - 1
    columns: list[list[Any]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for node in nodes:
        columns[rank[node]].append(node)
    for sweep in range(_SWEEPS):
        place = {node: (i + 0.5) / len(column) for column in columns for i, node in enumerate(column)}
        near = after if sweep % 2 else before
        for column in columns[::-1] if sweep % 2 else columns:
            column.sort(key=lambda node: _mean([place[other] for other in near[node]], place[node]))
            place |= {node: (i + 0.5) / len(column) for i, node in enumerate(column)}
    return columns


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _placed(columns: Sequence[Sequence[Any]]) -> dict[Any, _Box]:
    """A box for each node, the columns side by side and each in the middle."""
    heights = [[_LINE * len(lines_of(node)) + _PAD for node in column] for column in columns]
    tallest = max((sum(column) + _BETWEEN * (len(column) - 1) for column in heights), default=0)
    boxes: dict[Any, _Box] = {}
    x = float(_PAD)
    for column, sizes in zip(columns, heights, strict=True):
        width = max((_LETTER * max(map(len, lines_of(node))) + 2 * _PAD for node in column), default=0)
        y = _PAD + (tallest - sum(sizes) - _BETWEEN * (len(sizes) - 1)) / 2
        for node, height in zip(column, sizes, strict=True):
            boxes[node] = _Box(x, y, width, height)
            y += height + _BETWEEN
        x += width + _BESIDE
    return boxes


def _arrow(begin: _Box, end: _Box, text: str) -> tuple[str, str]:
    """A curve from one box to another, and what was sent back along it, beside the place where it ends."""
    x1, y1, x2, y2 = begin.x + begin.width, begin.y + begin.height / 2, end.x, end.y + end.height / 2
    bend = max((x2 - x1) / 2, 20)
    path = f"M{x1:.1f},{y1:.1f} C{x1 + bend:.1f},{y1:.1f} {x2 - bend:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"
    line = f'<path d="{path}" fill="none" stroke="#555" marker-end="url(#to)"/>'
    # Near to where it begins, where arrows are apart; with a halo, for it may lie on one.
    x, y = x1 + 4, y1 - 4 if y2 <= y1 else y1 + 12
    halo = 'stroke="#fff" stroke-width="3" paint-order="stroke"'
    return line, f'<text x="{x:.1f}" y="{y:.1f}" fill="#a03000" {halo}>{html.escape(text)}</text>'


def _drawn(node: Any, box: _Box) -> str:
    kind = "argument" if node.operation == "argument" else "box" if node.is_box else ""
    frame = (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="4" '
        f'fill="{_FILLS[kind]}" stroke="#333"/>'
    )
    texts: list[str] = []
    for i, line in enumerate(lines_of(node)):
        weight = "" if i else ' font-weight="bold"'
        y = box.y + _LINE * (i + 1)
        texts.append(f'<text x="{box.x + _PAD:.1f}" y="{y:.1f}" fill="#000"{weight}>{html.escape(line)}</text>')
    return "\n".join([frame, *texts])
