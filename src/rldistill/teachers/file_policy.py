"""Policies with a network in a file of another library, which does not name the meaning of its outputs."""

import dataclasses
import hashlib
import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rldistill.core.entries import flat_values, join_parts
from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead, BernoulliHead, CategoricalHead, HeadKind
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.io.untrusted import MAX_WEIGHTS_BYTES, read_regular
from rldistill.students.keras import channels_last, keras_on_torch, read_keras, require_keras_fit

EPSILON = 1e-8
"""Added to probabilities before the logarithm."""
NUM_TRIALS = 64


class FilePolicy:
    """Feed-forward policy with the network in the bytes of a file; its output is the parameters of the head.

    Probabilities are converted to logits. The bytes and `settings` identify the policy, and rebuild it when unpickled.
    """

    probabilities = False

    def __init__(self, path: str, content: bytes, spec: PolicySpec, *settings: Any) -> None:
        super().__init__()
        self.spec, self.path, self.arguments = spec, path, (path, content, spec, *settings)
        self.content_parts = (hashlib.sha256(content).hexdigest(), *settings)

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return None: the policy is feed-forward."""
        return None

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for a batch of observations."""
        return self.to_output(self.compute(flat_values(obs, self.spec))), None

    def to_output(self, params: Tensor) -> PolicyOutput:
        """Return the output with these numbers as parameters."""
        if self.probabilities:
            logits = (params + EPSILON).log()
            bits = isinstance(self.spec.head, BernoulliHead)
            params = logits - (1 - params + EPSILON).log() if bits else logits
        return PolicyOutput(self.spec.head, params)

    @abstractmethod
    def compute(self, obs: Tensor) -> Tensor:
        """Return the output of the network, `[B, P]`."""

    def apply_options(self, kind: HeadKind | None, scale: float, dtype: str) -> None:
        """Set `probabilities` if the outputs of each choice are such for synthetic observations, or warn of logits.

        The last layer may be a softmax by any name, or in another model, so the outputs decide. For bits, numbers from
        0 to 1 are enough: the outputs of a sigmoid. The option `head`, or `kind`, makes a warning needless. Raise
        ConfigError for a `scale` of a network that takes integers.
        """
        if scale != 1 and "int" in dtype:
            problem = f"{self.path} has an input of {dtype}, which cannot be scaled"
            raise ConfigError(f"teacher.scale: {problem}. Remove the option.")
        head = self.spec.head
        if head.discrete and head.stochastic:
            with torch.no_grad():
                params = self.compute(synthetic_observations(self.spec, NUM_TRIALS))
            sums = torch.stack([choice.sum(1) for choice in torch.split(params, list(head.nvec), 1)])
            add_up = isinstance(head, BernoulliHead) or bool((sums - 1).abs().max() < 1e-3)
            self.probabilities = add_up and bool(((params >= 0) & (params <= 1)).all())
        if kind is None and not self.probabilities:
            warn_of_logits(self.path, head)

    def __reduce__(self) -> Any:
        return type(self), self.arguments, {"probabilities": self.probabilities}


def with_head(spec: PolicySpec, kind: HeadKind | None, name: str) -> PolicySpec:
    """Return the spec with a head of another kind; raise SpecMismatchError if it is for other actions."""
    return dataclasses.replace(spec, head=spec.head.as_kind(kind or spec.head.kind, name))


def warn_of_logits(name: str, head: ActionHead) -> None:
    """Warn that outputs are read as logits, since Q values cannot be told apart from them."""
    if isinstance(head, CategoricalHead):
        warnings.warn(
            f"{name}: its outputs are read as logits. Set head=q_values if they are Q values, or head=categorical.",
            stacklevel=2,
        )


def synthetic_observations(spec: PolicySpec, count: int) -> Tensor:
    """Return random observations `[B, *obs_shape]` with a fixed seed, for which no environment is needed."""
    generator = torch.Generator().manual_seed(0)
    entries = []
    for part in spec.entries.values():
        dtype, shape = getattr(torch, part.dtype), (count, *part.shape)
        if dtype.is_floating_point:
            entries.append(torch.randn(shape, generator=generator))
        else:
            entries.append(torch.randint(0, min(part.nvec, default=256), shape, generator=generator).to(dtype))
    if not spec.parts:
        return entries[0]
    named = {key: entry.numpy() for (key, _), entry in zip(spec.parts, entries, strict=True)}
    return torch.from_numpy(join_parts(named, spec.parts, spec.obs_dtype))


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
