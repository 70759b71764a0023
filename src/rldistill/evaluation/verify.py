"""Verification of a teacher: its score, its published score, and the usual mistakes in its use."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, ttest_ind_from_stats
from torch import Tensor

from rldistill.core.env import EnvConfig
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.policy import ObsTransformPolicy, Policy, PolicyOutput
from rldistill.envs.atari import preprocessed_id
from rldistill.envs.rollout import StatefulPolicy, inference_threads, rollout, to_env_action
from rldistill.envs.spaces import adapt_env, spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.statistics import mean_interval
from rldistill.evaluation.tables import Printable, TableCell, rich_table
from rldistill.io.progress import Part, Progress, stage_progress
from rldistill.policies.network import NetworkPolicy
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.load import settings_source

if TYPE_CHECKING:
    from rich.console import RenderableType

TOLERANCE, CONFIDENCE = 0.10, 0.99
NUM_CHECKED_STATES, NUM_SLOTS = 512, 4
OUTLIER_STD, MAX_OUTLIER_SHARE = 5.0, 0.05
MAX_SAME_ACTION_SHARE = 0.99
SIGNIFICANCE = 0.01
MAX_REVERSED_EPISODES = 8


@dataclass(frozen=True)
class Claim:
    """Published mean return, with its standard deviation over episodes and their number, if known."""

    mean: float
    std: float = 0.0
    episodes: int = 0

    @classmethod
    def parse(cls, text: str, episodes: int = 0) -> Claim:
        """Parse `242.1±31.8`, `242.1+-31.8` or `242.1`; raise ConfigError for anything else."""
        number = r"([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
        match = re.fullmatch(rf"\s*{number}\s*(?:(?:±|\+-|\+/-)\s*{number})?\s*", text.replace("\N{MINUS SIGN}", "-"))
        if match is None:
            raise ConfigError(f"--claimed: expected a mean such as 242.1, or 242.1±31.8, found {text!r}")
        if (std := float(match[2] or 0)) < 0:
            raise ConfigError(f"--claimed: expected a deviation of at least 0, found {text!r}")
        if not math.isfinite(float(match[1])) or not math.isfinite(std):
            raise ConfigError(f"--claimed: expected finite numbers, found {text!r}")
        return cls(float(match[1]), std, episodes)

    def check(self, returns: NDArray[np.float64]) -> ClaimCheck:
        """Compare the claim with returns.

        It is consistent if it lies within the 99% interval of the difference of means, or within 10% of the mean. The
        interval is normal, with the variances of both means; a claim without a number of episodes counts as exact.
        """
        difference = float(returns.mean() - self.mean)
        variance = returns.var(ddof=1) / len(returns) if len(returns) > 1 else 0.0
        variance += self.std**2 / self.episodes if self.episodes else 0.0
        half = float(norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt(variance))
        inside, near = abs(difference) <= half, abs(difference) <= TOLERANCE * abs(self.mean)
        reason = "it lies outside the 99% interval of the difference, and more than 10% away"
        if inside or near:
            reason = "within the 99% interval of the difference" if inside else "within 10%"
        interval = (difference - half, difference + half)
        return ClaimCheck(self.mean, self.std, difference, interval, bool(inside or near), reason)


@dataclass(frozen=True)
class ClaimCheck:
    """Comparison of a claim with the measured mean; `difference` is measured minus claimed."""

    mean: float
    std: float
    difference: float
    interval99: tuple[float, float]
    consistent: bool
    reason: str


@dataclass(frozen=True)
class VerifyConfig:
    """Settings of `verify`.

    Attributes:
        episodes: number of full episodes.
        claim: published return.
    """

    episodes: int = 100
    claim: Claim | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"--episodes: expected at least 1, found {self.episodes}")


@dataclass(frozen=True, repr=False)
class Verification(Printable):
    """Result of `verify`.

    Attributes:
        teacher, env: names of both.
        mean, std, ci95: mean return, its standard deviation over episodes, and its 95% interval; None if the teacher
            does not fit the environment.
        episodes: number of episodes.
        claim: comparison with the published return.
        suspicious: probable mistakes.
    """

    teacher: str
    env: str
    mean: float | None = None
    std: float | None = None
    ci95: tuple[float, float] | None = None
    episodes: int = 0
    claim: ClaimCheck | None = None
    suspicious: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is suspicious and the claim, if any, is consistent."""
        return not self.suspicious and (self.claim is None or self.claim.consistent)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {**dataclasses.asdict(self), "ok": self.ok}

    def __rich__(self) -> RenderableType:
        lines = []
        if self.mean is not None and self.ci95 is not None:
            low, high = self.ci95
            text = f"{self.mean:.1f} ± {self.std:.1f} over {self.episodes} episodes"
            lines.append(("mean return", f"{text} (95% interval of the mean {low:.1f} to {high:.1f})"))
        if self.claim is not None:
            word = "consistent" if self.claim.consistent else "not consistent"
            text = f"{word} with {self.claim.mean:g} ± {self.claim.std:g}: {self.claim.reason}"
            lines.append(("claim", text))
        lines += [("suspicious", text) for text in self.suspicious]
        lines.append(("result", "verified" if self.ok else "not verified"))
        rows = [[TableCell("teacher", name), TableCell(f"{self.teacher} on {self.env}", text)] for name, text in lines]
        return rich_table(rows, left=True)


