"""Metrics of episodes from `info`: their values, their estimates, and the refusal of names that are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml

from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.evaluate import evaluate
from rldistill.evaluation.match import Match
from rldistill.evaluation.metrics import metric_estimate
from rldistill.evaluation.results import Evaluation, terminal_rows
from rldistill.evaluation.statistics import Estimate, mean_of_reported
from rldistill.io.atomic import write_json
from rldistill.reporting import write_report
from rldistill.teachers.python import FunctionPolicy

ROAD = EnvConfig("Road-v0")


class Road(gymnasium.Env[Any, Any]):
    """Four steps of a drive, which crashes if the last action is 0; a fine is paid in the third step alone."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.has_toll = 0, bool(self.np_random.integers(2))
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {"only_at_reset": 1}

    def step(self, action: Any) -> Any:
        self.t += 1
        info: dict[str, Any] = {"crashed": bool(action == 0), "speed": np.float32(10 * self.t), "rewards": {"a": 1.0}}
        info |= {"fine": 7} if self.t == 3 else {}
        info |= {"toll": np.array([3.0])} if self.has_toll else {}
        info |= {"late": True} if self.t == 4 else {}
        return np.zeros(2, np.float32), float(action), self.t == 4, False, info


@pytest.fixture(autouse=True)
def _road() -> Iterator[None]:
    gymnasium.register("Road-v0", Road)
    yield
    del gymnasium.registry["Road-v0"]


def constant(action: int) -> FunctionPolicy:
    return FunctionPolicy(lambda obs: action, spec_from_env(ROAD))


def test_the_last_step_with_a_key_counts() -> None:
    played = play(ROAD, None, 40)
    last = [int(actions[-1]) for actions in played.actions]
    np.testing.assert_array_equal(played.metric("crashed"), [float(action == 0) for action in last])
    np.testing.assert_array_equal(played.metric("speed"), 40)
    np.testing.assert_array_equal(played.metric("fine"), 7)
    toll = played.metric("toll")
    assert 5 < np.isnan(toll).sum() < 35
    assert set(toll[~np.isnan(toll)]) == {3.0}
    assert np.isnan(played.metric("only_at_reset")).all()
    assert np.isnan(played.metric("rewards")).all()
    both = play(ROAD, None, 25).followed_by(play(ROAD, None, 15, PlayConfig(first=25)))
    np.testing.assert_array_equal(both.metric("toll"), toll)


def test_emulators_have_their_own_numbers() -> None:
    played = play(EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 80}), None, 3)
    np.testing.assert_array_equal(played.metric("lives"), 0)
    assert (played.metric("episode_frame_number") >= 80).all()


def test_the_mean_is_over_the_episodes_with_a_value() -> None:
    values = np.array([[1.0, np.nan, 4.0], [np.nan, np.nan, 1.0]])
    assert mean_of_reported(values) == 2.0
    np.testing.assert_array_equal(mean_of_reported(np.stack([values, np.full((2, 3), np.nan)])), [2.0, np.nan])
    runs = [play(ROAD, None, 40, PlayConfig(seed)) for seed in (1, 2, 3)]
    found = metric_estimate(runs, "toll", 40)
    assert found is not None
    assert (found.value, found.ci95) == (3.0, (3.0, 3.0))
    crashed = metric_estimate(runs, "crashed", 40)
    assert crashed is not None
    assert crashed.ci95 is not None
    assert crashed.ci95[0] < crashed.value < crashed.ci95[1]
    assert metric_estimate(runs, "rewards", 40) is None


@pytest.mark.filterwarnings("ignore:no videos")
def test_metrics_are_in_the_file_the_table_the_report_and_the_card(tmp_path: Path) -> None:
    config = EvaluateConfig(episodes=30, metrics=("crashed", "toll", "late"), videos=False)
    result = evaluate(ROAD, {"teacher": constant(1), "wild": constant(0)}, config, tmp_path)
    crashed = {name: entry.metrics["crashed"] for name, entry in result.policies.items()}
    assert all(crashed.values())
    assert {name: own.value for name, own in crashed.items() if own and name != "random"} == {"teacher": 0, "wild": 1}
    random = result.policies["random"].runs[0].metrics
    assert crashed["random"]
    assert crashed["random"].value == pytest.approx(np.mean(random["crashed"]))
    tolls = random["toll"]
    assert set(tolls) == {None, 3.0}
    again = Evaluation.read(tmp_path / "evaluation.json")
    assert again.to_dict() == result.to_dict()
    header = [cell.column for cell in terminal_rows(again)[0]]
    assert header[header.index("crashed") :][:3] == ["crashed", "toll", "late"]
    report, card = write_report(tmp_path).read_text(), (tmp_path / "MODEL_CARD.md").read_text()
    assert "crashed" in report
    assert "| crashed | toll | late |" in card
    front = yaml.safe_load(card.split("---")[1])
    assert {"type": "crashed", "name": "crashed", "value": 1.0, "verified": False} in front["model-index"][0][
        "results"
    ][0]["metrics"]


def test_an_evaluation_without_metrics_is_read(tmp_path: Path) -> None:
    document = evaluate(ROAD, {"teacher": constant(1)}, EvaluateConfig(episodes=3, videos=False), tmp_path).to_dict()
    for entry in document["policies"].values():
        del entry["metrics"]
        for run in entry["runs"]:
            del run["metrics"]
    write_json(tmp_path / "evaluation.json", document)
    assert Evaluation.read(tmp_path / "evaluation.json").teacher.metrics == {}


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("crashd", "'crashd' is in no step's info of the environment. Did you mean 'crashed'?"),
        ("rewards", "'rewards' is not a number in info of the environment"),
        ("collisions", "'collisions' is in no step's info of the environment"),
        ("only_at_reset", "'only_at_reset' is in no step's info of the environment"),
    ],
)
def test_other_names_are_refused(metric: str, words: str, tmp_path: Path) -> None:
    config = EvaluateConfig(episodes=3, metrics=(metric,), videos=False)
    with pytest.raises(ConfigError) as caught:
        evaluate(ROAD, {"teacher": constant(1)}, config, tmp_path)
    assert str(caught.value).startswith(f"evaluate.metrics: {words}")
    assert "crashed, speed" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_name_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Match, "play_all", lambda *arguments: pytest.fail("the evaluation began"))
    for metric in ("sped", "lat", "rewards"):
        with pytest.raises(ConfigError, match=r"evaluate\.metrics"):
            evaluate(ROAD, {"teacher": constant(1)}, EvaluateConfig(metrics=(metric,)), tmp_path)


def test_a_key_of_some_episodes_alone_is_not_taken_for_a_misspelt_one(tmp_path: Path) -> None:
    config = EvaluateConfig(episodes=10, metrics=("toll",), videos=False)
    result = evaluate(ROAD, {"teacher": constant(1)}, config, tmp_path)
    assert result.teacher.metrics["toll"] == Estimate(3.0, (3.0, 3.0))
