"""Weights of several teachers in each state, by which their labels become one, their weighted mean."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.entries import value_names
from rldistill.core.errors import ConfigError
from rldistill.core.heads import ILLEGAL, ActionHead, BernoulliHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import MEMBER, MEMBERS
from rldistill.data.dataset import Dataset, action_gap, episode_rows
from rldistill.distillation.config import DistillConfig, Weighting
from rldistill.distillation.gradient import Trainer
from rldistill.distillation.values import BATCH_SIZE, outputs, own_steps, small_network, teacher_values
from rldistill.io.atomic import Document, write_json
from rldistill.losses.objective import default_temperature
from rldistill.policies.ensemble import MIN_PROBABILITY, member_outputs
from rldistill.policies.network import NetworkPolicy

FILE = "weighting.json"
NUM_TIMES = 10
"""Parts of an episode in the shares of the teachers over time."""
MAX_REGIONS, MIN_REGION_SHARE, MAX_STATES, MIN_DIFFERENCE = 4, 0.05, 5_000, 1e-6
"""Number and least size of the regions of states, states for their fit, and least difference of weights."""
EPOCHS = 10
LOG_WEIGHT_STEP = 0.5
"""Step of the logarithm of the weights, for a gain of one standard deviation."""
MAX_WEIGHT = 20.0
NUM_FOLDS = 2


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
    from scipy.stats import rankdata  # here, because the import is slow and few commands need it

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


def learned_weights(
    dataset: Dataset, labels: Tensor, values: NDArray[np.float64], seed: int = 0
) -> NDArray[np.float64]:
    """Return weights `[N, K]` of the teachers, one for each sample, that lower the loss on held-out data.

    A small network learns the weighted labels. After each epoch, a step of gradient descent on sample i with the label
    q_ik of teacher k would lower the held-out loss by

        <g_ik, g> = (q_ik - p_i)' G h_i + constant,  G = sum_j c_j (a_j - p_j) h_j' / sum_j c_j,

    with the last hidden layer h, the predicted probabilities p (or action), the recorded action a_j as one-hot vector,
    and c_j = min(exp(A_j / rms A), 20) of its advantage A_j, the return-to-go minus the mean value of the teachers. So
    g is the gradient of the advantage-weighted log-likelihood (Peng 2019, arXiv 1910.00177), all gradients are those of
    the last layer, and the logarithm of w_ik grows in proportion to <g_ik, g>. The episodes are in two halves, each of
    which is the held-out data of the other. Bilevel weights of each sample: AMAL, Sivasubramanian 2022, arXiv
    2202.03250.

    Args:
        dataset: The states.
        labels: The probabilities or actions of the teachers, `[N, K, E]`.
        values: The mean value of the teachers in each state, `[N]`.
        seed: Seed of the network and of the halves.
    """
    own, head = own_steps(dataset), dataset.spec.head.neutral
    advantage = dataset.columns["return_to_go"] - values
    scale = max(float(np.sqrt(np.square(advantage[own]).mean())), 1e-8)
    importance = torch.from_numpy(own * np.exp(np.minimum(advantage / scale, np.log(MAX_WEIGHT)))).float()
    target = expectation(head, head.certain(torch.from_numpy(dataset.columns["action"])))
    episodes = np.random.default_rng(seed).permutation(dataset.num_episodes) % NUM_FOLDS
    fold = episodes[dataset.columns["episode"]]
    weights = torch.full(labels.shape[:2], 1 / labels.shape[1])
    config = DistillConfig(epochs=EPOCHS, batch_size=BATCH_SIZE)
    for number in range(NUM_FOLDS):
        train, counted = fold == number, importance * torch.from_numpy(fold != number)
        log_weights = torch.zeros_like(weights)
        data = dataclasses.replace(with_weights(dataset, labels, weights), heldout=~train)
        trainer = Trainer(data, small_network(data.spec), config, seed)
        for epoch in range(EPOCHS):
            trainer.dataset = dataclasses.replace(with_weights(dataset, labels, weights), heldout=~train)
            trainer.train_epoch(epoch)
            hidden, prediction = _forward(trainer.policy.eval(), dataset, head)
            gains = look_ahead(labels, hidden, target - prediction, counted)
            gains -= gains.mean(1, keepdim=True)
            log_weights += LOG_WEIGHT_STEP * gains / gains[train].square().mean().sqrt().clamp_min(1e-12)
            weights[train] = log_weights[train].softmax(1)
    return weights.double().numpy()


def look_ahead(labels: Tensor, hidden: Tensor, residual: Tensor, importance: Tensor) -> Tensor:
    """Return q_ik' G h_i, `[N, K]`, with G = sum_j c_j r_j h_j' / sum_j c_j: of labels, hidden layers, r and c."""
    step = (importance[:, None] * residual).T @ hidden / importance.sum()
    return (labels * (hidden @ step.T)[:, None]).sum(-1)


def _forward(policy: NetworkPolicy, dataset: Dataset, head: ActionHead) -> tuple[Tensor, Tensor]:
    """Return the last hidden layer with a constant, `[N, H + 1]`, and the predictions `[N, E]` for all states."""
    hidden, predictions = [], []
    for output in outputs(policy, dataset):
        assert output.features is not None
        hidden.append(torch.nn.functional.pad(output.features, (0, 1), value=1.0).cpu())
        predictions.append(expectation(head, output.params).cpu())
    return torch.cat(hidden), torch.cat(predictions)


def softened_outputs(dataset: Dataset) -> list[PolicyOutput]:
    """Return the outputs of all members for each state; Q values become logits, divided by half their mean gap."""
    outputs = []
    for output in member_outputs(torch.from_numpy(dataset.columns[MEMBERS]), dataset.spec.member_heads):
        if output.head.action_values:
            values = output.params
            scaled = values / default_temperature(output.head, partial(action_gap, values.numpy()))
            logits = torch.where(values > ILLEGAL / 2, scaled, ILLEGAL)
            output = PolicyOutput(output.head.as_kind("categorical"), logits)
        outputs.append(output)
    return outputs


def expectation(head: ActionHead, params: Tensor) -> Tensor:
    """Return the probabilities of all choices, one part of an action after another, or the continuous action."""
    if isinstance(head, BernoulliHead):
        return params.sigmoid()
    if not head.discrete:
        return PolicyOutput(head, params).mode()
    return torch.cat([part.softmax(-1) for part in params.split_with_sizes(head.nvec, -1)], -1)


def params_of(head: ActionHead, mean: Tensor) -> Tensor:
    """Return the params of a neutral head with the `expectation` `mean`; choices of probability 0 are illegal ones."""
    if not head.discrete:
        return mean
    logs = mean.clamp_min(MIN_PROBABILITY).log()
    if isinstance(head, BernoulliHead):
        return logs - (1 - mean).clamp_min(MIN_PROBABILITY).log()
    return torch.where(mean > 0, logs, ILLEGAL)


def label_spec(spec: PolicySpec) -> PolicySpec:
    """Return the spec of labels that are one for each state; that of a single teacher is unchanged."""
    return dataclasses.replace(spec, members=())


def with_weights(dataset: Dataset, labels: Tensor, weights: Tensor) -> Dataset:
    """Return the dataset with the mean over teachers of `labels` `[N, K, E]`, weighted with `weights` `[N, K]`."""
    params = params_of(dataset.spec.head, (labels * weights[..., None]).sum(1))
    columns = {name: column for name, column in dataset.columns.items() if name not in (MEMBERS, MEMBER)}
    return dataclasses.replace(dataset, spec=label_spec(dataset.spec), columns=columns | {"teacher": params.numpy()})
