from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from rldistill.core.env import EnvConfig


class Strict(gymnasium.Env[np.ndarray, int]):  # type: ignore[type-arg]
    """Ten steps of reward 1; action 0 is illegal."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def action_masks(self) -> list[bool]:
        return [False, True, True]

    def reset(self, **kwargs: Any) -> Any:
        super().reset(seed=kwargs.get("seed"))
        self.left = 10
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: int) -> Any:
        assert action != 0
        self.left -= 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, self.left == 0, False, {}


@pytest.fixture
def strict() -> Iterator[EnvConfig]:
    gymnasium.register("Strict-v0", Strict)
    yield EnvConfig("Strict-v0")
    del gymnasium.registry["Strict-v0"]
