"""Planner for simple_spread, a teacher that sees all agents: each takes the landmark that keeps the sum of ways short.

teacher: spread_planner:make
"""

import torch
from scipy.optimize import linear_sum_assignment

from rldistill import PolicyOutput, PolicySpec, split_parts

MOVES = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # the five actions of an agent
ACCELERATION, DAMPING, DT = 5.0, 0.25, 0.1  # of the environment


class Planner:
    """Joint policy of three agents whose observations are velocity, place, ways to the landmarks and to the others."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def initial_state(self, batch_size: int) -> None:
        """Return None: the planner has no memory."""

    def __call__(self, obs, state=None):
        """Return logits `[B, 15]` that choose the moves of all agents."""
        entries = split_parts(obs, self.spec)
        agents = [entries[agent.name] for agent in self.spec.agents]
        velocity = torch.stack([own[:, 0:2] for own in agents], 1)
        ways = torch.stack([own[:, 4 : 4 + 2 * len(agents)].unflatten(1, (-1, 2)) for own in agents], 1)
        costs = ways.norm(dim=-1).numpy()
        goals = torch.stack([own_ways[linear_sum_assignment(cost)] for own_ways, cost in zip(ways, costs, strict=True)])
        # Where each agent comes to rest after a move, if it then lets itself glide.
        after = velocity[:, :, None] * (1 - DAMPING) + MOVES * ACCELERATION * DT
        rest = after * DT / DAMPING
        logits = -20 * (goals[:, :, None] - rest).norm(dim=-1)
        return PolicyOutput(self.spec.head, logits.flatten(1)), None


def make(spec: PolicySpec) -> Planner:
    """Return the planner for the joint observations of `spec`."""
    return Planner(spec)
