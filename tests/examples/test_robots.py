"""Teachers and environments of `examples/` for robots: their scores, and equal episodes for equal seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.envs.make import make_env
from rldistill.envs.spaces import adapt_env, spec_from_env
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.teachers.load import load_policy

ROOT = Path(__file__).parents[2]
TEACHERS = ROOT.parent / "shared" / "teachers"
ESTOOL = TEACHERS / "estool" / "biped.pepg.1.96.best.json"
ANT = TEACHERS / "more" / "mujoco-berkeley" / "Ant.safetensors"
ABSENT = "an agent that is not part of the repository"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _examples_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("examples", "examples/teachers"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    for name in ("metaworld_tasks", "estool", "berkeley"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.skipif(not ESTOOL.exists(), reason=ABSENT)
def test_walker_of_estool_walks() -> None:
    env = EnvConfig("BipedalWalker-v3")
    policy = load_policy(f"estool:walker@{ESTOOL}", spec=spec_from_env(env))
    assert sum(value.numel() for value in policy.parameters()) == 2_804
    assert play(env, policy, 2).returns.min() > 330


@pytest.mark.skipif(not ANT.exists(), reason=ABSENT)
def test_ant_of_version_2_runs_in_version_5() -> None:
    pytest.importorskip("mujoco")
    wrapper = Wrapper("PadObservation", {"segments": [[27, 6, 0], [78, 0, 0]]})
    env = EnvConfig("Ant-v5", views=Views(teacher=(wrapper,)))
    policy = load_policy(f"berkeley:Expert@{ANT}", spec=spec_from_env(env.view_of("teacher")))
    assert play(env, policy, 1, PlayConfig(side="teacher")).returns[0] > 4_000
    # Without the wrapper, the contact forces of version 3 are 0.
    adapted = adapt_env(EnvConfig("Ant-v5"), policy)
    own, padded = make_env(EnvConfig("Ant-v5")), make_env(adapted)
    action = np.ones(8, np.float32)
    for env in (own, padded):
        env.reset(seed=0)
    for _ in range(5):
        obs, seen = own.step(action)[0], padded.step(action)[0]
        np.testing.assert_array_equal(seen, np.concatenate([obs[:27], np.zeros(84)]))
    assert play(adapted, policy, 1).returns[0] > 4_000


@pytest.mark.parametrize("task", ["reach-v3", "window-open-v3"])
def test_metaworld_tasks_are_seeded_and_their_experts_succeed(task: str) -> None:
    pytest.importorskip("metaworld", reason="needs the extra robots")
    env = EnvConfig("metaworld_tasks:make", {"task": task})
    policy = load_policy(f"metaworld_tasks:{task.replace('-', '_')}", spec=spec_from_env(env))
    first, again = (play(env, policy, 3) for _ in range(2))
    assert first.returns.tolist() == again.returns.tolist() == [1, 1, 1]
    assert first.lengths.tolist() == again.lengths.tolist()
    assert first.success_rate == 1
    one, two = make_env(env), make_env(env)
    one.reset(seed=3)
    one.step(np.zeros(4, np.float32))
    np.testing.assert_array_equal(one.reset(seed=4)[0], two.reset(seed=4)[0])
    assert not np.array_equal(one.reset(seed=5)[0], two.reset(seed=6)[0])
    obs = torch.zeros(1, *policy.spec.obs_shape)
    assert policy(obs)[0].mode().abs().max() <= 1


def test_unknown_metaworld_task_is_refused() -> None:
    pytest.importorskip("metaworld", reason="needs the extra robots")
    env = EnvConfig("metaworld_tasks:make")
    with pytest.raises(ConfigError, match="no 'fly_v3' in metaworld_tasks"):
        load_policy("metaworld_tasks:fly_v3", spec=spec_from_env(env))


def test_differences_of_positions_are_magnified_and_bounded() -> None:
    from features.differences import StateAndDifferences

    obs = torch.zeros(1, 39, dtype=torch.float64)
    obs[0, 4], obs[0, -1] = 0.04, -1.0  # an object 4 cm from the hand, and a goal a meter below both
    features = StateAndDifferences(39)(obs)[0]
    assert features[:39].tolist() == obs[0].float().tolist()
    np.testing.assert_allclose(features[39:], [1, 0, 0, -1, 0, -3, 0, 0, -3], atol=1e-6)
