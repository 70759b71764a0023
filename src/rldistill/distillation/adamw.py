"""AdamW on one flat tensor of weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw


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
