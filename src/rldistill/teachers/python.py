"""Teachers in Python: a network, anything with `predict`, or a plain function, as a policy.

`module:factory` runs code, so it is honoured where a person wrote it, on the command line or in a run file, and never
in a file that was downloaded.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import MASK, HeadKind
from rldistill.core.imports import import_name
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.io.untrusted import read_state_dict
from rldistill.io.user_code import one_hot_logits, wrap_errors
from rldistill.policies.encoding import split_parts
from rldistill.policies.ensemble import Ensemble
from rldistill.teachers.probabilities import made_up, warn_of_logits


class ModulePolicy(nn.Module):
    """A plain network as a policy: it takes `[B, *obs_shape]` and gives the numbers of its head, `[B, P]`.

    Args:
        network: called with float32, uint8 observations divided by 255.
        spec: of the environment.
        kind: what its numbers mean: `q_values`, or the neutral head of the action space.
        name: what errors call it, its class if none.
    """

    def __init__(
        self, network: nn.Module, spec: PolicySpec, kind: HeadKind | None = None, name: str | None = None
    ) -> None:
        super().__init__()
        self.network, self.name = network, name or type(network).__name__
        self._spec = dataclasses.replace(spec, head=spec.head.as_kind(kind or spec.head.kind, self.name))

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """None: it has no state."""
        return None

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Raises SpecMismatchError if the network gives other than `[B, P]` numbers, ConfigError if it fails."""
        assert isinstance(obs, Tensor)
        with wrap_errors(self.name):
            params = self.network(obs.float() / 255 if obs.dtype == torch.uint8 else obs.float())
        wanted = len(obs), self._spec.head.num_params
        if not isinstance(params, Tensor) or params.shape != wanted:
            found = tuple(params.shape) if isinstance(params, Tensor) else type(params).__name__
            raise SpecMismatchError(
                f"teacher: the network of {self.name} gives {found}, a head of {self._spec.head.kind} is {wanted}"
            )
        if not params.isfinite().all():  # the largest of NaN is an action like any other
            raise SpecMismatchError(
                f"teacher: the network of {self.name} gives NaN or infinite numbers; look at its weights, and at the "
                "scale of its observations"
            )
        return PolicyOutput(self._spec.head, params), None


@dataclasses.dataclass(frozen=True)
class FunctionPolicy:
    """A function from observations to actions as a policy: a scripted heuristic, or `predict` of some library.

    Attributes:
        function: takes one observation, or a batch if `batched`, as the environment shows it: a numpy array, or a dict
            of them; gives its action, or a pair of which the action is the first, as SB3's `predict` does. Where `spec`
            has a mask, it is called with `action_masks`, too.
        spec: of the environment.
        batched: whether it takes `[B, ...]`.
        name: what errors call it.
        memory: `(2, layers, hidden)` of a `predict` that remembers as SB3's does: it is called with `state` and
            `episode_start`, too, and gives back a pair of arrays `[layers, B, hidden]`, which begin as zeros. The state
            here is `[B, 2, layers, hidden]`.
    """

    function: Callable[..., Any]
    spec: PolicySpec
    batched: bool = False
    name: str = "the function"
    memory: tuple[int, ...] = ()

    def remembering(self) -> FunctionPolicy:
        """Itself with a `memory`, if it gives back a state for made-up observations.

        Raises:
            ConfigError: it raises an error of its own, or has no parameter `episode_start` and yet a state.
            SpecMismatchError: its state is of another form.
        """
        shown, mask = self._shown(made_up(self.spec, 2))
        _, kept = self._said(shown, {} if mask is None else {"action_masks": np.ones(mask.shape, bool)})
        if kept is None:
            return self
        if "episode_start" not in _parameters(self.function):
            raise ConfigError(
                f"teacher: {self.name} takes and gives back a state, but is not told when an episode begins; give it "
                "a parameter episode_start"
            )
        return dataclasses.replace(self, memory=tuple(self._packed(kept, 2).shape[1:]))

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Zeros, or None where it does not remember."""
        return torch.zeros(batch_size, *self.memory) if self.memory else None

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What it does, as a head that is certain.

        Raises:
            ConfigError: the function raises an error of its own.
            SpecMismatchError: what it gives is no action of the environment, or not one for each observation, or a
                state of another form than before.
        """
        device = next(iter(obs.values())).device if isinstance(obs, Mapping) else obs.device
        shown, mask = self._shown(obs)
        told: dict[str, Any] = {} if mask is None else {"action_masks": mask.numpy().astype(bool)}
        count = len(next(iter(obs.values()))) if isinstance(obs, Mapping) else len(obs)
        if self.memory:
            before = torch.zeros(count, *self.memory) if state is None else state
            told["state"] = tuple(part.transpose(0, 1).cpu().numpy() for part in before.unbind(1))
            told["episode_start"] = ~before.flatten(1).any(1).cpu().numpy()  # what remembers nothing has just begun
        kept = None
        if self.batched:
            said, kept = self._said(shown, told)
        else:
            said = [self._said(_row(shown, row), _row(told, row))[0] for row in range(count)]
        output = PolicyOutput(self.spec.head, one_hot_logits(self.spec.head, said, count, self.name))
        after = self._packed(kept, count).to(device) if self.memory else None
        return (output if mask is None else output.masked(mask)).to(device), after

    def _shown(self, obs: Obs) -> tuple[Any, Tensor | None]:
        """The observation as the environment gave it, and which actions are legal, where it tells."""
        if not self.spec.parts and isinstance(obs, Tensor):
            return obs.cpu().numpy(), None
        entries = split_parts(obs, self.spec) if isinstance(obs, Tensor) else dict(obs)
        entries = {key: entry.cpu() for key, entry in entries.items()}
        mask = entries.pop(MASK, None)
        arrays = {key: entry.numpy().astype(self.spec.entries[key].dtype) for key, entry in entries.items()}
        return arrays if self.spec.unmasked.parts else arrays["obs"], mask

    def _said(self, obs: Any, told: Mapping[str, Any]) -> tuple[Any, Any]:
        """Its action, and what it gives beside it."""
        with wrap_errors(self.name):
            said = self.function(obs, **told)
        pair = [*said, None, None] if isinstance(said, tuple) else [said, None]
        return pair[0], pair[1]

    def _packed(self, kept: Any, count: int) -> Tensor:
        """The state that SB3's `predict` gives back as `[B, 2, layers, hidden]`."""
        parts = kept if isinstance(kept, tuple | list) else ()
        shapes: list[tuple[int, ...]] = [tuple(getattr(part, "shape", ())) for part in parts]
        alike = len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 3 and shapes[0][1] == count
        if not alike or shapes[0][::2] != (self.memory[1:] or shapes[0][::2]):
            found = f"{type(kept).__name__} of {' and '.join(str(list(shape)) for shape in shapes) or 'no arrays'}"
            raise SpecMismatchError(
                f"teacher: {self.name} gives back a state that is a {found}; expected a pair of arrays [layers, "
                f"{count}, hidden] at every step, as of SB3's LSTM, or a policy with an initial_state of its own"
            )
        with wrap_errors(self.name):
            tensors = [torch.as_tensor(part, dtype=torch.float32, device="cpu") for part in parts]
        return torch.stack(tensors).permute(2, 0, 1, 3)


