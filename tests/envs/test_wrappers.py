"""Wrappers of our own show what those that agents were trained behind showed."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib.common.wrappers import TimeFeatureWrapper

from rldistill.envs.wrappers import History, TimeFeature

PLAIN = spaces.Box(-9, 9, (3,), np.float64)
GOAL = spaces.Dict({"desired_goal": spaces.Box(-1, 1, (2,)), "observation": spaces.Box(-9, 9, (3,), np.float64)})


class Walk(gymnasium.Env[Any, Any]):
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, space: spaces.Space[Any], steps: int | None = None) -> None:
        self.observation_space = space
        self.entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        if steps is not None:
            self.spec = gymnasium.envs.registration.EnvSpec("Walk-v0", max_episode_steps=steps)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._seen(), 0.0, False, False, {}

    def _seen(self) -> Any:
        obs = {key: self.np_random.uniform(-1, 1, box.shape).astype(box.dtype) for key, box in self.entries.items()}
        return obs.get("", obs)


@pytest.mark.parametrize("space", [PLAIN, GOAL], ids=["vector", "dict"])
@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("test_mode", [False, True])
def test_time_feature_equals_that_of_sb3_contrib(space: Any, steps: int | None, test_mode: bool) -> None:
    def fresh() -> Walk:  # theirs changes the space that it is given
        return Walk(spaces.Dict(dict(space.spaces)) if isinstance(space, spaces.Dict) else space, steps)

    theirs, ours = TimeFeatureWrapper(fresh(), 5, test_mode), TimeFeature(fresh(), 5, test_mode)
    assert ours.observation_space == theirs.observation_space
    pairs = [(theirs.reset(seed=3)[0], ours.reset(seed=3)[0])]
    for _ in range(4):
        expected = theirs.step(np.zeros(2, np.float32))[0]
        theirs.observation_space.seed(0)
        pairs.append((expected, ours.step(np.zeros(2, np.float32))[0]))
    for expected, seen in pairs:
        assert ours.observation_space.contains(seen)
        if space is GOAL:
            np.testing.assert_array_equal(seen["desired_goal"], expected["desired_goal"])
            seen, expected = seen["observation"], expected["observation"]
        assert seen.dtype == expected.dtype == np.float64
        np.testing.assert_array_equal(seen, expected)
    assert (pairs[-1][1]["observation"] if space is GOAL else pairs[-1][1])[-1] == (
        1 if test_mode else 1 - 4 / (steps or 5)
    )


def test_time_feature_refuses_other_spaces() -> None:
    with pytest.raises(ValueError, match="expected a vector, alone or as 'observation' of a dict"):
        TimeFeature(Walk(spaces.Dict({"state": PLAIN})))


def test_a_history_has_the_dtype_of_its_observations() -> None:
    env = History(Walk(PLAIN), horizon=2)
    first = env.reset(seed=0)[0]
    second, *_ = env.step(np.array([0.25, -0.5], np.float32))
    assert (env.observation_space.shape, env.observation_space.dtype) == ((10,), np.float64)
    assert first.dtype == second.dtype == np.float64
    np.testing.assert_array_equal(first[[0, 1, 2, 6, 7, 8, 9]], 0)
    np.testing.assert_array_equal(second[:3], first[3:6])
    np.testing.assert_array_equal(second[6:], [0, 0, 0.25, -0.5])
