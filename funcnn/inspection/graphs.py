"""A function as the graph of its operations, with the value and the gradient of each, and what each sent back."""

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnn import checks
from funcnn.inspection import drawings, pictures
from funcnn.inspection.equations import holds_a_jaxpr
from funcnn.inspection.passes import Passed
from funcnn.inspection.slots import OUTPUT, Slot, Traced

_WIDE = frozenset(("float64", "complex128", "int64", "uint64"))


# eq=False: two nodes are equal where they are the same one.
@dataclass(frozen=True, eq=False)
class Node:
    """One operation of a graph: what went in, what came out, and what went back.

    ``operation`` is the name of a primitive such as ``"mul"``, or of the function that a box holds; ``"argument"``,
    ``"constant"``, or ``"output"`` for one of several that a box has. ``value`` is an array, and of a box with several
    outputs a tuple of them. ``gradient`` is that of the output of the graph by this node, of the same form, and
    ``None`` for whole numbers. ``inputs`` are the nodes that went in, and ``sent`` what this node sent back to each of
    them: the gradient of a node is the sum of what was sent to it. ``name`` is that of an argument, or what
    ``inspection.name`` gave; ``path`` the layer that it belongs to, and ``source`` the line that it comes from.
    """

    index: int
    name: str
    operation: str
    value: Any
    gradient: Any
    inputs: tuple["Node", ...]
    sent: tuple[Any, ...]
    path: str
    source: str
    slot: Slot = field(repr=False)

    @property
    def is_box(self) -> bool:
        """Whether it holds operations of its own, which ``graph.open(node)`` shows."""
        return self.slot.within is not None or (self.slot.equation is not None and holds_a_jaxpr(self.slot.equation))

    @property
    def label(self) -> str:
        """What it is called where it is drawn: its name, or its operation and number."""
        if self.operation == OUTPUT and not self.name:
            return f"{self.inputs[0].label}[{self.slot.output}]"
        return self.name or f"{self.operation} {self.index}"

    def __repr__(self) -> str:
        gradient = "" if self.gradient is None else f", gradient {drawings.number(self.gradient)}"
        path = f" in {self.path}" if self.path else ""
        return f"Node({self.label}: {self.operation}{path}, value {drawings.number(self.value)}{gradient})"


class Step(NamedTuple):
    """One accumulation of the pass back: ``node`` sent ``sent`` to ``into``, whose gradient was ``before``.

    The first step of all has no ``node``: the gradient of the output by itself.
    """

    node: Node | None
    into: Node
    sent: Any
    before: Any
    after: Any

    def __str__(self) -> str:
        sent, before, after = (drawings.number(part) for part in (self.sent, self.before, self.after))
        if self.node is None:
            return f"{self.into.label}: the gradient of the output by itself is {after}"
        return f"{self.node.label} sends {sent} to {self.into.label}: {before} + {sent} = {after}"


