"""Capabilities that the configuration of a student declares."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from rldistill.core.errors import ConfigError
from rldistill.core.spec import PolicySpec
from rldistill.policies.network import NetworkPolicy

Fit = Literal["gradient", "closed_form", "tree"]


class Student(ABC):
    """Base of the configurations of students, with the default capabilities.

    A student of your own is a frozen dataclass with `build`. It inherits from this class, or it declares the attributes
    in which it differs from the defaults.

    Attributes:
        fit: Method of the fit: by gradient, in one solve, or as a tree.
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
    return policy
