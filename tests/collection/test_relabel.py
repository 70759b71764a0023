"""Relabeling: labels of another teacher for recorded states."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel, teacher_spec
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.losses import ActionNLL
from rldistill.losses.objective import Term
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear, Mlp
from rldistill.teachers.load import SavedTeacher
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE, manifest_bytes

pytestmark = pytest.mark.slow

PONG = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 120})


SMALL = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=32, epsilon=0.4)


def recurrent(env: EnvConfig = CARTPOLE, seed: int = 3) -> NetworkPolicy:
    torch.manual_seed(seed)
    return Actor(lstm=(6, 1), hidden=(5,), critic=(4,)).build(spec_from_env(env)).eval()


def block_hashes(folder: Path) -> list[str]:
    return [block.sha256 for block in Manifest.read(folder).blocks]


@pytest.mark.parametrize(
    ("env", "teacher"),
    [
        (CARTPOLE, lambda: Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()),
        (CARTPOLE, recurrent),
        (PONG, lambda: Linear().build(spec_from_env(PONG)).eval()),
    ],
    ids=["vectors", "recurrent", "frames"],
)
def test_recording_teacher_gives_the_same_blocks_again(env: EnvConfig, teacher: Any, tmp_path: Path) -> None:
    policy = teacher()
    collect(env, policy, SMALL, tmp_path / "first")
    relabel(tmp_path / "first", policy, tmp_path / "again")
    assert block_hashes(tmp_path / "again") == block_hashes(tmp_path / "first")


def test_labels_are_the_outputs_of_the_new_teacher(teacher: NetworkPolicy, tmp_path: Path) -> None:
    before = collect(CARTPOLE, teacher, SMALL, tmp_path / "first")
    other = Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()
    after = relabel(tmp_path / "first", other, tmp_path / "other", features=True)
    assert (before.spec.head.kind, after.spec.head.kind) == ("q_values", "categorical")
    rows = np.arange(len(after))
    with torch.no_grad():
        expected, then = other(after.observations(rows))[0], other(after.next_observations(rows))[0]
    np.testing.assert_allclose(after.columns["teacher"], expected.params, atol=1e-5)
    np.testing.assert_allclose(after.columns["features"], expected.features, atol=1e-5)
    np.testing.assert_allclose(after.columns["next_teacher"], then.params, atol=1e-5)
    for name in ("action", "reward", "terminated", "truncated", "step", "episode"):
        np.testing.assert_array_equal(after.columns[name], before.columns[name])
    assert manifest_bytes(tmp_path / "first") != manifest_bytes(tmp_path / "other")


def test_privileged_teacher_receives_the_observations_of_teachers(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1", views=Views(student=(Wrapper("MaskVelocity"),)))
    seeing = Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()
    collect(env, seeing, dataclasses.replace(SMALL, teacher_obs=True), tmp_path / "first")
    relabel(tmp_path / "first", seeing, tmp_path / "again")
    assert block_hashes(tmp_path / "again") == block_hashes(tmp_path / "first")
    tall = Mlp((8,)).build(spec_from_env(EnvConfig("Acrobot-v1"))).eval()
    with pytest.raises(SpecMismatchError, match="the observations of teachers in"):
        relabel(tmp_path / "first", tall, tmp_path / "tall")


def test_observations_of_students_are_refused_for_a_privileged_teacher(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1", views=Views(student=(Wrapper("MaskVelocity"),)))
    seeing = Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()
    collect(env, seeing, SMALL, tmp_path / "first")
    with pytest.raises(SpecMismatchError, match=r"those of teachers differ\. Collect with teacher_obs: true\."):
        relabel(tmp_path / "first", seeing, tmp_path / "again")


def test_file_without_a_spec_is_read_with_the_view_of_the_teacher(tmp_path: Path) -> None:
    doubled = (Wrapper("StackFrames", {"stack": 2}),)
    env = EnvConfig("CartPole-v1", views=Views(student=doubled))
    seeing = Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()
    data = collect(env, seeing, dataclasses.replace(SMALL, teacher_obs=True), tmp_path / "first")
    assert data.spec.obs_shape == (8,)
    assert Manifest.read(tmp_path / "first").teacher_spec == spec_from_env(CARTPOLE)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}  # as CleanRL's DQN has them
    torch.save(weights, tmp_path / "agent.cleanrl_model")
    agent = SavedTeacher(str(tmp_path / "agent.cleanrl_model"))
    for source, out in (("first", "second"), ("second", "third")):
        policy = agent.load(teacher_spec(Manifest.read(tmp_path / source)))
        relabel(tmp_path / source, policy, tmp_path / out)
        after = Dataset.read([tmp_path / out])
        with torch.no_grad():
            expected = network(torch.from_numpy(after.columns["teacher_obs"]))
        np.testing.assert_allclose(after.columns["teacher"], expected, atol=1e-5)


def test_only_a_teacher_with_the_same_wrappers_relabels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    view = (Wrapper("MaskVelocity"),)
    plain = Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()
    blind = Mlp((8,)).build(dataclasses.replace(plain.spec, view=view)).eval()
    behind = EnvConfig("CartPole-v1", wrappers=view)
    for name, env, policy in (("plain", CARTPOLE, plain), ("blind", CARTPOLE, blind), ("behind", behind, plain)):
        collect(env, policy, SMALL, tmp_path / name)
    views = EnvConfig("CartPole-v1", views=Views(teacher=view))
    collect(views, plain, dataclasses.replace(SMALL, teacher_obs=True), tmp_path / "both")
    with pytest.raises(SpecMismatchError, match="recorded with no wrapper, but the teacher was trained with MaskVel"):
        relabel(tmp_path / "plain", blind, tmp_path / "out")
    with pytest.raises(SpecMismatchError, match="recorded with MaskVelocity, but the teacher was trained with no wrap"):
        relabel(tmp_path / "blind", plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # The run file wrote the wrapper of the last two: who brings it sees the same, who brings none was meant.
    for name, policy in (("blind", blind), ("behind", blind), ("behind", plain), ("both", blind), ("both", plain)):
        relabel(tmp_path / name, policy, tmp_path / "out", mode="overwrite")


def test_teacher_of_another_environment_is_refused(teacher: NetworkPolicy, tmp_path: Path) -> None:
    collect(CARTPOLE, teacher, SMALL, tmp_path / "first")
    with pytest.raises(SpecMismatchError, match="observation shape"):
        relabel(tmp_path / "first", recurrent(EnvConfig("Acrobot-v1")), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"Choose another folder\."):
        relabel(tmp_path / "first", teacher, tmp_path / "first")
    assert not (tmp_path / "other").exists()


def pushes(spec: object) -> Any:
    """Return a heuristic for Pendulum, which acts against the swing."""
    return lambda obs: -np.sign(obs[2:3]) * np.ones(1, np.float32)


def test_teacher_without_a_head_in_its_file_has_the_neutral_one(tmp_path: Path) -> None:
    env = EnvConfig("Pendulum-v1")
    torch.manual_seed(0)
    spec = dataclasses.replace(spec_from_env(env), head=spec_from_env(env).head.as_kind("gaussian"))
    collect(env, Mlp((4,)).build(spec).eval(), SMALL, tmp_path / "first")
    policy = SavedTeacher(f"{__name__}:pushes").load(teacher_spec(Manifest.read(tmp_path / "first")))
    relabel(tmp_path / "first", policy, tmp_path / "other")
    data = Dataset.read([tmp_path / "other"])
    assert data.spec.head.kind == "deterministic"
    assert data.columns["teacher"].shape == (320, 1)
    distill(data, Mlp((8,)), DistillConfig(epochs=2, losses=(Term(ActionNLL()),)), tmp_path / "student")


def test_only_a_dataset_is_discarded_for_another(teacher: NetworkPolicy, tmp_path: Path) -> None:
    run = tmp_path / "run"
    collect(CARTPOLE, teacher, SMALL, run / "dataset")
    with pytest.raises(ConfigError, match=r"Choose another folder\."):
        relabel(run / "dataset", teacher, run, mode="overwrite")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("mine")
    relabel(run / "dataset", teacher, tmp_path / "there")
    with pytest.raises(ConfigError, match=r'there exists\. Discard it with mode="overwrite" \(--overwrite\)\.$'):
        relabel(run / "dataset", teacher, tmp_path / "there")
    with pytest.raises(ConfigError, match="holds more than a dataset"):
        relabel(run / "dataset", teacher, tmp_path / "notes", mode="overwrite")
    assert (tmp_path / "notes" / "precious.txt").read_text() == "mine"
    for _ in range(2):
        relabel(run / "dataset", teacher, tmp_path / "again", mode="overwrite")
    assert block_hashes(tmp_path / "again") == block_hashes(run / "dataset")


@pytest.mark.parametrize("calls", [0, 70], ids=["at once", "later"])
def test_failing_teacher_leaves_no_partial_dataset(teacher: NetworkPolicy, tmp_path: Path, calls: int) -> None:
    num_calls = 0

    def fail(obs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return np.zeros(len(obs), np.int64) if num_calls <= calls else 1 / 0

    failing = FunctionPolicy(fail, spec_from_env(CARTPOLE), batched=True)
    collect(CARTPOLE, teacher, SMALL, tmp_path / "first")
    relabel(tmp_path / "first", teacher, tmp_path / "old")
    for name in ("new", "old"):
        num_calls = 0
        with pytest.raises(ConfigError, match="ZeroDivisionError"):
            relabel(tmp_path / "first", failing, tmp_path / name, mode="overwrite" if name == "old" else "new")
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "old" / "manifest.json").exists() == (calls == 0)
    assert (tmp_path / "old" / "blocks").exists() == (calls == 0)


def test_relabeled_dataset_names_the_new_teacher(teacher: NetworkPolicy, tmp_path: Path) -> None:
    collect(CARTPOLE, teacher, SMALL, tmp_path / "first")
    other = Mlp((8,)).build(teacher.spec).eval()
    relabel(tmp_path / "first", other, tmp_path / "other")
    with pytest.raises(ConfigError, match="collected with the teacher"):
        collect(CARTPOLE, teacher, SMALL, tmp_path / "other", round=1, mode="resume")
    collect(CARTPOLE, other, SMALL, tmp_path / "other", round=1, mode="resume")
