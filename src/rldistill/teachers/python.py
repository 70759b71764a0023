"""Teachers in Python: a network, an object with `predict`, or a plain function, as a policy.

`module:factory` runs code, so the name comes from the command line, a run file or Python, and never from a file of a
policy.
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

from rldistill.core.entries import first_entry, flat_values, split_parts
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.fields import import_name
from rldistill.core.heads import MASK, HeadKind
from rldistill.core.policy import Policy, PolicyOutput, PolicyWrapper
from rldistill.core.spec import Obs, PolicySpec
from rldistill.io.state_dicts import load_weights, read_state_dict
from rldistill.io.user_code import one_hot_logits, wrap_errors
from rldistill.policies.ensemble import Ensemble
from rldistill.teachers.file_policy import synthetic_observations, warn_of_logits, with_head


class ModulePolicy(nn.Module):
    """Policy with a plain network, from `[B, *flat_shape]` to the parameters of its head, `[B, P]`.

    Args:
        network: The network, called with float32; uint8 observations are divided by 255.
        spec: Spec of the environment.
        kind: Kind of the head: `q_values`, or the neutral head of the action space by default.
        name: Name in errors, by default that of the class.
    """

    def __init__(
        self, network: nn.Module, spec: PolicySpec, kind: HeadKind | None = None, name: str | None = None
    ) -> None:
        super().__init__()
        self.network, self.name = network, name or type(network).__name__
        self.spec = with_head(spec, kind, self.name)

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return None: the policy is feed-forward."""
        return None

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for a batch of observations; raise SpecMismatchError unless it is finite and `[B, P]`."""
        obs = flat_values(obs, self.spec)
        with wrap_errors(f"teacher: {self.name}"):
            params = self.network(obs.float() / 255 if obs.dtype == torch.uint8 else obs.float())
        expected = len(obs), self.spec.head.num_params
        if not isinstance(params, Tensor) or params.shape != expected or params.is_complex():
            found = f"{params.dtype} of {tuple(params.shape)}" if isinstance(params, Tensor) else type(params).__name__
            raise SpecMismatchError(
                f"teacher: the network of {self.name} returns {found}, expected {expected} for a "
                f"{self.spec.head.kind} head. Correct its last layer."
            )
        if not params.isfinite().all():  # argmax would accept NaN
            raise SpecMismatchError(
                f"teacher: the network of {self.name} returns NaN or infinite numbers. Check its weights and the scale "
                "of its observations."
            )
        return PolicyOutput(self.spec.head, params.float()), None


@dataclasses.dataclass(frozen=True)
class FunctionPolicy:
    """Policy with a function from observations to actions: a scripted heuristic, or `predict` of some library.

    Attributes:
        function: Called with one observation, or a batch if `batched`, as the environment returns it: a numpy array, or
            a dict of them. Returns the action, or a pair that begins with it, as SB3's `predict` does. If `spec` has a
            mask, it is also called with `action_masks`.
        spec: Spec of the environment.
        batched: True if the function takes `[B, ...]`.
        name: Name in errors.
        state_shape: `(2, layers, hidden)` of a recurrent `predict` of SB3: it is also called with `state` and
            `episode_start`, and returns a pair of arrays `[layers, B, hidden]` that are zeros at first. The state of
            the policy is `[B, 2, layers, hidden]`.
    """

    function: Callable[..., Any]
    spec: PolicySpec
    batched: bool = False
    name: str = "the function"
    state_shape: tuple[int, ...] = ()

    @property
    def row_wise(self) -> bool:
        """True if the function is called once for each observation."""
        return not self.batched and not self.state_shape

    def with_state(self) -> FunctionPolicy:
        """Return the policy with its `state_shape` if the function returns a state for synthetic observations."""
        arrays, mask = self._to_numpy(synthetic_observations(self.spec, 2))
        _, state = self._call(arrays, {} if mask is None else {"action_masks": np.ones(mask.shape, bool)})
        if state is None:
            return self
        if "episode_start" not in _parameters(self.function):
            raise ConfigError(
                f"teacher: {self.name} has a state, but no parameter for the start of an episode. Add a parameter "
                "episode_start."
            )
        return dataclasses.replace(self, state_shape=tuple(self._pack(state, 2).shape[1:]))

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return zeros, or None without a state."""
        return torch.zeros(batch_size, *self.state_shape) if self.state_shape else None

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the actions as one-hot logits; raise SpecMismatchError for invalid ones and for another state."""
        first = first_entry(obs)
        count, device = len(first), first.device
        arrays, mask = self._to_numpy(obs)
        kwargs: dict[str, Any] = {} if mask is None else {"action_masks": mask.numpy().astype(bool)}
        if self.state_shape:
            before = torch.zeros(count, *self.state_shape) if state is None else state.cpu()
            kwargs["state"] = tuple(part.transpose(0, 1).numpy() for part in before.unbind(1))
            kwargs["episode_start"] = ~before.flatten(1).any(1).numpy()  # the state is zero at the start only
        after = None
        try:
            if self.batched:
                actions, after = self._call(arrays, kwargs)
            else:
                actions = [self._call(_row(arrays, row), _row(kwargs, row))[0] for row in range(count)]
        except ConfigError:
            if not self.batched or self.state_shape or not self._takes_one(_row(arrays, 0), _row(kwargs, 0)):
                raise
            object.__setattr__(self, "batched", False)  # a predict for single observations
            return self(obs, state)
        output = PolicyOutput(self.spec.head, one_hot_logits(self.spec.head, actions, count, self.name))
        output = (output if mask is None else output.masked(mask)).to(device)
        return output, self._pack(after, count).to(device) if self.state_shape else None

    def _takes_one(self, obs: Any, kwargs: Any) -> bool:
        """Return True if the function returns an action for one observation."""
        try:
            one_hot_logits(self.spec.head, [self._call(obs, kwargs)[0]], 1, self.name)
        except (ConfigError, SpecMismatchError):
            return False
        return True

    def _to_numpy(self, obs: Obs) -> tuple[Any, Tensor | None]:
        """Return the observations as the environment returns them, and the mask if there is one."""
        if not self.spec.parts and isinstance(obs, Tensor):
            return obs.cpu().numpy(), None
        entries = {key: entry.cpu() for key, entry in split_parts(obs, self.spec).items()}
        mask = entries.pop(MASK, None)
        arrays = {key: entry.numpy().astype(self.spec.entries[key].dtype) for key, entry in entries.items()}
        return arrays if self.spec.unmasked.parts else arrays["obs"], mask

    def _call(self, obs: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the action and the state."""
        with wrap_errors(f"teacher: {self.name}"):
            result = self.function(obs, **kwargs)
        action, after, *_ = [*result, None, None] if isinstance(result, tuple) else [result, None]
        return action, after

    def _pack(self, state: Any, count: int) -> Tensor:
        """Return the state of SB3's `predict` as `[B, 2, layers, hidden]`."""
        parts = state if isinstance(state, tuple | list) else ()
        shapes: list[tuple[int, ...]] = [tuple(getattr(part, "shape", ())) for part in parts]
        valid = len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 3 and shapes[0][1] == count
        if not valid or shapes[0][::2] != (self.state_shape[1:] or shapes[0][::2]):
            found = f"{type(state).__name__} of {' and '.join(str(list(shape)) for shape in shapes) or 'no arrays'}"
            raise SpecMismatchError(
                f"teacher: {self.name} returns a state that is a {found}, expected a pair of arrays [layers, {count}, "
                "hidden] at every step. Return the state of SB3's LSTM, or write a policy with an initial_state."
            )
        with wrap_errors(f"teacher: {self.name}"):
            tensors = [torch.as_tensor(part, dtype=torch.float32, device="cpu") for part in parts]
        return torch.stack(tensors).permute(2, 0, 1, 3)


