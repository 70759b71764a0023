"""Comparison of an exported policy with the original, observation by observation."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.entries import flat_values, join_tensors, split_parts
from rldistill.core.errors import USER_ERRORS
from rldistill.core.heads import ILLEGAL, MASK, BernoulliHead
from rldistill.core.policy import Policy, PolicyOutput, PolicyWrapper
from rldistill.core.spec import EnvConfig, Obs, PolicySpec
from rldistill.envs.make import make_env
from rldistill.evaluation.episodes import CALIBRATION, Episodes, PlayConfig, play
from rldistill.exporters.runtimes import ExportedPolicy
from rldistill.io.atomic import Document
from rldistill.policies.network import NetworkPolicy

TIE = 1e-5
"""Relative difference of two numbers that count as equal."""

WORST = 1e30
"""Difference of NaN and of infinite numbers, which JSON does not have."""

BATCH = 256
CONSECUTIVE_STEPS = 500
BEYOND_CLIP = 1e3
"""Factor of the observations beyond every limit."""


@dataclass
class States:
    """Observations, and the recurrent states before them, of consecutive steps.

    Attributes:
        obs: Observations `[N, *obs_shape]`.
        starts: True at the first step of an episode, `[N]`.
        state: States `[N, ...]`; None for a feed-forward policy.
    """

    obs: Tensor
    starts: NDArray[np.bool_]
    state: Tensor | None

    def first(self, count: int) -> States:
        """Return the first `count` of them."""
        return States(self.obs[:count], self.starts[:count], None if self.state is None else self.state[:count])


class _EnoughStates(Exception):
    """Ends the play of a recorder; full episodes would take minutes on Atari."""


@dataclass(frozen=True)
class _Recorder(PolicyWrapper):
    """Policy that keeps its observations and states until it has `count`."""

    seen: list[tuple[Tensor, Tensor | None]]
    count: int

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output of the policy, and its next state."""
        assert isinstance(obs, Tensor)
        if sum(len(obs) for obs, _ in self.seen) >= self.count:
            raise _EnoughStates
        self.seen.append((obs.clone(), None if state is None else state.clone()))
        return self.policy(obs, state)


def own_states(env: EnvConfig, policy: Policy, count: int, seed: int) -> States:
    """Return `count` states of the policy's play, of as many episodes as that takes."""
    seen: list[tuple[Tensor, Tensor | None]] = []
    first, episodes = 0, 4
    while sum(len(obs) for obs, _ in seen) < count:
        with suppress(_EnoughStates):
            play(env, _Recorder(policy, seen, count), episodes, PlayConfig(seed, CALIBRATION, first=first))
        first, episodes = first + episodes, 2 * episodes
    return _joined(seen, count)


def consecutive_states(env: EnvConfig, policy: Policy, count: int, seed: int) -> States:
    """Return `count` consecutive steps of the policy, one episode after the other."""
    seen: list[tuple[Tensor, Tensor | None]] = []
    starts: list[int] = []
    while len(seen) < count:
        starts.append(len(seen))
        with suppress(_EnoughStates):
            play(env, _Recorder(policy, seen, count), 1, PlayConfig(seed, CALIBRATION, first=len(starts) - 1))
    states = _joined(seen, count)
    states.starts[:] = np.isin(np.arange(count), starts)
    return states


def _joined(seen: list[tuple[Tensor, Tensor | None]], count: int) -> States:
    states = [state for _, state in seen if state is not None]
    obs = torch.cat([obs for obs, _ in seen])[:count]
    return States(obs, np.zeros(count, bool), torch.cat(states)[:count] if states else None)


def states_of(policy: Policy, obs: Tensor) -> States:
    """Return observations without an order; a recurrent policy sees each as a first step."""
    return States(obs, np.ones(len(obs), bool), policy.initial_state(len(obs)))


def extreme_states(env: EnvConfig, policy: Policy, like: States) -> dict[str, States]:
    """Return observations at the limits by name, made from consecutive ones: an action mask stays as it was."""
    spec, space = policy.spec, make_env(env).observation_space
    low, high = (np.asarray(getattr(space, name, np.nan), np.float64).ravel() for name in ("low", "high"))
    base = flat_values(like.obs[:1], spec)
    variants: dict[str, NDArray[Any]] = {"zeros": np.zeros(base[0].numel())}
    for name, bound in (("at the low bounds", low), ("at the high bounds", high)):
        if (
            bound.size == base[0].numel()
            and np.isfinite(bound).all()
            and not (spec.parts and spec.obs_dtype == "uint8")
        ):
            variants[name] = bound
    if spec.obs_dtype == "uint8":
        sizes = [math.prod(part.shape) for part in spec.entries.values()]
        variants["all 255"] = np.repeat([255.0 * (part.dtype == "uint8") for part in spec.entries.values()], sizes)
    elif not any(part.nvec or part.dtype == "uint8" for part in spec.entries.values()):
        variants["beyond the clip"] = BEYOND_CLIP * np.where(np.arange(base[0].numel()) % 2, -1.0, 1.0)
    states = {name: states_of(policy, _with_values(base, values, spec)) for name, values in variants.items()}
    return {**states, "first step": states_of(policy, like.obs[like.starts])}


def _with_values(base: Tensor, values: NDArray[Any], spec: PolicySpec) -> Tensor:
    obs = torch.from_numpy(values).to(base.dtype).reshape(base.shape)
    start = 0
    for key, part in spec.parts:
        stop = start + int(np.prod(part.shape))
        if key == MASK:
            obs[:, start:stop] = base[:, start:stop]
        start = stop
    packed = spec.parts and spec.obs_dtype == "uint8"
    return join_tensors(split_parts(obs, spec), spec) if packed else obs


