"""Episodes of an evaluation that was stopped: what is read is what was played, and nothing is played twice."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rldistill.core.errors import ConfigError, CorruptArtifactError, RLDistillError
from rldistill.core.heads import CategoricalHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation import fidelity
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.disagreements import Moments
from rldistill.evaluation.episodes import ComparedStep, PlayConfig, PolicyRuns
from rldistill.evaluation.evaluate import RunContext, evaluate, evaluate_shard
from rldistill.evaluation.fidelity import OwnStates
from rldistill.evaluation.match import FOLDER, Played, PlayPart, read_played
from rldistill.io.execution import Shard, ignore
from rldistill.io.lock import lock_folder
from rldistill.io.tensors import read_tensors, write_tensors
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Mlp

from ..conftest import CARTPOLE

PENDULUM = EnvConfig("Pendulum-v1", {"max_episode_steps": 20})


def content(played: Played) -> tuple[Any, ...]:
    episodes, states = played
    assert states is not None
    outputs = [(output.head, output.params.tolist(), output.value) for output in states.outputs()]
    moments = [
        {
            key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
            for key, value in vars(own).items()
        }
        for own in Moments.largest([states.moments])
    ]
    own = {key: repr(value) for key, value in vars(episodes).items()}
    return own, outputs, moments, states._stride


@pytest.mark.parametrize("env", [CARTPOLE, PENDULUM], ids=lambda env: env.id)
def test_what_is_read_is_what_was_played(env: EnvConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = (Mlp((4,)).build(spec_from_env(env)).eval() for _ in range(2))
    policies = {"teacher": PolicyRuns("teacher", {None: teacher}), "mlp": PolicyRuns("student", {3: student})}
    job = PlayPart(env, policies, PlayConfig(5, sample=True), tmp_path)
    reports: list[int] = []
    part = "mlp", 3, range(2, 5)
    first, again = (content(job(part, lambda units, _: reports.append(units))) for _ in range(2))
    assert first == again
    assert len(first[2]) > 1
    assert sum(reports) == 6
    (path,) = (tmp_path / FOLDER).iterdir()
    assert content(job(("mlp", 3, range(3, 5)), ignore)) != first
    tensors, state = read_tensors(path)
    write_tensors(path, {name: value for name, value in tensors.items() if name != "returns"}, state)
    with pytest.raises(CorruptArtifactError, match=rf"{path.name}: there is no 'returns'\. Start again"):
        read_played(path, 3, 2)
    write_tensors(path, tensors, state | {"info": [{"a": "b"}]})
    with pytest.raises(
        CorruptArtifactError, match=rf"{path.name}: info\.0\.a: found .b., expected a number\. Start again"
    ):
        read_played(path, 3, 2)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptArtifactError, match="not a whole checkpoint"):
        job(part, ignore)


def states_of(steps: range, lengths: list[int]) -> OwnStates:
    """Own states of some episodes, one slot, whose numbers are their own."""
    head, found = CategoricalHead((2,)), OwnStates(0)
    for episode in steps:
        for step in range(lengths[episode]):
            teacher = PolicyOutput(head, torch.tensor([[float(episode), float(step)]]))
            student = PolicyOutput(head, torch.tensor([[float(step % 3), 1.0]]))
            number = np.array([episode]), np.array([step])
            found.add(ComparedStep(np.array([[float(episode), float(step)]]), student, teacher, *number))
    return found


@given(st.lists(st.integers(1, 90), min_size=2, max_size=5), st.integers(5, 200), st.data())
@settings(max_examples=30, deadline=None)
def test_ranges_of_episodes_have_the_states_of_all_of_them(lengths: list[int], limit: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(lengths) - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "MAX_OWN_STATES", limit)
        one, two = (states_of(steps, lengths) for steps in (range(cut), range(cut, len(lengths))))
        found, expected = one.followed_by(two), states_of(range(len(lengths)), lengths)
        assert [output.params.tolist() for output in found.outputs()] == [
            output.params.tolist() for output in expected.outputs()
        ]
        regrets = [[moment.regret for moment in Moments.largest([states.moments])] for states in (found, expected)]
        assert regrets[0] == regrets[1]


class Failing:
    """Student that fails at its first step."""

    def __init__(self, policy: NetworkPolicy) -> None:
        self.policy, self.spec = policy, policy.spec

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, obs: Any, state: Any = None) -> Any:
        raise RLDistillError("student: it fails")


def results(evaluation: Any) -> Mapping[str, Any]:
    policies = evaluation.to_dict()["policies"]
    for entry in policies.values():
        del entry["latency_us"], entry["batch_latency_us"]
    found: Mapping[str, Any] = policies
    return found


def test_evaluation_that_was_stopped_goes_on(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, students = EvaluateConfig(4, videos=False), {"teacher": teacher, "a": teacher, "b": teacher}
    whole = results(evaluate(CARTPOLE, students, config, tmp_path / "whole", progress=False))
    with pytest.raises(RLDistillError, match="it fails"):
        evaluate(CARTPOLE, {**students, "b": Failing(teacher)}, config, tmp_path / "run", progress=False)
    assert len([*(tmp_path / "run" / FOLDER).iterdir()]) == 2
    played, module = list[int](), sys.modules["rldistill.evaluation.match"]
    play = module.play  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "play", lambda *some, **more: (played.append(1), play(*some, **more))[1])
    assert results(evaluate(CARTPOLE, students, config, tmp_path / "run", progress=False)) == whole
    assert len(played) == 2  # b and random play
    assert not (tmp_path / "run" / FOLDER).exists()


def test_shards_have_the_results_of_one_process(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.evaluation.match.PART_EPISODES", 2)
    config, students = EvaluateConfig(5, videos=False, labeled_episodes=3), {"teacher": teacher, "mlp": [teacher] * 2}
    whole = results(evaluate(CARTPOLE, students, config, tmp_path / "whole", RunContext(7), progress=False))
    folder = tmp_path / "run"
    with lock_folder(folder):
        pass
    for number in (1, 2, 3):
        for _ in range(2):  # the second time, nothing is left to do
            evaluate_shard(CARTPOLE, students, config, folder, Shard(number, 3), seed=7, progress=False)
        assert len([*(folder / FOLDER).iterdir()]) == 4 * number
    monkeypatch.setattr(sys.modules["rldistill.evaluation.match"], "play", None)
    assert results(evaluate(CARTPOLE, students, config, folder, RunContext(7), progress=False)) == whole


def test_shards_are_refused_beside_an_evaluation(teacher: NetworkPolicy, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    config, students = EvaluateConfig(1, videos=False), {"teacher": teacher}
    with lock_folder(tmp_path), ThreadPoolExecutor() as pool, pytest.raises(ConfigError, match="in use by"):
        pool.submit(evaluate_shard, CARTPOLE, students, config, tmp_path, Shard(1, 1), progress=False).result()
