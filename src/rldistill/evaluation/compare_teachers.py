"""Comparison of teachers, by the student that each produces.

A teacher's own return does not decide: the same small probe student learns from each teacher, from the same number of
labeled steps, and its return counts.
"""

import tempfile
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.table import Table

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import Weighting
from rldistill.evaluation.config import CompareConfig
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.fidelity import squared_error
from rldistill.evaluation.probes import ProbeResult, probe_jobs
from rldistill.evaluation.statistics import Estimate, Returns, estimate, mean, normalized_score
from rldistill.evaluation.tables import NONE, Record, Result, Rows, TableCell, figure, rich_table
from rldistill.evaluation.verify import fit_to_env
from rldistill.io.execution import SERIAL, Execution, Total
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.cost import measure_cost
from rldistill.policies.ensemble import Ensemble

NUM_AGREEMENT_STATES = 1_000
TIE = 0.02
"""Largest difference in teachability of a tie, which the cheaper teacher wins, or the better without known costs."""


class TeacherScore(Record):
    """Returns, cost and teachability of one teacher.

    Attributes:
        entropy: mean entropy of its distribution over actions, in nats; None unless it has logits.
        action_gap: mean difference between its best and its second action; None unless it has Q-values or logits.
        probe_mean: mean return of the probe student.
        teachability: (probe - random) / (best teacher - random); None if no teacher is better than random play.
    """

    returns: list[float]
    mean: Estimate
    entropy: float | None
    action_gap: float | None
    parameters: int | None
    macs: int | None
    latency_us: dict[str, float] | None
    probe_mean: float
    teachability: float | None


class TeacherComparison(Result):
    """Result of `compare_teachers`.

    Attributes:
        random: mean return of random play.
        discrete: True if actions are integers, so that `agreement` is a share and not a root mean squared difference.
        no_ensemble: reason that there is no ensemble of all teachers, if there is none.
        weightings: teachability of a student of all teachers, or the reason why there is none, by `distill.weighting`.
        agreement: agreement of pairs of teachers, or the reason why there is none.
        take, why: name of the recommended teacher, and the reason.
    """

    env: str
    episodes: int
    probe_steps: int
    random: float
    discrete: bool
    teachers: dict[str, TeacherScore]
    no_ensemble: str | None
    weightings: dict[str, float | str | None]
    agreement: dict[str, float | str]
    take: str
    why: str

    @property
    def rows(self) -> Rows:
        """Cells of each teacher, under the same columns."""
        return [
            [
                TableCell("teacher", name),
                figure("return", score.mean),
                figure("teachability", score.teachability, ".3f"),
                figure("entropy", score.entropy, ".3f"),
                figure("action gap", score.action_gap, ".3f"),
                figure("parameters", score.parameters, ","),
                figure("MACs", score.macs, ","),
                TableCell("latency", f"{score.latency_us['p50']:.0f} µs" if score.latency_us else NONE),
            ]
            for name, score in self.teachers.items()
        ]

    @property
    def weighting_rows(self) -> Rows:
        """Cells of each weighting of the labels of all teachers: its teachability, or the reason why it is left out."""
        return [
            [TableCell("weighting", name), _figure_or_reason("teachability", score)]
            for name, score in self.weightings.items()
        ]

    @property
    def agreement_rows(self) -> Rows:
        """Cells of each pair of teachers: its agreement, or the reason why there is none."""
        column = "agreement" if self.discrete else "action RMSE"
        return [
            [TableCell("teachers", pair), _figure_or_reason(column, value)] for pair, value in self.agreement.items()
        ]

    def blocks(self) -> list[Table | str]:
        """Return the table of the teachers, their agreements and the recommendation."""
        lines = [f"{cell.column} {pair.text}: {cell.text}" for pair, cell in self.agreement_rows]
        if self.no_ensemble is not None:
            lines.append(f"no ensemble: {self.no_ensemble}")
        for weighting, cell in self.weighting_rows:
            lines.append(f"teachability of all teachers together, weighting {weighting.text}: {cell.text}")
        lines.append(f"take {self.take}: {self.why}.")
        names = short_names(list(self.teachers))
        rows = [[TableCell("teacher", name), *row[1:]] for name, row in zip(names, self.rows, strict=True)]
        return [rich_table(rows), *lines]


