"""Tensors and HDF5 arrays in files from untrusted sources: read as data, checked, or refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from rldistill.core.errors import (
    DOWNLOAD_HINT,
    RESAVE_HINT,
    ConfigError,
    CorruptArtifactError,
    RLDistillError,
    UntrustedFileError,
    error_text,
    short_repr,
)
from rldistill.io.atomic import read_regular

MAX_WEIGHTS_BYTES = 1 << 30
MAX_PARAMETERS = 1 << 28
SAVE_STATE_DICT = "Save the state dict alone: torch.save(network.state_dict(), FILE)."
NUMBERS = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,  # counters and indices in buffers
)  # fmt: skip


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or a file of `torch.save`.

    Raises:
        UntrustedFileError: A script, an exported program, or anything but plain tensors.
        CorruptArtifactError: A truncated or altered file.
    """
    content = read_regular(path, MAX_WEIGHTS_BYTES)
    if path.suffix == ".safetensors":
        try:
            tensors = load_safetensors(content)
        except (SafetensorError, ValueError) as error:
            raise CorruptArtifactError(
                f"{path}: not a whole safetensors file ({error_text(error)}); {DOWNLOAD_HINT}"
            ) from None
        return _checked(tensors, path)
    return read_tensors(content, path, "the file")


def read_tensors(content: bytes, path: Path, name: str) -> dict[str, Tensor]:
    """Read a state dict of `torch.save` from `content`, whose name in the file `path` is `name`."""
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            content = _repack(content, path, name)
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except RLDistillError:
        raise
    except pickle.UnpicklingError:
        raise UntrustedFileError(
            f"{path}: {name} holds more than tensors, and reading it could run code. {SAVE_STATE_DICT}"
        ) from None
    except Exception as error:  # zipfile and torch raise many kinds of errors for damaged bytes
        raise CorruptArtifactError(
            f"{path}: not a whole file of tensors ({error_text(error)}); {DOWNLOAD_HINT}"
        ) from None
    if not isinstance(tensors, dict):
        raise UntrustedFileError(f"{path}: {name} is no state dict. {SAVE_STATE_DICT}")
    return _checked(tensors, path, name)


def _repack(content: bytes, path: Path, name: str) -> bytes:
    # PyTorch's own reader may find other members than Python, so it gets only those that Python reads.
    copied, remaining = io.BytesIO(), MAX_WEIGHTS_BYTES
    with zipfile.ZipFile(io.BytesIO(content)) as inner, zipfile.ZipFile(copied, "w") as copy:
        if any(member.endswith(("constants.pkl", ".pt2", "models/model.json")) for member in inner.namelist()):
            raise UntrustedFileError(
                f"{path}: {name} is a TorchScript or an exported program, which runs code when read. "
                "Use its state dict, or export it to ONNX."
            )
        for member in dict.fromkeys(inner.namelist()):
            member_content = read_member(path, inner, member, remaining)
            remaining -= len(member_content)
            copy.writestr(member, member_content)
    return copied.getvalue()


def read_member(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Read a member of an archive, whose header has the most bytes that zipfile unpacks; `limit` is their limit."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UntrustedFileError(
            f"{path}: {name} is compressed in an unusual way. Compress it again as an ordinary zip."
        )
    if info.file_size > limit:
        raise UntrustedFileError(
            f"{path}: {name} unpacks to {info.file_size:,} bytes, above the limit of {limit:,}. Use a smaller file."
        )
    return archive.read(info)


def _checked(tensors: dict[Any, Any], path: Path, name: str = "the file") -> dict[str, Tensor]:
    total = 0
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            advice, parts = SAVE_STATE_DICT, [part for part, item in tensors.items() if isinstance(item, dict)]
            if parts:  # a checkpoint of a training
                part = short_repr(parts[0])
                advice = (
                    f"If the state dict is {part} in it, save that alone: torch.save(torch.load(FILE)[{part}], NEW)."
                )
            raise UntrustedFileError(f"{path}: {name} holds more than tensors. {advice}")
        plain = value.layout == torch.strided and value.device.type == "cpu" and value.dtype in NUMBERS
        stored = value.untyped_storage().nbytes() // value.element_size() if plain else 0
        total += value.numel()
        if not plain or value.numel() > stored or total > MAX_PARAMETERS:
            raise UntrustedFileError(
                f"{path}: {short_repr(key)} is not a plain tensor of numbers of a usual size. {SAVE_STATE_DICT}"
            )
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: {short_repr(key)} holds NaN or infinite weights; {RESAVE_HINT}")
    return tensors


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


def load_weights(network: nn.Module, tensors: dict[str, Tensor], problem: str, remedy: str) -> None:
    """Load a state dict; raise ConfigError with `problem`, the reason and `remedy` if it does not fit."""
    own = network.state_dict()
    for name, value in tensors.items():  # PyTorch would convert integers to floats
        if isinstance(own.get(name), Tensor) and own[name].is_floating_point() != value.is_floating_point():
            raise ConfigError(f"{problem}: {name} is of {value.dtype}, expected {own[name].dtype}. {remedy}")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{problem}: {' '.join(str(error).split())}. {remedy}") from None
