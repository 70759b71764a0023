"""Play full episodes with fixed seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.device import CPU, on_device
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.envs.atari import is_atari
from rldistill.envs.config import EnvConfig, Side
from rldistill.envs.rollout import StatefulPolicy, inference_threads, rollout, take_turns, to_env_action
from rldistill.envs.seeding import block_generator, episode_seed
from rldistill.envs.spaces import observation_views
from rldistill.envs.vector import Step, make_vector_env
from rldistill.io.progress import SILENT, Progress
from rldistill.policies.wrappers import has_mask, random_legal, with_action_mask

MAX_SLOTS, MAX_EMULATORS = 128, 8
"""Environments that are stepped together: the more, the fewer calls of the policy.

Of ale-py's fewer, since those that have no episode left cost as much as ever.
"""
NONE = -1
"""In place of an episode's number, in a slot that has none left to play."""
CHUNK = 1024
"""Steps whose actions are kept in one array."""


TEST, VALIDATION = 0, 1
"""Rounds of episodes: policies are chosen by others than those that they are judged by."""


@dataclass
class Episodes:
    """What a policy did in n episodes of a seed, from number `first` on; `success` is NaN where nothing tells of it."""

    returns: NDArray[np.float64]
    discounted: NDArray[np.float64]
    lengths: NDArray[np.int64]
    actions: list[list[Any]]
    success: NDArray[np.float64]
    agreed: float = 0.0
    squared_error: float = 0.0
    compared: int = 0
    first: int = 0

    def followed_by(self, more: Episodes) -> Episodes:
        """These and the episodes after them."""
        return Episodes(
            np.concatenate([self.returns, more.returns]),
            np.concatenate([self.discounted, more.discounted]),
            np.concatenate([self.lengths, more.lengths]),
            [*self.actions, *more.actions],
            np.concatenate([self.success, more.success]),
            self.agreed + more.agreed,
            self.squared_error + more.squared_error,
            self.compared + more.compared,
            self.first,
        )

    @property
    def success_rate(self) -> float | None:
        """Of the episodes whose environment tells; None where it never does."""
        told = self.success[~np.isnan(self.success)]
        return float(told.mean()) if len(told) else None

    @property
    def distinct(self) -> int:
        """How many episodes differ in their actions or their return; without sticky actions, Pong repeats itself."""
        return len({(r, np.asarray(taken).tobytes()) for r, taken in zip(self.returns, self.actions, strict=True)})


@dataclass(frozen=True)
class Seen:
    """One step of the slots whose episodes count, `[B]`: what the student saw, what it says of it, and what its judge.

    `episode` is the number of the episode, `step` that of the step within it.
    """

    obs: NDArray[Any]
    student: PolicyOutput
    teacher: PolicyOutput
    episode: NDArray[np.int64]
    step: NDArray[np.int64]


def play(
    env_config: EnvConfig,
    policy: Policy | None,
    episodes: int,
    *,
    seed: int = 0,
    sample: bool = False,
    gamma: float = 0.99,
    judge: Policy | None = None,
    watch: Callable[[Seen], None] | None = None,
    side: Side = "student",
    split: int = 0,
    first: int = 0,
    num_threads: int = 2,
    device: torch.device = CPU,
    progress: Progress = SILENT,
) -> Episodes:
    """Play `episodes` full episodes; episode k has the same seed for every policy.

    Args:
        env_config: the environment.
        policy: who plays; None plays uniformly at random.
        episodes: how many.
        seed: the run's seed.
        sample: whether actions are sampled instead of the mode taken.
        gamma: of the discounted return.
        judge: a teacher to compare each action with, on the states of `policy`.
        watch: called with what both say of each of them, where there is a judge.
        side: which view of the environment `policy` is shown, where there are two.
        split: 0 for the episodes that policies are judged by, another for those that they are chosen by.
        first: the number of the first episode, where those before it were played already.
        num_threads: of the emulators.
        device: Device on which `policy` and `judge` compute.
        progress: receives the number of finished episodes.
    """
    out = Episodes(
        np.zeros(episodes),
        np.zeros(episodes),
        np.zeros(episodes, np.int64),
        [[] for _ in range(episodes)],
        np.full(episodes, np.nan),
        first=first,
    )
    groups = min(episodes, 2 if is_atari(env_config.id) else 1)
    done = 0
    with inference_threads(1), on_device(device, policy, judge):
        parts = [range(first + group, first + episodes, groups) for group in range(groups)]
        plays = [
            _play(env_config, policy, part, out, seed, sample, gamma, judge, watch, side, split, num_threads, device)
            for part in parts
        ]
        for ended in take_turns(plays):
            done += ended
            progress.update(done, episodes)
    return out


