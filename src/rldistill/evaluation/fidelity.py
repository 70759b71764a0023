"""Fidelity: how far a student's decisions are from its teacher's, on the teacher's states and on its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.heads import ILLEGAL
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.data.dataset import Dataset, action_gap
from rldistill.data.sequences import windows
from rldistill.envs.rollout import StatefulPolicy, inference_threads
from rldistill.evaluation.disagreements import Moments, write_gallery
from rldistill.evaluation.episodes import Seen
from rldistill.losses.functional import kl, student_temperature
from rldistill.losses.objective import default_temperature

MOST_HELDOUT, MOST_OWN = 5_000, 50_000
"""States that figures are taken over; of more, every second, fourth, ... step of an episode."""
LANES, BATCH, CHUNK = 16, 512, 64


def regret(student: PolicyOutput, teacher: PolicyOutput) -> Tensor | None:
    """What the teacher thinks is lost by the student's action a, `[N]`; None for continuous actions.

    Of Q values, max_b Q(b) - Q(a), in units of the return. Of logits, where nobody says what an action is worth,
    max_b log p(b) - log p(a) in nats, summed over the parts of an action: 0 where both choose alike, and small where
    the teacher hardly prefers its own.
    """
    return teacher.head.regret(teacher.params, student.mode())


def distance(student: PolicyOutput, teacher: PolicyOutput) -> Tensor:
    """Root mean squared difference of continuous actions, `[N]`, each as a share of its range where that is finite."""
    low, high = (teacher.params.new_tensor(end) for end in (teacher.head.low, teacher.head.high))
    size = torch.where(torch.isfinite(high - low), high - low, torch.ones_like(low))
    return (((student.mode() - teacher.mode()) / size) ** 2).mean(-1).sqrt()


def value_of(output: PolicyOutput) -> Tensor | None:
    """What a policy expects from a state, `[N]`: its critic's word, or its highest Q value; None without either."""
    if output.value is not None:
        return output.value
    return output.params.amax(-1) if output.head.action_values else None


def differences(student: PolicyOutput, teacher: PolicyOutput, temperature: float = 1.0) -> dict[str, Tensor]:
    """Of each state, `[N]`: those of the following that these two heads allow.

    `agreement` is the share of an action's parts that are chosen alike, `kl` KL(teacher || student) in nats, in which
    the teacher is softened by `temperature`, and the student too if it has Q values (as ForwardKL does), `regret` that
    of `regret`, `random_regret` what it would be of a uniformly random legal choice among actions, `squared_error` that
    of continuous actions, `squared_value_error` that of `value_of`.
    """
    found: dict[str, Tensor] = {}
    chosen = student.mode(), teacher.mode()
    if teacher.head.discrete:
        found["agreement"] = (chosen[0] == chosen[1]).float().reshape(len(chosen[0]), -1).mean(-1)
    else:
        found["squared_error"] = ((chosen[0] - chosen[1]) ** 2).mean(-1)
    if teacher.head.discrete or (teacher.head.stochastic and teacher.head.same_space(student.head)):
        found["kl"] = kl(teacher, student, temperature, student_temperature(student.head, temperature))
    lost = regret(student, teacher)
    if lost is not None:
        found["regret"] = lost
    if teacher.head.single_choice:
        legal = teacher.params > ILLEGAL / 2
        behind = (teacher.params.amax(-1, keepdim=True) - teacher.params).masked_fill(~legal, 0)
        found["random_regret"] = behind.sum(-1) / legal.sum(-1)
    values = value_of(student), value_of(teacher)
    if values[0] is not None and values[1] is not None:
        found["squared_value_error"] = (values[0] - values[1]) ** 2
    return found


def summary(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Any] | None:
    """Means over all states of several policies; null what their heads do not allow, and all if there is no state."""
    if not found:
        return None

    def over(name: str) -> float | None:
        if name not in found[0]:
            return None
        mean = float(torch.cat([part[name].double() for part in found]).mean())
        return mean if math.isfinite(mean) else None

    def root(name: str) -> float | None:
        mean = over(name)
        return None if mean is None else math.sqrt(mean)

    return {
        "states": sum(len(next(iter(part.values()))) for part in found),
        "agreement": over("agreement"),
        "action_rmse": root("squared_error"),
        "kl": over("kl"),
        "value_rmse": root("squared_value_error"),
        "regret": over("regret"),
        "random_regret": over("random_regret"),
    }


@dataclass(frozen=True)
class Said:
    """What a student and its teacher said of the same states."""

    student: PolicyOutput
    teacher: PolicyOutput

    @classmethod
    def joined(cls, parts: Sequence[Said]) -> Said:
        """All of them, one after the other."""
        return cls(joined([part.student for part in parts]), joined([part.teacher for part in parts]))

    def rows(self, kept: Tensor) -> Said:
        """Some of the states."""
        return Said(self.student.rows(kept), self.teacher.rows(kept))


def joined(outputs: Sequence[PolicyOutput]) -> PolicyOutput:
    """What was said of several batches, without features, and with masks as they stand in the numbers."""
    values = [output.value for output in outputs if output.value is not None]
    params = torch.cat([output.params for output in outputs])
    return PolicyOutput(outputs[0].head, params, torch.cat(values) if values else None)


