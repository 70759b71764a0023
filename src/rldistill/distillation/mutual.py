"""Deep mutual learning (Zhang 2018, arXiv 1706.00384): students that learn from a teacher and from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Batch, PolicyOutput
from rldistill.core.schedules import Constant, Schedule
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import SEED_STRIDE, DistillConfig
from rldistill.distillation.gradient import Trainer
from rldistill.io.tensors import State
from rldistill.losses import ForwardKL
from rldistill.losses.objective import Term, total_loss, with_temperatures
from rldistill.losses.policy import detached
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent
from rldistill.students.student import capability


@dataclass(frozen=True)
class Peers:
    """Students that are fitted together with another one, which is the result.

    Attributes:
        students: settings of the peers; those like the student may take its place in the result.
        weight: weight of the mutual term over the course of training.
    """

    students: tuple[AnyStudent, ...]
    weight: Schedule = Constant(1.0)

    def require(self, student: AnyStudent, initial: NetworkPolicy | None = None) -> None:
        """Raise ConfigError if a student and its peers cannot learn from each other, or it does not start anew."""
        if initial is not None:
            raise ConfigError("peers: students that learn together start from new weights. Pass the configuration.")
        if not self.students:
            raise ConfigError("peers: there are none. Name at least one.")
        require_gradient(student, "students")
        for peer in self.students:
            require_gradient(peer, "recipe.peer")
            if peer != student and (capability(peer, "recurrent") or capability(student, "recurrent")):
                raise ConfigError(
                    "recipe.peer: a recurrent student learns from whole episodes, so its peers have its settings. "
                    "Leave this one out."
                )


def require_gradient(student: AnyStudent, where: str) -> None:
    """Raise ConfigError at `where` unless a student learns by gradient."""
    if capability(student, "fit") != "gradient":
        name = type(student).__name__.lower()
        raise ConfigError(f"{where}: a {name} does not learn by gradient, as mutual learning does. Use another one.")


class MutualTrainer(Trainer):
    """Trainer of several students on the same batches, with a mutual term in the loss of each.

    The loss of student k is its distillation loss and w / (K - 1) sum_{l != k} mean_b KL(l(b) || k(b)), with the other
    students' outputs as constants. For outputs without a distribution, `ForwardKL` has a distance in place of the KL
    divergence. `policy` is the student with the lowest held-out loss after the last epoch, of those that have the
    settings of the first one.
    """

    def __init__(
        self, dataset: Dataset, student: AnyStudent, config: DistillConfig, seed: int = 0, peers: Peers | None = None
    ) -> None:
        assert peers is not None
        students = [student, *peers.students]
        self.parts = [Trainer(dataset, own, config, seed + k * SEED_STRIDE) for k, own in enumerate(students)]
        self.candidates = [part for own, part in zip(students, self.parts, strict=True) if own == student]
        self.config, self.seed, self.warm_start = config, seed, False
        self.policy, self.optimizer = self.parts[0].policy, self.parts[0].optimizer
        head = self.policy.spec.head
        self.mutual = with_temperatures((Term(ForwardKL(), peers.weight),), head, dataset.action_gap)

    @property
    def samples_per_epoch(self) -> int:
        """Number of transitions that an epoch takes."""
        return self.parts[0].samples_per_epoch

    def require_learned(self, where: str, loss: float) -> None:
        """Raise NothingLearnedError if a held-out loss is no lower than that of the best constant prediction."""
        self.parts[0].require_learned(where, loss)

    def mutual_loss(self, outputs: Sequence[PolicyOutput], own: int, batch: Batch, progress: float) -> Tensor:
        """Return the mutual term of student `own`, given the outputs of all for a batch."""
        peers = [output for number, output in enumerate(outputs) if number != own]
        losses = [
            total_loss(self.mutual, outputs[own], replace(batch, teacher=detached(peer)), progress) for peer in peers
        ]
        return torch.stack(losses).mean()

    def train_epoch(self, epoch: int) -> float:
        """Train all students for one pass over the data in the same random order; return their mean loss."""
        seed = self.start_epoch(epoch)
        streams = [
            part.outputs(part.train_rows, self.config.batch_size, np.random.default_rng(seed)) for part in self.parts
        ]
        for part in self.parts:
            part.policy.train()
        losses: list[Tensor] = []
        for steps in zip(*streams, strict=True):
            progress = (epoch + steps[0][0]) / self.config.epochs
            outputs = [output for _, _, output in steps]
            for own, (part, (_, batch, output)) in enumerate(zip(self.parts, steps, strict=True)):
                part.set_learning_rate(progress)
                loss = total_loss(part.terms, output, batch, progress)
                losses.append(part.descend(loss + self.mutual_loss(outputs, own, batch, progress)))
        return float(torch.stack(losses).mean())

    def heldout_loss(self) -> tuple[float, float | None]:
        """Return the held-out loss of the best student, without the mutual term, and its agreement with the teacher."""
        results = [part.heldout_loss() for part in self.candidates]
        best = min(range(len(results)), key=lambda number: results[number][0])
        self.policy = self.candidates[best].policy
        return results[best]

    def state_dict(self) -> State:
        """Return the states of all students."""
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def load_state_dict(self, state: State) -> None:
        """Restore the result of `state_dict`."""
        for number, part in enumerate(self.parts):
            part.load_state_dict(state[str(number)])
