"""Students that are solved for, against scikit-learn and by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Reference

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import read_jsonl
from rldistill.losses import QMSE, AnyLoss, BellmanTarget, LargeMargin
from rldistill.losses.objective import Term
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Mlp, Ridge
from rldistill.students.features import Fourier
from rldistill.students.storage import load_native


def test_the_solution_is_scikit_learns(dataset: Dataset, tmp_path: Path) -> None:
    student = distill(dataset, Ridge(l2=0.01), DistillConfig(), tmp_path)
    train = np.flatnonzero(~dataset.heldout)
    obs = dataset.observations(np.arange(len(dataset))).double().numpy()
    scaled = (obs - student.obs_mean.numpy()) / student.obs_std.numpy()
    reference = Reference(alpha=0.01 * len(train)).fit(scaled[train], dataset.columns["teacher"][train])
    with torch.no_grad():
        prediction = student(dataset.observations(np.arange(len(dataset))))[0].params
    np.testing.assert_allclose(prediction, reference.predict(scaled), rtol=1e-4, atol=1e-5)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["agreement"] > 0.9


def test_fourier_features_fit_a_nonlinear_function(tmp_path: Path) -> None:
    # On Pendulum the best torque is no linear function of the observation.
    env = EnvConfig("Pendulum-v1")
    torch.manual_seed(0)
    teacher = Mlp((32, 32), "tanh").build(spec_from_env(env)).eval()
    with torch.no_grad():
        teacher.output.weight *= 30
    data = collect(env, teacher, CollectConfig(steps=4_000, epsilon=0.3), tmp_path / "data")
    errors = {}
    for name, student in (("raw", Ridge()), ("fourier", Ridge(1e-6, Fourier(512)))):
        fitted = distill(data, student, DistillConfig(), tmp_path / name)
        assert fitted.spec.head.kind == "deterministic"
        errors[name] = read_jsonl(tmp_path / name / "metrics.jsonl")[0]["heldout_loss"]
    assert errors["fourier"] < 0.5 * errors["raw"]
    again = load_native(tmp_path / "fourier")
    obs = data.observations(np.arange(9))
    assert torch.equal(again(obs)[0].params, fitted(obs)[0].params)


def test_fourier_features_by_hand() -> None:
    torch.manual_seed(0)
    body, _ = Fourier(3, bandwidth=2.0).build(PolicySpec((4,), "float32", CategoricalHead((2,))))
    waves, x = body[1], torch.randn(5, 4)  # type: ignore[index]
    expected = np.sqrt(2 / 3) * np.cos(x.numpy() @ waves.weight.T.numpy() + waves.bias.numpy())
    np.testing.assert_allclose(waves(x), expected, rtol=1e-5, atol=1e-6)


def test_fitted_q_regresses_each_action_on_its_own_targets(dataset: Dataset, tmp_path: Path) -> None:
    loss = BellmanTarget(gamma=0.9)
    student = distill(dataset, Ridge(l2=1e-3), DistillConfig(losses=(Term(loss),)), tmp_path)
    assert student.spec.head.kind == "q_values"
    column, train = dataset.columns, ~dataset.heldout
    targets = column["reward"] + 0.9 * column["next_teacher"].max(1) * ~column["terminated"]
    obs = dataset.observations(np.arange(len(dataset))).double().numpy()
    scaled = (obs - student.obs_mean.numpy()) / student.obs_std.numpy()
    with torch.no_grad():
        prediction = student(dataset.observations(np.arange(len(dataset))))[0].params.numpy()
    for action in range(2):
        rows = train & (column["action"] == action)
        reference = Reference(alpha=1e-3 * rows.sum()).fit(scaled[rows], targets[rows])
        np.testing.assert_allclose(prediction[:, action], reference.predict(scaled), rtol=1e-3, atol=1e-4)


def test_an_action_that_was_never_taken_has_no_target(teacher: NetworkPolicy, tmp_path: Path) -> None:
    always = dataclasses.replace(teacher.spec, head=teacher.spec.head)
    stubborn = Mlp((4,)).build(always)
    with torch.no_grad():
        stubborn.output.bias.copy_(torch.tensor([9.0, -9.0]))
    data = collect(EnvConfig("CartPole-v1"), stubborn, CollectConfig(steps=500), tmp_path / "data")
    with pytest.raises(ConfigError, match="action 1 is missing"):
        distill(data, Ridge(), DistillConfig(losses=(Term(BellmanTarget()),)), tmp_path / "student")


@pytest.mark.parametrize("losses", [(LargeMargin(),), (BellmanTarget(), QMSE())])
def test_losses_that_are_no_least_squares_are_refused(
    dataset: Dataset, tmp_path: Path, losses: tuple[AnyLoss, ...]
) -> None:
    with pytest.raises(ConfigError, match=type(losses[0]).__name__):
        distill(dataset, Ridge(), DistillConfig(losses=tuple(map(Term, losses))), tmp_path)


def test_a_penalty_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="l2"):
        Ridge(l2=0.0)
