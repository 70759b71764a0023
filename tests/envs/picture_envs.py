"""Environments whose observations hold pictures beside other entries."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rldistill.core.heads import MASK

SPACE = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (10, 12, 3), np.uint8),
        "board": spaces.Box(0, 1, (6, 6, 7), np.bool_),
        "pose": spaces.Box(-5, 5, (2,), np.float64),
        "side": spaces.Discrete(3),
        "dials": spaces.MultiDiscrete([2, 4]),
        "goal": spaces.Dict({"wanted": spaces.Box(-1, 1, (2,)), "reached": spaces.Tuple([spaces.MultiBinary(2)])}),
        MASK: spaces.MultiBinary(3),
    }
)


class Sides(gymnasium.Env[Any, Any]):
    """Twenty steps in which the right action is the side that the observation shows."""

    side: int

    def _seen(self) -> dict[str, Any]:
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.side)
        self.time += 1
        return self._seen(), reward, self.time == 20, False, {}


class Desk(Sides):
    """The right action is the side that the camera shows; everything else is noise."""

    observation_space: spaces.Space[Any] = SPACE
    action_space: spaces.Space[Any] = spaces.Discrete(3)

    def __init__(self, keys: tuple[str, ...] = (), render_mode: str | None = None) -> None:
        if keys:
            self.observation_space = spaces.Dict({key: SPACE[key] for key in keys})

    def _seen(self) -> dict[str, Any]:
        rng = self.np_random
        self.side = int(rng.integers(3))
        camera = rng.integers(0, 60, (10, 12, 3)).astype(np.uint8)
        camera[:, 4 * self.side : 4 * self.side + 4] += 190
        legal = np.ones(3, np.int8)
        legal[self.side - 1] = rng.integers(2)
        seen = {
            "camera": camera,
            "board": rng.random((6, 6, 7)) < 0.3,
            "pose": rng.normal(size=2),
            "side": int(rng.integers(3)),
            "dials": rng.integers(0, [2, 4]),
            "goal": {"wanted": rng.random(2).astype(np.float32), "reached": (rng.integers(0, 2, 2).astype(np.int8),)},
            MASK: legal,
        }
        return {key: seen[key] for key in self.observation_space}  # type: ignore[attr-defined]


def right_side(obs: dict[str, np.ndarray]) -> int:
    return int(obs["camera"][..., 0].reshape(10, 3, 4).mean((0, 2)).argmax())


class Planes(Desk):
    """A board of bits without a dict, as in MinAtar."""

    observation_space = SPACE["board"]

    def _seen(self) -> Any:
        self.side = int(self.np_random.integers(3))
        board = self.np_random.random((6, 6, 7)) < 0.2
        board[:, 2 * self.side : 2 * self.side + 2, 3] = True
        return board


class Scene(gymnasium.Env[Any, Any]):
    """Pictures that are large enough for SB3's NatureCNN, at random."""

    observation_space = spaces.Dict(
        {
            "goal": spaces.Discrete(4),
            "left": spaces.Box(0, 255, (40, 44, 3), np.uint8),
            "right": spaces.Box(0, 255, (36, 38, 1), np.uint8),
            "speed": spaces.Box(-1, 1, (3,)),
            "lamps": spaces.MultiBinary(3),
            "level": spaces.Box(0, 9, (2,), np.uint8),
        }
    )

    def __init__(self, continuous: bool = False, render_mode: str | None = None) -> None:
        self.action_space: Any = spaces.Box(-1, 1, (2,)) if continuous else spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.observation_space.sample(), float(np.sum(action)), self.time >= 9, False, {}
