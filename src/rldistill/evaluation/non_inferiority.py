"""Does a student keep 95% of its teacher? Yes, no, or so many more episodes; also asked again and again.

The claim: mean_student - 0.95 mean_teacher - 0.05 mean_random > 0, which says the same of negative returns as of
positive ones: that the student has lost less than 5% of the teacher's lead over random play.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, stdtr, stdtrit

from rldistill.evaluation.statistics import Returns

RISK = 0.05
PLANNED_POWER = 0.88
"""What is planned for, so that skewed returns, whose spread few of them tell badly, come out at 80% or more."""
MOST_EPISODES = 1_000_000
"""What would take more than this is not decided by episodes."""
SKEW_FACTOR = 2.0
"""What a sample's skewness is multiplied with: of 30 to 100 returns with a long tail, it comes out far too small."""
Decision = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class NonInferiorityResult:
    """Whether a student keeps what it should.

    Attributes:
        decision: `yes` (shown), `no` (the opposite is shown), or `undecided`.
        margin: the share of the teacher's lead over random play that may be lost.
        estimate: mean_student - (1 - margin) mean_teacher - margin mean_random.
        lower: what the estimate's true value is more than, at a risk of `risk`; `yes` needs it above 0.
        upper: what it is less than, at the same risk; None, as is `lower`, of a single episode.
        p: the smallest risk at which it would be a `yes`, but for the least number of episodes; None likewise.
        risk: of a false yes at this look.
        episodes: on which the answer rests, for each training seed; those that repeat others are not counted.
        episodes_needed: how many more to play for a power of at least 80%, if the estimate is true; 0 when decided;
            None where no number of episodes would do.
    """

    decision: Decision
    margin: float
    estimate: float
    lower: float | None
    upper: float | None
    p: float | None
    risk: float
    episodes: int
    episodes_needed: int | None


@dataclass(frozen=True)
class _Error:
    """The variance of a mean, in its two parts, and its skewness: what the test knows of how far it may be off."""

    of_episodes: float
    of_runs: float
    episodes: int
    runs: int
    skew: float

    @property
    def size(self) -> float:
        return math.sqrt(self.of_episodes + self.of_runs)

    @property
    def freedom(self) -> float:
        """Degrees of freedom (Satterthwaite 1946), for planning: with few runs, they promise too much to decide by."""
        parts = self.of_episodes**2 / (self.episodes - 1) + self.of_runs**2 / max(1, self.runs - 1)
        return self.size**4 / parts if parts > 0 else float(self.episodes - 1)

    def quantile(self, risk: float) -> float:
        """How many times its size the error is, at that risk: each part has Student's quantile of its own."""
        own = -float(stdtrit(self.episodes - 1, risk))
        if self.of_runs == 0:
            return own
        theirs = -float(stdtrit(self.runs - 1, risk))
        return math.sqrt(self.of_episodes * own**2 + self.of_runs * theirs**2) / self.size

    def p(self, score: float) -> float:
        """The risk of which `score` is the quantile."""
        if self.of_runs == 0 or score <= 0:
            return float(stdtr(self.freedom, -score))
        # Between those of its parts.
        low, high = sorted(float(stdtr(freedom, -score)) for freedom in (self.episodes - 1, self.runs - 1))
        # Where one part is all there is, rounding puts the score beyond them.
        if self.quantile(low) <= score:
            return low
        if self.quantile(high) >= score:
            return high
        return float(brentq(lambda risk: self.quantile(risk) - score, low, high))


@dataclass(frozen=True)
class _Spread:
    """What the mean of differences `[runs, episodes]` varies by: episode seeds, training seeds, and what is left."""

    runs: int
    episode: float
    run: float
    noise: float
    skew: float

    @classmethod
    def of(cls, found: NDArray[np.float64]) -> _Spread:
        runs, episodes = found.shape
        columns = found.mean(0)
        episode = float(columns.var(ddof=1))
        centred = columns - columns.mean()
        cube = float((centred**3).mean()) / float((centred**2).mean()) ** 1.5 if episode > 0 else 0.0
        skew = cube * math.sqrt(episodes * (episodes - 1)) / (episodes - 2) if episodes > 2 else 0.0
        if runs == 1:
            return cls(runs, episode, 0.0, 0.0, skew)
        left = found - found.mean(1, keepdims=True) - columns + found.mean()
        noise = float((left**2).sum()) / ((runs - 1) * (episodes - 1))
        run = max(0.0, float(found.mean(1).var(ddof=1)) - noise / episodes)
        return cls(runs, episode, run, noise, skew)

    def at(self, episodes: int) -> _Error:
        """The error of the mean of so many episodes."""
        within = self.episode / episodes
        between = (self.run + self.noise / episodes) / self.runs if self.runs > 1 else 0.0
        share = within / (within + between) if within > 0 else 0.0
        skew = SKEW_FACTOR * self.skew / math.sqrt(episodes) * share**1.5
        return _Error(within, between, episodes, self.runs, skew)


