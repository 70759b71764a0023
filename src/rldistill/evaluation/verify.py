"""Verification of a teacher: its score, its published score, and the usual mistakes in its use."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, computed_field
from rich.table import Table
from scipy.special import ndtri
from torch import Tensor

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.heads import SquashedGaussianHead
from rldistill.core.policy import ObsTransformPolicy, Policy, PolicyOutput
from rldistill.core.spec import MAX_EPISODE_STEPS, EnvConfig
from rldistill.envs.atari import preprocessed_id
from rldistill.envs.spaces import adapt_env, spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.fidelity import action_ranges
from rldistill.evaluation.statistics import Estimate, Interval, estimate, mean
from rldistill.evaluation.tables import Record, Result, TableCell, interval_text, rich_table
from rldistill.io.progress import Part, Progress, stage_progress
from rldistill.policies.agent import StatefulPolicy, inference_threads, to_env_action
from rldistill.policies.network import NetworkPolicy
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.load import settings_source, training_remarks

TOLERANCE, CONFIDENCE, SIGNIFICANCE = 0.10, 0.99, 0.01
NUM_CHECKED_STATES, NUM_SLOTS, MAX_REVERSED_EPISODES, MIN_COMPARED_EPISODES = 512, 4, 8, 10
CHECK_SECONDS, MIN_CHECKED_ACTIONS = 15.0, 100
"""Time limit of `quick_check`, for slow planners, and number of states from which it judges constant actions."""
OUTLIER_STD, MAX_OUTLIER_SHARE, MAX_SAME_ACTION_SHARE, MAX_BEYOND_SHARE = 5.0, 0.05, 0.99, 0.01


@dataclass(frozen=True)
class Claim:
    """Published mean return, with its standard deviation over episodes and their number, if known."""

    mean: float
    std: float = 0.0
    episodes: int = 0

    @classmethod
    def parse(cls, text: str, episodes: int = 0) -> Claim:
        """Parse `242.1±31.8`, `242.1+-31.8` or `242.1`; raise ConfigError for anything else."""
        number = r"(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
        pattern = rf"\s*([-+]?){number}\s*(?:(?:±|\+-|\+/-)\s*{number})?\s*"
        match = re.fullmatch(pattern, text.replace("\N{MINUS SIGN}", "-"))
        mean, std = (float(match[1] + match[2]), float(match[3] or 0)) if match else (math.nan, 0.0)
        if not math.isfinite(mean) or not math.isfinite(std):
            raise ConfigError(f"claimed: expected finite numbers such as 242.1, or 242.1±31.8, found {text!r}")
        return cls(mean, std, episodes)

    def check(self, returns: NDArray[np.float64]) -> ClaimCheck:
        """Compare the claim with returns.

        It is consistent if it lies within the 99% interval of the difference of means, or within 10% of the mean. The
        interval is normal, with the variances of both means; a claim without a number of episodes counts as exact.
        """
        difference = float(returns.mean() - self.mean)
        variance = returns.var(ddof=1) / len(returns) if len(returns) > 1 else 0.0
        variance += self.std**2 / self.episodes if self.episodes else 0.0
        half = float(ndtri((1 + CONFIDENCE) / 2) * math.sqrt(variance))
        inside, near = abs(difference) <= half, abs(difference) <= TOLERANCE * abs(self.mean)
        reason = "it lies outside the 99% interval of the difference, and more than 10% away"
        if inside or near:
            reason = "within the 99% interval of the difference" if inside else "within 10%"
        return ClaimCheck(
            mean=self.mean,
            std=self.std,
            difference=difference,
            interval99=(difference - half, difference + half),
            consistent=bool(inside or near),
            reason=reason,
        )


class ClaimCheck(Record):
    """Comparison of a claim with the measured mean; `difference` is measured minus claimed."""

    mean: float
    std: float
    difference: float
    interval99: Interval
    consistent: bool
    reason: str


@validated_dataclass
class VerifyConfig:
    """Settings of `verify`: the number of full episodes and their longest, and the published return, if any."""

    episodes: Positive = 100
    claim: Claim | None = None
    max_steps: Positive = MAX_EPISODE_STEPS


class Verification(Result):
    """Result of `verify`.

    `mean` and `std` are those of the return; None if the teacher does not fit the environment. `random` is the
    mean return of random play, `suspicious` holds the probable mistakes, and `remarks` what may be intended.
    """

    teacher: str
    env: str
    mean: Estimate | None = None
    std: float | None = None
    random: float | None = None
    episodes: int = 0
    claim: ClaimCheck | None = None
    suspicious: list[str] = Field(default_factory=list)
    remarks: list[str] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """True if nothing is suspicious and the claim, if any, is consistent."""
        return not self.suspicious and (self.claim is None or self.claim.consistent)

    def blocks(self) -> list[Table]:
        """Return the table of all checks."""
        lines = []
        if self.mean is not None:
            text = f"{self.mean.value:.1f} ± {self.std:.1f} over {self.episodes} episodes"
            interval = interval_text(self.mean.ci95, ".1f")
            lines.append(("mean return", text + (f" (95% interval of the mean {interval})" if interval else "")))
        if self.random is not None:
            lines.append(("random play", f"{self.random:.1f}"))
        if self.claim is not None:
            word = "consistent" if self.claim.consistent else "not consistent"
            text = f"{word} with {self.claim.mean:g} ± {self.claim.std:g}: {self.claim.reason}"
            lines.append(("claim", text))
        lines += [("remark", text) for text in self.remarks]
        lines += [("suspicious", text) for text in self.suspicious]
        lines.append(("result", "verified" if self.ok else "not verified"))
        title = f"{self.teacher} on {self.env}"
        return [rich_table([[TableCell("teacher", name), TableCell(title, text)] for name, text in lines], left=True)]


class QuickCheck(NamedTuple):
    """Probable mistakes in a teacher, and remarks on what may be intended."""

    problems: list[str]
    remarks: list[str]


def verify(
    env: EnvConfig,
    policy: Policy,
    config: VerifyConfig = VerifyConfig(),  # noqa: B008 - it is frozen
    *,
    seed: int = 0,
    name: str = "the teacher",
    progress: Progress | bool = True,
) -> Verification:
    """Score a teacher, compare it with its published score, and check for the usual mistakes.

    `name` is the path of the teacher, or its name in messages; `progress` is True to show it on stderr, False for
    none, or a receiver of the number of finished episodes.
    """
    try:
        policy, fitted_env = fit_to_env(policy, env, name)
    except SpecMismatchError as error:
        game = preprocessed_id(env.id)
        other = "another environment" if game is None else f"{game} with repeat_action_probability=0"
        hint = f"It may have been trained in {other}; set its keyword arguments (--env-kwarg) or its wrappers."
        return Verification(teacher=name, env=env.id, suspicious=[f"{str(error).rstrip('.')}. {hint}"])
    returns, modes = [], [False, True] if policy.spec.head.stochastic else [False]
    settings = PlayConfig(seed, max_steps=config.max_steps)
    with stage_progress(progress, "verify", "episodes") as report:
        for number, sample in enumerate(modes):
            part = Part(report, number * config.episodes, len(modes) * config.episodes)
            chosen = dataclasses.replace(settings, sample=sample)
            returns.append(play(fitted_env, policy, config.episodes, chosen, progress=part).returns)
    greedy = returns[0]
    suspicious, remarks = quick_check(policy, fitted_env, seed)
    if spec_from_env(fitted_env).frames is not None:
        backwards = ObsTransformPolicy(policy, lambda obs: obs.flip(1))
        number = min(len(greedy), MAX_REVERSED_EPISODES)
        reversed_returns = play(fitted_env, backwards, number, settings).returns
        if _p_better(reversed_returns, greedy) <= SIGNIFICANCE:
            means = f"{greedy.mean():.1f}, but {reversed_returns.mean():.1f} with a reversed stack"
            suspicious.append(f"frames in the wrong order: {means}")
    for sampled in returns[1:]:
        if (p := _p_better(sampled, greedy)) <= SIGNIFICANCE:
            means = f"{greedy.mean():.1f} and {sampled.mean():.1f}, p = {p:.2g}"
            suspicious.append(f"used deterministically, but it is better with sampled actions ({means})")
    random = play(fitted_env, None, config.episodes, settings).returns
    p = _p_better(greedy, random)
    if greedy.mean() <= random.mean() or (p > SIGNIFICANCE and len(greedy) >= MIN_COMPARED_EPISODES):
        suspicious.append(f"not better than random play ({greedy.mean():.1f} and {random.mean():.1f}, p = {p:.2g})")
    suspicious += training_remarks(name, env)
    return Verification(
        teacher=name,
        env=env.id,
        mean=estimate(mean, greedy[None]),
        std=float(greedy.std()),
        random=float(random.mean()),
        remarks=remarks,
        episodes=config.episodes,
        claim=None if config.claim is None else config.claim.check(greedy),
        suspicious=suspicious,
    )


def fit_to_env(policy: Policy, env: EnvConfig, name: str = "the teacher") -> tuple[Policy, EnvConfig]:
    """Return a policy that takes only legal actions, and its environment.

    Raises:
        SpecMismatchError: They differ; the message has the environment of its training, if the file `name` has it.
    """
    try:
        fitted_env = adapt_env(env, policy).view_of("teacher")
        spec = spec_from_env(fitted_env)
        policy = with_action_mask(policy, spec)
        policy.spec.require_same_input(spec, name, env.id)
    except (ConfigError, SpecMismatchError) as error:
        problem, remarks = str(error), "; ".join(training_remarks(name, env))
        if isinstance(error, ConfigError):
            if not policy.spec.view and not policy.spec.env_kwargs:
                raise
            reason = problem.removeprefix("env.wrappers: ").removeprefix("env.kwargs: ")
            problem = f"{name} and {env.id} do not fit: {settings_source(name)}: {reason}"
        raise SpecMismatchError(f"{problem} ({remarks})" if remarks else problem) from None
    return policy, fitted_env


def quick_check(policy: Policy, env: EnvConfig, seed: int = 0, steps: int = NUM_CHECKED_STATES) -> QuickCheck:
    """Return the mistakes that a few hundred steps show: constant actions, observations of the wrong scale.

    The check ends after `CHECK_SECONDS`, so that a slow teacher or environment is checked in fewer steps.

    Raises:
        SpecMismatchError: the policy does not fit the environment.
    """
    policy, env = fit_to_env(policy, env)
    stateful, seen, outputs = StatefulPolicy(policy, NUM_SLOTS), [], []

    def act(obs: NDArray[Any]) -> NDArray[Any]:
        outputs.append(stateful.step(obs))
        seen.append(obs.copy())
        return to_env_action(outputs[-1].mode())

    vector = make_vector_env(env, NUM_SLOTS, lambda slot, episode: seed * 1000 + episode * NUM_SLOTS + slot)
    with inference_threads(1), closing(vector):
        first, deadline = vector.reset(), time.monotonic() + CHECK_SECONDS
        for _, step in filter(None, vector.rollout(first, act)):
            stateful.reset(step.ended)
            if NUM_SLOTS * len(seen) >= steps or time.monotonic() > deadline:
                break
    obs = np.concatenate(seen)
    output = PolicyOutput(outputs[0].head, torch.cat([output.params for output in outputs]))
    if not torch.isfinite(output.params).all():
        scale = "its outputs are NaN or infinite in some states; check its weights and the scale of the observations"
        return QuickCheck([scale], [])
    found, actions = [], output.mode()
    if output.head.discrete:
        _, counts = torch.unique(actions.reshape(len(actions), -1), dim=0, return_counts=True)
        share = float(counts.max()) / len(actions)
        if share > MAX_SAME_ACTION_SHARE and len(actions) >= min(steps, MIN_CHECKED_ACTIONS):
            found.append(f"constant actions: the teacher takes one action in {share:.1%} of the states")
    elif bool((actions.std(0) < 1e-3 * action_ranges(output)).all()):
        found.append("constant actions: the teacher's actions hardly differ between states")
    if isinstance(policy, NetworkPolicy) and policy.obs_clip:
        scaled = policy.scaled(torch.from_numpy(obs))
        entries = {"": scaled} if isinstance(scaled, Tensor) else scaled
        # Only entries that a normalizer clips were normalized: others of a dict may be of any size.
        normalized = torch.cat([entries[key].flatten(1) for key in policy.obs_clip], 1)
        if (share := float((normalized.abs() > OUTLIER_STD).float().mean())) > MAX_OUTLIER_SHARE:
            deviations = f"{OUTLIER_STD:g} standard deviations from the normalizer's mean"
            found.append(f"{share:.1%} of the observations are more than {deviations}")
    if policy.spec.obs_dtype == "uint8" and len(policy.spec.obs_shape) == 3 and obs.max() <= 1:
        found.append("frames of the wrong scale: no pixel is above 1, where 0 to 255 are expected")
    return QuickCheck(found, _beyond_bounds(output))


def _beyond_bounds(output: PolicyOutput) -> list[str]:
    """Return a remark if actions are beyond their bounds before they are clipped."""
    head, raw = output.head, output.head.raw_mode(output.params)
    if head.discrete or isinstance(head, SquashedGaussianHead):
        return []
    low, high = raw.new_tensor(head.low), raw.new_tensor(head.high)
    excess = torch.maximum(low - raw, raw - high)  # minus infinity without bounds
    share = float((excess > 1e-3 * (high - low)).any(1).float().mean())
    if share <= MAX_BEYOND_SHARE:
        return []
    column = int((excess / (high - low)).amax(0).nan_to_num(-1).argmax())
    return [
        f"{share:.1%} of its actions are beyond their bounds and clipped, by up to {excess[:, column].max():.3g} where "
        f"the bounds are {head.low[column]:g} and {head.high[column]:g}. If tanh belongs after them, set squash=tanh"
    ]


def _p_better(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the p-value of equal means (Welch's test); 1 unless `a` has the higher mean, or with a single episode."""
    if a.mean() <= b.mean() or min(len(a), len(b)) < 2:
        return 1.0
    stds = a.std(ddof=1), b.std(ddof=1)
    if max(stds) == 0:
        return 0.0
    from scipy.stats import ttest_ind_from_stats  # here, because the import is slow and few commands need it

    return float(ttest_ind_from_stats(a.mean(), stds[0], len(a), b.mean(), stds[1], len(b), equal_var=False).pvalue)
