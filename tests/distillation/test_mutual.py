"""Mutual learning from a dataset: its loss, the laws that lead back to the ordinary fit, and exact resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rldistill import ConfigError, DistillConfig, ForwardKL, Gru, Mlp, Peers, Ridge, Term, Tree, distill
from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.schedules import Constant, Linear
from rldistill.data.dataset import Dataset
from rldistill.distillation import mutual
from rldistill.distillation.gradient import Trainer
from rldistill.distillation.mutual import MutualTrainer
from rldistill.io.atomic import read_jsonl
from rldistill.losses import QMSE
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native

from ..conftest import Reports

STUDENT = Mlp((8,))
CONFIG = DistillConfig(epochs=3, batch_size=64, learning_rate=3e-3)


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    for epoch in range(2):
        trainer.train_epoch(epoch)
    return trainer.parts[0].copy_weights() if isinstance(trainer, MutualTrainer) else trainer.copy_weights()


def test_mutual_term_is_the_mean_divergence_from_the_peers(dataset: Dataset) -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = log(4 / 3) / 2, and KL of equal distributions is 0."""
    trainer = MutualTrainer(dataset, STUDENT, CONFIG, peers=Peers((STUDENT, STUDENT), Linear(3.0, 0.0)))
    batch = dataset.batch(dataset.spread(4))
    head = CategoricalHead((2,))
    even, own = (torch.tensor([logits] * 4, requires_grad=True) for logits in ([0.0, 0.0], [0.0, math.log(3)]))
    outputs = [PolicyOutput(head, params) for params in (even, own, own.detach())]
    loss = trainer.mutual_loss(outputs, 1, batch, 0.5)
    assert loss.item() == pytest.approx(1.5 * math.log(4 / 3) / 2 / 2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert even.grad is None
    # d KL(p || q) / d logits of q = q - p, in each of 4 states, times the weights of a state, the term and a peer.
    torch.testing.assert_close(own.grad, torch.tensor([[-0.25, 0.25]] * 4) / 4 * 1.5 / 2)


def test_without_weight_each_student_is_that_of_an_ordinary_fit(dataset: Dataset) -> None:
    trainer = MutualTrainer(dataset, STUDENT, CONFIG, seed=5, peers=Peers((STUDENT,), Constant(0.0)))
    alone = Trainer(dataset, STUDENT, CONFIG, seed=5)
    torch.testing.assert_close(trained(trainer), trained(alone), rtol=0, atol=0)
    assert trainer.parts[0].heldout_loss() == alone.heldout_loss()


@pytest.mark.parametrize("loss", [ForwardKL(), QMSE()], ids=["logits", "q_values"])
def test_equal_students_have_nothing_to_learn_from_each_other(
    dataset: Dataset, loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutual, "SEED_STRIDE", 0)
    config = DistillConfig(losses=(Term(loss),), epochs=2, batch_size=64)
    trainer = MutualTrainer(dataset, STUDENT, config, peers=Peers((STUDENT, STUDENT)))
    torch.testing.assert_close(trained(trainer), trained(Trainer(dataset, STUDENT, config)), rtol=1e-3, atol=1e-4)
    one, two, three = (part.copy_weights() for part in trainer.parts)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    torch.testing.assert_close(one, three, rtol=0, atol=0)


def test_peers_become_more_alike(dataset: Dataset) -> None:
    batch = dataset.batch(dataset.spread(500))
    distances = []
    for weight in (0.0, 30.0):
        trainer = MutualTrainer(dataset, STUDENT, CONFIG, peers=Peers((STUDENT,), Constant(weight)))
        trained(trainer)
        one, two = (part.policy.eval()(batch.obs)[0] for part in trainer.parts)
        distances.append(two.head.kl(two.params, one.params).mean().item())
    assert distances[1] < distances[0] / 3


def test_result_is_the_best_student_with_the_same_settings(dataset: Dataset, tmp_path: Path) -> None:
    for number, peers in enumerate([(STUDENT, STUDENT), (Mlp((64,)), STUDENT), (Mlp((64,)),)]):
        folder = tmp_path / str(number)
        policy = distill(dataset, STUDENT, CONFIG, folder, progress=False, peers=Peers(peers))
        assert policy.config == STUDENT
        trainer = MutualTrainer(dataset, STUDENT, CONFIG, peers=Peers(peers))
        for epoch in range(CONFIG.epochs):
            trainer.train_epoch(epoch)
        losses = [part.heldout_loss()[0] for part in trainer.parts if part.policy.config == STUDENT]
        assert len(losses) == 1 + peers.count(STUDENT)
        assert trainer.heldout_loss()[0] == min(losses)
        row = read_jsonl(folder / "metrics.jsonl")[-1]
        assert row["heldout_loss"] == min(losses)
        assert row["step"] == CONFIG.epochs * int((~dataset.heldout).sum())


@pytest.mark.parametrize("student", [STUDENT, Gru(size=4, hidden=(4,), window=8)], ids=["mlp", "gru"])
def test_interrupted_fit_continues_exactly(
    dataset: Dataset, student: AnyStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise StoppedError

    monkeypatch.setattr("rldistill.io.tensors.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr("rldistill.io.tensors.MAX_CHECKPOINT_SHARE", float("inf"))
    config, peers = DistillConfig(epochs=4, batch_size=128, learning_rate=1e-2), Peers((student,))
    whole = distill(dataset, student, config, tmp_path / "whole", progress=False, peers=peers)
    with pytest.raises(StoppedError):
        distill(dataset, student, config, tmp_path / "cut", progress=Reports(stop), peers=peers)
    distill(dataset, student, config, tmp_path / "cut", mode="resume", progress=False, peers=peers)
    torch.testing.assert_close(load_native(tmp_path / "cut").state_dict(), whole.state_dict(), rtol=0, atol=0)
    rows = [
        [{name: value for name, value in row.items() if name != "seconds"} for row in read_jsonl(file)]
        for file in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "cut" / "metrics.jsonl")
    ]
    assert rows[0] == rows[1]


GRU = Gru(size=4, hidden=(4,), window=8)
REFUSED: list[tuple[AnyStudent, tuple[AnyStudent, ...], str]] = [
    (Tree(), (Tree(),), r"^students: a tree does not learn by gradient"),
    (STUDENT, (Ridge(),), r"^recipe\.peer: a ridge does not learn by gradient"),
    (STUDENT, (STUDENT, GRU), r"^recipe\.peer: a recurrent student learns from whole episodes"),
    (GRU, (STUDENT,), r"^recipe\.peer: a recurrent student learns from whole episodes"),
    (STUDENT, (), r"^peers: there are none"),
]


@pytest.mark.parametrize(("student", "peers", "problem"), REFUSED, ids=["tree", "ridge", "gru", "mlp", "none"])
def test_students_that_cannot_learn_together_are_refused(
    dataset: Dataset, student: AnyStudent, peers: tuple[AnyStudent, ...], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        distill(dataset, student, CONFIG, tmp_path / "new", progress=False, peers=Peers(peers))
    assert not (tmp_path / "new").exists()


def test_warm_start_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    initial = distill(dataset, STUDENT, CONFIG, tmp_path / "initial", progress=False)
    with pytest.raises(ConfigError, match=r"^peers: students that learn together start from new weights"):
        distill(dataset, initial, CONFIG, tmp_path / "new", progress=False, peers=Peers((STUDENT,)))
