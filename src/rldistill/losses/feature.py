"""Losses on the teacher's last hidden layer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from rldistill.core.errors import SpecMismatchError
from rldistill.core.fields import validated_dataclass
from rldistill.core.policy import Labels, PolicyOutput


@validated_dataclass
class FeatureMSE:
    """mean_f (W h_student(s) + b - h_teacher(s))^2, h the last hidden layer.

    W and b are trained with the student and not saved. This loss trains no policy: combine it with another. The dataset
    must contain the teacher's features (`collect.features`). Parisotto 2016 (Actor-Mimic), arXiv 1511.06342, eq. 4.
    """

    student_head: ClassVar[str] = "features"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss, `[...]`."""
        target = labels.teacher.features
        if target is None:
            raise SpecMismatchError(
                "FeatureMSE: the dataset has no features of the teacher. Collect it with collect.features=true."
            )
        if student.features is None or student.features.shape != target.shape:
            found = None if student.features is None else tuple(student.features.shape)
            raise SpecMismatchError(f"FeatureMSE: the student has features {found}, the teacher {tuple(target.shape)}")
        return ((student.features - target.detach()) ** 2).mean(-1)
