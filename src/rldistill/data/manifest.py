"""The manifest of a dataset: what was asked, round by round, and which blocks answer it."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import Block, BlockKey
from rldistill.io.atomic import Mode, open_stage, read_json, sha256_file, write_json

SCHEMA = 2
TEACHER_SPEC = "teacher_spec"


@dataclass
class Manifest:
    """`manifest.json` of a dataset's folder."""

    folder: Path
    document: dict[str, Any]

    @classmethod
    def open(
        cls,
        folder: Path,
        env: Any,
        spec: PolicySpec,
        round: int,
        request: dict[str, Any],
        teacher_spec: PolicySpec | None = None,
    ) -> Manifest:
        """The manifest of a collection about to run `round`; one that is there must ask for the same things.

        `request` names the `teacher`; a dataset from before that may hold the labels of another, which is warned of.
        `teacher_spec` is of the teacher's view, where it is stored beside the student's.
        """
        path = folder / "manifest.json"
        asked = {"schema": SCHEMA, "env": dataclasses.asdict(env), "spec": spec.to_json()}
        seen = {} if teacher_spec is None else {TEACHER_SPEC: teacher_spec.to_json()}
        document = _as_json(asked | seen | {"rounds": {}, "blocks": [], "exact": True})
        if path.exists():
            manifest = cls.read(folder)
            document = manifest.document
            manifest.require_teacher(request["teacher"], round)
            if any("teacher" not in known for known in document["rounds"].values()):
                warnings.warn(
                    f"{path} does not tell whose labels it holds; expected {request['teacher']}", stacklevel=3
                )
            for key, value in _as_json(asked).items():
                if document[key] != value:
                    was, now = _differing(document[key], value)
                    raise ConfigError(
                        f"{path}: {key} has {was}, but {now} is asked for now; name another folder (folder=...), or "
                        "collect again with --overwrite"
                    )
        known = document["rounds"].setdefault(str(round), _as_json(request))
        for key, value in _as_json(request).items():
            if key != "teacher" and known.get(key) != value:
                raise ConfigError(
                    f"{path}: round {round} was begun with {key} = {known.get(key)}, now it is {value}. "
                    "Go on with the old value, or collect again: `rldistill collect FILE --overwrite`."
                )
        write_json(path, document)
        return cls(folder, document)

    @classmethod
    def derived(cls, folder: Path, other: Manifest, spec: PolicySpec, rounds: dict[str, Any]) -> Manifest:
        """A new manifest of the same environment as another, without blocks so far."""
        asked = {"schema": SCHEMA, "env": other.document["env"], "spec": spec.to_json(), "rounds": rounds}
        seen = {key: value for key, value in other.document.items() if key == TEACHER_SPEC}
        return cls(folder, _as_json(asked | seen | {"blocks": [], "exact": True}))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check; raises CorruptArtifactError for what is not a manifest of ours."""
        path = folder / "manifest.json"
        try:
            document = read_json(path)
        except CorruptArtifactError as error:
            if not path.exists():
                raise
            raise CorruptArtifactError(f"{error}; `rldistill collect FILE --overwrite` makes it anew") from None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else type(document).__name__
            raise CorruptArtifactError(f"{path}: schema {found}; this version reads schema {SCHEMA}; collect again")
        for key, kind in {"env": dict, "spec": dict, "rounds": dict, "blocks": list}.items():
            if not isinstance(document.get(key), kind):
                raise CorruptArtifactError(f"{path}: {key} is missing or not a {kind.__name__}")
        return cls(folder, document)

    @property
    def spec(self) -> PolicySpec:
        """What the observations are and what the labels mean."""
        return self._spec_in("spec")

    @property
    def teacher_spec(self) -> PolicySpec | None:
        """What the environment shows its teacher, where that is stored beside what it shows its student."""
        return self._spec_in(TEACHER_SPEC) if TEACHER_SPEC in self.document else None

    def _spec_in(self, key: str) -> PolicySpec:
        try:
            return PolicySpec.from_json(self.document[key])
        except (KeyError, TypeError, AttributeError, SpecMismatchError) as error:
            raise CorruptArtifactError(f"{self.folder / 'manifest.json'}: {key}: {error}") from None

    @property
    def blocks(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = self.document["blocks"]
        return blocks

    @property
    def digest(self) -> str:
        """A hash of all that is in it."""
        return hashlib.sha256(" ".join(block["sha256"] for block in self.blocks).encode()).hexdigest()

    @property
    def num_steps(self) -> int:
        """Environment steps in all blocks."""
        return sum(block["steps"] for block in self.blocks)

    def require_teacher(self, teacher: str, round: int | None = None) -> None:
        """Raise ConfigError if the labels, of a `round` that has begun those in it, are another teacher's."""
        rounds = self.document["rounds"]
        asked = [rounds[str(round)]] if str(round) in rounds else rounds.values()
        known = [request["teacher"] for request in asked if "teacher" in request]
        if known and teacher not in known:
            raise ConfigError(
                f"{self.folder}: it was collected with the teacher {' and '.join(dict.fromkeys(known))}, now it is "
                f"{teacher}. Go on with the old one, collect again (`rldistill collect FILE --overwrite`), or let the "
                "new one label what is there: `rldistill dataset relabel`."
            )

    def has_round(self, round: int) -> bool:
        return any(block["round"] == round for block in self.blocks)

    def has_files_of(self, round: int) -> bool:
        """Whether the round is complete, and no block of it was lost since."""
        files = [self.folder / block["file"] for block in self.blocks if block["round"] == round]
        return bool(files) and all(file.exists() for file in files)

    def add_round(self, round: int, entries: list[dict[str, Any]]) -> None:
        """Take up the blocks of a round that is complete."""
        self.document["blocks"] = [block for block in self.blocks if block["round"] != round]
        self.add_blocks(entries)

    def add_blocks(self, entries: list[dict[str, Any]]) -> None:
        """Take up blocks that are complete, and write the manifest."""
        self.document["blocks"] = self.blocks + entries
        self.document["exact"] = all(block["exact"] for block in self.blocks)
        write_json(self.folder / "manifest.json", self.document)

    def check(self) -> None:
        """Compare every block with its hash; raises CorruptArtifactError for the first that differs."""
        for block in self.blocks:
            path = self.folder / block["file"]
            if not path.exists():
                raise CorruptArtifactError(
                    f"{path}: the block is missing; `rldistill collect FILE --resume` plays it again"
                )
            if sha256_file(path) != block["sha256"]:
                raise CorruptArtifactError(
                    f"{path}: its bytes are not those that were written; delete it, and "
                    "`rldistill collect FILE --resume` plays it again"
                )


