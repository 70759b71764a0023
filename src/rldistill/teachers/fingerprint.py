"""Who a teacher is, by what it is made of and not by where it was read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from torch import Tensor, nn

from rldistill.core.policy import Policy
from rldistill.policies.ensemble import Ensemble
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import content_hash, stored_tensors
from rldistill.teachers.keras import KerasPolicy
from rldistill.teachers.onnx import OnnxPolicy


def fingerprint(policy: Policy) -> str:
    """The same text for two policies that say the same because they are the same: what they are, and a hash of it.

    Of a network its numbers and how they are read, of ONNX and Keras the file, of an ensemble its members and their
    vote. What is in Python cannot be hashed: it is `module:factory` as it was written, with the numbers of a network.
    Of the spec only the head counts, since the rest may be what the environment told.
    """
    kind = f"{type(policy).__module__}:{type(policy).__qualname__}"
    name = getattr(policy, "name", None) or kind
    if isinstance(policy, Ensemble):
        return _hashed(f"Ensemble, {policy.vote}", [policy.vote, *map(fingerprint, policy.members)])
    if isinstance(policy, OnnxPolicy | KerasPolicy):
        return _hashed(type(policy).__name__, [policy.digest, policy.spec.head.to_json(), policy.asked])
    if isinstance(policy, NetworkPolicy):
        parts = [content_hash(stored_tensors(policy)), policy.spec.head.to_json(), policy.obs_clip, policy.config]
        return _hashed(type(policy).__name__, [kind, *parts])
    if isinstance(policy, nn.Module):
        numbers = {key: value.detach().cpu() for key, value in policy.state_dict().items() if isinstance(value, Tensor)}
        return _hashed(name, [content_hash(numbers), policy.spec.head.to_json()])
    return str(name)


def _hashed(name: str, parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return f"{name} {hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)
