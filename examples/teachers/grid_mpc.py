"""Teacher of `examples/grid.yaml`: the model-predictive controller of gym-anm, with perfect forecasts.

At each step it solves a linear program over the next eight hours, which takes tens of milliseconds. Demand and
generation of ANM6Easy are a fixed function of the time of day, so its decision depends on two entries of the
observation: the time, and the charge of the storage unit. The student observes both, within the full state of the grid.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from gym_anm import MPCAgentPerfect
from gym_anm.envs import ANM6Easy
from numpy.typing import NDArray

PLANNING_STEPS, SAFETY_MARGIN = 32, 0.9
"""Horizon in quarters of an hour, and the share of each line's rating that the plan may use."""
STORAGE, CHARGE, TIME = 6, 14, 17
"""Number of the storage unit, and entries of the observation: its charge in MWh, and the quarter of an hour."""


def controller() -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the controller as a function of one observation of ANM6Easy."""
    env = ANM6Easy()
    env.reset(seed=0)
    agent = MPCAgentPerfect(env.simulator, env.action_space, env.gamma, SAFETY_MARGIN, PLANNING_STEPS)
    capacity = env.simulator.devices[STORAGE].soc_max

    def act(obs: NDArray[Any]) -> NDArray[Any]:
        # The agent takes all else from the forecasts. Rounding must not move the charge beyond its bounds.
        env.state[-1] = round(float(obs[TIME]))
        env.simulator.state["des_soc"]["pu"][STORAGE] = np.clip(obs[CHARGE] / env.simulator.baseMVA, 0, capacity)
        return agent.act(env)

    return act
