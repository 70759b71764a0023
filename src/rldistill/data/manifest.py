"""Manifest of a dataset: its environment, its rounds of collection and their blocks."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    PositiveInt,
    ValidationError,
    model_validator,
)

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.fields import Stored, explain, read
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.blocks import (
    BROKEN,
    RESUME,
    STEP,
    Block,
    BlockKey,
    count_rows,
    read_block,
    require_content,
    require_counts,
    write_block,
)
from rldistill.io.atomic import Document, read_json, sha256_file, write_json
from rldistill.io.stage_inputs import StageInputs, canonical
from rldistill.io.storage import withdraw

FILE, CONDENSE = "manifest.json", "condense"
DEFAULT_GAMMA = 0.99


def _parse_env(value: Any) -> EnvConfig:
    try:
        env: EnvConfig = read(EnvConfig, value)
    except ValidationError as error:
        raise ValueError(explain(error.errors()[0])) from None
    return env


Env = Annotated[EnvConfig, PlainValidator(_parse_env), PlainSerializer(dataclasses.asdict)]
Spec = Annotated[PolicySpec, Stored(), PlainSerializer(PolicySpec.to_json)]


class BlockEntry(Document):
    """One block: its file, its place in the collection, and the hash of its bytes."""

    file: Annotated[str, Field(pattern=r"^blocks/[\w-]+\.parquet$")]
    round: NonNegativeInt
    stream: NonNegativeInt
    block: NonNegativeInt
    steps: PositiveInt
    rows: Annotated[PositiveInt, Field(lt=1 << 31)]
    exact: bool
    sha256: str

    @property
    def key(self) -> BlockKey:
        """Place of the block."""
        return BlockKey(self.round, self.stream, self.block)


class Condensed(Document):
    """Choice of the steps of a condensed round, which stand alone.

    Attributes:
        keep: Number of training steps.
        weighted: True if the states were weighted with the cost of a mistake.
        gamma: Discount of their returns-to-go, which are stored since their episodes are not.
        steps: Environment steps that the whole data took.
        source: Hash of the whole data.
    """

    keep: PositiveInt
    weighted: bool
    gamma: Annotated[float, Field(ge=0, le=1)]
    steps: PositiveInt
    source: str


def _parse_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    if (choice := inputs.get(CONDENSE)) is not None:
        try:
            Condensed.model_validate(choice)
        except ValidationError as error:
            raise ValueError(f"{CONDENSE}.{explain(error.errors()[0])}") from None
    return inputs


class Round(Document):
    """One round of collection: its teacher, None if unknown, and the inputs that its data depend on."""

    envs_per_stream: PositiveInt
    teacher: str | None
    inputs: Annotated[dict[str, Any], AfterValidator(_parse_inputs)]

    @property
    def condensed(self) -> Condensed | None:
        """Choice of the steps, if they stand alone; None for those of whole episodes."""
        choice = self.inputs.get(CONDENSE)
        return None if choice is None else Condensed.model_validate(choice)


class Origin(Document):
    """Origin of the data.

    Attributes:
        env: Environment in which the data were collected.
        spec: Observations of the student, and the head of the labels.
        teacher_spec: Observations of the teacher, if they are stored beside those of the student.
    """

    env: Env
    spec: Spec
    teacher_spec: Spec | None


class Manifest(Origin, frozen=False):
    """`manifest.json` in the folder of a dataset.

    Attributes:
        folder: Folder of the dataset, which is not in the file.
        rounds: Rounds of collection, of which the last may be incomplete.
        blocks: Blocks of the complete rounds.
    """

    advice = 'Collect again with mode="overwrite" (`rldistill collect FILE --overwrite`).'

    schema_version: Literal[3] = Field(alias="schema")
    rounds: dict[int, Round]
    blocks: list[BlockEntry]
    folder: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        seen = set[BlockKey]()
        for block in self.blocks:
            if block.file != block.key.file:
                raise ValueError(f"blocks: {block.file} is not the file of {block.key}")
            if block.key in seen or block.round not in self.rounds or block.steps > block.rows:
                raise ValueError(f"blocks: {block.file} is there twice, in no round, or has more steps than rows")
            seen.add(block.key)
        return self

    @classmethod
    def new(cls, folder: Path, origin: Origin, rounds: Mapping[int, Round]) -> Manifest:
        """Return a manifest without blocks, which is not written yet."""
        fields = {name: getattr(origin, name) for name in Origin.model_fields}
        return cls(schema=3, folder=folder, **fields, rounds={**rounds}, blocks=[])

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder; raise CorruptArtifactError if it is missing or not valid."""
        path = folder / FILE
        return cls.parse(read_json(path, cls.advice) | {"folder": str(folder)}, path)

    def begin_round(self, number: int, inputs: StageInputs) -> Manifest:
        """Add a round of this manifest to the one in its folder, if there is one, and write it.

        Raises:
            ConfigError: The dataset has another environment or teacher, or the round began with other `inputs`.
        """
        path, round = self.folder / FILE, self.rounds[number]
        manifest = Manifest.read(self.folder) if path.exists() else self
        if number in manifest.rounds and manifest.rounds[number].condensed:
            raise ConfigError(
                f"{self.folder}: it is condensed. Collect into another folder, or add steps (`rldistill dataset "
                "extend`)."
            )
        assert round.teacher is not None
        manifest.require_teacher(round.teacher, number)
        if any(known.teacher is None for known in manifest.rounds.values()):
            warnings.warn(f"{path}: the teacher of its labels is unknown; expected {round.teacher}", stacklevel=3)
        known = {"env": canonical(manifest.env), "spec": canonical(manifest.spec)}
        StageInputs("collect", {"env": self.env, "spec": self.spec}).require_equal(known, str(path))
        if number in manifest.rounds:
            inputs.require_equal(manifest.rounds[number].inputs, f"{path}: rounds.{number}")
        if number not in manifest.rounds or not path.exists():  # another shard may be writing the same
            manifest.rounds[number] = round
            manifest.write()
        return manifest

    def write(self) -> None:
        """Write `manifest.json`."""
        write_json(self.folder / FILE, self.model_dump(by_alias=True))

    @property
    def digest(self) -> str:
        """Hash of the content of all blocks."""
        return hashlib.sha256(" ".join(block.sha256 for block in self.blocks).encode()).hexdigest()

    @property
    def is_condensed(self) -> bool:
        """True if some steps stand alone."""
        return any(round.condensed is not None for round in self.rounds.values())

    @property
    def num_steps(self) -> int:
        """Environment steps that the data took; of condensed data, those of the whole data."""
        return self.steps_of()

    def steps_of(self, number: int | None = None) -> int:
        """Return the environment steps that the round `number`, or all rounds, took."""
        blocks = self.blocks_of(number)
        condensed = {block.round: self.rounds[block.round].condensed for block in blocks}
        return sum(block.steps for block in blocks if condensed[block.round] is None) + sum(
            choice.steps for choice in condensed.values() if choice is not None
        )

    def require_teacher(self, teacher: str, number: int | None = None) -> None:
        """Raise ConfigError if the labels, of the round `number` if it has begun, are those of another teacher."""
        rounds = [self.rounds[number]] if number in self.rounds else self.rounds.values()
        known = [round.teacher for round in rounds if round.teacher is not None]
        if known and teacher not in known:
            raise ConfigError(
                f"{self.folder}: collected with the teacher {' and '.join(dict.fromkeys(known))}, now it is {teacher}. "
                "Use the old teacher, collect again (`rldistill collect FILE --overwrite`), or label the same states "
                "with the new teacher (`rldistill dataset relabel`)."
            )

    def blocks_of(self, number: int | None = None) -> list[BlockEntry]:
        """Return the blocks of the round `number`, or of all rounds; none if the round is not complete."""
        return [block for block in self.blocks if number is None or block.round == number]

    def require_complete(self, number: int | None = None) -> None:
        """Raise CorruptArtifactError if the round `number`, or every round by default, has no blocks."""
        if not self.blocks_of(number):
            raise CorruptArtifactError(f"{self.folder}: the collection is not complete. Continue it: {RESUME}.")

    def add_blocks(self, entries: Iterable[BlockEntry]) -> None:
        """Add blocks, in place of the earlier ones of the same rounds, and write the manifest."""
        new = [*entries]
        replaced = {entry.round for entry in new}
        self.blocks = [block for block in self.blocks if block.round not in replaced] + new
        self.write()

    def read_block(self, entry: BlockEntry, columns: list[str] | None = None) -> Block:
        """Read a block, or some of its columns; raise CorruptArtifactError if a whole block is not as it is listed."""
        path = self.folder / entry.file
        block = read_block(path, columns)
        if columns is None:
            try:
                round = self.rounds[entry.round]
                is_condensed = round.condensed is not None
                require_content(block.columns, self.spec, self.teacher_spec, round.envs_per_stream, is_condensed)
                require_counts(block.columns, entry.rows, entry.steps)
            except ValueError as error:
                raise CorruptArtifactError(f"{path}: {BROKEN.format(error)}") from None
        return block

    def read_column(self, name: str) -> NDArray[Any]:
        """Read a column of all blocks, in the order of the observations of the dataset."""
        blocks = (self.read_block(entry, [name]) for entry in self.blocks)
        return np.concatenate([block.columns[name] for block in blocks])

    def check(self) -> None:
        """Compare every block with its hash; raise CorruptArtifactError for the first that differs."""
        for block in self.blocks:
            path = self.folder / block.file
            if not path.exists():
                raise CorruptArtifactError(f"{path}: the block is missing. Collect it again: {RESUME}.")
            if sha256_file(path) != block.sha256:
                raise CorruptArtifactError(f"{path}: its bytes have changed. Delete it and collect it again: {RESUME}.")
            if (rows := count_rows(path)) != block.rows:  # before memory is allocated for them
                raise CorruptArtifactError(f"{path}: it has {rows} rows, expected {block.rows}. {self.advice}")


