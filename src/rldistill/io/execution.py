"""Executors: a list of jobs that becomes results as they finish, in this process, in several, or on a Ray cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from rldistill.core.errors import ConfigError
from rldistill.core.fields import NumThreads, validated_dataclass
from rldistill.io.processes import Item, Report, Result, Work, prepare_workers, run_in_processes
from rldistill.io.progress import SILENT, Progress


@validated_dataclass
class Execution:
    """Place where the jobs of a stage run; changes the speed, never the results.

    Jobs are the streams of a collection, the fits of each student and training seed, the policies of an evaluation,
    and the trials of a search.

    Attributes:
        backend: Processes of this machine, or tasks of Ray, which need a folder that all machines share.
        workers: Jobs at once.
        address: Address of a Ray cluster; `auto` is that of this machine, and none starts Ray here for this run.
    """

    backend: Literal["processes", "ray"] = "processes"
    workers: NumThreads = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.address is not None and self.backend != "ray":
            raise ConfigError("address: only Ray has one. Use backend: ray, or remove it")

    @property
    def serial(self) -> bool:
        """True if jobs run in this process, one after another."""
        return self.backend == "processes" and self.workers == 1

    def prepare(self) -> None:
        """Begin to start workers, if there will be some; return at once, so that other preparations go on meanwhile."""
        if self.backend == "processes" and self.workers > 1:
            prepare_workers()


SERIAL = Execution()


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of `count` parts of the jobs of a stage, which separate processes run in a folder that they share."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(f"--shard: found {self.number}/{self.count}, expected a number from 1 to {self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that text such as `3/16` names."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise ConfigError(f"--shard: found {text!r}, expected a number and the number of shards, such as 3/16")
        return cls(int(number), int(count))

    def select(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of this shard."""
        return [*items[self.number - 1 :: self.count]]


def ignore(units: int, others: int) -> None:
    """Report nothing."""


def run_jobs(
    work: Work[Item, Result],
    items: Iterable[Item],
    execution: Execution,
    report: Report = ignore,
    uses_gpu: bool = False,
) -> Iterator[tuple[int, Result]]:
    """Call `work(item, report)` for each item; yield the numbers of the items and the results as they finish.

    An item is taken when a worker is free for it. Other processes get one copy of `work`, and write files atomically,
    so that a job whose worker was lost can run again.

    Args:
        work: Function of all jobs; with pickle where they run in other processes.
        items: Small arguments of the jobs.
        execution: Place of the jobs.
        report: Receiver of the units of work that `work` reports.
        uses_gpu: True if a job uses a GPU where there is one.

    Raises:
        ConfigError: `work` cannot be pickled, or the workers of a job are killed again and again.
    """
    if execution.serial:
        for number, item in enumerate(items):
            yield number, work(item, report)
    elif execution.backend == "ray":
        from rldistill.io.ray_tasks import run_on_ray

        yield from run_on_ray(work, items, execution, report, uses_gpu)
    else:
        yield from run_in_processes(work, items, execution.workers, report)


class Increments:
    """Progress of a job that reports the units finished since its last update; with `units`, all of it as so many.

    Another progress, by default a silent one, has the updates as they are.
    """

    def __init__(self, report: Report, units: int | None = None, shown: Progress = SILENT) -> None:
        self.report, self.units, self.shown, self.done = report, units, shown, 0

    def update(self, done: int, total: int, score: float | None = None) -> None:
        """Report the difference to the last update."""
        self.shown.update(done, total, score)
        done = done if self.units is None else self.units * done // max(total, 1)
        self.report(done - self.done, 0)
        self.done = done


class Total:
    """Receiver of the units of all jobs, which a progress shows."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, units: int, others: int) -> None:
        """Add finished units."""
        self.done += units
        self.progress.update(self.done, self.total)
