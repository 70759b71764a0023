"""Vector environments in which every episode has its own seed, and the loop that steps them with a policy."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError
from rldistill.core.heads import MASK
from rldistill.core.spec import SIDES, EnvConfig, PolicySpec
from rldistill.envs.atari import is_atari, make_atari
from rldistill.envs.groups import AtariGroup, Group, LocalGroup, ProcessGroup
from rldistill.envs.make import make_env
from rldistill.envs.spaces import observation_views, spec_from_env
from rldistill.envs.wrappers import Env
from rldistill.io.processes import shared_cache

T = TypeVar("T")
SeedFn = Callable[[int, int], int | None]
"""Seed of a slot's n-th episode, or None if the slot has no episode left. Called once, when the episode begins."""
CHECK_STEPS, CHECK_EPISODES = 150, 6
"""Length of the check for state across resets. BipedalWalker differs in one of three episodes, so it needs several."""


@dataclass(frozen=True)
class Step:
    """Result of one step of all slots; `obs` already begins the next episode where one ended.

    `ended` are the slots whose episode ended, with their `last_obs` and their `info`: the last number of each key in
    the episode, or NaN if it is none.
    `own_reward` is the environment's, before `env.wrappers`, and `reward` the one to learn from.
    """

    obs: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ended: NDArray[np.int64]
    last_obs: NDArray[Any]
    info: list[dict[str, float]]
    own_reward: NDArray[np.float64]


