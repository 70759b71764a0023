"""Environment and teacher of `examples/jobshop.yaml`: which job next? Choose a dispatching rule at each decision.

JSSEnv's actions are the jobs of one instance, so that nothing learned on 15 jobs applies to 20. Here an action is one
of the dispatching rules of JSSEnv, or waiting, and an observation compares the jobs that two rules would choose: both
are the same for every size of a shop, and a tree over them can be read. A decision concerns the machine with the
longest queue; where there is no choice, the shop goes on by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import JSSEnv.envs
import numpy as np
import torch
from gymnasium import spaces
from JSSEnv.envs.jss_env import JssEnv
from torch import Tensor, nn

FOLDER = Path(JSSEnv.envs.__file__).parent / "instances"
MAX_DECISIONS = 600
Rule = Callable[["Shop", int], float]


class Shop(JssEnv):
    """JSSEnv's shop on plain lists, on which its loops are faster, without its observations."""

    def __init__(self, instance: int) -> None:
        super().__init__({"instance_path": FOLDER / f"ta{instance:02}"})
        self.instance_matrix = [[tuple(step) for step in job] for job in self.instance_matrix.tolist()]
        self.rest = [[sum(d for _, d in job[step:]) for step in range(len(job) + 1)] for job in self.instance_matrix]
        self.mean = self.sum_op / (self.jobs * self.machines)
        self.reset()

    def _get_current_state_representation(self) -> None:
        """JSSEnv's observation, which nobody needs here."""

    def _check_no_op(self) -> None:
        """JSSEnv's test of whether a job may wait for a later one: no rule waits."""

    def increase_time_step(self) -> int:
        """JSSEnv's step to the next event, without its observations, and with one pass over the jobs."""
        self.next_jobs.pop(0)
        passed = self.next_time_step.pop(0) - self.current_time_step
        self.current_time_step += passed
        self.time_until_available_machine = [max(0, left - passed) for left in self.time_until_available_machine]
        for job, left in enumerate(self.time_until_finish_current_op_jobs):
            step = self.todo_time_step_job[job]
            if step == self.machines:
                continue
            if left > passed:
                self.time_until_finish_current_op_jobs[job] = left - passed
            elif left > 0:
                self.time_until_finish_current_op_jobs[job] = 0
                self.idle_time_jobs_last_op[job] = passed - left
                self.todo_time_step_job[job] = step + 1
                more = step + 1 < self.machines
                self.needed_machine_jobs[job] = self.instance_matrix[job][step + 1][0] if more else -1
            else:
                self.idle_time_jobs_last_op[job] += passed
        for job, machine in enumerate(self.needed_machine_jobs):
            free = machine >= 0 and self.time_until_available_machine[machine] == 0
            if free and not self.legal_actions[job] and not self.illegal_actions[machine][job]:
                self.legal_actions[job] = True
                self.nb_legal_actions += 1
                self.nb_machine_legal += not self.machine_legal[machine]
                self.machine_legal[machine] = True
        return 0  # the idle time, of which JSSEnv makes its reward

    def reset(self) -> None:
        super().reset()
        vars(self).update({key: value.tolist() for key, value in vars(self).items() if isinstance(value, np.ndarray)})
        self.proceed()

    def copy(self) -> Shop:
        new = object.__new__(Shop)
        for key, value in vars(self).items():
            changes = isinstance(value, list) and key not in ("instance_matrix", "rest", "colors", "jobs_length")
            nested = changes and value and isinstance(value[0], list)
            new.__dict__[key] = [row[:] for row in value] if nested else value[:] if changes else value
        return new

    @property
    def done(self) -> bool:
        return self.nb_legal_actions == 0

    def queue(self) -> list[int]:
        """Return the jobs that wait for the machine with the longest queue."""
        queues: dict[int, list[int]] = {}
        for job in range(self.jobs):
            if self.legal_actions[job]:
                queues.setdefault(self.needed_machine_jobs[job], []).append(job)
        return max(queues.values(), key=len)

    def proceed(self) -> None:
        """Dispatch jobs as long as all rules choose the same."""
        while not self.done and len(jobs := {*self.choices()}) == 1:
            self.step(jobs.pop())

    def choices(self) -> list[int]:
        """Return the job of each rule: the first of the queue."""
        queue = self.queue()
        return [min(queue, key=lambda job: (rule(self, job), job)) for rule in RULES.values()]

    def dispatch(self, action: int) -> None:
        """Dispatch the job of a rule, and go on to the next decision."""
        self.step(self.choices()[action])
        self.proceed()

    def duration(self, job: int) -> int:
        return self.instance_matrix[job][self.todo_time_step_job[job]][1]

    def work(self, job: int) -> int:
        """Return the duration of all steps that a waiting job still needs."""
        return self.rest[job][self.todo_time_step_job[job]]

    def next_wait(self, job: int) -> int:
        """Return the time until the machine after the next step is free; 0 without one."""
        step = self.todo_time_step_job[job] + 1
        return self.time_until_available_machine[self.instance_matrix[job][step][0]] if step < self.machines else 0


