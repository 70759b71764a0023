"""README, examples and docs do what they say: each command and code block is run."""

from __future__ import annotations

import dataclasses
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rldistill import Adversarial, Mutual, MutualPPO, load_run, read_run, spec_from_env
from rldistill.recipes.tasks import require_tasks, task_runs
from rldistill.run.config import parse_value
from rldistill.run.jobs import load_teacher

from .. import commands

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
TEACHERS = ROOT.parent / "shared" / "teachers"
AGENTS = {
    "pong-a3c.yaml": ("baby-a3c/pong-v4.tar", "pong-v4.tar"),
    "committee.yaml": ("sb3", "sb3"),
    "tasks.yaml": ("sb3", "sb3"),
    "bipedalwalker.yaml": ("estool/biped.pepg.1.96.best.json", "zoo/biped.pepg.1.96.best.json"),
}
"""Agents that are not part of the repository, by run file: where they are, and where the run file expects them."""
MANY_AGENTS = ("spread.yaml", "spread-views.yaml", "speaker.yaml", "tag.yaml")
PACKAGES = {
    "metaworld.yaml": "metaworld",
    "metaworld-tasks.yaml": "metaworld",
    "double-pendulum.yaml": "mujoco",
    **dict.fromkeys(MANY_AGENTS, "mpe2"),
    **dict.fromkeys(("spread-ppo.yaml", "spread-central.yaml"), "mpe2"),
    "pistonball.yaml": "pymunk",
    "double-pendulum-ppo.yaml": "mujoco",
    **dict.fromkeys(("pong-a3c.yaml", "atari-tasks.yaml"), "cv2"),
    **dict.fromkeys(("highway.yaml", "highway-dqn.yaml", "parking.yaml", "parking-sac.yaml"), "highway_env"),
}
"""Packages of extras that run files need."""
EVALUATED = ["seeds=[0]", "evaluate={episodes: 1, videos: false, max_episodes: 2}"]
FEW_EMULATORS = "collect.envs_per_stream=2"  # each takes long to start
# Enough for all students to beat the best constant prediction; else the run ends with "the student learned nothing".
PONG = [
    "env.kwargs={max_num_frames_per_episode: 800}",
    "export=null",
    "collect.steps=1_600",
    FEW_EMULATORS,
    "distill.epochs=8",
    "distill.batch_size=32",
    "distill.num_threads=1",  # more only wait for each other beside other tests
    "distill.learning_rate=1e-3",
    *EVALUATED,
]
ROUND = ["seeds=[0]", "evaluate={episodes: 1, videos: false}", "distill.epochs=20", "distill.batch_size=16"]
ROUND += ["distill.learning_rate=0.01", "students={mlp: {type: mlp}}", "recipe.rounds=1", "recipe.steps_per_round=32"]
ROUND += ["recipe.eval_episodes=1"]
WORLDS = {
    "bipedalwalker.yaml": ["collect.steps=320", *ROUND],
    "double-pendulum.yaml": ["collect.steps=480", *ROUND],
    "highway.yaml": ["collect.steps=64", *ROUND],
    "metaworld.yaml": ["collect.steps=320", *ROUND],
    "parking.yaml": ["collect.steps=320", *ROUND],
}
"""Overrides of run files that run to their report."""
TRAINED = ["teacher.train.total_steps=256", "teacher.train.eval_every=256", "teacher.train.eval_episodes=1"]
PPO_TEACHERS = ("cartpole", "lunarlander", "double-pendulum")
SMALLER = {
    "adversarial.yaml": ["collect.steps=900", "ppo.eval_episodes=1"],
    **WORLDS,
    "pong.yaml": [*PONG, "execution.workers=1", "recipe.rounds=1", "recipe.steps_per_round=160"],
    "cartpole.yaml": [*EVALUATED, "collect.steps=400", "recipe=offline", "distill.learning_rate=0.01"],
    "pong-dagger.yaml": [*PONG, "students={linear: {type: linear}}", "recipe.rounds=1", "recipe.steps_per_round=160"],
    **{f"pong-{name}.yaml": ["collect.steps=160", FEW_EMULATORS] for name in ("objects", "quick", "a3c", "basic")},
    "committee.yaml": ["collect.steps=160"],
    "condense.yaml": ["collect.steps=160"],
    "mutual.yaml": ["collect.steps=400"],
    "tasks.yaml": ["collect.steps=160"],
    "metaworld-tasks.yaml": ["collect.steps=160", "collect.epsilon=0.5", FEW_EMULATORS],
    **{name: ["collect.steps=160"] for name in MANY_AGENTS},
    **{key: [*TRAINED, "teacher.train.num_envs=2"] for key in ("spread-ppo.yaml", "spread-central.yaml")},
    "pistonball.yaml": [
        "env.kwargs.n_pistons=4",
        "env.kwargs.max_cycles=4",
        "collect.steps=16",
        "collect.envs_per_stream=4",
    ],
    "workers.yaml": ["collect.steps=160", "collect.num_streams=2"],
    "lunarlander.yaml": [*EVALUATED, "collect.steps=2_000", *TRAINED],
    **{f"{name}-ppo.yaml": [*TRAINED, "teacher.train.num_envs=2"] for name in PPO_TEACHERS},
    "highway-dqn.yaml": TRAINED,
    "worlds.yaml": TRAINED,
    "reptile.yaml": TRAINED,
    "parking-sac.yaml": [*TRAINED, "teacher.train.num_envs=1"],
    "pong-dqn.yaml": [*TRAINED, "env.kwargs={max_num_frames_per_episode: 400}"],
}
"""Overrides that make a run file end in seconds."""
SHORTER = {"total_steps=30_000": "total_steps=4_096", "episodes=60": "episodes=10"}
"""Changes of the Python of the README, for the same reason."""

