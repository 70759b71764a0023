"""Keras 3 teachers, trained on any backend."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.heads import HeadKind
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.students.keras import channels_last, keras_on_torch, read_keras, require_keras_fit
from rldistill.teachers.probabilities import returns_probabilities, to_logits, warn_of_logits


@dataclass(frozen=True)
class KerasOptions:
    """Options of a Keras file.

    Attributes:
        head: Kind of the head, if it is not the neutral head of the action space: `q_values`.
        scale: Factor of the input; 1/255 for a model that expects pixels from 0 to 1.
    """

    head: HeadKind | None = None
    scale: float = 1.0


class KerasPolicy(nn.Module):
    """Policy with a Keras model of one input; the output of the model is the parameters of the head.

    Frames `[B, C, H, W]` are passed as `[B, H, W, C]` to a model that expects those, or one vector of them. uint8 is
    passed as 0 to 255, times `scale`. Probabilities are converted to logits.
    """

    def __init__(self, model: Any, content: bytes, spec: PolicySpec, scale: float, probabilities: bool = False) -> None:
        super().__init__()
        self.model, self.probabilities = model, probabilities
        self._content, self._spec, self._scale = content, spec, scale
        self.content_parts = (hashlib.sha256(content).hexdigest(), scale)

    @property
    def spec(self) -> PolicySpec:
        """Spec of the policy."""
        return self._spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return None: the policy is feed-forward."""
        return None

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for a batch of observations."""
        assert isinstance(obs, Tensor)
        with keras_on_torch().device(obs.device.type):
            inputs = channels_last(obs, tuple(self.model.inputs[0].shape[1:])) * self._scale
            params: Tensor = self.model(inputs, training=False)
        head = self._spec.head
        return PolicyOutput(head, to_logits(head, params) if self.probabilities else params), None

    def __reduce__(self) -> Any:
        return _from_content, (self._content, self._spec, self._scale, self.probabilities)


def _from_content(content: bytes, spec: PolicySpec, scale: float, probabilities: bool) -> KerasPolicy:
    with tempfile.TemporaryDirectory() as folder:  # Keras reads from a path only
        copy = Path(folder) / "model.keras"
        copy.write_bytes(content)
        return KerasPolicy(read_keras(copy), content, spec, scale, probabilities)


def load_keras(path: Path, spec: PolicySpec, options: KerasOptions = KerasOptions()) -> KerasPolicy:
    """Load a `.keras` file.

    Args:
        path: The file.
        spec: Spec of the environment.
        options: Options of the file.

    Raises:
        ConfigError: A `scale` for integers.
        SpecMismatchError: An input, an output or a head that does not fit the environment.
        RLDistillError: See `rldistill.students.keras.read_keras`.
    """
    model = read_keras(path)
    spec = dataclasses.replace(spec, head=spec.head.as_kind(options.head or spec.head.kind, str(path)))
    require_keras_fit(str(path), model, spec)
    dtype = str(model.inputs[0].dtype)
    if options.scale != 1 and "int" in dtype:
        raise ConfigError(f"teacher.scale: {path} has an input of {dtype}, which cannot be scaled. Remove the option.")
    policy = KerasPolicy(model, path.read_bytes(), spec, options.scale).eval()
    policy.probabilities = returns_probabilities(policy)
    if options.head is None and not policy.probabilities:
        warn_of_logits(str(path), spec.head)
    return policy
