"""Episodes of all policies of an evaluation, the decision on each student, and the estimates of each policy.

Each file of an evaluation that is not finished holds the episodes of one policy that one job played, so that it goes on
after a stop, and shards can divide it. Its name is the hash of everything that they depend on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.errors import CorruptArtifactError
from rldistill.core.spec import EnvConfig, Head
from rldistill.data.dataset import Dataset
from rldistill.envs.atari import is_atari
from rldistill.envs.spaces import observation_views
from rldistill.envs.vector import check_resets, make_vector_env
from rldistill.evaluation import statistics as stats
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import ARRAYS, Episodes, PlayConfig, PolicyRuns, TeacherQuery, play, reference_name
from rldistill.evaluation.fidelity import OwnStates, fidelity
from rldistill.evaluation.group_sequential import SEQUENTIAL_RISK, analysis_times, boundary
from rldistill.evaluation.metrics import metric_estimate, probe_metrics, require_metrics, run_returns
from rldistill.evaluation.non_inferiority import RISK, NonInferiorityResult, RiskLevels, non_inferior
from rldistill.evaluation.results import PolicyResult, Profile
from rldistill.evaluation.statistics import Returns
from rldistill.io.atomic import START_AGAIN, read_value
from rldistill.io.execution import Execution, Increments, Total, run_jobs
from rldistill.io.processes import Report
from rldistill.io.progress import Progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.io.storage import fetch
from rldistill.io.tensors import read_state, write_state
from rldistill.policies.cost import Cost, measure_cost
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.fingerprint import fingerprint

PART_EPISODES, ATARI_PART_EPISODES = 100, 32
"""Largest numbers of episodes of a job, which are part of the results: random actions are drawn for each job.