class SeededVectorEnv:
    """Group of environments that resets ended slots, with the seed of their next episode, before the next step.

    A slot without episodes left costs no more steps, except on ale-py's vector, whose emulators go on.

    Args:
        group: The environments.
        seed_fn: Seeds of the episodes.
        max_steps: Largest number of steps of an episode, if any.
        legal_actions: Legal actions for observations, if not every action is legal; random ones with a generator.
    """

    def __init__(
        self,
        group: Group,
        seed_fn: SeedFn,
        max_steps: int | None = None,
        legal_actions: Callable[[NDArray[Any], np.random.Generator | None], NDArray[Any]] | None = None,
    ) -> None:
        self.group = group
        self.num_envs = group.num_envs
        self.single_observation_space = group.single_observation_space
        self.single_action_space = group.single_action_space
        self.episode = np.zeros(self.num_envs, np.int64)
        self._seed_fn, self._legal_actions = seed_fn, legal_actions
        self._max_steps, self._age = max_steps, np.zeros(self.num_envs)

    def reset(self) -> NDArray[Any]:
        """Begin an episode in every slot."""
        return self._reset(np.ones(self.num_envs, bool))

    def send(self, actions: NDArray[Any]) -> None:
        """Begin a step with `[num_envs, A]`; other threads and processes run from here on."""
        self.group.send(actions.reshape(self.group.action_space.shape or ()))

    def recv(self) -> Step:
        """Finish the step begun by `send`."""
        step = self.group.recv()
        obs, terminated, truncated = step.obs, step.terminated, step.truncated
        ended = np.flatnonzero(terminated | truncated)
        last_obs = obs[ended].copy()
        self._age += 1
        if len(ended):
            self.episode[ended] += 1
            obs = self._reset(terminated | truncated)
        if self._max_steps is not None and self._age.max() >= self._max_steps:
            raise ConfigError(
                f"evaluate.max_steps: an episode has not ended after {self._max_steps:,} steps. Limit the episodes "
                "with Gymnasium's TimeLimit (env.kwargs: {max_episode_steps: 1000}), or raise max_steps."
            )
        return Step(obs, step.reward, terminated, truncated, ended, last_obs, step.infos, step.own_reward)

    def step(self, actions: NDArray[Any]) -> Step:
        """Take a step of all slots."""
        self.send(actions)
        return self.recv()

    def rollout(
        self, obs: NDArray[Any], act: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> Iterator[tuple[NDArray[Any], Step] | None]:
        """Step without end from the observations `obs`; yield None while a step runs, then actions and results."""
        while True:
            action = act(obs)
            self.send(action)
            yield None
            step = self.recv()
            yield action, step
            obs = step.obs

    def _reset(self, mask: NDArray[np.bool_]) -> NDArray[Any]:
        """Begin the next episodes of these slots; a slot without one idles with its current observation."""
        seeds = [self._seed_fn(slot, int(self.episode[slot])) if mask[slot] else None for slot in range(self.num_envs)]
        begun = np.array([seed is not None for seed in seeds])
        self._age[mask] = np.where(begun, 0.0, -np.inf)[mask]
        return self.group.reset(mask, seeds)

    def replay(self, episodes: Sequence[int], actions: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Bring each slot to its state after `actions[slot]` of episode `episodes[slot]`; return the observations.

        All slots step together, so each is reset only when as many steps are left as it has actions.
        """
        self.episode[:] = episodes
        lengths = np.array([len(of_slot) for of_slot in actions])
        total = int(lengths.max())
        obs = self.reset()
        for step in range(total):
            starting = lengths == total - step
            if step and starting.any():
                obs = self._reset(starting)
            if self._legal_actions is None:
                batch = np.zeros_like(np.asarray(self.group.action_space.sample()))
            else:
                batch = self._legal_actions(obs, None)
            for slot in np.flatnonzero(lengths >= total - step):
                action = actions[int(slot)][step - total + lengths[slot]]
                batch[slot] = action.reshape(batch[slot].shape)
            self.group.send(batch)
            result = self.group.recv()
            obs = result.obs
            idle_ended = (result.terminated | result.truncated) & (lengths < total - step)
            if idle_ended.any():
                obs = self._reset(idle_ended)
        if total and (lengths == 0).any():
            obs = self._reset(lengths == 0)
        return np.array(obs)

    def sample_actions(self, obs: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[Any]:
        """Return a random action for each slot; with action masks a legal one, the first without `rng`."""
        if self._legal_actions is not None:
            return self._legal_actions(obs, rng)
        return np.stack([self.single_action_space.sample() for _ in obs])

    def close(self) -> None:
        """Close the environments."""
        self.group.close()


def take_turns(rollouts: Iterable[Iterator[T | None]]) -> Iterator[T]:
    """Yield the items of all iterators, two of which run in turns: None passes the turn to the other."""
    # While the emulators of one iterator step, the policy of the other computes.
    waiting = iter(rollouts)
    running = deque(islice(waiting, 2))
    while running:
        current = running.popleft()
        for item in current:
            if item is None:
                running.append(current)
                break
            yield item
        else:
            running.extend(islice(waiting, 1))


def make_vector_env(
    config: EnvConfig,
    num_envs: int,
    seed_fn: SeedFn,
    num_threads: int = 1,
    max_steps: int | None = None,
    workers: int = 1,
) -> SeededVectorEnv:
    """Return `num_envs` environments, where slot s plays its n-th episode with seed `seed_fn(s, n)`.

    They are stepped by `workers` processes, and ale-py's by `num_threads` threads instead. An episode of more than
    `max_steps` steps is an error; those of ale-py have a limit of their own.
    """
    if is_atari(config.id):
        return SeededVectorEnv(AtariGroup(make_atari(config, num_envs, num_threads)), seed_fn)
    rebuild, workers = keeps_state_across_reset(config.view_of("student")), min(workers, num_envs)
    group: Group = (
        LocalGroup(config, num_envs, rebuild) if workers == 1 else ProcessGroup(config, num_envs, rebuild, workers)
    )
    views = observation_views(config)
    masked = next((side for side in SIDES if MASK in getattr(views, side).entries), None)

    def legal(obs: NDArray[Any], rng: np.random.Generator | None) -> NDArray[Any]:
        assert masked is not None
        return legal_actions(views.select(masked, obs), getattr(views, masked), rng)

    return SeededVectorEnv(group, seed_fn, max_steps, None if masked is None else legal)


def obs_hash(obs: NDArray[Any]) -> str:
    """Return the SHA-256 of observations, by which one sees whether a replay was exact."""
    return hashlib.sha256(np.ascontiguousarray(obs).tobytes()).hexdigest()


def legal_actions(obs: NDArray[Any], spec: PolicySpec, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """Return a legal action for each observation with an action mask: the first, or with `rng` a random one."""
    legal = split_parts(torch.from_numpy(np.atleast_2d(obs)), spec)[MASK].numpy().reshape(*obs.shape[:-1], -1)
    masks = np.split(legal, np.cumsum(spec.head.choices)[:-1], axis=-1)
    actions = [(mask if rng is None else rng.random(mask.shape) * mask).argmax(-1) for mask in masks]
    return actions[0] if spec.head.single_choice else np.stack(actions, -1)


def check_resets(config: EnvConfig) -> None:
    """Check whether episodes need fresh environments, once before the start of workers, since the check is slow."""
    if not is_atari(config.id):
        keeps_state_across_reset(config.view_of("student"))


@shared_cache
def keeps_state_across_reset(config: EnvConfig) -> bool:
    """Return True if an episode differs from the same one in a fresh environment, as in BipedalWalker."""
    used = make_env(config)
    used.action_space.seed(0)
    actions = [used.action_space.sample() for _ in range(CHECK_STEPS)]
    spec = spec_from_env(config)
    masked = spec if MASK in spec.entries else None
    differs = False
    for seed in range(CHECK_EPISODES):
        fresh = make_env(config)
        pairs = zip(_play(used, seed, actions, masked), _play(fresh, seed, actions, masked), strict=False)
        differs |= any(not np.array_equal(a, b) for a, b in pairs)
        fresh.close()
    used.close()
    return differs


def _play(env: Env, seed: int, actions: Sequence[Any], masked: PolicySpec | None) -> list[Any]:
    observations = [np.array(env.reset(seed=seed)[0])]
    for action in actions:
        legal = action if masked is None else legal_actions(observations[-1], masked)
        obs, _, terminated, truncated, _ = env.step(legal)
        observations.append(np.array(obs))  # a copy, since some environments return the same array in each step
        if terminated or truncated:
            break
    return observations
