"""Fits of students: one job for each student, or its control, and training seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from rldistill.core.errors import NothingLearnedError
from rldistill.io.atomic import Mode
from rldistill.io.execution import SERIAL, Total, ignore, run_jobs
from rldistill.io.processes import Report
from rldistill.io.progress import track
from rldistill.io.progress_file import record_progress
from rldistill.io.storage import pull
from rldistill.recipes.from_reward import train_control
from rldistill.recipes.job import Run, StudentJob

Pair = tuple[str, int]
"""Name of a student, and a training seed."""


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

    def run_all(self, pairs: Iterable[Pair]) -> Iterator[tuple[int, tuple[str, NothingLearnedError | None]]]:
        """Fit some pairs; yield the name of each, with its error if it learned nothing, as they finish."""
        execution = self.run.execution
        if execution.serial or len(self.pairs) == 1:
            yield from run_jobs(self, pairs, SERIAL)
            return
        own = dataclasses.replace(self, template=self.template.in_one_process(), quiet=True)
        noun = "distill" if self.control_steps is None else "controls"
        with track(noun, "fits", self.quiet) as progress:
            add, uses_gpu = Total(progress, len(self.pairs)), self.run.distill.device != "cpu"
            for number, result in run_jobs(own, pairs, execution, ignore, uses_gpu=uses_gpu):
                add(1, 0)
                yield number, result
        pull(self.run.out)  # the students of other machines

    def __call__(self, pair: Pair, report: Report) -> tuple[str, NothingLearnedError | None]:
        """Fit one student with one training seed."""
        name, seed = pair
        pull(self.run.out)
        with record_progress(self.run.out, f"{name}-seed-{seed}"):  # a file of its own in another process only
            return self._fit(name, seed)

    def _fit(self, name: str, seed: int) -> tuple[str, NothingLearnedError | None]:
        job = dataclasses.replace(self.template, name=name, seed=seed)
        if self.control_steps is not None:
            with track(f"control of {name}, seed {seed}", "steps", self.quiet) as progress:
                train_control(job, self.control_steps[name], self.mode, progress)
            return name, None
        unit = "epochs" if self.run.recipe.learner is None else "steps"
        try:
            with track(f"distill {name}, seed {seed}", unit, self.quiet) as progress:
                job.distill(self.mode, progress)
        except NothingLearnedError as error:
            return name, error
        return name, None
