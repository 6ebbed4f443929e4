"""A graph as a text for a terminal, for Graphviz, for Mermaid, as JSON, and as a picture."""

import html
import json
from typing import Any

import numpy as np

# Rows of a table; what is longer is cut.
_ROWS = 60
# Numbers of an array in JSON.
_NUMBERS = 100


def number(value: Any) -> str:
    """A value in a few letters: a number as it is, of an array its dtype, shape and range."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return f"{len(value)} values"
    if getattr(value.dtype, "kind", "") not in tuple("fciubV"):  # a key
        return str(value.dtype)
    array = np.asarray(value)
    if not array.ndim:
        return (
            str(array)
            if array.dtype.kind in "biu"
            else f"{complex(array) if array.dtype.kind == 'c' else float(array):.4g}"
        )
    shape = "x".join(map(str, array.shape))
    if not array.size or array.dtype.kind == "c":
        return f"{array.dtype} {shape}"
    if array.dtype.kind == "V":
        array = array.astype(np.float32)
    low, high = array.min(), array.max()
    if low == high:
        return f"{shape}: {low}" if array.dtype.kind in "biu" else f"{shape}: {low:.4g}"
    return f"{shape}: {low}..{high}" if array.dtype.kind in "biu" else f"{shape}: {low:.3g}..{high:.3g}"


def shown(graph: Any) -> list[Any]:
    """The nodes that stand for themselves: a number that is written down is shown where it goes in."""
    return [node for node in graph.nodes if node.operation != "constant" or np.ndim(node.value)]


def _input(node: Any) -> str:
    return number(node.value) if node.operation == "constant" and np.ndim(node.value) == 0 else node.label


def readable(graph: Any) -> Any:
    """The graph itself, or of a large one that of its layers."""
    if len(shown(graph)) <= _ROWS or not any(node.path and not node.slot.within for node in graph.nodes):
        return graph
    return graph.fold()


def table(graph: Any) -> str:
    """The nodes in order, one in a line."""
    whole, graph = graph, readable(graph)
    nodes = shown(graph)
    rows = [("node", "operation", "value", "gradient", "inputs", "layer")]
    for node in nodes[:_ROWS]:
        inputs = ", ".join(map(_input, node.inputs))
        path = "" if node.path == node.name else node.path
        rows.append((node.label, node.operation, number(node.value), number(node.gradient), inputs, path))
    columns = [column for column in zip(*rows, strict=True) if any(column[1:]) or column[0] in ("node", "operation")]
    aligned: list[list[str]] = []
    for column in columns:
        width = max(map(len, column))
        right = column[0] in ("value", "gradient")
        aligned.append([cell.rjust(width) if right else cell.ljust(width) for cell in column])
    lines = ["  ".join(cells).rstrip() for cells in zip(*aligned, strict=True)]
    if len(nodes) > _ROWS:
        lines.append(f"... and {len(nodes) - _ROWS} nodes more")
    if graph is not whole:
        lines.append(f"{len(whole)} nodes by layers; graph.fold().open({_first_layer(graph)!r}) shows those of one")
    return "\n".join(lines)


def _first_layer(graph: Any) -> str:
    return next(node.name for node in graph.nodes if node.slot.within)


# ---- languages -------------------------------------------------------------------------------------------------------


def _lines(node: Any) -> list[str]:
    lines = [node.label]  # by which the steps speak of it
    if node.name and node.operation not in ("argument", "layer"):
        lines[0] = f"{node.name} = {node.operation}"
    lines.append(f"value {number(node.value)}")
    if node.gradient is not None:
        lines.append(f"gradient {number(node.gradient)}")
    return lines


def edges(graph: Any) -> list[tuple[Any, Any, Any]]:
    """From which node to which, and what was sent back."""
    drawn = set(shown(graph))
    return [
        (given, node, sent)
        for node in graph.nodes
        for given, sent in zip(node.inputs, node.sent, strict=True)
        if given in drawn
    ]


def dot(graph: Any) -> str:
    """In the language of Graphviz, layers as clusters."""
    graph = readable(graph)
    lines = ["digraph {", "  rankdir=LR;", "  node [shape=box, fontname=monospace];"]
    for node in shown(graph):
        text = "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines_of(node))
        lines.append(f'  n{node.index} [label="{text}"{", peripheries=2" if node.is_box else ""}];')
    for given, node, sent in edges(graph):
        label = f' [label="{number(sent)}"]' if sent is not None else ""
        lines.append(f"  n{given.index} -> n{node.index}{label};")
    return "\n".join([*lines, "}"])


def lines_of(node: Any) -> list[str]:
    """What is written in the box of a node, numbers that are written down and the layer among it."""
    constants = [number(i.value) for i in node.inputs if i.operation == "constant" and np.ndim(i.value) == 0]
    head, *rest = _lines(node)
    head = f"{head}, with {', '.join(constants)}" if constants else head
    lines = [head, *rest, *([node.path] if node.path and node.path != node.name else [])]
    # A name may have a line break in it, or what no XML may have.
    return ["".join(letter if letter.isprintable() else " " for letter in line) for line in lines]


def mermaid(graph: Any) -> str:
    """As a flowchart of Mermaid."""
    graph = readable(graph)
    lines = ["flowchart LR"]
    for node in shown(graph):
        text = "<br/>".join(html.escape(line) for line in lines_of(node))
        left, right = ('[["', '"]]') if node.is_box else ('["', '"]')
        lines.append(f"  n{node.index}{left}{text}{right}")
    for given, node, sent in edges(graph):
        label = "" if sent is None else f'|"{number(sent)}"|'
        lines.append(f"  n{given.index} -->{label} n{node.index}")
    return "\n".join(lines)


def json_text(graph: Any) -> str:
    """All nodes with all that is known of them."""
    nodes = [
        {
            "index": node.index,
            "name": node.name,
            "operation": node.operation,
            "path": node.path,
            "source": node.source,
            "value": _plain(node.value),
            "gradient": _plain(node.gradient),
            "inputs": [given.index for given in node.inputs],
            "sent": [_plain(sent) for sent in node.sent],
        }
        for node in graph.nodes
    ]
    return json.dumps({"nodes": nodes, "outputs": [node.index for node in graph.outputs]}, allow_nan=False)


def _plain(value: Any) -> Any:
    """An array as JSON has it; NaN and infinities, which it has not, as texts."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    about = {"dtype": str(value.dtype), "shape": list(value.shape)}
    if getattr(value.dtype, "kind", "") not in tuple("fiub"):
        return about
    array = np.asarray(value)
    if array.size > _NUMBERS:
        return about | {"smallest": _finite(array.min()), "largest": _finite(array.max())}
    return about | {"numbers": [_finite(item) for item in array.reshape(-1)]}


def _finite(item: Any) -> Any:
    item = item.item()
    return item if np.isfinite(item) else str(item)
