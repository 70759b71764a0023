"""Streams: fixed groups of environments that are played block by block, in one process or several."""

import dataclasses
import os
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.collection.config import CollectConfig
from rldistill.collection.recorder import BlockRecorder, TeacherLabeler
from rldistill.collection.time_limit import TimeLimitedPolicy
from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy, PolicyOutput, on_device
from rldistill.core.spec import EnvConfig, Side
from rldistill.data.blocks import ACTORS, STEP, Block, BlockKey, read_block
from rldistill.data.manifest import BlockEntry, block_entry, store_block
from rldistill.envs.atari import ATARI_DEFAULTS, is_atari
from rldistill.envs.seeding import block_generator, episode_seed
from rldistill.envs.vector import SeededVectorEnv, check_resets, make_vector_env, obs_hash, take_turns
from rldistill.envs.views import ObservationViews
from rldistill.io.execution import Execution, ignore, run_jobs
from rldistill.io.processes import REPORT_INTERVAL_S, Report
from rldistill.io.progress import Progress, set_note
from rldistill.io.storage import fetch
from rldistill.policies.agent import StatefulPolicy, inference_threads, to_env_action
from rldistill.policies.ensemble import followed_actions

TEACHER, STUDENT, RANDOM = range(len(ACTORS))
MIN_EPSILON = 0.01
"""Least exploration in a deterministic environment: 160 seeds of Pong with equal actions gave 29 distinct episodes."""


@dataclasses.dataclass(frozen=True)
class CollectJob:
    """One round of collection: all that a process needs to play one of its streams."""

    env: EnvConfig
    views: ObservationViews
    teacher: Policy
    student: Policy | None
    config: CollectConfig
    device: torch.device
    seed: int
    round: int
    folder: Path
    workers: int = 1

    def __post_init__(self) -> None:
        config = self.config
        if config.beta < 1 and self.student is None:
            raise ConfigError(f"collect.beta: {config.beta} needs a student that acts. Give one, or use 1.0.")
        if config.mixture == "agent" and not self.views.student.agents:
            raise ConfigError("collect.mixture: agent needs an environment of several agents. Use step or episode.")
        sticky = self.env.kwargs.get("repeat_action_probability", ATARI_DEFAULTS["repeat_action_probability"])
        if is_atari(self.env.id) and not sticky and config.epsilon < MIN_EPSILON and not config.sample:
            raise ConfigError(
                f"collect.epsilon: {config.epsilon} without sticky actions repeats the same few episodes. Use at "
                f"least {MIN_EPSILON}."
            )
        self.teacher.spec.require_same_input(self.views.teacher, "the teacher", self.env.id)
        if self.student is not None:
            self.student.spec.require_same_input(self.views.student, "the student", self.env.id)


