"""Vector environments in which every episode has a seed of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import gymnasium
import gymnasium.wrappers
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from rldistill.core.heads import MASK
from rldistill.core.spec import PolicySpec
from rldistill.envs.atari import is_atari, make_atari
from rldistill.envs.make import EnvConfig, make_env, observation_views, refuse_wrappers, spec_from_env


@dataclass(frozen=True)
class Step:
    """What one step of all environments gave; `obs` already begins the next episode where one ended.

    `success` is that of each episode that ended, as its last step's info tells it, and NaN where it does not.
    """

    obs: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ended: NDArray[np.int64]
    last_obs: NDArray[Any]
    success: NDArray[np.float64]

    def final_obs(self, slot: int) -> NDArray[Any]:
        """The last observation of the episode that ended in `slot`."""
        last: NDArray[Any] = self.last_obs[int(np.flatnonzero(self.ended == slot)[0])]
        return last


SeedOf = Callable[[int, int], int | None]
"""The seed of a slot's n-th episode; None where there is none left for it. Asked once, when the episode begins."""


class SeededVectorEnv:
    """A Gymnasium vector whose ended slots are reset, with their next episode's seed, before the next step.

    A slot for which there is no episode left costs no more steps, but for ale-py's, which plays on as it likes.
    """

    def __init__(
        self,
        vector: VectorEnv[Any, Any, Any],
        seed_of: SeedOf,
        rebuild: Callable[[], gymnasium.Env[Any, Any]] | None = None,
        idle: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    ) -> None:
        self.vector = vector
        self._idle = idle
        self._rebuild = rebuild
        self.num_envs = vector.num_envs
        self.single_observation_space = vector.single_observation_space
        self.single_action_space = vector.single_action_space
        self.episode = np.zeros(self.num_envs, np.int64)
        self._seed_of = seed_of
        self._actions: NDArray[Any] | None = None

    def reset(self) -> NDArray[Any]:
        return self._reset(np.ones(self.num_envs, bool))

    def send(self, actions: NDArray[Any]) -> None:
        """Begin a step with `[num_envs, A]`. ale-py's emulators run in their own threads from here on."""
        actions = of_the_space(actions, self.vector.action_space)
        if hasattr(self.vector, "send"):
            self.vector.send(actions)
        else:
            self._actions = actions

    def recv(self) -> Step:
        """Finish the step begun by `send`."""
        obs, reward, terminated, truncated, info = (
            self.vector.recv()  # type: ignore[attr-defined]
            if self._actions is None
            else self.vector.step(self._actions)
        )
        done = terminated | truncated
        ended = np.flatnonzero(done)
        last_obs = obs[ended].copy()
        if len(ended):
            self.episode[ended] += 1
            obs = self._reset(done, obs)
        success = success_of(info, ended)
        return Step(obs, np.asarray(reward, np.float64), terminated, truncated, ended, last_obs, success)

    def step(self, actions: NDArray[Any]) -> Step:
        self.send(actions)
        return self.recv()

    def _reset(self, mask: NDArray[np.bool_], shown: NDArray[Any] | None = None) -> NDArray[Any]:
        """Begin the next episodes of these slots, and park those without one, which go on to show what they do now."""
        seeds = [self._seed_of(slot, int(self.episode[slot])) if mask[slot] else None for slot in range(self.num_envs)]
        begun = mask & np.array([seed is not None for seed in seeds])
        if isinstance(self.vector, SyncVectorEnv):
            if self._rebuild is not None:
                self._renew(self.vector, begun, self._rebuild)
            if shown is not None:
                self._park(self.vector, mask & ~begun, shown)
            shown, _ = self.vector.reset(seed=seeds, options={"reset_mask": mask.copy()})
        elif begun.any():
            shown, _ = self.vector.reset(seed=np.array(seeds)[begun].astype(np.int64), options={"reset_mask": begun})
        assert shown is not None
        return shown.copy()

    @staticmethod
    def _park(vector: SyncVectorEnv, mask: NDArray[np.bool_], shown: NDArray[Any]) -> None:
        envs = list(vector.envs)
        for slot in np.flatnonzero(mask):
            envs[slot].close()
            envs[slot] = _Parked(shown[slot].copy())
        vector.envs = envs

    @staticmethod
    def _renew(vector: SyncVectorEnv, mask: NDArray[np.bool_], rebuild: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        envs = list(vector.envs)
        for slot in np.flatnonzero(mask):
            envs[slot].close()
            envs[slot] = rebuild()
        vector.envs = envs

    def replay(self, episodes: Sequence[int], actions: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Bring each slot to where it stands after `actions[slot]` of its episode `episodes[slot]`.

        All slots step together, so each one's reset is put off until just as many steps are left as it has actions.
        """
        self.episode[:] = episodes
        lengths = np.array([len(taken) for taken in actions])
        longest = int(lengths.max())
        obs = self.reset()
        for step in range(longest):
            late = lengths == longest - step
            if step and late.any():
                obs = self._reset(late)
            idle = (
                np.zeros_like(np.asarray(self.vector.action_space.sample())) if self._idle is None else self._idle(obs)
            )
            for slot in np.flatnonzero(lengths >= longest - step):
                idle[slot] = of_the_space(actions[int(slot)][step - longest + lengths[slot]], self.single_action_space)
            obs, _, terminated, truncated, _ = self.vector.step(idle)
            idle_ended = (terminated | truncated) & (lengths < longest - step)
            if idle_ended.any():
                obs = self._reset(idle_ended)
        if longest and (lengths == 0).any():
            obs = self._reset(lengths == 0)
        now: NDArray[Any] = obs.copy()
        return now

    def close(self) -> None:
        self.vector.close()


class _Parked(gymnasium.Env[Any, Any]):
    """What stands in a slot that has no episode left."""

    def __init__(self, shown: Any) -> None:
        self.shown = shown

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.shown, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.shown, 0.0, False, False, {}


def success_of(info: Mapping[str, Any], slots: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 or 0 for the episodes in these slots, by `is_success` or `success` of their info; NaN where neither is told."""
    found = np.full(len(slots), np.nan)
    for key in SUCCESS:
        values, told = info.get(key), info.get(f"_{key}")
        if isinstance(values, np.ndarray) and values.dtype.kind in "biuf" and told is not None:
            found = np.where(told[slots], values[slots].astype(np.float64), np.nan)
            break
    return found


SUCCESS = ("is_success", "success")
"""What Gymnasium-Robotics and highway-env, and what others, call it."""


def of_the_space(action: NDArray[Any], space: spaces.Space[Any]) -> NDArray[Any]:
    """An action `[A]` as its space has it, where that has more dimensions than policies do."""
    return action.reshape(space.shape) if space.shape and len(space.shape) > 1 else action


def make_vector_env(config: EnvConfig, num_envs: int, seed_of: SeedOf, num_threads: int = 1) -> SeededVectorEnv:
    """`num_envs` environments whose slot s plays its n-th episode with seed `seed_of(s, n)`."""
    if is_atari(config.id):
        refuse_wrappers(config)
        return SeededVectorEnv(make_atari(config.id, num_envs, num_threads, config.kwargs), seed_of)
    build = partial(make_env, config)
    vector = SyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    sight, student = observation_views(config), config.view_of("student")

    def idle(obs: NDArray[Any]) -> NDArray[Any]:
        return first_legal(sight.select("student", obs), sight.student)

    rebuild = build if keeps_state_across_reset(student) else None
    return SeededVectorEnv(vector, seed_of, rebuild, idle if MASK in sight.student.entries else None)


def first_legal(obs: NDArray[Any], spec: PolicySpec) -> NDArray[np.int64]:
    """The first legal action of each observation of an environment that tells them; `spec` is the environment's."""
    at = 0
    for key, part in spec.parts:
        if key == MASK:
            break
        at += math.prod(part.shape)
    mask = obs[..., at : at + math.prod(spec.entries[MASK].shape)]
    chosen = [part.argmax(-1) for part in np.split(mask, np.cumsum(spec.head.choices)[:-1], axis=-1)]
    return chosen[0] if spec.head.single_choice else np.stack(chosen, -1)


# BipedalWalker shows it in about one of three pairs of episodes, so several are tried.
_CHECK_STEPS, _CHECK_EPISODES = 150, 6


@lru_cache
def keeps_state_across_reset(config: EnvConfig) -> bool:
    """Whether an episode differs from the same one in a fresh environment (BipedalWalker's does)."""
    used = make_env(config)
    used.action_space.seed(0)
    actions = [used.action_space.sample() for _ in range(_CHECK_STEPS)]
    spec = spec_from_env(config)
    masked = spec if MASK in spec.entries else None
    differs = False
    for seed in range(_CHECK_EPISODES):
        fresh = make_env(config)
        pairs = zip(_play(used, seed, actions, masked), _play(fresh, seed, actions, masked), strict=False)
        differs |= any(not np.array_equal(a, b) for a, b in pairs)
        fresh.close()
    used.close()
    return differs


def _play(env: gymnasium.Env[Any, Any], seed: int, actions: Sequence[Any], spec: PolicySpec | None) -> list[Any]:
    seen = [env.reset(seed=seed)[0]]
    for action in actions:
        obs, _, terminated, truncated, _ = env.step(action if spec is None else first_legal(seen[-1], spec))
        seen.append(obs)
        if terminated or truncated:
            break
    return seen
