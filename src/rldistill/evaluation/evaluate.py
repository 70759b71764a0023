"""Evaluation of a teacher, its students and random play, or a baseline, on the same fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy, resolve_device
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.envs.spaces import adapt_env, observation_views, spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import PlayConfig, PolicyRuns, reference_name
from rldistill.evaluation.match import FOLDER, Match
from rldistill.evaluation.results import Efficiency, Evaluation, PolicyResult
from rldistill.evaluation.robustness import robustness
from rldistill.evaluation.statistics import Returns
from rldistill.evaluation.teams import mixed_teams
from rldistill.evaluation.videos import record_videos, remove_videos
from rldistill.evaluation.worlds import evaluation_env, other_worlds
from rldistill.io.atomic import discard_stage, write_json
from rldistill.io.execution import SERIAL, Execution, Shard, Total
from rldistill.io.lock import lock_folder, locked
from rldistill.io.progress import Part, Progress, is_shown, stage_progress, track
from rldistill.io.provenance import provenance
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.load import load_policy

MIN_DISTINCT_EPISODES, MIN_TRAINING_SEEDS = 10, 3
NUM_THRESHOLDS = 41
PLAY_SETTINGS = ("sample", "gamma", "max_steps", "labeled_episodes", "env_workers")
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
        receive: receiver of the result before the videos are recorded, which may take as long as the episodes.
    """

    seed: int = 0
    dataset: Dataset | None = None
    temperature: float | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    failed: Sequence[str] = ()
    receive: Callable[[Evaluation], None] | None = None


@locked
def evaluate(
    env: EnvConfig,
    policies: Mapping[str, Policy | Sequence[Policy] | PolicyRuns],
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008 - it is frozen
    folder: Path | str = Path(),
    context: RunContext = RunContext(),
    progress: Progress | bool = True,
    execution: Execution = SERIAL,
) -> Evaluation:
    """Play a teacher, its students and random play, or a baseline in its place, on the same seeds.

    Writes `evaluation.json`, `disagreements/` and `videos/` into `folder`. Played episodes are kept in
    `unfinished-evaluation/` until then, so that an evaluation that was stopped goes on. The normalized score is
    (policy - random) / (teacher - random), arXiv 2108.13264; None unless the teacher beats random play or the baseline.

    Args:
        env: environment.
        policies: by name: `teacher`, students (a policy, or one for each training seed), and perhaps a `baseline`.
        config: settings.
        folder: folder for the results.
        context: seed of the episodes, and facts about a run.
        progress: True to show it on stderr, False for none, or a receiver of the number of finished episodes.
        execution: place where the policies play; perturbed environments and mixed teams are played in this process.

    Raises:
        ConfigError: there is no teacher, or a student is called `random`.
        SpecMismatchError: a policy does not fit the environment.
    """
    folder = Path(folder)
    match = _match(env, policies, config, folder, context.seed, execution)
    env, entries = match.env, match.policies
    with stage_progress(progress, "evaluate", "episodes") as report:
        match.play_all(report)
        returns = {name: match.returns(name) for name in entries}
        further = _changed_play(match, returns, report)
    thresholds, labels = _profile_thresholds(returns), (context.dataset, context.temperature)
    results = {name: match.result(name, returns, thresholds, labels, folder) for name in entries}
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
    discard_stage(folder / FOLDER)
    if context.receive is not None:
        context.receive(evaluation)
    if config.videos:
        _record_videos(match, folder / "videos", progress)
    return evaluation


def evaluate_shard(
    env: EnvConfig,
    policies: Mapping[str, Policy | Sequence[Policy] | PolicyRuns],
    config: EvaluateConfig,
    folder: Path | str,
    shard: Shard,
    *,
    seed: int = 0,
    progress: Progress | bool = True,
    execution: Execution = SERIAL,
) -> None:
    """Play the episodes of one shard into a folder that all shards share, and continue what exists there.

    After all shards, `evaluate` with the same arguments reads them, and plays what is left: missing episodes, more of
    them if `sequential` needs them, and other environments and teams. Its results are those without shards.

    Raises:
        ConfigError: a process that is no shard uses the folder.
    """
    match = _match(env, policies, config, Path(folder), seed, execution)
    parts = shard.select(match.parts(0, config.episodes))
    with lock_folder(Path(folder), shared=True), stage_progress(progress, "evaluate", "episodes") as report:
        for _ in match.play_parts(parts, Total(report, sum(len(numbers) for *_, numbers in parts))):
            pass  # its file is written


def _match(
    env: EnvConfig,
    policies: Mapping[str, Policy | Sequence[Policy] | PolicyRuns],
    config: EvaluateConfig,
    folder: Path,
    seed: int,
    execution: Execution,
) -> Match:
    """Return the match of an evaluation, before any episode."""
    execution.prepare()
    env, entries = _fitted_policies(evaluation_env(env, config), policies, config.baseline)
    settings = {key: getattr(config, key) for key in PLAY_SETTINGS}
    base = PlayConfig(seed, device=resolve_device(config.device, "evaluate.device"), **settings)
    return Match(env, entries, config, base, execution, folder)


def _changed_play(match: Match, returns: Mapping[str, Returns], progress: Progress) -> dict[str, Any]:
    """Return the parts of an evaluation for which the policies play in a changed environment or team."""
    env, policies, config, base = match.env, match.policies, match.config, match.base
    part = Part(progress, sum(own.size for own in returns.values()))
    return {
        "robustness": robustness(env, policies, returns, config.robustness, base, part),
        "teams": mixed_teams(env, policies, returns, config.teams, base, part),
        "worlds": other_worlds(env, policies, config, returns["teacher"].shape[1], base, part),
    }


def _record_videos(match: Match, folder: Path, progress: Progress | bool) -> None:
    """Record videos of the first training seed of each policy."""
    first = {name: next(iter(runs.values())) for name, runs in match.episodes.items()}
    # A stage of its own, since a renderer without a graphics card may take longer than the episodes.
    with track("videos", "frames", quiet=not is_shown(progress)) as report:
        record_videos(match.env, match.base.seed, first, match.decisions, folder, report)


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
