"""Hostile files: each is refused with one clear error, or read without what was hostile in it; nothing of it runs."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core.errors import ConfigError, RLDistillError
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import open_dataset
from rldistill.data.manifest import Manifest
from rldistill.data.merge import merge
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.verify import VerifyConfig, verify
from rldistill.io.atomic import read_json, write_json
from rldistill.students import STUDENTS, Mlp
from rldistill.students.storage import save_policy
from rldistill.teachers.load import SavedTeacher, load_policy

from .hostile.export_folders import export_cases
from .hostile.keras_models import KERAS_CASES
from .hostile.onnx_models import ONNX_CASES
from .hostile.own_policies import OWN_CASES, native
from .hostile.run_folders import run_cases
from .hostile.sb3_zips import beside, sb3_cases, yml
from .hostile.watch import CARTPOLE, Payload, require_harmless, watched

pytestmark = pytest.mark.slow

os.environ.setdefault("KERAS_BACKEND", "torch")
CASES = {**sb3_cases(), **KERAS_CASES, **ONNX_CASES, **OWN_CASES, **run_cases(), **export_cases()}


def test_there_are_as_many_as_is_promised() -> None:
    assert len(CASES) >= 400


@pytest.mark.filterwarnings("ignore:.* its outputs are read as logits")
@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_hostile_file_runs(name: str, tmp_path: Path) -> None:
    require_harmless(CASES[name], tmp_path)


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    with watched() as seen:
        pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert any(event.startswith("os.system") for event in seen)
    assert any(event.startswith("pickle.find_class") for event in seen)


def test_safetensors_of_ours_are_read_back(tmp_path: Path) -> None:
    """The tampering above is what is refused, not the format."""
    load_policy(native()(tmp_path, tmp_path))
    save_file({"a": torch.zeros(2)}, tmp_path / "policy.safetensors")
    with pytest.raises(RLDistillError, match="SHA-256"):
        load_policy(tmp_path)


def test_an_environment_that_a_file_names_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = beside("args.yml", yml("env: 'planted:make'"))(tmp_path, tmp_path)
    policy, env = load_policy(path), EnvConfig("CartPole-v1")
    found = verify(env, SavedTeacher(str(path)).load(), VerifyConfig(1), name=str(path))
    assert "trained on planted:make" in found.suspicious[-1]
    for seed, name in enumerate("ab"):
        collect(env, policy, CollectConfig(steps=32, block_steps=4), tmp_path / name, seed=seed)
        manifest = tmp_path / name / "manifest.json"
        document = read_json(manifest)
        write_json(manifest, {**document, "env": {**document["env"], "id": "planted:make"}})
        open_dataset(tmp_path / name)
    assert Manifest.read(tmp_path / "a").env.id == "planted:make"
    relabel(tmp_path / "a", policy, tmp_path / "relabelled")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert "planted" not in sys.modules
    with pytest.raises(ConfigError, match="it ran"):
        spec_from_env(EnvConfig("planted:make"))


@pytest.mark.parametrize("network", [None, "planted:make", {"type": "planted:make"}], ids=repr)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("student", ["linear", "ridge", "tree", "mlp"])
def test_a_policy_file_cannot_name_code_for_its_features(
    student: str, nested: bool, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    save_policy(Mlp((4,)).build(CARTPOLE), tmp_path, {})
    document = json.loads((tmp_path / "policy.json").read_text())
    head = document["spec"]["head"]
    reference: dict[str, Any] = {"type": "teacher", "policy": "planted:make", "network": network, "head": head}
    if nested:
        inner = {"type": "mlp", **document["config"], "features": reference}
        reference = {"type": "teacher", "policy": "", "network": inner, "head": head}
    defaults = json.loads(json.dumps(dataclasses.asdict(STUDENTS[student]())))
    document |= {"student": student, "config": {**defaults, "features": reference}}
    write_json(tmp_path / "policy.json", document)
    with pytest.raises(RLDistillError, match=r"features\.network: expected one of actor, mlp, cnn, impala"):
        load_policy(tmp_path)
    assert "planted" not in sys.modules
