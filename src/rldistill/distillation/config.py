"""Configuration of distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen

from rldistill.core.device import Device
from rldistill.core.fields import (
    NonNegative,
    NonNegativeFloat,
    NumThreads,
    Positive,
    PositiveFloat,
    validated_dataclass,
)
from rldistill.losses import ForwardKL
from rldistill.losses.objective import Term, TermField


@validated_dataclass
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

    losses: Annotated[tuple[TermField, ...], MinLen(1)] = (Term(ForwardKL()),)
    epochs: Positive = 20
    batch_size: Positive = 256
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 1e-4
    max_grad_norm: PositiveFloat = 10.0
    patience: NonNegative = 5
    num_threads: NumThreads = 1
    device: Device = "auto"
