"""Comparison of teachers, by the student that each produces.

A teacher's own return does not decide: the same small probe student learns from each teacher, from the same number of
labeled steps, and its return counts.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.env import EnvConfig
from rldistill.core.errors import ConfigError, NothingLearnedError, SpecMismatchError
from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.evaluation.config import CompareConfig
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.fidelity import agreement, squared_error
from rldistill.evaluation.statistics import Returns, mean_interval, normalized_score
from rldistill.evaluation.tables import (
    Printable,
    Rows,
    TableCell,
    interval_text,
    number_text,
    optional_text,
    rich_table,
)
from rldistill.evaluation.verify import fit_to_env
from rldistill.io.progress import Progress, stage_progress
from rldistill.losses import ActionNLL, ForwardKL
from rldistill.losses.objective import Term
from rldistill.policies.cost import measure_cost
from rldistill.policies.ensemble import Ensemble
from rldistill.students import Cnn, Mlp

if TYPE_CHECKING:
    from rich.console import RenderableType

PROBE_SEEDS = (0, 1, 2)
NUM_AGREEMENT_STATES = 1_000
TIE = 0.02
"""Largest difference in teachability of a tie, which the cheaper teacher wins, or the better without known costs."""


@dataclass(frozen=True)
class TeacherScore:
    """Returns, cost and teachability of one teacher.

    Attributes:
        entropy: mean entropy of its distribution over actions, in nats; None unless it has logits.
        action_gap: mean difference between its best and its second action; None unless it has Q-values or logits.
        probe_mean: mean return of the probe student.
        teachability: (probe - random) / (best teacher - random); None if no teacher is better than random play.
    """

    returns: list[float]
    mean: float
    ci95: tuple[float, float]
    entropy: float | None
    action_gap: float | None
    parameters: int | None
    macs: int | None
    latency_us: dict[str, float] | None
    probe_mean: float
    teachability: float | None


@dataclass(frozen=True, repr=False)
class TeacherComparison(Printable):
    """Result of `compare_teachers`.

    Attributes:
        random: mean return of random play.
        discrete: True if actions are integers, so that `agreement` is a share and not a root mean squared difference.
        teachers: scores by name.
        no_ensemble: reason that there is no ensemble of all teachers, if there is none.
        agreement: agreement of pairs of teachers.
        no_agreement: reason for each pair without one.
        take, why: name of the recommended teacher, and the reason.
    """

    env: str
    episodes: int
    probe_steps: int
    random: float
    discrete: bool
    teachers: dict[str, TeacherScore]
    no_ensemble: str | None
    agreement: dict[str, float]
    no_agreement: dict[str, str]
    take: str
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return dataclasses.asdict(self)

    @property
    def rows(self) -> Rows:
        """Cells of each teacher, under the same columns."""
        return [
            [
                TableCell("teacher", name),
                TableCell("return", number_text(score.mean), interval_text(score.ci95, number_text)),
                TableCell("teachability", optional_text(score.teachability, "{:.3f}")),
                TableCell("entropy", optional_text(score.entropy, "{:.3f}")),
                TableCell("action gap", optional_text(score.action_gap, "{:.3f}")),
                TableCell("parameters", optional_text(score.parameters, "{:,}")),
                TableCell("MACs", optional_text(score.macs, "{:,}")),
                TableCell("latency", f"{score.latency_us['p50']:.0f} µs" if score.latency_us else "–"),
            ]
            for name, score in self.teachers.items()
        ]

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        word = "agreement" if self.discrete else "action RMSE"
        lines = [f"{word} {pair}: {value:.3f}" for pair, value in self.agreement.items()]
        lines += [f"no {word} {pair}: {reason}" for pair, reason in self.no_agreement.items()]
        if self.no_ensemble is not None:
            lines.append(f"no ensemble: {self.no_ensemble}")
        lines.append(f"take {self.take}: {self.why}.")
        names = short_names(list(self.teachers))
        rows = [[TableCell("teacher", name), *row[1:]] for name, row in zip(names, self.rows, strict=True)]
        return Group(rich_table(rows), *map(Text, lines))


def compare_teachers(
    env: EnvConfig,
    teachers: Mapping[str, Policy],
    config: CompareConfig = CompareConfig(),  # noqa: B008 - it is frozen
    *,
    seed: int = 0,
    progress: Progress | bool = True,
) -> TeacherComparison:
    """Play all teachers, distil a probe student from each, and recommend one.

    The probe is an MLP of 32x32 (for pictures a small CNN), distilled with ForwardKL, or with the squared error for
    actions without a distribution. Teachability is (probe - random) / (best teacher - random), the mean over three
    training seeds; it uses the best teacher for all, so that the probe of a poor teacher is not overrated.

    Raises:
        ConfigError: there is no teacher.
        SpecMismatchError: a teacher does not fit the environment.
    """
    if not teachers:
        raise ConfigError("teachers: there is none to compare. Name at least one.")
    ensemble, no_ensemble = _ensemble(teachers) if config.ensemble and len(teachers) > 1 else (None, None)
    entries = {**teachers} if ensemble is None else {**teachers, "ensemble": ensemble}
    fitted = {name: fit_to_env(teacher, env, name) for name, teacher in entries.items()}
    with stage_progress(progress, "compare", "parts") as report:
        league = _League(config, seed, len(fitted), report)
        random = league.returns(env.view_of("teacher"), None)
        returns = {name: league.returns(own_env, teacher) for name, (teacher, own_env) in fitted.items()}
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: Path(folder) / str(number) for number, name in enumerate(fitted)}
            states = {name: league.states(*fitted[name], path) for name, path in paths.items()}
            probes = {name: league.probe_returns(states[name], fitted[name][1], path) for name, path in paths.items()}
            agreements, no_agreement = _agreements({name: fitted[name][0] for name in teachers}, states)
            best = max(returns.values(), key=lambda own: float(own.mean()))
            scores = {}
            for name, (teacher, _) in fitted.items():
                teachability = normalized_score(probes[name], best[None], random[None])
                mean = float(probes[name].mean())
                scores[name] = _score(teacher, states[name], returns[name], mean, teachability)
    take, why = recommend(scores)
    return TeacherComparison(
        env=env.id,
        episodes=config.episodes,
        probe_steps=config.steps,
        random=float(random.mean()),
        discrete=next(iter(entries.values())).spec.head.discrete,
        teachers=scores,
        no_ensemble=no_ensemble,
        agreement=agreements,
        no_agreement=no_agreement,
        take=take,
        why=why,
    )


def short_names(names: list[str]) -> list[str]:
    """Return paths without the folders that all of them share."""
    folders = [name.split("/")[:-1] for name in names if "/" in name]
    alike = [len(set(level)) == 1 for level in zip(*folders, strict=False)] if len(folders) > 1 else []
    shared = "/".join(folders[0][: [*alike, False].index(False)]) + "/" if any(alike) else ""
    return [name.removeprefix(shared) for name in names]


class _League:
    """Episodes, data and probe students of all teachers."""

    def __init__(self, config: CompareConfig, seed: int, teachers: int, progress: Progress) -> None:
        self.config, self.seed, self.progress = config, seed, progress
        self.done, self.total = 0, teachers * (1 + len(PROBE_SEEDS)) + 1

    def returns(self, env: EnvConfig, policy: Policy | None) -> Returns:
        """Return the returns of a policy, `[episodes]`."""
        returns = play(env, policy, self.config.episodes, PlayConfig(self.seed)).returns
        self.done += 1
        self.progress.update(self.done, self.total)
        return returns

    def states(self, teacher: Policy, env: EnvConfig, folder: Path) -> Dataset:
        """Collect the labeled steps of a teacher."""
        config = CollectConfig(steps=self.config.steps, epsilon=0.05)
        return collect(env, teacher, config, folder / "dataset", seed=self.seed, progress=False)

    def probe_returns(self, data: Dataset, env: EnvConfig, folder: Path) -> Returns:
        """Return the probe's returns, `[training seeds, episodes]`; those of random play if it learned nothing."""
        probe = Cnn() if data.spec.frames or len(data.spec.obs_shape) == 3 else Mlp((32, 32))
        # Deterministic actions, such as those of an ensemble of Gaussian policies, have no KL.
        loss = ActionNLL() if not (data.spec.head.discrete or data.spec.head.stochastic) else ForwardKL()
        fit = DistillConfig((Term(loss),), epochs=self.config.epochs)
        returns = []
        for seed in PROBE_SEEDS:
            try:
                path = folder / f"probe-{seed}"
                student: Policy | None = distill(data, probe, fit, path, seed=seed, progress=False)
            except NothingLearnedError:
                student = None
            returns.append(self.returns(env, student))
        return np.stack(returns)


