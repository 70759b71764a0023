"""Contract of every student: shapes, storage, training, seeds, standardization."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rldistill.core.heads import (
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    GaussianHead,
    MultiCategoricalHead,
    QValuesHead,
    SquashedGaussianHead,
)
from rldistill.core.spec import PolicySpec
from rldistill.policies.layers import ACTIVATIONS
from rldistill.policies.network import NetworkPolicy
from rldistill.students import STUDENTS, AnyStudent, Cnn, Gru, Impala, Keras, Linear, Mlp, MultiInput, Ridge, Tree
from rldistill.students.features import Fourier
from rldistill.students.storage import load_native, save_policy

pytestmark = pytest.mark.slow

os.environ.setdefault("KERAS_BACKEND", "torch")
LOW, HIGH = (-1.0, -2.0), (1.0, 2.0)
HEADS = [
    CategoricalHead((3,)),
    QValuesHead((3,)),
    MultiCategoricalHead((3, 2)),
    BernoulliHead((4,)),
    GaussianHead(low=LOW, high=HIGH),
    SquashedGaussianHead(low=LOW, high=HIGH),
    DeterministicHead(low=LOW, high=HIGH),
]
SMALL: dict[str, AnyStudent] = {
    "linear": Linear(),
    "mlp": Mlp((8, 6), "tanh"),
    "cnn": Cnn((4, 6), (4, 3), (2, 1), (10,), "elu"),
    "impala": Impala((3, 4), (9,)),
    "multi_input": MultiInput((4, 6), (4, 3), (2, 1), 5, (10,), "elu"),
    "ridge": Ridge(features=Fourier(11)),
    "tree": Tree(nodes=7),
    "gru": Gru(8, (6,), (3,), (4,), (2,)),
    "keras": Keras(f"{__name__}:keras_model"),
}
WIDTHS = {
    "linear": 2 * 12 * 14,
    "mlp": 6,
    "cnn": 10,
    "impala": 9,
    "multi_input": 10,
    "ridge": 11,
    "tree": 2 * 12 * 14,
    "gru": 8,
    "keras": 7,
}
OURS = [name for name in SMALL if name not in ("keras", "tree", "gru")]
"""Students that scale pixels: a Keras model takes them as they are (students/test_keras.py), a tree compares them,
the body of a GRU is not followed by its output."""
GROWN = "a tree is fitted without weights; see tests/distillation/test_tree.py"


def keras_model(shape: tuple[int, ...], outputs: int) -> Any:
    keras = pytest.importorskip("keras", reason="needs the extra keras")
    layers = keras.layers
    return keras.Sequential(
        [layers.Input(shape), layers.Flatten(), layers.Dense(7, activation="tanh"), layers.Dense(outputs)]
    )


def spec_for(head: ActionHead, dtype: str = "uint8") -> PolicySpec:
    return PolicySpec((2, 12, 14), dtype, head)


def observations(spec: PolicySpec, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if spec.obs_dtype == "uint8":
        return torch.randint(0, 256, (count, *spec.obs_shape), dtype=torch.uint8, generator=generator)
    return torch.randn(count, *spec.obs_shape, generator=generator)


def built(student: AnyStudent, spec: PolicySpec, seed: int = 0) -> NetworkPolicy:
    torch.manual_seed(seed)
    return student.build(spec)


def test_every_student_is_tested() -> None:
    # Those with several agents or tasks are tested in students/test_team.py and students/test_multi_task.py.
    assert SMALL.keys() == STUDENTS.keys() - {"team", "multi_task"}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
@pytest.mark.parametrize("name", SMALL)
class TestContract:
    def test_output_has_the_head_and_the_shapes_of_the_spec(self, name: str, head: ActionHead, dtype: str) -> None:
        spec = spec_for(head, dtype)
        policy = built(SMALL[name], spec)
        output, state = policy(observations(spec, 5))
        assert (state is None) == (policy.initial_state(5) is None)
        assert output.head == head
        assert output.params.shape == (5, head.num_params)
        assert output.features is not None
        assert output.features.shape == (5, WIDTHS[name])

    def test_saving_and_loading_preserves_every_byte(
        self, name: str, head: ActionHead, dtype: str, tmp_path: Path
    ) -> None:
        spec = spec_for(head, dtype)
        policy = built(SMALL[name], spec)
        save_policy(policy, tmp_path / "one", {"seed": 0})
        again = load_native(tmp_path / "one")
        save_policy(again, tmp_path / "two", {"seed": 0})
        assert (again.spec, again.config) == (spec, SMALL[name])
        assert torch.equal(again(observations(spec, 5))[0].params, policy(observations(spec, 5))[0].params)
        for file in ("policy.safetensors", "policy.json"):
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    def test_one_step_of_training_improves_it(self, name: str, head: ActionHead, dtype: str, tmp_path: Path) -> None:
        if name == "tree":
            pytest.skip(GROWN)
        spec = spec_for(head, dtype)
        save_policy(built(SMALL[name], spec), tmp_path, {})
        obs = observations(spec, 16)
        target = torch.randn(16, head.num_params, generator=torch.Generator().manual_seed(1))
        for policy in (built(SMALL[name], spec), load_native(tmp_path)):
            optimizer = torch.optim.SGD(policy.parameters(), 1e-3)
            before = (policy(obs)[0].params - target).square().mean()
            before.backward()
            assert all(parameter.grad is not None for parameter in policy.parameters() if parameter.requires_grad)
            optimizer.step()
            assert (policy(obs)[0].params - target).square().mean() < before

    def test_the_seed_determines_the_weights(self, name: str, head: ActionHead, dtype: str) -> None:
        if name == "tree":
            pytest.skip(GROWN)
        spec = spec_for(head, dtype)
        one, same, other = (built(SMALL[name], spec, seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", OURS)
def test_pixels_are_divided_by_255(name: str) -> None:
    spec = spec_for(HEADS[0])
    policy, obs = built(SMALL[name], spec), observations(spec, 3)
    kept = obs.clone()
    by_hand = policy.output(policy.body(obs.double().div(255).float()))
    torch.testing.assert_close(policy(obs)[0].params, by_hand)
    assert torch.equal(obs, kept)


@pytest.mark.parametrize("name", OURS)
def test_pixels_are_standardized_with_one_number(name: str) -> None:
    spec = spec_for(HEADS[0])
    policy, obs = built(SMALL[name], spec), observations(spec, 3)
    policy.standardize(torch.tensor(0.25), torch.tensor(0.5))
    by_hand = policy.output(policy.body((obs / 255 - 0.25) / 0.5))
    torch.testing.assert_close(policy(obs)[0].params, by_hand)


@pytest.mark.parametrize("name", OURS)
def test_other_observations_are_standardized_by_entry(name: str) -> None:
    spec = spec_for(HEADS[0], "float32")
    policy, obs = built(SMALL[name], spec), observations(spec, 3)
    plain = policy(obs)[0].params
    mean, std = torch.full(spec.obs_shape, 3.0), torch.full(spec.obs_shape, 0.5)
    policy.standardize(mean, std)
    torch.testing.assert_close(policy(obs * 0.5 + 3)[0].params, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS[4:6], ids=lambda head: head.kind)
def test_the_spread_depends_on_the_state_only_before_a_tanh(head: ActionHead) -> None:
    spec = spec_for(head)
    spread = built(SMALL["mlp"], spec)(observations(spec, 5))[0].params[:, 2:]
    assert torch.equal(spread, spread[:1].expand(5, -1)) == (head.kind == "gaussian")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_names(name: str) -> None:
    policy = Mlp((5,), name).build(spec_for(HEADS[0]))
    assert type([*policy.body.children()][-1]) is ACTIVATIONS[name]


def test_a_small_student_of_pong_has_at_most_62_000_parameters() -> None:
    # 4*8*64+8 + 8*16*16+16 + 16*9*9*32+32 + 32*6+6
    policy = Cnn((8, 16), (8, 4), (4, 2), (32,)).build(PolicySpec((4, 84, 84), "uint8", QValuesHead((6,))))
    count = sum(math.prod(parameter.shape) for parameter in policy.parameters())
    assert count == 2056 + 2064 + 41504 + 198 <= 62_000
