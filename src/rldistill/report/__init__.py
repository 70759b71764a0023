"""The report of a run."""

from rldistill.report.page import write_report
from rldistill.report.table import evaluation_table, robustness_table, verdict

__all__ = ["evaluation_table", "robustness_table", "verdict", "write_report"]