@dataclasses.dataclass(frozen=True)
class NamedPolicy(PolicyWrapper):
    """Policy of a class of the user's own, whose results are checked.

    Attributes:
        name: Name of its factory, which is its fingerprint.
    """

    name: str

    def __post_init__(self) -> None:
        with wrap_errors(f"teacher: {self.name}"):
            spec = getattr(self.policy, "spec", None)
        self._require(isinstance(spec, PolicySpec), "spec", spec, "a PolicySpec, as the factory receives it")

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return the initial state; raise ConfigError for an error, SpecMismatchError unless it is a tensor or None."""
        with wrap_errors(f"teacher: {self.name}"):
            state = self.policy.initial_state(batch_size)
        self._require(state is None or isinstance(state, Tensor), "initial_state", state, "a tensor or None")
        return state

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output in float32, and the next state; raise as `initial_state` does."""
        with wrap_errors(f"teacher: {self.name}"):
            result: Any = self.policy(obs, state)
        is_pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], PolicyOutput)
        self._require(is_pair, "__call__", result, "a pair of PolicyOutput and state")
        output, after = result
        first = first_entry(obs)
        shape, params = (len(first), self.spec.head.num_params), output.params
        is_valid = isinstance(params, Tensor) and params.shape == shape and not params.is_complex()
        self._require(is_valid, "params", params, f"a tensor of {list(shape)}")
        self._require(after is None or isinstance(after, Tensor), "next state", after, "a tensor or None")
        return output.map(lambda part: part.float() if part.is_floating_point() else part), after

    def _require(self, is_valid: bool, part: str, found: Any, expected: str) -> None:
        if not is_valid:
            size = f" of {list(found.shape)}" if isinstance(found, Tensor) else ""
            raise SpecMismatchError(
                f"teacher: {self.name}: its {part} is a {type(found).__name__}{size}, expected {expected}. Correct it."
            )