@dataclasses.dataclass(frozen=True)
class OwnPolicy:
    """A policy of the user's own class, with the `name` by which it is known again."""

    policy: Policy
    name: str

    @property
    def spec(self) -> PolicySpec:
        """The policy's."""
        return self.policy.spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """The policy's."""
        return self.policy.initial_state(batch_size)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What the policy says."""
        return self.policy(obs, state)


def load_module(reference: str, spec: PolicySpec | None, head: HeadKind | None = None) -> Policy:
    """The teacher that `module:factory` makes, with the weights of a file for `module:factory@FILE`.

    The factory is called with the environment's spec, or with nothing if it takes nothing. It gives a `Policy`, a
    network, an object with `predict`, or a function from one observation to an action. Where the environment tells
    which actions are legal, the last two are told if they have a parameter `action_masks`; the spec says nothing of
    it, and the rest is confined. What has a parameter `deterministic`, as SB3's `predict` does, is asked for its mode;
    a `predict` with a parameter `state`, too, remembers its episode where it gives a state back.

    Args:
        reference: the factory.
        spec: of the environment.
        head: what the numbers of a network mean: `q_values`, or the neutral head of the action space if none.

    Raises:
        ConfigError: nothing of that name, it fails, or what it gives is none of these; `head` for what is no network.
        SpecMismatchError: `head` is for other actions, or the state of `predict` is not like that of SB3's.
    """
    name, _, weights = reference.partition("@")
    factory = _imported(name)
    with wrap_errors(name):
        made = factory(spec and spec.unmasked) if _parameters(factory) else factory()
    if weights:
        if not isinstance(made, nn.Module):
            raise ConfigError(f"teacher: {name} made {type(made).__name__}, and only a network takes weights")
        _load_weights(made, Path(weights), name)
    if isinstance(made, nn.Module):
        made.eval()
    native = callable(getattr(made, "initial_state", None))
    if head is not None and (native or not isinstance(made, nn.Module)):
        says = "tells what its numbers mean" if native else "gives actions, no numbers of a head"
        raise ConfigError(f"teacher: {reference}: head: {type(made).__name__} {says}; leave it out")
    if native:
        policy: Policy = made
        return policy if isinstance(made, nn.Module | Ensemble) else OwnPolicy(policy, name)
    if spec is None:
        raise ConfigError(f"teacher: {name} does not tell its environment; give the environment's spec")
    if isinstance(made, nn.Module):
        if head is None:
            warn_of_logits(reference, spec.head)
        return ModulePolicy(made, spec.unmasked, head, name)
    predict = getattr(made, "predict", None)
    function = predict if callable(predict) else made
    if callable(function):
        taken = _parameters(function)
        firm = partial(function, deterministic=True) if "deterministic" in taken else function
        own = spec if "action_masks" in taken else spec.unmasked
        policy = FunctionPolicy(firm, own, function is predict, name)
        return policy.remembering() if policy.batched and "state" in taken else policy
    raise ConfigError(
        f"teacher: {name} made {type(made).__name__}; expected a policy, a network, something with predict, a function"
    )


def _imported(name: str) -> Callable[..., Any]:
    factory: Callable[..., Any] = import_name(name, "teacher")
    if not callable(factory):
        raise ConfigError(f"teacher: {name}: expected something to call, found {type(factory).__name__}")
    return factory


def _parameters(function: Callable[..., Any]) -> Sequence[str]:
    try:
        return [*inspect.signature(function).parameters]
    except (TypeError, ValueError):  # of some that are written in C
        return []


def _load_weights(network: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise ConfigError(f"teacher: {path}: there is no such file")
    try:
        network.load_state_dict(read_state_dict(path))
    except RuntimeError as error:
        raise ConfigError(f"teacher: {path} does not fit what {name} makes: {' '.join(str(error).split())}") from None


def _row(array: Any, index: int) -> Any:
    return {key: value[index] for key, value in array.items()} if isinstance(array, dict) else array[index]
