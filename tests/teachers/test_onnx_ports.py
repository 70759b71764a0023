"""ONNX graphs that return actions, have a memory or several inputs, among them those of our own exporters."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import MASK
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.envs.spaces import spec_from_spaces
from rldistill.exporters.lowering import lower_policy
from rldistill.exporters.onnx import write_onnx
from rldistill.teachers.load import load_policy

from ..exporters.test_runtimes import STUDENTS_BY_NAME, policies, some_observations

pytestmark = pytest.mark.slow
onnx = pytest.importorskip("onnx", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs the extra export")

BOX = spaces.Box(-1, 1, (3,))
WEIGHT = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
INT64, FLOAT = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", STUDENTS_BY_NAME)
def test_exported_students_load_again(name: str, tmp_path: Path) -> None:
    for number, policy in enumerate(policies(name)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(write_onnx(lower_policy(policy), {}))
        env = dataclasses.replace(policy.spec, head=policy.spec.head.neutral)
        loaded = pickle.loads(pickle.dumps(load_policy(path, spec=env)))
        assert loaded.spec == policy.spec
        obs, ours, theirs = some_observations(policy.spec, 6), policy.initial_state(6), loaded.initial_state(6)
        for _ in range(3 if policy.recurrent else 1):
            with torch.no_grad():
                expected, ours = policy(obs, ours)
                output, theirs = loaded(obs, theirs)
            torch.testing.assert_close(output.params, expected.params, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(output.mode(), expected.mode(), rtol=1e-4, atol=1e-5)
            assert (output.mask is None) == (expected.mask is None)


def write(path: Path, inputs: dict[str, Any], outputs: dict[str, Any], nodes: list[tuple[Any, ...]]) -> Path:
    """Write a graph; inputs and outputs are shapes, or pairs of a type and a shape, and nodes are arguments."""

    def values(ports: dict[str, Any]) -> list[Any]:
        typed = {name: port if isinstance(port, tuple) else (FLOAT, port) for name, port in ports.items()}
        return [onnx.helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in typed.items()]

    made = [onnx.helper.make_node(kind, *ports, **(options[0] if options else {})) for kind, *ports, options in nodes]
    weights = [onnx.numpy_helper.from_array(WEIGHT, "w")]
    graph = onnx.helper.make_graph(made, "g", values(inputs), values(outputs), weights)
    opset = [onnx.helper.make_opsetid("", 20)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())
    return path


def spec_for(actions: spaces.Space[Any]) -> PolicySpec:
    return spec_from_spaces("it", BOX, actions)


LOGITS = ("MatMul", ["obs", "w"], ["l"], ())
ARGMAX: dict[str, tuple[Any, list[tuple[Any, ...]]]] = {
    "int64 [batch]": ((INT64, ["b"]), [LOGITS, ("ArgMax", ["l"], ["y"], ({"axis": 1, "keepdims": 0},))]),
    "int64 [batch, 1]": ((INT64, ["b", 1]), [LOGITS, ("ArgMax", ["l"], ["y"], ({"axis": 1},))]),
    "int32": (
        (onnx.TensorProto.INT32, ["b"]),
        [LOGITS, ("ArgMax", ["l"], ["i"], ({"axis": 1, "keepdims": 0},)), ("Cast", ["i"], ["y"], ({"to": 6},))],
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ARGMAX)
@pytest.mark.parametrize("more", [False, True])
def test_output_that_is_the_action_is_a_deterministic_policy(case: str, more: bool, tmp_path: Path) -> None:
    output, nodes = ARGMAX[case]
    outputs = {"y": output}
    if more:  # values and log_prob, as in the wrapper of SB3's documentation
        nodes = [*nodes, ("ReduceSum", ["obs"], ["values"], ()), ("ReduceMax", ["l"], ["log_prob"], ())]
        outputs |= {"values": [1, 1], "log_prob": [1, 1]}
    path = write(tmp_path / "p.onnx", {"obs": ["b", 3]}, outputs, nodes)
    policy, obs = load_policy(path, spec=spec_for(spaces.Discrete(4))), torch.randn(20, 3)
    expected = (obs.numpy() @ WEIGHT).argmax(1)
    np.testing.assert_array_equal(policy(obs)[0].mode().numpy(), expected)
    assert isinstance(policy(obs)[0], PolicyOutput)
    with pytest.raises(ConfigError, match=r"^teacher\.head: .*p\.onnx returns actions"):
        load_policy(path, spec=spec_for(spaces.Discrete(4)), head="q_values")
    with pytest.raises(SpecMismatchError, match=r"p\.onnx returns action [0-9].*expected an integer from 0 to 1"):
        load_policy(path, spec=spec_for(spaces.Discrete(2)))


@pytest.mark.parametrize("names", [["actions", "values", "log_prob"], ["action", "value", "logp"]])
def test_continuous_action_is_found_by_its_name(names: list[str], tmp_path: Path) -> None:
    nodes = [("ReduceSum", ["obs", "axes"], [name], ({"keepdims": int(name != names[2])},)) for name in names[1:]]
    nodes += [("Constant", [], ["axes"], ({"value_ints": [1]},)), ("ReduceMax", ["obs", "axes"], [names[0]], ())]
    nodes = [nodes[-2], *nodes[:-2], nodes[-1]]
    shapes = dict(zip(names, (["b", 1], ["b", 1], ["b"]), strict=True))
    path = write(tmp_path / "p.onnx", {"obs": ["b", 3]}, shapes, nodes)
    policy, obs = load_policy(path, spec=spec_for(spaces.Box(-9, 9, (1,)))), torch.randn(5, 3)
    torch.testing.assert_close(policy(obs)[0].mode(), obs.amax(1, keepdim=True))


STATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "state_in, state_out": ({"state_in": ["b", 3]}, {"state_out": ["b", 3]}),
    "h_in, h_out": ({"h_in": [1, "b", 3]}, {"h_out": [1, "b", 3]}),
    "h, new_h": ({"h": ["b", 1, 3]}, {"new_h": ["b", 1, 3]}),
    "one observation": ({"hidden_in": [1, 1, 3]}, {"hidden_out": [1, 1, 3]}),
    "two": ({"h_in": [1, "b", 3], "c_in": ["b", 3]}, {"c_out": ["b", 3], "h_out": [1, "b", 3]}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", STATES)
def test_states_are_kept_between_steps(case: str, tmp_path: Path) -> None:
    ins, outs = STATES[case]
    first, *others = ins
    target = next(
        name for name in outs if name.strip("_new") == first.strip("_in") or name[0] == first[0] or "new" in name
    )
    batch: Any = 1 if case == "one observation" else "b"
    nodes: list[tuple[Any, ...]] = [("Add", [first, "obs"], [target], ())]  # broadcasts [.., b, 3] with [b, 3]
    if case == "h, new_h":
        nodes = [
            ("Constant", [], ["axis"], ({"value_ints": [1]},)), ("Unsqueeze", ["obs", "axis"], ["row"], ()),
            ("Add", [first, "row"], [target], ()),
        ]  # fmt: skip
    if others:
        nodes.append(("Sub", [others[0], "obs"], ["c_out"], ()))
    nodes += [("Constant", [], ["shape"], ({"value_ints": [-1, 3]},)), ("Reshape", [target, "shape"], ["sum"], ())]
    nodes.append(("MatMul", ["sum", "w"], ["output"], ()))
    path = write(tmp_path / "p.onnx", {"obs": [batch, 3], **ins}, {"output": [batch, 4], **outs}, nodes)
    policy = load_policy(path, spec=spec_for(spaces.Discrete(4)), head="q_values")
    policy = pickle.loads(pickle.dumps(policy))
    state, total = policy.initial_state(5), torch.zeros(5, 3)
    assert state is not None
    assert state.shape == (5, 6 if others else 3)
    for _ in range(4):
        obs = torch.randn(5, 3)
        total += obs
        output, state = policy(obs, state)
        torch.testing.assert_close(output.params, total @ torch.from_numpy(WEIGHT), rtol=1e-4, atol=1e-5)


DICT = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "k": spaces.Discrete(3), MASK: spaces.MultiBinary(4)})


@pytest.mark.parametrize("masked", [True, False])
def test_inputs_are_the_entries_of_the_observation(masked: bool, tmp_path: Path) -> None:
    spec = spec_from_spaces("it", DICT, spaces.Discrete(4))
    inputs: dict[str, Any] = {"k": (INT64, ["b"]), "a": ["b", 3]}
    nodes: list[tuple[Any, ...]] = [("MatMul", ["a", "w"], ["l"], ())]
    if masked:
        inputs[MASK] = (onnx.TensorProto.BOOL, ["b", 4])
        nodes += [("Constant", [], ["low"], ({"value_float": -1e8},)), ("Where", [MASK, "l", "low"], ["y"], ())]
    else:
        nodes.append(("Identity", ["l"], ["y"], ()))
    path = write(tmp_path / "p.onnx", inputs, {"y": ["b", 4]}, nodes)
    policy = load_policy(path, spec=spec, head="categorical")
    assert (MASK in policy.spec.entries) == masked
    a, k = torch.randn(2, 3), torch.tensor([0, 2])
    entries = {"a": a, "k": k} | ({MASK: torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0.0]])} if masked else {})
    expected = a @ torch.from_numpy(WEIGHT)
    for obs in (entries, torch.cat([entries[key].reshape(2, -1).float() for key in policy.spec.entries], 1)):
        params = policy(obs)[0].params
        legal = entries[MASK].bool() if masked else torch.ones(2, 4, dtype=torch.bool)
        torch.testing.assert_close(params[legal], expected[legal])
        assert (params[~legal] == -1e8).all()


@pytest.mark.parametrize("inputs", [["a", "b"], ["a", "k", "other"], ["a", "hidden"]])
def test_inputs_of_other_names_are_refused(inputs: list[str], tmp_path: Path) -> None:
    shapes = {name: ["b", 3] for name in inputs}
    path = write(tmp_path / "p.onnx", shapes, {"y": ["b", 4]}, [("MatMul", ["a", "w"], ["y"], ())])
    with pytest.raises(
        SpecMismatchError, match=r"p\.onnx: has the inputs a, .*the observation has a, k\. Export it wi"
    ):
        load_policy(path, spec=spec_from_spaces("it", DICT, spaces.Discrete(4)).unmasked, head="q_values")
