from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.stats import ttest_ind
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.verify import Claim, VerifyConfig, _p_better, quick_check, verify
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Mlp
from rldistill.teachers.load import load_policy
from rldistill.teachers.python import ModulePolicy

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow

REAL = Path(__file__).parents[3] / "shared" / "teachers" / "sb3"


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("242.1±31.8", Claim(242.1, 31.8)),
        ("-110.4 +- 19.5", Claim(-110.4, 19.5)),
        ("500", Claim(500.0)),
        ("1e3 +/- 2", Claim(1000.0, 2.0)),
        ("\N{MINUS SIGN}110.4±19.5", Claim(-110.4, 19.5)),
    ],
)
def test_claims_are_read(text: str, claim: Claim) -> None:
    assert Claim.parse(text) == claim


@pytest.mark.parametrize("text", ["", "good", "1±", "±3", "1±2±3", "1e400", "1±1e400"])
def test_invalid_claims_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="claimed"):
        Claim.parse(text)


def test_a_claim_is_held_against_the_interval_worked_out_by_hand() -> None:
    returns = np.array([8.0, 12.0, 8.0, 12.0])  # mean 10, variance of the mean (16/3)/4 = 4/3
    found = Claim(13.0, 2.0, 3).check(returns)  # 2^2/3 = 4/3 more
    half = 2.5758293 * (8 / 3) ** 0.5
    assert list(found.interval99) == pytest.approx([-3 - half, -3 + half])
    assert found.consistent
    assert not Claim(16.0, 0.0, 0).check(np.array([10.0, 10.1, 9.9, 10.0])).consistent
    assert Claim(10.9).check(np.array([10.0, 10.1, 9.9, 10.0])).reason == "within 10%"
    assert Claim(-10.9).check(-np.array([10.0, 10.1, 9.9, 10.0])).reason == "within 10%"


def test_a_sound_teacher_is_verified(teacher: NetworkPolicy) -> None:
    found = verify(CARTPOLE, teacher, VerifyConfig(10))
    assert found.suspicious == []
    assert found.ok
    assert found.mean is not None
    wrong = verify(CARTPOLE, teacher, VerifyConfig(10, Claim(found.mean.value * 1.5 + 100)))
    assert not wrong.ok
    assert "verified" in str(found)
    assert "not consistent with" in str(wrong)
    assert "outside the 99% interval" in " ".join(str(wrong).split())
    assert wrong.to_dict()["ok"] is False


def test_constant_actions_are_suspicious(teacher: NetworkPolicy) -> None:
    lazy = Mlp((4,)).build(teacher.spec).eval()
    torch.nn.init.zeros_(lazy.output.weight)
    lazy.output.bias.data = torch.tensor([1.0, 0.0])
    assert "constant actions" in quick_check(lazy, CARTPOLE).problems[0]


def test_a_slow_teacher_is_checked_in_a_few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []

    class Slow(nn.Module):
        def forward(self, obs: Tensor) -> Tensor:
            states.append(len(obs))
            return torch.tensor([1.0, 0.0]).expand(len(obs), 2)

    slow = ModulePolicy(Slow(), spec_from_env(CARTPOLE))
    monkeypatch.setattr("rldistill.evaluation.verify.CHECK_SECONDS", 0.0)
    assert quick_check(slow, CARTPOLE).problems == []  # as many equal actions say nothing
    assert sum(states) < 20
    monkeypatch.undo()
    assert "constant actions" in quick_check(slow, CARTPOLE).problems[0]


def test_observations_far_from_the_normaliser_are_suspicious(teacher: NetworkPolicy) -> None:
    policy = Mlp((4,)).build(teacher.spec).eval()
    policy.standardize(torch.full((4,), 100.0), torch.ones(4))
    policy.obs_clip = {"": 10.0}
    assert any("standard deviations" in text for text in quick_check(policy, CARTPOLE).problems)


