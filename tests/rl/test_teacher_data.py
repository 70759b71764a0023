"""Tests of DQN with a teacher's dataset."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.data.replay import ReplayBuffer, TransitionBatch
from rldistill.distillation.prepare import observation_moments
from rldistill.io.atomic import read_jsonl, sha256_file
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.dqn import DQNLearner
from rldistill.rl.guidance import Guidance
from rldistill.rl.train_state import Score
from rldistill.students import Mlp
from rldistill.students.features import Objects
from rldistill.teachers.load import load_policy

from .conftest import CARTPOLE, KL, SHORT, learn_dqn

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("score", [None, lambda policy: np.ones(1)], ids=["last", "best"])
def test_dataset_is_learned_first(
    teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path, score: Score | None
) -> None:
    config = dataclasses.replace(SHORT, total_steps=4, offline_steps=1_500, learning_rate=2e-3)
    policy = learn_dqn(
        CARTPOLE, Mlp((32,)), config, tmp_path, teacher=teacher, guidance=Guidance(KL), dataset=dataset, score=score
    )
    rows = np.flatnonzero(dataset.heldout)
    with torch.no_grad():
        same = policy(dataset.observations(rows))[0].mode() == dataset.batch(rows).teacher.mode()
    assert same.float().mean() > 0.9


def test_dataset_and_replay_are_sampled_by_their_sizes(
    teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(SHORT, total_steps=400, learning_starts=200, offline_steps=1)
    num_offline, replay_sizes = [], []
    make_step = DQNLearner._step

    def step(learner: DQNLearner, batch: TransitionBatch, weight: float) -> Any:
        if learner.offline_updates:
            assert learner.offline is not None
            assert len(batch.obs) == config.batch_size
            replay_sizes.append(len(learner.replay))
            rows = {row.tobytes() for row in learner.offline.dataset.observations(learner.offline.rows).numpy()}
            num_offline.append(sum(row.tobytes() in rows for row in batch.obs.numpy()))
        return make_step(learner, batch, weight)

    monkeypatch.setattr(DQNLearner, "_step", step)
    learn_dqn(CARTPOLE, Mlp((8,)), config, tmp_path, teacher=teacher, guidance=Guidance(KL), dataset=dataset)
    assert len(num_offline) > 40
    size = int((~dataset.heldout).sum())
    share = size / (np.array(replay_sizes) + size)
    expected, variance = (config.batch_size * share).sum(), (config.batch_size * share * (1 - share)).sum()
    assert abs(sum(num_offline) - expected) < 4 * np.sqrt(variance)


def test_values_equal_one_reward_if_returns_end_at_each_reward(dataset: Dataset, tmp_path: Path) -> None:
    """Each step of CartPole has reward 1, so that values would approach 10 with the discount 0.9."""
    config = dataclasses.replace(
        SHORT,
        total_steps=1_600,
        gamma=0.9,
        n_steps=3,
        learning_rate=5e-3,
        target_update_interval=20,
        terminal_on_reward=True,
    )
    for name, offline, steps in (("replay", None, 1_600), ("dataset", 800, 84)):
        config = dataclasses.replace(config, total_steps=steps, offline_steps=offline or 1)
        policy = learn_dqn(CARTPOLE, Mlp((16,)), config, tmp_path / name, dataset=dataset if offline else None)
        values = policy(dataset.observations(np.arange(0, 4_000, 40)))[0].params
        assert values.mean().item() == pytest.approx(1.0, abs=0.1), name


def test_replay_stores_features_of_frozen_layers_for_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pong = EnvConfig("ALE/Pong-v5")
    teacher = load_policy("zoo:pong-dqn")
    data = collect(pong, teacher, CollectConfig(steps=320, epsilon=0.1), tmp_path / "data")
    student = Mlp((8,), features=Objects((("ball", 14, 77, 11, 73), ("player", 14, 77, 73, 76))))
    config = dataclasses.replace(SHORT, total_steps=80)  # the last one is the first with an update
    replays: list[ReplayBuffer] = []
    init = ReplayBuffer.__init__

    def recorded_init(replay: ReplayBuffer, spec: PolicySpec, *settings: Any) -> None:
        replays.append(replay)
        init(replay, spec, *settings)

    monkeypatch.setattr(ReplayBuffer, "__init__", recorded_init)
    params = []
    for name in ("features", "frames"):
        policy = learn_dqn(pong, student, config, tmp_path / name, teacher=teacher, guidance=Guidance(KL), dataset=data)
        params.append(policy(data.observations(np.arange(50)))[0].params)
        monkeypatch.setattr(Dataset, "has_room_for", lambda dataset, size: False)
    features_replay, frames_replay = replays
    assert (features_replay.columns["obs"].shape, frames_replay.columns["obs"].shape) == (
        (400, policy.num_features),
        (400, 84, 84),
    )
    with torch.no_grad():
        features = policy.frozen_features(torch.from_numpy(frames_replay.observations(np.arange(80))))
    torch.testing.assert_close(torch.from_numpy(features_replay.columns["obs"][:80]), features)
    torch.testing.assert_close(*params, atol=1e-3, rtol=1e-3)  # one step is from other rows: frames need a whole stack


def test_dataset_normalizes_pixels_also_without_offline_steps(tmp_path: Path) -> None:
    """The observations of the replay must not replace the normalization."""
    pong, teacher = EnvConfig("ALE/Pong-v5"), load_policy("zoo:pong-dqn")
    data = collect(pong, teacher, CollectConfig(steps=320, epsilon=0.1), tmp_path / "data")
    mean, std = observation_moments(data)
    for offline_steps in (0, 1):
        config = dataclasses.replace(SHORT, total_steps=88, offline_steps=offline_steps)
        policy = learn_dqn(pong, Mlp((8,)), config, tmp_path / str(offline_steps), dataset=data)
        last_row = read_jsonl(tmp_path / str(offline_steps) / "metrics.jsonl")[-1]
        assert last_row["update"] > offline_steps
        torch.testing.assert_close((policy.obs_mean, policy.obs_std), (mean, std))


def test_resumes_within_the_dataset_phase(
    teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.io.tensors.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr("rldistill.io.tensors.MAX_CHECKPOINT_SHARE", math.inf)
    config = dataclasses.replace(SHORT, total_steps=4, offline_steps=60)
    step, count = DQNLearner._step, itertools.count()

    def interrupted_step(learner: DQNLearner, *arguments: Any) -> Any:
        if next(count) == 100:  # 60 of the whole run, and 40 of the other one
            raise KeyboardInterrupt
        return step(learner, *arguments)

    monkeypatch.setattr(DQNLearner, "_step", interrupted_step)
    whole, cut = (
        partial(
            learn_dqn,
            CARTPOLE,
            Mlp((8,)),
            config,
            tmp_path / name,
            teacher=teacher,
            guidance=Guidance(KL),
            dataset=dataset,
        )
        for name in ("whole", "cut")
    )
    whole()
    with pytest.raises(KeyboardInterrupt):
        cut()
    cut(mode="resume")
    assert next(count) == 60 + 40 + 1 + 20
    whole_file, cut_file = (tmp_path / name / "policy.safetensors" for name in ("whole", "cut"))
    assert sha256_file(whole_file) == sha256_file(cut_file)