def load_module(reference: str, spec: PolicySpec | None, head: HeadKind | None = None) -> Policy:
    """Return the teacher of `module:factory`, with the weights of a file for `module:factory@FILE`.

    The factory is called with the spec of the environment, or without arguments if it has no parameters. With a
    parameter `file`, it is given the path of FILE and reads it. It returns a `Policy`, a network, an object with
    `predict`, or a function from one observation to an action. The last two are called with the mask of the
    environment if they have a parameter `action_masks`; the spec has no mask, and other policies are restricted to
    legal actions. A function with a parameter `deterministic`, such as SB3's `predict`, returns its mode; a `predict`
    with a parameter `state` is recurrent if it returns a state. Raise the errors of `load_policy`.
    """
    name, _, weights = reference.partition("@")
    teacher = _made_teacher(name, weights, spec)
    is_network = isinstance(teacher, nn.Module)
    is_policy = callable(getattr(teacher, "initial_state", None))
    if head is not None and (is_policy or not is_network):
        reason = "already holds the kind of its head" if is_policy else "returns actions, not parameters of a head"
        raise ConfigError(
            f"teacher.head: {reference} returns {type(teacher).__name__}, which {reason}. Remove the option."
        )
    if is_policy:
        named = NamedPolicy(teacher, name)
        if is_network:  # keeps its own class, by whose tensors it is known
            named(synthetic_observations(named.spec, 2), named.initial_state(2))
        return teacher if is_network or isinstance(teacher, Ensemble) else named
    if spec is None:
        raise ConfigError(
            f"teacher: {name} does not hold the observations and actions of its environment. Pass the spec of the "
            "environment."
        )
    if is_network:
        if head is None:
            warn_of_logits(reference, spec.head)
        return ModulePolicy(teacher, spec.unmasked, head, name)
    predict = getattr(teacher, "predict", None)
    function = predict if callable(predict) else teacher
    if not callable(function):
        raise ConfigError(
            f"teacher: {name} returns {type(teacher).__name__}, expected a policy, a network, an object with predict "
            "or a function. Return one of these."
        )
    takes = _parameters(function)
    function = partial(function, deterministic=True) if "deterministic" in takes else function
    own_spec = spec if "action_masks" in takes else spec.unmasked
    policy = FunctionPolicy(function, own_spec, callable(predict), name)
    return policy.with_state() if policy.batched and "state" in takes else policy


def _made_teacher(name: str, weights: str, spec: PolicySpec | None) -> Any:
    """Return the result of a factory, with the weights of a file unless the factory reads it itself."""
    factory: Callable[..., Any] = import_name(name, "teacher")
    if not callable(factory):
        raise ConfigError(f"teacher: {name}: expected a function or class, found {type(factory).__name__}. Name one.")
    parameters = {*_parameters(factory)}
    reads_file = "file" in parameters
    if reads_file and not weights:
        raise ConfigError(f"teacher: {name} reads a file. Write {name}@FILE with the path of one.")
    if reads_file:
        _require_file(weights)
    arguments: list[Any] = [spec and spec.unmasked] if parameters - {"file"} else []
    with wrap_errors(f"teacher: {name}"):
        teacher = factory(*arguments, **({"file": Path(weights)} if reads_file else {}))
    is_network = isinstance(teacher, nn.Module)
    if weights and not reads_file:
        if not is_network:
            raise ConfigError(f"teacher: {name} returns {type(teacher).__name__}, which has no weights. Remove @FILE.")
        _require_file(weights)
        problem = f"teacher: {weights} does not fit the network of {name}"
        load_weights(teacher, read_state_dict(Path(weights)), problem, "Use its own file.")
    return teacher.eval().cpu() if is_network else teacher


def _require_file(path: str) -> None:
    if not Path(path).is_file():
        raise ConfigError(f"teacher: {path}: there is no such file. Check the path.")


def _parameters(function: Callable[..., Any]) -> Sequence[str]:
    try:
        return [*inspect.signature(function).parameters]
    except (TypeError, ValueError):  # some functions written in C have no signature
        return []


def _row(array: Any, index: int) -> Any:
    return {key: value[index] for key, value in array.items()} if isinstance(array, dict) else array[index]