class Mixed(gymnasium.Env[Any, Any]):
    """One entry to normalise between an integer and a number that is always 200."""

    observation_space = spaces.Dict(
        {"cart": spaces.Box(-9, 9, (2,)), "side": spaces.Discrete(3), "wide": spaces.Box(0, 255)}
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._seen(), 0.0, False, False, {}

    def _seen(self) -> dict[str, Any]:
        cart = self.np_random.choice([-1.0, 1.0], 2).astype(np.float32)
        return {"cart": cart, "side": int(self.np_random.integers(3)), "wide": np.full(1, 200, np.float32)}


def test_only_normalized_entries_of_a_dict_are_checked() -> None:
    gymnasium.register("Mixed-v0", Mixed)
    env = EnvConfig("Mixed-v0")
    policy = Mlp((4,)).build(spec_from_env(env)).eval()
    policy.obs_clip = {"cart": 10.0}
    assert not any("standard deviations" in text for text in quick_check(policy, env).problems)
    mean = torch.zeros(2 + 3 + 1)
    mean[0] = 100.0  # of the first of two numbers, which is -1 or 1: half of all are 99 or 101 away
    policy.standardize(mean, torch.ones(2 + 3 + 1))
    assert any(
        text.startswith("50.0% of the observations are more than 5") for text in quick_check(policy, env).problems
    )


def test_an_action_space_of_another_size_is_suspicious(teacher: NetworkPolicy) -> None:
    found = verify(EnvConfig("Acrobot-v1"), teacher, VerifyConfig(1))
    assert not found.ok
    assert "observation shape" in found.suspicious[0]


def test_policy_that_is_better_when_sampled_is_suspicious() -> None:
    """It prefers left a little everywhere: greedy, the pole falls at once; sampled, it stays up longer."""
    policy = Mlp((4,)).build(spec_from_env(CARTPOLE)).eval()
    torch.nn.init.zeros_(policy.output.weight)
    policy.output.bias.data = torch.tensor([0.01, 0.0])
    found = verify(CARTPOLE, policy, VerifyConfig(40))
    assert any("sampled" in text for text in found.suspicious)


def test_reversed_frames_are_suspicious() -> None:
    pong = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 1_600})
    assert quick_check(load_policy("zoo:pong-dqn"), pong, steps=200) == ([], [])
    turned = load_policy("zoo:pong-dqn")
    assert isinstance(turned, nn.Module)
    first = next(layer for layer in turned.modules() if isinstance(layer, nn.Conv2d))
    first.weight.data = first.weight.flip(1)
    assert any("wrong order" in text for text in verify(pong, turned, VerifyConfig(3)).suspicious)


@pytest.mark.parametrize(
    ("agent", "env", "claim"),
    [
        ("dqn/CartPole-v1_1", "CartPole-v1", "500"),
        ("ppo/MountainCar-v0_1", "MountainCar-v0", "-110.4±19.5"),
        ("a2c/Pendulum-v1_1", "Pendulum-v1", "-163.0±103.2"),
    ],
)
def test_published_agents_play_as_published(agent: str, env: str, claim: str) -> None:
    if not (REAL / agent).exists():
        pytest.skip("shared/teachers is not beside this checkout")
    found = verify(EnvConfig(env), load_policy(REAL / agent), VerifyConfig(30, Claim.parse(claim, 100)))
    assert found.claim is not None
    assert found.claim.consistent, found


def test_means_are_compared_as_scipy_does_and_without_spread_too() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=9), rng.normal(1, 2, size=5)
    assert a.mean() > b.mean()
    assert _p_better(a, b) == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue)
    assert _p_better(b, a) == 1
    assert _p_better(np.full(3, 20.0), np.full(3, -21.0)) == 0
    assert _p_better(np.full(3, 1.0), np.full(3, 1.0)) == 1
    assert _p_better(np.array([9.0]), b) == 1
