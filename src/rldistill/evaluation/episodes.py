"""Full episodes with fixed seeds."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from numpy.typing import NDArray

from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import CPU, Policy, PolicyOutput, on_device
from rldistill.core.spec import MAX_EPISODE_STEPS, EnvConfig, Side
from rldistill.envs.atari import is_atari
from rldistill.envs.seeding import block_generator, episode_seed
from rldistill.envs.spaces import observation_views
from rldistill.envs.vector import Step, make_vector_env, take_turns
from rldistill.io.progress import SILENT, Progress
from rldistill.policies.agent import StatefulPolicy, inference_threads, to_env_action
from rldistill.policies.wrappers import with_action_mask

TEST, VALIDATION, CALIBRATION = 0, 1, 2
"""Splits of episode seeds: a policy is never selected by the episodes of its test."""

MAX_SLOTS, MAX_EMULATORS = 128, 8
"""Largest number of environments in one batch; ale-py's idle slots cost as much as busy ones, so it gets fewer."""

PolicyKind = Literal["teacher", "student", "random", "baseline"]
"""Role of a policy; the baseline is the user's own policy in place of random play."""

SUCCESS_KEYS = ("is_success", "success")
"""Keys of `info`: that of Gymnasium-Robotics and highway-env, and a common one."""

NO_EPISODE = -1
"""Episode number of a slot with no episode left to play."""


@dataclass(frozen=True)
class PlayConfig:
    """Settings of played episodes; with equal settings, episode k has the same seed for every policy.

    Attributes:
        seed: seed of the run.
        split: `TEST`, `VALIDATION` or `CALIBRATION`.
        first: number of the first episode.
        side: view of the environment for the policy, if there are two; None for a policy that takes both.
        sample: True to sample actions, False to take the mode.
        gamma: discount of `Episodes.discounted`.
        num_threads: threads of ale-py's emulators.
        env_workers: processes that step other environments.
        max_steps: largest number of steps of an episode.
        labeled_episodes: number of the first episodes in which the teacher of a query labels every state.
        device: device of the policies.
    """

    seed: int = 0
    split: int = TEST
    first: int = 0
    side: Side | None = "student"
    sample: bool = False
    gamma: float = 0.99
    num_threads: int = 2
    env_workers: int = 1
    max_steps: int = MAX_EPISODE_STEPS
    labeled_episodes: int = sys.maxsize
    device: torch.device = CPU


@dataclass(frozen=True)
class PolicyRuns:
    """One policy, or the same student with several training seeds; a policy of None plays at random."""

    kind: PolicyKind
    runs: Mapping[int | None, Policy | None]
    env_steps: int = 0

    @property
    def side(self) -> Side:
        """View of the environment that the policy sees."""
        return "teacher" if self.kind == "teacher" else "student"

    @property
    def first(self) -> Policy | None:
        """Policy of the first training seed."""
        return next(iter(self.runs.values()))


def reference_name(policies: Mapping[str, Any]) -> str:
    """Return the name of the policy with the normalized score 0."""
    return "baseline" if "baseline" in policies else "random"


ARRAYS = ("returns", "discounted", "lengths", "starts")
"""Attributes of `Episodes` with a number for each episode."""


