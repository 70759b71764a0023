"""Meta-World's tasks and their scripted experts, for `examples/metaworld.yaml`.

`metaworld_tasks:make` is the environment, `metaworld_tasks:reach_v3` the expert of `reach-v3`, and likewise for the
other tasks.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

MT10 = (
    "reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3",
    "button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3",
)  # fmt: skip


class SeededTask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Task whose goal and objects are drawn from the seed of each reset; the goal is part of the observation.

    Meta-World draws them from a generator that `reset(seed=...)` does not set. An episode ends at success, with the
    only reward, 1, so that the mean return is the success rate.
    """

    def __init__(self, env: Any, horizon: int) -> None:
        env.seeded_rand_vec, env._freeze_rand_vec, env._set_task_called = True, False, True
        if env._partially_observable:
            env._partially_observable = False
            del env.sawyer_observation_space  # a cached property that depends on it
        super().__init__(TimeLimit(env, horizon))
        self.observation_space = env.sawyer_observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset the task, with new positions."""
        if seed is not None:
            self.unwrapped.seed(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """Step the task."""
        obs, _, _, truncated, info = super().step(action)
        success = bool(info["success"])
        return obs, float(success), success, truncated, info


def make(task: str = "reach-v3", horizon: int = 500, render_mode: str | None = None) -> SeededTask:
    """Return a task by its name, with at most `horizon` steps in an episode."""
    return SeededTask(ALL_V3_ENVIRONMENTS[task](render_mode=render_mode), horizon)


def expert(task: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the scripted policy of a task, with its actions within the bounds."""
    policy = ENV_POLICY_MAP[task]()

    def act(obs: NDArray[Any]) -> NDArray[Any]:
        with warnings.catch_warnings():  # of actions outside the bounds, which are clipped here
            warnings.simplefilter("ignore")
            return np.clip(policy.get_action(obs), -1, 1).astype(np.float32)

    return act


def __getattr__(name: str) -> Callable[[], Callable[[NDArray[Any]], NDArray[Any]]]:
    task = name.replace("_", "-")
    if task not in ENV_POLICY_MAP:
        raise AttributeError(name)
    return partial(expert, task)
