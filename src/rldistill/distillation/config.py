"""Configuration of distillation."""

from typing import Annotated, Literal

from annotated_types import MinLen

from rldistill.core.fields import (
    NonNegative,
    NonNegativeFloat,
    NumThreads,
    Positive,
    PositiveFloat,
    validated_dataclass,
)
from rldistill.core.policy import Device, Precision
from rldistill.losses import ForwardKL
from rldistill.losses.objective import Term, TermField

SEED_STRIDE = 1_000_003
"""Distance between the training seeds of students that need different initial weights: generations, or peers."""
Weighting = Literal["uniform", "confidence", "value", "learned"]


@validated_dataclass
class DistillConfig:
    """Settings of a fit by gradient.

    Attributes:
        losses: Terms that are summed.
        weighting: Weights of several `teachers` in each state: equal ones; by the confidence of each, ranked among its
            own; the teacher with the largest value, fitted to the returns of its own episodes; or learned on held-out
            data. Another weighting takes no further steps.
        epochs: Passes over the data.
        batch_size: Transitions in a batch.
        learning_rate: Learning rate of AdamW at the start.
        schedule: Half a cosine to zero, or a constant rate.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: Largest norm of the gradient.
        patience: Epochs without a lower held-out loss before the fit stops; 0 for no limit, which suits DAgger with
            many epochs: a round starts at the full rate, which for some epochs undoes the progress of the last round.
        balance: Weights of several tasks, whose losses are divided by that of the best constant prediction: `equal`, or
            `by_gap`, in proportion to the held-out loss. With `by_gap` and `recipe.eval_episodes`, the steps of a round
            of DAgger also go to the tasks in proportion to 1 - normalized score.
        num_threads: Threads of PyTorch; gradients differ between numbers of threads.
        device: Device; `auto` is a GPU if there is one.
        precision: Number format of the layers' products; the weights stay float32. `bfloat16` trains convolutions about
            twice as fast on a processor that multiplies it, and slowly on others; `auto` takes it on the former.
    """

    losses: Annotated[tuple[TermField, ...], MinLen(1)] = (Term(ForwardKL()),)
    weighting: Weighting = "uniform"
    epochs: Positive = 20
    batch_size: Positive = 256
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 1e-4
    max_grad_norm: PositiveFloat = 10.0
    patience: NonNegative = 5
    balance: Literal["equal", "by_gap"] = "equal"
    num_threads: NumThreads = 1
    device: Device = "auto"
    precision: Precision = "float32"