def verify(
    env: EnvConfig,
    policy: Policy,
    config: VerifyConfig = VerifyConfig(),
    *,
    seed: int = 0,
    name: str = "the teacher",
    progress: Progress | bool = True,
) -> Verification:
    """Score a teacher, compare it with its published score, and check for the usual mistakes.

    Args:
        env: environment.
        policy: teacher.
        config: settings.
        seed: seed of the episodes.
        name: name of the teacher in messages.
        progress: True for a bar on a terminal, False for none, or a receiver of the number of finished episodes.
    """
    try:
        policy, fitted_env = fit_to_env(policy, env, name)
    except SpecMismatchError as error:
        game = preprocessed_id(env.id)
        other = "another environment" if game is None else f"{game} with repeat_action_probability=0"
        hint = f"It may have been trained in {other}; set kwargs and wrappers in --env."
        return Verification(name, env.id, suspicious=[f"{error}. {hint}"])
    stochastic = policy.spec.head.stochastic
    total = config.episodes * (2 if stochastic else 1)

    sampled = None
    with stage_progress(progress, "verify", "episodes") as report:
        greedy = play(fitted_env, policy, config.episodes, PlayConfig(seed), progress=Part(report, 0, total)).returns
        if stochastic:
            part = Part(report, config.episodes, total)
            sampled = play(fitted_env, policy, config.episodes, PlayConfig(seed, sample=True), progress=part).returns
    suspicious = [*quick_check(policy, fitted_env, seed), *_reversed_frames(policy, fitted_env, greedy, seed)]
    if sampled is not None:
        suspicious += _better_when_sampled(greedy, sampled)
    return Verification(
        name,
        env.id,
        float(greedy.mean()),
        float(greedy.std()),
        mean_interval(greedy[None]),
        config.episodes,
        None if config.claim is None else config.claim.check(greedy),
        suspicious,
    )


def fit_to_env(policy: Policy, env: EnvConfig, name: str = "the teacher") -> tuple[Policy, EnvConfig]:
    """Return a policy that takes only legal actions, and the environment as it needs it.

    Raises:
        SpecMismatchError: the policy, or the wrappers of its own environment, do not fit.
    """
    try:
        env = adapt_env(env, policy).view_of("teacher")
        spec = spec_from_env(env)
    except ConfigError as error:
        if not policy.spec.view and not policy.spec.env_kwargs:
            raise
        reason = str(error).removeprefix("env.wrappers: ").removeprefix("env.kwargs: ")
        raise SpecMismatchError(f"{name} and {env.id} do not fit: {settings_source(name)}: {reason}") from None
    policy = with_action_mask(policy, spec)
    policy.spec.require_same_input(spec, name, env.id)
    return policy, env


def quick_check(policy: Policy, env: EnvConfig, seed: int = 0, steps: int = NUM_CHECKED_STATES) -> list[str]:
    """Return the mistakes that a few hundred steps show: constant actions, observations of the wrong scale.

    Raises:
        SpecMismatchError: the policy does not fit the environment.
    """
    policy, env = fit_to_env(policy, env)
    seen, outputs = _observe(policy, env, seed, steps)
    if not torch.isfinite(outputs.params).all():
        return ["its outputs are NaN or infinite in some states; check its weights and the scale of the observations"]
    return [*_constant(outputs), *_out_of_range(policy, seen), *_wrong_scale(policy, seen)]