def slots_for(env_config: EnvConfig, episodes: int) -> int:
    """How many environments play so many episodes together: as few as need no more turns than the most would."""
    turns = -(-episodes // (MAX_EMULATORS if is_atari(env_config.id) else MAX_SLOTS))
    return -(-episodes // turns)


def _play(
    env_config: EnvConfig,
    policy: Policy | None,
    numbers: Sequence[int],
    out: Episodes,
    seed: int,
    sample: bool,
    gamma: float,
    judge: Policy | None,
    watch: Callable[[Seen], None] | None,
    side: Side,
    split: int,
    num_threads: int,
    device: torch.device,
) -> Iterator[int | None]:
    """Play the episodes of these numbers; yields how many have ended, and None while the environments are at work."""
    slots = slots_for(env_config, len(numbers))
    upcoming, begun = iter(numbers), np.full(slots, NONE)

    def seed_of(slot: int, nth: int) -> int | None:
        # The next number goes to whichever slot is free, and every number is played once, however long it takes.
        begun[slot] = number = next(upcoming, NONE)
        return None if number == NONE else episode_seed(seed, "evaluate", split, 0, 0, number)

    env = make_vector_env(env_config, slots, seed_of, num_threads)
    sight = observation_views(env_config)
    sides: tuple[tuple[Policy | None, Side], ...] = ((policy, side), (judge, "teacher"))
    rng = block_generator(seed, "evaluate", split, numbers[0], 0)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    env.single_action_space.seed(int(rng.integers(2**31)))
    playing = begun

    player, watcher = (
        None
        if one is None
        else StatefulPolicy(sight.policy_on(here, with_action_mask(one, getattr(sight, here))), slots, device=device)
        for one, here in sides
    )

    def act(obs: NDArray[Any]) -> NDArray[Any]:
        nonlocal playing
        playing = begun.copy()
        if player is None and has_mask(sight.student):
            return random_legal(sight.select("student", obs), sight.student, rng)
        if player is None:
            return np.stack([env.single_action_space.sample() for _ in range(slots)])
        output = player.step(obs)
        action = output.sample(generator) if sample else output.mode()
        if watcher is not None:
            judged = watcher.step(obs)
            _compare(out, action, judged.mode(), playing != NONE)
            if watch is not None:
                watch(_seen(sight.select("student", obs), output, judged, playing, out))
        return to_env_action(action)

    left = len(numbers)
    taken = _Taken()
    for transition in rollout(env, env.reset(), act):
        if transition is None:
            yield None
            continue
        for memory in filter(None, (player, watcher)):
            memory.reset(transition.step.ended)
        taken.add(playing, transition.action)
        if not (ended := _count(out, transition.step, playing, gamma)):
            continue
        left -= ended
        yield ended
        if left == 0:
            break
    env.close()
    taken.give_to(out)


def _count(out: Episodes, step: Step, playing: NDArray[np.int64], gamma: float) -> int:
    """Add a step of the slots to the episodes that they play; returns how many of these it ended."""
    counted = np.flatnonzero(playing != NONE)
    episodes, reward = playing[counted] - out.first, step.reward[counted]
    out.returns[episodes] += reward
    out.discounted[episodes] += gamma ** out.lengths[episodes] * reward
    out.lengths[episodes] += 1
    over = playing[step.ended] != NONE
    out.success[playing[step.ended[over]] - out.first] = step.success[over]
    return int(over.sum())


class _Taken:
    """What was done in every slot, step after step, in chunks.

    Small arrays that were kept from between the large ones of each step, which are not, would leave the heap in shreds:
    it grows by a batch of observations with each step.
    """

    def __init__(self) -> None:
        self.chunks: list[tuple[NDArray[np.int64], NDArray[Any]]] = []
        self.used = CHUNK

    def add(self, playing: NDArray[np.int64], action: NDArray[Any]) -> None:
        """Note the actions of one step of the slots, which play these episodes."""
        if self.used == CHUNK:
            numbers = np.full((CHUNK, len(playing)), NONE)
            self.chunks.append((numbers, np.zeros((CHUNK, *action.shape), action.dtype)))
            self.used = 0
        numbers, actions = self.chunks[-1]
        numbers[self.used], actions[self.used] = playing, action
        self.used += 1

    def give_to(self, out: Episodes) -> None:
        """Give each episode the actions that were taken in it."""
        of = np.concatenate([numbers.reshape(-1) for numbers, _ in self.chunks])
        actions = np.concatenate([chosen.reshape(-1, *chosen.shape[2:]) for _, chosen in self.chunks])
        of, actions = of[of != NONE], actions[of != NONE]
        order = np.argsort(of, kind="stable")
        bounds = np.flatnonzero(np.diff(of[order])) + 1
        for number, rows in zip(of[order][np.append(0, bounds)], np.split(order, bounds), strict=True):
            out.actions[number - out.first] = list(actions[rows])


def _seen(
    obs: NDArray[Any],
    student: PolicyOutput,
    teacher: PolicyOutput,
    playing: NDArray[np.int64],
    out: Episodes,
) -> Seen:
    counted = np.flatnonzero(playing != NONE)
    rows, episode = torch.from_numpy(counted), playing[counted]
    return Seen(obs[counted], student.rows(rows), teacher.rows(rows), episode, out.lengths[episode - out.first])


def _compare(out: Episodes, action: torch.Tensor, judged: torch.Tensor, counted: NDArray[np.bool_]) -> None:
    rows = torch.from_numpy(counted)
    if action.dtype == torch.int64:
        out.agreed += float((action == judged)[rows].float().sum()) / max(1, action[0].numel())
    else:
        out.squared_error += float(((action - judged)[rows] ** 2).mean(-1).sum())
    out.compared += int(counted.sum())


def fits(policy: Policy, name: str, env_config: EnvConfig, side: Side) -> None:
    """Raise SpecMismatchError unless `policy` can play here."""
    spec: PolicySpec = getattr(observation_views(env_config), side)
    with_action_mask(policy, spec).spec.require_same_input(spec, name, env_config.id)
