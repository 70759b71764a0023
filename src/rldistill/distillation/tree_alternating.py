"""Alternating optimization of a fitted tree: each split is chosen anew, given all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]
LossFn = Callable[[Rows, NDArray[Any]], NDArray[np.float64]]
"""Loss of transitions, by their rows, with the choices of their leaves."""
LeafFn = Callable[[NDArray[np.intp], int], NDArray[Any]]
"""Best choice of each leaf, from the leaf of each transition and the number of nodes."""
MIN_IMPROVEMENT = 1e-3
"""Share of the loss by which a pass has to lower it, so that another pass follows."""
TIE_MARGIN = 1e-9
"""Least gain of a new split over the present one."""


@dataclass(frozen=True)
class Nodes:
    """Tree as arrays over its nodes, the root first, children after their parents; `feature` is -1 at a leaf.

    The left child is next where the feature is at most `threshold`.
    """

    feature: NDArray[np.intp]
    threshold: NDArray[np.float64]
    left: NDArray[np.intp]
    right: NDArray[np.intp]

    @classmethod
    def from_sklearn(cls, tree: Any) -> Nodes:
        """Return the nodes of scikit-learn's `tree_`."""
        leaf = tree.children_left < 0
        feature = np.where(leaf, -1, tree.feature)
        return cls(feature, tree.threshold.copy(), tree.children_left.copy(), tree.children_right.copy())

    def descend(self, x: NDArray[np.float32], start: NDArray[np.intp], steps: int) -> NDArray[np.intp]:
        """Return the nodes that features `[N, F]` reach from the nodes `start` after at most `steps` splits."""
        node = start.copy()
        moving = np.arange(len(x))
        for _ in range(steps):
            moving = moving[self.feature[node[moving]] >= 0]
            if not len(moving):
                break
            split = node[moving]
            goes_left = x[moving, self.feature[split]] <= self.threshold[split]
            node[moving] = np.where(goes_left, self.left[split], self.right[split])
        return node

    def leaves(self, x: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the leaves that features `[N, F]` reach."""
        return self.descend(x, np.zeros(len(x), np.intp), len(self.feature))


def improve_splits(
    nodes: Nodes, x: NDArray[np.float32], loss_fn: LossFn, leaf_fn: LeafFn, passes: int, min_samples: int
) -> Nodes:
    """Lower the loss of a tree's leaves, which a greedy fit from the root does not minimize.

    In a pass, from the deepest nodes to the root, each node takes the feature and the threshold with the lowest loss
    of its transitions, given the leaves below it (Carreira-Perpinan and Tavallali 2018, NeurIPS 31). No pass raises the
    total loss. Each takes about as long as the greedy fit. A leaf of the result has at least `min_samples` of the
    transitions with features `x`, `[N, F]`.
    """
    order = [np.argsort(column, kind="stable").astype(np.int32) for column in x.T]
    root, rows_all = np.zeros(len(x), np.intp), np.arange(len(x))
    levels = np.zeros(len(nodes.feature), np.intp)
    for parent in np.flatnonzero(nodes.feature >= 0):
        levels[[nodes.left[parent], nodes.right[parent]]] = levels[parent] + 1
    depth = int(levels.max())
    previous = np.inf
    for _ in range(passes):
        leaf = nodes.leaves(x)
        choices = leaf_fn(leaf, len(levels))
        total = float(loss_fn(rows_all, choices[leaf]).sum())
        if previous - total <= MIN_IMPROVEMENT * total:
            break
        previous = total
        for level in range(depth - 1, -1, -1):
            node = nodes.descend(x, root, level)
            rows = np.flatnonzero((levels[node] == level) & (nodes.feature[node] >= 0))
            left_loss, right_loss = (
                loss_fn(rows, choices[nodes.descend(x[rows], child[node[rows]], depth)])
                for child in (nodes.left, nodes.right)
            )
            nodes = _best_splits(nodes, (x, order), rows, node[rows], right_loss - left_loss, min_samples)
    return _prune(nodes, np.bincount(nodes.leaves(x), minlength=len(levels)), min_samples)


def _prune(nodes: Nodes, leaf_counts: NDArray[np.intp], min_samples: int) -> Nodes:
    """Remove splits with fewer transitions in a branch, which appear since a node is split after the nodes below it."""
    count = leaf_counts.copy()
    for node in np.flatnonzero(nodes.feature >= 0)[::-1]:
        count[node] = count[nodes.left[node]] + count[nodes.right[node]]

    def first_kept(node: int) -> int:
        while nodes.feature[node] >= 0:
            left, right = int(nodes.left[node]), int(nodes.right[node])
            if min(count[left], count[right]) >= min_samples:
                break
            node = left if count[left] > count[right] else right
        return node

    kept, left, right = [first_kept(0)], [], []
    for node in kept:  # to which its children are appended
        is_leaf = nodes.feature[node] < 0
        left.append(-1 if is_leaf else len(kept))
        right.append(-1 if is_leaf else len(kept) + 1)
        if not is_leaf:
            kept += [first_kept(int(nodes.left[node])), first_kept(int(nodes.right[node]))]
    return Nodes(nodes.feature[kept], nodes.threshold[kept], np.array(left), np.array(right))


def _best_splits(
    nodes: Nodes,
    columns: tuple[NDArray[np.float32], list[NDArray[np.int32]]],
    rows: Rows,
    node: NDArray[np.intp],
    gain_left: NDArray[np.float64],
    min_samples: int,
) -> Nodes:
    """Choose the best splits of the nodes of one level.

    `columns` are the features `[N, F]` and, for each, the rows in ascending order; `rows` reach the level at the nodes
    `node`, and `gain_left` is their loss on the right less that on the left.
    """
    x, order = columns
    splits, number, count = np.unique(node, return_inverse=True, return_counts=True)
    first = np.cumsum(count) - count
    # Number of the split of each row, one too many for rows elsewhere; small integers are sorted by radix.
    group: NDArray[Any] = np.full(len(x), len(splits), np.uint16 if len(splits) < 1 << 16 else np.int64)
    group[rows] = number
    gain = np.zeros(len(x))
    gain[rows] = gain_left
    goes_left = x[rows, nodes.feature[node]] <= nodes.threshold[node]
    best = np.bincount(number, np.where(goes_left, gain_left, 0.0), len(splits)) + TIE_MARGIN
    num_left = np.arange(len(rows)) - np.repeat(first, count) + 1
    large_enough = (num_left >= min_samples) & (np.repeat(count, count) - num_left >= min_samples)
    feature, threshold = nodes.feature.copy(), nodes.threshold.copy()
    for column, ascending in enumerate(order):
        # By split, and ascending within each.
        index = ascending[group[ascending] < len(splits)]
        index = index[np.argsort(group[index], kind="stable")]
        value = x[index, column]
        candidate = large_enough & np.append(value[1:] > value[:-1], False)
        total = np.cumsum(gain[index])
        total -= np.repeat(total[first] - gain[index[first]], count)
        total = np.where(candidate, total, -np.inf)
        highest = np.maximum.reduceat(total, first)
        better = highest > best
        at = np.flatnonzero((total == np.repeat(highest, count)) & np.repeat(better, count))
        at = at[np.unique(group[index[at]], return_index=True)[1]]
        best[better] = highest[better]
        feature[splits[better]] = column
        # Doubles have room between any two floats.
        threshold[splits[better]] = (value[at].astype(np.float64) + value[at + 1]) / 2
    return dataclasses.replace(nodes, feature=feature, threshold=threshold)
