"""Import of Minari's datasets, which may come from anybody: damage is refused, and nothing in them is executed."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium import spaces
from pydantic import ConfigDict, Field, Json, PlainValidator

from rldistill.core.entries import named_values, walk
from rldistill.core.errors import (
    ConfigError,
    CorruptArtifactError,
    RLDistillError,
    did_you_mean,
    error_text,
    short_repr,
)
from rldistill.core.spec import EnvConfig
from rldistill.data.blocks import FINAL, Block, BlockKey, Columns
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import FILE, BlockEntry, Manifest, Origin, Round, store_block
from rldistill.data.merge import open_derived
from rldistill.data.minari import PREFIX, open_minari
from rldistill.data.minari.episode import ADVICE, conversion_notes, damaged, episode_columns
from rldistill.envs.entries import CONTAINERS
from rldistill.envs.spaces import spec_from_spaces
from rldistill.io.atomic import Document, Mode, read_foreign_json
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.untrusted import iterate_arrays, require_confined

BLOCK_STEPS = 4_096
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
    source = _Source.open(name)
    rounds = {0: Round(envs_per_stream=1, teacher=None, inputs={"source": source.where})}
    manifest = Manifest.new(folder, source.origin, rounds)
    try:
        json.dumps(manifest.model_dump(), allow_nan=False)
    except ValueError:
        raise ConfigError(
            f"{source.where}: found infinite numbers or NaN in the bounds of its actions or the arguments of its "
            "environment, expected finite ones. Record it again in such a space."
        ) from None
    if mode == "overwrite" and (folder / FILE).exists():
        for _ in source.episodes():  # before anything is discarded, since the source may be damaged
            pass
    with open_derived(folder, [], mode), stage_progress(progress, "import", "steps") as report:
        entries, waiting = list[BlockEntry](), list[Columns]()
        for number, columns in enumerate(source.episodes(), 1):
            waiting.append(columns)
            is_last = number == source.metadata.total_episodes
            if is_last or sum(len(episode["kind"]) - 1 for episode in waiting) >= BLOCK_STEPS:
                joined = {key: np.concatenate([episode[key] for episode in waiting]) for key in columns}
                order = np.argsort(joined["kind"] == FINAL, kind="stable")
                block = Block({key: column[order] for key, column in joined.items()}, "")
                entries.append(store_block(folder, BlockKey(0, 0, len(entries)), block))
                report.update(sum(entry.steps for entry in entries), source.metadata.total_steps)
                waiting = []
        manifest.add_blocks(entries)
        data = Dataset.read([folder])
    for note in sorted(source.notes):
        warnings.warn(f"{source.where}: {note}", stacklevel=2)
    return data


def _parse_space(text: Any) -> Any:
    from minari.serialization import deserialize_space

    try:
        return deserialize_space(text)
    except Exception as error:  # Gymnasium raises any error for a damaged space
        raise ValueError(
            f"found {short_repr(text)}, expected a space as Minari writes it ({error_text(error)})"
        ) from None


class _EnvSpec(Document):
    model_config = ConfigDict(extra="ignore")

    id: str
    kwargs: dict[str, Any] | None = None


class _Metadata(Document):
    """`metadata.json` of a dataset of Minari.

    The spaces are required, since without them Minari would make the environment that the file names.
    """

    model_config = ConfigDict(extra="ignore")
    advice = ADVICE

    observation_space: Annotated[Any, PlainValidator(_parse_space)]
    action_space: Annotated[Any, PlainValidator(_parse_space)]
    total_episodes: int
    total_steps: int
    data_format: Literal["arrow", "hdf5", "parquet"]
    env_spec: Json[_EnvSpec] | None = None
    exported: Json[Origin] | None = Field(None, alias="rldistill")


def _flat_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return a dict space whose entries have dotted names, without texts; another space unchanged."""
    if not isinstance(space, CONTAINERS):
        return space
    kept = OrderedDict((key, part) for key, part in walk(space, CONTAINERS) if not isinstance(part, spaces.Text))
    return spaces.Dict(kept) if kept else space


