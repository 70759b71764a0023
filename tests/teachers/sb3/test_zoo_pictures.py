"""Agents of pictures in folders of rl-baselines3-zoo: stacks, frames of Atari, channels last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from rldistill.core.errors import SpecMismatchError
from rldistill.core.spec import EnvConfig, FramePipeline
from rldistill.envs.make import make_env
from rldistill.envs.spaces import adapt_env, spec_from_env
from rldistill.evaluation.episodes import play
from rldistill.evaluation.verify import VerifyConfig, quick_check, verify
from rldistill.students.storage import save_policy
from rldistill.teachers.load import load_policy


def test_stacks_of_normalized_observations_equal_those_of_sb3(tmp_path: Path) -> None:
    vector = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    vector.reset()
    for _ in range(50):
        vector.step(np.array([vector.action_space.sample()]))
    vector.training = False
    stacked = VecFrameStack(vector, 3)
    model = PPO("MlpPolicy", stacked, seed=0)
    model.save(tmp_path / "agent.zip")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "config.yml").write_text("frame_stack: 3\nnormalize: true")
    vector.save(str(tmp_path / "agent" / "vecnormalize.pkl"))
    save_policy(load_policy(tmp_path / "agent.zip"), tmp_path / "ours", {})
    policy = load_policy(tmp_path / "ours")
    env = make_env(adapt_env(EnvConfig("CartPole-v1"), policy))
    stacked.seed(5)
    theirs, ours = stacked.reset(), env.reset(seed=5)[0]
    for step in range(6):
        with torch.no_grad():
            expected = model.policy.get_distribution(torch.from_numpy(theirs)).distribution.logits
            said = policy(torch.from_numpy(ours)[None])[0].params.log_softmax(-1)
        torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)
        theirs, ours = stacked.step(np.array([step % 2]))[0], env.step(step % 2)[0]


class Pictures(gymnasium.Env[Any, Any]):
    """Pictures with channels last, alone or in a dict."""

    def __init__(self, inside: bool = False, size: tuple[int, int] = (40, 44)) -> None:
        picture = spaces.Box(0, 255, (*size, 3), np.uint8)
        self.observation_space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "eye": picture}) if inside else picture
        self.action_space, self.time = spaces.Discrete(3), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.observation_space.sample(), 1.0, self.time > 5, False, {}


def test_images_of_the_size_of_atari_frames_need_not_be_of_atari(tmp_path: Path) -> None:
    gymnasium.register("Pictures-v0", Pictures)
    try:
        env = EnvConfig("Pictures-v0", {"size": (84, 84)})
        PPO("CnnPolicy", Pictures(size=(84, 84)), seed=0, n_steps=8).save(tmp_path / "agent.zip")
        policy = load_policy(tmp_path / "agent.zip")
        quick_check(policy, env, steps=8)
        assert play(adapt_env(env, policy), policy, 2).returns.tolist() == [6.0, 6.0]
    finally:
        gymnasium.registry.pop("Pictures-v0")


class Screens(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = spaces.Discrete(6)


@pytest.mark.parametrize(
    ("config", "skip"),
    [
        ("env_wrapper: [stable_baselines3.common.atari_wrappers.AtariWrapper]\nframe_stack: 4", 4),
        ("env_wrapper:\n- stable_baselines3.common.atari_wrappers.AtariWrapper: {frame_skip: 2}\nframe_stack: 4", 2),
        ("", None),
    ],
    ids=["zoo", "zoo with another skip", "bare"],
)
def test_frames_are_compared_if_a_folder_describes_them(config: str, skip: int | None, tmp_path: Path) -> None:
    PPO("CnnPolicy", Screens(), seed=0, n_steps=8).save(tmp_path / "agent.zip")
    if config:
        (tmp_path / "agent").mkdir()
        (tmp_path / "agent" / "config.yml").write_text(config)
    spec, pong = load_policy(tmp_path / "agent.zip").spec, spec_from_env(EnvConfig("ALE/Pong-v5"))
    assert spec.frames == (None if skip is None else FramePipeline(84, 84, 4, skip))
    if skip == 2:
        with pytest.raises(SpecMismatchError, match="skip of the frame pipeline is 2 for the teacher, 4 for"):
            spec.require_same_input(pong, "the teacher", "ALE/Pong-v5")
    else:
        spec.require_same_input(pong, "the teacher", "ALE/Pong-v5")


@pytest.mark.parametrize(
    ("settings", "sticky"), [("{frame_skip: 3}", 0.0), ("{action_repeat_probability: 0.25, frame_skip: 3}", 0.25)]
)
def test_atari_agent_plays_the_game_in_its_folder(settings: str, sticky: float, tmp_path: Path) -> None:
    PPO("CnnPolicy", Screens(), seed=0, n_steps=8).save(tmp_path / "agent.zip")
    bare = load_policy(tmp_path / "agent.zip")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "args.yml").write_text("env: PongNoFrameskip-v4")
    (tmp_path / "agent" / "config.yml").write_text(
        f"env_wrapper:\n- stable_baselines3.common.atari_wrappers.AtariWrapper: {settings}\nframe_stack: 4"
    )
    policy = load_policy(tmp_path / "agent.zip")
    env = adapt_env(EnvConfig("PongNoFrameskip-v4"), policy)
    assert (env.id, env.wrappers) == ("ALE/Pong-v5", ())
    assert env.kwargs.items() >= {"frameskip": 3, "stack_num": 4, "repeat_action_probability": sticky}.items()
    policy.spec.require_same_input(spec_from_env(env), "the teacher", env.id)
    assert adapt_env(EnvConfig("ALE/Pong-v5", {"frameskip": 3}), policy).id == "ALE/Pong-v5"
    found = verify(EnvConfig("PongNoFrameskip-v4"), bare, VerifyConfig(1))
    assert "ALE/Pong-v5 with repeat_action_probability=0" in found.suspicious[0]


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a dict"])
def test_images_with_channels_last_are_transposed(inside: bool, tmp_path: Path) -> None:
    gymnasium.register("Pictures-v0", Pictures)
    try:
        model = PPO("MultiInputPolicy" if inside else "CnnPolicy", Pictures(inside), seed=0)
        model.save(tmp_path / "agent.zip")
        ours = load_policy(tmp_path / "agent.zip")
        env = adapt_env(EnvConfig("Pictures-v0", {"inside": inside}), ours)
        assert [wrapper.name for wrapper in env.wrappers] == ["ChannelsFirst"]
        assert play(env, ours, 2).returns.tolist() == [6.0, 6.0]
        raw = Pictures(inside).observation_space.sample()
        turned = np.moveaxis(raw["eye"] if inside else raw, -1, 0).copy()
        shown = np.concatenate([raw["a"], turned.ravel().astype(np.float32)]) if inside else turned
        obs, _ = model.policy.obs_to_tensor(raw)
        with torch.no_grad():
            expected = model.policy.get_distribution(obs).distribution.logits
            said = ours(torch.from_numpy(shown)[None])[0].params.log_softmax(-1)
        torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)
    finally:
        gymnasium.registry.pop("Pictures-v0")
