"""Successive halving (Jamieson 2016, arXiv 1502.07943), and the test of the finalists.

From rung to rung there are half as many students, with twice the epochs and twice the episodes.
"""

import dataclasses
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from rldistill.core.errors import NothingLearnedError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig, Side
from rldistill.data.dataset import Dataset
from rldistill.distillation.distill import distill
from rldistill.evaluation.episodes import TEST, VALIDATION, play
from rldistill.evaluation.group_sequential import SEQUENTIAL_RISK, analysis_times, boundary
from rldistill.evaluation.non_inferiority import RISK, RiskLevels, non_inferior
from rldistill.evaluation.statistics import Estimate, Returns, normalized_score
from rldistill.evaluation.tables import Record
from rldistill.io.atomic import write_json
from rldistill.io.execution import SERIAL, run_jobs
from rldistill.io.processes import Report
from rldistill.io.progress import Progress
from rldistill.losses import ActionNLL, AdvantageMSE, GapWeightedNLL
from rldistill.losses.objective import Term
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Run
from rldistill.reporting.search_page import ADVICE, FinalistTest, Rung
from rldistill.search.candidates import Candidate, policy_sizes
from rldistill.search.config import SearchConfig
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


class _Returns(Record):
    """Returns of the first episodes of a split."""

    advice: ClassVar[str] = ADVICE
    returns: list[float]


class _TrialResult(Record):
    """Result of a candidate in one rung; without sizes if it learned nothing."""

    advice: ClassVar[str] = ADVICE
    size: dict[str, float | None]
    row: Rung


@dataclass(frozen=True)
class SearchStage:
    """Everything that the rungs and the tests of a search share; `env` is the environment as the teacher needs it.

    A `baseline` of None is random play.
    """

    run: Run
    config: SearchConfig
    env: EnvConfig
    teacher: Policy
    dataset: Dataset
    baseline: Policy | None = None

    @property
    def folder(self) -> Path:
        """Folder of the search."""
        return self.run.out / "search"

    def returns(self, policy: Policy | None, episodes: int, split: int, folder: Path) -> Returns:
        """Return the returns of the first `episodes` of a split; those that are not in `folder` yet are played."""
        file = folder / f"returns-{split}.json"
        returns = np.array(_Returns.read(file).returns if file.exists() else [], float)
        if (missing := episodes - len(returns)) > 0:
            side: Side = "teacher" if policy is self.teacher else "student"
            settings = self.run.play_config(split, len(returns), side)
            returns = np.concatenate([returns, play(self.env, policy, missing, settings).returns])
            write_json(file, {"returns": returns.tolist()})
        return returns[:episodes]

    def reference(self, name: Literal["teacher", "baseline"], episodes: int, split: int) -> Returns:
        """Return the returns `[1, episodes]` of the teacher, or of random play or the baseline."""
        policy = self.teacher if name == "teacher" else self.baseline
        return self.returns(policy, episodes, split, self.folder / name)[None]

    def normalized(self, returns: Returns, split: int) -> Estimate | None:
        """Return the normalized score of returns `[seeds, episodes]`."""
        teacher, random = (self.reference(name, returns.shape[1], split) for name in ("teacher", "baseline"))
        return normalized_score(returns, teacher, random)

    def distill(self, candidate: Candidate, epochs: int, folder: Path, seed: int) -> NetworkPolicy:
        """Distill a candidate, or load its student if that is done."""
        losses, is_tree = self.run.distill.losses, capability(candidate.student, "fit") == "tree"
        if is_tree and not all(isinstance(term.loss, TREE_LOSSES) for term in losses):
            losses = (Term(ActionNLL()),)
        config = dataclasses.replace(self.run.distill, epochs=epochs, losses=losses)
        return distill(self.dataset, candidate.student, config, folder, seed=seed, mode="resume", progress=False)

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
        for name in ("teacher", "baseline"):  # once, before several processes need them
            stage.reference(name, config.episodes << rung, VALIDATION)
        execution, own = stage.run.execution, stage
        if not execution.serial:
            own = dataclasses.replace(stage, run=dataclasses.replace(stage.run, execution=SERIAL))
        uses_gpu = stage.run.distill.device != "cpu"
        for number, trial in run_jobs(partial(_run_rung, own, rung), remaining, execution, uses_gpu=uses_gpu):
            remaining[number].size = trial.size or remaining[number].size
            remaining[number].rungs.append(trial.row)
            done += 1
            progress.update(done, total)
    smaller = [candidate for candidate in remaining if candidate.rungs[-1].failed is None]
    if max_size is not None:
        smaller = [candidate for candidate in smaller if candidate.size_by(config.by) < max_size]
    sufficient = [candidate for candidate in smaller if candidate.score >= 1 - config.margin]
    return promote(sufficient or smaller, config, MAX_FINALISTS)


