"""Candidates of a search: students of several families and sizes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.core.spec import PolicySpec
from rldistill.policies.cost import measure_cost
from rldistill.reporting.search_page import FinalistTest, Rung
from rldistill.search.config import Measure
from rldistill.students import AnyStudent, Linear, Mlp, Tree
from rldistill.students.budget import Family, fit_budget
from rldistill.students.features import Fourier, RandomConv
from rldistill.students.student import capability

CNN_BUDGETS = (3_000, 6_000, 10_000, 16_000, 25_000, 40_000, 62_000)
"""Parameters of the convolutional candidates."""
MLP_WIDTHS = (4, 8, 12, 16, 24, 32, 48, 64)
TREE_DEPTHS = (4, 6, 8, 10, 12)


@dataclass
class Candidate:
    """A student and its results in each rung that it reached."""

    name: str
    student: AnyStudent
    size: dict[str, float | None] = field(default_factory=dict)
    rungs: list[Rung] = field(default_factory=list)
    test: FinalistTest | None = None

    @property
    def score(self) -> float:
        """Latest normalized score; 0, as random play, if the student learned nothing."""
        score = self.rungs[-1].normalized if self.rungs else None
        return 0.0 if score is None else score.value

    def size_by(self, measure: Measure) -> float:
        """Return the size; infinity if it is unknown."""
        size = self.size.get(measure)
        return math.inf if size is None else size


def make_candidates(
    spec: PolicySpec, own: Mapping[str, AnyStudent], max_parameters: float | None
) -> dict[str, AnyStudent]:
    """Return the user's students, and students of all families with fewer than `max_parameters` (None: any number).

    For images: linear students on pixels and on random convolutions, and CNNs; multi_input for dicts with images. For
    vectors: linear students on the
    observation and on random Fourier features, trees, and MLPs of two layers. If a student of the user is recurrent,
    the task needs memory, so that only the user's students are tried.
    """
    if any(capability(student, "recurrent") for student in own.values()):
        return dict(own)
    students: dict[str, AnyStudent] = {"linear": Linear()}
    if len(spec.obs_shape) == 3 or spec.has_pictures:
        family: Family = "multi_input" if spec.has_pictures else "cnn"
        if not spec.has_pictures:
            students["linear-conv"] = Linear(RandomConv())
        for budget in CNN_BUDGETS:
            try:
                students[f"{family}-{budget // 1000}k"] = fit_budget(spec, family, parameters=budget)
            except ConfigError:  # no network is that small for images of this size
                continue
    else:
        students["linear-fourier"] = Linear(Fourier(256))
        students |= {f"tree-{depth}": Tree(depth) for depth in TREE_DEPTHS}
        students |= {f"mlp-{width}": Mlp((width, width)) for width in MLP_WIDTHS}
    limit, smaller = math.inf if max_parameters is None else max_parameters, {}
    for name, student in students.items():
        parameters = 0  # the size of a tree depends on the data
        if capability(student, "fit") != "tree":
            parameters = student.build(spec).num_parameters
        if parameters < limit and student not in own.values():
            smaller[name] = student
    return {**smaller, **own}


def policy_sizes(policy: Policy) -> dict[str, float | None]:
    """Return all sizes of a policy that a search can minimize."""
    cost = measure_cost(policy)
    latency = None if cost.latency_us is None else cost.latency_us["p50"]
    return {"parameters": cost.parameters, "bytes": cost.bytes, "macs": cost.macs, "latency": latency}
