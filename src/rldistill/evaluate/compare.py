"""Compare: which of several teachers to take.

A teacher's own return is not all: what counts is what a student reaches that learns from it. So each teacher also
teaches the same small probe student from the same number of labelled steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rldistill.collect import CollectConfig, collect
from rldistill.data.dataset import Dataset
from rldistill.distill import DistillConfig, distill
from rldistill.envs.single import EnvConfig, spec_from_env
from rldistill.errors import ConfigError, NothingLearnedError
from rldistill.evaluate.cost import measure_cost
from rldistill.evaluate.play import Episodes, play
from rldistill.evaluate.statistics import normalised_score, stratified_bootstrap
from rldistill.masking import confine
from rldistill.students import Cnn, Mlp
from rldistill.teachers.ensemble import Ensemble
from rldistill.types import Policy

PROBE_SEEDS = (0, 1, 2)
NEAR = 0.02
"""Teachabilities nearer than this are a tie, which the cheaper teacher wins."""


@dataclass(frozen=True)
class CompareConfig:
    """How teachers are compared.

    Attributes:
        episodes: full episodes for each teacher and each probe student.
        steps: labelled steps that each probe student learns from.
        epochs: passes over them.
        ensemble: whether what an ensemble of all would give is measured, too.
    """

    episodes: int = 20
    steps: int = 5_000
    epochs: int = 20
    ensemble: bool = True

    def __post_init__(self) -> None:
        for name in ("episodes", "steps", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")


def compare_teachers(
    teachers: Mapping[str, Policy],
    env: EnvConfig,
    config: CompareConfig = CompareConfig(),
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Play every teacher, let it teach the probe, and say which to take and why.

    The probe is an mlp of 32x32, on pictures a small cnn, distilled with ForwardKL; its teachability is the mean over
    three training seeds of (probe - random) / (best teacher - random), so that a poor teacher's pupil is not overrated.

    Returns:
        `env`, `random`, `discrete`, `teachers.<name>` (`returns mean ci95 entropy action_gap parameters macs latency_us
        teachability probe_mean`), `agreement` of each pair, `take` and `why`.

    Raises:
        SpecMismatchError: a teacher does not fit the environment, or two do not fit each other.
    """
    if len(teachers) < 1:
        raise ConfigError("no teacher to compare; name at least one")
    entrants = dict(teachers)
    if config.ensemble and len(teachers) > 1:
        entrants["ensemble"] = Ensemble(tuple(teachers.values()))
    env = env.seen_by(next(iter(teachers.values()))).view_of("teacher")
    entrants = {name: confine(teacher, spec_from_env(env)) for name, teacher in entrants.items()}
    for name, teacher in entrants.items():
        teacher.spec.require_same_input(spec_from_env(env), name, env.id)
    total, done = len(entrants) * (1 + len(PROBE_SEEDS)) + 1, 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    random = play(env, None, config.episodes, seed=seed).returns
    step()
    played: dict[str, Episodes] = {}
    for name, teacher in entrants.items():
        played[name] = play(env, teacher, config.episodes, seed=seed)
        step()
    best = max((episodes.returns for episodes in played.values()), key=lambda returns: float(returns.mean()))
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            name: _row(name, teacher, played[name], best, random, env, config, seed, Path(folder) / str(number), step)
            for number, (name, teacher) in enumerate(entrants.items())
        }
        states = Dataset.read([Path(folder) / str(number) / "dataset" for number in range(len(teachers))], 0.99, False)
        agreement = _agreement({name: entrants[name] for name in teachers}, states)
    take, why = recommend(rows)
    return {
        "env": env.id,
        "episodes": config.episodes,
        "probe_steps": config.steps,
        "random": float(random.mean()),
        "discrete": states.spec.head.discrete,
        "teachers": rows,
        "agreement": agreement,
        "take": take,
        "why": why,
    }


def recommend(rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The teacher whose probe does best; of those nearly as good, the cheapest; and the reason in a sentence."""
    scores = {name: row["teachability"] for name, row in rows.items() if row["teachability"] is not None}
    if not scores:
        return next(iter(rows)), "no teacher is better than random, so none can be preferred"
    top = max(scores, key=lambda name: scores[name])
    near = [name for name, score in scores.items() if scores[top] - score <= NEAR]
    take = min(near, key=lambda name: rows[name]["macs"])
    strongest = max(rows, key=lambda name: rows[name]["mean"])
    why = f"what it teaches reaches {scores[take]:.2f} of the best teacher's score"
    if take != top:
        why += f", within {NEAR} of {top}'s {scores[top]:.2f}, and it is cheaper to run"
    if take != strongest:
        why += f"; {strongest} plays better itself ({rows[strongest]['mean']:.1f} to {rows[take]['mean']:.1f})"
        if strongest in scores:
            why += f", but teaches less well ({scores[strongest]:.2f})"
    return take, why


def _row(
    name: str,
    teacher: Policy,
    episodes: Episodes,
    best: Any,
    random: Any,
    env: EnvConfig,
    config: CompareConfig,
    seed: int,
    folder: Path,
    step: Callable[[], None],
) -> dict[str, Any]:
    data = collect(env, teacher, CollectConfig(steps=config.steps, epsilon=0.05), folder / "dataset", seed=seed)
    probes = []
    for training_seed in PROBE_SEEDS:
        try:
            probe = Cnn() if data.spec.frames or len(data.spec.obs_shape) == 3 else Mlp((32, 32))
            fit = DistillConfig(epochs=config.epochs)
            student = distill(data, probe, fit, folder / f"probe-{training_seed}", seed=training_seed)
            probes.append(play(env, student, config.episodes, seed=seed).returns)
        except NothingLearnedError:
            probes.append(random)
        step()
    returns = np.stack(probes)
    low, high = stratified_bootstrap(episodes.returns[None])
    cost = measure_cost(teacher)
    return {
        "returns": episodes.returns.tolist(),
        "mean": float(episodes.returns.mean()),
        "ci95": [low, high],
        "entropy": _entropy(data),
        "action_gap": data.action_gap() if data.spec.head.kind in ("q_values", "categorical") else None,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "latency_us": cost.latency_us,
        "probe_mean": float(returns.mean()),
        "teachability": normalised_score(returns, best[None], random[None]),
    }


def _entropy(data: Dataset) -> float | None:
    """Of the teacher's distribution over actions, in nats; Q values have none until a temperature is chosen."""
    if data.spec.head.kind != "categorical":
        return None
    chances = torch.from_numpy(data.columns["teacher"]).softmax(-1)
    return float(torch.special.entr(chances).sum(-1).mean())


def _agreement(teachers: Mapping[str, Policy], states: Dataset) -> dict[str, float]:
    """How often two teachers choose the same action on the states of all, or their root mean squared difference."""
    rows = np.linspace(0, len(states) - 1, min(len(states), 2_000)).astype(np.int64)
    with torch.no_grad():
        actions = {name: teacher(states.observations(rows))[0].mode() for name, teacher in teachers.items()}
    discrete = states.spec.head.discrete
    return {
        f"{a} / {b}": float((actions[a] == actions[b]).float().mean())
        if discrete
        else float(((actions[a] - actions[b]) ** 2).mean().sqrt())
        for a, b in combinations(teachers, 2)
    }
