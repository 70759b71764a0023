"""Linear functions of the observation or of fixed features of it: learned by gradient, or solved for."""

from torch import nn

from rldistill.core.fields import PositiveFloat, validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features import AnyFeatures, Raw
from rldistill.students.mlp import network_on_features
from rldistill.students.student import Student


@validated_dataclass
class Linear(Student):
    """params = W phi(obs) + b, phi the flattened observation or other `features`, learned by gradient."""

    features: AnyFeatures = Raw()

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with new weights."""
        return network_on_features(self, self.features, spec)


@validated_dataclass
class Ridge(Student):
    """Least squares with a penalty: min_W |Phi W - Y|^2 / N + l2 |W|^2, in one pass over the data and one solve.

    Y are the Q values of the teacher, the logits of a `categorical` teacher less their mean over actions, or the most
    likely action of a continuous teacher. With the loss `bellman_target` it is fitted Q with the teacher's bootstrap:
    for each action, over the transitions with that action, Y = r + gamma max_a' Q_teacher(s', a').

    Attributes:
        l2: Penalty of the weights; the constant is not penalized.
        features: Phi.
    """

    l2: PositiveFloat = 1e-4
    features: AnyFeatures = Raw()

    fit = "closed_form"
    trains_from_reward = False

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with new random features and weights of zero."""
        policy = network_on_features(self, self.features, spec)
        nn.init.zeros_(policy.output.weight)  # type: ignore[arg-type]
        nn.init.zeros_(policy.output.bias)  # type: ignore[arg-type]
        return policy
