"""Condensed data: the few states of a dataset that cover all others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError
from rldistill.core.heads import ILLEGAL, ActionHead, BernoulliHead
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import FINAL, HELDOUT, LEAD, STEP, TEACHER_OBS, Block, BlockKey, Columns
from rldistill.data.dataset import Dataset, spread
from rldistill.data.manifest import CONDENSE, Condensed, Manifest, Round, discount, store_block
from rldistill.data.merge import open_derived
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.encoding import encode

MIN_STD = 1e-6


def condense(
    source: Path | str,
    folder: Path | str,
    keep: int,
    *,
    weighted: bool = False,
    gamma: float | None = None,
    memory_gb: float = np.inf,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> Dataset:
    """Write a dataset of `keep` training steps of `source` and at most as many of its held-out steps.

    The training steps are k-centers of all, chosen by `k_centers` among the points of `state_points`. They are in the
    order of their choice, so that the first k of them are those of `keep=k`. The held-out steps are evenly spread over
    those of `source`. Each step stands alone: its return-to-go and its side of the split are stored.
    Readers of whole episodes (recurrent students, `bellman_target`, exports, imitation) refuse the dataset.

    Args:
        source: Folder of the dataset, which stays as it is.
        folder: Folder of the new dataset.
        keep: Number of training steps.
        weighted: Weigh the states with `state_weights`; equal weights covered better (docs/condense.md).
        gamma: Discount of the returns-to-go; by default 0.99, or that of a `source` which is condensed itself.
        memory_gb: Limit for observations in memory.
        mode: "new" refuses a folder that exists, "overwrite" discards it.
        progress: True shows progress on stderr; or an object with `update(done, total, score)`.

    Raises:
        ConfigError: `source` has fewer than `keep` training steps, or `folder` is `source`, or it exists.
    """
    source, folder = Path(source), Path(folder)
    before = Manifest.read(source)
    gamma = discount([before], gamma)
    data = Dataset.read([source], gamma, memory_gb=memory_gb)
    train, heldout = np.flatnonzero(~data.heldout), np.flatnonzero(data.heldout)
    if not 1 <= keep <= len(train):
        raise ConfigError(f"keep: expected 1 to {len(train)}, the training steps of {source}, found {keep}.")
    choice = Condensed(keep=keep, weighted=weighted, gamma=gamma, steps=before.num_steps, source=before.digest)
    teachers = {round.teacher for round in before.rounds.values()}
    teacher = teachers.pop() if len(teachers) == 1 else None
    round = Round(envs_per_stream=1, teacher=teacher, inputs={CONDENSE: choice.model_dump()})
    manifest = Manifest.new(folder, before, {0: round})
    with open_derived(folder, [source], mode), stage_progress(progress, "condense", "states") as report:
        weights = np.ones(len(train), np.float32)
        if weighted:
            weights = state_weights(data.spec.head, torch.from_numpy(data.columns["teacher"][train])).numpy()
        chosen = k_centers(state_points(data, train), weights, keep, report)
        rows = np.concatenate([train[chosen], spread(heldout, keep)])
        teacher_obs = None if before.teacher_spec is None else before.read_column(TEACHER_OBS)
        columns = isolated_steps(data, rows, teacher_obs)
        manifest.add_blocks([store_block(folder, BlockKey(0, 0, 0), Block(columns, end_hash=""))])
    return Dataset.read([folder], gamma, memory_gb=memory_gb)


def k_centers(
    points: NDArray[np.float32], weights: NDArray[np.float32], count: int, progress: Progress | None = None
) -> NDArray[np.int64]:
    """Return the rows of `count` weighted k-centers of the points `[N, D]`, in the order of their choice.

    The first center is the heaviest point, each further one argmax_i w_i min_c |x_i - x_c|, the farthest from those
    before (Gonzalez 1985; as a core-set, Sener 2018, arXiv 1708.00489). With equal weights, the largest distance to a
    center is at most twice the smallest possible one, with any weights at most three times (Dyer & Frieze 1985). Of
    equal points, one is chosen before all others are.
    """
    chosen = np.empty(count, np.int64)
    distance = np.full(len(points), np.inf)
    priority = np.asarray(weights, np.float64)
    for number in range(count):
        chosen[number] = center = int(priority.argmax())
        difference = points - points[center]
        distance = np.minimum(distance, np.sqrt(np.einsum("nd,nd->n", difference, difference, dtype=np.float64)))
        distance[center] = -1  # after all others, also those at its place and those of weight 0
        priority = np.where(distance < 0, -1.0, weights * distance)
        if progress is not None:
            progress.update(number + 1, count)
    return chosen


def state_points(data: Dataset, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a point for each of some states, `[N, D]`.

    These are the features of the teacher, if they are stored; for pictures its params, legal actions only; else the
    observation, standardized.
    """
    if "features" in data.columns:
        return np.asarray(data.columns["features"][rows], np.float32)
    spec = data.spec
    if any(part.is_picture for part in spec.entries.values()):
        params = data.columns["teacher"][rows]
        return np.where(np.abs(params) >= -ILLEGAL / 2, 0, params).astype(np.float32)
    points = _encoded(data.observations(rows), spec)
    std = points.std(0)
    return np.asarray((points - points.mean(0)) / np.where(std < MIN_STD, 1, std), np.float32)


