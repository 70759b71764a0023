"""Fingerprints of teachers: the same wherever a teacher was read, and another for other outputs."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from rldistill.core.heads import QValuesHead
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.actor_critic import Actor
from rldistill.policies.ensemble import Ensemble
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import save_policy
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import load_policy

from ..conftest import CARTPOLE

SPEC = spec_from_env(CARTPOLE)


class Firm:
    """A policy of the user's own."""

    def __init__(self, spec: PolicySpec, gain: float) -> None:
        self.spec, self.gain = spec, gain

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, obs: torch.Tensor, state: None = None) -> tuple[PolicyOutput, None]:
        return PolicyOutput(self.spec.head, self.gain * obs[:, :2]), None


def gentle(spec: PolicySpec) -> Firm:
    return Firm(spec, 1.0)


def rough(spec: PolicySpec) -> Firm:
    return Firm(spec, 9.0)


def left(spec: PolicySpec) -> object:
    return lambda obs: 0


def right(spec: PolicySpec) -> object:
    return lambda obs: 1


def test_teacher_in_the_home_of_the_user(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(teacher, tmp_path / "agent", {"seed": 0})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fingerprint(load_policy("~/agent")) == fingerprint(teacher)


def test_fingerprint_does_not_depend_on_the_path(teacher: NetworkPolicy, tmp_path: Path) -> None:
    save_policy(teacher, tmp_path / "here", {"seed": 0})
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    said = fingerprint(load_policy(tmp_path / "here"))
    assert said == fingerprint(load_policy(tmp_path / "there")) == fingerprint(teacher)
    changed = copy.deepcopy(teacher)
    with torch.no_grad():
        changed.output.bias[0] += 1
    assert fingerprint(changed) != said


def test_fingerprint_includes_the_head() -> None:
    torch.manual_seed(0)
    policies: list[Policy] = [Actor(hidden=(4,), activation=name).build(SPEC) for name in ("tanh", "relu")]
    policies[1].load_state_dict(policies[0].state_dict())  # type: ignore[attr-defined]
    valued = dataclasses.replace(SPEC, head=QValuesHead(nvec=(2,)))
    policies.append(Actor(hidden=(4,)).build(valued))
    policies[2].load_state_dict(policies[0].state_dict())  # type: ignore[attr-defined]
    policies += [Ensemble(tuple(policies[:2]), vote) for vote in ("mean", "majority")]
    assert len({fingerprint(policy) for policy in policies}) == 5


@pytest.mark.parametrize("names", [("gentle", "rough"), ("left", "right")], ids=["policies", "functions"])
def test_fingerprint_of_python_code_is_its_reference(names: tuple[str, str]) -> None:
    found = [fingerprint(load_policy(f"{__name__}:{name}", spec=SPEC)) for name in names]
    assert found == [f"{__name__}:{name}" for name in names]


def test_fingerprint_does_not_depend_on_the_spec_of_the_environment(tmp_path: Path) -> None:
    """As when a dataset is labelled again, whose spec tells of no wrappers."""
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    torch.save({f"network.{name}": value for name, value in network.state_dict().items()}, tmp_path / "a.pt")
    specs = SPEC, dataclasses.replace(spec_from_env(EnvConfig("CartPole-v0")), env_kwargs=(("x", 1),))
    assert len({fingerprint(load_policy(tmp_path / "a.pt", spec=spec)) for spec in specs}) == 1
