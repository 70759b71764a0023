"""The training of a teacher as a stage of a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rldistill.core.spec import EnvConfig
from rldistill.evaluation.episodes import VALIDATION, PlayConfig, play

from .. import commands


def test_train_prints_the_folder_of_the_teacher_and_a_comparison_with_random_play(tmp_path: Path) -> None:
    train = {"algorithm": "PPO", "total_steps": 256, "num_envs": 4, "eval_episodes": 3}
    document = {
        "env": {"id": "CartPole-v1"},
        "teacher": {"train": train | {"hyperparameters": {"n_steps": 64}}},
        "students": {"linear": {"type": "linear"}},
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    done = commands.run("train", str(tmp_path / "run.yaml"))
    assert done.returncode == 0, done.stderr
    output = done.stdout
    last = re.fullmatch(r"teacher: (.*) \(mean return ([\d.]+), random play ([\d.]+)\)", output.splitlines()[-1])
    assert last is not None, output
    assert Path(last[1]) == tmp_path / "run" / "teacher"
    random_play = play(EnvConfig("CartPole-v1"), None, 3, PlayConfig(split=VALIDATION)).returns.mean()
    assert float(last[3]) == pytest.approx(random_play, rel=1e-3)
