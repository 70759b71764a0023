"""Tests of DoubleDQN and its replay buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig
from rldistill.teachers.load import load_policy
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.dqn import DoubleDQN, PrioritizedReplay
from rldistill.teachers.training.train import train_teacher


def filled_buffer(steps: int = 20, **settings: Any) -> PrioritizedReplay:
    """Return the buffer of one environment whose n-th frame, action and reward are n."""
    buffer = PrioritizedReplay(
        steps, spaces.Box(0, 255, (2, 1, 1), np.uint8), spaces.Discrete(99), n_steps=2, gamma=0.5, **settings
    )
    for step in range(steps - 1):
        frame = np.full((1, 2, 1, 1), step, np.uint8)
        buffer.add(frame, frame, np.array([step]), np.array([step], np.float32), np.zeros(1, bool), [{}])
    return buffer


def test_n_step_returns_have_the_values_computed_by_hand() -> None:
    data = filled_buffer().transitions(np.array([4, 7]))
    assert data.obs[:, :, 0, 0].tolist() == [[3, 4], [6, 7]]
    assert data.next_obs[:, :, 0, 0].tolist() == [[5, 6], [8, 9]]
    assert data.reward.tolist() == [4 + 0.5 * 5, 7 + 0.5 * 8]
    assert data.discount.tolist() == [0.25, 0.25]


def test_transitions_are_sampled_by_priority_and_weighted_inversely() -> None:
    np.random.seed(0)
    buffer = filled_buffer(alpha=0.5, beta=0.5)
    buffer.priorities[:] = 0
    buffer.update_priorities(np.array([5, 8]), np.array([-0.999, 8.999], np.float32))  # sqrt(1) and sqrt(9)
    assert buffer.priorities[[5, 8]].tolist() == pytest.approx([1, 3])
    sampled, by_row = [], {}
    for _ in range(40):
        rows, weights = buffer.sample_rows(100)
        sampled.extend(rows)
        by_row |= dict(zip(rows.tolist(), weights.tolist(), strict=True))
    assert np.mean(np.array(sampled) == 8) == pytest.approx(0.75, abs=0.03)
    assert by_row == pytest.approx({5: 1, 8: 3**-0.5})


@pytest.mark.parametrize("steps", [7, 20])
def test_transitions_by_priority_are_whole(steps: int) -> None:
    buffer = filled_buffer(steps, alpha=0.5)
    for step in range(steps - 1, 2 * steps):  # the ring is full, and begins anew
        frame = np.full((1, 2, 1, 1), step, np.uint8)
        buffer.add(frame, frame, np.array([step]), np.array([step], np.float32), np.zeros(1, bool), [{}])
        data = buffer.transitions(buffer.sample_rows(50)[0])
        newest = data.obs[:, 1, 0, 0].long()
        assert torch.equal(data.obs[:, 0, 0, 0].long(), newest - 1)
        assert torch.equal(data.next_obs[:, :, 0, 0].long(), torch.stack([newest + 1, newest + 2], 1))


def test_weights_are_equal_without_priorities() -> None:
    assert set(filled_buffer().sample_rows(8)[1].tolist()) == {1}


def test_training_with_prioritized_frames(tmp_path: Path) -> None:
    pong = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 200, "noop_max": 1})
    settings: dict[str, Any] = {
        "buffer_size": 400, "learning_starts": 16, "batch_size": 4, "replay_buffer_kwargs": {"alpha": 0.5},
    }  # fmt: skip
    train_teacher(pong, TrainConfig("DoubleDQN", 60, 2, 60, 1, hyperparameters=settings), tmp_path)
    assert (tmp_path / "policy.json").exists()


def test_average_of_the_weights_has_the_value_computed_by_hand() -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", ema_decay=0.5, device="cpu")
    bias = list(model.q_net.parameters())[-1]
    for value in (0.0, 1.0, 3.0):
        bias.data.fill_(value)
        model._add_to_average()
    # decays min(0.5, n / (n + 10)) = 0, 1/11, 1/6: 0, then 10/11, then 1/6 * 10/11 + 5/6 * 3
    expected = 10 / 66 + 2.5
    with model.acting_on_average():
        assert bias.tolist() == pytest.approx([expected] * 2)
    assert bias.tolist() == [3.0, 3.0]


def test_average_of_the_weights_is_stored(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"learning_starts": 20, "ema_decay": 0.999, "learning_rate": 0.1}
    train_teacher(
        EnvConfig("CartPole-v1"), TrainConfig("DoubleDQN", 200, 4, 200, 1, hyperparameters=settings), tmp_path
    )
    last = DoubleDQN.load(tmp_path / "checkpoints" / "last.zip", device="cpu")
    best = DoubleDQN.load(tmp_path / "checkpoints" / "best.zip", device="cpu")
    stored = load_policy(tmp_path).output.bias
    torch.testing.assert_close(stored, list(best.q_net.parameters())[-1])
    assert not torch.equal(stored, list(last.q_net.parameters())[-1])
    with pytest.raises(ConfigError, match="Did you mean 'ema_decay'"):
        train_teacher(
            EnvConfig("CartPole-v1"), TrainConfig("DoubleDQN", hyperparameters={"averagedecay": 1}), tmp_path / "x"
        )


def test_training_continues_from_the_policy_alone(tmp_path: Path) -> None:
    cartpole = EnvConfig("CartPole-v1")
    settings = {"learning_starts": 20}
    first = train_teacher(cartpole, TrainConfig("DoubleDQN", 200, 4, 200, 1, hyperparameters=settings), tmp_path)
    model = DoubleDQN.load(tmp_path / "checkpoints" / "last.zip", device="cpu")
    obs = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(first(obs)[0].params, model.q_net(obs))
    (tmp_path / "checkpoints" / "last.zip").unlink()
    frozen = {**settings, "learning_rate": 0.0}
    config = TrainConfig("DoubleDQN", 240, 4, 240, 1, hyperparameters=frozen)
    train_teacher(cartpole, config, tmp_path, mode="resume")
    again = DoubleDQN.load(tmp_path / "checkpoints" / "last.zip", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(again.q_net(obs), first(obs)[0].params)


def test_training_on_frames_continues_from_the_policy_alone(tmp_path: Path) -> None:
    pong = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 200, "noop_max": 1})
    settings: dict[str, Any] = {"buffer_size": 400, "learning_starts": 16, "batch_size": 4}
    first = train_teacher(pong, TrainConfig("DoubleDQN", 40, 2, 40, 1, hyperparameters=settings), tmp_path)
    (tmp_path / "checkpoints" / "last.zip").unlink()
    frozen = TrainConfig("DoubleDQN", 80, 2, 80, 1, hyperparameters={**settings, "learning_rate": 0.0})
    train_teacher(pong, frozen, tmp_path, mode="resume")
    again = DoubleDQN.load(tmp_path / "checkpoints" / "last.zip", device="cpu")
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        q_values = again.q_net(obs)
        # float16 in the file
        torch.testing.assert_close(q_values, first(obs)[0].params, rtol=1e-2, atol=1e-3)


def test_terminal_on_reward_ends_returns_at_rewards() -> None:
    data = filled_buffer(terminal_on_reward=True).transitions(np.array([0, 4]))
    assert data.reward.tolist() == [0 + 0.5 * 1, 4]  # the reward of step n is n
    assert data.discount.tolist() == [0, 0]
    assert filled_buffer().transitions(np.array([4])).discount.tolist() == [0.25]


def test_each_environment_explores_independently() -> None:
    model = DoubleDQN("MlpPolicy", "CartPole-v1", device="cpu")
    model.exploration_rate = 0.5
    with torch.no_grad():  # the greedy action is 0, a random one is 1 every other time
        model.q_net.q_net[-1].bias.copy_(torch.tensor([1e3, 0.0]))
    np.random.seed(0)
    actions = np.array([model.predict(np.zeros((2, 4), np.float32))[0] for _ in range(4_000)])
    np.testing.assert_allclose(actions.mean(0), 0.25, atol=0.028)  # four standard errors
    assert np.mean(actions[:, 0] & actions[:, 1]) == pytest.approx(0.25**2, abs=0.016)
