"""Import of Minari's datasets, which may come from anybody: damage is refused, and nothing in them is executed."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.core.errors import (
    ConfigError,
    CorruptArtifactError,
    RLDistillError,
    did_you_mean,
    error_text,
    short_repr,
)
from rldistill.core.spec import EnvConfig
from rldistill.data.blocks import FINAL, STEP, Block, BlockKey, Columns
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import FILE, BlockEntry, Manifest, Origin, Round, open_derived, store_block
from rldistill.data.minari.common import ORIGIN, PREFIX, datasets_root, import_package, parse_name
from rldistill.data.minari.episode import ADVICE, conversion_notes, episode_columns, exported_infos
from rldistill.envs.spaces import spec_from_spaces
from rldistill.io.atomic import Mode, read_json
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.untrusted import iterate_arrays

BLOCK_STEPS = 4_096
FORMATS = ("arrow", "hdf5", "parquet")
MAX_ARRAYS, MAX_COMPRESSION_RATIO = 1_000_000, 1_100


def import_minari(name: str, folder: Path | str, *, mode: Mode = "new", progress: Progress | bool = True) -> Dataset:
    """Convert Minari's dataset `name`, which has to be on this machine, to a dataset of ours.

    Data from elsewhere are labeled with their actions; `relabel` them with a teacher. Data that `export_minari` wrote
    have the labels of their teacher. Rewards, actions and the entries of dicts become float32, with a warning if that
    rounds them. An error leaves no dataset in `folder`.

    Raises:
        ConfigError: There is no dataset of that name, its spaces are not supported, or `folder` exists.
        CorruptArtifactError: It is damaged or incomplete, or has invalid numbers.
        UntrustedFileError: It refers to other files.
    """
    folder = Path(folder)
    import_package()
    source = _Source.open(parse_name(name))
    rounds = {0: Round(envs_per_stream=1, teacher=None, inputs={"source": source.where})}
    manifest = Manifest.new(folder, source.origin, rounds)
    source.require_finite(manifest)
    if mode == "overwrite" and (folder / FILE).exists():
        for _ in source.episodes():  # before anything is discarded, since the source may be damaged
            pass
    source.notes.clear()
    with open_derived(folder, [], mode), stage_progress(progress, "import", "steps") as report:
        entries: list[BlockEntry] = []
        for episodes in _batches(source.episodes()):
            entries.append(_write(folder, len(entries), episodes))
            report.update(sum(entry.steps for entry in entries), source.metadata["total_steps"])
        manifest.add_blocks(entries)
        data = Dataset.read([folder])
    for note in sorted(source.notes):
        warnings.warn(f"{source.where}: {note}", stacklevel=2)
    return data


@dataclasses.dataclass
class _Source:
    """Dataset of Minari with its checked `metadata.json`, and notes on episodes that are not exactly as recorded."""

    where: str
    metadata: dict[str, Any]
    minari: Any
    origin: Origin
    notes: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def open(cls, name: str) -> _Source:
        """Open a dataset whose metadata and files are safe to read with Minari."""
        metadata = _metadata(name)
        env = _env(name, metadata)
        minari = _open(name, metadata)
        return cls(f"{PREFIX}{name}", metadata, minari, _origin(name, metadata, env, minari))

    @property
    def is_exported(self) -> bool:
        """True if we exported the dataset."""
        return isinstance(self.metadata.get(ORIGIN), str)

    def require_finite(self, manifest: Manifest) -> None:
        """Raise ConfigError for numbers that JSON cannot store, before anything is written."""
        try:
            json.dumps(manifest.model_dump(), allow_nan=False)
        except ValueError:
            raise ConfigError(
                f"{self.where}: found infinite numbers or NaN in the bounds of its actions or the arguments of its "
                "environment, expected finite ones. Record it again in such a space."
            ) from None

    def episodes(self) -> Iterator[Columns]:
        """Yield the columns of each episode, and add to the notes."""
        steps, first = 0, dict[str, tuple[int, ...]]()
        for number in range(self.metadata["total_episodes"]):
            columns = self._episode(number)
            shapes = {key: column.shape[1:] for key, column in columns.items()}
            first = first or shapes
            for key in {**first, **shapes}:
                if shapes.get(key) != first.get(key):
                    raise CorruptArtifactError(
                        f"{self.where}: episode {number}: infos: {key}: found shape {shapes.get(key)} of a step, "
                        f"expected {first.get(key)} as in episode 0. {ADVICE}"
                    )
            steps += int((columns["kind"] == STEP).sum())
            yield columns
        if steps != self.metadata["total_steps"]:
            total = self.metadata["total_steps"]
            raise CorruptArtifactError(f"{self.where}: found {steps} steps in its episodes, expected {total}. {ADVICE}")

    def _episode(self, number: int) -> Columns:
        where, spec = f"{self.where}: episode {number}", self.origin.spec
        try:
            with _no_ghostscript():
                episode = next(iter(self.minari.iterate_episodes([number])))
            infos = exported_infos(where, episode, spec, self.origin.teacher_spec) if self.is_exported else {}
            columns = episode_columns(where, episode, number, spec, infos)
            self.notes |= conversion_notes(episode, spec)
        except RLDistillError:
            raise
        except Exception as error:  # h5py, Arrow and Minari raise any error for damaged files
            raise CorruptArtifactError(
                f"{where}: found nothing that can be read ({error_text(error)}), expected an episode in its "
                f"observation_space and action_space. {ADVICE}"
            ) from None
        return columns


def _metadata(name: str) -> dict[str, Any]:
    """Return `metadata.json`, after the checks that make it safe to open the dataset with Minari."""
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
        raise CorruptArtifactError(f"{PREFIX}{name}: {error}. {ADVICE}") from None
    where = f"{PREFIX}{name}: metadata.json"
    if not isinstance(metadata, dict):
        raise CorruptArtifactError(f"{where}: found {short_repr(metadata)}, expected an object. {ADVICE}")
    for field in ("observation_space", "action_space"):  # without them Minari makes the environment that the file names
        try:
            deserialize_space(metadata.get(field))
        except Exception as error:  # Gymnasium raises any error for a damaged space
            found = short_repr(metadata.get(field))
            raise CorruptArtifactError(
                f"{where}: {field}: found {found}, expected a space as Minari writes it ({error_text(error)}). {ADVICE}"
            ) from None
    for field in ("total_episodes", "total_steps"):
        if type(metadata.get(field)) is not int:
            found = short_repr(metadata.get(field))
            raise CorruptArtifactError(f"{where}: {field}: found {found}, expected a whole number. {ADVICE}")
    if metadata.get("data_format") not in FORMATS:
        found = short_repr(metadata.get("data_format"))
        raise CorruptArtifactError(f"{where}: data_format: found {found}, expected one of {', '.join(FORMATS)}")
    return metadata


def _open(name: str, metadata: dict[str, Any]) -> Any:
    """Return Minari's dataset; raise CorruptArtifactError if the number of its episodes is not that of its metadata."""
    total = metadata["total_episodes"]
    try:
        stored = _episodes_stored(name, metadata["data_format"])
        if stored != total:
            raise CorruptArtifactError(f"{PREFIX}{name}: found {stored} episodes, expected {total}. {ADVICE}")
        source = import_package().load_dataset(name)
    except RLDistillError:
        raise
    except Exception as error:  # h5py, Arrow and Minari raise any error for damaged files
        raise CorruptArtifactError(f"{PREFIX}{name}: Minari cannot read it ({error_text(error)}). {ADVICE}") from None
    if not total:
        raise CorruptArtifactError(f"{PREFIX}{name}: it has no episodes. Choose another dataset.")
    return source


