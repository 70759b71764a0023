"""Interpretable students: trees as rules, linear students as a table or a picture of their weights."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.entries import value_names
from rldistill.core.errors import ConfigError
from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import PolicyOutput
from rldistill.io.atomic import write_atomic
from rldistill.policies.network import NetworkPolicy
from rldistill.reporting.sections import data_url
from rldistill.students.features import CLIP_STD, Objects, Raw, Standardized, Standardizer
from rldistill.students.linear import Linear, Ridge
from rldistill.students.storage import load_native, read_document
from rldistill.students.tree import TreePolicy

PICTURE_GAP = 4
MAX_LINES = 150
KINDS = ("tree", "linear", "ridge")
EQUALS = " == "


def interpretable_student(run: Path, policy: str, seed: int | None) -> dict[str, Any] | None:
    """Return the section on a student: its first lines, or a picture of its weights; None if it has neither.

    Raises:
        CorruptArtifactError: the student's files are broken.
    """
    folder = run / "students" / policy / f"seed-{seed}"
    if not (folder / "policy.json").is_file():
        return None
    if read_document(folder).student not in KINDS:
        return None
    student = load_native(folder)
    try:
        lines = explain(student).splitlines()
    except ConfigError:
        return None  # such as weights on random features
    picture = ""
    if not isinstance(student, TreePolicy) and _picture_shape(student) is not None:
        with tempfile.TemporaryDirectory() as temporary:
            draw(student, Path(temporary) / "weights.png")
            picture = data_url(Path(temporary) / "weights.png", "image/png")
    path, text, more = f"{run.name}/{folder.relative_to(run)}", "\n".join(lines[:MAX_LINES]), len(lines) - MAX_LINES
    return {"policy": policy, "folder": path, "text": text, "more": max(0, more), "picture": picture}


def explain(policy: NetworkPolicy) -> str:
    """Return the policy as text, with a line for each rule or each entry of the observation.

    Raises:
        ConfigError: the policy is neither a tree nor linear in named features.
    """
    if isinstance(policy, TreePolicy):
        thresholds = policy.threshold.detach().double().numpy()
        if isinstance(policy.config.features, Raw | Standardized | Objects):  # in the units of the observation
            mean, std = _scaling(policy, policy.num_features)
            compared = policy.feature.long().numpy()
            thresholds = thresholds * std[compared] + mean[compared]
        return "\n".join(_rules(policy, _names(policy), thresholds, 0, ""))
    weight, bias = _linear(policy)
    if _picture_shape(policy) is not None:
        return "The student is linear in pixels; --out FILE.png draws its weights."
    names, head = _names(policy), policy.spec.head
    word = "output" if not head.single_choice else "Q" if head.action_values else "action"
    columns = [f"{word} {number}" for number in range(head.num_params)]
    width = max(map(len, [*names, "constant"]))
    bounded = any(isinstance(layer, Standardizer) for layer in policy.body.modules())
    mean, std = _scaling(policy, len(names))
    bounds = np.stack([mean - CLIP_STD * std, mean + CLIP_STD * std], 1) if bounded else np.empty((len(names), 0))
    columns += ["from", "to"] if bounded else []
    rows = [f"{'':<{width}} " + " ".join(f"{column:>12}" for column in columns)]
    table = zip([*names, "constant"], [*np.concatenate([weight.T, bounds], 1), bias], strict=True)
    rows += [f"{name:<{width}} " + " ".join(f"{number:>12.5g}" for number in numbers) for name, numbers in table]
    return "\n".join([*rows, *(["values below `from` or above `to` are clipped to them"] if bounded else [])])


def draw(policy: NetworkPolicy, path: Path) -> None:
    """Write the weights of a linear policy on pictures as a PNG: a row for each output, a column for each channel.

    Gray is 0, white is the largest weight, black is its negative.
    """
    import imageio.v2 as imageio

    if isinstance(policy, TreePolicy):
        raise ConfigError("out: a tree has no weights to draw. Use a linear or ridge student.")
    weight, _ = _linear(policy)
    shape = _picture_shape(policy)
    if shape is None:
        raise ConfigError(
            f"out: only weights on pictures can be drawn, and these observations are {policy.spec.obs_shape}"
        )
    pictures = weight.reshape(len(weight), *shape)
    gray = np.round(127.5 + 127.5 * pictures / max(float(np.abs(pictures).max()), 1e-12)).astype(np.uint8)
    padded = np.pad(gray, [(0, 0), (0, 0), (0, PICTURE_GAP), (0, PICTURE_GAP)], constant_values=255)
    whole = np.concatenate([np.concatenate(list(row), 1) for row in padded], 0)
    write_atomic(path, lambda temporary: imageio.imwrite(temporary, whole, format="PNG"))


def _picture_shape(policy: NetworkPolicy) -> tuple[int, ...] | None:
    """Return channels, height and width of weights on pixels; None for other weights."""
    shape = policy.spec.obs_shape
    return shape if len(shape) == 3 and isinstance(policy.config.features, Raw | Standardized) else None


def _linear(policy: NetworkPolicy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights `[P, N]` and constants on named features, in the units of the observation."""
    config = policy.config
    if not isinstance(config, Linear | Ridge):
        kind = type(config).__name__.lower()
        raise ConfigError(f"explain: a {kind} student is not interpretable. Use a tree, linear or ridge student.")
    features, layer = config.features, policy.output
    weight, bias = (parameter.detach().double().numpy() for parameter in (layer.weight, layer.bias))  # type: ignore[operator]
    if not isinstance(features, Raw | Standardized | Objects):
        kind = type(features).__name__.lower()
        raise ConfigError(
            f"explain: weights on {kind} features are not interpretable. Use raw, standardized or objects."
        )
    mean, std = _scaling(policy, weight.shape[1])
    weight = weight / std
    return weight, bias - weight @ mean


