"""Worlds: parameters of the environment that each episode draws from its seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rldistill import CollectConfig, EnvConfig, TrainConfig, Views, Wrapper, collect, train_teacher
from rldistill.core.errors import ConfigError, UntrustedFileError
from rldistill.core.worlds import Choice
from rldistill.data.manifest import Env, Manifest
from rldistill.envs.make import make_env
from rldistill.envs.spaces import observation_views, spec_from_env
from rldistill.envs.vector import keeps_state_across_reset, make_vector_env
from rldistill.exporters.certificate import require_plain_env
from rldistill.policies.network import NetworkPolicy
from rldistill.run.config import read_run
from rldistill.students import Mlp

from ..conftest import manifest_bytes

LENGTHS = EnvConfig("CartPole-v1", worlds={"length": (0.25, 2.0), "force_mag": Choice((-10, 5.0))})
LANDER = EnvConfig("LunarLander-v3", {"enable_wind": True}, worlds={"gravity": (-12, -2), "wind_power": (0, 20)})
SEES = Views(teacher=(Wrapper("WorldParameters"),))


def world_of(env: Any) -> dict[str, Any]:
    world: dict[str, Any] = env.get_wrapper_attr("world")
    return world


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30)
def test_world_depends_on_the_seed_alone_and_is_within_its_range(seed: int) -> None:
    used, fresh = make_env(LENGTHS), make_env(LENGTHS)
    used.reset(seed=seed + 1)
    first, second = used.reset(seed=seed)[0], fresh.reset(seed=seed)[0]
    np.testing.assert_array_equal(first, second)
    assert world_of(used) == world_of(fresh)
    assert 0.25 <= world_of(used)["length"] < 2.0
    assert world_of(used)["force_mag"] in (-10, 5.0)


def test_attributes_are_those_of_an_environment_that_was_made_with_them() -> None:
    """CartPole computes total_mass and polemass_length from others, and only once."""
    env: Any = make_env(EnvConfig("CartPole-v1", worlds={"length": (0.3, 0.9), "masspole": (0.05, 0.5)}))
    env.reset(seed=3)
    bare, world = env.unwrapped, world_of(env)
    assert (bare.length, bare.masspole) == (world["length"], world["masspole"])
    assert bare.total_mass == pytest.approx(world["masspole"] + 1.0)
    assert bare.polemass_length == pytest.approx(world["masspole"] * world["length"])


def test_arguments_make_the_environment_again() -> None:
    pytest.importorskip("Box2D")
    env: Any = make_env(LANDER)
    obs, _ = env.reset(seed=5)
    own = gymnasium.make("LunarLander-v3", enable_wind=True, **world_of(env))
    np.testing.assert_array_equal(obs, own.reset(seed=5)[0])
    for action in (0, 2, 3, 2, 1) * 4:
        np.testing.assert_array_equal(env.step(action)[0], own.step(action)[0])
    assert env.unwrapped.world.gravity[1] == pytest.approx(world_of(env)["gravity"])


def test_number_multiplies_an_array() -> None:
    pytest.importorskip("mujoco")
    env: Any = make_env(EnvConfig("InvertedPendulum-v5", worlds={"model.body_mass": (1.5, 2.0)}))
    before = env.unwrapped.model.body_mass.copy()
    for seed in range(2):
        env.reset(seed=seed)
        np.testing.assert_allclose(env.unwrapped.model.body_mass, before * world_of(env)["model.body_mass"])


@pytest.mark.parametrize("env", [LENGTHS, LANDER])
def test_seeds_reproduce_resets_without_a_seed_and_sampled_actions(env: EnvConfig) -> None:
    """An environment that is made again would lose the seed of its action space, and that of its next episode."""

    def trajectory() -> list[Any]:
        copy: Any = make_env(env)
        copy.action_space.seed(0)
        rows = [copy.reset(seed=3)[0]]
        for _ in range(3):
            for _ in range(5):
                rows.append(copy.step(copy.action_space.sample())[0])
            rows += [copy.reset()[0], [*world_of(copy).values()]]
        return rows

    first, second = trajectory(), trajectory()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[7] != first[14]


def test_worlds_leave_no_state_across_resets() -> None:
    assert not keeps_state_across_reset(LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("env", [LENGTHS, LANDER], ids=["attributes", "arguments"])
def test_episodes_are_the_same_for_any_number_of_workers(env: EnvConfig) -> None:
    paths = []
    for workers in (1, 2):
        vector = make_vector_env(env, 3, lambda slot, nth: 100 * slot + nth, workers=workers)
        path = [vector.reset()]
        for number in range(120):
            step = vector.step(np.full(3, number % 2))
            path += [step.obs, step.reward]
        paths.append(path)
        vector.close()
    for a, b in zip(*paths, strict=True):
        np.testing.assert_array_equal(a, b)


def test_teacher_sees_the_parameters_and_the_student_does_not(tmp_path: Path) -> None:
    env = dataclasses.replace(LENGTHS, views=SEES)
    views = observation_views(env)
    assert (views.student.obs_shape, views.teacher.obs_shape) == ((4,), (6,))
    vector = make_vector_env(env, 2, lambda slot, nth: 100 * slot + nth)
    obs = vector.reset()
    worlds = [world_of(single) for single in vector.group.envs]  # type: ignore[attr-defined]
    expected = [[world["length"], world["force_mag"]] for world in worlds]
    np.testing.assert_array_equal(views.select("teacher", obs)[:, 4:], np.float32(expected))
    np.testing.assert_array_equal(views.select("teacher", obs)[:, :4], views.select("student", obs))
    teacher = Mlp((4,)).build(views.teacher).eval()
    config = CollectConfig(steps=200, block_steps=10, epsilon=0.5)
    data = collect(env, teacher, config, tmp_path, progress=False)
    assert data.spec.obs_shape == (4,)
    assert Manifest.read(tmp_path).env == env
    before = manifest_bytes(tmp_path)
    for block in sorted((tmp_path / "blocks").glob("*.parquet"))[1:]:
        block.unlink()
    collect(
        env, teacher, CollectConfig(steps=200, block_steps=10, epsilon=0.5), tmp_path, mode="resume", progress=False
    )
    assert manifest_bytes(tmp_path) == before


@pytest.mark.slow
def test_trained_teacher_has_the_view_of_teachers(tmp_path: Path) -> None:
    config = TrainConfig("PPO", total_steps=256, num_envs=2, eval_episodes=1, hyperparameters={"n_steps": 64})
    env = dataclasses.replace(LENGTHS, views=SEES)
    assert isinstance(teacher := train_teacher(env, config, tmp_path, progress=False), NetworkPolicy)
    assert teacher.spec.obs_shape == spec_from_env(env.view_of("teacher")).obs_shape == (6,)


@pytest.mark.parametrize(
    ("worlds", "problem"),
    [
        ({"lenght": (1, 2)}, "neither an argument nor a number 'lenght'. Did you mean 'length'?"),
        ({"length": (2, 1)}, r"worlds.length: found (2, 1), expected two numbers, the smaller one first, or {values: "),
        ({"length": 3}, "worlds.length: found 3, expected two numbers"),
        ({"length": {"values": []}}, "worlds.length.values: found [], expected at least 1"),
        ({"length": {"value": [1]}}, "worlds.length.value: unknown key. Did you mean 'values'?"),
        ({"length": {"values": [1, "long"]}}, "env.worlds.length: found 'long'. Use numbers."),
        ({"render_mode": {"values": ["human"]}}, "env.worlds.render_mode: rendering is not a part of the world."),
        ({"sutton_barto_reward": {"values": ["yes", 3]}}, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_worlds_are_refused(worlds: dict[str, Any], problem: str | None) -> None:
    if problem is None:
        make_env(EnvConfig("CartPole-v1", worlds=worlds)).reset(seed=0)
        return
    with pytest.raises(ConfigError) as caught:
        make_env(EnvConfig("CartPole-v1", worlds=worlds))
    assert problem in str(caught.value)


def test_worlds_that_the_environment_refuses() -> None:
    pytest.importorskip("Box2D")
    for worlds, problem in (
        ({"gravity": (-13.0, -8.0)}, r"env\.worlds\.gravity: -12\.999995 is refused: .*must be between -12 and 0"),
        ({"continuous": Choice((False, True))}, r"env\.worlds\.continuous: True changes the spaces"),
    ):
        with pytest.raises(ConfigError, match=problem):
            make_env(EnvConfig("LunarLander-v3", worlds=worlds))
    make_env(LANDER)  # the ends of a range may be excluded, as -12 is
    with pytest.raises(ConfigError, match=r"env\.worlds: ALE/Pong-v5 runs on ale-py"):
        spec_from_env(EnvConfig("ALE/Pong-v5", worlds={"mode": (0, 1)}))
    for env in (EnvConfig("CartPole-v1"), EnvConfig("CartPole-v1", worlds={"sutton_barto_reward": Choice(("a", "b"))})):
        with pytest.raises(ConfigError, match="WorldParameters does not accept"):
            spec_from_env(dataclasses.replace(env, wrappers=(Wrapper("WorldParameters"),)))


def test_argument_that_worlds_replace_is_refused() -> None:
    env = {"id": "CartPole-v1", "kwargs": {"sutton_barto_reward": True}}
    worlds = {"sutton_barto_reward": {"values": [False]}}
    with pytest.raises(ConfigError, match=r"env\.kwargs: sutton_barto_reward is in `worlds`, too\. Use one"):
        read_run({"env": {**env, "worlds": worlds}, "teacher": "zoo:x"})


def test_run_file_names_worlds() -> None:
    worlds = {"length": [0.25, 2], "force_mag": {"values": [-10, 5.0]}}
    document = {"env": {"id": "CartPole-v1", "worlds": worlds}, "teacher": "zoo:x"}
    assert read_run(document).env == LENGTHS
    assert read_run(document | {"evaluate": {"worlds": {"long": {"length": [3, 4]}}}}).evaluate.worlds == {
        "long": {"length": (3.0, 4.0)}
    }
    with pytest.raises(ConfigError, match=r"^run: evaluate\.worlds\.long\.length: found \[3\], expected two numbers"):
        read_run(document | {"evaluate": {"worlds": {"long": {"length": [3]}}}})


@pytest.mark.parametrize(
    ("env_id", "action", "expected"),
    [("CartPole-v1", 1, [0.0, 1.0]), ("Pendulum-v1", np.float32([0.5]), [0.5])],
)
def test_last_action_is_appended(env_id: str, action: Any, expected: list[float]) -> None:
    env = make_env(EnvConfig(env_id, wrappers=(Wrapper("LastAction"),)))
    bare = make_env(EnvConfig(env_id))
    for seed in range(2):
        zeros = [0.0] * len(expected)
        np.testing.assert_array_equal(env.reset(seed=seed)[0], np.append(bare.reset(seed=seed)[0], zeros))
        obs = env.step(action)[0]
        np.testing.assert_array_equal(obs, np.append(bare.step(action)[0], np.float32(expected)))
        assert env.observation_space.contains(obs)


def test_certificate_of_an_export_has_the_worlds() -> None:
    stored = TypeAdapter(Env)
    record = stored.validate_json(stored.dump_json(LENGTHS))
    assert require_plain_env(record, Path("parity.json")) == LENGTHS
    for worlds in ({"length": [0, 1e9]}, {"length": {"values": ["/etc/passwd"]}}):
        hostile = stored.validate_python({"id": "CartPole-v1", "worlds": worlds})
        with pytest.raises(UntrustedFileError, match=r"the environment has length="):
            require_plain_env(hostile, Path("parity.json"))
