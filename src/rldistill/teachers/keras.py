"""Keras 3 teachers, whichever backend they were trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.heads import HeadKind
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.students.keras import channels_last, keras_on_torch, read_keras, require_keras_fit
from rldistill.teachers.probabilities import gives_probabilities, logits, warn_of_logits


class KerasPolicy(nn.Module):
    """A policy whose head's numbers are the output of a Keras model with one input.

    Frames `[B, C, H, W]` reach a model that takes `[B, H, W, C]`, or those as one vector, with channels last. uint8
    comes as it is, 0 to 255, unless `scale` is given. Where the model gives `probabilities`, they become logits.
    """

    def __init__(self, model: Any, content: bytes, spec: PolicySpec, scale: float, probabilities: bool = False) -> None:
        super().__init__()
        self.model, self.probabilities = model, probabilities
        self._content, self._spec, self._scale = content, spec, scale
        self.digest, self.asked = hashlib.sha256(content).hexdigest(), (scale,)

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """None: it has no state."""
        return None

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What the model says of a batch of observations."""
        assert isinstance(obs, Tensor)
        with keras_on_torch().device(obs.device.type):
            fed = channels_last(obs, tuple(self.model.inputs[0].shape[1:])) * self._scale
            said: Tensor = self.model(fed, training=False)
        return PolicyOutput(self._spec.head, logits(self._spec.head, said) if self.probabilities else said), None

    def __reduce__(self) -> Any:
        return _from_content, (self._content, self._spec, self._scale, self.probabilities)


def _from_content(content: bytes, spec: PolicySpec, scale: float, probabilities: bool) -> KerasPolicy:
    with tempfile.TemporaryDirectory() as folder:  # Keras reads from a path only
        copy = Path(folder) / "model.keras"
        copy.write_bytes(content)
        return KerasPolicy(read_keras(copy), content, spec, scale, probabilities)


def load_keras(path: Path, spec: PolicySpec | None, head: HeadKind | None = None, scale: float = 1.0) -> KerasPolicy:
    """Read a `.keras` file.

    Args:
        path: the file.
        spec: of the environment, which it does not tell.
        head: what its numbers mean, where that is not the neutral head of the action space: `q_values`.
        scale: what its input is multiplied with, 1/255 for a model that expects pixels from 0 to 1.

    Raises:
        ConfigError: no `spec`, or a `scale` for integers.
        SpecMismatchError: an input, an output or a head that is not the environment's.
        RLDistillError: what `rldistill.students.keras.read_keras` raises.
    """
    if spec is None:
        raise ConfigError(f"{path}: a Keras file does not tell its environment; give the environment's spec")
    model = read_keras(path)
    spec = dataclasses.replace(spec, head=spec.head.as_kind(head or spec.head.kind, str(path)))
    require_keras_fit(str(path), model, spec)
    taken = str(model.inputs[0].dtype)
    if scale != 1 and "int" in taken:
        raise ConfigError(f"teacher: {path}: scale: its input is {taken}, which holds no fractions; leave it out")
    policy = KerasPolicy(model, path.read_bytes(), spec, scale).eval()
    policy.probabilities = gives_probabilities(policy)
    if head is None and not policy.probabilities:
        warn_of_logits(str(path), spec.head)
    return policy