def _ensemble(teachers: Mapping[str, Policy]) -> tuple[Ensemble | None, str | None]:
    """Return the ensemble of all teachers, or the reason against it."""
    try:
        return Ensemble(tuple(teachers.values())), None
    except (ConfigError, SpecMismatchError) as error:
        return None, str(error)


def recommend(scores: Mapping[str, TeacherScore]) -> tuple[str, str]:
    """Return the name of the teacher with the best probe (in a tie the cheapest or the best player), and a reason."""
    rated = {name: score.teachability for name, score in scores.items() if score.teachability is not None}
    if not rated:
        return next(iter(scores)), "no teacher is better than random play, so there is no preference"
    top = max(rated, key=lambda name: rated[name])
    tied = [name for name, value in rated.items() if rated[top] - value <= TIE]
    macs = {name: score.macs for name, score in scores.items()}
    top_macs = macs[top]
    costs = {name: cost for name in tied if top_macs is not None and (cost := macs[name]) is not None}
    cheaper = [name for name, cost in costs.items() if top_macs is not None and cost < top_macs]
    if cheaper:
        take = min(cheaper, key=lambda name: (costs[name], -rated[name]))
    else:
        candidates = [name for name in tied if name not in costs or costs[name] == top_macs]
        take = max(candidates, key=lambda name: (scores[name].mean, rated[name]))
    strongest = max(scores, key=lambda name: scores[name].mean)
    why = f"its student reaches {rated[take]:.3f} of the best teacher's score"
    if take != top:
        better = "is cheaper to run" if cheaper else f"plays better itself ({scores[take].mean:.1f})"
        why += f", within {TIE} of {top}'s {rated[top]:.3f}, and it {better}"
    if scores[strongest].mean > scores[take].mean:
        why += f"; {strongest} plays better itself ({scores[strongest].mean:.1f} to {scores[take].mean:.1f})"
        if strongest in rated and rated[strongest] < rated[take]:
            why += f", but teaches less well ({rated[strongest]:.3f})"
    return take, why


