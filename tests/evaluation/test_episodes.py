from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rldistill.core.errors import SpecMismatchError
from rldistill.core.spec import EnvConfig
from rldistill.envs.make import make_env
from rldistill.envs.seeding import episode_seed
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import ComparedStep, PlayConfig, TeacherQuery, play
from rldistill.evaluation.evaluate import evaluate
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE


def test_the_same_policy_plays_the_same_episodes(teacher: NetworkPolicy) -> None:
    steps: list[ComparedStep] = []
    first = play(CARTPOLE, teacher, 20, PlayConfig(4), query=TeacherQuery(teacher, steps.append))
    again = play(CARTPOLE, teacher, 20, PlayConfig(4))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert sum(len(step.episode) for step in steps) == first.lengths.sum()
    assert all(torch.equal(step.student.params, step.teacher.params) for step in steps)
    assert first.returns.mean() > 3 * play(CARTPOLE, None, 20, PlayConfig(4)).returns.mean()
    np.testing.assert_array_equal(first.returns, first.lengths)  # CartPole pays 1 a step
    assert [len(actions) for actions in first.actions] == first.lengths.tolist()
    # sum_k 0.9^k over n steps
    short = play(CARTPOLE, teacher, 3, PlayConfig(4, gamma=0.9))
    np.testing.assert_allclose(short.discounted, (1 - 0.9**short.lengths) / 0.1)


def test_episodes_are_those_of_gymnasium_itself(teacher: NetworkPolicy) -> None:
    from rldistill.envs.seeding import episode_seed

    played = play(EnvConfig("CartPole-v1"), teacher, 3, PlayConfig(9))
    for episode in range(3):
        env = gymnasium.make("CartPole-v1")
        obs, _ = env.reset(seed=episode_seed(9, "evaluate", 0, 0, 0, episode))
        total, over = 0.0, False
        while not over:
            action = int(teacher(torch.from_numpy(obs)[None])[0].mode())
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        assert played.returns[episode] == total


def test_episodes_are_continued_from_a_number(teacher: NetworkPolicy) -> None:
    whole = play(CARTPOLE, teacher, 20, PlayConfig(4))
    begun = play(CARTPOLE, teacher, 12, PlayConfig(4))
    both = begun.followed_by(play(CARTPOLE, teacher, 8, PlayConfig(4, first=12)))
    np.testing.assert_array_equal(both.returns, whole.returns)
    np.testing.assert_array_equal(both.lengths, whole.lengths)
    assert [np.asarray(taken).tolist() for taken in both.actions] == [np.asarray(a).tolist() for a in whole.actions]
    assert both.distinct == 20


def test_actions_of_an_episode_replay_it(teacher: NetworkPolicy) -> None:
    pendulum = EnvConfig("Pendulum-v1", {"max_episode_steps": 30})
    torch.manual_seed(0)
    for env_config, policy in ((CARTPOLE, teacher), (pendulum, Linear().build(spec_from_env(pendulum)).eval())):
        played = play(env_config, policy, 5, PlayConfig(4, first=2))
        env = make_env(env_config)
        for number, actions in enumerate(played.actions):
            env.reset(seed=episode_seed(4, "evaluate", 0, 0, 0, number + 2))
            shaped = [action.reshape(env.action_space.shape) if action.shape else action for action in actions]
            rewards = [float(env.step(action)[1]) for action in shaped]
            assert sum(rewards) == pytest.approx(played.returns[number])
            assert len(actions) == played.lengths[number]


