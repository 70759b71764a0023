"""Runs of several tasks: refusals, budgets of DAgger, and all stages."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.spec import EnvConfig
from rldistill.distillation.config import DistillConfig
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.tasks import TasksEvaluation
from rldistill.exporters.certificate import Certificate
from rldistill.io.progress import SILENT
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.dagger import Dagger
from rldistill.recipes.job import Run, StudentJob, Task
from rldistill.recipes.tasks import TasksJob, task_runs
from rldistill.run.config import load_run, read_run
from rldistill.run.evaluation import run_evaluate
from rldistill.run.jobs import load_teacher, student_job, warn_of_mistakes
from rldistill.run.stages import run_all, run_collect, run_distill, run_train
from rldistill.students import Mlp, MultiTask
from rldistill.students.storage import load_native, save_policy
from rldistill.teachers.load import SavedTeacher

from ..distillation.test_tasks import MOUNTAIN_CAR, pumping_teacher

STUDENTS = {"mlp": MultiTask(Mlp((16, 16)))}
TASKS = {
    "cart": {"env": {"id": "CartPole-v1"}, "teacher": "zoo:cartpole-ppo"},
    "car": {"env": {"id": "MountainCar-v0"}, "teacher": "car"},
}
DOCUMENT: dict[str, Any] = {
    "tasks": TASKS,
    "students": {"mlp": {"type": "multi_task", "student": {"type": "mlp", "hidden": [16, 16]}}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": {"id": "CartPole-v1"}}, "run: env: each of the `tasks` has its own. Remove this one"),
        ({"teacher": "zoo:cartpole-ppo"}, "run: teacher: each of the `tasks` has its own"),
        ({"tasks": {}}, "run: env: is missing"),
        ({"tasks": {"../x": TASKS["cart"]}}, r"run: tasks\.\.\./x: expected letters"),
        ({"tasks": {"cart": {"env": {"id": "CartPole-v1"}}}}, r"run: tasks\.cart\.teacher: is missing"),
        ({"tasks": {"cart": {**TASKS["cart"], "env": {"id": "CartPoole-v1"}}}}, r"tasks\.cart\.env\.id: .*CartPole"),
        ({"students": {"m": {"type": "multi_task", "student": "tree"}}}, r"students\.m\.student: a tree has no hidden"),
    ],
)
def test_wrong_run_file_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_run({**DOCUMENT, "name": "run", "out": "runs/run", **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"students": {"mlp": Mlp()}}, r"students\.mlp: a run of several tasks takes students of the type multi_task"),
        ({"recipe": "born_again"}, "recipe: BornAgain is for one task. Use one of offline, dagger, on_policy"),
        ({"recipe": "ppd"}, "recipe: Ppd is for one task"),
        (
            {"recipe": {"name": "offline", "initial": "x"}},
            r"recipe\.initial: a student of several tasks begins with new",
        ),
        ({"control": "from_scratch"}, "control: a student of several tasks has no control"),
        ({"students": {"mlp": MultiTask(heads="shared")}}, "cart and car have different actions"),
        ({"students": {"mlp": MultiTask(Mlp((16,)))}}, "they share nothing"),
        ({"distill": {"losses": ["q_mse"]}}, r"tasks\.cart: distill\.losses: QMSE"),
    ],
)
def test_impossible_run_is_refused_before_any_step(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_policy(pumping_teacher(), tmp_path / "car", {})
    tasks = {**TASKS, "car": {**TASKS["car"], "teacher": str(tmp_path / "car")}}
    run = read_run({**DOCUMENT, "name": "run", "out": str(tmp_path / "run"), "tasks": tasks, **change})
    with pytest.raises((ConfigError, SpecMismatchError), match=message):
        run_all(run, quiet=True)
    assert not list(tmp_path.glob("run/tasks/*/dataset"))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("none.zip", r"^tasks\.car\.teacher: none\.zip: there is no such file"),
        ("zoo:cartpole-ppo", r"^tasks\.car\.teacher: .*do not fit"),
    ],
)
def test_error_names_the_task_that_has_it(tmp_path: Path, teacher: str, message: str) -> None:
    tasks = {**TASKS, "car": {**TASKS["car"], "teacher": teacher}}
    run = read_run({**DOCUMENT, "name": "run", "out": str(tmp_path / "run"), "tasks": tasks})
    with pytest.raises((ConfigError, SpecMismatchError), match=message):
        run_all(run, quiet=True)
    assert not (tmp_path / "run").exists()


def test_refused_settings_do_not_change_the_record(tmp_path: Path) -> None:
    save_policy(pumping_teacher(), tmp_path / "car", {})
    document = {**DOCUMENT, "name": "run", "out": str(tmp_path / "run"), "verify": False}
    document["collect"] = {"steps": 1_000, "num_streams": 1, "epsilon": 0.3}
    document["tasks"] = {**TASKS, "car": {**TASKS["car"], "teacher": str(tmp_path / "car")}}
    run = read_run(document)
    run_collect(run, quiet=True)
    job = dataclasses.replace(student_job(run), name="mlp")
    job.open("new")
    (job.folder / "metrics.jsonl").touch()  # as a fit that was interrupted
    files = [*run.out.rglob("config.yaml"), *run.out.rglob("provenance.json")]
    before = [path.read_bytes() for path in files]
    assert len(files) == 4
    with pytest.raises(ConfigError, match=r"distill\.epochs was 20, now it is 3"):
        run_all(read_run({**document, "distill": {"epochs": 3}}), mode="resume", quiet=True)
    assert [path.read_bytes() for path in files] == before


def test_balance_is_for_several_tasks() -> None:
    with pytest.raises(ConfigError, match=r"distill\.balance: it weighs several tasks\. Name them as `tasks`"):
        Run(EnvConfig("CartPole-v1"), "zoo:cartpole-ppo", distill=DistillConfig(balance="by_gap"))  # type: ignore[arg-type]
    run = read_run({**DOCUMENT, "name": "run", "out": "runs/run", "distill": {"balance": "by_gap", "epochs": 3}})
    part = task_runs(run)["cart"]
    assert part == dataclasses.replace(read_run(part.document), document=part.document)


def test_student_of_several_tasks_needs_them(teacher: NetworkPolicy, tmp_path: Path) -> None:
    run = Run(EnvConfig("CartPole-v1"), teacher, out=tmp_path / "run", students=STUDENTS, verify=False)
    with pytest.raises(ConfigError, match="a multi_task student needs several tasks"):
        run_all(run, quiet=True)


class Part:
    """Stand-in for the job of one task, which records the steps of its rounds."""

    def __init__(self, returns: tuple[float, float, float] = (0, 0, 0)) -> None:
        self.teacher, self.steps, self.returns = "teacher", 0, returns

    def collect_round(self, student: Any, config: Any, *_: Any) -> None:
        self.steps = config.steps

    def validate(self, policy: Any, episodes: int) -> float:
        student, teacher, random = self.returns
        return random if policy is None else teacher if policy == "teacher" else student


def job_of(parts: dict[str, Part], balance: Any = "by_gap") -> TasksJob:
    tasks = {name: Task(EnvConfig("CartPole-v1"), "zoo:cartpole-ppo") for name in parts}  # type: ignore[arg-type]
    run = Run(tasks=tasks, students=STUDENTS, distill=DistillConfig(balance=balance))

    class Job(TasksJob):
        @property
        def parts(self) -> Any:
            return parts

    return Job(run, None, None, "mlp", 0)  # type: ignore[arg-type]


def student() -> Any:
    specs = {name: Mlp().build(pumping_teacher().spec).spec for name in ("a", "b", "c")}
    return MultiTask(specs=specs).build(specs["a"])


def steps_of(scores: dict[str, float], balance: Any = "by_gap", steps: int = 900) -> list[int]:
    parts = {name: Part() for name in ("a", "b", "c")}
    config = dataclasses.replace(Run(EnvConfig("CartPole-v1"), "zoo:cartpole-ppo").collect, steps=steps)  # type: ignore[arg-type]
    job_of(parts, balance).collect_round(student(), config, 1, False, scores, SILENT)
    return [part.steps for part in parts.values()]


def test_new_steps_go_to_the_task_that_is_furthest_behind() -> None:
    scores = {"a": 1.1, "b": 0.5, "c": 0.75}
    assert steps_of(scores) == [169, 1_688, 844]  # in proportion to 0.05, 0.5 and 0.25
    assert steps_of(scores, "equal") == [900, 900, 900]
    assert steps_of({}) == [900, 900, 900]
    assert steps_of({"a": 1.0, "b": 1.0, "c": 1.2}) == [900, 900, 900]


@settings(max_examples=20)
@given(st.lists(st.floats(-2, 1.5), min_size=3, max_size=3), st.integers(100, 10_000))
def test_budget_is_kept_and_follows_the_order_of_the_gaps(scores: list[float], steps: int) -> None:
    found = steps_of(dict(zip("abc", scores, strict=True)), steps=steps)
    assert abs(sum(found) - 3 * steps) <= 3
    for one, more in zip(found, scores, strict=True):
        for other, less in zip(found, scores, strict=True):
            assert less > more or one <= other


def test_score_of_a_round_is_the_mean_normalized_score() -> None:
    job = job_of({"a": Part((5, 10, 0)), "b": Part((-100, -120, -200)), "c": Part((0, 8, 0))})
    assert job.score(student(), 3) == {"score": pytest.approx(1.75 / 3), "tasks": {"a": 0.5, "b": 1.25, "c": 0.0}}
    bad = job_of({"a": Part((5, 10, 0)), "b": Part((1, 1, 1)), "c": Part((0, 8, 0))})
    with pytest.raises(ConfigError, match=r"tasks\.b\.teacher: its mean return \(1\) is not higher"):
        bad.score(student(), 3)


@pytest.mark.parametrize("sample", [False, True])
def test_validation_plays_as_the_evaluation_does(sample: bool, tmp_path: Path) -> None:
    env = {"id": "CartPole-v1", "views": {"student": [{"name": "LastAction"}]}}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"env": env, "teacher": "zoo:cartpole-ppo", "evaluate": {"sample": sample}}))
    job = student_job(load_run(file, [], {}), with_data=False)
    assert job.run.play_config().sample == sample
    assert job.validate(job.teacher, 2) > 100 > job.validate(None, 2)  # the teacher does not see the last action


@pytest.mark.parametrize("sample", [False, True])
def test_a_task_may_sample_its_actions_or_not(sample: bool, tmp_path: Path) -> None:
    own = {"collect": {"sample": not sample, "steps": 96}, "evaluate": {"sample": not sample}}
    tasks = {"cart": {**TASKS["cart"], "sample": sample}, "car": TASKS["car"]}
    run = read_run({**DOCUMENT, **own, "tasks": tasks, "out": str(tmp_path)})
    for task, expected in (("cart", sample), ("car", not sample)):
        part = task_runs(run)[task]
        for read in (part, read_run(part.document)):  # the document becomes the run file of the task
            assert (read.collect.sample, read.collect.steps, read.evaluate.sample) == (expected, 96, expected)


def test_sampled_students_of_q_values_are_warned_about() -> None:
    run = Run(EnvConfig("ALE/Pong-v5"), SavedTeacher("zoo:pong-dqn"), evaluate=EvaluateConfig(sample=True))
    with pytest.warns(UserWarning, match=r"evaluate\.sample: the teacher has Q values.*tasks\.NAME\.sample"):
        warn_of_mistakes(run, load_teacher(run))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_mistakes(dataclasses.replace(run, evaluate=EvaluateConfig()), load_teacher(run))


@pytest.fixture
def run_file(tmp_path: Path, teacher: NetworkPolicy) -> Path:
    save_policy(teacher, tmp_path / "cart", {})
    save_policy(pumping_teacher(), tmp_path / "car", {})
    tasks = {name: {"env": own["env"], "teacher": str(tmp_path / name)} for name, own in TASKS.items()}
    document = {
        **DOCUMENT,
        "tasks": tasks,
        "collect": {"steps": 4_800, "epsilon": 0.2},
        "recipe": {"name": "dagger", "rounds": 2, "steps_per_round": 600, "eval_episodes": 2},
        "distill": {"epochs": 10, "batch_size": 64, "balance": "by_gap"},
        "evaluate": {"episodes": 4, "videos": False},
        "export": {"formats": ["onnx"], "states": 200, "episodes": 1},
        "out": str(tmp_path / "run"),
        "verify": False,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.mark.slow
def test_run_of_two_tasks(run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(run_file, [], {})
    assert run_all(run, quiet=True) == run.out / "report.html"
    student = load_native(run.out / "students" / "mlp" / "seed-0")
    result = TasksEvaluation.read(run.out / "evaluation.json")
    scores = []
    for task, part in task_runs(run).items():
        own = load_native(part.out / "students" / "mlp" / "seed-0")
        assert own.config == Mlp((16, 16))
        for name, value in student.policy_of(task).state_dict().items():  # type: ignore[operator]
            assert own.state_dict()[name].equal(value)
        evaluation = Evaluation.read(part.out / "evaluation.json")
        assert evaluation.students["mlp"].normalized == result.students["mlp"].normalized[task]
        scores.append(evaluation.students["mlp"].normalized.value)  # type: ignore[union-attr]
        assert not Certificate.read(part.out / "export" / "mlp").failures
        assert load_run(part.out / "config.yaml", [], {}).students == {"mlp": Mlp((16, 16))}
    mean = result.students["mlp"].mean
    assert mean is not None
    assert mean.value == pytest.approx(sum(scores) / 2)
    page = (run.out / "report.html").read_text()
    for task in TASKS:
        assert f'<section id="{task}"' in page
        assert (run.out / "tasks" / task / "report.html").exists()
    with pytest.raises(ConfigError, match=r"students\.mlp\.heads was own|tasks was"):
        run_evaluate(dataclasses.replace(run, students={"mlp": MultiTask(Mlp((16, 16)), "shared")}), "resume", True)
    with pytest.raises(ConfigError, match=r"tasks was \[cart, car\], now it is \[cart\]"):
        run_evaluate(dataclasses.replace(run, tasks={"cart": run.tasks["cart"]}), "resume", quiet=True)
    with pytest.raises(ConfigError, match="is trained already"):
        run_train(run)
    for command in (["search", str(run_file)], ["dataset", "extend", str(run_file), "--steps", "9"]):
        output = CliRunner().invoke(app, command).output
        assert f"is for one task. Use the run file of one: {run.out}/tasks/cart/config.yaml" in output.replace("\n", "")
    output = CliRunner().invoke(app, ["export", str(run.out), "--overwrite"]).output
    assert "is the run of several tasks. Name that of one" in output


@pytest.mark.slow
def test_interrupted_distillation_of_tasks_ends_with_the_same_bytes(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_run(run_file, [], {})
    run_collect(whole, quiet=True)
    parts = dataclasses.replace(whole, out=tmp_path / "parts")
    shutil.copytree(whole.out, parts.out)
    run_distill(whole, quiet=True)
    collect, score, calls = StudentJob.collect_round, TasksJob.score, [0]

    def stop_after(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            calls[0] += 1
            if calls[0] in (2, 4, 7):  # after a task of a round, and before a score is written
                raise KeyboardInterrupt
            return result

        return call

    monkeypatch.setattr(StudentJob, "collect_round", stop_after(collect))
    monkeypatch.setattr(TasksJob, "score", stop_after(score))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_distill(parts, mode="resume", quiet=True)
    run_distill(parts, mode="resume", quiet=True)
    files = [
        path.relative_to(whole.out)
        for path in whole.out.rglob("*")
        if path.name in ("policy.safetensors", "manifest.json", "score.json")
    ]
    assert len(files) >= 10
    for file in files:
        assert (parts.out / file).read_bytes() == (whole.out / file).read_bytes(), file
    # A kill before the policies of the tasks were written.
    shutil.rmtree(parts.out / "tasks" / "car" / "students")
    run_distill(parts, mode="resume", quiet=True)
    policy = Path("tasks/car/students/mlp/seed-0/policy.safetensors")
    assert (parts.out / policy).read_bytes() == (whole.out / policy).read_bytes()


def test_tasks_of_python(teacher: NetworkPolicy, tmp_path: Path) -> None:
    tasks = {"cart": Task(EnvConfig("CartPole-v1"), teacher), "car": Task(MOUNTAIN_CAR, pumping_teacher())}
    run = Run(tasks=tasks, students=STUDENTS, out=tmp_path, recipe=Dagger(steps_per_round=100))
    parts = task_runs(run)
    assert parts["car"].env == MOUNTAIN_CAR
    assert parts["car"].out == tmp_path / "tasks" / "car"
    assert parts["car"].students == {"mlp": Mlp((16, 16))}
    assert task_runs(parts["car"]) == {}
