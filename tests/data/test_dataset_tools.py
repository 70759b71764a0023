"""Datasets made of datasets: other labels, more steps, several as one, to Minari and back."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError, UntrustedFileError
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.data.merge import merge
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.losses import ActionNLL
from rldistill.losses.objective import Term
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.run.datasets import relabel_dataset
from rldistill.students import Linear, Mlp
from rldistill.students.storage import save_policy
from rldistill.teachers.load import SavedTeacher
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE, manifest_bytes

pytestmark = pytest.mark.slow

PONG = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 120})
SMALL = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=32, epsilon=0.4)
LABELS = ("teacher", "next_teacher", "value", "next_value")


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
        relabel_dataset(tmp_path / source, agent, tmp_path / out, False, "new", True)
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


def test_merged_datasets_hold_the_steps_of_all(teacher: NetworkPolicy, tmp_path: Path) -> None:
    parts = [collect(CARTPOLE, teacher, SMALL, tmp_path / str(seed), seed=seed) for seed in range(3)]
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "two")
    merge([tmp_path / "two", tmp_path / "2"], tmp_path / "all")
    whole = Dataset.read([tmp_path / "all"])
    joined = Dataset.read([tmp_path / str(seed) for seed in range(3)])
    assert whole.num_episodes == sum(part.num_episodes for part in parts)
    for name, column in joined.columns.items():
        np.testing.assert_array_equal(whole.columns[name], column)
    rows = np.arange(len(whole))
    assert torch.equal(whole.next_observations(rows), joined.next_observations(rows))
    assert sorted(Manifest.read(tmp_path / "all").rounds) == [0, 1, 2]


def test_datasets_of_different_kinds_are_not_merged(teacher: NetworkPolicy, tmp_path: Path) -> None:
    collect(CARTPOLE, teacher, SMALL, tmp_path / "a")
    collect(CARTPOLE, recurrent(), SMALL, tmp_path / "b")
    with pytest.raises(SpecMismatchError, match=r"cannot be merged: spec\.head is Categorical.* and QValues"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(ConfigError, match="would count twice"):
        merge([tmp_path / "a", tmp_path / "a"], tmp_path / "out")
    with pytest.raises(ConfigError, match="at least two"):
        merge([tmp_path / "a"], tmp_path / "out")
    collect(CARTPOLE, teacher, SMALL, tmp_path / "c", seed=1)
    with pytest.raises(ConfigError, match=r"Choose another folder\."):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "a", mode="overwrite")
    block = next((tmp_path / "c" / "blocks").iterdir())
    block.write_bytes(block.read_bytes()[:-9])
    with pytest.raises(CorruptArtifactError, match=r"\.parquet"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Tagged(gymnasium.ObservationWrapper[Any, Any, Any]):
    """CartPole's vector beside a number of three and a picture."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        spaces = gymnasium.spaces
        self.observation_space = spaces.Dict(
            {
                "vector": env.observation_space,
                "side": spaces.Discrete(3),
                "picture": spaces.Box(0, 255, (1, 5, 4), np.uint8),
            }
        )

    def observation(self, observation: Any) -> Any:
        side = int(np.digitize(observation[0], [-0.01, 0.01]))
        return {"vector": observation, "side": side, "picture": np.full((1, 5, 4), side * 90, np.uint8)}


