"""Evaluation of a teacher, its students and random play, or a baseline, on the same fresh seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy, resolve_device
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.envs.spaces import adapt_env, observation_views, spec_from_env
from rldistill.evaluation import statistics as stats
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import Episodes, PlayConfig, PolicyRuns, TeacherQuery, play, reference_name
from rldistill.evaluation.fidelity import OwnStates, fidelity
from rldistill.evaluation.group_sequential import SEQUENTIAL_RISK, analysis_times, boundary
from rldistill.evaluation.metrics import metric_estimate, probe_metrics, require_metrics, run_returns
from rldistill.evaluation.non_inferiority import RISK, NonInferiorityResult, RiskLevels, non_inferior
from rldistill.evaluation.results import Efficiency, Evaluation, PolicyResult, Profile
from rldistill.evaluation.robustness import robustness
from rldistill.evaluation.statistics import Returns
from rldistill.evaluation.teams import mixed_teams
from rldistill.evaluation.videos import record_videos, remove_videos
from rldistill.evaluation.worlds import evaluation_env, other_worlds
from rldistill.io.atomic import write_json
from rldistill.io.lock import locked
from rldistill.io.progress import Part, Progress, is_shown, stage_progress, track
from rldistill.io.provenance import provenance
from rldistill.policies.cost import measure_cost
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.load import load_policy

MIN_DISTINCT_EPISODES, MIN_TRAINING_SEEDS = 10, 3
NUM_THRESHOLDS = 41
PLAY_SETTINGS = ("sample", "gamma", "max_steps", "workers")
"""Settings of an evaluation that are those of its episodes."""

Curve = Sequence[tuple[int, float]]
"""Environment steps and mean returns, in ascending order of steps."""

LEAD_PERCENTAGES = (50, 75, 90, 95)
"""Percentages of the teacher's lead over random play."""


@dataclass(frozen=True)
class RunContext:
    """Facts about a run that an evaluation uses where they exist.

    Attributes:
        seed: seed of the run.
        dataset: labels of the teacher on its own states, for fidelity on held-out episodes.
        temperature: temperature that the students learned with, for the KL.
        curves: mean returns against environment steps during training; the evaluation adds the last point.
        failed: names of students that learned nothing, which are not among the policies.
    """

    seed: int = 0
    dataset: Dataset | None = None
    temperature: float | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    failed: Sequence[str] = ()


@locked
def evaluate(
    env: EnvConfig,
    policies: Mapping[str, Policy | Sequence[Policy] | PolicyRuns],
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008 - it is frozen
    folder: Path | str = Path(),
    context: RunContext = RunContext(),
    progress: Progress | bool = True,
) -> Evaluation:
    """Play a teacher, its students and random play, or a baseline in its place, on the same seeds.

    Writes `evaluation.json`, `disagreements/` and `videos/` into `folder`. The normalized score is
    (policy - random) / (teacher - random), arXiv 2108.13264; None unless the teacher beats random play or the baseline.

    Args:
        env: environment.
        policies: by name: `teacher`, students (a policy, or one for each training seed), and perhaps a `baseline`.
        config: settings.
        folder: folder for the results.
        context: seed of the episodes, and facts about a run.
        progress: True to show it on stderr, False for none, or a receiver of the number of finished episodes.

    Raises:
        ConfigError: there is no teacher, or a student is called `random`.
        SpecMismatchError: a policy does not fit the environment.
    """
    folder = Path(folder)
    env, entries = _fitted_policies(evaluation_env(env, config), policies, config.baseline)
    settings = {key: getattr(config, key) for key in PLAY_SETTINGS}
    base = PlayConfig(context.seed, device=resolve_device(config.device, "evaluate.device"), **settings)
    match = _Match(env, entries, config, base)
    with stage_progress(progress, "evaluate", "episodes") as report:
        match.play_all(report)
        returns = {name: match.returns(name) for name in entries}
        further = _changed_play(match, returns, report)
    thresholds = _profile_thresholds(returns)
    results = {name: match.result(name, returns, thresholds, context, folder) for name in entries}
    evaluation = Evaluation(
        env=env.id,
        env_kwargs=env.kwargs,
        episodes=returns["teacher"].shape[1],
        seeds=sorted({seed for entry in entries.values() for seed in entry.runs if seed is not None}),
        versions=provenance(context.seed)["versions"],
        profile_at=thresholds.tolist(),
        warnings=_warnings(results, context.failed),
        policies=results,
        efficiency=efficiency(context.curves, results),
        baseline=config.baseline or _own_name(entries),
        **further,
    )
    remove_videos(folder / "videos")  # videos of other episodes would have the same names
    write_json(folder / "evaluation.json", evaluation.to_dict())
    if config.videos:
        first = {name: next(iter(runs.values())) for name, runs in match.episodes.items()}
        # A stage of its own, since a renderer without a graphics card may take longer than the episodes.
        with track("videos", "frames", quiet=not is_shown(progress)) as report:
            record_videos(env, context.seed, first, match.decisions, folder / "videos", report)
    return evaluation


