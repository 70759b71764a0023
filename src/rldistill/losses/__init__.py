"""Losses: frozen, callable dataclasses that return their leading dimensions unreduced."""

from typing import Annotated

from rldistill.core.fields import OneOf
from rldistill.losses.feature import FeatureMSE
from rldistill.losses.policy import (
    ActionNLL,
    AdvantageWeightedNLL,
    Entropy,
    ForwardKL,
    GapWeightedNLL,
    Jeffreys,
    ReverseKL,
    Wasserstein,
)
from rldistill.losses.value import QMSE, AdvantageMSE, BellmanTarget, LargeMargin, QHuber, ValueMSE

LOSSES: dict[str, type] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jeffreys": Jeffreys,
    "wasserstein": Wasserstein,
    "action_nll": ActionNLL,
    "gap_weighted_nll": GapWeightedNLL,
    "advantage_weighted_nll": AdvantageWeightedNLL,
    "entropy": Entropy,
    "q_mse": QMSE,
    "q_huber": QHuber,
    "advantage_mse": AdvantageMSE,
    "bellman_target": BellmanTarget,
    "large_margin": LargeMargin,
    "value_mse": ValueMSE,
    "feature_mse": FeatureMSE,
}
AnyLoss = Annotated[
    ForwardKL
    | ReverseKL
    | Jeffreys
    | Wasserstein
    | ActionNLL
    | GapWeightedNLL
    | AdvantageWeightedNLL
    | Entropy
    | QMSE
    | QHuber
    | AdvantageMSE
    | BellmanTarget
    | LargeMargin
    | ValueMSE
    | FeatureMSE,
    OneOf("name", LOSSES, methods=("__call__", "student_head")),
]

__all__ = [
    "LOSSES",
    "QMSE",
    "ActionNLL",
    "AdvantageMSE",
    "AdvantageWeightedNLL",
    "AnyLoss",
    "BellmanTarget",
    "Entropy",
    "FeatureMSE",
    "ForwardKL",
    "GapWeightedNLL",
    "Jeffreys",
    "LargeMargin",
    "QHuber",
    "ReverseKL",
    "ValueMSE",
    "Wasserstein",
]