class TwoRows(gymnasium.ObservationWrapper[Any, Any, Any]):
    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2, 2))

    def observation(self, observation: Any) -> Any:
        return observation.reshape(2, 2)


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("minari", reason="needs the extra minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("env", "teacher"),
    [
        (CARTPOLE, recurrent),
        (EnvConfig("Pendulum-v1"), lambda: Mlp((8,)).build(spec_from_env(EnvConfig("Pendulum-v1"))).eval()),
        (PONG, lambda: Linear().build(spec_from_env(PONG)).eval()),
        (EnvConfig("CartPole-v1", wrappers=(Wrapper(f"{__name__}:Tagged"),)), None),
    ],
    ids=["values", "continuous", "frames", "dict"],
)
def test_to_minari_and_back_without_loss(env: EnvConfig, teacher: Any, minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.export import export_minari
    from rldistill.data.minari.read import import_minari

    policy = teacher() if teacher else Mlp((8,)).build(spec_from_env(env)).eval()
    before = collect(env, policy, SMALL, tmp_path / "first")
    export_minari(tmp_path / "first", "minari:test/it-v0")
    after = import_minari("minari:test/it-v0", tmp_path / "back")
    assert after.spec == before.spec
    assert len(after) == len(before)
    ours, theirs = (np.lexsort((d.columns["step"], d.columns["episode"])) for d in (before, after))
    assert sorted(after.columns) == sorted(before.columns)
    for name, column in before.columns.items():
        np.testing.assert_array_equal(after.columns[name][theirs], column[ours], err_msg=name)
        assert after.columns[name].dtype == column.dtype
    assert torch.equal(after.observations(theirs), before.observations(ours))
    assert torch.equal(after.next_observations(theirs), before.next_observations(ours))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_observations_of_teachers_survive_minari(minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.export import export_minari
    from rldistill.data.minari.read import import_minari

    env = EnvConfig("CartPole-v1", views=Views((Wrapper(f"{__name__}:TwoRows"),), (Wrapper("MaskVelocity"),)))
    seeing = Mlp((8,)).build(spec_from_env(env.view_of("teacher"))).eval()
    before = collect(env, seeing, dataclasses.replace(SMALL, teacher_obs=True), tmp_path / "first")
    export_minari(tmp_path / "first", "minari:test/seen-v0")
    after = import_minari("minari:test/seen-v0", tmp_path / "back")
    ours, theirs = (np.lexsort((d.columns["step"], d.columns["episode"])) for d in (before, after))
    np.testing.assert_array_equal(after.columns["teacher_obs"][theirs], before.columns["teacher_obs"][ours])
    assert after.columns["teacher_obs"].shape[1:] == (2, 2)
    relabel(tmp_path / "back", seeing, tmp_path / "again")
    again = Dataset.read([tmp_path / "again"])
    np.testing.assert_allclose(again.columns["next_teacher"][theirs], before.columns["next_teacher"][ours], atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_data_from_elsewhere_are_labeled_and_learned(teacher: NetworkPolicy, minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    env, buffers = gymnasium.make("CartPole-v1"), []
    for seed in range(12):
        obs, done, episode = [env.reset(seed=seed)[0]], False, []
        while not done:
            action = int(obs[-1][2] + obs[-1][3] > 0)
            after, reward, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
            obs.append(after)
            episode.append((action, reward, terminated, truncated))
        actions, rewards, ends, cuts = map(list, zip(*episode, strict=True))
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations=np.stack(obs), actions=actions, rewards=rewards, terminations=ends, truncations=cuts
            )
        )
    minari.create_dataset_from_buffers("cartpole/hand-v0", buffers, env="CartPole-v1", data_format="arrow")
    data = import_minari("cartpole/hand-v0", tmp_path / "in")
    assert Manifest.read(tmp_path / "in").env.id == "CartPole-v1"
    np.testing.assert_array_equal(data.columns["teacher"].argmax(1), data.columns["action"])
    student = distill(data, Mlp((16,)), DistillConfig(epochs=2), tmp_path / "student")
    assert student.spec.head.kind == "categorical"
    soft = relabel(tmp_path / "in", teacher, tmp_path / "soft")
    with torch.no_grad():
        expected = teacher(soft.observations(np.arange(len(soft))))[0].params
    np.testing.assert_allclose(soft.columns["teacher"], expected, atol=1e-5)


class Bits(gymnasium.ActionWrapper[Any, Any, Any]):
    """CartPole, pushed by the first of two by two bits."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.action_space = gymnasium.spaces.MultiBinary((2, 2))

    def action(self, action: Any) -> int:
        return int(action[0, 0])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_binary_actions_survive_minari(minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.export import export_minari
    from rldistill.data.minari.read import import_minari

    env = EnvConfig("CartPole-v1", wrappers=(Wrapper(f"{__name__}:Bits"),))
    torch.manual_seed(0)
    before = collect(env, Mlp((8,)).build(spec_from_env(env)).eval(), SMALL, tmp_path / "first")
    export_minari(tmp_path / "first", "minari:test/bits-v0")
    after = import_minari("minari:test/bits-v0", tmp_path / "back")
    ours, theirs = (np.lexsort((d.columns["step"], d.columns["episode"])) for d in (before, after))
    for name, column in before.columns.items():
        np.testing.assert_array_equal(after.columns[name][theirs], column[ours], err_msg=name)


def record_elsewhere(
    minari: Any,
    name: str,
    actions: Any,
    infos: dict[str, Any] | None = None,
    rewards: Any = None,
    data_format: str = "arrow",
) -> None:
    """Three episodes of four steps, of which the last is cut."""
    space: gymnasium.Space[Any] = actions
    space.seed(0)
    rng = np.random.default_rng(0)
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=rng.uniform(-1, 1, (5, 2)).astype(np.float32),
            actions=np.stack([space.sample() for _ in range(4)]),
            rewards=rng.integers(0, 9, 4).astype(np.float64) if rewards is None else rewards,
            terminations=[False] * 4,
            truncations=[False, False, False, True],
            infos={key: [value] * 5 for key, value in (infos or {}).items()},
        )
        for _ in range(3)
    ]
    box = gymnasium.spaces.Box(-1, 1, (2,))
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=box, action_space=space, data_format=data_format
    )


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_infos_from_elsewhere_are_not_taken_for_ours(minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    record_elsewhere(
        minari, "other/info-v0", gymnasium.spaces.Discrete(3), {"teacher": 0.5, "cut": True, "actor": 2, "value": 1.0}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # whole rewards lose nothing in float32
        data = import_minari("minari:other/info-v0", tmp_path / "in")
    np.testing.assert_array_equal(data.columns["teacher"], 20 * np.eye(3)[data.columns["action"]])
    assert data.columns["truncated"].sum() == 3
    assert not data.columns["actor"].any()
    assert "value" not in data.columns


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_actions_that_do_not_start_at_0_are_refused(minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    record_elsewhere(minari, "other/start-v0", gymnasium.spaces.Discrete(3, start=-1))
    with pytest.raises(ConfigError, match=r"start=-1.*MultiDiscrete from 0"):
        import_minari("minari:other/start-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_grids_of_numbers_are_flat_and_rounding_is_a_warning(minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.export import export_minari
    from rldistill.data.minari.read import import_minari

    record_elsewhere(minari, "other/grid-v0", gymnasium.spaces.Box(-1, 1, (2, 2)), rewards=[0.5, 0.1, 0.25, 1.0])
    with pytest.warns(UserWarning, match="other/grid-v0: rewards were rounded from float64"):
        data = import_minari("minari:other/grid-v0", tmp_path / "in")
    assert data.columns["action"].shape == data.columns["teacher"].shape == (12, 4)
    export_minari(tmp_path / "in", "minari:other/again-v0")
    again = import_minari("minari:other/again-v0", tmp_path / "again")
    np.testing.assert_array_equal(again.columns["action"], data.columns["action"])


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_labels_of_ours_that_do_not_fit_are_named(teacher: NetworkPolicy, minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.common import ORIGIN
    from rldistill.data.minari.export import export_minari
    from rldistill.data.minari.read import import_minari

    collect(CARTPOLE, teacher, SMALL, tmp_path / "first")
    export_minari(tmp_path / "first", "minari:test/it-v0")
    file = tmp_path / "minari" / "test" / "it-v0" / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    ours = json.loads(metadata[ORIGIN])
    ours["spec"]["head"]["nvec"] = [3]
    file.write_text(json.dumps(metadata | {ORIGIN: json.dumps(ours)}))
    with pytest.raises(
        CorruptArtifactError, match=r"episode 0: infos: teacher: found shape \(\d+, 2\), expected \(\d+, 3\)"
    ):
        import_minari("minari:test/it-v0", tmp_path / "in")


@pytest.mark.parametrize("error", [AssertionError(), TypeError("no such column"), KeyboardInterrupt()])
def test_export_that_fails_leaves_nothing(
    teacher: NetworkPolicy, minari: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from minari.dataset._storages import arrow_storage

    from rldistill.data.minari.export import export_minari
    from rldistill.data.minari.read import import_minari

    def fail(*_: Any) -> None:
        raise error

    collect(CARTPOLE, teacher, SMALL, tmp_path / "first")
    with monkeypatch.context() as patch:
        patch.setattr(arrow_storage.ArrowStorage, "update_episodes", fail)
        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ConfigError
        with pytest.raises(expected, match=f"{str(error) or type(error).__name__}|^$"):
            export_minari(tmp_path / "first", "minari:test/it-v0")
    assert not (tmp_path / "minari" / "test" / "it-v0").exists()
    export_minari(tmp_path / "first", "minari:test/it-v0")
    with pytest.raises(ConfigError, match=r"exists\. Choose another name"):
        export_minari(tmp_path / "first", "minari:test/it-v0")
    assert len(import_minari("minari:test/it-v0", tmp_path / "back")) == 320


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_minari_dataset_without_episodes_is_refused(minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    box = gymnasium.spaces.Box(-1, 1, (2,))
    minari.create_dataset_from_buffers(
        "other/none-v0", [], observation_space=box, action_space=gymnasium.spaces.Discrete(2), data_format="arrow"
    )
    with pytest.raises(CorruptArtifactError, match="it has no episodes"):
        import_minari("minari:other/none-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


def with_metadata(**fields: Any) -> Callable[[Path], None]:
    """Return a change of the metadata of a dataset; None removes a field."""

    def change(data: Path) -> None:
        metadata = json.loads((data / "metadata.json").read_text()) | fields
        left = {key: value for key, value in metadata.items() if value is not None}
        (data / "metadata.json").write_text(json.dumps(left))

    return change


def truncated(file: str) -> Callable[[Path], None]:
    return lambda data: (data / file).write_bytes((data / file).read_bytes()[:-200])


def without(file: str) -> Callable[[Path], None]:
    return lambda data: (data / file).unlink()


DAMAGED = {
    "few steps": (with_metadata(total_steps=8), "found 12 steps in its episodes, expected 8"),
    "many steps": (with_metadata(total_steps=16), "found 12 steps in its episodes, expected 16"),
    "no number of steps": (with_metadata(total_steps=None), "total_steps: found None, expected a whole number"),
    "few episodes": (with_metadata(total_episodes=2, total_steps=8), "found 3 episodes, expected 2"),
    "many episodes": (with_metadata(total_episodes=99), "found 3 episodes, expected 99"),
    "half a spec": (with_metadata(env_spec='{"id": "Cart'), "env_spec: expected JSON with an id and kwargs"),
    "a list as spec": (with_metadata(env_spec="[]"), "env_spec: expected JSON with an id and kwargs"),
    "a number as id": (
        with_metadata(env_spec='{"id": 5}'),
        "env_spec: expected JSON with an id and kwargs .*EnvConfig.id: found 5",
    ),
    "no wrappers": (with_metadata(env_spec='{"id": "A-v0"}'), "Minari cannot read it .*additional_wrappers"),
    "half a space": (with_metadata(observation_space='{"type": "Box'), "observation_space: found .* expected a space"),
    "no such space": (with_metadata(action_space='{"type": "Bax"}'), "action_space: found .*Bax.* expected a space"),
    "another format": (
        with_metadata(data_format="csv"),
        "data_format: found 'csv', expected one of arrow, hdf5, parquet",
    ),
    "another version": (with_metadata(minari_version="9.9.9"), "Minari cannot read it .*9.9.9"),
    "half the metadata": (truncated("metadata.json"), "metadata.json: not valid JSON"),
    "metadata of text": (lambda data: (data / "metadata.json").write_text('"it"'), "found 'it', expected an object"),
    "half an episode": (truncated("1/part-0.arrow"), "episode 1: found nothing that can be read"),
    "no episode": (without("1/part-0.arrow"), "episode 1: found nothing that can be read"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_minari_dataset_is_named_and_leaves_nothing(damage: str, minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    change, expected = DAMAGED[damage]
    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3))
    change(tmp_path / "minari" / "other" / "it-v0" / "data")
    with pytest.raises(CorruptArtifactError, match=f"^minari:other/it-v0: .*{expected}"):
        import_minari("minari:other/it-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


def with_array(array: str, content: Any) -> Callable[[Any], None]:
    """Return a change of the second episode of an HDF5 file of Minari; None removes the array."""

    def change(file: Any) -> None:
        del file[f"episode_1/{array}"]
        if content is not None:
            file[f"episode_1/{array}"] = content

    return change


def empty(file: Any) -> None:
    for array in ("actions", "rewards", "terminations", "truncations"):
        with_array(array, np.zeros(0))(file)


NAN = [0.0, 1.0, np.nan, 2.0]
IMPOSSIBLE = {
    "no such action": (with_array("actions", [0, 1, -1, 2]), "actions: found -1 at step 2, expected 0 to 2"),
    "one action too high": (with_array("actions", [0, 1, 2, 3]), "actions: found 3 at step 3, expected 0 to 2"),
    "half an action": (
        with_array("actions", [0, 1, 0.5, 2]),
        "actions: found float64 numbers, expected those of int64",
    ),
    "actions of two": (with_array("actions", np.zeros((4, 2), int)), r"actions: found shape \(4, 2\), expected \(4,\)"),
    "few observations": (
        with_array("observations", np.zeros((4, 2))),
        r"observations: found shape \(4, 2\), expected \(5, 2\)",
    ),
    "an observation of NaN": (
        with_array("observations", np.full((5, 2), np.nan)),
        "observations: found NaN or infinite",
    ),
    "a reward of NaN": (with_array("rewards", NAN), "rewards: found NaN or infinite"),
    "a reward beyond float32": (with_array("rewards", [1e300] * 4), "rewards: found NaN or infinite"),
    "rewards of text": (with_array("rewards", ["a"] * 4), "rewards: found object, expected numbers"),
    "few terminations": (with_array("terminations", [False]), r"terminations: found shape \(1,\), expected \(4,\)"),
    "truncated twice": (
        with_array("truncations", [0, 0, 0, 2]),
        "truncations: found int64 numbers, expected those of bool",
    ),
    "no rewards": (with_array("rewards", None), "found nothing that can be read .*rewards"),
    "no steps": (empty, "found no steps, expected at least one"),
}


def change_hdf5(tmp_path: Path, change: Callable[[Any], Any]) -> Path:
    h5py = pytest.importorskip("h5py", reason="needs the extra minari")
    path = tmp_path / "minari" / "other" / "it-v0" / "data" / "main_data.hdf5"
    with h5py.File(path, "r+") as file:
        change(file)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_invalid_numbers_are_refused(case: str, minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    change, expected = IMPOSSIBLE[case]
    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3), data_format="hdf5")
    change_hdf5(tmp_path, change)
    with pytest.raises(CorruptArtifactError, match=f"^minari:other/it-v0: episode 1: {expected}"):
        import_minari("minari:other/it-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("size", [0, -200])
def test_half_an_hdf5_file_is_one_line(size: int, minari: Any, tmp_path: Path) -> None:
    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3), data_format="hdf5")
    path = tmp_path / "minari" / "other" / "it-v0" / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:size])
    result = CliRunner().invoke(app, ["dataset", "import", "minari:other/it-v0", "--out", str(tmp_path / "in")])
    assert (result.exit_code, "minari:other/it-v0: Minari cannot read it" in result.output) == (2, True)
    path.unlink()
    result = CliRunner().invoke(app, ["dataset", "import", "minari:other/it-v0", "--out", str(tmp_path / "in")])
    assert (result.exit_code, "main_data.hdf5" in result.output) == (2, True)
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("kind", ["storage", "external", "soft", "virtual", "claim"])
def test_minari_file_with_links_out_of_it_is_refused(kind: str, minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    h5py = pytest.importorskip("h5py", reason="needs the extra minari")
    (tmp_path / "secret").write_bytes(np.arange(4.0).tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["rewards"] = np.arange(4.0)

    def change(file: Any) -> None:
        group = file["episode_1"]
        del group["rewards"]
        if kind == "storage":
            group.create_dataset("rewards", (4,), "f8", external=[(str(tmp_path / "secret"), 0, 32)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "rewards", (4,))
            group.create_virtual_dataset("rewards", layout)
        elif kind == "claim":
            group.create_dataset("rewards", (1 << 30,), "f8", chunks=(1 << 10,))
        else:
            elsewhere = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/rewards")
            group["rewards"] = elsewhere if kind == "external" else h5py.SoftLink("/episode_0/rewards")

    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3), data_format="hdf5")
    change_hdf5(tmp_path, change)
    with pytest.raises(UntrustedFileError, match=r"^minari:other/it-v0: main_data.hdf5: episode_1/rewards .*"):
        import_minari("minari:other/it-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_code_of_a_minari_dataset_is_executed(minari: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rldistill.data.minari.read import import_minari

    marker = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "gs").chmod(0o755)
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {"id": "evil:It-v0", "entry_point": "evil:It", "additional_wrappers": [], "kwargs": {}}
    for picture, is_read in (
        (None, True),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n", False),
    ):
        buffers = [
            minari.data_collector.EpisodeBuffer(
                observations=np.full((3, 32, 32, 3), 9 * number, np.uint8),
                actions=[0, number],
                rewards=[0.0, 1.0],
                terminations=[False, True],
                truncations=[False, False],
            )
            for number in range(2)
        ]
        name = f"other/picture-v{int(is_read)}"
        box = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        minari.create_dataset_from_buffers(
            name, buffers, observation_space=box, action_space=gymnasium.spaces.Discrete(2), data_format="arrow"
        )
        data = tmp_path / "minari" / name / "data"
        with_metadata(env_spec=json.dumps(spec))(data)
        if picture is None:
            assert len(import_minari(name, tmp_path / "in")) == 4
            assert Manifest.read(tmp_path / "in").env.id == "evil:It-v0"
            continue
        table = pa.ipc.open_file(data / "0" / "part-0.arrow").read_all()
        table = table.set_column(table.column_names.index("observations"), "observations", pa.array([picture] * 3))
        with pa.ipc.new_file(data / "0" / "part-0.arrow", table.schema) as file:
            file.write_table(table)
        with pytest.raises(CorruptArtifactError, match=r"episode 0: .*Ghostscript"):
            import_minari(name, tmp_path / "other")
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_failed_import_deletes_nothing(
    teacher: NetworkPolicy, minari: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rldistill.data.minari import read as minari_read

    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3))
    monkeypatch.setattr(minari_read, "BLOCK_STEPS", 4)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "add_blocks", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        (tmp_path / "empty").mkdir()
        for folder in ("new", "empty"):
            with pytest.raises(KeyboardInterrupt):
                minari_read.import_minari("minari:other/it-v0", tmp_path / folder)
    assert not (tmp_path / "new").exists()
    assert not any((tmp_path / "empty").iterdir())
    collect(CARTPOLE, teacher, SMALL, tmp_path / "mine")
    with_metadata(total_steps=16)(tmp_path / "minari" / "other" / "it-v0" / "data")
    with pytest.raises(CorruptArtifactError, match="found 12 steps"):
        minari_read.import_minari("minari:other/it-v0", tmp_path / "mine", mode="overwrite")
    assert len(Dataset.read([tmp_path / "mine"])) == 320


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_actions_outside_bounds_are_a_warning_and_unbounded_ones_are_refused(minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Box(-1, 1, (2,)), data_format="hdf5")
    change_hdf5(tmp_path, with_array("actions", np.full((4, 2), 1.5, np.float32)))
    with pytest.warns(UserWarning, match="other/it-v0: some actions are outside the bounds"):
        assert import_minari("minari:other/it-v0", tmp_path / "in").columns["action"].max() == 1.5
    change_hdf5(tmp_path, with_array("actions", np.full((4, 2), np.nan)))
    with pytest.raises(CorruptArtifactError, match="episode 1: actions: found NaN"):
        import_minari("minari:other/it-v0", tmp_path / "in", mode="overwrite")
    record_elsewhere(minari, "other/free-v0", gymnasium.spaces.Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ConfigError, match="other/free-v0: found infinite numbers"):
        import_minari("minari:other/free-v0", tmp_path / "free")
    assert not (tmp_path / "free").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_grids_of_choices_are_flat_and_start_at_0(minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    record_elsewhere(minari, "other/grid-v0", gymnasium.spaces.MultiDiscrete([[2, 3], [4, 2]]))
    data = import_minari("minari:other/grid-v0", tmp_path / "in")
    assert (data.columns["action"].shape, data.columns["teacher"].shape) == ((12, 4), (12, 11))
    record_elsewhere(minari, "other/start-v0", gymnasium.spaces.MultiDiscrete([2, 3], start=[1, 1]))
    with pytest.raises(ConfigError, match="MultiDiscrete from 0"):
        import_minari("minari:other/start-v0", tmp_path / "start")


def test_missing_minari_dataset_is_named(minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.read import import_minari

    with pytest.raises(ConfigError, match="minari download"):
        import_minari("minari:no/such-v0", tmp_path / "in")
    with pytest.raises(ConfigError, match="not a valid name"):
        import_minari("minari:../../etc", tmp_path / "in")
    folder = tmp_path / "minari" / "bad" / "x-v0" / "data"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps({"env_spec": "{}", "data_format": "arrow"}))
    with pytest.raises(CorruptArtifactError, match="observation_space"):
        import_minari("minari:bad/x-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_commands_of_datasets(teacher: NetworkPolicy, minari: Any, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["dataset", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    save_policy(teacher, tmp_path / "teacher", {})
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "env": {"id": "CartPole-v1"},
                "teacher": str(tmp_path / "teacher"),
                "out": str(tmp_path / "run"),
                "collect": {"steps": 160, "envs_per_stream": 2, "epsilon": 0.3},
            }
        )
    )
    assert CliRunner().invoke(app, ["collect", str(file)]).exit_code == 0
    assert "320" in run("extend", str(file), "--steps", "160")
    assert "480" in run("extend", str(file), "--steps", "160")
    assert Dataset.read([tmp_path / "run" / "dataset"]).num_steps == 480
    run("relabel", str(tmp_path / "run"), str(tmp_path / "teacher"), "--out", str(tmp_path / "again"))
    hashes = [set(block_hashes(folder)) for folder in (tmp_path / "run" / "dataset", tmp_path / "again")]
    assert hashes[0] == hashes[1]
    run("export", str(tmp_path / "run"), "minari:cli/it-v0")
    run("import", "minari:cli/it-v0", "--out", str(tmp_path / "back"))
    again = CliRunner().invoke(app, ["dataset", "import", "minari:cli/it-v0", "--out", str(tmp_path / "back")])
    assert (again.exit_code, "--overwrite" in again.output) == (2, True)
    merged = CliRunner().invoke(
        app, ["dataset", "merge", str(tmp_path / "run"), str(tmp_path / "again"), "--out", str(tmp_path / "all")]
    )
    assert (merged.exit_code, "would count twice" in merged.output) == (2, True)


def pushes(spec: object) -> Any:
    """Return a heuristic for Pendulum, which acts against the swing."""
    return lambda obs: -np.sign(obs[2:3]) * np.ones(1, np.float32)


def test_teacher_without_a_head_in_its_file_has_the_neutral_one(tmp_path: Path) -> None:
    env = EnvConfig("Pendulum-v1")
    torch.manual_seed(0)
    spec = dataclasses.replace(spec_from_env(env), head=spec_from_env(env).head.as_kind("gaussian"))
    collect(env, Mlp((4,)).build(spec).eval(), SMALL, tmp_path / "first")
    relabel_dataset(tmp_path / "first", SavedTeacher(f"{__name__}:pushes"), tmp_path / "other", False, "new", True)
    data = Dataset.read([tmp_path / "other"])
    assert data.spec.head.kind == "deterministic"
    assert data.columns["teacher"].shape == (320, 1)
    distill(data, Mlp((8,)), DistillConfig(epochs=2, losses=(Term(ActionNLL()),)), tmp_path / "student")


def test_bad_names_leave_nothing_behind(teacher: NetworkPolicy, minari: Any, tmp_path: Path) -> None:
    from rldistill.data.minari.export import export_minari
    from rldistill.data.minari.read import import_minari

    collect(CARTPOLE, teacher, SMALL, tmp_path / "first")
    for name in ("minari:bad", "minari:../up-v0", "minari:a/b", "minari:a b-v0", "minari:t/dict-v0"):
        with pytest.raises(ConfigError, match="not a valid name"):
            export_minari(tmp_path / "first", name)
        with pytest.raises(ConfigError, match="not a valid name"):
            import_minari(name, tmp_path / "in")
    assert not (tmp_path / "minari").exists() or not any((tmp_path / "minari").iterdir())
    (tmp_path / "minari" / "broken").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no such dataset here"):
        import_minari("minari:cart/nope-v0", tmp_path / "in")


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


def test_labels_that_are_not_finite_are_refused(teacher: NetworkPolicy, tmp_path: Path) -> None:
    broken = copy.deepcopy(teacher)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(SpecMismatchError, match="teacher: its params for some observations are NaN or infinite"):
        collect(CARTPOLE, broken, SMALL, tmp_path / "nan")


def test_file_for_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("env: {id: CartPole-v1}")
    for verb in ("info", "check"):
        result = CliRunner().invoke(app, ["dataset", verb, str(tmp_path / "run.yaml")])
        assert (result.exit_code, "there is no such file" in result.output) == (2, True)


def test_views_of_students_are_refused_for_teachers_with_other_views(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1", views=Views(student=(Wrapper("StackFrames", {"stack": 2}),)))
    seeing = Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()
    collect(env, seeing, SMALL, tmp_path / "first")
    network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save(weights, tmp_path / "agent.cleanrl_model")
    agent = SavedTeacher(str(tmp_path / "agent.cleanrl_model"))
    with pytest.raises(SpecMismatchError, match="collect with teacher_obs: true"):
        relabel_dataset(tmp_path / "first", agent, tmp_path / "second", False, "new", True)


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
