"""Losses: frozen, callable dataclasses that return their leading dimensions unreduced."""

from rldistill.losses.policy import ActionNLL, ForwardKL, ReverseKL
from rldistill.losses.value import QMSE, BellmanTarget, QHuber

AnyLoss = ForwardKL | ReverseKL | ActionNLL | QMSE | QHuber | BellmanTarget
LOSSES: dict[str, type[AnyLoss]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "action_nll": ActionNLL,
    "q_mse": QMSE,
    "q_huber": QHuber,
    "bellman_target": BellmanTarget,
}

__all__ = ["LOSSES", "QMSE", "ActionNLL", "AnyLoss", "BellmanTarget", "ForwardKL", "QHuber", "ReverseKL"]
