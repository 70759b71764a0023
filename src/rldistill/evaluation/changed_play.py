"""Results of play that differs from that of the test: perturbed environments, and mixed teams."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rldistill.evaluation.statistics import Estimate, Returns, estimate, mean, normalized_mean
from rldistill.evaluation.tables import Record, Rows, TableCell, figure, number_text


class PerturbedReturns(Record):
    """Returns of one policy under one perturbation; `lost` is the mean without it minus the mean with it."""

    mean: Estimate
    normalized: float | None
    lost: float

    @classmethod
    def of(cls, own: Returns, before: Returns, teacher: Returns, reference: Returns) -> PerturbedReturns:
        """Return the result for the returns `own` instead of those `before` the change."""
        score = float(normalized_mean(own, teacher, reference))
        normalized = None if math.isnan(score) else score
        return cls(mean=estimate(mean, own), normalized=normalized, lost=float(before.mean() - own.mean()))


class Robustness(Record):
    """Results by perturbation and policy, and the reason for each perturbation that was left out."""

    episodes: int
    perturbations: dict[str, dict[str, PerturbedReturns]]
    left_out: dict[str, str]


class Teams(Record):
    """Results of mixed teams by their composition and the student, and the agreement of each agent with its teacher."""

    episodes: int
    compositions: dict[str, dict[str, PerturbedReturns]]
    agreement: dict[str, dict[str, float]]


def perturbed_rows(column: str, results: Mapping[str, Mapping[str, PerturbedReturns]]) -> Rows:
    """Return a list of cells for each change: the mean return of each policy, and the loss under it."""
    return [
        [
            TableCell(column, name),
            *(figure(policy, row.mean.value, note=f"lost {number_text(row.lost)}") for policy, row in rows.items()),
        ]
        for name, rows in results.items()
    ]
