"""Alternating optimisation of a grown tree: each node's question is asked anew, the rest of the tree as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
LossFn = Callable[[Rows, NDArray[Any]], NDArray[np.float64]]
"""What transitions, by their numbers, cost with what is said of each of them."""
LeafFn = Callable[[NDArray[np.intp], int], NDArray[Any]]
"""What each of so many leaves had best say, from the leaf of each transition."""
ENOUGH = 1e-3
"""A pass after one that saved less than this share of the costs is not worth its time."""
TIE = 1e-9
"""What another question has to save more than the one that is asked."""


@dataclass(frozen=True)
class Nodes:
    """A tree as arrays over its nodes, the root first, children after their parents; `feature` is -1 at a leaf.

    The left child is next where the feature is at most `threshold`.
    """

    feature: NDArray[np.intp]
    threshold: NDArray[np.float64]
    left: NDArray[np.intp]
    right: NDArray[np.intp]

    @classmethod
    def of(cls, tree: Any) -> Nodes:
        """What scikit-learn has grown."""
        leaf = tree.children_left < 0
        return cls(
            np.where(leaf, -1, tree.feature),
            tree.threshold.copy(),
            tree.children_left.copy(),
            tree.children_right.copy(),
        )

    @property
    def levels(self) -> NDArray[np.intp]:
        """How deep each node lies."""
        levels = np.zeros(len(self.feature), np.intp)
        for node in np.flatnonzero(self.feature >= 0):
            levels[[self.left[node], self.right[node]]] = levels[node] + 1
        return levels

    def lead(self, x: NDArray[np.float32], start: NDArray[np.intp], steps: int) -> NDArray[np.intp]:
        """The nodes that `[N, F]` come to from those where they start, after at most so many questions."""
        node = start.copy()
        going = np.arange(len(x))
        for _ in range(steps):
            going = going[self.feature[node[going]] >= 0]
            if not len(going):
                break
            at = node[going]
            goes_left = x[going, self.feature[at]] <= self.threshold[at]
            node[going] = np.where(goes_left, self.left[at], self.right[at])
        return node


def improve_splits(
    nodes: Nodes, x: NDArray[np.float32], costs: LossFn, says: LeafFn, passes: int, min_samples: int
) -> Nodes:
    """Lower what a tree's leaves cost, which a tree that grows from the root does not see when it asks.

    In a pass, from the deepest nodes to the root, each node takes the feature and the threshold by which its
    transitions cost least, given what the leaves below it say (Carreira-Perpinan and Tavallali 2018, NeurIPS 31). No
    pass makes the total larger. Each takes as long as growing did. At the end no leaf has fewer than `min_samples`.

    Args:
        nodes: of the tree.
        x: what is compared, `[N, F]`.
        costs, says: of what the leaves say.
        passes: at most so many.
        min_samples: transitions in a leaf.
    """
    order = [np.argsort(column, kind="stable").astype(np.int32) for column in x.T]
    root, every = np.zeros(len(x), np.intp), np.arange(len(x))
    levels = nodes.levels
    deepest = int(levels.max())
    before = np.inf
    for _ in range(passes):
        leaf = nodes.lead(x, root, deepest)
        said = says(leaf, len(levels))
        total = float(costs(every, said[leaf]).sum())
        if before - total <= ENOUGH * total:
            break
        before = total
        for level in range(deepest - 1, -1, -1):
            at = nodes.lead(x, root, level)
            rows = np.flatnonzero((levels[at] == level) & (nodes.feature[at] >= 0))
            left, right = (
                costs(rows, said[nodes.lead(x[rows], child[at[rows]], deepest)]) for child in (nodes.left, nodes.right)
            )
            nodes = _asked_anew(nodes, x, order, rows, at[rows], right - left, min_samples)
    return _pruned(nodes, np.bincount(nodes.lead(x, root, deepest), minlength=len(levels)), min_samples)


def _pruned(nodes: Nodes, leaves: NDArray[np.intp], min_samples: int) -> Nodes:
    """Without the questions to which fewer answer one way, since the nodes above ask anew after those below.

    Args:
        nodes: of the tree.
        leaves: how many come to each leaf.
        min_samples: that have to.
    """
    count = leaves.copy()
    for node in np.flatnonzero(nodes.feature >= 0)[::-1]:
        count[node] = count[nodes.left[node]] + count[nodes.right[node]]

    def worth_asking(node: int) -> int:
        while nodes.feature[node] >= 0:
            one, other = int(nodes.left[node]), int(nodes.right[node])
            if min(count[one], count[other]) >= min_samples:
                break
            node = one if count[one] > count[other] else other
        return node

    kept, left, right = [worth_asking(0)], [], []
    for node in kept:  # to which its children are added
        is_leaf = nodes.feature[node] < 0
        left.append(-1 if is_leaf else len(kept))
        right.append(-1 if is_leaf else len(kept) + 1)
        if not is_leaf:
            kept += [worth_asking(int(nodes.left[node])), worth_asking(int(nodes.right[node]))]
    return Nodes(nodes.feature[kept], nodes.threshold[kept], np.array(left), np.array(right))


def _asked_anew(
    nodes: Nodes,
    x: NDArray[np.float32],
    order: list[NDArray[np.int32]],
    rows: Rows,
    at: NDArray[np.intp],
    saves: NDArray[np.float64],
    min_samples: int,
) -> Nodes:
    """The best questions of the nodes `at` which `rows` are; `saves` is what going left rather than right does."""
    asking, number, count = np.unique(at, return_inverse=True, return_counts=True)
    first = np.cumsum(count) - count
    # The number of the node at which a row is, one too many where it is at none; small integers are sorted by radix.
    which: NDArray[Any] = np.full(len(x), len(asking), np.uint16 if len(asking) < 1 << 16 else np.int64)
    which[rows] = number
    gain = np.zeros(len(x))
    gain[rows] = saves
    goes_left = x[rows, nodes.feature[at]] <= nodes.threshold[at]
    best = np.bincount(number, np.where(goes_left, saves, 0.0), len(asking)) + TIE
    on_left = np.arange(len(rows)) - np.repeat(first, count) + 1
    enough = (on_left >= min_samples) & (np.repeat(count, count) - on_left >= min_samples)
    feature, threshold = nodes.feature.copy(), nodes.threshold.copy()
    for column, rising in enumerate(order):
        # By node, and within each node rising.
        here = rising[which[rising] < len(asking)]
        here = here[np.argsort(which[here], kind="stable")]
        value = x[here, column]
        between = enough & np.append(value[1:] > value[:-1], False)
        saved = np.cumsum(gain[here])
        saved -= np.repeat(saved[first] - gain[here[first]], count)
        saved = np.where(between, saved, -np.inf)
        most = np.maximum.reduceat(saved, first)
        better = most > best
        places = np.flatnonzero((saved == np.repeat(most, count)) & np.repeat(better, count))
        places = places[np.unique(which[here[places]], return_index=True)[1]]
        best[better] = most[better]
        feature[asking[better]] = column
        # Doubles have room between any two floats.
        threshold[asking[better]] = (value[places].astype(np.float64) + value[places + 1]) / 2
    return dataclasses.replace(nodes, feature=feature, threshold=threshold)
