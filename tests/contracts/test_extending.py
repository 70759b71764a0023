"""Every section of docs/extending.md is run: its module, with its lines of the run file."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import PPO

from rldistill.run.config import load_run
from rldistill.run.stages import run_all

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
INTRODUCTION, *PARTS = PAGE.split("\n## ")
SECTIONS = {part.partition("\n")[0]: part for part in PARTS}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def module_of(section: str) -> tuple[str, str]:
    """Return the name and the code of the module in a section."""
    (code,) = blocks(SECTIONS[section], "python")
    return code.splitlines()[0].removeprefix("# ").removesuffix(".py"), code


def test_code_of_each_section_is_short() -> None:
    assert len(SECTIONS) == 9
    for section in SECTIONS:
        assert len(module_of(section)[1].splitlines()) <= 25, section


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_section_runs(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name, code in map(module_of, ("Teacher", section)):
        Path(f"{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    document = yaml.safe_load(blocks(INTRODUCTION, "yaml")[0]) | yaml.safe_load(blocks(SECTIONS[section], "yaml")[0])
    if "model.zip" in str(document["teacher"]):
        extractor = importlib.import_module(name).Wide
        model = PPO(
            "MlpPolicy", "CartPole-v1", n_steps=64, seed=0, policy_kwargs={"features_extractor_class": extractor}
        )
        model.learn(256).save("model.zip")
    Path("run.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    assert name in Path("run.yaml").read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of teachers that are weak
        report = run_all(load_run(Path("run.yaml")), quiet=True)
    assert report.exists()
