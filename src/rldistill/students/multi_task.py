"""One student of several tasks, which share a trunk (Rusu 2015, arXiv 1511.06295; Parisotto 2015, arXiv 1511.06342)."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.fields import PYTHON_ONLY, OneOf, Stored, validated_dataclass
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.network import NetworkPolicy
from rldistill.students.mlp import Mlp
from rldistill.students.student import Fit, Student, build_student, capability
from rldistill.students.team import MEMBERS

USE_TASKS = "a multi_task student needs several tasks. Give `tasks` in the run file, or a dataset for each task."


@validated_dataclass
class MultiTask(Student):
    """One network of the family `student` for each task, of which all layers of equal shape are shared.

    For tasks with different observations the first layer is an encoder of each task, a linear map into the trunk. With
    `heads: shared`, the tasks also share the last layer, and only the biases of the first layer differ: they are what
    a one-hot vector of the task adds to the first layer, W [obs, e_k] + b = W_obs obs + (b + W_k).

    Attributes:
        student: Family of the networks: a feed-forward one with hidden layers, such as mlp or cnn.
        heads: A last layer for each task (`own`), or one for all (`shared`), for tasks with equal actions.
        specs: Observations and actions of each task, by its name.
    """

    student: Annotated[Student, OneOf("type", MEMBERS, methods=("build",))] = Mlp()
    heads: Literal["own", "shared"] = "own"
    specs: Annotated[dict[str, Annotated[PolicySpec, Stored()]], PYTHON_ONLY] = field(default_factory=dict, hash=False)

    trains_from_reward = False

    def __post_init__(self) -> None:
        if capability(self.student, "fit") != "gradient" or not capability(self.student, "hidden_as_features"):
            raise ConfigError(
                f"student: a {type(self.student).__name__.lower()} has no hidden layers that tasks could share. Use "
                "mlp, cnn, impala or multi_input."
            )

    @property
    def fit(self) -> Fit:  # type: ignore[override]
        """The fit to a dataset of each task."""
        return "tasks"

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `specs`, with new weights; see `assembled`."""
        if not self.specs:
            raise ConfigError(f"students: {USE_TASKS}")
        return self.assembled({task: build_student(self.student, own) for task, own in self.specs.items()})

    def assembled(self, members: Mapping[str, NetworkPolicy]) -> "MultiTaskPolicy":
        """Return the student whose networks these are, by task; they take the shared layers of the first one.

        Raises:
            ConfigError: The tasks share no layer.
            SpecMismatchError: Shared heads for tasks with different actions.
        """
        return MultiTaskPolicy(replace(self, specs={task: own.spec for task, own in members.items()}), members)


class MultiTaskPolicy(NetworkPolicy):
    """Networks of several tasks with shared parameters; `policy_of` returns that of one task, an ordinary policy.

    Attributes:
        tasks: Names of the tasks.
        members: Networks of the tasks, in the same order.
    """

    def __init__(self, config: MultiTask, members: Mapping[str, NetworkPolicy]) -> None:
        first, *others = members.values()
        super().__init__(config, first.spec, nn.Identity(), 0, nn.Identity())
        self.normalizes_itself = True
        self.tasks, self.members = [*members], nn.ModuleList(members.values())
        for task, other in zip(self.tasks[1:], others, strict=True):
            if config.heads == "shared" and other.spec.head != first.spec.head:
                raise SpecMismatchError(
                    f"students: {self.tasks[0]} and {task} have different actions or labels, so that they cannot share "
                    "a head. Use heads: own."
                )
        self._share()
        if others and not any(name.startswith("body.") for name in self.shared):
            raise ConfigError(
                "students: no hidden layer has the same shape in all tasks, so that they share nothing. Use at least "
                "two hidden layers."
            )

    def policy_of(self, task: str) -> NetworkPolicy:
        """Return the policy of one task; its parameters are those of this student."""
        if task not in self.tasks:
            raise ConfigError(f"policy_of: there is no task {task!r}, only {', '.join(self.tasks)}. Use one of these.")
        member = self.members[self.tasks.index(task)]
        assert isinstance(member, NetworkPolicy)
        return member

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Raise SpecMismatchError, since an observation belongs to one task."""
        raise SpecMismatchError(f"the student acts in the tasks {', '.join(self.tasks)}. Use policy_of(task).")

    @property
    def has_value(self) -> bool:
        """True if the networks have values."""
        return self.policy_of(self.tasks[0]).has_value

    def add_value(self, device: str = "cpu") -> None:
        """Add values to all networks."""
        for task in self.tasks:
            self.policy_of(task).add_value(device)
        self._share()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the tensors, each shared one once."""
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name not in self._copies}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the tensors of `state_dict`."""
        copies = {copy: state_dict[name] for copy, name in self._copies.items() if name in state_dict}
        result = super().load_state_dict({**state_dict, **copies}, strict, assign)
        self._share()  # `assign` makes a parameter of each copy
        return result

    def _share(self) -> None:
        """Let all networks have the same parameters where they share them."""
        first, *others = (self.policy_of(task) for task in self.tasks)
        shapes = [_shapes_by_layer(member) for member in (first, *others)]
        layers = [layer for layer, shape in shapes[0].items() if all(own.get(layer) == shape for own in shapes)]
        if self.config.heads == "own":
            layers = [layer for layer in layers if layer.startswith("body.")]
        self.shared = [f"{layer}.{name}".lstrip(".") for layer in layers for name in shapes[0][layer]]
        if self.config.heads == "shared":
            encoder = next(layer for layer in shapes[0] if layer.startswith("body."))
            self.shared = [name for name in self.shared if name != f"{encoder}.bias"]
        for name in self.shared:
            layer, _, key = name.rpartition(".")
            for other in others:
                setattr(other.get_submodule(layer), key, first.get_parameter(name))

    @property
    def _copies(self) -> dict[str, str]:
        """The names of shared parameters in networks after the first, and in the first."""
        numbers = range(1, len(self.tasks))
        return {f"members.{number}.{name}": f"members.0.{name}" for number in numbers for name in self.shared}


def _shapes_by_layer(policy: NetworkPolicy) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of the trained parameters of each layer, in order."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in policy.named_parameters():
        layer, _, key = name.rpartition(".")
        if parameter.requires_grad:
            layers.setdefault(layer, {})[key] = tuple(parameter.shape)
    return layers
