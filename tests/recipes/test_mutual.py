"""The recipes `mutual` and `mutual_ppo`: their runs, resume, and refusals before the first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from rldistill import (
    CollectConfig,
    ConfigError,
    DistillConfig,
    EnvConfig,
    Gru,
    Linear,
    Mlp,
    Mutual,
    MutualPPO,
    PPOConfig,
    Ridge,
    Run,
    Tree,
    distill,
    read_run,
    run_collect,
    run_distill,
    run_evaluate,
    spec_from_env,
)
from rldistill.core.errors import RLDistillError
from rldistill.core.heads import HeadKind
from rldistill.core.schedules import Linear as LinearSchedule
from rldistill.distillation.mutual import Peers
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.results import Evaluation
from rldistill.io.atomic import read_jsonl
from rldistill.io.progress import SILENT
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Recipe, StudentJob
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native

from ..conftest import CARTPOLE

STUDENT = Mlp((8,))
SHORT = PPOConfig(total_steps=512, num_envs=2, rollout_length=64, epochs=1, eval_every=256, eval_episodes=2)


def small_run(out: Path, teacher: NetworkPolicy, recipe: Recipe, student: AnyStudent = STUDENT) -> Run:
    return Run(
        env=CARTPOLE,
        teacher=teacher,
        out=out,
        recipe=recipe,
        collect=CollectConfig(steps=600, epsilon=0.3),
        distill=DistillConfig(epochs=3, batch_size=64, learning_rate=1e-2),
        ppo=SHORT,
        students={"own": student},
        evaluate=EvaluateConfig(episodes=4, videos=False),
        verify=False,
    )


def test_run_from_a_dataset_fits_the_student_with_its_peers(teacher: NetworkPolicy, tmp_path: Path) -> None:
    recipe = Mutual(peers=2, peer=Linear(), weight=LinearSchedule(2.0, 0.0))
    run = small_run(tmp_path / "run", teacher, recipe)
    run_collect(run, quiet=True)
    run_distill(run, quiet=True)
    folder = run.out / "students" / "own" / "seed-0"
    peers = Peers((Linear(), Linear()), LinearSchedule(2.0, 0.0))
    expected = distill(run.read_dataset(), STUDENT, run.distill, tmp_path / "expected", progress=False, peers=peers)
    torch.testing.assert_close(load_native(folder).state_dict(), expected.state_dict(), rtol=0, atol=0)
    run_distill(run, mode="resume", quiet=True)
    with pytest.raises(ConfigError, match=r"recipe\.peers was 2, now it is 3"):
        run_distill(dataclasses.replace(run, recipe=dataclasses.replace(recipe, peers=3)), mode="resume", quiet=True)


def test_run_from_reward_needs_no_dataset_and_counts_the_steps_of_all(teacher: NetworkPolicy, tmp_path: Path) -> None:
    run = small_run(tmp_path, teacher, MutualPPO(peers=3))
    run_distill(run, quiet=True)
    folder = run.out / "students" / "own" / "seed-0"
    assert sorted(path.name for path in (folder / "peers").iterdir()) == ["0", "1", "2", "3"]
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == [512]
    evaluation = run_evaluate(run, quiet=True)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.policies["own"].env_steps == 512
    assert not run.dataset_folder.exists()
    job = StudentJob(run, teacher, None, "own", 0)
    torch.testing.assert_close(run.recipe.distill(job, "resume", SILENT).state_dict(), load_native(folder).state_dict())


@pytest.mark.parametrize("kind", ["deterministic", "gaussian", "squashed_gaussian"])
@pytest.mark.parametrize("recipe", [Mutual(), MutualPPO(peer=Mlp((16,)))], ids=["mutual", "mutual_ppo"])
def test_continuous_actions(recipe: Recipe, kind: HeadKind, tmp_path: Path) -> None:
    env = EnvConfig("Pendulum-v1")
    spec = spec_from_env(env)
    torch.manual_seed(0)
    teacher = Mlp((8,)).build(dataclasses.replace(spec, head=spec.head.as_kind(kind))).eval()
    run = dataclasses.replace(small_run(tmp_path, teacher, recipe), env=env)
    if recipe.needs_dataset:
        run_collect(run, quiet=True)
    run_distill(run, quiet=True)
    expected = "gaussian" if kind == "deterministic" and not recipe.needs_dataset else kind
    policy = load_native(tmp_path / "students" / "own" / "seed-0")
    assert policy.spec.head.kind == expected
    row = read_jsonl(tmp_path / "students" / "own" / "seed-0" / "metrics.jsonl")[-1]
    assert row["heldout_loss" if recipe.needs_dataset else "distillation_loss"] >= 0


REFUSED: list[tuple[Recipe, AnyStudent, str]] = [
    (Mutual(), Tree(), r"^students: a tree does not learn by gradient"),
    (Mutual(peer=Ridge()), STUDENT, r"^recipe\.peer: a ridge does not learn by gradient"),
    (Mutual(peer=Gru()), STUDENT, r"^recipe\.peer: a recurrent student"),
    (MutualPPO(), Tree(), r"^students: a tree does not learn by gradient"),
    (MutualPPO(peer=Ridge()), STUDENT, r"^recipe\.peer: a ridge does not learn by gradient"),
    (MutualPPO(), Gru(), r"^students: recurrent students do not learn from peers"),
    (MutualPPO(peer=Gru()), STUDENT, r"^recipe\.peer: recurrent students do not learn from peers"),
    (MutualPPO(peer=STUDENT), Gru(), r"^students: recurrent students do not learn from peers"),
]


@pytest.mark.parametrize(("recipe", "student", "problem"), REFUSED)
def test_unsuitable_students_are_refused_before_the_first_step(
    recipe: Recipe, student: AnyStudent, problem: str, teacher: NetworkPolicy, tmp_path: Path
) -> None:
    run = small_run(tmp_path / "run", teacher, recipe, student)
    first_stage = run_collect if recipe.needs_dataset else run_distill
    with pytest.raises(RLDistillError, match=problem):
        first_stage(run, quiet=True)
    assert not (run.out / "dataset").exists()
    assert not (run.out / "students" / "own" / "seed-0" / "policy.json").exists()


DOCUMENT: dict[str, Any] = {"env": {"id": "CartPole-v1"}, "teacher": "zoo:x"}
MISTAKES = [
    ({"name": "mutual", "peers": 0}, r"recipe\.peers: found 0, expected at least 1"),
    ({"name": "mutual_ppo", "peers": 10**9}, r"recipe\.peers: found 1000000000, expected at most 64"),
    ({"name": "mutual", "weight": 0}, r"recipe\.weight: expected more than 0"),
    ({"name": "mutual_ppo", "weight": -1}, r"recipe\.weight: expected at least 0"),
    ({"name": "mutual_ppo", "alpha": -0.5}, r"recipe\.alpha: found -0.5, expected at least 0"),
    ({"name": "mutual", "peer": "other"}, r"recipe\.peer\.type: there is no 'other'"),
    ({"name": "mutual", "peer": {"type": "linear", "features": "teacher"}}, r"recipe\.peer: it cannot take features"),
    ({"name": "mutual", "alpha": 1}, r"recipe\.alpha: unknown key"),
]


@pytest.mark.parametrize(("recipe", "problem"), MISTAKES)
def test_mistakes_in_run_files(recipe: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_run(DOCUMENT | {"recipe": recipe})


def test_run_file_names_both_recipes() -> None:
    recipe = {"name": "mutual", "peers": 2, "peer": {"type": "mlp", "hidden": [8]}}
    assert read_run(DOCUMENT | {"recipe": recipe}).recipe == Mutual(peers=2, peer=Mlp((8,)))
    assert read_run(DOCUMENT | {"recipe": "mutual_ppo"}).recipe == MutualPPO()
