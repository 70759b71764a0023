"""Robustness: what the teacher and its students lose where things are not quite as they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.device import CPU
from rldistill.core.errors import RLDistillError
from rldistill.core.policy import Policy
from rldistill.core.spec import Wrapper
from rldistill.envs.atari import ATARI_DEFAULTS, is_atari
from rldistill.envs.config import EnvConfig, Side
from rldistill.envs.make import make_env
from rldistill.envs.perturbations import ChangedPhysics, has_number
from rldistill.envs.seeding import block_generator, episode_seed
from rldistill.envs.spaces import observation_views
from rldistill.envs.vector import first_legal, make_vector_env
from rldistill.evaluation.config import RobustnessConfig
from rldistill.evaluation.episodes import play
from rldistill.evaluation.noise import deviation_of, noise_scale, noisy
from rldistill.evaluation.statistics import Returns, mean_interval, normalised_score
from rldistill.io.progress import SILENT, Part, Progress
from rldistill.policies.wrappers import has_mask, with_action_mask

PHYSICS: tuple[tuple[str, str, float | bool], ...] = (
    ("gravity x 1.15", "gravity", 1.15),
    ("gravity x 1.15", "g", 1.15),
    ("gravity x 1.15", "model.opt.gravity", 1.15),
    ("masses x 1.15", "model.body_mass", 1.15),
    ("weaker push x 0.8", "force_mag", 0.8),
    ("weaker engine x 0.9", "force", 0.9),
    ("weaker engine x 0.9", "power", 0.9),
    ("heavier link x 1.15", "LINK_MASS_2", 1.15),
    ("wind", "enable_wind", True),
)
"""What a perturbation is called, the attribute of the environment, and what it is multiplied with, or becomes."""


PHYSICS_WRAPPER = f"{ChangedPhysics.__module__}:{ChangedPhysics.__name__}"


LOOKED_AT, EPISODES_LOOKED_AT = 100, 3


@dataclass(frozen=True)
class Players:
    """One policy with several training seeds, what it is shown, and its returns `[runs, episodes]` unperturbed."""

    runs: Sequence[Policy]
    side: Side
    returns: Returns


def perturbed_envs(env: EnvConfig, config: RobustnessConfig) -> tuple[dict[str, EnvConfig], dict[str, str]]:
    """The environments with one thing changed, by the name of what was, and what could not be and why not.

    Those that play on as if nothing had changed are among the latter: equal actions are tried in both.
    """
    found: dict[str, EnvConfig] = {}
    left_out: dict[str, str] = {}
    for name, changed in _candidates(env, config):
        if isinstance(changed, str):
            left_out[name] = changed
            continue
        try:
            acts = _acts(env, changed)
        except (RLDistillError, AssertionError, ValueError) as error:
            left_out[name] = f"{env.id} does not take it: {error}"
            continue
        if acts:
            found[name] = changed
        else:
            left_out.setdefault(name, f"{env.id} plays on as if nothing had changed")
    return found, {name: why for name, why in left_out.items() if name not in found}


def _candidates(env: EnvConfig, config: RobustnessConfig) -> Iterator[tuple[str, EnvConfig | str]]:
    """Names, and the environment with that changed, or why it cannot be."""
    settings = {**ATARI_DEFAULTS, **env.kwargs}
    if config.sticky:
        name = f"sticky actions {config.sticky:g}"
        before = settings["repeat_action_probability"] if is_atari(env.id) else 0
        key = {"repeat_action_probability": config.sticky}
        if before >= config.sticky:
            yield name, f"{env.id} has sticky actions of {before:g} as it is"
        else:
            yield name, _with_kwargs(env, key) if is_atari(env.id) else _inside(env, Wrapper("StickyAction", key))
    if config.noop_max:
        name = f"no-op starts up to {config.noop_max}"
        if not is_atari(env.id):
            yield name, f"only ale-py's own emulators begin with no-ops, and {env.id} does not run on them"
        elif settings["noop_max"] == config.noop_max:
            yield name, f"{env.id} begins with as many as it is"
        else:
            yield name, _with_kwargs(env, {"noop_max": config.noop_max})
    if config.physics:
        yield from _physics(env)
    for name, kwargs in config.env_kwargs.items():
        yield name, _with_kwargs(env, kwargs)


def _physics(env: EnvConfig) -> Iterator[tuple[str, EnvConfig | str]]:
    if is_atari(env.id):
        yield "physics", f"{env.id} is a game in a ROM, whose physics cannot be changed"
        return
    bare = make_env(env.view_of("student"))
    known = [entry for entry in PHYSICS if has_number(bare, entry[1])]
    bare.close()
    for name, attribute, change in known:
        kwargs = {"attribute": attribute, "value" if isinstance(change, bool) else "factor": change}
        yield name, _inside(env, Wrapper(PHYSICS_WRAPPER, kwargs))
    if not known:
        yield "physics", f"{env.id} has none of {', '.join(dict.fromkeys(path for _, path, _ in PHYSICS))}"


def _with_kwargs(env: EnvConfig, kwargs: Mapping[str, Any]) -> EnvConfig:
    return dataclasses.replace(env, kwargs={**env.kwargs, **kwargs})


def _inside(env: EnvConfig, wrapper: Wrapper) -> EnvConfig:
    """The environment with a wrapper below all others, so that everyone is shown the same of it."""
    return dataclasses.replace(env, wrappers=(wrapper, *env.wrappers))


def _acts(env: EnvConfig, changed: EnvConfig) -> bool:
    """Whether equal actions lead elsewhere within a few hundred steps."""
    pairs = zip(_look(env), _look(changed), strict=False)
    return any(not np.array_equal(a, b) for a, b in pairs)


def _look(env: EnvConfig) -> Iterator[NDArray[Any]]:
    vector = make_vector_env(env, EPISODES_LOOKED_AT, lambda slot, nth: episode_seed(0, "evaluate", 2, 0, slot, nth))
    spec = observation_views(env).student
    vector.single_action_space.seed(0)
    try:
        obs = vector.reset()
        yield obs
        for _ in range(LOOKED_AT):
            action = np.stack([vector.single_action_space.sample() for _ in range(EPISODES_LOOKED_AT)])
            step = vector.step(
                first_legal(observation_views(env).select("student", obs), spec) if has_mask(spec) else action
            )
            obs = step.obs
            yield np.concatenate([obs.reshape(EPISODES_LOOKED_AT, -1), step.reward[:, None]], 1)
    finally:
        vector.close()


def robustness(
    env: EnvConfig,
    players: Mapping[str, Players],
    random: Returns,
    config: RobustnessConfig,
    *,
    seed: int = 0,
    sample: bool = False,
    device: torch.device = CPU,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Let every policy play the same episodes again under each perturbation.

    Args:
        env: the environment.
        players: who plays, `teacher` among them.
        random: returns of random play, `[1, episodes]`, unperturbed.
        config: the perturbations.
        seed: the run's, by which the episodes are those that the policies were judged by.
        sample: whether stochastic policies sample their actions.
        device: Device on which the policies compute.
        progress: receives the number of finished episodes.

    Returns:
        `episodes`, `perturbations.<name>.<policy>` (`mean`, `ci95`, `normalised`: 1 for the teacher without
        perturbation and 0 for random play without; `lost`: the mean without, less the mean with it, over the same
        episodes) and `left_out.<name>`, why that was not played.
    """
    changed, left_out = perturbed_envs(env, config)
    sight = observation_views(env)
    noise = f"observation noise {config.pixel_noise if sight.student.obs_dtype == 'uint8' else config.noise:g}"
    scales = _scales(env, players, config, seed)
    can_be = {name: bool((scale > 0).any()) for name, scale in scales.items()}
    worlds: dict[str, EnvConfig] = {**({noise: env} if all(can_be.values()) else {}), **changed}
    if not all(can_be.values()) and (config.noise or config.pixel_noise):
        left_out[noise] = f"nothing in an observation of {env.id} takes noise of this size"
    episodes = min(config.episodes, *(players[name].returns.shape[1] for name in players))
    total, done = episodes * len(worlds) * sum(len(each.runs) for each in players.values()), 0
    found: dict[str, dict[str, Any]] = {}
    for number, (world, here) in enumerate(worlds.items()):
        found[world] = {}
        for name, each in players.items():
            returns = []
            for run, policy in enumerate(each.runs):
                who = with_action_mask(policy, getattr(sight, each.side))
                if world == noise:
                    draws = block_generator(seed, "evaluate", 2, number, run).integers(2**62)
                    who = noisy(who, scales[name], torch.Generator().manual_seed(int(draws)))
                played = play(
                    here,
                    who,
                    episodes,
                    seed=seed,
                    sample=sample,
                    side=each.side,
                    device=device,
                    progress=Part(progress, done, total),
                )
                returns.append(played.returns)
                done += episodes
            found[world][name] = _row(np.stack(returns), each.returns[:, :episodes], players["teacher"].returns, random)
    return {"episodes": episodes, "perturbations": found, "left_out": left_out}


def _scales(env: EnvConfig, players: Mapping[str, Players], config: RobustnessConfig, seed: int) -> dict[str, Tensor]:
    """Of the noise on what each policy sees; all that see the same have the same."""
    sight = observation_views(env)
    scales = {}
    deviations: dict[str, NDArray[np.float64]] = {}
    for name, each in players.items():
        policy, spec = with_action_mask(each.runs[0], getattr(sight, each.side)), getattr(sight, each.side)
        shared = each.side if sight.packed else "both"
        if shared not in deviations:
            deviations[shared] = deviation_of(env, policy, each.side, seed)
        scales[name] = noise_scale(spec, deviations[shared], config.noise, config.pixel_noise)
    return scales


def _row(
    returns: Returns,
    before: Returns,
    teacher: Returns,
    random: Returns,
) -> dict[str, Any]:
    low, high = mean_interval(returns)
    return {
        "mean": float(returns.mean()),
        "ci95": [low, high],
        "normalised": normalised_score(returns, teacher, random),
        "lost": float(before.mean() - returns.mean()),
    }
