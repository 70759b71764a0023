"""Recurrent students of the user's own, and the padding of their windows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.distillation.gradient import Trainer
from rldistill.io.atomic import read_jsonl
from rldistill.losses.objective import total_loss
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Gru, Mlp
from rldistill.students.storage import load_native


@dataclass(frozen=True)
class OwnLstm:
    """Recurrent student of the user's own, which declares nothing but `build`."""

    size: int = 16

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        return OwnLstmPolicy(self, spec)


class OwnLstmPolicy(NetworkPolicy):
    def __init__(self, config: OwnLstm, spec: PolicySpec) -> None:
        super().__init__(config, spec, nn.Flatten(), config.size)
        self.cell = nn.LSTMCell(spec.obs_shape[0], config.size)

    def initial_state(self, batch_size: int) -> Tensor | None:
        return torch.zeros(batch_size, 2, self.config.size)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        x = self.body(self.standardized(obs))
        before = self.initial_state(len(x)) if state is None else state
        assert before is not None
        hidden, cell = self.cell(x, tuple(before.unbind(1)))
        return self.outputs(hidden), torch.stack([hidden, cell], 1)


@dataclass(frozen=True)
class Forgetful:
    """Student that declares to be recurrent, but whose policy has no state."""

    recurrent = True

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        return Mlp((8,)).build(spec)


def cue_dataset(episodes: int = 60) -> Dataset:
    """Return episodes whose first observation is the action of the teacher in all of their steps."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, episodes)
    episode = np.repeat(np.arange(episodes), lengths).astype(np.int32)
    step = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    cue = rng.integers(0, 2, episodes)[episode]
    obs = np.where(step == 0, 2.0 * cue - 1, 0.0).astype(np.float32)[:, None]
    logits = (4.0 * np.eye(2)[cue]).astype(np.float32)
    columns: dict[str, Any] = {name: np.zeros(len(obs), np.float32) for name in ("reward", "return_to_go")}
    columns |= {name: np.zeros(len(obs), bool) for name in ("terminated", "truncated")}
    columns |= {"action": cue.astype(np.int32), "actor": np.zeros(len(obs), np.int32)}
    columns |= {"episode": episode, "step": step, "teacher": logits, "next_teacher": logits}
    rows = np.arange(len(obs))
    return Dataset(
        PolicySpec((1,), "float32", CategoricalHead((2,))), columns, obs, rows, rows, episode % 5 == 0, len(obs)
    )


@pytest.mark.parametrize("student", [OwnLstm(), Gru(16, (8,), window=4)], ids=["own", "gru"])
def test_a_recurrent_student_remembers_the_first_observation(student: Any, tmp_path: Path) -> None:
    data = cue_dataset()
    config = DistillConfig(epochs=40, batch_size=128, learning_rate=2e-2, patience=0)
    policy = distill(data, student, config, tmp_path / "student", progress=False)
    rows = read_jsonl(tmp_path / "student" / "metrics.jsonl")
    assert rows[-1]["agreement"] > 0.95  # without a memory it is the share of the more frequent action
    loaded = load_native(tmp_path / "student")
    for state in (policy.initial_state(2), loaded.initial_state(2)):
        cue, blank = torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1)
        _, state = loaded(cue, state)
        for _ in range(5):
            output, state = loaded(blank, state)
            assert output.mode().tolist() == [1, 0]


def test_a_student_that_only_declares_to_be_recurrent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Forgetful is recurrent, but the initial_state of its policy is None\. Ret"):
        distill(cue_dataset(), Forgetful(), DistillConfig(), tmp_path, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("student", [OwnLstm(), Gru(16, (8,), window=4)], ids=["own", "gru"])
def test_padding_counts_neither_in_the_loss_nor_in_the_agreement(student: Any) -> None:
    """Episodes of 3 to 8 steps in windows of 4 or 32 are padded; by hand they are evaluated one by one."""
    data = cue_dataset()
    trainer = Trainer(data, student, DistillConfig(batch_size=10_000, learning_rate=1e-9))

    def by_hand(rows: Any) -> tuple[float, float]:
        loss = agreement = 0.0
        for episode in np.unique(data.columns["episode"][rows]):
            batch = data.batch(np.flatnonzero(data.columns["episode"] == episode))
            state, outputs = trainer.policy.initial_state(1), []
            assert isinstance(batch.obs, Tensor)
            for obs in batch.obs:
                output, state = trainer.policy(obs[None], state)
                outputs.append(output.params)
            output = dataclasses.replace(output, params=torch.cat(outputs), value=None, features=None)
            loss += float(total_loss(trainer.terms, output, batch, 1.0)) * len(outputs)
            agreement += float((output.mode() == batch.teacher.mode()).sum())
        return loss / len(rows), agreement / len(rows)

    with torch.no_grad():
        loss, agreement = by_hand(trainer.heldout_rows)
        train_loss, _ = by_hand(trainer.train_rows)
    assert trainer.heldout_loss() == (pytest.approx(loss, rel=1e-4), pytest.approx(agreement, rel=1e-4))
    windows = [(float(b.weight.sum()), b) for _, b, _ in trainer.outputs(trainer.train_rows, 10_000)]
    assert sum(count for count, _ in windows) == len(trainer.train_rows) < sum(b.weight.numel() for _, b in windows)
    losses = [trainer.step(b, o, 1.0) * b.weight.sum() for _, b, o in trainer.outputs(trainer.train_rows, 10_000)]
    assert float(torch.stack(losses).sum()) / len(trainer.train_rows) == pytest.approx(train_loss, rel=1e-4)
