"""Looking at a network from outside: everything here is read off shapes and jaxprs, and knows no trainer."""

from funcnn.inspection.summaries import Summary, SummaryRow, summary

__all__ = ["Summary", "SummaryRow", "summary"]
