"""Datasets of Minari as ours. They may come from anybody: what is damaged is refused, and nothing in them is run."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.core.errors import ConfigError, CorruptArtifactError, RLDistillError, did_you_mean, short_repr
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import FINAL, STEP, Block, BlockKey, write_block
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import SCHEMA, TEACHER_SPEC, Manifest, manifest_entry, open_derived
from rldistill.data.minari.episode import AGAIN, Columns, episode_columns, notes_of, our_infos
from rldistill.data.minari.export import OURS, PREFIX, bare_name, datasets_root, installed_minari
from rldistill.envs.config import EnvConfig
from rldistill.envs.spaces import spec_from_spaces
from rldistill.io.atomic import Mode, read_json
from rldistill.io.hdf5 import arrays_inside
from rldistill.io.progress import Progress, stage_progress

BLOCK = 4_096
FORMATS = ("arrow", "hdf5", "parquet")
MOST_ARRAYS, DEFLATED = 1_000_000, 1_100


def import_minari(name: str, folder: Path, *, mode: Mode = "new", progress: Progress | bool = True) -> Dataset:
    """Read Minari's dataset `name`, which has to be on this machine, into a dataset of ours.

    What was recorded elsewhere is labelled with the actions that were taken, whatever its infos say; `relabel` it with
    a teacher. What `export_minari` wrote has its teacher's labels again. Rewards, actions and the entries of dicts
    become float32, as in all datasets, with a warning where that rounds them. What fails leaves no dataset in `folder`.

    Raises:
        ConfigError: there is none of that name, its spaces are not supported, or `folder` holds something already.
        CorruptArtifactError: it is damaged, lacks what is needed or holds numbers that cannot be.
        UntrustedFileError: it leads to other files.
    """
    installed_minari()
    name = bare_name(name)
    metadata = _metadata(name)
    told = _env(name, metadata)
    source = _opened(name, metadata)
    env, spec, seen = _about(name, metadata, told, source)
    document = {"schema": SCHEMA, "env": env, "spec": spec.to_json()}
    if seen is not None:
        document[TEACHER_SPEC] = seen.to_json()
    _require_finite(name, document)
    notes: set[str] = set()
    episodes = partial(_episodes, name, metadata, source, spec, seen, notes)
    if mode == "overwrite" and (folder / "manifest.json").exists():
        for _ in episodes():  # a dataset is not thrown away for one that turns out to be damaged
            pass
    with open_derived(folder, [], mode), stage_progress(progress, "import", "steps") as report:
        rounds = {"0": {"envs_per_stream": 1, "num_streams": 1, "source": f"{PREFIX}{name}"}}
        manifest = Manifest.derived(folder, Manifest(folder, document), spec, rounds)
        entries: list[dict[str, Any]] = []
        for together in _batches(episodes()):
            entries.append(_write(folder, len(entries), together))
            report.update(sum(entry["steps"] for entry in entries), metadata["total_steps"])
        manifest.add_blocks(entries)
        data = Dataset.read([folder])
    for note in sorted(notes):
        warnings.warn(f"{PREFIX}{name}: {note}", stacklevel=2)
    return data


def _metadata(name: str) -> dict[str, Any]:
    """What `metadata.json` tells, as far as it is needed to be safe with Minari."""
    from minari.serialization import deserialize_space

    root = datasets_root()
    path = root / name / "data" / "metadata.json"
    if not path.exists():
        here = [str(file.parents[1].relative_to(root)) for file in root.rglob("data/metadata.json")]
        hint = did_you_mean(name, here)
        raise ConfigError(f"{PREFIX}{name}: Minari has no such dataset here.{hint} `minari download {name}` fetches it")
    try:
        metadata = read_json(path)
    except CorruptArtifactError as error:
        raise CorruptArtifactError(f"{PREFIX}{name}: {error}; {AGAIN}") from None
    where = f"{PREFIX}{name}: metadata.json"
    if not isinstance(metadata, dict):
        raise CorruptArtifactError(f"{where}: found {short_repr(metadata)}, expected an object; {AGAIN}")
    for field in ("observation_space", "action_space"):  # without them Minari makes an environment of the file's choice
        try:
            deserialize_space(metadata.get(field))
        except Exception as error:  # of a damaged space Gymnasium raises whatever it likes
            found = short_repr(metadata.get(field))
            raise CorruptArtifactError(
                f"{where}: {field}: found {found}, expected a space as Minari writes it ({_said(error)}); {AGAIN}"
            ) from None
    for field in ("total_episodes", "total_steps"):
        if type(metadata.get(field)) is not int:
            found = short_repr(metadata.get(field))
            raise CorruptArtifactError(f"{where}: {field}: found {found}, expected a whole number; {AGAIN}")
    if metadata.get("data_format") not in FORMATS:
        found = short_repr(metadata.get("data_format"))
        raise CorruptArtifactError(f"{where}: data_format: found {found}, expected one of {', '.join(FORMATS)}")
    return metadata


def _opened(name: str, metadata: dict[str, Any]) -> Any:
    """Minari's dataset, in which there are as many episodes as its metadata tell."""
    total = metadata["total_episodes"]
    try:
        stored = _episodes_stored(name, metadata["data_format"])
        if stored != total:
            raise CorruptArtifactError(f"{PREFIX}{name}: found {stored} episodes, expected {total}; {AGAIN}")
        source = installed_minari().load_dataset(name)
    except RLDistillError:
        raise
    except Exception as error:  # damaged files make h5py, Arrow and Minari raise whatever they like
        raise CorruptArtifactError(f"{PREFIX}{name}: Minari cannot read it ({_said(error)}); {AGAIN}") from None
    if not total:
        raise CorruptArtifactError(f"{PREFIX}{name}: it holds no episodes, so there is nothing to import")
    return source


