"""Files and outputs of teachers that look like a mistake: lost statistics, another environment, clipped actions."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.verify import VerifyConfig, quick_check, verify
from rldistill.students.storage import load_native, save_policy
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import SavedTeacher, load_policy, training_remarks

PENDULUM = EnvConfig("Pendulum-v1")
SPEC = spec_from_env(PENDULUM)


class Wide(gymnasium.Env[Any, Any]):
    """Environment with observations of float64 without bounds."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (3,), np.float64), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(3), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(3), 0.0, False, False, {}


@pytest.mark.parametrize("algorithm", [PPO, SAC])
@pytest.mark.parametrize("env", [lambda: gymnasium.make("Pendulum-v1"), Wide], ids=["bounded", "float64"])
@pytest.mark.parametrize("normalized", [True, False])
def test_lost_normalizer_is_suspicious(algorithm: Any, env: Any, normalized: bool, tmp_path: Path) -> None:
    vector: Any = DummyVecEnv([env] * 4)
    vector = VecNormalize(vector) if normalized else vector
    settings = {"n_steps": 16, "batch_size": 16} if algorithm is PPO else {"buffer_size": 100, "learning_starts": 200}
    model = algorithm("MlpPolicy", vector, seed=0, policy_kwargs={"net_arch": [4]}, **settings)
    model.learn(64).save(tmp_path / "agent.zip")
    remarks = training_remarks(str(tmp_path / "agent.zip"), PENDULUM)
    assert any("VecNormalize), whose statistics are lost" in remark for remark in remarks) == normalized
    if normalized:
        vector.save(tmp_path / "vecnormalize.pkl")
        assert training_remarks(str(tmp_path / "agent.zip"), PENDULUM) == []


@pytest.mark.parametrize("name", ["vecnormalize_final.pkl", "Pendulum_VecNormalize.pkl", "obs_normalizer.pkl"])
def test_normalizer_of_another_name_is_named(name: str, tmp_path: Path) -> None:
    PPO("MlpPolicy", "Pendulum-v1").save(tmp_path / "agent.zip")
    assert training_remarks(str(tmp_path / "agent.zip"), PENDULUM) == []
    (tmp_path / name).write_bytes(b"")
    (remark,) = training_remarks(str(tmp_path / "agent.zip"), PENDULUM)
    assert remark == f"{name} beside it was not read. If it is this agent's, name it vecnormalize.pkl; else move it"
    assert (
        remark
        in verify(
            PENDULUM, load_policy(tmp_path / "agent.zip"), VerifyConfig(1), name=str(tmp_path / "agent.zip")
        ).suspicious
    )


@pytest.mark.parametrize(
    ("trained_on", "env", "same"),
    [
        ("LunarLanderContinuous-v2", EnvConfig("LunarLander-v3", {"continuous": True}), True),
        ("LunarLanderContinuous-v2", EnvConfig("LunarLander-v3", {"continuous": True, "gravity": -9.0}), True),
        ("LunarLanderContinuous-v2", EnvConfig("LunarLander-v3"), False),
        ("LunarLander-v2", EnvConfig("LunarLanderContinuous-v3"), False),
        ("BipedalWalkerHardcore-v3", EnvConfig("BipedalWalker-v3", {"hardcore": True}), True),
        ("BipedalWalker-v3", EnvConfig("BipedalWalkerHardcore-v3"), False),
        ("FrozenLake8x8-v0", EnvConfig("FrozenLake-v1", {"map_name": "8x8"}), True),
        ("PongNoFrameskip-v4", EnvConfig("ALE/Pong-v5"), True),
        ("CartPole-v0", EnvConfig("CartPole-v1"), True),
        ("CartPole-v1", EnvConfig("Acrobot-v1"), False),
    ],
)
def test_ids_of_one_environment_are_no_other_environment(
    trained_on: str, env: EnvConfig, same: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "args.yml").write_text(f"!!python/object/apply:collections.OrderedDict\n- - - env\n    - {trained_on}\n")
    with zipfile.ZipFile(tmp_path / "agent.zip", "w"):
        pass
    remarks = [text for text in training_remarks(str(tmp_path / "agent.zip"), env) if "trained on" in text]
    assert remarks == ([] if same else [f"the args.yml beside it says that it was trained on {trained_on}"])


@pytest.mark.parametrize(
    ("field", "value"), [("epsilon", np.nan), ("epsilon", -1), ("clip_obs", np.nan), ("clip_obs", -1)]
)
def test_normalizer_with_impossible_numbers_is_refused(field: str, value: float, tmp_path: Path) -> None:
    vector = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    PPO("MlpPolicy", vector).save(tmp_path / "agent.zip")
    setattr(vector, field, np.float64(value))
    vector.save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(CorruptArtifactError, match=r"vecnormalize\.pkl: not a whole VecNormalize file .*above 0"):
        load_policy(tmp_path / "agent.zip")


class Far(nn.Module):
    """Network of means that are beyond the bounds where the first number is positive."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return 50 * obs[:, 1:2]


def far() -> nn.Module:
    return Far()


def test_actions_beyond_their_bounds_are_a_remark() -> None:
    policy = load_policy(f"{__name__}:far", spec=SPEC)
    problems, (remark,) = quick_check(policy, PENDULUM)
    assert problems == []
    assert remark.startswith(("9", "8"))
    assert "of its actions are beyond their bounds and clipped, by up to 4" in remark
    assert remark.endswith("where the bounds are -2 and 2. If tanh belongs after them, set squash=tanh")
    found = verify(PENDULUM, policy, VerifyConfig(2))
    assert found.remarks == [remark]
    assert "squash=tanh" in " ".join(str(found).split())


def test_squashed_actions_are_never_beyond_their_bounds(tmp_path: Path) -> None:
    obs = torch.randn(9, 3)
    policy = SavedTeacher(f"{__name__}:far", squash="tanh").load(SPEC)
    torch.testing.assert_close(policy(obs)[0].mode(), 2 * (50 * obs[:, 1:2]).tanh())
    assert quick_check(policy, PENDULUM).remarks == []
    assert fingerprint(policy) != fingerprint(SavedTeacher(f"{__name__}:far").load(SPEC))
    model = PPO("MlpPolicy", "Pendulum-v1")
    model.save(tmp_path / "agent.zip")
    plain, policy = (load_policy(tmp_path / "agent.zip", squash=squash) for squash in (None, "tanh"))
    torch.testing.assert_close(policy(obs)[0].mode(), 2 * plain(obs)[0].params[:, :1].tanh())
    save_policy(policy, tmp_path / "saved", {})  # type: ignore[arg-type]
    assert torch.equal(load_native(tmp_path / "saved")(obs)[0].mode(), policy(obs)[0].mode())


def test_squash_is_refused_where_it_has_no_meaning(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "agent.zip")
    with pytest.raises(
        ConfigError, match=r"^teacher\.squash: .*agent\.zip has discrete actions\. Remove the option\.$"
    ):
        load_policy(tmp_path / "agent.zip", squash="tanh")
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "agent.zip")
    with pytest.raises(ConfigError, match=r"^teacher\.squash: .*squashes its actions itself"):
        load_policy(tmp_path / "agent.zip", squash="tanh")


def test_teacher_that_is_no_better_than_random_play_is_not_verified() -> None:
    policy = load_policy(f"{__name__}:far", spec=SPEC)
    found = verify(PENDULUM, policy, VerifyConfig(4))
    assert found.random is not None
    assert not found.ok
    assert any(text.startswith("not better than random play (") for text in found.suspicious)
