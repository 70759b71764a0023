"""One small run for each recipe, whose student must play far better than at random (a return of 22 on CartPole)."""

from __future__ import annotations

from pathlib import Path

import pytest

from rldistill import (
    Adversarial,
    BornAgain,
    Dagger,
    Finetune,
    FromScratch,
    JumpStart,
    Kickstart,
    Mutual,
    MutualPPO,
    Offline,
    OnPolicy,
    Ppd,
    QDagger,
    Reptile,
)
from rldistill.collection.config import CollectConfig
from rldistill.core.schedules import Constant
from rldistill.distillation.config import DistillConfig
from rldistill.evaluation.episodes import play
from rldistill.io.progress import SILENT
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes import RECIPES
from rldistill.recipes.from_reward import train_control
from rldistill.recipes.job import Recipe, Run, StudentJob
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.run.stages import run_collect, run_distill
from rldistill.students import Mlp
from rldistill.students.storage import load_native

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow

MIN_RETURN = 100.0
INSTANCES: list[Recipe] = [
    Offline(),
    Dagger(rounds=1, steps_per_round=500),
    OnPolicy(rounds=1, steps_per_round=500),
    BornAgain(),
    Mutual(),
    Reptile(iterations=300, inner_steps=4),
    Ppd(),
    Kickstart(),
    JumpStart(first_steps=50),
    Finetune(critic_warmup=1_024),
    QDagger(weight=Constant(1.0)),
    FromScratch(),
    Adversarial(pretrain=False),
    MutualPPO(),
]


def small_run(folder: Path, teacher: NetworkPolicy, recipe: Recipe) -> Run:
    return Run(
        name="learning",
        out=folder,
        env=CARTPOLE,
        teacher=teacher,
        recipe=recipe,
        collect=CollectConfig(steps=2_000, epsilon=0.2),
        distill=DistillConfig(epochs=25, batch_size=64, learning_rate=3e-3),
        ppo=PPOConfig(total_steps=16_384, num_envs=8, rollout_length=128, batch_size=256, learning_rate=1e-3),
        dqn=DQNConfig(total_steps=2_000, offline_steps=1_000, batch_size=64, learning_starts=500),
        students={"mlp": Mlp((32,))},
        verify=False,
    )


def mean_return(folder: Path) -> float:
    return float(play(CARTPOLE, load_native(folder), 20).returns.mean())


@pytest.mark.parametrize("recipe", INSTANCES, ids=lambda recipe: type(recipe).__name__)
def test_student_learns(tmp_path: Path, teacher: NetworkPolicy, recipe: Recipe) -> None:
    run = small_run(tmp_path, teacher, recipe)
    if recipe.needs_dataset:
        run_collect(run, quiet=True)
    run_distill(run, quiet=True)
    assert mean_return(tmp_path / "students" / "mlp" / "seed-0") > MIN_RETURN


def test_control_learns_from_reward_alone(tmp_path: Path, teacher: NetworkPolicy) -> None:
    job = StudentJob(small_run(tmp_path, teacher, Ppd()), teacher, None, "mlp", 0)
    train_control(job, 1_600, "new", SILENT)
    assert mean_return(tmp_path / "controls" / "mlp" / "seed-0") > MIN_RETURN


def test_every_recipe_is_tested() -> None:
    assert {type(recipe) for recipe in INSTANCES} == set(RECIPES.values())
