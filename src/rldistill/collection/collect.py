"""Collect: the teacher labels every observation; teacher, student or both act.

The work is cut into streams (fixed groups of environments) and blocks (the next few hundred steps of one stream). A
block depends only on the earlier blocks of its stream, so that its bytes are the same for any number of workers and
after any interruption.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rldistill.collection.config import CollectConfig
from rldistill.collection.executor import run_streams
from rldistill.collection.stream import CollectJob
from rldistill.core.device import resolve_device
from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import FILE, Manifest, Origin, Round, discard
from rldistill.envs.atari import is_deterministic
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.envs.views import ObservationViews
from rldistill.io.atomic import Mode, open_stage, require_mode
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.fingerprint import fingerprint

MIN_EPSILON = 0.01
"""Least exploration in a deterministic environment: 160 seeds of Pong with equal actions gave 29 distinct episodes."""


def collect(
    env: EnvConfig,
    teacher: Policy,
    config: CollectConfig,
    folder: Path | str,
    *,
    seed: int = 0,
    student: Policy | None = None,
    round: int = 0,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> Dataset:
    """Play, label every observation, and store the steps as a dataset.

    A teacher that fails before the first block leaves the folder as it was.

    Args:
        env: Environment, to which the wrappers of the teacher are added.
        teacher: Policy that labels every observation, and acts with probability `config.beta`.
        config: Amount of data, and who acts.
        folder: Folder of the dataset; rounds after the first are appended.
        seed: Seed of the run.
        student: Policy that acts if the teacher does not; needed for `beta` < 1.
        round: Round of collection, which has seeds of its own.
        mode: "new" refuses a folder that exists, "resume" continues it, "overwrite" discards it.
        progress: True shows progress on a terminal; or an object with `update(done, total, score)`.

    Raises:
        SpecMismatchError: A policy does not fit the environment.
        ConfigError: The folder has another collection.
    """
    folder = Path(folder)
    require_mode(mode)
    inputs = StageInputs("collect", {"seed": seed, "collect": config})
    record = Round(envs_per_stream=config.envs_per_stream, teacher=fingerprint(teacher), inputs=inputs.to_json())
    env = adapt_env(env, teacher)
    views = observation_views(env)
    teacher = with_action_mask(teacher, views.teacher)
    _require_fit(env, views, teacher, student, config)
    teacher_spec = views.teacher if views.packed and config.teacher_obs else None
    origin = Origin(env=env, spec=_stored_spec(views, teacher), teacher_spec=teacher_spec)
    teacher = views.policy_on("teacher", teacher)
    student = None if student is None else views.policy_on("student", student)
    job = CollectJob(env, views, teacher, student, config, seed, round, folder)
    existed = folder.exists()
    if round == 0:
        if mode == "overwrite" and (folder / FILE).exists():
            job.streams[0].try_teacher()
        open_stage(folder, folder / FILE, mode)
    before = Manifest.read(folder) if (folder / FILE).exists() else None
    manifest = Manifest.new(folder, origin, {round: record}).begin_round(round, inputs)
    if not (blocks := manifest.blocks_of(round)) or not all((folder / block.file).exists() for block in blocks):
        try:
            with stage_progress(progress, "collect", "steps") as report:
                manifest.add_blocks(run_streams(job, report))
        except Exception:
            if not any(stream.has_blocks for stream in job.streams):
                discard(folder, keep_folder=existed) if before is None else before.write()
            raise
    return Dataset.read([folder], config.gamma, memory_gb=config.memory_gb)


def _require_fit(
    env: EnvConfig, views: ObservationViews, teacher: Policy, student: Policy | None, config: CollectConfig
) -> None:
    """Raise an error if the policies do not fit the environment, or the config does not fit them."""
    resolve_device(config.device, "collect.device")
    if config.beta < 1 and student is None:
        raise ConfigError(f"collect.beta: {config.beta} needs a student that acts. Give one, or use 1.0.")
    if is_deterministic(env) and config.epsilon < MIN_EPSILON and not config.sample:
        raise ConfigError(
            f"collect.epsilon: {config.epsilon} without sticky actions repeats the same few episodes. Use at "
            f"least {MIN_EPSILON}."
        )
    teacher.spec.require_same_input(views.teacher, "the teacher", env.id)
    if student is not None:
        student.spec.require_same_input(views.student, "the student", env.id)


def collected_spec(env: EnvConfig, teacher: Policy) -> PolicySpec:
    """Return the spec of a dataset that `collect` would write: the student's observations, the teacher's head."""
    views = observation_views(adapt_env(env, teacher))
    return _stored_spec(views, with_action_mask(teacher, views.teacher))


def _stored_spec(views: ObservationViews, teacher: Policy) -> PolicySpec:
    return dataclasses.replace(views.student, head=teacher.spec.head) if views.packed else teacher.spec
