"""Teacher for pistonball from the pictures of all pistons: those behind the ball rise, the others sink.

teacher: pistonball:make
"""

import torch

from rldistill import PolicyOutput, PolicySpec, split_parts

BALL = (200, 240)  # the blue of the ball; walls are darker, and the background is white


class Pistons:
    """Joint policy that computes the place of the ball from how much of it each piston sees."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def initial_state(self, batch_size: int) -> None:
        """Return None: the policy has no memory."""

    def __call__(self, obs, state=None):
        """Return logits that choose down, stay or up for each piston."""
        entries = split_parts(obs, self.spec)
        newest = torch.stack([entries[agent.name][:, -1] for agent in self.spec.agents], 1)
        seen = ((newest > BALL[0]) & (newest < BALL[1])).sum((2, 3)).float()
        numbers = torch.arange(seen.shape[1])
        place = (seen * numbers).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1)
        move = 1 + torch.where(numbers > place + 0.5, 1, -1) * (seen.sum(1, keepdim=True) > 0)
        return PolicyOutput(self.spec.head, 10.0 * torch.nn.functional.one_hot(move, 3).flatten(1)), None


def make(spec: PolicySpec) -> Pistons:
    """Return the teacher for the joint observations of `spec`."""
    return Pistons(spec)
