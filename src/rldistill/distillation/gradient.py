"""Fit of students that learn by gradient: epochs, held-out loss, checkpoints."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adamw import adamw

from rldistill.core.errors import ConfigError, NothingLearnedError
from rldistill.core.policy import CPU, Batch, PolicyOutput, autocast, resolve_device, to_device
from rldistill.core.schedules import Cosine
from rldistill.data.dataset import Dataset, spread
from rldistill.data.sequences import windows
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.prepare import IMAGES_PER_BATCH, frozen_features, prepare, reader_of_every_label
from rldistill.distillation.sparse_pixels import SparsePixels
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress
from rldistill.io.tensors import Checkpoint, State
from rldistill.losses import LOSSES
from rldistill.losses.objective import best_constant_loss, differentiate, student_spec, total_loss, with_temperatures
from rldistill.policies.layers import Flat, flatten_weights
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent
from rldistill.students.student import build_student

Weights = dict[str, Tensor]
MAX_HELDOUT_ROWS = 5_000


def fit_by_gradient(trainer: Trainer, folder: Path, progress: Progress) -> NetworkPolicy:
    """Train until the last epoch or until the held-out loss stops to improve; return the policy with the lowest one.

    Writes `metrics.jsonl` and `checkpoints/last.safetensors` into `folder`, and resumes from the latter.

    Raises:
        NothingLearnedError: The held-out loss is no lower than that of the best constant prediction.
    """
    config, started = trainer.config, time.monotonic()
    best = initial = trainer.copy_weights()
    # A warm start may be better than every epoch after it.
    initial_loss = trainer.heldout_loss()[0] if trainer.warm_start else np.inf
    best_loss, stale_epochs, epoch = np.inf, 0, 0
    checkpoint, metrics = Checkpoint(folder), Metrics(folder)

    def state() -> State:
        return {"trainer": trainer.state_dict(), "best": best, "fit": [epoch, best_loss, stale_epochs]}

    def load(state: State) -> None:
        nonlocal best, epoch, best_loss, stale_epochs
        trainer.load_state_dict(state["trainer"])
        best, (epoch, best_loss, stale_epochs) = state["best"], state["fit"]

    checkpoint.load(load)
    metrics.keep(epoch)
    while epoch < config.epochs and not 0 < config.patience <= stale_epochs:
        train_loss = trainer.train_epoch(epoch)
        epoch += 1
        heldout_loss, agreement = trainer.heldout_loss()
        stale_epochs = 0 if heldout_loss < best_loss else stale_epochs + 1
        if stale_epochs == 0:
            best_loss, best = heldout_loss, trainer.copy_weights()
        row: dict[str, float | None] = {"epoch": epoch, "step": epoch * trainer.samples_per_epoch}
        row |= {"train_loss": train_loss, "heldout_loss": heldout_loss, "agreement": agreement}
        row |= {"learning_rate": trainer.optimizer.learning_rate}
        metrics.add(row | {"seconds": round(time.monotonic() - started, 3)})
        checkpoint.save_if_due(state)
        progress.update(epoch, config.epochs, agreement)
    if initial_loss < best_loss:
        best_loss, best = initial_loss, initial
    trainer.policy.load_state_dict(best)
    trainer.require_learned(str(folder), best_loss)
    return trainer.policy.cpu().eval()


class Trainer:
    """Network, optimizer and data of a fit by gradient."""

    def __init__(
        self,
        dataset: Dataset,
        student: AnyStudent,
        config: DistillConfig,
        seed: int = 0,
        initial: NetworkPolicy | None = None,
    ) -> None:
        self.dataset, self.config, self.seed, self.warm_start = dataset, config, seed, initial is not None
        dataset.require_every_label(reader_of_every_label(student, config))
        self.terms = with_temperatures(config.losses, dataset.spec.head, dataset.action_gap, dataset.advantage_scale)
        heads = {term.loss.student_head for term in self.terms}
        if heads <= {"value", "features"}:
            raise ConfigError("distill.losses: these losses train no policy. Add one that does, such as forward_kl.")
        self.device = resolve_device(config.device, "distill.device")
        self.autocast = autocast(config.precision, self.device)
        torch.manual_seed(seed)
        self.policy = build_student(student, student_spec(dataset.spec, self.terms))
        prepare(self.policy, dataset)
        if "value" in heads:
            self.policy.add_value()
        if "features" in heads and "features" in dataset.columns:
            self.policy.add_features(dataset.columns["features"].shape[-1])
        if initial is not None:
            self.policy.load_state_dict({**self.policy.state_dict(), **initial.state_dict()})
        self.policy.to(self.device)
        self.recurrent = self.policy.recurrent
        if isinstance(next(self.policy.body.children(), None), Flat):
            self.dataset = dataclasses.replace(self.dataset, channels_last=False)
        # Values of frozen layers for images are computed once, instead of in each epoch.
        self.on_features = (
            len(dataset.spec.obs_shape) == 3
            and self.policy.num_frozen_layers > 0
            and dataset.has_room_for(self.policy.num_features)
        )
        if self.on_features:
            features = frozen_features(self.policy, dataset.observations, len(dataset), self.device)
            self.dataset = dataset.seen_as(features)
        # A loss of the user's may read the observations.
        built_in = all(type(term.loss) in LOSSES.values() for term in self.terms)
        self.pixels = SparsePixels.of(self.policy, dataset) if built_in and self.device == CPU else None
        if self.pixels is not None:
            self.dataset = dataset.seen_as(np.arange(len(dataset)))
        self.weights = flatten_weights(self.policy)
        self.optimizer = FlatAdamW(self.weights, config.learning_rate, config.weight_decay)
        self.train_rows, self.heldout_rows = np.flatnonzero(~dataset.heldout), np.flatnonzero(dataset.heldout)
        if not self.recurrent:  # which needs whole episodes
            self.heldout_rows = spread(self.heldout_rows, MAX_HELDOUT_ROWS)

    @property
    def samples_per_epoch(self) -> int:
        """Number of transitions that an epoch takes."""
        return len(self.train_rows)

    def require_learned(self, where: str, loss: float) -> None:
        """Raise NothingLearnedError if a held-out loss is no lower than that of the best constant prediction."""
        if not loss < self.constant_loss:
            raise NothingLearnedError(
                f"{where}: the student learned nothing: its held-out loss is {loss:.4g}, that of the best constant "
                f"prediction {self.constant_loss:.4g}. Use more epochs, more steps, other losses or another learning "
                "rate."
            )

    @cached_property
    def constant_loss(self) -> float:
        """The held-out loss of the best constant prediction."""
        sample = self.dataset.batch(spread(self.heldout_rows, MAX_HELDOUT_ROWS))
        return best_constant_loss(self.terms, sample, self.policy.spec.head)

    def train_epoch(self, epoch: int) -> float:
        """Train for one pass over the data in random order; return the mean loss."""
        seed = self.start_epoch(epoch)
        self.policy.train()
        losses: list[Tensor] = []
        for done, batch, output in self.outputs(self.train_rows, self.config.batch_size, np.random.default_rng(seed)):
            progress = (epoch + done) / self.config.epochs
            self.set_learning_rate(progress)
            losses.append(self.step(batch, output, progress))
        return float(torch.stack(losses).mean())

    def start_epoch(self, epoch: int) -> np.random.SeedSequence:
        """Seed PyTorch for dropout; return the seed of the order of the data."""
        seed = np.random.SeedSequence([self.seed, epoch])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        return seed

    def set_learning_rate(self, progress: float) -> None:
        """Set the learning rate of the schedule."""
        if self.config.schedule == "cosine":
            self.optimizer.learning_rate = Cosine(self.config.learning_rate)(progress)

    def step(self, batch: Batch, output: PolicyOutput, progress: float) -> Tensor:
        """Take one step of the optimizer, given the student's output for a batch; return the loss."""
        return self.descend(total_loss(self.terms, output, batch, progress))

    def descend(self, loss: Tensor) -> Tensor:
        """Take one step of the optimizer down the gradient of a loss; return the loss."""
        gradient = self.weights.grad
        assert gradient is not None
        gradient.zero_()
        differentiate(loss)
        gradient.div_((torch.linalg.vector_norm(gradient) / self.config.max_grad_norm).clamp_min_(1))
        self.optimizer.step(gradient)
        return loss.detach()

    def heldout_loss(self) -> tuple[float, float | None]:
        """Return the held-out loss and the agreement with the teacher, which is None for continuous actions.

        The terms have their final weights, so that epochs can be compared.
        """
        self.policy.eval()
        loss = agreement = 0.0
        size = MAX_HELDOUT_ROWS if self.dataset.spec.frames is None else IMAGES_PER_BATCH
        discrete = self.policy.spec.head.discrete
        with torch.no_grad():
            for _, batch, output in self.outputs(self.heldout_rows, size):
                loss += float(total_loss(self.terms, output, batch, 1.0) * batch.weight.sum())
                if discrete:
                    agreement += float((output.agreement(batch.teacher) * batch.weight).sum())
        count = len(self.heldout_rows)
        return loss / count, agreement / count if discrete else None

    def outputs(
        self, rows: NDArray[np.int64], size: int, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[float, Batch, PolicyOutput]]:
        """Yield batches of about `size` transitions, in random order if there is `rng`, with the student's outputs.

        The first value is the share of the rows before the batch. A recurrent student takes whole episodes, window
        after window, and keeps its state between them.
        """
        if self.recurrent:
            length = self.policy.window
            state: Tensor | None = None
            for window in windows(self.dataset, rows, length, max(1, size // length), rng):
                batch = to_device(window.batch, self.device)
                assert isinstance(batch.obs, Tensor)
                if state is None:
                    state = self.policy.initial_state(window.starts.shape[1])
                assert state is not None
                starts = window.starts.to(self.device)
                with self.autocast:
                    output, state = self.policy.unroll(batch.obs, starts, state.detach().to(self.device))
                yield window.progress, batch, output
            return
        count = -(-len(rows) // size)
        for number, batch in enumerate(self.dataset.batches(rows if rng is None else rng.permutation(rows), size)):
            batch = to_device(batch, self.device)
            with self.autocast:
                if self.on_features:
                    assert isinstance(batch.obs, Tensor)
                    output = self.policy.from_frozen_features(batch.obs)
                elif self.pixels is not None:
                    assert isinstance(batch.obs, Tensor)
                    output = self.pixels.output(batch.obs)
                else:
                    output = self.policy(batch.obs)[0]
            yield number / count, batch, output

    def copy_weights(self) -> Weights:
        """Return a copy of the weights on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.policy.state_dict().items()}

    def state_dict(self) -> State:
        """Return the weights, and the moments of the optimizer."""
        return {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state}

    def load_state_dict(self, state: State) -> None:
        """Restore the result of `state_dict`; raise KeyError or RuntimeError if it does not fit."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load(state["optimizer"])


class FlatAdamW:
    """AdamW (Loshchilov 2017, arXiv 1711.05101) as `torch.optim.AdamW(fused=True)` computes it.

    It calls PyTorch's function instead of its class, whose hooks take longer than the arithmetic of a small student.
    """

    def __init__(self, weights: Tensor, learning_rate: float, weight_decay: float) -> None:
        self.weights, self.learning_rate, self.weight_decay = weights, learning_rate, weight_decay
        self.state = {"exp_avg": torch.zeros_like(weights), "exp_avg_sq": torch.zeros_like(weights)}
        self.state["step"] = torch.zeros((), device=weights.device)

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Update the weights."""
        first, second, step = ([self.state[name]] for name in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            [self.weights], [gradient], first, second, [], step,
            fused=True, amsgrad=False, maximize=False, beta1=0.9, beta2=0.999, eps=1e-8,
            lr=self.learning_rate, weight_decay=self.weight_decay,
        )  # fmt: skip

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore a `state`; raise KeyError if a part of it is missing, RuntimeError if one has another shape."""
        for name, value in self.state.items():
            value.copy_(state[name])
