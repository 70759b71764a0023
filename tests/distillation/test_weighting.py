"""Weights of several teachers: hand-worked labels, laws, and a task in which each teacher is right on one side."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional as F

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError
from rldistill.core.heads import (
    ILLEGAL,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    GaussianHead,
    MultiCategoricalHead,
    QValuesHead,
)
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig, Weighting
from rldistill.distillation.distill import distill
from rldistill.distillation.values import own_steps, teacher_values
from rldistill.distillation.weighting import (
    best_member,
    confidence_weights,
    expectation,
    labels_of_member,
    look_ahead,
    own_returns,
    params_of,
    require_weighting,
    softened_outputs,
    weighted_dataset,
    with_weights,
)
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.ensemble import Committee
from rldistill.students import Mlp, Tree
from rldistill.teachers.python import FunctionPolicy

from ..conftest import Reports


class Sides(gymnasium.Env[Any, Any]):
    """Three steps with the same x in [-1, 1]; the right action is 1 where x > 0, else 0, and gives a reward of 1.

    A second number, which is added to the rewards as hundredths, makes every episode another one.
    """

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.obs, self.steps = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(action == (self.obs[0] > 0)) + 0.01 * float(self.obs[1])
        return self.obs, reward, self.steps == 3, False, {}


SIDES = EnvConfig(f"{__name__}:Sides")


def always(action: int) -> FunctionPolicy:
    return FunctionPolicy(lambda obs: np.full(len(obs), action), spec_from_env(SIDES), batched=True)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    teacher = Committee((always(0), always(1)), names=("left", "right"))
    config = CollectConfig(steps=4_800, num_streams=1, envs_per_stream=8, gamma=1.0)
    return collect(SIDES, teacher, config, tmp_path_factory.mktemp("sides") / "data")


def of_members(*outputs: PolicyOutput) -> Dataset:
    """Return a dataset with these outputs of its members, an episode for each state."""
    count, head = len(outputs[0].params), outputs[0].head.neutral
    members = tuple((f"t{number}", output.head.kind) for number, output in enumerate(outputs))
    columns = {
        "members": torch.cat([output.params for output in outputs], 1).numpy(),
        "episode": np.arange(count),
        "step": np.zeros(count, int),
        **{name: np.zeros(count, np.float32) for name in ("reward", "return_to_go")},
    }
    rows, spec = np.arange(count), PolicySpec((1,), "float32", head, members=members)
    return Dataset(spec, columns, np.zeros((count, 1), np.float32), rows, rows, rows == 0, count)


def test_q_values_and_logits_become_one_distribution(tmp_path: Path) -> None:
    logits = PolicyOutput(CategoricalHead((2,)), torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))
    values = PolicyOutput(QValuesHead((2,)), torch.tensor([[101.5, 100.0], [100.0, 100.5]]))
    # The mean gap is (1.5 + 0.5) / 2 = 1, so that Q values are divided by 1/2: logits of 3 : 0 and 0 : 1.
    labels = weighted_dataset(of_members(logits, values), "uniform", tmp_path)
    expected = [[(0.25 + 1 / (1 + math.exp(-3))) / 2, 0.0], [(0.5 + 1 / (1 + math.exp(1))) / 2, 0.0]]
    expected = [[first, 1 - first] for first, _ in expected]
    assert np.allclose(np.exp(labels.columns["teacher"]), expected, atol=1e-6)
    assert (labels.spec.head.kind, labels.spec.members) == ("categorical", ())
    assert "members" not in labels.columns


def test_actions_that_no_teacher_has_stay_illegal_and_those_of_one_do_not(tmp_path: Path) -> None:
    head = CategoricalHead((3,))
    some = PolicyOutput(head, torch.tensor([[0.0, ILLEGAL, 0.0]]).expand(2, 3))
    one = PolicyOutput(head, torch.tensor([[0.0, ILLEGAL, ILLEGAL]]).expand(2, 3))
    labels = weighted_dataset(of_members(some, one), "uniform", tmp_path).columns["teacher"]
    assert np.allclose(np.exp(labels[0]), [0.75, 0.0, 0.25])
    assert (labels[:, 1] == np.float32(ILLEGAL)).all()


@pytest.mark.parametrize(
    "head", [MultiCategoricalHead((2, 3)), BernoulliHead((3,)), DeterministicHead(low=(-2.0,), high=(2.0,))]
)
def test_params_have_the_expectation_that_they_are_made_of(head: Any) -> None:
    params = torch.randn(20, head.num_params).clamp(-2, 2)
    assert torch.allclose(expectation(head, params_of(head, expectation(head, params))), expectation(head, params))


def test_continuous_actions_are_averaged(tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"low": (-1.0,), "high": (1.0,)}
    gaussian = PolicyOutput(GaussianHead(**bounds), torch.tensor([[0.5, -1.0], [3.0, 0.0]]))  # 3 is beyond the bound
    fixed = PolicyOutput(DeterministicHead(**bounds), torch.tensor([[-0.1], [0.0]]))
    labels = weighted_dataset(of_members(gaussian, fixed), "uniform", tmp_path)
    assert np.allclose(labels.columns["teacher"], [[0.2], [0.5]])
    assert labels.spec.head.kind == "deterministic"


def test_confidence_is_the_rank_among_a_teachers_own_entropies() -> None:
    head = CategoricalHead((2,))
    rising = PolicyOutput(head, torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0]]))
    falling = PolicyOutput(head, torch.tensor([[5.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))
    # Ranks 1/3, 2/3, 1 and 1, 2/3, 1/3, of which each is divided by the sum of both.
    expected = [[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]
    assert np.allclose(confidence_weights([rising, falling]), expected)
    surer = dataclasses.replace(falling, params=4 * falling.params)  # everywhere, which changes no rank
    assert np.allclose(confidence_weights([rising, surer]), expected)
    same = PolicyOutput(head, torch.zeros(3, 2))
    assert np.allclose(confidence_weights([same, same]), 0.5)


def test_loss_of_the_mixture_has_the_gradient_of_the_weighted_losses() -> None:
    torch.manual_seed(0)
    head = CategoricalHead((4,))
    outputs = [PolicyOutput(head, torch.randn(6, 4)) for _ in range(3)]
    weights, data = torch.rand(6, 3).softmax(1), of_members(*outputs)
    labels = torch.stack([expectation(head, output.params) for output in softened_outputs(data)], 1)
    mixture = torch.from_numpy(with_weights(data, labels, weights).columns["teacher"])
    student = torch.randn(6, 4, requires_grad=True)
    (of_mixture,) = torch.autograd.grad(head.kl(mixture, student).sum(), student)
    each = torch.stack([head.kl(output.params, student) for output in outputs], 1)
    (of_sum,) = torch.autograd.grad((weights * each).sum(), student)
    assert torch.allclose(of_mixture, of_sum, atol=1e-6)


def test_own_episodes_are_those_of_one_teacher_that_ended(sides: Dataset) -> None:
    columns = {**sides.columns, "actor": sides.columns["actor"].copy()}
    acted = columns["episode"] == 3
    columns["actor"][np.flatnonzero(acted)[1]] = 1  # the student
    columns["terminated"] = columns["terminated"] & (columns["episode"] != 5)  # cut by the end of the collection
    own = own_steps(dataclasses.replace(sides, columns=columns))
    assert set(columns["episode"][~own]) == {3, 5}
    returns = own_returns(sides)
    assert {*np.round(np.concatenate([*returns.values()]))} == {0.0, 3.0}
    assert np.isclose(np.mean(returns["left"]), 3 * (sides.columns["reward"][sides.columns["member"] == 0]).mean())


def test_value_follows_the_teacher_that_is_right(sides: Dataset, tmp_path: Path) -> None:
    x = sides.observations(np.arange(len(sides)))[:, 0].numpy()
    values = teacher_values(sides, tmp_path / "values")
    clear = np.abs(x) > 0.1
    assert (values.argmax(1) == (x > 0))[clear].mean() > 0.98
    expected = 2.0 * (x[clear] <= 0)  # the mean of the returns 3, 2 and 1 from the three steps, which look alike
    assert np.abs(values[clear, 0] - expected).mean() < 0.2
    labels = weighted_dataset(sides, "value", tmp_path)
    assert (labels.columns["teacher"].argmax(1) == (x > 0))[clear].mean() > 0.98
    document = json.loads((tmp_path / "weighting.json").read_text())
    shares, regions = document["teachers"], document["regions"]
    assert abs(shares["left"]["share"] - (x <= 0).mean()) < 0.1
    assert len(shares["left"]["over_time"]) == 3  # parts of an episode of three steps
    left = max(regions, key=lambda region: region["shares"]["left"])
    name, sign, threshold = left["rule"].split(" and ")[0].split()
    assert (name, sign, left["shares"]["left"] > 0.95) == ("obs[0]", "<=", True)
    assert abs(float(threshold)) < 0.1
    assert np.isclose(sum(region["states"] for region in regions), 1)


def test_learned_weights_follow_the_teacher_that_is_right(sides: Dataset, tmp_path: Path) -> None:
    x = sides.observations(np.arange(len(sides)))[:, 0].numpy()
    labels = weighted_dataset(sides, "learned", tmp_path)
    clear = np.abs(x) > 0.2
    assert (labels.columns["teacher"].argmax(1) == (x > 0))[clear].mean() > 0.95
    again = weighted_dataset(sides, "learned", tmp_path)
    assert np.array_equal(labels.columns["teacher"], again.columns["teacher"])


def test_look_ahead_is_the_product_of_both_gradients() -> None:
    torch.manual_seed(0)
    hidden, labels = torch.randn(5, 3), torch.rand(5, 2, 4).softmax(-1)
    action, importance = torch.tensor([0, 1, 3, 2, 1]), torch.tensor([0.0, 0.0, 2.0, 1.0, 0.5])  # of held-out samples
    layer = torch.randn(4, 3, requires_grad=True)
    logits = hidden @ layer.T
    heldout = (importance * F.cross_entropy(logits, action, reduction="none")).sum() / importance.sum()
    (ahead,) = torch.autograd.grad(heldout, layer, retain_graph=True)
    products = torch.empty(5, 2)
    for sample in range(5):
        for teacher in range(2):
            loss = -(labels[sample, teacher] * F.log_softmax(logits[sample], 0)).sum()
            (own,) = torch.autograd.grad(loss, layer, retain_graph=True)
            products[sample, teacher] = (own * ahead).sum()
    residual = F.one_hot(action, 4) - logits.softmax(1).detach()
    gains = look_ahead(labels, hidden, residual, importance)
    assert torch.allclose(gains[:, 0] - gains[:, 1], products[:, 0] - products[:, 1], atol=1e-6)


@pytest.mark.parametrize("weighting", ["value", "learned"])
def test_student_of_two_specialists_beats_both(sides: Dataset, tmp_path: Path, weighting: Weighting) -> None:
    student = distill(sides, Mlp((16,)), DistillConfig(weighting=weighting, epochs=8), tmp_path)
    obs = torch.linspace(-1, 1, 101)[:, None].repeat(1, 2)
    right = student(obs)[0].mode() == (obs[:, 0] > 0)
    assert right.float().mean() > 0.9  # each teacher alone: 0.5


def test_tree_learns_from_the_same_labels(sides: Dataset, tmp_path: Path) -> None:
    student = distill(sides, Tree(max_depth=2), DistillConfig(weighting="value"), tmp_path)
    obs = torch.tensor([[-0.5, 0.3], [0.5, 0.3]])
    assert student(obs)[0].mode().tolist() == [0, 1]


class StopAfter(Exception):
    pass


@pytest.mark.parametrize("weighting", ["value", "learned"])
def test_interrupted_fit_has_the_same_bytes(sides: Dataset, tmp_path: Path, weighting: Weighting) -> None:
    config = DistillConfig(weighting=weighting, epochs=3)
    distill(sides, Mlp((8,)), config, tmp_path / "whole", seed=1)

    def stop(done: int, total: int) -> None:
        raise StopAfter

    with pytest.raises(StopAfter):
        distill(sides, Mlp((8,)), config, tmp_path / "cut", seed=1, progress=Reports(stop))
    distill(sides, Mlp((8,)), config, tmp_path / "cut", seed=1, mode="resume", progress=False)
    for name in ("policy.safetensors", "weighting.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_labels_of_one_teacher_are_as_they_were(sides: Dataset) -> None:
    alone = labels_of_member(sides, 1)
    assert torch.equal(alone.batch(np.arange(4)).teacher.mode(), torch.ones(4, dtype=torch.int64))
    assert best_member(sides) == int(np.argmax([np.mean(own) for own in own_returns(sides).values()]))


def test_identical_teachers_are_the_teacher(tmp_path: Path) -> None:
    output = PolicyOutput(CategoricalHead((3,)), torch.randn(7, 3))
    for weighting in ("uniform", "confidence"):
        labels = weighted_dataset(of_members(output, output), weighting, tmp_path)
        expected = F.log_softmax(output.params, 1).numpy()
        assert np.allclose(labels.columns["teacher"], expected, atol=1e-5)


def test_weightings_without_a_meaning_are_refused(sides: Dataset, tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"low": (-1.0,), "high": (1.0,)}
    continuous = PolicySpec(
        (1,), "float32", DeterministicHead(**bounds), members=(("a", "gaussian"), ("b", "deterministic"))
    )
    with pytest.raises(ConfigError, match=r"distill\.weighting: confidence.*b has deterministic actions\. Use uniform"):
        require_weighting("confidence", continuous)
    require_weighting("learned", continuous)
    with pytest.raises(
        ConfigError, match=r"distill\.weighting: value needs several teachers\. Name them as `teachers`"
    ):
        require_weighting("value", dataclasses.replace(continuous, members=()))
    relabeled = dataclasses.replace(sides, columns={k: v for k, v in sides.columns.items() if k != "member"})
    with pytest.raises(ConfigError, match=r"whole episodes of each teacher, and left has 0 in the dataset\. Collect"):
        weighted_dataset(relabeled, "learned", tmp_path)
