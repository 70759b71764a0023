"""Fit of one student to several tasks: the loss, the weights of the tasks, and exact resume."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import NothingLearnedError
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.distillation.tasks import MultiTaskTrainer
from rldistill.envs.spaces import spec_from_env
from rldistill.losses import ActionNLL, ForwardKL
from rldistill.losses.objective import Term, total_loss
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear, Mlp, MultiTask
from rldistill.students.multi_task import MultiTaskPolicy

from ..conftest import Reports

MOUNTAIN_CAR = EnvConfig("MountainCar-v0")
STUDENT = MultiTask(Mlp((16, 16)))


def pumping_teacher() -> NetworkPolicy:
    """Return a policy that pushes the car the way it moves, which reaches the flag."""
    policy = Linear().build(spec_from_env(MOUNTAIN_CAR)).eval()
    with torch.no_grad():
        policy.output.weight.copy_(torch.tensor([[0.0, -100.0], [0.0, 0.0], [0.0, 100.0]]))
        policy.output.bias.zero_()
    return policy


@pytest.fixture(scope="module")
def datasets(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("mountain_car") / "dataset"
    config = CollectConfig(steps=3_200, epsilon=0.2)
    return {"cart": dataset, "car": collect(MOUNTAIN_CAR, pumping_teacher(), config, folder, progress=False)}


def test_step_follows_the_gradient_of_the_mean_scaled_loss(datasets: dict[str, Dataset]) -> None:
    trainer = MultiTaskTrainer(datasets, STUDENT, DistillConfig(batch_size=64, schedule="constant", epochs=1))
    before = copy.deepcopy(trainer.policy)
    seen: list[torch.Tensor] = []

    def stop(gradient: torch.Tensor) -> None:
        seen.append(gradient.clone())
        raise InterruptedError

    trainer.optimizer.step = stop  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        trainer.train_epoch(0)
    seeds = np.random.SeedSequence([0, 0]).spawn(2)
    total = torch.zeros(())
    for (task, part), seed in zip(trainer.parts.items(), seeds, strict=True):
        rows = np.random.default_rng(seed).permutation(part.train_rows)[:64]
        batch = part.dataset.batch(rows)
        loss = total_loss(part.terms, before.policy_of(task)(batch.obs)[0], batch, 0.0)
        total = total + loss / part.constant_loss / 2
    expected = torch.autograd.grad(total, [*before.parameters()])
    torch.testing.assert_close(seen[0], torch.cat([part.flatten() for part in expected]), rtol=1e-4, atol=1e-6)


def test_weights_by_gap_are_in_proportion_to_it(datasets: dict[str, Dataset]) -> None:
    config = DistillConfig(balance="by_gap")
    trainer = MultiTaskTrainer(datasets, STUDENT, config)
    assert trainer.task_weights() == [1, 1]  # before the first epoch
    trainer.gaps.copy_(torch.tensor([0.5, 0.25]))
    assert trainer.task_weights() == pytest.approx([4 / 3, 2 / 3])
    trainer.gaps.copy_(torch.tensor([0.5, -0.25]))
    assert trainer.task_weights() == [2, 0]
    trainer.gaps.zero_()
    assert trainer.task_weights() == [1, 1]
    trainer.config = DistillConfig()
    trainer.gaps.copy_(torch.tensor([0.5, 0.25]))
    assert trainer.task_weights() == [1, 1]


@settings(max_examples=5)
@given(scale=st.floats(0.01, 100))
def test_units_of_a_loss_do_not_matter(datasets: dict[str, Dataset], scale: float) -> None:
    def heldout(config: DistillConfig) -> float:
        return MultiTaskTrainer(datasets, STUDENT, config).heldout_loss()[0]

    scaled = DistillConfig(losses=(Term(ForwardKL(), scale),))  # type: ignore[arg-type]
    assert heldout(scaled) == pytest.approx(heldout(DistillConfig()), rel=1e-3)


def test_smaller_datasets_are_repeated(datasets: dict[str, Dataset]) -> None:
    trainer = MultiTaskTrainer(datasets, STUDENT, DistillConfig(batch_size=64))
    rows = {task: len(part.train_rows) for task, part in trainer.parts.items()}
    assert trainer.samples_per_epoch == 2 * max(rows.values())
    steps = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda gradient: (steps.append(1), step(gradient))[1]  # type: ignore[func-returns-value, method-assign]
    trainer.train_epoch(0)
    assert len(steps) == -(-max(rows.values()) // 64)


@pytest.mark.parametrize("balance", ["equal", "by_gap"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_interrupted_fit_ends_with_the_same_bytes(
    datasets: dict[str, Dataset], balance: Any, warm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.io.tensors.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr("rldistill.io.tensors.MAX_CHECKPOINT_SHARE", float("inf"))
    config = DistillConfig(epochs=6, batch_size=128, balance=balance, patience=0)
    start: Any = STUDENT
    if warm:
        first = dataclasses.replace(config, epochs=2)
        start = distill(datasets, STUDENT, first, tmp_path / "first", progress=False)
    distill(datasets, start, config, tmp_path / "whole", progress=False)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(datasets, start, config, tmp_path / "parts", progress=Reports(stop))
    distill(datasets, start, config, tmp_path / "parts", mode="resume", progress=False)
    names = "policy.safetensors", "checkpoints/last.safetensors"
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_tasks_may_be_given_by_their_folders(teacher: NetworkPolicy, tmp_path: Path) -> None:
    folders = {task: tmp_path / task for task in ("one", "two")}
    for seed, folder in enumerate(folders.values()):
        collect(EnvConfig("CartPole-v1"), teacher, CollectConfig(steps=400), folder, seed=seed)
    policy = distill(folders, MultiTask(Mlp((8,))), DistillConfig(epochs=4), tmp_path / "student")
    assert isinstance(policy, MultiTaskPolicy)
    assert [*policy.tasks] == ["one", "two"]


def test_error_names_the_task_that_was_not_learned(datasets: dict[str, Dataset], tmp_path: Path) -> None:
    car = datasets["car"]
    rng = np.random.default_rng(0)
    noise = dataclasses.replace(car, columns={**car.columns, "teacher": rng.permutation(car.columns["teacher"])})
    config = DistillConfig(epochs=5, losses=(Term(ActionNLL()),))
    with pytest.raises(NothingLearnedError, match="student: noise: the student learned nothing"):
        distill({"cart": datasets["cart"], "noise": noise}, STUDENT, config, tmp_path / "student", progress=False)
