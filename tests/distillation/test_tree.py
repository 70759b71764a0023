"""Trees, against scikit-learn's own predictions and by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.heads import ILLEGAL, ActionHead, BernoulliHead, CategoricalHead, MultiCategoricalHead
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.distillation.tree import alternating_loss, legal_advantages, one_hot_choices, round_down, tree_data
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import read_jsonl, write_json
from rldistill.io.tensors import content_hash
from rldistill.losses import QMSE, ActionNLL, AdvantageMSE, AnyLoss, GapWeightedNLL
from rldistill.losses.objective import Term
from rldistill.students import Mlp, Tree
from rldistill.students.storage import load_native
from rldistill.students.tree import TreePolicy

SPEC = PolicySpec((2,), "float32", CategoricalHead((2,)))


def test_decisions_by_hand() -> None:
    # x0 <= 1 ? leaf 1 : (x1 <= -2 ? leaf 3 : leaf 4)
    policy = Tree(nodes=5).build(SPEC)
    with torch.no_grad():
        policy.feature.copy_(torch.tensor([0.0, -1, 1, -1, -1]))
        policy.threshold.copy_(torch.tensor([1.0, 0, -2, 0, 0]))
        policy.left.copy_(torch.tensor([1.0, 0, 3, 0, 0]))
        policy.right.copy_(torch.tensor([2.0, 0, 4, 0, 0]))
        policy.value.copy_(torch.tensor([[0.0, 0], [1, 2], [0, 0], [3, 4], [5, 6]]))
        output = policy(torch.tensor([[1.0, 9], [1.1, -2], [1.1, -1.9]]))[0].params
    assert output.tolist() == [[1, 2], [3, 4], [5, 6]]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6, width=32))
def test_a_threshold_of_float32_decides_as_the_longer_one(threshold: float, entry: float) -> None:
    short = round_down(np.array([threshold]))[0]
    assert (np.float32(entry) <= short) == (entry <= threshold)


def test_predictions_are_those_of_scikit_learn(dataset: Dataset, tmp_path: Path) -> None:
    student = distill(dataset, Tree(max_depth=5), DistillConfig(), tmp_path)
    obs, actions, weights = tree_data(dataset, student, ())  # type: ignore[arg-type]
    train = ~dataset.heldout
    reference = DecisionTreeClassifier(max_depth=5, random_state=0).fit(obs[train], actions[train], weights[train])
    with torch.no_grad():
        output = student(dataset.observations(np.arange(len(dataset))))[0]
    np.testing.assert_array_equal(output.mode(), reference.predict(obs))
    chances = output.params.softmax(-1).numpy()
    np.testing.assert_allclose(chances, reference.predict_proba(obs), atol=1e-5)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["agreement"] > 0.8
    # what a mistake costs: the difference between the best and the worst Q value
    labels = dataset.columns["teacher"]
    np.testing.assert_allclose(weights, labels.max(1) - labels.min(1), atol=1e-6)


def test_plain_likelihood_counts_every_state_the_same(dataset: Dataset, tmp_path: Path) -> None:
    config = DistillConfig(losses=(Term(ActionNLL()),))
    student = distill(dataset, Tree(max_depth=3), config, tmp_path)
    obs, actions, _ = tree_data(dataset, student, (ActionNLL(),))  # type: ignore[arg-type]
    train = ~dataset.heldout
    plain = DecisionTreeClassifier(max_depth=3, random_state=0).fit(obs[train], actions[train])
    with torch.no_grad():
        output = student(dataset.observations(np.arange(len(dataset))))[0]
    np.testing.assert_allclose(output.params.softmax(-1).numpy(), plain.predict_proba(obs), atol=1e-5)


def test_advantages_are_fitted_by_least_squares(dataset: Dataset, tmp_path: Path) -> None:
    config = DistillConfig(losses=(Term(AdvantageMSE(temperature=0.5)),))
    student = distill(dataset, Tree(max_depth=5), config, tmp_path)
    obs, _, _ = tree_data(dataset, student, ())  # type: ignore[arg-type]
    labels, train = dataset.columns["teacher"], ~dataset.heldout
    costs = np.tanh((labels - labels.max(1, keepdims=True)) / 0.5)
    costs -= costs.mean(1, keepdims=True)
    reference = DecisionTreeRegressor(max_depth=5, random_state=0).fit(obs[train], costs[train])
    with torch.no_grad():
        output = student(dataset.observations(np.arange(len(dataset))))[0]
    assert output.head.kind == "categorical"
    leaf = reference.apply(obs)
    lost = (labels - labels.max(1, keepdims=True)) / 0.5
    mean = {one: lost[train & (leaf == one)].mean(0) for one in np.unique(leaf)}
    np.testing.assert_allclose(output.params.numpy(), np.stack([mean[one] for one in leaf]), rtol=1e-4, atol=1e-5)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["agreement"] > 0.8
    # Not given, the temperature is half of what the best action has before the next one.
    measured = distill(dataset, Tree(max_depth=5), DistillConfig(losses=(Term(AdvantageMSE()),)), tmp_path / "again")
    assert isinstance(measured, TreePolicy)
    costs = np.tanh((labels - labels.max(1, keepdims=True)) / (np.diff(np.sort(labels, 1)).mean() / 2))
    costs -= costs.mean(1, keepdims=True)
    reference = DecisionTreeRegressor(max_depth=5, random_state=0).fit(obs[train], costs[train])
    np.testing.assert_array_equal(measured.feature, np.where(reference.tree_.feature < 0, -1, reference.tree_.feature))
    np.testing.assert_allclose(measured.threshold.detach().numpy(), reference.tree_.threshold, rtol=1e-5)


@pytest.mark.parametrize("losses", [(), (ActionNLL(),), (AdvantageMSE(),)])
def test_alternating_passes_lower_the_loss(dataset: Dataset, tmp_path: Path, losses: tuple[AnyLoss, ...]) -> None:
    config = DistillConfig(losses=tuple(Term(loss) for loss in losses)) if losses else DistillConfig()
    train = np.flatnonzero(~dataset.heldout)
    labels = dataset.columns["teacher"][train]
    best, worst = labels.max(1), labels.min(1)
    lost = []
    for passes in (0, 3):
        student = distill(dataset, Tree(max_depth=4, alternating_passes=passes), config, tmp_path / str(passes))
        with torch.no_grad():
            chosen = student(dataset.observations(train))[0].mode().numpy()
        if losses and isinstance(losses[0], AdvantageMSE):
            lost.append(float((best - labels[np.arange(len(labels)), chosen]).sum()))
        else:
            lost.append(float(((best - worst) ** (not losses) * (chosen != labels.argmax(1))).sum()))
    assert lost[1] < 0.99 * lost[0]


@pytest.mark.parametrize("passes", [0, 3])
def test_illegal_actions_keep_their_value_where_they_are_legal(dataset: Dataset, tmp_path: Path, passes: int) -> None:
    labels = dataset.columns["teacher"]
    rare = np.random.default_rng(0).random(len(labels)) < 0.1
    masked = np.where(rare[:, None] & (np.arange(labels.shape[1]) == labels.argmax(1)[:, None]), ILLEGAL, labels)
    hidden = dataclasses.replace(dataset, columns={**dataset.columns, "teacher": masked.astype(np.float32)})
    config = DistillConfig(losses=(Term(AdvantageMSE(0.1)),))
    student = distill(hidden, Tree(max_depth=5, alternating_passes=passes), config, tmp_path)
    clear = np.abs(labels[:, 0] - labels[:, 1]) > 0.1
    with torch.no_grad():
        predicted = student(dataset.observations(np.flatnonzero(clear)))[0].mode().numpy()
    assert (predicted == labels[clear].argmax(1)).mean() > 0.95


@pytest.mark.parametrize(
    ("head", "actions"),
    [
        (MultiCategoricalHead((2, 3)), [[0, 2], [1, 2], [1, 0]]),
        (BernoulliHead((2,)), [[0, 1], [1, 1], [1, 0]]),
    ],
)
def test_mistakes_in_several_choices_by_hand(head: ActionHead, actions: list[list[int]]) -> None:
    # Two transitions come to leaf 0, the second with four times the weight, and one to leaf 1.
    weights, made = np.array([1.0, 4.0, 2.0]), np.array(actions)
    loss_fn, leaf_fn = alternating_loss(head, one_hot_choices(head, made) * weights[:, None], weights)
    choices = leaf_fn(np.array([0, 0, 1]), 2)
    chosen = choices - [0, 2]  # of columns for both choices, one after the other
    assert chosen.tolist() == actions[1:]
    assert loss_fn(np.array([0, 1, 2]), choices[[0, 0, 1]]).tolist() == [
        1,
        0,
        0,
    ]  # the first choice of the first is wrong
    assert loss_fn(np.array([0, 1, 2]), choices[[1, 1, 0]]).tolist() == [2, 4, 2]


def test_a_continuous_teacher(tmp_path: Path) -> None:
    env = EnvConfig("Pendulum-v1")
    torch.manual_seed(0)
    teacher = Mlp((16,), "tanh").build(spec_from_env(env)).eval()
    data = collect(env, teacher, CollectConfig(steps=1_000, epsilon=0.3), tmp_path / "data")
    student = distill(data, Tree(max_depth=7, max_leaves=30), DistillConfig(), tmp_path / "tree")
    assert isinstance(student, TreePolicy)
    assert len(student.feature) <= 59
    assert student(data.observations(np.arange(3)))[0].mode().shape == (3, 1)
    refined = distill(
        data, Tree(max_depth=7, max_leaves=30, alternating_passes=2), DistillConfig(), tmp_path / "refined"
    )
    train = np.flatnonzero(~data.heldout)
    with torch.no_grad():
        apart = [one(data.observations(train))[0].mode().numpy() - data.columns["teacher"][train, :1]
                 for one in (student, refined)]  # fmt: skip
    assert (apart[1] ** 2).mean() < 0.99 * (apart[0] ** 2).mean()


def test_arrays_that_are_no_tree_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    distill(dataset, Tree(max_depth=3), DistillConfig(), tmp_path)
    tensors, document = load_file(tmp_path / "policy.safetensors"), json.loads((tmp_path / "policy.json").read_text())

    def change(name: str, value: float) -> None:
        changed = {key: array.clone() for key, array in tensors.items()}
        changed[name][0] = value
        save_file(changed, tmp_path / "policy.safetensors")
        write_json(tmp_path / "policy.json", {**document, "weights_sha256": content_hash(changed)})

    for name, value in (("left", 0.0), ("right", 1e6), ("feature", 4.0), ("left", 1.5)):
        change(name, value)
        with pytest.raises(CorruptArtifactError, match="no tree"):
            load_native(tmp_path)


@pytest.mark.parametrize("loss", [GapWeightedNLL(), AdvantageMSE()])
def test_losses_on_q_values_need_a_teacher_of_q_values(tmp_path: Path, loss: AnyLoss) -> None:
    env = EnvConfig("CartPole-v1")
    data = collect(
        env, Mlp((8,)).build(spec_from_env(env)).eval(), CollectConfig(steps=200, epsilon=0.5), tmp_path / "d"
    )
    with pytest.raises(SpecMismatchError, match="needs a teacher of Q values"):
        distill(data, Tree(), DistillConfig(losses=(Term(loss),)), tmp_path / "tree")


def test_losses_that_a_tree_cannot_minimize_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot minimize QMSE"):
        distill(dataset, Tree(), DistillConfig(losses=(Term(QMSE()),)), tmp_path)
    with pytest.raises(ConfigError, match="advantage_mse alone"):
        distill(dataset, Tree(), DistillConfig(losses=(Term(AdvantageMSE()), Term(ActionNLL()))), tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"max_depth": 0}, {"max_depth": 99}, {"max_leaves": 1}, {"alternating_passes": -1}, {"nodes": -1}]
)
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Tree(**wrong)


def test_illegal_actions_have_the_mean_advantage_of_legal_ones() -> None:
    values = np.array([[3.0, 1.0, ILLEGAL], [0.0, 4.0, 2.0], [5.0, 5.0, 3.0]], np.float32)
    expected = [[0, -1, -1], [-2, 0, -1], [0, 0, -1]]
    np.testing.assert_allclose(legal_advantages(values, 2.0), expected)


def test_advantages_judge_a_tree_by_the_value_that_it_loses(dataset: Dataset, tmp_path: Path) -> None:
    right = dataset.observations(np.arange(len(dataset)))[:, 0].numpy() > 0
    # In nine of ten states both actions are equal, and the first of them counts as the teacher's.
    chance = np.random.default_rng(0).random(len(dataset))
    values = np.where(chance < 0.9, 0.0, np.where(right, 1.0, -1.0))
    labels = np.stack([np.zeros(len(dataset)), values], 1).astype(np.float32)
    tied = dataclasses.replace(dataset, columns={**dataset.columns, "teacher": labels})
    config = DistillConfig(losses=(Term(AdvantageMSE(temperature=1.0)),))
    student = distill(tied, Tree(max_depth=1), config, tmp_path)
    with torch.no_grad():
        chosen = student(dataset.observations(np.arange(len(dataset))))[0].mode().numpy()
    assert (chosen == right).mean() > 0.99
    lost = (labels.max(1) - labels[np.arange(len(labels)), chosen])[dataset.heldout]
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["heldout_loss"] == pytest.approx(lost.mean())
    assert row["agreement"] < 0.9
