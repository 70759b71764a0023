"""Tensors on disk with a hash, checkpoints of trainings, and the hash of those of Stable-Baselines3."""

import hashlib
import json
import math
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from rldistill.core.errors import CorruptArtifactError, error_text
from rldistill.io.atomic import SEAL, START_AGAIN, seal, unseal, write_atomic
from rldistill.io.untrusted import read_regular

T = TypeVar("T")
MAX_CHECKPOINT_BYTES = 1 << 40
HASH_CHARS = 64
CHECKPOINT = "checkpoints/last.safetensors"
CHECKPOINT_INTERVAL_S = 10.0
"""Minimum time between checkpoints."""
MAX_CHECKPOINT_SHARE = 0.03
"""Maximum share of the time that is spent on checkpoints, which may hold a whole replay buffer."""
State = dict[str, Any]
"""Nested dicts of tensors and JSON values."""


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


class Checkpoint:
    """Checkpoint of a folder, one file, so that it is written at once."""

    def __init__(self, folder: Path) -> None:
        self.path, self._next = folder / CHECKPOINT, -math.inf

    def save_if_due(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write the result of `state` if the last checkpoint is long enough ago."""
        started = time.monotonic()
        if started >= self._next:
            self.save(state())
            ended = time.monotonic()
            self._next = ended + max(CHECKPOINT_INTERVAL_S, (ended - started) / MAX_CHECKPOINT_SHARE)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state."""
        write_state(self.path, state)

    def load(self, load: Callable[[State], None]) -> None:
        """Call `load` with the state in the file, if there is one.

        Raises:
            CorruptArtifactError: The checkpoint is damaged, or of another run.
        """
        if not self.path.exists():
            return
        try:
            load(read_state(self.path))
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            problem = "it does not fit these settings, or was written by another version"
            raise CorruptArtifactError(f"{self.path}: {problem} ({error_text(error)}). {START_AGAIN}") from None


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts of tensors and JSON values: tensors by their path (`networks/policy/output.weight`)."""
    tensors: dict[str, Tensor] = {}
    rest = _split(state, "", tensors)
    write_tensors(path, tensors, rest)


def read_state(path: Path) -> State:
    """Read the state that `write_state` wrote; raise CorruptArtifactError if it was changed."""
    tensors, state = read_tensors(path)
    for key, tensor in tensors.items():
        *outer, name = map(unquote, key.split("/"))
        target = state
        for part in outer:
            target = target.setdefault(part, {})
        target[name] = tensor
    return state


def _split(state: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> State:
    """Move the tensors of nested dicts to `tensors`, by their path; return the rest."""
    rest: State = {}
    for name, value in state.items():
        own = path + quote(str(name), safe="")
        if isinstance(value, Tensor):
            tensors[own] = value
        else:
            rest[str(name)] = _split(value, f"{own}/", tensors) if isinstance(value, Mapping) else value
    return rest
