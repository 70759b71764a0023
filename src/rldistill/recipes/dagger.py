"""DAgger (Ross 2011, arXiv 1011.0686): the student acts, the teacher labels, and the data are aggregated.

Each round continues from the student of the previous round rather than from new weights. With `eval_episodes`, the
student of the best round is kept, as in VIPER (Bastani 2018, arXiv 1805.08328): trees differ much between rounds.

On-policy distillation (Czarnecki 2019, arXiv 1902.02186) learns from the newest steps only. With the losses
`reverse_kl` and, with a weight of -1, `entropy`, the objective is their per-step cross-entropy
-sum_a student(a|s) log teacher(a|s), without their term for later steps. In the first collection the teacher acts.
"""

import dataclasses
from typing import ClassVar

from pydantic import Field, PositiveInt

from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.schedules import Constant, FractionSchedule
from rldistill.distillation.distill import distill
from rldistill.io.atomic import START_AGAIN, Document, Mode, write_json
from rldistill.io.progress import Progress, Round, subtask
from rldistill.io.provenance import provenance
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Data, StudentJob
from rldistill.recipes.offline import FromDataset
from rldistill.students.storage import load_native, save_policy


class _Score(Document):
    """Score of the student of a round, and those of its tasks if it has several."""

    advice: ClassVar[str] = START_AGAIN
    episodes: PositiveInt
    score: float
    tasks: dict[str, float] = Field(default_factory=dict)


@validated_dataclass
class Dagger(FromDataset):
    """DAgger: rounds of collection by the student and of distillation on all data so far.

    Attributes:
        steps_per_round: environment steps of each round; of several tasks, of each task on average.
        rounds: rounds after the first distillation.
        beta: probability, over these rounds, that the teacher acts instead of the student; 0 by default, so that the
            teacher acts in the first collection only.
        eval_episodes: validation episodes that select the best round; None keeps the last round.
        initial: folder of a student to begin with, such as one of `reptile`, in place of new weights.
    """

    steps_per_round: Positive
    rounds: Positive = 1
    beta: FractionSchedule = Constant(0.0)
    eval_episodes: Positive | None = None
    initial: str | None = None

    several_tasks = True

    def distill(self, job: StudentJob, mode: Mode, progress: Progress, newest_only: bool = False) -> NetworkPolicy:
        """Distill on the teacher's dataset, then in each round on data that the student has collected.

        With `newest_only`, a round learns from its own steps only, not from all data so far.
        """
        folder, run = job.folder, job.run
        if job.open(mode):
            return load_native(folder)
        data: Data = job.data
        student: NetworkPolicy | None = None
        candidates: list[tuple[float, NetworkPolicy]] = []
        scores: dict[str, float] = {}
        for number in range(self.rounds + 1):
            if student is not None:
                beta = self.beta((number - 1) / max(self.rounds - 1, 1))
                config = dataclasses.replace(run.collect, steps=self.steps_per_round, beta=beta)
                with subtask(progress, f"collect, round {number}", "steps") as shown:
                    data = job.collect_round(student, config, number, newest_only, scores, shown)
            is_result = number == self.rounds and self.eval_episodes is None  # else the best round is the result
            round_folder = folder if is_result else folder / f"round-{number}"
            part = Round(progress, number, self.rounds + 1)
            start = self.first(job) if student is None else student
            student = distill(data, start, run.distill, round_folder, seed=job.seed, mode="resume", progress=part)
            if self.eval_episodes is not None:
                file = round_folder / "score.json"
                if not file.exists():
                    write_json(file, {"episodes": self.eval_episodes, **job.score(student, self.eval_episodes)})
                score = _Score.read(file)
                scores = score.tasks
                candidates.append((score.score, student))
                part.update(run.distill.epochs, run.distill.epochs, candidates[-1][0])
        if candidates:
            best = max(range(len(candidates)), key=lambda number: candidates[number][0])
            save_policy(candidates[best][1], folder, {**provenance(job.seed), "round": best})
            student = load_native(folder)
        assert student is not None
        return student


@validated_dataclass
class OnPolicy(FromDataset):
    """On-policy distillation: in each round the student alone acts, and learns from these steps only.

    Attributes:
        steps_per_round: environment steps of each round.
        rounds: rounds after the first distillation.
    """

    steps_per_round: Positive
    rounds: Positive = 1

    several_tasks = True

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        rounds = Dagger(rounds=self.rounds, steps_per_round=self.steps_per_round)
        return rounds.distill(job, mode, progress, newest_only=True)