def _figure_or_reason(column: str, value: float | str | None) -> TableCell:
    if value is None:
        value = "no score, since no teacher is better than random play"
    return TableCell(column, value) if isinstance(value, str) else figure(column, value, ".3f")


def compare_teachers(
    env: EnvConfig,
    teachers: Mapping[str, Policy],
    config: CompareConfig = CompareConfig(),  # noqa: B008 - it is frozen
    *,
    seed: int = 0,
    progress: Progress | bool = True,
    execution: Execution = SERIAL,
) -> TeacherComparison:
    """Play all teachers, distil a probe student from each, and recommend one.

    The probe is an MLP of 32x32 (a small CNN for pictures), distilled with the default loss. Teachability is
    (probe - random) / (best teacher - random), the mean over three training seeds; it uses the best teacher for all, so
    that the probe of a poor teacher is not overrated. Teachers and probes are jobs of `execution`.

    Raises:
        ConfigError: there is no teacher.
        SpecMismatchError: a teacher does not fit the environment.
    """
    if not teachers:
        raise ConfigError("teachers: there is none to compare. Name at least one.")
    entries, no_ensemble = _with_ensemble(teachers) if config.ensemble and len(teachers) > 1 else (teachers, None)
    fitted = {name: fit_to_env(teacher, env, name) for name, teacher in entries.items()}
    # Machines of Ray share the folder of the run, but not that of temporary files.
    place = Path.cwd() if execution.backend == "ray" else None
    with stage_progress(progress, "compare", "parts") as report, tempfile.TemporaryDirectory(dir=place) as temporary:
        jobs, no_committee = probe_jobs(env, teachers, [*fitted.values()], config, Path(temporary), seed)
        done = Total(report, 1 + jobs.count)
        random = play(env.view_of("teacher"), None, config.episodes, PlayConfig(seed)).returns
        done(1, 0)
        results = jobs.run(execution, done)
        own = dict(zip(fitted, results, strict=False))  # without that of all teachers together
        best = max((result.returns for result in own.values()), key=lambda returns: float(returns.mean()))
        states = {name: jobs.data(number) for number, name in enumerate(fitted)}
        scores = {name: _score(fitted[name][0], states[name], own[name], best, random) for name in fitted}
        together = {
            str(weighting): probes if isinstance(probes, str) else _teachability(probes, best, random)
            for result in results[len(fitted) :]
            for weighting, probes in result.probes.items()
        }
        agreement = _agreements({name: fitted[name][0] for name in teachers}, states)
    take, why = recommend(scores)
    return TeacherComparison(
        env=env.id,
        episodes=config.episodes,
        probe_steps=config.steps,
        random=float(random.mean()),
        discrete=next(iter(entries.values())).spec.head.discrete,
        teachers=scores,
        no_ensemble=no_ensemble,
        weightings=dict.fromkeys(get_args(Weighting), no_committee) if no_committee else together,
        agreement=agreement,
        take=take,
        why=why,
    )


def _with_ensemble(teachers: Mapping[str, Policy]) -> tuple[dict[str, Policy], str | None]:
    """Return the teachers with their ensemble, or the reason that there is none."""
    try:
        return {**teachers, "ensemble": Ensemble(tuple(teachers.values()))}, None
    except (ConfigError, SpecMismatchError) as error:
        return {**teachers}, str(error)


def short_names(names: list[str]) -> list[str]:
    """Return paths without the folders that all of them share."""
    paths = [name for name in names if "/" in name]
    shared = paths[0].rpartition("/")[0] + "/" if len(paths) > 1 else ""
    while not all(path.startswith(shared) for path in paths):
        shared = shared[:-1].rpartition("/")[0] + "/" if "/" in shared[:-1] else ""
    return [name.removeprefix(shared) for name in names]


