from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, SpecMismatchError, UntrustedFileError
from rldistill.core.spec import EnvConfig
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env, spec_from_spaces
from rldistill.evaluation.episodes import play
from rldistill.evaluation.verify import VerifyConfig, verify
from rldistill.students import Mlp
from rldistill.teachers.load import load_policy
from rldistill.teachers.python import FunctionPolicy, ModulePolicy

from ..conftest import CARTPOLE

SPEC = spec_from_env(CARTPOLE)
HERE = Path(__file__)
SOURCE = """
import torch
from rldistill import PolicySpec

def network(spec: PolicySpec):
    return torch.nn.Linear(4, spec.head.num_params)

def broken(spec):
    made = torch.nn.Linear(spec.obs_shape[0], spec.head.num_params)
    torch.nn.init.constant_(made.bias, float("nan"))
    return made

def from_text(spec, file):
    made = torch.nn.Linear(spec.obs_shape[0], spec.head.num_params)
    torch.nn.init.constant_(made.bias, float(file.read_text()))
    return made

def lost():
    return lambda obs: float("nan")

def policy(spec):
    from rldistill.teachers.python import ModulePolicy
    return ModulePolicy(torch.nn.Linear(4, 2), spec)

def heuristic():
    return lambda obs: int(obs[2] + obs[3] > 0)

class Astray:
    def predict(self, obs):
        return obs[:, :1] + float("inf"), None

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
def test_function_is_a_teacher(mine: Path, factory: str) -> None:
    teacher = load_policy(f"mine_for_tests:{factory}", spec=SPEC)
    assert play(CARTPOLE, teacher, 3).returns.min() > 100
    data = collect(CARTPOLE, teacher, CollectConfig(steps=2_000, epsilon=0.2), mine / "dataset")
    student = distill(data, Mlp((16,)), DistillConfig(epochs=15), mine / "student")
    assert play(CARTPOLE, student, 3).returns.mean() > 100


@pytest.mark.parametrize("factory", ["broken", "lost", "Astray"])
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_outputs_that_are_not_finite_are_refused(mine: Path, factory: str, env_id: str) -> None:
    env = EnvConfig(env_id)
    head: Any = "q_values" if factory == "broken" and env_id == "CartPole-v1" else None
    policy = load_policy(f"mine_for_tests:{factory}", spec=spec_from_env(env), head=head)
    for ask in (
        lambda: verify(env, policy, VerifyConfig(1)),
        lambda: play(env, policy, 1),
        lambda: collect(env, policy, CollectConfig(steps=32, block_steps=4), mine / "dataset"),
    ):
        with pytest.raises(SpecMismatchError, match=rf"mine_for_tests:{factory}.*(NaN or infinite|returns action)"):
            ask()


def test_network_with_the_weights_of_a_file(mine: Path) -> None:
    network = nn.Linear(4, 2)
    torch.save(network.state_dict(), mine / "weights.pt")
    policy = load_policy("mine_for_tests:network@weights.pt", spec=SPEC, head="q_values")
    assert policy.spec.head.kind == "q_values"
    obs = torch.randn(5, 4)
    torch.testing.assert_close(policy(obs)[0].params, network(obs))


def test_factory_with_a_parameter_file_reads_the_file(mine: Path) -> None:
    (mine / "bias.txt").write_text("2.5")
    policy = load_policy("mine_for_tests:from_text@bias.txt", spec=SPEC, head="q_values")
    assert policy.network.bias.tolist() == [2.5, 2.5]


def test_network_whose_outputs_may_be_q_values_causes_a_warning(mine: Path) -> None:
    with pytest.warns(UserWarning, match=r"^mine_for_tests:network: its outputs are read as logits.*head=q_values"):
        assert load_policy("mine_for_tests:network", spec=SPEC).spec.head.kind == "categorical"
    load_policy("mine_for_tests:network", spec=SPEC, head="categorical")
    load_policy("mine_for_tests:network", spec=spec_from_env(EnvConfig("Pendulum-v1")))


@pytest.mark.parametrize(
    ("factory", "options", "words"),
    [
        ("heuristic", {"head": "q_values"}, "returns function, which returns actions, not parameters of a head."),
        ("Predicts", {"head": "categorical"}, "returns Predicts, which returns actions"),
        ("policy", {"head": "categorical"}, "returns ModulePolicy, which already holds the kind of its head"),
        ("network", {"activation": "relu"}, "is a Python factory, which already holds its activations"),
        ("network", {"scale": 0.5}, "is a Python factory, which scales its input itself"),
        ("network", {"output": "q"}, "is a Python factory, which has one output"),
    ],
)
def test_option_of_another_format_is_refused(factory: str, options: Any, words: str, mine: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"^teacher.{next(iter(options))}: mine_for_tests:{factory} {words}.* Remove the option.$"
    ):
        load_policy(f"mine_for_tests:{factory}", spec=SPEC, **options)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("no_such_module:x", "cannot be imported"),
        ("mine_for_tests:missing", "no 'missing' in mine_for_tests"),
        ("mine_for_tests:nothing", "returns int, expected a policy"),
        ("mine_for_tests:heuristic@weights.pt", "which has no weights"),
        ("mine_for_tests:network@missing.pt", "no such file"),
        ("mine_for_tests:from_text", "reads a file. Write mine_for_tests:from_text@FILE"),
        ("mine_for_tests:from_text@missing.txt", "missing.txt: there is no such file. Check the path."),
        ("mine_for_tests:from_text@other.pt", "failed|codec"),
        ("mine_for_tests:network@other.pt", "does not fit"),
    ],
)
def test_wrong_reference_is_refused(mine: Path, reference: str, words: str) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), mine / "other.pt")
    with pytest.raises(ConfigError, match=words):
        load_policy(reference, spec=SPEC)


def test_weights_that_would_run_code_are_refused(mine: Path) -> None:
    torch.save(nn.Linear(4, 2), mine / "whole.pt")
    with pytest.raises(UntrustedFileError, match="more than tensors"):
        load_policy("mine_for_tests:network@whole.pt", spec=SPEC)


def test_continuous_actions_are_passed_on() -> None:
    spec = spec_from_env(EnvConfig("Pendulum-v1"))
    policy = FunctionPolicy(lambda obs: [obs[0]], spec)
    assert policy(torch.tensor([[0.5, 0, 0], [9.0, 0, 0]]))[0].mode().tolist() == [[0.5], [2.0]]


@pytest.mark.parametrize("action", [2, -1])
def test_action_out_of_range_is_refused(action: int) -> None:
    with pytest.raises(SpecMismatchError, match="returns action"):
        FunctionPolicy(lambda obs: action, SPEC)(torch.zeros(2, 4))


@pytest.mark.parametrize("network", [nn.Linear(4, 3), nn.Flatten(0)], ids=["actions", "batch"])
def test_network_of_another_size_is_refused(network: Any) -> None:
    with pytest.raises(SpecMismatchError, match=r"the network of .* returns"):
        ModulePolicy(network, SPEC)(torch.zeros(2, 4))


def fails() -> None:
    raise ZeroDivisionError("of mine")


def fails_later() -> Any:
    return lambda obs: np.zeros(3).reshape(int(obs[0]) + 7)


def fails_in_a_network() -> Any:
    return nn.Linear(8, 2)


def test_factory_that_fails_is_named() -> None:
    with pytest.raises(ConfigError, match=rf"fails failed: ZeroDivisionError: of mine \(.*{HERE.name}, line \d+\)"):
        load_policy(f"{__name__}:fails", spec=SPEC)


@pytest.mark.parametrize(
    ("factory", "words"),
    [("fails_later", rf"ValueError: cannot.*{HERE.name}, line"), ("fails_in_a_network", "RuntimeError")],
)
def test_a_function_that_fails_is_named_with_the_place(factory: str, words: str) -> None:
    policy = load_policy(f"{__name__}:{factory}", spec=SPEC, head="q_values" if "network" in factory else None)
    with pytest.raises(ConfigError, match=f"^teacher: .* failed: {words}"):
        policy(torch.zeros(3, 4))


BITS, PARTS = spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3])


@pytest.mark.parametrize(
    ("space", "said", "words"),
    [
        (spaces.Discrete(2), None, r"returns None as its actions, expected an integer from 0 to 1 for each"),
        (spaces.Discrete(2), {"a": 1}, "as its actions"),
        (spaces.Discrete(2), [0], r"actions of shape \[1\] for 4 observations"),
        (spaces.Discrete(2), 0, r"actions of shape \[\]"),
        (spaces.Discrete(2), [0, 1, 1, 0.7], r"returns action 0\.7, expected an integer from 0 to 1"),
        (spaces.Discrete(2), [0, 1, 1, float("nan")], "returns action nan"),
        (spaces.Discrete(2), [[0], [1], [1, 0], [1]], "as its actions"),
        (PARTS, [0, 1, 1, 0], "expected 2 integers, below 2, 3 for each"),
        (PARTS, [[0, 3]] * 4, "returns action 3"),
        (BITS, [[0, 1]] * 4, "expected 3 numbers, 0 or 1 for each"),
        (BITS, [[0, 1, 2]] * 4, "returns action 2"),
        (spaces.Box(-1, 1, (2,)), [0.0] * 4, "expected 2 numbers for each"),
    ],
)
def test_invalid_action_is_refused(space: Any, said: Any, words: str) -> None:
    spec = spec_from_spaces("it", spaces.Box(-1, 1, (4,)), space)
    with pytest.raises(SpecMismatchError, match=rf"^teacher: mine:it .*{words}"):
        FunctionPolicy(lambda obs: said, spec, batched=True, name="mine:it")(torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("space", "said", "expected"),
    [
        (spaces.Discrete(2), np.array([[0], [1]]), [0, 1]),
        (spaces.Discrete(2), [True, torch.tensor(0)], [1, 0]),
        (PARTS, [[0, 2], [1, 1]], [[0, 2], [1, 1]]),
        (BITS, [[0, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 0, 0]]),
        (spaces.Box(-1, 1, (2, 1)), [[[0.5], [-1]], [[1], [0]]], [[0.5, -1], [1, 0]]),
    ],
)
def test_actions_of_every_kind_are_accepted(space: Any, said: Any, expected: Any) -> None:
    policy = FunctionPolicy(lambda obs: said, spec_from_spaces("it", spaces.Box(-1, 1, (4,)), space), batched=True)
    assert policy(torch.zeros(2, 4))[0].mode().tolist() == expected


def test_a_head_for_other_actions_is_refused() -> None:
    with pytest.raises(
        SpecMismatchError, match=r"Linear: a bernoulli head does not fit .*expected categorical or q_values"
    ):
        ModulePolicy(nn.Linear(4, 2), SPEC, "bernoulli")
