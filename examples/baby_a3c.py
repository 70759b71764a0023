"""Teachers and view of your own: the recurrent agents of github.com/greydanus/baby-a3c (MIT licence).

They observe one 80x80 picture per step, remember the rest, and were trained where 2 to 4 frames pass between actions.
`examples/pong-a3c.yaml` distils the one for Pong into a feed-forward student on 84x84x4 frames, and
`examples/atari-tasks.yaml` those for three games into one.
"""

from __future__ import annotations

from typing import Any

import cv2
import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec


class Court(gymnasium.ObservationWrapper[NDArray[np.uint8], Any, NDArray[np.uint8]]):
    """Observation wrapper to the 160 rows of the court, as a gray image `[1, 80, 80]` from 0 to 255."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (1, 80, 80), np.uint8)

    def observation(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the gray image of a frame of 210x160x3."""
        grey = observation[35:195].mean(2)
        low, high = grey.min(), grey.max()
        stretched = (grey - low) * (255 / max(high - low, 1e-6))
        picture: NDArray[Any] = cv2.resize(stretched.astype(np.uint8), (80, 80), interpolation=cv2.INTER_AREA)
        return picture[None]


class BabyA3C(nn.Module):
    """Network of four convolutions, a GRU cell of 256, six logits (Pong, SpaceInvaders) and a value."""

    spec = PolicySpec((1, 80, 80), "uint8", CategoricalHead((6,)))

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 2, 1)
        self.conv2, self.conv3, self.conv4 = (nn.Conv2d(32, 32, 3, 2, 1) for _ in range(3))
        self.gru = nn.GRUCell(800, 256)
        self.critic_linear, self.actor_linear = nn.Linear(256, 1), nn.Linear(256, self.spec.head.num_params)

    def initial_state(self, batch_size: int) -> Tensor:
        """`[B, 256]`, zeros."""
        return torch.zeros(batch_size, 256)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor]:
        """Return the logits and values of `[B, 1, 80, 80]`, and the new state."""
        assert isinstance(obs, Tensor)
        x = obs.float() / 255
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.elu(layer(x))
        state = self.gru(x.flatten(1), state)
        return PolicyOutput(self.spec.head, self.actor_linear(state), self.critic_linear(state).squeeze(-1)), state


class Breakout(BabyA3C):
    """The network for the four actions of Breakout."""

    spec = PolicySpec((1, 80, 80), "uint8", CategoricalHead((4,)))
