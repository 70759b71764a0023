"""Planner for simple_speaker_listener: the speaker names the goal, and the listener goes there at once.

teacher: speaker_planner:make
"""

import torch

from rldistill import PolicyOutput, PolicySpec, split_parts

MOVES = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # the five actions of the listener
ACCELERATION, DAMPING, DT = 5.0, 0.25, 0.1  # of the environment


class Planner:
    """Joint policy: the listener goes by the goal that only the speaker observes, not by the speaker's word."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def initial_state(self, batch_size: int) -> None:
        """Return None: the planner has no memory."""

    def __call__(self, obs, state=None):
        """Return logits of the speaker's three words and of the listener's five moves."""
        entries = split_parts(obs, self.spec)
        listener, goal = entries["listener_0"], entries["speaker_0"].argmax(1)
        way = listener[:, 2:8].unflatten(1, (3, 2))[torch.arange(len(goal)), goal]
        # Where the listener comes to rest after a move, if it then lets itself glide.
        rest = (listener[:, None, :2] * (1 - DAMPING) + MOVES * ACCELERATION * DT) * DT / DAMPING
        moves = -20 * (way[:, None] - rest).norm(dim=-1)
        parts = {"speaker_0": 10.0 * torch.nn.functional.one_hot(goal, 3), "listener_0": moves}
        return PolicyOutput(self.spec.head, torch.cat([parts[agent.name] for agent in self.spec.agents], 1)), None


def make(spec: PolicySpec) -> Planner:
    """Return the planner for the joint observations of `spec`."""
    return Planner(spec)
