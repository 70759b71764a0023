"""Alternating optimization of trees, against every possible split."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from rldistill.distillation.tree_alternating import LeafFn, LossFn, Nodes, improve_splits


def lessons(seed: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Entries of few values, so that there are ties, and what each of three actions costs."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, (rows, 3)).astype(np.float32), rng.random((rows, 3))


def said_by_table(table: NDArray[np.float64]) -> tuple[LossFn, LeafFn]:
    def says(leaf: NDArray[np.intp], count: int) -> NDArray[Any]:
        return np.asarray(np.stack([np.bincount(leaf, column, count) for column in table.T], 1).argmin(1))

    return (lambda rows, said: table[rows, said]), says


def grown(x: NDArray[np.float32], table: NDArray[np.float64], depth: int, least: int = 1) -> Nodes:
    tree = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=least, random_state=0)
    return Nodes.from_sklearn(tree.fit(x, table.argmin(1)).tree_)


def total(nodes: Nodes, x: NDArray[np.float32], table: NDArray[np.float64]) -> float:
    costs, says = said_by_table(table)
    leaf = nodes.descend(x, np.zeros(len(x), np.intp), 9)
    return float(costs(np.arange(len(x)), says(leaf, len(nodes.feature))[leaf]).sum())


def test_by_hand() -> None:
    # Of four states at 0, 1, 2 and 3 the first three want action 0, the last 1: the question has to move to 2.5.
    nodes = Nodes(np.array([0, -1, -1]), np.array([1.5, 0, 0]), np.array([1, -1, -1]), np.array([2, -1, -1]))
    x, table = np.arange(4, dtype=np.float32)[:, None], np.array([[0, 1], [0, 1], [0, 1], [5, 0.0]])
    refined = improve_splits(nodes, x, *said_by_table(table), passes=1, min_samples=1)
    assert refined.threshold[0] == 2.5
    assert refined.feature.tolist() == [0, -1, -1]
    # With two on either side there is none better.
    assert improve_splits(nodes, x, *said_by_table(table), passes=1, min_samples=2).threshold[0] == 1.5


@given(st.integers(0, 1_000), st.integers(6, 60), st.integers(1, 3))
def test_of_one_question_every_other_is_tried(seed: int, rows: int, least: int) -> None:
    x, table = lessons(seed, rows)
    nodes = grown(x, table, 1, least)
    if nodes.feature[0] < 0:
        return
    costs, says = said_by_table(table)
    goes_left = x[:, nodes.feature[0]] <= nodes.threshold[0]
    said = says(np.where(goes_left, nodes.left[0], nodes.right[0]), 3)[[nodes.left[0], nodes.right[0]]]
    every = [goes_left] + [x[:, f] <= v for f in range(3) for v in range(4)]
    allowed = [asked for number, asked in enumerate(every) if not number or least <= asked.sum() <= rows - least]
    cheapest = min(np.where(asked, table[:, said[0]], table[:, said[1]]).sum() for asked in allowed)
    refined = improve_splits(nodes, x, costs, says, 1, least)
    now = x[:, refined.feature[0]] <= refined.threshold[0]
    np.testing.assert_allclose(np.where(now, table[:, said[0]], table[:, said[1]]).sum(), cheapest, atol=1e-6)


@given(st.integers(0, 1_000), st.integers(10, 200), st.integers(1, 5))
def test_no_pass_costs_more(seed: int, rows: int, depth: int) -> None:
    x, table = lessons(seed, rows)
    nodes = grown(x, table, depth)
    before = total(nodes, x, table)
    for passes in range(1, 4):
        nodes = improve_splits(grown(x, table, depth), x, *said_by_table(table), passes, 1)
        after = total(nodes, x, table)
        assert after <= before + 1e-6
        before = after


@given(st.integers(0, 1_000), st.integers(30, 300), st.integers(1, 6))
def test_no_leaf_is_too_small(seed: int, rows: int, least: int) -> None:
    x, table = lessons(seed, rows)
    nodes = improve_splits(grown(x, table, 5, least), x, *said_by_table(table), 3, least)
    count = np.bincount(nodes.descend(x, np.zeros(len(x), np.intp), 5), minlength=len(nodes.feature))
    assert count[nodes.feature < 0].min() >= least
    inner = np.flatnonzero(nodes.feature >= 0)
    assert sorted([*nodes.left[inner], *nodes.right[inner]]) == [*range(1, len(nodes.feature))]
    assert (nodes.left[inner] > inner).all()
