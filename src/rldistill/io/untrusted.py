"""Files from elsewhere: regular ones of a limited size, and archives, HDF5 and YAML in them, read as data.

Every reader of such a file goes through this module, which limits the size of the file, the number of its entries, and
the size of the values in it. A test in `tests/contracts` keeps it so.
"""

import io
import os
import resource
import stat
import zipfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rldistill.core.errors import UntrustedFileError

MAX_WEIGHTS_BYTES = 1 << 30
FREE_BYTES, MAX_INFLATION = 64 << 20, 8
"""An archive may unpack to `FREE_BYTES`, and to `MAX_INFLATION` times its size."""
CHILD_SECONDS, CHILD_BYTES = 15, 1 << 30
"""Limits of a child process: its time, and its memory beyond that of this process."""
MAX_ENTRIES, MAX_CD_BYTES = 100_000, 4 << 20
"""Limits of the entries of a YAML file or a folder, and of the list of members of a zip."""
MAX_YAML_BYTES, MAX_JSON_BYTES = 1 << 20, 32 << 20


def require_regular(path: Path, max_bytes: int | None = None) -> int:
    """Return the size of a file in bytes; raise UntrustedFileError for a pipe, a device, or a file that is too large.

    Without `max_bytes`, only a file of holes is too large.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # to open a folder is an error anyway
        raise UntrustedFileError(f"{path}: not a regular file. Replace it by one.")
    size = status.st_size
    if max_bytes is not None and size > max_bytes:
        raise UntrustedFileError(f"{path}: {size:,} bytes, above the limit of {max_bytes:,}. Use a smaller file.")
    if size > FREE_BYTES + MAX_INFLATION * 512 * status.st_blocks:
        raise UntrustedFileError(f"{path}: almost all of its {size:,} bytes are holes. Copy it again.")
    return size


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Read a regular file; raise UntrustedFileError if it is none or has more than `max_bytes` bytes."""
    size = require_regular(path, max_bytes)
    with path.open("rb") as file:
        return file.read(size)