class Difference(Document):
    """Difference of an exported policy and the original over N states.

    Attributes:
        states: N.
        largest: Largest difference of a parameter of the head, relative to the largest parameter of its state, or 1.
        mean: Mean of these differences.
        agreement: Share of states with equal actions.
        ties: States with different actions whose parameters are equal within 1e-5.
        unequal: All other states with different actions.
    """

    states: int
    largest: float
    mean: float
    agreement: float
    ties: int
    unequal: int


def compare(policy: Policy, exported: ExportedPolicy, states: States, batch: int = BATCH) -> Difference:
    """Compare both policies on the same observations and states."""
    largest, total, unequal, ties = 0.0, 0.0, 0, 0
    count = len(states.obs)
    with torch.no_grad():
        for start in range(0, count, batch):
            rows = slice(start, start + batch)
            state = None if states.state is None else states.state[rows]
            expected, found = policy(states.obs[rows], state)[0], exported(states.obs[rows], state)[0]
            difference = _relative(expected.params, found.params)
            largest, total = max(largest, float(difference.max())), total + float(difference.mean(1).sum())
            differs = ~_equal_actions(expected, found)
            tied = differs & _is_tie(expected, found)
            unequal, ties = unequal + int((differs & ~tied).sum()), ties + int(tied.sum())
    return Difference(
        states=count,
        largest=largest,
        mean=total / count,
        agreement=1 - (unequal + ties) / count,
        ties=ties,
        unequal=unequal,
    )


def rounding(policy: Policy, states: States, batch: int = BATCH) -> float:
    """Return the largest relative difference of a policy to itself in float64; 0 if it cannot compute in float64."""
    if not isinstance(policy, NetworkPolicy) or states.state is not None:
        return 0.0
    largest, exact = 0.0, copy.deepcopy(policy).double()
    with torch.no_grad():
        for obs in torch.split(states.obs, batch):
            try:
                found = exact(obs)[0].params
            except USER_ERRORS:  # a module that converts to float32 itself
                return 0.0
            largest = max(largest, float(_relative(policy(obs)[0].params, found).max()))
    return largest


def batch_difference(policy: Policy, exported: ExportedPolicy, states: States) -> float:
    """Return the largest relative difference of batches of one and of all states to the policy on all states."""
    largest, count = 0.0, len(states.obs)
    with torch.no_grad():
        expected = policy(states.obs, states.state)[0].params
        for row in (slice(0, count), *(slice(row, row + 1) for row in range(count))):
            found = exported(states.obs[row], None if states.state is None else states.state[row])[0].params
            largest = max(largest, float(_relative(expected[row], found).max()))
    return largest


def consecutive_difference(policy: Policy, exported: ExportedPolicy, states: States) -> float:
    """Return the largest relative difference over consecutive steps, in which each policy keeps its own state."""
    largest, own, other = 0.0, policy.initial_state(1), exported.initial_state(1)
    with torch.no_grad():
        for obs, start in zip(states.obs, states.starts, strict=True):
            if start:
                own, other = policy.initial_state(1), exported.initial_state(1)
            expected, own = policy(obs[None], own)
            found, other = exported(obs[None], other)
            largest = max(largest, float(_relative(expected.params, found.params).max()))
    return largest


def equal_actions(a: Episodes, b: Episodes) -> float:
    """Return the share of equal actions of the same episodes, until one of them ends."""
    same = total = 0
    for left, right in zip(a.actions, b.actions, strict=True):
        pairs = min(len(left), len(right))
        equal = np.isclose(np.asarray(left[:pairs]), np.asarray(right[:pairs]), TIE, TIE).reshape(pairs, -1).all(1)
        same, total = same + int(equal.sum()), total + max(len(left), len(right))
    return same / max(total, 1)


def _scale(params: Tensor) -> Tensor:
    """Return the largest legal parameter of each state, at least 1, `[B, 1]`; illegal actions have huge ones."""
    size = params.abs()
    legal = size < -ILLEGAL / 2
    return torch.where(legal, size, 0.0).amax(-1, keepdim=True).clamp_min(1.0)


def _relative(expected: Tensor, found: Tensor) -> Tensor:
    """Return `[B, P]`; equal numbers have no difference, also infinite ones, and NaN has the largest."""
    difference = (expected - found).abs() / _scale(expected)
    return torch.where(expected == found, 0.0, difference.nan_to_num(WORST, WORST).clamp_max(WORST))


def _equal_actions(expected: PolicyOutput, found: PolicyOutput) -> Tensor:
    a, b = expected.mode(), found.mode()
    same = a == b if expected.head.discrete else torch.isclose(a, b, TIE, TIE)
    return same.reshape(len(same), -1).all(-1)


def _is_tie(expected: PolicyOutput, found: PolicyOutput) -> Tensor:
    """Return True where the parameters of both actions are equal in the original, within 1e-5."""
    head = expected.head
    if not head.discrete:
        return torch.zeros(len(expected.params), dtype=torch.bool)
    action, choices = found.mode(), torch.tensor(head.nvec if head.single_choice else 2)
    if not isinstance(head, BernoulliHead) and not head.single_choice:
        choices = torch.tensor(head.nvec)
    possible = (action >= 0) & (action < choices)
    lost = head.regret(expected.params, torch.where(possible, action, 0))
    assert lost is not None
    return possible.reshape(len(action), -1).all(-1) & (lost <= TIE * _scale(expected.params).squeeze(-1))
