"""Fit of ridge students: one pass over the data, one linear solve."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import ILLEGAL, MASK, ActionHead, CategoricalHead
from rldistill.core.policy import Labels, PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.prepare import prepare
from rldistill.losses import QMSE, AnyLoss, BellmanTarget, ForwardKL
from rldistill.policies.network import NetworkPolicy
from rldistill.students.linear import Ridge

ROWS_PER_BATCH = 2_048
MAX_FLOAT64_FEATURES = 8_192
"""More features have a float32 Gram matrix, whose size is their square."""


def fit_ridge(
    dataset: Dataset, student: Ridge, losses: tuple[AnyLoss, ...], seed: int
) -> tuple[NetworkPolicy, dict[str, Any], str | None]:
    """Return the policy with the least squared error, its metrics, and the problem if it learned nothing.

    With Phi centered: (Phi' Phi / N + l2 I) W = Phi' Y / N, and the constant makes the means agree.
    """
    torch.manual_seed(seed)
    policy = student.build(solvable_spec(dataset.spec)).eval()
    prepare(policy, dataset)
    layer = policy.output
    assert isinstance(layer, nn.Linear)
    labels, regressions = labels_of(dataset, losses)
    error = variance = agreement = 0.0
    count = 0
    with torch.no_grad():
        for outputs, usable in regressions:
            train, heldout = np.flatnonzero(usable & ~dataset.heldout), np.flatnonzero(usable & dataset.heldout)
            count += len(heldout)
            if not len(train):  # an action that was never legal
                layer.weight[outputs], layer.bias[outputs] = 0.0, ILLEGAL
                continue
            gram, cross, mean, mean_label = moments(dataset, policy, train, labels[:, outputs])
            gram.diagonal().add_(student.l2)
            weight = torch.linalg.solve(gram, cross)
            layer.weight[outputs], layer.bias[outputs] = weight.T.float(), (mean_label - mean @ weight).float()
            for part in _parts(heldout):
                target = labels[part, outputs]
                error += float(
                    ((policy(dataset.observations(part))[0].params[:, outputs] - target) ** 2).mean(-1).sum()
                )
                variance += float(((mean_label.to(target.dtype) - target) ** 2).mean(-1).sum())
        heldout = np.flatnonzero(dataset.heldout)
        if policy.spec.head.discrete:
            for batch in dataset.batches(heldout, ROWS_PER_BATCH):
                agreement += float(policy(batch.obs)[0].agreement(batch.teacher).sum())
    row = {
        "heldout_loss": error / count,
        "agreement": agreement / len(heldout) if policy.spec.head.discrete else None,
    }
    problem = (
        f"its held-out squared error is {error / count:.4g}, that of the mean label {variance / count:.4g}. Collect "
        "more steps, or raise l2."
    )
    return policy, row, None if error < variance else problem


def labels_of(dataset: Dataset, losses: tuple[AnyLoss, ...]) -> tuple[Tensor, list[tuple[slice, NDArray[np.bool_]]]]:
    """Return the labels `[N, P]`, and the regressions: all outputs at once or one for each, with usable rows `[N]`."""
    require_solvable(losses, dataset.spec.head)
    head = dataset.spec.head
    teacher = PolicyOutput(head, torch.from_numpy(dataset.columns["teacher"]))
    if isinstance(loss := losses[0], BellmanTarget):
        dataset.require_every_label("bellman_target")
        usable = dataset.columns["action"][:, None] == np.arange(head.num_params)
        if not (present := usable[~dataset.heldout].any(0)).all():
            raise ConfigError(
                f"distill.losses: bellman_target learns from the actions in the data, where action {present.argmin()} "
                "is missing. Collect with epsilon above 0, or more steps."
            )
        names = ("next_teacher", "action", "reward", "return_to_go", "terminated")
        next_params, *others = (torch.from_numpy(dataset.columns[name]) for name in names)
        target = loss.target(Labels(teacher, PolicyOutput(head, next_params), *others))
        labels = target[:, None].expand(-1, head.num_params)
    else:
        labels = teacher.params if head.discrete else teacher.mode()
        if isinstance(head, CategoricalHead):  # logits have no level of their own
            legal = labels > ILLEGAL / 2
            labels = labels - labels.where(legal, 0).sum(-1, keepdim=True) / legal.sum(-1, keepdim=True)
        if MASK not in dataset.spec.entries:
            return labels, [(slice(None), np.ones(len(dataset), bool))]
        # The label of an illegal action has no information but that.
        usable = np.abs(dataset.columns["teacher"]) < -ILLEGAL / 2
    return labels, [(slice(number, number + 1), rows) for number, rows in enumerate(usable.T)]


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


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + ROWS_PER_BATCH] for start in range(0, len(rows), ROWS_PER_BATCH)]


def moments(
    dataset: Dataset, policy: NetworkPolicy, rows: NDArray[np.int64], labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return Phi' Phi / N and Phi' Y / N of centered features and labels of some rows, and the means of both."""
    sums: list[Tensor] = []
    shifts: list[Tensor] = []
    with torch.no_grad():
        for part in _parts(rows):
            x, y = policy.hidden(dataset.observations(part)), labels[part]
            if not sums:
                # Around their means, float32 is exact enough for the products of one batch, and twice as fast.
                shifts = [x.mean(0), y.mean(0)]
                dtype = torch.float32 if x.shape[1] > MAX_FLOAT64_FEATURES else torch.float64
                sizes = [(x.shape[1], x.shape[1]), (x.shape[1], y.shape[1]), x.shape[1:], y.shape[1:]]
                sums = [torch.zeros(size, dtype=dtype) for size in sizes]
            x, y = x - shifts[0], y - shifts[1]
            # Not one product of features and labels side by side: its odd width costs a tenth of the time.
            for total, product in zip(sums, (x.T @ x, x.T @ y, x.sum(0), y.sum(0)), strict=True):
                total += product
    gram, cross, mean, mean_label = (total.div_(len(rows)) for total in sums)
    gram.addr_(mean, mean, alpha=-1)
    return gram, cross.addr_(mean, mean_label, alpha=-1), mean + shifts[0], mean_label + shifts[1]
