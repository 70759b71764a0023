"""Collect: the teacher labels every observation; teacher, student or both act.

The work is cut into streams (fixed groups of environments) and blocks (the next few hundred steps of one stream). A
block depends only on the earlier blocks of its stream, so that its bytes are the same for any number of workers and
after any interruption.
"""

import dataclasses
from pathlib import Path

from rldistill.collection.config import CollectConfig
from rldistill.collection.stream import CollectJob, Stream, run_streams
from rldistill.core.errors import CorruptArtifactError, RLDistillError
from rldistill.core.fields import read
from rldistill.core.policy import Policy, resolve_device
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.blocks import BlockKey, read_block
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import FILE, Manifest, Origin, Round, block_entry, discard, discount
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.io.atomic import Mode, open_stage
from rldistill.io.execution import SERIAL, Execution, Shard
from rldistill.io.lock import lock_folder, locked
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.io.storage import fetch, pull
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
    execution: Execution = SERIAL,
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
        execution: Place where the streams are played.

    Raises:
        SpecMismatchError: A policy does not fit the environment.
        ConfigError: The folder has another collection.
    """
    folder = Path(folder)
    execution.prepare()
    job, new, inputs = _plan(env, teacher, config, folder, (seed, round, student), execution.workers)
    if round == 0:
        if mode == "overwrite" and (folder / FILE).exists():
            Stream(job, 0).try_teacher()
        open_stage(folder, folder / FILE, mode)
    before = Manifest.read(folder) if (folder / FILE).exists() else None
    if before is not None:
        discount([before], config.gamma)
    manifest = new.begin_round(round, inputs)
    if not (blocks := manifest.blocks_of(round)) or not all((folder / block.file).exists() for block in blocks):
        try:
            with stage_progress(progress, "collect", "steps") as report:
                entries = run_streams(job, report, execution, range(config.num_streams))
                pull(folder)  # the blocks of other machines
                manifest.add_blocks(entries)
        except Exception as error:
            if not (kept := _num_kept(config, folder, round)):
                discard(folder) if before is None else before.write()
            elif isinstance(error, RLDistillError):
                error.args = (f"{str(error).rstrip('.')}. {kept:,} steps are kept; --resume goes on.",)
            raise
    return Dataset.read([folder], config.gamma, memory_gb=config.memory_gb)


def collect_shard(
    env: EnvConfig,
    teacher: Policy,
    config: CollectConfig,
    folder: Path | str,
    shard: Shard,
    *,
    seed: int = 0,
    progress: Progress | bool = True,
    execution: Execution = SERIAL,
) -> None:
    """Play the streams of one shard into a folder that all shards share, and continue what exists there.

    After all shards, `seal` makes the dataset, whose bytes are those of `collect`.

    Raises:
        ConfigError: The folder has another collection, or a process that is no shard uses it.
    """
    folder, numbers = Path(folder), shard.select(range(config.num_streams))
    execution.prepare()
    job, new, inputs = _plan(env, teacher, config, folder, (seed, 0, None), execution.workers)
    with lock_folder(folder, shared=True), stage_progress(progress, "collect", "steps") as report:
        open_stage(folder, folder / FILE, "resume")
        if not new.begin_round(0, inputs).blocks_of(0):
            run_streams(job, report, execution, numbers)


@locked
def seal(folder: Path | str) -> Manifest:
    """List the blocks of a collection in its manifest, as after all of its shards.

    Raises:
        CorruptArtifactError: A block is missing or damaged.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    for number, round in manifest.rounds.items():
        if manifest.blocks_of(number):
            continue
        values = {key: value for key, value in round.inputs["collect"].items() if key != "type"}
        config: CollectConfig = read(CollectConfig, values)
        keys = _keys(config, number)
        if missing := [key for key in keys if not fetch(folder / key.file)]:
            streams = ", ".join(map(str, dict.fromkeys(key.stream for key in missing)))
            raise CorruptArtifactError(
                f"{folder}: {len(missing)} of {len(keys)} blocks are missing, those of the streams {streams}, counted "
                "from 0. Run their shards to the end, then seal again."
            )
        entries = (block_entry(folder, key, read_block(folder / key.file, ["kind"])) for key in keys)
        manifest.add_blocks(sorted(entries, key=lambda entry: entry.file))
    return manifest


def _plan(
    env: EnvConfig,
    teacher: Policy,
    config: CollectConfig,
    folder: Path,
    source: tuple[int, int, Policy | None],
    workers: int,
) -> tuple[CollectJob, Manifest, StageInputs]:
    """Return the job of a round, its manifest, which is not written, and its inputs.

    `source` are the seed of the run, the number of the round, and the student that acts in it.
    """
    seed, round, student = source
    inputs = StageInputs("collect", {"seed": seed, "collect": config}, code=(env, fingerprint(teacher)))
    record = Round(envs_per_stream=config.envs_per_stream, teacher=fingerprint(teacher), inputs=inputs.to_json())
    env = adapt_env(env, teacher)
    views = observation_views(env)
    teacher = with_action_mask(teacher, views.teacher)
    teacher_spec = views.teacher if views.packed and config.teacher_obs else None
    origin = Origin(env=env, spec=collected_spec(env, teacher), teacher_spec=teacher_spec)
    device = resolve_device(config.device, "collect.device")
    job = CollectJob(env, views, teacher, student, config, device, seed, round, folder, workers)
    return job, Manifest.new(folder, origin, {round: record}), inputs


def _keys(config: CollectConfig, round: int) -> list[BlockKey]:
    """Return the keys of all blocks of a round."""
    numbers = range(len(config.block_lengths))
    return [BlockKey(round, stream, number) for stream in range(config.num_streams) for number in numbers]


def _num_kept(config: CollectConfig, folder: Path, round: int) -> int:
    """Return the number of steps in the blocks of an interrupted collection."""
    kept = [key for key in _keys(config, round) if (folder / key.file).exists()]
    return sum(config.block_lengths[key.block] * config.envs_per_stream for key in kept)


def collected_spec(env: EnvConfig, teacher: Policy) -> PolicySpec:
    """Return the spec of a dataset that `collect` would write: the student's observations, the teacher's head."""
    views = observation_views(adapt_env(env, teacher))
    spec = with_action_mask(teacher, views.teacher).spec
    if views.packed:
        return dataclasses.replace(views.student, head=spec.head, members=spec.members)
    return dataclasses.replace(spec, agents=views.student.agents)
