"""Probe students of a comparison of teachers: jobs that collect, distill and play."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, NothingLearnedError, SpecMismatchError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig, Weighting
from rldistill.distillation.distill import distill
from rldistill.evaluation.config import CompareConfig
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.statistics import Returns
from rldistill.evaluation.verify import fit_to_env
from rldistill.io.execution import Execution, Total, run_jobs
from rldistill.io.processes import Item, Report, Work
from rldistill.policies.ensemble import Committee
from rldistill.students import Mlp
from rldistill.students.multi_input import picture_network

PROBE_SEEDS = (0, 1, 2)
EPSILON = 0.05


@dataclasses.dataclass(frozen=True)
class Source:
    """Source of data: one teacher, or with `weightings` the committee of all teachers."""

    teacher: Policy
    env: EnvConfig
    collecting: CollectConfig
    weightings: tuple[Weighting | None, ...] = (None,)

    @property
    def is_teacher(self) -> bool:
        """True if it is one teacher."""
        return self.weightings == (None,)


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Result of a source of data.

    Attributes:
        returns: returns of the teacher; none for a committee.
        probes: returns of the probe students, `[seeds, episodes]`, or the reason why there are none, by weighting; None
            for that of one teacher.
    """

    returns: Returns
    probes: dict[Weighting | None, Returns | str]


@dataclasses.dataclass(frozen=True)
class ProbeJobs:
    """Jobs of a comparison: one for each source of data, then one for each probe student.

    Their results are returns, or of a committee the reason that there are none.
    """

    sources: Sequence[Source]
    config: CompareConfig
    folder: Path
    seed: int

    @property
    def count(self) -> int:
        """Number of jobs."""
        return len(self.sources) + sum(len(source.weightings) for source in self.sources) * len(PROBE_SEEDS)

    def run(self, execution: Execution, done: Total) -> list[ProbeResult]:
        """Run all jobs; return the results of the sources."""

        def run_all(work: Work[Item, Returns | str], items: Sequence[Item]) -> dict[Item, Returns | str]:
            results = dict[Item, Returns | str]()
            for number, result in run_jobs(work, items, execution):
                results[items[number]] = result
                done(1, 0)
            return results

        prepared = run_all(self.prepare, range(len(self.sources)))
        kinds = [
            (number, weighting)
            for number, source in enumerate(self.sources)
            for weighting in source.weightings
            if not isinstance(prepared[number], str)
        ]
        probed = run_all(self.probe, [(*kind, seed) for kind in kinds for seed in PROBE_SEEDS])
        results = []
        for number, source in enumerate(self.sources):
            returns, probes = prepared[number], dict[Weighting | None, Returns | str]()
            for weighting in source.weightings:
                rows = [probed.get((number, weighting, seed), returns) for seed in PROBE_SEEDS]
                reason = next((row for row in rows if isinstance(row, str)), None)
                probes[weighting] = reason or np.stack([np.asarray(row) for row in rows])
            results.append(ProbeResult(np.zeros(0) if isinstance(returns, str) else returns, probes))
        return results

    def data(self, number: int) -> Dataset:
        """Return the data of a source."""
        return Dataset.read([self.folder / str(number) / "dataset"], self.sources[number].collecting.gamma)

    def prepare(self, number: int, report: Report) -> Returns | str:
        """Collect the data of a source, and play it if it is one teacher."""
        source, folder = self.sources[number], self.folder / str(number) / "dataset"
        try:
            collect(source.env, source.teacher, source.collecting, folder, seed=self.seed, progress=False)
        except (ConfigError, SpecMismatchError) as error:
            if source.is_teacher:
                raise
            return str(error)
        return self._play(source, source.teacher) if source.is_teacher else np.zeros(0)

    def probe(self, item: tuple[int, Weighting | None, int], report: Report) -> Returns | str:
        """Distill a probe student and play it."""
        number, weighting, seed = item
        options: dict[str, Any] = {} if weighting is None else {"weighting": weighting}
        config = DistillConfig(epochs=self.config.epochs, **options)
        try:
            student = _probe(self.data(number), config, self.folder / str(number) / str(weighting), seed)
            return self._play(self.sources[number], student)
        except (ConfigError, SpecMismatchError) as error:
            if weighting is None:
                raise
            return str(error)

    def _play(self, source: Source, policy: Policy | None) -> Returns:
        return play(source.env, policy, self.config.episodes, PlayConfig(self.seed)).returns


def probe_jobs(
    env: EnvConfig,
    teachers: Mapping[str, Policy],
    fitted: Sequence[tuple[Policy, EnvConfig]],
    config: CompareConfig,
    folder: Path,
    seed: int,
) -> tuple[ProbeJobs, str]:
    """Return the jobs of all `fitted` teachers and of their committee, or the reason why there is no committee.

    Several teachers together have as many steps as one, in few environments, so that their episodes end.
    """
    collecting, reason = CollectConfig(steps=config.steps, epsilon=EPSILON), ""
    sources = [Source(*pair, collecting) for pair in fitted]
    if len(teachers) > 1:
        few = dataclasses.replace(collecting, num_streams=1, envs_per_stream=4)
        try:
            committee = fit_to_env(Committee(tuple(teachers.values()), names=tuple(teachers)), env)
            sources.append(Source(*committee, few, get_args(Weighting)))
        except (ConfigError, SpecMismatchError) as error:
            reason = str(error)
    return ProbeJobs(sources, config, folder, seed), reason


def _probe(data: Dataset, config: DistillConfig, folder: Path, seed: int) -> Policy | None:
    """Distil the probe student; return None, which plays at random, if it learned nothing."""
    probe = picture_network(data.spec) or Mlp((32, 32))
    try:
        return distill(data, probe, config, folder / f"probe-{seed}", seed=seed, progress=False)
    except NothingLearnedError:
        return None
