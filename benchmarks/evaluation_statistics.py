"""Simulations of the statistics: coverage of the 95% intervals, false answers of the non-inferiority test, its power.

Returns are drawn from laws of which the truth is known. Every line is a share of simulated evaluations, with what it
should be. `rare failures` is the law that a sample shows least of: all is lost in one of 20 episodes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rldistill.evaluation.group_sequential import analysis_times, boundary
from rldistill.evaluation.non_inferiority import NonInferiorityResult, RiskLevels, non_inferior
from rldistill.evaluation.statistics import Statistic, estimate, iqm, mean, median, optimality_gap

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]
LAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "exponential, downwards": lambda rng, shape: 1 - rng.exponential(size=shape),
    "lognormal, downwards": lambda rng, shape: np.exp(0.125) - rng.lognormal(0, 0.5, shape),
}
FAILURES: dict[str, Draw] = {
    "lognormal with deviation 1, downwards": lambda rng, shape: np.exp(0.5) - rng.lognormal(0, 1, shape),
    "rare failures": lambda rng, shape: np.where(rng.random(shape) < 0.05, -95.0, 5.0) + rng.normal(size=shape),
}
STATISTICS: dict[str, Statistic] = {"mean": mean, "median": median, "iqm": iqm, "optimality gap": optimality_gap}
SIZES = (30, 50, 100)
FIRST, MOST = 30, 300


def coverage(law: Draw, episodes: int, draws: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the share of intervals that contain the value of a sample of four million."""
    everyone = law(rng, (1, 4_000_000))
    truths = {name: float(statistic(everyone)) for name, statistic in STATISTICS.items()}
    hits = dict.fromkeys(STATISTICS, 0)
    for _ in range(draws):
        returns = law(rng, (1, episodes))
        for name, statistic in STATISTICS.items():
            low, high = estimate(statistic, returns, seed=int(rng.integers(2**31))).ci95 or (np.nan, np.nan)
            hits[name] += low <= truths[name] <= high
    return {name: count / draws for name, count in hits.items()}


def asked(lead: NDArray[np.float64], risk: float = 0.05) -> NonInferiorityResult:
    """Return the result for a teacher of score 100, random play of 0 and a student of 95 plus `lead`."""
    episodes = lead.shape[1]
    return non_inferior(95 + lead, np.full((1, episodes), 100.0), np.zeros((1, episodes)), levels=RiskLevels(risk))


def at_the_margin(law: Draw, episodes: int, draws: int, rng: np.random.Generator) -> float:
    """Return the rate of false yes for a student at the margin; below 59 episodes, the rate of p < 0.05."""
    answers = [asked(law(rng, (1, episodes))) for _ in range(draws)]
    return sum(answer.lower is not None and answer.lower > 0 for answer in answers) / draws


def seeds_at_the_margin(runs: int, between: float, episodes: int, draws: int, rng: np.random.Generator) -> float:
    """Return the same rate for several training seeds with standard deviation `between`."""
    yes = 0
    for _ in range(draws):
        lead = between * rng.normal(size=(runs, 1)) + rng.normal(size=(1, episodes))
        yes += asked(lead + rng.normal(size=(runs, episodes))).decision == "yes"
    return yes / draws


def sequential(law: Draw, effect: float, draws: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return the rates of yes and no and the mean number of episodes of a sequential test."""
    counts = analysis_times(FIRST, MOST)
    risks = boundary(counts)
    ends: list[tuple[str, int]] = []
    for _ in range(draws):
        lead = effect + law(rng, (1, MOST))
        answers = (asked(lead[:, :count], risk) for count, risk in zip(counts, risks, strict=True))
        ends.append(next(((a.decision, a.episodes) for a in answers if a.decision != "undecided"), ("undecided", MOST)))
    decisions = [decision for decision, _ in ends]
    episodes = float(np.mean([count for _, count in ends]))
    return decisions.count("yes") / draws, decisions.count("no") / draws, episodes


def power(law: Draw, pilot: int, effect: float, draws: int, rng: np.random.Generator) -> tuple[float, float, int]:
    """How often as many episodes as a first evaluation asks for decide it, if its estimate is true.

    Also how often the first evaluation's episodes and so many more together do, whatever is true, and of how many
    undecided first evaluations these are shares. Those that ask for over 3,000 are left out.
    """
    scale = float(law(rng, (1_000_000,)).std())
    fresh, together = [], []
    for _ in range(draws):
        lead = effect + law(rng, (1, pilot))
        first = asked(lead)
        if first.decision != "undecided" or first.episodes_needed is None or first.episodes_needed > 3_000:
            continue
        right = "yes" if first.estimate > 0 else "no"
        episodes = pilot + first.episodes_needed
        as_estimated = first.estimate + lead.std(ddof=1) / scale * law(rng, (1, episodes))
        fresh.append(asked(as_estimated).decision == right)
        more = effect + law(rng, (1, first.episodes_needed))
        together.append(asked(np.concatenate([lead, more], 1)).decision == ("yes" if effect > 0 else "no"))
    return float(np.mean(fresh)), float(np.mean(together)), len(fresh)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2_000, help="simulated evaluations of each line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("coverage", "decision", "power"), help="one of them, instead of all")
    options = parser.parse_args()
    parts = {"coverage": say_coverage, "decision": say_decision, "power": say_power}
    for name in [options.part] if options.part else parts:
        parts[name](options.draws, np.random.default_rng(options.seed))


def say_coverage(draws: int, rng: np.random.Generator) -> None:
    print("coverage of the 95% interval (0.93 to 0.97)")
    for name, law in LAWS.items():
        for episodes in (50, 100):
            found = coverage(law, episodes, draws, rng)
            print(f"  {name}, n = {episodes}: " + ", ".join(f"{key} {share:.4f}" for key, share in found.items()))


def say_decision(draws: int, rng: np.random.Generator) -> None:
    print("false yes at the margin, one analysis, by the bound alone (at most 0.05; a yes needs 59 episodes besides)")
    for name, law in (LAWS | FAILURES).items():
        shares = [at_the_margin(law, episodes, 5 * draws, rng) for episodes in SIZES]
        print(f"  {name}: " + ", ".join(f"n = {n} {share:.4f}" for n, share in zip(SIZES, shares, strict=True)))
    for runs in (3, 5):
        shares = [seeds_at_the_margin(runs, between, 60, draws, rng) for between in (0.0, 0.3, 1.0)]
        print(f"  {runs} training seeds that differ by 0, 0.3 and 1: " + ", ".join(f"{share:.4f}" for share in shares))
    print(f"--sequential, an analysis every {FIRST} of {MOST} episodes")
    for name, law in (LAWS | FAILURES).items():
        yes, no, episodes = sequential(law, 0.0, draws, rng)
        print(f"  {name}, at the margin: yes {yes:.4f} (at most 0.05), no {no:.4f}, {episodes:.0f} episodes")
    for name, law in LAWS.items():
        yes, no, episodes = sequential(law, 0.3, draws, rng)
        print(f"  {name}, 0.3 above it: yes {yes:.4f}, no {no:.4f}, {episodes:.0f} episodes")


def say_power(draws: int, rng: np.random.Generator) -> None:
    print("power at the number of episodes asked for (at least 0.80 if the estimate is true)")
    for name, law in LAWS.items():
        for effect in (0.2, -0.2):
            fresh, together, undecided = power(law, 60, effect, draws, rng)
            print(
                f"  {name}, {effect:+g} from the margin: {fresh:.4f} if the estimate is true; "
                f"{together:.4f} as it is ({undecided} undecided of {draws})"
            )


if __name__ == "__main__":
    main()
