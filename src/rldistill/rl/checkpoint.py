"""Where training from reward stood when it was stopped, in one file of tensors."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rldistill.artifacts import write_atomic
from rldistill.errors import CorruptArtifactError

if TYPE_CHECKING:
    from rldistill.rl.ppo import _Training

FILE = "checkpoints/last.safetensors"


def save(training: _Training) -> None:
    """Write networks, optimiser, environments, what is remembered, and how far it has come."""
    weaning = training.weaning
    progress = [training.steps, training.updates, training.best_score, training.next_eval, weaning.share]
    progress += [torch.nan if weaning.held is None else weaning.held, weaning.warned]
    tensors = {"progress": torch.tensor(progress, dtype=torch.float64), "gap": training.gap}
    for name, part in (("policy", training.policy.state_dict()), ("critic", training.critic.state_dict())):
        tensors |= {f"{name}.{key}": value for key, value in part.items()}
    tensors |= {f"best.{key}": value for key, value in training.best.items()}
    tensors |= {f"life.{key}": value for key, value in training.life.tensors().items()}
    for index, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    for name, memory in (("student", training.player), ("teacher", training.teacher)):
        if memory is not None and memory.state is not None:
            tensors[f"memory.{name}"] = memory.state
    whole = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    write_atomic(training.folder / FILE, lambda temporary: save_file(whole, temporary))


def restore(training: _Training) -> bool:
    """Take up the last checkpoint, if there is one; whether the open episodes were played again as they were."""
    path = training.folder / FILE
    if not path.exists():
        return True
    try:
        tensors = load_file(path)
        steps, updates, training.best_score, next_eval, share, held, warned = tensors["progress"].tolist()
        training.steps, training.updates, training.next_eval = int(steps), int(updates), int(next_eval)
        training.weaning.share, training.weaning.warned = share, bool(warned)
        training.weaning.held = None if held != held else held
        training.gap = tensors["gap"]
        training.policy.load_state_dict(_under("policy.", tensors))
        training.critic.load_state_dict(_under("critic.", tensors))
        training.best = _under("best.", tensors)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        groups = training.optimizer.state_dict()["param_groups"]
        training.optimizer.load_state_dict({"state": state, "param_groups": groups})
        exact = training.life.take_up(_under("life.", tensors))
    except (SafetensorError, KeyError, ValueError, RuntimeError, IndexError) as error:
        raise CorruptArtifactError(f"{path}: {error}; start again with --overwrite") from None
    for name, memory in (("student", training.player), ("teacher", training.teacher)):
        if memory is not None and f"memory.{name}" in tensors and exact:
            memory.state = tensors[f"memory.{name}"]
    if not exact:
        warnings.warn(f"{path}: the open episodes were not played again as they were; they are dropped", stacklevel=2)
    metrics = training.folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)[: training.updates] if metrics.exists() else []
    write_atomic(metrics, lambda temporary: temporary.write_text("".join(lines)))
    return exact


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
