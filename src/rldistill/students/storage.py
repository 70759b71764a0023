"""Policies on disk: `policy.safetensors` and `policy.json`, read without executing anything."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.io.atomic import read_json, require_regular, write_atomic, write_json
from rldistill.policies.layers import ACTIVATIONS
from rldistill.policies.network import NetworkPolicy
from rldistill.students.documents import NETWORKS, USER_CLASSES, PolicyDocument, kind_name, read_config, write_config
from rldistill.students.features import FEATURES, Features
from rldistill.students.keras import Keras, KerasStudent, load_keras_student
from rldistill.students.tree import TreePolicy

SCHEMA = 1
TENSORS, DOCUMENT = "policy.safetensors", "policy.json"


def trust(kind: type[Any]) -> None:
    """Let policy files name your own class of students, features or activations, which `load_policy` then builds.

    Raises:
        ConfigError: A class of another kind.
    """
    if issubclass(kind, nn.Module):
        ACTIVATIONS[f"{kind.__module__}:{kind.__qualname__}"] = kind
    elif not callable(getattr(kind, "build", None)):
        raise ConfigError(f"{kind.__name__} has no build. Use a class of students or features, such as rldistill.Mlp.")
    elif kind not in NETWORKS.values() and kind not in FEATURES.values():
        USER_CLASSES[f"{kind.__module__}:{kind.__qualname__}"] = kind


def trust_student(student: object) -> None:
    """Trust the class of a student, and that of its features if it has some."""
    trust(type(student))
    if isinstance(features := getattr(student, "features", None), Features):
        trust(type(features))


def save_policy(policy: NetworkPolicy, folder: Path, provenance: dict[str, Any], half: bool = False) -> None:
    """Write a policy; `half` stores weights as float16, which loading converts to float32.

    Raises:
        ConfigError: Weights that are not finite, or are beyond float16 with `half`; a policy that needs code of the
            user's own, which a file must not name.
    """
    policy.require_storable()
    tensors = stored_tensors(policy)
    if half:
        # Not the buffers: a small obs_std would become 0, and a large obs_mean infinite.
        tensors |= {name: tensors[name].half() for name, _ in policy.named_parameters() if name in tensors}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            dtype = str(value.dtype).removeprefix("torch.")
            raise ConfigError(f"{folder}: not saved, since {name} has values that are not finite in {dtype}")
    document = {
        "schema": SCHEMA,
        "student": kind_name(policy.config, NETWORKS),
        "config": write_config(policy.config),
        "spec": policy.spec.to_json(),
        "obs_clip": policy.obs_clip,
        "value": policy.value_head is not None,
        "provenance": provenance,
        "sha256": content_hash(tensors),
    }
    if isinstance(policy, KerasStudent):
        policy.save_model(folder)
    write_atomic(folder / TENSORS, lambda temporary: save_file(tensors, temporary))
    write_json(folder / DOCUMENT, document)


def load_native(folder: Path, device: str = "cpu") -> NetworkPolicy:
    """Read a policy that `save_policy` wrote.

    Raises:
        CorruptArtifactError: A file is missing, changed or damaged; the message has the file and the field.
    """
    path = folder / DOCUMENT
    value = read_json(path)
    schema = value.get("schema") if isinstance(value, dict) else type(value).__name__
    if type(schema) is not int or schema != SCHEMA:
        raise CorruptArtifactError(f"{path}: schema {schema}; this version reads schema {SCHEMA}")
    document = PolicyDocument.parse(value, path)
    policy = _build(document, path)
    tensors = _read_tensors(folder / TENSORS, document.sha256)
    # Copies, since the file's own memory is neither aligned nor kept open.
    weights = {name: value.to(torch.float32, copy=True) for name, value in tensors.items()}
    try:
        policy.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CorruptArtifactError(f"{folder / TENSORS}: not the weights of {path}: {reason}") from None
    policy.obs_clip = document.obs_clip
    if isinstance(policy, TreePolicy):
        policy.require_valid(str(folder / TENSORS))
    policy.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return policy.eval()


def content_hash(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def stored_tensors(policy: NetworkPolicy) -> dict[str, Tensor]:
    """Return the tensors of a policy that its file holds; not the integer counters of Keras."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
    return {
        name: value
        for name, value in tensors.items()
        if value.is_floating_point() and not name.startswith("feature_head.")
    }


def _build(document: PolicyDocument, path: Path) -> NetworkPolicy:
    """Return the policy of a document, with weights on "meta", which takes no memory and draws no random number."""
    students = {name: kind for name, kind in USER_CLASSES.items() if not issubclass(kind, Features)}
    kinds = {**NETWORKS, **students}
    if document.student not in kinds:
        raise CorruptArtifactError(
            f"{path}: student: found {document.student!r}, expected one of {', '.join(kinds)}, or one of your own "
            "after rldistill.trust(Class)"
        )
    config, spec = read_config(kinds[document.student], document.config, path), document.spec.spec()
    policy: NetworkPolicy
    try:
        if isinstance(config, Keras):
            policy = load_keras_student(config, spec, path.parent)
        else:
            with torch.device("meta"):
                policy = config.build(spec)
        if document.value:
            policy.add_value("meta")
        return policy
    except (ConfigError, SpecMismatchError) as error:
        raise CorruptArtifactError(f"{path}: config: {error}") from None
    except (TypeError, ValueError, OverflowError, RuntimeError, KeyError, AttributeError):
        raise CorruptArtifactError(f"{path}: config: no network can have these sizes") from None


def _read_tensors(path: Path, expected_hash: str) -> dict[str, Tensor]:
    try:
        require_regular(path)
        tensors = load_file(path)
    except FileNotFoundError:
        raise CorruptArtifactError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptArtifactError(f"{path}: not a complete safetensors file ({error})") from None
    for name, value in tensors.items():
        if value.dtype not in (torch.float32, torch.float16):
            raise CorruptArtifactError(f"{path}: {name} is of {value.dtype}; policies hold float32 or float16")
    if content_hash(tensors) != expected_hash:
        raise CorruptArtifactError(f"{path}: its content is not the one that was saved (SHA-256 differs)")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: {name} holds NaN or infinite weights")
    return tensors
