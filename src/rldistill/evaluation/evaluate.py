"""Evaluate: teacher, students and a random policy on the same fresh seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from rldistill.core.device import resolve_device
from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.envs.config import EnvConfig, Side
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.efficiency import Curve, efficiency
from rldistill.evaluation.episodes import Episodes, fits, play
from rldistill.evaluation.fidelity import Watch, fidelity
from rldistill.evaluation.group_sequential import RISK as OF_LOOKS
from rldistill.evaluation.group_sequential import analysis_times, boundary
from rldistill.evaluation.non_inferiority import RISK, NonInferiorityResult, non_inferior
from rldistill.evaluation.results import doubts, estimates, thresholds
from rldistill.evaluation.robustness import Players, robustness
from rldistill.evaluation.statistics import Returns, normalised_score
from rldistill.evaluation.videos import film_all, remove_films
from rldistill.io.atomic import write_json
from rldistill.io.progress import Part, Progress, stage_progress
from rldistill.io.provenance import provenance
from rldistill.policies.cost import measure_cost
from rldistill.policies.wrappers import with_action_mask

Played = dict[str, dict[int | None, Episodes]]


@dataclass(frozen=True)
class PolicyRuns:
    """One policy, or the same student with several training seeds; None plays at random."""

    kind: Literal["teacher", "student", "random"]
    runs: Mapping[int | None, Policy | None]
    env_steps: int


def evaluate(
    env: EnvConfig,
    entrants: Mapping[str, PolicyRuns],
    config: EvaluateConfig,
    folder: Path,
    *,
    seed: int = 0,
    dataset: Dataset | None = None,
    temperature: float | None = None,
    curves: Mapping[str, Curve] = MappingProxyType({}),
    progress: Progress | bool = True,
) -> dict[str, Any]:
    """Play, measure and write `evaluation.json`, `disagreements/` and `videos/` into `folder`; returns the first.

    `dataset` is what the teacher said of its own states, on which students are compared with it too, and `temperature`
    what they learned by, as in `rldistill.evaluation.fidelity`. `curves` are mean returns against environment
    steps while they learned; what is played here is the last point of each.

    Normalised score = (policy - random) / (teacher - random), arXiv 2108.13264; null unless the teacher beats random.

    Raises:
        ConfigError: teacher or random play is not among the entrants.
        SpecMismatchError: a policy does not fit the environment.
    """
    device = resolve_device(config.device, "evaluate.device")
    for name in ("teacher", "random"):
        if name not in entrants:
            raise ConfigError(f"entrants: there is no {name!r}, which scores are normalised with")
    teacher = next(iter(entrants["teacher"].runs.values()))
    if teacher is not None:
        env = adapt_env(env, teacher)
    for name, entrant in entrants.items():
        for policy in entrant.runs.values():
            if policy is not None:
                fits(policy, name, env, _side(entrant))
    watches = {
        name: {run: Watch(run) for run in entrant.runs}
        for name, entrant in entrants.items()
        if entrant.kind == "student"
    }
    with stage_progress(progress, "evaluate", "episodes") as report:
        played, answers = _play_all(env, entrants, config, seed, teacher, watches, device, report)
        returns = {name: _returns(runs) for name, runs in played.items()}
        perturbed = config.robustness and _perturbed(env, entrants, returns, config, seed, report)
    at = thresholds(returns)
    policies = {
        name: _summary(name, entrants[name], played, returns, at) | {"non_inferior": answers.get(name)}
        for name in entrants
    }
    evaluation: dict[str, Any] = {
        "env": env.id,
        "env_kwargs": env.kwargs,
        "episodes": returns["teacher"].shape[1],
        "seeds": sorted({run for entrant in entrants.values() for run in entrant.runs if run is not None}),
        "versions": provenance(seed)["versions"],
        "profile_at": at.tolist(),
        "warnings": doubts(policies),
        "policies": policies,
        "efficiency": _efficiency(curves, policies),
    }
    for name, entry in evaluation["policies"].items():
        own = [
            with_action_mask(policy, observation_views(env).student)
            for policy in entrants[name].runs.values()
            if policy
        ]
        entry["fidelity"] = fidelity(name, own, [*watches.get(name, {}).values()], dataset, folder, temperature)
    if perturbed is not None:
        evaluation["robustness"] = perturbed
    remove_films(folder / "videos")  # those of other episodes would go by the same names
    write_json(folder / "evaluation.json", evaluation)
    if config.videos:
        first = {name: next(iter(runs.values())) for name, runs in played.items()}
        students = [name for name, entrant in entrants.items() if entrant.kind == "student"]
        film_all(env, seed, first, students, folder / "videos")
    return evaluation


def _perturbed(
    env: EnvConfig,
    entrants: Mapping[str, PolicyRuns],
    returns: Mapping[str, Returns],
    config: EvaluateConfig,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """What all but random play return where one thing is changed."""
    assert config.robustness is not None
    total = sum(each.size for each in returns.values())
    players = {
        name: Players([policy for policy in entrant.runs.values() if policy], _side(entrant), returns[name])
        for name, entrant in entrants.items()
        if entrant.kind != "random"
    }
    return robustness(
        env,
        players,
        returns["random"],
        config.robustness,
        seed=seed,
        sample=config.sample,
        device=resolve_device(config.device, "evaluate.device"),
        progress=Part(progress, total),
    )


def _efficiency(curves: Mapping[str, Curve], policies: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    ends = {kind: next(entry for entry in policies.values() if entry["kind"] == kind) for kind in ("teacher", "random")}
    whole = {
        name: [*curves.get(name, ()), (entry["env_steps"], entry["mean"])]
        for name, entry in policies.items()
        if entry["env_steps"] or name in curves
    }
    return efficiency(whole, ends["teacher"]["mean"], ends["random"]["mean"])


def _play_all(
    env: EnvConfig,
    entrants: Mapping[str, PolicyRuns],
    config: EvaluateConfig,
    seed: int,
    teacher: Policy | None,
    watches: Mapping[str, Mapping[int | None, Watch]],
    device: torch.device,
    progress: Progress,
) -> tuple[Played, dict[str, dict[str, Any] | None]]:
    """All episodes of all, and of each student whether it kept the teacher's lead: as soon as that is decided."""
    students = [name for name, entrant in entrants.items() if entrant.kind == "student"]
    # The best of several is chosen by the same episodes, so they share the risk (Bonferroni).
    share = 1 / max(1, len(students))
    counts, risks = [config.episodes], [RISK * share]
    if config.sequential:
        counts = analysis_times(config.episodes, config.max_episodes)
        risks = boundary(counts, OF_LOOKS * share)
    runs = sum(len(entrant.runs) for entrant in entrants.values())
    played: Played = {name: {} for name in entrants}
    answers: dict[str, dict[str, Any] | None] = dict.fromkeys(students)
    before = done = 0
    for look, (count, risk) in enumerate(zip(counts, risks, strict=True), 1):
        for name, entrant in entrants.items():
            for training_seed, policy in entrant.runs.items():
                more = play(
                    env,
                    policy,
                    count - before,
                    seed=seed,
                    sample=config.sample,
                    gamma=config.gamma,
                    judge=teacher if name in watches else None,
                    watch=watches[name][training_seed] if name in watches else None,
                    side=_side(entrant),
                    first=before,
                    device=device,
                    progress=Part(progress, done, counts[-1] * runs),
                )
                so_far = played[name].get(training_seed)
                played[name][training_seed] = more if so_far is None else so_far.followed_by(more)
                done += count - before
        before = count
        for name in [name for name in students if not _decided(answers[name])]:
            answers[name] = _answer(name, played, config.margin, risk, RISK * share, look)
        if all(_decided(answers[name]) for name in students):
            break
    progress.update(done, done)
    return played, answers


