"""Reptile (Nichol 2018, arXiv 1803.02999): an initial student from which a few steps of distillation suffice."""

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError
from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.core.schedules import FractionSchedule, Linear
from rldistill.distillation.gradient import Trainer
from rldistill.distillation.weighting import weighted_dataset
from rldistill.io.atomic import Mode
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress
from rldistill.io.provenance import provenance
from rldistill.io.tensors import Checkpoint, State
from rldistill.policies.agent import inference_threads
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Run, StudentJob
from rldistill.recipes.offline import FromDataset
from rldistill.students.storage import load_native, save_policy
from rldistill.students.student import capability

NUM_ROWS = 100
"""Number of rows of metrics; a checkpoint comes after a row."""


@validated_dataclass
class Reptile(FromDataset):
    """Reptile: initial weights from which a student of a new world takes few steps (arXiv 1803.02999).

    The tasks are the episodes of the dataset, each of which is one world if the environment has `env.worlds`. An
    iteration distills for some steps on one episode, with a new optimizer, from the weights theta to phi, and then
    sets theta to theta + epsilon (phi - theta). The result is the `initial` of another recipe in a new world; it acts
    well in none.

    Attributes:
        iterations: outer steps.
        inner_steps: steps of distillation in an iteration, in batches of `distill.batch_size`.
        epsilon: size of the outer steps, over the course of training.
    """

    iterations: Positive = 1_000
    inner_steps: Positive = 8
    epsilon: FractionSchedule = Linear(1.0, 0.0)

    def units(self, run: Run) -> int:
        return self.iterations

    def check(self, run: Run, teacher: Policy) -> None:
        super().check(run, teacher)
        for name, student in run.students.items():
            if capability(student, "fit") != "gradient":
                raise ConfigError(f"students.{name}: reptile needs students that learn by gradient. Use another one.")

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        config, folder = job.run.distill, job.folder
        if job.inputs().open_folder(folder, "policy.json", mode):
            return load_native(folder)
        with inference_threads(config.num_threads):
            data = job.data
            if data.spec.members:
                data = weighted_dataset(data, config.weighting, folder, job.seed)
            trainer = Trainer(data, job.student, config, job.seed)
            self._train(trainer, folder, progress)
        Metrics(folder).end()
        save_policy(trainer.policy.cpu().eval(), folder, provenance(job.seed))
        return load_native(folder)

    def _train(self, trainer: Trainer, folder: Path, progress: Progress) -> None:
        """Run the outer steps; continue from the checkpoint, if there is one."""
        checkpoint, metrics, started, done = Checkpoint(folder), Metrics(folder), time.monotonic(), 0
        interval = -(-self.iterations // NUM_ROWS)

        def state() -> State:
            return {"policy": trainer.policy.state_dict(), "iteration": done}

        def load(state: State) -> None:
            nonlocal done
            trainer.policy.load_state_dict(state["policy"])
            done = state["iteration"]

        checkpoint.load(load)
        metrics.keep(-(-done // interval))
        episode = trainer.dataset.columns["episode"]
        tasks = np.unique(episode[trainer.train_rows])
        losses: list[tuple[float, float]] = []
        for iteration in range(done, self.iterations):
            rng = np.random.default_rng([trainer.seed, iteration])
            rows = np.flatnonzero(episode == rng.choice(tasks))
            theta = trainer.weights.detach().clone()
            losses.append(self._adapt(trainer, rows, rng, iteration / self.iterations))
            with torch.no_grad():
                trainer.weights.lerp_(theta, 1 - self.epsilon(iteration / self.iterations))
            done = iteration + 1
            if done % interval == 0 or done == self.iterations:
                before, after = np.mean(losses, 0).tolist()
                row = {"step": done, "train_loss": before, "adapted_loss": after}
                metrics.add(row | {"seconds": round(time.monotonic() - started, 3)})
                losses = []
                checkpoint.save_if_due(state)
            progress.update(done, self.iterations)

    def _adapt(
        self, trainer: Trainer, rows: NDArray[np.int64], rng: np.random.Generator, progress: float
    ) -> tuple[float, float]:
        """Take the inner steps on some rows; return the losses of the first and of the last batch."""
        torch.manual_seed(int(rng.integers(2**62)))  # for dropout
        trainer.policy.train()
        for value in trainer.optimizer.state.values():
            value.zero_()
        losses: list[float] = []
        while len(losses) < self.inner_steps:
            for _, batch, output in trainer.outputs(rows, trainer.config.batch_size, rng):
                losses.append(float(trainer.step(batch, output, progress)))
                if len(losses) == self.inner_steps:
                    break
        return losses[0], losses[-1]
