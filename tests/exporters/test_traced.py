"""Policies without a translation into operations: traced by PyTorch for ONNX, refused by other formats."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from rldistill.core.heads import ActionHead, CategoricalHead, SquashedGaussianHead
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.envs.spaces import spec_from_env
from rldistill.exporters.comparison import compare, states_of
from rldistill.exporters.config import ExportConfig
from rldistill.exporters.export import export_policy
from rldistill.exporters.program import ExportError
from rldistill.exporters.runtimes import Interface, OnnxRuntime
from rldistill.exporters.traced import trace_onnx
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Keras
from rldistill.students.student import Student
from rldistill.teachers.file_policy import synthetic_observations

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

CARTPOLE = EnvConfig("CartPole-v1")


def small(*formats: Any) -> ExportConfig:
    return ExportConfig(formats, states=200, episodes=2)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class Doubled(nn.Linear):
    """A subclass of a known layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@dataclasses.dataclass(frozen=True)
class Own(Student):
    """A student of the user's own with a layer that has no translation."""

    layer: str = "Sine"

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        own = Sine() if self.layer == "Sine" else Doubled(8, 8)
        return NetworkPolicy(self, spec, nn.Sequential(nn.Linear(4, 8), own), 8)


@pytest.mark.parametrize("layer", ["Sine", "Doubled"])
def test_student_of_the_users_own_is_traced(layer: str, tmp_path: Path) -> None:
    policy = Own(layer).build(spec_from_env(CARTPOLE)).eval()
    certificate = export_policy(
        policy, CARTPOLE, tmp_path / "export", ExportConfig((), states=200, episodes=2), progress=False
    )
    assert certificate.formats["onnx"].differences["own"].agreement == 1.0
    refused = str(certificate.formats["c"].refused)
    assert f"the layer {layer}(" in refused
    assert "has no translation" in refused


def test_format_without_translation_is_refused_if_it_is_asked_for(tmp_path: Path) -> None:
    policy = Own().build(spec_from_env(CARTPOLE)).eval()
    with pytest.raises(ExportError, match=r"Sine\(\) has no translation"):
        export_policy(policy, CARTPOLE, tmp_path / "export", small("c"), progress=False)
    assert [*tmp_path.iterdir()] == []


@dataclasses.dataclass(frozen=True)
class BatchMean(Student):
    """A student whose output depends on the other observations of the batch."""

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        class Centered(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x - x.mean(0)

        return NetworkPolicy(self, spec, nn.Sequential(nn.Linear(4, 8), Centered()), 8)


def test_policy_that_depends_on_its_batch_does_not_pass(tmp_path: Path) -> None:
    policy = BatchMean().build(spec_from_env(CARTPOLE)).eval()
    certificate = export_policy(policy, CARTPOLE, tmp_path / "export", small("onnx"), progress=False)
    assert any("batches" in reason for reason in certificate.failures)


def keras_model(shape: tuple[int, ...], outputs: int) -> Any:
    import keras

    layers = [keras.Input(shape)]
    if len(shape) == 3:
        layers += [keras.layers.Conv2D(4, 4, 2), keras.layers.MaxPooling2D(2), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(8, activation="elu"), keras.layers.Dense(outputs)])


@pytest.mark.parametrize(("shape", "dtype"), [((4,), "float32"), ((4, 24, 24), "uint8")])
@pytest.mark.parametrize("head", [CategoricalHead((3,)), SquashedGaussianHead(low=(-1.0,), high=(2.0,))], ids=repr)
def test_keras_in_onnx_for_any_batch(shape: tuple[int, ...], dtype: str, head: ActionHead, tmp_path: Path) -> None:
    pytest.importorskip("keras")
    policy = Keras(f"{__name__}:keras_model").build(PolicySpec(shape, dtype, head)).eval()
    interface = Interface(policy.spec)
    (tmp_path / "student.onnx").write_bytes(trace_onnx(policy, interface, {}))
    states = states_of(policy, synthetic_observations(policy.spec, 20))
    for batch in (1, 7, 20):
        difference = compare(policy, OnnxRuntime(interface, tmp_path / "student.onnx"), states, batch)
        assert difference.unequal == 0
        assert difference.largest < 1e-5


class Loop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


@dataclasses.dataclass(frozen=True)
class Branching(Student):
    """A student whose operations depend on the numbers."""

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        return NetworkPolicy(self, spec, nn.Sequential(nn.Linear(4, 8), Loop()), 8)


def test_student_that_cannot_be_traced_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = Branching().build(spec_from_env(CARTPOLE)).eval()
    with pytest.raises(ExportError, match="PyTorch cannot trace the Branching") as error:
        export_policy(policy, CARTPOLE, tmp_path / "export", small("onnx"), progress=False)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert capfd.readouterr() == ("", "")
