"""Storage by URL: a run in a bucket, with a copy on this machine in which all stages work.

The copy of `s3://bucket/run` is a folder whose name is that URL in the encoding of URLs, so that every process knows
the place of a file by its path. A file is sent as soon as it is written as a whole. Objects of S3 appear whole or not
at all, so that a manifest, which is written after its blocks, never names one that is not there.
"""

import os
import platform
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from rldistill.core.errors import ConfigError, RLDistillError, UntrustedFileError, error_text

SCHEMES = ("s3", "gs", "abfs", "hdfs")
"""Schemes of URLs that pyarrow.fs opens."""
COPY = re.compile(rf"({'|'.join(SCHEMES)})%3A%2F%2F.+")
CACHE = "RLDISTILL_CACHE"
"""Environment variable with the folder of the copies; by default `~/.cache/rldistill`."""
MAX_NAME_BYTES = 255
LOCAL_ONLY = re.compile(r"\.lock|\.progress\.(.*\.)?json|\..*\.tmp\..*")
_active = threading.local()


def local_folder(out: Any) -> Any:
    """Return the folder for the value of `out`: of a URL its copy on this machine; raise ConfigError if it has none."""
    if not isinstance(out, str) or "://" not in out:
        return out
    scheme, url = out.partition("://")[0], urlsplit(out)
    if scheme == "file" and not url.netloc:
        return Path(unquote(url.path))
    if scheme not in SCHEMES or not url.netloc:
        raise ConfigError(
            f"out: found {out!r}, expected a folder, or {', '.join(SCHEMES)} or file, as in s3://bucket/run"
        )
    if "@" in url.netloc and not (scheme == "gs" and url.netloc.startswith("anonymous@")):
        raise ConfigError("out: a URL with a password would be stored. Give it in the environment (AWS_ACCESS_KEY_ID).")
    name = quote(out.rstrip("/"), safe="")
    if len(name) > MAX_NAME_BYTES:
        raise ConfigError(f"out: the URL is too long for the name of a folder, {len(name)} bytes. Use a shorter one.")
    cache = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rldistill"
    return Path(cache).absolute() / name


@lru_cache
def _open(url: str) -> tuple[Any, str]:
    from pyarrow import fs

    filesystem, prefix = fs.FileSystem.from_uri(url)
    return filesystem, str(prefix)


def _locate(path: Path) -> tuple[Any, str] | None:
    """Return the file system and the key of the object of a path; None of a path that is not in a copy."""
    for number, part in enumerate(path.parts):
        if COPY.fullmatch(part):
            with _errors(path):
                filesystem, prefix = _open(unquote(part))
            return filesystem, "/".join([prefix, *path.parts[number + 1 :]])
    return None


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Raise errors of the storage in one line."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno and error.filename:  # of the copy, not of the storage
            raise
        name = next(unquote(part) for part in path.parts if COPY.fullmatch(part))
        hint = "Check the address, the network and the credentials, then continue with --resume."
        raise RLDistillError(f"{name}: {error_text(error)}. {hint}") from None


def temporary_path(path: Path) -> Path:
    """Return the path at which this process writes a file before it moves it to `path`."""
    return path.with_name(f".{os.getpid()}@{platform.node()}.tmp.{path.name}")


def publish(path: Path) -> None:
    """Send a file of a copy; do nothing for any other."""
    if (located := _locate(path)) is not None:
        filesystem, key = located
        content = path.read_bytes()  # whole, since a cut object could not be distinguished from a complete one
        with _errors(path), filesystem.open_output_stream(key) as stream:
            stream.write(content)


def withdraw(path: Path) -> None:
    """Delete the object of a file that was deleted from a copy; do nothing for any other."""
    if (located := _locate(path)) is not None:
        filesystem, key = located
        with _errors(path):
            if filesystem.get_file_info(key).is_file:
                filesystem.delete_file(key)


def fetch(path: Path) -> bool:
    """Return True if a file exists, here or in the storage, from which it is then copied."""
    if path.exists() or (located := _locate(path)) is None:
        return path.exists()
    filesystem, key = located
    with _errors(path):
        if not filesystem.get_file_info(key).is_file:
            return False
        _download(filesystem, key, path)
    return True


def pull(folder: Path, mirror: bool = False, blocks: bool = True) -> None:
    """Copy the files of a folder that are missing here; with `mirror`, also those that differ, and delete all others.

    Without `blocks`, those of datasets are left out, of which a shard needs its own alone.

    Raises:
        UntrustedFileError: The name of an object leads out of the folder.
    """
    if (located := _locate(folder)) is None:
        return
    filesystem, prefix = located
    with _errors(folder):
        objects = _objects(filesystem, prefix)
        for name, info in objects.items():
            path = folder / name
            if ".." in PurePosixPath(name).parts:
                raise UntrustedFileError(f"{prefix}/{name}: the name leads out of its folder. Rename the object.")
            if not blocks and path.suffix == ".parquet":
                continue
            if not path.exists() or (mirror and not _is_copy(path, info)):
                _download(filesystem, info.path, path)
        for path in _files(folder) if mirror else ():
            if path.relative_to(folder).as_posix() not in objects:
                path.unlink()


def push(folder: Path, mirror: bool = False) -> None:
    """Send the files of a folder that are missing there or newer here; with `mirror`, make the storage equal to it."""
    if (located := _locate(folder)) is None:
        return
    filesystem, prefix = located
    with _errors(folder):
        objects = _objects(filesystem, prefix)
        # Only the manifests come after the blocks that they name; all of both are there already, as a rule.
        for path in sorted(_files(folder), key=lambda path: path.suffix == ".json"):
            info = objects.pop(path.relative_to(folder).as_posix(), None)
            status = path.stat()
            if info is None or info.mtime.timestamp() + 1 < status.st_mtime or (mirror and info.size != status.st_size):
                publish(path)
        for info in objects.values() if mirror else ():
            filesystem.delete_file(info.path)


@contextmanager
def synced(folder: Path, mirror: bool = True) -> Iterator[None]:
    """Make the copy of a folder equal to its storage, and the storage equal to the copy after the block.

    Within another such block, and for a folder that is no copy, nothing happens.
    """
    if _locate(folder) is None or getattr(_active, "folder", None) is not None:
        yield
        return
    pull(folder, mirror, blocks=mirror)
    _active.folder = folder
    try:
        yield
    except Exception:
        push(folder, mirror)
        raise
    finally:
        _active.folder = None
    push(folder, mirror)


def _objects(filesystem: Any, prefix: str) -> dict[str, Any]:
    """Return the objects below a prefix by their names."""
    from pyarrow import fs

    found = filesystem.get_file_info(fs.FileSelector(prefix, recursive=True, allow_not_found=True))
    return {info.path[len(prefix) + 1 :]: info for info in found if info.is_file}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not LOCAL_ONLY.fullmatch(path.name)]


def _is_copy(path: Path, info: Any) -> bool:
    """Return True if a file is as large as its object and no older, since the object may be written elsewhere."""
    status = path.stat()
    return bool(status.st_size == info.size and int(status.st_mtime) >= int(info.mtime.timestamp()))


def _download(filesystem: Any, key: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with filesystem.open_input_stream(key) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
