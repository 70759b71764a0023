"""State values of several teachers, fitted to the returns of their own episodes."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError, NothingLearnedError
from rldistill.core.fields import validated_dataclass
from rldistill.core.heads import LARGEST, DeterministicHead
from rldistill.core.policy import Labels, PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import ACTORS, MEMBER
from rldistill.data.dataset import Dataset, episode_rows
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.gradient import Trainer, fit_by_gradient
from rldistill.io.progress import SILENT
from rldistill.losses.objective import Term
from rldistill.losses.policy import Loss
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent, Mlp
from rldistill.students.multi_input import picture_network

EPOCHS, BATCH_SIZE = 30, 256
HELDOUT_EVERY = 5
"""One of so many episodes of a teacher is held out, so that the fit of its values stops in time."""
ROWS_PER_BATCH = 4_096
STUDENT = ACTORS.index("student")


@validated_dataclass
class OwnReturn(Loss):
    """(V_k(s) - G)^2, k the teacher that acted, which is the recorded action, and G its return, the label."""

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss of each transition, `[...]`."""
        value = student.params.gather(-1, labels.action[..., None])
        return (value - labels.teacher.params[..., :1]).squeeze(-1) ** 2


def own_steps(dataset: Dataset) -> NDArray[np.bool_]:
    """Return True for the steps of episodes that ended and in which one teacher acted, perhaps with random actions."""
    if MEMBER not in dataset.columns or dataset.isolated:
        return np.zeros(len(dataset), bool)
    own, columns = np.zeros(len(dataset), bool), dataset.columns
    for rows in episode_rows(columns):
        ended = columns["terminated"][rows[-1]] or columns["truncated"][rows[-1]]
        own[rows] = ended and columns["step"][rows[0]] == 0 and not (columns["actor"][rows] == STUDENT).any()
    return own


def own_episodes(dataset: Dataset) -> list[NDArray[np.int64]]:
    """Return the numbers of the own episodes of each teacher; raise ConfigError if one has fewer than two."""
    own, found = own_steps(dataset), []
    for number, (name, _) in enumerate(dataset.spec.members):
        is_own = own & (dataset.columns[MEMBER] == number) if own.any() else own
        found.append(np.unique(dataset.columns["episode"][is_own]))
        if len(found[-1]) < 2:
            raise ConfigError(
                f"distill.weighting: value and learned need whole episodes of each teacher, and {name} has "
                f"{len(found[-1])} in the dataset. Collect more steps, in fewer environments, or use another weighting."
            )
    return found


def teacher_values(dataset: Dataset, folder: Path, seed: int = 0) -> NDArray[np.float64]:
    """Return V_k(s) for all states and teachers, `[N, K]`, in units of the return.

    One network with an output for each teacher learns the discounted returns-to-go of its own episodes; the held-out
    error over whole episodes stops the fit. Where nothing can be learned, V_k is the mean return-to-go of teacher k.
    `folder` is for checkpoints.

    Raises:
        ConfigError: A teacher has fewer than two episodes of its own.
    """
    own, columns = own_steps(dataset), dataset.columns
    heldout, names = np.zeros(len(dataset), bool), [name for name, _ in dataset.spec.members]
    for episodes in own_episodes(dataset):
        heldout |= np.isin(columns["episode"], episodes[::HELDOUT_EVERY]) & own
    member = columns[MEMBER].astype(np.int64)
    returns = columns["return_to_go"].astype(np.float64)
    mean, std = returns[own].mean(), max(returns[own].std(), 1e-8)
    head = DeterministicHead(low=(-LARGEST,) * len(names), high=(LARGEST,) * len(names))
    labels = np.repeat(((returns - mean) / std).astype(np.float32)[:, None], len(names), 1)
    spec = dataclasses.replace(dataset.spec, head=head, members=(), agents=())
    data = dataclasses.replace(
        dataset, spec=spec, heldout=heldout, columns=columns | {"action": member, "teacher": labels}
    )
    data = data.take(own)
    config = DistillConfig(losses=(Term(OwnReturn()),), epochs=EPOCHS, batch_size=BATCH_SIZE)
    try:
        policy = fit_by_gradient(Trainer(data, small_network(spec), config, seed), folder, SILENT)
        values = predictions(policy, dataset)
    except NothingLearnedError:
        means = [labels[own & (member == number), 0].mean() for number in range(len(names))]
        values = np.tile(means, (len(dataset), 1))
    return np.asarray(values * std + mean)


def small_network(spec: PolicySpec) -> AnyStudent:
    """Return the student of which networks for values and weights are made: an MLP, or a small CNN for pictures."""
    return picture_network(spec) or Mlp((64, 64))


def predictions(policy: NetworkPolicy, dataset: Dataset) -> NDArray[np.float64]:
    """Return the params of a policy for all states, `[N, P]`."""
    return torch.cat([output.params for output in outputs(policy, dataset)]).double().numpy()


def outputs(policy: NetworkPolicy, dataset: Dataset) -> Iterator[PolicyOutput]:
    """Yield the outputs of a policy for all states, batch after batch."""
    device = next(policy.parameters()).device
    for start in range(0, len(dataset), ROWS_PER_BATCH):
        rows = np.arange(start, min(start + ROWS_PER_BATCH, len(dataset)))
        with torch.no_grad():
            output, _ = policy(dataset.observations(rows).to(device))
        yield output