Those of games take minutes, and short jobs keep all workers busy to the end.
"""
FOLDER = "unfinished-evaluation"
Part = tuple[str, int | None, range]
"""Name of a policy, a training seed, and numbers of episodes."""
Played = tuple[Episodes, OwnStates | None]
"""Episodes of a policy, and its own states if it is a student whose states the teacher labels."""


class Match:
    """Episodes of all policies on the same seeds, and the decision on each student.

    The best of several students is selected by the same episodes as the test, so they share the risk (Bonferroni).
    """

    def __init__(
        self,
        env: EnvConfig,
        policies: Mapping[str, PolicyRuns],
        config: EvaluateConfig,
        base: PlayConfig,
        execution: Execution,
        folder: Path,
    ) -> None:
        agents = observation_views(env).student.agents
        self.metrics = (*config.metrics, *(f"return_{agent.name}" for agent in agents))
        probe_metrics(env, self.metrics)
        self.env, self.policies, self.config, self.base = env, policies, config, base
        self.execution, self.folder = execution, folder
        self.reference = reference_name(policies)
        students = [name for name, entry in policies.items() if entry.kind == "student"]
        self.episodes: dict[str, dict[int | None, Episodes]] = {name: {} for name in policies}
        self.own_states: dict[tuple[str, int | None], OwnStates] = {}
        self.decisions: dict[str, NonInferiorityResult | None] = dict.fromkeys(students)

    def returns(self, name: str) -> Returns:
        """Return the returns of a policy, `[runs, episodes]`."""
        return np.stack([episodes.returns for episodes in self.episodes[name].values()])

    def num_distinct(self, *names: str, episodes: int | None = None) -> int:
        """Return the smallest number of distinct ones among the first `episodes` of any run of these policies."""
        return min(own.first_ones(episodes).distinct for name in names for own in self.episodes[name].values())

    @cached_property
    def first_obs(self) -> NDArray[Any]:
        """First observation of an episode, `[1, ...]`."""
        with closing(make_vector_env(self.env, 1, lambda slot, nth: 0)) as env:
            return env.reset()

    def cost(self, entry: PolicyRuns) -> Cost:
        """Return the cost of the policy of the first training seed, measured with the first observation."""
        if entry.first is None:
            return measure_cost(None)
        views = observation_views(self.env)
        policy = with_action_mask(entry.first, getattr(views, entry.side))
        return measure_cost(policy, torch.from_numpy(views.select(entry.side, self.first_obs)))

    def play_all(self, progress: Progress) -> None:
        """Play all episodes; with `sequential`, those of each student until it is decided."""
        config, share = self.config, 1 / max(1, len(self.decisions))
        counts, risks = [config.episodes], [RISK * share]
        if config.sequential:
            counts = analysis_times(config.episodes, config.max_episodes)
            risks = boundary(counts, SEQUENTIAL_RISK * share)
        report = Total(progress, counts[-1] * sum(len(entry.runs) for entry in self.policies.values()))
        analyses = [self.parts(first, end) for first, end in pairwise([0, *counts])]
        # A free worker begins with the next analysis before the decisions of the last one, so that it may play a part
        # of a student too many. No decision depends on these.
        items = (part for parts in analyses for part in parts if not self._is_decided(part[0]))
        played, analysis = dict[Part, Played](), 0
        with closing(self.play_parts(items, report)) as results:
            for part, result in results:
                played[part] = result
                while analysis < len(counts) and self._add(analyses[analysis], played):
                    analysis += 1
                    self._decide(RiskLevels(risks[analysis - 1], RISK * share, analysis))
                if analysis and all(map(self._is_decided, self.decisions)):
                    break
        infos = (info for runs in self.episodes.values() for episodes in runs.values() for info in episodes.info)
        require_metrics(self.metrics, infos, complete=True)
        progress.update(report.done, report.done)

    def _is_decided(self, name: str) -> bool:
        """Return True if the test of a student has a decision."""
        decision = self.decisions.get(name)
        return decision is not None and decision.decision != "undecided"

    def _add(self, parts: Sequence[Part], played: Mapping[Part, Played]) -> bool:
        """Add the parts of an analysis to the episodes if all are played; return True if so.

        The order is that of the parts, whichever finished first.
        """
        due = [part for part in parts if not self._is_decided(part[0])]
        if not all(part in played for part in due):
            return False
        for name, run, numbers in due:
            (more, states), known, key = played[name, run, numbers], self.episodes[name], (name, run)
            known[run] = known[run].followed_by(more) if run in known else more
            if states is not None:
                earlier = self.own_states.get(key)
                self.own_states[key] = states if earlier is None else earlier.followed_by(states)
        return True

    def _decide(self, levels: RiskLevels) -> None:
        """Test the students that are not decided, which have as many episodes as the teacher."""
        for name in self.decisions:
            if not self._is_decided(name):
                compared = name, "teacher", self.reference
                own, best, random = map(self.returns, compared)
                distinct = self.num_distinct(*compared)
                test = non_inferior(own, best, random, self.config.margin, distinct=distinct, levels=levels)
                self.decisions[name] = test if best.mean() > random.mean() else None

    def parts(self, first: int, end: int) -> list[Part]:
        """Return the jobs of a range of episodes of all policies."""
        size = ATARI_PART_EPISODES if is_atari(self.env.id) else PART_EPISODES
        starts = range(first, end, size)
        ranges = [range(start, min(start + size, end)) for start in starts]
        return [
            (name, run, numbers) for name, entry in self.policies.items() for run in entry.runs for numbers in ranges
        ]

    def play_parts(self, parts: Iterable[Part], report: Report) -> Generator[tuple[Part, Played], None, None]:
        """Play parts of the evaluation; yield each with its episodes as they finish."""
        if not self.execution.serial:
            check_resets(self.env)
        work, taken, infos = PlayPart(self.env, self.policies, self.base, self.folder), list[Part](), []

        def items() -> Iterator[Part]:
            for part in parts:
                taken.append(part)
                yield part

        for number, result in run_jobs(work, items(), self.execution, report, uses_gpu=self.config.device != "cpu"):
            infos += result[0].info
            require_metrics(self.metrics, infos, complete=False)
            yield taken[number], result

    def result(
        self,
        name: str,
        returns: Mapping[str, Returns],
        thresholds: Returns,
        labels: tuple[Dataset | None, float | None],
        folder: Path,
    ) -> PolicyResult:
        """Return the result of a policy: all estimates with their 95% intervals, its cost and its fidelity.

        `labels` are the dataset and the temperature of `RunContext`.
        """
        entry, runs, own = self.policies[name], self.episodes[name], returns[name]
        # Of the others, only the episodes that the policy played too.
        episodes = own.shape[1]
        teacher, reference = (returns[other][:, :episodes] for other in ("teacher", self.reference))
        compared, distinct = (own, teacher, reference), self.num_distinct(name)
        distinct_compared = self.num_distinct(name, "teacher", self.reference, episodes=episodes)
        rates = [part.success_rate for part in runs.values() if part.success_rate is not None]

        def profile(returns: Returns) -> stats.Values:
            return stats.performance_profile(returns, thresholds)

        low, high = np.percentile(stats.bootstrap(profile, own, distinct=distinct), [2.5, 97.5], axis=0)
        normalized = stats.normalized_score(*compared, distinct=distinct_compared)
        improvement = close = None
        if name != "teacher":
            improvement = stats.estimate(stats.probability_of_improvement, own, teacher, distinct=distinct_compared)
        if entry.kind == "student":
            spec = observation_views(self.env).student
            students = [
                (with_action_mask(policy, spec), self.own_states[name, run])
                for run, policy in entry.runs.items()
                if policy is not None
            ]
            close = fidelity(name, students, labels[0], folder, labels[1])
        return PolicyResult(
            kind=entry.kind,
            runs=[run_returns(seed, part, self.metrics) for seed, part in runs.items()],
            distinct_episodes=distinct,
            distinct_runs=len({part.returns.tobytes() for part in runs.values()}),
            mean=stats.estimate(stats.mean, own, distinct=distinct),
            median=stats.estimate(stats.median, own, distinct=distinct),
            iqm=stats.estimate(stats.iqm, own, distinct=distinct),
            normalized=normalized,
            optimality_gap=normalized and stats.estimate(stats.normalized_gap, *compared, distinct=distinct_compared),
            probability_of_improvement=improvement,
            profile=Profile(share=profile(own).tolist(), low=low.tolist(), high=high.tolist()),
            success_rate=float(np.mean(rates)) if rates else None,
            discounted_mean=float(np.mean([part.discounted for part in runs.values()])),
            agreement=close.own_states.agreement if close else None,
            action_rmse=close.own_states.action_rmse if close else None,
            **vars(self.cost(entry)),
            env_steps=entry.env_steps,
            non_inferiority=self.decisions.get(name),
            fidelity=close,
            metrics={key: metric_estimate([*runs.values()], key, distinct) for key in self.metrics},
        )


@dataclasses.dataclass(frozen=True)
class PlayPart:
    """Job of an evaluation: plays a part of its episodes, or reads them if they were played before.

    Attributes:
        env: Environment.
        policies: Policies by name; `teacher` is compared with the students in their own states.
        base: Settings of the episodes.
        folder: Folder of the evaluation.
    """

    env: EnvConfig
    policies: Mapping[str, PolicyRuns]
    base: PlayConfig
    folder: Path

    def __call__(self, part: Part, report: Report) -> Played:
        """Return the episodes of a part."""
        (name, run, numbers), entry, teacher = part, self.policies[part[0]], self.policies["teacher"].first
        settings, policy = dataclasses.replace(self.base, first=numbers.start, side=entry.side), entry.runs[run]
        states = OwnStates(run) if entry.kind == "student" and numbers.start < self.base.labeled_episodes else None
        values = {"name": name, "run": run, "settings": settings, "episodes": len(numbers), "env": self.env}
        prints = [None if own is None else fingerprint(own) for own in (policy, teacher if states else None)]
        inputs = StageInputs("evaluate", values | {"policies": prints, "arrays": ARRAYS}, code=(self.env,)).to_json()
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / FOLDER / f"episodes-{digest}.safetensors"
        if fetch(path):
            report(len(numbers), 0)
            return read_played(path, run, numbers.start)
        query = TeacherQuery(teacher, states.add) if states is not None and teacher is not None else None
        episodes = play(self.env, policy, len(numbers), settings, query=query, progress=Increments(report))
        write_played(path, (episodes, states))
        return episodes, states


def write_played(path: Path, played: Played) -> None:
    """Write the episodes of one job."""
    episodes, states = played
    tensors = {name: torch.from_numpy(getattr(episodes, name)) for name in ARRAYS}
    tensors["actions"] = torch.from_numpy(np.concatenate(episodes.actions))
    info = [
        {key: None if math.isnan(number) else float(number) for key, number in info.items()} for info in episodes.info
    ]
    write_state(path, {**tensors, "info": info, "states": None if states is None else states.state_dict()})


def read_played(path: Path, run: int | None, first: int) -> Played:
    """Read the episodes of one job from number `first` on; raise CorruptArtifactError if they were changed."""
    state = read_state(path)
    try:
        info = read_value(list[dict[str, float | None]], state["info"], path, "info", START_AGAIN)
        arrays = {name: state[name].numpy() for name in ARRAYS}
        actions = np.split(state["actions"].numpy(), np.cumsum(arrays["lengths"])[:-1])
        states = None
        if state["states"] is not None:
            heads = read_value(tuple[Head, Head], state["states"]["heads"], path, "states.heads", START_AGAIN)
            states = OwnStates.from_state(run, state["states"], heads)
    except KeyError as error:
        raise CorruptArtifactError(f"{path}: there is no {error}. {START_AGAIN}") from None
    info = [{key: math.nan if number is None else number for key, number in part.items()} for part in info]
    return Episodes(**arrays, info=info, actions=actions, first=first), states
