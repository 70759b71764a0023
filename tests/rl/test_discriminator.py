"""Tests of the discriminator of recorded and own steps, by hand or in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rldistill.core.heads import DeterministicHead, GaussianHead, MultiCategoricalHead
from rldistill.rl.config import AdversarialConfig, DiscriminatorConfig
from rldistill.rl.discriminator import (
    Discriminator,
    Potential,
    Transitions,
    action_features,
    discriminator_loss,
    gradient_penalty,
)
from rldistill.rl.reward import AdversarialReward

from .imitation import HEAD, SPEC, Known, make_rollout, policy_of_logits, recorded


class TestDiscriminator:
    @given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=5))
    def test_loss_is_minimal_at_the_ratio_of_the_densities(self, counts: list[tuple[int, int]]) -> None:
        """The gradient of the loss is zero where D(x) = p(x) / (p(x) + q(x))."""
        p, q = torch.tensor(counts, dtype=torch.float64).T
        logit = ((p / p.sum()) / (q / q.sum())).log().requires_grad_()
        loss = discriminator_loss(logit.repeat_interleave(p.long()), logit.repeat_interleave(q.long()))
        loss.backward()  # type: ignore[no-untyped-call]
        assert logit.grad is not None
        torch.testing.assert_close(logit.grad, torch.zeros_like(logit), atol=1e-12, rtol=0)

    def test_trained_one_is_the_ratio_of_the_densities(self) -> None:
        """Trained D is p / (p + q) on all states and actions."""
        config = AdversarialConfig(
            discriminator=DiscriminatorConfig(
                hidden=(32,), learning_rate=0.01, epochs=300, batch_size=2048, gradient_penalty=0.0
            )
        )
        # Recorded: (0, 0) four times, (1, 1) twice, (2, 0) twice, of which two steps end an episode.
        data = recorded([0, 0, 1, 2, 0, 0, 1, 2], [0, 0, 1, 0, 0, 0, 1, 0], [False] * 3 + [True] + [False] * 3 + [True])
        # Own: (0, 0) twice, (0, 1) once, (1, 1) once, (2, 0) three times, of which one ends an episode.
        rollout = make_rollout([0, 0, 0, 1, 2, 2, 2], [0, 0, 1, 1, 0, 0, 0], [False] * 6 + [True])
        rollout = replace(
            rollout,
            **{
                name: getattr(rollout, name).repeat(256, *[1] * (getattr(rollout, name).ndim - 1))
                for name in ("obs", "raw_action", "action_params", "reward", "terminated", "truncated", "starts")
            },
        )
        reward, policy = AdversarialReward.new(config, 0.9, data, None, 0), policy_of_logits()
        reward.train(reward.own_steps(rollout, policy), policy, np.random.default_rng(0))
        states, actions = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0])
        assert reward.discriminator is not None
        found = reward.discriminator(Transitions.new(states, actions, torch.zeros(3), None)).sigmoid()
        p, q = torch.tensor([4, 2, 2]) / 8, torch.tensor([2, 1, 3]) / 7
        torch.testing.assert_close(found.detach(), p / (p + q), atol=0.03, rtol=0)

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_penalty_of_a_linear_function_has_the_value_computed_by_hand(self, share: float) -> None:
        """The gradient of 3 x + 4 y is (3, 4) everywhere, so the penalty is (5 - 1)^2."""
        linear = Known(lambda *_: torch.zeros(1))
        linear.forward = lambda inputs: 3 * inputs["x"][:, 0] + 4 * inputs["y"][:, 0]  # type: ignore[assignment]
        inputs = {"x": torch.randn(6, 1), "y": torch.randn(6, 1)}
        assert gradient_penalty(linear, inputs, inputs, torch.full((6,), share)).item() == pytest.approx(16, rel=1e-4)

    def test_penalty_is_taken_between_the_inputs(self) -> None:
        """The gradient of x^2 / 2 is x, here 0.25 * 8 + 0.75 * 0 = 2, so the penalty is 1."""
        square = Known(lambda *_: torch.zeros(1))
        square.forward = lambda inputs: inputs["x"][:, 0] ** 2 / 2  # type: ignore[assignment]
        one, two = {"x": torch.tensor([[8.0]])}, {"x": torch.tensor([[0.0]])}
        assert gradient_penalty(square, one, two, torch.tensor([0.25])).item() == pytest.approx(1.0)

    def test_spectral_norm_of_each_layer_is_one(self) -> None:
        torch.manual_seed(0)
        network = Potential(SPEC, DiscriminatorConfig(hidden=(16, 16), spectral_norm=True), with_action=True)
        inputs = network.encode(torch.tensor([0, 1]), torch.tensor([0, 1]))
        for _ in range(50):  # one step of the power iteration each
            network(inputs)
        layers = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
        for layer in layers:
            assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1.0, abs=1e-3)

    def test_state_alone_hides_the_action(self) -> None:
        data = recorded([0, 1], [0, 1], [True, True])
        for inputs in ("state", "state_action"):
            config = AdversarialConfig(discriminator=DiscriminatorConfig(inputs=inputs))  # type: ignore[arg-type]
            steps = Transitions.new(torch.tensor([1, 1]), torch.tensor([0, 1]), torch.zeros(2).bool(), None)
            one, two = Discriminator(data, config, 0.9)(steps).tolist()
            assert (one == pytest.approx(two, abs=1e-6)) == (inputs == "state")

    def test_features_of_actions(self) -> None:
        assert action_features(HEAD, torch.tensor([1])).tolist() == [[0, 1]]
        assert action_features(MultiCategoricalHead((2, 2)), torch.tensor([[1, 0]])).tolist() == [[0, 1, 1, 0]]
        bounds = GaussianHead(low=(0.0, -math.inf), high=(4.0, math.inf))
        assert action_features(bounds, torch.tensor([[3.0, 7.0]])).tolist() == [[0.5, 7.0]]
        assert action_features(DeterministicHead(low=(-2.0,), high=(2.0,)), torch.tensor([[-2.0]])).tolist() == [[-1]]
