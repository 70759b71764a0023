"""Datasets of many agents, with a row for each agent instead of one for all."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.entries import join_tensors, split_parts
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import ALIVE
from rldistill.data.blocks import Columns
from rldistill.data.dataset import Dataset, renumbered
from rldistill.policies.joint import AgentView, agent_views

ROWS_PER_BATCH = 1 << 14


def agent_dataset(dataset: Dataset, views: Sequence[AgentView]) -> Dataset:
    """Return the transitions of some agents with equal spaces: those of the first agent, then those of the next.

    The labels of an agent are the marginal of the joint labels. The column `agent` is its number among all agents.
    Steps after an agent has left are left out.
    """
    spec, joint = views[0].spec, dataset.spec
    spec = dataclasses.replace(spec, head=views[0].head_part(joint.head))
    obs = np.concatenate([_own_obs(dataset, view) for view in views])
    numbers = {agent.name: number for number, agent in enumerate(joint.agents)}
    parts: list[Columns] = []
    for number, view in enumerate(views):
        alive = _alive(dataset, numbers[view.agent.name])
        columns = {name: column[alive] for name, column in dataset.columns.items()}
        columns["action"] = view.action(torch.from_numpy(columns["action"])).numpy()
        for name in ("teacher", "next_teacher"):
            columns[name] = np.ascontiguousarray(columns[name][:, view.param_columns(joint.head)])
        columns["episode"] = columns["episode"] * len(joint.agents) + numbers[view.agent.name]
        columns["agent"] = np.full(len(columns["action"]), numbers[view.agent.name], np.int16)
        columns["row"] = dataset.row[alive] + number * len(dataset.obs)
        columns["next_row"] = dataset.next_row[alive] + number * len(dataset.obs)
        columns["heldout"] = dataset.heldout[alive]
        parts.append(columns)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["episode"] = renumbered(columns["episode"])
    row, next_row, heldout = (columns.pop(name) for name in ("row", "next_row", "heldout"))
    dataset = dataclasses.replace(dataset, spec=spec, columns=columns, obs=obs)
    return dataclasses.replace(dataset, row=row, next_row=next_row, heldout=heldout)


def agent_table(dataset: Dataset) -> Columns:
    """Return a table with a row for each agent and step.

    Its columns are agent, agent_type, team, alive, episode, step, reward, actor, action and teacher_action; `team` is
    True for agents of the team whose reward it is, and `alive` is False after an agent has left.
    """
    tables: list[Columns] = []
    for number, view in enumerate(agent_views(dataset.spec)):
        count = len(dataset)
        action = view.action(torch.from_numpy(dataset.columns["action"])).numpy()
        label = PolicyOutput(dataset.spec.head, torch.from_numpy(dataset.columns["teacher"])).mode()
        tables.append(
            {
                "agent": np.full(count, view.agent.name),
                "agent_type": np.full(count, view.agent.type),
                "team": np.full(count, view.agent.team),
                "alive": _alive(dataset, number),
                **{name: dataset.columns[name] for name in ("episode", "step", "reward", "actor")},
                "action": _cells(action),
                "teacher_action": _cells(view.action(label).numpy()),
            }
        )
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _cells(actions: NDArray[Any]) -> NDArray[Any]:
    """Return one value for each row, an array as an object: agents may have actions of different lengths."""
    if actions.ndim == 1:
        return actions
    cells = np.empty(len(actions), object)
    for row, action in enumerate(actions):  # NumPy would try to broadcast a list of them
        cells[row] = action
    return cells


def _own_obs(dataset: Dataset, view: AgentView) -> NDArray[Any]:
    """Return the agent's own observations for all stored ones, `[M, ...]`."""
    parts = []
    for start in range(0, len(dataset.obs), ROWS_PER_BATCH):
        joint = torch.from_numpy(np.ascontiguousarray(dataset.obs[start : start + ROWS_PER_BATCH]))
        own = view.observe(split_parts(joint, dataset.spec))
        if view.spec.parts:
            parts.append(join_tensors(own, view.spec).numpy())
        else:
            (only,) = own.values()
            parts.append(only.to(getattr(torch, view.spec.obs_dtype)).numpy())
    return np.concatenate(parts)


def _alive(dataset: Dataset, number: int) -> NDArray[np.bool_]:
    """Return True for the transitions at whose start an agent is there."""
    if ALIVE not in dataset.spec.entries:
        return np.ones(len(dataset), bool)
    entry = split_parts(torch.from_numpy(np.asarray(dataset.obs)), dataset.spec)[ALIVE]
    return np.asarray(entry[:, number].numpy()[dataset.row] > 0)
