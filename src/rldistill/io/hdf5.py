"""HDF5 files that anybody may have written: only arrays that are in the file itself are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rldistill.core.errors import UntrustedFileError


def arrays_inside(file: Any, where: str, most: int, packed: int) -> Iterator[tuple[str, Any]]:
    """The arrays of an open HDF5 file, each with its path in it; `where` is what errors call the file.

    Raises:
        UntrustedFileError: what leads outside the file, or is there under two names; more than `most` entries; an array
            of more than `packed` times the bytes that are stored of it.
    """
    import h5py

    pending, seen = [("", file)], set[int]()
    while pending:
        path, group = pending.pop()
        for key in group:
            name = f"{path}{key}"
            if len(seen) > most:
                raise UntrustedFileError(f"{where}: more than {most:,} entries; refused")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UntrustedFileError(f"{where}: {name} is a link to somewhere else; refused")
            item = group[key]
            place = h5py.h5o.get_info(item.id).addr
            if place in seen:
                raise UntrustedFileError(f"{where}: {name} is there under two names; refused")
            seen.add(place)
            if isinstance(item, h5py.Group):
                pending.append((f"{name}/", item))
            elif not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
                raise UntrustedFileError(f"{where}: {name} is no plain array kept in the file; refused")
            elif item.nbytes > packed * max(item.id.get_storage_size(), 16):
                raise UntrustedFileError(f"{where}: {name} claims more numbers than the file holds; refused")
            else:
                yield name, item
