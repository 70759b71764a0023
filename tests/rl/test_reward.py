"""Tests of the adversarial reward, by hand or in closed form."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.heads import QValuesHead
from rldistill.core.policy import PolicyOutput
from rldistill.losses import ReverseKL
from rldistill.rl.config import AdversarialConfig, DiscriminatorConfig
from rldistill.rl.ppo import ppo_loss
from rldistill.rl.reward import AdversarialReward
from rldistill.rl.rollout import Minibatch, Rollout, advantages

from .imitation import HEAD, Known, make_rollout, policy_of_logits, recorded


def known_reward(form: str, absorbing: bool, gamma: float = 0.5) -> AdversarialReward:
    """Return a reward with f = 2 s + a and h = 10 s, and two recorded steps, which both terminate."""
    config = AdversarialConfig(form=form, absorbing=absorbing)  # type: ignore[arg-type]
    data = recorded([0, 1], [0, 1], [True, True])
    reward = AdversarialReward.new(config, gamma, data, None, 0)
    assert reward.discriminator is not None
    f = Known(lambda obs, action: 2.0 * obs + action)
    h = Known(lambda obs, action: 10.0 * obs)
    reward.discriminator.f = f  # type: ignore[assignment]
    if form == "airl":
        reward.discriminator.h = h  # type: ignore[assignment]
    return reward


ROLLOUT = make_rollout([1, 0, 2], [0, 1, 1], [False, True, False], last_obs={(1, 0): torch.tensor(1)})
"""States 1 and 0, where the episode terminates in state 1, then state 2, after which the state is 0."""
WITHIN, OUTSIDE = math.log((3 / 5) / (5 / 11)), math.log((2 / 5) / (6 / 11))
"""Logits of the shares of the absorbing state and of all other steps, by hand.