pytestmark = pytest.mark.slow


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def command_lines() -> list[str]:
    lines = "".join(blocks(README, "sh")).splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.startswith("rldistill ")]


def run(arguments: list[str], folder: Path) -> str:
    done = commands.run(*arguments, folder=folder)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


NOT_STARTED = ("atari-tasks.yaml", "grid.yaml", "intersection.yaml", "jobshop.yaml")
"""Run files with a test of their own, here or in `tests/examples`, since their first steps take long."""
OTHER_EXAMPLES = [
    file
    for file in EXAMPLES
    if file.name not in NOT_STARTED
    and file.parent.name != "atari"  # tests/examples/test_atari.py
    and not any(file.name in line for line in command_lines())
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def test_commands_of_the_readme_run_in_their_order(clone: Path) -> None:
    assert len(command_lines()) >= 8
    for line in command_lines():
        arguments = shlex.split(line)[1:]
        if arguments[0] in ("search", "demo"):  # take minutes; tests/search and test_package.py run them
            continue
        file = next((Path(argument).name for argument in arguments if argument.endswith(".yaml")), None)
        if file is not None:
            arguments += SMALLER[file]
        if arguments[:2] == ["teachers", "verify"]:
            arguments += ["--episodes", "2", "--env-kwarg", "max_num_frames_per_episode=800"]
        if arguments[0] == "export":
            arguments += ["--states", "200"]
        run(arguments, clone)


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(README, "python")
    assert len(block.splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    for long, short in SHORTER.items():
        assert long in block
        block = block.replace(long, short)
    (tmp_path / "example.py").write_text(block, encoding="utf-8")
    runpy.run_path(str(tmp_path / "example.py"))
    assert (tmp_path / "runs/cartpole/report.html").exists()


@pytest.mark.parametrize(
    ("page", "result"),
    [("export", "exported/student.c"), ("tasks", "runs/tasks/student"), ("condense", "runs/small/student")],
)
def test_python_of_a_page_runs(page: str, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(block, encoding="utf-8")
    runpy.run_path(str(tmp_path / "example.py"))
    assert (tmp_path / result).exists()


@pytest.mark.parametrize(("name", "recipes"), [("adversarial", Adversarial), ("mutual", Mutual | MutualPPO)])
def test_run_files_of_the_page_of_a_recipe_are_valid(name: str, recipes: Any) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    example = (ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8")
    for block in blocks(page, "yaml"):
        run = read_run(parse_value(example, "example") | parse_value(block, "page"))
        assert isinstance(run.recipe, recipes)


def test_run_file_of_the_page_on_tasks_is_valid() -> None:
    (block,) = blocks((ROOT / "docs" / "tasks.md").read_text(encoding="utf-8"), "yaml")
    assert [*task_runs(read_run(parse_value(block, "docs/tasks.md")))] == ["cartpole", "lunarlander"]


def test_example_of_three_games_fits_its_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2", reason="needs an extra")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for agents in ("more/spaceinvaders-baby-a3c", "atari-a2c"):
        if not (TEACHERS / agents).exists():
            pytest.skip(f"the agents {agents} are not part of the repository")
        (tmp_path / Path(agents).name).symlink_to(TEACHERS / agents)
    run = load_run(ROOT / "examples" / "atari-tasks.yaml", [], {})
    teachers = {task: load_teacher(part) for task, part in task_runs(run).items()}
    require_tasks(run, teachers)
    specs = {task: spec_from_env(part.env) for task, part in task_runs(run).items()}
    (student,) = run.students.values()
    policy = dataclasses.replace(student, specs=specs).build(specs["pong"])
    assert sum(parameter.numel() for parameter in policy.parameters()) < 60_000


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    assert len(README.splitlines()) <= 100


@pytest.mark.parametrize("file", OTHER_EXAMPLES, ids=lambda file: file.name)
def test_other_examples_start(file: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for folder in {file.parent, ROOT / "examples" / "teachers"}:
        for module in folder.glob("*.py"):  # found from the working folder
            (tmp_path / module.name).symlink_to(module)
    if file.name in PACKAGES:
        pytest.importorskip(PACKAGES[file.name], reason="needs an extra")
    if file.name in AGENTS:
        shared, path = AGENTS[file.name]
        if not (TEACHERS / shared).exists():
            pytest.skip(f"the agent {shared} is not part of the repository")
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).symlink_to(TEACHERS / shared)
    trains = "train:" in file.read_text(encoding="utf-8")
    verb = "run" if file.name in WORLDS else "train" if trains else "collect"
    run([verb, str(file), *SMALLER[file.name], "verify=false", f"out={tmp_path / 'run'}"], tmp_path)
    made = {"run": "report.html", "train": "teacher/policy.json", "collect": "dataset/manifest.json"}
    assert [*(tmp_path / "run").glob(f"**/{made[verb]}")]  # of several tasks, in their folders


def test_extras_exist_and_have_one_spelling() -> None:
    extras = {*tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]}
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py"), *EXAMPLES]
    for file in files:
        text = file.read_text(encoding="utf-8")
        named = {name for names in re.findall(r"rldistill\[([\w,]+)\]", text) for name in names.split(",")}
        assert named <= extras, file
        assert "'.[" not in text, file
    table = (ROOT / "docs" / "start.md").read_text(encoding="utf-8").partition("| extra |")[2].partition("\n\n")[0]
    first = " ".join(line.split("|")[1] for line in table.splitlines()[2:])
    assert {*re.findall(r"`(\w+)`", first)} == extras - {"dev", "docs"}
