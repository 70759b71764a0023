from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.agent import StatefulPolicy

META = torch.device("meta")
"""Device that every machine has beside the CPU."""


class RecurrentPolicy:
    """Policy that counts the steps of each slot and records the devices of its inputs."""

    spec = PolicySpec((2,), "float32", CategoricalHead((2,)))

    def __init__(self) -> None:
        self.devices: list[tuple[str, str]] = []

    def initial_state(self, batch_size: int) -> Tensor | None:
        return torch.zeros(batch_size, 1)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        assert isinstance(obs, Tensor)
        assert state is not None
        self.devices.append((obs.device.type, state.device.type))
        after = state + 1 if state.device.type == "cpu" else torch.ones(len(state), 1)
        return PolicyOutput(self.spec.head, torch.ones(len(obs), 2), value=torch.zeros(len(obs))), after


@pytest.mark.parametrize("device", [torch.device("cpu"), META])
def test_policy_computes_on_its_device_and_its_outputs_come_back(device: torch.device) -> None:
    policy = RecurrentPolicy()
    slots = StatefulPolicy(policy, 3, device=device)
    output = slots.step(np.zeros((3, 2), np.float32))
    assert policy.devices == [(device.type, device.type)]
    assert output.params.device.type == output.mode().device.type == "cpu"
    assert slots.state is not None
    assert slots.state.device.type == "cpu"


def test_only_slots_whose_episode_has_ended_are_reset() -> None:
    slots = StatefulPolicy(RecurrentPolicy(), 3)
    obs = np.zeros((3, 2), np.float32)
    slots.step(obs)
    slots.evaluate(obs)
    slots.reset(np.array([1]))
    assert slots.state is not None
    assert slots.state.flatten().tolist() == [1, 0, 1]
