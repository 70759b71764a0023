"""Evaluation of a teacher, its students and random play on the same fresh seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rldistill.core.device import resolve_device
from rldistill.core.env import EnvConfig, Side
from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.efficiency import Curve, efficiency
from rldistill.evaluation.episodes import TEST, Episodes, PlayConfig, TeacherQuery, play, require_fit
from rldistill.evaluation.fidelity import OwnStates, fidelity
from rldistill.evaluation.group_sequential import SEQUENTIAL_RISK, analysis_times, boundary
from rldistill.evaluation.non_inferiority import RISK, NonInferiorityResult, RiskLevels, non_inferior
from rldistill.evaluation.records import Efficiency, Fidelity, PolicyResult
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.robustness import Player, robustness
from rldistill.evaluation.statistics import normalized_score
from rldistill.evaluation.summary import (
    num_distinct,
    policy_result,
    profile_thresholds,
    return_statistics,
    stacked_returns,
    warnings_of,
)
from rldistill.evaluation.videos import record_videos, remove_videos
from rldistill.io.atomic import write_json
from rldistill.io.progress import Part, Progress, stage_progress
from rldistill.io.provenance import provenance
from rldistill.policies.wrappers import with_action_mask

Students = Mapping[str, Policy | Sequence[Policy]]


@dataclass(frozen=True)
class PolicyRuns:
    """One policy, or the same student with several training seeds; a policy of None plays at random."""

    kind: Literal["teacher", "student", "random"]
    runs: Mapping[int | None, Policy | None]
    env_steps: int = 0

    @property
    def side(self) -> Side:
        """View of the environment that the policy sees."""
        return "teacher" if self.kind == "teacher" else "student"

    @property
    def first(self) -> Policy | None:
        """Policy of the first training seed."""
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class RunContext:
    """Facts about a run that an evaluation uses where they exist.

    Attributes:
        seed: seed of the run.
        dataset: labels of the teacher on its own states, for fidelity on held-out episodes.
        temperature: temperature that the students learned with, for the KL.
        curves: mean returns against environment steps during training; the evaluation adds the last point.
    """

    seed: int = 0
    dataset: Dataset | None = None
    temperature: float | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)


def evaluate(
    env: EnvConfig,
    teacher: Policy | None,
    students: Students,
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008 - it is frozen
    folder: Path | str = Path(),
    *,
    seed: int = 0,
    progress: Progress | bool = True,
) -> Evaluation:
    """Play a teacher, its students and random play on the same seeds.

    Writes `evaluation.json`, `disagreements/` and `videos/` into `folder`. The normalized score is
    (policy - random) / (teacher - random), arXiv 2108.13264; None unless the teacher beats random play.

    Args:
        env: environment.
        teacher: teacher of the students.
        students: by name, a student, or the same student with several training seeds.
        config: settings.
        folder: folder for the results.
        seed: seed of the episodes.
        progress: True for a bar on a terminal, False for none, or a receiver of the number of finished episodes.

    Raises:
        ConfigError: a student is called `teacher` or `random`.
        SpecMismatchError: a policy does not fit the environment.
    """
    folder = Path(folder)
    policies = {"teacher": PolicyRuns("teacher", {None: teacher})}
    for name, student in students.items():
        if name in ("teacher", "random"):
            raise ConfigError(f"students: {name!r} is a reserved name. Use another name.")
        runs = list(student) if isinstance(student, Sequence) else [student]
        policies[name] = PolicyRuns("student", dict(enumerate(runs)))
    return evaluate_runs(env, policies, config, folder, RunContext(seed), progress)


def evaluate_runs(
    env: EnvConfig,
    policies: Mapping[str, PolicyRuns],
    config: EvaluateConfig,
    folder: Path,
    context: RunContext = RunContext(),
    progress: Progress | bool = True,
) -> Evaluation:
    """Evaluate the policies of a run, `teacher` among them; see `evaluate`. Random play is added."""
    policies = {**policies, "random": PolicyRuns("random", {None: None})}
    if (teacher := policies["teacher"].first) is not None:
        env = adapt_env(env, teacher)
    for name, entry in policies.items():
        for policy in filter(None, entry.runs.values()):
            require_fit(policy, name, env, entry.side)
    device = resolve_device(config.device, "evaluate.device")
    match = _Match(env, policies, config, context.seed)
    perturbed = None
    with stage_progress(progress, "evaluate", "episodes") as report:
        match.play_all(report)
        returns = {name: stacked_returns(runs) for name, runs in match.episodes.items()}
        if config.robustness is not None:
            players = {
                name: Player([policy for policy in entry.runs.values() if policy], entry.side, returns[name])
                for name, entry in policies.items()
                if entry.kind != "random"
            }
            base = PlayConfig(context.seed, sample=config.sample, device=device)
            part = Part(report, sum(own.size for own in returns.values()))
            perturbed = robustness(env, players, returns["random"], config.robustness, base, part)
    results = _results(match, context, folder)
    evaluation = Evaluation(
        env=env.id,
        env_kwargs=env.kwargs,
        episodes=returns["teacher"].shape[1],
        seeds=sorted({seed for entry in policies.values() for seed in entry.runs if seed is not None}),
        versions=provenance(context.seed)["versions"],
        profile_at=profile_thresholds(returns).tolist(),
        warnings=warnings_of(results),
        policies=results,
        efficiency=_efficiency(context.curves, results),
        robustness=perturbed,
    )
    remove_videos(folder / "videos")  # videos of other episodes would have the same names
    write_json(folder / "evaluation.json", evaluation.to_dict())
    if config.videos:
        first = {name: next(iter(runs.values())) for name, runs in match.episodes.items()}
        record_videos(env, context.seed, first, match.students, folder / "videos")
    return evaluation


class _Match:
    """Episodes of all policies on the same seeds, and the decision on each student.

    The best of several students is selected by the same episodes as the test, so they share the risk (Bonferroni).
    """

    def __init__(self, env: EnvConfig, policies: Mapping[str, PolicyRuns], config: EvaluateConfig, seed: int) -> None:
        self.env, self.policies, self.config, self.seed = env, policies, config, seed
        self.students = [name for name, entry in policies.items() if entry.kind == "student"]
        self.episodes: dict[str, dict[int | None, Episodes]] = {name: {} for name in policies}
        self.own_states = {(name, run): OwnStates(run) for name in self.students for run in policies[name].runs}
        self.decisions: dict[str, NonInferiorityResult | None] = dict.fromkeys(self.students)

    def play_all(self, progress: Progress) -> None:
        """Play all episodes; with `sequential`, until every student is decided."""
        config, share = self.config, 1 / max(1, len(self.students))
        counts, risks = [config.episodes], [RISK * share]
        if config.sequential:
            counts = analysis_times(config.episodes, config.max_episodes)
            risks = boundary(counts, SEQUENTIAL_RISK * share)
        total = counts[-1] * sum(len(entry.runs) for entry in self.policies.values())
        done = before = 0
        for analysis, (count, risk) in enumerate(zip(counts, risks, strict=True), 1):
            for name, run in self._runs():
                self._play_more(name, run, before, count, Part(progress, done, total))
                done += count - before
            before = count
            for name in self.students:
                if not self._decided(name):
                    self.decisions[name] = self._decide(name, risk, RISK * share, analysis)
            if all(map(self._decided, self.students)):
                break
        progress.update(done, done)

    def _runs(self) -> Iterator[tuple[str, int | None]]:
        for name, entry in self.policies.items():
            for run in entry.runs:
                yield name, run

    def _play_more(self, name: str, run: int | None, first: int, end: int, progress: Progress) -> None:
        entry, config = self.policies[name], self.config
        plan = PlayConfig(
            self.seed, TEST, first, entry.side, config.sample, config.gamma, device=resolve_device(config.device)
        )
        teacher, states = self.policies["teacher"].first, self.own_states.get((name, run))
        query = TeacherQuery(teacher, states.add) if states is not None and teacher is not None else None
        more = play(self.env, entry.runs[run], end - first, plan, query=query, progress=progress)
        played = self.episodes[name]
        played[run] = played[run].followed_by(more) if run in played else more

    def _decided(self, name: str) -> bool:
        decision = self.decisions[name]
        return decision is not None and decision.decision != "undecided"

    def _decide(self, name: str, risk: float, total_risk: float, analysis: int) -> NonInferiorityResult | None:
        """Test a student against the teacher; None if the teacher is no better than random play."""
        compared = [self.episodes[policy] for policy in (name, "teacher", "random")]
        own, teacher, random = map(stacked_returns, compared)
        if normalized_score(teacher, teacher, random) is None:
            return None
        return non_inferior(
            own,
            teacher,
            random,
            self.config.margin,
            distinct=num_distinct(*compared),
            levels=RiskLevels(risk, total_risk, analysis),
        )


def _results(match: _Match, context: RunContext, folder: Path) -> dict[str, PolicyResult]:
    returns = {name: stacked_returns(runs) for name, runs in match.episodes.items()}
    thresholds, results = profile_thresholds(returns), {}
    for name, entry in match.policies.items():
        runs = match.episodes[name]
        compared = num_distinct(*(match.episodes[policy] for policy in (name, "teacher", "random")))
        statistics = return_statistics(
            returns[name], returns["teacher"], returns["random"], thresholds, (num_distinct(runs), compared)
        )
        results[name] = policy_result(
            runs,
            entry.first,
            statistics,
            _fidelity(match, name, context, folder),
            kind=entry.kind,
            env_steps=entry.env_steps,
            non_inferiority=match.decisions.get(name),
        )
    return results


def _fidelity(match: _Match, name: str, context: RunContext, folder: Path) -> Fidelity | None:
    if name not in match.students or match.policies["teacher"].first is None:
        return None
    spec = observation_views(match.env).student
    students = [
        (with_action_mask(policy, spec), match.own_states[name, run])
        for run, policy in match.policies[name].runs.items()
        if policy is not None
    ]
    return fidelity(name, students, context.dataset, folder, context.temperature)


def _efficiency(curves: Mapping[str, Curve], results: Mapping[str, PolicyResult]) -> dict[str, Efficiency]:
    ends = {
        name: [*curves.get(name, ()), (entry.env_steps, entry.mean)]
        for name, entry in results.items()
        if entry.env_steps or name in curves
    }
    return efficiency(ends, results["teacher"].mean, results["random"].mean)