@dataclass(frozen=True, eq=False)
class Graph:
    """The operations of a function in the order in which they were computed; printed as a table.

    ``graph["x1"]`` is the node of an argument, or of what ``inspection.name`` gave that name. ``outputs`` are the
    nodes that the function returned.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]
    names: dict[Any, tuple[int, ...]]
    cotangents: tuple[Any, ...]
    program: Traced = field(repr=False)
    found: Passed = field(repr=False)

    @property
    def output(self) -> Node:
        """The node that the function returned."""
        if len(self.outputs) != 1:
            fix = "take one of graph.outputs"
            checks.fail("graph.output", "a function with one output", f"{len(self.outputs)}", fix)
        return self.outputs[0]

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: Any) -> Node:
        if isinstance(name, (int, np.integer)):
            if not -len(self) <= name < len(self):
                fix = "count from 0, or from -1 backwards"
                checks.fail("graph", f"one of {len(self)} nodes", f"number {name}", fix, LookupError)
            return self.nodes[name]
        if not isinstance(name, Hashable):
            checks.fail("graph", "the name or number of a node", repr(name), "graph.nodes has all of them", TypeError)
        found = self.names.get(name, ())
        if len(found) == 1:
            return self.nodes[found[0]]
        if found:
            fix = f"graph.nodes has them, numbers {', '.join(map(str, found))}; or give each a name of its own"
            checks.fail("graph", f"one node of the name {name!r}", f"{len(found)}", fix, LookupError)
        known = ", ".join(name for name in self.names if isinstance(name, str)) or "none"
        if not isinstance(name, str):
            fix = "it is no part of what was differentiated: nothing of it went into the output"
            checks.fail("graph", "something that the graph is made of", repr(name), fix, LookupError)
        fix = 'inspection.name(x, "n") gives a name inside of the function, and graph.open shows what a box holds'
        return checks.fail("graph", f"one of the names {known}", repr(name), fix, LookupError)

    def consumers(self, node: Node) -> tuple[Node, ...]:
        """The nodes that a node went into, in order; what each sent back is in its ``sent``."""
        self._expect_own("graph.consumers", node)
        return tuple(other for other in self.nodes if node in other.inputs)

    def steps(self) -> Iterator[Step]:
        """The pass back, one accumulation at a time, from the output to the arguments.

        Example:
            >>> from funcnn import inspection
            >>> for step in inspection.graph(lambda x: x * x, 3.0).steps():
            ...     print(step)
            mul 1: the gradient of the output by itself is 1
            mul 1 sends 3 to x: 0 + 3 = 3
            mul 1 sends 3 to x: 3 + 3 = 6
        """
        # In NumPy, which keeps 64 bits whatever JAX is set to.
        gradients = {node: jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), node.gradient) for node in self.nodes}
        reached: set[Node] = set()
        for node, cotangent in zip(self.outputs, self.cotangents, strict=True):
            if cotangent is not None and node.gradient is not None:
                after = gradients[node] + np.asarray(cotangent)
                yield Step(None, node, cotangent, gradients[node], after)
                gradients[node] = after
                reached.add(node)
        for node in reversed(self.nodes):
            for into, sent in zip(node.inputs, node.sent, strict=True):
                if sent is None or node not in reached:
                    continue
                reached.add(into)
                if node.operation == OUTPUT:  # a part of what the box has
                    continue
                after = gradients[into] + np.asarray(sent)
                yield Step(node, into, sent, gradients[into], after)
                gradients[into] = after

    def open(self, node: Node | str | int, iteration: int | None = None) -> "Graph":
        """What is inside of a node that holds operations of its own, as a graph with the same values and gradients.

        Args:
            node: one of this graph, or its name or number.
            iteration: of a loop, counted from 0; of a ``scan``, the position along what it goes over.

        Raises:
            TypeError: it holds nothing, or it is a loop and ``iteration`` is missing.
            ValueError: there is no such iteration.

        Example:
            >>> import jax
            >>> from funcnn import inspection
            >>> graph = inspection.graph(lambda x: 2 * jax.nn.silu(x), 1.0)
            >>> [node.operation for node in graph]
            ['argument', 'silu', 'constant', 'mul']
            >>> [node.operation for node in graph.open(1)]
            ['argument', 'logistic', 'mul']
        """
        from funcnn.inspection.boxes import opened_box

        node = node if isinstance(node, Node) else self[node]
        self._expect_own("graph.open", node)
        with jax.enable_x64(True) if self._is_wide() else contextlib.nullcontext():
            return opened_box(node, [given.value for given in node.inputs], iteration)

    def fold(self, depth: int = 1) -> "Graph":
        """The same graph with one node for each layer; ``open`` takes such a node apart again.

        Args:
            depth: how many names of a path count: 1 for the outermost layers.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from funcnn import inspection, layers
            >>> model = layers.serial(layers.dense(2), layers.relu, layers.dense(1))
            >>> params, _ = model.init(jax.random.key(0), jnp.ones((4, 3)))
            >>> graph = inspection.graph(lambda p, x: model.apply(p, {}, x)[0].sum(), params, jnp.ones((4, 3)))
            >>> [node.label for node in graph.fold() if node.is_box]
            ['dense_0', 'relu_0', 'dense_1']
            >>> [node.operation for node in graph.fold().open("dense_1") if node.operation != "argument"]
            ['dot_general', 'reshape', 'add']
        """
        from funcnn.inspection.folds import folded

        depth = checks.expect_count("graph.fold", "depth", depth)
        program, found = folded(self.program, self.found, self.cotangents, depth)
        return made(program, found, self.cotangents)

    def _is_wide(self) -> bool:
        """Whether it was computed in 64 bits, which JAX may not be set to any more."""
        return any(a.dtype.name in _WIDE for node in self.nodes for a in jax.tree.leaves(node.value))

    def _expect_own(self, where: str, node: Node) -> None:
        if not (0 <= node.index < len(self.nodes) and self.nodes[node.index] is node):
            checks.fail(where, "a node of this graph", f"{node.label} of another one", "take it from this graph")

    def __repr__(self) -> str:
        return drawings.table(self)

    def to_dot(self) -> str:
        """The graph in the language of Graphviz."""
        return drawings.dot(self)

    def to_mermaid(self) -> str:
        """The graph as a flowchart of Mermaid, which Markdown pages draw."""
        return drawings.mermaid(self)

    def to_json(self) -> str:
        """Every node with its values as JSON; of arrays of more than 100 numbers shape and range alone."""
        return drawings.json_text(self)

    def to_svg(self) -> str:
        """A picture, for a file or a page; no other program is needed for it."""
        return pictures.svg(self)

    def _repr_svg_(self) -> str:
        return self.to_svg()


def made(program: Traced, found: Passed, cotangents: Sequence[Any] | None) -> Graph:
    """The graph of a program from what both passes gave."""
    texts = [(text, numbers) for text, numbers in program.names.items() if isinstance(text, str)]
    name_of = {number: text for text, numbers in reversed(texts) for number in numbers}
    nodes: list[Node] = []
    for number, slot in enumerate(program.slots):
        node = Node(
            index=number,
            name=name_of.get(number, ""),
            operation=slot.operation,
            value=found.values[number],
            gradient=found.gradients[number],
            inputs=tuple(nodes[i] for i in slot.inputs),
            sent=found.sent[number],
            path="/".join(slot.place.scopes),
            source=slot.place.source,
            slot=slot,
        )
        nodes.append(node)
    nothing = (None,) * len(program.outputs)
    outputs = tuple(nodes[i] for i in program.outputs)
    begun = nothing if cotangents is None else tuple(cotangents)
    return Graph(tuple(nodes), outputs, dict(program.names), begun, program, found)