def manifest_entry(key: BlockKey, path: Path, block: Block, steps: int) -> dict[str, Any]:
    """What a manifest says of one block."""
    return {
        "file": key.file,
        **dataclasses.asdict(key),
        "steps": steps,
        "rows": len(block.columns["kind"]),
        "exact": block.exact,
        "sha256": sha256_file(path),
    }


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    """`value` as it will be read back: tuples are lists in JSON."""

    def convert(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: convert(inner) for key, inner in item.items()}
        return [convert(inner) for inner in item] if isinstance(item, list | tuple) else item

    return {key: convert(item) for key, item in value.items()}


def _differing(one: Any, other: Any) -> tuple[Any, Any]:
    """Both, without what they have in common."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one, other
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return {key: one.get(key) for key in keys}, {key: other.get(key) for key in keys}


@contextmanager
def open_derived(folder: Path, sources: Iterable[Path], mode: Mode) -> Iterator[None]:
    """Prepare a folder for a dataset that is made of others within; only another dataset may be thrown away for it.

    What fails leaves no part of a dataset there, since it could not be gone on with.

    Raises:
        ConfigError: a source is in `folder`, or something that is no dataset, or a dataset and `mode` is "new".
    """
    for source in sources:
        if source.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"--out: {source} is in {folder}, and stays as it is; name another folder")
    if (
        mode == "overwrite"
        and folder.exists()
        and not {item.name for item in folder.iterdir()} <= {"manifest.json", "blocks"}
    ):
        raise ConfigError(f"--out: {folder} holds more than a dataset, and is not thrown away; name another folder")
    there = folder.exists()
    open_stage(folder, folder / "manifest.json", mode, allowed=("new", "overwrite"))
    try:
        yield
    except BaseException:
        discard(folder, there)
        raise


def discard(folder: Path, there: bool) -> None:
    """Take away a dataset that came to nothing, with its folder unless that was `there` before."""
    shutil.rmtree(folder / "blocks", ignore_errors=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    if not there:
        with suppress(OSError):  # somebody put something else there
            folder.rmdir()