@dataclass
class Episodes:
    """Results of n episodes from number `first` on.

    Attributes:
        actions: of each episode, those of discrete spaces as the smallest integers, since millions are kept.
        info: of each episode, the last number of each key of the environment's `info`, NaN for values that are none.
        starts: of each episode, a checksum of its first observation.
    """

    returns: NDArray[np.float64]
    discounted: NDArray[np.float64]
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    info: list[dict[str, float]]
    actions: list[NDArray[Any]]
    first: int = 0

    def followed_by(self, more: Episodes) -> Episodes:
        """Concatenate two ranges of episodes."""
        arrays = {name: np.concatenate([getattr(self, name), getattr(more, name)]) for name in ARRAYS}
        return Episodes(**arrays, info=self.info + more.info, actions=self.actions + more.actions, first=self.first)

    def first_ones(self, count: int | None) -> Episodes:
        """Return the first `count` episodes, or all."""
        arrays = {name: value[:count] for name, value in vars(self).items() if name != "first"}
        return Episodes(**arrays, first=self.first)

    def metric(self, *keys: str) -> NDArray[np.float64]:
        """Return the number of each episode under the first of these keys that it has, and NaN without any."""
        numbers = ([info[key] for key in keys if not math.isnan(info.get(key, math.nan))] for info in self.info)
        return np.array([own[0] if own else math.nan for own in numbers])

    @property
    def success_rate(self) -> float | None:
        """Share of successes among the episodes that report it; None without any."""
        success = self.metric(*SUCCESS_KEYS)
        reported = success[~np.isnan(success)]
        return float(reported.mean()) if len(reported) else None

    @property
    def distinct(self) -> int:
        """Number of episodes that differ in start, actions or return (without sticky actions, Pong repeats itself)."""
        parts = zip(self.starts, self.returns, self.actions, strict=True)
        return len({(start, value, actions.tobytes()) for start, value, actions in parts})


@dataclass(frozen=True)
class ComparedStep:
    """One step of the counted slots, `[B]`: the observation, both outputs, and the episode and step numbers."""

    obs: NDArray[Any]
    student: PolicyOutput
    teacher: PolicyOutput
    episode: NDArray[np.int64]
    step: NDArray[np.int64]


@dataclass(frozen=True)
class TeacherQuery:
    """Teacher that is evaluated on the states of the playing policy, and the receiver of each compared step."""

    teacher: Policy
    receive: Callable[[ComparedStep], None]


def play(
    env_config: EnvConfig,
    policy: Policy | None,
    episodes: int,
    config: PlayConfig = PlayConfig(),
    *,
    query: TeacherQuery | None = None,
    progress: Progress = SILENT,
) -> Episodes:
    """Play full episodes; a policy of None acts uniformly at random.

    The teacher of `query` is evaluated in every state of the labeled episodes. `progress` receives the number of
    finished episodes.
    """
    info: list[dict[str, float]] = [{} for _ in range(episodes)]
    actions = [np.zeros(0)] * episodes
    returns, discounted = np.zeros(episodes), np.zeros(episodes)
    lengths, starts = np.zeros(episodes, np.int64), np.zeros(episodes, np.int64)
    out = Episodes(returns, discounted, lengths, starts, info, actions, config.first)
    # Two groups of emulators take turns, so that the policy computes for one while the other is stepped.
    groups = min(episodes, 2 if is_atari(env_config.id) else 1)
    ranges = [range(config.first + group, config.first + episodes, groups) for group in range(groups)]
    done = 0
    with inference_threads(1), on_device(config.device, policy, query and query.teacher):
        for ended in take_turns(_play(env_config, policy, numbers, out, config, query) for numbers in ranges):
            done += ended
            progress.update(done, episodes)
    return out


