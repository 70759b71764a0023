"""What a policy that learns from reward lives through: rollouts with the teacher's labels, and their advantages."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.envs.config import EnvConfig
from rldistill.envs.rollout import StatefulPolicy, rollout, to_env_action
from rldistill.envs.seeding import episode_seed
from rldistill.envs.vector import SeededVectorEnv, make_vector_env
from rldistill.envs.views import ObservationViews

RECENT = 100
"""Episodes whose mean return is reported."""


@dataclass(frozen=True)
class Rollout:
    """`T` steps of `N` environments, everything `[T, N, ...]`.

    Attributes:
        obs: what the student saw.
        chosen: its draws, before they were brought within the bounds.
        said: its parameters when it drew.
        reward, terminated, truncated: what came of it.
        starts: whether an episode began there.
        weight: 0 where the teacher acted.
        labels: the teacher's parameters, if there is a teacher.
        last_obs: by step and slot, the last observation of each episode that ended.
        next_obs: `[N, ...]`, what the slots show now.
        state: what a recurrent student remembered at first, `[N, ...]`.
    """

    obs: Tensor
    raw_action: Tensor
    action_params: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    starts: Tensor
    weight: Tensor
    labels: Tensor | None
    last_obs: dict[tuple[int, int], Tensor]
    next_obs: Tensor
    state: Tensor | None


def advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor, gamma: float, lam: float
) -> Tensor:
    """A_t = delta_t + gamma lam A_{t+1} within an episode, delta_t = r_t + gamma V(s_{t+1}) - V(s_t), all `[T, N]`.

    Nothing is added to r_t where the episode terminated. Schulman 2016, arXiv 1506.02438.
    """
    delta = reward + gamma * next_value * ~terminated - value
    out = torch.zeros_like(delta)
    following = torch.zeros_like(delta[0])
    for step in range(len(delta) - 1, -1, -1):
        following = delta[step] + gamma * lam * following * ~ended[step]
        out[step] = following
    return out


@dataclass
class RolloutWorker:
    """Environments that are played on and on, and how each of their open episodes came to where it stands."""

    env: EnvConfig
    sight: ObservationViews
    num_envs: int
    seed: int
    vector: SeededVectorEnv = field(init=False)
    obs: NDArray[Any] = field(init=False)
    episode_actions: list[list[NDArray[Any]]] = field(init=False)
    returns: NDArray[np.float64] = field(init=False)
    recent: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.vector = make_vector_env(self.env, self.num_envs, self._episode_seed)
        self.obs = self.vector.reset()
        self.episode_actions = [[] for _ in range(self.num_envs)]
        self.returns = np.zeros(self.num_envs)
        self.recent = deque(maxlen=RECENT)

    def _episode_seed(self, slot: int, episode: int) -> int:
        return episode_seed(self.seed, "train", 0, 0, slot, episode)

    @property
    def mean_return(self) -> float | None:
        """Of the last episodes; None before the first has ended."""
        return float(np.mean(self.recent)) if self.recent else None

    @property
    def num_ended(self) -> int:
        """How many episodes have ended."""
        return int(self.vector.episode.sum())

    def play(
        self,
        student: StatefulPolicy,
        teacher: StatefulPolicy | None,
        length: int,
        guided: int,
        generator: torch.Generator,
    ) -> Rollout:
        """`length` steps of each; in each episode the teacher takes the first `guided` ones."""
        state = student.state
        rows: list[dict[str, Any]] = []
        last_obs: dict[tuple[int, int], Tensor] = {}

        def act(obs: NDArray[Any]) -> NDArray[Any]:
            output = student.step(obs)
            label = None if teacher is None else teacher.step(obs)
            raw_action = output.raw_sample(generator)
            action = to_env_action(output.head.bounded(raw_action))
            age = np.array([len(actions) for actions in self.episode_actions])
            if label is not None and guided:
                by_teacher = to_env_action(label.mode())
                action = np.where((age < guided).reshape(-1, *[1] * (action.ndim - 1)), by_teacher, action)
            rows.append(
                {
                    "obs": self.shown(obs),
                    "raw_action": raw_action,
                    "action_params": output.params,
                    "starts": torch.from_numpy(age == 0),
                }
                | {"weight": torch.from_numpy((age >= guided).astype(np.float32))}
                | ({} if label is None else {"labels": label.params})
            )
            return action

        for transition in rollout(self.vector, self.obs, act):
            if transition is None:
                continue
            step = transition.step
            rows[-1] |= {
                "reward": torch.from_numpy(step.reward).float(),
                "terminated": torch.from_numpy(step.terminated.copy()),
                "truncated": torch.from_numpy(step.truncated & ~step.terminated),
            }
            self.note(transition.action, step.reward, step.ended)
            for number, slot in enumerate(step.ended):
                last_obs[len(rows) - 1, int(slot)] = self.shown(step.last_obs)[number]
            for memory in (student, teacher):
                if memory is not None:
                    memory.reset(step.ended)
            self.obs = step.obs
            if len(rows) == length:
                break
        columns: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        columns.setdefault("labels", None)
        return Rollout(**columns, last_obs=last_obs, next_obs=self.shown(self.obs), state=state)

    def shown(self, obs: NDArray[Any]) -> Tensor:
        """What the student sees of it."""
        return torch.from_numpy(np.ascontiguousarray(self.sight.select("student", obs)))

    def note(self, action: NDArray[Any], reward: NDArray[np.float64], ended: NDArray[np.int64]) -> None:
        """Keep in mind what was done and what it brought."""
        for slot, actions in enumerate(self.episode_actions):
            actions.append(action[slot])
        self.returns += reward
        for slot in ended:
            self.recent.append(float(self.returns[slot]))
            self.returns[slot] = 0.0
            self.episode_actions[slot] = []

    def tensors(self) -> dict[str, Tensor]:
        """What it takes to stand here again."""
        lengths = [len(actions) for actions in self.episode_actions]
        flat = [action for actions in self.episode_actions for action in actions]
        return {
            "episode": torch.from_numpy(self.vector.episode.copy()),
            "lengths": torch.tensor(lengths),
            "actions": torch.from_numpy(np.stack(flat)) if flat else torch.zeros(0),
            "returns": torch.from_numpy(self.returns.copy()),
            "recent": torch.tensor([*self.recent], dtype=torch.float64),
            "hash": torch.frombuffer(bytearray(_hash(self.obs)), dtype=torch.uint8),
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> bool:
        """Play the open episodes again, from their seeds and their actions; whether they came to the same end.

        If not, they are dropped.
        """
        lengths = tensors["lengths"].tolist()
        parts = np.split(tensors["actions"].numpy(), np.cumsum(lengths)[:-1])
        self.obs = self.vector.replay(tensors["episode"].tolist(), parts)
        self.recent = deque(tensors["recent"].tolist(), maxlen=RECENT)
        exact = _hash(self.obs) == tensors["hash"].numpy().tobytes()
        if not exact:
            self.vector.episode += 1
            self.obs = self.vector.reset()
            return False
        self.episode_actions = [[*part] for part in parts]
        self.returns = tensors["returns"].numpy().copy()
        return True

    def close(self) -> None:
        self.vector.close()


def _hash(obs: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(obs).tobytes()).digest()
