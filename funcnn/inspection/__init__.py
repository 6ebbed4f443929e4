"""What is inside of a network and of a run: tables, causes, graphs, read off the program that JAX traces."""

from funcnn.inspection.findings import NonFinite, Operand
from funcnn.inspection.graphs import Graph, Node, Step
from funcnn.inspection.nonfinite import first_nonfinite
from funcnn.inspection.scalars import Value, backward, value
from funcnn.inspection.summaries import Summary, SummaryRow, summary
from funcnn.inspection.tracing import graph, name

__all__ = [
    "Graph",
    "Node",
    "NonFinite",
    "Operand",
    "Step",
    "Summary",
    "SummaryRow",
    "Value",
    "backward",
    "first_nonfinite",
    "graph",
    "name",
    "summary",
    "value",
]
