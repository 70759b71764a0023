"""Comparison of teachers, by the student that each produces.

A teacher's own return does not decide: the same small probe student learns from each teacher, from the same number of
labeled steps, and its return counts.
"""

import tempfile
from collections.abc import Callable, Mapping
from itertools import combinations, count
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.table import Table

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, NothingLearnedError, SpecMismatchError
from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig, Weighting
from rldistill.distillation.distill import distill
from rldistill.evaluation.config import CompareConfig
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.fidelity import squared_error
from rldistill.evaluation.statistics import Estimate, Returns, estimate, mean, normalized_score
from rldistill.evaluation.tables import NONE, Record, Result, Rows, TableCell, figure, rich_table
from rldistill.evaluation.verify import fit_to_env
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.committee import Committee
from rldistill.policies.cost import measure_cost
from rldistill.policies.ensemble import Ensemble
from rldistill.students import Cnn, Mlp, MultiInput

PROBE_SEEDS = (0, 1, 2)
NUM_AGREEMENT_STATES = 1_000
EPSILON = 0.05
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
        weightings: teachability of a student of all teachers, by `distill.weighting`.
        no_weighting: reason for each weighting that was left out.
        agreement, no_agreement: agreement of pairs of teachers, and the reason for each pair without one.
        take, why: name of the recommended teacher, and the reason.
    """

    env: str
    episodes: int
    probe_steps: int
    random: float
    discrete: bool
    teachers: dict[str, TeacherScore]
    no_ensemble: str | None
    weightings: dict[str, float | None]
    no_weighting: dict[str, str]
    agreement: dict[str, float]
    no_agreement: dict[str, str]
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

    def blocks(self) -> list[Table | str]:
        """Return the table of the teachers, their agreements and the recommendation."""
        word = "agreement" if self.discrete else "action RMSE"
        lines = [f"{word} {pair}: {value:.3f}" for pair, value in self.agreement.items()]
        lines += [f"no {word} {pair}: {reason}" for pair, reason in self.no_agreement.items()]
        if self.no_ensemble is not None:
            lines.append(f"no ensemble: {self.no_ensemble}")
        for weighting, value in self.weightings.items():
            score = "no score, since no teacher is better than random play" if value is None else f"{value:.3f}"
            lines.append(f"teachability of all teachers together, weighting {weighting}: {score}")
        lines += [f"no weighting {weighting}: {reason}" for weighting, reason in self.no_weighting.items()]
        lines.append(f"take {self.take}: {self.why}.")
        names = short_names(list(self.teachers))
        rows = [[TableCell("teacher", name), *row[1:]] for name, row in zip(names, self.rows, strict=True)]
        return [rich_table(rows), *lines]


def compare_teachers(
    env: EnvConfig,
    teachers: Mapping[str, Policy],
    config: CompareConfig = CompareConfig(),  # noqa: B008 - it is frozen
    *,
    seed: int = 0,
    progress: Progress | bool = True,
) -> TeacherComparison:
    """Play all teachers, distil a probe student from each, and recommend one.

    The probe is an MLP of 32x32 (a small CNN for pictures), distilled with the default loss. Teachability is
    (probe - random) / (best teacher - random), the mean over three training seeds; it uses the best teacher for all, so
    that the probe of a poor teacher is not overrated.

    Raises:
        ConfigError: there is no teacher.
        SpecMismatchError: a teacher does not fit the environment.
    """
    if not teachers:
        raise ConfigError("teachers: there is none to compare. Name at least one.")
    entries, no_ensemble = _with_ensemble(teachers) if config.ensemble and len(teachers) > 1 else (teachers, None)
    fitted = {name: fit_to_env(teacher, env, name) for name, teacher in entries.items()}
    num_probed = len(fitted) + len(get_args(Weighting)) * (len(teachers) > 1)
    total, done, scores, states = len(fitted) + num_probed * len(PROBE_SEEDS) + 1, count(1), {}, {}
    collecting = CollectConfig(steps=config.steps, epsilon=EPSILON)
    with stage_progress(progress, "compare", "parts") as report, tempfile.TemporaryDirectory() as temporary:

        def score(own_env: EnvConfig, policy: Policy | None) -> Returns:
            returns = play(own_env, policy, config.episodes, PlayConfig(seed)).returns
            report.update(next(done), total)
            return returns

        random = score(env.view_of("teacher"), None)
        returns = {name: score(own_env, teacher) for name, (teacher, own_env) in fitted.items()}
        best = max(returns.values(), key=lambda own: float(own.mean()))
        for number, (name, (teacher, own_env)) in enumerate(fitted.items()):
            folder = Path(temporary) / str(number)
            states[name] = data = collect(own_env, teacher, collecting, folder / "dataset", seed=seed, progress=False)
            probing = DistillConfig(epochs=config.epochs)
            probes = np.stack([score(own_env, _probe(data, probing, folder, own)) for own in PROBE_SEEDS])
            teachability = _teachability(probes, best, random)
            scores[name] = _score(teacher, data, returns[name], probes, teachability)
        together, no_weighting = _weighted_probes(env, teachers, config, Path(temporary) / "all", seed, score)
        agreements, no_agreement = _agreements({name: fitted[name][0] for name in teachers}, states)
    take, why = recommend(scores)
    return TeacherComparison(
        env=env.id,
        episodes=config.episodes,
        probe_steps=config.steps,
        random=float(random.mean()),
        discrete=next(iter(entries.values())).spec.head.discrete,
        teachers=scores,
        no_ensemble=no_ensemble,
        weightings={name: _teachability(own, best, random) for name, own in together.items()},
        no_weighting=no_weighting,
        agreement=agreements,
        no_agreement=no_agreement,
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


def _weighted_probes(
    env: EnvConfig,
    teachers: Mapping[str, Policy],
    config: CompareConfig,
    folder: Path,
    seed: int,
    score: Callable[[EnvConfig, Policy | None], Returns],
) -> tuple[dict[str, Returns], dict[str, str]]:
    """Return the returns of probe students of all teachers, by weighting, and the reason for each without one.

    They learn from as many steps as those of one teacher, in few environments, so that their episodes end.
    """
    probes, left_out = dict[str, Returns](), dict[str, str]()
    if len(teachers) == 1:
        return probes, left_out
    collecting = CollectConfig(steps=config.steps, epsilon=EPSILON, num_streams=1, envs_per_stream=4)
    for weighting in get_args(Weighting):
        probing = DistillConfig(epochs=config.epochs, weighting=weighting)
        try:
            teacher, own_env = fit_to_env(Committee(tuple(teachers.values()), names=tuple(teachers)), env)
            data = collect(own_env, teacher, collecting, folder / "dataset", seed=seed, mode="resume", progress=False)
            students = [_probe(data, probing, folder / weighting, own) for own in PROBE_SEEDS]
            probes[weighting] = np.stack([score(own_env, student) for student in students])
        except (ConfigError, SpecMismatchError) as error:
            left_out[weighting] = str(error)
    return probes, left_out


def _probe(data: Dataset, config: DistillConfig, folder: Path, seed: int) -> Policy | None:
    """Distil the probe student; return None, which plays at random, if it learned nothing."""
    probe: Cnn | Mlp | MultiInput = MultiInput() if data.spec.has_pictures else Mlp((32, 32))
    if len(data.spec.obs_shape) == 3:
        probe = Cnn()
    try:
        return distill(data, probe, config, folder / f"probe-{seed}", seed=seed, progress=False)
    except NothingLearnedError:
        return None


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


def _score(
    teacher: Policy, data: Dataset, returns: Returns, probes: Returns, teachability: float | None
) -> TeacherScore:
    cost, head, labels = measure_cost(teacher), data.spec.head, torch.from_numpy(data.columns["teacher"])
    return TeacherScore(
        returns=returns.tolist(),
        mean=estimate(mean, returns[None]),
        entropy=float(head.entropy(labels).mean()) if isinstance(head, CategoricalHead) else None,
        action_gap=data.action_gap() if head.single_choice else None,
        parameters=cost.parameters,
        macs=cost.macs,
        latency_us=cost.latency_us,
        probe_mean=float(probes.mean()),
        teachability=teachability,
    )


def _agreements(
    teachers: Mapping[str, Policy], states: Mapping[str, Dataset]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the agreement of each pair on the states of both, and the reason for each pair without one."""
    agreements, left_out = {}, {}
    for names in combinations(teachers, 2):
        pair, (one, other) = " / ".join(names), (teachers[name] for name in names)
        if any(teacher.initial_state(1) is not None for teacher in (one, other)):
            left_out[pair] = "one is recurrent, so single states cannot be compared"
        elif one.spec.view != other.spec.view or one.spec.obs_shape != other.spec.obs_shape:
            left_out[pair] = "their observations differ"
        else:
            discrete, parts = one.spec.head.discrete, []
            for data in (states[name] for name in names):
                spread = np.linspace(0, len(data) - 1, min(len(data), NUM_AGREEMENT_STATES)).astype(np.int64)
                with torch.no_grad():
                    a, b = (teacher(data.observations(spread))[0] for teacher in (one, other))
                parts.append(a.agreement(b) if discrete else squared_error(a, b))
            whole = torch.cat(parts).mean()
            agreements[pair] = float(whole if discrete else whole.sqrt())
    return agreements, left_out