def _run_rung(stage: SearchStage, rung: int, candidate: Candidate, report: Report) -> _TrialResult:
    """Distill and play a candidate with the epochs and episodes of a rung, unless that is done; return the trial."""
    folder, fit = stage.rung_folder(candidate, rung), stage.run.distill
    file = folder / "trial.json"
    if not file.exists():
        min_epochs = min(math.ceil(MIN_UPDATES * fit.batch_size / len(stage.dataset)), fit.epochs)
        epochs = max(1, fit.epochs >> (NUM_RUNGS - 1 - rung), min_epochs)
        episodes = stage.config.episodes << rung
        size: dict[str, float | None] = {}
        score = failed = None
        try:
            policy = stage.distill(candidate, epochs, folder, RUNG_SEED)
        except NothingLearnedError as error:
            failed = str(error)
        else:
            score = stage.normalized(stage.returns(policy, episodes, VALIDATION, folder)[None], VALIDATION)
            size = policy_sizes(policy)
        row = Rung(epochs=epochs, episodes=episodes, normalized=score, failed=failed)
        write_json(file, _TrialResult(size=size, row=row).to_dict())
    return _TrialResult.read(file)


def assess_finalist(stage: SearchStage, candidate: Candidate, num_tests: int, progress: Progress) -> FinalistTest:
    """Test on fresh episodes whether students of several training seeds are non-inferior to the teacher.

    Episodes are added `evaluate.episodes` at a time until the result is clear, at most `evaluate.max_episodes`. All
    `num_tests` finalists share the risk of a false yes.
    """
    folder, run = stage.folder / "tested" / candidate.name, stage.run
    file = folder / "test.json"
    if file.exists():
        return FinalistTest.read(file)
    seeds = stage.config.training_seeds(run.seeds)
    rung, reused = stage.rung_folder(candidate, NUM_RUNGS - 1), folder / f"seed-{RUNG_SEED}"
    if RUNG_SEED in seeds and rung.exists() and not reused.exists():
        # The student of the last rung had all epochs, so it is copied instead of distilled again.
        draft = folder / f".{reused.name}"
        shutil.copytree(rung, draft, dirs_exist_ok=True)
        draft.rename(reused)
    result: dict[str, Any] = {"seeds": [*seeds], "folder": str(folder.relative_to(stage.folder)), "failed": None}
    try:
        students = [stage.distill(candidate, run.distill.epochs, folder / f"seed-{seed}", seed) for seed in seeds]
    except NothingLearnedError as error:
        failed = FinalistTest(**result | {"failed": str(error)}, episodes=0, normalized=None, test=None)
        write_json(file, failed.to_dict())
        return failed
    counts = analysis_times(run.evaluate.episodes, max(run.evaluate.episodes, run.evaluate.max_episodes))
    before = 0
    for count, risk in zip(counts, boundary(counts, SEQUENTIAL_RISK / num_tests), strict=True):
        rows = []
        for number, (student, seed) in enumerate(zip(students, seeds, strict=True), 1):
            rows.append(stage.returns(student, count, TEST, folder / f"seed-{seed}"))
            progress.update(before * len(seeds) + (count - before) * number, counts[-1] * len(seeds))
        before, returns = count, np.stack(rows)
        teacher, random = (stage.reference(name, count, TEST) for name in ("teacher", "baseline"))
        levels = RiskLevels(risk, RISK / num_tests)
        answer = non_inferior(returns, teacher, random, stage.config.margin, levels=levels)
        if answer.decision != "undecided":
            break
    tested = FinalistTest(**result, episodes=before, normalized=stage.normalized(returns, TEST), test=answer)
    write_json(file, tested.to_dict())
    return tested
