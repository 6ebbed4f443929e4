"""Looking at a network from outside: everything here is read off shapes and jaxprs, and knows no trainer."""

from funcnn.inspection.findings import NonFinite, Operand
from funcnn.inspection.nonfinite import first_nonfinite
from funcnn.inspection.summaries import Summary, SummaryRow, summary

__all__ = ["NonFinite", "Operand", "Summary", "SummaryRow", "first_nonfinite", "summary"]
