"""Agents in real environments: the actions of the policy, as the environment expects them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import MASK
from rldistill.core.spec import EnvConfig
from rldistill.envs.make import make_env
from rldistill.envs.spaces import spec_from_env, spec_from_spaces
from rldistill.policies.agent import Agent
from rldistill.policies.ensemble import Ensemble
from rldistill.policies.network import NetworkPolicy
from rldistill.policies.wrappers import with_action_mask
from rldistill.students import Cnn, Gru, Linear, Mlp, Tree
from rldistill.teachers.load import load_policy

from ..conftest import CARTPOLE


class Robot(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Dict observations of an image, a vector and an integer; continuous actions."""

    observation_space = spaces.Dict(
        {
            "eye": spaces.Box(0, 255, (2, 5, 4), np.uint8),
            "arm": spaces.Box(-1, 1, (3,), np.float64),
            "mode": spaces.Discrete(4),
        }
    )
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize("student", [Linear(), Mlp((8,)), Gru(6, (5,)), Tree()], ids=["linear", "mlp", "gru", "tree"])
def test_an_agent_takes_the_actions_of_its_policy(student: Any) -> None:
    torch.manual_seed(1)
    policy = student.build(spec_from_env(CARTPOLE)).eval()
    agent, env = Agent(policy), gymnasium.make("CartPole-v1")
    for seed in range(2):
        agent.reset()
        state, ended = policy.initial_state(1), False
        obs, _ = env.reset(seed=seed)
        while not ended:
            with torch.no_grad():
                output, state = policy(torch.from_numpy(obs)[None], state)
            action = agent.act(obs)
            assert type(action) is int
            assert action == int(output.mode())
            obs, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated


def test_the_state_of_a_recurrent_policy_is_kept_and_reset() -> None:
    torch.manual_seed(0)
    policy = Gru(6, (5,)).build(spec_from_env(CARTPOLE)).eval()
    agent, obs = Agent(policy), torch.randn(4, 3, 4)
    state = policy.initial_state(3)
    with torch.no_grad():
        for step in range(4):
            if step == 2:
                agent.reset(done=[False, True, False])
                state = state.index_fill(0, torch.tensor([1]), 0.0)  # type: ignore[union-attr]
            output, state = policy(obs[step], state)
            np.testing.assert_array_equal(agent.act_batch(obs[step].numpy()), output.mode())
    with pytest.raises(SpecMismatchError, match=r"state of 3 episodes, found 1 .*reset\(\)"):
        agent.act(obs[0, 0].numpy())
    agent.reset()
    assert isinstance(agent.act(obs[0, 0].tolist()), int)
    with pytest.raises(ConfigError, match=r"recurrent.*Use Agent\(policy\)"):
        policy.act(obs[0, 0].numpy())


def test_dict_observations_are_taken_as_the_environment_returns_them() -> None:
    gymnasium.register("Robot-v0", Robot)
    try:
        config = EnvConfig("Robot-v0")
        policy = Mlp((8,)).build(spec_from_env(config)).eval()
        raw, flat = Robot(), make_env(config)
        obs, (vector, _) = raw.reset(seed=3)[0], flat.reset(seed=3)
    finally:
        gymnasium.registry.pop("Robot-v0")
    action = policy.act(obs)
    assert action.dtype == np.float32
    assert action.shape == (2,)
    raw.step(action)
    np.testing.assert_array_equal(policy.act(vector), action)
    batch = {key: np.stack([np.asarray(value)] * 3) for key, value in obs.items()}
    np.testing.assert_allclose(policy.act_batch(batch), np.stack([action] * 3), rtol=1e-5)
    with pytest.raises(SpecMismatchError, match="no entry 'arm'"):
        policy.act({key: value for key, value in obs.items() if key != "arm"})


@pytest.mark.parametrize("place", [3, -1])
def test_integers_beyond_their_space_are_refused(place: int) -> None:
    policy = Mlp((4,)).build(spec_from_spaces("Own-v0", spaces.MultiDiscrete([5, 3]), spaces.Discrete(2)))
    assert policy.act([4, 2]) in (0, 1)
    with pytest.raises(SpecMismatchError, match="act: the observation has integers beyond its space, which has 5, 3"):
        policy.act([4, place])


def test_a_mask_in_the_observation_excludes_illegal_actions() -> None:
    space = spaces.Dict({"obs": spaces.Box(0, 1, (2,)), MASK: spaces.MultiBinary(4)})
    spec = spec_from_spaces("masked", space, spaces.Discrete(4))
    blind = Mlp((4,)).build(spec.unmasked)
    for policy in (Mlp((4,)).build(spec), with_action_mask(blind, spec), with_action_mask(Ensemble((blind,)), spec)):
        agent = Agent(policy)
        for legal in range(4):
            mask = np.eye(4, dtype=np.int8)[legal]
            assert agent.act({"obs": [0.5, 0.1], MASK: mask}) == legal
        masks = np.eye(4, dtype=np.int8)
        assert Agent(policy).act_batch({"obs": np.zeros((4, 2)), MASK: masks}).tolist() == [0, 1, 2, 3]


def test_frames_of_pong_go_to_teachers_and_students() -> None:
    teacher = load_policy("zoo:pong-dqn")
    student = Cnn((4,), (8,), (4,), (16,)).build(teacher.spec).eval()
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 84, 84), dtype=np.uint8)
    for policy in (teacher, student):
        expected = policy(torch.from_numpy(frames))[0].mode()
        np.testing.assert_array_equal(Agent(policy).act_batch(frames), expected)
        assert Agent(policy).act(frames[0]) == expected[0]
    with pytest.raises(SpecMismatchError, match="has to be uint8"):
        student.act(frames[0] / 255)
    with pytest.raises(SpecMismatchError, match=r"shape \(84, 84, 4\), expected \(4, 84, 84\)"):
        student.act(np.moveaxis(frames[0], 0, -1))
    assert isinstance(teacher, NetworkPolicy)
    assert teacher.act(frames[1]) in range(6)


@pytest.mark.parametrize(
    ("space", "action_space", "obs"),
    [
        (spaces.Discrete(5), spaces.MultiDiscrete([3, 2]), 4),
        (spaces.Box(-1, 1, (3,), np.float64), spaces.MultiBinary(4), [0.1, 0.2, 0.3]),
        (spaces.MultiDiscrete([3, 2]), spaces.Box(-2, 2, (1,), np.float32), np.array([2, 1])),
    ],
    ids=["integer", "bits", "integers"],
)
def test_actions_are_elements_of_the_action_space(space: Any, action_space: Any, obs: Any) -> None:
    policy = Linear().build(spec_from_spaces("env", space, action_space))
    assert action_space.contains(policy.act(obs))
    assert policy.act_batch(np.stack([np.asarray(obs)] * 2)).shape == (2, *action_space.shape)
