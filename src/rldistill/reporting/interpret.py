"""Students that a person can read: trees as rules, linear ones as a table or as pictures of their weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import PolicySpec
from rldistill.io.atomic import write_atomic
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features import CLIP_STD, AnyFeatures, Objects, Raw, Standardized, Standardizer
from rldistill.students.linear import Linear
from rldistill.students.ridge import Ridge
from rldistill.students.tree import TreePolicy

MARGIN = 4


def explain(policy: NetworkPolicy) -> str:
    """The policy in words, a line for each rule or for each entry of the observation.

    Raises:
        ConfigError: it is neither a tree nor linear in something that has a name.
    """
    if isinstance(policy, TreePolicy):
        return "\n".join(_rules(policy, _names(policy.spec, policy.config.features), _thresholds(policy), 0, ""))
    weight, bias = _linear(policy)
    if _pictures(policy) is not None:
        return "linear in pixels; --out FILE.png draws its weights"
    names, columns = _names(policy.spec, policy.config.features), _outputs(policy.spec)
    width = max(map(len, [*names, "constant"]))
    bounded = any(isinstance(layer, Standardizer) for layer in policy.body.modules())
    mean, std = _scaling(policy, len(names))
    bounds = np.stack([mean - CLIP_STD * std, mean + CLIP_STD * std], 1) if bounded else np.empty((len(names), 0))
    columns += ["from", "to"] if bounded else []
    rows = [f"{'':<{width}} " + " ".join(f"{column:>12}" for column in columns)]
    table = zip([*names, "constant"], [*np.concatenate([weight.T, bounds], 1), bias], strict=True)
    rows += [f"{name:<{width}} " + " ".join(f"{number:>12.5g}" for number in numbers) for name, numbers in table]
    return "\n".join([*rows, *(["what is beyond `from` or `to` counts as that"] if bounded else [])])


def draw(policy: NetworkPolicy, path: Path) -> None:
    """Write the weights of a linear policy on pictures as a PNG: a row for each output, a column for each channel.

    Grey is 0, white the largest, black minus the largest.
    """
    import imageio.v2 as imageio

    if isinstance(policy, TreePolicy):
        raise ConfigError("--out: only the weights of linear and ridge students are drawn, and this is a tree")
    weight, _ = _linear(policy)
    shape = _pictures(policy)
    if shape is None:
        raise ConfigError(f"--out: only weights on pictures are drawn, these observations are {policy.spec.obs_shape}")
    pictures = weight.reshape(len(weight), *shape)
    grey = np.round(127.5 + 127.5 * pictures / max(float(np.abs(pictures).max()), 1e-12)).astype(np.uint8)
    padded = np.pad(grey, [(0, 0), (0, 0), (0, MARGIN), (0, MARGIN)], constant_values=255)
    whole = np.concatenate([np.concatenate(list(row), 1) for row in padded], 0)
    write_atomic(path, lambda temporary: imageio.imwrite(temporary, whole, format="PNG"))


def is_drawn(policy: NetworkPolicy) -> bool:
    """Whether its weights are pictures rather than a table."""
    return not isinstance(policy, TreePolicy) and _pictures(policy) is not None


def _pictures(policy: NetworkPolicy) -> tuple[int, ...] | None:
    """Channels, height and width of the pictures that weights on pixels or on cells of the screen are."""
    features, shape = policy.config.features, policy.spec.obs_shape
    if len(shape) != 3 or not isinstance(features, Raw | Standardized):
        return None
    return shape


def _linear(policy: NetworkPolicy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights `[P, N]` and constants on the features that have names, with the standardisation worked in."""
    config = policy.config
    if not isinstance(config, Linear | Ridge):
        raise ConfigError(
            f"a {type(config).__name__.lower()} student has no rules to print; tree, linear and ridge have"
        )
    features, layer = config.features, policy.output
    weight, bias = (parameter.detach().double().numpy() for parameter in (layer.weight, layer.bias))  # type: ignore[operator]
    if not isinstance(features, Raw | Standardized | Objects):
        raise ConfigError(
            f"weights on {type(features).__name__.lower()} features say nothing to a person; raw, standardized and "
            "objects do"
        )
    if policy.spec.nvec or any(part.nvec for _, part in policy.spec.parts):
        raise ConfigError("a linear student on choices has no weights for its entries; take a tree")
    mean, std = _scaling(policy, weight.shape[1])
    weight = weight / std
    return weight, bias - weight @ mean


def _scaling(policy: NetworkPolicy, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is subtracted from each of the features that have names, and what that is then divided by, `[N]` each."""
    mean, std = np.zeros(width), np.ones(width)
    if not policy.normalizes_itself:
        entries = policy.spec.entries.values()
        bytes_ = [np.full(part.width, part.dtype == "uint8" and not part.nvec) for part in entries]
        std = np.where(np.concatenate(bytes_), 255.0, 1.0)
    moments = [] if policy.normalizes_itself else [(policy.obs_mean, policy.obs_std)]
    moments += [(layer.mean, layer.std) for layer in policy.body.modules() if isinstance(layer, Standardizer)]
    for further in moments:
        its_mean, its_std = (tensor.double().numpy().ravel() for tensor in further)
        mean, std = mean + std * its_mean, std * its_std
    return mean, std


def _thresholds(policy: TreePolicy) -> NDArray[np.float64]:
    """Of all nodes, in the units of what is named."""
    threshold: NDArray[np.float64] = policy.threshold.detach().numpy().astype(np.float64)
    if isinstance(policy.config.features, Raw | Standardized | Objects):
        mean, std = _scaling(policy, policy.num_features)
        compared = policy.feature.long().numpy()
        threshold = threshold * std[compared] + mean[compared]
    return threshold


def _rules(policy: TreePolicy, names: list[str], thresholds: NDArray[np.float64], node: int, indent: str) -> list[str]:
    feature = int(policy.feature[node])
    if feature < 0:
        return [f"{indent}{_leaf(policy, node)}"]
    left, right = int(policy.left[node]), int(policy.right[node])
    return [
        f"{indent}if {names[feature]} <= {thresholds[node]:.5g}:",
        *_rules(policy, names, thresholds, left, indent + "  "),
        f"{indent}else:",
        *_rules(policy, names, thresholds, right, indent + "  "),
    ]


def _leaf(policy: TreePolicy, node: int) -> str:
    values, head = policy.value[node].detach(), policy.spec.head
    if isinstance(head, CategoricalHead):
        chances = torch.softmax(values, -1)
        return f"action {int(values.argmax())} ({float(chances.max()):.0%})"
    return "action " + ", ".join(f"{number:.4g}" for number in values.tolist())


def _names(spec: PolicySpec, features: AnyFeatures) -> list[str]:
    if isinstance(features, Objects):
        return features.names(spec.obs_shape[0])
    if isinstance(features, Raw | Standardized):
        return _entries(spec)
    _, width = features.build(spec)
    return [f"{type(features).__name__.lower()}[{number}]" for number in range(width)]


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
    word = "Q" if head.action_values else "action"
    if head.single_choice:
        return [f"{word} {number}" for number in range(head.num_params)]
    return [f"output {number}" for number in range(head.num_params)]