def non_inferior(
    student: Returns,
    teacher: Returns,
    random: Returns,
    margin: float = 0.05,
    *,
    distinct: int | None = None,
    risk: float = RISK,
    whole: float | None = None,
) -> NonInferiorityResult:
    """Test whether the student loses less than `margin` of the teacher's lead over random play.

    The test stands on the differences D[run, k] = student[run, k] - (1 - margin) teacher[k] - margin random[k] of
    episodes with the same seed k, so that what a seed makes easy for all cancels.

    A student of one training seed is judged as it is: Student's t over its episodes. With several, the answer is about
    the recipe that made them, and training seeds are a random effect: the variance of the mean is s2_k / n + s2_run / R
    (s2_k of the columns' means, s2_run of the runs' means), and the bound is off by the root of the sum of both, each
    times its own quantile of Student's t squared, with n - 1 and R - 1 degrees of freedom: 2 or 3 runs leave few. What
    noise both have is counted twice. So the test is rather too strict than too lenient.

    Few returns with a long lower tail (rare failures) make a t too lenient. So a yes needs the score that Hall (1992)
    corrects for skewness, too: T + k T^2 / 3 + k^2 T^3 / 27 + k / 6, k the skewness of the mean, doubled. And failures
    so rare that none was seen are feared all the same: a yes needs log(risk) / log(1 - margin) episodes, 59 for 5% and
    5%, because a student that loses all in one of 20 may show none in fewer.

    Args:
        student: returns `[runs, episodes]`.
        teacher: returns `[runs, episodes]` of episodes with the same seeds.
        random: likewise.
        margin: the share that may be lost.
        distinct: how many episodes differ from each other, if not all.
        risk: of a false yes, and of a false no.
        whole: that of all looks together, where this is one of several; `risk`, if not given.
    """
    whole = risk if whole is None else whole
    found = np.asarray(student - (1 - margin) * teacher.mean(0) - margin * random.mean(0), np.float64)
    episodes = min(distinct or found.shape[1], found.shape[1])
    estimate = float(found.mean())
    if episodes < 2:
        needed = None if found.shape[1] > 1 else least_episodes(margin, whole) - 1
        return NonInferiorityResult("undecided", margin, estimate, None, None, None, risk, episodes, needed)
    spread = _Spread.of(found)
    error = spread.at(episodes)
    quantile = error.quantile(risk) if error.size > 0 else 0.0
    lower = estimate - error.size * _needed_score(quantile, error.skew)
    upper = estimate + error.size * _needed_score(quantile, -error.skew)
    least = least_episodes(margin, whole)
    decision: Decision = "yes" if lower > 0 and episodes >= least else "no" if upper < 0 else "undecided"
    more: int | None = 0
    if decision == "undecided":
        more = None if episodes < found.shape[1] else _more(estimate, spread, episodes, least, whole)
    p = error.p(_score(estimate / error.size, error.skew)) if error.size > 0 else float(estimate <= 0)
    return NonInferiorityResult(decision, margin, estimate, lower, upper, p, risk, episodes, more)


def least_episodes(margin: float, risk: float = RISK) -> int:
    """So many episodes show one total failure in 1 / `margin` with a probability of 1 - `risk`.

    Several runs need as many: they share their episodes' seeds, and may all fail on the same.
    """
    return max(2, math.ceil(math.log(risk) / math.log1p(-margin)))


def _score(t: float, skew: float) -> float:
    bent = ((1 + skew * t / 3) ** 3 - 1) / skew + skew / 6 if abs(skew) > 1e-9 else t
    return min(t, bent)


def _needed_score(quantile: float, skew: float) -> float:
    """The t at which `_score` is `quantile`."""
    bent = 3 / skew * (float(np.cbrt(1 + skew * (quantile - skew / 6))) - 1) if abs(skew) > 1e-9 else quantile
    return max(quantile, bent)


def _more(estimate: float, spread: _Spread, episodes: int, least: int, risk: float) -> int | None:
    """Episodes to play on top of those that were, for a power of 80% or more."""
    if estimate == 0:
        return None
    sign = math.copysign(1, estimate)

    def enough(count: int) -> bool:
        error = spread.at(count)
        if error.size == 0:
            return True
        needed = _needed_score(error.quantile(risk), sign * error.skew)
        # The noncentral t's tail, which SciPy's own does not give far out (Abramowitz & Stegun 26.7.10).
        shift = abs(estimate) / error.size - needed * (1 - 1 / (4 * error.freedom))
        return float(ndtr(shift / math.sqrt(1 + needed**2 / (2 * error.freedom)))) >= PLANNED_POWER

    low = high = max(episodes + 1, least if estimate > 0 else 2)
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_EPISODES:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high - episodes
