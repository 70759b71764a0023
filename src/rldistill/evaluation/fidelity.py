"""Fidelity: distance between the decisions of a student and its teacher, on the teacher's states and on its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rldistill.core.heads import ILLEGAL, LARGEST, ActionHead
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.data.dataset import Dataset, action_gap, spread
from rldistill.data.sequences import windows
from rldistill.evaluation.disagreements import Moments, write_gallery
from rldistill.evaluation.episodes import ComparedStep
from rldistill.evaluation.results import Fidelity, StateMetrics
from rldistill.io.tensors import State
from rldistill.losses.objective import default_temperature
from rldistill.losses.policy import kl, student_temperature
from rldistill.policies.agent import StatefulPolicy, inference_threads

MAX_HELDOUT_STATES, MAX_OWN_STATES = 5_000, 50_000
"""Numbers of states that metrics are averaged over; beyond, every second, fourth, ... step of an episode counts."""

LANES, BATCH_SIZE, CHUNK_STEPS = 16, 512, 64

OutputPair = tuple[PolicyOutput, PolicyOutput]
"""Outputs of a student and its teacher for the same states."""


def squared_error(a: PolicyOutput, b: PolicyOutput) -> Tensor:
    """Return the mean squared difference of continuous actions, `[N]`."""
    return ((a.mode() - b.mode()) ** 2).mean(-1)


def regret(student: PolicyOutput, teacher: PolicyOutput) -> Tensor | None:
    """Return the loss by the student's action a in the teacher's estimate, `[N]`; None for continuous actions.

    For Q-values, max_b Q(b) - Q(a), in units of the return. For logits, which do not estimate returns,
    max_b log p(b) - log p(a) in nats, summed over the parts of an action.
    """
    return teacher.head.regret(teacher.params, student.mode())


def action_ranges(output: PolicyOutput) -> Tensor:
    """Return the range of each part of a continuous action; 1 for infinite ones."""
    low, high = (output.params.new_tensor(end) for end in (output.head.low, output.head.high))
    return torch.where(high - low < LARGEST, high - low, torch.ones_like(low))


def state_value(output: PolicyOutput) -> Tensor | None:
    """Return the value of each state, `[N]`, by the critic or the highest Q-value; None without either."""
    return output.params.amax(-1) if output.value is None and output.head.action_values else output.value


def differences(student: PolicyOutput, teacher: PolicyOutput, temperature: float = 1.0) -> dict[str, Tensor]:
    """Return the differences of two outputs in each state, `[N]`, as far as their heads define them.

    `agreement`; `kl`, KL(teacher || student) in nats with the teacher (and a student of Q-values, as in ForwardKL)
    softened by `temperature`; `regret`; `random_regret`, the regret of a uniformly random legal action;
    `squared_error` of continuous actions; `squared_value_error`.
    """
    metrics: dict[str, Tensor] = {}
    if teacher.head.discrete:
        metrics["agreement"] = student.agreement(teacher)
    else:
        metrics["squared_error"] = squared_error(student, teacher)
    if teacher.head.discrete or (teacher.head.stochastic and teacher.head.same_space(student.head)):
        metrics["kl"] = kl(teacher, student, temperature, student_temperature(student.head, temperature))
    if (lost := regret(student, teacher)) is not None:
        metrics["regret"] = lost
    if teacher.head.single_choice:
        legal = teacher.params > ILLEGAL / 2
        behind = (teacher.params.amax(-1, keepdim=True) - teacher.params).masked_fill(~legal, 0)
        metrics["random_regret"] = behind.sum(-1) / legal.sum(-1)
    own, target = state_value(student), state_value(teacher)
    if own is not None and target is not None:
        metrics["squared_value_error"] = (own - target) ** 2
    return metrics


def concat(outputs: Sequence[PolicyOutput]) -> PolicyOutput:
    """Concatenate outputs along the states."""
    # Illegal actions are marked in the params too, so masks and features can be left out.
    values = [output.value for output in outputs if output.value is not None]
    params = torch.cat([output.params for output in outputs])
    return PolicyOutput(outputs[0].head, params, torch.cat(values) if values else None)


def state_metrics(pairs: Sequence[OutputPair], temperature: float = 1.0) -> StateMetrics:
    """Return the metrics over the states of several training seeds."""
    parts = [differences(student, teacher, temperature) for student, teacher in pairs]
    means = {name: float(torch.cat([part[name].double() for part in parts]).mean()) for name in parts[0]}
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    roots = {"action_rmse": "squared_error", "value_rmse": "squared_value_error"}
    return StateMetrics(
        states=sum(len(student.params) for student, _ in pairs),
        **{name: mean for name, mean in means.items() if name not in roots.values()},
        **{name: math.sqrt(means[squared]) for name, squared in roots.items() if squared in means},
    )


class OwnStates:
    """Collector of one student's own states: a sample of both outputs, and the moments of largest regret."""

    def __init__(self, training_seed: int | None) -> None:
        self.moments = Moments(training_seed)
        self._waiting: list[ComparedStep] = []
        self._kept: list[tuple[PolicyOutput, PolicyOutput, Tensor]] = []
        self._stride = 1

    def add(self, step: ComparedStep) -> None:
        """Add one step of all slots."""
        self._waiting.append(step)
        if len(self._waiting) == CHUNK_STEPS:
            self._flush()

    def outputs(self) -> OutputPair:
        """Return both outputs for at most MAX_OWN_STATES states."""
        return self._joined()[:2]

    def followed_by(self, more: OwnStates) -> OwnStates:
        """Return the states of two ranges of episodes."""
        both = OwnStates(None)
        both._kept = [self._joined(), more._joined()]
        both.moments = self.moments.followed_by(more.moments)
        both._stride = max(self._stride, more._stride)
        both._kept = [both._thinned(*kept) for kept in both._kept]
        both._thin()
        return both

    def state_dict(self) -> State:
        """Return the states as tensors and JSON values by name."""
        student, teacher, steps = self._joined()
        outputs = {"student": student, "teacher": teacher}
        return {
            "steps": steps,
            "stride": self._stride,
            "heads": [output.head.to_json() for output in outputs.values()],
            "moments": self.moments.tensors(),
            **{name: {"params": own.params, "value": own.value} for name, own in outputs.items()},
        }

    @classmethod
    def from_state(
        cls, training_seed: int | None, state: Mapping[str, Any], heads: tuple[ActionHead, ActionHead]
    ) -> OwnStates:
        """Return the states of `state_dict`; raise KeyError if a tensor is missing."""
        found, parts = cls(training_seed), (state["student"], state["teacher"])
        student, teacher = (
            PolicyOutput(head, part["params"], part["value"]) for head, part in zip(heads, parts, strict=True)
        )
        found._kept, found._stride = [(student, teacher, state["steps"])], state["stride"]
        found.moments = Moments.from_tensors(training_seed, heads[1], state["moments"])
        return found

    def _joined(self) -> tuple[PolicyOutput, PolicyOutput, Tensor]:
        if self._waiting:
            self._flush()
        students, teachers, steps = zip(*self._kept, strict=True)
        return concat(students), concat(teachers), torch.cat(steps)

    def _thin(self) -> None:
        while sum(len(steps) for *_, steps in self._kept) > MAX_OWN_STATES:
            self._stride *= 2
            self._kept = [self._thinned(*kept) for kept in self._kept]

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        student, teacher = concat([part.student for part in waiting]), concat([part.teacher for part in waiting])
        obs, episode, step = (
            np.concatenate([getattr(part, name) for part in waiting]) for name in ("obs", "episode", "step")
        )
        size = regret(student, teacher)
        if size is None:  # of continuous actions, the root mean squared difference, as a share of finite ranges
            size = (((student.mode() - teacher.mode()) / action_ranges(teacher)) ** 2).mean(-1).sqrt()
        self.moments.offer(size.numpy(), ComparedStep(obs, student, teacher, episode, step))
        self._kept.append(self._thinned(student, teacher, torch.from_numpy(step)))
        self._thin()

    def _thinned(
        self, student: PolicyOutput, teacher: PolicyOutput, steps: Tensor
    ) -> tuple[PolicyOutput, PolicyOutput, Tensor]:
        kept = steps % self._stride == 0
        return student.rows(kept), teacher.rows(kept), steps[kept]


