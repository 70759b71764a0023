"""The fit of students that are solved for: one pass over the data, one linear solve."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rldistill.core.batch import Batch
from rldistill.core.errors import ConfigError, NothingLearnedError, SpecMismatchError
from rldistill.core.heads import ILLEGAL, MASK, ActionHead, CategoricalHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.io.metrics import Metrics
from rldistill.losses import QMSE, AnyLoss, BellmanTarget, ForwardKL
from rldistill.policies.network import NetworkPolicy
from rldistill.students.ridge import Ridge

Rows = NDArray[np.int64]
ROWS = 2_048
LARGE = 8_192
"""Features beyond which the Gram matrix is kept in float32: it is as large as they are squared."""


@dataclass(frozen=True)
class Fit:
    """What one column, or all, of the output are fitted to: labels `[B, P]` of a batch, on some of the transitions."""

    outputs: slice
    train: Rows
    heldout: Rows
    labels: Callable[[Batch], Tensor]


def solve(dataset: Dataset, policy: NetworkPolicy, student: Ridge, losses: tuple[AnyLoss, ...], folder: Path) -> None:
    """Set the weights of `policy.output`, and write `metrics.jsonl`.

    With Phi centred: (Phi' Phi / N + l2 I) W = Phi' Y / N, and the constant makes the means agree.

    Raises:
        ConfigError: a loss that least squares cannot stand for.
        NothingLearnedError: the held-out error is no better than that of the mean label.
    """
    started = time.monotonic()
    layer = policy.output
    assert isinstance(layer, nn.Linear)
    error = variance = 0.0
    count = 0
    for fit in fits(dataset, losses):
        count += len(fit.heldout)
        if not len(fit.train):  # it was never legal, and so it stays
            with torch.no_grad():
                layer.weight[fit.outputs], layer.bias[fit.outputs] = 0.0, ILLEGAL
            continue
        gram, cross, mean, target_mean = moments(dataset, policy, fit)
        eye = torch.eye(len(gram), dtype=gram.dtype)
        weight = torch.linalg.solve(gram + student.l2 * eye, cross)
        with torch.no_grad():
            layer.weight[fit.outputs] = weight.T.to(torch.float32)
            layer.bias[fit.outputs] = (target_mean - mean @ weight).to(torch.float32)
        errors = _heldout_errors(dataset, policy, fit, target_mean)
        error, variance = error + errors[0], variance + errors[1]
    row: dict[str, float | None] = {"epoch": 1, "step": int((~dataset.heldout).sum()), "heldout_loss": error / count}
    row |= {"agreement": _agreement(dataset, policy), "seconds": round(time.monotonic() - started, 3)}
    Metrics(folder).write([row])
    if not error < variance:
        raise NothingLearnedError(
            f"{folder}: the student learned nothing: its held-out squared error is {error / count:.4g}, and the mean "
            f"label has {variance / count:.4g}. Collect more steps, or raise l2."
        )


def fits(dataset: Dataset, losses: tuple[AnyLoss, ...]) -> list[Fit]:
    """What is solved for under these losses: all outputs at once, or each by itself."""
    require_solvable(losses, dataset.spec.head)
    train, heldout = np.flatnonzero(~dataset.heldout), np.flatnonzero(dataset.heldout)
    if all(isinstance(loss, ForwardKL | QMSE) for loss in losses):
        if MASK not in dataset.spec.entries:
            return [Fit(slice(None), train, heldout, lambda batch: targets(batch.teacher))]
        # Of an action that was ruled out the label says nothing but that.
        legal = np.abs(dataset.columns["teacher"]) < -ILLEGAL / 2
        return [
            _column(number, train[allowed[train]], heldout[allowed[heldout]]) for number, allowed in enumerate(legal.T)
        ]
    (loss,) = losses
    assert isinstance(loss, BellmanTarget)
    taken = dataset.columns["action"]
    fits = []
    for action in range(dataset.spec.head.num_params):
        rows, others = (part[taken[part] == action] for part in (train, heldout))
        if not len(rows):
            raise ConfigError(
                f"distill.losses: bellman_target learns from actions that were taken, and action {action} never was; "
                "collect with epsilon above 0, or more steps"
            )
        fits.append(Fit(slice(action, action + 1), rows, others, lambda batch: loss.target(batch)[:, None]))
    return fits


def require_solvable(losses: tuple[AnyLoss, ...], teacher: ActionHead) -> None:
    """Raise, as `solve` does, for losses that least squares cannot stand for."""
    if all(isinstance(loss, ForwardKL | QMSE) for loss in losses):
        return
    if len(losses) > 1 or not isinstance(losses[0], BellmanTarget):
        names = ", ".join(type(loss).__name__ for loss in losses)
        raise ConfigError(
            "distill.losses: a ridge student fits the teacher's labels, or bellman_target alone, by least squares, and "
            f"not {names}; take q_mse, bellman_target or a student that learns by gradient"
        )
    if not teacher.action_values:
        raise SpecMismatchError(f"BellmanTarget needs a teacher of q_values, and this one is {teacher.kind}")


def _column(number: int, train: Rows, heldout: Rows) -> Fit:
    only = slice(number, number + 1)
    return Fit(only, train, heldout, lambda batch: targets(batch.teacher)[:, only])


def solvable(spec: PolicySpec) -> PolicySpec:
    """The spec of what a least-squares fit can say: a continuous policy's most likely action, others as they are."""
    head = spec.head if spec.head.discrete else spec.head.neutral
    return dataclasses.replace(spec, head=head)


def targets(teacher: PolicyOutput) -> Tensor:
    """What is fitted, `[B, P]`: of logits what is left without their mean over the legal actions."""
    if isinstance(teacher.head, CategoricalHead):
        legal = teacher.params > ILLEGAL / 2
        mean = teacher.params.where(legal, 0).sum(-1, keepdim=True) / legal.sum(-1, keepdim=True)
        return teacher.params - mean
    return teacher.params if teacher.head.discrete else teacher.mode()


def moments(dataset: Dataset, policy: NetworkPolicy, fit: Fit) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Phi' Phi / N and Phi' Y / N of centred features and labels, and the means of both."""
    sums: list[Tensor] = []
    shifts: list[Tensor] = []
    with torch.no_grad():
        for batch in dataset.batches(fit.train, ROWS):
            features, labels = _features(policy, batch.obs), fit.labels(batch)
            if not sums:
                # About their means, float32 is enough for the products of one batch, and twice as fast as float64.
                shifts = [features.mean(0), labels.mean(0)]
                dtype = torch.float32 if features.shape[1] > LARGE else torch.float64
                sizes = [(features.shape[1],) * 2, (features.shape[1], labels.shape[1])]
                sums = [torch.zeros(size, dtype=dtype) for size in [*sizes, features.shape[1:], labels.shape[1:]]]
            features, labels = features - shifts[0], labels - shifts[1]
            sums[0] += features.T @ features
            sums[1] += features.T @ labels
            sums[2] += features.sum(0)
            sums[3] += labels.sum(0)
    gram, cross, mean, target_mean = (total / len(fit.train) for total in sums)
    gram.addr_(mean, mean, alpha=-1)
    return gram, cross.addr_(mean, target_mean, alpha=-1), mean + shifts[0], target_mean + shifts[1]


def _features(policy: NetworkPolicy, obs: object) -> Tensor:
    features: Tensor = policy.body(policy.standardized(obs))  # type: ignore[arg-type]
    return features


def _heldout_errors(dataset: Dataset, policy: NetworkPolicy, fit: Fit, mean_label: Tensor) -> tuple[float, float]:
    """Summed over held-out transitions: the mean squared error, and that of the mean label."""
    error = variance = 0.0
    with torch.no_grad():
        for batch in dataset.batches(fit.heldout, ROWS):
            said, labels = policy(batch.obs)[0].params[:, fit.outputs], fit.labels(batch)
            error += float(((said - labels) ** 2).mean(-1).sum())
            variance += float(((mean_label.to(labels.dtype) - labels) ** 2).mean(-1).sum())
    return error, variance


def _agreement(dataset: Dataset, policy: NetworkPolicy) -> float | None:
    """The share of held-out transitions on which student and teacher would do the same; None if not discrete."""
    if not policy.spec.head.discrete:
        return None
    agreed = 0.0
    rows = np.flatnonzero(dataset.heldout)
    with torch.no_grad():
        for batch in dataset.batches(rows, ROWS):
            same = policy(batch.obs)[0].mode() == batch.teacher.mode()
            agreed += float(same.float().flatten(1).mean(-1).sum() if same.ndim > 1 else same.sum())
    return agreed / len(rows)
