from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.io.execution import Execution
from rldistill.teachers.load import load_policy

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="needs the extra keras")
layers = keras.layers

SPEC, PONG = spec_from_env(CARTPOLE), spec_from_env(EnvConfig("ALE/Pong-v5"))
FRAMES = (84, 84, 4)


def save(model: Any, path: Path) -> Path:
    model.save(path)
    return path


def small(**last: Any) -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential([layers.Input((4,)), layers.Dense(16, activation="tanh"), layers.Dense(2, **last)])


def classic() -> Any:
    """The network of Mnih 2015 as it is written in Keras: channels last, pixels from 0 to 255."""
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            layers.Input(FRAMES),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 8, 4, activation="relu"),
            layers.Conv2D(64, 4, 2, activation="relu"),
            layers.Conv2D(64, 3, 1, activation="relu"),
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dense(6),
        ]
    )


def frames(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8, generator=generator)


def params(policy: Policy, obs: Tensor) -> Tensor:
    with torch.no_grad():
        return policy(obs)[0].params


def by_hand(model: Any, obs: Tensor) -> Tensor:
    """The classic network of a Keras model's weights, in PyTorch's own layout."""
    *weights, dense, dense_bias, last, last_bias = [torch.from_numpy(w) for w in model.get_weights()]
    x = obs / 255
    for kernel, bias, stride in zip(weights[::2], weights[1::2], (4, 2, 1), strict=True):
        x = F.relu(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride))
    x = F.relu(x.permute(0, 2, 3, 1).flatten(1) @ dense + dense_bias)
    return x @ last + last_bias


