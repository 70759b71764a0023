"""Fits of students: one job for each student, or its control, and training seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence

from rldistill.core.errors import NothingLearnedError
from rldistill.io.atomic import Mode
from rldistill.io.execution import SERIAL, Increments, Total, run_jobs
from rldistill.io.processes import Report
from rldistill.io.progress import Progress, track
from rldistill.io.progress_file import record_progress
from rldistill.io.storage import pull
from rldistill.recipes.from_reward import CONTROL_BUDGET, train_control
from rldistill.recipes.job import Run, StudentJob

Pair = tuple[str, int]
"""Name of a student, and a training seed."""
Fitted = tuple[str, NothingLearnedError | None]
"""Name of a student, and its error if it learned nothing."""


@dataclasses.dataclass(frozen=True)
class Fits:
    """Distillation of the students of a run, or, with `control_steps`, their training from reward alone.

    A single fit runs in this process, so that the collections of its rounds can use the workers of the run.

    Attributes:
        template: Job without the name of a student and a training seed.
        control_steps: Environment steps of each control, by the name of the student.
    """

    template: StudentJob
    mode: Mode
    quiet: bool
    control_steps: Mapping[str, int] | None = None

    @property
    def run(self) -> Run:
        """Run of the students."""
        return self.template.run

    @property
    def pairs(self) -> list[Pair]:
        """All students with all training seeds."""
        return [(name, seed) for name in self.run.students for seed in self.run.seeds]

    def run_all(self, pairs: Sequence[Pair], failed: Container[str] = ()) -> Iterator[Fitted]:
        """Fit some pairs; yield the name of each, with its error if it learned nothing, as they finish.

        Pairs of students that have `failed`, also meanwhile, are left out.
        """
        items = (pair for pair in pairs if pair[0] not in failed)
        execution = self.run.execution
        if execution.serial or len(pairs) == 1:
            yield from (result for _, result in run_jobs(self, items, SERIAL))
            return
        own = dataclasses.replace(self, template=self.template.in_one_process())
        with track("distill" if self.control_steps is None else "controls", self.unit, self.quiet) as progress:
            total = Total(progress, sum(self.units(name) for name, _ in pairs))
            uses_gpu = self.run.distill.device != "cpu"
            for _, result in run_jobs(own.fit_beside_others, items, execution, total, uses_gpu):
                yield result
        pull(self.run.out)  # the students of other machines

    @property
    def unit(self) -> str:
        """Plural of the unit of work of a fit."""
        return "epochs" if self.control_steps is None and self.run.recipe.learner is None else "steps"

    def units(self, name: str) -> int:
        """Return the units of work of a fit, for its progress."""
        if self.control_steps is None:
            return self.run.recipe.units(self.run)
        return CONTROL_BUDGET * self.control_steps[name]

    def __call__(self, pair: Pair, report: Report) -> Fitted:
        """Fit one student with one training seed, and show its progress."""
        with track(self.title(pair), self.unit, self.quiet) as progress:
            return self.fit(pair, progress)

    def fit_beside_others(self, pair: Pair, report: Report) -> Fitted:
        """Fit one student with one training seed, report its units of work, and record them in a file of its own."""
        name, seed = pair
        with (
            record_progress(self.run.out, f"{name}-seed-{seed}"),
            track(self.title(pair), self.unit, quiet=True) as recorded,
        ):
            progress = Increments(report, self.units(name), recorded)
            result = self.fit(pair, progress)
            progress.update(1, 1)  # also without the epochs that were not needed
            return result

    def title(self, pair: Pair) -> str:
        """Return the title of a fit."""
        name, seed = pair
        return f"distill {name}, seed {seed}" if self.control_steps is None else f"control of {name}, seed {seed}"

    def fit(self, pair: Pair, progress: Progress) -> Fitted:
        """Fit one student with one training seed."""
        name, seed = pair
        pull(self.run.out)
        job = dataclasses.replace(self.template, name=name, seed=seed)
        try:
            if self.control_steps is None:
                job.distill(self.mode, progress)
            else:
                train_control(job, self.control_steps[name], self.mode, progress)
        except NothingLearnedError as error:
            return name, error
        return name, None
