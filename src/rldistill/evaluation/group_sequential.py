"""Looking again and again whether a question is decided, at a risk that all looks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

RISK = 0.045
"""Of a false yes at any of the looks: a little below 5%, since few returns are only about normal at each of them."""
POINTS = 300
"""Of the numerical integration."""
FAR = 9.0
"""Standard deviations beyond which nothing is."""


def analysis_times(first: int, most: int) -> list[int]:
    """After how many episodes to look: `first`, twice as many, and so on, the last time after `most`."""
    return [*range(first, most, first), most]


def boundary(counts: Sequence[int], risk: float = RISK) -> list[float]:
    """The risk to test at, at each look after `counts` episodes, so that all looks together have the risk `risk`.

    Alpha spending (Lan & DeMets 1983) in the manner of O'Brien & Fleming: after a share t of the episodes,
    2 - 2 Phi(z / sqrt(t)) is spent, z the quantile of 1 - risk / 2. The boundaries, for the Brownian motion that sums
    of episodes are, come from numerical integration (Armitage 1969). Where training seeds add a variance that episodes
    do not lessen, looks are more alike than is reckoned with here, and the risk is smaller.
    """
    times = np.asarray(counts, np.float64) / counts[-1]
    spent = np.minimum(risk, 2 * norm.sf(norm.isf(risk / 2) / np.sqrt(times)))
    risks: list[float] = []
    places, weights = np.zeros(1), np.ones(1)
    before = 0.0
    for time, gone, total in zip(times, [0.0, *times[:-1]], spent, strict=True):
        step = math.sqrt(time - gone)
        ceiling = _ceiling(places, weights, step, total - before, FAR * math.sqrt(time))
        risks.append(float(norm.sf(ceiling / math.sqrt(time))))
        nodes, share = np.polynomial.legendre.leggauss(POINTS)
        bottom = -FAR * math.sqrt(time)
        next_places = (ceiling - bottom) / 2 * nodes + (ceiling + bottom) / 2
        density = norm.pdf((next_places[:, None] - places) / step) / step @ weights
        places, weights = next_places, density * share * (ceiling - bottom) / 2
        before = total
    return risks


def _ceiling(places: NDArray[Any], weights: NDArray[Any], step: float, chance: float, top: float) -> float:
    """What a step from `places`, taken with `weights`, leads above with this chance."""

    def excess(height: float) -> float:
        return float(norm.sf((height - places) / step) @ weights) - chance

    return top if excess(top) > 0 else float(brentq(excess, -top, top, xtol=1e-10))
