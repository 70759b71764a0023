"""Losses on other outputs than the policy: a value that stays with the student, features that do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.io.atomic import read_jsonl, write_json
from rldistill.losses import BellmanTarget, FeatureMSE, ForwardKL, ValueMSE
from rldistill.losses.objective import Term
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent, Gru, Mlp, Ridge, Tree
from rldistill.students.storage import load_native, save_policy

from ..conftest import Reports


def config(*losses: ForwardKL | ValueMSE | FeatureMSE | BellmanTarget) -> DistillConfig:
    return DistillConfig(losses=tuple(Term(loss) for loss in losses), epochs=12, batch_size=64)


@pytest.fixture(scope="module")
def with_features(teacher: NetworkPolicy, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("features") / "dataset"
    return collect(EnvConfig("CartPole-v1"), teacher, CollectConfig(steps=2_000, epsilon=0.3, features=True), folder)


@pytest.mark.parametrize("student", [Mlp((32,)), Gru(16, (16,))], ids=lambda student: type(student).__name__)
def test_a_student_learns_the_teachers_value_and_keeps_it(
    dataset: Dataset, tmp_path: Path, student: AnyStudent
) -> None:
    fitted = distill(dataset, student, config(ForwardKL(), ValueMSE()), tmp_path)
    rows = np.flatnonzero(dataset.heldout)
    with torch.no_grad():
        output = fitted(dataset.observations(rows), fitted.initial_state(len(rows)))[0]
    label = dataset.batch(rows).teacher.params.amax(-1)
    assert output.value is not None
    if isinstance(student, Mlp):  # a GRU has to see whole episodes
        assert (output.value - label).square().mean() < 0.5 * label.var()
    save_policy(fitted, tmp_path / "again", {})
    again = load_native(tmp_path / "again")(dataset.observations(rows))[0]
    assert again.value is not None
    torch.testing.assert_close(again.value, output.value)


def test_features_are_a_function_of_the_students_only_while_it_learns(with_features: Dataset, tmp_path: Path) -> None:
    losses = (ForwardKL(), FeatureMSE())
    fitted = distill(with_features, Mlp((20,)), config(*losses), tmp_path / "with")
    assert fitted(with_features.observations(np.arange(3)))[0].features is not None
    assert fitted(with_features.observations(np.arange(3)))[0].features.shape == (3, 20)  # type: ignore[union-attr]
    plain = distill(with_features, Mlp((20,)), config(ForwardKL()), tmp_path / "without")
    assert fitted.state_dict().keys() == plain.state_dict().keys()
    assert not torch.equal(fitted.output.weight, plain.output.weight)  # type: ignore[arg-type]
    first, *_, last = read_jsonl(tmp_path / "with" / "metrics.jsonl")
    assert last["heldout_loss"] < 0.5 * first["heldout_loss"]


def test_resumed_fit_has_the_same_weights(with_features: Dataset, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    settings = config(ForwardKL(), FeatureMSE(), ValueMSE())
    whole = distill(with_features, Mlp((8,)), settings, tmp_path / "whole")
    with pytest.raises(Stop):
        distill(with_features, Mlp((8,)), settings, tmp_path / "cut", progress=Reports(stop))
    assert [*(tmp_path / "cut" / "checkpoints").iterdir()]
    cut = distill(with_features, Mlp((8,)), settings, tmp_path / "cut", mode="resume")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, cut.state_dict()[name])


def test_a_warm_start_begins_with_the_weights_of_the_policy(with_features: Dataset, tmp_path: Path) -> None:
    before = distill(with_features, Mlp((8,)), config(ForwardKL()), tmp_path / "before")
    agreement = {}
    for name, student in (("warm", before), ("cold", Mlp((8,)))):
        distill(with_features, student, config(ForwardKL(), FeatureMSE()), tmp_path / name)
        agreement[name] = read_jsonl(tmp_path / name / "metrics.jsonl")[0]["agreement"]
    assert agreement["warm"] > agreement["cold"]


def test_they_train_no_policy_by_themselves(with_features: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train no policy"):
        distill(with_features, Mlp((8,)), config(ValueMSE(), FeatureMSE()), tmp_path)


def test_missing_features_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(SpecMismatchError, match=r"collect\.features"):
        distill(dataset, Mlp((8,)), config(ForwardKL(), FeatureMSE()), tmp_path)


@pytest.mark.parametrize("student", [Ridge(), Tree()], ids=lambda student: type(student).__name__)
def test_a_student_that_is_not_descended_to_refuses(dataset: Dataset, tmp_path: Path, student: AnyStudent) -> None:
    with pytest.raises(ConfigError, match="ValueMSE"):
        distill(dataset, student, config(ForwardKL(), ValueMSE()), tmp_path)


def test_a_file_that_lies_about_its_value_is_refused(tmp_path: Path, teacher: NetworkPolicy) -> None:
    save_policy(teacher, tmp_path, {})
    document = json.loads((tmp_path / "policy.json").read_text())
    for lie, message in ((True, "value_head"), ("yes", "expected true or false")):
        write_json(tmp_path / "policy.json", {**document, "value": lie})
        with pytest.raises(CorruptArtifactError, match=message):
            load_native(tmp_path)
