"""Features extractors of the user's own in SB3 policies.

Their class comes from the run file, Python or the command line, and never from a file of a policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.imports import import_name
from rldistill.core.spec import Obs, PolicySpec, Wrapper
from rldistill.io.user_code import wrap_errors
from rldistill.policies.actor_critic import Actor, ActorPolicy
from rldistill.teachers.probabilities import synthetic_observations
from rldistill.teachers.sb3.spaces import observation_space
from rldistill.teachers.weights import RebuildError, Tensors

FIELD = "teacher.extractor"


@dataclass(frozen=True)
class Extractor:
    """Features extractor: its class as `module:Class` and the keyword arguments in the file."""

    reference: str
    kwargs: dict[str, Any]

    def build(self, spec: PolicySpec, weights: Tensors) -> nn.Module:
        """Return the extractor with its weights, constructed as SB3 does.

        Raises:
            ConfigError: No such class, an error in its code, or weights that do not fit.
            RebuildError: Keyword arguments that are not a few plain values.
        """
        cls = import_name(self.reference, FIELD)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ConfigError(f"{FIELD}: {self.reference} is no subclass of torch.nn.Module. Name one that is.")
        if not Wrapper(self.reference, self.kwargs).has_small_kwargs:  # a file could ask for layers of any size
            raise RebuildError(f"features_extractor_kwargs {self.kwargs}; only a few numbers and short texts are read")
        with wrap_errors(self.reference):
            module: nn.Module = cls(observation_space(spec), **self.kwargs)
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"{FIELD}: the weights in the file do not fit {self.reference}: {reason}. Name another class."
            ) from None
        return module.eval()


@dataclass(frozen=True)
class ExtractorActor(Actor):
    """Actor with a features extractor of the user's own, which returns `features` numbers."""

    hidden_as_features: ClassVar[bool] = False  # students cannot be saved with code of the user's own

    extractor: str = ""
    extractor_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def features_width(self, spec: PolicySpec) -> int:
        """Return the number of features."""
        return self.features


class ExtractorPolicy(ActorPolicy):
    """Policy of an `ExtractorActor`."""

    def __init__(self, config: ExtractorActor, spec: PolicySpec, extractor: nn.Module) -> None:
        super().__init__(config, spec)
        self.extractor, self.reference = extractor, config.extractor

    def require_features(self) -> None:
        """Raise ConfigError unless the extractor returns `[B, features]`."""
        self(synthetic_observations(self.spec, 2))

    def _features(self, standardized: Obs) -> Tensor:
        with wrap_errors(self.reference):
            features = self.extractor(standardized)
        first = standardized if isinstance(standardized, Tensor) else next(iter(standardized.values()))
        expected = (len(first), self.config.features)
        if not isinstance(features, torch.Tensor) or features.shape != expected:
            found = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ConfigError(
                f"{FIELD}: {self.reference} returns {found}, expected {list(expected)}. Correct its code."
            )
        return features
