"""Page of a comparison of teachers."""

from __future__ import annotations

from pathlib import Path

from rldistill.evaluation.compare_teachers import TeacherComparison
from rldistill.evaluation.tables import number_text
from rldistill.io.atomic import write_atomic
from rldistill.reporting.charts import NUM_COLORS, ReturnsRow, rows_chart, templates


def write_comparison(comparison: TeacherComparison, path: Path) -> None:
    """Write a comparison of teachers as one HTML file that opens offline."""
    returns = {
        name: ReturnsRow(score.returns, score.mean, score.ci95, f"c{number % NUM_COLORS}")
        for number, (name, score) in enumerate(comparison.teachers.items())
    }
    template = templates().get_template("teachers.html.jinja")
    page = template.render(comparison=comparison, rows=comparison.rows, returns=rows_chart(returns), number=number_text)
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