RULES: dict[str, Rule] = {
    "SPT": Shop.duration,
    "MWR": lambda shop, job: -shop.work(job),
    "FIFO": lambda shop, job: -shop.idle_time_jobs_last_op[job],
}
"""Three rules of `JSSEnv.dispatching`, without its random waiting; the job with the lowest number is first."""
BASE = "MWR"  # the best of the three on ta01 to ta10


def features(shop: Shop) -> dict[str, float]:
    """Return numbers without a unit about the shop, and about the jobs by SPT and by MWR."""
    spt, mwr, fifo = shop.choices()
    work = [shop.rest[job][step] for job, step in enumerate(shop.todo_time_step_job) if step < shop.machines]
    return {
        "queue": len(shop.queue()),
        "longer": shop.duration(mwr) / shop.duration(spt),
        "less_work": shop.work(spt) / shop.work(mwr),
        "duration_spt": shop.duration(spt) / shop.mean,
        "ratio_of_ratios": shop.duration(mwr) * shop.work(spt) / (shop.work(mwr) * shop.duration(spt)),
        "work_mwr": shop.work(mwr) / max(work),
        "next_wait_mwr": shop.next_wait(mwr) / shop.mean,
        "idle_fifo": shop.idle_time_jobs_last_op[fifo] / shop.mean,
    }


class JobShop(gymnasium.Env[dict[str, Any], int]):
    """Shop in which an action is a rule; the return is minus the makespan.

    The entry `history`, for the teacher alone, is the number of the instance and all actions so far, from 1.
    """

    def __init__(self, instances: Sequence[int] = range(1, 11)) -> None:
        self.instances = [*instances]
        self.action_space = spaces.Discrete(len(RULES))
        numbers = {name: spaces.Box(-np.inf, np.inf, (), np.float32) for name in features(Shop(1))}
        self.observation_space = spaces.Dict({**numbers, "history": spaces.Box(0, 100, (1 + MAX_DECISIONS,))})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.instance = self.instances[int(self.np_random.integers(len(self.instances)))]
        self.shop, self.history, self.start = Shop(self.instance), list[int](), 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.shop.dispatch(int(action))
        self.history.append(int(action) + 1)
        passed, self.start = self.shop.current_time_step - self.start, self.shop.current_time_step
        return self._observation(), -float(passed), self.shop.done, False, {}

    def _observation(self) -> dict[str, Any]:
        if not self.shop.done:
            self.numbers = {name: np.float32(value) for name, value in features(self.shop).items()}
        history = np.zeros(1 + MAX_DECISIONS, np.float32)
        history[: 1 + len(self.history)] = [self.instance, *self.history]
        return {**self.numbers, "history": history}


class WithoutHistory(gymnasium.wrappers.FilterObservation):
    """View of the student."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env, [key for key in env.observation_space if key != "history"])


@lru_cache(4_096)
def replay(instance: int, history: tuple[int, ...]) -> Shop:
    """Return the shop after these actions; callers do not change it."""
    if not history:
        return Shop(max(1, instance))
    shop = replay(instance, history[:-1]).copy()
    shop.dispatch(history[-1] - 1)
    return shop


@lru_cache(65_536)
def makespans(instance: int, history: tuple[int, ...]) -> list[int]:
    """Return the makespan of each rule if it chooses the next job, and `BASE` all further ones."""
    shop, base, found = replay(instance, history), RULES[BASE], dict[int, int]()
    if shop.done:
        return [shop.current_time_step] * len(RULES)
    if history:  # the value of `BASE` is that of the last choice, after which `BASE` chose all further jobs
        found[shop.choices()[[*RULES].index(BASE)]] = makespans(instance, history[:-1])[history[-1] - 1]
    for job in {*shop.choices()} - {*found}:
        end = shop.copy()
        end.step(job)
        while not end.done:
            end.step(min(end.queue(), key=lambda job: (base(end, job), job)))
        found[job] = end.current_time_step
    return [found[job] for job in shop.choices()]


class Rollout(nn.Module):
    """Rollout algorithm (Bertsekas 1997): the value of a rule is minus the makespan by simulation."""

    def forward(self, obs: Tensor) -> Tensor:
        """Return the values `[B, rules]` of the entry `history`, `[B, 1 + MAX_DECISIONS]`."""
        rows = obs.int().tolist()
        values = [makespans(row[0], tuple(action for action in row[1:] if action)) for row in rows]
        return -torch.tensor(values, dtype=torch.float32)


def rollout() -> Rollout:
    """Return the teacher."""
    return Rollout()
