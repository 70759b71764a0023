"""Collect: who acts (teacher, student, mixture) and who labels (the teacher, always).

The work is cut into streams (fixed groups of environments) and blocks (the next few hundred steps of one stream).
A block depends on its stream's earlier blocks alone, so that the bytes are the same for any number of workers and
after any kill.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from rldistill.collection.config import CollectConfig
from rldistill.collection.stream import Entry, Stream
from rldistill.core.device import on_device, resolve_device
from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest, discard
from rldistill.envs.atari import is_deterministic
from rldistill.envs.config import EnvConfig
from rldistill.envs.rollout import inference_threads, take_turns
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.envs.views import ObservationViews
from rldistill.io.atomic import Mode, open_stage, require_mode, write_json
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.fingerprint import fingerprint

ONLY_SPEED = ("workers", "memory_gb", "device")


LEAST_EPSILON = 0.01
"""Where nothing else is random: 160 seeds of Pong with equal actions gave 29 different episodes."""


def collect(
    env: EnvConfig,
    teacher: Policy,
    config: CollectConfig,
    folder: Path,
    *,
    seed: int = 0,
    student: Policy | None = None,
    round: int = 0,
    mode: Mode = "new",
    progress: Progress | bool = True,
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
        mode: "new" refuses a folder that exists, "resume" continues it, "overwrite" discards it.
        progress: True shows progress on a terminal; or an object with `update(done, total, score)`.

    Raises:
        SpecMismatchError: the teacher or the student does not fit the environment.
        ConfigError: the folder holds another collection.

    Nothing is thrown away for a teacher that fails at once, and nothing is left where no block came of it.
    """
    require_mode(mode)
    if config.beta < 1 and student is None:
        raise ConfigError(f"collect.beta: {config.beta} lets a student act, but there is none; use 1.0 or give one")
    resolve_device(config.device, "collect.device")
    who = fingerprint(teacher)
    env = adapt_env(env, teacher)
    if is_deterministic(env) and config.epsilon < LEAST_EPSILON and not config.sample:
        raise ConfigError(
            f"collect.epsilon: {config.epsilon} without sticky actions gives the same few episodes again and again; "
            f"expected at least {LEAST_EPSILON}"
        )
    sight = observation_views(env)
    teacher = with_action_mask(teacher, sight.teacher)
    teacher.spec.require_same_input(sight.teacher, "the teacher", env.id)
    if student is not None:
        student.spec.require_same_input(sight.student, "the student", env.id)
        student = sight.policy_on("student", student)
    stored = _stored(sight, teacher)
    teacher = sight.policy_on("teacher", teacher)
    threads = max(1, (os.cpu_count() or 1) // config.workers)
    jobs = [
        Stream(env, sight, teacher, student, config, seed, round, stream, folder, threads)
        for stream in range(config.num_streams)
    ]
    path, there = folder / "manifest.json", folder.exists()
    if round == 0:
        if mode == "overwrite" and path.exists():
            with inference_threads(1):
                jobs[0].ask()
        open_stage(folder, path, mode)
    before = Manifest.read(folder).document if path.exists() else None
    asked = dataclasses.asdict(config)
    request = {"seed": seed, "teacher": who, **{name: asked[name] for name in asked if name not in ONLY_SPEED}}
    seen = sight.teacher if sight.packed and config.teacher_obs else None
    manifest = Manifest.open(folder, env, stored, round, request, seen)
    if not manifest.has_files_of(round):
        try:
            with stage_progress(progress, "collect", "steps") as report:
                manifest.add_round(round, _run_all(jobs, config, report))
        except Exception:
            if not any(job.has_begun() for job in jobs):
                discard(folder, there) if before is None else write_json(path, before)
            raise
    return Dataset.read([folder], config.gamma, memory_gb=config.memory_gb)


def spec_of_data(env: EnvConfig, teacher: Policy) -> PolicySpec:
    """Of what a teacher's dataset of an environment holds: what students see, and the teacher's head."""
    sight = observation_views(adapt_env(env, teacher))
    return _stored(sight, with_action_mask(teacher, sight.teacher))


def _stored(sight: ObservationViews, teacher: Policy) -> PolicySpec:
    return dataclasses.replace(sight.student, head=teacher.spec.head) if sight.packed else teacher.spec


def _run_all(jobs: list[Stream], config: CollectConfig, progress: Progress) -> list[Entry]:
    total = sum(config.block_lengths) * config.envs_per_stream * config.num_streams
    entries: list[Entry] = []

    def note(new: list[Entry]) -> None:
        entries.extend(new)
        progress.update(sum(entry["steps"] for entry in entries), total)

    if config.workers == 1:
        with inference_threads(1), on_device(jobs[0].device, jobs[0].teacher, jobs[0].student):
            for entry in take_turns(job.run() for job in jobs):
                note([entry])
    else:
        _require_portable(jobs[0])
        spawn, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
        with ProcessPoolExecutor(config.workers, mp_context=spawn) as pool:
            with _unheard(signal.SIGINT):  # this process hears it, and stops the others
                pending = {pool.submit(_run_to_end, job) for job in jobs}
            try:
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        note(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    if process not in others:
                        process.terminate()  # blocks are written whole or not at all
                raise
    return sorted(entries, key=lambda entry: str(entry["file"]))


@contextmanager
def _unheard(stop: signal.Signals) -> Iterator[None]:
    """Processes that are begun within never hear of `stop`."""
    if threading.current_thread() is not threading.main_thread():  # where nobody can choose
        yield
        return
    before = signal.signal(stop, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(stop, before)


def _require_portable(job: Stream) -> None:
    """Raise ConfigError for what other processes cannot be given, such as a class that was made within a function."""
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"collect.workers: what acts here cannot be given to other processes ({error}); define it at the top of "
            "its module, or take workers: 1"
        ) from None


def _run_to_end(job: Stream) -> list[Entry]:
    with inference_threads(1), on_device(job.device, job.teacher, job.student):
        return [entry for entry in job.run() if entry is not None]
