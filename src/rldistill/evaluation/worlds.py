"""Evaluation in other worlds: arguments of the environment, and ranges of its parameters, that were held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from rldistill.core.errors import ConfigError, short_repr
from rldistill.core.spec import EnvConfig
from rldistill.core.worlds import Worlds
from rldistill.envs.spaces import observation_views
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import PlayConfig, PolicyRuns, play, reference_name
from rldistill.evaluation.statistics import Estimate, estimate, mean, normalized_score
from rldistill.evaluation.tables import Record, Rows, TableCell, interval_text, number_text
from rldistill.io.progress import Part, Progress


class WorldReturns(Record):
    """Returns of one policy in worlds of one kind, normalized by teacher and random play in the same episodes."""

    mean: Estimate
    normalized: Estimate | None


WorldResults = dict[str, dict[str, WorldReturns]]
"""Results by the name of the worlds and by policy."""


def evaluation_env(env: EnvConfig, config: EvaluateConfig) -> EnvConfig:
    """Return the environment with `config.env_kwargs`.

    Raises:
        ConfigError: with `env_kwargs` or `worlds`, its observations or actions are others.
    """
    own = dataclasses.replace(env, kwargs={**env.kwargs, **config.env_kwargs})
    if both := config.env_kwargs.keys() & env.worlds.keys():
        raise ConfigError(f"evaluate.env_kwargs: {min(both)} is one of env.worlds, too. Use evaluate.worlds.")
    if config.env_kwargs:
        _require_same_spaces(own, env, "env_kwargs", config.env_kwargs)
    for name, worlds in config.worlds.items():
        _require_same_spaces(_in_worlds(own, worlds), own, f"worlds.{name}", worlds)
    return own


def _in_worlds(env: EnvConfig, worlds: Worlds) -> EnvConfig:
    return dataclasses.replace(env, worlds={**env.worlds, **worlds})


def _require_same_spaces(changed: EnvConfig, env: EnvConfig, key: str, value: Mapping[str, object]) -> None:
    views = observation_views(env)
    try:
        if observation_views(changed) == views:
            return
    except ConfigError as error:
        problem = str(error).replace("env.kwargs", key, 1).replace("env.worlds", key, 1)
        raise ConfigError(f"evaluate.{problem}") from None
    raise ConfigError(
        f"evaluate.{key}: with {short_repr(value)} {env.id} has other observations or actions than in the "
        "collection. Use arguments that keep its spaces."
    )


def other_worlds(
    env: EnvConfig,
    policies: Mapping[str, PolicyRuns],
    config: EvaluateConfig,
    episodes: int,
    base: PlayConfig,
    progress: Progress,
) -> WorldResults:
    """Play the seeds of the evaluation in each kind of `config.worlds`, with all policies.

    Parameters that a kind leaves out are drawn as in `env.worlds`.
    """
    results: WorldResults = {}
    done, total = 0, episodes * len(config.worlds) * sum(len(entry.runs) for entry in policies.values())
    for kind, worlds in config.worlds.items():
        changed = _in_worlds(env, worlds)
        returns, distinct = {}, {}
        for name, entry in policies.items():
            side = dataclasses.replace(base, side=entry.side)
            runs = []
            for run in entry.runs.values():
                runs.append(play(changed, run, episodes, side, progress=Part(progress, done, total)))
                done += episodes
            returns[name], distinct[name] = np.stack([run.returns for run in runs]), min(run.distinct for run in runs)
        compared = returns["teacher"], returns[reference_name(policies)]
        results[kind] = {
            name: WorldReturns(
                mean=estimate(mean, own, distinct=distinct[name]),
                normalized=normalized_score(own, *compared, distinct=min(distinct.values())),
            )
            for name, own in returns.items()
        }
    return results


def world_rows(results: WorldResults) -> Rows:
    """Return a list of cells for each kind of worlds: the mean return of each policy over its normalized score."""
    return [
        [
            TableCell("worlds", kind),
            *(TableCell(name, number_text(own.mean.value), _note(own)) for name, own in rows.items()),
        ]
        for kind, rows in results.items()
    ]


def _note(own: WorldReturns) -> str:
    score = own.normalized
    ends = "" if score is None else interval_text(score.ci95, ".3f")
    return "" if score is None else f"normalized {score.value:.3f}" + f" ({ends})" * bool(ends)