def heldout_outputs(policy: Policy, dataset: Dataset, max_states: int = MAX_HELDOUT_STATES) -> OutputPair:
    """Return a policy's outputs and the teacher's labels for states of held-out episodes.

    A recurrent policy gets whole episodes: as many as fit, and at least one.
    """
    rows, students, teachers = np.flatnonzero(dataset.heldout), [], []
    with torch.no_grad(), inference_threads(1):
        if policy.initial_state(1) is None:
            for batch in dataset.batches(spread(rows, max_states), BATCH_SIZE):
                students.append(policy(batch.obs)[0])
                teachers.append(batch.teacher)
            return concat(students), concat(teachers)
        numbers, lengths = np.unique(dataset.columns["episode"][rows], return_counts=True)
        numbers = numbers[: max(1, int((np.cumsum(lengths) <= max_states).sum()))]
        rows, lanes = rows[np.isin(dataset.columns["episode"][rows], numbers)], min(LANES, len(numbers))
        stateful = StatefulPolicy(policy, lanes)
        for window in windows(dataset, rows, 1, lanes):
            stateful.reset(np.flatnonzero(window.starts[0].numpy()))
            batch, label, counted = window.batch, window.batch.teacher, window.batch.weight[0] > 0
            assert isinstance(batch.obs, Tensor)
            students.append(stateful.step(batch.obs[0].numpy()).rows(counted))
            teacher = PolicyOutput(label.head, label.params[0], None if label.value is None else label.value[0])
            teachers.append(teacher.rows(counted))
    return concat(students), concat(teachers)


def fidelity(
    name: str,
    students: Sequence[tuple[Policy, OwnStates]],
    dataset: Dataset | None,
    folder: Path,
    temperature: float | None = None,
) -> Fidelity:
    """Compare a student with its teacher, for each training seed, and write `disagreements/<name>/`.

    A temperature of None is half the mean action gap for Q-values, which are those of `dataset` if there is one, and 1
    otherwise.
    """
    own = [states.outputs() for _, states in students]
    teacher = own[0][1]
    head, labels = teacher.head, teacher.params.numpy() if dataset is None else dataset.columns["teacher"]
    if temperature is None:
        temperature = default_temperature(head, lambda: action_gap(labels))
    path = Path("disagreements") / name
    moments = Moments.largest([states.moments for _, states in students])
    unit = head.regret_unit or "share of the action range"
    write_gallery(moments, unit, students[0][0].spec, folder / path)
    heldout = None
    if dataset is not None:
        heldout = state_metrics([heldout_outputs(policy, dataset) for policy, _ in students], temperature)
    return Fidelity(
        temperature=temperature,
        regret_unit=head.regret_unit,
        teacher_states=heldout,
        own_states=state_metrics(own, temperature),
        disagreements=str(path),
    )
