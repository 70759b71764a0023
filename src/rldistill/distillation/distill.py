"""Distillation: a dataset and losses become a student."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from rldistill.core.errors import ConfigError, NothingLearnedError
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.agents import agent_dataset
from rldistill.data.dataset import Dataset, open_dataset
from rldistill.data.manifest import dataset_folder
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.gradient import fit_by_gradient
from rldistill.distillation.mutual import Peers
from rldistill.distillation.ridge import fit_ridge, require_solvable, solvable_spec
from rldistill.distillation.tasks import new_trainer
from rldistill.distillation.tree import empty_tree, fit_tree
from rldistill.distillation.weighting import label_spec, weighted_dataset
from rldistill.io.atomic import Mode, open_stage, read_jsonl
from rldistill.io.lock import locked
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress, Round, stage_progress
from rldistill.io.provenance import provenance
from rldistill.losses.objective import policy_terms, require_comparable, student_spec
from rldistill.policies.agent import inference_threads
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent
from rldistill.students.multi_task import USE_TASKS, MultiTask
from rldistill.students.storage import load_native, save_policy, trust_student
from rldistill.students.student import Fit, build_student, capability
from rldistill.students.team import Team, TeamPolicy
from rldistill.students.tree import Tree

GivenData = Dataset | Path | str
"""A dataset, or the folder of it or of its run."""


@locked
def distill(
    dataset: GivenData | Mapping[str, GivenData],
    student: AnyStudent | NetworkPolicy,
    config: DistillConfig,
    folder: Path | str,
    *,
    seed: int = 0,
    mode: Mode = "new",
    progress: Progress | bool = True,
    peers: Peers | None = None,
) -> NetworkPolicy:
    """Fit a student to the teacher's labels; the weights with the lowest held-out loss are kept.

    The loss of a batch is sum_i w_i(progress) * mean_b loss_i(b), the mean weighted with `Batch.weight`.

    Args:
        dataset: Observations with the teacher's labels, or the folder of a dataset or run, which `open_dataset` reads;
            those of several tasks, by name, for a `multi_task` student.
        student: The student; a policy instead gives the first weights (DAgger's warm start) of a student like it.
        config: Losses and optimizer.
        folder: Folder for `policy.safetensors`, `policy.json`, `metrics.jsonl` and `checkpoints/`.
        seed: Training seed: initial weights and the order of the data.
        mode: "new" refuses a folder that exists, "resume" continues it, "overwrite" discards it.
        progress: True shows progress on stderr; or an object with `update(done, total, score)`.
        peers: Students that learn together with the student.

    Raises:
        ConfigError: Several datasets for a student of one task, or the reverse; peers that cannot learn together.
        SpecMismatchError: A loss does not fit the teacher's labels.
        NothingLearnedError: The held-out loss is no better than the best constant prediction's.
        CorruptArtifactError: A folder has no dataset, or a damaged one.
    """
    folder = Path(folder)
    student, initial = (student.config, student) if isinstance(student, NetworkPolicy) else (student, None)
    trust_student(student)
    _require_data(dataset, student, folder)
    if peers is not None:
        peers.require(student, initial)
    if open_stage(folder, folder / "policy.json", mode):
        return load_native(folder)
    data = _opened(dataset)
    try:
        with inference_threads(config.num_threads), stage_progress(progress, "distill", "epochs") as report:
            if isinstance(data, Dataset) and data.spec.members:
                data = weighted_dataset(data, config.weighting, folder, seed)
            if capability(student, "fit") in ("gradient", "tasks"):
                policy = fit_by_gradient(new_trainer(data, student, config, seed, initial, peers), folder, report)
                Metrics(folder).end()
            elif isinstance(student, Team):
                policy = _fit_team(cast(Dataset, data), student, initial, config, folder, seed, report)
            else:
                policy = _fit_once(cast(Dataset, data), student, config, folder, seed)
            save_policy(policy, folder, provenance(seed))
            report.update(config.epochs, config.epochs)
        return load_native(folder)
    except NothingLearnedError:
        for part in [data] if isinstance(data, Dataset) else data.values():
            _require_variation(part, folder)
        raise


def _opened(given: GivenData | Mapping[str, GivenData]) -> Dataset | dict[str, Dataset]:
    if isinstance(given, Mapping):
        return {task: _open(part) for task, part in given.items()}
    return _open(given)


def _open(data: GivenData) -> Dataset:
    return data if isinstance(data, Dataset) else open_dataset(data)


def _require_data(given: Any, student: AnyStudent, folder: Path) -> None:
    """Raise ConfigError for a dataset that the student cannot learn from, or that would be replaced by it."""
    parts = [*given.values()] if isinstance(given, Mapping) else [given]
    if not parts or not all(isinstance(part, Dataset | Path | str) for part in parts):
        kinds = ", ".join(sorted({type(part).__name__ for part in parts})) or "an empty mapping"
        raise ConfigError(f"dataset: expected a Dataset or its folder, or one for each task by name, found {kinds}.")
    if isinstance(given, Mapping) != isinstance(student, MultiTask):
        raise ConfigError(f"students: {USE_TASKS}")
    if any(dataset_folder(Path(part)).resolve() == folder.resolve() for part in parts if isinstance(part, Path | str)):
        raise ConfigError(f"{folder}: it is the folder of the dataset. Name another one for the student.")


def _require_variation(dataset: Dataset, folder: Path) -> None:
    """Raise NothingLearnedError if the teacher takes the same action in all states."""
    actions = PolicyOutput(dataset.spec.head, torch.from_numpy(dataset.columns["teacher"])).mode().float()
    if torch.isclose(actions, actions[:1], atol=1e-6).all():
        problem = "the teacher is constant: it takes the same action in all states of the dataset"
        message = f"{folder}: {problem}, so there is nothing to learn. Use another teacher."
        raise NothingLearnedError(message) from None


def _fit_once(dataset: Dataset, student: AnyStudent, config: DistillConfig, folder: Path, seed: int) -> NetworkPolicy:
    """Fit a tree or a ridge student, which takes one pass."""
    started = time.monotonic()
    fit = fit_tree if capability(student, "fit") == "tree" else fit_ridge
    losses = tuple(term.loss for term in config.losses)
    policy, scores, problem = fit(dataset, cast(Any, student), losses, seed)
    row = {"epoch": 1, "step": int((~dataset.heldout).sum()), **scores}
    Metrics(folder).write([row | {"seconds": round(time.monotonic() - started, 3)}])
    if problem is not None:
        raise NothingLearnedError(f"{folder}: the student learned nothing: {problem}")
    return policy


def _fit_team(
    dataset: Dataset,
    student: Team,
    initial: NetworkPolicy | None,
    config: DistillConfig,
    folder: Path,
    seed: int,
    progress: Progress,
) -> NetworkPolicy:
    """Fit each network of a team to the rows of its agents; the metrics are the means over networks."""
    first = cast(TeamPolicy, initial or student.build(dataset.spec))
    members, metrics = [], []
    for number, network in enumerate(first.groups):
        start: Any = student.student if initial is None else first.member(network)
        own_folder, part = folder / "members" / network, Round(progress, number, len(first.groups))
        data = agent_dataset(dataset, first.views_of(network))
        members.append(distill(data, start, config, own_folder, seed=seed, mode="resume", progress=part))
        metrics.append(read_jsonl(own_folder / "metrics.jsonl"))
    rows = [
        {
            key: float(np.mean(values)) if key != "step" else values[0]
            for key in same_epoch[0]
            if None not in (values := [row.get(key) for row in same_epoch])
        }
        for same_epoch in zip(*metrics, strict=False)
    ]
    Metrics(folder).write(rows)
    return student.assembled(dataset.spec, members)


def require_fit(student: AnyStudent, config: DistillConfig, spec: PolicySpec) -> None:
    """Raise the errors of `distill` about a student and its losses, before there are any data of this `spec`.

    Raises:
        ConfigError: A student that cannot be built for these observations, or a loss that it cannot minimize.
        SpecMismatchError: A loss does not fit the teacher's labels.
    """
    losses, spec = tuple(term.loss for term in config.losses), label_spec(spec)
    fit: Fit = capability(student, "fit")
    if isinstance(student, MultiTask):
        raise ConfigError(f"students: {USE_TASKS}")
    if isinstance(student, Team):
        for view in cast(TeamPolicy, student.build(spec)).views:
            require_fit(cast(Any, student.student), config, view.spec)
    elif fit == "tree":
        empty_tree(cast(Tree, student), losses, spec)
    elif fit == "closed_form":
        require_solvable(losses, spec.head)
        build_student(student, solvable_spec(spec))
    else:
        terms = policy_terms(config.losses)
        require_comparable(terms, spec.head, student_spec(spec, terms).head, has_value=True)
        build_student(student, student_spec(spec, terms))
