"""Code of the user that was edited since a stage began."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pytest

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import spec_from_env
from rldistill.io.stage_inputs import StageInputs
from rldistill.teachers.load import load_policy

ENV = "from tests.envs.user_envs import Base\ndef make(): return Base()\n"
TEACHER = "def teacher(): return lambda obs: int(obs[0] > 0)\n"
WRAPPER = "import gymnasium\nclass Same(gymnasium.Wrapper): pass\n"
SMALL = CollectConfig(steps=96, envs_per_stream=3, epsilon=0.3)


@pytest.fixture(params=["edited_env", "edited_teacher", "edited_wrapper"])
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    for name, text in (("edited_env", ENV), ("edited_teacher", TEACHER), ("edited_wrapper", WRAPPER)):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    spec_from_env.cache_clear()
    return str(request.param)


def run(folder: Path) -> None:
    env = EnvConfig("edited_env:make", wrappers=(Wrapper("edited_wrapper:Same"),))
    teacher = load_policy("edited_teacher:teacher", spec=spec_from_env(env))
    collect(env, teacher, SMALL, folder, mode="resume", progress=False)


def test_resume_warns_of_edited_code(module: str, tmp_path: Path) -> None:
    run(tmp_path / "dataset")
    assert module in Manifest.read(tmp_path / "dataset").rounds[0].inputs["sources"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path / "dataset")
    file = tmp_path / f"{module}.py"
    file.write_text(file.read_text() + "# another line\n")
    with pytest.warns(UserWarning, match=rf"the code of {module} was edited .*--overwrite"):
        run(tmp_path / "dataset")


def test_code_of_libraries_is_not_hashed() -> None:
    inputs = StageInputs("distill", {"a": "gymnasium.envs:make", "b": "C:\\data", "c": "numpy:array", "d": [1]})
    assert set(inputs.to_json()) == {"a", "b", "c", "d"}
