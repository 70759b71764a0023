"""Multi-layer perceptron on the flattened observation, or on fixed features of it."""

from collections.abc import Callable

from torch import nn

from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.layers import ActivationName, activation, dense, keep_scale
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features import AnyFeatures, Features, Raw, Standardizer
from rldistill.students.student import Student


@validated_dataclass
class Mlp(Student):
    """Dense layers of the sizes `hidden` on the flattened observation or other `features`, then a linear one."""

    hidden: tuple[Positive, ...] = (64, 64)
    activation: ActivationName = "relu"
    features: AnyFeatures = Raw()

    hidden_as_features = True

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with new weights."""
        policy = network_on_features(self, self.features, spec, self.hidden, activation(self.activation))
        assert isinstance(policy.body, nn.Sequential)
        trained = [*policy.body][policy.num_frozen_layers :]
        keep_scale(nn.Sequential(*trained, policy.output), self.activation)
        return policy


def network_on_features(
    student: Student,
    features: Features,
    spec: PolicySpec,
    hidden: tuple[Positive, ...] = (),
    act: Callable[[], nn.Module] = nn.ReLU,
) -> NetworkPolicy:
    """Return a network of dense layers and a linear one on fixed features, with new weights."""
    frozen, num_features = features.build(spec)
    if features.standardized_for_weights:
        frozen.append(Standardizer(num_features))
    layers, width = dense(num_features, hidden, act)
    policy = NetworkPolicy(student, spec, nn.Sequential(*frozen, *layers), width)
    policy.normalizes_itself = features.normalizes_itself
    policy.num_frozen_layers, policy.num_features = len(frozen), num_features
    return policy
