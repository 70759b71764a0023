"""Fixed features: by hand on small screens, and stored with their students."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import PolicySpec
from rldistill.io.atomic import write_json
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Cnn, Linear, Mlp, Ridge, Tree
from rldistill.students.features import (
    FEATURES,
    AnyFeatures,
    Fourier,
    Objects,
    RandomConv,
    Raw,
    Standardized,
    Standardizer,
    TeacherFeatures,
)
from rldistill.students.storage import load_native, save_policy

HEAD = CategoricalHead((3,))
SCREEN = PolicySpec((2, 12, 16), "uint8", HEAD)
SMALL: dict[str, AnyFeatures] = {
    "raw": Raw(),
    "standardized": Standardized(),
    "fourier": Fourier(7),
    "random_conv": RandomConv((3, 5), (4, 3), (2, 1)),
    "teacher": TeacherFeatures(),
    "objects": Objects((("left", 0, 12, 0, 6), ("right", 0, 12, 6, 16))),
}


def screens(count: int, seed: int = 0) -> Tensor:
    """Black, with two bright squares somewhere in each frame."""
    rng = np.random.default_rng(seed)
    obs = np.zeros((count, *SCREEN.obs_shape), np.uint8)
    for picture in obs.reshape(-1, 12, 16):
        for value in (100, 240):
            row, column = rng.integers(0, 10), rng.integers(0, 14)
            picture[row : row + 2, column : column + 2] = value
    return torch.from_numpy(obs)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cnn")
    torch.manual_seed(3)
    save_policy(Cnn((4,), (4,), (2,), (9,)).build(SCREEN), folder, {})
    return folder


def built(name: str, student: type[Linear | Mlp | Ridge | Tree], cnn: Path) -> NetworkPolicy:
    torch.manual_seed(0)
    features = TeacherFeatures().load(load_native(cnn)) if name == "teacher" else SMALL[name]
    policy = student(features=features).build(SCREEN)
    policy.fit_features(screens(200))
    return policy


def test_every_kind_is_tested() -> None:
    assert SMALL.keys() == FEATURES.keys()


@pytest.mark.parametrize("student", [Linear, Mlp, Ridge, Tree])
@pytest.mark.parametrize("name", FEATURES)
def test_a_loaded_student_has_the_same_outputs(name: str, student: type[Linear], cnn: Path, tmp_path: Path) -> None:
    policy, obs = built(name, student, cnn), screens(20, 1)
    save_policy(policy, tmp_path, {})
    again = load_native(tmp_path)
    assert again.config == policy.config
    for one, other in zip(policy(obs), again(obs), strict=True):
        if one is not None:
            assert torch.equal(one.params, other.params)  # type: ignore[union-attr]
            assert torch.equal(one.features, other.features)  # type: ignore[arg-type,union-attr]
    alone = torch.cat([policy(obs[k : k + 1])[0].features for k in range(20)])  # type: ignore[misc]
    torch.testing.assert_close(alone, policy(obs)[0].features)


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "raw"])
def test_only_the_last_layer_is_trained(name: str, cnn: Path) -> None:
    policy = built(name, Linear, cnn)
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == 3 * (policy.width + 1)


def test_standardized_features_are_clipped() -> None:
    standardizer = Standardizer(2)
    standardizer.fit_features(torch.tensor([[0.0, 5.0], [2.0, 5.002]]))  # means 1 and 5.001, deviations 1 and 0.001
    found = standardizer(torch.tensor([[4.0, 6.0], [-1.0, 4.0], [21.0, 5.001]]))
    torch.testing.assert_close(found, torch.tensor([[3.0, 20.0], [-2.0, -20.0], [20.0, 0.0]]), atol=1e-2, rtol=0)


def test_standardized_pixels_match_numpy() -> None:
    policy, obs = Linear(Standardized()).build(SCREEN), screens(50)
    policy.fit_features(obs)
    flat = obs.flatten(1).numpy() / 255
    std = flat.std(0)
    expected = (flat - flat.mean(0)) / np.where(std < 1e-6, 1, std)
    np.testing.assert_allclose(policy(obs)[0].features, expected, atol=1e-4)  # type: ignore[arg-type]


def test_features_of_a_teacher_are_its_last_hidden_layer(cnn: Path) -> None:
    network, obs = load_native(cnn), screens(30)
    policy = Linear(TeacherFeatures().load(load_native(cnn))).build(SCREEN)
    assert torch.equal(policy(obs)[0].features, network(obs)[0].features)  # type: ignore[arg-type]
    policy.fit_features(obs)
    torch.testing.assert_close(policy(obs)[0].features.mean(0), torch.zeros(9), atol=1e-5, rtol=0)  # type: ignore[union-attr]


def test_features_of_a_network_that_has_features_and_a_value(tmp_path: Path) -> None:
    spec = PolicySpec((4,), "float32", HEAD)
    network, obs = Mlp((5,), features=Fourier(6)).build(spec), torch.randn(7, 4)
    network.add_value()
    save_policy(network, tmp_path / "teacher", {})
    policy = Mlp((3,), features=TeacherFeatures().load(load_native(tmp_path / "teacher"))).build(spec)
    assert torch.equal(policy.frozen_features(obs), network(obs)[0].features)  # type: ignore[arg-type]
    save_policy(policy, tmp_path / "student", {})
    assert torch.equal(load_native(tmp_path / "student")(obs)[0].params, policy(obs)[0].params)


def test_features_of_a_network_keep_the_limits_of_its_observations(tmp_path: Path) -> None:
    spec = PolicySpec((4,), "float32", HEAD)
    network, obs = Mlp((5,)).build(spec), 9 * torch.randn(7, 4)
    network.obs_clip = {"": 0.5}
    policy = Linear(TeacherFeatures().load(network)).build(spec)
    save_policy(policy, tmp_path, {})
    loaded = load_native(tmp_path)
    assert torch.equal(loaded(obs)[0].params, policy(obs)[0].params)
    assert torch.equal(loaded(obs)[0].params, loaded(obs.clamp(-0.5, 0.5))[0].params)


def test_objects_by_hand() -> None:
    regions = (("left", 0, 12, 0, 6), ("right", 0, 12, 6, 16))
    obs = torch.full((1, 2, 12, 16), 87, dtype=torch.uint8)
    obs[0, 0, 4:6, 8:10] = 236  # at (4.5, 8.5), then at (6.5, 12.5), and two pixels at (3, 1) which were not there
    obs[0, 1, 6:8, 12:14] = 236
    obs[0, 1, 3, 0], obs[0, 1, 3, 1] = 127, 207  # which differ by 40 and by 120
    features = Objects(regions)
    values = Linear(features).build(SCREEN)(obs)[0].features
    assert values is not None
    named = dict(zip(features.names(2), values[0].tolist(), strict=True))
    assert named == {
        "left row": 3, "left column": 0.75, "left row moved": 0, "left column moved": 0,
        "right row": 6.5, "right column": 12.5, "right row moved": 2, "right column moved": 4,
        "left size": 2, "right size": 4,
        "left row - right row": -3.5, "left column - right column": -11.75,
        "left soon in right column": 0, "left row - right row when in right column": 0,
        "left soon in right row": 0, "left column - right column when in right row": 0,
        "right soon in left column": 0, "right row - left row when in left column": 0,
        "right soon in left row": 0, "right column - left column when in left row": 0,
    }  # fmt: skip


def test_meetings_of_objects_by_hand() -> None:
    """The ball, 3 to the right and 2 down a frame from (8, 4), is in the paddle's column 13 after 3 frames: at row 14,
    were it not for the wall at 11, so at 8, which is 6 below the paddle's row 2. It never comes to that row."""
    obs = torch.zeros(1, 2, 12, 16, dtype=torch.uint8)
    obs[0, 0, 6, 1] = obs[0, 1, 8, 4] = obs[0, :, 2, 13] = 200
    features = Objects((("ball", 0, 12, 0, 12), ("paddle", 0, 12, 12, 16)))
    values = Linear(features).build(SCREEN)(obs)[0].features
    assert values is not None
    named = dict(zip(features.names(2), values[0].tolist(), strict=True))
    assert named["ball soon in paddle column"] == 1 / (1 + 3)
    assert named["ball row - paddle row when in paddle column"] == 6
    assert named["ball soon in paddle row"] == named["ball column - paddle column when in paddle row"] == 0
    assert named["paddle soon in ball column"] == 0
    obs[0, 1, 8, 4], obs[0, 1, 2, 9] = 0, 200  # in the paddle's row now
    values = Linear(features).build(SCREEN)(obs)[0].features
    assert values is not None
    named = dict(zip(features.names(2), values[0].tolist(), strict=True))
    assert named["ball soon in paddle row"] == 1
    assert named["ball column - paddle column when in paddle row"] == 9 - 13


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fourier(0), "num_features"),
        (lambda: Fourier(bandwidth=0.0), "bandwidth"),
        (lambda: RandomConv((3,), (4, 3)), "channels"),
        (lambda: Objects(), "regions"),
        (lambda: Objects((("ball", 9, 3, 0, 4),)), "top < bottom"),
        (lambda: Linear(Objects((("ball", 0, 13, 0, 4),))).build(SCREEN), "beyond the screen"),
        (lambda: Linear(Objects((("b", 0, 9, 0, 9),))).build(PolicySpec((4, 20, 20), "float32", HEAD)), "bytes"),
        (lambda: Linear(RandomConv((3,), (14,), (1,))).build(SCREEN), "larger than its input"),
        (lambda: Linear(TeacherFeatures()).build(SCREEN), r"features\.policy"),
        (lambda: Linear(TeacherFeatures("a/path")).build(SCREEN), "not loaded"),
    ],
)
def test_invalid_features_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_features_of_another_environment_are_refused(tmp_path: Path) -> None:
    save_policy(Mlp((3,)).build(PolicySpec((4,), "float32", HEAD)), tmp_path, {})
    with pytest.raises(SpecMismatchError, match="observation shape"):
        Linear(TeacherFeatures().load(load_native(tmp_path))).build(SCREEN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"type": "keras", "model": "os:getcwd"}}, r"network: expected one of actor, mlp, cnn, impala"),
        ({"network": {"type": "cnn", "channels": [4]}}, r"network\.Cnn\.kernels"),
        ({"type": "module:Class"}, "expected one of raw"),
        ({"head": {"kind": "q_values", "nvec": ["many"], "low": [], "high": []}}, r"head\.nvec\.0"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_invalid_features_in_a_file_are_refused(
    cnn: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_policy(built("teacher", Linear, cnn), tmp_path, {})
    document = json.loads((tmp_path / "policy.json").read_text())
    document["config"]["features"] |= change
    write_json(tmp_path / "policy.json", document)
    with pytest.raises(CorruptArtifactError, match=message):
        load_native(tmp_path)
