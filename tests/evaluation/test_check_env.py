"""Check of an environment: every kind of problem is listed with its remedy."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.evaluation.check_env import check_env, require_env
from rldistill.run.config import load_run
from rldistill.run.stages import run_all

from ..commands import run
from ..envs import user_envs


def env_of(kind: str, *wrappers: str) -> EnvConfig:
    return EnvConfig(user_envs.ID, {"kind": kind}, tuple(Wrapper(name) for name in wrappers))


@pytest.mark.parametrize(
    ("env", "level", "subject", "words"),
    [
        (env_of("FailingStep"), "error", "environment", "env step failed: RuntimeError: no power"),
        (env_of("OldReset"), "error", "environment", "old Gym interface. Gymnasium expects"),
        (env_of("TupleActions"), "error", "environment", "has actions Tuple.* Use Box"),
        (env_of("TwoRewards"), "error", "environment", r"shape \(2,\). Return a finite number"),
        (env_of("RandomSpaces"), "error", "environment", "different spaces"),
        (env_of("ChangingSpaces"), "error", "environment", "spaces change while it is played. Set them once"),
        (env_of("NaNObservation"), "error", "environment", "observation is NaN, infinite, or beyond float32"),
        (env_of("Base", "NormalizeObservation"), "error", "environment", "NormalizeObservation collects"),
        (env_of("Endless"), "warning", "time limit", "no episode ended .*max_episode_steps"),
        (env_of("OwnSeed"), "warning", "seeds", "same seed .* differ.* self.np_random"),
        (env_of("SharedSeed"), "warning", "seeds", "same seed .* differ.* self.np_random"),
        (env_of("OtherMask"), "warning", "action mask", "'mask' of the observation looks like a mask.*'action_mask'"),
        (env_of("NoLegalAction"), "error", "action mask", "no action is legal in some state"),
        (env_of("MaskInInfo"), "warning", "action mask", "info has a mask.*action_masks()"),
        (
            env_of("Base", f"{user_envs.__name__}:OwnStatistics"),
            "warning",
            "wrappers",
            "OwnStatistics.obs_rms collects",
        ),
        (env_of("Base", "NormalizeReward"), "note", "rewards", "env.wrappers change the rewards"),
        (env_of("ArrayReward"), "note", "rewards", r"arrays of shape \(1,\)"),
        (env_of("OutOfBounds"), "note", "observations", "outside of observation_space"),
        (env_of("Doubles"), "note", "observations", "float64, where observation_space has float32"),
        (env_of("KeepsState"), "note", "reset", "an episode depends on earlier ones"),
        (env_of("Shifted"), "note", "actions", "they start at -1"),
        (env_of("Unbounded"), "note", "actions", "without bounds"),
        (env_of("IntegerBox"), "note", "actions", "a Box of integers"),
        (env_of("NoInfo"), "note", "info", "not a dict"),
        (env_of("FailingRenderer"), "note", "render", "no videos: an OpenGL platform library has not been loaded"),
    ],
)
@pytest.mark.filterwarnings("ignore:Casting input")
def test_problem_is_listed_with_its_remedy(env: EnvConfig, level: str, subject: str, words: str) -> None:
    check = check_env(env)
    (finding,) = (found for found in check.findings if found.subject == subject and found.level == level)
    assert re.search(words, f"{finding.problem}. {finding.remedy}.")
    assert check.ok == (level != "error")
    assert finding.remedy


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_sound_environment_has_no_findings(env_id: str) -> None:
    check = check_env(env_id)
    assert [found for found in check.findings if found.subject != "rewards"] == []
    assert check.facts["speed"].endswith("steps per second in one process")
    assert {"observations", "actions", "episodes", "time limit", "render"} <= check.facts.keys()


@pytest.mark.filterwarnings("ignore:.*made of old parts")
def test_environment_with_new_spaces_after_each_reset_is_reproducible() -> None:
    assert "seeds" not in {found.subject for found in check_env(env_of("NewSpaces")).findings}


def test_warning_of_gymnasium_is_shown_once_and_without_colors() -> None:
    before = "import warnings; warnings.simplefilter('always')"
    folder = Path(user_envs.__file__).parent
    result = run("doctor", "env", "user_envs:make", "--env-kwarg", "kind=NewSpaces", folder=folder, before=before)
    assert result.stderr == "warning: made of old parts\n"


def test_fixed_statistics_are_no_finding() -> None:
    wrapper = Wrapper(f"{user_envs.__name__}:OwnStatistics", {"fixed": True})
    check = check_env(EnvConfig(user_envs.ID, {"kind": "Base"}, (wrapper,)))
    assert "wrappers" not in {found.subject for found in check.findings}


def test_same_episodes_for_all_seeds_are_suspicious(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_envs.Base, "observe", lambda env: user_envs.np.zeros(3, "float32"))
    monkeypatch.setattr(user_envs.Base, "reward", lambda env, action: 1.0)
    check = check_env(env_of("Base"))
    assert [found.subject for found in check.findings if found.level == "warning"] == ["seeds"]


def test_command_prints_a_table_or_json() -> None:
    table = CliRunner().invoke(app, ["doctor", "env", user_envs.ID, "--env-kwarg", "kind=OtherMask"])
    assert table.exit_code == 0
    assert "looks like a mask" in " ".join(table.stdout.split())
    result = CliRunner().invoke(app, ["doctor", "env", user_envs.ID, "--env-kwarg", "kind=OldStep", "--json"])
    assert result.exit_code == 1
    assert not json.loads(result.stdout)["ok"]


def test_short_form_raises_errors_and_returns_warnings() -> None:
    with pytest.raises(ConfigError, match=r"no power \(.*doctor env"):
        require_env(env_of("FailingStep"))
    assert require_env(env_of("OtherMask"))[0].startswith("env: action mask: ")
    assert require_env(env_of("Shifted")) == []


def test_run_checks_the_environment_before_it_collects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    text = f"teacher: {user_envs.__name__}:teacher\nstudents: {{mlp: {{type: mlp, hidden: [8]}}}}\n"
    file.write_text(f"env: {{id: '{user_envs.ID}', kwargs: {{kind: OldStep}}}}\n{text}")
    with pytest.raises(ConfigError, match="See `rldistill doctor env`"):
        run_all(load_run(file), quiet=True)
    assert not (tmp_path / "runs").exists()
    file.write_text(f"env: {{id: '{user_envs.ID}', kwargs: {{kind: OtherMask}}}}\n{text}")
    small = ["collect.steps=800", "distill.epochs=20", "evaluate.episodes=2", "evaluate.videos=false"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_all(load_run(file, small), quiet=True)
    assert sum("looks like a mask" in str(warning.message) for warning in caught) == 1
