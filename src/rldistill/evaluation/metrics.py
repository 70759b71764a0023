"""Metrics of episodes from the environment's `info`, such as collisions: their check and their estimates."""

import difflib
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import closing

import numpy as np

from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.core.spec import EnvConfig
from rldistill.envs.atari import is_atari
from rldistill.envs.vector import make_vector_env
from rldistill.evaluation.episodes import Episodes
from rldistill.evaluation.results import RunReturns
from rldistill.evaluation.statistics import Estimate, estimate, mean_of_reported

PROBE_STEPS, PROBE_TIME_S = 1_000, 10.0
MIN_SIMILARITY = 0.8
"""Similarity of names at which a metric that some episodes lack is taken for a misspelt one."""


def probe_metrics(env: EnvConfig, metrics: Sequence[str]) -> None:
    """Play at random up to the end of an episode; raise ConfigError for a metric that is misspelt or not a number."""
    if not metrics or is_atari(env.id):
        return
    start, rng = time.perf_counter(), np.random.default_rng(0)
    with closing(make_vector_env(env, 1, lambda slot, nth: 0)) as vector:
        vector.single_action_space.seed(0)
        obs, (single,) = vector.reset(), vector.group.envs  # type: ignore[attr-defined]
        for _ in range(PROBE_STEPS):
            step = vector.step(vector.sample_actions(obs, rng))
            if step.info or time.perf_counter() - start > PROBE_TIME_S:
                break
            obs = step.obs
        require_metrics(metrics, step.info or [single.numbers()], complete=False)


def require_metrics(metrics: Sequence[str], infos: Iterable[dict[str, float]], complete: bool) -> None:
    """Raise ConfigError for a metric that is not a number, or that no episode has.

    Without all episodes, only a metric that is missing and has a similar name among the others is an error.
    """
    if not metrics:
        return
    keys = dict[str, bool]()
    for info in infos:
        for key, number in info.items():
            keys[key] = keys.get(key, False) or not math.isnan(number)
    numbers = [key for key, is_number in keys.items() if is_number]
    for name in metrics:
        misspelt = difflib.get_close_matches(name, numbers, 1, MIN_SIMILARITY)
        if name in numbers or not (complete or name in keys or misspelt):
            continue
        problem = "is not a number in info" if name in keys else "is in no step's info"
        found = f"Its numbers are {', '.join(numbers)}" if numbers else "It has no numbers"
        raise ConfigError(
            f"evaluate.metrics: {name!r} {problem} of the environment.{did_you_mean(name, numbers)} {found}."
        )


def run_returns(seed: int | None, episodes: Episodes, metrics: Sequence[str]) -> RunReturns:
    """Return the record of a run, with its metrics."""
    values = {key: [None if math.isnan(own) else own for own in episodes.metric(key).tolist()] for key in metrics}
    return RunReturns(training_seed=seed, returns=episodes.returns.tolist(), metrics=values)


def metric_estimate(runs: Sequence[Episodes], key: str, distinct: int) -> Estimate | None:
    """Return the mean of a metric over the episodes of all runs that have it; None without any."""
    values = np.stack([episodes.metric(key) for episodes in runs])
    given = ~np.isnan(values)
    values = values[given.any(1)][:, given.any(0)]
    return estimate(mean_of_reported, values, distinct=min(distinct, values.shape[1])) if values.size else None
