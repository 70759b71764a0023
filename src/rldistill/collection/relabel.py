"""Relabel: what another teacher says of states that were recorded already."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.collection.recorder import TeacherLabeler
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.policy import Policy
from rldistill.core.spec import PolicySpec, Wrapper
from rldistill.data.blocks import LABELS, STEP, Block, BlockKey, read_block, successors, write_block
from rldistill.data.dataset import Dataset
from rldistill.data.frames import stack_frames
from rldistill.data.manifest import Manifest, manifest_entry, open_derived
from rldistill.envs.config import SIDES, Side
from rldistill.envs.rollout import StatefulPolicy, inference_threads
from rldistill.envs.vector import Step
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.wrappers import with_action_mask, with_recorded_channels
from rldistill.teachers.fingerprint import fingerprint

Columns = dict[str, NDArray[Any]]


def relabel(
    source: Path,
    teacher: Policy,
    folder: Path,
    *,
    features: bool = False,
    gamma: float = 0.99,
    memory_gb: float = np.inf,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> Dataset:
    """Write a dataset with the steps of `source` and the labels of `teacher`; no environment is needed.

    Observations are shown in the order and in the batches in which they were recorded, so that a recurrent teacher
    remembers what it would have, and the teacher that recorded them says the same again, bit for bit. Where two views
    were recorded (`collect.teacher_obs`), the teacher is shown its own. Pictures recorded with channels last are turned
    round for one that takes them first.

    Args:
        source: the dataset to label anew, which stays as it is.
        teacher: who labels.
        folder: where the new dataset will be.
        features: whether the teacher's last hidden layer is stored too.
        gamma: discount of the returns-to-go.
        memory_gb: what the observations may take in memory.
        mode: "new" refuses a folder that exists, "overwrite" discards it.
        progress: True shows progress on a terminal; or an object with `update(done, total, score)`.

    Raises:
        SpecMismatchError: the teacher sees or does something else than what was recorded.
        ConfigError: `folder` is `source`, or holds something already.

    Nothing is thrown away for a teacher that fails at once.
    """
    before = Manifest.read(source)
    before.check()
    if not before.blocks:
        raise ConfigError(f'{source}: the collection is not complete. Continue it with mode="resume" (--resume).')
    rounds = {key: {**asked, "teacher": fingerprint(teacher)} for key, asked in before.document["rounds"].items()}
    teacher = _fitting(teacher, before, source)
    spec = dataclasses.replace(before.spec, head=teacher.spec.head)
    manifest = Manifest.derived(folder, before, spec, rounds)
    entries, done = [], 0
    with inference_threads(1):
        blocks = _blocks(before, teacher, features)
        first = next(blocks)  # which may fail, and then nothing has been thrown away
        with open_derived(folder, [source], mode), stage_progress(progress, "relabel", "steps") as report:
            for key, steps, block in chain([first], blocks):
                write_block(folder / key.file, block)
                entries.append(manifest_entry(key, folder / key.file, block, steps))
                done += steps
                report.update(done, before.num_steps)
            manifest.add_blocks(entries)
    return Dataset.read([folder], gamma, memory_gb=memory_gb)


def _blocks(before: Manifest, teacher: Policy, features: bool) -> Iterator[tuple[BlockKey, int, Block]]:
    """The blocks of a dataset with the labels of `teacher`, each with its key and its steps."""
    for (round_number, stream), entries in groupby(before.blocks, key=lambda b: (b["round"], b["stream"])):
        slots = before.document["rounds"][str(round_number)]["envs_per_stream"]
        memory = StatefulPolicy(teacher, slots)
        for entry in entries:
            block = _labelled(read_block(before.folder / entry["file"]), memory, before.spec, slots, features)
            yield BlockKey(round_number, stream, entry["block"]), entry["steps"], block


def shown_spec(manifest: Manifest) -> PolicySpec:
    """What a teacher is shown and does here, under the neutral head: of two views that were recorded, its own."""
    if manifest.teacher_spec is not None:
        return manifest.teacher_spec
    spec = dataclasses.replace(manifest.spec, head=manifest.spec.head.neutral)
    for seen in _teacher_obs(manifest):  # of a manifest from before it told the spec
        return PolicySpec(seen.shape[1:], str(seen.dtype), spec.head)
    return spec


def _teacher_obs(manifest: Manifest) -> list[NDArray[Any]]:
    """What the teacher saw in the first block, where that was recorded beside what the student saw."""
    blocks = [read_block(manifest.folder / entry["file"], ["teacher_obs"]).columns for entry in manifest.blocks[:1]]
    return [columns["teacher_obs"] for columns in blocks if "teacher_obs" in columns]


def _fitting(teacher: Policy, manifest: Manifest, source: Path) -> Policy:
    """The teacher, confined to legal actions; what it sees must have been recorded."""
    both = manifest.teacher_spec is not None or bool(_teacher_obs(manifest))
    _require_view(teacher.spec.view, manifest, "teacher" if both else "student", source)
    spec = shown_spec(manifest)
    teacher = with_action_mask(with_recorded_channels(teacher, spec), spec)
    teacher.spec.require_same_input(spec, "the teacher", f"what {source} recorded for teachers")
    return teacher


def _require_view(view: Sequence[Wrapper], manifest: Manifest, side: Side, source: Path) -> None:
    """Refuse a teacher that was trained behind other wrappers than the states were recorded behind.

    The environment tells all of these, the spec which of them the recording teacher brought. A teacher that brings none
    may see what others wrote around the environment, but not what the recording one brought, nor what is for students
    alone.
    """
    env = manifest.document["env"]
    views = {name: _comparable((env.get("views") or {}).get(name, ())) for name in SIDES}
    around = _comparable(env.get("wrappers", ())) + views[side]
    brought, own = (_comparable([dataclasses.asdict(w) for w in each]) for each in (manifest.spec.view, view))
    if side == "student" and views["student"] != views["teacher"] and own != around:
        raise SpecMismatchError(
            f"{source} holds what students saw, and teachers saw something else: collect with teacher_obs: true"
        )
    if own == brought or (len(own) > len(brought) and around[-len(own) :] == own):
        return
    seen, known = (", ".join(name for name, _ in each) or "no wrapper" for each in (around, own))
    raise SpecMismatchError(
        f"{source} was recorded behind {seen}, the teacher was trained behind {known}; collect with it instead"
    )


def _comparable(wrappers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Names and arguments; whether pictures are turned round is seen in their shape."""
    kept = [wrapper for wrapper in wrappers if wrapper["name"] != "ChannelsFirst"]
    return [(wrapper["name"], json.dumps(wrapper["kwargs"], sort_keys=True)) for wrapper in kept]


