from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.heads import (
    ActionHead,
    CategoricalHead,
    DeterministicHead,
    GaussianHead,
    MultiCategoricalHead,
    QValuesHead,
    SquashedGaussianHead,
)
from rldistill.core.spec import PolicySpec
from rldistill.io.atomic import write_json
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent, Cnn, Linear, Mlp
from rldistill.students.features import Features
from rldistill.students.storage import USER_CLASSES, load_native, save_policy
from rldistill.students.student import Student
from rldistill.teachers.fingerprint import fingerprint

FRAMES = PolicySpec((4, 84, 84), "uint8", QValuesHead((6,)))
VECTOR = PolicySpec((8,), "float32", CategoricalHead((4,)))
MLP = {"hidden": [8], "activation": "relu", "features": {"type": "raw"}}
HEADS = [
    CategoricalHead((3,)),
    QValuesHead((3,)),
    MultiCategoricalHead((3, 2)),
    DeterministicHead(low=(-1.0, -2.0), high=(1.0, 2.0)),
    GaussianHead(low=(-1.0, -2.0), high=(1.0, 2.0)),
    SquashedGaussianHead(low=(-1.0, -2.0), high=(1.0, 2.0)),
]


def observations(spec: PolicySpec, count: int) -> torch.Tensor:
    if spec.obs_dtype == "uint8":
        return torch.randint(0, 256, (count, *spec.obs_shape), dtype=torch.uint8)
    return torch.randn(count, *spec.obs_shape)


def test_the_classic_network_has_the_classic_size() -> None:
    # 4*32*64+32 + 32*64*16+64 + 64*64*9+64 + 3136*512+512 + 512*6+6
    policy = Cnn((32, 64, 64), (8, 4, 3), (4, 2, 1), (512,)).build(FRAMES)
    assert sum(p.numel() for p in policy.parameters()) == 8224 + 32832 + 36928 + 1606144 + 3078 == 1_687_206


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
@pytest.mark.parametrize("student", [Linear(), Mlp((8,), "tanh")], ids=["linear", "mlp"])
def test_every_head_acts_within_its_space_and_comes_back_as_it_was(
    tmp_path: Path, head: ActionHead, student: AnyStudent
) -> None:
    spec = PolicySpec((5,), "float32", head)
    policy = student.build(spec)
    policy.standardize(torch.randn(5), torch.rand(5) + 0.5)
    save_policy(policy, tmp_path, {})
    again = load_native(tmp_path)
    obs = observations(spec, 7)
    before, after = policy(obs)[0], again(obs)[0]
    torch.testing.assert_close(before.params, after.params, rtol=0, atol=0)
    assert again.spec == spec
    assert again.config == student
    for action in (after.mode(), after.sample(torch.Generator().manual_seed(0))):
        if head.discrete:
            assert (action < max(head.nvec)).all()
        else:
            assert (action >= torch.tensor(head.low)).all()
            assert (action <= torch.tensor(head.high)).all()


def test_half_precision_takes_half_the_bytes_and_acts_alike(tmp_path: Path) -> None:
    policy = Cnn().build(FRAMES)
    save_policy(policy, tmp_path / "half", {}, half=True)
    save_policy(policy, tmp_path / "full", {})
    sizes = [(tmp_path / name / "policy.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.51 * sizes[1]
    obs = observations(FRAMES, 4)
    torch.testing.assert_close(load_native(tmp_path / "half")(obs)[0].params, policy(obs)[0].params, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_or_a_missing_end_is_detected(tmp_path: Path, seed: int) -> None:
    save_policy(Mlp((8,)).build(VECTOR), tmp_path, {})
    path = tmp_path / "policy.safetensors"
    content = bytearray(path.read_bytes())
    rng = random.Random(seed)
    if seed % 2:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: rng.randrange(len(content))])
    with pytest.raises(CorruptArtifactError, match=r"policy\.safetensors"):
        load_native(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"student": "os.system"}, "student"),
        ({"config": {**MLP, "hidden": [-4]}}, "hidden"),
        ({"config": {**MLP, "unknown": 1}}, "unknown"),
        ({"spec": {}}, "spec"),
        ({"config": {**MLP, "hidden": [16]}}, "not the weights"),
        ({"weights_sha256": "0"}, "SHA-256"),
    ],
)
def test_a_changed_policy_json_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save_policy(Mlp((8,)).build(VECTOR), tmp_path, {})
    path = tmp_path / "policy.json"
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(CorruptArtifactError, match=message):
        load_native(tmp_path)


