"""Small environments of PettingZoo's parallel API, written without it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


class Signals:
    """Each agent sees a number, and earns 1 for the action 1 where it is positive, 0 otherwise.

    The agents of type `near` see their own number and a clock; `far_0` sees three numbers, the last of which counts.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    render_mode = None
    horizon = 10

    def __init__(self, leaves_at: int | None = None, own_rewards: bool = False, continuous: bool = False) -> None:
        self.possible_agents = ["near_0", "near_1", "far_0"]
        self.leaves_at, self.own_rewards, self.continuous = leaves_at, own_rewards, continuous
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1, 1, (3 if agent == "far_0" else 2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1, 1, (1,), np.float32) if self.continuous else spaces.Discrete(2 + (agent == "far_0"))

    @property
    def state_space(self) -> spaces.Space[Any]:
        return spaces.Box(-1, 1, (3,), np.float32)

    def state(self) -> Any:
        return self._cues.astype(np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self._rng = np.random.default_rng(seed)
        self._time, self.agents = 0, list(self.possible_agents)
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        assert set(actions) == set(self.agents)
        right = {agent: float(self._is_right(agent, action)) for agent, action in actions.items()}
        mean = float(np.mean([*right.values()]))
        rewards = right if self.own_rewards else dict.fromkeys(right, mean)
        self._time += 1
        over = self._time >= self.horizon
        left = {agent: agent == "near_1" and self._time == self.leaves_at for agent in self.agents}
        truncated = dict.fromkeys(self.agents, over)
        self.agents = [] if over else [agent for agent in self.agents if not left[agent]]
        return self._observations(), rewards, left, truncated, {agent: {} for agent in left}

    def close(self) -> None: ...

    def render(self) -> None: ...

    def _is_right(self, agent: str, action: Any) -> bool:
        cue = self._cues[self.possible_agents.index(agent)]
        chosen = float(np.ravel(action)[0]) > 0
        return chosen == (cue > 0)

    def _observations(self) -> dict[str, Any]:
        self._cues = self._rng.uniform(-1, 1, 3)
        obs = {
            "near_0": [self._cues[0], self._time / self.horizon],
            "near_1": [self._cues[1], self._time / self.horizon],
            "far_0": [0.0, 0.0, self._cues[2]],
        }
        return {agent: np.array(obs[agent], np.float32) for agent in self.agents or self.possible_agents}


class Rich(Signals):
    """Signals with observations of several entries, and actions that count from 1 and 5."""

    def __init__(self, container: str = "dict", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.container = container

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        own = super().observation_space(agent)
        if self.container == "tuple":
            return spaces.Tuple((own, spaces.Discrete(3)))
        return spaces.Dict({"inner": spaces.Dict({"own": own}), "kind": spaces.Discrete(3)})

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.MultiDiscrete([2, 3], start=[1, 5])

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        assert all(self.action_space(agent).contains(action) for agent, action in actions.items())
        return super().step(actions)

    def _observations(self) -> dict[str, Any]:
        own = super()._observations()
        return {
            agent: (x, 2) if self.container == "tuple" else {"inner": {"own": x}, "kind": 2} for agent, x in own.items()
        }


class Pair(Signals):
    """Signals of two agents with equal spaces."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.possible_agents = ["near_0", "near_1"]


class Turns:
    """Environment that has agents but neither API of PettingZoo."""

    possible_agents = ()


def make_signals(**kwargs: Any) -> Signals:
    return Signals(**kwargs)


def make_rich(**kwargs: Any) -> Rich:
    return Rich(**kwargs)


def make_pair(**kwargs: Any) -> Pair:
    return Pair(**kwargs)


def make_empty() -> Turns:
    return Turns()


def make_number() -> int:
    return 3


def make_turns() -> Any:
    from pettingzoo import AECEnv

    class Alternating(AECEnv[str, Any, Any]):
        metadata: dict[str, Any] = {"is_parallelizable": False}  # noqa: RUF012
        possible_agents = ["near_0", "near_1"]  # noqa: RUF012

    return Alternating()
