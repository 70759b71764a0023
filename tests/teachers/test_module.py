from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from torch import nn

from rldistill.collect import CollectConfig, collect
from rldistill.distill import DistillConfig, distill
from rldistill.envs.single import EnvConfig, spec_from_env
from rldistill.errors import ConfigError, SpecMismatchError, UntrustedFileError
from rldistill.evaluate.play import play
from rldistill.students import Mlp
from rldistill.teachers.load import load_policy
from rldistill.teachers.module import FunctionPolicy, ModulePolicy

from ..conftest import CARTPOLE

SPEC = spec_from_env(CARTPOLE)
SOURCE = """
import torch
from rldistill import PolicySpec

def network(spec: PolicySpec):
    return torch.nn.Linear(4, spec.head.num_params)

def heuristic():
    return lambda obs: int(obs[2] + obs[3] > 0)

class Predicts:
    def predict(self, obs):
        return (obs[:, 2] + obs[:, 3] > 0).astype(int), None

def nothing():
    return 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine_for_tests.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "mine_for_tests", raising=False)
    return tmp_path


@pytest.mark.parametrize("factory", ["heuristic", "Predicts"])
def test_a_heuristic_teaches(mine: Path, factory: str) -> None:
    teacher = load_policy(f"mine_for_tests:{factory}", spec=SPEC)
    assert play(CARTPOLE, teacher, 3).returns.min() > 100
    data = collect(CARTPOLE, teacher, CollectConfig(steps=2_000, epsilon=0.2), mine / "dataset")
    student = distill(data, Mlp((16,)), DistillConfig(epochs=15), mine / "student")
    assert play(CARTPOLE, student, 3).returns.mean() > 100


def test_a_network_takes_the_weights_of_a_file(mine: Path) -> None:
    network = nn.Linear(4, 2)
    torch.save(network.state_dict(), mine / "weights.pt")
    policy = load_policy("mine_for_tests:network@weights.pt", spec=SPEC)
    obs = torch.randn(5, 4)
    torch.testing.assert_close(policy(obs)[0].params, network(obs))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no_such_module:x", "cannot be imported"),
        ("mine_for_tests:missing", "no 'missing' in mine_for_tests"),
        ("mine_for_tests:nothing", "made int"),
        ("mine_for_tests:heuristic@weights.pt", "only a network takes weights"),
        ("mine_for_tests:network@missing.pt", "no such file"),
        ("mine_for_tests:network@other.pt", "does not fit"),
    ],
)
def test_what_cannot_be_made_is_named(mine: Path, reference: str, words: str) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), mine / "other.pt")
    with pytest.raises(ConfigError, match=words):
        load_policy(reference, spec=SPEC)


def test_weights_that_would_run_code_are_refused(mine: Path) -> None:
    torch.save(nn.Linear(4, 2), mine / "whole.pt")
    with pytest.raises(UntrustedFileError, match="more than tensors"):
        load_policy("mine_for_tests:network@whole.pt", spec=SPEC)


def test_a_model_of_sb3_teaches_as_it_predicts() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", seed=0)
    policy = FunctionPolicy(lambda obs: model.predict(obs, deterministic=True), SPEC, batched=True)
    obs = torch.randn(50, 4)
    np.testing.assert_array_equal(policy(obs)[0].mode(), model.predict(obs.numpy(), deterministic=True)[0])


def test_continuous_actions_are_passed_on() -> None:
    spec = spec_from_env(EnvConfig("Pendulum-v1"))
    policy = FunctionPolicy(lambda obs: [obs[0]], spec)
    assert policy(torch.tensor([[0.5, 0, 0], [9.0, 0, 0]]))[0].mode().tolist() == [[0.5], [2.0]]


@pytest.mark.parametrize("action", [2, -1])
def test_an_action_that_there_is_not_is_named(action: int) -> None:
    with pytest.raises(SpecMismatchError, match="chose action"):
        FunctionPolicy(lambda obs: action, SPEC)(torch.zeros(2, 4))


@pytest.mark.parametrize("network", [nn.Linear(4, 3), nn.Flatten(0)], ids=["actions", "batch"])
def test_a_network_of_another_size_is_named(network: Any) -> None:
    with pytest.raises(SpecMismatchError, match="the network gives"):
        ModulePolicy(network, SPEC)(torch.zeros(2, 4))


def fails() -> None:
    raise ZeroDivisionError("of mine")


def test_a_factory_that_fails_is_named() -> None:
    with pytest.raises(ConfigError, match=r"fails failed: ZeroDivisionError: of mine"):
        load_policy(f"{__name__}:fails", spec=SPEC)
