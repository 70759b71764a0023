"""Verify: is this teacher what it is said to be, and is it used as it was meant to be?"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, ttest_ind_from_stats
from torch import Tensor

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.policy import ObsTransformPolicy, Policy, PolicyOutput
from rldistill.envs.atari import preprocessed_id
from rldistill.envs.config import EnvConfig
from rldistill.envs.rollout import StatefulPolicy, inference_threads, rollout, to_env_action
from rldistill.envs.spaces import adapt_env, spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.evaluation.episodes import play
from rldistill.evaluation.statistics import mean_interval
from rldistill.io.progress import Part, Progress, stage_progress
from rldistill.policies.network import NetworkPolicy
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.load import told_in

WITHIN, LEVEL = 0.10, 0.99
LOOKED_AT = 512
FAR, FAR_SHARE = 5.0, 0.05
SAME_ACTION = 0.99
SMALL_P = 0.01
TURNED_EPISODES = 8


@dataclass(frozen=True)
class Claim:
    """A published mean return, its standard deviation over episodes and their number, as far as they are known."""

    mean: float
    std: float = 0.0
    episodes: int = 0

    @classmethod
    def parse(cls, text: str, episodes: int = 0) -> Claim:
        """`242.1±31.8`, `242.1+-31.8` or `242.1`, with any minus; raises ConfigError for anything else."""
        number = r"([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
        match = re.fullmatch(rf"\s*{number}\s*(?:(?:±|\+-|\+/-)\s*{number})?\s*", text.replace("\N{MINUS SIGN}", "-"))
        if match is None:
            raise ConfigError(f"--claimed: expected a mean such as 242.1, or 242.1±31.8, found {text!r}")
        if (std := float(match[2] or 0)) < 0:
            raise ConfigError(f"--claimed: expected a deviation of at least 0, found {text!r}")
        if not math.isfinite(float(match[1])) or not math.isfinite(std):
            raise ConfigError(f"--claimed: expected finite numbers, found {text!r}")
        return cls(float(match[1]), std, episodes)

    def compare(self, returns: NDArray[np.float64]) -> dict[str, Any]:
        """Consistent where the claim is inside the 99% interval of the difference of means, or within 10% of it.

        The interval is normal, with the variances of both means; that of a claim without a number of episodes is taken
        to be 0.
        """
        difference = float(returns.mean() - self.mean)
        variance = returns.var(ddof=1) / len(returns) if len(returns) > 1 else 0.0
        variance += self.std**2 / self.episodes if self.episodes else 0.0
        half = float(norm.ppf((1 + LEVEL) / 2) * math.sqrt(variance))
        inside, near = abs(difference) <= half, abs(difference) <= WITHIN * abs(self.mean)
        why = "within the 99% interval of the difference" if inside else "within 10%" if near else "neither"
        return {
            "mean": self.mean,
            "std": self.std,
            "difference": difference,
            "interval99": [difference - half, difference + half],
            "consistent": bool(inside or near),
            "because": why,
        }


def verify(
    policy: Policy,
    env: EnvConfig,
    claim: Claim | None = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    name: str = "the teacher",
    progress: Progress | bool = True,
) -> dict[str, Any]:
    """Score a teacher, compare it with what is claimed, and look for the usual mistakes.

    Returns:
        `mean`, `std`, `ci95`, `episodes`, `claim` (null without one), `suspicious` (texts) and `ok`.

    Raises:
        ConfigError: no episodes are asked for.
    """
    if episodes < 1:
        raise ConfigError(f"--episodes: expected at least 1, found {episodes}")
    try:
        policy, env = fitted(policy, env, name)
    except SpecMismatchError as error:
        game = preprocessed_id(env.id)
        other = "another environment" if game is None else f"{game} with repeat_action_probability=0"
        other = f"{other}, --env-kwarg, or --env module:function for one with wrappers"
        return {
            "mean": None,
            "std": None,
            "ci95": None,
            "episodes": 0,
            "claim": None,
            "suspicious": [f"{error}; {other}, may be what it was made for"],
            "ok": False,
        }
    stochastic = policy.spec.head.stochastic
    total = episodes * (2 if stochastic else 1)
    with stage_progress(progress, "verify", "episodes") as report:
        played = play(env, policy, episodes, seed=seed, progress=Part(report, 0, total))
        drawn = (
            play(env, policy, episodes, seed=seed, sample=True, progress=Part(report, episodes, total))
            if stochastic
            else None
        )
    suspicious = [*quick_check(policy, env, seed), *_frames_turned_round(policy, env, played.returns, seed)]
    if drawn is not None:
        suspicious += _better_when_sampled(played.returns, drawn.returns)
    compared = claim.compare(played.returns) if claim is not None else None
    low, high = mean_interval(played.returns[None])
    return {
        "mean": float(played.returns.mean()),
        "std": float(played.returns.std()),
        "ci95": [low, high],
        "episodes": episodes,
        "claim": compared,
        "suspicious": suspicious,
        "ok": not suspicious and (compared is None or compared["consistent"]),
    }


def fitted(policy: Policy, env: EnvConfig, name: str = "the teacher") -> tuple[Policy, EnvConfig]:
    """A policy, confined to legal actions, and the environment as it needs it.

    Raises:
        SpecMismatchError: what `name` names does not fit the environment, or what was around its own does not.
    """
    try:
        env = adapt_env(env, policy).view_of("teacher")
        spec = spec_from_env(env)
    except ConfigError as error:
        if not policy.spec.view and not policy.spec.env_kwargs:
            raise
        what = str(error).removeprefix("env.wrappers: ").removeprefix("env.kwargs: ")
        raise SpecMismatchError(f"{name} and {env.id} do not fit: {told_in(name)}: {what}") from None
    policy = with_action_mask(policy, spec)
    policy.spec.require_same_input(spec, name, env.id)
    return policy, env


def quick_check(policy: Policy, env: EnvConfig, seed: int = 0, steps: int = LOOKED_AT) -> list[str]:
    """The mistakes that a few hundred steps show: constant actions, observations of the wrong scale.

    Raises:
        SpecMismatchError: the policy does not fit the environment.
    """
    policy, env = fitted(policy, env)
    seen, outputs = _watch(policy, env, seed, steps)
    if not torch.isfinite(outputs.params).all():
        return ["its outputs are NaN or infinite in some states: look at its weights, and at the scale of observations"]
    return [*_constant(outputs), *_out_of_range(policy, seen), *_wrong_scale(policy, seen)]


def _watch(policy: Policy, env: EnvConfig, seed: int, steps: int) -> tuple[NDArray[Any], PolicyOutput]:
    vector = make_vector_env(env, 4, lambda slot, episode: seed * 1000 + episode * 4 + slot)
    memory = StatefulPolicy(policy, 4)
    seen, outputs = [], []

    def act(obs: NDArray[Any]) -> NDArray[Any]:
        outputs.append(memory.step(obs))
        seen.append(obs.copy())
        return to_env_action(outputs[-1].mode())

    with inference_threads(1):
        for transition in rollout(vector, vector.reset(), act):
            if transition is None:
                continue
            memory.reset(transition.step.ended)
            if 4 * len(seen) >= steps:
                break
    vector.close()
    return np.concatenate(seen), PolicyOutput(outputs[0].head, torch.cat([output.params for output in outputs]))


def _constant(output: PolicyOutput) -> list[str]:
    actions = output.mode()
    if output.head.discrete:
        _, counts = torch.unique(actions.reshape(len(actions), -1), dim=0, return_counts=True)
        share = float(counts.max()) / len(actions)
        return [f"constant actions: one is taken in {share:.1%} of the states"] if share > SAME_ACTION else []
    low, high = actions.new_tensor(output.head.low), actions.new_tensor(output.head.high)
    still = actions.std(0) < 1e-3 * torch.where(torch.isfinite(high - low), high - low, torch.ones_like(low))
    return ["constant actions: they hardly differ between states"] if bool(still.all()) else []


def _out_of_range(policy: Policy, seen: NDArray[Any]) -> list[str]:
    if not isinstance(policy, NetworkPolicy) or not policy.obs_clip:
        return []
    scaled = policy.scaled(torch.from_numpy(seen))
    entries = {"": scaled} if isinstance(scaled, Tensor) else scaled
    # Only what a normaliser clips was normalised: other entries of a dict may be of any size.
    normalised = torch.cat([entries[key].flatten(1) for key in policy.obs_clip], 1)
    share = float((normalised.abs() > FAR).float().mean())
    if share <= FAR_SHARE:
        return []
    return [f"{share:.1%} of the observations are more than {FAR:g} standard deviations from the normaliser's mean"]


def _wrong_scale(policy: Policy, seen: NDArray[Any]) -> list[str]:
    if policy.spec.obs_dtype != "uint8" or len(policy.spec.obs_shape) != 3:
        return []
    if seen.max() <= 1:
        return ["frames of the wrong scale: no pixel is above 1, where 0 to 255 are expected"]
    return []


def _frames_turned_round(policy: Policy, env: EnvConfig, returns: NDArray[np.float64], seed: int) -> list[str]:
    if spec_from_env(env).frames is None:
        return []
    turned = play(
        env, ObsTransformPolicy(policy, lambda obs: obs.flip(1)), min(len(returns), TURNED_EPISODES), seed=seed
    ).returns
    if turned.mean() <= returns.mean() or _welch(returns, turned) > SMALL_P:
        return []
    return [f"frames of the wrong order: {returns.mean():.1f}, but {turned.mean():.1f} when the stack is turned round"]


def _better_when_sampled(greedy: NDArray[np.float64], drawn: NDArray[np.float64]) -> list[str]:
    if drawn.mean() <= greedy.mean():
        return []
    p = _welch(greedy, drawn)
    if p > SMALL_P:
        return []
    return [
        f"run deterministically, but better when its actions are sampled: {greedy.mean():.1f} and {drawn.mean():.1f} "
        f"(p = {p:.2g})"
    ]


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The p-value of equal means; 1 where there are too few episodes to tell."""
    if min(len(a), len(b)) < 2:
        return 1.0
    stds = a.std(ddof=1), b.std(ddof=1)
    if max(stds) == 0:
        return float(a.mean() == b.mean())
    return float(ttest_ind_from_stats(a.mean(), stds[0], len(a), b.mean(), stds[1], len(b), equal_var=False).pvalue)
