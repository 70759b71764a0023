from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.heads import MASK, CategoricalHead, QValuesHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, ObsPart, PolicySpec
from rldistill.policies import cost
from rldistill.policies.actor_critic import Actor
from rldistill.policies.cost import Cost, measure_cost
from rldistill.policies.ensemble import Ensemble
from rldistill.policies.wrappers import with_action_mask
from rldistill.students import Cnn, Linear, Mlp
from rldistill.teachers.python import FunctionPolicy

LANDER = PolicySpec((8,), "float32", CategoricalHead((4,)))
ATARI = PolicySpec((4, 84, 84), "uint8", QValuesHead((6,)))


class FirstAction:
    """A policy that is not a network."""

    spec = LANDER

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, None]:
        assert isinstance(obs, Tensor)
        return PolicyOutput(self.spec.head, torch.eye(4)[:1].expand(len(obs), 4)), None


class Broken(torch.nn.Module):
    """A network that fails."""

    spec = LANDER

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)

    def initial_state(self, batch_size: int) -> None:
        return None

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, None]:
        raise RuntimeError("no")


def test_costs_of_dense_networks_by_hand() -> None:
    mlp = measure_cost(Mlp((16,)).build(LANDER))
    assert (mlp.parameters, mlp.macs) == (8 * 16 + 16 + 16 * 4 + 4, 8 * 16 + 16 * 4)
    assert mlp.bytes == 4 * mlp.parameters
    assert mlp.activations == 16 + 4
    linear = measure_cost(Linear().build(ATARI))
    assert linear.activations == 6
    assert (linear.parameters, linear.macs) == (4 * 84 * 84 * 6 + 6, 4 * 84 * 84 * 6)


def test_costs_of_a_convolutional_network_by_hand() -> None:
    cnn = measure_cost(Cnn((2,), (8,), (4,), (3,)).build(ATARI))
    # 20 x 20 places, 2 channels, 4 x 8 x 8 weights; 800 to 3; 3 to 6
    assert cnn.macs == 400 * 2 * 256 + 800 * 3 + 18
    assert cnn.activations == 400 * 2 + 3 + 6
    assert cnn.parameters == (2 * 256 + 2) + (800 * 3 + 3) + (3 * 6 + 6)


def test_latencies_are_measured_and_nothing_is_left_behind() -> None:
    policy, threads = Mlp((16,)).build(LANDER), torch.get_num_threads()
    cost = measure_cost(policy)
    assert cost.latency_us is not None
    assert cost.batch_latency_us is not None
    assert list(cost.batch_latency_us) == ["64", "256"]
    for latency in (cost.latency_us, *cost.batch_latency_us.values()):
        assert 0 < latency["p50"] <= latency["p99"]
    assert torch.get_num_threads() == threads
    assert not any(module._forward_hooks for module in policy.modules())


def test_a_large_batch_takes_longer_than_one_observation() -> None:
    cost = measure_cost(Mlp((256, 256)).build(LANDER))
    assert cost.latency_us is not None
    assert cost.batch_latency_us is not None
    one, many = cost.latency_us["p50"], cost.batch_latency_us["256"]["p50"]
    assert one < many < 256 * one  # all of them together, not each


def test_a_failed_measurement_removes_its_hooks() -> None:
    policy, threads = Broken(), torch.get_num_threads()
    with pytest.raises(RuntimeError):
        measure_cost(policy)
    assert torch.get_num_threads() == threads
    assert not policy.layer._forward_hooks


def test_only_the_latency_of_a_policy_without_network_is_measured() -> None:
    for policy in (FirstAction(), Ensemble((Mlp((16,)).build(LANDER), FirstAction()))):
        cost = measure_cost(policy)
        assert (cost.parameters, cost.bytes, cost.macs, cost.activations) == (None, None, None, None)
        assert cost.batch_latency_us is not None
        assert cost.latency_us is not None
        assert cost.latency_us["p50"] > 0
    assert measure_cost(None) == Cost(0, 0, 0, None, 0)


def test_an_ensemble_costs_the_sum_of_its_members() -> None:
    recurrent = Actor(lstm=(6, 1), hidden=(5,)).build(LANDER)
    cost = measure_cost(Ensemble((Linear().build(LANDER), recurrent, recurrent)))
    # 8 to 4; then twice: four gates of 6 from 8 entries and 6 remembered numbers, 6 to 5, 5 to 4
    assert cost.macs == 8 * 4 + 2 * (4 * 6 * (8 + 6) + 6 * 5 + 5 * 4)
    one = sum(parameter.numel() for parameter in recurrent.parameters())
    assert (cost.parameters, cost.bytes) == (8 * 4 + 4 + one, 4 * (8 * 4 + 4 + one))  # what runs twice is there once


def test_an_action_mask_does_not_change_the_cost() -> None:
    parts = (("obs", ObsPart((8,), "float32")), (MASK, ObsPart((4,), "int8")))
    confined = with_action_mask(Mlp((16,)).build(LANDER), PolicySpec.from_parts(parts, LANDER.head))
    cost = measure_cost(confined)
    assert (cost.parameters, cost.macs) == (8 * 16 + 16 + 16 * 4 + 4, 8 * 16 + 16 * 4)


def test_multiply_adds_of_a_recurrent_policy() -> None:
    policy = Actor(lstm=(6, 1), hidden=(5,)).build(PolicySpec((4,), "float32", CategoricalHead((2,))))
    # four gates of 6 from 4 entries and 6 remembered numbers; then 6 to 5 and 5 to 2
    cost = measure_cost(policy)
    assert cost.macs == 4 * 6 * (4 + 6) + 6 * 5 + 5 * 2
    assert cost.activations == 4 * 6 + 4 * 6 + 5 + 2  # what each matrix gives: gates from the entries, from the memory


def test_slow_functions_are_not_timed_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def control(obs: object) -> int:
        calls.append(obs)
        time.sleep(0.02)
        return 0

    monkeypatch.setattr(cost, "TIMING_S", 0.1)
    found = measure_cost(FunctionPolicy(control, LANDER))
    assert found.latency_us is not None
    assert found.latency_us["p50"] > 20_000
    assert found.batch_latency_us == {}
    assert len(calls) <= 20 + 10  # those to warm up, and the least number


def test_a_function_is_timed_with_the_observation() -> None:
    obs, seen = np.arange(8, dtype=np.float32)[None], []

    def control(own: NDArray[np.float32]) -> int:
        seen.append(own.copy())
        return 0

    measure_cost(FunctionPolicy(control, LANDER), torch.from_numpy(obs))
    assert {own.tobytes() for own in seen} == {obs.tobytes()}