Both recorded steps terminate, and one of three own ones. With one termination in two steps added there are 3 / 2 and
5 / 6 per step, each of which counts gamma / (1 - gamma) = 1 step within the absorbing state.
"""


def softplus(logit: float) -> float:
    return math.log(1 + math.exp(logit))


class TestForms:
    @pytest.mark.parametrize(
        ("form", "absorbing", "expected"),
        [
            ("log_ratio", False, [2, 1, 5]),
            ("log_ratio", True, [2 + OUTSIDE, 1 + OUTSIDE + WITHIN, 5 + OUTSIDE]),
            ("gail", False, [softplus(2), softplus(1), softplus(5)]),
            ("gail", True, [softplus(2 + OUTSIDE), softplus(1 + OUTSIDE) + softplus(WITHIN), softplus(5 + OUTSIDE)]),
        ],
    )
    def test_rewards_have_the_values_computed_by_hand(self, form: str, absorbing: bool, expected: list[float]) -> None:
        """D = sigmoid(f), so that -log(1 - D) = softplus(f) and log D - log(1 - D) = f."""
        reward = known_reward(form, absorbing)
        own = reward.own_steps(ROLLOUT, policy_of_logits())
        torch.testing.assert_close(reward.step_rewards(own, 1 / 3), torch.tensor(expected, dtype=torch.float32))

    @pytest.mark.parametrize("absorbing", [False, True])
    def test_reward_of_airl_is_f_with_shaping_minus_the_log_probability(self, absorbing: bool) -> None:
        """F = 2 s + a + h(s') / 2 - h(s), and log student(a | s) = -log 2 in each state."""
        reward = known_reward("airl", absorbing)
        rewards = reward.step_rewards(reward.own_steps(ROLLOUT, policy_of_logits()), 1 / 3).tolist()
        first = 2 + 0 / 2 - 10 + math.log(2)
        last = 5 + 0 / 2 - 20 + math.log(2)
        end = 1 - 0 + math.log(2)
        expected = np.array([first, end, last])
        if absorbing:
            expected += [OUTSIDE, OUTSIDE + WITHIN, OUTSIDE]
        assert rewards == pytest.approx(expected)

    def test_discriminator_of_airl_is_that_of_the_paper(self) -> None:
        """D = exp(f) / (exp(f) + student(a | s))."""
        reward = known_reward("airl", absorbing=False)
        assert reward.discriminator is not None
        steps = reward.own_steps(ROLLOUT, policy_of_logits())
        f = torch.tensor([2.0 - 10, 1.0, 5.0 - 20])
        expected = f.exp() / (f.exp() + 0.5)
        torch.testing.assert_close(reward.discriminator(steps).sigmoid(), expected)

    def test_recorded_steps_of_airl_have_the_probabilities_of_the_student(self) -> None:
        reward = known_reward("airl", absorbing=True)
        policy = policy_of_logits((0.0, math.log(3.0)))
        steps = reward.recorded_steps(64, policy, np.random.default_rng(0))
        expected = torch.where(steps.action == 1, 0.75, 0.25)
        torch.testing.assert_close(steps.log_prob.exp(), expected)


class TestAbsorbingState:
    def test_shares_have_the_values_computed_by_hand(self) -> None:
        """A termination counts 0.75 / 0.25 = 3 steps, and one of four recorded steps is added to 1 / 4 and to 1 / 2."""
        reward = known_reward("log_ratio", absorbing=True, gamma=0.75)
        reward.data = recorded([0, 1, 2, 2], [0, 0, 1, 0], [False, False, True, False])
        assert reward.absorbing_shares(1 / 2) == pytest.approx((1.5 / (1 + 1.5), 2.25 / (1 + 2.25)))

    def test_without_a_future_it_has_no_reward(self) -> None:
        """With gamma = 0, rewards after a termination count nothing."""
        reward = known_reward("log_ratio", absorbing=True, gamma=0.0)
        assert reward.step_rewards(reward.own_steps(ROLLOUT, policy_of_logits()), 1 / 3).tolist() == [2, 1, 5]

    @given(st.integers(2, 5_000), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.5, 0.999))
    def test_terminations_are_rewarded_if_they_are_rarer_than_recorded_ones(
        self, num_recorded: int, recorded_rate: float, own_rate: float, gamma: float
    ) -> None:
        """And cost reward if they are more frequent, whatever the number of recorded steps."""
        ends = np.arange(num_recorded) < round(recorded_rate * num_recorded)
        reward = known_reward("log_ratio", absorbing=True, gamma=gamma)
        reward.data = recorded([0] * num_recorded, [0] * num_recorded, ends)  # type: ignore[arg-type]
        own = reward.own_steps(ROLLOUT, policy_of_logits())
        for rate in (own_rate, float(ends.mean())):
            logits = reward.step_rewards(own, rate) - torch.tensor([2.0, 1.0, 5.0])
            assert logits.isfinite().all()
            difference = float(logits[1] - logits[0])  # of a step that terminates from one that does not
            assert np.sign(round(difference, 3)) in (0, np.sign(ends.mean() - rate))

    def test_terminations_count_on_average_and_those_of_a_time_limit_not(self) -> None:
        """One of three steps, and then none: 1 / 6 on average."""
        reward, policy = known_reward("log_ratio", absorbing=True), policy_of_logits()
        reward.train = lambda *_: {}  # type: ignore[method-assign]
        rng = np.random.default_rng(0)
        reward.rewards(ROLLOUT, policy, rng)
        assert reward.averages["terminations"] == pytest.approx(1 / 3)
        cut = replace(ROLLOUT, terminated=torch.zeros(3, 1, dtype=torch.bool), truncated=ROLLOUT.terminated)
        reward.rewards(cut, policy, rng)
        assert reward.averages["terminations"] == pytest.approx(1 / 6)

    def test_return_of_the_absorbing_state_must_be_finite(self) -> None:
        data = recorded([0, 1], [0, 1], [True, True])
        with pytest.raises(ConfigError, match=r"ppo.gamma: .*infinite"):
            AdversarialReward.new(AdversarialConfig(), 1.0, data, None, 0)
        assert AdversarialReward.new(AdversarialConfig(absorbing=False), 1.0, data, None, 0)


