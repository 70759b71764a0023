"""Files that are whole or not there: atomic writes, checked reads, hashes, and folders of stages."""

import errno
import hashlib
import json
import multiprocessing
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from rldistill.core.errors import ConfigError, CorruptArtifactError, did_you_mean, short_repr
from rldistill.core.fields import explain
from rldistill.io.storage import publish, temporary_path, withdraw
from rldistill.io.untrusted import read_own, require_regular

Mode = Literal["new", "resume", "overwrite"]
"""Treatment of a stage's folder that exists: refuse it, continue it, or discard it."""
MAX_ERRORS = 1_000
STAGE_FILES = re.compile(
    r"(inputs|manifest|policy|score|weighting|trial|test|search|disagreements|returns-\d+)\.json|(metrics|curve)\.jsonl|"
    r"(policy|last|best)\.(safetensors|zip|keras)|episodes-[0-9a-f]+\.safetensors|events\.out\.tfevents\.[\w.]+|\d+-\d+\.png|\.lock|"
    r"\.\d+(@[\w.-]*)?\.tmp\..+|round-\d+-stream-\d+-block-\d+\.parquet"
)
"""Names of all files in the folders of stages."""
RESULTS = ("policy.json", "manifest.json")
CHANGED = "The file was changed; write it again."
START_AGAIN = 'Start again with mode="overwrite" (--overwrite).'
SEAL = "sha256"
UNFINISHED = ".*.tmp.*"
"""Pattern of the names of temporary files."""
LOCK = ".lock"
"""Name of the file whose lock is that of its folder."""
Row = dict[str, int | float | list[float] | None]
"""Row of metrics: numbers by name, at a `step`."""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there, so that no reader sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of network drives that sync no folders
            raise
    finally:
        os.close(folder)
    publish(path)


def seal(value: Mapping[str, Any], indent: int | None = 2) -> bytes:
    """Return an object as JSON with the SHA-256 of its other entries as `sha256`; raise ValueError if it has no JSON.

    The hash comes first, so that a file that was cut is still known as one of this package.
    """
    rest = {key: item for key, item in value.items() if key != SEAL}
    # Not as ASCII: text that is no valid Unicode must fail here, since no file or terminal could hold it later.
    text = json.dumps(rest, allow_nan=False, ensure_ascii=False)
    document = {SEAL: hashlib.sha256(text.encode()).hexdigest(), **rest}
    return json.dumps(document, indent=indent, ensure_ascii=False).encode() + b"\n"


def unseal(content: bytes, indent: int | None = 2) -> dict[str, Any]:
    """Return the object of `seal` without its hash; raise ValueError for any other bytes."""
    value = parse_json(content)
    if not isinstance(value, dict) or SEAL not in value:
        raise ValueError(f"not a JSON object with its {SEAL}")
    try:
        same = seal(value, indent) == content
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not same:
        raise ValueError("its content is not the one that was written (SHA-256 differs)")
    del value[SEAL]
    return value


def parse_json(content: bytes) -> Any:
    """Return a JSON value; raise ValueError if it is none."""
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_foreign_json(path: Path, value: Any) -> None:
    """Write JSON for another program, without a hash, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON with its hash, atomically."""
    try:
        content = seal(value)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{path}: {short_repr(error.object)} is no valid Unicode. Use another name.") from None
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def read_json(path: Path, advice: str = "The file was cut or changed.") -> dict[str, Any]:
    """Read an object that `write_json` wrote; `advice` ends the message for one that was changed.

    Raises:
        CorruptArtifactError: It is missing, not JSON, or not as it was written.
        UntrustedFileError: It is no regular file, a link out of its folder, or larger than `MAX_JSON_BYTES`.
    """
    document: dict[str, Any] = _read(path, unseal, advice)
    return document


def read_foreign_json(path: Path) -> Any:
    """Read JSON of another program, with the checks and errors of `read_json` but no hash."""
    return _read(path, parse_json, "The file was cut or changed.")


