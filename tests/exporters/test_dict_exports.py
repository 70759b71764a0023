"""Exports of students on dict observations with pictures, in every format and in SB3."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.core.entries import split_parts
from rldistill.core.heads import HeadKind
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.envs.spaces import spec_from_env
from rldistill.exporters.config import ExportConfig
from rldistill.exporters.export import export_policy
from rldistill.exporters.program import ExportError
from rldistill.exporters.runtimes import compiler
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Cnn, Mlp, MultiInput
from rldistill.students.student import Student
from rldistill.teachers.file_policy import synthetic_observations

pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None or shutil.which("node") is None, reason="needs a C compiler and Node"),
]

ENVS = "tests.envs.picture_envs"
DESK, SCENE = EnvConfig(f"{ENVS}:Desk"), EnvConfig(f"{ENVS}:Scene")
NATURE = MultiInput((32, 64, 64), (8, 4, 3), (4, 2, 1), 9, (7,))


def small(*formats: Any) -> ExportConfig:
    return ExportConfig(formats, states=100, episodes=2)


def built(student: Student, env: EnvConfig, kind: HeadKind | None = None) -> NetworkPolicy:
    """Return a student with moments: the same for all values of a picture."""
    spec = spec_from_env(env)
    torch.manual_seed(0)
    policy = student.build(dataclasses.replace(spec, head=spec.head.as_kind(kind or spec.head.kind)))
    means, stds = [], []
    for part in spec.entries.values():
        count = 1 if part.is_picture else part.width
        means.append(torch.rand(count).expand(part.width))
        stds.append((torch.rand(count) + 0.5).expand(part.width))
    policy.standardize(torch.cat(means), torch.cat(stds))
    return policy.eval()


def test_pictures_beside_vectors_in_every_format(tmp_path: Path) -> None:
    policy = built(MultiInput((4,), (4,), (2,), 8, (16,)), DESK)
    certificate = export_policy(policy, DESK, tmp_path / "export", small("onnx", "int8", "c", "html"), progress=False)
    assert certificate.failures == []
    assert certificate.formats.pop("int8").differences["own"].agreement > 0.9
    for record in certificate.formats.values():
        assert {"own", "zeros", "all 255", "first step"} <= {*record.differences}
        assert all(difference.agreement == 1.0 for difference in record.differences.values())


@pytest.mark.parametrize(
    ("student", "kind", "changes"),
    [
        (NATURE, "categorical", {}),
        (NATURE, "q_values", {}),
        (dataclasses.replace(NATURE, hidden=()), "squashed_gaussian", {"kwargs": {"continuous": True}}),
        (NATURE, "categorical", {"wrappers": (Wrapper("ChannelsFirst"),)}),
        (
            Mlp((8,), "tanh"),
            "categorical",
            {"wrappers": (Wrapper("FilterObservation", {"filter_keys": ["goal", "speed", "lamps", "level"]}),)},
        ),
    ],
    ids=["ppo", "dqn", "sac", "channels first", "vectors"],
)
def test_multi_input_policies_in_sb3(student: Student, kind: HeadKind, changes: Any, tmp_path: Path) -> None:
    env = dataclasses.replace(SCENE, **changes)
    policy = built(student, env, kind)
    certificate = export_policy(policy, env, tmp_path / "export", small("sb3", "onnx"), progress=False)
    assert certificate.failures == []
    from stable_baselines3 import DQN, PPO, SAC

    algorithm: Any = {"categorical": PPO, "q_values": DQN, "squashed_gaussian": SAC}[kind]
    model = algorithm.load(tmp_path / "export" / "student.zip")
    obs = synthetic_observations(policy.spec, 16)
    entries = {
        key: entry.numpy().astype(policy.spec.entries[key].dtype)
        for key, entry in split_parts(obs, policy.spec).items()
    }
    with torch.no_grad():
        expected = policy(obs)[0].mode().numpy()
    np.testing.assert_allclose(model.predict(entries, deterministic=True)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("student", "env", "reason"),
    [
        (MultiInput(), SCENE, "its convolutions differ"),
        (dataclasses.replace(NATURE, activation="tanh"), SCENE, "its convolutions differ"),
        (Mlp((8,)), SCENE, "convolutions for all pictures"),
        (MultiInput(), DESK, "no action mask"),
        (
            MultiInput(),
            dataclasses.replace(DESK, wrappers=(Wrapper("FilterObservation", {"filter_keys": ["camera", "goal"]}),)),
            "no dicts within dicts",
        ),
        (
            MultiInput(),
            dataclasses.replace(DESK, wrappers=(Wrapper("FilterObservation", {"filter_keys": ["camera", "board"]}),)),
            "for no other entry",
        ),
    ],
)
def test_other_policies_are_refused_by_name(student: Student, env: EnvConfig, reason: str, tmp_path: Path) -> None:
    policy = built(student, env)
    with pytest.raises(ExportError, match=reason):
        export_policy(policy, env, tmp_path / "export", small("sb3"), progress=False)
    assert [*tmp_path.iterdir()] == []


def test_one_picture_in_a_dict_needs_multi_input(tmp_path: Path) -> None:
    env = dataclasses.replace(SCENE, wrappers=(Wrapper("FilterObservation", {"filter_keys": ["left"]}),))
    with pytest.raises(Exception, match="Use multi_input"):
        Cnn().build(spec_from_env(env))
    certificate = export_policy(built(NATURE, env), env, tmp_path / "export", small("sb3"), progress=False)
    assert certificate.failures == []


@pytest.mark.parametrize("name", ["action", "logits", "state_out"])
def test_entry_with_the_name_of_an_output_is_refused_by_onnx_alone(name: str, tmp_path: Path) -> None:
    env = EnvConfig("tests.envs.user_envs:named_entry", {"name": name})
    policy = built(Mlp((4,)), env)
    with pytest.raises(ExportError, match=f"onnx: the entry '{name}' of the observation .* use c or html"):
        export_policy(policy, env, tmp_path / "onnx", small("onnx"), progress=False)
    assert export_policy(policy, env, tmp_path / "c", small("c"), progress=False).failures == []


@pytest.mark.parametrize("name", ["const_0", "sub_0", "gemm_2", "argmax_5"])
def test_entry_may_have_the_name_of_a_result_within_the_model(name: str, tmp_path: Path) -> None:
    env = EnvConfig("tests.envs.user_envs:named_entry", {"name": name})
    policy = built(Mlp((4,)), env)
    assert export_policy(policy, env, tmp_path / "onnx", small("onnx"), progress=False).failures == []


def test_type_that_c_does_not_have_is_refused_by_c_alone(tmp_path: Path) -> None:
    env = EnvConfig("tests.envs.user_envs:make", {"kind": "Halves"})
    policy = built(Mlp((4,)), env)
    with pytest.raises(ExportError, match=r"^c: C has no float16, .* Use onnx, or convert it by DtypeObservation"):
        export_policy(policy, env, tmp_path / "c", small("c"), progress=False)
    assert export_policy(policy, env, tmp_path / "onnx", small("onnx"), progress=False).failures == []