def _labelled(block: Block, memory: StatefulPolicy, spec: PolicySpec, slots: int, features: bool) -> Block:
    columns = {name: column for name, column in block.columns.items() if name not in LABELS}
    kind = columns["kind"]
    labels = TeacherLabeler(memory, features)
    for step in _steps(columns, spec, slots):
        labels.label(step.before)
        labels.end(step.step)
    for name, said in labels.columns(step.step.obs).items():
        flat = said.reshape(-1, *said.shape[2:])
        columns[name] = np.zeros((len(kind), *flat.shape[1:]), flat.dtype)
        columns[name][kind == STEP] = flat
    states = {"teacher": memory.state.numpy()} if memory.state is not None else {}
    return Block(columns, block.end_hash, block.exact, states)


@dataclasses.dataclass(frozen=True)
class _Recorded:
    """One recorded step of all slots, and what they showed before it."""

    before: NDArray[Any]
    step: Step


def _steps(columns: Columns, spec: PolicySpec, slots: int) -> Iterator[_Recorded]:
    """The steps of a block in order of time, as the environments gave them."""
    kind, obs = columns["kind"], columns.get("teacher_obs", columns["obs"])
    rows = np.flatnonzero(kind == STEP).reshape(slots, -1)
    after = successors(kind, columns["ended"]).reshape(slots, -1)
    stacked = spec.frames is not None and "teacher_obs" not in columns

    def seen(at: NDArray[np.int64]) -> NDArray[Any]:
        if spec.frames is None or not stacked:
            return obs[at]
        return stack_frames(obs, at, columns["step"][at], spec.frames.stack, spec.frames.padding)

    def led_to(at: NDArray[np.int64], number: int) -> NDArray[Any]:
        newest = obs[after[at, number]]
        return np.concatenate([seen(rows[at, number])[:, 1:], newest[:, None]], 1) if stacked else newest

    everyone = np.arange(slots)
    for number in range(rows.shape[1]):
        at = rows[:, number]
        ended = np.flatnonzero(columns["ended"][at])
        shown = led_to(everyone, number)
        last_obs = shown[ended].copy()
        if len(ended) and number + 1 < rows.shape[1]:
            shown[ended] = seen(rows[ended, number + 1])
        ends = columns["terminated"][at], columns["truncated"][at]
        step = Step(shown, columns["reward"][at], *ends, ended, last_obs, np.full(len(ended), np.nan))
        yield _Recorded(seen(at), step)
