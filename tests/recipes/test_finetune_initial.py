"""`finetune` that learns on from a student that exists."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from rldistill.core.errors import ConfigError, RLDistillError
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.from_reward import Finetune
from rldistill.recipes.job import Run
from rldistill.rl.config import PPOConfig
from rldistill.run.config import read_run
from rldistill.run.stages import run_distill
from rldistill.students import Mlp
from rldistill.students.storage import load_native, save_policy

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow
STUDENT = Mlp((8,))


def student(seed: int = 0, config: Mlp = STUDENT) -> NetworkPolicy:
    torch.manual_seed(seed)
    return config.build(spec_from_env(CARTPOLE)).eval()


def make_run(folder: Path, teacher: NetworkPolicy, critic_warmup: int = 128) -> Run:
    return Run(
        env=CARTPOLE,
        teacher=teacher,
        out=folder / "run",
        recipe=Finetune(critic_warmup=critic_warmup, initial=str(folder / "initial")),
        ppo=PPOConfig(total_steps=256, num_envs=2, rollout_length=64, batch_size=64, eval_episodes=1),
        students={"mlp": STUDENT},
        verify=False,
    )


def test_student_learns_on_without_a_dataset(teacher: NetworkPolicy, tmp_path: Path) -> None:
    """While only the critic learns, the student stays that of `initial`."""
    first = student()
    save_policy(first, tmp_path / "initial", {})
    run = make_run(tmp_path, teacher, critic_warmup=255)
    assert not run.recipe.needs_dataset
    run_distill(run, quiet=True)
    result = run.out / "students" / "mlp" / "seed-0"
    assert not (run.out / "dataset").exists()
    assert [path.name for path in result.parent.iterdir()] == ["seed-0"]
    torch.testing.assert_close(load_native(result).output.weight, first.output.weight)
    run_distill(run, mode="resume", quiet=True)
    save_policy(student(1), tmp_path / "initial", {})
    with pytest.raises(ConfigError, match=r"recipe\.initial was NetworkPolicy .*--overwrite"):
        run_distill(run, mode="resume", quiet=True)


def test_unsuitable_student_is_refused_before_any_step(teacher: NetworkPolicy, tmp_path: Path) -> None:
    run = make_run(tmp_path, teacher)
    assert isinstance(run.recipe, Finetune)
    with pytest.raises(ConfigError, match=r"recipe\.initial: .*initial: there is no student"):
        run.recipe.check(run, teacher)
    save_policy(student(config=Mlp((4,))), tmp_path / "initial", {})
    with pytest.raises(ConfigError, match=r"initial is Mlp\(hidden=\[4\]\), but the run has Mlp\(hidden=\[8\]\)"):
        run.recipe.check(run, teacher)
    save_policy(STUDENT.build(teacher.spec).eval(), tmp_path / "initial", {})
    with pytest.raises(ConfigError, match="has a q_values head, expected the categorical head"):
        run.recipe.check(run, teacher)
    spec = dataclasses.replace(spec_from_env(CARTPOLE), obs_shape=(5,))
    save_policy(STUDENT.build(spec).eval(), tmp_path / "initial", {})
    with pytest.raises(RLDistillError, match="initial"):
        run.recipe.check(run, teacher)


def test_run_file_names_the_student(tmp_path: Path) -> None:
    recipe = {"name": "finetune", "initial": "runs/x/students/mlp/seed-0"}
    document = {"env": {"id": "CartPole-v1"}, "teacher": "zoo:x", "recipe": recipe}
    assert read_run(document).recipe == Finetune(initial="runs/x/students/mlp/seed-0")