def _changed_play(match: _Match, returns: Mapping[str, Returns], progress: Progress) -> dict[str, Any]:
    """Return the parts of an evaluation for which the policies play in a changed environment or team."""
    env, policies, config, base = match.env, match.policies, match.config, match.base
    part = Part(progress, sum(own.size for own in returns.values()))
    return {
        "robustness": robustness(env, policies, returns, config.robustness, base, part),
        "teams": mixed_teams(env, policies, returns, config.teams, base, part),
        "worlds": other_worlds(env, policies, config, returns["teacher"].shape[1], base, part),
    }


def _profile_thresholds(returns: Mapping[str, Returns]) -> Returns:
    """Return thresholds of performance profiles: quantiles, so that a single outlier does not move them."""
    values = np.concatenate([own.ravel() for own in returns.values()])
    return np.unique(np.quantile(values, np.linspace(0, 1, NUM_THRESHOLDS), method="nearest"))


def _fitted_policies(
    env: EnvConfig, policies: Mapping[str, Policy | Sequence[Policy] | PolicyRuns], baseline: str | None
) -> tuple[EnvConfig, dict[str, PolicyRuns]]:
    """Return the environment as the teacher needs it, and the training seeds of all policies, with random play.

    A baseline takes the place of random play.
    """
    entries = {}
    if baseline is not None:
        policies = {**policies, "baseline": load_baseline(baseline, env)}
    for name, policy in policies.items():
        if isinstance(policy, PolicyRuns):
            entries[name] = policy
        elif name not in ("teacher", "baseline"):
            runs = policy if isinstance(policy, Sequence) else [policy]
            entries[name] = PolicyRuns("student", dict(enumerate(runs)))
        elif isinstance(policy, Sequence):
            raise ConfigError(f"policies.{name}: expected one policy, found several. Use an Ensemble of them.")
        else:
            entries[name] = PolicyRuns("teacher" if name == "teacher" else "baseline", {None: policy})
    if "random" in entries:
        raise ConfigError("policies: 'random' is a reserved name. Use another name.")
    if "teacher" not in entries or (teacher := entries["teacher"].first) is None:
        raise ConfigError("policies: there is no teacher. Add it under the name 'teacher'.")
    env = adapt_env(env, teacher)
    views = observation_views(env)
    for name, entry in entries.items():
        for run in filter(None, entry.runs.values()):
            spec = getattr(views, entry.side)
            with_action_mask(run, spec).spec.require_same_input(spec, name, env.id)
    if "baseline" in entries:
        return env, {**entries, "baseline": entries.pop("baseline")}
    return env, {**entries, "random": PolicyRuns("random", {None: None})}


def load_baseline(path: str, env: EnvConfig) -> Policy:
    """Load the policy that an evaluation compares with in place of random play."""
    try:
        return load_policy(path, spec=spec_from_env(env.view_of("student")))
    except ConfigError as error:
        raise ConfigError(str(error).replace("teacher: ", "evaluate.baseline: ", 1)) from None


