"""Datasets of Minari, in and out; ours come back as they were."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rldistill.data.blocks import FINAL, LABELS, STEP, Block, BlockKey, read_block, write_block
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import SCHEMA, TEACHER_SPEC, Manifest, manifest_entry, open_derived
from rldistill.envs.single import EnvConfig, spec_from_spaces
from rldistill.errors import ConfigError, CorruptArtifactError, MissingExtraError, did_you_mean
from rldistill.students.network import split_parts
from rldistill.types import ActionHead, ObsPart, PolicySpec

PREFIX = "minari:"
OURS = "rldistill"
FIRM = 20.0
"""The logit of the action that was taken, where the others have 0 and nobody labelled it."""
BLOCK = 4_096
SEEN = "teacher_obs"
Columns = dict[str, NDArray[Any]]
Progress = Callable[[int, int], None]


def export_minari(source: Path, name: str, progress: Progress = lambda done, total: None) -> None:
    """Write a dataset as Minari's `name`, with the teacher's labels, and what it alone saw, among its infos.

    Pictures are stored as they are, not as JPEG. An episode that was still going on ends as truncated, marked `cut` in
    its infos.

    Raises:
        ConfigError: Minari has a dataset of that name or cannot hold this one, or the name is none of its kind
            (`game/data-v0`).
    """
    minari = _minari()
    name = _bare(name)
    place = _root() / name
    if place.exists():
        raise ConfigError(f"{PREFIX}{name}: {place} is there already; choose another name, or delete it")
    data, manifest = Dataset.read([source]), Manifest.read(source)
    observations, actions = _spaces(data.spec)
    seen_by_teacher = None if manifest.teacher_spec is None else _seen_by_teacher(manifest)
    infos = [column for column in (*LABELS, "actor") if column in data.columns]
    order = np.lexsort((data.columns["step"], data.columns["episode"]))
    bounds = np.searchsorted(data.columns["episode"][order], np.arange(data.num_episodes + 1))
    buffers = []
    for start, end in pairwise(bounds):
        rows = order[start:end]
        ended = bool(data.columns["terminated"][rows[-1]] | data.columns["truncated"][rows[-1]])
        truncated = data.columns["truncated"][rows].copy()
        truncated[-1] |= not ended
        said = {column: _info(_one_longer(data.columns[column][rows])) for column in infos}
        if seen_by_teacher is not None:
            said[SEEN] = seen_by_teacher[np.append(data.row[rows], data.next_row[rows[-1]])]
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations=_shown(data, rows),
                actions=data.columns["action"][rows].astype(actions.dtype),
                rewards=data.columns["reward"][rows],
                terminations=data.columns["terminated"][rows],
                truncations=truncated,
                infos={**said, "cut": [not ended] * (len(rows) + 1)},
            )
        )
        progress(int(end), len(data))
    ours = {key: manifest.document[key] for key in ("env", "spec", TEACHER_SPEC) if key in manifest.document}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an author, a permalink and the like that are not there
            made = minari.create_dataset_from_buffers(
                name,
                buffers,
                observation_space=observations,
                action_space=actions,
                data_format="arrow",
                jpeg_encoding=False,
                description=f"Collected by rldistill in {manifest.document['env']['id']}",
            )
        made.storage.update_metadata({OURS: json.dumps(ours)})
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)  # Minari leaves what it has begun, and never writes there again
        if not isinstance(error, ValueError | TypeError | AssertionError):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{PREFIX}{name}: Minari cannot hold this dataset: {why}") from error


def import_minari(
    name: str, folder: Path, *, overwrite: bool = False, progress: Progress = lambda done, total: None
) -> Dataset:
    """Read Minari's dataset `name`, which has to be on this machine, into a dataset of ours.

    What was recorded elsewhere is labelled with the actions that were taken, whatever its infos say; `relabel` it with
    a teacher. What `export_minari` wrote has its teacher's labels again. Rewards, actions and the entries of dicts
    become float32, as in all datasets, with a warning where that rounds them.

    Raises:
        ConfigError: there is none of that name, its spaces are not supported, or `folder` holds something already.
        CorruptArtifactError: it lacks what is needed.
    """
    minari = _minari()
    name = _bare(name)
    try:
        metadata = minari.dataset.minari_storage.MinariStorage.read_raw_metadata(_root() / name / "data")
    except ValueError:
        here = [str(file.parents[1].relative_to(_root())) for file in _root().rglob("data/metadata.json")]
        hint = did_you_mean(name, here)
        raise ConfigError(
            f"{PREFIX}{name}: Minari has no such dataset here.{hint} `minari download {name}` fetches it"
        ) from None
    for needed in ("observation_space", "action_space"):
        if not isinstance(metadata.get(needed), str):  # Minari would build an environment of the file's choice
            raise CorruptArtifactError(f"{PREFIX}{name}: its metadata do not tell its {needed}")
    source = minari.load_dataset(name)
    if not source.total_episodes:
        raise CorruptArtifactError(f"{PREFIX}{name}: it holds no episodes, so there is nothing to import")
    env, spec, seen = _about(name, metadata, source)
    open_derived(folder, [], overwrite)
    document = {"schema": SCHEMA, "env": env, "spec": dataclasses.asdict(spec)}
    if seen is not None:
        document[TEACHER_SPEC] = dataclasses.asdict(seen)
    rounds = {"0": {"slots": 1, "streams": 1, "source": f"{PREFIX}{name}"}}
    manifest = Manifest.derived(folder, Manifest(folder, document), spec, rounds)
    entries: list[dict[str, Any]] = []
    waiting: list[Columns] = []
    rounded: set[str] = set()
    done, total = 0, int(source.total_steps)
    for number, episode in enumerate(source.iterate_episodes()):
        infos = _our_infos(name, number, episode, spec, seen) if isinstance(metadata.get(OURS), str) else {}
        waiting.append(_episode_columns(episode, number, spec, infos))
        rounded |= _rounded(episode, spec)
        done += len(episode)
        last = done == total
        if last or sum(int((part["kind"] == STEP).sum()) for part in waiting) >= BLOCK:
            entries.append(_write(folder, len(entries), waiting))
            waiting = []
            progress(done, total)
    if rounded:
        lost = " and ".join(sorted(rounded))
        warnings.warn(f"{PREFIX}{name}: {lost} are float64 there and were rounded to float32", stacklevel=2)
    manifest.add_blocks(entries)
    return Dataset.read([folder])


def _minari() -> Any:
    try:
        import minari
        import minari.data_collector
        import minari.dataset.minari_storage
    except ImportError:
        raise MissingExtraError("Datasets of Minari", "minari") from None
    return minari


def _bare(name: str) -> str:
    """The name without `minari:`; raises ConfigError unless it is of the kind that Minari takes."""
    from minari.dataset.minari_dataset import parse_dataset_id

    bare = name.removeprefix(PREFIX)
    try:
        if re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", bare) is None:
            raise ValueError
        parse_dataset_id(bare)
    except ValueError:
        raise ConfigError(
            f"{name}: not a name of Minari's kind, such as {PREFIX}pong/dqn-v0, with two letters or more before the /"
        ) from None
    return bare


def _root() -> Path:
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path("")).resolve()


def _seen_by_teacher(manifest: Manifest) -> NDArray[Any]:
    """What the teacher alone saw, `[M, F]`, numbered as the observations of the dataset are."""
    blocks = [read_block(manifest.folder / entry["file"], [SEEN]).columns[SEEN] for entry in manifest.blocks]
    return np.concatenate([seen.reshape(len(seen), -1) for seen in blocks])


def _about(name: str, metadata: dict[str, Any], source: Any) -> tuple[dict[str, Any], PolicySpec, PolicySpec | None]:
    """The environment, the spec and, where it was recorded, that of the teacher's view; ours where we wrote them."""
    if isinstance(metadata.get(OURS), str):
        try:
            ours = json.loads(metadata[OURS])
            seen = PolicySpec.from_json(ours[TEACHER_SPEC]) if TEACHER_SPEC in ours else None
            return dict(ours["env"]), PolicySpec.from_json(ours["spec"]), seen
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(f"{PREFIX}{name}: metadata: {OURS}: {error}") from None
    env_id, kwargs = f"{PREFIX}{name}", {}
    if isinstance(metadata.get("env_spec"), str):
        about = json.loads(metadata["env_spec"])
        env_id, kwargs = str(about.get("id", env_id)), dict(about.get("kwargs") or {})
    spec = spec_from_spaces(env_id, source.observation_space, source.action_space)
    return dataclasses.asdict(EnvConfig(env_id, kwargs)), spec, None


