"""Exported teams compute the joint actions of their agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rldistill.core.heads import MASK, ActionHead, DeterministicHead, GaussianHead, MultiCategoricalHead
from rldistill.core.spec import AgentSpec, ObsPart, PolicySpec
from rldistill.exporters.lowering import lower_policy
from rldistill.exporters.runtimes import ExportedPolicy
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent, Gru, Linear, Mlp, Team, Tree
from rldistill.students.team import TeamPolicy

from .test_runtimes import in_c, in_javascript, in_onnx, randomized, require_same

pytestmark = pytest.mark.slow

AGENTS = (AgentSpec("near_0", "near", 1), AgentSpec("near_1", "near", 1), AgentSpec("far_0", "far", 2))
BOUNDS = {"low": (-1.0, -1.0, -2.0, -1.0), "high": (1.0, 1.0, 2.0, 1.0)}
HEADS = [MultiCategoricalHead((3, 3, 2, 4)), DeterministicHead(**BOUNDS), GaussianHead(**BOUNDS)]
TEAMS: dict[str, AnyStudent] = {
    "mlp": Team(student=Mlp((8,))),
    "identity": Team(student=Linear(), identity=True),
    "gru": Team(student=Gru(6, (8,)), sharing="none"),
    "tree": Team(student=Tree(nodes=7)),
}


def spec_for(head: ActionHead) -> PolicySpec:
    parts = [
        ("far_0.cell", ObsPart((), "int64", (4,))),
        ("far_0.place", ObsPart((3,), "float32")),
        ("near_0", ObsPart((2,), "float32")),
        ("near_1", ObsPart((2,), "float32")),
    ]
    if head.discrete:
        parts.append((MASK, ObsPart((sum(head.choices),), "int8")))
    return dataclasses.replace(PolicySpec.from_parts(tuple(parts), head), agents=AGENTS)


def teams(name: str) -> list[NetworkPolicy]:
    built = []
    for head in HEADS:
        torch.manual_seed(0)
        policy = TEAMS[name].build(spec_for(head))
        assert isinstance(policy, TeamPolicy)
        for network in policy.groups:
            randomized(policy.member(network))
        built.append(policy.eval())
    return built


@pytest.mark.parametrize("name", TEAMS)
@pytest.mark.parametrize("export", [in_onnx, in_c, in_javascript])
def test_exported_team_acts_as_its_agents(
    name: str, export: Callable[[NetworkPolicy, Path], ExportedPolicy], tmp_path: Path
) -> None:
    for number, policy in enumerate(teams(name)):
        folder = tmp_path / str(number)
        folder.mkdir()
        require_same(policy, export(policy, folder))


@pytest.mark.parametrize("export", [in_onnx, in_c, in_javascript])
def test_exported_teacher_of_single_agents_acts_as_they_do(
    export: Callable[[NetworkPolicy, Path], ExportedPolicy], tmp_path: Path
) -> None:
    team = teams("mlp")[0]
    assert isinstance(team, TeamPolicy)
    program, joint = lower_policy(team), lower_policy(team.joint)
    assert [node.kind for node in joint.nodes] == [node.kind for node in program.nodes]
    require_same(team, export(team.joint, tmp_path))  # type: ignore[arg-type]
