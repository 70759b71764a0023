"""Fit of ridge students: one pass over the data, one linear solve."""

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

from rldistill.core.errors import ConfigError, NothingLearnedError, SpecMismatchError
from rldistill.core.heads import ILLEGAL, MASK, ActionHead, CategoricalHead
from rldistill.core.policy import Batch, PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.prepare import prepare
from rldistill.io.metrics import Metrics
from rldistill.losses import QMSE, AnyLoss, BellmanTarget, ForwardKL
from rldistill.policies.network import NetworkPolicy
from rldistill.students.linear import Ridge

Rows = NDArray[np.int64]
ROWS_PER_BATCH = 2_048
MAX_FLOAT64_FEATURES = 8_192
"""More features have a float32 Gram matrix, whose size is their square."""


@dataclass(frozen=True)
class Regression:
    """Least squares of some outputs.

    Attributes:
        outputs: Outputs, all or one.
        train: Rows of the training transitions.
        heldout: Rows of the held-out transitions.
        targets: Labels of all outputs for a batch, `[B, P]`.
    """

    outputs: slice
    train: Rows
    heldout: Rows
    targets: Callable[[Batch], Tensor]

    def labels(self, batch: Batch) -> Tensor:
        """Return the labels of the regression's own outputs."""
        return self.targets(batch)[:, self.outputs]


def fit_ridge(dataset: Dataset, student: Ridge, losses: tuple[AnyLoss, ...], folder: Path, seed: int) -> NetworkPolicy:
    """Return the policy with the least squared error, and write `metrics.jsonl`.

    With Phi centered: (Phi' Phi / N + l2 I) W = Phi' Y / N, and the constant makes the means agree.

    Raises:
        ConfigError: A loss that least squares cannot minimize.
        NothingLearnedError: The held-out error is no better than that of the mean label.
    """
    started = time.monotonic()
    torch.manual_seed(seed)
    policy = student.build(solvable_spec(dataset.spec)).eval()
    prepare(policy, dataset)
    layer = policy.output
    assert isinstance(layer, nn.Linear)
    error = variance = 0.0
    count = 0
    for regression in regressions(dataset, losses):
        outputs = regression.outputs
        count += len(regression.heldout)
        with torch.no_grad():
            if not len(regression.train):  # an action that was never legal
                layer.weight[outputs], layer.bias[outputs] = 0.0, ILLEGAL
                continue
            gram, cross, mean, mean_label = moments(dataset, policy, regression)
            gram.diagonal().add_(student.l2)
            weight = torch.linalg.solve(gram, cross)
            layer.weight[outputs], layer.bias[outputs] = weight.T.float(), (mean_label - mean @ weight).float()
            for batch in dataset.batches(regression.heldout, ROWS_PER_BATCH):
                labels = regression.labels(batch)
                error += float(((policy(batch.obs)[0].params[:, outputs] - labels) ** 2).mean(-1).sum())
                variance += float(((mean_label.to(labels.dtype) - labels) ** 2).mean(-1).sum())
    row: dict[str, float | None] = {"epoch": 1, "step": int((~dataset.heldout).sum()), "heldout_loss": error / count}
    row |= {"agreement": _agreement(dataset, policy), "seconds": round(time.monotonic() - started, 3)}
    Metrics(folder).write([row])
    if not error < variance:
        raise NothingLearnedError(
            f"{folder}: the student learned nothing: its held-out squared error is {error / count:.4g}, that of the "
            f"mean label {variance / count:.4g}. Collect more steps, or raise l2."
        )
    return policy