def _spaces(spec: PolicySpec) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    entries = {key: _obs_space(part) for key, part in spec.entries.items()}
    head = spec.head
    actions: spaces.Space[Any]
    if head.kind in ("categorical", "q_values"):
        actions = spaces.Discrete(head.nvec[0])
    elif head.kind == "multi_categorical":
        actions = spaces.MultiDiscrete(list(head.nvec))
    elif head.kind == "bernoulli":
        actions = spaces.MultiBinary(head.nvec[0])
    else:
        actions = spaces.Box(np.array(head.low, np.float32), np.array(head.high, np.float32))
    return spaces.Dict(entries) if spec.parts else entries[""], actions


def _obs_space(part: ObsPart) -> spaces.Space[Any]:
    if part.nvec and not part.shape:
        return spaces.Discrete(part.nvec[0])
    if part.nvec:
        return spaces.MultiDiscrete(np.array(part.nvec).reshape(part.shape))
    dtype = np.dtype(part.dtype)
    if dtype.kind in "iu":
        return spaces.Box(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max), part.shape, dtype.type)
    return spaces.Box(-math.inf, math.inf, part.shape, dtype.type)


def _shown(data: Dataset, rows: NDArray[np.int64]) -> Any:
    """The observations of an episode, `[T + 1, ...]`, the last one included; of dicts each entry."""
    import torch

    whole = torch.cat([data.observations(rows), data.next_observations(rows[-1:])])
    if not data.spec.parts:
        return whole.numpy()
    return {
        key: entry.numpy().astype(data.spec.entries[key].dtype) for key, entry in split_parts(whole, data.spec).items()
    }


