"""Policies on disk: `policy.safetensors` and `policy.json`, read without executing anything."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rldistill.artifacts import read_json, write_atomic, write_json
from rldistill.errors import ConfigError, CorruptArtifactError
from rldistill.students import STUDENTS
from rldistill.students.network import NetworkPolicy
from rldistill.types import PolicySpec

SCHEMA = 1
TENSORS, DOCUMENT = "policy.safetensors", "policy.json"


def save_policy(policy: NetworkPolicy, folder: Path, provenance: dict[str, Any], half: bool = False) -> None:
    """Write a policy; `half` stores float16, which a load turns into float32 again."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
    if half:
        tensors = {name: value.half() for name, value in tensors.items()}
    names = {kind: name for name, kind in STUDENTS.items()}
    document = {
        "schema": SCHEMA,
        "student": names[type(policy.config)],
        "config": dataclasses.asdict(policy.config),
        "spec": dataclasses.asdict(policy.spec),
        "provenance": provenance,
        "sha256": content_hash(tensors),
    }
    write_atomic(folder / TENSORS, lambda temporary: save_file(tensors, temporary))
    write_json(folder / DOCUMENT, document)


def load_native(folder: Path, device: str = "cpu") -> NetworkPolicy:
    """Read a policy of ours; raises CorruptArtifactError, with file and field, for whatever is not one."""
    path = folder / DOCUMENT
    document = read_json(path)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise CorruptArtifactError(f"{path}: schema {found}; this version reads schema {SCHEMA}")
    policy = _build(path, document)
    tensors = _tensors(folder / TENSORS, document.get("sha256"))
    try:
        policy.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise CorruptArtifactError(f"{folder / TENSORS}: not the weights that {path} describes: {error}") from None
    return policy.to(device).eval()


def content_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _build(path: Path, document: dict[str, Any]) -> NetworkPolicy:
    kind = document.get("student")
    if kind not in STUDENTS:
        raise CorruptArtifactError(f"{path}: student: {kind!r} is none of {', '.join(STUDENTS)}")
    try:
        config: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in document["config"].items()}
        spec = PolicySpec.from_json(document["spec"])
        return STUDENTS[kind](**config).build(spec)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, ConfigError) as error:
        raise CorruptArtifactError(f"{path}: config or spec: {type(error).__name__}: {error}") from None


def _tensors(path: Path, expected: object) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CorruptArtifactError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptArtifactError(f"{path}: not a whole safetensors file ({error})") from None
    if content_hash(tensors) != expected:
        raise CorruptArtifactError(f"{path}: its contents are not those that were saved (SHA-256 differs)")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: {name} holds NaN or infinite weights")
    return tensors
