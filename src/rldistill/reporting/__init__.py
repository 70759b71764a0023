"""Report of a run: pages, tables and model cards."""

from rldistill.reporting.page import write_report, write_tasks_report

__all__ = ["write_report", "write_tasks_report"]
