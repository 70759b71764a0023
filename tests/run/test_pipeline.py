"""Whole runs, through the command line, on environments that take seconds."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from rldistill import Offline
from rldistill.cli.main import app
from rldistill.core.errors import ConfigError, CorruptArtifactError, NothingLearnedError, SpecMismatchError
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import VALIDATION, PlayConfig, play
from rldistill.io.atomic import read_jsonl, sha256_file, write_json
from rldistill.io.progress import SILENT
from rldistill.io.stage_inputs import StageInputs
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.from_reward import train_control
from rldistill.recipes.job import Run, StudentJob
from rldistill.run.config import load_run
from rldistill.run.evaluation import run_evaluate
from rldistill.run.export import run_export
from rldistill.run.stages import run_all, run_collect, run_distill
from rldistill.students import Mlp
from rldistill.students.storage import load_native, save_policy
from rldistill.teachers.load import load_policy

from .. import commands

pytestmark = pytest.mark.slow


def write_run(tmp_path: Path, teacher: NetworkPolicy, **changes: object) -> Path:
    save_policy(teacher, tmp_path / "teacher", {})
    document = {
        "env": {"id": "CartPole-v1"},
        "teacher": str(tmp_path / "teacher"),
        "collect": {"steps": 3_000, "epsilon": 0.2},
        "distill": {"epochs": 8, "batch_size": 64, "losses": [{"name": "forward_kl"}]},
        "students": {"mlp": {"type": "mlp", "hidden": [16]}},
        "seeds": [0, 1],
        "evaluate": {"episodes": 10},
        "out": str(tmp_path / "run"),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document | changes))
    return path


RECIPES: list[dict[str, Any]] = [
    {"name": "offline"},
    {"name": "dagger", "rounds": 2, "steps_per_round": 500},
    {"name": "on_policy", "rounds": 2, "steps_per_round": 500},
    {"name": "born_again", "rounds": 2},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["name"])
def test_run_ends_with_a_report_that_opens_offline(
    tmp_path: Path, teacher: NetworkPolicy, recipe: dict[str, object]
) -> None:
    epochs = 25 if recipe["name"] == "born_again" else 8  # a generation learns no more than the one before it
    distill = {"epochs": epochs, "batch_size": 64, "losses": [{"name": "forward_kl"}]}
    films = recipe["name"] == "offline"  # which are made the same way, and slowly, whatever the recipe
    settings = {"recipe": recipe, "distill": distill, "evaluate": {"episodes": 10, "videos": films}}
    result = commands.run("run", str(write_run(tmp_path, teacher, **settings)))
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    mlp = evaluation["policies"]["mlp"]
    assert [run["training_seed"] for run in mlp["runs"]] == [0, 1]
    assert evaluation["policies"]["teacher"]["normalized"]["value"] == 1
    assert mlp["normalized"]["value"] > 0.5
    assert mlp["env_steps"] == 3_008 + (2 * 512 if "steps_per_round" in recipe else 0)
    page = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert ("data:video/mp4" in page) == films
    assert len(page) < 10_000_000


def test_losses_that_do_not_fit_the_next_generation_are_refused(tmp_path: Path, teacher: NetworkPolicy) -> None:
    settings = {"recipe": {"name": "born_again", "rounds": 1}, "distill": {"losses": ["gap_weighted_nll"]}}
    run = load_run(write_run(tmp_path, teacher, **settings), [], {})
    assert teacher.spec.head.kind == "q_values"
    with pytest.raises(SpecMismatchError, match=r"distill\.losses: GapWeightedNLL"):
        run_collect(run, quiet=True)


def test_only_named_students_are_exported(tmp_path: Path, teacher: NetworkPolicy) -> None:
    students = {name: {"type": "mlp", "hidden": [8]} for name in ("one", "two")}
    settings: dict[str, Any] = {"students": students, "seeds": [0], "evaluate": {"episodes": 2, "videos": False}}
    export = {"formats": ["onnx"], "states": 32, "episodes": 1, "students": ["two"]}
    run = load_run(write_run(tmp_path, teacher, **settings, export=export), [], {})
    run_all(run, quiet=True)
    assert [path.name for path in (run.out / "export").iterdir()] == ["two"]
    before = (run.out / "export" / "two" / "student.onnx").stat().st_mtime_ns
    run_all(run, "resume", quiet=True)
    assert (run.out / "export" / "two" / "student.onnx").stat().st_mtime_ns == before
    settings["evaluate"]["env_kwargs"] = {"max_episode_steps": 7}
    shorter = load_run(write_run(tmp_path, teacher, **settings, export=export), [], {})
    (certificate,) = run_export(shorter, "resume", quiet=True)
    played = certificate.formats["onnx"].closed_loop
    assert played is not None
    assert played.mean == 7
    wrong = load_run(write_run(tmp_path, teacher, **settings, export={**export, "students": ["tow"]}), [], {})
    with pytest.raises(ConfigError, match=r"export\.students: there is no student 'tow'\. Did you mean 'two'\?"):
        run_all(wrong, "resume", quiet=True)
    with pytest.raises(ConfigError, match=r"export\.students: there is no student 'tow'"):
        run_export(wrong, "overwrite", quiet=True)
    assert [path.name for path in (run.out / "export").iterdir()] == ["two"]


def hashes_of_whole_and_killed(
    tmp_path: Path, teacher: NetworkPolicy, kills: int, **settings: object
) -> list[list[str]]:
    """Return hashes of the student and its data, of a run without a break and of one killed at random and resumed."""
    hashes = []
    rng = random.Random(1)
    for name in ("whole", "killed"):
        run = write_run(tmp_path, teacher, **settings, seeds=[0], out=str(tmp_path / name))
        student = tmp_path / name / "students" / "mlp" / "seed-0"
        assert commands.run("collect", str(run)).returncode == 0
        for target in sorted(rng.sample(range(1, 35), kills)) if name == "killed" else []:
            process = commands.start("distill", str(run), "--resume", "-q")
            while process.exitcode is None and epochs_logged(student) < target:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
        assert commands.run("distill", str(run), "--resume").returncode == 0
        files = [student / "policy.safetensors", student / "dataset" / "manifest.json"]
        hashes.append([sha256_file(file) for file in files if file.exists()])
    return hashes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["name"])
def test_distillation_killed_at_random_ends_with_the_same_student(
    tmp_path: Path, teacher: NetworkPolicy, recipe: dict[str, object]
) -> None:
    epochs = 40 if recipe["name"] == "offline" else 13  # of each round, so that kills hit all rounds
    distill = {"epochs": epochs, "patience": 0, "batch_size": 16, "losses": [{"name": "forward_kl"}]}
    whole, killed = hashes_of_whole_and_killed(tmp_path, teacher, 3, recipe=recipe, distill=distill)
    assert whole == killed


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "ALE/Pong-v5"])
def test_dagger_killed_at_random_ends_with_the_same_student(tmp_path: Path, env_id: str) -> None:
    torch.manual_seed(0)
    atari = env_id.startswith("ALE/")
    if atari:
        teacher = load_policy("zoo:pong-dqn")
    else:
        teacher = Mlp((8,)).build(spec_from_env(EnvConfig(env_id))).eval()
        torch.nn.init.normal_(teacher.output.weight)  # or all states are nearly alike to it
    student = {"type": "cnn", "channels": [8, 8], "hidden": [16]} if atari else {"type": "mlp"}
    steps = 160 if atari else 320
    env = {"id": env_id, "kwargs": {"max_num_frames_per_episode": 800} if atari else {}}
    recipe = {"name": "dagger", "rounds": 2, "steps_per_round": steps}
    distill = {"epochs": 13, "patience": 0, "batch_size": 32, "learning_rate": 3e-3, "losses": ["forward_kl"]}
    collect = {"steps": 5 * steps, "epsilon": 0.1, "envs_per_stream": 4}
    whole, killed = hashes_of_whole_and_killed(
        tmp_path, teacher, 3, env=env, students={"mlp": student}, recipe=recipe, distill=distill,
        collect=collect,
    )  # fmt: skip
    assert len(whole) == 2
    assert whole == killed


def test_best_round_is_the_result(tmp_path: Path, teacher: NetworkPolicy) -> None:
    recipe = {"name": "dagger", "rounds": 3, "steps_per_round": 320, "eval_episodes": 5}
    students, distill = {"tree": {"type": "tree", "max_depth": 3}}, {"losses": ["advantage_mse"]}
    path = write_run(
        tmp_path, teacher, recipe=recipe, students=students, distill=distill, collect={"steps": 640}, seeds=[0]
    )
    run = load_run(path, [], {})
    run_collect(run, quiet=True)
    run_distill(run, quiet=True)
    folder = run.out / "students" / "tree" / "seed-0"
    rounds = [load_native(folder / f"round-{number}") for number in range(4)]
    scores = [play(run.env, student, 5, PlayConfig(run.seed, VALIDATION)).returns.mean() for student in rounds]
    best = int(np.argmax(scores))
    assert min(scores) < scores[best]
    assert [json.loads((folder / f"round-{n}" / "score.json").read_text())["score"] for n in range(4)] == scores
    assert json.loads((folder / "policy.json").read_text())["provenance"]["round"] == best
    assert torch.equal(load_native(folder).threshold, rounds[best].threshold)
    # Killed before the end, it goes on without playing again.
    worst = int(np.argmin(scores))
    write_json(folder / f"round-{worst}" / "score.json", {"episodes": 5, "score": 1000})
    (folder / "policy.json").unlink()
    run_distill(run, mode="resume", quiet=True)
    assert torch.equal(load_native(folder).threshold, rounds[worst].threshold)


def student_inputs(run: Run, teacher: NetworkPolicy) -> StageInputs:
    return StudentJob(run, teacher, None, "mlp", 0).inputs()


def epochs_logged(student: Path) -> int:
    return sum(len(read_jsonl(path)) for path in student.rglob("metrics.jsonl"))


def test_names_are_escaped_in_charts() -> None:
    from rldistill.reporting.charts import lines_chart

    assert "<b>" not in lines_chart({"<b>": [(0, 1), (1, 2)]}, "<b>", "<b>")


def test_stage_that_exists_is_refused(tmp_path: Path, teacher: NetworkPolicy) -> None:
    path = write_run(tmp_path, teacher)
    assert commands.run("collect", str(path)).returncode == 0
    again = commands.run("collect", str(path))
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert "Traceback" not in again.stderr
    assert commands.run("collect", str(path), "--resume").returncode == 0
    info = commands.run("dataset", "info", str(tmp_path / "run" / "dataset"), "--json")
    assert json.loads(info.stdout)["steps"] == 3_008


def test_folder_of_something_else_is_refused(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = load_run(write_run(tmp_path, teacher, collect={"steps": 100}, seeds=[0]), [], {})
    run.out.mkdir()
    for name in ("config.yaml", "provenance.json", "report.html"):
        (run.out / name).write_text("[]")
        why = r" \(.*provenance.json: not a JSON object.*\)" if name == "provenance.json" else ""
        with pytest.raises(ConfigError, match=f"it is not the folder of a run{why}, which would overwrite its {name}"):
            run_collect(run, quiet=True)
        assert [file.name for file in run.out.iterdir()] == [name]
        (run.out / name).unlink()
    run_collect(run, quiet=True)
    run_collect(run, mode="resume", quiet=True)


def test_failing_student_and_wrong_setting_cost_no_other_student(
    tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path, teacher, collect={"steps": 1_000}, seeds=[0], distill={"epochs": 20, "batch_size": 16})
    run = load_run(path, [], {})
    run_collect(run, quiet=True)
    run_distill(run, quiet=True)
    kept = run.out / "students" / "mlp" / "seed-0" / "policy.safetensors"
    before = kept.read_bytes()
    with pytest.raises(SpecMismatchError):
        run_distill(load_run(path, ["distill.losses=[wasserstein]"], {}), mode="overwrite", quiet=True)
    assert kept.read_bytes() == before
    shutil.rmtree(run.out / "students")
    distill = Offline.distill

    def fail_for_one(self: Offline, job: StudentJob, *arguments: Any) -> NetworkPolicy:
        if job.name == "stubborn":
            raise NothingLearnedError("stubborn/seed-0: the student learned nothing.")
        return distill(self, job, *arguments)

    monkeypatch.setattr(Offline, "distill", fail_for_one)
    both = dataclasses.replace(run, students={"stubborn": Mlp((1,)), **run.students})
    with pytest.raises(NothingLearnedError, match=r"stubborn/seed-0: .* The other students are distilled"):
        run_distill(both, quiet=True)
    assert kept.read_bytes() == before
    (kept.parent / "inputs.json").write_text("3")
    with pytest.raises(CorruptArtifactError, match=r"start again with mode=.overwrite. .`rldistill distill"):
        run_distill(run, mode="resume", quiet=True)


def test_refused_command_does_not_change_the_record(tmp_path: Path, teacher: NetworkPolicy) -> None:
    path, run = write_run(tmp_path, teacher, collect={"steps": 100}, seeds=[0]), tmp_path / "run"
    other = copy.deepcopy(teacher)
    torch.nn.init.ones_(other.output.bias)
    save_policy(other, tmp_path / "other", {})

    def invoke(command: str, *arguments: str) -> str:
        return CliRunner().invoke(app, [command, str(path), "verify=false", "--quiet", *arguments]).output

    def record() -> list[bytes]:
        return [(run / name).read_bytes() for name in ("config.yaml", "provenance.json")]

    assert "no:such" in invoke("collect", "teacher=no:such")
    assert not run.exists()
    invoke("collect")
    before = record()
    assert "epsilon" in invoke("collect", "collect.epsilon=0.5", "--resume")
    for command in ("collect", "run"):
        message = invoke(command, f"teacher={tmp_path / 'other'}", "--resume")
        assert "collected with the teacher" in message
        assert message.count("\n") == 1
    assert record() == before
    invoke("distill", "distill.epochs=1")
    before = record()
    assert "distill.epochs was 1, now it is 2" in invoke("run", "distill.epochs=2", "--resume")
    assert record() == before
    plan = load_run(path, [f"teacher={tmp_path / 'other'}"])
    with pytest.raises(ConfigError, match="collected with the teacher"):
        run_distill(plan, mode="resume", quiet=True)
    assert record() == before


def test_student_with_other_inputs_is_refused(tmp_path: Path, teacher: NetworkPolicy) -> None:
    other = copy.deepcopy(teacher)
    torch.nn.init.ones_(other.output.bias)
    path = write_run(tmp_path, teacher, seeds=[0], collect={"steps": 100})
    run = load_run(path)
    run_collect(run, quiet=True)
    folder = run.out / "students" / "mlp" / "seed-0"
    inputs = student_inputs(run, teacher)
    assert not inputs.open_folder(folder, "policy.json", "new")
    write_json(folder / "policy.json", {})
    with pytest.raises(ConfigError, match=r"teacher was NetworkPolicy .*, now it is NetworkPolicy"):
        student_inputs(run, other).open_folder(folder, "policy.json", "resume")

    changes = {
        "distill.epochs=50": r"distill\.epochs was 8, now it is 50",
        "distill.losses=[action_nll]": r"distill\.losses\.0\.loss was ForwardKL, now it is ActionNLL",
        "students.mlp={type: mlp, hidden: [8]}": r"students\.mlp\.hidden was .*, now it is \[8\]",
        "recipe={name: dagger, rounds: 1, steps_per_round: 64}": "recipe was Offline, now it is Dagger",
    }
    for change, message in changes.items():
        changed = load_run(path, [change])
        for stage in (run_distill, run_evaluate):
            with pytest.raises(ConfigError, match=message):
                stage(changed, mode="resume", quiet=True)
    faster = load_run(path, ["distill.num_threads=2"])
    assert student_inputs(faster, teacher).open_folder(folder, "policy.json", "resume")

    run_collect(load_run(path, ["collect.steps=200"]), mode="overwrite", quiet=True)
    for stage in (run_distill, run_evaluate):
        with pytest.raises(ConfigError, match=r"dataset was .*`rldistill distill FILE --overwrite`"):
            stage(run, mode="resume", quiet=True)
    assert not student_inputs(run, teacher).open_folder(folder, "policy.json", "overwrite")
    shutil.rmtree(run.out / "dataset")  # to save room
    student_inputs(run, teacher).require_same(folder)


def test_recipe_without_teacher_accepts_any_teacher(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = load_run(write_run(tmp_path, teacher), ["recipe.name=from_scratch"])
    other = copy.deepcopy(teacher)
    torch.nn.init.ones_(other.output.bias)
    assert student_inputs(run, teacher) == student_inputs(run, other)


def test_control_with_other_inputs_is_refused(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = load_run(write_run(tmp_path, teacher), ["ppo={rollout_length: 8, num_envs: 2, batch_size: 8}"])
    train_control(StudentJob(run, teacher, None, "mlp", 0), 4, "new", SILENT)
    changed = dataclasses.replace(run, ppo=dataclasses.replace(run.ppo, gamma=0.5))
    with pytest.raises(ConfigError, match=r"ppo\.gamma was 0\.99, now it is 0\.5"):
        train_control(StudentJob(changed, teacher, None, "mlp", 0), 4, "resume", SILENT)
