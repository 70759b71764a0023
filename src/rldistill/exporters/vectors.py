"""Test vectors: consecutive steps of a policy, to check an exported file on its target."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from rldistill.core.entries import split_parts
from rldistill.core.errors import CorruptArtifactError
from rldistill.core.policy import Policy
from rldistill.core.spec import Obs, PolicySpec
from rldistill.io.atomic import write_atomic
from rldistill.io.tensors import below, load_safetensors

NUM_STEPS = 64
FILE = "vectors.safetensors"


@dataclass(frozen=True)
class Vectors:
    """Observations of T consecutive steps, and the outputs of the policy.

    Attributes:
        entries: Entries of the observations by name, `[T, ...]`; `obs` if they are not dicts.
        starts: True at the first step of an episode, `[T]`.
        action: Most likely actions, `[T, ...]`.
        params: Parameters of the head, `[T, P]`.
    """

    entries: dict[str, NDArray[Any]]
    starts: NDArray[np.bool_]
    action: NDArray[Any]
    params: NDArray[np.float32]

    def write(self, path: Path) -> None:
        """Write the vectors as safetensors: `obs.<entry>`, `starts`, `action` and `params`."""
        tensors = {f"obs.{name}": values for name, values in self.entries.items()}
        tensors |= {"starts": self.starts.astype(np.uint8), "action": self.action, "params": self.params}
        contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        write_atomic(path, lambda temporary: save_file(contiguous, temporary))

    @classmethod
    def read(cls, path: Path) -> Vectors:
        """Read the file that `write` wrote; raise CorruptArtifactError if it is damaged."""
        try:
            tensors = {name: value.numpy() for name, value in load_safetensors(path)[0].items()}
            return cls(below("obs.", tensors), tensors["starts"].astype(bool), tensors["action"], tensors["params"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise CorruptArtifactError(
                f"{path}: not a complete file of test vectors ({error}). Export again."
            ) from None


def compute_vectors(policy: Policy, obs: NDArray[Any], starts: NDArray[np.bool_]) -> Vectors:
    """Return the outputs of a policy for consecutive observations `[T, *obs_shape]`."""
    actions, params = [], []
    state = policy.initial_state(1)
    with torch.no_grad():
        for step_obs, start in zip(torch.from_numpy(obs), starts, strict=True):
            if start:
                state = policy.initial_state(1)
            output, state = policy(step_obs[None], state)
            actions.append(output.mode()[0].numpy())
            params.append(output.params[0].float().numpy())
    return Vectors(raw_entries(torch.from_numpy(obs), policy.spec), starts, np.stack(actions), np.stack(params))


def raw_entries(obs: Obs, spec: PolicySpec) -> dict[str, NDArray[Any]]:
    """Return the entries of observations as the environment has them; `obs` if it is not a dict."""
    if not spec.parts:
        assert isinstance(obs, Tensor)
        return {"obs": np.ascontiguousarray(obs.numpy().astype(spec.obs_dtype, copy=False))}
    entries = split_parts(obs, spec)
    return {key: np.ascontiguousarray(entries[key].numpy().astype(part.dtype)) for key, part in spec.parts}


def equal_runs(values: NDArray[Any]) -> list[tuple[Any, int]]:
    """Return the runs of equal numbers in an array of one dimension: each number and the length of its run."""
    bounds = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(values[start].item(), end - start) for start, end in pairwise(bounds)]
