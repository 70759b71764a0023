"""Page of a comparison of teachers."""

from __future__ import annotations

from pathlib import Path

from rldistill.evaluation.compare_teachers import TeacherComparison
from rldistill.evaluation.tables import number_text
from rldistill.reporting.charts import NUM_COLORS, ReturnsRow, rows_chart, write_page


def write_comparison(comparison: TeacherComparison, path: Path) -> None:
    """Write a comparison of teachers as one HTML file that opens offline."""
    returns = {
        name: ReturnsRow(score.returns, score.mean, score.ci95, f"c{number % NUM_COLORS}")
        for number, (name, score) in enumerate(comparison.teachers.items())
    }
    values = {"comparison": comparison, "rows": comparison.rows, "returns": rows_chart(returns), "number": number_text}
    write_page(path, "teachers.html.jinja", **values)
