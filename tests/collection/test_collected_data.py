"""Labels, observations and returns of collected data."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import SpecMismatchError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.envs.make import make_env
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear, Mlp
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE, manifest_bytes, q_spec

pytestmark = pytest.mark.slow


def make_teacher(env: EnvConfig) -> NetworkPolicy:
    torch.manual_seed(1)
    spec = q_spec(env)
    return (Linear() if spec.frames else Mlp((8,))).build(spec).eval()


def test_observations_beyond_the_cap_stay_on_disk_and_are_the_same(tmp_path: Path) -> None:
    config = CollectConfig(steps=400, block_steps=25, epsilon=0.3)
    whole = collect(CARTPOLE, make_teacher(CARTPOLE), config, tmp_path / "whole")
    capped = collect(CARTPOLE, make_teacher(CARTPOLE), dataclasses.replace(config, memory_gb=1e-9), tmp_path / "capped")
    assert isinstance(capped.obs, np.memmap)
    np.testing.assert_array_equal(capped.obs, whole.obs)
    assert manifest_bytes(tmp_path / "capped") == manifest_bytes(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "capped").iterdir()) == ["blocks", "manifest.json"]


def test_labels_are_the_outputs_for_the_stored_observations(dataset: Dataset, teacher: NetworkPolicy) -> None:
    batch = dataset.batch(np.arange(len(dataset)))
    output, _ = teacher(batch.obs)
    torch.testing.assert_close(output.params, batch.teacher.params)


def test_next_labels_stay_within_episodes(tmp_path: Path) -> None:
    data = collect(
        CARTPOLE,
        make_teacher(CARTPOLE),
        CollectConfig(steps=400, num_streams=1, envs_per_stream=2, block_steps=40),
        tmp_path,
    )
    columns = data.columns
    rows = {(e, s): i for i, (e, s) in enumerate(zip(columns["episode"], columns["step"], strict=True))}
    followed = 0
    for (episode, step), row in rows.items():
        after = rows.get((episode, step + 1))
        if after is not None:
            followed += 1
            np.testing.assert_array_equal(columns["next_teacher"][row], columns["teacher"][after])
            assert not columns["terminated"][row]
    assert followed > 300


def test_stacks_of_pong_equal_those_of_the_emulator(tmp_path: Path) -> None:
    env = EnvConfig("ALE/Pong-v5")
    data = collect(
        env,
        make_teacher(env),
        CollectConfig(steps=240, num_streams=1, envs_per_stream=2, block_steps=40, epsilon=0.5),
        tmp_path,
    )
    manifest = Manifest.read(tmp_path)
    from rldistill.envs.seeding import episode_seed

    vector = make_vector_env(env, 2, lambda slot, nth: episode_seed(0, "collect", 0, 0, slot, nth))
    obs = vector.reset()
    actions = [data.columns["action"][start : start + 40] for start in range(0, len(data), 40)]
    for block in range(len(manifest.blocks)):
        for step in range(40):
            rows = np.array([block * 80 + step, block * 80 + 40 + step])
            np.testing.assert_array_equal(data.observations(rows).numpy(), obs)
            obs = vector.step(np.array([actions[2 * block][step], actions[2 * block + 1][step]])).obs
    vector.close()


def test_some_episodes_are_always_for_training(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.data.dataset.HELDOUT_FRACTION", 1.0)
    heldout = collect(CARTPOLE, teacher, CollectConfig(steps=200, epsilon=0.5), tmp_path).heldout
    assert 0 < heldout.mean() < 1


def test_equal_episodes_are_on_the_same_side_of_the_split(dataset: Dataset) -> None:
    assert 0 < dataset.heldout.mean() < 0.5
    sides: dict[bytes, set[bool]] = {}
    for episode in range(dataset.num_episodes):
        rows = dataset.columns["episode"] == episode
        assert len(set(dataset.heldout[rows])) == 1
        sides.setdefault(dataset.columns["action"][rows].tobytes(), set()).add(bool(dataset.heldout[rows][0]))
    assert all(len(side) == 1 for side in sides.values())


def test_returns_to_go_are_discounted_sums_within_an_episode(dataset: Dataset) -> None:
    columns = dataset.columns
    ended = columns["episode"][columns["terminated"]][0]
    rows = np.flatnonzero(columns["episode"] == ended)
    rows = rows[np.argsort(columns["step"][rows])]
    # CartPole pays 1 a step: from k steps before the end, 1 + 0.99 + ... = (1 - 0.99^k) / 0.01.
    left = np.arange(len(rows), 0, -1)
    np.testing.assert_allclose(columns["return_to_go"][rows], (1 - 0.99**left) / 0.01, rtol=1e-5)


def recurrent_teacher() -> NetworkPolicy:
    torch.manual_seed(3)
    return Actor(lstm=(6, 1), hidden=(5,)).build(spec_from_env(CARTPOLE)).eval()


def test_recurrent_state_spans_blocks_and_resets_at_the_end_of_an_episode(tmp_path: Path) -> None:
    teacher = recurrent_teacher()
    config = CollectConfig(steps=320, num_streams=1, envs_per_stream=2, block_steps=20, epsilon=0.3)
    data = collect(CARTPOLE, teacher, config, tmp_path)
    assert data.num_episodes > 4
    for episode in range(data.num_episodes):
        rows = np.flatnonzero(data.columns["episode"] == episode)
        rows = rows[np.argsort(data.columns["step"][rows])]
        state = teacher.initial_state(1)
        for row in rows:
            with torch.no_grad():
                output, state = teacher(data.observations(rows[rows == row]), state)
            np.testing.assert_allclose(output.params[0], data.columns["teacher"][row], atol=1e-5)
        for row, after in itertools.pairwise(rows):
            np.testing.assert_allclose(data.columns["next_teacher"][row], data.columns["teacher"][after], atol=1e-5)


@pytest.mark.parametrize("wrappers", [(), (Wrapper("TimeLimit", {"max_episode_steps": 7}),)], ids=["ended", "cut"])
def test_next_observations_are_stored_also_at_the_end_of_an_episode(
    wrappers: tuple[Wrapper, ...], tmp_path: Path
) -> None:
    env = EnvConfig("CartPole-v1", wrappers=wrappers)
    teacher = Mlp((4,)).build(spec_from_env(env)).eval()
    data = collect(
        env, teacher, CollectConfig(steps=200, num_streams=2, envs_per_stream=2, block_steps=16, epsilon=0.5), tmp_path
    )
    rows = np.arange(len(data))
    obs, after = data.observations(rows), data.next_observations(rows)
    with torch.no_grad():
        np.testing.assert_allclose(teacher(after)[0].params, data.columns["next_teacher"], atol=1e-5)
    alone = make_env(env)
    for row in rows:
        alone.reset(seed=0)
        alone.unwrapped.state = obs[row].numpy().astype(np.float64)
        np.testing.assert_allclose(alone.step(data.columns["action"][row])[0], after[row], atol=1e-5)


def test_next_frames_of_a_game_are_stored(tmp_path: Path) -> None:
    env = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 100})
    teacher = Linear().build(spec_from_env(env)).eval()
    data = collect(
        env, teacher, CollectConfig(steps=160, num_streams=1, envs_per_stream=2, block_steps=30, epsilon=0.5), tmp_path
    )
    rows = np.arange(len(data))
    ended = data.columns["terminated"] | data.columns["truncated"]
    assert 0 < ended.sum() < len(data)
    after = data.next_observations(rows)
    with torch.no_grad():
        np.testing.assert_allclose(teacher(after)[0].params, data.columns["next_teacher"], rtol=1e-3, atol=1e-3)
    order = np.lexsort((data.columns["step"], data.columns["episode"]))
    for row, following in itertools.pairwise(order):
        if data.columns["episode"][row] == data.columns["episode"][following]:
            assert torch.equal(after[row], data.observations(np.array([following]))[0])


class Infinite(gymnasium.ObservationWrapper[Any, Any, Any]):
    def observation(self, observation: Any) -> Any:
        return np.append(observation[:3], np.float32(np.inf))


def test_observations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1", wrappers=(Wrapper(f"{__name__}:Infinite"),))
    with pytest.raises(SpecMismatchError, match=r"^env: CartPole-v1: the observation is NaN, infinite, or beyond"):
        collect(env, FunctionPolicy(lambda obs: 1, spec_from_env(env)), CollectConfig(steps=64), tmp_path)
