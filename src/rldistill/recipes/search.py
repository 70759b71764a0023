"""How small can the student be? Families and sizes on shared data; the small ones are tested on fresh episodes."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from rldistill.artifacts import open_stage, read_json, write_json
from rldistill.data.dataset import Dataset
from rldistill.distill import DistillConfig, distill
from rldistill.envs.single import EnvConfig
from rldistill.errors import ConfigError, NothingLearnedError, shown
from rldistill.evaluate.cost import measure_cost
from rldistill.evaluate.decision import RISK, non_inferior
from rldistill.evaluate.looks import RISK as OF_LOOKS
from rldistill.evaluate.looks import boundary, looks
from rldistill.evaluate.play import Episodes, play
from rldistill.evaluate.statistics import Returns, normalised_interval, normalised_score
from rldistill.losses import ActionNLL
from rldistill.objective import Term
from rldistill.progress import Report, track
from rldistill.recipes import dagger
from rldistill.recipes.candidates import as_written, candidates
from rldistill.recipes.pipeline import load_teacher, run_collect, run_train, with_teachers_features
from rldistill.recipes.run import Dagger, Run
from rldistill.report.search import as_students, search_table, search_verdict, write_search
from rldistill.students import AnyStudent, Cnn, Mlp, Tree
from rldistill.teachers.identity import identity
from rldistill.teachers.train import TrainConfig
from rldistill.types import Policy, PolicySpec

Measure = Literal["parameters", "bytes", "macs", "latency"]
RUNGS = 3
"""Of successive halving: each has twice the epochs and twice the episodes of the one before, for half the students."""
FINALISTS = 4
LEAST_UPDATES = 2_000
"""Gradient steps below which a student says nothing of what it could learn, if it is to have that many in the end."""
SLACK = 1.0
"""By how many times `within` a score from few epochs and few episodes may miss what is wanted."""
SEED = 0
"""The training seed of those that are tried."""
CHOOSING, JUDGING = 1, 0
"""Rounds of evaluation seeds: students are chosen by others than those that they are judged by."""


@dataclass(frozen=True)
class SearchConfig:
    """What is looked for.

    Attributes:
        within: the share of the teacher's lead over random play that the student may lose.
        by: what is to be small.
        rounds: of DAgger, in which one student acts for all; a run file whose recipe is `dagger` says it itself.
        seeds: training seeds of those that are tested.
        episodes: of a student in the first rung.
        max_episodes: for each training seed of those that are tested.
    """

    within: float = 0.05
    by: Measure = "parameters"
    rounds: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 10
    max_episodes: int = 300

    def __post_init__(self) -> None:
        if not 0 < self.within < 1:
            raise ConfigError(f"--within: expected a share such as 5%, found {self.within:.4g}")


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
class Arena:
    """The environment, and what teacher and random play return in it: each episode is played once."""

    env: EnvConfig
    teacher: Policy
    seed: int
    gamma: float
    played: dict[tuple[str, int], Episodes] = field(default_factory=dict)

    def play(self, policy: Policy | None, episodes: int, round: int, first: int = 0) -> Episodes:
        side: Literal["student", "teacher"] = "teacher" if policy is self.teacher else "student"
        return play(self.env, policy, episodes, seed=self.seed, round=round, first=first, side=side, gamma=self.gamma)

    def reference(self, who: Literal["teacher", "random"], episodes: int, round: int) -> Returns:
        """Returns `[1, episodes]`."""
        known = self.played.get((who, round))
        have = 0 if known is None else len(known.returns)
        if have < episodes:
            more = self.play(self.teacher if who == "teacher" else None, episodes - have, round, have)
            known = self.played[who, round] = more if known is None else known.followed_by(more)
        assert known is not None
        return known.returns[None, :episodes]


def search(
    run: Run, config: SearchConfig, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Find the smallest student that keeps the teacher's lead, in `search/` of the run's folder.

    All students learn from one dataset: the teacher's, and some rounds in which a student of middle size acted.
    Successive halving (Jamieson 2016, arXiv 1502.07943) drops those that are far off or larger than others that hold.
    What is left is tested from the smallest on, with several training seeds each, on episodes that nobody was chosen
    by, until decided; all tests together have a risk of 5% of a false yes.

    Returns:
        `env within by teacher winner tried front seconds`, as written to `search/search.json`.

    Raises:
        ConfigError: the teacher is no better than random play, or what is there was asked for otherwise.
    """
    folder, started = run.folder / "search", time.monotonic()
    if isinstance(run.teacher, TrainConfig):
        run_train(run, resume=True, quiet=quiet)
    run, teacher = with_teachers_features(run), load_teacher(run)
    asked = _asked(run, config, teacher)
    if (folder / "asked.json").exists() and not overwrite:
        _require_same(folder / "asked.json", asked)
    if resume and not overwrite and (folder / "search.json").exists():
        return dict(read_json(folder / "search.json"))
    # Before anything is thrown away or noted: what was collected otherwise is refused.
    collected = run_collect(run, resume=True, quiet=quiet)
    open_stage(folder, folder / "search.json", resume, overwrite)
    write_json(folder / "asked.json", asked)
    data = _shared_data(run, config, teacher, collected, folder, quiet)
    arena = Arena(run.env.seen_by(teacher), teacher, run.seed, run.evaluate.gamma)
    best, worst = (arena.reference(who, config.episodes, CHOOSING).mean() for who in ("teacher", "random"))
    if not best > worst:
        raise ConfigError("search: the teacher is no better than random play, so there is nothing to keep")
    cost = measure_cost(teacher)
    tried = {
        name: Trial(name, student)
        for name, student in candidates(_spec_of_students(data), run.students, cost.parameters).items()
    }
    with track("search", "students", quiet) as report:
        finalists = _halve(run, config, data, arena, tried, folder, report, _sizes(teacher)[config.by])
    winner = None
    with track("test the smallest", "students", quiet) as report:
        for number, trial in enumerate(finalists):
            trial.test = _test(run, config, data, arena, trial, len(finalists), folder)
            report(number + 1, len(finalists))
            if trial.test["decision"] == "yes":
                winner = trial.name
                break
    found = {
        "env": run.env.id,
        "within": config.within,
        "by": config.by,
        "env_steps": data.num_steps,
        "teacher": _sizes(teacher),
        "winner": winner,
        "tried": [_document(trial) for trial in tried.values()],
        "front": [trial.name for trial in front(tried.values(), config.by)],
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(folder / "search.json", found)
    return found


def _asked(run: Run, config: SearchConfig, teacher: Policy) -> dict[str, Any]:
    """All that a search depends on, as JSON."""
    parts = {key: run.document.get(key) for key in ("env", "collect", "recipe", "distill", "students", "evaluate")}
    asked = {**dataclasses.asdict(config), **parts, "seed": run.seed, "teacher": identity(teacher)}
    return dict(json.loads(json.dumps(asked, default=str)))


def _require_same(path: Path, asked: dict[str, Any]) -> None:
    known = read_json(path)
    for key, value in asked.items():
        if known.get(key) != value:
            raise ConfigError(
                f"{path}: {key} was {shown(known.get(key))}, now it is {shown(value)}. Go on with the old value, or "
                "start again with --overwrite."
            )


def run_search(
    run: Run, config: SearchConfig, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Search, print what was found, and write `search/search.html`."""
    found = search(run, config, resume, overwrite, quiet)
    page = run.folder / "search" / "search.html"
    write_search(found, page)
    console = Console(highlight=False)
    console.print(search_table(found), search_verdict(found), sep="\n")
    if found["winner"]:
        console.print(as_students(found), markup=False)
    print(f"the search: {page}")
    return found


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
    wanted = 1 - config.within * (1 + SLACK)

    def rank(trial: Trial) -> tuple[bool, float]:
        enough = trial.score >= wanted
        return not enough, trial.of(config.by) if enough else -trial.score

    return sorted(trials, key=rank)[:keep]


def _halve(
    run: Run,
    config: SearchConfig,
    data: Dataset,
    arena: Arena,
    tried: Mapping[str, Trial],
    folder: Path,
    report: Report,
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
            report(done, total)
    learned = [trial for trial in left if "failed" not in trial.rungs[-1]]
    smaller = [trial for trial in learned if most is None or trial.of(config.by) < most]
    holding = [trial for trial in smaller if trial.score >= 1 - config.within]
    return promoted(holding or smaller, config, FINALISTS)


def _climb(run: Run, config: SearchConfig, data: Dataset, arena: Arena, trial: Trial, rung: int, folder: Path) -> None:
    """One student, with the epochs and the episodes of a rung."""
    place = folder / "trials" / trial.name / f"rung-{rung}"
    file = place / "trial.json"
    least = math.ceil(LEAST_UPDATES * run.distill.batch_size / len(data))
    epochs = max(1, run.distill.epochs >> (RUNGS - 1 - rung), min(least, run.distill.epochs))
    if not file.exists():
        episodes = config.episodes << rung
        row: dict[str, Any] = {"epochs": epochs, "episodes": episodes, "normalised": None, "ci95": None}
        try:
            policy = distill(data, trial.student, _fit(run, trial.student, epochs), place, seed=SEED, resume=True)
        except NothingLearnedError as error:
            write_json(file, {"size": {}, "row": row | {"failed": str(error)}})
        else:
            returns = arena.play(policy, episodes, CHOOSING).returns[None]
            teacher, random = (arena.reference(who, episodes, CHOOSING) for who in ("teacher", "random"))
            interval = normalised_interval(returns, teacher, random)
            row |= {"normalised": normalised_score(returns, teacher, random), "ci95": interval and [*interval]}
            write_json(file, {"size": _sizes(policy), "row": row})
    said = read_json(file)
    trial.size = said["size"] or trial.size
    trial.rungs.append(said["row"])


def _test(
    run: Run, config: SearchConfig, data: Dataset, arena: Arena, trial: Trial, tests: int, folder: Path
) -> dict[str, Any]:
    """Whether students of several training seeds keep what is wanted, on fresh episodes, until decided."""
    place = folder / "tested" / trial.name
    if (place / "test.json").exists():
        return dict(read_json(place / "test.json"))
    _take_over(folder / "trials" / trial.name / f"rung-{RUNGS - 1}", place / f"seed-{SEED}")
    fit = _fit(run, trial.student, run.distill.epochs)
    students = [distill(data, trial.student, fit, place / f"seed-{s}", seed=s, resume=True) for s in config.seeds]
    first = min(run.evaluate.episodes, config.max_episodes)
    counts = looks(first, config.max_episodes)
    returns = np.zeros((len(students), 0))
    answer: dict[str, Any] = {}
    for count, risk in zip(counts, boundary(counts, OF_LOOKS / tests), strict=True):
        before = returns.shape[1]
        more = [arena.play(student, count - before, JUDGING, before).returns for student in students]
        returns = np.concatenate([returns, np.stack(more)], 1)
        teacher, random = (arena.reference(who, count, JUDGING) for who in ("teacher", "random"))
        found = non_inferior(returns, teacher, random, config.within, risk=risk, whole=RISK / tests)
        answer = dataclasses.asdict(found)
        if answer["decision"] != "undecided":
            break
    interval = normalised_interval(returns, teacher, random)
    answer |= {"normalised": normalised_score(returns, teacher, random), "ci95": interval and [*interval]}
    answer |= {"seeds": [*config.seeds], "folder": str(place)}
    write_json(place / "test.json", answer)
    return answer


def _take_over(last: Path, place: Path) -> None:
    """The student of the last rung, which had all epochs, instead of fitting the same once more."""
    if last.exists() and not place.exists():
        shutil.copytree(last, draft := place.with_name(f".{place.name}"), dirs_exist_ok=True)
        draft.rename(place)


def _shared_data(
    run: Run, config: SearchConfig, teacher: Policy, dataset: Dataset, folder: Path, quiet: bool
) -> Dataset:
    """What all students learn from: the teacher's steps, and those of rounds in which one of middle size acted.

    A run file that names one of its students `scout` says itself which.
    """
    recipe = run.recipe
    if not isinstance(recipe, Dagger):
        recipe = Dagger(config.rounds, max(1, run.collect.steps // (2 * config.rounds)))
    pictures = len(dataset.spec.obs_shape) == 3
    scout: AnyStudent = Cnn((16, 32, 32), (8, 4, 3), (4, 2, 1), (24,)) if pictures else Mlp((32, 32))
    asked = dataclasses.replace(run, students={"scout": scout, **run.students}, folder=folder)
    with track("scout", "epochs", quiet) as report:
        place = folder / "students" / "scout" / "seed-0"
        dagger.in_rounds(
            asked, recipe, teacher, dataset, "scout", 0, True, False, report, taught=run.folder / "dataset"
        )
    both = [run.folder / "dataset", place / "dataset"]
    return Dataset.read(both, run.collect.gamma, memory_gb=run.collect.memory_gb)


def _fit(run: Run, student: AnyStudent, epochs: int) -> DistillConfig:
    losses = (Term(ActionNLL()),) if isinstance(student, Tree) else run.distill.losses
    return dataclasses.replace(run.distill, epochs=epochs, losses=losses)


def _spec_of_students(data: Dataset) -> PolicySpec:
    return dataclasses.replace(data.spec, head=data.spec.head.neutral)


def _sizes(policy: Policy) -> dict[str, float | None]:
    cost = measure_cost(policy)
    return {
        "parameters": cost.parameters,
        "bytes": cost.bytes,
        "macs": cost.macs,
        "latency": None if cost.latency_us is None else cost.latency_us["p50"],
    }


def _document(trial: Trial) -> dict[str, Any]:
    return {
        "name": trial.name,
        "student": as_written(trial.student),
        "size": trial.size,
        "rungs": trial.rungs,
        "test": trial.test,
    }