class Stream:
    """One group of environments of a job; `age` are the steps of its open episodes."""

    obs: NDArray[Any]
    age: NDArray[np.int64]

    def __init__(self, job: CollectJob, number: int) -> None:
        self.job, self.config, self.number = job, job.config, number
        self.policies: dict[str, StatefulPolicy] = {}
        self.report: Report = ignore  # of steps and labels
        self._label: PolicyOutput | None = None
        self._member_heads = job.teacher.spec.member_heads

    def run(self) -> Iterator[BlockEntry | None]:
        """Play and write the missing blocks; yield the entry of each, and None while the environments are stepping."""
        folder, complete = self.job.folder, list[Block]()
        with closing(self._make_env()) as env:
            for number, length in enumerate(self.config.block_lengths):
                key = BlockKey(self.job.round, self.number, number)
                if not self.policies and fetch(folder / key.file):
                    complete.append(
                        read_block(folder / key.file, ["slot", "kind", "episode", "step", "action", "ended"])
                    )
                    self.report(length * self.config.envs_per_stream, 0)
                    yield block_entry(folder, key, complete[-1])
                    continue
                exact = bool(self.policies) or self._resume(env, complete)
                block = yield from self._play(env, number, length)
                states = {name: policy.state for name, policy in self.policies.items()}
                arrays = {name: state.numpy() for name, state in states.items() if state is not None}
                yield store_block(folder, key, dataclasses.replace(block, exact=exact, states=arrays))

    def try_teacher(self) -> None:
        """Label the first observations and discard the labels; raise the teacher's error if it fails."""
        with closing(self._make_env()) as env:
            self._resume(env, [])
        labeler = TeacherLabeler(self.policies["teacher"], self.config.features)
        with inference_threads(1), on_device(self.job.device, self.job.teacher):
            labeler.label(self.obs)
            labeler.columns(self.obs)

    def _make_env(self) -> SeededVectorEnv:
        num_threads = max(1, (os.cpu_count() or 1) // self.job.workers)
        return make_vector_env(self.job.env, self.config.envs_per_stream, self._episode_seed, num_threads)

    def _episode_seed(self, slot: int, episode: int) -> int:
        return episode_seed(self.job.seed, "collect", self.job.round, self.number, slot, episode)

    def _resume(self, env: SeededVectorEnv, blocks: list[Block]) -> bool:
        """Restore the state after `blocks`; return True if it is exact: open episodes are replayed from their seeds."""
        slots, exact = self.config.envs_per_stream, True
        self.age, states = np.zeros(slots, np.int64), dict[str, NDArray[np.float32]]()
        if blocks:
            slot, episode, action, ended = (
                np.concatenate([block.columns[name][block.columns["kind"] == STEP] for block in blocks])
                for name in ("slot", "episode", "action", "ended")
            )
            last = [np.flatnonzero(slot == number)[-1] for number in range(slots)]
            current = episode[last] + ended[last]
            actions = [action[(slot == number) & (episode == current[number])] for number in range(slots)]
            self.obs = env.replay(current.tolist(), actions)
            exact = obs_hash(self.obs) == blocks[-1].end_hash
            if exact:
                self.age, states = np.array([len(steps) for steps in actions]), blocks[-1].states
            else:
                warnings.warn(
                    f"stream {self.number}: {self.job.env.id} did not repeat the open episodes exactly. They are "
                    "dropped.",
                    stacklevel=2,
                )
                env.episode += 1
        if not blocks or not exact:
            self.obs = env.reset()
        sides: tuple[Side, ...] = ("teacher", "student")
        for side in sides:
            policy: Policy | None = getattr(self.job, side)
            if policy is not None:
                state = torch.from_numpy(states[side]) if side in states else None
                own = self.job.views.policy_on(side, policy)
                if side == "teacher" and self.config.teacher_timeout is not None:
                    own = TimeLimitedPolicy(own, self.config.teacher_timeout)
                self.policies[side] = StatefulPolicy(own, slots, state, self.job.device)
        return exact

    def _play(self, env: SeededVectorEnv, number: int, length: int) -> Generator[None, None, Block]:
        rng = block_generator(self.job.seed, "collect", self.job.round, self.number, number)
        labeler = TeacherLabeler(self.policies["teacher"], self.config.features, self.config.sparse, self._label)
        recorder = BlockRecorder(labeler, self.job.views, self.obs, self.config.teacher_obs)
        act = partial(self._act, env, recorder, rng, torch.Generator().manual_seed(int(rng.integers(2**62))))
        reported = 0
        for result in islice(env.rollout(self.obs, act), 2 * length):
            if result is None:
                yield
                continue
            action, step = result
            done = step.terminated | step.truncated
            recorder.add(self.obs, action, step, self.age, env.episode - done)
            self.age, self.obs = np.where(done, 0, self.age + 1), step.obs
            if "student" in self.policies:
                self.policies["student"].reset(step.ended)
            self.report(len(done), labeler.num_labels - reported)
            reported = labeler.num_labels
        block = recorder.block(self.obs)
        self.report(0, labeler.num_labels - reported)
        self._label = labeler.following
        return block

    def _act(
        self,
        env: SeededVectorEnv,
        recorder: BlockRecorder,
        rng: np.random.Generator,
        torch_rng: torch.Generator,
        obs: NDArray[Any],
    ) -> NDArray[Any]:
        """Choose the actions of all slots, by teacher, student or chance."""

        def select(output: PolicyOutput) -> NDArray[Any]:
            return to_env_action(output.sample(torch_rng) if self.config.sample else output.mode())

        # Every draw is made, used or not, so that no draw depends on an earlier choice.
        actor, rows = np.full(len(obs), TEACHER, np.int8), None
        if "student" in self.policies:
            draws = rng.random(len(obs))
            if self.config.mixture == "episode":
                seeds = [self._episode_seed(slot, int(episode)) for slot, episode in enumerate(env.episode)]
                draws = np.array([np.random.default_rng([seed, 1]).random() for seed in seeds])
            by_student = draws[:, None] >= self.config.beta
            if self.config.mixture == "agent":  # each agent of a team is the teacher's or the student's by itself
                agents = self.job.views.student.agents
                by_agent = rng.random((len(obs), len(agents))) >= self.config.beta
                by_student = np.repeat(by_agent, [agent.num_parts for agent in agents], axis=1)
            actor[by_student.all(1)] = STUDENT
        if self.config.sparse:
            due = (self.age + np.arange(len(obs))) % self.config.label_every == 0
            rows = np.flatnonzero(due | (actor == TEACHER))
        label = recorder.labeler.label(obs, rows)
        if self._member_heads:  # the members of a committee take turns, so that each has episodes of its own
            turns = env.episode + self.number * len(obs) + np.arange(len(obs))
            recorder.members.append((turns % len(self._member_heads)).astype(np.int8))
            action = followed_actions(label, self._member_heads, recorder.members[-1], select)
        else:
            action = select(label)
        if "student" in self.policies:
            students = select(self.policies["student"].step(obs))
            action = np.where(by_student if action.ndim > 1 else by_student[:, 0], students, action)
        explores = rng.random(len(obs)) < self.config.epsilon
        if self.config.epsilon:
            env.single_action_space.seed(int(rng.integers(2**31)))
            action[explores] = env.sample_actions(obs, rng).reshape(action.shape)[explores]
        actor[explores] = RANDOM
        recorder.actors.append(actor)
        return action


def run_streams(job: CollectJob, progress: Progress, execution: Execution, numbers: Sequence[int]) -> list[BlockEntry]:
    """Run some streams of a job; return the entries of their blocks in the order of their keys."""
    config = job.config
    meter = _Meter(progress, sum(config.block_lengths) * config.envs_per_stream * len(numbers), config.sparse)
    # In one process all streams are one job, since they take turns.
    groups = [[*numbers]] if execution.serial else [[number] for number in numbers]
    if not execution.serial:
        check_resets(job.env)
    done = run_jobs(partial(play_streams, job), groups, execution, meter.add, uses_gpu=config.device != "cpu")
    entries = [entry for _, blocks in done for entry in blocks]
    meter.show()
    return sorted(entries, key=lambda entry: entry.file)


def play_streams(job: CollectJob, numbers: Sequence[int], report: Report) -> list[BlockEntry]:
    """Play the missing blocks of some streams in turns; return the entries of all of their blocks."""
    streams = [Stream(job, number) for number in numbers]
    for stream in streams:
        stream.report = report
    with inference_threads(1), on_device(job.device, job.teacher, job.student):
        return [*take_turns(stream.run() for stream in streams)]


class _Meter:
    """Steps and labels so far, which are shown from time to time."""

    def __init__(self, progress: Progress, total: int, shows_labels: bool) -> None:
        self.progress, self.total, self.shows_labels = progress, total, shows_labels
        self.steps = self.labels = 0
        self.shown_at = self.started = time.monotonic()

    def add(self, steps: int, labels: int) -> None:
        self.steps, self.labels = self.steps + steps, self.labels + labels
        if time.monotonic() - self.shown_at > REPORT_INTERVAL_S:
            self.show()

    def show(self) -> None:
        self.shown_at = time.monotonic()
        rate = self.labels / max(self.shown_at - self.started, 1e-9)
        set_note(self.progress, f"{self.labels:,} labels, {rate:.3g} labels/s" if self.shows_labels else "")
        self.progress.update(self.steps, self.total)
