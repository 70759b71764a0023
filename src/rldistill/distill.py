"""Distil: dataset x loss terms -> student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rldistill.artifacts import open_stage, provenance
from rldistill.closed_form import require_solvable, solvable, solve
from rldistill.data.dataset import Dataset
from rldistill.errors import ConfigError
from rldistill.gradient_fit import GradientFit, prepare
from rldistill.losses import ForwardKL
from rldistill.objective import Term, of_the_policy, require_comparable, student_spec
from rldistill.students import AnyStudent
from rldistill.students.network import NetworkPolicy
from rldistill.students.ridge import Ridge
from rldistill.students.storage import load_native, save_policy, trust
from rldistill.students.tree import Tree
from rldistill.tree_fit import blank_tree, grow
from rldistill.types import PolicySpec


@dataclass(frozen=True)
class DistillConfig:
    """How a student is fitted by gradient.

    Attributes:
        losses: the terms that are summed.
        epochs: passes over the data.
        batch_size: transitions in a batch.
        learning_rate: AdamW's, at the start.
        schedule: whether the rate falls to zero in half a cosine or stays.
        weight_decay: AdamW's.
        clip: the largest gradient norm.
        patience: stop after so many epochs without a better held-out loss; 0 never stops early, which suits DAgger with
            many epochs: a round begins at the full rate, and for some epochs that undoes what the round before learned.
        threads: of PyTorch; gradients differ between numbers of threads.
        device: `auto` takes a GPU if there is one.
    """

    losses: tuple[Term, ...] = (Term(ForwardKL()),)
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 1e-4
    clip: float = 10.0
    patience: int = 5
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if not self.losses:
            raise ConfigError("distill.losses: at least one loss is needed")
        for term in self.losses:
            if not isinstance(term, Term):
                raise ConfigError(f"distill.losses: expected Term(loss), found a {type(term).__name__}")
        for name in ("epochs", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distill.{name}: expected at least 1, found {getattr(self, name)}")
        if self.patience < 0:
            raise ConfigError(f"distill.patience: expected at least 0, found {self.patience}")
        for name, known in (("schedule", ("cosine", "constant")), ("device", ("auto", "cpu", "cuda"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"distill.{name}: there is no {getattr(self, name)!r}. Known: {', '.join(known)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"distill.{name}: expected a positive number, found {getattr(self, name)}")


def distill(
    dataset: Dataset,
    student: AnyStudent,
    config: DistillConfig,
    folder: Path,
    *,
    seed: int = 0,
    initial: NetworkPolicy | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NetworkPolicy:
    """Fit a student to the teacher's labels; the weights with the lowest held-out loss are kept.

    The loss of a batch is sum_i w_i(progress) * mean_b loss_i(b), the mean weighted with `Batch.weight`.

    Args:
        dataset: what the teacher said.
        student: which network.
        config: losses and optimiser.
        folder: becomes `policy.safetensors`, `policy.json`, `metrics.jsonl` and `checkpoints/`.
        seed: the training seed: initial weights and the order of the data.
        initial: weights to start from, instead of new ones (DAgger's warm start).
        resume: go on from the last checkpoint.
        overwrite: throw away what is in `folder`.
        progress: called with the epochs done and the epochs in all.

    Raises:
        SpecMismatchError: a loss does not fit the teacher's labels.
        NothingLearnedError: the held-out loss is no better than the best constant prediction's.
    """
    trust(type(student))
    if open_stage(folder, folder / "policy.json", resume, overwrite):
        return load_native(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        if isinstance(student, Ridge | Tree):
            return _at_once(dataset, student, config, folder, seed, progress)
        fit = GradientFit(dataset, student, config, folder, seed, initial)
        fit.run(progress)
        fit.require_learning()
        save_policy(fit.best_policy(), folder, provenance(seed))
        return load_native(folder)
    finally:
        torch.set_num_threads(threads)


def require_fit(student: AnyStudent, config: DistillConfig, spec: PolicySpec) -> None:
    """Raise, before there are any data, what `distill` would raise of a student and its losses.

    Args:
        student: which student.
        config: with which losses.
        spec: of the data to come: what is seen, and the teacher's head.

    Raises:
        ConfigError: a student that cannot be built for these observations, a loss that it cannot minimise.
        SpecMismatchError: a loss does not fit the teacher's labels.
    """
    losses = tuple(term.loss for term in config.losses)
    if isinstance(student, Tree):
        blank_tree(student, losses, spec)
    elif isinstance(student, Ridge):
        require_solvable(losses, spec.head)
        student.build(solvable(spec))
    else:
        terms = of_the_policy(config.losses)
        require_comparable(terms, spec.head, student_spec(spec, terms).head)
        student.build(student_spec(spec, terms))


def _at_once(
    dataset: Dataset,
    student: Ridge | Tree,
    config: DistillConfig,
    folder: Path,
    seed: int,
    progress: Callable[[int, int], None],
) -> NetworkPolicy:
    """Fit what does not learn by gradient."""
    torch.manual_seed(seed)
    losses = tuple(term.loss for term in config.losses)
    policy: NetworkPolicy
    if isinstance(student, Tree):
        policy = grow(dataset, student, losses, folder, seed)
    else:
        policy = student.build(solvable(dataset.spec)).eval()
        prepare(policy, dataset)
        solve(dataset, policy, student, losses, folder)
    save_policy(policy, folder, provenance(seed))
    progress(config.epochs, config.epochs)
    return load_native(folder)
