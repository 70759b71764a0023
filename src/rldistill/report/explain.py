"""Students that a person can read: trees as rules, linear ones as a table or as pictures of their weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.artifacts import write_atomic
from rldistill.errors import ConfigError
from rldistill.students.linear import Linear
from rldistill.students.network import NetworkPolicy
from rldistill.students.ridge import Ridge
from rldistill.students.tree import TreePolicy
from rldistill.types import PolicySpec

MARGIN = 4


def explain(policy: NetworkPolicy) -> str:
    """The policy in words, a line for each rule or for each entry of the observation.

    Raises:
        ConfigError: it is neither a tree nor linear in its observations.
    """
    if isinstance(policy, TreePolicy):
        return "\n".join(_rules(policy, 0, ""))
    weight, bias = _linear(policy)
    if len(policy.spec.obs_shape) == 3:
        return "linear in pixels; --out FILE.png draws its weights"
    names, columns = _entries(policy.spec), _outputs(policy.spec)
    width = max(map(len, [*names, "constant"]))
    rows = [f"{'':<{width}} " + " ".join(f"{column:>12}" for column in columns)]
    table = zip([*names, "constant"], [*weight.T, bias], strict=True)
    rows += [f"{name:<{width}} " + " ".join(f"{number:>12.5g}" for number in numbers) for name, numbers in table]
    return "\n".join(rows)


def draw(policy: NetworkPolicy, path: Path) -> None:
    """Write the weights of a linear policy on pictures as a PNG: a row for each output, a column for each channel.

    Grey is 0, white the largest, black minus the largest.
    """
    import imageio.v2 as imageio

    if len(policy.spec.obs_shape) != 3:
        raise ConfigError(f"--out: only weights on pictures are drawn, these observations are {policy.spec.obs_shape}")
    weight, _ = _linear(policy)
    pictures = weight.reshape(len(weight), *policy.spec.obs_shape)
    grey = np.round(127.5 + 127.5 * pictures / max(float(np.abs(pictures).max()), 1e-12)).astype(np.uint8)
    padded = np.pad(grey, [(0, 0), (0, 0), (0, MARGIN), (0, MARGIN)], constant_values=255)
    whole = np.concatenate([np.concatenate(list(row), 1) for row in padded], 0)
    write_atomic(path, lambda temporary: imageio.imwrite(temporary, whole, format="PNG"))


def _linear(policy: NetworkPolicy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights `[P, N]` and constants on the observation as it comes, with the standardisation worked in."""
    config = policy.config
    if not isinstance(config, Linear) and not (isinstance(config, Ridge) and config.features == "raw"):
        raise ConfigError(
            f"a {type(config).__name__.lower()} student has no rules to print; tree, linear and ridge have"
        )
    if policy.spec.nvec or any(part.nvec for _, part in policy.spec.parts):
        raise ConfigError("a linear student on choices has no weights for its entries; take a tree")
    layer = policy.output
    weight, bias = (parameter.detach().double().numpy() for parameter in (layer.weight, layer.bias))  # type: ignore[operator]
    scale = 255.0 if policy.spec.obs_dtype == "uint8" else 1.0
    shape = (weight.shape[1],)
    mean = np.broadcast_to(policy.obs_mean.double().numpy().ravel(), shape)
    std = np.broadcast_to(policy.obs_std.double().numpy().ravel(), shape)
    return weight / (std * scale), bias - weight @ (mean / std)


def _rules(policy: TreePolicy, node: int, indent: str) -> list[str]:
    feature = int(policy.feature[node])
    if feature < 0:
        return [f"{indent}{_leaf(policy, node)}"]
    name, threshold = _entries(policy.spec)[feature], float(policy.threshold.detach()[node])
    left, right = int(policy.left[node]), int(policy.right[node])
    return [
        f"{indent}if {name} <= {threshold:.5g}:",
        *_rules(policy, left, indent + "  "),
        f"{indent}else:",
        *_rules(policy, right, indent + "  "),
    ]


def _leaf(policy: TreePolicy, node: int) -> str:
    values, head = policy.value[node].detach(), policy.spec.head
    if head.kind == "categorical":
        chances = torch.softmax(values, -1)
        return f"action {int(values.argmax())} ({float(chances.max()):.0%})"
    return "action " + ", ".join(f"{number:.4g}" for number in values.tolist())


def _entries(spec: PolicySpec) -> list[str]:
    names = []
    for key, part in spec.entries.items():
        label = key or "obs"
        if part.nvec:
            choices = [(place, choice) for place, size in enumerate(part.nvec) for choice in range(size)]
            names += [f"[{label}[{place}] == {choice}]" for place, choice in choices]
            continue
        places = np.ndindex(*part.shape) if part.shape else [()]
        names += [f"{label}[{', '.join(map(str, place))}]" for place in places]
    assert len(names) == sum(part.width for part in spec.entries.values()) or not math.prod(spec.obs_shape)
    return names


def _outputs(spec: PolicySpec) -> list[str]:
    head = spec.head
    word = "Q" if head.kind == "q_values" else "action"
    if head.kind in ("categorical", "q_values"):
        return [f"{word} {number}" for number in range(head.num_params)]
    return [f"output {number}" for number in range(head.num_params)]