def test_labels_equal_the_outputs_of_the_model(tmp_path: Path) -> None:
    model = small()
    policy = load_policy(save(model, tmp_path / "p.keras"), spec=SPEC, head="categorical")
    obs = torch.randn(1_000, 4)
    first, first_bias, second, second_bias = model.get_weights()
    expected = np.tanh(obs.numpy() @ first + first_bias) @ second + second_bias
    np.testing.assert_allclose(params(policy, obs), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(params(policy, obs[:1]), expected[:1], rtol=1e-5, atol=1e-5)


def test_classic_network_takes_frames_with_channels_last(tmp_path: Path) -> None:
    model = classic()
    policy = load_policy(save(model, tmp_path / "p.keras"), spec=PONG, head="q_values")
    obs = frames(1_000)
    assert policy.spec.head.kind == "q_values"
    for rows in (*obs.split(100), obs[:1]):
        np.testing.assert_allclose(params(policy, rows), by_hand(model, rows.float()), rtol=1e-5, atol=1e-5)
    theirs = model(obs[:50].movedim(1, -1).float(), training=False).detach()
    np.testing.assert_allclose(params(policy, obs[:50]), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs", [FRAMES, (84 * 84 * 4,)])
def test_the_dense_network_on_all_pixels(inputs: tuple[int, ...], tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [layers.Input(inputs), layers.Flatten(), layers.Dense(512, activation="relu"), layers.Dense(6)]
    )
    policy = load_policy(save(model, tmp_path / "p.keras"), spec=PONG, head="q_values", scale=1 / 255)
    obs = frames(100)
    first, first_bias, second, second_bias = map(torch.from_numpy, model.get_weights())
    flat = obs.movedim(1, -1).flatten(1) / 255
    expected = F.relu(flat @ first + first_bias) @ second + second_bias
    np.testing.assert_allclose(params(policy, obs), expected, rtol=1e-5, atol=1e-5)


def test_a_model_with_branches(tmp_path: Path) -> None:
    entry = keras.Input((4,))
    hidden = layers.Dense(8, activation="relu")(entry)
    q = layers.Add()([layers.Dense(2)(hidden), layers.Dense(1)(hidden)])
    model = keras.Model(entry, q)
    policy = load_policy(save(model, tmp_path / "p.keras"), spec=SPEC, head="q_values")
    obs = torch.randn(5, 4)
    np.testing.assert_allclose(params(policy, obs), model(obs).detach(), rtol=1e-5, atol=1e-5)


def small_within(*last: Any) -> Any:
    return keras.Sequential([layers.Input((4,)), small(activation="softmax"), *last])


@pytest.mark.parametrize(
    "make", [lambda: small(activation="softmax"), small_within, lambda: small_within(layers.Reshape((2,)))]
)
def test_probabilities_become_logits(make: Any, tmp_path: Path) -> None:
    model = make()
    policy = load_policy(save(model, tmp_path / "p.keras"), spec=SPEC)
    obs = torch.randn(20, 4)
    np.testing.assert_allclose(params(policy, obs).softmax(-1), model(obs).detach(), atol=1e-6)


def test_compiled_model_is_read_without_its_optimizer(tmp_path: Path) -> None:
    model = small()
    model.compile("adam", "mse")
    assert load_policy(save(model, tmp_path / "p.keras"), spec=SPEC, head="q_values").spec.head.nvec == (2,)


def test_teacher_labels_in_several_processes(tmp_path: Path) -> None:
    policy = load_policy(save(small(), tmp_path / "p.keras"), spec=SPEC, head="q_values")
    config = CollectConfig(steps=200, envs_per_stream=2, block_steps=50)
    one = collect(CARTPOLE, policy, config, tmp_path / "one")
    two = collect(CARTPOLE, policy, config, tmp_path / "two", execution=Execution(workers=2))
    np.testing.assert_array_equal(one.columns["teacher"], two.columns["teacher"])


def test_outputs_that_may_be_q_values_cause_a_warning(tmp_path: Path) -> None:
    file = save(small(), tmp_path / "p.keras")
    with pytest.warns(UserWarning, match=r"p\.keras: its outputs are read as logits. Set head=q_v"):
        load_policy(file, spec=SPEC)


def test_integers_are_not_scaled(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((4,), dtype="uint8"), layers.Rescaling(1 / 255), layers.Dense(2)])
    file = save(model, tmp_path / "p.keras")
    with pytest.raises(ConfigError, match=r"^teacher.scale: .*p\.keras has an input of uint8.*Remove the option.$"):
        load_policy(file, spec=SPEC, head="q_values", scale=1 / 255)


@pytest.mark.parametrize("options", [{"activation": "relu"}, {"output": "q"}])
def test_option_of_another_format_is_refused(options: Any, tmp_path: Path) -> None:
    file = save(small(), tmp_path / "p.keras")
    with pytest.raises(ConfigError, match=rf"^teacher.{next(iter(options))}: .*p\.keras is a Keras file, .*Remove"):
        load_policy(file, spec=SPEC, **options)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (spec_from_env(EnvConfig("Acrobot-v1")), "takes observations"),
        (dataclasses.replace(SPEC, head=dataclasses.replace(SPEC.head, nvec=(3,))), r"returns \(2,\), expected \(3,\)"),
        (None, "Pass the spec of the environment"),
    ],
)
def test_file_for_another_environment_is_refused(spec: Any, words: str, tmp_path: Path) -> None:
    file = save(small(), tmp_path / "p.keras")
    with pytest.raises((SpecMismatchError, ConfigError), match=rf"p\.keras.*{words}"):
        load_policy(file, spec=spec)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    file = save(small(), tmp_path / "p.keras")
    content = file.read_bytes()
    for broken in (content[: len(content) // 2], b"", content[:-30]):
        file.write_bytes(broken)
        with pytest.raises(CorruptArtifactError, match=r"p\.keras"):
            load_policy(file, spec=SPEC)


def test_weights_that_are_nan_are_refused(tmp_path: Path) -> None:
    model = small()
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    with pytest.raises(CorruptArtifactError, match="NaN"):
        load_policy(save(model, tmp_path / "p.keras"), spec=SPEC)


def test_file_of_keras_2_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {}}))
    with pytest.raises(CorruptArtifactError, match="save it again with Keras 3"):
        load_policy(tmp_path / "p.keras", spec=SPEC)
