"""Datasets to Minari and back, and from elsewhere."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.data.minari.export import export_minari
from rldistill.data.minari.read import import_minari
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear, Mlp

from ..conftest import CARTPOLE
from .conftest import record_elsewhere

pytestmark = pytest.mark.slow

PONG = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 120})


SMALL = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=32, epsilon=0.4)


def recurrent(env: EnvConfig = CARTPOLE, seed: int = 3) -> NetworkPolicy:
    torch.manual_seed(seed)
    return Actor(lstm=(6, 1), hidden=(5,), critic=(4,)).build(spec_from_env(env)).eval()


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
    env = EnvConfig("CartPole-v1", wrappers=(Wrapper(f"{__name__}:Bits"),))
    torch.manual_seed(0)
    before = collect(env, Mlp((8,)).build(spec_from_env(env)).eval(), SMALL, tmp_path / "first")
    export_minari(tmp_path / "first", "minari:test/bits-v0")
    after = import_minari("minari:test/bits-v0", tmp_path / "back")
    ours, theirs = (np.lexsort((d.columns["step"], d.columns["episode"])) for d in (before, after))
    for name, column in before.columns.items():
        np.testing.assert_array_equal(after.columns[name][theirs], column[ours], err_msg=name)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_infos_from_elsewhere_are_not_taken_for_ours(minari: Any, tmp_path: Path) -> None:
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
    record_elsewhere(minari, "other/start-v0", gymnasium.spaces.Discrete(3, start=-1))
    with pytest.raises(ConfigError, match=r"start=-1.*MultiDiscrete from 0"):
        import_minari("minari:other/start-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_grids_of_numbers_are_flat_and_rounding_is_a_warning(minari: Any, tmp_path: Path) -> None:
    record_elsewhere(minari, "other/grid-v0", gymnasium.spaces.Box(-1, 1, (2, 2)), rewards=[0.5, 0.1, 0.25, 1.0])
    with pytest.warns(UserWarning, match="other/grid-v0: rewards were rounded from float64"):
        data = import_minari("minari:other/grid-v0", tmp_path / "in")
    assert data.columns["action"].shape == data.columns["teacher"].shape == (12, 4)
    export_minari(tmp_path / "in", "minari:other/again-v0")
    again = import_minari("minari:other/again-v0", tmp_path / "again")
    np.testing.assert_array_equal(again.columns["action"], data.columns["action"])


@pytest.mark.parametrize("error", [AssertionError(), TypeError("no such column"), KeyboardInterrupt()])
def test_export_that_fails_leaves_nothing(
    teacher: NetworkPolicy, minari: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from minari.dataset._storages import arrow_storage

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
def test_grids_of_choices_are_flat_and_start_at_0(minari: Any, tmp_path: Path) -> None:
    record_elsewhere(minari, "other/grid-v0", gymnasium.spaces.MultiDiscrete([[2, 3], [4, 2]]))
    data = import_minari("minari:other/grid-v0", tmp_path / "in")
    assert (data.columns["action"].shape, data.columns["teacher"].shape) == ((12, 4), (12, 11))
    record_elsewhere(minari, "other/start-v0", gymnasium.spaces.MultiDiscrete([2, 3], start=[1, 1]))
    with pytest.raises(ConfigError, match="MultiDiscrete from 0"):
        import_minari("minari:other/start-v0", tmp_path / "start")


def test_missing_minari_dataset_is_named(minari: Any, tmp_path: Path) -> None:
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


def test_bad_names_leave_nothing_behind(teacher: NetworkPolicy, minari: Any, tmp_path: Path) -> None:
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