def discount(manifests: Iterable[Manifest], gamma: float | None = None) -> float:
    """Return the discount of the returns-to-go: `gamma`, or by default that of condensed rounds, or else 0.99.

    Raises:
        ConfigError: A condensed round has the returns-to-go of another discount.
    """
    rounds = [(manifest.folder, round.condensed) for manifest in manifests for round in manifest.rounds.values()]
    condensed = [(folder, choice.gamma) for folder, choice in rounds if choice is not None]
    wanted = next((own for _, own in condensed), DEFAULT_GAMMA) if gamma is None else gamma
    for folder, own in condensed:
        if own != wanted:
            raise ConfigError(
                f"{folder}: condensed with gamma {own:g}, now {wanted:g}. Condense again with --gamma {wanted:g}."
            )
    return wanted


def store_block(folder: Path, key: BlockKey, block: Block) -> BlockEntry:
    """Write a block into the folder of a dataset; return its entry of the manifest."""
    write_block(folder / key.file, block)
    return block_entry(folder, key, block)


def block_entry(folder: Path, key: BlockKey, block: Block) -> BlockEntry:
    """Return the entry of the manifest for a block that is written."""
    kind = block.columns["kind"]
    return BlockEntry(
        file=key.file,
        **dataclasses.asdict(key),
        steps=int((kind == STEP).sum()),
        rows=len(kind),
        exact=block.exact,
        sha256=sha256_file(folder / key.file),
    )


def discard(folder: Path) -> None:
    """Delete the files of a dataset; its folder goes with the lock, if that made it."""
    for path in [*(folder / "blocks").glob("round-*.parquet"), folder / FILE]:
        path.unlink(missing_ok=True)
        withdraw(path)
    with suppress(OSError):  # somebody put something else there
        (folder / "blocks").rmdir()


def dataset_folder(path: Path) -> Path:
    """Return the folder of a dataset, given itself or the folder of its run."""
    inside = path / "dataset"
    return inside if (inside / FILE).exists() and not (path / FILE).exists() else path
