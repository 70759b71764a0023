"""Teachers in Python: a network, anything with `predict`, or a plain function, as a policy.

`module:factory` runs code, so it is honoured where a person wrote it, on the command line or in a run file, and never
in a file that was downloaded.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.errors import ConfigError, SpecMismatchError
from rldistill.imports import import_name
from rldistill.teachers.tensors import read_state_dict
from rldistill.types import HeadKind, Obs, Policy, PolicyOutput, PolicySpec

FIRM = 20.0
"""The logit of the action that a function chose, where the others have 0: it is certain, and a KL stays finite."""


class ModulePolicy(nn.Module):
    """A plain network as a policy: it takes `[B, *obs_shape]` and gives the numbers of its head, `[B, P]`.

    Args:
        network: called with float32, uint8 observations divided by 255.
        spec: of the environment.
        kind: what its numbers mean: `q_values`, or the neutral head of the action space.
    """

    def __init__(self, network: nn.Module, spec: PolicySpec, kind: HeadKind | None = None) -> None:
        super().__init__()
        self.network = network
        self._spec = dataclasses.replace(spec, head=dataclasses.replace(spec.head, kind=kind or spec.head.kind))

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """None: it has no state."""
        return None

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Raises SpecMismatchError if the network gives other than `[B, P]`."""
        assert isinstance(obs, Tensor)
        params = self.network(obs.float() / 255 if obs.dtype == torch.uint8 else obs.float())
        wanted = len(obs), self._spec.head.num_params
        if not isinstance(params, Tensor) or params.shape != wanted:
            found = tuple(params.shape) if isinstance(params, Tensor) else type(params).__name__
            raise SpecMismatchError(f"the network gives {found}, a head of {self._spec.head.kind} is {wanted}")
        return PolicyOutput(self._spec.head, params), None


@dataclasses.dataclass(frozen=True)
class FunctionPolicy:
    """A function from observations to actions as a policy: a scripted heuristic, or `predict` of some library.

    Attributes:
        function: takes one observation, or a batch if `batched`, as numpy; gives its action, or a pair of which the
            action is the first, as SB3's `predict` does.
        spec: of the environment.
        batched: whether it takes `[B, ...]`.
    """

    function: Callable[..., Any]
    spec: PolicySpec
    batched: bool = False

    def initial_state(self, batch_size: int) -> Tensor | None:
        """None: it has no state."""
        return None

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What it does, as a head that is certain."""
        array: Any = obs.numpy() if isinstance(obs, Tensor) else {key: value.numpy() for key, value in obs.items()}
        if self.batched:
            actions = self._action(array)
        else:
            count = len(next(iter(array.values()))) if isinstance(array, dict) else len(array)
            actions = np.stack([np.asarray(self._action(_row(array, index))) for index in range(count)])
        return PolicyOutput(self.spec.head, self._params(torch.from_numpy(np.asarray(actions)))), None

    def _action(self, obs: Any) -> Any:
        said = self.function(obs)
        return said[0] if isinstance(said, tuple) else said

    def _params(self, actions: Tensor) -> Tensor:
        head = self.spec.head
        if not head.discrete:
            return actions.float().reshape(len(actions), -1)
        if head.kind == "bernoulli":
            return FIRM * (2 * actions.float() - 1)
        choices = actions.long().reshape(len(actions), -1).unbind(1)
        for chosen, size in zip(choices, head.nvec, strict=True):
            if int(chosen.min()) < 0 or int(chosen.max()) >= size:
                raise SpecMismatchError(f"the teacher chose action {int(chosen.max())}, there are {size}")
        return FIRM * torch.cat([F.one_hot(x, n).float() for x, n in zip(choices, head.nvec, strict=True)], 1)


def load_module(reference: str, spec: PolicySpec | None) -> Policy:
    """The teacher that `module:factory` makes, with the weights of a file for `module:factory@FILE`.

    The factory is called with the environment's spec, or with nothing if it takes nothing. It gives a `Policy`, a
    network, an object with `predict`, or a function from one observation to an action.

    Raises:
        ConfigError: nothing of that name, or what it gives is none of these.
    """
    name, _, weights = reference.partition("@")
    factory = _imported(name)
    try:
        made = factory(spec) if _takes_argument(factory) else factory()
    except Exception as error:  # of somebody else's code
        raise ConfigError(f"teacher: {name} failed: {type(error).__name__}: {error}") from error
    if weights:
        if not isinstance(made, nn.Module):
            raise ConfigError(f"teacher: {name} made {type(made).__name__}, and only a network takes weights")
        _load_weights(made, Path(weights), name)
    if isinstance(made, nn.Module):
        made.eval()
    if callable(getattr(made, "initial_state", None)):
        policy: Policy = made
        return policy
    if spec is None:
        raise ConfigError(f"teacher: {name} does not tell its environment; give the environment's spec")
    if isinstance(made, nn.Module):
        return ModulePolicy(made, spec)
    if callable(predict := getattr(made, "predict", None)):
        return FunctionPolicy(predict, spec, batched=True)
    if callable(made):
        return FunctionPolicy(made, spec)
    raise ConfigError(
        f"teacher: {name} made {type(made).__name__}; expected a policy, a network, something with predict, a function"
    )


def _imported(name: str) -> Callable[..., Any]:
    factory: Callable[..., Any] = import_name(name, "teacher")
    if not callable(factory):
        raise ConfigError(f"teacher: {name}: expected something to call, found {type(factory).__name__}")
    return factory


def _takes_argument(factory: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(factory).parameters)
    except ValueError:
        return False


def _load_weights(network: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise ConfigError(f"teacher: {path}: there is no such file")
    try:
        network.load_state_dict(read_state_dict(path))
    except RuntimeError as error:
        raise ConfigError(f"teacher: {path} does not fit what {name} makes: {' '.join(str(error).split())}") from None


def _row(array: Any, index: int) -> Any:
    return {key: value[index] for key, value in array.items()} if isinstance(array, dict) else array[index]
