"""Rewards that are computed after a rollout, in place of those of the environment: adversarial imitation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead
from rldistill.core.policy import PolicyOutput
from rldistill.data.dataset import Dataset
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import AdversarialConfig
from rldistill.rl.discriminator import Discriminator, Transitions, discriminator_loss
from rldistill.rl.guidance import TeacherLoss
from rldistill.rl.rollout import Rollout, advantages, mean_terms

DECAY = 0.95
"""Decay of averages over rollouts, per rollout."""
MIN_SCALE = 1e-4
"""Smallest number by which rewards are divided, since all of them may be 0."""


class RewardModel(Protocol):
    """Reward that PPO learns from in place of that of the environment; a field of `LearningTask`."""

    @property
    def needs_teacher(self) -> bool:
        """True if it reads the labels of the teacher."""

    def rewards(
        self, rollout: Rollout, policy: NetworkPolicy, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the rewards `[T, N]` of a rollout, from which it may learn first, and a row of metrics."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes, by name: tensors, numbers and dicts of these."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""


@dataclass
class AdversarialReward:
    """Reward of `AdversarialConfig` from recorded steps and, with a weight, from the labels of a teacher.

    Attributes:
        config: settings.
        gamma: discount factor of the student.
        data: recorded steps; None if `discriminator_weight` is 0, as the discriminator is.
        discriminator: discriminator of recorded and own steps.
        teacher: temperature of the teacher's labels; None if `teacher_weight` is 0.
        averages: averages over recent rollouts: `mean_square` of discounted returns, `terminations` per step.
        num_rollouts: rollouts so far.
    """

    config: AdversarialConfig
    gamma: float
    data: Dataset | None
    discriminator: Discriminator | None
    teacher: TeacherLoss | None

    @classmethod
    def new(
        cls, config: AdversarialConfig, gamma: float, data: Dataset | None, teacher: ActionHead | None, seed: int
    ) -> AdversarialReward:
        """Return a reward with a new discriminator, whose weights depend on `seed`.

        Args:
            config: settings.
            gamma: discount factor of the student.
            data: recorded steps, unless `discriminator_weight` is 0.
            teacher: head of the teacher, unless `teacher_weight` is 0.
            seed: seed of the discriminator.

        Raises:
            ConfigError: the discount factor is 1, so that the return of an absorbing state would be infinite.
        """
        require_finite(config, gamma)
        discriminator, labels = None, TeacherLoss((), teacher) if config.teacher_weight and teacher else None
        if config.discriminator_weight and data is not None:
            torch.manual_seed(seed)
            discriminator = Discriminator(data, config, gamma)
        return cls(config, gamma, data, discriminator, labels)

    def __post_init__(self) -> None:
        self.optimizer = None
        self.averages, self.num_rollouts = {"mean_square": 0.0, "terminations": 0.0}, 0
        if self.discriminator is not None:
            learning_rate = self.config.discriminator.learning_rate
            self.optimizer = torch.optim.Adam(self.discriminator.parameters(), learning_rate)

    @property
    def needs_teacher(self) -> bool:
        """True if the labels of the teacher are a part of the reward."""
        return self.teacher is not None

    def rewards(
        self, rollout: Rollout, policy: NetworkPolicy, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Train the discriminator on a rollout; return the rewards `[T, N]` and a row of metrics."""
        reward, row = torch.zeros_like(rollout.reward), dict[str, float]()
        if self.discriminator is not None:
            own = self.own_steps(rollout, policy)
            row = self.train(own, policy, rng)
            # The average, as a reward that depends on the terminations beside which it is paid would be too low.
            terminations = self.average("terminations", float(own.terminated.mean()))
            reward = self.config.discriminator_weight * self.step_rewards(own, terminations).view_as(reward)
        if self.teacher is not None:
            reward = reward + self.config.teacher_weight * self.log_ratio(rollout, policy)
        row["imitation_reward"] = float(reward.mean())
        if self.discriminator is not None:
            reward = self.scale(reward, rollout)
            self.num_rollouts += 1
        return reward, row

    def scale(self, reward: Tensor, rollout: Rollout) -> Tensor:
        """Return rewards divided by the root mean square of the discounted returns of recent rollouts.

        Returns end with their rollout. The logits of D have no scale of their own, and a critic learns numbers of
        the size of 1 sooner than large ones.
        """
        zeros = torch.zeros_like(reward)
        returns = advantages(replace(rollout, reward=reward), zeros, zeros, self.gamma, 1.0)
        return reward / max(math.sqrt(self.average("mean_square", float(returns.square().mean()))), MIN_SCALE)

    def average(self, name: str, value: float) -> float:
        """Return an average over recent rollouts after the value of this one was added."""
        decay = min(self.num_rollouts / (self.num_rollouts + 1), DECAY)
        self.averages[name] = decay * self.averages[name] + (1 - decay) * value
        return self.averages[name]

    def train(self, own: Transitions, policy: NetworkPolicy, rng: np.random.Generator) -> dict[str, float]:
        """Train the discriminator on the student's steps and random recorded ones; return the means of its metrics."""
        config, network, rows = self.config.discriminator, self.discriminator, list[dict[str, Tensor]]()
        assert network is not None
        assert self.optimizer is not None
        for _ in range(config.epochs):
            order = torch.from_numpy(rng.permutation(len(own.obs))).to(own.obs.device)
            for part in torch.split(order, config.batch_size):
                recorded, student = self.recorded_steps(len(part), policy, rng), own.rows(part)
                logits = network(recorded), network(student)
                loss = discriminator_loss(*logits)
                row = {"discriminator_loss": loss.detach()}
                row["recorded_accuracy"] = (logits[0] > 0).float().mean()
                row["own_accuracy"] = (logits[1] < 0).float().mean()
                if config.gradient_penalty:
                    share = torch.from_numpy(rng.random(len(part), np.float32)).to(part.device)
                    loss = loss + config.gradient_penalty * network.gradient_penalty(recorded, student, share)
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                rows.append(row)
        return mean_terms(rows)

    @torch.no_grad()
    def step_rewards(self, steps: Transitions, terminations: float) -> Tensor:
        """Return the discriminator's rewards of own steps, `[B]`, given the terminations per own step.

        A step that terminates an episode also has the rewards of all later steps in the absorbing state, gamma / (1 -
        gamma) times that of one (Kostrikov 2019, arXiv 1809.02925, section 4.2). In that state, the optimum of D is
        r / (r + o), r and o its shares in recorded and own steps, so that the logit is log(r / o). D learns from the
        other steps, whose shares are 1 - r and 1 - o, so that log((1 - r) / (1 - o)) is added to their logits.
        """
        assert self.discriminator is not None
        logit = self.discriminator(steps)
        if not self.config.absorbing:
            return self.of_logit(logit)
        recorded, own = self.absorbing_shares(terminations)
        if not own:  # gamma is 0, and the absorbing state does not count
            return self.of_logit(logit)
        within = self.of_logit(torch.tensor(math.log(recorded / own)))
        reward = self.of_logit(logit + math.log((1 - recorded) / (1 - own)))
        return reward + steps.terminated * within * self.gamma / (1 - self.gamma)

    def absorbing_shares(self, terminations: float) -> tuple[float, float]:
        """Return the shares of the absorbing state in recorded and in own steps, given the terminations per own step.

        Each step in the environment counts once, as it does for D and PPO, and a termination gamma / (1 - gamma) steps
        in the absorbing state. One termination in the number of recorded steps is added on both sides: without it, a
        termination would have a reward without bound if none was recorded.
        """
        assert self.data is not None
        recorded, added = float(self.data.columns["terminated"].mean()), 1 / len(self.data)
        return self.absorbing_share(recorded + added), self.absorbing_share(terminations + added)

    def absorbing_share(self, terminations: float) -> float:
        """Return the share of the absorbing state, given the terminations per step."""
        within = terminations * self.gamma / (1 - self.gamma)
        return within / (1 + within)

    def of_logit(self, logit: Tensor) -> Tensor:
        """Return the reward for a logit of D."""
        return F.softplus(logit) if self.config.form == "gail" else logit

    def log_ratio(self, rollout: Rollout, policy: NetworkPolicy) -> Tensor:
        """Return log teacher(a | s) - log student(a | s) of the actions in a rollout, `[T, N]`."""
        assert rollout.labels is not None
        assert self.teacher is not None
        self.teacher.measure(rollout.labels)
        params = rollout.labels / (self.teacher.temperature or 1.0), rollout.action_params
        teacher, student = (PolicyOutput(policy.spec.head, part).log_prob(rollout.raw_action) for part in params)
        return teacher - student

    def own_steps(self, rollout: Rollout, policy: NetworkPolicy) -> Transitions:
        """Return the steps of a rollout, in the order of its flattened columns."""
        head, airl = policy.spec.head, None
        if self.config.form == "airl":
            log_prob = PolicyOutput(head, rollout.action_params).log_prob(rollout.raw_action)
            airl = _next_obs(rollout).flatten(0, 1), log_prob.flatten()
        obs, action = rollout.obs.flatten(0, 1), head.bounded(rollout.raw_action).flatten(0, 1)
        return Transitions.new(obs, action, rollout.terminated.flatten(), airl)

    def recorded_steps(self, count: int, policy: NetworkPolicy, rng: np.random.Generator) -> Transitions:
        """Return random recorded steps."""
        assert self.data is not None
        rows = rng.integers(0, len(self.data), count)
        device = next(policy.parameters()).device
        obs = self.data.observations(rows).to(device)
        action, terminated = (torch.from_numpy(self.data.columns[key][rows]) for key in ("action", "terminated"))
        action, airl = (action.long() if policy.spec.head.discrete else action).to(device), None
        if self.config.form == "airl":
            with torch.no_grad():
                log_prob = policy(obs)[0].log_prob(action)
            airl = self.data.next_observations(rows).to(device), log_prob
        return Transitions.new(obs, action, terminated.to(device), airl)

    def state_dict(self) -> dict[str, Any]:
        """Return the discriminator with its optimizer, the averages, and the action gap of the teacher."""
        state: dict[str, Any] = {} if self.teacher is None else {"action_gap": self.teacher.action_gap}
        if self.discriminator is not None and self.optimizer is not None:
            state |= {"discriminator": self.discriminator.state_dict(), "moments": self.optimizer.state_dict()["state"]}
            state |= {"averages": self.averages, "num_rollouts": self.num_rollouts}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        if self.teacher is not None:
            self.teacher.action_gap = state["action_gap"]
        if self.discriminator is not None and self.optimizer is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.averages, self.num_rollouts = state["averages"], state["num_rollouts"]
            moments = {int(index): values for index, values in state.get("moments", {}).items()}
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def require_finite(config: AdversarialConfig, gamma: float) -> None:
    """Raise ConfigError if the return of the absorbing state is infinite."""
    if config.absorbing and config.discriminator_weight and gamma == 1:
        raise ConfigError(
            "ppo.gamma: with 1, the return of the absorbing state is infinite. Use less, or recipe.absorbing: false."
        )


def _next_obs(rollout: Rollout) -> Tensor:
    """Return the observation after each step of a rollout, `[T, N, ...]`; at the end of an episode its last one."""
    next_obs = torch.cat([rollout.obs[1:], rollout.next_obs[None]])
    for place, obs in rollout.last_obs.items():
        next_obs[place] = obs.to(next_obs.device)
    return next_obs
