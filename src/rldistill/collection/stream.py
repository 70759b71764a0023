"""A stream: a fixed group of environments, played block by block, and taken up again where it was left."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.collection.recorder import BlockRecorder, TeacherLabeler, obs_hash
from rldistill.core.device import on_device, resolve_device
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.data.blocks import ACTORS, STEP, Block, BlockKey, read_block, write_block
from rldistill.data.manifest import manifest_entry
from rldistill.envs.config import EnvConfig
from rldistill.envs.rollout import StatefulPolicy, rollout, to_env_action
from rldistill.envs.seeding import block_generator, episode_seed
from rldistill.envs.vector import SeededVectorEnv, make_vector_env
from rldistill.envs.views import ObservationViews
from rldistill.policies.wrappers import has_mask, random_legal

if TYPE_CHECKING:
    from rldistill.collection.config import CollectConfig

TEACHER, STUDENT, RANDOM = range(len(ACTORS))
Entry = dict[str, Any]
"""What the manifest says of a block."""


@dataclass
class _Standing:
    """Where a stream stands between two steps: what its slots show, since when, and what the policies remember."""

    obs: NDArray[Any]
    age: NDArray[np.int64]
    memories: dict[str, StatefulPolicy]

    def states(self) -> dict[str, NDArray[np.float32]]:
        """What recurrent policies remember, by who they are."""
        found = {who: memory.state for who, memory in self.memories.items()}
        return {who: state.numpy() for who, state in found.items() if state is not None}


@dataclass(frozen=True)
class Stream:
    """All that a worker needs to play one stream of one round."""

    env: EnvConfig
    sight: ObservationViews
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
        env = make_vector_env(self.env, self.config.envs_per_stream, self._episode_seed, self.num_threads)
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

    def ask(self) -> None:
        """Let the teacher label what the stream begins with, for nothing, to see whether it can."""
        env = make_vector_env(self.env, self.config.envs_per_stream, self._episode_seed, self.num_threads)
        try:
            obs = env.reset()
            memory = StatefulPolicy(self.teacher, self.config.envs_per_stream, device=self.device)
            labels = TeacherLabeler(memory, self.config.features)
            with on_device(self.device, self.teacher):
                labels.label(obs)
                labels.columns(obs)
        finally:
            env.close()

    @property
    def device(self) -> torch.device:
        """Device on which the policies compute."""
        return resolve_device(self.config.device, "collect.device")

    def has_begun(self) -> bool:
        """Whether its first block is there."""
        return (self.folder / BlockKey(self.round, self.stream, 0).file).exists()

    def _entry(self, key: BlockKey, length: int, path: Path, block: Block) -> Entry:
        return manifest_entry(key, path, block, length * self.config.envs_per_stream)

    def _episode_seed(self, slot: int, episode: int) -> int:
        return episode_seed(self.seed, "collect", self.round, self.stream, slot, episode)

    def _take_up(self, env: SeededVectorEnv, played: list[Block]) -> tuple[_Standing, bool]:
        """Where the stream stands after `played`: open episodes are replayed from their seeds and actions."""
        if not played:
            return self._standing(env.reset()), True
        episodes, actions = [], []
        for slot in range(self.config.envs_per_stream):
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
            who: StatefulPolicy(
                policy,
                self.config.envs_per_stream,
                torch.from_numpy(states[who]) if who in states else None,
                self.device,
            )
            for who, policy in (("teacher", self.teacher), ("student", self.student))
            if policy is not None
        }
        return _Standing(obs, np.zeros(self.config.envs_per_stream, np.int64) if age is None else age, memories)

    def _play(
        self, env: SeededVectorEnv, standing: _Standing, number: int, length: int
    ) -> Generator[None, None, Block]:
        rng = block_generator(self.seed, "collect", self.round, self.stream, number)
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        record = BlockRecorder(
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
                standing.memories["student"].reset(transition.step.ended)
        return record.block(standing.obs)

    def _act(
        self,
        env: SeededVectorEnv,
        record: BlockRecorder,
        student: StatefulPolicy | None,
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
            learnt = self._choose(student.step(obs), torch_rng)
            actor[~self._teacher_acts(env, rng)] = STUDENT
            action = np.where((actor == TEACHER).reshape(-1, *[1] * (taught.ndim - 1)), taught, learnt)
        explore = rng.random(len(obs)) < self.config.epsilon
        if self.config.epsilon:
            space = env.single_action_space
            space.seed(int(rng.integers(2**31)))
            if has_mask(self.teacher.spec):
                random = random_legal(self.sight.select("teacher", obs), self.teacher.spec, rng)
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
