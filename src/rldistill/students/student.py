"""Capabilities that the configuration of a student declares."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rldistill.core.errors import USER_ERRORS, ConfigError, RLDistillError, error_text, failure, user_code
from rldistill.core.heads import MASK
from rldistill.core.spec import PolicySpec
from rldistill.policies.network import NetworkPolicy

Fit = Literal["gradient", "closed_form", "tree", "team", "tasks"]


class Student(ABC):
    """Base of the configurations of students, with the default capabilities.

    A student of your own is a frozen dataclass with `build`. It inherits from this class, or it declares the attributes
    in which it differs from the defaults.

    Attributes:
        fit: Method of the fit: by gradient, in one solve, as a tree, that of each member of a team, or to `tasks`.
        recurrent: True if the policy has a state; it is then trained on whole episodes.
        trains_from_reward: True if PPO and DQN can train it.
        hidden_as_features: True if another student can take its last hidden layer as features.
    """

    fit: ClassVar[Fit] = "gradient"
    recurrent: ClassVar[bool] = False
    trains_from_reward: ClassVar[bool] = True
    hidden_as_features: ClassVar[bool] = False

    @abstractmethod
    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the policy for `spec`, with new weights; raise ConfigError if it cannot be built."""


def capability(config: object, name: str) -> Any:
    """Return a capability of a student; one that it does not declare has the default of `Student`."""
    return getattr(config, name, getattr(Student, name))


def build_student(student: Student, spec: PolicySpec) -> NetworkPolicy:
    """Return the policy of a student, which may be of the user's own.

    Raises:
        ConfigError: `build` returns no NetworkPolicy, or a recurrent student returns a policy without a state.
    """
    policy = student.build(spec)
    name = type(student).__name__
    if not isinstance(policy, NetworkPolicy):
        raise ConfigError(
            f"students: {name}.build returned a {type(policy).__name__}, expected a rldistill.NetworkPolicy"
        )
    if capability(student, "recurrent") and not policy.recurrent:
        raise ConfigError(
            f"students: {name} is recurrent, but the initial_state of its policy is None. Return the state at the "
            "start of an episode, [B, ...]."
        )
    if capability(student, "fit") == "gradient" and not any(weight.requires_grad for weight in policy.parameters()):
        raise ConfigError(f"students: {name}: none of its weights has requires_grad. Leave some of them to be trained.")
    own = next((part for part in (student, getattr(student, "features", None)) if part and _is_of_user(part)), None)
    if own is not None:
        _probe(policy, own)
    return policy


def _is_of_user(part: object) -> bool:
    return not type(part).__module__.startswith(("rldistill.", "builtins"))  # an agent's `features` is a number


def _probe(policy: NetworkPolicy, own: Any) -> None:
    """Raise ConfigError, with the line, if a network with code of the user fails for a batch of two observations."""
    spec, name = policy.spec, f"students: {type(own).__name__}"
    obs = {
        key: torch.full((2, *part.shape), key == MASK, dtype=getattr(torch, part.dtype))
        for key, part in spec.entries.items()
    }
    training = policy.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # so that weights and data are those without it
            seen = {key: entry.clone() for key, entry in obs.items()}
            output = policy.eval()(seen.get("", seen), policy.initial_state(2))[0]
    except RLDistillError:
        raise
    except USER_ERRORS as error:
        if user_code(error) is not None:
            problem = failure(error)
        else:  # layers of PyTorch that do not fit together: the place is where they are made
            code = type(own).build.__code__
            place = f"build: {Path(code.co_filename).name}, line {code.co_firstlineno}"
            problem = f"{type(error).__name__}: {error_text(error)} ({place})"
        raise ConfigError(f"{name}: its network failed: {problem}. Correct its layers.") from error
    finally:
        policy.train(training)
    # Files are read with tensors without values, which cannot be compared.
    if not all(entry.is_meta or torch.equal(seen[key], entry) for key, entry in obs.items()):
        raise ConfigError(f"{name}: its network changes its observations in place. Change a copy.")
    found, expected = getattr(output, "params", None), (2, spec.head.num_params)
    if not isinstance(found, Tensor) or found.shape != expected or not found.is_floating_point():
        shape = f"{found.dtype} of {list(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
        raise ConfigError(f"{name}: its network returns {shape}, expected float32 of {list(expected)}. Correct it.")