def _observe(policy: Policy, env: EnvConfig, seed: int, steps: int) -> tuple[NDArray[Any], PolicyOutput]:
    vector = make_vector_env(env, NUM_SLOTS, lambda slot, episode: seed * 1000 + episode * NUM_SLOTS + slot)
    stateful = StatefulPolicy(policy, NUM_SLOTS)
    seen, outputs = [], []

    def act(obs: NDArray[Any]) -> NDArray[Any]:
        outputs.append(stateful.step(obs))
        seen.append(obs.copy())
        return to_env_action(outputs[-1].mode())

    with inference_threads(1):
        for transition in rollout(vector, vector.reset(), act):
            if transition is None:
                continue
            stateful.reset(transition.step.ended)
            if NUM_SLOTS * len(seen) >= steps:
                break
    vector.close()
    return np.concatenate(seen), PolicyOutput(outputs[0].head, torch.cat([output.params for output in outputs]))


def _constant(output: PolicyOutput) -> list[str]:
    actions = output.mode()
    if output.head.discrete:
        _, counts = torch.unique(actions.reshape(len(actions), -1), dim=0, return_counts=True)
        share = float(counts.max()) / len(actions)
        return (
            [f"constant actions: the teacher takes one action in {share:.1%} of the states"]
            if share > MAX_SAME_ACTION_SHARE
            else []
        )
    low, high = actions.new_tensor(output.head.low), actions.new_tensor(output.head.high)
    constant = actions.std(0) < 1e-3 * torch.where(torch.isfinite(high - low), high - low, torch.ones_like(low))
    return ["constant actions: the teacher's actions hardly differ between states"] if bool(constant.all()) else []


def _out_of_range(policy: Policy, seen: NDArray[Any]) -> list[str]:
    if not isinstance(policy, NetworkPolicy) or not policy.obs_clip:
        return []
    scaled = policy.scaled(torch.from_numpy(seen))
    entries = {"": scaled} if isinstance(scaled, Tensor) else scaled
    # Only what a normaliser clips was normalized: other entries of a dict may be of any size.
    normalized = torch.cat([entries[key].flatten(1) for key in policy.obs_clip], 1)
    share = float((normalized.abs() > OUTLIER_STD).float().mean())
    if share <= MAX_OUTLIER_SHARE:
        return []
    return [
        f"{share:.1%} of the observations are more than {OUTLIER_STD:g} standard deviations from the normalizer's mean"
    ]


def _wrong_scale(policy: Policy, seen: NDArray[Any]) -> list[str]:
    if policy.spec.obs_dtype != "uint8" or len(policy.spec.obs_shape) != 3:
        return []
    if seen.max() <= 1:
        return ["frames of the wrong scale: no pixel is above 1, where 0 to 255 are expected"]
    return []


def _reversed_frames(policy: Policy, env: EnvConfig, returns: NDArray[np.float64], seed: int) -> list[str]:
    if spec_from_env(env).frames is None:
        return []
    backwards = ObsTransformPolicy(policy, lambda obs: obs.flip(1))
    other = play(env, backwards, min(len(returns), MAX_REVERSED_EPISODES), PlayConfig(seed)).returns
    if other.mean() <= returns.mean() or _welch(returns, other) > SIGNIFICANCE:
        return []
    return [f"frames in the wrong order: {returns.mean():.1f}, but {other.mean():.1f} with a reversed stack"]


def _better_when_sampled(greedy: NDArray[np.float64], sampled: NDArray[np.float64]) -> list[str]:
    if sampled.mean() <= greedy.mean() or (p := _welch(greedy, sampled)) > SIGNIFICANCE:
        return []
    means = f"{greedy.mean():.1f} and {sampled.mean():.1f}, p = {p:.2g}"
    return [f"used deterministically, but it is better with sampled actions ({means})"]


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the p-value of equal means; 1 with fewer than two episodes."""
    if min(len(a), len(b)) < 2:
        return 1.0
    stds = a.std(ddof=1), b.std(ddof=1)
    if max(stds) == 0:
        return float(a.mean() == b.mean())
    return float(ttest_ind_from_stats(a.mean(), stds[0], len(a), b.mean(), stds[1], len(b), equal_var=False).pvalue)
