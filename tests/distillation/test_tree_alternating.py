"""Alternating optimization of trees, against every possible split."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from rldistill.distillation.tree_alternating import LeafFn, LossFn, Nodes, improve_splits


def random_data(seed: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Entries of few values, so that there are ties, and what each of three actions loss_fn."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, (rows, 3)).astype(np.float32), rng.random((rows, 3))


def loss_of_table(table: NDArray[np.float64]) -> tuple[LossFn, LeafFn]:
    def leaf_fn(leaf: NDArray[np.intp], count: int) -> NDArray[Any]:
        return np.asarray(np.stack([np.bincount(leaf, column, count) for column in table.T], 1).argmin(1))

    return (lambda rows, choices: table[rows, choices]), leaf_fn


def greedy_tree(x: NDArray[np.float32], table: NDArray[np.float64], depth: int, min_samples: int = 1) -> Nodes:
    tree = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=min_samples, random_state=0)
    return Nodes.from_sklearn(tree.fit(x, table.argmin(1)).tree_)


def total(nodes: Nodes, x: NDArray[np.float32], table: NDArray[np.float64]) -> float:
    loss_fn, leaf_fn = loss_of_table(table)
    leaf = nodes.descend(x, np.zeros(len(x), np.intp), 9)
    return float(loss_fn(np.arange(len(x)), leaf_fn(leaf, len(nodes.feature))[leaf]).sum())


def test_by_hand() -> None:
    # Of four states at 0, 1, 2 and 3 the first three want action 0, the last 1: the question has to move to 2.5.
    nodes = Nodes(np.array([0, -1, -1]), np.array([1.5, 0, 0]), np.array([1, -1, -1]), np.array([2, -1, -1]))
    x, table = np.arange(4, dtype=np.float32)[:, None], np.array([[0, 1], [0, 1], [0, 1], [5, 0.0]])
    refined = improve_splits(nodes, x, *loss_of_table(table), passes=1, min_samples=1)
    assert refined.threshold[0] == 2.5
    assert refined.feature.tolist() == [0, -1, -1]
    # With two on either side there is none better.
    assert improve_splits(nodes, x, *loss_of_table(table), passes=1, min_samples=2).threshold[0] == 1.5


@given(st.integers(0, 1_000), st.integers(6, 60), st.integers(1, 3))
def test_a_single_split_is_the_best_of_all(seed: int, rows: int, min_samples: int) -> None:
    x, table = random_data(seed, rows)
    nodes = greedy_tree(x, table, 1, min_samples)
    if nodes.feature[0] < 0:
        return
    loss_fn, leaf_fn = loss_of_table(table)
    goes_left = x[:, nodes.feature[0]] <= nodes.threshold[0]
    choices = leaf_fn(np.where(goes_left, nodes.left[0], nodes.right[0]), 3)[[nodes.left[0], nodes.right[0]]]
    every = [goes_left] + [x[:, f] <= v for f in range(3) for v in range(4)]
    allowed = [
        split for number, split in enumerate(every) if not number or min_samples <= split.sum() <= rows - min_samples
    ]
    cheapest = min(np.where(split, table[:, choices[0]], table[:, choices[1]]).sum() for split in allowed)
    refined = improve_splits(nodes, x, loss_fn, leaf_fn, 1, min_samples)
    now = x[:, refined.feature[0]] <= refined.threshold[0]
    np.testing.assert_allclose(np.where(now, table[:, choices[0]], table[:, choices[1]]).sum(), cheapest, atol=1e-6)


@given(st.integers(0, 1_000), st.integers(10, 200), st.integers(1, 5))
def test_no_pass_costs_more(seed: int, rows: int, depth: int) -> None:
    x, table = random_data(seed, rows)
    nodes = greedy_tree(x, table, depth)
    before = total(nodes, x, table)
    for passes in range(1, 4):
        nodes = improve_splits(greedy_tree(x, table, depth), x, *loss_of_table(table), passes, 1)
        after = total(nodes, x, table)
        assert after <= before + 1e-6
        before = after


@given(st.integers(0, 1_000), st.integers(30, 300), st.integers(1, 6))
def test_no_leaf_is_too_small(seed: int, rows: int, min_samples: int) -> None:
    x, table = random_data(seed, rows)
    nodes = improve_splits(greedy_tree(x, table, 5, min_samples), x, *loss_of_table(table), 3, min_samples)
    count = np.bincount(nodes.descend(x, np.zeros(len(x), np.intp), 5), minlength=len(nodes.feature))
    assert count[nodes.feature < 0].min() >= min_samples
    inner = np.flatnonzero(nodes.feature >= 0)
    assert sorted([*nodes.left[inner], *nodes.right[inner]]) == [*range(1, len(nodes.feature))]
    assert (nodes.left[inner] > inner).all()
