"""Metadata of exported files."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rldistill.core.entries import value_names_of
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.exporters.onnx import params_names, require_input_names
from rldistill.exporters.runtimes import Interface
from rldistill.io.provenance import provenance
from rldistill.teachers.fingerprint import fingerprint


@dataclass(frozen=True)
class ExportContext:
    """Facts about the origin of a policy, for its metadata and its certificate.

    Attributes:
        name: Path of the policy, or its name.
        seed: Seed of the episodes.
        dataset: Dataset that it was distilled from; its held-out observations are compared.
        facts: Further metadata: scores, hash of the dataset, fingerprint of the teacher.
    """

    name: str = "policy"
    seed: int = 0
    dataset: Dataset | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def onnx_metadata(
    policy: Policy, env: EnvConfig, context: ExportContext, agents: list[str] | None = None
) -> dict[str, str]:
    """Return the metadata of the ONNX file of a policy, or of the network of some agents.

    They are all facts as JSON, and flat keys that robot runtimes read.

    Raises:
        ExportError: An entry of the observation has the name of another input or output of the model.
    """
    require_input_names(policy.spec)
    spec, head, state_shape = policy.spec, policy.spec.head, Interface.of(policy).state_shape
    names = names_by_entry(policy)
    facts = {
        "observation": [
            {"name": key or "obs", "shape": part.shape, "dtype": part.dtype, "order": names[key or "obs"][:64]}
            for key, part in spec.entries.items()
        ],
        "action": {"head": head.kind, "nvec": head.nvec, "low": _texts(head.low), "high": _texts(head.high),
                   "selection": "greedy"},
        "outputs": params_names(head),
        "environment": {"id": env.id, "kwargs": env.kwargs,
                        "wrappers": [dataclasses.asdict(wrapper) for wrapper in env.wrappers]},
        "frames": None if spec.frames is None else dataclasses.asdict(spec.frames),
        "state": None if state_shape is None else {
            "shape": state_shape, "reset": "zeros at the first step of an episode"},
        "policy": context.name, "kind": kind_of(policy), "fingerprint": fingerprint(policy),
        "versions": provenance(context.seed)["versions"],
        **({} if agents is None else {"agents": agents}),
        **context.facts,
    }  # fmt: skip
    flat = {"observation_names": ",".join(name for own in names.values() for name in own[:64])}
    if not head.discrete:
        flat["action_scale"] = ",".join(f"{(high - low) / 2:g}" for low, high in zip(head.low, head.high, strict=True))
    return {"rldistill": json.dumps(facts, sort_keys=True, allow_nan=False), **flat}


def kind_of(policy: Policy) -> str:
    """Return the family of a policy, such as `mlp`."""
    while hasattr(policy, "policy"):
        policy = policy.policy
    return type(getattr(policy, "config", policy)).__name__.lower()


def names_by_entry(policy: Policy) -> dict[str, list[str]]:
    """Return the names of the values of each entry, such as `speed[0]`; one name for an entry of more than 64."""
    return {
        key or "obs": value_names_of(key, part) if math.prod(part.shape) <= 64 and part.shape else [key or "obs"]
        for key, part in policy.spec.entries.items()
    }


def _texts(bounds: tuple[float, ...]) -> list[str]:
    """Return bounds as text, since JSON has no infinite numbers."""
    return [f"{bound:.9g}" for bound in bounds]
