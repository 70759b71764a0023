"""The oracle is torch.optim.AdamW."""

import pytest
import torch

from rldistill.distillation.gradient import FlatAdamW


def test_steps_as_torch_does() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(50, generator=generator)
    theirs = torch.nn.Parameter(ours.clone())
    oracle = torch.optim.AdamW([theirs], 1e-2, weight_decay=0.1, fused=True)
    optimizer = FlatAdamW(ours, 1e-2, 0.1)
    for step in range(20):
        optimizer.learning_rate = oracle.param_groups[0]["lr"] = 1e-2 / (1 + step)
        gradient = torch.randn(50, generator=generator)
        theirs.grad = gradient.clone()
        oracle.step()
        optimizer.step(gradient)
    assert torch.equal(ours, theirs)


def test_goes_on_from_its_state() -> None:
    gradients = torch.randn(10, 50, generator=torch.Generator().manual_seed(0))
    whole, half = torch.zeros(50), torch.zeros(50)
    optimizer = FlatAdamW(whole, 1e-2, 0.1)
    for gradient in gradients:
        optimizer.step(gradient)
    first = FlatAdamW(half, 1e-2, 0.1)
    for gradient in gradients[:5]:
        first.step(gradient)
    second = FlatAdamW(half, 1e-2, 0.1)
    second.load(first.state)
    for gradient in gradients[5:]:
        second.step(gradient)
    assert torch.equal(half, whole)


def test_refuses_a_state_of_another_size() -> None:
    with pytest.raises(RuntimeError):
        FlatAdamW(torch.zeros(3), 1e-2, 0.1).load(FlatAdamW(torch.zeros(4), 1e-2, 0.1).state)