def num_slots(env_config: EnvConfig, episodes: int) -> int:
    """Return the smallest number of slots that needs no more rounds than the largest allowed number."""
    rounds = -(-episodes // (MAX_EMULATORS if is_atari(env_config.id) else MAX_SLOTS))
    return -(-episodes // rounds)


def _play(
    env_config: EnvConfig,
    policy: Policy | None,
    numbers: range,
    out: Episodes,
    config: PlayConfig,
    query: TeacherQuery | None,
) -> Iterator[int | None]:
    """Yield the number of episodes that a step ended, and None while the environments are busy."""
    slots = num_slots(env_config, len(numbers))
    remaining, started = iter(numbers), np.full(slots, NO_EPISODE)

    def seed_of(slot: int, nth: int) -> int | None:
        # The next number goes to the slot that is free first, so every episode counts, however long it takes.
        started[slot] = number = next(remaining, NO_EPISODE)
        return None if number == NO_EPISODE else episode_seed(config.seed, "evaluate", config.split, 0, 0, number)

    env = make_vector_env(env_config, slots, seed_of, config.num_threads, config.max_steps, config.env_workers)
    views = observation_views(env_config)
    rng = block_generator(config.seed, "evaluate", config.split, numbers[0], 0)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    env.single_action_space.seed(int(rng.integers(2**31)))

    def in_slots(policy: Policy, side: Side | None) -> StatefulPolicy:
        shown = policy if side is None else views.policy_on(side, with_action_mask(policy, getattr(views, side)))
        return StatefulPolicy(shown, slots, None, config.device)

    player = None if policy is None else in_slots(policy, config.side)
    teacher = None if query is None else in_slots(query.teacher, "teacher")
    playing = started

    def act(obs: NDArray[Any]) -> NDArray[Any]:
        nonlocal playing
        playing = _note_starts(out, obs, started)
        if player is None:
            return env.sample_actions(obs, rng)
        output = _without_nan(player.step(obs))
        action = output.sample(generator) if config.sample else output.mode()
        if query is not None and teacher is not None:
            labeled = np.flatnonzero((playing != NO_EPISODE) & (playing < config.labeled_episodes))
            if len(labeled):
                rows, episode = torch.from_numpy(labeled), playing[labeled]
                seen, label = views.select("student", obs)[labeled], teacher.step(obs, labeled).rows(rows)
                query.receive(ComparedStep(seen, output.rows(rows), label, episode, out.lengths[episode - out.first]))
        return to_env_action(action)

    left, actions = len(numbers), {number: bytearray() for number in numbers}
    with closing(env):
        for result in env.rollout(env.reset(), act):
            if result is None:
                yield None
                continue
            _, step = result
            for stateful in filter(None, (player, teacher)):
                stateful.reset(step.ended)
            if ended := _count(out, actions, result, playing, config.gamma, env.single_action_space):
                left -= ended
                yield ended
                if left == 0:
                    break


def _note_starts(out: Episodes, obs: NDArray[Any], started: NDArray[np.int64]) -> NDArray[np.int64]:
    """Store checksums of the first observations of new episodes; return the episode number of each slot."""
    for slot in np.flatnonzero(started != NO_EPISODE):
        if out.lengths[number := started[slot] - out.first] == 0:
            out.starts[number] = zlib.crc32(obs[slot].tobytes())
    return started.copy()


def _kept_dtype(space: gymnasium.Space[Any], dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the smallest integer type for the actions of a discrete space, and `dtype` for others."""
    if not isinstance(space, Discrete | MultiDiscrete):
        return dtype
    count = space.n if isinstance(space, Discrete) else space.nvec
    return np.min_scalar_type(-int(np.max(np.abs(space.start) + count)))


def _without_nan(output: PolicyOutput) -> PolicyOutput:
    """Return the output; raise SpecMismatchError for NaN, whose best action would be the first."""
    if output.params.isnan().any():
        raise SpecMismatchError(
            "policy: its outputs are NaN in some states. Check its weights and the scale of its observations."
        )
    return output


def _count(
    out: Episodes,
    actions: dict[int, bytearray],
    result: tuple[NDArray[Any], Step],
    playing: NDArray[np.int64],
    gamma: float,
    space: gymnasium.Space[Any],
) -> int:
    """Add a step of all slots to their episodes; return the number of episodes that it ended.

    The actions of an episode are in one buffer. Measured, with a small array for each step between the large batches of
    observations, which are freed, the heap fragments and grows by a batch of observations with each step.
    """
    (action, step), counted = result, np.flatnonzero(playing != NO_EPISODE)
    episodes, reward = playing[counted] - out.first, step.own_reward[counted]
    out.returns[episodes] += reward
    out.discounted[episodes] += gamma ** out.lengths[episodes] * reward
    out.lengths[episodes] += 1
    for slot in counted:
        actions[playing[slot]].extend(action[slot].tobytes())
    ended, kept = 0, _kept_dtype(space, action.dtype)
    for number, info in zip(playing[step.ended], step.info, strict=True):
        if number != NO_EPISODE:
            taken = np.frombuffer(bytes(actions.pop(number)), action.dtype)
            out.actions[number - out.first] = taken.reshape(-1, *action.shape[1:]).astype(kept)
            out.info[number - out.first] = info
            ended += 1
    return ended
