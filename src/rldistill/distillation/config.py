"""Configuration of distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rldistill.core.device import Device
from rldistill.core.errors import ConfigError
from rldistill.losses import ForwardKL
from rldistill.losses.objective import Term


@dataclass(frozen=True)
class DistillConfig:
    """How a student is fitted by gradient.

    Attributes:
        losses: the terms that are summed.
        epochs: passes over the data.
        batch_size: transitions in a batch.
        learning_rate: AdamW's, at the start.
        schedule: whether the rate falls to zero in half a cosine or stays.
        weight_decay: AdamW's.
        max_grad_norm: the largest gradient norm.
        patience: stop after so many epochs without a better held-out loss; 0 never stops early, which suits DAgger with
            many epochs: a round begins at the full rate, and for some epochs that undoes what the round before learned.
        num_threads: of PyTorch; gradients differ between numbers of threads.
        device: `auto` takes a GPU if there is one.
    """

    losses: tuple[Term, ...] = (Term(ForwardKL()),)
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 1e-4
    max_grad_norm: float = 10.0
    patience: int = 5
    num_threads: int = 1
    device: Device = "auto"

    def __post_init__(self) -> None:
        if not self.losses:
            raise ConfigError("distill.losses: at least one loss is needed")
        for term in self.losses:
            if not isinstance(term, Term):
                raise ConfigError(f"distill.losses: expected Term(loss), found a {type(term).__name__}")
        for name in ("epochs", "batch_size", "num_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distill.{name}: expected at least 1, found {getattr(self, name)}")
        if self.patience < 0:
            raise ConfigError(f"distill.patience: expected at least 0, found {self.patience}")
        for name, known in (("schedule", ("cosine", "constant")), ("device", ("auto", "cpu", "cuda"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"distill.{name}: there is no {getattr(self, name)!r}. Known: {', '.join(known)}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"distill.{name}: expected a positive number, found {getattr(self, name)}")
