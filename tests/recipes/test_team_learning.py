"""Teams that learn from reward: agents act on their own observations, and the critic observes all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rldistill.core.errors import ConfigError
from rldistill.core.policy import CPU
from rldistill.core.schedules import Constant
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.check_env import check_env
from rldistill.evaluation.episodes import play
from rldistill.recipes.from_reward import Finetune
from rldistill.recipes.job import Run
from rldistill.rl.config import PPOConfig
from rldistill.rl.ppo import PPOLearner
from rldistill.rl.train_state import LearningTask
from rldistill.run.stages import run_distill
from rldistill.students import AnyStudent, Gru, Linear, Mlp, Team, Tree
from rldistill.students.storage import load_native, save_policy
from rldistill.students.team import TeamPolicy

from ..students.test_team import ENV, LEAVING, Planner

PPO = PPOConfig(
    total_steps=1_600, num_envs=4, rollout_length=50, batch_size=100, epochs=5, learning_rate=2e-2, gamma=0.0,
    eval_every=800, eval_episodes=10,
)  # fmt: skip
STUDENTS: dict[str, tuple[EnvConfig, Team]] = {
    "mlp": (ENV, Team(student=Mlp((8,)))),
    "identity": (ENV, Team(student=Linear(), identity=True)),
    "separate": (ENV, Team(student=Mlp((8,)), sharing="none")),
    "leaving": (LEAVING, Team(student=Mlp((8,)))),
    "gru": (ENV, Team(student=Gru(size=6, hidden=(8,), window=8))),
}


def make_run(env: EnvConfig, student: AnyStudent, folder: Path) -> Run:
    recipe = Finetune(weight=Constant(0.0), critic_warmup=200, initial=str(folder / "initial"))
    students, out = {"team": student}, folder / "run"
    return Run(env=env, teacher=Planner(env), out=out, recipe=recipe, ppo=PPO, students=students, verify=False)


@pytest.mark.parametrize("state", [False, True])
def test_critic_observes_all_agents_and_the_state(state: bool, tmp_path: Path) -> None:
    env = replace(ENV, kwargs={"state": state})
    task, config = LearningTask(env, Team(student=Mlp((4,))), tmp_path), replace(PPO, num_envs=2)
    with task.open(config, CPU) as worker:
        learner = PPOLearner(task, config, worker, None)
        obs = torch.rand(6, 7 + 3 * state, requires_grad=True)
        learner.critic(obs)[0].params.sum().backward()
        assert obs.grad is not None
        assert bool((obs.grad != 0).any(0).all())
        policy = learner.policy
        assert isinstance(policy, TeamPolicy)
        assert [policy.member(name).spec.obs_shape for name in ("near", "far")] == [(2,), (3,)]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_new_team_learns_on_from_reward(name: str, tmp_path: Path) -> None:
    env, student = STUDENTS[name]
    torch.manual_seed(0)
    first = student.build(spec_from_env(env))
    assert isinstance(first, TeamPolicy)
    members = [first.member(network) for network in first.groups]
    first = student.assembled(first.spec, members)  # as a distilled team is stored, with its members
    save_policy(first, tmp_path / "initial", {})
    run = make_run(env, student, tmp_path)
    run_distill(run, quiet=True)
    policy = load_native(run.out / "students" / "team" / "seed-0")
    before, after = (play(env, policy, 20).returns.mean() for policy in (first.eval(), policy))
    assert after > before + 2  # random play gets 4.4 of 10


def test_members_that_do_not_learn_by_gradient_are_named(tmp_path: Path) -> None:
    run = make_run(ENV, Team(student=Tree(max_depth=3)), tmp_path)
    with pytest.raises(ConfigError, match=r"^students: a tree student does not learn by gradient"):
        run.recipe.check(run, run.teacher)  # type: ignore[arg-type]


def test_team_of_other_settings_is_no_start(tmp_path: Path) -> None:
    team = Team(student=Mlp((4,))).build(spec_from_env(ENV))
    save_policy(team, tmp_path / "initial", {})
    run = make_run(ENV, Team(student=Mlp((8,))), tmp_path)
    with pytest.raises(ConfigError, match=r"recipe\.initial: .* but the run has Team"):
        run.recipe.check(run, run.teacher)  # type: ignore[arg-type]


def test_entry_of_agents_that_are_there_is_no_mask() -> None:
    assert not [finding for finding in check_env(LEAVING).findings if "mask" in finding.subject]