@dataclass
class _Source:
    """Dataset of Minari that is safe to read, and notes on episodes that are not exactly as recorded."""

    where: str
    metadata: _Metadata
    minari: Any
    origin: Origin
    notes: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, name: str) -> _Source:
        """Check the metadata and the files of a dataset before Minari reads them."""
        package, name, folder = open_minari(name)
        where, path = f"{PREFIX}{name}", folder / "data" / "metadata.json"
        if not path.exists():
            root = folder.parents[name.count("/")]
            hint = did_you_mean(name, [str(file.parents[1].relative_to(root)) for file in root.rglob("data/*.json")])
            raise ConfigError(f"{where}: Minari has no such dataset here.{hint} `minari download {name}` fetches it")
        try:
            document = read_foreign_json(path)
        except CorruptArtifactError as error:
            raise damaged(where, str(error)) from None
        metadata = _Metadata.parse(document, Path(f"{where}: metadata.json"))
        require_confined(folder)
        with _reading(where):
            if metadata.data_format == "hdf5":
                path = folder / "data" / "main_data.hdf5"
                arrays = iterate_arrays(path, f"{where}: main_data.hdf5", MAX_ARRAYS, MAX_COMPRESSION_RATIO)
                stored = len({name.partition("/")[0] for name, _ in arrays})
            else:
                stored = sum(item.name.isdigit() for item in (folder / "data").iterdir() if item.is_dir())
            if stored != metadata.total_episodes:
                raise damaged(where, f"found {stored} episodes, expected {metadata.total_episodes}")
            minari = package.load_dataset(name)
        if not stored:
            raise CorruptArtifactError(f"{where}: it has no episodes. Choose another dataset.")
        if (origin := metadata.exported) is None:
            env_spec = metadata.env_spec or _EnvSpec(id=where)
            env = EnvConfig(env_spec.id, env_spec.kwargs or {})
            if np.any(getattr(metadata.action_space, "start", 0)):
                raise ConfigError(f"{where}: actions {metadata.action_space}. Use Discrete or MultiDiscrete from 0.")
            spec = spec_from_spaces(env.id, _flat_space(metadata.observation_space), metadata.action_space)
            origin = Origin(env=env, spec=spec, teacher_spec=None)
        return cls(where, metadata, minari, origin)

    def episodes(self) -> Iterator[Columns]:
        """Yield the columns of each episode, and add to the notes."""
        steps, first = 0, dict[str, tuple[int, ...]]()
        for number in range(self.metadata.total_episodes):
            where = f"{self.where}: episode {number}"
            with _reading(where):
                episode = next(iter(self.minari.iterate_episodes([number])))
                if self.metadata.exported is None and isinstance(episode.observations, dict | tuple):
                    flat = named_values(episode.observations)
                    if dropped := [key for key in flat if key not in self.origin.spec.entries]:
                        self.notes.add(f"the text of {', '.join(dropped)} in its observations was left out")
                    episode = replace(episode, observations=flat)
                columns = episode_columns(where, episode, number, self.origin, self.metadata.exported is not None)
                self.notes |= conversion_notes(episode, self.origin.spec)
            shapes = {key: column.shape[1:] for key, column in columns.items()}
            first = first or shapes
            if shapes != first:
                raise damaged(where, f"infos: found shapes {shapes}, expected {first} as in episode 0")
            steps += len(episode)
            yield columns
        if steps != self.metadata.total_steps:
            raise damaged(self.where, f"found {steps} steps in its episodes, expected {self.metadata.total_steps}")


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Convert errors, and keep Pillow from passing PostScript images to Ghostscript, which executes them."""
    from PIL import EpsImagePlugin

    before = EpsImagePlugin.gs_binary
    EpsImagePlugin.gs_binary = False
    try:
        yield
    except RLDistillError:
        raise
    except Exception as error:  # h5py, Arrow and Minari raise any error for damaged files
        raise damaged(where, f"Minari cannot read it ({error_text(error)})") from None
    finally:
        EpsImagePlugin.gs_binary = before
