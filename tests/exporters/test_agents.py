"""One exported file for each network of a team, and their certificate as a team."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rldistill.core.errors import CorruptArtifactError
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import play
from rldistill.exporters.certificate import Certificate
from rldistill.exporters.config import ExportConfig
from rldistill.exporters.export import export_policy
from rldistill.exporters.formats import AgentsRuntime, file_of
from rldistill.exporters.metadata import ExportContext
from rldistill.exporters.program import ExportError
from rldistill.exporters.runtimes import Interface
from rldistill.exporters.verify import verify_export
from rldistill.students import Gru, Linear, Mlp, Team, Tree
from rldistill.students.storage import save_policy
from rldistill.students.team import TeamPolicy
from rldistill.teachers.load import SavedTeacher, TeamTeacher

from ..envs import multi_agent_envs
from .test_runtimes import metadata_of, randomized

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

ID = f"pettingzoo:{multi_agent_envs.__name__}:make_signals"
ENV, LEAVING = EnvConfig(ID), EnvConfig(ID, {"leaves_at": 4, "alive": True})
CONTINUOUS = EnvConfig(ID, {"continuous": True})
CONFIG = ExportConfig(("agents",), states=60, episodes=3)
TEAMS = {
    "mlp": (ENV, Team(student=Mlp((8,)))),
    "identity": (ENV, Team(student=Linear(), identity=True)),
    "gru": (ENV, Team(student=Gru(6, (8,)), sharing="none")),
    "tree": (ENV, Team(student=Tree(nodes=7))),
    "leaving": (LEAVING, Team(student=Mlp((8,)))),
    "continuous": (CONTINUOUS, Team(student=Mlp((8,)))),
    "all": (EnvConfig(ID.replace("signals", "pair")), Team(student=Mlp((8,)), sharing="all")),
}


def build(name: str) -> tuple[EnvConfig, TeamPolicy]:
    env, student = TEAMS[name]
    torch.manual_seed(0)
    policy = student.build(spec_from_env(env))
    assert isinstance(policy, TeamPolicy)
    for network in policy.groups:
        randomized(policy.member(network)).obs_clip = {}  # students have none, and a team stores none
    return env, policy.eval()


@pytest.mark.parametrize("name", TEAMS)
def test_files_of_the_networks_play_together_as_the_team(name: str, tmp_path: Path) -> None:
    env, policy = build(name)
    certificate = export_policy(policy, env, tmp_path / "export", CONFIG, progress=False)
    assert certificate.failures == []
    record = certificate.formats["agents"]
    assert record.closed_loop is not None
    assert record.closed_loop.keeps_95 == "identical"
    assert {*record.files} == {file_of(network) for network in policy.groups}
    for network, agents in policy.groups.items():
        assert metadata_of(tmp_path / "export" / file_of(network))["agents"] == agents


def test_export_is_verified_and_overwritten(tmp_path: Path) -> None:
    env, policy = build("mlp")
    save_policy(policy, tmp_path / "team", {})
    context = ExportContext("../team")
    export_policy(policy, env, tmp_path / "export", CONFIG, context, progress=False)
    export_policy(policy, env, tmp_path / "export", CONFIG, context, "overwrite", progress=False)
    again = verify_export(tmp_path / "export", env, progress=False)
    assert again.failures == []
    assert again.formats["agents"].closed_loop is not None
    path = tmp_path / "export" / file_of("far")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptArtifactError, match=r"agents\.far\.onnx: missing or changed"):
        Certificate.read(tmp_path / "export")
    with pytest.raises(CorruptArtifactError, match="there is no file for far_0"):
        AgentsRuntime(Interface.of(policy), tmp_path / "export", [file_of("near")])


def test_default_formats_of_a_team_have_its_networks(tmp_path: Path) -> None:
    env, policy = build("mlp")
    certificate = export_policy(policy, env, tmp_path / "a", ExportConfig(states=20, episodes=2), progress=False)
    assert [*certificate.formats] == ["onnx", "c", "agents"]
    env = EnvConfig("CartPole-v1")
    single = Mlp((4,)).build(spec_from_env(env)).eval()
    with pytest.raises(ExportError, match=r"^export\.formats: agents is for a team, not for a mlp"):
        export_policy(single, env, tmp_path / "b", CONFIG, progress=False)


def test_files_teach_as_one_policy_for_each_type(tmp_path: Path) -> None:
    env, policy = build("mlp")
    export_policy(policy, env, tmp_path, CONFIG, progress=False)
    paths = {network: SavedTeacher(str(tmp_path / file_of(network))) for network in policy.groups}
    teacher = TeamTeacher(paths).load(policy.spec)
    assert np.array_equal(play(env, teacher, 3).returns, play(env, policy, 3).returns)
