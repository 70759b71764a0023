"""Mixed teams of many agents: teachers and students together, students of several seeds, and a random agent."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from rldistill.core.entries import split_parts
from rldistill.core.policy import Policy
from rldistill.core.spec import ALIVE, EnvConfig, PolicySpec, Side
from rldistill.envs.seeding import block_generator
from rldistill.envs.spaces import observation_views
from rldistill.envs.views import ObservationViews
from rldistill.evaluation.changed_play import PerturbedReturns, Teams
from rldistill.evaluation.episodes import (
    CALIBRATION,
    ComparedStep,
    PlayConfig,
    PolicyRuns,
    TeacherQuery,
    play,
    reference_name,
)
from rldistill.evaluation.statistics import Returns
from rldistill.io.progress import Part, Progress
from rldistill.policies.joint import MixedTeam, RandomTeam, agent_views
from rldistill.policies.wrappers import with_action_mask

MAX_SUBSETS = 6
"""Number of subsets of a size that are played: all of a team of four, and random ones of more agents."""


def mixed_teams(
    env: EnvConfig,
    policies: Mapping[str, PolicyRuns],
    returns: Mapping[str, Returns],
    episodes: int,
    base: PlayConfig,
    progress: Progress,
) -> Teams | None:
    """Play mixed teams on the seeds of the evaluation; None for a single agent, or without episodes.

    `returns` are those of all policies.

    The replacement curve is the return with k of n agents of the teacher replaced by students, the mean over subsets of
    agents. With several types of agents, all of a type are replaced, too: students of one side against the teacher of
    the other. A cross-play team has agents of different training seeds by turns (zero-shot coordination).
    """
    views, teacher = observation_views(env), policies["teacher"].first
    spec = views.student
    if not spec.agents or not episodes or teacher is None:
        return None

    def on_env(policy: Policy, side: Side) -> Policy:
        """Return a policy of one side for the observations of both."""
        return views.policy_on(side, with_action_mask(policy, getattr(views, side)))

    acting, joint = on_env(teacher, "teacher"), replace(base, side=None)
    episodes = min(episodes, *(own.shape[1] for own in returns.values()))
    reference, best = (returns[name][:, :episodes] for name in (reference_name(policies), "teacher"))
    planned: list[tuple[str, str, list[Policy]]] = []
    agreement: dict[str, dict[str, float]] = {}

    for name, entry in policies.items():
        if entry.kind not in ("teacher", "student"):
            continue
        runs = [on_env(run, entry.side) for run in entry.runs.values() if run is not None]
        if entry.kind == "student":
            first = next(run for run in entry.runs.values() if run is not None)
            agreement[name] = _agreement(env, first, teacher, spec, episodes, base)
        for composition, teams in _teams(runs, acting if entry.kind == "student" else None, views, base.seed):
            planned.append((name, composition, teams))
    compositions: dict[str, dict[str, PerturbedReturns]] = {}
    done, total = 0, episodes * sum(len(teams) for *_, teams in planned)
    for name, composition, teams in planned:
        played = []
        for team in teams:
            played.append(play(env, team, episodes, joint, progress=Part(progress, done, total)).returns)
            done += episodes
        own = PerturbedReturns.of(np.stack(played), returns[name][:, :episodes], best, reference)
        compositions.setdefault(composition, {})[name] = own
    return Teams(episodes=episodes, compositions=compositions, agreement=agreement)


def _teams(
    runs: list[Policy], teacher: Policy | None, views: ObservationViews, seed: int
) -> Iterator[tuple[str, list[Policy]]]:
    """Yield the compositions of teams with some policies, and a few teams of each."""
    spec = views.student
    names = [agent.name for agent in spec.agents]
    rng = block_generator(seed, "evaluate", CALIBRATION, 0, 0)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    if teacher is not None:
        for count in range(1, len(names)):
            subsets = (
                [*combinations(names, count)]
                if math.comb(len(names), count) <= MAX_SUBSETS
                else [tuple(rng.choice(names, count, replace=False).tolist()) for _ in range(MAX_SUBSETS)]
            )
            teams: list[Policy] = [MixedTeam(teacher, run, subset) for run in runs for subset in subsets]
            yield f"{count} of {len(names)} agents replaced", teams
        types: dict[str, list[str]] = {}
        for agent in spec.agents:
            types.setdefault(agent.type, []).append(agent.name)
        for kind, own in types.items() if len(types) > 1 else ():
            yield f"all {kind} agents replaced", [MixedTeam(teacher, run, tuple(own)) for run in runs]
        if len(runs) > 1:
            pairs = zip(runs, [*runs[1:], runs[0]], strict=True)
            yield "students of two seeds by turns", [MixedTeam(one, other, tuple(names[1::2])) for one, other in pairs]
    chance = views.policy_on("student", RandomTeam(spec, generator))
    for name in names:
        yield f"{name} at random", [MixedTeam(run, chance, (name,)) for run in runs]


def _agreement(
    env: EnvConfig, student: Policy, teacher: Policy, spec: PolicySpec, episodes: int, base: PlayConfig
) -> dict[str, float]:
    """Return for each agent the share of the student's states in which it acts as its teacher would.

    Of continuous actions it is the root mean square of the difference. States without the agent do not count.
    """
    views = agent_views(spec)
    values: dict[str, list[Tensor]] = {view.agent.name: [] for view in views}

    def compare(step: ComparedStep) -> None:
        difference = (step.student.mode() - step.teacher.mode()).float()
        score = difference.eq(0).float() if spec.head.discrete else difference**2
        alive = torch.ones(len(score), len(views), dtype=torch.bool)
        if ALIVE in spec.entries:
            alive = split_parts(torch.from_numpy(step.obs), spec)[ALIVE] > 0
        for number, view in enumerate(views):
            values[view.agent.name].append(score[alive[:, number], view.parts].mean(-1))

    play(env, student, episodes, base, query=TeacherQuery(teacher, compare))
    joined = {name: torch.cat(parts).double() for name, parts in values.items()}
    means = {name: float(scores.mean()) for name, scores in joined.items() if len(scores)}
    return means if spec.head.discrete else {name: math.sqrt(mean) for name, mean in means.items()}
