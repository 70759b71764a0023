"""Agents with noise on their weights, as imperfect teachers: `noisy:agent@FILE` of a Stable-Baselines3 zip."""

from pathlib import Path

import torch

from rldistill import Policy, load_policy

NOISE = 0.75
"""Standard deviation of the noise, as a multiple of that of the weights of the layer."""


def agent(file: Path) -> Policy:
    """Return the agent of a file with normal noise on the weights and biases of its actor."""
    policy, generator = load_policy(file), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if not name.startswith("critic"):
                weight += NOISE * weight.std() * torch.randn(weight.shape, generator=generator)
    return policy
