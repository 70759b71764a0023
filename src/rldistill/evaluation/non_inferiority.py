"""Non-inferiority test: a student keeps 95% of its teacher's lead over random play (yes, no, or undecided).

Hypothesis: mean_student - 0.95 mean_teacher - 0.05 mean_random > 0. It means the same for negative returns as for
positive ones: the student has lost less than 5% of the lead.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from rldistill.evaluation.statistics import Returns

RISK = 0.05

# At least 80% with skewed returns, whose spread is underestimated in small samples.
PLANNED_POWER = 0.88
# More episodes than this count as a question that episodes cannot decide.
MAX_EPISODES = 1_000_000
# In 30 to 100 returns with a long tail, the skewness is strongly underestimated.
SKEW_FACTOR = 2.0
Decision = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class NonInferiorityResult:
    """Result of the test.

    Attributes:
        decision: `yes` (shown), `no` (the opposite is shown), or `undecided`.
        margin: largest acceptable loss, as a share of the teacher's lead over random play.
        estimate: mean_student - (1 - margin) mean_teacher - margin mean_random.
        lower, upper: one-sided bounds of the estimate at `risk`; `yes` needs a positive lower bound. None for a single
            episode.
        p: smallest risk at which the bounds would allow a `yes`; None for a single episode.
        risk: risk of a false yes at this analysis.
        episodes: number of distinct episodes for each training seed.
        min_episodes: number of episodes that a `yes` takes at least.
        episodes_needed: number of further episodes for a power of at least 80%, if the estimate is true; 0 if decided;
            None if no number would do.
        analysis: number of this analysis in a sequential test.
    """

    decision: Decision
    margin: float
    estimate: float
    lower: float | None
    upper: float | None
    p: float | None
    risk: float
    episodes: int
    min_episodes: int
    episodes_needed: int | None
    analysis: int = 1


@dataclass(frozen=True)
class RiskLevels:
    """Risks of a wrong decision, at this analysis and (None: the same) of all analyses together, and its number."""

    risk: float = RISK
    total_risk: float | None = None
    analysis: int = 1


@dataclass(frozen=True)
class _Error:
    """Error of a mean: both components of its variance, and its skewness."""

    of_episodes: float
    of_runs: float
    episodes: int
    runs: int
    skew: float

    @property
    def std(self) -> float:
        return math.sqrt(self.of_episodes + self.of_runs)

    @property
    def freedom(self) -> float:
        """Degrees of freedom (Satterthwaite 1946) for planning; with few runs, they are too optimistic for a test."""
        parts = self.of_episodes**2 / (self.episodes - 1) + self.of_runs**2 / max(1, self.runs - 1)
        return self.std**4 / parts if parts > 0 else float(self.episodes - 1)

    def quantile(self, risk: float) -> float:
        """Return the quantile in standard deviations; each component has its own quantile of Student's t."""
        t_episodes = -float(stdtrit(self.episodes - 1, risk))
        if self.of_runs == 0:
            return t_episodes
        t_runs = -float(stdtrit(self.runs - 1, risk))
        return math.sqrt(self.of_episodes * t_episodes**2 + self.of_runs * t_runs**2) / self.std

    def p(self, score: float) -> float:
        """Return the risk with the quantile `score`."""
        if self.of_runs == 0 or score <= 0:
            return float(stdtr(self.freedom, -score))
        # The risk lies between those of both components, but rounding may put it outside if one component is 0.
        low, high = sorted(float(stdtr(freedom, -score)) for freedom in (self.episodes - 1, self.runs - 1))
        if self.quantile(low) <= score:
            return low
        if self.quantile(high) >= score:
            return high
        from scipy.optimize import brentq  # here, because the import is slow and few commands need it

        return float(brentq(lambda risk: self.quantile(risk) - score, low, high))


