"""Checkpoints: everything that changes during a training, in one file, so that it is written at once."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from torch import Tensor

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import START_AGAIN
from rldistill.io.tensors import read_tensors, write_tensors

FILE = "checkpoints/last.safetensors"
INTERVAL_S = 10.0
"""Minimum time between checkpoints."""
MAX_SHARE = 0.03
"""Maximum share of the time that is spent on checkpoints, which may hold a whole replay buffer."""
State = dict[str, Any]
"""Nested dicts of tensors and JSON values."""


class Checkpoint:
    """Checkpoint of a folder: tensors by their path (`networks/policy/output.weight`), the rest as JSON."""

    def __init__(self, folder: Path) -> None:
        self.path, self._next = folder / FILE, -math.inf

    def save_if_due(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write the result of `state` if the last checkpoint is long enough ago."""
        started = time.monotonic()
        if started >= self._next:
            self.save(state())
            ended = time.monotonic()
            self._next = ended + max(INTERVAL_S, (ended - started) / MAX_SHARE)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state."""
        tensors: dict[str, Tensor] = {}
        rest = _split(state, "", tensors)
        write_tensors(self.path, tensors, rest)

    def load(self, load: Callable[[State], None]) -> None:
        """Call `load` with the state in the file, if there is one.

        Raises:
            CorruptArtifactError: The checkpoint is damaged, or of another run.
        """
        if not self.path.exists():
            return
        tensors, state = read_tensors(self.path)
        try:
            for path, tensor in tensors.items():
                *outer, name = map(unquote, path.split("/"))
                target = state
                for part in outer:
                    target = target.setdefault(part, {})
                target[name] = tensor
            load(state)
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise CorruptArtifactError(f"{self.path}: {error}. {START_AGAIN}") from None


def _split(state: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> State:
    """Move the tensors of nested dicts to `tensors`, by their path; return the rest."""
    rest: State = {}
    for name, value in state.items():
        own = path + quote(str(name), safe="")
        if isinstance(value, Tensor):
            tensors[own] = value
        else:
            rest[str(name)] = _split(value, f"{own}/", tensors) if isinstance(value, Mapping) else value
    return rest
