"""Evaluation of a teacher, its students and random play on the same fresh seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy, resolve_device
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import Episodes, PlayConfig, PolicyRuns, TeacherQuery, play
from rldistill.evaluation.fidelity import OwnStates, fidelity
from rldistill.evaluation.group_sequential import SEQUENTIAL_RISK, analysis_times, boundary
from rldistill.evaluation.non_inferiority import RISK, NonInferiorityResult, RiskLevels, non_inferior
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.robustness import robustness
from rldistill.evaluation.statistics import normalized_score
from rldistill.evaluation.summary import (
    Curve,
    efficiency,
    num_distinct,
    policy_result,
    profile_thresholds,
    stacked_returns,
    warnings_of,
)
from rldistill.evaluation.videos import record_videos, remove_videos
from rldistill.io.atomic import write_json
from rldistill.io.progress import Part, Progress, stage_progress
from rldistill.io.provenance import provenance
from rldistill.policies.cost import measure_cost
from rldistill.policies.wrappers import with_action_mask


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
    policies: Mapping[str, Policy | Sequence[Policy] | PolicyRuns],
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008 - it is frozen
    folder: Path | str = Path(),
    context: RunContext = RunContext(),
    progress: Progress | bool = True,
) -> Evaluation:
    """Play a teacher, its students and random play on the same seeds.

    Writes `evaluation.json`, `disagreements/` and `videos/` into `folder`. The normalized score is
    (policy - random) / (teacher - random), arXiv 2108.13264; None unless the teacher beats random play.

    Args:
        env: environment.
        policies: by name, `teacher` and its students; a student is a policy, or a list with one for each training seed.
        config: settings.
        folder: folder for the results.
        context: seed of the episodes, and facts about a run.
        progress: True for a bar on a terminal, False for none, or a receiver of the number of finished episodes.

    Raises:
        ConfigError: there is no teacher, or a student is called `random`.
        SpecMismatchError: a policy does not fit the environment.
    """
    folder, entries = Path(folder), _policy_runs(policies)
    env = _fitted_env(env, entries)
    device = resolve_device(config.device, "evaluate.device")
    base = PlayConfig(context.seed, sample=config.sample, gamma=config.gamma, device=device)
    match = _Match(env, entries, config, base)
    perturbed = None
    with stage_progress(progress, "evaluate", "episodes") as report:
        match.play_all(report)
        returns = {name: stacked_returns(runs) for name, runs in match.episodes.items()}
        if config.robustness is not None:
            part = Part(report, sum(own.size for own in returns.values()))
            perturbed = robustness(env, entries, returns, config.robustness, base, part)
    thresholds = profile_thresholds(returns)
    results = {
        name: policy_result(name, match.episodes, returns, thresholds, **match.facts(name, context, folder))
        for name in entries
    }
    evaluation = Evaluation(
        env=env.id,
        env_kwargs=env.kwargs,
        episodes=returns["teacher"].shape[1],
        seeds=sorted({seed for entry in entries.values() for seed in entry.runs if seed is not None}),
        versions=provenance(context.seed)["versions"],
        profile_at=thresholds.tolist(),
        warnings=warnings_of(results),
        policies=results,
        efficiency=efficiency(context.curves, results),
        robustness=perturbed,
    )
    remove_videos(folder / "videos")  # videos of other episodes would have the same names
    write_json(folder / "evaluation.json", evaluation.to_dict())
    if config.videos:
        first = {name: next(iter(runs.values())) for name, runs in match.episodes.items()}
        record_videos(env, context.seed, first, match.students, folder / "videos")
    return evaluation


def _policy_runs(policies: Mapping[str, Policy | Sequence[Policy] | PolicyRuns]) -> dict[str, PolicyRuns]:
    """Return the training seeds of all policies, with random play."""
    entries = {}
    for name, policy in policies.items():
        if isinstance(policy, PolicyRuns):
            entries[name] = policy
        elif name != "teacher":
            runs = policy if isinstance(policy, Sequence) else [policy]
            entries[name] = PolicyRuns("student", dict(enumerate(runs)))
        elif isinstance(policy, Sequence):
            raise ConfigError("policies.teacher: expected one policy, found several. Use an Ensemble of them.")
        else:
            entries[name] = PolicyRuns("teacher", {None: policy})
    if "random" in entries:
        raise ConfigError("policies: 'random' is a reserved name. Use another name.")
    if "teacher" not in entries or entries["teacher"].first is None:
        raise ConfigError("policies: there is no teacher. Add it under the name 'teacher'.")
    return {**entries, "random": PolicyRuns("random", {None: None})}


def _fitted_env(env: EnvConfig, policies: Mapping[str, PolicyRuns]) -> EnvConfig:
    """Return the environment as the teacher needs it; raise SpecMismatchError unless all policies fit."""
    if (teacher := policies["teacher"].first) is not None:
        env = adapt_env(env, teacher)
    views = observation_views(env)
    for name, entry in policies.items():
        for policy in filter(None, entry.runs.values()):
            spec = getattr(views, entry.side)
            with_action_mask(policy, spec).spec.require_same_input(spec, name, env.id)
    return env


class _Match:
    """Episodes of all policies on the same seeds, and the decision on each student.

    The best of several students is selected by the same episodes as the test, so they share the risk (Bonferroni).
    """

    def __init__(
        self, env: EnvConfig, policies: Mapping[str, PolicyRuns], config: EvaluateConfig, base: PlayConfig
    ) -> None:
        self.env, self.policies, self.config, self.base = env, policies, config, base
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
            for name, entry in self.policies.items():
                for run in entry.runs:
                    self._play_more(name, run, range(before, count), Part(progress, done, total))
                    done += count - before
            before = count
            open_students = [name for name in self.students if self._undecided(name)]
            for name in open_students:
                self.decisions[name] = self._decide(name, RiskLevels(risk, RISK * share, analysis))
            if not any(map(self._undecided, open_students)):
                break
        progress.update(done, done)

    def _play_more(self, name: str, run: int | None, numbers: range, progress: Progress) -> None:
        entry, teacher = self.policies[name], self.policies["teacher"].first
        config = dataclasses.replace(self.base, first=numbers.start, side=entry.side)
        query = None
        if (states := self.own_states.get((name, run))) is not None and teacher is not None:
            query = TeacherQuery(teacher, states.add)
        more = play(self.env, entry.runs[run], len(numbers), config, query=query, progress=progress)
        played = self.episodes[name]
        played[run] = played[run].followed_by(more) if run in played else more

    def _undecided(self, name: str) -> bool:
        decision = self.decisions[name]
        return decision is None or decision.decision == "undecided"

    def _decide(self, name: str, levels: RiskLevels) -> NonInferiorityResult | None:
        """Test a student against the teacher; None if the teacher is no better than random play."""
        compared = [self.episodes[policy] for policy in (name, "teacher", "random")]
        own, teacher, random = map(stacked_returns, compared)
        if normalized_score(teacher, teacher, random) is None:
            return None
        return non_inferior(own, teacher, random, self.config.margin, distinct=num_distinct(*compared), levels=levels)

    def facts(self, name: str, context: RunContext, folder: Path) -> dict[str, object]:
        """Return the fields of a policy's result that are not statistics of its returns."""
        entry, close = self.policies[name], None
        if entry.kind == "student":
            spec = observation_views(self.env).student
            students = [
                (with_action_mask(policy, spec), self.own_states[name, run])
                for run, policy in entry.runs.items()
                if policy is not None
            ]
            close = fidelity(name, students, context.dataset, folder, context.temperature)
        return {
            **vars(measure_cost(entry.first)),
            "kind": entry.kind,
            "env_steps": entry.env_steps,
            "fidelity": close,
            "agreement": close and close.own_states.agreement,
            "action_rmse": close and close.own_states.action_rmse,
            "non_inferiority": self.decisions.get(name),
        }