class Goal(gymnasium.Env[Any, Any]):
    """Three steps; it succeeds if the last action is 1, and says so, but for every other seed nothing."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, tells: str = "all") -> None:
        self.tells = tells

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left, self.told = 3, self.tells == "all" or (self.tells == "some" and (seed or 0) % 2 == 0)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        info = {"is_success": bool(action == 1) and self.left == 0} if self.told else {}
        return np.zeros(2, np.float32), float(action), self.left == 0, False, info


@pytest.mark.parametrize("tells", ["all", "some", "none"])
def test_success_is_reported_by_the_last_step(tells: str) -> None:
    gymnasium.register("Goal-v0", Goal)
    try:
        played = play(EnvConfig("Goal-v0", {"tells": tells}), None, 40)
    finally:
        del gymnasium.registry["Goal-v0"]
    last = np.array([taken[-1] for taken in played.actions], float)
    success = played.metric("is_success")
    told = ~np.isnan(success)
    assert {"all": told.all(), "some": 5 < told.sum() < 35, "none": not told.any()}[tells]
    np.testing.assert_array_equal(success[told], last[told])
    assert played.success_rate == (None if tells == "none" else pytest.approx(last[told].mean()))


def test_outputs_that_are_nan_are_refused() -> None:
    policy = Linear().build(spec_from_env(CARTPOLE)).eval()
    with torch.no_grad():
        policy.output.bias += torch.nan
    with pytest.raises(SpecMismatchError, match=r"^policy: its outputs are NaN in some states\. Check its weights"):
        play(CARTPOLE, policy, 1, PlayConfig())


def test_episodes_that_repeat_each_other_are_counted_once(teacher: NetworkPolicy) -> None:
    assert play(CARTPOLE, teacher, 12, PlayConfig(4)).distinct == 12
    still = EnvConfig(
        "ALE/Pong-v5", {"repeat_action_probability": 0.0, "noop_max": 1, "max_num_frames_per_episode": 80}
    )
    policy = Linear().build(spec_from_env(still)).eval()
    assert play(still, policy, 6).distinct == 1


def test_episodes_of_one_return_and_other_starts_are_distinct() -> None:
    class Alike(gymnasium.Env[Any, Any]):
        """Any start is left in two steps, with a reward of 1 each."""

        observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def __init__(self, places: int = 10**9) -> None:
            self.places = places

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.place, self.left = self.np_random.integers(self.places) / self.places, 2
            return np.full(2, self.place, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.left -= 1
            return np.full(2, self.place, np.float32), 1.0, self.left == 0, False, {}

    gymnasium.register("Alike-v0", Alike)
    try:
        policy = Linear().build(spec_from_env(EnvConfig("Alike-v0"))).eval()
        with torch.no_grad():
            policy.output.weight.zero_()
        assert play(EnvConfig("Alike-v0"), policy, 20, PlayConfig()).distinct == 20
        assert play(EnvConfig("Alike-v0", {"places": 3}), policy, 20, PlayConfig()).distinct == 3
    finally:
        del gymnasium.registry["Alike-v0"]


def test_environment_without_pictures_has_no_videos(tmp_path: Path) -> None:
    class Plain(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, **kwargs: Any) -> Any:
            super().reset(seed=kwargs.get("seed"))
            self.left = 3
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            self.left -= 1
            return np.zeros(2, np.float32), float(action), self.left == 0, False, {}

    gymnasium.register("Plain-v0", Plain)
    try:
        teacher = FunctionPolicy(lambda obs: 1, spec_from_env(EnvConfig("Plain-v0")))
        (tmp_path / "videos").mkdir()
        (tmp_path / "videos" / "of-before-best.mp4").touch()
        (tmp_path / "videos" / "of-before-worst-teacher.mp4").touch()
        with pytest.warns(UserWarning, match="no videos: Plain-v0"):
            evaluate(EnvConfig("Plain-v0"), {"teacher": teacher}, EvaluateConfig(episodes=2), tmp_path)
        assert (tmp_path / "evaluation.json").exists()
        assert not (tmp_path / "videos").exists()
    finally:
        del gymnasium.registry["Plain-v0"]


class Uneven(gymnasium.Env[Any, Any]):
    """Episodes of 2 or 41 steps, as their seed has it: the short ones are worth 100, the long ones 0."""

    observation_space = gymnasium.spaces.Box(0, 50, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.length = self.left = 2 if self.np_random.random() < 0.5 else 41
        return np.array([self.left], np.float32), {}

    def step(self, action: Any) -> Any:
        Uneven.steps += 1
        self.left -= 1
        return np.array([self.left], np.float32), 50.0 if self.length == 2 else 0.0, self.left == 0, False, {}


def test_short_episodes_are_not_favoured() -> None:
    """Thirty slots play sixty episodes: had the first sixty to end counted, short ones would be most of them."""
    gymnasium.register("Uneven-v0", Uneven)
    try:
        env = EnvConfig("Uneven-v0")
        policy = Linear().build(spec_from_env(env)).eval()
        play(env, policy, 1)  # looks first whether episodes depend on those before
        Uneven.steps = 0
        played = play(env, policy, 60, PlayConfig(3))
        assert Uneven.steps == played.lengths.sum()  # no slot plays on when there is no episode left for it
        alone = gymnasium.make("Uneven-v0")
        for number in range(60):
            obs, _ = alone.reset(seed=episode_seed(3, "evaluate", 0, 0, 0, number))
            assert played.lengths[number] == obs[0]
        assert set(played.lengths) == {2, 41}
        np.testing.assert_array_equal(played.returns, np.where(played.lengths == 2, 100.0, 0.0))
        assert [len(actions) for actions in played.actions] == played.lengths.tolist()
    finally:
        del gymnasium.registry["Uneven-v0"]


def test_a_slot_without_an_episode_left_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    short = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 80})
    policy = FunctionPolicy(lambda obs: int(obs.sum()) % 6, spec_from_env(short))
    played = []
    for slots in (2, 4):  # of each of two groups: of seven episodes, one slot has fewer than the others, or all one
        monkeypatch.setattr(import_module("rldistill.evaluation.episodes"), "MAX_EMULATORS", slots)
        played.append(play(short, policy, 7, PlayConfig(5)))
    np.testing.assert_array_equal(played[0].lengths, np.full(7, 20))
    np.testing.assert_array_equal(played[0].actions, played[1].actions)
    assert played[0].distinct == 7