def _decided(answer: dict[str, Any] | None) -> bool:
    return answer is not None and answer["decision"] != "undecided"


def _answer(name: str, played: Played, margin: float, risk: float, whole: float, look: int) -> dict[str, Any] | None:
    """Whether a student kept the teacher's lead; None where that is none."""
    compared_with = (name, "teacher", "random")
    own, teacher, random = (_returns(played[who]) for who in compared_with)
    if normalised_score(teacher, teacher, random) is None:
        return None
    distinct = min(_distinct(played[who]) for who in compared_with)
    answer: NonInferiorityResult = non_inferior(own, teacher, random, margin, distinct=distinct, risk=risk, whole=whole)
    return dataclasses.asdict(answer) | {"look": look}


def _returns(runs: Mapping[int | None, Episodes]) -> Returns:
    return np.stack([episodes.returns for episodes in runs.values()])


def _distinct(runs: Mapping[int | None, Episodes]) -> int:
    return min(episodes.distinct for episodes in runs.values())


def _side(entrant: PolicyRuns) -> Side:
    return "teacher" if entrant.kind == "teacher" else "student"


def _summary(
    name: str, entrant: PolicyRuns, everyone: Played, returns: Mapping[str, Returns], at: Returns
) -> dict[str, Any]:
    played, compared_with = everyone[name], (name, "teacher", "random")
    own, teacher, random = (returns[who] for who in compared_with)
    distinct = {"own": _distinct(played), "all": min(_distinct(everyone[who]) for who in compared_with)}
    compared = sum(episodes.compared for episodes in played.values())
    policy = next(iter(entrant.runs.values()))
    discrete = compared > 0 and policy is not None and policy.spec.head.discrete
    agreement = sum(episodes.agreed for episodes in played.values()) / compared if discrete else None
    rmse = None
    if compared and not discrete:
        rmse = float(np.sqrt(sum(episodes.squared_error for episodes in played.values()) / compared))
    cost = measure_cost(policy)
    successes = [episodes.success_rate for episodes in played.values() if episodes.success_rate is not None]
    return {
        "kind": entrant.kind,
        "runs": [{"training_seed": run, "returns": episodes.returns.tolist()} for run, episodes in played.items()],
        "distinct_episodes": distinct["own"],
        **estimates(own, teacher, random, at, distinct),
        "success_rate": float(np.mean(successes)) if successes else None,
        "discounted_mean": float(np.mean([episodes.discounted for episodes in played.values()])),
        "agreement": agreement,
        "action_rmse": rmse,
        "parameters": cost.parameters,
        "bytes": cost.bytes,
        "macs": cost.macs,
        "activations": cost.activations,
        "latency_us": cost.latency_us,
        "batch_latency_us": cost.batch_latency_us,
        "env_steps": entrant.env_steps,
    }
