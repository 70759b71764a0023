"""Successive halving (Jamieson 2016, arXiv 1502.07943), and the test of the finalists.

From rung to rung there are half as many students, with twice the epochs and twice the episodes.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.core.errors import NothingLearnedError
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.evaluation.episodes import TEST, VALIDATION
from rldistill.evaluation.group_sequential import SEQUENTIAL_RISK, analysis_times, boundary
from rldistill.evaluation.non_inferiority import RISK, RiskLevels, non_inferior
from rldistill.io.atomic import read_json, write_json
from rldistill.io.progress import Progress
from rldistill.losses import ActionNLL, AdvantageMSE, GapWeightedNLL
from rldistill.losses.objective import Term
from rldistill.recipes.job import Run
from rldistill.search.candidates import Candidate, policy_sizes
from rldistill.search.config import SearchConfig
from rldistill.search.evaluator import SearchEvaluator
from rldistill.students import AnyStudent
from rldistill.students.student import capability

NUM_RUNGS = 3
MAX_FINALISTS = 4
MIN_UPDATES = 2_000
"""Gradient steps in every rung, unless the run has fewer: after fewer, a student shows little of what it can learn."""
SLACK = 1.0
"""Tolerance, as a multiple of `margin`, for scores of few epochs and few episodes."""
RUNG_SEED = 0
"""Training seed of all rungs."""
TREE_LOSSES = ActionNLL | AdvantageMSE | GapWeightedNLL
"""Losses that trees can minimize; where a run has others, trees learn actions."""


@dataclass(frozen=True)
class SearchStage:
    """Everything that the rungs and the tests of a search share.

    Attributes:
        run: run with the settings of distillation and evaluation.
        config: settings of the search.
        dataset: shared dataset of all candidates.
        evaluator: evaluation of the candidates.
    """

    run: Run
    config: SearchConfig
    dataset: Dataset
    evaluator: SearchEvaluator

    @property
    def folder(self) -> Path:
        """Folder of the search."""
        return self.evaluator.folder

    @property
    def max_episodes(self) -> int:
        """Maximum number of test episodes of each student."""
        return max(self.run.evaluate.episodes, self.run.evaluate.max_episodes)

    def distill_config(self, student: AnyStudent, epochs: int) -> DistillConfig:
        """Return the settings of distillation for a student."""
        losses = self.run.distill.losses
        if capability(student, "fit") == "tree" and not all(isinstance(term.loss, TREE_LOSSES) for term in losses):
            losses = (Term(ActionNLL()),)
        return dataclasses.replace(self.run.distill, epochs=epochs, losses=losses)

    def rung_folder(self, candidate: Candidate, rung: int) -> Path:
        """Return the folder of a candidate in a rung."""
        return self.folder / "trials" / candidate.name / f"rung-{rung}"


def promote(candidates: Sequence[Candidate], config: SearchConfig, count: int) -> list[Candidate]:
    """Return `count` candidates: the smallest with a sufficient score, then those with the best scores."""
    min_score = 1 - config.margin * (1 + SLACK)

    def rank(candidate: Candidate) -> tuple[bool, float]:
        is_sufficient = candidate.score >= min_score
        return not is_sufficient, candidate.size_by(config.by) if is_sufficient else -candidate.score

    return sorted(candidates, key=rank)[:count]


def select_finalists(
    stage: SearchStage, candidates: Sequence[Candidate], max_size: float | None, progress: Progress
) -> list[Candidate]:
    """Run all rungs and return the finalists, the smallest first; all are smaller than `max_size`, if it is known."""
    config, remaining = stage.config, list(candidates)
    counts = [max(MAX_FINALISTS, math.ceil(len(candidates) / 2**rung)) for rung in range(NUM_RUNGS)]
    done, total = 0, sum(min(count, len(candidates)) for count in counts)
    for rung, count in enumerate(counts):
        remaining = promote(remaining, config, count) if rung else remaining
        for candidate in remaining:
            _run_rung(stage, candidate, rung)
            done += 1
            progress.update(done, total)
    limit = math.inf if max_size is None else max_size
    smaller = [
        candidate
        for candidate in remaining
        if "failed" not in candidate.rungs[-1] and (max_size is None or candidate.size_by(config.by) < limit)
    ]
    sufficient = [candidate for candidate in smaller if candidate.score >= 1 - config.margin]
    return promote(sufficient or smaller, config, MAX_FINALISTS)


def _run_rung(stage: SearchStage, candidate: Candidate, rung: int) -> None:
    """Distill and play a candidate with the epochs and the episodes of a rung, unless that is done."""
    folder, fit, student = stage.rung_folder(candidate, rung), stage.run.distill, candidate.student
    file = folder / "trial.json"
    if not file.exists():
        min_epochs = min(math.ceil(MIN_UPDATES * fit.batch_size / len(stage.dataset)), fit.epochs)
        epochs = max(1, fit.epochs >> (NUM_RUNGS - 1 - rung), min_epochs)
        episodes = stage.config.episodes << rung
        row: dict[str, Any] = {"epochs": epochs, "episodes": episodes, "normalized": None, "ci95": None}
        config, size = stage.distill_config(student, epochs), {}
        try:
            policy = distill(stage.dataset, student, config, folder, seed=RUNG_SEED, mode="resume", progress=False)
        except NothingLearnedError as error:
            row["failed"] = str(error)
        else:
            returns = stage.evaluator.returns(policy, episodes, VALIDATION, folder)[None]
            row |= stage.evaluator.normalized(returns, VALIDATION)
            size = policy_sizes(policy)
        write_json(file, {"size": size, "row": row})
    document = read_json(file)
    candidate.size = document["size"] or candidate.size
    candidate.rungs.append(document["row"])


def assess_finalist(stage: SearchStage, candidate: Candidate, num_tests: int, progress: Progress) -> dict[str, Any]:
    """Test on fresh episodes whether students of several training seeds are non-inferior to the teacher.

    Episodes are added `evaluate.episodes` at a time until the result is clear, at most `evaluate.max_episodes`. All
    `num_tests` finalists share the risk of a false yes.
    """
    folder, evaluator = stage.folder / "tested" / candidate.name, stage.evaluator
    file = folder / "test.json"
    if file.exists():
        return dict(read_json(file))
    seeds = stage.config.training_seeds(stage.run.seeds)
    if RUNG_SEED in seeds:
        _reuse(stage.rung_folder(candidate, NUM_RUNGS - 1), folder / f"seed-{RUNG_SEED}")
    config = stage.distill_config(candidate.student, stage.run.distill.epochs)
    result: dict[str, Any] = {"seeds": [*seeds], "folder": str(folder)}
    try:
        students = [
            distill(
                stage.dataset, candidate.student, config, folder / f"seed-{seed}", seed=seed, mode="resume",
                progress=False,
            )
            for seed in seeds
        ]  # fmt: skip
    except NothingLearnedError as error:
        result |= {"decision": "no", "failed": str(error), "episodes": 0, "normalized": None, "ci95": None}
        write_json(file, result)
        return result
    total, before = stage.max_episodes * len(seeds), 0
    counts = analysis_times(stage.run.evaluate.episodes, stage.max_episodes)
    for count, risk in zip(counts, boundary(counts, SEQUENTIAL_RISK / num_tests), strict=True):
        rows = []
        for number, (student, seed) in enumerate(zip(students, seeds, strict=True), 1):
            rows.append(evaluator.returns(student, count, TEST, folder / f"seed-{seed}"))
            progress.update(before * len(seeds) + (count - before) * number, total)
        before, returns = count, np.stack(rows)
        teacher, random = (evaluator.reference(name, count, TEST) for name in ("teacher", "random"))
        levels = RiskLevels(risk, RISK / num_tests)
        answer = non_inferior(returns, teacher, random, stage.config.margin, levels=levels)
        if answer.decision != "undecided":
            break
    result |= evaluator.normalized(returns, TEST) | dataclasses.asdict(answer)
    write_json(file, result)
    return result


def _reuse(rung: Path, folder: Path) -> None:
    """Copy the student of the last rung, which had all epochs, instead of distilling it again."""
    if rung.exists() and not folder.exists():
        draft = folder.with_name(f".{folder.name}")
        shutil.copytree(rung, draft, dirs_exist_ok=True)
        draft.rename(folder)