def read_own(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read a file in a folder of this package; raise UntrustedFileError for a link out of its folder, too."""
    _require_inside(path, _root(path.parent))
    return read_regular(path, max_bytes)


def read_tail(path: Path, root: Path, max_bytes: int) -> bytes:
    """Read the last lines of a regular file in the folder `root`, which may have any size; at most `max_bytes` bytes.

    Raises:
        UntrustedFileError: It is a link out of `root`, a pipe, or a device.
    """
    _require_inside(path, Path(os.path.realpath(root)))
    size = require_regular(path)
    with path.open("rb") as file:
        file.seek(max(0, size - max_bytes))
        content = file.read(max_bytes)
    return content if size <= max_bytes else content.partition(b"\n")[2]


def require_confined(folder: Path, left_out: Container[str] = ()) -> None:
    """Raise UntrustedFileError for a link out of a folder, a pipe or a device in it, at any depth.

    The entries `left_out` of the folder itself are not examined.
    """
    root, pending = _root(folder), [entry for entry in os.scandir(folder) if entry.name not in left_out]
    for _ in range(10 * MAX_ENTRIES):
        if not pending:
            return
        entry = pending.pop()
        path = Path(entry.path)
        if entry.is_symlink():
            _require_inside(path, root)
        if entry.is_dir(follow_symlinks=False):
            pending += os.scandir(entry)
        elif path.exists():
            require_regular(path)
    raise UntrustedFileError(f"{folder}: more than {10 * MAX_ENTRIES:,} files. It is refused.")


def _require_inside(path: Path, root: Path) -> None:
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise UntrustedFileError(f"{path}: a link out of its folder. Replace it by a copy of the file.")


def _root(folder: Path) -> Path:
    """Return the folder that links must not leave; in the cache of Hugging Face, that of the whole repository."""
    for parent in [folder.absolute(), *folder.absolute().parents]:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return Path(os.path.realpath(parent.parent))
    return Path(os.path.realpath(folder))


def load_yaml(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """Return the value of a YAML document; raise a YAMLError if aliases make it larger than `MAX_ENTRIES` or endless.

    `loader` constructs plain values only.
    """
    parser = loader(text)
    try:
        node = parser.get_single_node()
        if node is None:
            return None
        _count_entries(node, {})
        return parser.construct_document(node)
    finally:
        parser.dispose()


def is_unicode(text: str) -> bool:
    """Return False for text with lone surrogates, which no file and no terminal can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _count_entries(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of entries below a node, counting those of an alias each time."""
    if id(node) not in counts:
        counts[id(node)] = -1  # for an alias of the node inside itself
        if not isinstance(node, yaml.CollectionNode) and len(node.value) > 1_000 and not node.tag.endswith(":str"):
            problem = f"a number of {len(node.value):,} digits"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        if isinstance(node, yaml.ScalarNode) and not is_unicode(node.value):
            raise yaml.constructor.ConstructorError(None, None, "text that is no valid Unicode", node.start_mark)
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        counts[id(node)] = 1 + sum(_count_entries(child, counts) for child in children)
    if counts[id(node)] < 0:
        problem = "nested too deeply; does an alias hold itself?"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    if counts[id(node)] > MAX_ENTRIES:
        problem = f"more than {MAX_ENTRIES:,} entries; are there aliases of aliases?"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return counts[id(node)]


@contextmanager
def open_zip(source: Path | bytes) -> Iterator[zipfile.ZipFile]:
    """Open an archive in a file or in bytes; raise BadZipFile if it is none, or its list of members is too long."""
    if isinstance(source, Path):
        require_regular(source)
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end is not None and end[zipfile._ECD_SIZE] > MAX_CD_BYTES:  # type: ignore[attr-defined]
            raise zipfile.BadZipFile("it has too many members")
        with zipfile.ZipFile(file) as archive:
            yield archive


def read_member(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Read a member of an archive that unpacks to at most `limit` bytes, and not to far more than the whole archive."""
    info = archive.getinfo(name)
    limit = min(limit, FREE_BYTES + MAX_INFLATION * archive.start_dir)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UntrustedFileError(
            f"{path}: {name} is compressed in an unusual way. Compress it again as an ordinary zip."
        )
    if info.file_size > limit:
        raise UntrustedFileError(
            f"{path}: {name} unpacks to {info.file_size:,} bytes, above the limit of {limit:,}. Use a smaller file."
        )
    with archive.open(info) as file:
        return file.read(info.file_size)  # `read` without a number unpacks up to 2 GB, whatever the header says


def iterate_arrays(source: Path | bytes, where: str, max_entries: int, max_ratio: int) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of an HDF5 file with their paths; `where` is its name in errors.

    Raises:
        UntrustedFileError: A link out of the file, an entry under two names, more than `max_entries` entries, or an
            array of more than `max_ratio` times its stored bytes.
    """
    import h5py

    if isinstance(source, Path):
        require_regular(source)
    with h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as file:
        yield from _arrays(file, where, max_entries, max_ratio)


def _arrays(file: Any, where: str, max_entries: int, max_ratio: int) -> Iterator[tuple[str, Any]]:
    import h5py

    pending, seen = [("", file)], set[int]()
    while pending:
        path, group = pending.pop()
        for key in group:
            name = f"{path}{key}"
            if len(seen) > max_entries:
                raise UntrustedFileError(f"{where}: more than {max_entries:,} entries. It is refused.")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UntrustedFileError(f"{where}: {name} is a link out of the file. It is refused.")
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise UntrustedFileError(f"{where}: {name} exists under two names. It is refused.")
            seen.add(address)
            if isinstance(item, h5py.Group):
                pending.append((f"{name}/", item))
            elif not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
                raise UntrustedFileError(f"{where}: {name} is not a plain array inside the file. It is refused.")
            elif item.nbytes > max_ratio * max(item.id.get_storage_size(), 16):
                raise UntrustedFileError(f"{where}: {name} declares more numbers than the file has. It is refused.")
            else:
                yield name, item


def run_limited(where: str, work: Callable[[], object]) -> None:
    """Run `work` in a child process with limits of time and memory; raise UntrustedFileError if it fails there."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - nothing else is imported here
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + CHILD_BYTES,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (CHILD_SECONDS,) * 2)
            work()
            os.write(sender, b"done")
        except BaseException as error:
            os.write(sender, " ".join(str(error).split())[:300].encode(errors="replace") or b"it failed")
        finally:
            os._exit(0)
    os.close(sender)
    with open(receiver, "rb") as result:  # noqa: PTH123 - a descriptor
        found = result.read().decode(errors="replace")
    os.waitpid(child, 0)
    if found != "done":
        problem = found or f"it needs more than {CHILD_SECONDS} seconds"
        raise UntrustedFileError(
            f"{where}: it does not run within {CHILD_BYTES >> 30} GB of memory ({problem}). Use a smaller network."
        )
