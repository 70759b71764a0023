"""The fit of trees: grown by scikit-learn, kept as arrays of our own."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError, NothingLearnedError, SpecMismatchError
from rldistill.core.heads import ILLEGAL, ActionHead, BernoulliHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.ridge import solvable
from rldistill.distillation.tree_alternating import LeafFn, LossFn, Nodes, improve_splits
from rldistill.io.metrics import Metrics
from rldistill.losses import LOSSES, ActionNLL, AdvantageMSE, AnyLoss, ForwardKL, GapWeightedNLL
from rldistill.losses.objective import default_temperature
from rldistill.losses.value import bounded_advantages
from rldistill.students.tree import SHARE_EPSILON, Tree, TreePolicy

ROWS = 4_096
TINY = float(np.finfo(float).tiny)
SAMPLE = 5_000
"""Observations that features which depend on the data look at."""
FORBIDDEN = 1.0
"""What one costs that is not legal, which play does not take whatever the tree says."""


def fit_tree(dataset: Dataset, student: Tree, losses: tuple[AnyLoss, ...], folder: Path, seed: int) -> TreePolicy:
    """Grow the tree, and write `metrics.jsonl`.

    It learns the teacher's most likely actions, weighted with what a mistake costs where its Q values tell, which is
    max_a Q(s, a) - min_a Q(s, a) (VIPER, Bastani 2018, arXiv 1805.08328). With `action_nll`, all states count alike;
    with `advantage_mse` it learns what each action costs: it is grown by least squares on the bounded advantages, and
    its leaves say the mean of (Q(s, a) - max_a' Q(s, a')) / temperature.

    Raises:
        ConfigError: a loss that a tree cannot minimise.
        SpecMismatchError: values of a teacher that has none.
        NothingLearnedError: it agrees with the teacher no more often than the most frequent action does.
    """
    started = time.monotonic()
    blank = empty_tree(student, losses, dataset.spec)
    spec = blank.spec
    costs = next((loss for loss in losses if isinstance(loss, AdvantageMSE)), None)
    blank.fit_features(dataset.observations(dataset.spread(SAMPLE)))
    obs, actions, weights = _table(dataset, blank, losses)
    train, heldout = np.flatnonzero(~dataset.heldout), np.flatnonzero(dataset.heldout)
    seen, weights = obs[train], weights[train]
    if costs is None:
        target, wanted = actions[train], _shares(spec.head, actions[train])
    else:
        temperature = costs.temperature or default_temperature(dataset.spec.head, dataset.action_gap)
        labels = torch.from_numpy(dataset.columns["teacher"][train])
        target, wanted = bounded_advantages(labels, temperature).numpy(), _advantages(labels, temperature)
        weights = np.ones_like(weights)
    grown = _sklearn_tree(student, spec.head.discrete and costs is None, seed)
    grown.fit(seen, target, sample_weight=weights)
    nodes = Nodes.of(grown.tree_)
    wanted *= weights[:, None]
    if student.alternating_passes:
        nodes = improve_splits(
            nodes, seen, *_mistakes(spec.head, wanted, weights), student.alternating_passes, student.min_samples
        )
    means = _means(nodes, seen, wanted, weights)
    policy = _policy(blank, nodes, _log_shares(spec.head, means) if costs is None else means)
    right, constant = _scores(policy, obs[heldout], actions[heldout], actions[train])
    discrete = spec.head.discrete
    row: dict[str, Any] = {"epoch": 1, "step": len(train), "heldout_loss": 1 - right if discrete else -right}
    row |= {"agreement": right if discrete else None, "nodes": len(nodes.feature)}
    row["seconds"] = round(time.monotonic() - started, 3)
    Metrics(folder).write([row])
    if not right > constant:
        raise NothingLearnedError(
            f"{folder}: the student learned nothing: on held-out episodes it has {right:.4g}, always saying the same "
            f"has {constant:.4g}. Collect more steps, or let it be deeper."
        )
    return policy


def empty_tree(student: Tree, losses: tuple[AnyLoss, ...], spec: PolicySpec) -> TreePolicy:
    """A tree without a question, for data of that spec; raises as `fit_tree` does of losses that do not fit."""
    names = {kind: name for name, kind in LOSSES.items()}
    for loss in losses:
        if not isinstance(loss, ForwardKL | ActionNLL | GapWeightedNLL | AdvantageMSE):
            raise ConfigError(
                f"distill.losses: a tree learns the teacher's actions, which {type(loss).__name__} is not about; leave "
                "it out, or take action_nll, gap_weighted_nll, advantage_mse or a student that learns by gradient"
            )
        if isinstance(loss, GapWeightedNLL | AdvantageMSE) and not spec.head.action_values:
            raise SpecMismatchError(
                f"distill.losses: {names[type(loss)]} needs a teacher of Q values, this one is {spec.head.kind}: take "
                "action_nll"
            )
    if len(losses) > 1 and any(isinstance(loss, AdvantageMSE) for loss in losses):
        raise ConfigError("distill.losses: a tree minimises advantage_mse alone; leave the others out")
    blank = dataclasses.replace(student, nodes=0).build(_spoken(solvable(spec)))
    assert isinstance(blank, TreePolicy)
    return blank


def _spoken(spec: PolicySpec) -> PolicySpec:
    """A tree knows actions, not what they are worth."""
    return dataclasses.replace(spec, head=spec.head.as_kind("categorical")) if spec.head.action_values else spec


def _sklearn_tree(student: Tree, classifies: bool, seed: int) -> Any:
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    kind = DecisionTreeClassifier if classifies else DecisionTreeRegressor
    return kind(
        max_depth=student.max_depth,
        max_leaf_nodes=student.max_leaves,
        min_samples_leaf=student.min_samples,
        random_state=seed,
    )


def _table(
    dataset: Dataset, blank: TreePolicy, losses: tuple[AnyLoss, ...]
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.float64]]:
    """What the policy compares, the teacher's actions `[N, parts]`, and weights."""
    weighted = dataset.spec.head.action_values and not any(isinstance(loss, ActionNLL) for loss in losses)
    obs = np.empty((len(dataset), blank.num_features), np.float32)
    actions, weights = [], []
    rows = np.arange(len(dataset))
    with torch.no_grad():
        for start in range(0, len(rows), ROWS):
            batch = dataset.batch(rows[start : start + ROWS])
            obs[start : start + ROWS] = blank.hidden(batch.obs).numpy()
            actions.append(batch.teacher.mode().numpy().reshape(len(batch.action), -1))
            labels = batch.teacher.params
            weights.append(GapWeightedNLL.weights(labels).numpy() if weighted else np.ones(len(labels)))
    # One with no weight at all would be none that scikit-learn could split.
    return obs, np.concatenate(actions), np.concatenate(weights).astype(np.float64) + 1e-9


