"""Classes of the user's own, which a run file may name and the file of a policy may not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rldistill.core.errors import ConfigError
from rldistill.run.config import load_run

from .. import commands

pytestmark = pytest.mark.slow

OWN = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import nn

from rldistill import NetworkPolicy
from rldistill.recipes.job import Recipe
from rldistill.students.features import Features


@dataclass(frozen=True)
class Brier:
    """sum_a (p_student(a) - [a = a*])^2."""

    scale: float = 1.0
    margin: float = 0.0
    epochs: int = 0
    whole: bool = False
    student_head: ClassVar[str] = "any"

    def __call__(self, student, labels):
        best = nn.functional.one_hot(labels.teacher.mode(), student.params.shape[-1])
        loss = self.scale * ((student.params.softmax(-1) - best) ** 2).sum(-1)
        return loss.mean() if self.whole else loss


@dataclass(frozen=True)
class Sines:
    size: Annotated[int, Ge(1)] = 16

    def build(self, spec):
        return NetworkPolicy(self, spec, nn.Sequential(nn.Linear(spec.obs_shape[0], self.size), Sine()), self.size)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


@dataclass(frozen=True)
class Bare:
    def build(self, spec):
        return nn.Linear(4, 2)


@dataclass(frozen=True)
class Step:
    at: float = 0.5

    def __call__(self, progress):
        return float(progress < self.at)


@dataclass(frozen=True)
class Doubled(Features):
    factor: int = 0

    def build(self, spec):
        return nn.Sequential(nn.Flatten()), spec.obs_shape[0]


@dataclass(frozen=True)
class Twice(Recipe):
    times: int = 2

    def distill(self, job, mode, progress):
        raise NotImplementedError


def no_class():
    pass
'''
RUN = """
name: own
env: {{id: CartPole-v1}}
teacher: {teacher}
collect: {{steps: 1500, epsilon: 0.3}}
distill:
  epochs: 15
  losses: [{{name: "own_parts:Brier", scale: 2.0, weight: 0.5}}]
students:
  sines: {{type: "own_parts:Sines", size: 24}}
evaluate: {{episodes: 3, videos: false}}
"""


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "teacher.py").write_text(
        "import numpy as np\n"
        "class Balance:\n"
        "    def predict(self, obs, **kwargs):\n"
        "        return (np.asarray(obs)[..., 2] + 0.5 * np.asarray(obs)[..., 3] > 0).astype(np.int64), None\n"
    )
    file = tmp_path / "own.yaml"
    file.write_text(RUN.format(teacher='"teacher:Balance"'))
    return file


def test_run_with_own_loss_and_student(run_file: Path) -> None:
    done = commands.run("run", str(run_file))
    assert done.returncode == 0, done.stderr
    policy = json.loads(Path("runs/own/students/sines/seed-0/policy.json").read_text())
    assert (policy["student"], policy["config"]) == ("own_parts:Sines", {"size": 24})
    again = commands.run("evaluate", str(run_file), "--overwrite")
    assert again.returncode == 0, again.stderr
    own = Path("own_parts.py")  # the user adds a setting to the loss, with a default
    own.write_text(
        own.read_text().replace("    whole: bool = False\n", "    whole: bool = False\n    power: float = 2.0\n")
    )
    for command in ("distill", "evaluate"):
        later = commands.run(command, str(run_file), "--resume")
        assert later.returncode == 0, later.stderr
    refused = commands.run("distill", str(run_file), "--resume", "distill.losses.0.power=3.0")
    assert "distill.losses.0.loss.power was 2.0, now it is 3.0" in " ".join(refused.stderr.split())
    alone = commands.run("explain", "runs/own/students/sines/seed-0")
    assert alone.returncode != 0
    assert "own_parts:Sines" in alone.stderr
    assert "rldistill.trust" in alone.stderr.replace("\n", " ")
    assert "Traceback" not in alone.stderr


def test_features_schedules_and_recipes_may_be_classes_of_the_user(run_file: Path) -> None:
    run: Any = load_run(
        run_file,
        [
            "distill.losses.0.weight={type: 'own_parts:Step', at: 0.25}",
            "students.tree={type: tree, features: {type: 'own_parts:Doubled', factor: 0}}",
            "recipe={name: 'own_parts:Twice', times: 3}",
        ],
    )
    assert run.distill.losses[0].weight(0.3) == 0.0
    assert (run.students["tree"].features.factor, run.recipe.times) == (0, 3)
    with pytest.raises(ConfigError, match=r"recipe\.tims: unknown key\. Did you mean 'times'"):
        load_run(run_file, ["recipe={name: 'own_parts:Twice', tims: 3}"])


def test_limits_of_own_classes_do_not_depend_on_names_of_fields(run_file: Path) -> None:
    overrides = ["distill.losses.0.margin=0", "distill.losses.0.epochs=-1", "distill.losses.0.scale=-2.5"]
    loss: Any = load_run(run_file, overrides).distill.losses[0].loss
    assert (loss.margin, loss.epochs, loss.scale) == (0.0, -1, -2.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("students.sines.type=own_parts:Sinus", r"there is no 'Sinus' in own_parts.*Did you mean 'Sines'"),
        ("students.sines.type=own_part:Sines", r"students\.sines.*cannot be imported"),
        ("students.sines.type=own_parts:no_class", "is no dataclass"),
        ("students.sines.type=own_parts:Brier", "has no build"),
        ("distill.losses.0.name=own_parts:Sines", "has no student_head"),
        ("students.sines.sizes=3", r"sizes: unknown key.*Did you mean 'size'"),
        ("students.sines.size=-3", r"size.*1"),
        ("distill.losses.0.scale=much", r"scale.*number"),
        ("distill.losses.0.scale='2'", r"scale: found '2', expected a number"),
        ("distill.losses.0.epochs=0.5", r"epochs: found 0.5, expected an integer"),
        ("distill.losses.0.whole=1", "whole: found 1, expected true or false"),
    ],
)
def test_unusable_class_or_setting_is_named(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run(run_file, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.losses.0.whole=true", "A loss keeps its leading dimensions"),
        ("students={bare: {type: 'own_parts:Bare'}}", "expected a rldistill.NetworkPolicy"),
    ],
)
def test_broken_contract_is_named(run_file: Path, override: str, message: str) -> None:
    done = commands.run("run", str(run_file), override)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
