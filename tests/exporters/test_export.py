"""Exports with their certificate, and their verification."""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from rldistill.core.errors import (
    ConfigError,
    CorruptArtifactError,
    RLDistillError,
    SpecMismatchError,
    UntrustedFileError,
)
from rldistill.core.heads import MASK, CategoricalHead, HeadKind
from rldistill.core.spec import EnvConfig, ObsPart, PolicySpec, Views, Wrapper
from rldistill.data.dataset import Dataset
from rldistill.envs.make import make_env
from rldistill.envs.spaces import spec_from_env
from rldistill.exporters.certificate import Certificate, require_plain_env
from rldistill.exporters.comparison import States, compare, own_states, rounding
from rldistill.exporters.config import ExportConfig
from rldistill.exporters.export import export_policy
from rldistill.exporters.metadata import ExportContext
from rldistill.exporters.program import ExportError
from rldistill.exporters.runtimes import ExportedPolicy, Interface, compiler
from rldistill.exporters.verify import verify_export
from rldistill.io.atomic import read_json
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Gru, Linear, Mlp, Tree
from rldistill.students.features import Standardized
from rldistill.students.storage import save_policy
from rldistill.students.student import Student

from .test_runtimes import metadata_of

pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None or shutil.which("node") is None, reason="needs a C compiler and Node"),
]

CARTPOLE = EnvConfig("CartPole-v1")
SMALL = ExportConfig(("onnx", "c", "html", "sb3"), states=300, episodes=4)


def small(*formats: str) -> ExportConfig:
    return dataclasses.replace(SMALL, formats=formats)