def _read(path: Path, parse: Callable[[bytes], Any], advice: str) -> Any:
    try:
        return parse(read_own(path))
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptArtifactError(f"{path}: there is no such file. Name a folder that has it.") from None
    except OSError as error:
        raise CorruptArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise CorruptArtifactError(f"{path}: {error}. {advice}") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the rows of `metrics.jsonl` or `curve.jsonl`; an empty list if there is no such file.

    An incomplete last line, which a kill during a write leaves, is ignored as long as the stage has no result.

    Raises:
        CorruptArtifactError: Another line is not as it was written, or rows are missing.
    """
    rows: list[dict[str, Any]] = []
    lines = read_own(path).splitlines(keepends=True) if path.exists() else []
    ended = not path.exists()
    for number, line in enumerate(lines, 1):
        try:
            row = unseal(line, None)
            ended = [*row] == ["rows"]
            if ended and row["rows"] != len(rows):
                raise ValueError(f"found {len(rows)} rows, expected {row['rows']}")
            if not ended:
                row = read_value(Row, row, path, f"line {number}", START_AGAIN)
                if type(row.get("step")) is not int:
                    raise ValueError("expected a step")
                rows.append(row)
        except ValueError as error:
            if number < len(lines) or line.endswith(b"\n"):
                raise CorruptArtifactError(f"{path}: line {number}: {error}. {START_AGAIN}") from None
    if not ended and (path.parent / "policy.json").exists():
        raise CorruptArtifactError(f"{path}: its last rows are missing. {START_AGAIN}")
    return rows


def parse_rows(content: bytes, path: Path) -> list[dict[str, Any]]:
    """Return the whole rows in a part of a file of metrics, which may still be written; others are left out."""
    rows: list[dict[str, Any]] = []
    for line in content.splitlines(keepends=True):
        with suppress(ValueError, CorruptArtifactError):
            row = read_value(Row, unseal(line, None), path)
            if type(row.get("step")) is int:
                rows.append(row)
    return rows


class Document(BaseModel):
    """JSON object in which every field is required and no other is allowed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    advice: ClassVar[str] = CHANGED

    @classmethod
    def parse(cls, value: Any, path: Path) -> Self:
        """Return the model of a JSON value that was read from `path`; raise CorruptArtifactError if it is none."""
        document: Self = read_value(cls, value, path, advice=cls.advice)
        return document

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file; raise CorruptArtifactError if it was changed or is no such document."""
        return cls.parse(read_json(path, cls.advice), path)


def read_value(annotation: Any, value: Any, path: Path, field: str = "", advice: str = CHANGED) -> Any:
    """Return a JSON value as its annotated type; raise CorruptArtifactError, with its path and field, if it is none."""
    try:
        # From JSON, where a list is a tuple and nothing else is converted.
        return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        if error.error_count() > MAX_ERRORS:  # whose list takes gigabytes for a large file
            raise CorruptArtifactError(f"{path}: {error.error_count():,} fields are wrong. {advice}") from None
        first = error.errors()[0]
        first["loc"] = tuple(filter(None, [field, *_location(first["loc"], value)]))
        problem = explain(first)
        raise CorruptArtifactError(f"{path}: {problem}{'' if problem.endswith('?') else '.'} {advice}") from None


def _location(loc: tuple[int | str, ...], value: Any) -> list[str]:
    """Return the location of an error without pydantic's names of the members of a union."""
    parts = []
    for number, part in enumerate(loc, 1):
        if isinstance(value, dict | list):
            inside = part in value if isinstance(value, dict) else isinstance(part, int) and part < len(value)
            if inside:
                value = value[part]  # type: ignore[index]
            if inside or number == len(loc):
                parts.append(str(part))
    return parts


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    require_regular(path)
    if path.is_dir():
        raise CorruptArtifactError(f"{path}: a folder, expected a file. {CHANGED}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_mode(mode: str, allowed: Sequence[str] = get_args(Mode)) -> None:
    """Raise ConfigError if `mode` is not one of `allowed`.

    A worker that imports an unguarded script must not run its stages again; it ends here, and its parent has the error.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)
    if mode not in allowed:
        hint = did_you_mean(mode, allowed) if isinstance(mode, str) else ""
        raise ConfigError(f"mode: expected one of {', '.join(allowed)}, found {short_repr(mode)}.{hint}")


def list_files(folder: Path) -> list[Path]:
    """Return the entries of a folder but its lock; none if it does not exist."""
    return [path for path in folder.iterdir() if path.name != LOCK] if folder.exists() else []


def discard_stage(folder: Path) -> None:
    """Delete the files of a stage in its folder; raise ConfigError, and delete nothing, if it holds anything else."""
    if not folder.exists():
        return
    files: list[Path] = []
    folders: list[Path] = []
    for root, _, names in os.walk(folder, onerror=_raise):  # links to folders are not followed, and refused below
        own = Path(root)
        folders.append(own)
        files += [own / name for name in names]
        for entry in own.iterdir():
            if entry.is_symlink() or not (entry.is_dir() or _is_of_stage(entry)):
                raise ConfigError(
                    f"{entry}: not written by this program, so {folder} is not discarded. Move it away, or use another "
                    "folder."
                )
    inner = next((path for path in files if path.name in RESULTS), None)
    if inner is not None and all(path.is_dir() for path in list_files(folder)):
        raise ConfigError(
            f"{folder}: it holds the results of several stages, such as {inner.parent}, and is not discarded. "
            "Name the folder of one, or another folder."
        )
    for path in files:
        if path.name != LOCK:
            path.unlink()
            withdraw(path)
    for path in reversed(folders):
        if not any(path.iterdir()):
            path.rmdir()


def _raise(error: OSError) -> None:
    raise error


def _is_of_stage(path: Path) -> bool:
    """Return True if a file has the name of one that stages write, and JSON the mark of this program."""
    if not STAGE_FILES.fullmatch(path.name) or not path.is_file():
        return False
    if path.suffix not in (".json", ".jsonl"):
        return True
    with path.open("rb") as file:
        if SEAL.encode() in (start := file.read(200)):
            return True
        content = start + file.read()
    try:  # the JSON of another program; a file that was cut is ours
        json.loads(content.splitlines()[0] if path.suffix == ".jsonl" and content else content)
    except ValueError:
        return True
    return False


def open_stage(folder: Path, result: Path, mode: Mode, allowed: Sequence[str] = get_args(Mode)) -> bool:
    """Prepare the folder of a stage; return True if `result` can be used. Raise ConfigError if `mode` forbids it."""
    require_mode(mode, allowed)
    if list_files(folder):
        if mode == "overwrite":
            discard_stage(folder)
        elif mode == "new":
            resume = 'Continue it with mode="resume" (--resume), or discard' if "resume" in allowed else "Discard"
            raise ConfigError(f'{folder} exists. {resume} it with mode="overwrite" (--overwrite).')
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder.rglob(UNFINISHED))
    return result.exists()


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Delete those of some temporary files whose processes were killed while they wrote."""
    for temporary in paths:
        pid, _, node = temporary.name[1:].partition(".tmp.")[0].partition("@")
        if node not in ("", platform.node()):  # of a machine with which the folder is shared
            continue
        try:
            os.kill(int(pid), 0)  # raises no error, or PermissionError, for a process that is running
        except ProcessLookupError:  # killed while it wrote
            temporary.unlink(missing_ok=True)
        except (ValueError, OverflowError, OSError):
            continue
