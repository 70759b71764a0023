"""Collect: the teacher labels every observation; teacher, student or both act.

The work is cut into streams (fixed groups of environments) and blocks (the next few hundred steps of one stream). A
block depends only on the earlier blocks of its stream, so that its bytes are the same for any number of workers and
after any interruption.
"""

import dataclasses
from pathlib import Path

from rldistill.collection.config import CollectConfig
from rldistill.collection.stream import CollectJob, Stream, run_streams
from rldistill.core.errors import RLDistillError
from rldistill.core.policy import Policy, resolve_device
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.blocks import BlockKey
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import FILE, Manifest, Origin, Round, discard
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.io.atomic import Mode, open_stage
from rldistill.io.lock import locked
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.fingerprint import fingerprint


@locked
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
        progress: True shows progress on stderr; or an object with `update(done, total, score)`.

    Raises:
        SpecMismatchError: A policy does not fit the environment.
        ConfigError: The folder has another collection.
    """
    folder = Path(folder)
    inputs = StageInputs("collect", {"seed": seed, "collect": config}, code=(env, fingerprint(teacher)))
    record = Round(envs_per_stream=config.envs_per_stream, teacher=fingerprint(teacher), inputs=inputs.to_json())
    env = adapt_env(env, teacher)
    views = observation_views(env)
    teacher = with_action_mask(teacher, views.teacher)
    teacher_spec = views.teacher if views.packed and config.teacher_obs else None
    origin = Origin(env=env, spec=collected_spec(env, teacher), teacher_spec=teacher_spec)
    device = resolve_device(config.device, "collect.device")
    job = CollectJob(env, views, teacher, student, config, device, seed, round, folder)
    if round == 0:
        if mode == "overwrite" and (folder / FILE).exists():
            Stream(job, 0).try_teacher()
        open_stage(folder, folder / FILE, mode)
    before = Manifest.read(folder) if (folder / FILE).exists() else None
    manifest = Manifest.new(folder, origin, {round: record}).begin_round(round, inputs)
    if not (blocks := manifest.blocks_of(round)) or not all((folder / block.file).exists() for block in blocks):
        try:
            with stage_progress(progress, "collect", "steps") as report:
                manifest.add_blocks(run_streams(job, report))
        except Exception as error:
            if not (kept := _num_kept(config, folder, round)):
                discard(folder) if before is None else before.write()
            elif isinstance(error, RLDistillError):
                error.args = (f"{str(error).rstrip('.')}. {kept:,} steps are kept; --resume goes on.",)
            raise
    return Dataset.read([folder], config.gamma, memory_gb=config.memory_gb)


def _num_kept(config: CollectConfig, folder: Path, round: int) -> int:
    """Return the number of steps in the blocks of an interrupted collection."""
    return sum(
        length * config.envs_per_stream
        for stream in range(config.num_streams)
        for number, length in enumerate(config.block_lengths)
        if (folder / BlockKey(round, stream, number).file).exists()
    )


def collected_spec(env: EnvConfig, teacher: Policy) -> PolicySpec:
    """Return the spec of a dataset that `collect` would write: the student's observations, the teacher's head."""
    views = observation_views(adapt_env(env, teacher))
    spec = with_action_mask(teacher, views.teacher).spec
    if views.packed:
        return dataclasses.replace(views.student, head=spec.head, members=spec.members)
    return dataclasses.replace(spec, agents=views.student.agents)