def _score(
    teacher: Policy, data: Dataset, returns: Returns, probe_mean: float, teachability: float | None
) -> TeacherScore:
    cost = measure_cost(teacher)
    head, labels = data.spec.head, torch.from_numpy(data.columns["teacher"])
    entropy = float(head.entropy(labels).mean()) if isinstance(head, CategoricalHead) else None
    return TeacherScore(
        returns=returns.tolist(),
        mean=float(returns.mean()),
        ci95=mean_interval(returns[None]),
        entropy=entropy,
        action_gap=data.action_gap() if head.single_choice else None,
        parameters=cost.parameters,
        macs=cost.macs,
        latency_us=cost.latency_us,
        probe_mean=probe_mean,
        teachability=teachability,
    )


def _agreements(
    teachers: Mapping[str, Policy], states: Mapping[str, Dataset]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the agreement of each pair on the states of both, and the reason for each pair without one."""
    found, left_out = {}, {}
    for a, b in combinations(teachers, 2):
        pair = f"{a} / {b}"
        one, other = teachers[a], teachers[b]
        if any(teacher.initial_state(1) is not None for teacher in (one, other)):
            left_out[pair] = "one is recurrent, so single states cannot be compared"
        elif one.spec.view != other.spec.view or one.spec.obs_shape != other.spec.obs_shape:
            left_out[pair] = "their observations differ"
        else:
            found[pair] = _agreement(one, other, [states[a], states[b]])
    return found, left_out


def _agreement(one: Policy, other: Policy, datasets: list[Dataset]) -> float:
    discrete, found = one.spec.head.discrete, []
    for states in datasets:
        count = min(len(states), NUM_AGREEMENT_STATES)
        rows: NDArray[np.int64] = np.linspace(0, len(states) - 1, count).astype(np.int64)
        with torch.no_grad():
            a, b = (teacher(states.observations(rows))[0] for teacher in (one, other))
        found.append(agreement(a, b) if discrete else squared_error(a, b))
    mean = torch.cat(found).mean()
    return float(mean if discrete else mean.sqrt())
