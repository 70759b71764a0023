"""Several teachers that observe the environment differently."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.spec import EnvConfig, PolicySpec, Views, Wrapper
from rldistill.distillation.config import DistillConfig
from rldistill.envs.spaces import adapt_env, observation_views, spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Run
from rldistill.run.stages import run_all
from rldistill.students import Mlp
from rldistill.students.storage import save_policy
from rldistill.teachers.committee import CommitteeMember, load_committee
from rldistill.teachers.fingerprint import fingerprint

CARTPOLE = EnvConfig("CartPole-v1", {"max_episode_steps": 40})
TIMED, BLIND = Wrapper("TimeFeature", {"max_steps": 40}), Wrapper("MaskVelocity")
CONFIG = CollectConfig(steps=900, num_streams=1, envs_per_stream=4, block_steps=60, epsilon=0.1)


def network(*view: Wrapper, env: EnvConfig = CARTPOLE) -> NetworkPolicy:
    torch.manual_seed(len(view))
    return Mlp((4,)).build(spec_from_env(dataclasses.replace(env, wrappers=view))).eval()


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("teachers")
    save_policy(network(TIMED), folder / "timed", {})
    save_policy(network(BLIND), folder / "blind", {})
    timed, blind = (str(folder / name) for name in ("timed", "blind"))
    return {
        "timed": CommitteeMember(timed, view=(TIMED,)),
        "plain": network(),
        "blind": CommitteeMember(blind, view=(BLIND,)),
    }


def test_each_teacher_gets_its_own_view(members: dict[str, Any], tmp_path: Path) -> None:
    teacher = load_committee(members, CARTPOLE)
    env = adapt_env(CARTPOLE, teacher)
    assert env.views is not None
    assert adapt_env(env, teacher) == env
    views = observation_views(env)
    assert views.student == spec_from_env(CARTPOLE)
    assert [(name, part.shape) for name, part in views.teacher.parts] == [
        ("timed", (5,)),
        ("plain", (4,)),
        ("blind", (4,)),
    ]
    data = collect(CARTPOLE, teacher, CONFIG, tmp_path / "data")
    obs = data.observations(np.arange(len(data)))
    assert obs.shape[1] == 4
    with torch.no_grad():  # step t of 40 is the remaining time 1 - t / 40, and velocities are the entries 1 and 3
        time = 1 - torch.from_numpy(data.columns["step"])[:, None] / 40
        timed = network(TIMED)(torch.cat([obs, time.float()], 1))[0].params
        plain = network()(obs)[0].params
        blind = network(BLIND)(obs * torch.tensor([1.0, 0.0, 1.0, 0.0]))[0].params
    assert np.allclose(data.columns["members"], torch.cat([timed, plain, blind], 1).numpy(), atol=1e-5)


@pytest.mark.slow
def test_run_with_teachers_of_different_views(members: dict[str, Any], tmp_path: Path) -> None:
    run = Run(
        env=CARTPOLE, teachers=members, out=tmp_path / "run", collect=CONFIG, students={"mlp": Mlp((8,))},
        distill=DistillConfig(weighting="value", epochs=4), evaluate=EvaluateConfig(episodes=2, videos=False),
    )  # fmt: skip
    assert "Teachers</h2>" in run_all(run, quiet=True).read_text()


def test_view_is_part_of_the_fingerprint(members: dict[str, Any]) -> None:
    other = {**members, "blind": dataclasses.replace(members["blind"], view=(BLIND, BLIND))}
    assert fingerprint(load_committee(members, CARTPOLE)) != fingerprint(load_committee(other, CARTPOLE))


def test_views_of_teacher_and_student_may_be_given_as_well(members: dict[str, Any]) -> None:
    env = dataclasses.replace(CARTPOLE, views=Views(student=(BLIND, TIMED)))
    views = observation_views(adapt_env(env, load_committee(members, env)))
    assert (views.student.obs_shape, len(views.teacher.parts)) == ((5,), 3)


def test_views_that_cannot_be_side_by_side_are_refused(members: dict[str, Any], tmp_path: Path) -> None:
    skips = dataclasses.replace(members["blind"], view=(Wrapper("FrameSkip", {"skip": 2}),))
    save_policy(network(), tmp_path / "plain", {})
    skips = dataclasses.replace(skips, path=str(tmp_path / "plain"))
    teacher = load_committee({"plain": network(), "skips": skips}, CARTPOLE)
    with pytest.raises(ConfigError, match=r"env\.views: a wrapper takes more than one step at a time\. Move it"):
        collect(CARTPOLE, teacher, CONFIG, tmp_path / "data")
    parts = PolicySpec.from_parts((("obs", network().spec.entries[""]),), network().spec.head)
    with pytest.raises(SpecMismatchError, match=r"teachers: dict observes a dict\. Give all teachers"):
        load_committee({"dict": Mlp((4,)).build(parts).eval(), "blind": members["blind"]}, CARTPOLE)
    with pytest.raises(SpecMismatchError, match=r"teachers: .*observation shape is.*member 1 is b"):
        load_committee({"a": network(), "b": network(env=EnvConfig("Pendulum-v1"))}, CARTPOLE)
