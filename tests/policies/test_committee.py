"""Committees: the outputs of all members side by side, and a member that acts in each episode."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core.errors import CorruptArtifactError, SpecMismatchError
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import write_json
from rldistill.io.execution import Execution
from rldistill.policies.ensemble import Committee
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Gru, Mlp
from rldistill.teachers.fingerprint import fingerprint

from ..conftest import CARTPOLE, manifest_bytes

CONFIG = CollectConfig(steps=600, num_streams=2, envs_per_stream=3, block_steps=40, epsilon=0.1)


@pytest.fixture(scope="module")
def committee(teacher: NetworkPolicy) -> Committee:
    """Q values, logits, and logits of a recurrent network."""
    torch.manual_seed(3)
    spec = spec_from_env(CARTPOLE)
    return Committee(
        (teacher, Mlp((8,)).build(spec).eval(), Gru(4, (4,)).build(spec).eval()), names=("q", "mlp", "gru")
    )


@pytest.fixture(scope="module")
def data(committee: Committee, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return collect(CARTPOLE, committee, CONFIG, tmp_path_factory.mktemp("committee") / "data")


def test_output_has_the_params_of_every_member(committee: Committee) -> None:
    obs, state = torch.randn(5, 4), committee.initial_state(5)
    output, after = committee(obs, state)
    assert committee.spec.members == (("q", "q_values"), ("mlp", "categorical"), ("gru", "categorical"))
    assert output.members is not None
    assert after is not None
    for number, member in enumerate(committee.members):
        own = member(obs, member.initial_state(5))[0].params
        assert torch.equal(output.members[:, 2 * number : 2 * number + 2], own)
    assert torch.allclose(output.params.exp().sum(1), torch.ones(5), atol=1e-6)  # the ensemble's probabilities


def test_members_take_turns_from_episode_to_episode(committee: Committee, data: Dataset) -> None:
    columns = data.columns
    for episode in range(data.num_episodes):
        rows = np.flatnonzero(columns["episode"] == episode)
        assert len(np.unique(columns["member"][rows])) == 1
    episodes = np.array([columns["member"][columns["episode"] == number][0] for number in range(data.num_episodes)])
    counts = np.bincount(episodes, minlength=3)
    assert counts.max() - counts.min() <= 6  # of six slots, each of which goes through all members
    own = columns["members"].reshape(len(data), 3, 2)[np.arange(len(data)), columns["member"]]
    by_teacher = columns["actor"] == 0
    assert by_teacher.mean() > 0.8
    assert np.array_equal(columns["action"][by_teacher], own.argmax(1)[by_teacher])


def test_labels_of_a_member_are_those_that_it_gives_alone(committee: Committee, data: Dataset) -> None:
    with torch.no_grad():
        alone = committee.members[1](data.observations(np.arange(len(data))))[0].params
    assert np.allclose(data.columns["members"][:, 2:4], alone.numpy(), atol=1e-6)


def test_number_of_workers_and_lost_blocks_change_no_byte(committee: Committee, data: Dataset, tmp_path: Path) -> None:
    collect(CARTPOLE, committee, CONFIG, tmp_path / "one")
    before = manifest_bytes(tmp_path / "one")
    manifest = Manifest.read(tmp_path / "one")
    for block in manifest.blocks[1:]:
        (tmp_path / "one" / block.file).unlink()
    write_json(tmp_path / "one" / "manifest.json", manifest.model_dump(by_alias=True) | {"blocks": []})
    resumed = collect(CARTPOLE, committee, CONFIG, tmp_path / "one", mode="resume")
    assert manifest_bytes(tmp_path / "one") == before
    assert np.array_equal(resumed.columns["members"], data.columns["members"])


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(committee: Committee, tmp_path: Path) -> None:
    for workers in (1, 2):
        collect(CARTPOLE, committee, CONFIG, tmp_path / str(workers), execution=Execution(workers=workers))
    assert manifest_bytes(tmp_path / "1") == manifest_bytes(tmp_path / "2")


def test_states_are_relabeled_by_a_committee_and_by_one_teacher(
    committee: Committee, data: Dataset, dataset: Dataset, teacher: NetworkPolicy, tmp_path: Path
) -> None:
    collect(CARTPOLE, teacher, CONFIG, tmp_path / "one")
    several = relabel(tmp_path / "one", committee, tmp_path / "several")
    assert several.spec.members == committee.spec.members
    assert "member" not in several.columns  # none of them acted
    single = relabel(tmp_path / "several", teacher, tmp_path / "single")
    assert single.spec == Dataset.read([tmp_path / "one"]).spec
    assert "members" not in single.columns


def test_missing_labels_of_members_are_found(data: Dataset, committee: Committee, tmp_path: Path) -> None:
    collect(CARTPOLE, committee, CONFIG, tmp_path / "data")
    manifest = Manifest.read(tmp_path / "data")
    manifest.spec = dataclasses.replace(manifest.spec, members=manifest.spec.members[:2])
    with pytest.raises(CorruptArtifactError, match=r"members is of shape \[6\], expected \[4\]"):
        manifest.read_block(manifest.blocks[0])


def test_fingerprint_has_the_names_and_the_members(committee: Committee) -> None:
    renamed = dataclasses.replace(committee, names=("a", "b", "c"))
    turned = dataclasses.replace(committee, members=committee.members[::-1])
    assert len({fingerprint(committee), fingerprint(renamed), fingerprint(turned)}) == 3


def test_members_with_other_observations_are_refused(teacher: NetworkPolicy) -> None:
    other = Mlp((4,)).build(spec_from_env(EnvConfig("Acrobot-v1")))
    with pytest.raises(SpecMismatchError, match="observation shape"):
        Committee((teacher, other), names=("a", "b"))
