"""Tests of the replay buffer of DQN."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import FramePipeline, PolicySpec
from rldistill.data.replay import ReplayBuffer, TransitionBatch

SPEC = PolicySpec((1,), "float32", CategoricalHead((2,)))


def fill(replay: ReplayBuffer, steps: int, ends: dict[int, str]) -> None:
    """Add steps with the observations t and 100 + t and the reward t + 1; episodes end at the steps `ends`."""
    age = 0
    for step in range(steps):
        end = ends.get(step, "")
        last_obs = {slot: np.array([1000.0 + step + 100 * slot], np.float32) for slot in range(2) if end == "truncated"}
        replay.add(
            np.array([[step], [100 + step]], np.float32),
            last_obs,
            action=np.array([step % 2, 0]),
            reward=np.full(2, step + 1.0),
            terminated=np.full(2, end == "terminated"),
            truncated=np.full(2, end == "truncated"),
            age=np.full(2, age),
        )
        age = 0 if end else age + 1


def test_n_step_returns_have_the_values_computed_by_hand() -> None:
    replay = ReplayBuffer(SPEC, 20, 2, n_steps=3, gamma=0.5)
    fill(replay, 14, {8: "terminated", 11: "truncated"})
    batch = replay.sample(500, np.random.default_rng(0))
    assert set(batch.obs.flatten().int().tolist()) == {*range(4, 11), *range(104, 111)}  # 10 steps of 14, less 3
    for obs, reward, following, discount in zip(
        batch.obs.flatten(), batch.reward, batch.next_obs.flatten(), batch.discount, strict=True
    ):
        step, slot = int(obs) % 100, int(obs) // 100
        r = step + 1.0
        if step in (6, 7, 8):  # the episode terminates within the window: at its third, second or first step
            expected = {6: r + (r + 1) / 2 + (r + 2) / 4, 7: r + (r + 1) / 2, 8: r}[step]
            assert (float(reward), float(discount)) == (pytest.approx(expected), 0.0)
        elif step in (9, 10):  # it is cut at step 11, whose last observation is 1011
            expected = {9: r + (r + 1) / 2 + (r + 2) / 4, 10: r + (r + 1) / 2}[step]
            assert float(reward) == pytest.approx(expected)
            assert (float(following), float(discount)) == (1011 + 100 * slot, {9: 0.125, 10: 0.25}[step])
        else:
            assert float(reward) == pytest.approx(r + (r + 1) / 2 + (r + 2) / 4)
            assert (float(following), float(discount)) == (float(obs) + 3, 0.125)


def test_transitions_do_not_cross_a_dropped_episode() -> None:
    replay = ReplayBuffer(SPEC, 20, 2)
    for steps, ends in ((13, {7: "terminated"}), (4, {})):  # the ring is full, then other episodes begin
        fill(replay, steps, ends)
        replay.truncate()
    assert len(replay) == 20
    replay.add(
        np.full((2, 1), 500.0, np.float32), {}, action=np.zeros(2, int), reward=np.ones(2),
        terminated=np.zeros(2, bool), truncated=np.zeros(2, bool), age=np.zeros(2, int),
    )  # fmt: skip
    batch = replay.sample(2_000, np.random.default_rng(0))
    pairs = {(int(a), int(b)) for a, b in zip(batch.obs.flatten() % 100, batch.next_obs.flatten() % 100, strict=True)}
    # Steps 6 to 11 of the first episodes, without their 12th, and 0 to 2 of the second ones, without their 3rd.
    assert pairs == {(step, step + 1) for step in (6, 7, 8, 9, 10, 11, 0, 1, 2)}


def test_frames_are_stored_once_and_stacked_in_samples() -> None:
    spec = dataclasses.replace(SPEC, obs_shape=(3, 2, 2), obs_dtype="uint8", frames=FramePipeline(2, 2, 3))
    replay = ReplayBuffer(spec, 20, 2)
    assert replay.columns["obs"].shape == (20, 2, 2)
    for step in range(15):
        age = step if step < 7 else step - 7
        stack = np.stack([np.full((2, 2), max(step - back, 0) if back <= age else 0) for back in (2, 1, 0)])
        replay.add(
            np.stack([stack, stack + 100]).astype(np.uint8), {}, action=np.zeros(2, int), reward=np.zeros(2),
            terminated=np.full(2, step == 6), truncated=np.zeros(2, bool), age=np.full(2, age),
        )  # fmt: skip
    batch = replay.sample(300, np.random.default_rng(1))
    for obs in batch.obs:
        newest = int(obs[2, 0, 0]) % 100
        age = newest if newest < 7 else newest - 7
        assert [int(frame[0, 0]) % 100 for frame in obs] == [newest - back if back <= age else 0 for back in (2, 1, 0)]


def test_concat_joins_two_batches() -> None:
    def batch(first: int, count: int, labeled: bool) -> TransitionBatch:
        numbers = torch.arange(first, first + count, dtype=torch.float32)
        return TransitionBatch(numbers[:, None], numbers.long(), numbers, numbers[:, None] + 1, numbers / 9,
                     numbers[:, None] if labeled else None)  # fmt: skip

    both = batch(0, 2, True).concat(batch(2, 3, True))
    for name in ("obs", "action", "reward", "next_obs", "discount", "labels"):
        assert torch.equal(getattr(both, name), getattr(batch(0, 5, True), name))
    assert batch(0, 2, True).concat(batch(2, 3, False)).labels is None
    assert torch.equal(batch(0, 0, True).concat(batch(2, 3, True)).obs, batch(2, 3, True).obs)


def test_replay_restores_only_its_own_size() -> None:
    replay, same, larger = ReplayBuffer(SPEC, 20, 2), ReplayBuffer(SPEC, 20, 2), ReplayBuffer(SPEC, 40, 2)
    fill(replay, 4, {2: "truncated"})
    assert {len(column) for column in replay.state_dict()["columns"].values()} == {8}
    same.load_state_dict(replay.state_dict())
    one, other = (buffer.sample(50, np.random.default_rng(0)) for buffer in (replay, same))
    assert torch.equal(one.next_obs, other.next_obs)
    fill(replay, 14, {})
    with pytest.raises(ValueError, match="20"):
        larger.load_state_dict(replay.state_dict())
