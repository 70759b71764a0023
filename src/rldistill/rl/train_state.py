"""Where training from reward stood when it was stopped, in one file of tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rldistill.core.errors import CorruptArtifactError
from rldistill.envs.rollout import StatefulPolicy
from rldistill.io.atomic import write_atomic
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.guidance import DistillationWeight
from rldistill.rl.replay import ReplayBuffer
from rldistill.rl.rollout import RolloutWorker

FILE = "checkpoints/last.safetensors"


class Training(Protocol):
    """What PPO and DQN have in common to go on from.

    Attributes:
        folder: where `metrics.jsonl` and the checkpoints are.
        steps, updates, studied, rows: of the environments, the optimiser, the optimiser on data, in `metrics.jsonl`.
        best_score, best: of the best policy so far, and its weights.
        next_eval: the step of the next evaluation.
        gap: the action gap of a teacher of Q values, once it is known.
        networks: by name.
        memories: what policies remember, by who they are.
    """

    folder: Path
    steps: int
    updates: int
    studied: int
    rows: int
    best_score: float
    best: dict[str, Tensor]
    next_eval: int
    gap: Tensor
    optimizer: torch.optim.Optimizer
    life: RolloutWorker
    weaning: DistillationWeight
    replay: ReplayBuffer | None
    networks: Mapping[str, NetworkPolicy]
    memories: Mapping[str, StatefulPolicy]


def save(training: Training) -> None:
    """Write networks, optimiser, environments, replay, what is remembered, and how far it has come."""
    progress: list[float] = [training.steps, training.updates, training.studied, training.rows, training.next_eval]
    progress += [training.best_score, *training.weaning.numbers()]
    tensors = {"progress": torch.tensor(progress, dtype=torch.float64), "gap": training.gap}
    for name, network in training.networks.items():
        tensors |= {f"network.{name}.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in training.best.items()}
    tensors |= {f"life.{key}": value for key, value in training.life.tensors().items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    if training.replay is not None:
        tensors |= {f"replay.{key}": value for key, value in training.replay.tensors().items()}
    for name, memory in training.memories.items():
        if memory.state is not None:
            tensors[f"memory.{name}"] = memory.state
    whole = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    write_atomic(training.folder / FILE, lambda temporary: save_file(whole, temporary))


def restore(training: Training) -> None:
    """Take up the last checkpoint, if there is one; warns where open episodes did not play again as they were.

    Raises:
        CorruptArtifactError: it is not whole, or of another run.
    """
    path = training.folder / FILE
    if not path.exists():
        return
    try:
        tensors = load_file(path)
        _take_up(training, tensors)
        exact = training.life.load_state_dict(_under("life.", tensors))
    except (SafetensorError, KeyError, ValueError, RuntimeError, IndexError) as error:
        raise CorruptArtifactError(f'{path}: {error}. Start again with mode="overwrite" (--overwrite).') from None
    if exact:
        for name, memory in training.memories.items():
            memory.state = tensors.get(f"memory.{name}")
    else:
        if training.replay is not None:
            training.replay.cut()
        warnings.warn(f"{path}: the open episodes were not played again as they were; they are dropped", stacklevel=2)


def _take_up(training: Training, tensors: dict[str, Tensor]) -> None:
    *counts, training.best_score = tensors["progress"][:6].tolist()
    training.steps, training.updates, training.studied, training.rows, training.next_eval = map(int, counts)
    training.weaning.load_state_dict(tensors["progress"][6:].tolist())
    training.gap = tensors["gap"]
    training.best = _under("best.", tensors)
    for name, network in training.networks.items():
        network.load_state_dict(_under(f"network.{name}.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = training.optimizer.state_dict()["param_groups"]
    training.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if training.replay is not None:
        training.replay.load_state_dict(_under("replay.", tensors))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
