"""Distillation of a teacher that takes the same action everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import NothingLearnedError
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.losses import ActionNLL
from rldistill.losses.objective import Term
from rldistill.students import AnyStudent, Mlp, Tree
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE


@pytest.mark.parametrize("student", [Mlp((4,)), Tree()], ids=["mlp", "tree"])
def test_constant_teacher_is_named(tmp_path: Path, student: AnyStudent) -> None:
    teacher = FunctionPolicy(lambda obs: 1, spec_from_env(CARTPOLE))
    data = collect(CARTPOLE, teacher, CollectConfig(steps=300), tmp_path / "dataset", progress=False)
    config = DistillConfig((Term(ActionNLL()),), epochs=1)
    with pytest.raises(NothingLearnedError, match="the teacher is constant: it takes the same action"):
        distill(data, student, config, tmp_path / "student", progress=False)
