"""Robustness: returns of the teacher and its students in perturbed environments, one perturbation at a time."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.entries import flat_values, join_tensors, split_parts
from rldistill.core.errors import RLDistillError
from rldistill.core.heads import MASK
from rldistill.core.policy import CPU, ObsTransformPolicy, Policy
from rldistill.core.spec import EnvConfig, PolicySpec, Wrapper
from rldistill.envs.atari import ATARI_DEFAULTS, is_atari
from rldistill.envs.make import make_env
from rldistill.envs.seeding import block_generator, episode_seed
from rldistill.envs.spaces import observation_views
from rldistill.envs.vector import make_vector_env
from rldistill.envs.worlds import ChangedPhysics, has_number
from rldistill.evaluation.changed_play import PerturbedReturns, Robustness
from rldistill.evaluation.config import RobustnessConfig
from rldistill.evaluation.episodes import CALIBRATION, PlayConfig, PolicyRuns, play, reference_name
from rldistill.evaluation.statistics import Returns
from rldistill.io.progress import Part, Progress
from rldistill.policies.wrappers import with_action_mask

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
"""Name of the perturbation, attribute of the environment, and its factor or (for a boolean) its new value."""

PHYSICS_WRAPPER = f"{ChangedPhysics.__module__}:{ChangedPhysics.__name__}"
PROBE_STEPS, PROBE_EPISODES = 100, 3
SCALE_EPISODES, MAX_SCALE_STATES = 4, 2_000


def robustness(
    env: EnvConfig,
    policies: Mapping[str, PolicyRuns],
    returns: Mapping[str, Returns],
    config: RobustnessConfig | None,
    base: PlayConfig,
    progress: Progress,
) -> Robustness | None:
    """Play the same episodes under each perturbation, with the teacher and the students; None without `config`.

    `returns` are those of all policies without perturbation, and `base` the settings of these episodes.
    """
    if config is None:
        return None
    reference = returns[reference_name(policies)]
    policies = {name: entry for name, entry in policies.items() if entry.kind in ("teacher", "student")}
    envs, left_out = perturbed_envs(env, config)
    views = observation_views(env)
    noise = f"observation noise {config.pixel_noise if views.student.obs_dtype == 'uint8' else config.noise:g}"
    scales = _noise_scales(env, policies, config, base)
    if all(bool((scale > 0).any()) for scale in scales.values()):
        envs = {noise: env, **envs}
    elif config.noise or config.pixel_noise:
        left_out[noise] = f"no value of an observation of {env.id} can have noise of this size"
    episodes = min(config.episodes, *(own.shape[1] for own in returns.values()))
    total, done = episodes * len(envs) * sum(len(entry.runs) for entry in policies.values()), 0
    results: dict[str, dict[str, PerturbedReturns]] = {name: {} for name in envs}
    for number, (perturbation, perturbed) in enumerate(envs.items()):
        for name, entry in policies.items():
            runs = []
            for run, policy in enumerate(filter(None, entry.runs.values())):
                acting = with_action_mask(policy, getattr(views, entry.side))
                if perturbation == noise:
                    seed = int(block_generator(base.seed, "evaluate", CALIBRATION, number, run).integers(2**62))
                    acting = noisy(acting, scales[name], torch.Generator().manual_seed(seed))
                side = dataclasses.replace(base, side=entry.side)
                runs.append(play(perturbed, acting, episodes, side, progress=Part(progress, done, total)).returns)
                done += episodes
            own = np.stack(runs)
            before = returns[name][:, :episodes]
            results[perturbation][name] = PerturbedReturns.of(own, before, returns["teacher"], reference)
    return Robustness(episodes=episodes, perturbations=results, left_out=left_out)


def perturbed_envs(env: EnvConfig, config: RobustnessConfig) -> tuple[dict[str, EnvConfig], dict[str, str]]:
    """Return the perturbed environments by name, and the reason for each that was left out.

    A perturbation without effect on a few episodes of equal actions is left out, too.
    """
    found: dict[str, EnvConfig] = {}
    left_out: dict[str, str] = {}
    for name, changed in _candidates(env, config):
        if isinstance(changed, str):
            left_out[name] = changed
            continue
        try:
            if any(not np.array_equal(a, b) for a, b in zip(_probe(env), _probe(changed), strict=False)):
                found[name] = changed
            else:
                left_out.setdefault(name, f"it has no effect on {env.id}")
        except (RLDistillError, AssertionError, ValueError) as error:
            left_out[name] = f"{env.id} does not accept it: {error}"
    return found, {name: reason for name, reason in left_out.items() if name not in found}


def _candidates(env: EnvConfig, config: RobustnessConfig) -> Iterator[tuple[str, EnvConfig | str]]:
    """Yield names, with the perturbed environment or the reason against it."""
    atari, settings = is_atari(env.id), {**ATARI_DEFAULTS, **env.kwargs}
    if config.sticky:
        name, sticky = f"sticky actions {config.sticky:g}", {"repeat_action_probability": config.sticky}
        current = settings["repeat_action_probability"] if atari else 0
        if current >= config.sticky:
            yield name, f"{env.id} already has sticky actions of {current:g}"
        else:
            yield name, _changed(env, sticky) if atari else _changed(env, wrapper=Wrapper("StickyAction", sticky))
    if config.noop_max:
        name = f"no-op starts up to {config.noop_max}"
        if not atari:
            yield name, f"only ale-py's emulators support no-op starts, and {env.id} is not one of them"
        elif settings["noop_max"] == config.noop_max:
            yield name, f"{env.id} already has this number"
        else:
            yield name, _changed(env, {"noop_max": config.noop_max})
    if config.physics and atari:
        yield "physics", f"{env.id} is a game in a ROM, whose physics cannot be changed"
    elif config.physics:
        bare = make_env(env.view_of("student"))
        changes = [entry for entry in PHYSICS if has_number(bare, entry[1])]
        bare.close()
        for name, attribute, change in changes:
            kwargs = {"attribute": attribute, "value" if isinstance(change, bool) else "factor": change}
            yield name, _changed(env, wrapper=Wrapper(PHYSICS_WRAPPER, kwargs))
        if not changes:
            yield "physics", f"{env.id} has none of {', '.join(dict.fromkeys(path for _, path, _ in PHYSICS))}"
    for name, own in config.env_kwargs.items():
        yield name, _changed(env, own)


def _changed(env: EnvConfig, kwargs: Mapping[str, Any] = {}, wrapper: Wrapper | None = None) -> EnvConfig:
    """Return the environment with other arguments, or a wrapper below all others: both views show its effect."""
    wrappers = env.wrappers if wrapper is None else (wrapper, *env.wrappers)
    return dataclasses.replace(env, kwargs={**env.kwargs, **kwargs}, wrappers=wrappers)


def _probe(env: EnvConfig) -> Iterator[NDArray[Any]]:
    """Yield observations and rewards of a few episodes with fixed seeds and actions."""
    vector = make_vector_env(
        env, PROBE_EPISODES, lambda slot, nth: episode_seed(0, "evaluate", CALIBRATION, 0, slot, nth)
    )
    vector.single_action_space.seed(0)
    with closing(vector):
        yield (obs := vector.reset())
        for _ in range(PROBE_STEPS):
            step = vector.step(vector.sample_actions(obs))
            obs = step.obs
            yield np.concatenate([obs.reshape(PROBE_EPISODES, -1), step.reward[:, None]], 1)


def noisy(policy: Policy, scale: Tensor, generator: torch.Generator) -> ObsTransformPolicy:
    """Return a policy that observes through Gaussian noise, drawn anew in every step; pixels stay between 0 and 255.

    `scale` is the standard deviation of each value, `[*flat_shape]`.
    """
    spec = policy.spec
    flat = [np.full(math.prod(part.shape), part.dtype == "uint8") for part in spec.entries.values()]
    pixels = torch.from_numpy(np.concatenate(flat).reshape(spec.flat_shape))

    def add_noise(obs: Tensor) -> Tensor:
        values = flat_values(obs, spec)
        noise = (torch.randn(values.shape, generator=generator) * scale).to(obs.device)
        if values.dtype == torch.uint8:
            return (values + noise).round_().clamp_(0, 255).to(torch.uint8)
        values = values + noise.to(values.dtype)
        if obs.dtype != torch.uint8:
            return torch.where(pixels.to(obs.device), values.clamp(0, 255), values)
        values = torch.where(pixels.to(obs.device), values.round().clamp(0, 255), values)
        return join_tensors(split_parts(values, spec), spec)

    return ObsTransformPolicy(policy, add_noise)


def noise_scale(spec: PolicySpec, std: NDArray[np.floating[Any]], noise: float, pixel_noise: float) -> Tensor:
    """Return the standard deviations of the noise, `[*flat_shape]`: shares of each value's own, and of 255 for pixels.

    Integers that stand for categories and action masks have none.
    """
    stds = np.split(std.ravel(), np.cumsum([math.prod(part.shape) for part in spec.entries.values()])[:-1])
    scales = [
        np.full(own.shape, pixel_noise * 255.0)
        if part.dtype == "uint8"
        else noise * own * (np.dtype(part.dtype).kind == "f" and key != MASK)
        for (key, part), own in zip(spec.entries.items(), stds, strict=True)
    ]
    return torch.from_numpy(np.concatenate(scales).reshape(spec.flat_shape)).float()


def _noise_scales(
    env: EnvConfig, policies: Mapping[str, PolicyRuns], config: RobustnessConfig, base: PlayConfig
) -> dict[str, Tensor]:
    """Return the scale of the noise for each policy, from a few episodes; policies with the same view have the same."""
    views, scales = observation_views(env), {}
    by_view: dict[str, Tensor] = {}
    for name, entry in policies.items():
        spec, view = getattr(views, entry.side), entry.side if views.packed else "both"
        if view not in by_view and entry.first is not None:
            seen: list[Tensor] = []
            policy = ObsTransformPolicy(with_action_mask(entry.first, spec), partial(_record, seen))
            std = np.zeros(spec.flat_shape)
            if spec.parts or spec.obs_dtype != "uint8":  # noise on pixels does not depend on their own deviation
                settings = dataclasses.replace(base, split=CALIBRATION, side=entry.side, sample=False, device=CPU)
                play(env, policy, SCALE_EPISODES, settings)
                std = flat_values(torch.cat(seen), spec).double().numpy().std(0)
            by_view[view] = noise_scale(spec, std, config.noise, config.pixel_noise)
        scales[name] = by_view[view]
    return scales


def _record(seen: list[Tensor], obs: Tensor) -> Tensor:
    if sum(map(len, seen)) < MAX_SCALE_STATES:
        seen.append(obs.cpu().clone())
    return obs
