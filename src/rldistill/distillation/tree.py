"""Fit of trees: scikit-learn fits them, our own arrays store them."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import ILLEGAL, ActionHead, BernoulliHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.prepare import SAMPLE_SIZE
from rldistill.distillation.ridge import solvable_spec
from rldistill.distillation.tree_alternating import LeafFn, LossFn, Nodes, improve_splits
from rldistill.losses import ActionNLL, AdvantageMSE, AnyLoss, ForwardKL, GapWeightedNLL
from rldistill.losses.objective import default_temperature
from rldistill.students.student import build_student
from rldistill.students.tree import SHARE_EPSILON, Tree, TreePolicy

ROWS_PER_BATCH = 4_096
MIN_WEIGHT = float(np.finfo(float).tiny)


def fit_tree(
    dataset: Dataset, student: Tree, losses: tuple[AnyLoss, ...], seed: int
) -> tuple[TreePolicy, dict[str, Any], str | None]:
    """Return a fitted tree, its metrics, and the problem if it learned nothing.

    It learns the teacher's most likely actions, weighted for Q values with the cost of the worst mistake, which is
    max_a Q(s, a) - min_a Q(s, a) (VIPER, Bastani 2018, arXiv 1805.08328). With `action_nll`, all states have the same
    weight. With `advantage_mse` it learns the cost of each action: least squares on the bounded advantages, less their
    mean over the actions, choose the splits, and the leaves hold the means of `legal_advantages`. Without their mean,
    since splits by how much is at stake in a state do not help to choose between its actions.
    """
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    torch.manual_seed(seed)
    empty = empty_tree(student, losses, dataset.spec)
    head = empty.spec.head
    advantage_loss = next((loss for loss in losses if isinstance(loss, AdvantageMSE)), None)
    empty.fit_features(dataset.observations(dataset.spread(SAMPLE_SIZE)))
    features, actions, all_weights = tree_data(dataset, empty, losses)
    train, heldout = np.flatnonzero(~dataset.heldout), np.flatnonzero(dataset.heldout)
    x, weights = features[train], all_weights[train]
    if advantage_loss is None:
        target, leaf_labels = actions[train], one_hot_choices(head, actions[train])
    else:
        temperature = advantage_loss.temperature or default_temperature(dataset.spec.head, dataset.action_gap)
        advantages = legal_advantages(dataset.columns["teacher"], temperature)
        bounded = np.tanh(advantages[train])
        target, leaf_labels = bounded - bounded.mean(1, keepdims=True), advantages[train]
        weights = np.ones_like(weights)
    fitted = (DecisionTreeClassifier if head.discrete and advantage_loss is None else DecisionTreeRegressor)(
        max_depth=student.max_depth,
        max_leaf_nodes=student.max_leaves,
        min_samples_leaf=student.min_samples,
        random_state=seed,
    ).fit(x, target, sample_weight=weights)
    nodes = Nodes.from_sklearn(fitted.tree_)
    leaf_labels = leaf_labels * weights[:, None]
    if student.alternating_passes:
        loss_fn, leaf_fn = alternating_loss(head, leaf_labels, weights)
        nodes = improve_splits(nodes, x, loss_fn, leaf_fn, student.alternating_passes, student.min_samples)
    leaf, num_nodes = nodes.leaves(x), len(nodes.feature)
    means = _sums(leaf, leaf_labels, num_nodes)
    means /= np.maximum(np.bincount(leaf, weights, num_nodes), MIN_WEIGHT)[:, None]
    if advantage_loss is None and head.discrete:
        means = np.log(means + SHARE_EPSILON)
        means = means[:, 1::2] - means[:, ::2] if isinstance(head, BernoulliHead) else means
    policy = _policy(empty, nodes, means)
    if advantage_loss is None:
        score, constant_score = _scores(policy, features[heldout], actions[heldout], actions[train])
        row = {"heldout_loss": 1 - score if head.discrete else -score, "agreement": score if head.discrete else None}
    else:  # actions of equal value are no mistakes
        chosen = _chosen(policy, features[heldout])
        score = float(np.take_along_axis(advantages[heldout], chosen, 1).mean())
        constant_score = float(advantages[heldout, leaf_labels.mean(0).argmax()].mean())
        row = {"heldout_loss": -score, "agreement": float((chosen == actions[heldout]).mean())}
    problem = (
        f"its score on held-out episodes is {score:.4g}, that of the best constant action {constant_score:.4g}. "
        "Collect more steps, or use a deeper tree."
    )
    return policy, row | {"nodes": num_nodes}, None if score > constant_score else problem


def empty_tree(student: Tree, losses: tuple[AnyLoss, ...], spec: PolicySpec) -> TreePolicy:
    """Return a tree of one leaf for data of `spec`; raise the errors of `fit_tree` about its losses."""
    for loss in losses:
        if not isinstance(loss, ForwardKL | ActionNLL | GapWeightedNLL | AdvantageMSE):
            raise ConfigError(
                f"distill.losses: a tree cannot minimize {type(loss).__name__}. Use action_nll, gap_weighted_nll, "
                "advantage_mse or a student that learns by gradient."
            )
        if isinstance(loss, GapWeightedNLL | AdvantageMSE) and not spec.head.action_values:
            raise SpecMismatchError(
                f"distill.losses: {type(loss).__name__} needs a teacher of Q values, this one is {spec.head.kind}. "
                "Use action_nll."
            )
    if len(losses) > 1 and any(isinstance(loss, AdvantageMSE) for loss in losses):
        raise ConfigError("distill.losses: a tree minimizes advantage_mse alone. Remove the other losses.")
    spec = solvable_spec(spec)
    if spec.head.action_values:  # a tree has choices, not their values
        spec = dataclasses.replace(spec, head=spec.head.as_kind("categorical"))
    policy = build_student(dataclasses.replace(student, nodes=0), spec)
    assert isinstance(policy, TreePolicy)
    return policy


def tree_data(
    dataset: Dataset, policy: TreePolicy, losses: tuple[AnyLoss, ...]
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.float64]]:
    """Return the compared features `[N, F]`, the teacher's actions `[N, parts]` and the weights `[N]`."""
    weighted = dataset.spec.head.action_values and not any(isinstance(loss, ActionNLL) for loss in losses)
    features = np.empty((len(dataset), policy.num_features), np.float32)
    actions, weights = [], []
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(dataset)), -(-len(dataset) // ROWS_PER_BATCH)):
            batch = dataset.batch(rows)
            features[rows] = policy.hidden(batch.obs).numpy()
            actions.append(batch.teacher.mode().numpy().reshape(len(rows), -1))
            labels = batch.teacher.params
            weights.append(GapWeightedNLL.weights(labels).numpy() if weighted else np.ones(len(labels)))
    # scikit-learn cannot split data without any weight.
    return features, np.concatenate(actions), np.concatenate(weights).astype(np.float64) + 1e-9


def one_hot_choices(head: ActionHead, actions: NDArray[Any]) -> NDArray[np.float64]:
    """Return discrete actions as one-hot vectors of all choices, `[N, K]`, and continuous actions unchanged."""
    if not head.discrete:
        return actions.astype(np.float64)
    return np.concatenate([np.eye(size)[column] for size, column in zip(head.choices, actions.T, strict=True)], 1)


def alternating_loss(
    head: ActionHead, leaf_labels: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[LossFn, LeafFn]:
    """Return the loss that alternating passes lower, and the best choices of the leaves.

    The loss is the value of the best choice less that of the leaf's choice, or the squared error of the actions; the
    labels `[N, K]` are the values of the choices, or the actions, times the weights `[N]`.
    """
    ends = np.cumsum(head.choices) if head.discrete else np.array([leaf_labels.shape[1]])
    parts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    best = np.sum([leaf_labels[:, part].max(1) for part in parts], 0)

    def leaf_choices(leaf: NDArray[np.intp], count: int) -> NDArray[Any]:
        total = _sums(leaf, leaf_labels, count)
        if not head.discrete:
            return total / np.maximum(np.bincount(leaf, weights, count), MIN_WEIGHT)[:, None]
        return np.stack([part.start + total[:, part].argmax(1) for part in parts], 1)

    def loss(rows: NDArray[np.intp], choices: NDArray[Any]) -> NDArray[np.float64]:
        if not head.discrete:
            error = leaf_labels[rows] / weights[rows, None] - choices
            return np.asarray(weights[rows] * (error**2).sum(1))
        return np.asarray(best[rows] - sum(leaf_labels[rows, column] for column in choices.T))

    return loss, leaf_choices


def _sums(index: NDArray[np.intp], values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the sums of values `[N, K]` by index, `[count, K]`."""
    return np.stack([np.bincount(index, column, count) for column in values.T], 1)


def _policy(empty: TreePolicy, nodes: Nodes, params: NDArray[np.float64]) -> TreePolicy:
    config = dataclasses.replace(empty.config, nodes=len(nodes.feature))
    policy = TreePolicy(config, empty.spec, empty.body, empty.num_features)
    with torch.no_grad():
        policy.feature.copy_(torch.from_numpy(nodes.feature))
        policy.threshold.copy_(torch.from_numpy(round_down(nodes.threshold)))
        policy.left.copy_(torch.from_numpy(np.maximum(nodes.left, 0)))
        policy.right.copy_(torch.from_numpy(np.maximum(nodes.right, 0)))
        policy.value.copy_(torch.from_numpy(params.astype(np.float32)))
    return policy.eval()


def round_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 that is not larger, so that float32 features take the branches of scikit-learn."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def legal_advantages(values: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Return (Q(s, a) - max_a' Q(s, a')) / temperature, `[N, A]`; for an illegal action, its mean where it is legal.

    So no split serves to predict which actions are legal, which the mask of the policy knows.
    """
    advantages: NDArray[np.float64] = (values.astype(np.float64) - values.max(1, keepdims=True)) / temperature
    legal = values > ILLEGAL / 2
    means = np.where(legal, advantages, 0.0).sum(0) / np.maximum(legal.sum(0), 1)
    return np.asarray(np.where(legal, advantages, means), np.float64)


def _chosen(policy: TreePolicy, features: NDArray[np.float32]) -> NDArray[Any]:
    """Return the actions of the tree, `[N, parts]`, without an action mask."""
    with torch.no_grad():
        parts = torch.split(torch.from_numpy(features), ROWS_PER_BATCH)
        params = torch.cat([policy.leaf_values(part) for part in parts])
    return PolicyOutput(policy.spec.head, params).mode().numpy().reshape(len(features), -1)


def _scores(
    policy: TreePolicy, features: NDArray[np.float32], actions: NDArray[Any], train_actions: NDArray[Any]
) -> tuple[float, float]:
    """Return the held-out agreement, or minus the squared error, of the tree and of the best constant action."""
    chosen = _chosen(policy, features)
    if not policy.spec.head.discrete:
        constant = train_actions.mean(0)
        return -float(((chosen - actions) ** 2).mean()), -float(((constant - actions) ** 2).mean())
    most_frequent = np.array([np.bincount(column).argmax() for column in train_actions.T])
    return float((chosen == actions).mean()), float((most_frequent == actions).mean())
