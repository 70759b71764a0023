"""Compare: which of several teachers to take.

A teacher's own return is not all: what counts is what a student reaches that learns from it. So each teacher also
teaches the same small probe student from the same number of labelled steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, NothingLearnedError, SpecMismatchError
from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.config import EnvConfig
from rldistill.evaluation.config import CompareConfig
from rldistill.evaluation.episodes import Episodes, play
from rldistill.evaluation.statistics import mean_interval, normalised_score
from rldistill.evaluation.verify import fitted
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.cost import measure_cost
from rldistill.policies.ensemble import Ensemble
from rldistill.students import Cnn, Mlp

PROBE_SEEDS = (0, 1, 2)


NEAR = 0.02
"""Teachabilities nearer than this are a tie: the cheaper teacher wins it, where costs are known, else the stronger."""


def compare_teachers(
    teachers: Mapping[str, Policy],
    env: EnvConfig,
    config: CompareConfig = CompareConfig(),  # noqa: B008 - it is frozen
    *,
    seed: int = 0,
    progress: Progress | bool = True,
) -> dict[str, Any]:
    """Play every teacher, let it teach the probe, and say which to take and why.

    The probe is an mlp of 32x32, on pictures a small cnn, distilled with ForwardKL; its teachability is the mean over
    three training seeds of (probe - random) / (best teacher - random), so that a poor teacher's pupil is not overrated.

    Returns:
        `env`, `random`, `discrete`, `teachers.<name>` (`returns mean ci95 entropy action_gap parameters macs latency_us
        teachability probe_mean`), `no_ensemble` (why there is none), `agreement` of pairs, `no_agreement` (of which,
        and why), `take` and `why`.

    Raises:
        SpecMismatchError: a teacher does not fit the environment, or two do not fit each other.
    """
    if len(teachers) < 1:
        raise ConfigError("no teacher to compare; name at least one")
    entrants = dict(teachers)
    together, alone = _together(teachers) if config.ensemble and len(teachers) > 1 else (None, None)
    if together is not None:
        entrants["ensemble"] = together
    envs = {}
    for name, teacher in entrants.items():
        entrants[name], envs[name] = fitted(teacher, env, name)
    with stage_progress(progress, "compare", "parts") as report:
        total, done = len(entrants) * (1 + len(PROBE_SEEDS)) + 1, 0

        def step() -> None:
            nonlocal done
            done += 1
            report.update(done, total)

        random = play(env.view_of("teacher"), None, config.episodes, seed=seed).returns
        step()
        played: dict[str, Episodes] = {}
        for name, teacher in entrants.items():
            played[name] = play(envs[name], teacher, config.episodes, seed=seed)
            step()
        best = max((episodes.returns for episodes in played.values()), key=lambda returns: float(returns.mean()))
        with tempfile.TemporaryDirectory() as folder:
            rows, states = {}, {}
            for number, (name, teacher) in enumerate(entrants.items()):
                place = Path(folder) / str(number)
                states[name] = collect(
                    envs[name],
                    teacher,
                    CollectConfig(steps=config.steps, epsilon=0.05),
                    place / "dataset",
                    seed=seed,
                    progress=False,
                )
                probes = _probes(states[name], envs[name], random, config, seed, place, step)
                rows[name] = _row(teacher, states[name], played[name].returns, probes, best, random)
            agreement, not_asked = _agreement({name: entrants[name] for name in teachers}, states)
    take, why = recommend(rows)
    return {
        "env": env.id,
        "episodes": config.episodes,
        "probe_steps": config.steps,
        "random": float(random.mean()),
        "discrete": next(iter(entrants.values())).spec.head.discrete,
        "teachers": rows,
        "no_ensemble": alone,
        "agreement": agreement,
        "no_agreement": not_asked,
        "take": take,
        "why": why,
    }


def _together(teachers: Mapping[str, Policy]) -> tuple[Ensemble | None, str | None]:
    """The ensemble of all, or why there can be none."""
    try:
        return Ensemble(tuple(teachers.values())), None
    except (ConfigError, SpecMismatchError) as error:
        return None, str(error)


def recommend(rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The teacher whose probe does best; of those nearly as good the cheapest, or the strongest.

    Returns its name, and the reason in a sentence.
    """
    scores = {name: row["teachability"] for name, row in rows.items() if row["teachability"] is not None}
    if not scores:
        return next(iter(rows)), "no teacher is better than random, so none can be preferred"
    top = max(scores, key=lambda name: scores[name])
    near = [name for name, score in scores.items() if scores[top] - score <= NEAR]
    most = rows[top]["macs"]
    known = [name for name in near if None not in (most, rows[name]["macs"])]
    cheaper = [name for name in known if rows[name]["macs"] < most]
    if cheaper:
        take = min(cheaper, key=lambda name: (rows[name]["macs"], -scores[name]))
    else:
        as_cheap = [name for name in near if name not in known or rows[name]["macs"] == most]
        take = max(as_cheap, key=lambda name: (rows[name]["mean"], scores[name]))
    strongest = max(rows, key=lambda name: rows[name]["mean"])
    why = f"what it teaches reaches {scores[take]:.3f} of the best teacher's score"
    if take != top:
        better = "is cheaper to run" if cheaper else f"plays better itself ({rows[take]['mean']:.1f})"
        why += f", within {NEAR} of {top}'s {scores[top]:.3f}, and it {better}"
    if rows[strongest]["mean"] > rows[take]["mean"]:
        why += f"; {strongest} plays better itself ({rows[strongest]['mean']:.1f} to {rows[take]['mean']:.1f})"
        if strongest in scores and scores[strongest] < scores[take]:
            why += f", but teaches less well ({scores[strongest]:.3f})"
    return take, why