def _shares(head: ActionHead, actions: NDArray[Any]) -> NDArray[np.float64]:
    """What the mean over a leaf is taken of: for each choice whether it is made, or the actions as they are."""
    if not head.discrete:
        return actions.astype(np.float64)
    return np.concatenate([np.eye(size)[column] for size, column in zip(head.choices, actions.T, strict=True)], 1)


def _advantages(labels: Tensor, temperature: float) -> NDArray[np.float64]:
    """What each action is worth less than the best one, in temperatures, `[N, A]`."""
    lost = (labels - labels.amax(1, keepdim=True)) / temperature
    return lost.masked_fill(labels <= ILLEGAL / 2, -FORBIDDEN).double().numpy()


def _mistakes(head: ActionHead, wanted: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[LossFn, LeafFn]:
    """What a tree is refined by: what its choices are worth less than the best, or the squared error of its actions.

    Args:
        head: of the tree.
        wanted: `[N, K]`, times the weights.
        weights: `[N]`.
    """
    ends = np.cumsum(head.choices) if head.discrete else np.array([wanted.shape[1]])
    parts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    best = np.sum([wanted[:, part].max(1) for part in parts], 0)

    def says(leaf: NDArray[np.intp], count: int) -> NDArray[Any]:
        total = _sums(leaf, wanted, count)
        if not head.discrete:
            return total / np.maximum(np.bincount(leaf, weights, count), TINY)[:, None]
        return np.stack([part.start + total[:, part].argmax(1) for part in parts], 1)

    def costs(rows: NDArray[np.intp], said: NDArray[Any]) -> NDArray[np.float64]:
        if not head.discrete:
            apart = wanted[rows] / weights[rows, None] - said
            return np.asarray(weights[rows] * (apart**2).sum(1))
        return np.asarray(best[rows] - sum(wanted[rows, column] for column in said.T))

    return costs, says


def _sums(place: NDArray[np.intp], numbers: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The sums of `[N, K]` at each of so many places, `[count, K]`."""
    return np.stack([np.bincount(place, column, count) for column in numbers.T], 1)


def _means(
    nodes: Nodes, obs: NDArray[np.float32], wanted: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weighted mean at each node, `[nodes, K]`, of `wanted`, which is times the weights."""
    levels = nodes.levels
    total, weight = np.zeros((len(levels), wanted.shape[1])), np.zeros(len(levels))
    at, below = np.zeros(len(obs), np.intp), np.arange(len(obs))
    for level in range(int(levels.max()) + 1):
        total += _sums(at[below], wanted[below], len(levels))
        weight += np.bincount(at[below], weights[below], len(levels))
        at = nodes.lead(obs, at, 1)
        below = np.flatnonzero(levels[at] == level + 1)
    return total / np.maximum(weight, TINY)[:, None]


def _log_shares(head: ActionHead, means: NDArray[np.float64]) -> NDArray[np.float64]:
    """The head's numbers at each node: log-shares of the choices, or the mean action."""
    if not head.discrete:
        return means
    logs = np.log(means + SHARE_EPSILON)
    return logs[:, 1::2] - logs[:, ::2] if isinstance(head, BernoulliHead) else logs


def _policy(blank: TreePolicy, nodes: Nodes, params: NDArray[np.float64]) -> TreePolicy:
    config = dataclasses.replace(blank.config, nodes=len(nodes.feature))
    policy = TreePolicy(config, blank.spec, blank.body, blank.num_features)
    with torch.no_grad():
        policy.feature.copy_(torch.from_numpy(nodes.feature))
        policy.threshold.copy_(torch.from_numpy(_at_most(nodes.threshold)))
        policy.left.copy_(torch.from_numpy(np.maximum(nodes.left, 0)))
        policy.right.copy_(torch.from_numpy(np.maximum(nodes.right, 0)))
        policy.value.copy_(torch.from_numpy(params.astype(np.float32)))
    return policy.eval()


def _at_most(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is no larger, so that a float32 entry is compared as scikit-learn does it."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _scores(
    policy: TreePolicy, obs: NDArray[np.float32], actions: NDArray[Any], seen: NDArray[Any]
) -> tuple[float, float]:
    """On held-out transitions the share of right actions, or minus the squared error; and that of the best constant."""
    with torch.no_grad():
        params = torch.cat([policy.leaf_values(part) for part in torch.split(torch.from_numpy(obs), ROWS)])
    said = PolicyOutput(policy.spec.head, params).mode().numpy().reshape(len(obs), -1)
    if not policy.spec.head.discrete:
        constant = seen.mean(0)
        return -float(((said - actions) ** 2).mean()), -float(((constant - actions) ** 2).mean())
    most = [np.bincount(column).argmax() for column in seen.T]
    return float((said == actions).mean()), float((np.array(most) == actions).mean())