class TestScale:
    STEPS = torch.tensor([[2.0], [-2.0], [5.0]])

    @pytest.mark.parametrize("cut", ["terminated", "truncated"])
    def test_returns_have_the_values_computed_by_hand(self, cut: str) -> None:
        """With gamma = 1 / 2 they are 2 - 2 / 2 = 1, then -2 and, in a new episode, 5."""
        reward, none = known_reward("log_ratio", absorbing=True), torch.zeros_like(ROLLOUT.terminated)
        rollout = replace(ROLLOUT, **{"terminated": none, "truncated": none, cut: ROLLOUT.terminated})
        torch.testing.assert_close(reward.scale(self.STEPS, rollout), self.STEPS / math.sqrt((1 + 4 + 25) / 3))

    def test_recent_rollouts_count_more(self) -> None:
        """A mean square of 10 twenty times, which then decays by 0.95 for each rollout with one of 90."""
        reward = known_reward("log_ratio", absorbing=True)
        for reward.num_rollouts in range(20):
            reward.scale(self.STEPS, ROLLOUT)
        for reward.num_rollouts in range(20, 25):
            scaled = reward.scale(3 * self.STEPS, ROLLOUT)
        expected = 90 - 80 * 0.95**5
        torch.testing.assert_close(scaled, 3 * self.STEPS / math.sqrt(expected))

    def test_rewards_without_a_scale_stay_zero(self) -> None:
        zeros = torch.zeros_like(self.STEPS)
        assert known_reward("log_ratio", absorbing=True).scale(zeros, ROLLOUT).equal(zeros)

    def test_all_rewards_have_one_scale(self) -> None:
        """They keep their ratios, and `imitation_reward` is the mean before the division."""
        reward = known_reward("log_ratio", absorbing=True)
        reward.train = lambda *_: {}  # type: ignore[method-assign]
        reward.config = replace(reward.config, discriminator_weight=3.0)
        own, policy = reward.step_rewards(reward.own_steps(ROLLOUT, policy_of_logits()), 1 / 3), policy_of_logits()
        rewards, row = reward.rewards(ROLLOUT, policy, np.random.default_rng(0))
        assert row == {"imitation_reward": pytest.approx(3 * float(own.mean()))}
        torch.testing.assert_close(rewards.flatten() / rewards[0], own / own[0])
        assert not torch.allclose(rewards.flatten(), 3 * own)


HORIZON = 3
TEACHER = torch.tensor([[0.5, -1.0], [2.0, 0.0], [-0.3, 0.4]])
"""Logits of the teacher in three states."""


def next_state(state: int, action: int) -> int:
    return (state + 1 + action) % 3


def enumerate_episodes(logits: Tensor) -> tuple[Rollout, Tensor]:
    """Return all action sequences of `HORIZON` steps from state 0, and their probabilities."""
    sequences = [*itertools.product(range(2), repeat=HORIZON)]
    states = [[0] for _ in sequences]
    for path, actions in zip(states, sequences, strict=True):
        for action in actions[:-1]:
            path.append(next_state(path[-1], action))
    obs, action = torch.tensor(states).T, torch.tensor(sequences).T
    params = logits.detach()[obs]
    terminated = torch.zeros(obs.shape, dtype=torch.bool)
    terminated[-1] = True
    rollout = Rollout(
        obs=obs, raw_action=action, action_params=params, reward=torch.zeros(obs.shape), terminated=terminated,
        truncated=torch.zeros_like(terminated), starts=terminated.flip(0), labels=TEACHER[obs], last_obs={},
        next_obs=obs[0],
    )  # fmt: skip
    return rollout, PolicyOutput(HEAD, params).log_prob(action).sum(0).exp()


