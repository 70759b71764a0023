"""Pictures that were recorded with channels last, labelled by networks that take them with channels first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core.entries import split_parts
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.envs.spaces import spec_from_env
from rldistill.students import Linear
from rldistill.teachers.load import load_policy

from ..teachers.sb3.test_zoo_pictures import Pictures

FEW = CollectConfig(steps=24, num_streams=1, envs_per_stream=2, block_steps=8, epsilon=1.0)


@pytest.fixture(autouse=True)
def pictures() -> Iterator[None]:
    gymnasium.register("Pictures-v0", Pictures)
    yield
    gymnasium.registry.pop("Pictures-v0")


@pytest.mark.parametrize("zoo", [False, True], ids=["bare", "zoo"])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a dict"])
def test_labels_are_those_of_the_pictures_turned_round(inside: bool, zoo: bool, tmp_path: Path) -> None:
    env = EnvConfig("Pictures-v0", {"inside": inside})
    model = PPO("MultiInputPolicy" if inside else "CnnPolicy", Pictures(inside), seed=0, n_steps=8)
    model.save(tmp_path / "agent.zip")
    if zoo:
        (tmp_path / "agent").mkdir()
        (tmp_path / "agent" / "args.yml").write_text("env: Pictures-v0")
    collect(env, Linear().build(spec_from_env(env)).eval(), FEW, tmp_path / "first")
    data = relabel(tmp_path / "first", load_policy(tmp_path / "agent.zip"), tmp_path / "other")
    seen = data.observations(np.arange(24))
    raw = {key: entry.numpy() for key, entry in split_parts(seen, data.spec).items()} if inside else seen.numpy()
    obs, _ = model.policy.obs_to_tensor(raw)
    with torch.no_grad():
        expected = model.policy.get_distribution(obs).distribution.logits
    found = torch.from_numpy(data.columns["teacher"]).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_so_are_those_of_the_teachers_own_view(tmp_path: Path) -> None:
    env = EnvConfig("Pictures-v0", views=Views(student=(Wrapper("GrayscaleObservation"),)))
    model = PPO("CnnPolicy", Pictures(), seed=0, n_steps=8)
    model.save(tmp_path / "agent.zip")
    config = dataclasses.replace(FEW, teacher_obs=True)
    collect(env, Linear().build(spec_from_env(env.view_of("teacher"))).eval(), config, tmp_path / "first")
    data = relabel(tmp_path / "first", load_policy(tmp_path / "agent.zip"), tmp_path / "other")
    obs, _ = model.policy.obs_to_tensor(data.columns["teacher_obs"])
    with torch.no_grad():
        expected = model.policy.get_distribution(obs).distribution.logits
    found = torch.from_numpy(data.columns["teacher"]).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
