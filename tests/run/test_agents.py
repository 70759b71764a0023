"""Mistakes in run files of many agents: one clear line each, before anything is collected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.students import Linear, Team
from rldistill.students.storage import save_policy

from ..envs import multi_agent_envs

SIGNALS, PAIR, TURNS = (f"pettingzoo:{multi_agent_envs.__name__}:make_{name}" for name in ("signals", "pair", "turns"))
STACK = [{"name": "StackFrames", "kwargs": {"stack": 2}}]
TEACHER = """
import torch
from rldistill.policies.joint import RandomTeam


def make(spec):
    return RandomTeam(spec, torch.Generator().manual_seed(0))
"""


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("turns", {"env": {"id": TURNS}}, "env.id: its agents take turns, and PettingZoo cannot convert it"),
        (
            "shared",
            {"students": {"s": {"type": "team", "student": "linear", "sharing": "all"}}},
            "students: near_0 and far_0 have different observations or actions, so that they cannot share a network",
        ),
        ("teacher", {"teacher": "saved"}, "number of agents is 2 for saved, 3 for "),
        (
            "rewards",
            {"env": {"id": SIGNALS, "kwargs": {"own_rewards": True}}},
            "env: the rewards of the team differ (1, 1, 0). Set env.kwargs: {team_reward: sum}",
        ),
        (
            "views",
            {"env": {"id": SIGNALS, "views": {"student": [{"name": "AgentViews", "kwargs": {"nera": []}}]}}},
            "env.wrappers: AgentViews: there is no agent 'nera'. Did you mean 'near'? See `rldistill doctor env`.",
        ),
        (
            "apart",
            {
                "env": {"id": SIGNALS, "views": {"student": [{"name": "AgentViews", "kwargs": {"near_1": STACK}}]}},
                "students": {"s": {"type": "team", "student": "linear"}},
            },
            "students: near_0 and near_1 have different observations or actions, so that they cannot share a network",
        ),
        ("single", {"env": {"id": "CartPole-v1"}}, "students: the environment has one agent"),
        (
            "training",
            {"teacher": {"train": {"agents": "shared"}}},
            "train.agents: near_0 and far_0 have different observations or actions",
        ),
    ],
)
def test_mistake_is_one_line_before_anything_is_collected(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pettingzoo", reason="needs the extra multiagent")
    monkeypatch.chdir(tmp_path)
    module = f"random_teacher_{name}"
    Path(f"{module}.py").write_text(TEACHER, encoding="utf-8")
    torch.manual_seed(0)
    save_policy(Team(student=Linear()).build(spec_from_env(EnvConfig(PAIR))), Path("saved"), {})
    document = {
        "env": {"id": SIGNALS},
        "teacher": f"{module}:make",
        "collect": {"steps": 100},
        "students": {"s": {"type": "team", "student": "linear"}},
        "out": "out",
        **changes,
    }
    Path("run.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    result = CliRunner().invoke(app, ["run", "run.yaml", "--quiet"])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.stderr.count("error: ") == len(errors) == 1
    assert message in " ".join(result.stderr.split())
    assert not list(Path("out").glob("dataset/blocks/*"))
