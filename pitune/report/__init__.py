"""The report: one self-contained HTML file, and the tables behind it."""

from pitune.report.page import build_page, write_report
from pitune.report.tables import markdown

__all__ = ["build_page", "markdown", "write_report"]