def _scaling(policy: NetworkPolicy, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation that each named feature is standardized with, `[N]` each."""
    mean, std = np.zeros(width), np.ones(width)
    if not policy.normalizes_itself:
        entries = policy.spec.entries.values()
        pixels = [np.full(part.width, part.dtype == "uint8" and not part.nvec) for part in entries]
        std = np.where(np.concatenate(pixels), 255.0, 1.0)
    moments = [] if policy.normalizes_itself else [(policy.obs_mean, policy.obs_std)]
    moments += [(layer.mean, layer.std) for layer in policy.body.modules() if isinstance(layer, Standardizer)]
    for layer_moments in moments:
        layer_mean, layer_std = (tensor.double().numpy().ravel() for tensor in layer_moments)
        mean, std = mean + std * layer_mean, std * layer_std
    return mean, std


def _rules(policy: TreePolicy, names: list[str], thresholds: NDArray[np.float64], node: int, indent: str) -> list[str]:
    feature, head, values = int(policy.feature[node]), policy.spec.head, policy.value[node].detach()
    if feature < 0 and not head.discrete:
        return [f"{indent}action " + ", ".join(f"{number:.4g}" for number in values[: len(head.low)].tolist())]
    if feature < 0:
        text = ", ".join(str(number) for number in PolicyOutput(head, values).mode().reshape(-1).tolist())
        share = f" ({float(values.softmax(-1).max()):.0%})" if isinstance(head, CategoricalHead) else ""
        return [f"{indent}action {text}{share}"]
    left, right, name = int(policy.left[node]), int(policy.right[node]), names[feature]
    # The left branch of a one-hot feature is the other values.
    test = name.replace(EQUALS, " != ") if EQUALS in name else f"{name} <= {thresholds[node]:.5g}"
    return [
        f"{indent}if {test}:",
        *_rules(policy, names, thresholds, left, indent + "  "),
        f"{indent}else:",
        *_rules(policy, names, thresholds, right, indent + "  "),
    ]


def _names(policy: NetworkPolicy) -> list[str]:
    """Return the name of each feature: for one of an observation, a value, or one category of an integer."""
    spec, features = policy.spec, policy.config.features
    if isinstance(features, Objects):
        return features.names(spec.obs_shape[0])
    if not isinstance(features, Raw | Standardized):
        _, width = features.build(spec)
        return [f"{type(features).__name__.lower()}[{number}]" for number in range(width)]
    names, values = [], iter(value_names(spec))
    for part in spec.entries.values():
        own = [next(values) for _ in range(math.prod(part.shape))]
        categories = [f"{name}{EQUALS}{k}" for name, size in zip(own, part.nvec, strict=False) for k in range(size)]
        names += categories if part.nvec else own
    return names