def _encoded(obs: torch.Tensor, spec: PolicySpec) -> NDArray[np.float32]:
    entries = split_parts(obs, spec) if spec.parts else {"": obs}
    parts = [encode(entries[key], part).float().reshape(len(obs), -1) for key, part in spec.entries.items()]
    return np.asarray(torch.cat(parts, 1).numpy())


def state_weights(head: ActionHead, params: torch.Tensor) -> torch.Tensor:
    """Return the difference of the best and the worst legal action, `[N]`, in value or else in probability.

    For Q values it is the weight of VIPER (Bastani 2018, arXiv 1805.08328), as in `GapWeightedNLL`. Probabilities are
    those of whole actions, max_a p(a) - min_a p(a). Continuous actions have no worst one: 1.
    """
    if not head.discrete:
        return torch.ones(len(params))
    forced = params.abs() >= -ILLEGAL / 2
    best, worst = head.raw_mode(params), head.raw_mode(-params.masked_fill(forced, torch.inf))
    if isinstance(head, BernoulliHead):  # the only legal value of a bit
        worst = torch.where(forced, best, worst)
    if head.action_values:
        return params.gather(-1, best[:, None]).sub(params.gather(-1, worst[:, None])).squeeze(-1)
    return head.log_prob(params, best).exp() - head.log_prob(params, worst).exp()


def isolated_steps(data: Dataset, rows: NDArray[np.int64], teacher_obs: NDArray[np.generic] | None) -> Columns:
    """Return the columns of a block in which each of the steps `rows` stands alone.

    A step follows the older frames of its stack, and its next observation is a row of its own at the end.
    """
    stack = data.spec.frames.stack if data.spec.frames else 1
    steps = data.columns["step"][rows]
    lead = np.minimum(stack - 1, steps)
    # Row in `data` of each row of the block, and the distance back in its frames.
    owner = np.repeat(rows, lead + 1)
    back = np.concatenate([np.arange(count, -1, -1) for count in lead])
    kind = np.concatenate([np.where(back == 0, STEP, LEAD), np.full(len(rows), FINAL)]).astype(np.int8)
    obs_rows = np.concatenate([data.row[owner] - back, data.next_row[rows]])
    source = np.concatenate([owner, rows])
    columns = {name: column[source] for name, column in (data.columns | {HELDOUT: data.heldout}).items()}
    for column in columns.values():
        column[kind != STEP] = 0
    columns |= {"obs": data.obs[obs_rows], "kind": kind, "slot": np.zeros(len(kind), np.int16), "ended": kind == STEP}
    if teacher_obs is not None:
        columns[TEACHER_OBS] = teacher_obs[obs_rows]
    return columns
