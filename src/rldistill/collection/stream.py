"""Stream: a fixed group of environments, played block by block and continued after an interruption."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.collection.config import CollectConfig
from rldistill.collection.recorder import BlockRecorder, TeacherLabeler, obs_hash
from rldistill.core.device import on_device, resolve_device
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import EnvConfig
from rldistill.data.blocks import ACTORS, STEP, Block, BlockKey, read_block
from rldistill.data.manifest import BlockEntry, block_entry, store_block
from rldistill.envs.rollout import StatefulPolicy, inference_threads, rollout, to_env_action
from rldistill.envs.seeding import block_generator, episode_seed
from rldistill.envs.vector import SeededVectorEnv, make_vector_env
from rldistill.envs.views import ObservationViews
from rldistill.policies.wrappers import has_mask, random_legal

TEACHER, STUDENT, RANDOM = range(len(ACTORS))


@dataclass(frozen=True)
class CollectJob:
    """One round of collection: all that a worker needs to play one of its streams."""

    env: EnvConfig
    views: ObservationViews
    teacher: Policy
    student: Policy | None
    config: CollectConfig
    seed: int
    round: int
    folder: Path

    @property
    def device(self) -> torch.device:
        """Device on which the policies compute."""
        return resolve_device(self.config.device, "collect.device")

    @property
    def streams(self) -> list[Stream]:
        """All streams of the round."""
        return [Stream(self, number) for number in range(self.config.num_streams)]


@dataclass
class _State:
    """State of a stream between two steps: observations, ages of the episodes, and policies with their states."""

    obs: NDArray[Any]
    age: NDArray[np.int64]
    policies: dict[str, StatefulPolicy]

    def recurrent_states(self) -> dict[str, NDArray[np.float32]]:
        states = {name: policy.state for name, policy in self.policies.items()}
        return {name: state.numpy() for name, state in states.items() if state is not None}


@dataclass(frozen=True)
class Stream:
    """One group of environments of a job."""

    job: CollectJob
    number: int

    def run(self) -> Iterator[BlockEntry | None]:
        """Play and write the missing blocks.

        Yields:
            The entry of each block, and None while the environments are stepping.
        """
        complete: list[Block] = []
        env = self._make_env()
        state: _State | None = None
        for number, length in enumerate(self._config.block_lengths):
            key = self._key(number)
            path = self.job.folder / key.file
            if state is None and path.exists():
                complete.append(read_block(path, ["slot", "kind", "episode", "step", "action", "ended"]))
                yield block_entry(self.job.folder, key, complete[-1])
                continue
            exact = True
            if state is None:
                state, exact = self._resume(env, complete)
            block = yield from self._play(env, state, number, length)
            block = dataclasses.replace(block, exact=exact, states=state.recurrent_states())
            yield store_block(self.job.folder, key, block)
        env.close()

    def try_teacher(self) -> None:
        """Label the first observations and discard the labels; raise the teacher's error if it fails."""
        env = self._make_env()
        try:
            obs = env.reset()
            teacher = StatefulPolicy(self.job.teacher, self._config.envs_per_stream, device=self.job.device)
            labeler = TeacherLabeler(teacher, self._config.features)
            with inference_threads(1), on_device(self.job.device, self.job.teacher):
                labeler.label(obs)
                labeler.columns(obs)
        finally:
            env.close()

    @property
    def has_blocks(self) -> bool:
        """True if the first block is stored."""
        return (self.job.folder / self._key(0).file).exists()

    @property
    def _config(self) -> CollectConfig:
        return self.job.config

    def _key(self, block: int) -> BlockKey:
        return BlockKey(self.job.round, self.number, block)

    def _make_env(self) -> SeededVectorEnv:
        num_threads = max(1, (os.cpu_count() or 1) // self._config.workers)
        return make_vector_env(self.job.env, self._config.envs_per_stream, self._episode_seed, num_threads)

    def _episode_seed(self, slot: int, episode: int) -> int:
        return episode_seed(self.job.seed, "collect", self.job.round, self.number, slot, episode)

    def _resume(self, env: SeededVectorEnv, blocks: list[Block]) -> tuple[_State, bool]:
        """Return the state after `blocks`, and True if it is exact: open episodes are replayed from their seeds."""
        if not blocks:
            return self._state(env.reset()), True
        episodes, actions = [], []
        for slot in range(self._config.envs_per_stream):
            rows = [(b.columns, (b.columns["slot"] == slot) & (b.columns["kind"] == STEP)) for b in blocks]
            episode = np.concatenate([columns["episode"][mask] for columns, mask in rows])
            action = np.concatenate([columns["action"][mask] for columns, mask in rows])
            ended = blocks[-1].columns["ended"][rows[-1][1]][-1]
            episodes.append(int(episode[-1]) + int(ended))
            actions.append(action[episode == episodes[-1]])
        obs = env.replay(episodes, actions)
        if obs_hash(obs) == blocks[-1].end_hash:
            age = np.array([len(steps) for steps in actions])
            return self._state(obs, age, blocks[-1].states), True
        warnings.warn(
            f"stream {self.number}: {self.job.env.id} did not repeat the open episodes exactly. They are dropped.",
            stacklevel=2,
        )
        env.episode += 1
        return self._state(env.reset()), False

    def _state(
        self,
        obs: NDArray[Any],
        age: NDArray[np.int64] | None = None,
        states: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
    ) -> _State:
        slots = self._config.envs_per_stream
        policies = {
            name: StatefulPolicy(
                policy, slots, torch.from_numpy(states[name]) if name in states else None, self.job.device
            )
            for name, policy in (("teacher", self.job.teacher), ("student", self.job.student))
            if policy is not None
        }
        return _State(obs, np.zeros(slots, np.int64) if age is None else age, policies)

    def _play(self, env: SeededVectorEnv, state: _State, number: int, length: int) -> Generator[None, None, Block]:
        rng = block_generator(self.job.seed, "collect", self.job.round, self.number, number)
        labeler = TeacherLabeler(state.policies["teacher"], self._config.features)
        recorder = BlockRecorder(labeler, self.job.views, state.obs, self._config.teacher_obs)
        student = state.policies.get("student")
        act = _Actor(self, env, recorder, student, rng)
        for transition in islice(rollout(env, state.obs, act), 2 * length):
            if transition is None:
                yield
                continue
            done = transition.step.terminated | transition.step.truncated
            recorder.add(transition, state.age, env.episode - done)
            state.age = np.where(done, 0, state.age + 1)
            state.obs = transition.step.obs
            if student is not None:
                student.reset(transition.step.ended)
        return recorder.block(state.obs)


class _Actor:
    """Choice of the actions of all slots in one block, by teacher, student or chance."""

    def __init__(
        self,
        stream: Stream,
        env: SeededVectorEnv,
        recorder: BlockRecorder,
        student: StatefulPolicy | None,
        rng: np.random.Generator,
    ) -> None:
        self.stream, self.job, self.config = stream, stream.job, stream.job.config
        self.env, self.recorder, self.student, self.rng = env, recorder, student, rng
        self.torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))

    def __call__(self, obs: NDArray[Any]) -> NDArray[Any]:
        # Every draw is made, used or not, so that no draw depends on an earlier choice.
        action = self._select(self.recorder.labeler.label(obs))
        actor = np.full(len(obs), TEACHER, np.int8)
        if self.student is not None:
            by_student = self._select(self.student.step(obs))
            actor[~self._teacher_acts()] = STUDENT
            action = _where(actor == TEACHER, action, by_student)
        explores = self.rng.random(len(obs)) < self.config.epsilon
        if self.config.epsilon:
            action = _where(explores, self._random_actions(obs, action), action)
        actor[explores] = RANDOM
        self.recorder.actors.append(actor)
        return action

    def _select(self, output: PolicyOutput) -> NDArray[Any]:
        return to_env_action(output.sample(self.torch_rng) if self.config.sample else output.mode())

    def _random_actions(self, obs: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
        space = self.env.single_action_space
        space.seed(int(self.rng.integers(2**31)))
        if has_mask(self.job.teacher.spec):
            return random_legal(self.job.views.select("teacher", obs), self.job.teacher.spec, self.rng)
        return np.stack([space.sample() for _ in range(len(obs))]).astype(like.dtype).reshape(like.shape)

    def _teacher_acts(self) -> NDArray[np.bool_]:
        per_step = self.rng.random(self.env.num_envs)
        if self.config.mixture == "step":
            return per_step < self.config.beta
        seeds = [self.stream._episode_seed(slot, int(episode)) for slot, episode in enumerate(self.env.episode)]
        return np.array([np.random.default_rng([seed, 1]).random() for seed in seeds]) < self.config.beta


def _where(mask: NDArray[np.bool_], chosen: NDArray[Any], otherwise: NDArray[Any]) -> NDArray[Any]:
    """Return `np.where` of whole actions `[B, ...]`, given a mask `[B]`."""
    return np.where(mask.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, otherwise)
