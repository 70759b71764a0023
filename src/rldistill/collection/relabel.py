"""Relabel: labels of another teacher for states that are recorded already."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.collection.recorder import TeacherLabeler
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.policy import Policy
from rldistill.core.spec import SIDES, PolicySpec, Side, Wrapper
from rldistill.data.blocks import LABELED, LABELS, MEMBER, MEMBERS, STEP, Block, BlockKey, Columns, next_rows
from rldistill.data.dataset import Dataset
from rldistill.data.frames import stack_frames
from rldistill.data.manifest import Manifest, discount, store_block
from rldistill.data.merge import open_derived
from rldistill.envs.vector import Step
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.agent import StatefulPolicy, inference_threads
from rldistill.policies.wrappers import ChannelsLastPolicy, with_action_mask
from rldistill.teachers.fingerprint import fingerprint

OWN_COLUMNS = (*LABELS, LABELED, MEMBERS, MEMBER)
"""Columns of the old teacher."""
RECURRENT = (
    "{}: it is condensed, and a recurrent teacher needs the steps before. Relabel the whole dataset, then condense it."
)


def relabel(
    source: Path | str,
    teacher: Policy,
    folder: Path | str,
    *,
    features: bool = False,
    gamma: float | None = None,
    memory_gb: float = np.inf,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> Dataset:
    """Write a dataset with the steps of `source` and the labels of `teacher`; no environment is needed.

    The teacher receives the observations in the order and the batches in which they were recorded, so that a recurrent
    teacher has the right state, and the teacher that recorded them returns the same labels, bit for bit. If two views
    were recorded (`collect.teacher_obs`), it receives its own. Recorded images with channels last are transposed for a
    teacher that takes them first. `folder` is discarded only after the first block is labeled.

    Args:
        source: Folder of the dataset with the states, which stays as it is.
        teacher: Teacher of the new labels.
        folder: Folder of the new dataset.
        features: Store the last hidden layer of the teacher.
        gamma: Discount of the returns-to-go; by default that of condensed data, or else 0.99.
        memory_gb: Limit for observations in memory.
        mode: "new" refuses a folder that exists, "overwrite" discards it.
        progress: True shows progress on stderr; or an object with `update(done, total, score)`.

    Raises:
        SpecMismatchError: The teacher has other observations or actions than the recorded ones.
        ConfigError: `folder` is `source`, or it exists; or the data are condensed with another `gamma`, or the teacher
            is recurrent and would need the steps before.
    """
    source, folder = Path(source), Path(folder)
    before = Manifest.read(source)
    before.check()
    before.require_complete()
    discount([before], gamma)
    new = {"teacher": fingerprint(teacher)}
    rounds = {number: round.model_copy(update=new) for number, round in before.rounds.items()}
    if before.is_condensed and teacher.initial_state(1) is not None:
        raise ConfigError(RECURRENT.format(source))
    _require_view(teacher.spec.view, before)
    own_spec = teacher_spec(before)
    if images := teacher.spec.transposed_images(own_spec):
        teacher = ChannelsLastPolicy(teacher, images)
    teacher = with_action_mask(teacher, own_spec)
    teacher.spec.require_same_input(own_spec, "the teacher", f"the observations of teachers in {source}")
    spec = dataclasses.replace(before.spec, head=teacher.spec.head, members=teacher.spec.members)
    manifest = Manifest.new(folder, before.model_copy(update={"spec": spec}), rounds)
    entries = []
    with inference_threads(1):
        blocks = _labeled_blocks(before, teacher, features)
        first = next(blocks)  # before anything is discarded, since the teacher may fail
        with open_derived(folder, [source], mode), stage_progress(progress, "relabel", "steps") as report:
            for key, block in chain([first], blocks):
                entries.append(store_block(folder, key, block))
                report.update(sum(entry.steps for entry in entries), sum(entry.steps for entry in before.blocks))
            manifest.add_blocks(entries)
    return Dataset.read([folder], gamma, memory_gb=memory_gb)


def _labeled_blocks(before: Manifest, teacher: Policy, features: bool) -> Iterator[tuple[BlockKey, Block]]:
    """Yield the blocks of a dataset with the labels of `teacher`."""
    for (number, stream), entries in groupby(before.blocks, key=lambda entry: (entry.round, entry.stream)):
        stateful = StatefulPolicy(teacher, before.rounds[number].envs_per_stream)
        for entry in entries:
            block, labeler = before.read_block(entry), TeacherLabeler(stateful, features)
            columns = {name: column for name, column in block.columns.items() if name not in OWN_COLUMNS}
            for obs, step in _replay(columns, before.spec):
                labeler.label(obs)
                labeler.end(step)
            is_step = columns["kind"] == STEP
            for name, labels in labeler.columns(step.obs).items():
                columns[name] = np.zeros((len(is_step), *labels.shape[2:]), labels.dtype)
                columns[name][is_step] = labels.reshape(-1, *labels.shape[2:])
            states = {"teacher": stateful.state.numpy()} if stateful.state is not None else {}
            yield BlockKey(number, stream, entry.block), Block(columns, block.end_hash, block.exact, states)


def teacher_spec(manifest: Manifest) -> PolicySpec:
    """Return the recorded observations and actions of a teacher, with the neutral head."""
    return manifest.teacher_spec or dataclasses.replace(manifest.spec, head=manifest.spec.head.neutral, members=())


def _require_view(view: Sequence[Wrapper], manifest: Manifest) -> None:
    """Raise SpecMismatchError for a teacher that was trained with other wrappers than the recorded ones.

    The environment has all wrappers of the recording, the spec those of the recording teacher. A teacher without
    wrappers accepts those that the user wrote around the environment, but neither those of the recording teacher nor
    those of students alone.
    """
    env = manifest.env
    side: Side = "student" if manifest.teacher_spec is None else "teacher"
    views = {name: _comparable(getattr(env.views, name)) if env.views else [] for name in SIDES}
    recorded = _comparable(env.wrappers) + views[side]
    own, of_recording_teacher = _comparable(view), _comparable(manifest.spec.view)
    if side == "student" and views["student"] != views["teacher"] and own != recorded:
        raise SpecMismatchError(
            f"{manifest.folder}: the observations of students are recorded, and those of teachers differ. Collect with "
            "teacher_obs: true."
        )
    is_suffix = len(own) > len(of_recording_teacher) and recorded[-len(own) :] == own
    if own != of_recording_teacher and not is_suffix:
        there, here = (", ".join(name for name, _ in wrappers) or "no wrapper" for wrappers in (recorded, own))
        raise SpecMismatchError(
            f"{manifest.folder}: recorded with {there}, but the teacher was trained with {here}. Collect with it "
            "instead."
        )


def _comparable(wrappers: Sequence[Wrapper]) -> list[tuple[str, str]]:
    """Return names and arguments; not ChannelsFirst, which the shapes of images show."""
    kept = [wrapper for wrapper in wrappers if wrapper.name != "ChannelsFirst"]
    return [(wrapper.name, json.dumps(wrapper.kwargs, sort_keys=True)) for wrapper in kept]


def _replay(columns: Columns, spec: PolicySpec) -> Iterator[tuple[NDArray[Any], Step]]:
    """Yield the steps of a block in order of time, as the environments returned them, and the observations before."""
    kind, obs = columns["kind"], columns.get("teacher_obs", columns["obs"])
    slots = int(columns["slot"].max()) + 1
    rows = np.flatnonzero(kind == STEP).reshape(slots, -1)
    next_obs = next_rows(kind, columns["ended"]).reshape(slots, -1)
    frames = None if "teacher_obs" in columns else spec.frames

    def before(at: NDArray[np.int64]) -> NDArray[Any]:
        return obs[at] if frames is None else stack_frames(obs, at, columns["step"][at], frames.stack, frames.padding)

    for number in range(rows.shape[1]):
        at = rows[:, number]
        ended = np.flatnonzero(columns["ended"][at])
        after = obs[next_obs[:, number]]
        if frames is not None:
            after = np.concatenate([before(at)[:, 1:], after[:, None]], 1)
        last_obs = after[ended].copy()
        if len(ended) and number + 1 < rows.shape[1]:
            after[ended] = before(rows[ended, number + 1])
        ends = columns["terminated"][at], columns["truncated"][at]
        reward = columns["reward"][at]
        step = Step(after, reward, *ends, ended, last_obs, [{}] * len(ended), reward)
        yield before(at), step
