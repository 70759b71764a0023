"""Environments in other processes: the same episodes, the errors of one process, and the end of the processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rldistill.core.errors import ConfigError, RLDistillError
from rldistill.core.spec import EnvConfig
from rldistill.envs import groups
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.evaluation.episodes import Episodes, PlayConfig, play
from rldistill.students import Linear

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow


def kind(name: str, **kwargs: Any) -> EnvConfig:
    return EnvConfig("user_envs:make", {"kind": name, **kwargs})


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)


def content(played: Episodes) -> list[Any]:
    taken = [np.asarray(actions).tobytes() for actions in played.actions]
    return [played.returns.tobytes(), played.discounted.tobytes(), played.lengths.tobytes(), played.info, taken]


@pytest.mark.parametrize(
    "env",
    [
        CARTPOLE, EnvConfig("BipedalWalker-v3", {"max_episode_steps": 40}),
        kind("KeepsState"), kind("OddInfo"), kind("BitsInDict"),
    ],
    ids=lambda env: env.kwargs.get("kind", env.id),
)  # fmt: skip
@pytest.mark.parametrize("acts", [True, False], ids=["policy", "random"])
def test_episodes_are_the_same_for_any_number_of_workers(env: EnvConfig, acts: bool) -> None:
    policy = Linear().build(spec_from_env(env)).eval() if acts else None
    expected = content(play(env, policy, 7, PlayConfig(3)))
    for workers in (2, 3):
        # nan is not equal to itself, but its text is
        assert repr(content(play(env, policy, 7, PlayConfig(3, env_workers=workers)))) == repr(expected)


def test_more_episodes_than_slots_and_more_workers_than_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rldistill.evaluation.episodes.MAX_SLOTS", 4)
    expected = content(play(CARTPOLE, None, 11, PlayConfig(3)))
    assert content(play(CARTPOLE, None, 11, PlayConfig(3, env_workers=3))) == expected
    assert content(play(CARTPOLE, None, 2, PlayConfig(3, env_workers=8))) == content(
        play(CARTPOLE, None, 2, PlayConfig(3))
    )


def test_replay_restores_the_slots() -> None:
    def vector(workers: int) -> Any:
        return make_vector_env(CARTPOLE, 3, lambda slot, nth: 10 * slot + nth, workers=workers)

    actions = [np.zeros((length, 1), np.int64) for length in (4, 0, 2)]
    alone, divided = vector(1), vector(2)
    np.testing.assert_array_equal(divided.replay([1, 0, 2], actions), alone.replay([1, 0, 2], actions))
    alone.close()
    divided.close()


def test_processes_serve_one_group_after_another() -> None:
    play(CARTPOLE, None, 4, PlayConfig(env_workers=2))
    before = {process.pid for process in multiprocessing.active_children()}
    assert len(groups._idle) >= 2
    play(kind("OddInfo"), None, 4, PlayConfig(env_workers=2))
    assert {process.pid for process in multiprocessing.active_children()} == before
    assert all(process.daemon for process, _ in groups._idle)


@pytest.mark.parametrize("name", ["FailingStep", "FailingReset"])
def test_errors_are_those_of_one_process(name: str) -> None:
    texts = set()
    for workers in (1, 2):
        with pytest.raises(RLDistillError) as caught:
            play(kind(name), None, 4, PlayConfig(env_workers=workers))
        texts.add(str(caught.value))
    assert len(texts) == 1
    with pytest.raises(ConfigError, match="an episode has not ended after 5 steps"):
        play(kind("OddInfo"), None, 4, PlayConfig(env_workers=2, max_steps=5))
    play(CARTPOLE, None, 4, PlayConfig(env_workers=2))


def test_error_of_construction_in_a_worker_alone_is_that_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_idle", [])
    gymnasium.register("OnlyInOneProcess-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv")
    try:
        for _ in range(2):  # with new processes, then with those that had a group
            with pytest.raises(ConfigError, match=r"env\.id: 'OnlyInOneProcess-v0': .* doesn't exist"):
                make_vector_env(EnvConfig("OnlyInOneProcess-v0"), 4, lambda slot, nth: slot, workers=2)
            play(CARTPOLE, None, 4, PlayConfig(env_workers=2))
    finally:
        del gymnasium.registry["OnlyInOneProcess-v0"]


def test_a_killed_worker_is_one_line() -> None:
    env = make_vector_env(CARTPOLE, 4, lambda slot, nth: slot, workers=2)
    env.reset()
    process = env.group._workers[1][0]  # type: ignore[attr-defined]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    with pytest.raises(ConfigError, match=r"^evaluate\.env_workers: a worker was killed"):
        env.step(np.zeros(4, np.int64))
    env.close()
    assert all(worker.is_alive() for worker, _ in groups._idle)
    play(CARTPOLE, None, 4, PlayConfig(env_workers=2))


def test_interrupted_steps_leave_no_answers_behind() -> None:
    env = make_vector_env(CARTPOLE, 4, lambda slot, nth: slot, workers=2)
    env.reset()
    env.send(np.zeros(4, np.int64))
    workers = {process.pid for process, _ in env.group._workers}  # type: ignore[attr-defined]
    env.close()
    assert not workers & {process.pid for process, _ in groups._idle}


def test_threads_have_processes_of_their_own() -> None:
    expected, found = content(play(CARTPOLE, None, 4, PlayConfig(3))), []
    threads = [
        threading.Thread(target=lambda: found.append(content(play(CARTPOLE, None, 4, PlayConfig(3, env_workers=2)))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 2
