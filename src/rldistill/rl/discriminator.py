"""Discriminator of recorded steps and of a student's own, and its loss."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from rldistill.core.heads import CERTAIN_LOGIT, LARGEST, ActionHead, DeterministicHead
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.prepare import prepare
from rldistill.policies.layers import dense
from rldistill.rl.config import AdversarialConfig, DiscriminatorConfig
from rldistill.students import Linear
from rldistill.students.multi_input import picture_network

Inputs = dict[str, Tensor]
ACTION = " action"
"""Input beside the entries of the observation, whose names have no blanks."""
VALUE_HEAD = DeterministicHead(low=(-np.inf,), high=(np.inf,))


@dataclass(frozen=True)
class Transitions:
    """Steps in the environment, `[B, ...]`.

    Attributes:
        obs, next_obs: observations; `next_obs` and `log_prob` are used by `airl` alone.
        action: actions as the environment takes them.
        terminated: 1 where the step terminated the episode, else 0.
        log_prob: log student(a | s).
    """

    obs: Tensor
    action: Tensor
    terminated: Tensor
    next_obs: Tensor
    log_prob: Tensor

    @classmethod
    def new(cls, obs: Tensor, action: Tensor, terminated: Tensor, airl: tuple[Tensor, Tensor] | None) -> Transitions:
        """Return steps; `airl` are the next observations and log student(a | s), if needed."""
        ends = terminated.float()
        return cls(obs, action, ends, *(airl or (obs, torch.zeros_like(ends))))

    def rows(self, rows: Tensor) -> Transitions:
        """Return some of the steps."""
        return Transitions(**{name: column[rows] for name, column in vars(self).items()})


class Potential(nn.Module):
    """Number for an observation, and for the action if it is an input.

    Observations are standardized by the moments of its `encoder`.
    """

    def __init__(self, spec: PolicySpec, config: DiscriminatorConfig, with_action: bool) -> None:
        super().__init__()
        self.head = spec.head
        self.encoder = (picture_network(spec) or Linear()).build(replace(spec, head=VALUE_HEAD))
        width, self.encoder.output = self.encoder.width, nn.Identity()
        width += _num_features(self.head) if with_action else 0
        layers, width = dense(width, config.hidden, nn.Tanh)
        self.with_action, self.layers = with_action, nn.Sequential(*layers, nn.Linear(width, 1))
        if config.spectral_norm:
            for layer in self.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    spectral_norm(layer)

    def encode(self, obs: Tensor, action: Tensor) -> Inputs:
        """Return the inputs of `forward`."""
        entries = self.encoder.standardized(obs)
        inputs = {"": entries} if isinstance(entries, Tensor) else {**entries}
        return inputs | ({ACTION: action_features(self.head, action)} if self.with_action else {})

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the numbers `[B]`."""
        entries = {name: part for name, part in inputs.items() if name != ACTION}
        hidden: Tensor = self.encoder.body(entries.get("", entries))
        if self.with_action:
            hidden = torch.cat([hidden, inputs[ACTION]], -1)
        number: Tensor = self.layers(hidden).squeeze(-1)
        return number


class Discriminator(nn.Module):
    """Logit of the probability D that a step was recorded: f, or f + gamma h(s') - h(s) - log student(a | s).

    Attributes:
        f: function of the step.
        h: potential of the state; None unless the form is `airl`.
    """

    def __init__(self, data: Dataset, config: AdversarialConfig, gamma: float) -> None:
        super().__init__()
        self.gamma, own = gamma, config.discriminator
        self.f = Potential(data.spec, own, own.inputs == "state_action")
        self.h = Potential(data.spec, own, with_action=False) if config.form == "airl" else None
        for network in (self.f, self.h):
            if network is not None:
                prepare(network.encoder, data)

    def forward(self, steps: Transitions) -> Tensor:
        """Return log D - log(1 - D) of steps, `[B]`."""
        f: Tensor = self.f(self.f.encode(steps.obs, steps.action))
        if self.h is None:
            return f
        now, following = (self.h(self.h.encode(obs, steps.action)) for obs in (steps.obs, steps.next_obs))
        logit: Tensor = f + self.gamma * (1 - steps.terminated) * following - now - steps.log_prob
        return logit

    def gradient_penalty(self, recorded: Transitions, own: Transitions, share: Tensor) -> Tensor:
        """Return the penalty of f between recorded and own steps."""
        one, two = (self.f.encode(steps.obs, steps.action) for steps in (recorded, own))
        return gradient_penalty(self.f, one, two, share)


def gradient_penalty(network: nn.Module, recorded: Inputs, own: Inputs, share: Tensor) -> Tensor:
    """Return E[(|grad f(x)| - 1)^2] at x = share * recorded + (1 - share) * own, the norm over all inputs of a step.

    Gulrajani 2017, arXiv 1704.00028.
    """
    mixed = {name: torch.lerp(own[name], recorded[name], _like(share, own[name])).requires_grad_() for name in own}
    gradients = torch.autograd.grad(network(mixed).sum(), [*mixed.values()], create_graph=True)
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
    # The gradient of a root at 0 is NaN.
    return ((squares.sum(0) + 1e-12).sqrt() - 1).square().mean()


def discriminator_loss(recorded: Tensor, own: Tensor) -> Tensor:
    """Return -E[log D] over recorded steps - E[log(1 - D)] over own steps, given the logits of D.

    Its minimum is D = p / (p + q), p and q the densities of recorded and own steps (Goodfellow 2014, arXiv 1406.2661).
    """
    return F.softplus(-recorded).mean() + F.softplus(own).mean()


def action_features(head: ActionHead, action: Tensor) -> Tensor:
    """Return actions as numbers `[B, F]`: one-hot vectors, or entries scaled to -1 to 1 where they have bounds."""
    if head.discrete:
        return head.certain(action) / CERTAIN_LOGIT
    low, high = action.new_tensor(head.low), action.new_tensor(head.high)
    bounded = (low > -LARGEST) & (high < LARGEST)
    return torch.where(bounded, (action - low) / (high - low) * 2 - 1, action).float()


def _num_features(head: ActionHead) -> int:
    return head.neutral.num_params if head.discrete else len(head.low)


def _like(column: Tensor, part: Tensor) -> Tensor:
    """Return a column `[B]` in a shape that broadcasts over `[B, ...]`."""
    return column.view(-1, *[1] * (part.ndim - 1))