def regressions(dataset: Dataset, losses: tuple[AnyLoss, ...]) -> list[Regression]:
    """Return the regressions of these losses: all outputs at once, or one for each."""
    require_solvable(losses, dataset.spec.head)
    train, heldout = np.flatnonzero(~dataset.heldout), np.flatnonzero(dataset.heldout)
    if isinstance(loss := losses[0], BellmanTarget):
        count = dataset.spec.head.num_params
        used = dataset.columns["action"][:, None] == np.arange(count)
        if not (present := used[train].any(0)).all():
            raise ConfigError(
                f"distill.losses: bellman_target learns from the actions in the data, where action {present.argmin()} "
                "is missing. Collect with epsilon above 0, or more steps."
            )

        def targets(batch: Batch) -> Tensor:
            return loss.target(batch)[:, None].expand(-1, count)
    else:

        def targets(batch: Batch) -> Tensor:
            return centered_labels(batch.teacher)

        if MASK not in dataset.spec.entries:
            return [Regression(slice(None), train, heldout, targets)]
        # The label of an illegal action has no information but that.
        used = np.abs(dataset.columns["teacher"]) < -ILLEGAL / 2
    return [
        Regression(slice(number, number + 1), train[rows[train]], heldout[rows[heldout]], targets)
        for number, rows in enumerate(used.T)
    ]


def require_solvable(losses: tuple[AnyLoss, ...], teacher: ActionHead) -> None:
    """Raise ConfigError or SpecMismatchError for losses that least squares cannot minimize."""
    if all(isinstance(loss, ForwardKL | QMSE) for loss in losses):
        return
    if len(losses) > 1 or not isinstance(losses[0], BellmanTarget):
        names = ", ".join(type(loss).__name__ for loss in losses)
        raise ConfigError(
            f"distill.losses: a ridge student cannot minimize {names} by least squares. Use q_mse, bellman_target "
            "alone, or a student that learns by gradient."
        )
    if not teacher.action_values:
        raise SpecMismatchError(f"BellmanTarget needs a teacher of q_values, and this one is {teacher.kind}")


def solvable_spec(spec: PolicySpec) -> PolicySpec:
    """Return the spec of a student without a distribution: the most likely action of a continuous teacher."""
    return spec if spec.head.discrete else dataclasses.replace(spec, head=spec.head.neutral)


def centered_labels(teacher: PolicyOutput) -> Tensor:
    """Return the labels `[B, P]`; from logits their mean over the legal actions is subtracted."""
    if isinstance(teacher.head, CategoricalHead):
        legal = teacher.params > ILLEGAL / 2
        mean = teacher.params.where(legal, 0).sum(-1, keepdim=True) / legal.sum(-1, keepdim=True)
        return teacher.params - mean
    return teacher.params if teacher.head.discrete else teacher.mode()


def moments(dataset: Dataset, policy: NetworkPolicy, regression: Regression) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return Phi' Phi / N and Phi' Y / N of centered features and labels, and the means of both."""
    sums: list[Tensor] = []
    shifts: list[Tensor] = []
    with torch.no_grad():
        for batch in dataset.batches(regression.train, ROWS_PER_BATCH):
            features, labels = policy.hidden(batch.obs), regression.labels(batch)
            if not sums:
                # Around their means, float32 is exact enough for the products of one batch, and twice as fast.
                shifts = [features.mean(0), labels.mean(0)]
                dtype = torch.float32 if features.shape[1] > MAX_FLOAT64_FEATURES else torch.float64
                sizes = [(features.shape[1],) * 2, (features.shape[1], labels.shape[1])]
                sums = [torch.zeros(size, dtype=dtype) for size in [*sizes, features.shape[1:], labels.shape[1:]]]
            features, labels = features - shifts[0], labels - shifts[1]
            # Not one product of features and labels side by side: its odd width costs a tenth of the time.
            for total, part in zip(
                sums, (features.T @ features, features.T @ labels, features.sum(0), labels.sum(0)), strict=True
            ):
                total += part
    gram, cross, mean, mean_label = (total.div_(len(regression.train)) for total in sums)
    gram.addr_(mean, mean, alpha=-1)
    return gram, cross.addr_(mean, mean_label, alpha=-1), mean + shifts[0], mean_label + shifts[1]


def _agreement(dataset: Dataset, policy: NetworkPolicy) -> float | None:
    """Return the agreement with the teacher on held-out transitions; None for continuous actions."""
    if not policy.spec.head.discrete:
        return None
    rows = np.flatnonzero(dataset.heldout)
    with torch.no_grad():
        batches = dataset.batches(rows, ROWS_PER_BATCH)
        return sum(float(policy(b.obs)[0].agreement(b.teacher).sum()) for b in batches) / len(rows)
