"""Planner for simple_tag: the adversaries go where their prey will be, and the prey flees from all of them.

teacher: tag_planner:make
"""

import torch

from rldistill import PolicyOutput, PolicySpec, split_parts

MOVES = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # the five actions of an agent
LEAD, WALL = 0.3, 0.9  # seconds that adversaries look ahead; distance from the center where the prey turns back


class Planner:
    """Joint policy of agents whose observations are velocity, place, ways to landmarks and others, and velocities."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def initial_state(self, batch_size: int) -> None:
        """Return None: the planner has no memory."""

    def __call__(self, obs, state=None):
        """Return logits of the moves of all agents."""
        entries, logits = split_parts(obs, self.spec), []
        for agent in self.spec.agents:
            own = entries[agent.name]
            if agent.type == "adversary":
                heading = own[:, 12:14] + LEAD * own[:, 14:16]
            else:
                ways = own[:, 8:14].unflatten(1, (3, 2))
                away = -(ways / ways.norm(dim=-1, keepdim=True).clamp_min(0.1) ** 2).sum(1)
                heading = away - 10 * own[:, 2:4] * (own[:, 2:4].abs() > WALL)
            logits.append(5 * torch.nn.functional.normalize(heading, dim=1) @ MOVES.T)
        return PolicyOutput(self.spec.head, torch.cat(logits, 1)), None


def make(spec: PolicySpec) -> Planner:
    """Return the planner for the joint observations of `spec`."""
    return Planner(spec)
