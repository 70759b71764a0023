"""Tensors of this package on disk, as safetensors with a hash, and the hash of checkpoints of Stable-Baselines3."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import SEAL, START_AGAIN, seal, unseal, write_atomic
from rldistill.io.untrusted import read_regular

T = TypeVar("T")
MAX_CHECKPOINT_BYTES = 1 << 40
HASH_CHARS = 64


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def below(prefix: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, and its metadata.

    Raises:
        SafetensorError: The file is damaged.
        OSError: The file cannot be read.
    """
    # Read here, since PyTorch and safetensors report errors of the system in words.
    content = read_regular(path, MAX_CHECKPOINT_BYTES)
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__", {})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and the JSON values of `state` as one safetensors file, with a hash of both."""
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"state": seal({"state": json.dumps(state), "tensors": content_hash(own)}).decode()}
    write_atomic(path, lambda temporary: save_file(own, temporary, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the state that `write_tensors` wrote; raise CorruptArtifactError if they were changed."""
    try:
        tensors, metadata = load_safetensors(path)
        document = unseal(metadata.get("state", "").encode())
        if content_hash(tensors) != document["tensors"]:
            raise ValueError("its content is not the one that was written: SHA-256 differs")
        state: dict[str, Any] = json.loads(document["state"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"{path}: not a whole checkpoint ({error}). {START_AGAIN}") from None
    return tensors, state


def seal_zip(path: Path) -> None:
    """Append the hash of a zip file to it, as its comment."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"0" * HASH_CHARS
    with path.open("r+b") as file:
        content = file.read()[:-HASH_CHARS]
        file.seek(-HASH_CHARS, 2)
        file.write(hashlib.sha256(content).hexdigest().encode())


def require_sealed_zip(path: Path) -> None:
    """Raise CorruptArtifactError if a zip file is not as `seal_zip` left it."""
    content = read_regular(path, MAX_CHECKPOINT_BYTES)
    if hashlib.sha256(content[:-HASH_CHARS]).hexdigest().encode() != content[-HASH_CHARS:]:
        raise CorruptArtifactError(f"{path}: not the checkpoint that was written ({SEAL} differs). {START_AGAIN}")
