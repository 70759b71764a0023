"""Losses on what the teacher's last hidden layer holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rldistill.core.batch import Labels
from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import PolicyOutput


@dataclass(frozen=True)
class FeatureMSE:
    """mean_f (W h_student(s) + b - h_teacher(s))^2, h the last hidden layer.

    W and b are learned with the student and then thrown away. It trains no policy by itself: take another loss with it.
    The dataset has to hold the teacher's features (`collect.features`). Parisotto 2016 (Actor-Mimic), arXiv
    1511.06342, equation 4.
    """

    student_head: ClassVar[str] = "features"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """`[...]`, unreduced."""
        target = labels.teacher.features
        if target is None:
            raise SpecMismatchError(
                "FeatureMSE needs the teacher's features, and the dataset has none: collect.features"
            )
        if student.features is None or student.features.shape != target.shape:
            found = None if student.features is None else tuple(student.features.shape)
            raise SpecMismatchError(f"FeatureMSE compares features of {tuple(target.shape)} with {found}")
        return ((student.features - target.detach()) ** 2).mean(-1)
