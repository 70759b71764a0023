"""HDF5 files from untrusted sources: only arrays inside the file itself are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rldistill.core.errors import UntrustedFileError


def iterate_arrays(file: Any, where: str, max_entries: int, max_ratio: int) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of an open HDF5 file with their paths; `where` is its name in errors.

    Raises:
        UntrustedFileError: A link out of the file, an entry under two names, more than `max_entries` entries, or an
            array of more than `max_ratio` times its stored bytes.
    """
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
