from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rldistill.cli.options import parse_teacher
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError, UntrustedFileError
from rldistill.core.heads import ILLEGAL, MASK
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env, spec_from_spaces
from rldistill.io.execution import Execution
from rldistill.policies.ensemble import Ensemble
from rldistill.policies.wrappers import with_action_mask
from rldistill.students import Cnn, Mlp
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble, load_policy

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")

SPEC = spec_from_env(CARTPOLE)


class Params(nn.Module):
    """The parameters alone of one of our networks, as somebody else would export it."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.policy(obs)[0].params


def export(network: nn.Module, obs: torch.Tensor, path: Path) -> Path:
    network.eval()
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(network, (obs,), path, dynamo=True, dynamic_shapes=(batch,), external_data=False, verbose=False)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return export(Params(Mlp((16,)).build(SPEC).eval()), torch.zeros(3, 4), tmp_path_factory.mktemp("onnx") / "p.onnx")


def test_labels_equal_the_outputs_of_onnxruntime(file: Path) -> None:
    policy = load_policy(file, spec=SPEC, head="categorical")
    session = onnxruntime.InferenceSession(file.read_bytes())
    obs = torch.randn(1_000, 4)
    for rows in (obs, obs[:1]):
        (expected,) = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
        np.testing.assert_allclose(policy(rows)[0].params.numpy(), expected, rtol=1e-5, atol=1e-5)


def export_fixed(network: nn.Module, count: int, path: Path) -> Path:
    network.eval()
    torch.onnx.export(network, (torch.zeros(count, 4),), path, dynamo=True, external_data=False, verbose=False)
    return path


def test_a_graph_for_one_observation_is_run_for_each(tmp_path: Path) -> None:
    network = Mlp((16,)).build(SPEC).eval()
    policy = load_policy(export_fixed(Params(network), 1, tmp_path / "one.onnx"), spec=SPEC, head="q_values")
    obs = torch.randn(7, 4)
    torch.testing.assert_close(policy(obs)[0].params, network(obs)[0].params, rtol=1e-4, atol=1e-5)


def test_batches_of_one_size_are_refused(tmp_path: Path) -> None:
    file = export_fixed(Params(Mlp((16,)).build(SPEC)), 8, tmp_path / "eight.onnx")
    with pytest.raises(
        SpecMismatchError, match=r"eight\.onnx: onnxruntime fails on 1 obs.*Export it with a batch of any"
    ):
        load_policy(file, spec=SPEC)


@pytest.mark.parametrize(
    ("head", "known"),
    [("bernoulli", "categorical or q_values"), ("multi_categorical", "categorical or q_values"), ("gaussian", "categ")],
)
def test_a_head_for_other_actions_is_refused(file: Path, head: Any, known: str) -> None:
    with pytest.raises(SpecMismatchError, match=rf"p\.onnx: a {head} head does not fit .*; expected {known}"):
        load_policy(file, spec=SPEC, head=head)


def test_members_of_an_ensemble_have_their_own_options(file: Path) -> None:
    asked = SavedTeacher(str(file), head="q_values", scale=0.5), SavedTeacher(str(file), head="categorical")
    together, obs = TeacherEnsemble(asked).load(SPEC), torch.randn(5, 4)
    assert isinstance(together, Ensemble)
    assert [member.spec.head.kind for member in together.members] == ["q_values", "categorical"]
    first, second = (member(obs)[0].params for member in together.members)
    torch.testing.assert_close(first, load_policy(file, spec=SPEC, head="q_values")(obs / 2)[0].params)
    torch.testing.assert_close(second, load_policy(file, spec=SPEC, head="q_values")(obs)[0].params)


def test_graph_takes_observations_without_the_action_mask(file: Path) -> None:
    box = spaces.Box(-1, 1, (4,))
    masked = spec_from_spaces("it", spaces.Dict({"obs": box, MASK: spaces.MultiBinary(2)}), spaces.Discrete(2))
    policy, obs = load_policy(file, spec=masked, head="q_values"), torch.randn(6, 4)
    confined = with_action_mask(policy, masked)
    confined.spec.require_same_input(masked, "the teacher", "it")
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]] * 2)
    output, _ = confined(torch.cat([mask, obs], 1))
    torch.testing.assert_close(output.params[mask.bool()], policy(obs)[0].params[mask.bool()])
    assert (output.params[~mask.bool()] == ILLEGAL).all()


def test_teacher_labels_in_several_processes(file: Path, tmp_path: Path) -> None:
    policy = load_policy(file, spec=SPEC, head="q_values")
    assert policy.spec.head.kind == "q_values"
    config = CollectConfig(steps=200, envs_per_stream=2, block_steps=50)
    one = collect(CARTPOLE, policy, config, tmp_path / "one")
    loaded = pickle.loads(pickle.dumps(policy))
    two = collect(CARTPOLE, loaded, config, tmp_path / "two", execution=Execution(workers=2))
    np.testing.assert_array_equal(one.columns["teacher"], two.columns["teacher"])


def test_pixels_are_scaled_on_request(tmp_path: Path) -> None:
    spec = spec_from_env(EnvConfig("ALE/Pong-v5"))
    floats = dataclasses.replace(spec, obs_dtype="float32")
    network = Cnn((4,), (8,), (8,), (8,)).build(floats).eval()
    path = export(Params(network), torch.zeros(2, 4, 84, 84), tmp_path / "p.onnx")
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    params = load_policy(path, spec=spec, head="q_values", scale=1 / 255)(obs)[0].params
    torch.testing.assert_close(params, network(obs / 255)[0].params, rtol=1e-4, atol=1e-5)


def test_integers_are_not_scaled(tmp_path: Path) -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, obs: torch.Tensor) -> torch.Tensor:
            return self.layer(obs.float() / 255)

    spec = spec_from_spaces("it", spaces.Box(0, 255, (4,), np.uint8), spaces.Discrete(2))
    network, obs = Pixels(), torch.randint(0, 256, (3, 4), dtype=torch.uint8)
    path = export(network, obs, tmp_path / "p.onnx")
    params = load_policy(path, spec=spec, head="q_values")(obs)[0].params
    torch.testing.assert_close(params, network(obs), atol=1e-5, rtol=1e-4)
    with pytest.raises(
        ConfigError, match=r"^teacher.scale: .*p\.onnx has an input of tensor\(uint8\).*Remove the option.$"
    ):
        load_policy(path, spec=spec, head="q_values", scale=1 / 255)


def test_outputs_that_may_be_q_values_cause_a_warning(file: Path) -> None:
    with pytest.warns(UserWarning, match=r"p\.onnx: its outputs are read as logits. Set head=q_v"):
        assert load_policy(file, spec=SPEC).spec.head.kind == "categorical"


def test_an_activation_is_refused(file: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^teacher.activation: .*p\.onnx is an ONNX file, which already holds its activations. Remove",
    ):
        load_policy(file, spec=SPEC, activation="relu")


@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_probabilities_become_logits(actions: Any, tmp_path: Path) -> None:
    spec = spec_from_spaces("mine", spaces.Box(-1, 1, (4,)), actions)
    network = Mlp((16,)).build(spec).eval()

    def chances(params: torch.Tensor) -> torch.Tensor:
        if spec.head.kind == "bernoulli":
            return params.sigmoid()
        return torch.cat([part.softmax(-1) for part in params.split(spec.head.nvec, 1)], 1)

    class Chances(Params):
        def forward(self, obs: torch.Tensor) -> torch.Tensor:
            return chances(super().forward(obs))

    policy = load_policy(export(Chances(network), torch.zeros(3, 4), tmp_path / "p.onnx"), spec=spec)
    obs = torch.randn(5, 4)
    said, expected = (who(obs)[0].params for who in (pickle.loads(pickle.dumps(policy)), network))
    torch.testing.assert_close(chances(said), chances(expected), atol=1e-5, rtol=1e-5)


def test_one_of_several_outputs_must_be_named(tmp_path: Path) -> None:
    network = Mlp((16,)).build(SPEC).eval()

    class Two(Params):
        def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            return -super().forward(obs), super().forward(obs)

    path = export(Two(network), torch.zeros(3, 4), tmp_path / "p.onnx")
    first, second = (output.name for output in onnxruntime.InferenceSession(path.read_bytes()).get_outputs())
    with pytest.raises(ConfigError, match=rf"{first} and {second} of .* fit its categorical head. Set output="):
        load_policy(path, spec=SPEC)
    with pytest.raises(SpecMismatchError, match=rf"no output '{second}x' of 2 numbers.*Did you mean '{second}'"):
        load_policy(path, spec=SPEC, output=f"{second}x")
    obs = torch.randn(5, 4)
    teacher = parse_teacher(f"{path},output={second},head=q_values")
    torch.testing.assert_close(teacher.load(SPEC)(obs)[0].params, network(obs)[0].params, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("wrong", "words"), [(np.nan, "holds NaN"), (np.inf, "returns NaN or infinite")])
def test_weights_that_are_not_finite_are_refused(wrong: float, words: str, file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    numbers = onnx.numpy_helper.to_array(tensor).copy()
    numbers.flat[0] = wrong
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CorruptArtifactError, match=rf"odd\.onnx.*{words}"):
        load_policy(tmp_path / "odd.onnx", spec=SPEC)


def test_tensors_outside_the_file_are_not_followed(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UntrustedFileError, match="is outside the file"):
        load_policy(tmp_path / "evil.onnx", spec=SPEC)


def test_operators_of_unknown_domains_are_refused(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    model.graph.node[0].domain = "evil.ops"
    (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UntrustedFileError, match=r"evil\.ops"):
        load_policy(tmp_path / "evil.onnx", spec=SPEC)


@pytest.mark.parametrize(("operator", "domain", "words"), [("Loop", "", "may never end"), ("Relu", "x.y", r"x\.y")])
def test_operators_in_branches_of_functions_are_refused(
    operator: str, domain: str, words: str, file: Path, tmp_path: Path
) -> None:
    model = onnx.load(file)
    inner = onnx.helper.make_node(operator, ["x"], ["y"], domain=domain)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    branch = onnx.helper.make_graph([inner], "branch", [], [output])
    node = onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    model.functions.append(onnx.helper.make_function("local", "f", ["c", "x"], ["z"], [node], model.opset_import))
    (tmp_path / "evil.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UntrustedFileError, match=words):
        load_policy(tmp_path / "evil.onnx", spec=SPEC)


@pytest.mark.parametrize(
    ("spec", "words"),
    [(spec_from_env(EnvConfig("Acrobot-v1")), "takes observations"), (None, "Pass the spec of the environment")],
)
def test_file_for_another_environment_is_refused(file: Path, spec: Any, words: str) -> None:
    with pytest.raises((SpecMismatchError, ConfigError), match=rf"p\.onnx.*{words}"):
        load_policy(file, spec=spec)


def test_graph_for_another_action_space_is_refused(file: Path) -> None:
    spec = dataclasses.replace(SPEC, head=dataclasses.replace(SPEC.head, nvec=(3,)))
    with pytest.raises(SpecMismatchError, match=r"expected \[batch, 3\]"):
        load_policy(file, spec=spec)


@pytest.mark.parametrize("kept", [0, 10, 300])
def test_truncated_file_is_refused(file: Path, kept: int, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:kept])
    with pytest.raises((CorruptArtifactError, SpecMismatchError), match=r"cut\.onnx"):
        load_policy(tmp_path / "cut.onnx", spec=SPEC)
