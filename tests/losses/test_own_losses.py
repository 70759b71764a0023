"""Results of losses of the user's own: each works, or ends in one line that names the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import Batch, Labels, PolicyOutput
from rldistill.data.dataset import Dataset
from rldistill.losses.objective import Term, best_constant_loss, differentiate, total_loss


@dataclass(frozen=True)
class Mine:
    """Cross-entropy whose result a test changes."""

    change: Callable[[Tensor], Any]
    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Any:
        best = labels.teacher.mode()
        return self.change(torch.nn.functional.cross_entropy(student.params, best, reduction="none"))


@pytest.fixture
def batch(dataset: Dataset) -> Batch:
    return dataset.batch(torch.arange(9).numpy())


def output(batch: Batch) -> PolicyOutput:
    return PolicyOutput(batch.teacher.head, torch.ones_like(batch.teacher.params).requires_grad_())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda loss: None, "returns a NoneType. Return a tensor of floats"),
        (lambda loss: loss.tolist(), "returns a list"),
        (lambda loss: (loss,), "returns a tuple"),
        (lambda loss: loss.detach().numpy(), "returns a ndarray"),
        (lambda loss: loss.long(), "returns a tensor of torch.int64"),
        (lambda loss: loss.to(torch.complex64), "returns a tensor of torch.complex64"),
        (lambda loss: loss[:-1], r"returns shape \(8,\) for a batch of \(9,\)"),
        (lambda loss: loss[:, None], r"returns shape \(9, 1\) for a batch of \(9,\)"),
    ],
)
def test_other_results_are_one_line(change: Any, words: str, batch: Batch) -> None:
    with pytest.raises(SpecMismatchError, match=rf"^distill\.losses: Mine {words}"):
        total_loss((Term(Mine(change)),), output(batch), batch, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [lambda loss: loss.detach(), torch.zeros_like])
def test_loss_without_a_gradient_is_one_line(change: Any, batch: Batch) -> None:
    loss = total_loss((Term(Mine(change)),), output(batch), batch, 0.0)  # type: ignore[arg-type]
    with pytest.raises(SpecMismatchError, match=r"^distill\.losses: no loss has a gradient\. Compute it from"):
        differentiate(loss)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_losses_without_a_number_are_one_line(number: float, batch: Batch) -> None:
    terms = (Term(Mine(lambda loss: loss * number)),)  # type: ignore[arg-type]
    with pytest.raises(SpecMismatchError, match=r"^distill\.losses: Mine is NaN or infinite where the student"):
        best_constant_loss(terms, batch, batch.teacher.head)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_is_that_of_the_data(dtype: torch.dtype, batch: Batch) -> None:
    loss = total_loss((Term(Mine(lambda loss: loss.to(dtype))),), output(batch), batch, 0.0)  # type: ignore[arg-type]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), torch.tensor(2.0).log(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("change", [torch.exp, torch.sigmoid, torch.sqrt, torch.tanh])
def test_changing_a_tensor_of_the_gradient_in_place_is_one_line(change: Any, batch: Batch) -> None:
    def in_place(loss: Tensor) -> Tensor:
        result = change(loss)
        result.mul_(2)
        return result  # type: ignore[no-any-return]

    loss = total_loss((Term(Mine(in_place)),), output(batch), batch, 0.0)  # type: ignore[arg-type]
    with pytest.raises(SpecMismatchError, match=r"^distill: a student or a loss changes a tensor in place"):
        differentiate(loss)
