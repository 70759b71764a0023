"""Collect: who acts (teacher, student, mixture) and who labels (the teacher, always).

The work is cut into streams (fixed groups of environments) and blocks (the next few hundred steps of one stream).
A block depends on its stream's earlier blocks alone, so that the bytes are the same for any number of workers and
after any kill.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.artifacts import open_stage
from rldistill.data.blocks import ACTORS, STEP, Block, BlockKey, read_block, write_block
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest, manifest_entry
from rldistill.envs.atari import is_deterministic
from rldistill.envs.seeding import block_generator, episode_seed
from rldistill.envs.single import EnvConfig, sight_of
from rldistill.envs.two_views import Sight
from rldistill.envs.vector import SeededVectorEnv, make_vector_env
from rldistill.errors import ConfigError
from rldistill.masking import confine, has_mask, random_legal
from rldistill.record import BlockRecord, obs_hash
from rldistill.rollouts import Memory, inference_threads, rollout, take_turns, to_env_action
from rldistill.types import Policy, PolicyOutput

TEACHER, STUDENT, RANDOM = range(len(ACTORS))
ONLY_SPEED = ("workers", "memory_gb")
LEAST_EPSILON = 0.01
"""Where nothing else is random: 160 seeds of Pong with equal actions gave 29 different episodes."""


@dataclass(frozen=True)
class CollectConfig:
    """How much to collect and who acts.

    Attributes:
        steps: environment steps, rounded up to whole steps of all environments.
        streams: groups of environments; part of what the data is, unlike `workers`.
        slots: environments in a stream.
        block: steps of a stream that are committed at once.
        workers: processes; changes the speed, never the data.
        epsilon: probability of a uniformly random action.
        beta: probability that the teacher acts rather than the student (Ross 2011, arXiv 1011.0686).
        mixture: whether that is drawn once an episode or at each step.
        sample: whether a stochastic policy's actions are sampled instead of its mode taken.
        features: whether the teacher's last hidden layer is stored too.
        teacher_obs: whether what the teacher saw is stored too, where it sees something else than the student.
        gamma: discount of the returns-to-go.
        memory_gb: observations beyond it stay on disk when they are read; changes the speed, never the data.
    """

    steps: int = 20_000
    streams: int = 2
    slots: int = 8
    block: int = 1024
    workers: int = 1
    epsilon: float = 0.0
    beta: float = 1.0
    mixture: Literal["episode", "step"] = "episode"
    sample: bool = False
    features: bool = False
    teacher_obs: bool = False
    gamma: float = 0.99
    memory_gb: float = 8.0

    def __post_init__(self) -> None:
        for name in ("steps", "streams", "slots", "block", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"collect.{name}: expected at least 1, found {getattr(self, name)}")
        if not self.memory_gb > 0:
            raise ConfigError(f"collect.memory_gb: expected a positive number, found {self.memory_gb}")
        for name in ("epsilon", "beta", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"collect.{name}: expected a number from 0 to 1, found {getattr(self, name)}")

    @property
    def block_lengths(self) -> list[int]:
        """Steps of each block of a stream."""
        steps = math.ceil(self.steps / (self.streams * self.slots))
        full, rest = divmod(steps, self.block)
        return [self.block] * full + [rest] * (rest > 0)


def collect(
    env: EnvConfig,
    teacher: Policy,
    config: CollectConfig,
    folder: Path,
    *,
    seed: int = 0,
    student: Policy | None = None,
    round: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Play, label and store.

    Args:
        env: the environment.
        teacher: labels every observation, and acts with probability `config.beta`.
        config: how much, and who acts.
        folder: where the dataset is or will be; rounds after the first are appended.
        seed: the run's seed.
        student: acts where the teacher does not; needed for `beta` < 1.
        round: the round of collection; each has seeds of its own.
        resume: go on with a collection that was interrupted.
        overwrite: throw away what is in `folder`.
        progress: called with the steps done and the steps in all.

    Raises:
        SpecMismatchError: the teacher or the student does not fit the environment.
        ConfigError: the folder holds another collection.
    """
    if config.beta < 1 and student is None:
        raise ConfigError(f"collect.beta: {config.beta} lets a student act, but there is none; use 1.0 or give one")
    env = env.seen_by(teacher)
    if is_deterministic(env.id, env.kwargs) and config.epsilon < LEAST_EPSILON and not config.sample:
        raise ConfigError(
            f"collect.epsilon: {config.epsilon} without sticky actions gives the same few episodes again and again; "
            f"expected at least {LEAST_EPSILON}"
        )
    sight = sight_of(env)
    teacher = confine(teacher, sight.teacher)
    teacher.spec.require_same_input(sight.teacher, "the teacher", env.id)
    if student is not None:
        student.spec.require_same_input(sight.student, "the student", env.id)
        student = sight.shown_to(student, "student")
    stored = dataclasses.replace(sight.student, head=teacher.spec.head) if sight.packed else teacher.spec
    teacher = sight.shown_to(teacher, "teacher")
    if round == 0:
        open_stage(folder, folder / "manifest.json", resume, overwrite)
    asked = dataclasses.asdict(config)
    request = {"seed": seed, **{name: asked[name] for name in asked if name not in ONLY_SPEED}}
    seen = sight.teacher if sight.packed and config.teacher_obs else None
    manifest = Manifest.open(folder, env, stored, round, request, seen)
    if not manifest.has_round(round):
        threads = max(1, (os.cpu_count() or 1) // config.workers)
        jobs = [
            _Stream(env, sight, teacher, student, config, seed, round, stream, folder, threads)
            for stream in range(config.streams)
        ]
        manifest.add_round(round, _run_all(jobs, config, progress))
    return Dataset.read([folder], config.gamma, memory_gb=config.memory_gb)


Entry = dict[str, Any]


def _run_all(jobs: list[_Stream], config: CollectConfig, progress: Callable[[int, int], None]) -> list[Entry]:
    total = sum(config.block_lengths) * config.slots * config.streams
    entries: list[Entry] = []

    def note(new: list[Entry]) -> None:
        entries.extend(new)
        progress(sum(entry["steps"] for entry in entries), total)

    if config.workers == 1:
        with inference_threads(1):
            for entry in take_turns(job.run() for job in jobs):
                note([entry])
    else:
        _require_portable(jobs[0])
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(config.workers, mp_context=spawn) as pool:
            pending = {pool.submit(_run_to_end, job) for job in jobs}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    note(future.result())
    return sorted(entries, key=lambda entry: str(entry["file"]))


def _require_portable(job: _Stream) -> None:
    """Raise ConfigError for what other processes cannot be given, such as a class that was made within a function."""
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"collect.workers: what acts here cannot be given to other processes ({error}); define it at the top of "
            "its module, or take workers: 1"
        ) from None