class Watch:
    """Watches one student play: what was said of its own states, and the moments of largest regret among them."""

    def __init__(self, training_seed: int | None) -> None:
        self.moments = Moments(training_seed)
        self._waiting: list[Seen] = []
        self._said: list[tuple[Said, Tensor]] = []
        self._stride = 1

    def __call__(self, seen: Seen) -> None:
        """Take note of one step of all slots."""
        self._waiting.append(seen)
        if len(self._waiting) == CHUNK:
            self._note()

    def said(self) -> Said | None:
        """Of at most MOST_OWN states; None if no step was seen."""
        if self._waiting:
            self._note()
        return Said.joined([said for said, _ in self._said]) if self._said else None

    def _note(self) -> None:
        waiting, self._waiting = self._waiting, []
        said = Said.joined([Said(seen.student, seen.teacher) for seen in waiting])
        obs, episode, step = (
            np.concatenate([getattr(seen, name) for seen in waiting]) for name in ("obs", "episode", "step")
        )
        lost = regret(said.student, said.teacher)
        far = distance(said.student, said.teacher) if lost is None else lost
        self.moments.offer(far.numpy(), obs, episode, step, said.student, said.teacher)
        self._keep(said, torch.from_numpy(step))
        while sum(len(kept) for _, kept in self._said) > MOST_OWN:
            self._stride *= 2
            self._keep(Said.joined([said for said, _ in self._said]), torch.cat([kept for _, kept in self._said]), True)

    def _keep(self, said: Said, step: Tensor, alone: bool = False) -> None:
        kept = step % self._stride == 0
        self._said = ([] if alone else self._said) + [(said.rows(kept), step[kept])]


def on_heldout(policy: Policy, dataset: Dataset, most: int = MOST_HELDOUT) -> Said:
    """What a policy, and the teacher's labels, say of at most `most` states of held-out episodes.

    A policy that remembers is shown whole episodes: as many as fit, and one at least.
    """
    rows = np.flatnonzero(dataset.heldout)
    with torch.no_grad(), inference_threads(1):
        if policy.initial_state(1) is None:
            spread = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
            batches = dataset.batches(spread, BATCH)
            return Said.joined([Said(policy(batch.obs)[0], batch.teacher) for batch in batches])
        return Said.joined(list(_in_time(policy, dataset, _whole_episodes(dataset, rows, most))))


def _whole_episodes(dataset: Dataset, rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    numbers, lengths = np.unique(dataset.columns["episode"][rows], return_counts=True)
    some = numbers[: max(1, int((np.cumsum(lengths) <= most).sum()))]
    return rows[np.isin(dataset.columns["episode"][rows], some)]


def _in_time(policy: Policy, dataset: Dataset, rows: NDArray[np.int64]) -> Iterator[Said]:
    lanes = min(LANES, len(np.unique(dataset.columns["episode"][rows])))
    memory = StatefulPolicy(policy, lanes)
    for window in windows(dataset, rows, 1, lanes):
        memory.reset(np.flatnonzero(window.starts[0].numpy()))
        batch = window.batch
        assert isinstance(batch.obs, Tensor)
        output = memory.step(batch.obs[0].numpy())
        value = None if batch.teacher.value is None else batch.teacher.value[0]
        teacher = PolicyOutput(batch.teacher.head, batch.teacher.params[0], value)
        yield Said(joined([output]), teacher).rows(batch.weight[0] > 0)


def fidelity(
    name: str,
    policies: Sequence[Policy],
    watches: Sequence[Watch],
    dataset: Dataset | None,
    folder: Path,
    temperature: float | None = None,
) -> dict[str, Any] | None:
    """Compare a student with its teacher and write `disagreements/<name>/`.

    Args:
        name: the student's.
        policies: of each training seed.
        watches: what was seen of each while it played.
        dataset: what the teacher said of states of its own; None if nothing was collected.
        folder: the run's.
        temperature: by which the student learned; None is half the mean action gap of a teacher of Q values, in
            `dataset` if there is one, and 1 of any other.

    Returns:
        `temperature`, `regret_unit` (null for continuous actions), `teacher_states` (of held-out episodes; null without
        a dataset), `own_states` and `disagreements`, the folder; null if there was nothing to see.
    """
    own = [said for watch in watches if (said := watch.said()) is not None]
    if not own:
        return None
    head = own[0].teacher.head
    values = own[0].teacher.params.numpy() if dataset is None else dataset.columns["teacher"]
    soft = temperature if temperature is not None else default_temperature(head, lambda: action_gap(values))
    heldout = [] if dataset is None else [on_heldout(policy, dataset) for policy in policies]
    place = Path("disagreements") / name
    moments = Moments.largest([watch.moments for watch in watches])
    write_gallery(moments, head.regret_unit or "share of the action's range", folder / place)
    return {
        "temperature": soft,
        "regret_unit": head.regret_unit,
        "teacher_states": summary([differences(said.student, said.teacher, soft) for said in heldout]),
        "own_states": summary([differences(said.student, said.teacher, soft) for said in own]),
        "disagreements": str(place),
    }
