"""Group-sequential tests: repeated analyses of a growing sample that share one risk of a false yes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

SEQUENTIAL_RISK = 0.045
"""Risk of a false yes over all analyses: a little below 5%, since means of few returns are only roughly normal."""

NUM_POINTS, MAX_STD = 300, 9.0
"""Number of nodes of the numerical integration, and its bound in standard deviations."""


def analysis_times(interval: int, max_episodes: int) -> list[int]:
    """Return the numbers of episodes at the analyses: after every `interval`, and after `max_episodes`."""
    return [*range(interval, max_episodes, interval), max_episodes]


def boundary(counts: Sequence[int], risk: float = SEQUENTIAL_RISK) -> list[float]:
    """Return the risk of each analysis after `counts` episodes, so that all analyses together have the risk `risk`.

    Alpha spending (Lan & DeMets 1983) in the manner of O'Brien & Fleming: after a share t of the episodes,
    2 - 2 Phi(z / sqrt(t)) is spent, z the quantile of 1 - risk / 2. The boundaries, for sums of episodes as a Brownian
    motion, come from numerical integration (Armitage 1969). If training seeds add a variance that more episodes do not
    reduce, analyses are more correlated than assumed, and the true risk is smaller.
    """
    times = np.asarray(counts, np.float64) / counts[-1]
    spent = np.minimum(risk, 2 * ndtr(ndtri(risk / 2) / np.sqrt(times)))
    risks: list[float] = []
    nodes, weights = np.zeros(1), np.ones(1)  # density of the process at the last analysis, without rejected paths
    before = 0.0
    for time, previous, total in zip(times, [0.0, *times[:-1]], spent, strict=True):
        step = math.sqrt(time - previous)
        bottom = -MAX_STD * math.sqrt(time)
        limit = _limit(nodes, weights, step, total - before, -bottom)
        risks.append(float(ndtr(-limit / math.sqrt(time))))
        points, point_weights = np.polynomial.legendre.leggauss(NUM_POINTS)
        next_nodes = (limit - bottom) / 2 * points + (limit + bottom) / 2
        moves = (next_nodes[:, None] - nodes) / step
        density = np.exp(-(moves**2) / 2) / (math.sqrt(2 * math.pi) * step) @ weights
        nodes, weights = next_nodes, density * point_weights * (limit - bottom) / 2
        before = total
    return risks


def _limit(nodes: NDArray[Any], weights: NDArray[Any], step: float, probability: float, top: float) -> float:
    """Return the limit that a step from the weighted `nodes` exceeds with this probability."""
    from scipy.optimize import brentq  # here, because the import is slow and few commands need it

    def excess(limit: float) -> float:
        return float(ndtr((nodes - limit) / step) @ weights) - probability

    return top if excess(top) > 0 else float(brentq(excess, -top, top, xtol=1e-10))
