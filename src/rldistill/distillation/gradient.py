"""The fit of students that learn by gradient: epochs, held-out loss, checkpoints."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rldistill.core.batch import Batch
from rldistill.core.device import resolve_device
from rldistill.core.errors import ConfigError, CorruptArtifactError, NothingLearnedError
from rldistill.core.policy import PolicyOutput
from rldistill.core.schedules import Cosine
from rldistill.core.spec import Obs
from rldistill.data.dataset import Dataset
from rldistill.data.sequences import windows
from rldistill.distillation.adamw import FlatAdamW
from rldistill.io.atomic import write_atomic
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress
from rldistill.losses.objective import best_constant_loss, feature_size, student_spec, total_loss, with_temperatures
from rldistill.policies.encoding import encoded_moments
from rldistill.policies.layers import flatten_weights
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent
from rldistill.students.gru import GruPolicy

if TYPE_CHECKING:
    from rldistill.distillation.config import DistillConfig

HELDOUT_ROWS = 5_000
FRAMES_AT_ONCE = 512
ROWS_AT_ONCE = 1 << 14
SAVE_EVERY = 2.0
"""Seconds between checkpoints, which are fsynced and so cost as much as some epochs of a small student."""


class GradientFit:
    """The state of one fit: network, optimiser, best weights so far, epochs done."""

    def __init__(
        self,
        dataset: Dataset,
        student: AnyStudent,
        config: DistillConfig,
        folder: Path,
        seed: int,
        initial: NetworkPolicy | None,
    ) -> None:
        self.dataset, self.config, self.folder, self.seed = dataset, config, folder, seed
        self.terms = with_temperatures(config.losses, dataset.spec.head, dataset.action_gap, dataset.advantage_scale)
        self.device = resolve_device(config.device, "distill.device")
        torch.manual_seed(seed)
        self.policy = student.build(student_spec(dataset.spec, self.terms))
        if not isinstance(self.policy, NetworkPolicy):
            raise ConfigError(
                f"students: {type(student).__name__}.build gave a {type(self.policy).__name__}; expected a "
                "rldistill.NetworkPolicy"
            )
        prepare(self.policy, dataset)
        self._add_heads()
        if initial is not None:
            self.policy.load_state_dict({**self.policy.state_dict(), **initial.state_dict()})
        self.policy.to(self.device)
        self.cached = _is_worth_keeping(self.policy, dataset)
        if self.cached:
            self.dataset = dataset.seen_as(fixed_features(self.policy, dataset.observations, len(dataset), self.device))
        self.weights = flatten_weights(self.policy)
        self.optimizer = FlatAdamW(self.weights, config.learning_rate, config.weight_decay)
        self.train_rows = np.flatnonzero(~dataset.heldout)
        self.heldout_rows = np.flatnonzero(dataset.heldout)
        if not isinstance(self.policy, GruPolicy):  # which needs whole episodes
            self.heldout_rows = _spread(self.heldout_rows, HELDOUT_ROWS)
        self.best_loss, self.best, self.stale, self.epoch = np.inf, _copy(self.policy), 0, 0
        self.first_loss, self.first = np.inf if initial is None else self._heldout()[0], self.best
        self.checkpoint, self.saved = folder / "checkpoints" / "last.safetensors", -np.inf
        if self.checkpoint.exists():
            self._restore()
        self.metrics = Metrics(folder)
        self.metrics.keep(self.epoch)

    def _add_heads(self) -> None:
        """What the losses train beyond the policy itself."""
        asked = {term.loss.student_head for term in self.terms}
        if asked <= {"value", "features"}:
            raise ConfigError("distill.losses: these losses train no policy; add one that does, such as forward_kl")
        if "value" in asked:
            self.policy.add_value()
        if "features" in asked and (size := feature_size(self.dataset.batch(np.arange(1)).teacher)):
            self.policy.add_features(size)

    def run(self, progress: Progress) -> None:
        started = time.monotonic()
        while self.epoch < self.config.epochs and not self._stale():
            train_loss = self._train_epoch()
            self.epoch += 1
            heldout_loss, agreement = self._heldout()
            self.stale = 0 if heldout_loss < self.best_loss else self.stale + 1
            if self.stale == 0:
                self.best_loss, self.best = heldout_loss, _copy(self.policy)
            self._log(train_loss, heldout_loss, agreement, time.monotonic() - started)
            if time.monotonic() - self.saved > SAVE_EVERY:
                self._save()
                self.saved = time.monotonic()
            progress.update(self.epoch, self.config.epochs, agreement)
        if self.first_loss < self.best_loss:  # a warm start may be worse at first than it began, and so at the end
            self.best_loss, self.best = self.first_loss, self.first

    def best_policy(self) -> NetworkPolicy:
        self.policy.load_state_dict(self.best)
        return self.policy.cpu().eval()

    def require_learning(self) -> None:
        some = self.dataset.batch(_spread(self.heldout_rows, HELDOUT_ROWS))
        constant = best_constant_loss(self.terms, some, self.policy.spec.head)
        if not self.best_loss < constant:
            raise NothingLearnedError(
                f"{self.folder}: the student learned nothing: its held-out loss is {self.best_loss:.4g}, and the best "
                f"constant prediction has {constant:.4g}. Give it more epochs or more steps, or look at the losses and "
                "the rate."
            )

    def _stale(self) -> bool:
        return 0 < self.config.patience <= self.stale

    def _train_epoch(self) -> float:
        numbers = np.random.SeedSequence([self.seed, self.epoch])
        torch.manual_seed(int(numbers.generate_state(1)[0]))  # for layers that drop something out
        self.policy.train()
        losses: list[Tensor] = []
        rate = Cosine(self.config.learning_rate) if self.config.schedule == "cosine" else None
        rng = np.random.default_rng(numbers)
        for done, batch, output in self._outputs(self.train_rows, self.config.batch_size, rng):
            progress = (self.epoch + done) / self.config.epochs
            if rate is not None:
                self.optimizer.learning_rate = rate(progress)
            losses.append(self.step(batch, output, progress))
        return float(torch.stack(losses).mean())

    def step(self, batch: Batch, output: PolicyOutput, progress: float) -> Tensor:
        """One step of the optimiser, given what the student says of a batch; returns the loss."""
        loss = total_loss(self.terms, output, batch, progress)
        gradient = self.weights.grad
        assert gradient is not None
        gradient.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        gradient.div_((torch.linalg.vector_norm(gradient) / self.config.max_grad_norm).clamp_min_(1))
        self.optimizer.step(gradient)
        return loss.detach()

    def _outputs(
        self, rows: NDArray[np.int64], size: int, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[float, Batch, PolicyOutput]]:
        """About `size` transitions at a time and what the student says of them; in a random order with `rng`.

        Before them stands the share of all `rows` that came earlier.

        A student that remembers sees whole episodes, window after window, and keeps what it remembers between these.
        """
        if not isinstance(self.policy, GruPolicy):
            count = -(-len(rows) // size)
            for number, batch in enumerate(self.dataset.batches(rows if rng is None else rng.permutation(rows), size)):
                batch = batch if self.device.type == "cpu" else _to(batch, self.device)
                yield number / count, batch, self._said(batch.obs)
            return
        length = self.policy.config.window
        state: Tensor | None = None
        for window in windows(self.dataset, rows, length, max(1, size // length), rng):
            batch = window.batch if self.device.type == "cpu" else _to(window.batch, self.device)
            assert isinstance(batch.obs, Tensor)
            if state is None:
                state = self.policy.initial_state(window.starts.shape[1])
            assert state is not None
            output, state = self.policy.unroll(batch.obs, window.starts.to(self.device), state.detach().to(self.device))
            yield window.done, batch, output

    def _said(self, seen: Obs) -> PolicyOutput:
        """What the student says of observations, or of what its fixed layers made of them."""
        if self.cached:
            assert isinstance(seen, Tensor)
            return self.policy.from_frozen_features(seen)
        output: PolicyOutput = self.policy(seen)[0]
        return output

    def _heldout(self) -> tuple[float, float | None]:
        """Held-out loss with the final weights of the terms, so that epochs can be compared, and agreement."""
        self.policy.eval()
        loss, agreed = 0.0, 0.0
        with torch.no_grad():
            size = HELDOUT_ROWS if self.dataset.spec.frames is None else FRAMES_AT_ONCE
            for _, batch, output in self._outputs(self.heldout_rows, size):
                weight = batch.weight.sum()
                loss += float(total_loss(self.terms, output, batch, 1.0) * weight)
                if output.head.discrete:
                    same = (output.mode() == batch.teacher.mode()).float()
                    same = same.mean(-1) if same.ndim > batch.weight.ndim else same
                    agreed += float((same * batch.weight).sum())
        count = len(self.heldout_rows)
        return loss / count, agreed / count if self.policy.spec.head.discrete else None

    def _log(self, train_loss: float, heldout_loss: float, agreement: float | None, seconds: float) -> None:
        row = {
            "epoch": self.epoch,
            "step": self.epoch * len(self.train_rows),
            "train_loss": train_loss,
            "heldout_loss": heldout_loss,
            "agreement": agreement,
            "learning_rate": self.optimizer.learning_rate,
            "seconds": round(seconds, 3),
        }
        self.metrics.add(row)

    def _save(self) -> None:
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.state.items()}
        tensors["progress"] = torch.tensor([self.epoch, self.best_loss, self.stale], dtype=torch.float64)
        whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        write_atomic(self.checkpoint, lambda temporary: save_file(whole, temporary))

    def _restore(self) -> None:
        try:
            tensors = load_file(self.checkpoint)
            epoch, self.best_loss, stale = tensors.pop("progress").tolist()
            self.policy.load_state_dict(_under("policy.", tensors))
            self.best = _under("best.", tensors)
            self.optimizer.load(_under("optimizer.", tensors))
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CorruptArtifactError(
                f'{self.checkpoint}: {error}. Start again with mode="overwrite" (--overwrite).'
            ) from None
        self.epoch, self.stale = int(epoch), int(stale)


def _is_worth_keeping(policy: NetworkPolicy, dataset: Dataset) -> bool:
    """Whether layers that are not trained are asked about each picture once, rather than once an epoch."""
    pictures = len(dataset.spec.obs_shape) == 3
    return pictures and policy.num_frozen_layers > 0 and dataset.has_room_for(policy.num_features)


def fixed_features(
    policy: NetworkPolicy, fit_features: Callable[[NDArray[np.int64]], Tensor], count: int, device: torch.device
) -> NDArray[np.float32]:
    """What the policy's fixed layers make of all that `fit_features` shows by its rows, `[count, F]`."""
    features = np.empty((count, policy.num_features), np.float32)
    rows = np.arange(count)
    with torch.no_grad():
        for part in np.array_split(rows, max(1, count // FRAMES_AT_ONCE)):
            features[part] = policy.frozen_features(fit_features(part).to(device)).cpu().numpy()
    return features


def prepare(policy: NetworkPolicy, dataset: Dataset) -> None:
    """Standardise what the policy sees, and let its features see a sample of it."""
    if not policy.normalizes_itself:
        policy.standardize(*moments(dataset))
    policy.fit_features(dataset.observations(dataset.spread(HELDOUT_ROWS)))


def moments(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what the student will see, over all pixels or for each entry."""
    if dataset.spec.obs_dtype == "uint8":
        # Without this a dark, constant background drives every ReLU of a convolution the same way, and kills it.
        counts, grey = np.zeros(256), np.arange(256) / 255
        rows = _spread(np.arange(len(dataset.obs)), HELDOUT_ROWS)
        for part in np.array_split(rows, max(1, len(rows) // FRAMES_AT_ONCE)):
            counts += np.bincount(dataset.obs[part].ravel(), minlength=256)
        mean = np.average(grey, weights=counts)
        std = np.sqrt(np.average((grey - mean) ** 2, weights=counts))
    else:
        parts = np.array_split(dataset.obs, -(-len(dataset.obs) // ROWS_AT_ONCE))  # which may lie on disk
        mean = sum(part.sum(0, dtype=np.float64) for part in parts) / len(dataset.obs)
        std = np.sqrt(sum(((part - mean) ** 2).sum(0) for part in parts) / len(dataset.obs))
    std = np.where(std < 1e-6, 1.0, std)
    return encoded_moments(torch.as_tensor(mean).float(), torch.as_tensor(std).float(), dataset.spec)


def _to(batch: Batch, device: torch.device) -> Batch:
    def move(value: object) -> object:
        if isinstance(value, PolicyOutput):
            names = ("params", "value", "features", "mask")
            return PolicyOutput(value.head, **{name: move(getattr(value, name)) for name in names})  # type: ignore[arg-type]
        return value.pin_memory().to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return Batch(**{field.name: move(getattr(batch, field.name)) for field in dataclasses.fields(Batch)})  # type: ignore[arg-type]


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of `rows`, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]


def _copy(policy: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in policy.state_dict().items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
