"""Fit of one student to several tasks, with a dataset for each."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rldistill.core.policy import Batch, PolicyOutput
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.gradient import FlatAdamW, Trainer
from rldistill.distillation.mutual import MutualTrainer, Peers
from rldistill.losses.objective import total_loss
from rldistill.policies.layers import flatten_weights
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent
from rldistill.students.multi_task import MultiTask, MultiTaskPolicy


def new_trainer(
    data: Dataset | Mapping[str, Dataset],
    student: AnyStudent,
    config: DistillConfig,
    seed: int,
    initial: NetworkPolicy | None,
    peers: Peers | None = None,
) -> Trainer:
    """Return the trainer of a student of one or several tasks, or of one with peers."""
    if isinstance(data, Dataset) and peers is not None:
        return MutualTrainer(data, student, config, seed, peers)
    if isinstance(data, Dataset):
        return Trainer(data, student, config, seed, initial)
    assert isinstance(student, MultiTask)
    return MultiTaskTrainer(data, student, config, seed, initial)


class MultiTaskTrainer(Trainer):
    """Trainer whose steps take one batch of each task, so that tasks with more data do not count more.

    The loss is sum_k w_k loss_k / c_k / K over the K tasks, c_k the held-out loss of the best constant prediction in
    task k: losses of different heads and scales become shares of the best constant one. With `balance: by_gap`,
    w_k = K gap_k / sum_j gap_j, gap_k the held-out loss_k / c_k after the last epoch; otherwise w_k = 1.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        student: MultiTask,
        config: DistillConfig,
        seed: int = 0,
        initial: NetworkPolicy | None = None,
    ) -> None:
        assert initial is None or isinstance(initial, MultiTaskPolicy)
        self.parts = {
            task: Trainer(data, cast(Any, student.student), config, seed, initial and initial.policy_of(task))
            for task, data in datasets.items()
        }
        self.config, self.seed, self.warm_start = config, seed, initial is not None
        self.policy = student.assembled({task: part.policy for task, part in self.parts.items()})
        self.weights = flatten_weights(self.policy)
        self.optimizer = FlatAdamW(self.weights, config.learning_rate, config.weight_decay)
        constants = [part.constant_loss for part in self.parts.values()]
        self.scales = [1 / loss if loss > 0 else 1.0 for loss in constants]  # losses of entropy may be negative
        # Beside the moments of the optimizer, so that checkpoints hold it.
        self.gaps = self.optimizer.state["gaps"] = torch.ones(len(self.parts))

    @property
    def samples_per_epoch(self) -> int:
        """Number of transitions that an epoch takes: a pass over the largest dataset, and as many of the others."""
        return len(self.parts) * max(part.samples_per_epoch for part in self.parts.values())

    def require_learned(self, where: str, loss: float) -> None:
        """Raise NothingLearnedError for the first task whose held-out loss is not below the best constant one."""
        for task, part in self.parts.items():
            part.require_learned(f"{where}: {task}", part.heldout_loss()[0])

    def task_weights(self) -> list[float]:
        """Return the weight of each task's loss, whose mean is 1."""
        gaps = self.gaps.clamp(min=0).tolist()
        if self.config.balance == "equal" or sum(gaps) == 0:
            return [1.0] * len(gaps)
        return [len(gaps) * gap / sum(gaps) for gap in gaps]

    def train_epoch(self, epoch: int) -> float:
        """Train for one pass over the largest dataset, in random order; return the mean loss."""
        seed = self.start_epoch(epoch)
        self.policy.train()
        size, losses = self.config.batch_size, list[Tensor]()
        streams = [
            _endless(part, size, np.random.default_rng(own))
            for part, own in zip(self.parts.values(), seed.spawn(len(self.parts)), strict=True)
        ]
        weights = [w * scale / len(streams) for w, scale in zip(self.task_weights(), self.scales, strict=True)]
        count = -(-max(part.samples_per_epoch for part in self.parts.values()) // size)
        for number in range(count):
            progress = (epoch + number / count) / self.config.epochs
            self.set_learning_rate(progress)
            total = torch.zeros((), device=self.weights.device)
            for weight, part, stream in zip(weights, self.parts.values(), streams, strict=True):
                batch, output = next(stream)
                total = total + weight * total_loss(part.terms, output, batch, progress)
            losses.append(self.descend(total))
        return float(torch.stack(losses).mean())

    def heldout_loss(self) -> tuple[float, float | None]:
        """Return the mean of the tasks' scaled held-out losses, and that of the agreements in discrete tasks."""
        pairs = [part.heldout_loss() for part in self.parts.values()]
        self.gaps.copy_(torch.tensor([loss * scale for (loss, _), scale in zip(pairs, self.scales, strict=True)]))
        agreements = [agreement for _, agreement in pairs if agreement is not None]
        return float(self.gaps.mean()), float(np.mean(agreements)) if agreements else None


def _endless(trainer: Trainer, size: int, rng: np.random.Generator) -> Iterator[tuple[Batch, PolicyOutput]]:
    """Yield batches of a task with the student's outputs, pass after pass."""
    while True:
        for _, batch, output in trainer.outputs(trainer.train_rows, size, rng):
            yield batch, output
