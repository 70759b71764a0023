"""Section of the report on condensed data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.spec import EnvConfig
from rldistill.data.condense import condense
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import write_json
from rldistill.policies.network import NetworkPolicy
from rldistill.reporting.page import write_report
from rldistill.reporting.tables import condensed_states
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE
from ..envs.picture_envs import right_side

pytestmark = pytest.mark.slow

SMALL = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=32, epsilon=0.4)


def test_states_are_a_table(teacher: NetworkPolicy, tmp_path: Path, evaluation: dict[str, Any]) -> None:
    collect(CARTPOLE, teacher, SMALL, tmp_path / "whole")
    run = tmp_path / "run"
    data = condense(tmp_path / "whole", run / "dataset", 8)
    write_json(run / "evaluation.json", evaluation)
    assert condensed_states(tmp_path / "whole") is None
    states = condensed_states(run)
    assert states is not None
    q_values, obs = data.columns["teacher"][0], data.observations(np.arange(1))[0]
    assert [(cell.column, cell.text) for cell in states.rows[0][:4]] == [
        ("state", "1"),
        ("action", str(q_values.argmax())),
        ("gap", f"{abs(q_values[0] - q_values[1]):.3g}"),
        ("obs[0]", f"{obs[0]:.3g}"),
    ]
    assert len(states.rows) == 8
    assert "learned from 8 states of 320 environment steps" in write_report(run).read_text()


def test_states_are_pictures(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    env = EnvConfig("tests.envs.picture_envs:Desk")
    collect(env, FunctionPolicy(right_side, spec_from_env(env).unmasked), SMALL, tmp_path / "whole")
    run = tmp_path / "run"
    condense(tmp_path / "whole", run / "dataset", 30)
    write_json(run / "evaluation.json", evaluation)
    page = write_report(run).read_text()
    assert page.count('<img src="data:image/png;base64,') == 24
