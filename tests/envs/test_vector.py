"""Vector environments: every episode is the one of its seed, whatever the other slots do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from rldistill.core.errors import ConfigError, MissingExtraError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.envs import make
from rldistill.envs.make import make_env, wrapper_class
from rldistill.envs.seeding import PURPOSES, episode_seed
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import keeps_state_across_reset, make_vector_env
from rldistill.evaluation.videos import has_pictures
from rldistill.run.config import load_run

from ..conftest import CARTPOLE

PONG = EnvConfig("ALE/Pong-v5")


@pytest.mark.parametrize("env_id", ["CartPole-v1", "BipedalWalker-v3"])
def test_every_episode_is_that_of_a_fresh_environment_with_its_seed(env_id: str) -> None:
    env = make_vector_env(EnvConfig(env_id, {"max_episode_steps": 90}), 3, lambda slot, nth: 100 * slot + nth)
    rng = np.random.default_rng(0)
    single = gymnasium.make(env_id, max_episode_steps=90)
    single.action_space.seed(0)
    obs = env.reset()
    paths: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for _ in range(250):
        actions = np.stack([single.action_space.sample() for _ in range(3)])
        for slot in range(3):
            paths.setdefault((slot, int(env.episode[slot])), []).append((obs[slot].copy(), actions[slot]))
        obs = env.step(actions).obs
    assert {slot for slot, nth in paths if nth >= 2} == {0, 1, 2}
    for slot, nth in [(0, 0), (1, 1), (2, 2), *rng.permutation(list(paths))[:3].tolist()]:
        fresh = gymnasium.make(env_id, max_episode_steps=90)
        seen, _ = fresh.reset(seed=100 * slot + nth)
        for expected, action in paths[slot, nth]:
            np.testing.assert_array_equal(expected, seen)
            seen = fresh.step(action)[0]


def test_final_observation_is_returned_beside_the_next_episodes_first() -> None:
    env = make_vector_env(CARTPOLE, 2, lambda slot, nth: 10 * slot + nth)
    env.reset()
    step = env.step(np.array([0, 1]))
    while not len(step.ended):
        step = env.step(np.array([0, 1]))
    slot = int(step.ended[0])
    first, _ = gymnasium.make("CartPole-v1").reset(seed=10 * slot + 1)
    np.testing.assert_array_equal(step.obs[slot], first)
    assert abs(step.last_obs[list(step.ended).index(slot)][2]) > 0.2095  # the pole's angle at which CartPole ends


@pytest.mark.parametrize(("env_id", "keeps"), [("CartPole-v1", False), ("BipedalWalker-v3", True)])
def test_environments_with_state_across_resets_are_detected(env_id: str, keeps: bool) -> None:
    assert keeps_state_across_reset(EnvConfig(env_id)) is keeps


def test_no_two_purposes_share_a_seed() -> None:
    seeds = [
        episode_seed(run, purpose, round, stream, slot, nth)
        for purpose in PURPOSES
        for run in range(2)
        for round in range(2)
        for stream in range(2)
        for slot in range(4)
        for nth in range(20)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_pong_begins_with_empty_frames_and_depends_on_its_seed_alone() -> None:
    spec = spec_from_env(PONG)
    assert (spec.obs_shape, spec.obs_dtype, spec.head.nvec) == ((4, 84, 84), "uint8", (6,))
    paths = []
    for slots in (1, 3):
        env = make_vector_env(PONG, slots, lambda slot, nth: 7 + slot)
        obs = env.reset()
        assert not obs[:, :3].any()
        assert obs[:, 3].any()
        path = [obs[0]]
        for step in range(40):
            path.append(env.step(np.full(slots, 2 + step % 2)).obs[0].copy())
        env.close()
        paths.append(np.stack(path))
    np.testing.assert_array_equal(*paths)


def test_sticky_actions_are_the_default_and_can_be_removed() -> None:
    def play(seed: int, **kwargs: float) -> np.ndarray:
        env = make_vector_env(EnvConfig("ALE/Pong-v5", {"noop_max": 0, **kwargs}), 1, lambda slot, nth: seed)
        env.reset()
        last = [env.step(np.array([2 + step // 5 % 2])).obs for step in range(60)][-1].copy()
        env.close()
        return last

    assert (play(1) != play(2)).any()
    assert (play(1, repeat_action_probability=0) == play(2, repeat_action_probability=0)).all()


def test_wrappers_are_applied_from_the_inside_out() -> None:
    wrappers = (Wrapper("RescaleObservation", {"min_obs": -1, "max_obs": 1}), Wrapper("TimeAwareObservation"))
    env = EnvConfig("MountainCar-v0", wrappers=wrappers)
    assert spec_from_env(env).obs_shape == (3,)
    obs = make_vector_env(env, 2, lambda slot, nth: slot).reset()
    assert obs.shape == (2, 3)
    assert np.abs(obs[:, :2]).max() <= 1
    (one,) = EnvConfig("CartPole-v1", wrappers=(Wrapper("gymnasium.wrappers:TimeAwareObservation"),)).wrappers
    assert wrapper_class(one) is gymnasium.wrappers.TimeAwareObservation


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (EnvConfig("CartPole-v1", wrappers=(Wrapper("TimeAwareObs"),)), "Did you mean 'TimeAwareObservation'"),
        (EnvConfig("CartPole-v1", wrappers=(Wrapper("Vector"),)), r"no 'Vector' in gymnasium\.wrappers\.$"),
        (EnvConfig("CartPole-v1", wrappers=(Wrapper("vector"),)), r"no 'vector' in gymnasium\.wrappers\.$"),
        (EnvConfig("CartPole-v1", wrappers=(Wrapper("no_such_module:X"),)), "cannot be imported"),
        (EnvConfig("CartPole-v1", wrappers=(Wrapper("ClipReward", {"low": 1}),)), "ClipReward does not accept"),
        (EnvConfig("CartPole-v1", {"gravty": 1}), "env.kwargs"),
        (EnvConfig("CartPole-v1", {"gravty": [1]}), r"env\.kwargs: .* does not accept \{'gravty': \[1\]\}"),
        (EnvConfig("CartPole-v99"), r"[^.]\. Did you mean 'CartPole-v1'\?$"),
        (EnvConfig("CartPoles-v1"), r"Environment `CartPoles` doesn't exist\. Did you mean 'CartPole-v1'\?$"),
        (
            EnvConfig("own/NeedsPackage-v0"),
            r"env\.id: 'own/NeedsPackage-v0': No module named 'no_such'\. Install it\.$",
        ),
        (EnvConfig("ALE/Pong-v5", wrappers=(Wrapper("TimeAwareObservation"),)), "accepts no wrappers"),
        (EnvConfig("ALE/Pong-v5", {"frame_skip": 4}), "Did you mean 'frameskip'"),
        (EnvConfig("ALE/Pong-v5", {"repeat_action_probability": "abc"}), "found 'abc', expected a number"),
        (EnvConfig("ALE/Pong-v5", {"repeat_action_probability": 2}), "found 2, expected at most 1"),
        (EnvConfig("ALE/Pong-v5", {"noop_max": 3.5}), r"noop_max: found 3\.5, expected an integer"),
        (EnvConfig("ALE/Pong-v5", {"img_height": -3}), "img_height: found -3, expected at least 1"),
        (EnvConfig("ALE/Pong-v5", {"maxpool": 1}), "maxpool: found 1, expected true or false"),
    ],
)
def test_invalid_environment_is_refused(env: EnvConfig, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EnvSpec("own/NeedsPackage-v0", "no_such:Env")
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    with pytest.raises(ConfigError, match=message):
        spec_from_env(env)


PACKAGE = """
import gymnasium
from tests.envs.user_envs import Base
gymnasium.register("Parcel-Sort-v0", Base)
"""


@pytest.mark.parametrize("text", [PACKAGE, PACKAGE + "1 / 0\n", None])
def test_known_package_is_registered_before_its_id_is_checked(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(make.THIRD_PARTY, "parcels", (r"Parcel-.*", "parcel-sim"))
    monkeypatch.delitem(sys.modules, "parcels", raising=False)
    monkeypatch.delitem(gymnasium.registry, "Parcel-Sort-v0", raising=False)
    file = tmp_path / "run.yaml"
    file.write_text("env: {id: Parcel-Sort-v0}\nteacher: a.zip\n")
    if text is None:
        with pytest.raises(ConfigError, match=r"Parcel-Sort-v0 needs another package.*pip install parcel-sim"):
            load_run(file)
        return
    (tmp_path / "parcels.py").write_text(text)
    if text == PACKAGE:
        assert spec_from_env(load_run(file).env).obs_shape == (3,)
    else:
        with pytest.raises(ConfigError, match=r"parcels cannot be imported \(ZeroDivisionError.*parcels.py, line 5\)"):
            load_run(file)


@pytest.mark.skipif(importlib.util.find_spec("highway_env") is not None, reason="highway-env is installed")
def test_missing_highway_env_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"highway-fast-v0 needs .*pip install 'rldistill\[driving\]'"):
        spec_from_env(EnvConfig("highway-fast-v0"))


def test_wrappers_are_read_from_the_run_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.yaml"
    path.write_text("env: {id: CartPole-v1, wrappers: [{name: TimeAwareObservation}]}\nteacher: t.zip\n")
    assert make_env(load_run(path, environment={}).env).observation_space.shape == (5,)
    with pytest.raises(ConfigError, match=r"env\.wrappers: there is no 'TimeAware'"):
        load_run(path, ["env.wrappers.0.name=TimeAware"], {})


def test_modules_are_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_mine.py").write_text(
        "import gymnasium\n"
        "class Same(gymnasium.Wrapper):\n    pass\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    assert make_env(EnvConfig("of_mine:Mine-v0", wrappers=(Wrapper("of_mine:Same"),))).observation_space.shape == (4,)
    with pytest.raises(ConfigError, match="Did you mean 'Same'"):
        make_env(EnvConfig("CartPole-v1", wrappers=(Wrapper("of_mine:Sane"),)))


def test_environment_is_made_by_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "envs_of_mine.py").write_text(
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "def heavy(gravity=20.0):\n    return PendulumEnv(g=gravity)\n"
        "def locked():\n    raise RuntimeError('no licence')\n"
        "def none():\n    pass\n"
        "three = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    env = load_run(_written(tmp_path, "env: {id: 'envs_of_mine:heavy'}\nteacher: t.zip\n"), environment={}).env
    assert make_env(env).unwrapped.g == 20
    assert make_env(EnvConfig(env.id, {"gravity": 5.0})).unwrapped.g == 5
    assert spec_from_env(env).obs_shape == (3,)
    assert not has_pictures(env)
    assert make_vector_env(env, 2, lambda slot, nth: slot).reset().shape == (2, 3)
    (tmp_path / "unwritten.py").write_text("def (")
    for wrong, words in {
        "envs_of_mine:havy": "Did you mean 'heavy'",
        "no_such:heavy": "cannot be imported",
        "unwritten:heavy": "cannot be imported",
        "envs_of_mine:locked": "cannot be made: RuntimeError: no licence",
        "envs_of_mine:none": r"returns no gymnasium\.Env\. Return one",
        "envs_of_mine:three": "expected a function, found int",
        ":heavy": "cannot be made",
    }.items():
        with pytest.raises(ConfigError, match=rf"env\.id: .*{words}"):
            make_env(EnvConfig(wrong))
    with pytest.raises(ConfigError, match=r"env\.kwargs: envs_of_mine:heavy does not accept"):
        make_env(EnvConfig(env.id, {"gravty": 5.0}))


def _written(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"
