"""What is inside of a network and of a run: tables, causes, graphs, read off the program that JAX traces."""

from funcnn.inspection.findings import NonFinite, Operand
from funcnn.inspection.graphs import Graph, Node, Step
from funcnn.inspection.looking import activations, gradients
from funcnn.inspection.nonfinite import first_nonfinite
from funcnn.inspection.outputs import Activations, Statistics
from funcnn.inspection.scalars import Value, backward, value
from funcnn.inspection.summaries import Summary, SummaryRow, summary
from funcnn.inspection.tracing import graph, name

__all__ = [
    "Activations",
    "Graph",
    "Node",
    "NonFinite",
    "Operand",
    "Statistics",
    "Step",
    "Summary",
    "SummaryRow",
    "Value",
    "activations",
    "backward",
    "first_nonfinite",
    "gradients",
    "graph",
    "name",
    "summary",
    "value",
]
