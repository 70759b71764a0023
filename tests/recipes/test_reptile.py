"""Reptile: the outer step, exact resume, and few-step distillation from its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill import CollectConfig, Dagger, DistillConfig, EnvConfig, Mlp, Offline, Reptile, Tree
from rldistill.core.errors import ConfigError
from rldistill.core.schedules import Constant
from rldistill.distillation.gradient import Trainer
from rldistill.io.atomic import read_jsonl
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Recipe, Run, StudentJob
from rldistill.run.config import read_run
from rldistill.run.stages import run_collect, run_distill
from rldistill.students import Gru
from rldistill.students.storage import load_native

from ..conftest import Reports

ENV = EnvConfig("CartPole-v1", worlds={"length": (0.3, 1.0)})
STUDENT = Mlp((8,))


@pytest.fixture(scope="module")
def run(teacher: NetworkPolicy, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(
        env=ENV,
        teacher=teacher,
        out=tmp_path_factory.mktemp("reptile"),
        recipe=Reptile(iterations=6, inner_steps=3),
        collect=CollectConfig(steps=1_500, epsilon=0.3),
        distill=DistillConfig(epochs=2, batch_size=16, learning_rate=1e-2),
        students={"mlp": STUDENT},
        verify=False,
    )
    run_collect(run, quiet=True)
    return run


def weights(run: Run, name: str = "mlp") -> dict[str, torch.Tensor]:
    return load_native(run.out / "students" / name / "seed-0").state_dict()


def with_recipe(run: Run, recipe: Recipe, **changes: Any) -> Run:
    return dataclasses.replace(run, recipe=recipe, **changes)


def test_outer_step_is_a_share_of_the_way_to_the_adapted_weights(run: Run) -> None:
    """theta + epsilon (phi - theta) after one iteration, with phi from epsilon = 1 and theta from epsilon = 0."""
    found = {}
    for epsilon in (0.0, 0.25, 1.0):
        recipe = Reptile(iterations=1, inner_steps=3, epsilon=Constant(epsilon))
        run_distill(with_recipe(run, recipe), mode="overwrite", quiet=True)
        found[epsilon] = weights(run)
    for name, theta in found[0.0].items():
        torch.testing.assert_close(found[0.25][name], theta + 0.25 * (found[1.0][name] - theta))
    assert not torch.equal(found[0.0]["output.weight"], found[1.0]["output.weight"])
    expected = Trainer(run.read_dataset(), STUDENT, run.distill).policy.state_dict()
    torch.testing.assert_close(found[0.0], dict(expected))


def test_inner_steps_see_one_episode(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    outputs = Trainer.outputs

    def spy(self: Trainer, rows: np.ndarray, *arguments: Any) -> Iterator[Any]:
        seen.append(rows)
        return outputs(self, rows, *arguments)

    monkeypatch.setattr(Trainer, "outputs", spy)
    run_distill(run, mode="overwrite", quiet=True)
    data = run.read_dataset()
    episodes = [np.unique(data.columns["episode"][rows]) for rows in seen]
    assert {len(own) for own in episodes} == {1}
    assert len({int(own[0]) for own in episodes}) > 1
    assert not any(data.heldout[rows].any() for rows in seen)


@pytest.mark.parametrize("student", [STUDENT, Gru(size=4, hidden=(4,), window=4)], ids=["mlp", "gru"])
def test_resume_is_exact(run: Run, student: Mlp | Gru) -> None:
    class StoppedError(Exception):
        pass

    run = dataclasses.replace(run, students={"own": student})
    run_distill(run, mode="overwrite", quiet=True)
    whole = weights(run, "own")

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise StoppedError

    folder = run.out / "students" / "own" / "seed-0"
    job = StudentJob(run, run.teacher, run.read_dataset(), "own", 0)  # type: ignore[arg-type]
    with pytest.raises(StoppedError):
        run.recipe.distill(job, "overwrite", Reports(stop))
    assert not (folder / "policy.json").exists()
    run_distill(run, mode="resume", quiet=True)
    torch.testing.assert_close(weights(run, "own"), whole, rtol=0, atol=0)
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_result_is_the_initial_student_of_another_recipe(run: Run, tmp_path: Path) -> None:
    run_distill(run, mode="overwrite", quiet=True)
    initial = str(run.out / "students" / "mlp" / "seed-0")
    world = dataclasses.replace(ENV, worlds={"length": (1.2, 1.3)})
    for recipe in (Offline(initial=initial), Dagger(steps_per_round=100, initial=initial)):
        new = with_recipe(run, recipe, env=world, out=tmp_path / type(recipe).__name__)
        still = dataclasses.replace(new.distill, learning_rate=1e-9)
        run_collect(new, quiet=True)
        run_distill(dataclasses.replace(new, distill=still), quiet=True)
        torch.testing.assert_close(weights(new), weights(run), rtol=0, atol=1e-6)
    run_distill(with_recipe(run, Reptile(iterations=2)), mode="overwrite", quiet=True)
    with pytest.raises(ConfigError, match=r"recipe\.initial was NetworkPolicy"):
        run_distill(dataclasses.replace(new, distill=still), mode="resume", quiet=True)


def test_unsuitable_students_are_refused(run: Run, tmp_path: Path) -> None:
    teacher: Any = run.teacher
    changed = dataclasses.replace(run, students={"tree": Tree()})
    with pytest.raises(ConfigError, match=r"^students\.tree: reptile needs students that learn by gradient"):
        changed.recipe.check(changed, teacher)
    with pytest.raises(ConfigError, match=r"^recipe\.initial: nowhere: there is no student"):
        Offline(initial="nowhere").check(run, teacher)
    run_distill(run, mode="overwrite", quiet=True)
    own = str(run.out / "students" / "mlp" / "seed-0")
    with pytest.raises(ConfigError, match=r"is a student of this run"):
        Offline(initial=own).check(run, teacher)
    other = dataclasses.replace(run, students={"mlp": Mlp((4,))}, out=tmp_path)
    with pytest.raises(ConfigError, match=r"but the run has Mlp\(hidden=\[4\]\)"):
        Offline(initial=own).check(other, teacher)


def test_run_file_names_reptile() -> None:
    document = {"env": {"id": "CartPole-v1"}, "teacher": "zoo:x", "recipe": {"name": "reptile", "inner_steps": 4}}
    assert read_run(document).recipe == Reptile(inner_steps=4)
    with pytest.raises(ConfigError, match=r"recipe\.epsilon: expected numbers from 0 to 1"):
        read_run(document | {"recipe": {"name": "reptile", "epsilon": 2.0}})
