"""Rollouts of a student in its environments, with the labels of its teacher, and their minibatches for PPO."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.heads import ActionHead
from rldistill.core.policy import CPU, Labels, PolicyOutput
from rldistill.core.spec import EnvConfig
from rldistill.envs.seeding import episode_seed
from rldistill.envs.vector import Step, make_vector_env, obs_hash
from rldistill.envs.views import ObservationViews
from rldistill.policies.agent import StatefulPolicy, to_env_action

NUM_RECENT_EPISODES = 100
"""Episodes in the mean return that is logged."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps of environments: `[T, N, ...]` in a rollout, `[B, ...]` in a minibatch.

    Attributes:
        obs: observations of the student.
        raw_action: draws of the student, before they are brought within the bounds.
        reward, terminated: results of the steps.
        starts: True at the first step of an episode.
        weight: 0 where the teacher acted, else 1; None if the student took all steps.
        labels: parameters of the teacher, or of peers; None without either.
        confidence: factor of the distillation losses; None if it is 1.
        state: state of a recurrent student before the first step, `[N, ...]`.
    """

    obs: Tensor
    raw_action: Tensor
    reward: Tensor
    terminated: Tensor
    starts: Tensor
    weight: Tensor | None = None
    labels: Tensor | None = None
    confidence: Tensor | None = None
    state: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Rollout(Steps):
    """`T` steps of `N` environments.

    Attributes:
        last_obs: last observation of each episode that ended, by step and environment.
        next_obs: observations after the last step, `[N, ...]`.
    """

    action_params: Tensor
    truncated: Tensor
    last_obs: dict[tuple[int, int], Tensor]
    next_obs: Tensor


class RolloutWorker:
    """Environments in continuous play, with the actions that replay their open episodes.

    Attributes:
        device: device of the networks.
        teacher: teacher in the environments, if it labels states or takes steps.
    """

    def __init__(
        self, env: EnvConfig, views: ObservationViews, num_envs: int, seed: int, device: torch.device = CPU
    ) -> None:
        self.env, self.views, self.device = env, views, device
        self.teacher: StatefulPolicy | None = None
        self.vector = make_vector_env(env, num_envs, lambda *episode: episode_seed(seed, "train", 0, 0, *episode))
        self.obs: NDArray[Any] = self.vector.reset()
        self.episode_actions: list[list[NDArray[Any]]] = [[] for _ in range(num_envs)]
        self.returns = np.zeros(num_envs)
        self.recent: deque[float] = deque(maxlen=NUM_RECENT_EPISODES)

    @property
    def mean_return(self) -> float | None:
        """The mean return of the latest episodes; None before the first one has ended."""
        return float(np.mean(self.recent)) if self.recent else None

    @property
    def age(self) -> NDArray[np.int64]:
        """The number of steps of each open episode."""
        return np.array([len(actions) for actions in self.episode_actions])

    def student_obs(self, obs: NDArray[Any]) -> Tensor:
        """Return observations as the student sees them."""
        return torch.from_numpy(np.ascontiguousarray(self.views.select("student", obs)))

    def step(self, action: NDArray[Any]) -> Step:
        """Step all environments, and record the actions and returns of their episodes."""
        step = self.vector.step(action)
        for slot, actions in enumerate(self.episode_actions):
            actions.append(action[slot])
        self.returns += step.own_reward
        for slot in step.ended:
            self.recent.append(float(self.returns[slot]))
            self.returns[slot] = 0.0
            self.episode_actions[slot] = []
        self.obs = step.obs
        return step

    def collect(
        self, student: StatefulPolicy, length: int, num_teacher_steps: int, generator: torch.Generator
    ) -> Rollout:
        """Return `length` steps; the teacher takes the first `num_teacher_steps` of each episode."""
        state, teacher = student.state, self.teacher
        rows: list[dict[str, Tensor]] = []
        last_obs: dict[tuple[int, int], Tensor] = {}
        for number in range(length):
            age, output = self.age, student.step(self.obs)
            raw_action = output.raw_sample(generator)
            action = to_env_action(output.head.bounded(raw_action))
            row = {"obs": self.student_obs(self.obs), "raw_action": raw_action, "action_params": output.params}
            row["starts"] = torch.from_numpy(age == 0)
            if teacher is not None:
                label = teacher.step(self.obs)
                row["labels"] = label.params
                if num_teacher_steps:
                    by_teacher = age < num_teacher_steps
                    row["weight"] = torch.from_numpy(~by_teacher).float()
                    mask = by_teacher.reshape(-1, *[1] * (action.ndim - 1))
                    action = np.where(mask, to_env_action(label.mode()), action)
            step = self.step(action)
            row["reward"] = torch.from_numpy(step.reward).float()
            row["terminated"] = torch.from_numpy(step.terminated.copy())
            row["truncated"] = torch.from_numpy(step.truncated & ~step.terminated)
            rows.append(row)
            if len(step.ended):
                last = zip(step.ended, self.student_obs(step.last_obs), strict=True)
                last_obs |= {(number, int(slot)): obs for slot, obs in last}
                student.reset(step.ended)
                if teacher is not None:
                    teacher.reset(step.ended)
        columns: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return Rollout(**columns, last_obs=last_obs, next_obs=self.student_obs(self.obs), state=state)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that `load_state_dict` needs to continue the open episodes."""
        flat = [action for actions in self.episode_actions for action in actions]
        return {
            "episode": torch.from_numpy(self.vector.episode.copy()),
            "lengths": torch.from_numpy(self.age),
            "actions": torch.from_numpy(np.stack(flat)) if flat else torch.zeros(0),
            "returns": torch.from_numpy(self.returns.copy()),
            "recent": torch.tensor([*self.recent], dtype=torch.float64),
            "obs_hash": torch.frombuffer(bytearray.fromhex(obs_hash(self.obs)), dtype=torch.uint8),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> bool:
        """Replay the open episodes from their seeds and actions; drop them and return False if observations differ."""
        actions = np.split(state["actions"].numpy(), np.cumsum(state["lengths"].numpy())[:-1])
        self.obs = self.vector.replay(state["episode"].tolist(), actions)
        self.recent = deque(state["recent"].tolist(), maxlen=NUM_RECENT_EPISODES)
        if obs_hash(self.obs) != state["obs_hash"].numpy().tobytes().hex():
            self.vector.episode += 1
            self.obs = self.vector.reset()
            return False
        self.episode_actions = [[*part] for part in actions]
        self.returns = state["returns"].numpy().copy()
        return True


def advantages(rollout: Rollout, value: Tensor, next_value: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Return generalized advantage estimates `[T, N]` (Schulman 2016, arXiv 1506.02438).

    A_t = delta_t + gamma lambda A_{t+1} within an episode, delta_t = r_t + gamma V(s_{t+1}) - V(s_t), V(s_{t+1}) = 0 if
    the episode terminated.
    """
    delta = rollout.reward + gamma * next_value * ~rollout.terminated - value
    ended = rollout.terminated | rollout.truncated
    result = torch.zeros_like(delta)
    following = torch.zeros_like(delta[0])
    for step in range(len(delta) - 1, -1, -1):
        following = delta[step] + gamma * gae_lambda * following * ~ended[step]
        result[step] = following
    return result


def mean_terms(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the mean of each loss term over the steps of the optimizer, for a row of `metrics.jsonl`."""
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}


@dataclass(frozen=True, kw_only=True)
class Minibatch(Steps):
    """Steps of a rollout, `[B, ...]`; for a recurrent student whole sequences, `[T, B, ...]`."""

    old_log_prob: Tensor
    advantage: Tensor
    returns: Tensor

    def split(self, batch_size: int, recurrent: bool, rng: np.random.Generator) -> Iterator[Minibatch]:
        """Yield all steps in a random order, about `batch_size` at a time; whole sequences if recurrent."""
        num_steps, num_envs = self.reward.shape
        columns = {name: column for name, column in vars(self).items() if column is not None and name != "state"}
        if not recurrent:
            columns = {name: column.flatten(0, 1) for name, column in columns.items()}
        permutation = rng.permutation(num_envs if recurrent else num_steps * num_envs)
        order = torch.from_numpy(permutation).to(self.reward.device)
        size = max(1, batch_size // num_steps) if recurrent else batch_size
        # One gather for all minibatches: one for each of them costs as much as a small network.
        dim = 1 if recurrent else 0
        parts = {name: torch.split(column.index_select(dim, order), size, dim) for name, column in columns.items()}
        if recurrent and self.state is not None:
            parts["state"] = torch.split(self.state.index_select(0, order), size)
        for values in zip(*parts.values(), strict=True):
            yield Minibatch(**dict(zip(parts, values, strict=True)))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over the steps of the student; 0 if there are none."""
        if self.weight is None:
            return values.mean()
        return torch.dot(self.weight.flatten(), values.flatten()) / self.weight.sum().clamp_min(1)

    def normalized_advantage(self) -> Tensor:
        """Return the advantage with mean 0 and standard deviation 1 over the steps of the student."""
        advantage = self.advantage
        if advantage.numel() == 1:
            return advantage
        if self.weight is None:
            std, mean = torch.std_mean(advantage)
            return (advantage - mean) / (std + 1e-8)
        centered, total = advantage - self.mean(advantage), self.weight.sum().clamp_min(1)
        return centered / ((self.mean(centered**2) * total / (total - 1).clamp_min(1)).sqrt() + 1e-8)

    def to_labels(self, head: ActionHead) -> Labels:
        """Return the labels of the distillation losses; `head` is the teacher's."""
        assert self.labels is not None
        teacher = PolicyOutput(head, self.labels)
        return Labels(teacher, teacher, self.raw_action, self.reward, self.returns, self.terminated)