@pytest.fixture(scope="module")
def exported(teacher: NetworkPolicy, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an export of the teacher, which lies beside it."""
    folder = tmp_path_factory.mktemp("run")
    save_policy(teacher, folder / "teacher", {})
    context = ExportContext("../teacher", dataset=dataset, facts={"score": 1.0})
    certificate = export_policy(teacher, CARTPOLE, folder / "export", SMALL, context, progress=False)
    assert certificate.failures == []
    return folder / "export"


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported.parent, tmp_path / "run")
    return tmp_path / "run" / "export"


def test_certificate_compares_every_format(exported: Path) -> None:
    certificate = Certificate.read(exported)
    assert [*certificate.formats] == ["onnx", "c", "html", "sb3"]
    for record in certificate.formats.values():
        assert {"own", "dataset", "zeros", "beyond the clip", "first step"} <= {*record.differences}
        assert all(difference.agreement == 1.0 for difference in record.differences.values())
    assert certificate.formats["c"].flash
    assert certificate.formats["c"].ram is not None
    loop = certificate.formats["c"].closed_loop
    assert loop is not None
    assert (loop.keeps_95, loop.equal_actions) == ("identical", 1.0)
    assert "certificate: passed" in str(certificate)


def test_certificate_fits_in_a_terminal_of_80_columns(exported: Path) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(Certificate.read(exported))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "keeps 95%" in text
    played = [record for record in Certificate.read(exported).formats.values() if record.closed_loop is not None]
    assert sum(text.count(word) for word in ("identical", "yes", "undecided")) >= len(played)


def test_files_verify(exported: Path) -> None:
    assert verify_export(exported, progress=False).failures == []


def test_files_verify_without_the_original(copied: Path) -> None:
    shutil.rmtree(copied.parent / "teacher")
    certificate = verify_export(copied, progress=False)
    assert certificate.failures == []
    assert "test vectors only" in str(certificate)


@pytest.mark.parametrize("name", ["student.onnx", "student.c", "student.html", "student.zip", "vectors.safetensors"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:]])
def test_altered_file_is_refused(copied: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    (copied / name).write_bytes(damage((copied / name).read_bytes()))
    with pytest.raises(CorruptArtifactError, match=f"{name}: missing or changed"):
        verify_export(copied, progress=False)


def test_altered_certificate_is_refused(copied: Path) -> None:
    path = copied / "parity.json"
    path.write_text(path.read_text().replace('"mean":', '"mean" :').replace("9", "8", 1))
    with pytest.raises(CorruptArtifactError, match=r"parity\.json"):
        verify_export(copied, progress=False)


def test_environment_with_code_in_a_certificate_is_refused(copied: Path) -> None:
    document = read_json(copied / "parity.json")
    document["env"]["id"] = "os:abort"
    certificate = Certificate.parse(document, copied).model_copy()
    certificate.write(copied)
    with pytest.raises(RLDistillError, match="names code of its own"):
        verify_export(copied, progress=False)


@pytest.mark.parametrize("config", [{}, {"a": 1}, {"other_vehicles_type": "os.system"}])
def test_nested_arguments_of_a_file_are_refused(config: dict[str, Any]) -> None:
    env = EnvConfig("CartPole-v1", {"config": config})  # highway-env imports the objects that its `config` names
    with pytest.raises(UntrustedFileError, match=r"the environment has config=.*Pass --env\."):
        require_plain_env(env, Path("parity.json"))


@pytest.mark.parametrize(
    ("env_id", "is_allowed"),
    [
        ("pettingzoo:mpe2.simple_spread_v3", True),
        ("pettingzoo:butterfly.pistonball_v6", True),
        ("pettingzoo:pettingzoo.classic.connect_four_v3", True),
        ("pettingzoo:mpe2.simple_spread_v3:env", False),
        ("pettingzoo:mine", False),
        ("pettingzoo:mpe2.mine", False),
        ("pettingzoo:mpe2.os.abort_v1", False),
    ],
)
def test_published_environments_of_many_agents_are_allowed(env_id: str, is_allowed: bool, tmp_path: Path) -> None:
    env = EnvConfig(env_id, {"local_ratio": 0.0})
    if is_allowed:
        assert require_plain_env(env, tmp_path).id == env_id
    else:
        with pytest.raises(UntrustedFileError, match=rf"names code of its own, {env_id}\. Pass --env\."):
            require_plain_env(env, tmp_path)


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ({"name": "PadObservation", "kwargs": {"segments": [[10, 0, 8]]}}, None),
        ({"name": "mine:Wrapper"}, "names code of its own, mine:Wrapper"),
        ({"name": "RecordVideo", "kwargs": {"video_folder": "/tmp"}}, "has the wrapper RecordVideo"),
        ({"name": "StackFrames", "kwargs": {"stack": 10**9}}, "has the wrapper StackFrames"),
        ({"name": "AgentViews", "kwargs": {"all": []}}, "has the wrapper AgentViews"),
        (7, r"AgentViews\.agent\.0: found 7"),
    ],
)
def test_wrappers_of_agents_in_a_file_are_the_allowed_ones(wrapper: Any, message: str | None, tmp_path: Path) -> None:
    views = Wrapper("AgentViews", {"agent": [wrapper]})
    env = EnvConfig("pettingzoo:mpe2.simple_spread_v3", views=Views(student=(views,)))
    if message is None:
        assert require_plain_env(env, tmp_path).wrappers == (views,)
    else:
        with pytest.raises(RLDistillError, match=message):
            require_plain_env(env, tmp_path)


def test_c_test_program_passes_and_notices_another_weight(copied: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [str(compiler()), "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]
        sources = [str(copied / name) for name in ("student.c", "student_test.c")]
        subprocess.run([*command, *sources, "-o", str(copied / "test"), "-lm"], check=True)
        return subprocess.run([str(copied / "test")], capture_output=True, text=True, check=False)

    result = run()
    assert (result.returncode, result.stdout) == (0, "64 of 64 steps match\n")
    source = copied / "student.c"
    text = source.read_text()
    first = text.index("static const float")
    position = text.index("0x1", first)
    source.write_text(text[:position] + "0x9" + text[position + 3 :])
    assert run().returncode == 1


@pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None or shutil.which("qemu-arm") is None,
    reason="needs an ARM compiler and qemu",
)
def test_c_test_program_passes_on_arm(exported: Path, tmp_path: Path) -> None:
    flags = ["-std=c99", "-O2", "-mcpu=cortex-a9", "-marm", "--specs=rdimon.specs"]
    sources = [str(exported / name) for name in ("student.c", "student_test.c")]
    subprocess.run(["arm-none-eabi-gcc", *flags, *sources, "-lm", "-o", str(tmp_path / "test")], check=True)
    result = subprocess.run(
        ["qemu-arm", str(tmp_path / "test")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, "64 of 64 steps match\n")


def test_metadata_of_onnx(exported: Path, teacher: NetworkPolicy) -> None:
    facts = metadata_of(exported / "student.onnx")
    assert facts["observation"] == [
        {"name": "obs", "shape": [4], "dtype": "float32", "order": ["obs[0]", "obs[1]", "obs[2]", "obs[3]"]}
    ]
    assert facts["action"]["head"] == "q_values"
    assert facts["environment"]["id"] == "CartPole-v1"
    assert facts["score"] == 1.0


def test_zip_plays_and_learns_in_sb3(exported: Path, teacher: NetworkPolicy) -> None:
    from stable_baselines3 import DQN

    model = DQN.load(exported / "student.zip", env=make_env(CARTPOLE))
    obs = torch.randn(64, 4)
    with torch.no_grad():
        expected = teacher(obs)[0]
    assert np.array_equal(model.predict(obs.numpy(), deterministic=True)[0], expected.mode().numpy())
    model.learn(64)


@pytest.mark.parametrize("kind", ["gaussian", "squashed_gaussian"])
def test_continuous_policies_in_sb3_with_their_moments(kind: HeadKind, tmp_path: Path) -> None:
    env = EnvConfig("Pendulum-v1")
    spec = spec_from_env(env)
    policy = Mlp((8,), "tanh").build(dataclasses.replace(spec, head=spec.head.as_kind(kind))).eval()
    policy.standardize(torch.tensor([0.1, -0.2, 0.5]), torch.tensor([0.6, 0.7, 4.0]))
    certificate = export_policy(policy, env, tmp_path / "export", small("sb3", "onnx"), progress=False)
    assert certificate.failures == []
    from stable_baselines3 import PPO, SAC

    model = (SAC if kind == "squashed_gaussian" else PPO).load(tmp_path / "export" / "student.zip")
    obs = torch.randn(16, 3)
    with torch.no_grad():
        expected = policy(obs)[0].mode().numpy()
    assert np.allclose(model.predict(obs.numpy(), deterministic=True)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        (Gru(8), "SB3 has no GruPolicy"),
        (Tree(nodes=3), "SB3 has no TreePolicy"),
        (Linear(Standardized()), "SB3 has no Standardized features"),
    ],
)
def test_policy_that_sb3_does_not_have_is_refused(student: Student, reason: str, tmp_path: Path) -> None:
    policy = student.build(spec_from_env(CARTPOLE)).eval()
    with pytest.raises(ExportError, match=reason):
        export_policy(policy, CARTPOLE, tmp_path / "export", small("sb3"), progress=False)
    assert [*tmp_path.iterdir()] == []


def test_int8_model_plays_like_the_original(teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path) -> None:
    context = ExportContext(dataset=dataset)
    certificate = export_policy(teacher, CARTPOLE, tmp_path / "export", small("int8"), context, progress=False)
    assert certificate.formats["int8"].differences["own"].agreement > 0.9
    assert (tmp_path / "export" / "student.int8.onnx").exists()


def test_int8_model_that_plays_badly_is_refused_with_the_figure(tmp_path: Path) -> None:
    """One weight of 1,000 leaves no bit for all others."""
    policy = Linear().build(spec_from_env(CARTPOLE)).eval()
    with torch.no_grad():
        policy.output.weight.copy_(torch.tensor([[0.0, -0.5, -1.0, -1.0], [0.0, 0.5, 1.0, 1.0]]))
        policy.output.weight[:, 0] = 1_000.0
    certificate = export_policy(policy, CARTPOLE, tmp_path / "export", small("int8"), progress=False)
    assert "of the actions of the original" in str(certificate.formats["int8"].refused)
    assert not (tmp_path / "export" / "student.int8.onnx").exists()


def test_nan_and_masked_differences_are_found() -> None:
    """NaN is the largest difference, and the huge logits of illegal actions do not hide those of legal ones."""

    class Fixed(ExportedPolicy):
        def __init__(self, params: Tensor) -> None:
            super().__init__(Interface(spec))
            self.params = params.numpy()

        def run(self, entries: Any, state: Any) -> Any:
            return self.params.argmax(1), self.params, None

    parts = (("obs", ObsPart((2,), "float32")), (MASK, ObsPart((3,), "int8")))
    spec = PolicySpec.from_parts(parts, CategoricalHead((3,)))
    policy = Linear().build(spec).eval()
    obs = torch.tensor([[0.5, -0.5, 1.0, 1.0, 0.0]])
    states = States(obs, np.array([True]), None)
    with torch.no_grad():
        params = policy(obs)[0].params.float()
    assert compare(policy, Fixed(params), states).largest == 0
    other = params + torch.tensor([[0.5, -0.5, 0.0]]) * (1 if params[0, 0] < params[0, 1] else -1)
    difference = compare(policy, Fixed(other), states)
    assert difference.largest > 0.1
    assert (difference.unequal, difference.ties) == (1, 0)
    assert compare(policy, Fixed(params * torch.nan), states).largest > 1


def test_rounding_is_the_difference_to_float64() -> None:
    """Of 1e8 + 1 - 1e8 only float64 keeps the 1, in whatever order float32 adds two of the three states."""
    policy = Linear().build(PolicySpec((3,), "float32", CategoricalHead((2,)))).eval()
    with torch.no_grad():
        policy.output.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
        policy.output.bias.zero_()
    orders = torch.tensor([[1e8, 1.0, -1e8], [1.0, 1e8, -1e8], [1e8, -1e8, 1.0]])
    assert rounding(policy, States(orders, np.array([True, False, False]), None)) == 1
    small = States(torch.tensor([[1.0, 2.0, 4.0]]), np.array([True]), None)
    assert rounding(policy, small) == 0


@pytest.mark.parametrize(("own", "limit"), [(0.0, 1e-5), (1e-6, 1e-5), (1e-5, 4e-5), (1.0, 1e-4)])
def test_limit_of_differences_follows_the_rounding_of_the_original(exported: Path, own: float, limit: float) -> None:
    certificate = Certificate.read(exported)
    record = certificate.formats["onnx"]
    for factor, passes in ((0.99, True), (1.01, False)):
        differences = {"own": record.differences["own"].model_copy(update={"largest": factor * limit})}
        formats = {"onnx": record.model_copy(update={"differences": differences})}
        changed = certificate.model_copy(update={"formats": formats, "rounding": own})
        assert (changed.failures == []) == passes
        assert any(text.startswith("differences: up to") for text in changed.remarks) == (limit > 1e-5)


def test_play_ends_with_the_last_state_that_is_compared(teacher: NetworkPolicy) -> None:
    """Four episodes of CartPole, one step of each at a time: two steps make eight states."""
    calls: list[int] = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        states = own_states(CARTPOLE, teacher, 7, seed=0)
    hook.remove()
    assert len(states.obs) == 7
    assert len(calls) == 2


def test_existing_folder_is_kept(teacher: NetworkPolicy, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        export_policy(teacher, CARTPOLE, tmp_path / "export", small("onnx"), progress=False)
    with pytest.raises(ConfigError, match=r"mine\.txt: not written by an export"):
        export_policy(teacher, CARTPOLE, tmp_path / "export", small("onnx"), mode="overwrite", progress=False)
    assert (tmp_path / "export" / "mine.txt").read_text() == "mine"


def test_folder_without_a_certificate_is_kept(teacher: NetworkPolicy, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "student.c").write_text("mine")
    with pytest.raises(ConfigError, match="not the folder of an export"):
        export_policy(teacher, CARTPOLE, tmp_path / "export", small("onnx"), mode="overwrite", progress=False)
    assert (tmp_path / "export" / "student.c").read_text() == "mine"


def test_other_environment_is_refused(exported: Path) -> None:
    with pytest.raises(SpecMismatchError, match="do not fit"):
        verify_export(exported, EnvConfig("Acrobot-v1"), progress=False)


def test_without_a_compiler_the_source_is_written(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.exporters.formats.compiler", lambda: None)
    certificate = export_policy(teacher, CARTPOLE, tmp_path / "export", small("c"), progress=False)
    assert "not compiled" in str(certificate)
    assert (tmp_path / "export" / "student.c").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_page_in_chromium(exported: Path, tmp_path: Path) -> None:
    """The page checks its own test vectors when its button is pressed."""
    page = (exported / "student.html").read_text()
    pressed = page.replace("fill(recordedStep(0));", 'fill(recordedStep(0)); element("check").click();')
    (tmp_path / "page.html").write_text(pressed)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    result = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    assert "64 of 64 steps match" in result.stdout
