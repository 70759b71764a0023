"""Run files: settings, precedence of overrides, and errors."""

from __future__ import annotations

import dataclasses
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from rldistill.collection.config import CollectConfig
from rldistill.core import schedules
from rldistill.core.errors import ConfigError
from rldistill.core.schedules import Constant
from rldistill.core.spec import EnvConfig
from rldistill.distillation.config import DistillConfig
from rldistill.evaluation.config import EvaluateConfig, RobustnessConfig
from rldistill.losses import ForwardKL, QHuber
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.run.config import load_run
from rldistill.students import Cnn, Linear, Mlp, Ridge, Tree
from rldistill.students.features import Fourier, Objects, Standardized
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble

EXAMPLES = Path(__file__).parents[2] / "examples"

RUN = """
env: {id: CartPole-v1}
teacher: teacher.zip
collect: {steps: 1_000}
distill:
  losses:
    - {name: forward_kl, weight: {type: linear, start: 1, end: 0}, temperature: 2e-1}
    - {name: q_huber, delta: 2}
    - forward_kl
  learning_rate: 2e-4
students:
  small: {type: mlp, hidden: [8, 8]}
  cnn: {type: cnn}
seeds: [3, 4]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cartpole.yaml"
    path.write_text(RUN)
    return path


def test_modules_beside_a_run_file_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    (tmp_path / "beside_losses.py").write_text("from rldistill import ForwardKL as Mine\n")
    path = tmp_path / "run.yaml"
    path.write_text(RUN.replace("- forward_kl\n", '- {name: "beside_losses:Mine"}\n'))
    assert isinstance(load_run(path, environment={}).distill.losses[2].loss, ForwardKL)


def test_folder_may_be_in_the_home_of_a_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.parent))
    assert load_run(file, ["out=~/runs/a"], {}).out == file.parent / "runs" / "a"
    with pytest.raises(ConfigError, match="command line: out: ~nobody-here/a: there is no such user"):
        load_run(file, ["out=~nobody-here/a"], {})


@pytest.mark.parametrize(("stem", "name"), [("my #1: ü", "my-1-ü"), ("..a", "a"), ("a-", "a-"), ("#", "run")])
def test_name_of_a_run_is_that_of_its_file(stem: str, name: str, file: Path) -> None:
    path = file.rename(file.with_name(f"{stem}.yaml"))
    run = load_run(path, environment={})
    assert (run.name, run.out) == (name, Path("runs") / name)


def test_run_consists_of_the_settings_of_the_stages(file: Path) -> None:
    plan = load_run(file, environment={})
    assert plan.name == "cartpole"
    assert plan.out == Path("runs/cartpole")
    assert plan.teacher == SavedTeacher("teacher.zip")
    assert plan.collect.steps == 1_000
    assert plan.seeds == (3, 4)
    assert plan.students == {"small": Mlp(hidden=(8, 8)), "cnn": Cnn()}
    first, second, third = plan.distill.losses
    assert first.loss == ForwardKL(temperature=0.2)
    assert first.weight == schedules.Linear(start=1.0, end=0.0)
    assert (second.loss, second.weight) == (QHuber(delta=2.0), Constant(1.0))
    assert third.loss == ForwardKL()
    assert plan.distill.learning_rate == 2e-4


def test_path_of_a_run_file_may_be_a_string(file: Path) -> None:
    assert load_run(str(file)) == load_run(file)


@pytest.mark.parametrize(
    ("teacher", "planned"),
    [
        ("{path: a.onnx, head: q_values, scale: 0.5}", SavedTeacher("a.onnx", head="q_values", scale=0.5)),
        (
            "{ensemble: [a.zip, {path: q.onnx, head: q_values}], vote: majority}",
            TeacherEnsemble((SavedTeacher("a.zip"), SavedTeacher("q.onnx", head="q_values")), "majority"),
        ),
    ],
)
def test_teacher_with_options(file: Path, teacher: str, planned: object) -> None:
    assert load_run(file, [f"teacher={teacher}"], {}).teacher == planned


def test_perturbations_are_settings_of_the_file(file: Path) -> None:
    def robustness(*overrides: str) -> RobustnessConfig | None:
        return load_run(file, overrides, {}).evaluate.robustness

    assert robustness() is None
    assert robustness("evaluate.robustness={}") == RobustnessConfig()
    own = robustness("evaluate={robustness: {sticky: 0.3, noop_max: 0, env_kwargs: {wind: {enable_wind: true}}}}")
    assert own == RobustnessConfig(sticky=0.3, noop_max=0, env_kwargs={"wind": {"enable_wind": True}})


def test_environment_without_options_is_its_name(file: Path) -> None:
    assert load_run(file, ["env=Acrobot-v1"], {}).env == EnvConfig("Acrobot-v1")


def test_precedence_of_command_line_environment_file_and_defaults(file: Path) -> None:
    environment = {"RLDISTILL__COLLECT__STEPS": "2_000", "RLDISTILL__DISTILL__EPOCHS": "7", "HOME": "/"}
    config = load_run(file, ["distill.epochs=9", "distill.losses.1.delta=0.5", "seeds=[1]"], environment)
    assert config.collect.steps == 2_000
    assert config.distill.epochs == 9
    assert config.distill.losses[1].loss == QHuber(delta=0.5)
    assert config.seeds == (1,)
    assert config.document["collect"] == {"steps": 2_000}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("distill.epoch=3", "distill.epoch: unknown key. Did you mean 'epochs'?"),
        ("distill.epochs=three", "distill.epochs: found 'three', expected an integer"),
        ("distill.epochs=true", "distill.epochs: found True, expected an integer"),
        ("distill.epochs=-1", "distill.epochs: found -1, expected at least 1"),
        ("distill.learning_rate=.nan", "distill.learning_rate: found nan, expected a finite number"),
        ("distill.learning_rate=0", "distill.learning_rate: found 0, expected more than 0"),
        ("distill.losses=[]", "distill.losses: found [], expected at least 1"),
        (
            "distill.losses.0.name=forwrd_kl",
            "distill.losses.0.name: there is no 'forwrd_kl'. Did you mean 'forward_kl'?",
        ),
        ("distill.losses.0.temprature=1", "distill.losses.0.temprature: unknown key. Did you mean 'temperature'?"),
        ("distill.losses.9.name=x", "distill.losses.9.name: distill.losses is a list of 3"),
        ("students.cnn.type=cn", "students.cnn.type: there is no 'cn'. Did you mean 'cnn'?"),
        ("students.cnn.channels=[0]", "students.cnn.channels.0: found 0, expected at least 1"),
        ("students.cnn.channels=3", "students.cnn.channels: found 3, expected a list"),
        ("students.x={}", "students.x.type: is missing"),
        ("teacher={path: a.onnx, haed: q_values}", "teacher.haed: unknown key. Did you mean 'head'?"),
        ("teacher={path: a.onnx, head: q_value}", "teacher.head: found 'q_value'"),
        (
            "teacher={ensemble: [a.zip, {path: a.onnx, haed: q_values}]}",
            "teacher.ensemble.1.haed: unknown key. Did you",
        ),
        ("teacher={ensemble: [{path: a.onnx, head: q_value}]}", "teacher.ensemble.0.head: found 'q_value'"),
        ("teacher={ensemble: [3]}", "teacher.ensemble.0: found 3, expected keys and values"),
        ("teacher={ensemble: []}", "teacher.ensemble: found [], expected at least 1"),
        ("teacher=3", "teacher: found 3, expected a path, or path, ensemble, agents or train"),
        ("teacher=[a.zip]", "teacher: found ['a.zip'], expected a path, or path, ensemble, agents or train"),
        ("teacher=[a.zip, b.zip]", "agents or train. Several: `teacher: {ensemble: [...]}`, or `teachers` with names"),
        ("students.teacher={type: mlp}", "students.teacher: expected letters, digits"),
        ("students.a b={type: mlp}", "students.a b: expected letters, digits"),
        ("students..x={type: mlp}", "expected key=value"),
        ("env.id=CartPole", "env.id: Gymnasium has no environment 'CartPole'. Did you mean 'CartPole-v1'?"),
        ("env.id=Pong", "env.id: Gymnasium has no environment 'Pong'. Did you mean 'ALE/Pong-v5'?"),
        ("env.id=LunarLander-v2", "Did you mean 'LunarLander-v3'?"),
        ("env.id=ALE/Pnog-v5", "env.id: there is no Atari game 'ALE/Pnog-v5'. Did you mean 'ALE/Pong-v5'?"),
        ("env=3", "env: found 3, expected keys and values"),
        ("env={}", "env.id: is missing"),
        ("env=CartPole", "env.id: Gymnasium has no environment 'CartPole'. Did you mean 'CartPole-v1'?"),
        ("teacher={train: {algorithm: PPPO}}", "teacher.train.algorithm: there is no 'PPPO'. Did you mean 'PPO'?"),
        (
            "teacher={train: {hyperparameters: {learning_rte: 1}}}",
            "teacher.train.hyperparameters.learning_rte: PPO has no such setting. Did you mean 'learning_rate'?",
        ),
        ("teacher={trian: {}}", "teacher.trian: unknown key. Did you mean 'train'?"),
        ("teacher.train.total_steps=1", "teacher is 'teacher.zip', which has nothing inside"),
        ("recipe.name=dager", "recipe.name: there is no 'dager'. Did you mean 'dagger'?"),
        ("recipe={name: dagger}", "recipe.steps_per_round: is missing"),
        ("recipe={name: on_policy}", "recipe.steps_per_round: is missing"),
        (
            "recipe={name: dagger, steps_per_round: 9, eval_episodes: 0}",
            "recipe.eval_episodes: found 0, expected at least 1",
        ),
        ("recipe={name: dagger, steps_per_round: 9, beta: 2}", "recipe.beta: expected numbers from 0 to 1, found 2 at"),
        (
            "recipe={name: dagger, steps_per_round: 9, beta: {type: lin}}",
            "recipe.beta.type: there is no 'lin'. Did you mean 'linear'?",
        ),
        ("seeds=[0, 0]", "seeds: the same seed is there twice"),
        ("seeds=[-1]", "seeds.0: found -1, expected at least 0"),
        ("studnets={}", "studnets: unknown key. Did you mean 'students'?"),
        ("distil.epochs=3", "distil: unknown key. Did you mean 'distill'?"),
        (f"out={EXAMPLES / 'pong.yaml'}/x", "pong.yaml is a file, expected a folder"),
        ("name=a/b", "name: found 'a/b', expected letters, digits"),
        ("seeds=2024-13-45", "seeds: not valid YAML: month must be in 1..12"),
        ("seeds=[99999999999999999]", "seeds.0: found 99999999999999999, expected less than 4294967296"),
        ("distill.num_threads=100000", "distill.num_threads: found 100000, expected at most 1024"),
        ("collect.steps=9999999999999", "collect.steps: found 9999999999999, expected at most 1000000000000"),
        ('out="a\\0b"', "out: 'a\\x00b' is no name of a folder"),
        ("recipe={name: jump_start, first_steps: 9, until: 5}", "recipe.until: found 5, expected at most 1"),
        ("dqn.epsilon_schedule=5", "dqn.epsilon_schedule"),
        ("seeds=[1", "seeds: line 1: not valid YAML"),
        ("seeds", "found 'seeds', expected key=value"),
    ],
)
def test_errors_name_key_value_and_expected_value(file: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(file, [override], {})
    assert str(caught.value).startswith("command line: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("env: {id: CartPole-v1\n", "line 2: not valid YAML"),
        ("- 1\n", "found [1], expected keys such as env"),
        ("", "found None, expected keys such as env"),
        (RUN + "seeds: [1]\n", "the key 'seeds' is there twice"),
        (RUN + "x: &x [*x]\n", "does an alias hold itself?"),
        (
            RUN
            + "a: &a [1, 1]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefg")),
            "more than 100,000 entries",
        ),
        (RUN + "x: !!python/object/apply:os.system [echo]\n", "not valid YAML: could not determine a constructor"),
        (RUN.replace("1_000", "many"), "collect.steps: found 'many', expected an integer"),
        (RUN.replace("teacher: teacher.zip\n", ""), "teacher: is missing"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_run(path, environment={})
    assert str(caught.value).startswith(f"{path}:")
    assert expected in str(caught.value)


def test_key_beside_a_merged_mapping_overrides_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "env: {id: CartPole-v1}\nteacher: teacher.zip\nstudents:\n  one: &one {type: mlp, hidden: [8]}\n"
        "  two: &two {<<: *one, hidden: [4]}\n  three: {<<: *two, activation: tanh}\n"
    )
    two, three = Mlp((4,)), Mlp((4,), "tanh")
    assert load_run(path, environment={}).students == {"one": Mlp((8,)), "two": two, "three": three}
    # An override changes the one that it names, not all that share a mapping.
    changed = load_run(path, ["students.one.hidden.0=16"], environment={}).students
    assert changed == {"one": Mlp((16,)), "two": two, "three": three}
    path.write_text(path.read_text().replace("hidden: [4]", "hidden: [4], hidden: [2]"))
    with pytest.raises(ConfigError, match="line 5: not valid YAML: the key 'hidden' is there twice"):
        load_run(path, environment={})


def test_unreadable_file_is_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such file\. Did you mean '.*cartpole.yaml'"):
        load_run(tmp_path / "cartpol.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text"):
        load_run(tmp_path / "binary.yaml")


def test_error_names_the_environment_variable(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"environment variable RLDISTILL__DISTILL__EPOCHS: distill\.epochs: found 0"):
        load_run(file, environment={"RLDISTILL__DISTILL__EPOCHS": "0"})
    for variable in ("RLDISTILL__", "RLDISTILL__DISTILL____EPOCHS"):
        with pytest.raises(ConfigError, match=f"environment variable {variable}: it names no key, as in RLDISTILL__D"):
            load_run(file, environment={variable: "3"})


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("collect", CollectConfig),
        ("distill", DistillConfig),
        ("evaluate", EvaluateConfig),
        ("ppo", PPOConfig),
        ("dqn", DQNConfig),
        ("students.t", Tree),
    ],
)
def test_default_values_can_be_written(file: Path, key: str, stage: type) -> None:
    numbers = {field.name: field.default for field in dataclasses.fields(stage) if type(field.default) in (int, float)}
    numbers.pop("nodes", None)  # it comes from a file of weights, not from a run file
    assert numbers
    run = load_run(file, ["students.t.type=tree", *(f"{key}.{name}={value}" for name, value in numbers.items())])
    whole = run.students["t"] if stage is Tree else getattr(run, key)
    assert {name: getattr(whole, name) for name in numbers} == numbers


def test_features_are_a_name_or_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    text = """
env: {id: CartPole-v1}
teacher: somewhere
students:
  plain: linear
  waves: {type: ridge, l2: 1e-3, features: {type: fourier, num_features: 12}}
  standardized: {type: linear, features: standardized}
  objects: {type: tree, features: {type: objects, regions: [[ball, 0, 78, 0, 72]]}}
"""
    file.write_text(text)
    students = load_run(file).students
    assert students == {
        "plain": Linear(),
        "waves": Ridge(1e-3, Fourier(12)),
        "standardized": Linear(Standardized()),
        "objects": Tree(features=Objects((("ball", 0, 78, 0, 72),))),
    }
    for override, message in (
        ("students.waves.features.type=furier", "Did you mean 'fourier'"),
        ("students.waves.features.num_feature=3", "Did you mean 'num_features'"),
        ("students.plain=liner", "Did you mean 'linear'"),
        ("students.objects.features.regions=[[ball, 1, 2]]", "regions"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_run(file, [override])
