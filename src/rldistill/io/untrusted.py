"""Tensors from files that anybody may have written: read as data, checked, or refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from rldistill.core.errors import (
    DOWNLOAD_HINT,
    RESAVE_HINT,
    CorruptArtifactError,
    RLDistillError,
    UntrustedFileError,
    error_text,
    short_repr,
)

MAX_WEIGHTS = 1 << 30
MAX_PARAMETERS = 1 << 28
STATE_DICT = "Save the state dict alone: torch.save(network.state_dict(), FILE)"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors, or what `torch.save` wrote.

    Raises:
        UntrustedFileError: a script, an exported program, or anything but plain tensors.
        CorruptArtifactError: truncated or altered.
    """
    require_small(path, "it", path.stat().st_size, MAX_WEIGHTS)
    if path.suffix == ".safetensors":
        try:
            tensors = load_safetensors(path.read_bytes())
        except (SafetensorError, ValueError) as error:
            raise CorruptArtifactError(
                f"{path}: not a whole safetensors file ({error_text(error)}); {DOWNLOAD_HINT}"
            ) from None
        return _checked(tensors, path)
    return read_tensors(path.read_bytes(), path, "the file")


def read_tensors(content: bytes, path: Path, name: str) -> dict[str, Tensor]:
    """What `torch.save` wrote, if it is a state dict; `name` is what `content` is called in `path`."""
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            content = _packed_again(content, path, name)
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except RLDistillError:
        raise
    except pickle.UnpicklingError:
        raise UntrustedFileError(
            f"{path}: {name} holds more than tensors; refused, since reading it could run code. {STATE_DICT}"
        ) from None
    except Exception as error:  # damaged bytes make zipfile and torch raise whatever they like
        raise CorruptArtifactError(
            f"{path}: not a whole file of tensors ({error_text(error)}); {DOWNLOAD_HINT}"
        ) from None
    if not isinstance(tensors, dict):
        raise UntrustedFileError(f"{path}: {name} is not what it should be, a state dict")
    return _checked(tensors, path, name)


def _packed_again(content: bytes, path: Path, name: str) -> bytes:
    """The archive with what Python finds in it and nothing else: PyTorch's own reader may find other members."""
    again, left = io.BytesIO(), MAX_WEIGHTS
    with zipfile.ZipFile(io.BytesIO(content)) as inner, zipfile.ZipFile(again, "w") as copy:
        if any(member.endswith(("constants.pkl", ".pt2", "models/model.json")) for member in inner.namelist()):
            raise UntrustedFileError(
                f"{path}: {name} is a TorchScript or an exported program, which runs code when it is read; "
                "give its state dict, or export it to ONNX"
            )
        for member in dict.fromkeys(inner.namelist()):
            member_content = read_member(path, inner, member, left)
            left -= len(member_content)
            copy.writestr(member, member_content)
    return again.getvalue()


def read_member(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member of an archive, of which no more is unpacked than `limit` bytes, whatever its header says."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UntrustedFileError(f"{path}: {name} is packed in an unusual way; pack it again with an ordinary zip")
    require_small(path, name, info.file_size, limit)
    with archive.open(info) as file:
        content = file.read(limit + 1)
    require_small(path, name, len(content), limit)
    return content


def require_small(path: Path, name: str, size: int, limit: int) -> None:
    """Raise UntrustedFileError for what unpacks to more than `limit` bytes."""
    if size > limit:
        raise UntrustedFileError(f"{path}: {name} unpacks to {size:,} bytes; refused above {limit:,}")


def _what_to_save(found: dict[Any, Any]) -> str:
    """How to come by the state dict that is in `found`, as a checkpoint of a training has it."""
    inner = next((key for key, item in found.items() if isinstance(item, dict) and isinstance(key, str)), None)
    if inner is None:
        return f"refused. {STATE_DICT}"
    key = short_repr(inner)
    return f"if the state dict is {key} in it, save that alone: torch.save(torch.load(FILE)[{key}], NEW)"


def _checked(tensors: dict[str, Tensor], path: Path, name: str = "the file") -> dict[str, Tensor]:
    total = 0
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UntrustedFileError(f"{path}: {name} holds more than tensors; {_what_to_save(tensors)}")
        plain = value.layout == torch.strided and value.device.type == "cpu" and value.dtype in FLOATS
        held = value.untyped_storage().nbytes() // value.element_size() if plain else 0
        total += value.numel()
        if not plain or value.numel() > held or total > MAX_PARAMETERS:
            raise UntrustedFileError(f"{path}: {short_repr(key)} is not a plain tensor of a sensible size; refused")
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: {short_repr(key)} holds NaN or infinite weights; {RESAVE_HINT}")
    return tensors