def _episodes_stored(name: str, data_format: str) -> int:
    """How many episodes there are on disk; refuses what leads to other files."""
    data = datasets_root() / name / "data"
    if data_format != "hdf5":
        return sum(item.name.isdigit() for item in data.iterdir() if item.is_dir())
    import h5py

    with h5py.File(data / "main_data.hdf5", "r") as file:
        for _ in arrays_inside(file, f"{PREFIX}{name}: main_data.hdf5", MOST_ARRAYS, DEFLATED):
            pass
        return len(file)


def _env(name: str, metadata: dict[str, Any]) -> EnvConfig:
    """What the metadata tell of the environment, which nobody makes."""
    text = metadata.get("env_spec")
    if text is None:
        return EnvConfig(f"{PREFIX}{name}")
    try:
        told = json.loads(text)
        env = EnvConfig(told["id"], told.get("kwargs") or {})
        if not isinstance(env.id, str) or not isinstance(env.kwargs, dict):
            raise TypeError(f"the id is {short_repr(env.id)} and kwargs are {short_repr(env.kwargs)}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptArtifactError(
            f"{PREFIX}{name}: metadata.json: env_spec: expected JSON with an id and kwargs ({_said(error)}); {AGAIN}"
        ) from None
    return env


def _about(
    name: str, metadata: dict[str, Any], told: EnvConfig, source: Any
) -> tuple[dict[str, Any], PolicySpec, PolicySpec | None]:
    """The environment, the spec and, where it was recorded, that of the teacher's view; ours where we wrote them."""
    if isinstance(metadata.get(OURS), str):
        try:
            ours = json.loads(metadata[OURS])
            EnvConfig(**ours["env"])
            seen = PolicySpec.from_json(ours[TEACHER_SPEC]) if TEACHER_SPEC in ours else None
            return dict(ours["env"]), PolicySpec.from_json(ours["spec"]), seen
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptArtifactError(f"{PREFIX}{name}: metadata.json: {OURS}: {_said(error)}; {AGAIN}") from None
    return dataclasses.asdict(told), spec_from_spaces(told.id, source.observation_space, source.action_space), None


def _require_finite(name: str, document: dict[str, Any]) -> None:
    """Raise ConfigError for what JSON cannot hold, before anything is written."""
    try:
        json.dumps(document, allow_nan=False)
    except ValueError:
        raise ConfigError(
            f"{PREFIX}{name}: found infinite numbers or NaN in the bounds of its actions or the arguments of its "
            "environment, expected finite ones; record it again in such a space"
        ) from None


def _episodes(
    name: str, metadata: dict[str, Any], source: Any, spec: PolicySpec, seen: PolicySpec | None, notes: set[str]
) -> Iterator[Columns]:
    """The episodes as columns, one after the other; what is not quite as it was recorded is added to `notes`."""
    steps, first = 0, dict[str, tuple[int, ...]]()
    for number in range(metadata["total_episodes"]):
        where = f"{PREFIX}{name}: episode {number}"
        try:
            with _no_ghostscript():
                episode = next(iter(source.iterate_episodes([number])))
            infos = our_infos(where, episode, spec, seen) if isinstance(metadata.get(OURS), str) else {}
            columns = episode_columns(where, episode, number, spec, infos)
            notes |= notes_of(episode, spec)
        except RLDistillError:
            raise
        except Exception as error:  # damaged files make h5py, Arrow and Minari raise whatever they like
            raise CorruptArtifactError(
                f"{where}: found nothing that can be read ({_said(error)}), expected an episode in its "
                f"observation_space and action_space; {AGAIN}"
            ) from None
        found = {key: column.shape[1:] for key, column in columns.items()}
        first = first or found
        for key in {**first, **found}:
            if found.get(key) != first.get(key):
                raise CorruptArtifactError(
                    f"{where}: infos: {key}: found shape {found.get(key)} of a step, expected {first.get(key)} as in "
                    f"episode 0; {AGAIN}"
                )
        steps += len(episode)
        yield columns
    if steps != metadata["total_steps"]:
        total = metadata["total_steps"]
        raise CorruptArtifactError(f"{PREFIX}{name}: found {steps} steps in its episodes, expected {total}; {AGAIN}")


def _batches(episodes: Iterator[Columns]) -> Iterator[list[Columns]]:
    """As many episodes together as make a block."""
    waiting: list[Columns] = []
    for columns in episodes:
        waiting.append(columns)
        if sum(int((part["kind"] == STEP).sum()) for part in waiting) >= BLOCK:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


@contextmanager
def _no_ghostscript() -> Iterator[None]:
    """Pillow would hand a picture that is PostScript to Ghostscript, which runs it."""
    from PIL import EpsImagePlugin

    before = EpsImagePlugin.gs_binary
    EpsImagePlugin.gs_binary = False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _write(folder: Path, number: int, episodes: list[Columns]) -> dict[str, Any]:
    """One block of whole episodes, the observations that they led to at its end."""
    joined = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    order = np.argsort(joined["kind"] == FINAL, kind="stable")
    block = Block({name: column[order] for name, column in joined.items()}, "")
    key = BlockKey(0, 0, number)
    write_block(folder / key.file, block)
    return manifest_entry(key, folder / key.file, block, int((joined["kind"] == STEP).sum()))
