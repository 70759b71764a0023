"""Evaluate: teacher, students and a random policy on the same fresh seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rldistill.artifacts import provenance, write_json
from rldistill.data.dataset import Dataset
from rldistill.envs.single import EnvConfig, sight_of
from rldistill.envs.two_views import Side
from rldistill.errors import ConfigError
from rldistill.evaluate.cost import measure_cost
from rldistill.evaluate.fidelity import Watch, fidelity
from rldistill.evaluate.play import Episodes, draws_itself, film, fits, play
from rldistill.evaluate.robustness import Players, RobustnessConfig, robustness
from rldistill.evaluate.statistics import iqm, normalised_interval, normalised_score, stratified_bootstrap
from rldistill.masking import confine
from rldistill.types import Policy


@dataclass(frozen=True)
class EvaluateConfig:
    """How the policies are compared.

    Attributes:
        episodes: full episodes for each policy and training seed.
        sample: whether stochastic policies sample their actions.
        gamma: of the discounted return.
        videos: whether the best and the worst episode of each policy are filmed.
        robustness: what else they play under, if anything.
    """

    episodes: int = 30
    sample: bool = False
    gamma: float = 0.99
    videos: bool = True
    robustness: RobustnessConfig | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"evaluate.episodes: expected at least 1, found {self.episodes}")


@dataclass(frozen=True)
class Entrant:
    """One policy, or the same student with several training seeds; None plays at random."""

    kind: Literal["teacher", "student", "random"]
    runs: Mapping[int | None, Policy | None]
    env_steps: int


def evaluate(
    env: EnvConfig,
    entrants: Mapping[str, Entrant],
    config: EvaluateConfig,
    folder: Path,
    *,
    seed: int = 0,
    dataset: Dataset | None = None,
    temperature: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Play, measure and write `evaluation.json`, `disagreements/` and `videos/` into `folder`; returns the first.

    `dataset` is what the teacher said of its own states, on which students are compared with it too, and `temperature`
    what they learned by, as in `rldistill.evaluate.fidelity`.

    Normalised score = (policy - random) / (teacher - random), arXiv 2108.13264; null unless the teacher beats random.

    Raises:
        SpecMismatchError: a policy does not fit the environment.
    """
    teacher = next(iter(entrants["teacher"].runs.values()))
    if teacher is not None:
        env = env.seen_by(teacher)
    for name, entrant in entrants.items():
        for policy in entrant.runs.values():
            if policy is not None:
                fits(policy, name, env, _side(entrant))
    total = config.episodes * sum(len(entrant.runs) for entrant in entrants.values())
    played: dict[str, dict[int | None, Episodes]] = {}
    watches: dict[str, list[Watch]] = {}
    done = 0
    for name, entrant in entrants.items():
        played[name] = {}
        for training_seed, policy in entrant.runs.items():
            judge, watch = (teacher, Watch(training_seed)) if entrant.kind == "student" else (None, None)
            watches.setdefault(name, []).extend([watch] if watch is not None else [])
            played[name][training_seed] = play(
                env,
                policy,
                config.episodes,
                seed=seed,
                sample=config.sample,
                gamma=config.gamma,
                judge=judge,
                watch=watch,
                side=_side(entrant),
                progress=lambda ended, base=done: progress(base + ended, total),  # type: ignore[misc]
            )
            done += config.episodes
    returns = {name: np.stack([episodes.returns for episodes in runs.values()]) for name, runs in played.items()}
    evaluation: dict[str, Any] = {
        "env": env.id,
        "env_kwargs": env.kwargs,
        "episodes": config.episodes,
        "seeds": sorted({run for entrant in entrants.values() for run in entrant.runs if run is not None}),
        "versions": provenance(seed)["versions"],
        "policies": {name: _summary(name, entrants[name], played, returns) for name in entrants},
    }
    for name, entry in evaluation["policies"].items():
        students = [confine(policy, sight_of(env).student) for policy in entrants[name].runs.values() if policy]
        entry["fidelity"] = fidelity(name, students, watches[name], dataset, folder, temperature)
    if config.robustness is not None:
        players = {
            name: Players([policy for policy in entrant.runs.values() if policy], _side(entrant), returns[name])
            for name, entrant in entrants.items()
            if entrant.kind != "random"
        }
        evaluation["robustness"] = robustness(
            env,
            players,
            returns["random"],
            config.robustness,
            seed=seed,
            sample=config.sample,
            progress=lambda ended, more: progress(total + ended, total + more),
        )
    write_json(folder / "evaluation.json", evaluation)
    if config.videos and not draws_itself(env):
        warnings.warn(f"no videos: {env.id} has no render mode rgb_array", stacklevel=2)
    elif config.videos:
        for name, runs in played.items():
            _film(env, seed, name, next(iter(runs.values())), folder / "videos")
    return evaluation


def _side(entrant: Entrant) -> Side:
    return "teacher" if entrant.kind == "teacher" else "student"


def _summary(
    name: str,
    entrant: Entrant,
    everyone: dict[str, dict[int | None, Episodes]],
    returns: dict[str, np.ndarray[Any, Any]],
) -> dict[str, Any]:
    played, compared_with = everyone[name], (name, "teacher", "random")
    own, teacher, random = (returns[who] for who in compared_with)
    distinct = tuple(min(episodes.distinct for episodes in everyone[who].values()) for who in compared_with)
    low, high = stratified_bootstrap(own, distinct=distinct[0])
    compared = sum(episodes.compared for episodes in played.values())
    policy = next(iter(entrant.runs.values()))
    discrete = compared > 0 and policy is not None and policy.spec.head.discrete
    agreement = sum(episodes.agreed for episodes in played.values()) / compared if discrete else None
    rmse = None
    if compared and not discrete:
        rmse = float(np.sqrt(sum(episodes.squared_error for episodes in played.values()) / compared))
    cost = measure_cost(policy)
    interval = normalised_interval(own, teacher, random, distinct=distinct)
    return {
        "kind": entrant.kind,
        "runs": [{"training_seed": run, "returns": episodes.returns.tolist()} for run, episodes in played.items()],
        "distinct_episodes": distinct[0],
        "mean": float(own.mean()),
        "iqm": iqm(own),
        "ci95": [low, high],
        "normalised": normalised_score(own, teacher, random),
        "normalised_ci95": list(interval) if interval is not None else None,
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


def _film(env: EnvConfig, seed: int, name: str, episodes: Episodes, folder: Path) -> None:
    for label, episode in (("best", int(episodes.returns.argmax())), ("worst", int(episodes.returns.argmin()))):
        film(env, seed, episode, episodes.actions[episode], folder / f"{name}-{label}.mp4")