def _episodes_stored(name: str, data_format: str) -> int:
    """Return the number of episodes on disk; raise UntrustedFileError if the file refers to others."""
    data = datasets_root() / name / "data"
    if data_format != "hdf5":
        return sum(item.name.isdigit() for item in data.iterdir() if item.is_dir())
    import h5py

    with h5py.File(data / "main_data.hdf5", "r") as file:
        for _ in iterate_arrays(file, f"{PREFIX}{name}: main_data.hdf5", MAX_ARRAYS, MAX_COMPRESSION_RATIO):
            pass
        return len(file)


def _env(name: str, metadata: dict[str, Any]) -> EnvConfig:
    """Return the environment of the metadata, which is never made."""
    text = metadata.get("env_spec")
    if text is None:
        return EnvConfig(f"{PREFIX}{name}")
    try:
        env_spec = json.loads(text)
        env = EnvConfig(env_spec["id"], env_spec.get("kwargs") or {})
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptArtifactError(
            f"{PREFIX}{name}: metadata.json: env_spec: expected JSON with an id and kwargs ({error_text(error)}). "
            f"{ADVICE}"
        ) from None
    return env


def _origin(name: str, metadata: dict[str, Any], env: EnvConfig, minari: Any) -> Origin:
    """Return the environment and the specifications; ours if we exported the dataset."""
    if isinstance(metadata.get(ORIGIN), str):
        path = Path(f"{PREFIX}{name}: metadata.json: {ORIGIN}")
        try:
            return Origin.parse(json.loads(metadata[ORIGIN]), path)
        except (ValueError, RecursionError) as error:
            raise CorruptArtifactError(f"{path}: {error_text(error)}. {ADVICE}") from None
    spec = spec_from_spaces(env.id, minari.observation_space, minari.action_space)
    return Origin(env=env, spec=spec, teacher_spec=None)


def _batches(episodes: Iterator[Columns]) -> Iterator[list[Columns]]:
    """Yield the episodes in groups of at least a block's steps."""
    waiting: list[Columns] = []
    for columns in episodes:
        waiting.append(columns)
        if sum(int((part["kind"] == STEP).sum()) for part in waiting) >= BLOCK_STEPS:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


@contextmanager
def _no_ghostscript() -> Iterator[None]:
    """Keep Pillow from passing PostScript images to Ghostscript, which executes them."""
    from PIL import EpsImagePlugin

    before = EpsImagePlugin.gs_binary
    EpsImagePlugin.gs_binary = False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before


def _write(folder: Path, number: int, episodes: list[Columns]) -> BlockEntry:
    """Write a block of whole episodes, with their last observations at its end."""
    joined = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    order = np.argsort(joined["kind"] == FINAL, kind="stable")
    block = Block({name: column[order] for name, column in joined.items()}, "")
    return store_block(folder, BlockKey(0, 0, number), block)