def _run_to_end(job: _Stream) -> list[Entry]:
    with inference_threads(1):
        return [entry for entry in job.run() if entry is not None]


@dataclass
class _Standing:
    """Where a stream stands between two steps: what its slots show, since when, and what the policies remember."""

    obs: NDArray[Any]
    age: NDArray[np.int64]
    memories: dict[str, Memory]

    def states(self) -> dict[str, NDArray[np.float32]]:
        """What recurrent policies remember, by who they are."""
        found = {who: memory.state for who, memory in self.memories.items()}
        return {who: state.numpy() for who, state in found.items() if state is not None}


@dataclass(frozen=True)
class _Stream:
    """All that a worker needs to play one stream of one round."""

    env: EnvConfig
    sight: Sight
    teacher: Policy
    student: Policy | None
    config: CollectConfig
    seed: int
    round: int
    stream: int
    folder: Path
    num_threads: int

    def run(self) -> Iterator[Entry | None]:
        """Play and commit the blocks that are missing.

        Yields an entry of the manifest for every block, and None whenever the environments are at work.
        """
        played: list[Block] = []
        env = make_vector_env(self.env, self.config.slots, self._episode_seed, self.num_threads)
        standing: _Standing | None = None
        for number, length in enumerate(self.config.block_lengths):
            key = BlockKey(self.round, self.stream, number)
            path = self.folder / key.file
            if standing is None and path.exists():
                played.append(read_block(path, ["slot", "kind", "episode", "step", "action", "ended"]))
                yield self._entry(key, length, path, played[-1])
                continue
            exact = True
            if standing is None:
                standing, exact = self._take_up(env, played)
            block = yield from self._play(env, standing, number, length)
            block = dataclasses.replace(block, exact=exact, states=standing.states())
            write_block(path, block)
            yield self._entry(key, length, path, block)
        env.close()

    def _entry(self, key: BlockKey, length: int, path: Path, block: Block) -> Entry:
        return manifest_entry(key, path, block, length * self.config.slots)

    def _episode_seed(self, slot: int, episode: int) -> int:
        return episode_seed(self.seed, "collect", self.round, self.stream, slot, episode)

    def _take_up(self, env: SeededVectorEnv, played: list[Block]) -> tuple[_Standing, bool]:
        """Where the stream stands after `played`: open episodes are replayed from their seeds and actions."""
        if not played:
            return self._standing(env.reset()), True
        episodes, actions = [], []
        for slot in range(self.config.slots):
            rows = [(b.columns, (b.columns["slot"] == slot) & (b.columns["kind"] == STEP)) for b in played]
            episode = np.concatenate([columns["episode"][mask] for columns, mask in rows])
            action = np.concatenate([columns["action"][mask] for columns, mask in rows])
            ended = played[-1].columns["ended"][rows[-1][1]][-1]
            episodes.append(int(episode[-1]) + int(ended))
            actions.append(action[episode == episodes[-1]])
        obs = env.replay(episodes, actions)
        if obs_hash(obs) == played[-1].end_hash:
            age = np.array([len(taken) for taken in actions])
            return self._standing(obs, age, played[-1].states), True
        warnings.warn(
            f"stream {self.stream}: {self.env.id} did not play the open episodes again as they were; they are dropped",
            stacklevel=2,
        )
        env.episode += 1
        return self._standing(env.reset()), False

    def _standing(
        self,
        obs: NDArray[Any],
        age: NDArray[np.int64] | None = None,
        states: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
    ) -> _Standing:
        memories = {
            who: Memory(policy, self.config.slots, torch.from_numpy(states[who]) if who in states else None)
            for who, policy in (("teacher", self.teacher), ("student", self.student))
            if policy is not None
        }
        return _Standing(obs, np.zeros(self.config.slots, np.int64) if age is None else age, memories)

    def _play(
        self, env: SeededVectorEnv, standing: _Standing, number: int, length: int
    ) -> Generator[None, None, Block]:
        rng = block_generator(self.seed, "collect", self.round, self.stream, number)
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        record = BlockRecord(
            standing.memories["teacher"], self.sight, standing.obs, self.config.features, self.config.teacher_obs
        )
        act = partial(self._act, env, record, standing.memories.get("student"), rng, torch_rng)
        for transition in islice(rollout(env, standing.obs, act), 2 * length):
            if transition is None:
                yield
                continue
            ended = transition.step.terminated | transition.step.truncated
            record.add(transition, standing.age, env.episode - ended)
            standing.age = np.where(ended, 0, standing.age + 1)
            standing.obs = transition.step.obs
            if "student" in standing.memories:
                standing.memories["student"].forget(transition.step.ended)
        return record.block(standing.obs)

    def _act(
        self,
        env: SeededVectorEnv,
        record: BlockRecord,
        student: Memory | None,
        rng: np.random.Generator,
        torch_rng: torch.Generator,
        obs: NDArray[Any],
    ) -> NDArray[Any]:
        """Everyone's actions; the draws are made whether they are used or not, so that none depends on another."""
        label = record.labels.label(obs)
        taught = self._choose(label, torch_rng)
        actor = np.full(len(obs), TEACHER, np.int8)
        action = taught
        if student is not None:
            learnt = self._choose(student.look(obs), torch_rng)
            actor[~self._teacher_acts(env, rng)] = STUDENT
            action = np.where((actor == TEACHER).reshape(-1, *[1] * (taught.ndim - 1)), taught, learnt)
        explore = rng.random(len(obs)) < self.config.epsilon
        if self.config.epsilon:
            space = env.single_action_space
            space.seed(int(rng.integers(2**31)))
            if has_mask(self.teacher.spec):
                random = random_legal(self.sight.of("teacher", obs), self.teacher.spec, rng)
            else:
                random = np.stack([space.sample() for _ in range(len(obs))]).astype(action.dtype).reshape(action.shape)
            action = np.where(explore.reshape(-1, *[1] * (action.ndim - 1)), random, action)
        actor[explore] = RANDOM
        record.actors.append(actor)
        return action

    def _choose(self, output: PolicyOutput, generator: torch.Generator) -> NDArray[Any]:
        return to_env_action(output.sample(generator) if self.config.sample else output.mode())

    def _teacher_acts(self, env: SeededVectorEnv, rng: np.random.Generator) -> NDArray[np.bool_]:
        per_step = rng.random(env.num_envs)
        if self.config.mixture == "step":
            return per_step < self.config.beta
        seeds = [self._episode_seed(slot, int(episode)) for slot, episode in enumerate(env.episode)]
        return np.array([np.random.default_rng([seed, 1]).random() for seed in seeds]) < self.config.beta
