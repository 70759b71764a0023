"""Networks of the user's own that fail are refused before any data are collected, with the user's file and line."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rldistill.core.errors import ConfigError
from rldistill.core.heads import MultiCategoricalHead
from rldistill.core.spec import AgentSpec, ObsPart, PolicySpec
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import require_fit
from rldistill.envs.spaces import spec_from_env
from rldistill.students import Linear, Mlp, Ridge, Team, Tree
from rldistill.students.storage import load_native, save_policy, trust
from rldistill.students.student import build_student

from ..conftest import CARTPOLE, q_spec

MODULE = """
import torch
from torch import nn
from rldistill import Features, NetworkPolicy, Student, validated_dataclass

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x):
        {forward}

@validated_dataclass
class Mine(Student):
    def build(self, spec):
        return NetworkPolicy(self, spec, nn.Sequential({body}), 8)

@validated_dataclass
class MyFeatures(Features):
    def build(self, spec):
        return nn.Sequential({body}), 8
"""
WIDTH = r"failed: RuntimeError: mat1 and mat2 .*\(build: own_{name}\.py, line {line}\)\. Correct its layers\."
CASES = {
    "inner_width": ("nn.Linear(4, 8), nn.Linear(9, 8)", "return x", WIDTH),
    "input_width": ("nn.Linear(7, 8)", "return x", WIDTH),
    "output_width": ("nn.Linear(4, 5)", "return x", r"(failed: RuntimeError: mat1 and mat2|returns).*"),
    "raises": (
        "Layer()",
        "raise ValueError('no power')",
        r"failed: ValueError: no power \(.*own_{name}\.py, line 12\)",
    ),
    "exits": ("Layer()", "return x['speed']", r"failed: IndexError: .* \(.*own_{name}\.py, line 12\)"),
    "one_row": (
        "Layer()",
        "return self.linear(x)[0]",
        r"returns torch\.float32 of \[2\], expected float32 of \[2, 2\]",
    ),
    "more_axes": ("Layer()", "return self.linear(x)[:, None]", r"returns torch\.float32 of \[2, 1, 2\], expected"),
    "nothing": ("Layer()", "return None", r"failed: TypeError: .*\(build: own_{name}\.py, line {line}\)"),
    "leaves": ("Layer()", "raise GeneratorExit", r"failed: GeneratorExit \(.*own_{name}\.py, line 12\)"),
    "half": ("Layer()", "return self.linear(x).half()", r"failed: RuntimeError: .*dtype"),
}


@pytest.mark.parametrize("name", CASES)
def test_failing_student_is_refused_with_its_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, forward, problem = CASES[name]
    (tmp_path / f"own_{name}.py").write_text(MODULE.format(body=body, forward=forward))
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module(f"own_{name}")
    with pytest.raises(
        ConfigError, match=r"^students: Mine: its network " + problem.format(name=name, line=16)
    ) as error:
        require_fit(own.Mine(), DistillConfig(), spec_from_env(CARTPOLE))
    assert str(error.value).isprintable()
    if name in ("inner_width", "input_width", "raises"):
        for student in (
            Mlp((8,), features=own.MyFeatures()),
            Linear(features=own.MyFeatures()),
            Ridge(features=own.MyFeatures()),
            Tree(features=own.MyFeatures()),
        ):
            with pytest.raises(
                ConfigError, match=r"^students: MyFeatures: its network " + problem.format(name=name, line=21)
            ):
                require_fit(student, DistillConfig(), q_spec(CARTPOLE))


def test_student_without_weights_to_train_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MODULE.format(body="nn.Linear(4, 8)", forward="return x")
    (tmp_path / "own_frozen.py").write_text(text.replace("), 8)", "), 8).requires_grad_(False)", 1))
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("own_frozen")
    with pytest.raises(ConfigError, match=r"^students: Mine: none of its weights has requires_grad"):
        require_fit(own.Mine(), DistillConfig(), spec_from_env(CARTPOLE))


@pytest.mark.parametrize("change", ["obs.add_(1)", "obs[:, 0] = 3", "nn.functional.hardsigmoid(obs, inplace=True)"])
def test_network_that_changes_its_observations_is_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MODULE.format(body="nn.Linear(4, 8)", forward="return x").replace(
        "return NetworkPolicy(", "return Changing("
    )
    changing = f"""
class Changing(NetworkPolicy):
    def forward(self, obs, state=None):
        {change}
        return super().forward(obs, state)
"""
    (tmp_path / "own_changing.py").write_text(text + changing)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_changing", None)
    own = importlib.import_module("own_changing")
    with pytest.raises(ConfigError, match=r"^students: Mine: its network changes its observations in place\. Change a"):
        require_fit(own.Mine(), DistillConfig(), spec_from_env(CARTPOLE))


def test_stored_team_of_own_networks_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_member.py").write_text(MODULE.format(body="nn.Linear(2, 8)", forward="return x"))
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("own_member")
    trust(own.Mine)
    parts = (("near_0", ObsPart((2,), "float32")), ("near_1", ObsPart((2,), "float32")))
    agents = AgentSpec("near_0", "near", 1), AgentSpec("near_1", "near", 1)
    spec = replace(PolicySpec.from_parts(parts, MultiCategoricalHead((2, 2))), agents=agents)
    policy = Team(student=own.Mine()).build(spec).eval()
    save_policy(policy, tmp_path / "team", {})
    obs = torch.rand(3, 4)
    assert torch.equal(load_native(tmp_path / "team")(obs)[0].params, policy(obs)[0].params)


def test_probe_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MODULE.format(
        body="Layer(), nn.BatchNorm1d(8), nn.Dropout(0.5)", forward="return self.linear(x) + torch.rand(1)"
    )
    (tmp_path / "own_whole.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    own, spec = importlib.import_module("own_whole"), spec_from_env(CARTPOLE)
    torch.manual_seed(3)
    expected, after = own.Mine().build(spec), torch.rand(3)
    torch.manual_seed(3)
    policy = build_student(own.Mine(), spec)
    assert torch.equal(torch.rand(3), after)
    assert policy.training
    assert all(torch.equal(policy.state_dict()[key], value) for key, value in expected.state_dict().items())
