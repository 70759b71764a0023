"""Weights of several teachers in each state, by which their labels become one.

The label is the mean of the teachers' distributions, weighted by w_k(s); of continuous actions, the weighted mean of
their actions. With the losses `forward_kl` and of squared errors the student then has the same gradient as with the
sum over teachers of w_k(s) times the loss of each.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from rldistill.core.entries import value_names
from rldistill.core.errors import ConfigError
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import MEMBER, MEMBERS
from rldistill.data.dataset import Dataset, episode_rows
from rldistill.distillation.config import Weighting
from rldistill.distillation.lookahead import learned_weights
from rldistill.distillation.mixture import expectation, softened_outputs, with_weights
from rldistill.distillation.values import own_steps, teacher_values
from rldistill.io.atomic import Document, write_json
from rldistill.policies.ensemble import member_outputs

FILE = "weighting.json"
NUM_TIMES = 10
"""Parts of an episode in the shares of the teachers over time."""
MAX_REGIONS, MIN_REGION_SHARE, MAX_STATES, MIN_DIFFERENCE = 4, 0.05, 5_000, 1e-6
"""Number and least size of the regions of states, states for their fit, and least difference of weights."""


class TeacherShare(Document):
    """Mean weight of one teacher, by parts of an episode too, and its own mean return (None: no episode)."""

    share: float
    over_time: list[float]
    episodes: int
    mean_return: float | None


class Region(Document):
    """States that fulfill a rule, as a share of all, and the mean weight of each teacher in them."""

    rule: str
    states: float
    shares: dict[str, float]


class TeacherShares(Document):
    """Weighting that a student learned with, and the shares of its teachers by name, in a few regions of states too."""

    weighting: Weighting
    teachers: dict[str, TeacherShare]
    regions: list[Region]


def require_weighting(weighting: Weighting, spec: PolicySpec) -> None:
    """Raise ConfigError if a weighting is not defined for the teachers of labels with this spec."""
    if not spec.members and weighting != "uniform":
        raise ConfigError(f"distill.weighting: {weighting} needs several teachers. Name them as `teachers`.")
    for (name, kind), head in zip(spec.members, spec.member_heads, strict=True):
        if weighting == "confidence" and not (head.stochastic or head.action_values):
            raise ConfigError(
                f"distill.weighting: confidence needs distributions over actions, and {name} has {kind} actions. Use "
                "uniform, value or learned."
            )


def weighted_dataset(dataset: Dataset, weighting: Weighting, folder: Path, seed: int = 0) -> Dataset:
    """Return a dataset with one label for each state in place of those of all teachers.

    The shares of the teachers are written into `folder` as `weighting.json`.

    - `uniform`: w_k = 1 / K.
    - `confidence`: w_k(s) is in proportion to the rank of the entropy of teacher k in s among its entropies in all
      states of the dataset, from the least certain one on; so a teacher that is certain everywhere does not outweigh
      the others. Q values are softened by half the mean action gap of their teacher.
    - `value`: 1 for the teacher with the largest V_k(s), fitted to the returns of its own episodes, and 0 for the
      others (MAMBA, Cheng 2020, arXiv 2007.00795; MAPS, Liu 2023, arXiv 2306.10259).
    - `learned`: see `learned_weights` (AMAL, Sivasubramanian 2022, arXiv 2202.03250).

    Raises:
        ConfigError: The weighting is not defined for these teachers, or the dataset has too few of their episodes.
    """
    require_weighting(weighting, dataset.spec)
    outputs = softened_outputs(dataset)
    labels = torch.stack([expectation(output.head, output.params) for output in outputs], 1)
    weights = np.full((len(dataset), len(outputs)), 1 / len(outputs))
    if weighting == "confidence":
        weights = confidence_weights(outputs)
    elif weighting != "uniform":
        values = teacher_values(dataset, folder / "values", seed)
        if weighting == "value":
            weights = np.eye(len(outputs))[values.argmax(1)]
        else:
            weights = learned_weights(dataset, labels, values.mean(1), seed)
    document = {"weighting": weighting, "teachers": _shares(dataset, weights), "regions": _regions(dataset, weights)}
    write_json(folder / FILE, document)
    return with_weights(dataset, labels, torch.from_numpy(weights).float())


def confidence_weights(outputs: list[PolicyOutput]) -> NDArray[np.float64]:
    """Return weights `[N, K]` in proportion to the rank of each teacher's certainty among its own, from 1/N to 1."""
    entropies = [output.head.entropy(output.params).numpy() for output in outputs]
    ranks = np.stack([rankdata(-entropy) / len(entropy) for entropy in entropies], 1)
    return np.asarray(ranks / ranks.sum(1, keepdims=True))


