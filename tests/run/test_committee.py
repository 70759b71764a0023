"""Runs with several teachers: from the run file to the report, with refusals before the first step."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, RLDistillError, SpecMismatchError
from rldistill.core.heads import ILLEGAL
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.data.dataset import open_dataset
from rldistill.distillation.config import DistillConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.compare_teachers import compare_teachers
from rldistill.evaluation.config import CompareConfig, EvaluateConfig
from rldistill.policies.ensemble import Committee
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.dagger import Dagger
from rldistill.recipes.from_reward import Kickstart
from rldistill.recipes.job import Run
from rldistill.recipes.offline import BornAgain
from rldistill.reporting.page import write_comparison
from rldistill.run.config import load_run
from rldistill.run.stages import load_teacher, run_all, run_collect, run_distill
from rldistill.students import Mlp
from rldistill.students.storage import save_policy
from rldistill.teachers.committee import CommitteeMember, load_committee
from rldistill.teachers.load import SavedTeacher

from ..conftest import CARTPOLE, manifest_bytes

SHORT = EnvConfig("CartPole-v1", {"max_episode_steps": 60})  # so that the episodes of a good teacher end, too


def network(seed: int = 0, env: EnvConfig = CARTPOLE) -> NetworkPolicy:
    torch.manual_seed(seed)
    return Mlp((4,)).build(spec_from_env(env)).eval()


def make_run(folder: Path, teacher: NetworkPolicy, **changes: Any) -> Run:
    run = Run(
        env=SHORT,
        teachers={"good": teacher, "poor": network()},
        out=folder,
        students={"mlp": Mlp((16,))},
        collect=CollectConfig(steps=1_500, epsilon=0.1, num_streams=1),
        distill=DistillConfig(epochs=8, batch_size=64, weighting="value"),
        evaluate=EvaluateConfig(episodes=3, videos=False),
    )
    return dataclasses.replace(run, **changes)


@pytest.mark.slow
def test_run_from_several_teachers_to_the_report(
    tmp_path: Path, teacher: NetworkPolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = DistillConfig(epochs=8, batch_size=64, weighting="learned")
    run = make_run(tmp_path / "run", teacher, recipe=Dagger(steps_per_round=200, rounds=1), distill=learned)
    page = run_all(run, quiet=True).read_text()
    evaluation = json.loads((run.out / "evaluation.json").read_text())
    assert list(evaluation["policies"]) == ["teacher", "poor", "mlp", "random"]  # the best of them is the teacher
    assert "teacher: good, with the highest mean return" in capsys.readouterr().out
    assert "mlp: share of each teacher over the course of an episode" in page
    assert '<h2 id="teachers-title">Teachers</h2>' in page
    assert "Where each teacher is followed" in page
    shares = json.loads((run.out / "students/mlp/seed-0/weighting.json").read_text())["teachers"]
    assert np.isclose(shares["good"]["share"] + shares["poor"]["share"], 1)
    assert shares["good"]["mean_return"] > shares["poor"]["mean_return"]
    student = (run.out / "students/mlp/seed-0/policy.safetensors").read_bytes()
    run_all(run, mode="resume", quiet=True)
    assert (run.out / "students/mlp/seed-0/policy.safetensors").read_bytes() == student
    renamed = dataclasses.replace(run, teachers={"a": teacher, "b": network()})
    with pytest.raises(ConfigError, match="collected with the teacher Committee"):
        run_distill(renamed, mode="resume", quiet=True)


@pytest.mark.slow
def test_another_weighting_takes_no_steps(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = make_run(tmp_path / "run", teacher)
    run_collect(run, quiet=True)
    before = manifest_bytes(run.dataset_folder)
    students = set()
    for weighting in ("uniform", "confidence", "learned"):
        other = dataclasses.replace(run, distill=dataclasses.replace(run.distill, weighting=weighting))
        run_distill(other, mode="overwrite", quiet=True)
        students.add((run.out / "students/mlp/seed-0/policy.safetensors").read_bytes())
    assert len(students) == 3
    assert manifest_bytes(run.dataset_folder) == before
    with pytest.raises(ConfigError, match=r"distill\.weighting was learned, now it is value"):
        run_distill(run, mode="resume", quiet=True)


@pytest.mark.slow
def test_generations_learn_from_the_first_student(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = make_run(tmp_path / "run", teacher, recipe=BornAgain(rounds=1))
    run_collect(run, quiet=True)
    run_distill(run, quiet=True)
    assert open_dataset(run.out / "students/mlp/seed-0/labels-1").spec.members == ()


FILE = "env: {id: CartPole-v1}\nstudents: {mlp: {type: mlp}}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "teacher: is missing. Name one, or several as `teachers`"),
        ("teacher: a.zip\nteachers: {a: a.zip, b: b.zip}\n", "teachers: there is a `teacher` as well. Use one"),
        ("teachers: {a: a.zip}\n", "teachers: found one teacher, expected several. Use `teacher` for one"),
        ("teachers: {a: a.zip, random: b.zip}\n", "teachers.random: expected letters"),
        ("teachers: {a: a.zip, mlp: b.zip}\n", "teachers: mlp is the name of a student, too. Use another name"),
        ("teachers: {a: a.zip, b: {train: {algorithm: PPO, total_steps: 9}}}\n", "teachers.b: expected a path"),
        ("teachers: {a: a.zip, b: {path: b.zip, heads: x}}\n", "teachers.b.heads: unknown key. Did you mean 'head'"),
        ("teachers: {a: a.zip, b: b.zip}\ndistill: {weighting: values}\n", "distill.weighting: found 'values'"),
    ],
)
def test_wrong_run_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(FILE + text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {expected}")):
        load_run(path, environment={})


def test_teachers_of_a_run_file_are_loaded_with_their_options(tmp_path: Path) -> None:
    for name in "ab":
        save_policy(network(), tmp_path / name, {})
    path = tmp_path / "run.yaml"
    path.write_text(
        FILE + f"teachers: {{a: {tmp_path / 'a'}, two: {{ensemble: [{tmp_path / 'a'}, {tmp_path / 'b'}]}}}}\n"
    )
    assert load_teacher(load_run(path, environment={})).spec.members == (("a", "categorical"), ("two", "categorical"))


def test_weighting_without_episodes_costs_no_student(tmp_path: Path, teacher: NetworkPolicy) -> None:
    few = CollectConfig(steps=100, num_streams=1)
    run = make_run(tmp_path / "run", teacher, collect=few, distill=DistillConfig(epochs=1, weighting="value"))
    run_collect(run, quiet=True)
    kept = run.out / "students/mlp/seed-0/policy.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    with pytest.raises(ConfigError, match=r"distill\.weighting: value and learned need whole episodes of each teacher"):
        run_distill(run, mode="overwrite", quiet=True)
    assert kept.exists()


def test_combinations_without_a_meaning_are_refused_before_the_first_step(
    tmp_path: Path, teacher: NetworkPolicy
) -> None:
    with pytest.raises(ConfigError, match=r"teachers: Kickstart follows one teacher\. Use `teacher` with an ensemble"):
        run_distill(make_run(tmp_path / "a", teacher, recipe=Kickstart()), quiet=True)
    single = dataclasses.replace(make_run(tmp_path / "b", teacher), teachers={}, teacher=teacher)
    with pytest.raises(ConfigError, match=r"distill\.weighting: value needs several teachers"):
        run_collect(single, quiet=True)
    assert not (tmp_path / "b" / "dataset").exists()
    acrobot = network(env=EnvConfig("Acrobot-v1"))
    with pytest.raises(SpecMismatchError, match=r"teachers: .*do not fit.*\(member 0 is good, member 1 is other\)"):
        load_teacher(make_run(tmp_path / "c", teacher, teachers={"good": teacher, "other": acrobot}))
    with pytest.raises(ConfigError, match=r"teachers\.b: missing.zip: there is no such file"):
        load_committee({"a": teacher, "b": CommitteeMember("missing.zip")}, CARTPOLE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actions": (0, 0)}, r"^teachers\.b\.actions: found \[0, 0\]"),
        ({"view": (Wrapper("Nope"),)}, r"^teachers\.b: view: there is no 'Nope'"),
        (
            {"view": (Wrapper("LastAction"),)},
            r"^teachers\.b: zoo:cartpole-ppo and the environment with its view do not fit",
        ),
        ({"path": "zoo:pong"}, r"^teachers\.b: the zoo has no 'pong'.*Known: .*cartpole-ppo"),
    ],
)
def test_error_names_the_teacher_that_has_it(teacher: NetworkPolicy, options: dict[str, Any], message: str) -> None:
    member = CommitteeMember(**{"path": "zoo:cartpole-ppo", **options})
    with pytest.raises((ConfigError, SpecMismatchError), match=message):
        load_committee({"a": teacher, "b": member}, CARTPOLE)


def test_teacher_with_some_of_the_actions(tmp_path: Path) -> None:
    spec = spec_from_env(CARTPOLE)  # two actions, in place of an environment of four of them
    four = dataclasses.replace(spec, head=dataclasses.replace(spec.head, nvec=(4,)))
    save_policy(network(), tmp_path / "few", {})
    policy = SavedTeacher(str(tmp_path / "few"), actions=(3, 1)).load(four)
    obs = torch.randn(6, 4)
    inner, outer = network()(obs)[0], policy(obs)[0]
    assert torch.equal(outer.params[:, [3, 1]], inner.params)
    assert (outer.params[:, [0, 2]] == ILLEGAL).all()
    assert torch.equal(outer.mode(), torch.tensor([3, 1])[inner.mode()])
    torch.manual_seed(5)
    both = Committee((policy, Mlp((4,)).build(four).eval()), names=("few", "all"))
    probabilities = both(obs)[0].params.exp()
    assert torch.allclose(probabilities.sum(1), torch.ones(6), atol=1e-5)
    assert (probabilities[:, 0] < 0.5).all()  # the half of the teacher that has this action
    for actions, expected in {
        (0, 4): "different numbers from 0 to 3",
        (1, 1): "different",
        (0, 1, 2): "3 numbers",
    }.items():
        with pytest.raises(RLDistillError, match=rf"teacher\.actions: .*{expected}"):
            SavedTeacher(str(tmp_path / "few"), actions=actions).load(four)


@pytest.mark.slow
def test_comparison_tells_the_teachability_of_each_weighting(teacher: NetworkPolicy, tmp_path: Path) -> None:
    found = compare_teachers(SHORT, {"good": teacher, "poor": network()}, CompareConfig(3, 600, 4))
    assert set(found.weightings) == {"uniform", "confidence", "value", "learned"}
    assert "teachability of all teachers together, weighting value: " in str(found)
    write_comparison(found, tmp_path / "page.html")
    assert "All teachers together" in (tmp_path / "page.html").read_text()
    few = compare_teachers(SHORT, {"good": teacher, "poor": teacher}, CompareConfig(1, 40, 1))
    assert {name for name, own in few.weightings.items() if isinstance(own, str)} >= {"value", "learned"}
    lines = " ".join(str(few).split())  # without the line breaks of the terminal
    assert "weighting value: distill.weighting: value and learned need whole episodes" in lines
