"""Losses: frozen, callable dataclasses that return their leading dimensions unreduced."""

from typing import Annotated

from rldistill.core.fields import OneOf
from rldistill.losses.policy import (
    ActionNLL,
    AdvantageWeightedNLL,
    Entropy,
    ForwardKL,
    GapWeightedNLL,
    Jeffreys,
    Loss,
    ReverseKL,
    Wasserstein,
)
from rldistill.losses.value import QMSE, AdvantageMSE, BellmanTarget, FeatureMSE, LargeMargin, QHuber, ValueMSE

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
AnyLoss = Annotated[Loss, OneOf("name", LOSSES, methods=("__call__", "student_head"))]
