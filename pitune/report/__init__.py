"""The report: one self-contained HTML file, and the tables behind it."""

from pitune.report.matrix import matrix_markdown
from pitune.report.page import build_page, write_report
from pitune.report.text import markdown

__all__ = ["build_page", "markdown", "matrix_markdown", "write_report"]
