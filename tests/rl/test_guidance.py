"""Tests of the weight of the distillation losses."""

from __future__ import annotations

import json

import pytest
import torch

from rldistill.core.errors import ConfigError
from rldistill.core.schedules import Constant, Linear
from rldistill.losses import ForwardKL
from rldistill.losses.objective import Term
from rldistill.rl.guidance import DistillationWeight, Guidance, proximal_weight

KL = (Term(ForwardKL()),)


def test_teacher_worse_than_random_play_causes_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"\(-5\) is not higher than random play \(3\), so there is nothing to distil"):
        Guidance(KL, teacher_return=-5.0, random_return=3.0)


def test_proximal_weight_has_no_gradient() -> None:
    ratio = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
    divergence = torch.tensor([2.0, 2.0, 2.0], requires_grad=True)
    weighted = proximal_weight(ratio, 0.2) * divergence
    assert weighted.tolist() == pytest.approx([1.6, 2.0, 6.0])
    weighted.sum().backward()
    assert ratio.grad is None
    assert divergence.grad is not None
    assert divergence.grad.tolist() == pytest.approx([0.8, 1.0, 3.0])


ADAPTIVE = Guidance(KL, Constant(1.0), "adaptive", teacher_return=100.0, random_return=0.0)


class TestDistillationWeight:
    def test_performance_gate_with_negative_returns(self) -> None:
        gate = DistillationWeight(
            Guidance(KL, Constant(2.0), "performance", teacher_return=-100.0, random_return=-300.0)
        )
        assert gate.weight(0.0) == 2.0
        for ended, (score, weight) in enumerate(((-250.0, 1.5), (-100.0, 0.0), (-50.0, 0.0), (-400.0, 2.0)), 1):
            gate.update([score] * 16, ended, 0.5)
            assert gate.weight(0.5) == pytest.approx(weight)

    def test_performance_gate_needs_enough_episodes(self) -> None:
        gate = DistillationWeight(Guidance(KL, Constant(2.0), "performance", teacher_return=10.0, random_return=0.0))
        gate.update([10.0] * 15, 15, 0.5)
        assert gate.weight(0.5) == 2.0
        gate.update([10.0] * 15 + [2.0], 16, 0.5)
        assert gate.weight(0.5) == pytest.approx(2 * (1 - 152 / 160))

    def test_adaptive_gate_restores_the_weight_when_the_return_drops(self) -> None:
        """All returns of an update are equal, so their mean has no error."""
        gate = DistillationWeight(ADAPTIVE)
        for ended, (score, weight) in enumerate(((50.0, 0.9), (45.0, 0.81), (30.0, 1.0), (49.0, 0.9)), 1):
            gate.update([score] * 16, ended, 0.5)
            assert gate.weight(0.5) == pytest.approx(weight)

    def test_weight_is_unchanged_without_a_new_episode(self) -> None:
        gate = DistillationWeight(ADAPTIVE)
        for _ in range(3):
            gate.update([50.0] * 16, 16, 0.5)
        assert gate.weight(0.5) == pytest.approx(0.9)

    def test_mean_of_few_episodes_is_not_the_best_return(self) -> None:
        gate = DistillationWeight(ADAPTIVE)
        gate.update([90.0] * 15, 15, 0.5)
        gate.update([50.0] * 16, 16, 0.5)
        assert gate.weight(0.5) == pytest.approx(0.9)

    @pytest.mark.parametrize(("mean", "weight"), [(40.0, 0.81), (38.0, 1.0)])
    def test_drop_within_the_margin_of_error_is_ignored(self, mean: float, weight: float) -> None:
        """The mean was 70 ± 2 * 5.16; it has dropped by a tenth of the distance below 70 - 4 * 5.16 - 10 = 39.3."""
        gate = DistillationWeight(ADAPTIVE)
        gate.update([50.0, 90.0] * 8, 16, 0.5)
        gate.update([mean - 20, mean + 20] * 8, 32, 0.5)
        assert gate.weight(0.5) == pytest.approx(weight)

    @pytest.mark.parametrize(
        "guidance",
        [
            Guidance(KL, Linear(1.0, 0.0)),
            Guidance(KL, Constant(1.0), "adaptive", teacher_return=100.0, random_return=0.0),
            Guidance(KL, Constant(1.0), "performance", teacher_return=100.0, random_return=0.0),
            Guidance(teacher_steps=Linear(20.0, 0.0)),
        ],
        ids=["schedule", "adaptive", "performance", "steps"],
    )
    def test_drop_after_the_decrease_causes_one_warning(self, guidance: Guidance) -> None:
        gate = DistillationWeight(guidance)
        for ended in range(1, 4):
            assert gate.update([90.0] * 16, ended, 0.05 * ended) is None
        text = gate.update([60.0] * 16, 4, 0.5)
        assert text is not None
        assert "fallen from 90 to 60" in text
        assert gate.update([10.0] * 16, 5, 0.6) is None

    def test_drop_before_the_decrease_causes_no_warning(self) -> None:
        gate = DistillationWeight(Guidance(KL, Linear(1.0, 0.0)))
        assert gate.update([100.0] * 16, 1, 0.0) is None
        assert gate.update([70.0] * 16, 2, 0.05) is None

    def test_state_is_restored_completely(self) -> None:
        weight, restored = DistillationWeight(ADAPTIVE), DistillationWeight(ADAPTIVE)
        for num_ended, mean in enumerate((50.0, 90.0, 60.0, 85.0), 16):
            weight.update([mean, mean + 1.0] * 8, num_ended, 0.5)
        changed = [name for name, value in weight.state_dict().items() if value != restored.state_dict()[name]]
        assert changed == ["share", "best_return", "margin_of_error", "num_ended", "has_decreased", "has_warned"]
        restored.load_state_dict(json.loads(json.dumps(weight.state_dict())))
        assert restored == weight

    def test_gate_without_a_better_teacher_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"nothing to distil\. Use another teacher, or set gate: none"):
            Guidance(KL, gate="performance", teacher_return=-20.0, random_return=-20.0)
        with pytest.raises(ConfigError, match="needs teacher_return"):
            Guidance(KL, gate="adaptive")
