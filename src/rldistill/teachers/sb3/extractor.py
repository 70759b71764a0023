"""Features extractors of the user's own in SB3 policies, whose class no file may name."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rldistill.core.arguments import are_small
from rldistill.core.entries import first_entry
from rldistill.core.errors import ConfigError
from rldistill.core.fields import import_name
from rldistill.core.spec import Obs, PolicySpec
from rldistill.io.state_dicts import load_weights
from rldistill.io.user_code import wrap_errors
from rldistill.policies.actor_critic import Actor, ActorPolicy

FIELD = "teacher.extractor"


class RebuildError(Exception):
    """A policy that an `Actor` cannot express; the message is the reason."""


class InconsistentFileError(RebuildError):
    """A file whose text or spec describes another policy than its tensors."""


@dataclass(frozen=True)
class Extractor:
    """Features extractor of the user's own, whose class no file may name.

    Attributes:
        reference: Its class as `module:Class`, from the run file, Python or the command line.
        space, kwargs: Its arguments, from the file of the policy.
    """

    reference: str
    space: spaces.Space[Any] = field(hash=False)
    kwargs: dict[str, Any] = field(hash=False)

    def build(self, weights: dict[str, Tensor]) -> nn.Module:
        """Return the extractor with its weights, constructed as SB3 does."""
        cls = import_name(self.reference, FIELD)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ConfigError(f"{FIELD}: {self.reference} is no subclass of torch.nn.Module. Name one that is.")
        if not are_small(self.kwargs):  # a file could ask for layers of any size
            raise RebuildError(f"features_extractor_kwargs {self.kwargs}; only a few numbers and short texts are read")
        with wrap_errors(f"teacher: {self.reference}"):
            module: nn.Module = cls(self.space, **self.kwargs)
        problem = f"{FIELD}: the weights in the file do not fit {self.reference}"
        load_weights(module, weights, problem, "Name another class.")
        return module.eval()


@dataclass(frozen=True)
class ExtractorActor(Actor):
    """Actor with a features extractor of the user's own, which returns `features` numbers."""

    hidden_as_features: ClassVar[bool] = False

    extractor: Extractor | None = None

    def features_width(self, spec: PolicySpec) -> int:
        """Return the number of features."""
        return self.features


class ExtractorPolicy(ActorPolicy):
    """Policy of an `ExtractorActor`."""

    def __init__(self, config: Actor, spec: PolicySpec, extractor: nn.Module, reference: str) -> None:
        super().__init__(config, spec)
        self.extractor, self.reference = extractor, reference

    def require_storable(self) -> None:
        """Raise ConfigError: a file must not name the code that it needs."""
        raise ConfigError(
            f"{FIELD}: a policy with {self.reference} cannot be saved, since a file must not name code. Keep its zip, "
            "or distil it into a student."
        )

    def _features(self, standardized: Obs) -> Tensor:
        with wrap_errors(f"teacher: {self.reference}"):
            features = self.extractor(standardized)
        expected = (len(first_entry(standardized)), self.config.features)
        if not isinstance(features, torch.Tensor) or features.shape != expected:
            found = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ConfigError(
                f"{FIELD}: {self.reference} returns {found}, expected {list(expected)}. Correct its code."
            )
        return features
