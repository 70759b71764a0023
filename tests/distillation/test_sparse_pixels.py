"""Sparse pixels give the outputs, gradients and fits of the dense product."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rldistill.core.heads import CategoricalHead, GaussianHead
from rldistill.core.spec import FramePipeline, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.distillation.gradient import Trainer
from rldistill.io.atomic import read_jsonl, sha256_file
from rldistill.losses.objective import total_loss
from rldistill.students import Cnn, Linear, Mlp

STEPS, EPISODE = 300, 25
CONFIG = DistillConfig(epochs=8, batch_size=32, learning_rate=1e-2)


def game(padding: str | None, noise: float = 0.02) -> Dataset:
    """Return frames of a bright court with a random share of other pixels; the teacher wants the brighter half."""
    rng = np.random.default_rng(0)
    frames = None if padding is None else FramePipeline(9, 8, 3, padding=padding)  # type: ignore[arg-type]
    shape = (9, 8) if frames else (2, 9, 8)
    obs = np.where(rng.random((STEPS, *shape)) < noise, rng.integers(0, 256, (STEPS, *shape)), 87).astype(np.uint8)
    head = CategoricalHead((2,))
    spec = PolicySpec((3, 9, 8) if frames else shape, "uint8", head, frames=frames)
    halves = obs.reshape(STEPS, -1, 8).astype(np.float32).sum(1)
    logits = np.stack([halves[:, :4].sum(1), halves[:, 4:].sum(1)], 1) / 10
    zeros, rows = np.zeros(STEPS, np.float32), np.arange(STEPS)
    columns = {"teacher": logits, "next_teacher": logits, "action": logits.argmax(1), "reward": zeros}
    columns |= {"return_to_go": zeros, "terminated": zeros > 0, "step": rows % EPISODE, "episode": rows // EPISODE}
    return Dataset(spec, columns, obs, rows, rows, rows // EPISODE % 4 == 0, STEPS)


def dense(data: Dataset) -> Dataset:
    """Return the dataset without room for sparse pixels."""
    return dataclasses.replace(data, memory_gb=0.0)


@pytest.mark.parametrize("padding", ["zero", "repeat", None])
@pytest.mark.parametrize("student", [Linear(), Mlp((5, 4))])
def test_outputs_and_gradients_are_those_of_the_dense_product(student: Linear | Mlp, padding: str | None) -> None:
    outputs, gradients, rows = [], [], np.arange(60)[::-1].copy()
    for data in (game(padding), dense(game(padding))):
        trainer = Trainer(data, student, CONFIG)
        assert (trainer.pixels is None) == (data.memory_gb == 0)
        for _, batch, output in trainer.outputs(rows, len(rows)):
            total_loss(trainer.terms, output, batch, 0.0).backward()  # type: ignore[no-untyped-call]
            outputs.append(output.params)
        gradients.append([weight.grad.clone() for weight in trainer.policy.parameters()])
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_a_fit_has_the_losses_of_a_dense_one_and_the_same_bytes_again(tmp_path: Path) -> None:
    for name, data in {"sparse": game("zero"), "again": game("zero"), "dense": dense(game("zero"))}.items():
        distill(data, Linear(), CONFIG, tmp_path / name)
    assert len({sha256_file(tmp_path / name / "policy.safetensors") for name in ("sparse", "again")}) == 1
    losses = [[row["heldout_loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl") if "heldout_loss" in row]
              for name in ("sparse", "dense")]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_other_networks_and_dense_pictures_take_the_dense_product() -> None:
    assert Trainer(game("zero"), Cnn((4,), (3,), (1,), (8,)), CONFIG).pixels is None
    assert Trainer(game("zero", noise=0.5), Linear(), CONFIG).pixels is None
    spec = dataclasses.replace(game("zero").spec, head=GaussianHead(low=(-1.0,), high=(1.0,)))
    continuous = dataclasses.replace(game("zero"), spec=spec)
    columns = {**continuous.columns, "teacher": np.ones((STEPS, 2), np.float32), "action": np.ones((STEPS, 1))}
    columns["next_teacher"] = columns["teacher"]
    assert Trainer(dataclasses.replace(continuous, columns=columns), Linear(), CONFIG).pixels is None
