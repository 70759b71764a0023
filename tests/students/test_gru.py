"""Recurrent students: whole episodes, window after window."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.data.dataset import Dataset
from rldistill.data.sequences import windows
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import play
from rldistill.io.atomic import read_jsonl
from rldistill.losses import ForwardKL
from rldistill.losses.objective import Term, total_loss
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Gru, Mlp
from rldistill.students.gru import GruPolicy

from ..conftest import CARTPOLE

BLIND = EnvConfig("CartPole-v1", views=Views(student=(Wrapper("MaskVelocity"),)))


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_every_step_comes_once_and_in_its_order(dataset: Dataset, length: int, lanes: int, shuffled: bool) -> None:
    rows = np.arange(len(dataset))
    rng = np.random.default_rng(0) if shuffled else None
    # The labels hold the place of each step.
    columns = dataset.columns
    places = {name: columns[key].astype(np.float32) for name, key in (("reward", "episode"), ("return_to_go", "step"))}
    dataset = dataclasses.replace(dataset, columns=columns | places)
    seen, began, padded = [], 0, 0
    last: dict[int, tuple[int, int]] = {}
    for window in windows(dataset, rows, length, lanes, rng):
        episode, step = window.batch.reward.numpy(), window.batch.return_to_go.numpy()
        padded += int((window.batch.weight == 0).sum())
        for t, lane in np.argwhere(window.batch.weight.numpy() > 0):
            at = int(episode[t, lane]), int(step[t, lane])
            begins = bool(window.starts[t, lane])
            assert begins == (last.get(lane, (-1, 0))[0] != at[0])
            assert begins or last[lane] == (at[0], at[1] - 1)
            last[lane] = at
            began += begins
            seen.append(at)
    assert sorted(seen) == sorted(zip(columns["episode"][rows].tolist(), columns["step"][rows].tolist(), strict=True))
    assert began == len(set(columns["episode"][rows]))
    assert (padded > 0) == (lanes > 1)  # episodes of these lengths never fill two lanes evenly


def test_padding_does_not_count_in_the_loss(dataset: Dataset) -> None:
    terms = (Term(ForwardKL(1.0)),)
    padded = [w.batch for w in windows(dataset, np.arange(len(dataset)), 40, 5) if (w.batch.weight == 0).any()]
    assert padded
    for batch in padded:
        params = torch.randn_like(batch.teacher.params)
        loss = total_loss(terms, PolicyOutput(dataset.spec.head, params), batch, 1.0)
        params[batch.weight == 0] = 100 * torch.randn_like(params[batch.weight == 0])
        torch.testing.assert_close(total_loss(terms, PolicyOutput(dataset.spec.head, params), batch, 1.0), loss)
        is_step = batch.weight > 0
        steps = PolicyOutput(dataset.spec.head, params[is_step])
        labels = PolicyOutput(dataset.spec.head, batch.teacher.params[is_step])
        alone = dataclasses.replace(batch, teacher=labels, weight=batch.weight[is_step], reward=batch.reward[is_step])
        torch.testing.assert_close(total_loss(terms, steps, alone, 1.0), loss)


def test_unrolling_is_stepping(dataset: Dataset) -> None:
    torch.manual_seed(0)
    policy = Gru(7, (5,)).build(dataset.spec)
    assert isinstance(policy, GruPolicy)
    obs, starts = torch.randn(6, 3, 4), torch.zeros(6, 3, dtype=torch.bool)
    starts[0] = True
    starts[4, 1] = True
    whole, end = policy.unroll(obs, starts, torch.randn(3, 7))
    state = policy.initial_state(3)
    assert state is not None
    for step in range(6):
        if step == 4:
            state = state.index_fill(0, torch.tensor([1]), 0.0)
        output, state = policy(obs[step], state)
        assert state is not None
        torch.testing.assert_close(whole.params[step], output.params)
    torch.testing.assert_close(end, state)


def test_a_gru_recovers_hidden_velocities(teacher: NetworkPolicy, tmp_path: Path) -> None:
    data = collect(BLIND, teacher, CollectConfig(steps=8_000, epsilon=0.3), tmp_path / "data")
    config = DistillConfig(epochs=15, batch_size=64, learning_rate=3e-3, patience=0)
    loss = {}
    for name, student in (("gru", Gru(32, (32,), window=16)), ("mlp", Mlp((32, 32)))):
        distill(data, student, config, tmp_path / name)
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")
        loss[name] = min(row["heldout_loss"] for row in rows)
    assert loss["gru"] < 0.9 * loss["mlp"]


def test_a_gru_plays_and_collects_for_a_teacher(dataset: Dataset, tmp_path: Path) -> None:
    whole = distill(dataset, Gru(8, (8,), window=8), DistillConfig(epochs=3, batch_size=64), tmp_path / "whole")
    assert play(CARTPOLE, whole, 2).lengths.min() > 1
    student_data = collect(
        CARTPOLE,
        Mlp((4,)).build(spec_from_env(CARTPOLE)),
        CollectConfig(steps=128, beta=0.0),
        tmp_path / "data",
        student=whole,
    )
    assert len(student_data) == 128


@pytest.mark.parametrize("wrong", [{"size": 0}, {"window": 0}, {"channels": (4,)}, {"activation": "rel"}])
def test_invalid_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Gru(**wrong)  # type: ignore[arg-type]
