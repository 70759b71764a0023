"""Students that are solved for, against scikit-learn and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Reference

from rldistill.collect import CollectConfig, collect
from rldistill.data.dataset import Dataset
from rldistill.distill import DistillConfig, distill
from rldistill.envs.single import EnvConfig, spec_from_env
from rldistill.errors import ConfigError
from rldistill.losses import BellmanTarget
from rldistill.objective import Term
from rldistill.students import Mlp, Ridge
from rldistill.students.storage import load_native
from rldistill.types import PolicySpec


def test_the_solution_is_scikit_learns(dataset: Dataset, tmp_path: Path) -> None:
    student = distill(dataset, Ridge(l2=0.01), DistillConfig(), tmp_path)
    train = np.flatnonzero(~dataset.heldout)
    obs = dataset.observations(np.arange(len(dataset))).double().numpy()
    scaled = (obs - student.obs_mean.numpy()) / student.obs_std.numpy()
    reference = Reference(alpha=0.01 * len(train)).fit(scaled[train], dataset.columns["teacher"][train])
    with torch.no_grad():
        said = student(dataset.observations(np.arange(len(dataset))))[0].params
    np.testing.assert_allclose(said, reference.predict(scaled), rtol=1e-4, atol=1e-5)
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["agreement"] > 0.9


def test_fourier_features_see_what_a_line_does_not(tmp_path: Path) -> None:
    # On Pendulum the best torque is no linear function of the observation.
    env = EnvConfig("Pendulum-v1")
    torch.manual_seed(0)
    teacher = Mlp((32, 32), "tanh").build(spec_from_env(env)).eval()
    with torch.no_grad():
        teacher.output.weight *= 30
    data = collect(env, teacher, CollectConfig(steps=4_000, epsilon=0.3), tmp_path / "data")
    errors = {}
    for name, student in (("raw", Ridge()), ("fourier", Ridge(features="fourier", num_features=512, l2=1e-6))):
        fitted = distill(data, student, DistillConfig(), tmp_path / name)
        assert fitted.spec.head.kind == "deterministic"
        errors[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text())["heldout_loss"]
    assert errors["fourier"] < 0.5 * errors["raw"]
    again = load_native(tmp_path / "fourier")
    obs = data.observations(np.arange(9))
    assert torch.equal(again(obs)[0].params, fitted(obs)[0].params)


def test_fourier_features_by_hand() -> None:
    torch.manual_seed(0)
    policy = Ridge(features="fourier", num_features=3, bandwidth=2.0).build(PolicySpec((4,), "float32", spec_head()))
    fourier, x = policy.body[1], torch.randn(5, 4)
    expected = np.sqrt(2 / 3) * np.cos(x.numpy() @ fourier.weight.T.numpy() + fourier.bias.numpy())
    np.testing.assert_allclose(fourier(x), expected, rtol=1e-5, atol=1e-6)


def spec_head() -> object:
    return spec_from_env(EnvConfig("CartPole-v1")).head


def test_a_loss_that_is_no_least_squares_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="BellmanTarget is not"):
        distill(dataset, Ridge(), DistillConfig(losses=(Term(BellmanTarget()),)), tmp_path)


@pytest.mark.parametrize("wrong", [{"l2": 0.0}, {"bandwidth": -1.0}, {"num_features": 0}, {"features": "cubic"}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Ridge(**wrong)  # type: ignore[arg-type]
