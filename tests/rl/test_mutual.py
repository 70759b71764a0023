"""Dual policy distillation: the confidence in peers, the law of weight 0, and exact resume."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.schedules import Constant
from rldistill.distillation.config import SEED_STRIDE
from rldistill.evaluation.episodes import VALIDATION, PlayConfig, play
from rldistill.io.atomic import read_jsonl
from rldistill.policies.network import NetworkPolicy
from rldistill.rl import ppo
from rldistill.rl.config import PPOConfig
from rldistill.rl.mutual import MAX_CONFIDENCE, joint_row, labeled, learn_together, peer_guidance
from rldistill.rl.rollout import Rollout
from rldistill.rl.train_state import LearningTask
from rldistill.students import Mlp
from rldistill.students.storage import load_native

from ..conftest import CARTPOLE, Reports

SHORT = PPOConfig(total_steps=1_024, num_envs=2, rollout_length=64, epochs=2, eval_every=512, eval_episodes=2)


def stub(values: list[float], logit: float, alpha: float = 1.0) -> Any:
    """Return a learner with given values of all states, and a policy with one logit in all of them."""

    def policy(obs: torch.Tensor) -> tuple[PolicyOutput, None]:
        return PolicyOutput(CategoricalHead((2,)), torch.tensor([[logit, 0.0]]).expand(len(obs), 2)), None

    guidance = peer_guidance(Constant(1.0), alpha)
    return SimpleNamespace(
        value=lambda obs: torch.tensor(values).float(), policy=policy, task=SimpleNamespace(guidance=guidance)
    )


def rollout(num_steps: int) -> Rollout:
    zeros = torch.zeros(num_steps, 2)
    return Rollout(
        obs=zeros[..., None], raw_action=zeros, reward=zeros, terminated=zeros.bool(), starts=zeros.bool(),
        action_params=zeros[..., None], truncated=zeros.bool(), last_obs={}, next_obs=torch.zeros(2, 1),
    )  # fmt: skip


def test_label_is_that_of_the_peer_with_the_largest_value() -> None:
    """In 2 steps of 2 environments; six of the twelve values are 0 and six are 4, so that var V = 12 * 4 / 11."""
    learners = [stub([0, 4, 0, 4], 1.0, alpha=0.5), stub([4, 0, 0, 4], 2.0), stub([0, 4, 0, 4], 3.0)]
    result = labeled(rollout(2), learners, 0)
    assert result.labels is not None
    assert result.confidence is not None
    assert result.labels[..., 0].flatten().tolist() == [2, 3, 2, 2]  # of equal peers the first
    unit = math.exp(0.5 * 4 / math.sqrt(48 / 11))
    torch.testing.assert_close(result.confidence.flatten(), torch.tensor([unit, 1.0, 1.0, 1.0]))
    other = labeled(rollout(2), learners, 1)
    assert other.confidence is not None
    # Its own value is larger in the first state, and its alpha is 1.
    torch.testing.assert_close(other.confidence.flatten(), torch.tensor([unit**-2, unit**2, 1.0, 1.0]))


def test_confidence_does_not_depend_on_the_scale_of_rewards_and_is_bounded() -> None:
    small, large = (
        labeled(rollout(2), [stub([s * v for v in (0, 1, 2, 3)], 0.0), stub([s * v for v in (3, 1, 0, 2)], 0.0)], 0)
        for s in (1e-2, 1e4)
    )
    torch.testing.assert_close(small.confidence, large.confidence)
    outlier = labeled(rollout(500), [stub([0.0] * 1_000, 0.0), stub([1e3] + [0.0] * 999, 0.0)], 0).confidence
    assert outlier is not None
    assert float(outlier.max()) == pytest.approx(MAX_CONFIDENCE)
    assert labeled(rollout(1), [stub([1.0, 1.0], 0.0)] * 2, 0).confidence.tolist() == [[1, 1]]  # type: ignore[union-attr]


def score(policy: NetworkPolicy) -> NDArray[np.float64]:
    return play(CARTPOLE, policy, 2, PlayConfig(0, VALIDATION)).returns


def make_task(folder: Path, weight: float = 1.0, alpha: float = 1.0) -> LearningTask:
    return LearningTask(
        CARTPOLE, Mlp((8,)), folder, guidance=peer_guidance(Constant(weight), alpha), score=score, seed=3
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_native(folder).state_dict()


def test_without_weight_each_student_learns_alone(tmp_path: Path) -> None:
    task = make_task(tmp_path / "together", weight=0.0)
    result = learn_together(task, [task.student] * 2, SHORT, progress=False)
    alone = replace(SHORT, total_steps=512, eval_every=256)
    scores = []
    for number in range(2):
        own = LearningTask(CARTPOLE, task.student, tmp_path / str(number), score=score, seed=3 + number * SEED_STRIDE)
        ppo.learn(own, alone, progress=False)
        torch.testing.assert_close(weights(task.folder / "peers" / str(number)), weights(own.folder), rtol=0, atol=0)
        scores.append(max(row.get("score", 0.0) for row in read_jsonl(own.folder / "metrics.jsonl")))
    best = task.folder / "peers" / str(int(np.argmax(scores)))
    torch.testing.assert_close(result.state_dict(), weights(best), rtol=0, atol=0)
    assert max(row.get("score", 0.0) for row in read_jsonl(task.folder / "metrics.jsonl")) == max(scores)


def test_students_share_the_steps_and_become_more_alike(tmp_path: Path) -> None:
    divergence = []
    for weight in (0.0, 5.0):
        task = make_task(tmp_path / str(weight), weight)
        learn_together(task, [task.student, Mlp((16,)), task.student], SHORT, progress=False)
        rows = read_jsonl(task.folder / "metrics.jsonl")
        assert [row["step"] for row in rows] == [384, 768, 1_152]
        assert ["score" in row for row in rows] == [False, True, True]
        divergence.append(rows[-1]["peer_kl"])
        assert load_native(task.folder).config == task.student
        assert load_native(task.folder / "peers" / "1").config == Mlp((16,))
    assert divergence[1] < divergence[0]


class StoppedError(Exception):
    """Interruption of a training."""


def test_interrupted_training_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rldistill.io.tensors.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr("rldistill.io.tensors.MAX_CHECKPOINT_SHARE", float("inf"))
    whole, cut = make_task(tmp_path / "whole"), make_task(tmp_path / "cut")
    students = [whole.student, Mlp((16,))]
    learn_together(whole, students, SHORT, progress=False)

    def stop(done: int, total: int) -> None:
        if done >= 768:
            raise StoppedError

    with pytest.raises(StoppedError):
        learn_together(cut, students, SHORT, progress=Reports(stop))
    learn_together(cut, students, SHORT, mode="resume", progress=False)
    for name in ("", "peers/0", "peers/1"):
        torch.testing.assert_close(weights(cut.folder / name), weights(whole.folder / name), rtol=0, atol=0)
        rows = [
            [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(file)]
            for file in (whole.folder / name / "metrics.jsonl", cut.folder / name / "metrics.jsonl")
        ]
        assert rows[0] == rows[1]
        assert len(rows[0]) == 4


def test_joint_row() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 10, "update": 2, "return": None, "entropy": 1.0, "score": 4.0},
        {"step": 10, "update": 2, "return": 3.0, "entropy": 2.0, "score": 7.0},
    ]
    assert joint_row(rows) == {"step": 20, "update": 2, "return": 3.0, "entropy": 1.5, "score": 7.0}