def recommend(scores: Mapping[str, TeacherScore]) -> tuple[str, str]:
    """Return the name of the teacher with the best probe (in a tie the cheapest or the best player), and a reason."""
    rated = {name: score.teachability for name, score in scores.items() if score.teachability is not None}
    if not rated:
        return next(iter(scores)), "no teacher is better than random play, so there is no preference"
    top = max(rated, key=lambda name: rated[name])
    tied = [name for name, value in rated.items() if rated[top] - value <= TIE]
    limit = scores[top].macs
    # An unknown cost counts as that of `top`; if that one is unknown, costs do not count.
    costs = {name: (scores[name].macs or limit) if limit else 0 for name in tied}
    means = {name: score.mean.value for name, score in scores.items()}
    take = min(tied, key=lambda name: (costs[name], -means[name], -rated[name]))
    strongest = max(means, key=lambda name: means[name])
    why = f"its student reaches {rated[take]:.3f} of the best teacher's score"
    if take != top:
        better = "is cheaper to run" if costs[take] < costs[top] else f"plays better itself ({means[take]:.1f})"
        why += f", within {TIE} of {top}'s {rated[top]:.3f}, and it {better}"
    if means[strongest] > means[take]:
        why += f"; {strongest} plays better itself ({means[strongest]:.1f} to {means[take]:.1f})"
        if strongest in rated and rated[strongest] < rated[take]:
            why += f", but teaches less well ({rated[strongest]:.3f})"
    return take, why


def _teachability(probes: Returns, best: Returns, random: Returns) -> float | None:
    """Return the mean score of probe students; None if no teacher is better than random play."""
    score = normalized_score(probes, best[None], random[None])
    return score.value if score else None


def _score(teacher: Policy, data: Dataset, result: ProbeResult, best: Returns, random: Returns) -> TeacherScore:
    head, labels = data.spec.head, torch.from_numpy(data.columns["teacher"])
    own_view = data.spec.obs_shape == teacher.spec.obs_shape
    cost = measure_cost(teacher, data.observations(np.arange(1)) if own_view else None)
    probes = result.probes[None]
    assert not isinstance(probes, str)  # of one teacher, it would have been raised
    return TeacherScore(
        returns=result.returns.tolist(),
        mean=estimate(mean, result.returns[None]),
        entropy=float(head.entropy(labels).mean()) if isinstance(head, CategoricalHead) else None,
        action_gap=data.action_gap() if head.single_choice else None,
        parameters=cost.parameters,
        macs=cost.macs,
        latency_us=cost.latency_us,
        probe_mean=float(probes.mean()),
        teachability=_teachability(probes, best, random),
    )


def _agreements(teachers: Mapping[str, Policy], states: Mapping[str, Dataset]) -> dict[str, float | str]:
    """Return the agreement of each pair on the states of both, or the reason why there is none."""
    agreements: dict[str, float | str] = {}
    for names in combinations(teachers, 2):
        pair, (one, other) = " / ".join(names), (teachers[name] for name in names)
        if any(teacher.initial_state(1) is not None for teacher in (one, other)):
            agreements[pair] = "one is recurrent, so single states cannot be compared"
        elif one.spec.view != other.spec.view or one.spec.obs_shape != other.spec.obs_shape:
            agreements[pair] = "their observations differ"
        else:
            discrete, parts = one.spec.head.discrete, []
            for data in (states[name] for name in names):
                spread = np.linspace(0, len(data) - 1, min(len(data), NUM_AGREEMENT_STATES)).astype(np.int64)
                with torch.no_grad():
                    a, b = (teacher(data.observations(spread))[0] for teacher in (one, other))
                parts.append(a.agreement(b) if discrete else squared_error(a, b))
            whole = torch.cat(parts).mean()
            agreements[pair] = float(whole if discrete else whole.sqrt())
    return agreements