@dataclass(frozen=True)
class _Spread:
    """Variance components of differences `[runs, episodes]`: episode seeds, training seeds, and the residual."""

    runs: int
    episode: float
    run: float
    noise: float
    skew: float

    @classmethod
    def fit(cls, lead: NDArray[np.float64]) -> _Spread:
        runs, episodes = lead.shape
        columns = lead.mean(0)
        episode = float(columns.var(ddof=1))
        skew, run, noise = 0.0, 0.0, 0.0
        if episode > 0 and episodes > 2:
            centered = columns - columns.mean()
            cube = float((centered**3).mean()) / float((centered**2).mean()) ** 1.5
            skew = cube * math.sqrt(episodes * (episodes - 1)) / (episodes - 2)
        if runs > 1:
            residual = lead - lead.mean(1, keepdims=True) - columns + lead.mean()
            noise = float((residual**2).sum()) / ((runs - 1) * (episodes - 1))
            run = max(0.0, float(lead.mean(1).var(ddof=1)) - noise / episodes)
        return cls(runs, episode, run, noise, skew)

    def at(self, episodes: int) -> _Error:
        """Return the error of a mean over this number of episodes."""
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
    levels: RiskLevels = RiskLevels(),
) -> NonInferiorityResult:
    """Test if the student loses less than `margin` of the teacher's lead over random play.

    The test uses the differences D[run, k] = student[run, k] - (1 - margin) teacher[k] - margin random[k] of episodes
    with the same seed k, so that the difficulty of a seed cancels.

    A student with one training seed is tested by Student's t over its episodes. With several, the answer is about
    their recipe, and training seeds are a random effect: the variance of the mean is s2_k / n + s2_run / R (s2_k of the
    columns' means, s2_run of the runs' means), and the bound is the root of the sum of both, each times its squared
    quantile of Student's t with n - 1 and R - 1 degrees of freedom. The residual counts in both, so the test is
    conservative.

    For returns with a long lower tail (rare failures), a t-test is too lenient. A yes therefore also needs the score of
    Hall (1992), corrected for skewness: T + k T^2 / 3 + k^2 T^3 / 27 + k / 6, k the skewness of the mean, doubled.
    And it needs `least_episodes`, for failures so rare that none was seen.

    All three are returns `[runs, episodes]`, of episodes with the same seeds, of which only `distinct` may differ.
    `levels` holds the risks of a false yes and of a false no.
    """
    risk, total_risk = levels.risk, levels.risk if levels.total_risk is None else levels.total_risk
    lead = np.asarray(student - (1 - margin) * teacher.mean(0) - margin * random.mean(0), np.float64)
    played = lead.shape[1]
    episodes, least = min(distinct or played, played), least_episodes(margin, total_risk)
    estimate = float(lead.mean())
    decision: Decision = "undecided"
    lower = upper = p = None
    # More episodes do not help if those played only repeat a few.
    needed = least - 1 if played == 1 else None
    if episodes > 1:
        spread = _Spread.fit(lead)
        error = spread.at(episodes)
        quantile = error.quantile(risk) if error.std > 0 else 0.0
        lower = estimate - error.std * _needed_score(quantile, error.skew)
        upper = estimate + error.std * _needed_score(quantile, -error.skew)
        p = error.p(_score(estimate / error.std, error.skew)) if error.std > 0 else float(estimate <= 0)
        decision = "yes" if lower > 0 and episodes >= least else "no" if upper < 0 else "undecided"
        if decision != "undecided":
            needed = 0
        elif episodes == played:
            needed = _episodes_needed(estimate, spread, episodes, least, total_risk)
    return NonInferiorityResult(
        decision, margin, estimate, lower, upper, p, risk, episodes, least, needed, levels.analysis
    )


def least_episodes(margin: float, risk: float = RISK) -> int:
    """Return the smallest number of episodes that can show a yes: 59 for a margin and a risk of 5%.

    A student that fails completely in a share `margin` of the episodes fails in at least one of these with probability
    1 - `risk`. Several runs need the same number, since they share episode seeds and may all fail on the same ones.
    """
    return max(2, math.ceil(math.log(risk) / math.log1p(-margin)))


def _score(t: float, skew: float) -> float:
    corrected = ((1 + skew * t / 3) ** 3 - 1) / skew + skew / 6 if abs(skew) > 1e-9 else t
    return min(t, corrected)


def _needed_score(quantile: float, skew: float) -> float:
    """Return the t with `_score` equal to `quantile`."""
    corrected = 3 / skew * (float(np.cbrt(1 + skew * (quantile - skew / 6))) - 1) if abs(skew) > 1e-9 else quantile
    return max(quantile, corrected)


def _episodes_needed(estimate: float, spread: _Spread, episodes: int, least: int, risk: float) -> int | None:
    """Return the number of further episodes for a power of at least 80%."""
    if estimate == 0:
        return None
    sign = math.copysign(1, estimate)

    def suffices(count: int) -> bool:
        error = spread.at(count)
        if error.std == 0:
            return True
        needed = _needed_score(error.quantile(risk), sign * error.skew)
        # SciPy's noncentral t fails far out in the tail, so this is Abramowitz & Stegun 26.7.10.
        shift = abs(estimate) / error.std - needed * (1 - 1 / (4 * error.freedom))
        return float(ndtr(shift / math.sqrt(1 + needed**2 / (2 * error.freedom)))) >= PLANNED_POWER

    counts = range(max(episodes + 1, least if estimate > 0 else 2), MAX_EPISODES)
    first = bisect_left(counts, True, key=suffices)
    return counts[first] - episodes if first < len(counts) else None
