"""Keras 3 teachers, trained on any backend."""

from pathlib import Path

from torch import Tensor, nn

from rldistill.core.heads import HeadKind
from rldistill.core.spec import PolicySpec
from rldistill.io.untrusted import MAX_WEIGHTS_BYTES, read_regular
from rldistill.students.keras import channels_last, keras_on_torch, read_keras, require_keras_fit
from rldistill.teachers.file_policy import FilePolicy, with_head


class KerasPolicy(FilePolicy, nn.Module):
    """Policy with a Keras model of one input.

    Frames `[B, C, H, W]` are passed as `[B, H, W, C]` to a model that expects those, or one vector of them. uint8 is
    passed as 0 to 255, times `scale`.
    """

    def __init__(self, path: str, content: bytes, spec: PolicySpec, scale: float) -> None:
        super().__init__(path, content, spec, scale)
        self.model, self._scale = read_keras(path, content), scale

    def compute(self, obs: Tensor) -> Tensor:
        """Return the output of the model, `[B, P]`."""
        with keras_on_torch().device(obs.device.type):
            inputs = channels_last(obs, tuple(self.model.inputs[0].shape[1:])) * self._scale
            params: Tensor = self.model(inputs, training=False)
        return params


def load_keras(path: str, spec: PolicySpec, head: HeadKind | None = None, scale: float = 1.0) -> KerasPolicy:
    """Load a `.keras` file; raise the errors of `load_policy`."""
    content = read_regular(Path(path), MAX_WEIGHTS_BYTES)
    policy = KerasPolicy(path, content, with_head(spec.unmasked, head, path), scale).eval()
    require_keras_fit(path, policy.model, policy.spec)
    policy.apply_options(head, scale, str(policy.model.inputs[0].dtype))
    return policy
