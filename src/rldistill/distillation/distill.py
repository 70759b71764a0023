"""Distil: dataset x loss terms -> student."""

from __future__ import annotations

from pathlib import Path

import torch

from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.gradient import GradientFit, prepare
from rldistill.distillation.ridge import require_solvable, solvable, solve
from rldistill.distillation.tree import empty_tree, fit_tree
from rldistill.io.atomic import Mode, open_stage
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.provenance import provenance
from rldistill.losses.objective import policy_terms, require_comparable, student_spec
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent
from rldistill.students.ridge import Ridge
from rldistill.students.storage import load_native, save_policy, trust
from rldistill.students.tree import Tree


def distill(
    dataset: Dataset,
    student: AnyStudent,
    config: DistillConfig,
    folder: Path,
    *,
    seed: int = 0,
    initial: NetworkPolicy | None = None,
    mode: Mode = "new",
    progress: Progress | bool = True,
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
        mode: "new" refuses a folder that exists, "resume" continues it, "overwrite" discards it.
        progress: True shows progress on a terminal; or an object with `update(done, total, score)`.

    Raises:
        SpecMismatchError: a loss does not fit the teacher's labels.
        NothingLearnedError: the held-out loss is no better than the best constant prediction's.
    """
    trust(type(student))
    trust(type(getattr(student, "features", student)))
    if open_stage(folder, folder / "policy.json", mode):
        return load_native(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.num_threads)
    try:
        if isinstance(student, Ridge | Tree):
            return _at_once(dataset, student, config, folder, seed, progress)
        fit = GradientFit(dataset, student, config, folder, seed, initial)
        with stage_progress(progress, "distill", "epochs") as report:
            fit.run(report)
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
        empty_tree(student, losses, spec)
    elif isinstance(student, Ridge):
        require_solvable(losses, spec.head)
        student.build(solvable(spec))
    else:
        terms = policy_terms(config.losses)
        require_comparable(terms, spec.head, student_spec(spec, terms).head)
        student.build(student_spec(spec, terms))


def _at_once(
    dataset: Dataset,
    student: Ridge | Tree,
    config: DistillConfig,
    folder: Path,
    seed: int,
    progress: Progress | bool,
) -> NetworkPolicy:
    """Fit what does not learn by gradient."""
    torch.manual_seed(seed)
    losses = tuple(term.loss for term in config.losses)
    policy: NetworkPolicy
    if isinstance(student, Tree):
        policy = fit_tree(dataset, student, losses, folder, seed)
    else:
        policy = student.build(solvable(dataset.spec)).eval()
        prepare(policy, dataset)
        solve(dataset, policy, student, losses, folder)
    save_policy(policy, folder, provenance(seed))
    with stage_progress(progress, "distill", "epochs") as report:
        report.update(config.epochs, config.epochs)
    return load_native(folder)
