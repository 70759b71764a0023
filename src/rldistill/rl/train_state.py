"""State of a run of learning from reward, saved and restored by name."""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rldistill.core.errors import CorruptArtifactError
from rldistill.data.replay import ReplayBuffer
from rldistill.io.atomic import write_atomic
from rldistill.io.metrics import Metrics
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import LearningConfig
from rldistill.rl.guidance import DistillationWeight
from rldistill.rl.task import LearningTask, TrainingSetup

FILE = "checkpoints/last.safetensors"
CHECKPOINT_INTERVAL_S = 10.0
"""Minimum time between checkpoints."""
MAX_CHECKPOINT_SHARE = 0.03
"""Maximum share of the time that is spent on checkpoints, which hold the whole replay buffer."""
COUNTERS = ("steps", "updates", "offline_updates", "num_rows", "next_eval", "best_score")


@dataclass
class TrainState:
    """Everything that a run needs to continue exactly where it was stopped.

    A checkpoint is one safetensors file, so that it is written at once: tensors by their path in `state_dict`
    (`networks/policy/output.weight`), numbers as JSON in its metadata.

    Attributes:
        networks: networks by name; `policy` learns, and `best` is the best policy so far, on the CPU.
        optimizer: optimizer of the networks.
        replay: replay buffer of DQN.
        actors: student and teacher in the environments.
        weight: weight of the distillation losses.
        steps: environment steps.
        updates: updates of the networks (rollouts of PPO, gradient steps of DQN).
        offline_updates: gradient steps on the teacher's data, which come first.
        num_rows: rows of `metrics.jsonl`.
        next_eval: environment step of the next evaluation.
        best_score: score of the best policy; None before the first evaluation.
    """

    task: LearningTask
    config: LearningConfig
    setup: TrainingSetup
    networks: Mapping[str, NetworkPolicy]
    optimizer: torch.optim.Optimizer
    replay: ReplayBuffer | None = None
    steps: int = 0
    updates: int = 0
    offline_updates: int = 0
    num_rows: int = 0
    best_score: float | None = None

    def __post_init__(self) -> None:
        self.next_eval = self.config.eval_every
        self.weight = DistillationWeight(self.task.guidance)
        self.networks = {**self.networks, "best": copy.deepcopy(self.networks["policy"]).cpu()}
        self.student, teacher = self.setup.actor(self.networks["policy"]), self.setup.teacher
        self.actors = {"student": self.student} | ({} if teacher is None else {"teacher": teacher})
        self._started = time.monotonic()
        self._next_checkpoint = self._started + CHECKPOINT_INTERVAL_S

    @property
    def progress(self) -> float:
        """The finished share of the environment steps."""
        return self.steps / self.config.total_steps

    @property
    def eval_due(self) -> bool:
        """True if it is time for an evaluation."""
        return self.task.score is not None and (self.steps >= self.next_eval or self.progress >= 1)

    def update_weight(self) -> None:
        """Update the weight of the distillation losses with the latest returns, and warn if they have dropped."""
        worker = self.setup.worker
        warning = self.weight.update(worker.recent, worker.num_ended, self.progress)
        if warning is not None:
            warnings.warn(f"{self.task.folder}: {warning}", stacklevel=3)

    def log(self, policy: NetworkPolicy, terms: Mapping[str, Any]) -> None:
        """Append a row to `metrics.jsonl`, with the score of the policy if an evaluation is due."""
        row = {"step": self.steps, "update": self.updates, "return": self.setup.worker.mean_return, **terms}
        row |= self.task.guidance.reference_returns
        if self.eval_due:
            self.next_eval += self.config.eval_every
            row["score"] = self._evaluate(policy)
        self._append(row | {"seconds": round(time.monotonic() - self._started, 2)})

    def log_start(self, policy: NetworkPolicy) -> None:
        """Append the score of a policy that has learned before its first environment step."""
        if not self.num_rows and self.task.score is not None:
            self._append({"step": 0, "update": self.updates, "score": self._evaluate(policy)})

    def _evaluate(self, policy: NetworkPolicy) -> float:
        """Return the mean score of a policy, and keep the policy if it is the best so far."""
        assert self.task.score is not None
        candidate = copy.deepcopy(policy).cpu().eval()
        mean = float(np.mean(self.task.score(candidate)))
        if self.best_score is None or mean >= self.best_score:
            self.best_score = mean
            self.networks["best"].load_state_dict(candidate.state_dict())
        return mean

    def _append(self, row: Mapping[str, Any]) -> None:
        Metrics(self.task.folder).add(row)
        self.num_rows += 1

    def save_if_due(self) -> None:
        """Save a checkpoint if the last one is long enough ago."""
        started = time.monotonic()
        if started >= self._next_checkpoint:
            self.save()
            ended = time.monotonic()
            self._next_checkpoint = ended + max(CHECKPOINT_INTERVAL_S, (ended - started) / MAX_CHECKPOINT_SHARE)

    def save(self) -> None:
        """Write the checkpoint."""
        tensors: dict[str, Tensor] = {}
        metadata = {"state": json.dumps(_split(self.state_dict(), "", tensors))}
        write_atomic(self.task.folder / FILE, lambda temporary: save_file(tensors, temporary, metadata))

    def restore(self) -> None:
        """Load the checkpoint if there is one, and drop newer rows of `metrics.jsonl`.

        Raises:
            CorruptArtifactError: the checkpoint is damaged, or of another run.
        """
        path = self.task.folder / FILE
        if path.exists():
            try:
                is_exact = self.load_state_dict(_read(path))
            except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
                message = f'{path}: {error}. Start again with mode="overwrite" (--overwrite).'
                raise CorruptArtifactError(message) from None
            if not is_exact:
                warnings.warn(f"{path}: open episodes could not be replayed exactly; they are dropped", stacklevel=2)
        Metrics(self.task.folder).keep(self.num_rows)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers by name, in nested dicts."""
        return {
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizer": self.optimizer.state_dict()["state"],
            "worker": self.setup.worker.state_dict(),
            "actors": {name: actor.state for name, actor in self.actors.items()},
            "weight": self.weight.state_dict(),
            "action_gap": None if self.setup.teacher_loss is None else self.setup.teacher_loss.action_gap,
            "replay": None if self.replay is None else self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore the result of `state_dict`; return False if open episodes were dropped."""
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        moments = {int(index): values for index, values in state.get("optimizer", {}).items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.weight.load_state_dict(state["weight"])
        if self.setup.teacher_loss is not None:
            self.setup.teacher_loss.action_gap = state["action_gap"]
        if self.replay is not None:
            self.replay.load_state_dict(state["replay"])
        is_exact = self.setup.worker.load_state_dict(state["worker"])
        if is_exact:
            for name, actor in self.actors.items():
                actor.state = state["actors"][name]
        elif self.replay is not None:
            self.replay.truncate()
        return is_exact


def _split(state: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Move the tensors of nested dicts to `tensors`, by their path; return the rest."""
    rest: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[f"{path}{name}"] = value.detach().cpu().contiguous().clone()
        else:
            rest[str(name)] = _split(value, f"{path}{name}/", tensors) if isinstance(value, Mapping) else value
    return rest


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint as the nested dicts that `_split` took apart."""
    with safe_open(path, framework="pt") as file:
        state: dict[str, Any] = json.loads((file.metadata() or {})["state"])
        for key in file.keys():  # noqa: SIM118 (the file is no dict)
            *folders, name = key.split("/")
            target = state
            for folder in folders:
                target = target.setdefault(folder, {})
            target[name] = file.get_tensor(key).clone()  # the memory of the file may not be aligned
    return state