def test_invalid_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lstm\.1: found 1180591620717411303424, expected at most"):
        Actor(lstm=(8, 1 << 70))
    with pytest.raises(ConfigError, match="hidden"):
        Mlp((0,))
    with pytest.raises(ConfigError, match="Did you mean 'relu'"):
        Mlp(activation="rel")
    with pytest.raises(ConfigError, match="kernels: expected one for each of the"):
        Cnn(channels=(4,))
    with pytest.raises(ConfigError, match="larger than its input"):
        Cnn((4, 4), (80, 80), (4, 1)).build(FRAMES)
    with pytest.raises(ConfigError, match="channels, height, width"):
        Cnn().build(VECTOR)


def test_images_with_channels_last_are_refused() -> None:
    spec = PolicySpec((96, 96, 3), "uint8", CategoricalHead((5,)))
    with pytest.raises(ConfigError, match="ChannelsFirst"):
        Cnn().build(spec)


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [
        ({"name": "os:system", "kwargs": {}}, "a policy may name"),
        ({"name": "RecordVideo", "kwargs": {"video_folder": "x"}}, "a policy may name"),
        ({"name": "TimeFeature", "kwargs": {"max_steps": 10**9}}, "a policy may name"),
        ({"name": "TimeFeature"}, r"spec\.view\.0\.kwargs: is missing"),
        ("TimeFeature", r"spec\.view\.0"),
    ],
)
def test_a_policy_file_names_only_harmless_wrappers(tmp_path: Path, wrapper: object, words: str) -> None:
    save_policy(Linear().build(VECTOR), tmp_path, {})
    document = json.loads((tmp_path / "policy.json").read_text())
    document["spec"]["view"] = [wrapper]
    write_json(tmp_path / "policy.json", document)
    with pytest.raises(CorruptArtifactError, match=words):
        load_native(tmp_path)


@dataclass(frozen=True)
class Own(Student):
    """Student of a user, whose body holds a table of some dtype."""

    dtype: str

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        body = nn.Sequential(nn.Linear(8, 4))
        body.register_buffer("table", torch.ones(3, dtype=getattr(torch, self.dtype)))
        return NetworkPolicy(self, spec, body, 4)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64"])
def test_tensors_of_own_students_are_stored_in_any_dtype(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(USER_CLASSES, f"{__name__}:Own", Own)
    policy = Own(dtype).build(VECTOR)
    table = torch.tensor([0, 1, 1], dtype=getattr(torch, dtype))
    policy.body.table.copy_(table)
    save_policy(policy, tmp_path, {})
    again = load_native(tmp_path)
    assert again.body.table.dtype == table.dtype
    assert torch.equal(again.body.table, table)
    assert fingerprint(again) == fingerprint(policy)
    policy.body.table.zero_()
    assert fingerprint(again) != fingerprint(policy)
    document = json.loads((tmp_path / "policy.json").read_text())
    document["config"]["dtype"] = "int32"
    write_json(tmp_path / "policy.json", document)
    with pytest.raises(CorruptArtifactError, match=rf"table is of torch\.{dtype}; expected int32"):
        load_native(tmp_path)


class Scaled(nn.Module):
    """Layer with tensors that are no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.arange(8.0), persistent=False)
        self.shift = torch.ones(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) * self.scale + self.shift


@dataclass(frozen=True)
class Scaling(Student):
    def build(self, spec: PolicySpec) -> NetworkPolicy:
        return NetworkPolicy(self, spec, Scaled(), 8)


@dataclass(frozen=True)
class ScaledFeatures(Features):
    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        return nn.Sequential(Scaled()), 8


@pytest.mark.parametrize("student", [Scaling(), Linear(features=ScaledFeatures())], ids=["student", "features"])
@pytest.mark.parametrize("value", [False, True])
def test_tensors_of_own_classes_outside_their_state_have_their_values(
    tmp_path: Path, student: AnyStudent, value: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Scaling, ScaledFeatures):
        monkeypatch.setitem(USER_CLASSES, f"{__name__}:{kind.__name__}", kind)
    policy = student.build(VECTOR)
    if value:
        policy.add_value()
    save_policy(policy, tmp_path, {})
    obs, before = observations(VECTOR, 5), torch.get_rng_state()
    output = load_native(tmp_path)(obs)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(output.params, policy(obs)[0].params, rtol=0, atol=0)
    assert (output.value is None) != value
