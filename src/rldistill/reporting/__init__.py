"""The report of a run."""

from rldistill.reporting.page import write_report
from rldistill.reporting.tables import evaluation_table, robustness_table, verdict

__all__ = ["evaluation_table", "robustness_table", "verdict", "write_report"]