def _probes(
    data: Dataset,
    env: EnvConfig,
    random: NDArray[np.float64],
    config: CompareConfig,
    seed: int,
    folder: Path,
    step: Callable[[], None],
) -> NDArray[np.float64]:
    """Returns `[training seeds, episodes]` of the probe student that learned from a teacher's labels."""
    returns = []
    for training_seed in PROBE_SEEDS:
        try:
            probe = Cnn() if data.spec.frames or len(data.spec.obs_shape) == 3 else Mlp((32, 32))
            fit = DistillConfig(epochs=config.epochs)
            student = distill(data, probe, fit, folder / f"probe-{training_seed}", seed=training_seed, progress=False)
            returns.append(play(env, student, config.episodes, seed=seed).returns)
        except NothingLearnedError:
            returns.append(random)
        step()
    return np.stack(returns)


def _row(
    teacher: Policy,
    data: Dataset,
    returns: NDArray[np.float64],
    probes: NDArray[np.float64],
    best: NDArray[np.float64],
    random: NDArray[np.float64],
) -> dict[str, Any]:
    low, high = mean_interval(returns[None])
    cost = measure_cost(teacher)
    return {
        "returns": returns.tolist(),
        "mean": float(returns.mean()),
        "ci95": [low, high],
        "entropy": _entropy(data),
        "action_gap": data.action_gap() if data.spec.head.single_choice else None,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "latency_us": cost.latency_us,
        "probe_mean": float(probes.mean()),
        "teachability": normalised_score(probes, best[None], random[None]),
    }


def _entropy(data: Dataset) -> float | None:
    """Of the teacher's distribution over actions, in nats; Q values have none until a temperature is chosen."""
    if not isinstance(data.spec.head, CategoricalHead):
        return None
    chances = torch.from_numpy(data.columns["teacher"]).softmax(-1)
    return float(torch.special.entr(chances).sum(-1).mean())


def _agreement(
    teachers: Mapping[str, Policy], states: Mapping[str, Dataset]
) -> tuple[dict[str, float], dict[str, str]]:
    """How often two teachers choose the same action on the states of both, or their root mean squared difference.

    Pairs that cannot be asked about the same states are left out, with the reason.
    """
    found, left_out = {}, {}
    for a, b in combinations(teachers, 2):
        pair = teachers[a], teachers[b]
        if any(teacher.initial_state(1) is not None for teacher in pair):
            left_out[f"{a} / {b}"] = "one remembers, and cannot be asked about single states"
            continue
        if pair[0].spec.view != pair[1].spec.view or pair[0].spec.obs_shape != pair[1].spec.obs_shape:
            left_out[f"{a} / {b}"] = "they see different things"
            continue
        differences = [_difference(*pair, states[name]) for name in (a, b)]
        mean = torch.cat(differences).mean()
        found[f"{a} / {b}"] = float(1 - mean if pair[0].spec.head.discrete else mean.sqrt())
    return found, left_out


def _difference(a: Policy, b: Policy, states: Dataset) -> torch.Tensor:
    """For some states, whether the actions differ, or their squared difference."""
    rows = np.linspace(0, len(states) - 1, min(len(states), 1_000)).astype(np.int64)
    with torch.no_grad():
        one, other = (teacher(states.observations(rows))[0].mode() for teacher in (a, b))
    return (one != other).float() if a.spec.head.discrete else (one - other) ** 2