def _own_name(policies: Mapping[str, PolicyRuns]) -> str | None:
    policy = policies["baseline"].first if "baseline" in policies else None
    return None if policy is None else str(getattr(policy, "name", type(policy).__name__))


class _Match:
    """Episodes of all policies on the same seeds, and the decision on each student.

    The best of several students is selected by the same episodes as the test, so they share the risk (Bonferroni).
    """

    def __init__(
        self, env: EnvConfig, policies: Mapping[str, PolicyRuns], config: EvaluateConfig, base: PlayConfig
    ) -> None:
        agents = observation_views(env).student.agents
        self.metrics = (*config.metrics, *(f"return_{agent.name}" for agent in agents))
        probe_metrics(env, self.metrics)
        self.env, self.policies, self.config, self.base = env, policies, config, base
        self.reference = reference_name(policies)
        students = [name for name, entry in policies.items() if entry.kind == "student"]
        self.episodes: dict[str, dict[int | None, Episodes]] = {name: {} for name in policies}
        self.own_states = {(name, run): OwnStates(run) for name in students for run in policies[name].runs}
        self.decisions: dict[str, NonInferiorityResult | None] = dict.fromkeys(students)

    def returns(self, name: str) -> Returns:
        """Return the returns of a policy, `[runs, episodes]`."""
        return np.stack([episodes.returns for episodes in self.episodes[name].values()])

    def num_distinct(self, *names: str) -> int:
        """Return the smallest number of distinct episodes of any run of these policies."""
        return min(episodes.distinct for name in names for episodes in self.episodes[name].values())

    def play_all(self, progress: Progress) -> None:
        """Play all episodes; with `sequential`, until every student is decided."""
        config, share, teacher = self.config, 1 / max(1, len(self.decisions)), self.policies["teacher"].first
        counts, risks = [config.episodes], [RISK * share]
        if config.sequential:
            counts = analysis_times(config.episodes, config.max_episodes)
            risks = boundary(counts, SEQUENTIAL_RISK * share)
        total = counts[-1] * sum(len(entry.runs) for entry in self.policies.values())
        done = before = 0
        for analysis, (count, risk) in enumerate(zip(counts, risks, strict=True), 1):
            for name, entry in self.policies.items():
                settings = dataclasses.replace(self.base, first=before, side=entry.side)
                for run, policy in entry.runs.items():
                    states, part = self.own_states.get((name, run)), Part(progress, done, total)
                    query = TeacherQuery(teacher, states.add) if states is not None and teacher is not None else None
                    more = play(self.env, policy, count - before, settings, query=query, progress=part)
                    played = self.episodes[name]
                    played[run] = played[run].followed_by(more) if run in played else more
                    done += count - before
                    require_metrics(self.metrics, self._infos(), complete=False)
            before = count
            for name, decision in self.decisions.items():
                if decision is None or decision.decision == "undecided":
                    compared = name, "teacher", self.reference
                    own, best, random = map(self.returns, compared)
                    levels, distinct = RiskLevels(risk, RISK * share, analysis), self.num_distinct(*compared)
                    test = non_inferior(own, best, random, config.margin, distinct=distinct, levels=levels)
                    self.decisions[name] = test if best.mean() > random.mean() else None
            if all(decision and decision.decision != "undecided" for decision in self.decisions.values()):
                break
        require_metrics(self.metrics, self._infos(), complete=True)
        progress.update(done, done)

    def _infos(self) -> Iterator[dict[str, float]]:
        return (info for runs in self.episodes.values() for episodes in runs.values() for info in episodes.info)

    def result(
        self, name: str, returns: Mapping[str, Returns], thresholds: Returns, context: RunContext, folder: Path
    ) -> PolicyResult:
        """Return the result of a policy: all estimates with their 95% intervals, its cost and its fidelity."""
        entry, runs, own, teacher = self.policies[name], self.episodes[name], returns[name], returns["teacher"]
        compared, distinct = (own, teacher, returns[self.reference]), self.num_distinct(name)
        distinct_compared = self.num_distinct(name, "teacher", self.reference)
        rates = [part.success_rate for part in runs.values() if part.success_rate is not None]

        def profile(returns: Returns) -> stats.Values:
            return stats.performance_profile(returns, thresholds)

        low, high = np.percentile(stats.bootstrap(profile, own, distinct=distinct), [2.5, 97.5], axis=0)
        normalized = stats.normalized_score(*compared, distinct=distinct_compared)
        improvement = close = None
        if name != "teacher":
            improvement = stats.estimate(stats.probability_of_improvement, own, teacher, distinct=distinct_compared)
        if entry.kind == "student":
            spec = observation_views(self.env).student
            students = [
                (with_action_mask(policy, spec), self.own_states[name, run])
                for run, policy in entry.runs.items()
                if policy is not None
            ]
            close = fidelity(name, students, context.dataset, folder, context.temperature)
        return PolicyResult(
            kind=entry.kind,
            runs=[run_returns(seed, part, self.metrics) for seed, part in runs.items()],
            distinct_episodes=distinct,
            distinct_runs=len({part.returns.tobytes() for part in runs.values()}),
            mean=stats.estimate(stats.mean, own, distinct=distinct),
            median=stats.estimate(stats.median, own, distinct=distinct),
            iqm=stats.estimate(stats.iqm, own, distinct=distinct),
            normalized=normalized,
            optimality_gap=normalized and stats.estimate(stats.normalized_gap, *compared, distinct=distinct_compared),
            probability_of_improvement=improvement,
            profile=Profile(share=profile(own).tolist(), low=low.tolist(), high=high.tolist()),
            success_rate=float(np.mean(rates)) if rates else None,
            discounted_mean=float(np.mean([part.discounted for part in runs.values()])),
            agreement=close.own_states.agreement if close else None,
            action_rmse=close.own_states.action_rmse if close else None,
            **vars(measure_cost(entry.first)),
            env_steps=entry.env_steps,
            non_inferiority=self.decisions.get(name),
            fidelity=close,
            metrics={key: metric_estimate([*runs.values()], key, distinct) for key in self.metrics},
        )


