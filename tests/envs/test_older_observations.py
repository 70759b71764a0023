"""Agents of older versions of MuJoCo's environments, whose observations had more values."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.envs.make import make_env
from rldistill.envs.spaces import adapt_env, spec_from_env, spec_from_spaces
from rldistill.evaluation.verify import fit_to_env
from rldistill.students import Mlp


class Counting(gymnasium.Env[Any, Any]):
    """Environment whose observation is 1, 2, 3 and so on."""

    def __init__(self, size: int = 105) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.arange(1.0, self.observation_space.shape[0] + 1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


@pytest.mark.parametrize(("name", "old", "size"), [("Ant", 111, 105), ("Ant", 111, 27), ("Humanoid", 376, 348)])
def test_older_agents_get_a_padding_wrapper(name: str, old: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium.register(f"{name}-v99", Counting, kwargs={"size": size})
    monkeypatch.setitem(gymnasium.registry, f"{name}-v99", gymnasium.registry.pop(f"{name}-v99"))
    env = EnvConfig(f"{name}-v99", {"size": size})
    spec = spec_from_spaces("it", spaces.Box(-9, 9, (old,), np.float64), spaces.Box(-1, 1, (2,)))
    policy = Mlp((4,)).build(spec)
    adapted = adapt_env(env, policy)
    assert [wrapper.name for wrapper in adapted.wrappers] == ["PadObservation"]
    fit_to_env(policy, env)
    obs = make_env(adapted).reset()[0]
    assert obs.shape == (old,)
    kept = obs[obs > 0]
    np.testing.assert_array_equal(kept, np.arange(1, len(kept) + 1) if name == "Ant" else kept)
    assert (obs[-84:] == 0).all()
    same = Mlp((4,)).build(spec_from_env(env))
    assert adapt_env(env, same) == env


def test_padding_of_other_observations_is_refused() -> None:
    wrapper = Wrapper("PadObservation", {"segments": [[2, 1, 0]]})
    with pytest.raises(ConfigError, match=r"PadObservation does not accept.*expected those of \(4,\) values, found 2"):
        make_env(EnvConfig("CartPole-v1", wrappers=(wrapper,)))
