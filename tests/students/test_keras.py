"""Keras models as students: fitted by ours, saved for both, read by plain Keras."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError, UntrustedFileError
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import read_jsonl, write_json
from rldistill.io.execution import Execution
from rldistill.policies.cost import measure_cost
from rldistill.students import Keras
from rldistill.students.keras import KerasStudent
from rldistill.students.storage import load_native, save_policy

from ..conftest import CARTPOLE, Reports

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="needs the extra keras")
layers = keras.layers
PONG = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 200})


def small(shape: tuple[int, ...], outputs: int) -> Any:
    return keras.Sequential([layers.Input(shape), layers.Dense(16, activation="tanh"), layers.Dense(outputs)])


def convolutional(shape: tuple[int, ...], outputs: int) -> Any:
    """The usual network on frames, narrower."""
    return keras.Sequential(
        [
            layers.Input(shape),
            layers.Conv2D(4, 8, 4, activation="relu"),
            layers.Conv2D(8, 4, 2, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(outputs),
        ]
    )


def params(student: Any, obs: torch.Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return student(obs)[0].params.numpy()


@pytest.fixture
def fitted(dataset: Dataset, tmp_path: Path) -> KerasStudent:
    student = distill(
        dataset, Keras(f"{__name__}:small"), DistillConfig(epochs=3, learning_rate=3e-3), tmp_path / "student"
    )
    assert isinstance(student, KerasStudent)
    return student


def test_it_learns_and_plain_keras_reads_it(dataset: Dataset, fitted: KerasStudent, tmp_path: Path) -> None:
    rows = read_jsonl(tmp_path / "student" / "metrics.jsonl")
    assert rows[-1]["heldout_loss"] < 0.9 * rows[0]["heldout_loss"]
    obs = dataset.observations(np.arange(200))
    plain = keras.saving.load_model(tmp_path / "student" / "policy.keras")
    np.testing.assert_allclose(plain(obs).detach(), params(fitted, obs), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(params(load_native(tmp_path / "student"), obs), params(fitted, obs), atol=1e-6)
    assert params(fitted, obs[:1]).shape == (1, 2)


def test_a_training_seed_decides_everything(dataset: Dataset, fitted: KerasStudent, tmp_path: Path) -> None:
    config = DistillConfig(epochs=3, learning_rate=3e-3)
    again = distill(dataset, Keras(f"{__name__}:small"), config, tmp_path / "again")
    other = distill(dataset, Keras(f"{__name__}:small"), config, tmp_path / "other", seed=1)
    obs = dataset.observations(np.arange(50))
    np.testing.assert_array_equal(params(again, obs), params(fitted, obs))
    assert not np.array_equal(params(other, obs), params(fitted, obs))


def dropping(shape: tuple[int, ...], outputs: int) -> Any:
    hidden = [layers.Dense(16, activation="tanh"), layers.BatchNormalization(), layers.Dropout(0.5)]
    return keras.Sequential([layers.Input(shape), *hidden, layers.Dense(outputs)])


def test_layers_drop_out_and_count_in_training_and_resume_exactly(dataset: Dataset, tmp_path: Path) -> None:
    obs, config = dataset.observations(np.arange(50)), DistillConfig(epochs=3, batch_size=64)
    bare = Keras(f"{__name__}:dropping").build(spec_from_env(CARTPOLE)).train()
    assert not np.array_equal(params(bare, obs), params(bare, obs))
    whole = distill(dataset, Keras(f"{__name__}:dropping"), config, tmp_path / "whole")
    np.testing.assert_array_equal(params(whole, obs), params(whole, obs))
    assert isinstance(whole, KerasStudent)
    counted = next(v for v in whole._model[0].weights if v.path.endswith("moving_mean"))
    assert np.abs(counted.numpy()).max() > 0.01

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        distill(dataset, Keras(f"{__name__}:dropping"), config, tmp_path / "cut", progress=Reports(stop))
    cut = distill(dataset, Keras(f"{__name__}:dropping"), config, tmp_path / "cut", mode="resume")
    np.testing.assert_array_equal(params(cut, obs), params(whole, obs))


def test_a_file_gives_the_layers_and_not_the_weights(dataset: Dataset, tmp_path: Path) -> None:
    model = small((4,), 2)
    model.save(tmp_path / "layers.keras")
    student = Keras(str(tmp_path / "layers.keras")).build(spec_from_env(CARTPOLE))
    obs = dataset.observations(np.arange(20))
    assert not np.allclose(params(student, obs), model(obs).detach())
    assert measure_cost(student).parameters >= 4 * 16 + 16 + 16 * 2 + 2


def test_frames_reach_it_with_channels_last(tmp_path: Path) -> None:
    student = Keras(f"{__name__}:convolutional").build(spec_from_env(PONG)).eval()
    student.standardize(torch.tensor(0.3), torch.tensor(0.2))
    save_policy(student, tmp_path / "student", {})
    obs = torch.randint(0, 256, (40, 4, 84, 84), dtype=torch.uint8)
    plain = keras.saving.load_model(tmp_path / "student" / "policy.keras")
    theirs = plain(obs.movedim(1, -1).float()).detach()
    np.testing.assert_allclose(theirs, params(student, obs), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(params(load_native(tmp_path / "student"), obs), params(student, obs))
    by_hand = student._model[0].layers[1]((obs.movedim(1, -1) / 255 - 0.3) / 0.2).detach()
    np.testing.assert_allclose(theirs, by_hand, rtol=1e-4, atol=1e-4)


def test_it_acts_in_other_processes(fitted: KerasStudent, teacher: Any, dataset: Dataset, tmp_path: Path) -> None:
    obs = dataset.observations(np.arange(20))
    np.testing.assert_array_equal(params(pickle.loads(pickle.dumps(fitted)), obs), params(fitted, obs))
    config = CollectConfig(steps=200, envs_per_stream=2, block_steps=50, beta=0.0)
    two = Execution(workers=2)
    assert len(collect(CARTPOLE, teacher, config, tmp_path / "more", student=fitted, execution=two)) == 200


def softmaxed(shape: tuple[int, ...], outputs: int) -> Any:
    return keras.Sequential([layers.Input(shape), layers.Dense(outputs, activation="softmax")])


def softmaxed_within(shape: tuple[int, ...], outputs: int) -> Any:
    return keras.Sequential([layers.Input(shape), softmaxed(shape, outputs)])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no/such.keras", "no such file"),
        (f"{__name__}:nothing", "there is no 'nothing'"),
        (f"{__name__}:softmaxed", "softmax"),
        (f"{__name__}:softmaxed_within", "softmax"),
    ],
)
def test_unsuitable_models_are_refused(model: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Keras(model).build(spec_from_env(CARTPOLE))


def test_a_model_for_something_else_is_refused(tmp_path: Path) -> None:
    small((6,), 2).save(tmp_path / "layers.keras")
    with pytest.raises(SpecMismatchError, match="takes observations"):
        Keras(str(tmp_path / "layers.keras")).build(spec_from_env(CARTPOLE))


def test_a_saved_student_imports_nothing(fitted: KerasStudent, tmp_path: Path) -> None:
    document = tmp_path / "student" / "policy.json"
    write_json(document, json.loads(document.read_text().replace(f"{__name__}:small", "os:system")))
    obs = torch.zeros(1, 4)
    np.testing.assert_array_equal(params(load_native(tmp_path / "student"), obs), params(fitted, obs))
    (tmp_path / "student" / "policy.keras").write_bytes(b"PK")
    with pytest.raises((CorruptArtifactError, UntrustedFileError), match=r"policy\.keras"):
        load_native(tmp_path / "student")