def _warnings(policies: Mapping[str, PolicyResult], failed: Sequence[str]) -> dict[str, str]:
    students = {name: entry for name, entry in policies.items() if entry.kind == "student"}
    episodes = {name: entry.distinct_episodes for name, entry in policies.items()}
    seeds = {name: entry.distinct_runs for name, entry in students.items()}
    warnings = {}
    for warning, counts, least, text in (
        ("few-episodes", episodes, MIN_DISTINCT_EPISODES, "distinct episodes are too few for a reliable estimate"),
        ("few-seeds", seeds, MIN_TRAINING_SEEDS, "different training seeds cannot show the variance between them"),
    ):
        if few := [f"{name} has {count}" for name, count in counts.items() if count < least]:
            warnings[warning] = f"fewer than {least} {text}: {', '.join(few)}"
    if alike := [name for name, entry in students.items() if entry.distinct_runs < len(entry.runs)]:
        text = "training seeds with the same returns in every episode count as one"
        warnings["same-seeds"] = f"{text}: {', '.join(alike)}"
    if failed:
        warnings["learned-nothing"] = f"not evaluated, since it learned nothing: {', '.join(failed)}"
    return warnings


def efficiency(curves: Mapping[str, Curve], policies: Mapping[str, PolicyResult]) -> dict[str, Efficiency]:
    """Return each policy's normalized score against its steps, and the first step at each percentage (None: never).

    The evaluation itself is the last point of each of the `curves`. Steps include those of the teacher's data.
    """
    random, teacher = (policies[name].mean.value for name in (reference_name(policies), "teacher"))
    span = teacher - random
    results = {}
    for name, entry in policies.items():
        if span > 0 and (entry.env_steps or name in curves):
            points = [*curves.get(name, ()), (entry.env_steps, entry.mean.value)]
            scores = [(float(steps), (value - random) / span) for steps, value in points]
            reached = {
                str(percentage): next((int(steps) for steps, score in scores if score >= percentage / 100), None)
                for percentage in LEAD_PERCENTAGES
            }
            results[name] = Efficiency(curve=scores, to=reached)
    return results
