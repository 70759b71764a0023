"""Search for the smallest student: ranking of candidates, and a whole search on CartPole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from rldistill.cli.options import parse_share
from rldistill.core.errors import ConfigError, NothingLearnedError
from rldistill.core.fields import read
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.distillation.distill import distill
from rldistill.evaluation.episodes import TEST, PlayConfig, play
from rldistill.evaluation.statistics import Estimate
from rldistill.evaluation.tables import rich_table
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes import to_document
from rldistill.reporting.search_page import Rung, SearchResult, as_students, search_rows, search_verdict, write_search
from rldistill.run.config import load_run
from rldistill.run.stages import run_search as search
from rldistill.search.candidates import Candidate, make_candidates
from rldistill.search.config import SearchConfig
from rldistill.search.halving import promote
from rldistill.students import AnyStudent, Linear, Mlp, Tree
from rldistill.students.features import Fourier
from rldistill.students.storage import save_policy

from .. import commands

pytestmark = pytest.mark.slow


def candidate(name: str, parameters: int, score: float | None) -> Candidate:
    normalized = None if score is None else Estimate(score, None)
    rung = Rung(epochs=1, episodes=1, normalized=normalized, failed=None)
    return Candidate(name, Linear(), {"parameters": parameters}, [rung])


def test_small_sufficient_candidates_are_promoted_first() -> None:
    some = [
        candidate("big", 90, 1.0),
        candidate("off", 5, 0.4),
        candidate("near", 10, 0.91),
        candidate("none", 1, None),
    ]
    # within 5% and as much again for few episodes: 0.90 is enough for now
    assert [t.name for t in promote(some, SearchConfig(0.05), 3)] == ["near", "big", "off"]
    assert [t.name for t in promote(some, SearchConfig(0.01), 3)] == ["big", "near", "off"]


def test_candidates_are_smaller_than_the_teacher_except_own_ones(teacher: NetworkPolicy) -> None:
    own = {"mine": Mlp((500, 500)), "same": Mlp((8, 8))}
    result = make_candidates(teacher.spec, own, 500)
    assert result["mine"] == Mlp((500, 500))
    assert "mlp-8" not in result  # it is one of the user's
    assert {"linear", "mlp-4", "tree-4"} <= set(result)
    assert "mlp-64" not in result
    assert to_document(Linear(Fourier(64))) == {
        "type": "linear",
        "features": {"type": "fourier", "num_features": 64},
    }
    assert to_document(Mlp((8, 8))) == {"type": "mlp", "hidden": [8, 8]}
    assert to_document(Tree()) == "tree"


def run_file(tmp_path: Path, teacher: NetworkPolicy) -> Path:
    save_policy(teacher, tmp_path / "teacher", {})
    document = {
        "env": {"id": "CartPole-v1"},
        "teacher": str(tmp_path / "teacher"),
        "collect": {"steps": 2_000, "epsilon": 0.1},
        "distill": {"epochs": 20, "batch_size": 64, "learning_rate": 1e-2},
        "evaluate": {"episodes": 20},
        "out": str(tmp_path / "run"),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_search_finds_a_small_student_and_resumes(
    tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(
        run_file(tmp_path, teacher), ["students.small=linear", "students.hidden={type: linear, features: teacher}"]
    )
    config = SearchConfig(0.2, seeds=(0, 1), episodes=4, behavior_policy="small")
    found = search(run, config, quiet=True)
    result = found.to_dict()
    assert result["winner"] is not None
    tried = {entry["name"]: entry for entry in result["tried"]}
    assert tried["hidden"]["rungs"][0]["normalized"]["value"] > 0.5
    winner = tried[result["winner"]]
    assert winner["size"]["parameters"] < result["teacher"]["parameters"]
    assert winner["test"]["test"]["decision"] == "yes"
    assert winner["test"]["test"]["lower"] > 0
    tested = tmp_path / "run/search" / winner["test"]["folder"]
    assert (tested / "seed-0" / "policy.json").exists()
    last = tmp_path / "run/search/trials" / result["winner"] / "rung-2/policy.safetensors"
    assert last.read_bytes() == (tested / "seed-0" / "policy.safetensors").read_bytes()
    smaller = [e for e in result["tried"] if e["test"] and e["size"]["parameters"] < winner["size"]["parameters"]]
    assert all(entry["test"]["test"]["decision"] != "yes" for entry in smaller)
    console = Console(width=100, record=True)
    console.print(rich_table(search_rows(found)), search_verdict(found))
    assert result["winner"] in console.export_text()
    students = read(dict[str, AnyStudent], yaml.safe_load(as_students(found))["students"])
    assert list(students) == [result["winner"]]
    write_search(found, tmp_path / "search.html")
    assert "<script" not in (tmp_path / "search.html").read_text()

    folder = tmp_path / "run" / "search"
    acted = json.loads((folder / "students" / "behavior-policy" / "seed-0" / "policy.json").read_text())
    assert acted["student"] == "linear"
    (folder / "search.json").unlink()
    stamp = {path: path.stat().st_mtime_ns for path in folder.rglob("policy.safetensors")}
    with pytest.raises(ConfigError, match="--resume"):
        search(run, config, quiet=True)
    with pytest.raises(ConfigError, match=r"search\.margin was 0\.2, now it is 0\.1.*--overwrite"):
        search(run, dataclasses.replace(config, margin=0.1), mode="resume", quiet=True)
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    more = dataclasses.replace(run, collect=dataclasses.replace(run.collect, steps=run.collect.steps + 64))
    with pytest.raises(ConfigError, match=r"steps.*rldistill collect FILE --overwrite"):
        search(more, config, mode="overwrite", quiet=True)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.json")}
    again = search(run, config, mode="resume", quiet=True).to_dict()
    assert again | {"seconds": 0, "teacher": 0} == result | {"seconds": 0, "teacher": 0}
    assert stamp == {path: path.stat().st_mtime_ns for path in folder.rglob("policy.safetensors")}

    def never(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("an episode was played twice")

    monkeypatch.setattr("rldistill.search.halving.play", never)
    for file in (folder / "search.json", tested / "test.json"):
        file.unlink()
    again = search(run, config, mode="resume", quiet=True).to_dict()
    assert again | {"seconds": 0, "teacher": 0} == result | {"seconds": 0, "teacher": 0}


def test_own_students_of_any_name_are_searched(
    tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []

    def counting(env: EnvConfig, policy: Policy | None, episodes: int, config: PlayConfig, **settings: Any) -> Any:
        if config.split == TEST and policy is not None:
            judged.append(episodes)
        return play(env, policy, episodes, config, **settings)

    monkeypatch.setattr("rldistill.search.halving.play", counting)
    config = SearchConfig(0.2, seeds=(0, 1), episodes=4, own=True)
    run = load_run(run_file(tmp_path, teacher), ["students.behavior-policy=linear", "students.mlp={type: mlp}"])
    result = search(run, config, quiet=True).to_dict()
    assert [entry["name"] for entry in result["tried"]] == ["behavior-policy", "mlp"]
    assert result["winner"] == "behavior-policy"
    # Each seed, the first too, and the teacher: on other episodes than the student was chosen by.
    (tested,) = {entry["test"]["episodes"] for entry in result["tried"] if entry["test"]}
    of_seeds = sum(len(entry["test"]["seeds"]) for entry in result["tried"] if entry["test"])
    assert sum(judged) == tested * (of_seeds + 1)
    with pytest.raises(ConfigError, match="own: the run has no students"):
        search(dataclasses.replace(run, students={}), config, mode="overwrite", quiet=True)
    with pytest.raises(ConfigError, match=r"behavior_policy: the run has no student 'mpl'\. Did you mean 'mlp'"):
        search(run, dataclasses.replace(config, behavior_policy="mpl"), mode="overwrite", quiet=True)


def test_wrong_behavior_policy_trains_no_teacher(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = load_run(run_file(tmp_path, teacher), ["teacher={train: {algorithm: PPO, total_steps: 64}}"])
    with pytest.raises(ConfigError, match=r"behavior_policy: the run has no student 'none'\. Add it, or name one"):
        search(run, SearchConfig(behavior_policy="none"), quiet=True)
    assert not (run.out / "teacher").exists()


@pytest.mark.parametrize(("seeds", "tested"), [("[1]", [1, 0, 2]), ("[5, 6, 7, 8]", [5, 6, 7, 8])])
def test_run_settings_set_seeds_and_episodes_of_the_test(
    tmp_path: Path, teacher: NetworkPolicy, seeds: str, tested: list[int]
) -> None:
    settings = ["students.small=linear", f"seeds={seeds}", "evaluate={episodes: 15, max_episodes: 30}"]
    run = load_run(run_file(tmp_path, teacher), settings)
    result = search(run, SearchConfig(0.2, episodes=4, own=True, behavior_policy="small"), quiet=True).to_dict()
    (small,) = result["tried"]
    assert small["test"]["seeds"] == tested
    assert small["test"]["episodes"] in (15, 30)
    assert (tmp_path / "run/search" / small["test"]["folder"] / f"seed-{tested[-1]}" / "policy.json").exists()


def test_seed_that_learns_nothing_fails_the_test(
    tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, seed: int = 0, **settings: Any) -> NetworkPolicy:
        if seed == 1:
            raise NothingLearnedError("nothing was learned")
        return distill(*arguments, seed=seed, **settings)

    monkeypatch.setattr("rldistill.search.halving.distill", fails)
    run = load_run(run_file(tmp_path, teacher), ["students.small=linear"])
    result = search(run, SearchConfig(0.2, seeds=(0, 1), episodes=4, behavior_policy="small"), quiet=True)
    assert result.winner is None
    assert {trial.test.failed for trial in result.tried if trial.test} == {"nothing was learned"}
    Console(record=True).print(rich_table(search_rows(result)), search_verdict(result))


def test_wrong_options_are_refused(tmp_path: Path, teacher: NetworkPolicy) -> None:
    assert parse_share("5%") == parse_share("0.05") == 0.05
    with pytest.raises(ConfigError, match="found 'few', expected a fraction such as 5%"):
        parse_share("few")
    with pytest.raises(ConfigError, match=r"margin: found 2\.0, expected less than 1"):
        SearchConfig(parse_share("200%"))
    with pytest.raises(ConfigError, match="Did you mean 'parameters'"):
        SearchConfig(by="parameter")  # type: ignore[arg-type]
    done = commands.run("search", str(run_file(tmp_path, teacher)), "--by", "weight")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_search_without_a_winner_is_reported(tmp_path: Path) -> None:
    row = {"epochs": 1, "episodes": 2, "normalized": None, "failed": "nothing was learned"}
    entry = {"name": "a", "student": {"type": "linear"}, "size": {}, "rungs": [row], "test": None}
    values = {"env": "E", "margin": 0.05, "by": "macs", "env_steps": 9, "teacher": {"macs": 5}, "winner": None}
    result = SearchResult.parse({**values, "tried": [entry], "front": [], "seconds": 1.0}, tmp_path)
    assert search_verdict(result).startswith("No student is known to keep 95%")
    Console(record=True).print(rich_table(search_rows(result)))