class TestTeacherRewardAlone:
    """With the state term off, PPO's gradient is that of on-policy distillation."""

    @staticmethod
    def policy_gradient(logits: Tensor, gamma: float) -> Tensor:
        """Return the gradient of PPO's loss over all episodes, without the scale of normalized advantages."""
        config = AdversarialConfig(discriminator_weight=0.0, teacher_weight=1.0)
        reward = AdversarialReward.new(config, gamma, None, HEAD, 0)
        rollout, probability = enumerate_episodes(logits)
        rewards, _ = reward.rewards(rollout, policy_of_logits(), np.random.default_rng(0))
        zeros = torch.zeros_like(rewards)
        advantage = advantages(replace(rollout, reward=rewards), zeros, zeros, gamma, 1.0)
        weight = 1e6 * probability.expand(rewards.shape)
        old = PolicyOutput(HEAD, rollout.action_params).log_prob(rollout.raw_action)
        batch = Minibatch(
            obs=rollout.obs, raw_action=rollout.raw_action, reward=rewards, terminated=rollout.terminated,
            starts=rollout.starts, weight=weight, old_log_prob=old, advantage=advantage, returns=advantage,
        )  # fmt: skip
        ratio = (PolicyOutput(HEAD, logits[rollout.obs]).log_prob(rollout.raw_action) - old).exp()
        loss = ppo_loss(ratio, zeros, zeros, batch, 0.2)["policy_loss"]
        (gradient,) = torch.autograd.grad(loss, logits)
        centered = advantage - batch.mean(advantage)
        return gradient * batch.mean(centered**2).sqrt() * HORIZON

    def test_gradient_is_that_of_on_policy_with_returns(self) -> None:
        """J = E sum_t KL(student || teacher) in the state of step t, whose distribution depends on the student."""
        logits = torch.tensor([[0.1, 0.7], [-0.4, 0.2], [1.0, -1.0]], requires_grad=True)
        reached: dict[int, Tensor] = {0: torch.ones(())}
        objective = torch.zeros(())
        for _ in range(HORIZON):
            following: dict[int, Tensor] = {}
            for state, mass in reached.items():
                log_student, log_teacher = (table[state].log_softmax(-1) for table in (logits, TEACHER))
                objective = objective + mass * (log_student.exp() * (log_student - log_teacher)).sum()
                for action in range(2):
                    target = next_state(state, action)
                    following[target] = following.get(target, 0) + mass * log_student[action].exp()
            reached = following
        (expected,) = torch.autograd.grad(objective, logits)
        torch.testing.assert_close(self.policy_gradient(logits, gamma=1.0), expected, rtol=1e-4, atol=1e-6)

    def test_gradient_without_returns_is_that_of_on_policy(self) -> None:
        """With a discount factor of 0, it is the gradient of `reverse_kl` in the visited states, as in `on_policy`."""
        logits = torch.tensor([[0.1, 0.7], [-0.4, 0.2], [1.0, -1.0]], requires_grad=True)
        rollout, probability = enumerate_episodes(logits)
        labels: Any = type("Labels", (), {"teacher": PolicyOutput(HEAD, TEACHER[rollout.obs])})()
        loss = ReverseKL()(PolicyOutput(HEAD, logits[rollout.obs]), labels)
        (expected,) = torch.autograd.grad((probability * loss).sum(), logits)
        torch.testing.assert_close(self.policy_gradient(logits, gamma=0.0), expected, rtol=1e-4, atol=1e-6)

    def test_q_values_are_divided_by_their_temperature(self) -> None:
        """Half of the action gap, (1 + 3) / 2 / 2 = 1, and after a checkpoint the same for other labels."""
        config = AdversarialConfig(discriminator_weight=0.0, teacher_weight=2.0)
        labels = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
        rollout = make_rollout([0, 1], [0, 0], [False, False], labels=labels)
        reward = AdversarialReward.new(config, 0.9, None, QValuesHead((2,)), 0)
        rewards, row = reward.rewards(rollout, policy_of_logits(), np.random.default_rng(0))
        expected = 2 * (labels.log_softmax(-1)[..., 0] + math.log(2))
        torch.testing.assert_close(rewards, expected)
        assert row == {"imitation_reward": pytest.approx(expected.mean().item())}
        again = AdversarialReward.new(config, 0.9, None, QValuesHead((2,)), 0)
        again.load_state_dict(reward.state_dict())
        scaled = again.rewards(replace(rollout, labels=2 * labels), policy_of_logits(), np.random.default_rng(0))[0]
        torch.testing.assert_close(scaled, 2 * ((2 * labels).log_softmax(-1)[..., 0] + math.log(2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discriminator_weight": 0.0}, "discriminator_weight: .*no reward"),
        ({"teacher_weight": 1.0}, "teacher_weight: .*compares actions already"),
        (
            {"teacher_weight": 1.0, "form": "airl", "discriminator": DiscriminatorConfig(inputs="state")},
            "teacher_weight: .*compares actions already",
        ),
    ],
)
def test_weights_that_have_no_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdversarialConfig(**settings)


def test_state_is_restored_exactly() -> None:
    config = AdversarialConfig(form="airl", discriminator=DiscriminatorConfig(hidden=(8,), spectral_norm=True))
    data, policy = recorded([0, 1, 2], [0, 1, 0], [False, False, True]), policy_of_logits()
    rewards = [AdversarialReward.new(config, 0.9, data, None, seed) for seed in (0, 0, 1)]
    rewards[0].rewards(ROLLOUT, policy, np.random.default_rng(0))
    rewards[2].load_state_dict(copy.deepcopy(rewards[0].state_dict()))
    found = [reward.rewards(ROLLOUT, policy, np.random.default_rng(1))[0].tolist() for reward in rewards]
    assert found[0] == found[2] != found[1]
