"""Successive halving: students get more epochs and more episodes rung by rung, and the last few are tested."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import NothingLearnedError
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.config import EnvConfig
from rldistill.evaluation.episodes import TEST, VALIDATION, play
from rldistill.evaluation.group_sequential import RISK as OF_LOOKS
from rldistill.evaluation.group_sequential import analysis_times, boundary
from rldistill.evaluation.non_inferiority import RISK, non_inferior
from rldistill.evaluation.statistics import Returns, normalised_interval, normalised_score
from rldistill.io.atomic import read_json, write_json
from rldistill.io.progress import Progress
from rldistill.losses import ActionNLL, AdvantageMSE, GapWeightedNLL
from rldistill.losses.objective import Term
from rldistill.policies.cost import measure_cost
from rldistill.recipes.job import Run
from rldistill.search.config import Measure, SearchConfig
from rldistill.students import AnyStudent
from rldistill.students.student import capability

RUNGS = 3
"""Of successive halving: each has twice the epochs and twice the episodes of the one before, for half the students."""


FINALISTS = 4


LEAST_UPDATES = 2_000
"""Gradient steps below which a student says nothing of what it could learn, if it is to have that many in the end."""


SLACK = 1.0
"""By how many times `margin` a score from few epochs and few episodes may miss what is wanted."""


SEED = 0
"""The training seed of those that are tried."""


OF_TREES = ActionNLL | AdvantageMSE | GapWeightedNLL
"""What a run file may say of trees; with other losses they learn actions."""


@dataclass
class Trial:
    """One student: what it is, and how it did in each rung that it came to."""

    name: str
    student: AnyStudent
    size: dict[str, float | None] = field(default_factory=dict)
    rungs: list[dict[str, Any]] = field(default_factory=list)
    test: dict[str, Any] | None = None

    @property
    def score(self) -> float:
        """The latest; that of random play if nothing was learned."""
        return float(self.rungs[-1]["normalised"] or 0.0) if self.rungs else 0.0

    def of(self, by: Measure) -> float:
        """Its size; of what is not known, infinite."""
        return math.inf if self.size.get(by) is None else float(self.size[by] or 0.0)


@dataclass
class SearchEvaluator:
    """The environment, the teacher, and a folder of what was played: no episode is played twice."""

    env: EnvConfig
    teacher: Policy
    seed: int
    folder: Path

    def returns(self, policy: Policy | None, episodes: int, split: int, place: Path) -> NDArray[np.float64]:
        """Of the first `episodes` of a round of a policy, kept in the folder `place` as they are played."""
        file = place / f"returns-{split}.json"
        known = np.array(read_json(file)["returns"] if file.exists() else [], float)
        if len(known) < episodes:
            side: Literal["student", "teacher"] = "teacher" if policy is self.teacher else "student"
            left, first = episodes - len(known), len(known)
            more = play(self.env, policy, left, seed=self.seed, split=split, first=first, side=side).returns
            known = np.concatenate([known, more])
            write_json(file, {"returns": known.tolist()})
        return known[:episodes]

    def reference(self, who: Literal["teacher", "random"], episodes: int, split: int) -> Returns:
        """Returns `[1, episodes]` of teacher or random play."""
        policy = self.teacher if who == "teacher" else None
        return self.returns(policy, episodes, split, self.folder / who)[None]


def front(trials: Iterable[Trial], by: Measure) -> list[Trial]:
    """Those that no smaller student is as good as, from the smallest on."""
    best, kept = -math.inf, []
    for trial in sorted(trials, key=lambda trial: (trial.of(by), -trial.score)):
        if trial.rungs and trial.score > best:
            best = trial.score
            kept.append(trial)
    return kept


def promoted(trials: Sequence[Trial], config: SearchConfig, keep: int) -> list[Trial]:
    """The smallest of those that are good enough for now, and if these are too few, the best of the others."""
    wanted = 1 - config.margin * (1 + SLACK)

    def rank(trial: Trial) -> tuple[bool, float]:
        enough = trial.score >= wanted
        return not enough, trial.of(config.by) if enough else -trial.score

    return sorted(trials, key=rank)[:keep]


def halve(
    run: Run,
    config: SearchConfig,
    data: Dataset,
    arena: SearchEvaluator,
    tried: Mapping[str, Trial],
    folder: Path,
    progress: Progress,
    most: float | None,
) -> list[Trial]:
    """The students that are left after all rungs and seem to keep what is wanted, the smallest first.

    None is as large as `most`, the teacher's size, where that is known.
    """
    left = [*tried.values()]
    sizes = [max(FINALISTS, math.ceil(len(left) / 2**rung)) for rung in range(RUNGS)]
    done, total = 0, sum(min(size, len(left)) for size in sizes)
    for rung in range(RUNGS):
        left = promoted(left, config, sizes[rung]) if rung else left
        for trial in left:
            _climb(run, config, data, arena, trial, rung, folder)
            done += 1
            progress.update(done, total)
    learned = [trial for trial in left if "failed" not in trial.rungs[-1]]
    smaller = [trial for trial in learned if most is None or trial.of(config.by) < most]
    holding = [trial for trial in smaller if trial.score >= 1 - config.margin]
    return promoted(holding or smaller, config, FINALISTS)


def _climb(
    run: Run, config: SearchConfig, data: Dataset, arena: SearchEvaluator, trial: Trial, rung: int, folder: Path
) -> None:
    """One student, with the epochs and the episodes of a rung."""
    place = folder / "trials" / trial.name / f"rung-{rung}"
    file = place / "trial.json"
    least = math.ceil(LEAST_UPDATES * run.distill.batch_size / len(data))
    epochs = max(1, run.distill.epochs >> (RUNGS - 1 - rung), min(least, run.distill.epochs))
    if not file.exists():
        episodes = config.episodes << rung
        row: dict[str, Any] = {"epochs": epochs, "episodes": episodes, "normalised": None, "ci95": None}
        try:
            policy = distill(
                data, trial.student, _fit(run, trial.student, epochs), place, seed=SEED, mode="resume", progress=False
            )
        except NothingLearnedError as error:
            write_json(file, {"size": {}, "row": row | {"failed": str(error)}})
        else:
            returns = arena.returns(policy, episodes, VALIDATION, place)[None]
            teacher, random = (arena.reference(who, episodes, VALIDATION) for who in ("teacher", "random"))
            interval = normalised_interval(returns, teacher, random)
            row |= {"normalised": normalised_score(returns, teacher, random), "ci95": interval and [*interval]}
            write_json(file, {"size": sizes_of(policy), "row": row})
    said = read_json(file)
    trial.size = said["size"] or trial.size
    trial.rungs.append(said["row"])


def judge(
    run: Run,
    config: SearchConfig,
    data: Dataset,
    arena: SearchEvaluator,
    trial: Trial,
    tests: int,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Whether students of several training seeds keep what is wanted, on fresh episodes, until decided.

    At most `evaluate.max_episodes` are played with each, a look after every `evaluate.episodes`. `progress` is told how
    many of all of them are over.
    """
    place = folder / "tested" / trial.name
    if (place / "test.json").exists():
        return dict(read_json(place / "test.json"))
    seeds = config.seeds_of(run)
    if SEED in seeds:
        _take_over(folder / "trials" / trial.name / f"rung-{RUNGS - 1}", place / f"seed-{SEED}")
    fit = _fit(run, trial.student, run.distill.epochs)
    answer: dict[str, Any] = {"seeds": [*seeds], "folder": str(place)}
    try:
        students = [
            distill(data, trial.student, fit, place / f"seed-{s}", seed=s, mode="resume", progress=False) for s in seeds
        ]
    except NothingLearnedError as error:
        answer |= {"decision": "no", "failed": str(error), "episodes": 0, "normalised": None, "ci95": None}
        write_json(place / "test.json", answer)
        return answer
    counts = analysis_times(run.evaluate.episodes, most_episodes(run))
    known = 0
    for count, risk in zip(counts, boundary(counts, OF_LOOKS / tests), strict=True):
        rows = []
        for number, (student, seed) in enumerate(zip(students, seeds, strict=True)):
            rows.append(arena.returns(student, count, TEST, place / f"seed-{seed}"))
            progress.update(known * len(seeds) + (count - known) * (number + 1), most_episodes(run) * len(seeds))
        known, returns = count, np.stack(rows)
        teacher, random = (arena.reference(who, count, TEST) for who in ("teacher", "random"))
        found = non_inferior(returns, teacher, random, config.margin, risk=risk, whole=RISK / tests)
        if found.decision != "undecided":
            break
    interval = normalised_interval(returns, teacher, random)
    answer |= {"normalised": normalised_score(returns, teacher, random), "ci95": interval and [*interval]}
    answer |= dataclasses.asdict(found)
    write_json(place / "test.json", answer)
    return answer


def most_episodes(run: Run) -> int:
    """That are played with each of those that are tested."""
    return max(run.evaluate.episodes, run.evaluate.max_episodes)


def _take_over(last: Path, place: Path) -> None:
    """The student of the last rung, which had all epochs, instead of fitting the same once more."""
    if last.exists() and not place.exists():
        shutil.copytree(last, draft := place.with_name(f".{place.name}"), dirs_exist_ok=True)
        draft.rename(place)


def _fit(run: Run, student: AnyStudent, epochs: int) -> DistillConfig:
    losses = run.distill.losses
    if capability(student, "fit") == "tree" and not all(isinstance(term.loss, OF_TREES) for term in losses):
        losses = (Term(ActionNLL()),)
    return dataclasses.replace(run.distill, epochs=epochs, losses=losses)


def sizes_of(policy: Policy) -> dict[str, float | None]:
    cost = measure_cost(policy)
    return {
        "parameters": cost.parameters,
        "bytes": cost.bytes,
        "macs": cost.macs,
        "latency": None if cost.latency_us is None else cost.latency_us["p50"],
    }
