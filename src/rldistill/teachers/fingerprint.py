"""Fingerprints of teachers: their content, not their location."""

import dataclasses
import hashlib
import json
from typing import Any

from torch import Tensor, nn

from rldistill.core.policy import Policy, PolicyWrapper
from rldistill.io.tensors import content_hash
from rldistill.policies.ensemble import Committee, Ensemble
from rldistill.policies.joint import JointPolicy
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import stored_tensors


def fingerprint(policy: Policy) -> str:
    """Return the same text for two policies with the same content: their class and a hash.

    Python code cannot be hashed: its content is its name, `module:factory`, with the tensors of a network. Of the spec
    only the head counts, since the rest may come from the environment.
    """
    kind = f"{type(policy).__module__}:{type(policy).__qualname__}"
    name, head = getattr(policy, "name", None) or kind, policy.spec.head.to_json()
    if isinstance(policy, Committee):
        return _hashed("Committee", [*policy.names, *map(fingerprint, policy.members)])
    if isinstance(policy, Ensemble):
        return _hashed(f"Ensemble, {policy.vote}", [policy.vote, *map(fingerprint, policy.members)])
    if isinstance(policy, JointPolicy):
        return _hashed("JointPolicy", [*map(fingerprint, policy.members)])
    if (parts := getattr(policy, "content_parts", None)) is not None:
        return _hashed(type(policy).__name__, [*parts, head])
    if isinstance(policy, NetworkPolicy):
        digest, config = content_hash(stored_tensors(policy)), policy.config
        config = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config  # type: ignore[arg-type]
        return _hashed(type(policy).__name__, [kind, digest, head, policy.obs_clip, config])
    if isinstance(policy, nn.Module):
        tensors = {key: value.detach().cpu() for key, value in policy.state_dict().items() if isinstance(value, Tensor)}
        return _hashed(name, [content_hash(tensors), head])
    return str(name)


@dataclasses.dataclass(frozen=True)
class IdentifiedWrapper(PolicyWrapper):
    """Base of wrappers with the identity of their policy and of their other fields."""

    @property
    def content_parts(self) -> tuple[str, ...]:
        """The identity of the policy."""
        return *(str(value) for name, value in vars(self).items() if name != "policy"), fingerprint(self.policy)


def _hashed(name: str, parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"{name} {hashlib.sha256(text.encode()).hexdigest()[:32]}"
