"""Who of several environments explores, at which rate, and for how many steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LONGEST = 30
"""Steps that one random action is kept up for at most."""


@dataclass
class Exploration:
    """Epsilon-greedy, with a coin for each environment.

    Attributes:
        spread: a > 0 lets environment i of N explore at the rate epsilon^(1 + a i / (N - 1)) (Horgan 2018, arXiv
            1803.00933), so that the replay also holds states that a good policy seldom comes to, and has to get out of.
        zeta: above 1, a random action is kept up for n steps with a probability proportional to n^-zeta (Dabney 2020,
            arXiv 2006.01782), at most `LONGEST`: single random steps are undone by the next greedy one, and never show
            what a paddle would meet that waits elsewhere. 0: for one step.
    """

    spread: float = 0.0
    zeta: float = 0.0
    _left: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _kept_up: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if self.spread < 0:
            raise ValueError(f"exploration_spread: expected at least 0, found {self.spread}")
        if self.zeta != 0 and self.zeta <= 1:
            raise ValueError(f"exploration_zeta: expected 0, or a number above 1, found {self.zeta}")

    def __call__(self, greedy: NDArray[np.int64], epsilon: float, num_actions: int) -> NDArray[np.int64]:
        """One action for each environment `[N]`, of which it is the next step."""
        if self._left.shape != greedy.shape:
            self._left = self._kept_up = np.zeros(greedy.shape, np.int64)
        rates = epsilon ** (1 + self.spread * np.linspace(0, 1, greedy.size))
        begins = (self._left == 0) & (np.random.rand(greedy.size) < rates)
        lengths = np.random.zipf(self.zeta, greedy.size).clip(1, LONGEST) if self.zeta else 1
        self._left = np.where(begins, lengths, self._left)
        self._kept_up = np.where(begins, np.random.randint(0, num_actions, greedy.size), self._kept_up)
        action = np.where(self._left > 0, self._kept_up, greedy)
        self._left = np.maximum(self._left - 1, 0)
        return action