def _shares(dataset: Dataset, weights: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    names = [name for name, _ in dataset.spec.members]
    returns = own_returns(dataset)
    time = np.empty(len(dataset))
    for rows in episode_rows(dataset.columns):
        time[rows] = np.arange(len(rows)) * NUM_TIMES // len(rows)
    return {
        name: {
            "share": float(weights[:, number].mean()),
            "over_time": [float(weights[time == part, number].mean()) for part in np.unique(time)],
            "episodes": len(returns[name]),
            "mean_return": float(np.mean(returns[name])) if returns[name] else None,
        }
        for number, name in enumerate(names)
    }


def _regions(dataset: Dataset, weights: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return the leaves of a small tree that is fitted to the weights, given vectors as observations."""
    spec, rows = dataset.spec, dataset.spread(MAX_STATES)
    if len(spec.obs_shape) > 1 or spec.has_pictures or np.ptp(weights, 0).max() < MIN_DIFFERENCE:
        return []
    from sklearn.tree import DecisionTreeRegressor

    fitted = DecisionTreeRegressor(max_leaf_nodes=MAX_REGIONS, min_samples_leaf=MIN_REGION_SHARE, random_state=0)
    tree = fitted.fit(dataset.observations(rows).numpy(), weights[rows]).tree_
    names, teachers = value_names(spec), [name for name, _ in spec.members]

    def leaves(node: int, rule: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        if tree.children_left[node] < 0:
            shares = map(float, tree.value[node].ravel())
            share = float(tree.n_node_samples[node] / len(rows))
            yield {"rule": " and ".join(rule), "states": share, "shares": dict(zip(teachers, shares, strict=True))}
            return
        name, threshold = names[tree.feature[node]], tree.threshold[node]
        yield from leaves(tree.children_left[node], (*rule, f"{name} <= {threshold:.3g}"))
        yield from leaves(tree.children_right[node], (*rule, f"{name} > {threshold:.3g}"))

    return [region for region in leaves(0, ()) if region["rule"]]


def own_returns(dataset: Dataset) -> dict[str, list[float]]:
    """Return the undiscounted returns of the whole episodes in which each teacher alone acted."""
    names = [name for name, _ in dataset.spec.members]
    returns: dict[str, list[float]] = {name: [] for name in names}
    own = own_steps(dataset)
    for rows in episode_rows(dataset.columns):
        if own[rows[0]]:
            returns[names[dataset.columns[MEMBER][rows[0]]]].append(float(dataset.columns["reward"][rows].sum()))
    return returns


def labels_of_member(dataset: Dataset, number: int) -> Dataset:
    """Return the dataset with the labels of one teacher as they are."""
    output = member_outputs(torch.from_numpy(dataset.columns[MEMBERS]), dataset.spec.member_heads)[number]
    spec = dataclasses.replace(dataset.spec, head=output.head, members=())
    return dataclasses.replace(dataset, spec=spec, columns=dataset.columns | {"teacher": output.params.numpy()})


def best_member(dataset: Dataset) -> int:
    """Return the number of the teacher with the highest mean return of its own episodes."""
    means = [float(np.mean(own)) if own else -np.inf for own in own_returns(dataset).values()]
    return means.index(max(means))
