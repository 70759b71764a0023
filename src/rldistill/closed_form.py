"""The fit of students that are solved for: one pass over the data, one linear solve."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rldistill.artifacts import write_atomic
from rldistill.data.dataset import Dataset
from rldistill.errors import ConfigError, NothingLearnedError
from rldistill.losses import QMSE, AnyLoss, ForwardKL
from rldistill.students.network import NetworkPolicy
from rldistill.students.ridge import Ridge
from rldistill.types import PolicyOutput, PolicySpec

ROWS = 2_048
LARGE = 8_192
"""Features beyond which the Gram matrix is kept in float32: it is as large as they are squared."""


def solve(dataset: Dataset, policy: NetworkPolicy, student: Ridge, losses: tuple[AnyLoss, ...], folder: Path) -> None:
    """Set the weights of `policy.output`, and write `metrics.jsonl`.

    With Phi centred: (Phi' Phi / N + l2 I) W = Phi' Y / N, and the constant makes the means agree.

    Raises:
        ConfigError: a loss that least squares cannot stand for.
        NothingLearnedError: the held-out error is no better than that of the mean label.
    """
    for loss in losses:
        if not isinstance(loss, ForwardKL | QMSE):
            raise ConfigError(
                f"distill.losses: a ridge student fits the teacher's labels by least squares, which "
                f"{type(loss).__name__} is not; leave it out, or take q_mse or a student that learns by gradient"
            )
    started = time.monotonic()
    train = np.flatnonzero(~dataset.heldout)
    gram, cross, mean, target_mean = _moments(dataset, policy, train)
    eye = torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + student.l2 * eye, cross)
    with torch.no_grad():
        policy.output.weight.copy_(weight.T)  # type: ignore[operator]
        policy.output.bias.copy_(target_mean - mean @ weight)  # type: ignore[operator]
    error, agreement, variance = _heldout(dataset, policy, target_mean)
    row = {"epoch": 1, "step": len(train), "heldout_loss": error, "agreement": agreement}
    row["seconds"] = round(time.monotonic() - started, 3)
    write_atomic(folder / "metrics.jsonl", lambda temporary: temporary.write_text(json.dumps(row) + "\n"))
    if not error < variance:
        raise NothingLearnedError(
            f"{folder}: the student learned nothing: its held-out squared error is {error:.4g}, and the mean label has "
            f"{variance:.4g}. Collect more steps, or raise l2."
        )


def solvable(spec: PolicySpec) -> PolicySpec:
    """The spec of what a least-squares fit can say: a continuous policy's most likely action, others as they are."""
    head = spec.head if spec.head.discrete else dataclasses.replace(spec.head, kind="deterministic")
    return dataclasses.replace(spec, head=head)


def targets(teacher: PolicyOutput) -> Tensor:
    """What is fitted, `[B, P]`."""
    if teacher.head.kind == "categorical":
        return teacher.params - teacher.params.mean(-1, keepdim=True)
    return teacher.params if teacher.head.discrete else teacher.mode()


def _moments(
    dataset: Dataset, policy: NetworkPolicy, rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Phi' Phi / N and Phi' Y / N of centred features and labels, and the means of both."""
    sums: list[Tensor] = []
    dtype = torch.float64
    with torch.no_grad():
        for batch in dataset.batches(rows, ROWS):
            features, labels = _features(policy, batch.obs), targets(batch.teacher)
            if not sums:
                dtype = torch.float32 if features.shape[1] > LARGE else torch.float64
                sizes = [(features.shape[1],) * 2, (features.shape[1], labels.shape[1])]
                sums = [torch.zeros(size, dtype=dtype) for size in [*sizes, features.shape[1:], labels.shape[1:]]]
            features, labels = features.to(dtype), labels.to(dtype)
            sums[0].addmm_(features.T, features)
            sums[1].addmm_(features.T, labels)
            sums[2] += features.sum(0)
            sums[3] += labels.sum(0)
    gram, cross, mean, target_mean = (total / len(rows) for total in sums)
    return gram.addr_(mean, mean, alpha=-1), cross.addr_(mean, target_mean, alpha=-1), mean, target_mean


def _features(policy: NetworkPolicy, obs: object) -> Tensor:
    features: Tensor = policy.body(policy.standardised(obs))  # type: ignore[arg-type]
    return features


def _heldout(dataset: Dataset, policy: NetworkPolicy, mean_label: Tensor) -> tuple[float, float | None, float]:
    """Mean squared error, agreement with the teacher, and the error of the mean label."""
    error = variance = agreed = 0.0
    rows = np.flatnonzero(dataset.heldout)
    with torch.no_grad():
        for batch in dataset.batches(rows, ROWS):
            output, labels = policy(batch.obs)[0], targets(batch.teacher)
            error += float(((output.params - labels) ** 2).mean(-1).sum())
            variance += float(((mean_label.to(labels.dtype) - labels) ** 2).mean(-1).sum())
            if output.head.discrete:
                same = output.mode() == batch.teacher.mode()
                agreed += float(same.float().flatten(1).mean(-1).sum() if same.ndim > 1 else same.sum())
    count = len(rows)
    return error / count, agreed / count if policy.spec.head.discrete else None, variance / count
