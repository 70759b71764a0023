"""Turn a reinforcement-learning teacher into a smaller, faster student, and prove what was lost."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rldistill.collect import CollectConfig, collect
    from rldistill.distill import DistillConfig, distill
    from rldistill.envs.single import EnvConfig
    from rldistill.errors import (
        ConfigError,
        CorruptArtifactError,
        MissingExtraError,
        NothingLearnedError,
        RLDistillError,
        SpecMismatchError,
        UntrustedFileError,
    )
    from rldistill.evaluate.returns import Entrant, EvaluateConfig, evaluate
    from rldistill.evaluate.robustness import RobustnessConfig
    from rldistill.losses import (
        QMSE,
        ActionNLL,
        AdvantageMSE,
        AdvantageWeightedNLL,
        BellmanTarget,
        Entropy,
        FeatureMSE,
        ForwardKL,
        GapWeightedNLL,
        Jeffreys,
        LargeMargin,
        QHuber,
        ReverseKL,
        ValueMSE,
        Wasserstein,
    )
    from rldistill.objective import Term
    from rldistill.report import write_report
    from rldistill.students import Cnn, Gru, Impala, Keras, Linear, Mlp, Ridge, Tree
    from rldistill.students.budget import fit_budget
    from rldistill.students.network import NetworkPolicy
    from rldistill.students.storage import trust
    from rldistill.teachers.load import load_policy
    from rldistill.teachers.train import TrainConfig, train_teacher
    from rldistill.types import ActionHead, Batch, Policy, PolicyOutput, PolicySpec

__version__ = "0.1.0"

# Imported when they are first asked for: PyTorch alone takes longer than `rldistill --help` may.
_EXPORTS = {
    "train_teacher": "rldistill.teachers.train",
    "load_policy": "rldistill.teachers.load",
    "collect": "rldistill.collect",
    "distill": "rldistill.distill",
    "evaluate": "rldistill.evaluate.returns",
    "write_report": "rldistill.report",
    "EnvConfig": "rldistill.envs.single",
    "TrainConfig": "rldistill.teachers.train",
    "CollectConfig": "rldistill.collect",
    "DistillConfig": "rldistill.distill",
    "Term": "rldistill.objective",
    "EvaluateConfig": "rldistill.evaluate.returns",
    "RobustnessConfig": "rldistill.evaluate.robustness",
    "Entrant": "rldistill.evaluate.returns",
    "Linear": "rldistill.students",
    "Mlp": "rldistill.students",
    "Cnn": "rldistill.students",
    "Gru": "rldistill.students",
    "Impala": "rldistill.students",
    "Ridge": "rldistill.students",
    "Tree": "rldistill.students",
    "Keras": "rldistill.students",
    "fit_budget": "rldistill.students.budget",
    "NetworkPolicy": "rldistill.students.network",
    "trust": "rldistill.students.storage",
    "ForwardKL": "rldistill.losses",
    "ReverseKL": "rldistill.losses",
    "Jeffreys": "rldistill.losses",
    "Wasserstein": "rldistill.losses",
    "ActionNLL": "rldistill.losses",
    "GapWeightedNLL": "rldistill.losses",
    "AdvantageMSE": "rldistill.losses",
    "AdvantageWeightedNLL": "rldistill.losses",
    "Entropy": "rldistill.losses",
    "QMSE": "rldistill.losses",
    "QHuber": "rldistill.losses",
    "BellmanTarget": "rldistill.losses",
    "LargeMargin": "rldistill.losses",
    "ValueMSE": "rldistill.losses",
    "FeatureMSE": "rldistill.losses",
    "ActionHead": "rldistill.types",
    "PolicySpec": "rldistill.types",
    "PolicyOutput": "rldistill.types",
    "Policy": "rldistill.types",
    "Batch": "rldistill.types",
    "RLDistillError": "rldistill.errors",
    "ConfigError": "rldistill.errors",
    "SpecMismatchError": "rldistill.errors",
    "UntrustedFileError": "rldistill.errors",
    "CorruptArtifactError": "rldistill.errors",
    "NothingLearnedError": "rldistill.errors",
    "MissingExtraError": "rldistill.errors",
}

__all__ = [  # noqa: RUF022 - in the order of the way from a teacher to a report
    "train_teacher",
    "load_policy",
    "collect",
    "distill",
    "evaluate",
    "write_report",
    "EnvConfig",
    "TrainConfig",
    "CollectConfig",
    "DistillConfig",
    "Term",
    "EvaluateConfig",
    "RobustnessConfig",
    "Entrant",
    "Linear",
    "Mlp",
    "Cnn",
    "Gru",
    "Impala",
    "Ridge",
    "Tree",
    "Keras",
    "fit_budget",
    "NetworkPolicy",
    "trust",
    "ForwardKL",
    "ReverseKL",
    "Jeffreys",
    "Wasserstein",
    "ActionNLL",
    "GapWeightedNLL",
    "AdvantageMSE",
    "AdvantageWeightedNLL",
    "Entropy",
    "QMSE",
    "QHuber",
    "BellmanTarget",
    "LargeMargin",
    "ValueMSE",
    "FeatureMSE",
    "ActionHead",
    "PolicySpec",
    "PolicyOutput",
    "Policy",
    "Batch",
    "RLDistillError",
    "ConfigError",
    "SpecMismatchError",
    "UntrustedFileError",
    "CorruptArtifactError",
    "NothingLearnedError",
    "MissingExtraError",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the submodule `rldistill.collect` would put it where the function of the same name belongs.
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