def _one_longer(column: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([column, np.zeros_like(column[:1])])


def _info(column: NDArray[Any]) -> Any:
    """As Minari can read it again, which arrays of single numbers are not."""
    return column if column.ndim > 1 else column.tolist()


def _our_infos(name: str, number: int, episode: Any, spec: PolicySpec, seen: PolicySpec | None) -> dict[str, Any]:
    """The infos of an episode that we wrote; raises CorruptArtifactError for what does not fit the specs."""
    infos = episode.infos if isinstance(episode.infos, dict) else {}
    widths = {"teacher": spec.head.num_params, "next_teacher": spec.head.num_params}
    if seen is not None:
        widths[SEEN] = math.prod(seen.obs_shape)
    for info, width in widths.items():
        found, wanted = np.shape(infos.get(info, ())), (len(episode) + 1, width)
        if found != wanted:
            raise CorruptArtifactError(
                f"{PREFIX}{name}: episode {number}: infos: {info}: found shape {found}, expected {wanted}; export it "
                "again"
            )
    if seen is None:
        return infos
    return {**infos, SEEN: np.asarray(infos[SEEN], seen.obs_dtype).reshape(-1, *seen.obs_shape)}


def _rounded(episode: Any, spec: PolicySpec) -> set[str]:
    """What of an episode float32 cannot tell exactly."""
    kept = {"rewards": [episode.rewards], "actions": [episode.actions]}
    kept["observations"] = [episode.observations[key] for key, _ in spec.parts]
    return {what for what, arrays in kept.items() if any(map(_is_rounded, arrays))}


def _is_rounded(numbers: Any) -> bool:
    array = np.asarray(numbers)
    return array.dtype == np.float64 and not np.array_equal(array, array.astype(np.float32), equal_nan=True)


def _episode_columns(episode: Any, number: int, spec: PolicySpec, infos: dict[str, Any]) -> Columns:
    """An episode of Minari as the steps of a block and the one observation that they led to at last.

    `infos` are those that we wrote, none of an episode from elsewhere.
    """
    steps = len(episode)
    shown = _flat(episode.observations, spec)
    cut = bool(np.asarray(infos["cut"])[0]) if "cut" in infos else False
    action = np.asarray(episode.actions)
    if spec.head.kind not in ("categorical", "q_values"):
        action = action.reshape(steps, -1)
    truncated = np.asarray(episode.truncations, bool) & ~np.asarray(episode.terminations, bool)
    columns: Columns = {
        "obs": shown if spec.frames is None else shown[:, -1],
        "action": action.astype(np.int64) if spec.head.discrete else action.astype(np.float32),
        "reward": np.asarray(episode.rewards, np.float32),
        "terminated": np.asarray(episode.terminations, bool),
        "truncated": truncated & (not cut),
        "ended": np.arange(steps) == steps - 1,
        "episode": np.full(steps, number, np.int32),
        "step": np.arange(steps, dtype=np.int32),
        "actor": np.asarray(infos.get("actor", np.zeros(steps)), np.int8)[:steps],
        "slot": np.zeros(steps, np.int16),
        **_labels(infos, action, spec.head, steps),
    }
    if SEEN in infos:
        columns[SEEN] = infos[SEEN]
    columns = {name: column if name in ("obs", SEEN) else _one_longer(column) for name, column in columns.items()}
    columns["kind"] = np.append(np.full(steps, STEP, np.int8), np.int8(FINAL))
    return columns


def _flat(observations: Any, spec: PolicySpec) -> NDArray[Any]:
    if not spec.parts:
        return np.asarray(observations)
    entries = [np.asarray(observations[key], np.float32) for key, _ in spec.parts]
    return np.concatenate([entry.reshape(len(entry), -1) for entry in entries], 1)


def _labels(infos: dict[str, Any], action: NDArray[Any], head: ActionHead, steps: int) -> Columns:
    """The teacher's labels, or the actions that were taken."""
    if "teacher" in infos:
        return {name: np.asarray(infos[name])[:steps].astype(np.float32) for name in LABELS if name in infos}
    taken: NDArray[Any]
    if not head.discrete:
        taken = action.astype(np.float32)
    elif head.kind == "bernoulli":
        taken = FIRM * (2 * action.astype(np.float32) - 1)
    else:
        choices = action.reshape(steps, -1).astype(np.int64)
        taken = FIRM * np.concatenate([np.eye(n, dtype=np.float32)[choices[:, i]] for i, n in enumerate(head.nvec)], 1)
    return {"teacher": taken, "next_teacher": np.concatenate([taken[1:], taken[-1:]])}


def _write(folder: Path, number: int, episodes: list[Columns]) -> dict[str, Any]:
    """One block of whole episodes, the observations that they led to at its end."""
    joined = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    order = np.argsort(joined["kind"] == FINAL, kind="stable")
    block = Block({name: column[order] for name, column in joined.items()}, "")
    key = BlockKey(0, 0, number)
    write_block(folder / key.file, block)
    return manifest_entry(key, folder / key.file, block, int((joined["kind"] == STEP).sum()))
