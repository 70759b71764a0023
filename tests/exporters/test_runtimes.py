"""Every student, head and observation in ONNX, C and JavaScript gives the numbers of PyTorch."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill.core.heads import (
    MASK,
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    GaussianHead,
    MultiCategoricalHead,
    QValuesHead,
    SquashedGaussianHead,
)
from rldistill.core.spec import ObsPart, PolicySpec
from rldistill.exporters.c_source import write_c
from rldistill.exporters.comparison import States, compare
from rldistill.exporters.javascript import write_html
from rldistill.exporters.lowering import lower_policy
from rldistill.exporters.onnx import write_onnx
from rldistill.exporters.runtimes import CRuntime, ExportedPolicy, Interface, NodeRuntime, OnnxRuntime, compiler
from rldistill.exporters.vectors import compute_vectors, raw_entries
from rldistill.policies.actor_critic import Actor
from rldistill.policies.layers import ACTIVATIONS
from rldistill.policies.network import NetworkPolicy
from rldistill.students import STUDENTS, Cnn, Gru, Impala, Linear, Mlp, MultiInput, Ridge, Tree
from rldistill.students.features import Fourier, Objects, RandomConv, Standardized, TeacherFeatures
from rldistill.teachers.file_policy import synthetic_observations
from rldistill.teachers.onnx import open_session

pytestmark = pytest.mark.slow

LOW, HIGH = (-1.0, -2.0), (1.0, 0.5)
HEADS = [
    CategoricalHead((5,)),
    QValuesHead((4,)),
    MultiCategoricalHead((3, 4)),
    BernoulliHead((6,)),
    GaussianHead(low=LOW, high=HIGH),
    SquashedGaussianHead(low=LOW, high=HIGH),
    DeterministicHead(low=(-1.0, -math.inf), high=(1.0, math.inf)),
]
STUDENTS_BY_NAME: dict[str, list[Any]] = {
    "linear": [Linear(), Linear(Fourier(32)), Linear(RandomConv((4,), (8,), (4,)))],
    "ridge": [Ridge(features=Standardized())],
    "mlp": [Mlp((16,), "tanh"), Mlp(features=Standardized())],
    "cnn": [Cnn((8,), (8,), (4,), (16,))],
    "impala": [Impala((4, 8), (16,))],
    "multi_input": [MultiInput((4,), (8,), (4,), 6, (8,)), MultiInput(hidden=())],
    "gru": [Gru(12), Gru(12, (8,), (4,), (8,), (4,))],
    "tree": [Tree(nodes=7), Tree(nodes=7, features=Standardized())],
}
UNTRANSLATED = {"keras", "team", "multi_task"}
"""Students that PyTorch traces, and students of several agents; see test_traced.py and test_teams.py."""


def observations(head: ActionHead) -> dict[str, PolicySpec]:
    parts = [("speed", ObsPart((3,), "float32")), ("cell", ObsPart((), "int64", (4,))),
             ("map", ObsPart((1, 3, 3), "uint8"))]  # fmt: skip
    scene = [("board", ObsPart((9, 9, 7), "int8")), *parts, ("camera.left", ObsPart((3, 12, 16), "uint8"))]
    if head.discrete:
        for entries in (parts, scene):
            entries.append((MASK, ObsPart((sum(head.choices),), "int8")))
    return {
        "vector": PolicySpec((5,), "float32", head),
        "double": PolicySpec((5,), "float64", head),
        "pictures": PolicySpec((4, 24, 24), "uint8", head),
        "integer": PolicySpec((), "int64", head, nvec=(7,)),
        "integers": PolicySpec((2,), "int64", head, nvec=(7, 3)),
        "vectors": PolicySpec.from_parts(tuple(part for part in parts if part[0] != "map"), head),
        "dict": PolicySpec.from_parts(tuple(parts), head),
        "scene": PolicySpec.from_parts(tuple(scene), head),
    }


def metadata_of(path: Path) -> dict[str, Any]:
    """Return the facts in an ONNX file."""
    model = open_session(path, path.read_bytes())
    facts: dict[str, Any] = json.loads(model.get_modelmeta().custom_metadata_map["rldistill"])
    return facts


def randomized(policy: NetworkPolicy) -> NetworkPolicy:
    """Return the policy with weights, moments and a tree that are not trivial."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in [*policy.named_parameters(), *policy.named_buffers()]:
            if name.endswith("std"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif name not in ("feature", "left", "right"):
                scale = 0.6 if value.ndim < 2 else 1.5 / value[0].numel() ** 0.5
                value.copy_(torch.randn(value.shape, generator=generator) * scale)
        if isinstance(policy.config, Tree):
            last = policy.num_features - 1
            policy.feature.copy_(torch.tensor([0, last, last // 2, -1, -1, -1, -1.0]))
            policy.left.copy_(torch.tensor([1, 3, 5, 0, 0, 0, 0.0]))
            policy.right.copy_(torch.tensor([2, 4, 6, 0, 0, 0, 0.0]))
    if not policy.spec.nvec:
        policy.obs_clip = {key: 1.5 for key, part in policy.spec.entries.items() if key != MASK and not part.nvec}
    return policy.eval()


def some_observations(spec: PolicySpec, count: int) -> Tensor:
    obs = synthetic_observations(spec, count)
    if MASK in spec.entries:
        width = spec.entries[MASK].shape[0]
        mask = (torch.rand(count, width, generator=torch.Generator().manual_seed(0)) < 0.5).float()
        mask[:, ::2] = 1
        obs[:, -width:] = mask
    return obs


def states_of(policy: NetworkPolicy, count: int = 8) -> States:
    obs, state = some_observations(policy.spec, count), policy.initial_state(count)
    if state is not None:
        state = torch.randn(state.shape, generator=torch.Generator().manual_seed(2))
    return States(obs, np.ones(count, bool), state)


def interface_of(policy: NetworkPolicy) -> Interface:
    state = policy.initial_state(1)
    return Interface(policy.spec, None if state is None else tuple(state.shape[1:]))


def in_onnx(policy: NetworkPolicy, folder: Path) -> ExportedPolicy:
    pytest.importorskip("onnxruntime")
    (folder / "student.onnx").write_bytes(write_onnx(lower_policy(policy), {}))
    return OnnxRuntime(interface_of(policy), folder / "student.onnx")


def in_c(policy: NetworkPolicy, folder: Path) -> ExportedPolicy:
    if compiler() is None:
        pytest.skip("there is no C compiler")
    source = write_c(lower_policy(policy), "a test")
    (folder / "student.c").write_text(source.source)
    (folder / "student.h").write_text(source.header)
    return CRuntime(interface_of(policy), folder, source.memory, ("-O1",))


def in_javascript(policy: NetworkPolicy, folder: Path) -> ExportedPolicy:
    if shutil.which("node") is None:
        pytest.skip("there is no Node")
    vectors = compute_vectors(policy, some_observations(policy.spec, 2).numpy(), np.array([True, False]))
    (folder / "student.html").write_text(write_html(lower_policy(policy), vectors, {"title": "", "names": {}}))
    return NodeRuntime(interface_of(policy), folder / "student.html")


def require_same(policy: NetworkPolicy, exported: ExportedPolicy) -> None:
    difference = compare(policy, exported, states_of(policy))
    assert difference.unequal == 0
    assert difference.largest <= 1e-5
    if policy.recurrent:
        states = states_of(policy)
        with torch.no_grad():
            expected, found = policy(states.obs, states.state)[1], exported(states.obs, states.state)[1]
        assert expected is not None
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def policies(name: str) -> list[NetworkPolicy]:
    """Return the student with every head and every observation that it takes."""
    built = []
    for head in HEADS:
        for kind, spec in observations(head).items():
            for student in STUDENTS_BY_NAME[name]:
                pictures = isinstance(student, Cnn | Impala) or getattr(student, "channels", ())
                pictures = pictures or isinstance(getattr(student, "features", None), RandomConv)
                fits = ("pictures", "dict", "scene") if isinstance(student, MultiInput) else ("pictures",)
                if pictures and kind not in fits:
                    continue
                torch.manual_seed(0)
                built.append(randomized(student.build(spec)))
    return built


def test_every_student_is_exported() -> None:
    assert {*STUDENTS_BY_NAME, *UNTRANSLATED} == {*STUDENTS}


@pytest.mark.parametrize("name", STUDENTS_BY_NAME)
def test_onnx_computes_the_numbers_of_pytorch(name: str, tmp_path: Path) -> None:
    for policy in policies(name):
        require_same(policy, in_onnx(policy, tmp_path))


@pytest.mark.parametrize("name", STUDENTS_BY_NAME)
def test_c_computes_the_numbers_of_pytorch(name: str, tmp_path: Path) -> None:
    for number, policy in enumerate(policies(name)):
        if number % 5 == 0 or name in ("cnn", "impala", "multi_input"):  # the compiler takes half a second for each
            folder = tmp_path / str(number)
            folder.mkdir()
            require_same(policy, in_c(policy, folder))


@pytest.mark.parametrize("name", STUDENTS_BY_NAME)
def test_javascript_computes_the_numbers_of_pytorch(name: str, tmp_path: Path) -> None:
    for number, policy in enumerate(policies(name)):
        if number % 5 == 0 or name in ("cnn", "impala", "multi_input"):
            require_same(policy, in_javascript(policy, tmp_path))


@pytest.mark.parametrize("export", [in_onnx, in_c, in_javascript])
def test_every_activation(export: Any, tmp_path: Path) -> None:
    for name in ACTIVATIONS:
        if ":" in name:  # an activation of another test's own
            continue
        folder = tmp_path / name
        folder.mkdir()
        policy = randomized(Mlp((6,), name).build(PolicySpec((5,), "float32", CategoricalHead((3,)))))
        require_same(policy, export(policy, folder))


ACTORS = {
    "convolutions": (Actor(images=("",), channels=(4, 4, 4), features=8), PolicySpec((4, 44, 44), "uint8", HEADS[0])),
    "lstm of two layers": (Actor(lstm=(6, 2)), PolicySpec((5,), "float32", HEADS[0])),
    "learned noise": (Actor(noise="learned"), PolicySpec((5,), "float32", HEADS[5])),
    "free noise": (Actor(noise="free"), PolicySpec((5,), "float32", HEADS[4])),
    "state noise": (Actor(noise="state", expln=True, clip_mean=0.5), PolicySpec((5,), "float32", HEADS[4])),
    "no noise": (Actor(), PolicySpec((5,), "float32", HEADS[5])),
    "critic": (Actor(critic=(7,)), PolicySpec((5,), "float32", HEADS[0])),
    "dict": (Actor(), observations(HEADS[0])["dict"]),
}


@pytest.mark.parametrize("export", [in_onnx, in_c, in_javascript])
@pytest.mark.parametrize("name", ACTORS)
def test_actors_of_teachers(name: str, export: Any, tmp_path: Path) -> None:
    config, spec = ACTORS[name]
    policy = randomized(config.build(spec))
    require_same(policy, export(policy, tmp_path))


@pytest.mark.parametrize("export", [in_onnx, in_c, in_javascript])
def test_features_of_another_network(export: Any, tmp_path: Path) -> None:
    spec = PolicySpec((5,), "float32", CategoricalHead((3,)))
    network = randomized(Mlp((7,)).build(spec))
    student = randomized(Linear(TeacherFeatures().load(network)).build(spec))
    require_same(student, export(student, tmp_path))


@pytest.mark.parametrize("export", [in_onnx, in_c, in_javascript])
def test_entries_are_found_by_name(export: Any, tmp_path: Path) -> None:
    policy = randomized(Mlp((6,)).build(observations(HEADS[0])["dict"]))
    exported = export(policy, tmp_path)
    entries = raw_entries(some_observations(policy.spec, 4), policy.spec)
    expected, found = (exported.run(order, None) for order in (entries, dict(reversed(entries.items()))))
    assert np.array_equal(expected[1], found[1])


def object_frames(count: int, frames: int) -> Tensor:
    """Return pictures of two moving squares and a bar, each missing in a tenth of the frames."""
    rng = np.random.default_rng(0)
    pictures = np.full((count, frames, 40, 40), 87, np.uint8)
    pictures[..., 20:] = 50
    for picture in pictures.reshape(-1, 40, 40):
        for left, right, size in ((3, 6, 3), (10, 16, 2), (30, 31, 4)):
            row, column = rng.integers(5, 30), rng.integers(left, right)
            if rng.random() < 0.9:
                picture[row : row + size, column : column + 2] = rng.integers(120, 255)
    return torch.from_numpy(pictures)


@pytest.mark.parametrize("export", [in_onnx, in_c, in_javascript])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_objects(frames: int, export: Any, tmp_path: Path) -> None:
    spec = PolicySpec((frames, 40, 40), "uint8", CategoricalHead((4,)))
    objects = Objects((("a", 2, 38, 2, 8), ("b", 2, 38, 9, 19), ("c", 0, 40, 21, 39)))
    policy = randomized(Mlp((16,), features=objects).build(spec))
    states = States(object_frames(32, frames), np.ones(32, bool), None)
    assert compare(policy, export(policy, tmp_path), states).largest <= 1e-5


def test_bytes_are_deterministic() -> None:
    pytest.importorskip("onnx")
    policy = randomized(Gru(8).build(PolicySpec((5,), "float32", CategoricalHead((3,)))))
    program = lower_policy(policy)
    assert write_onnx(program, {"a": "b"}) == write_onnx(lower_policy(policy), {"a": "b"})
    assert dataclasses.astuple(write_c(program, "t")) == dataclasses.astuple(write_c(lower_policy(policy), "t"))


def test_tree_thresholds_are_exact_in_onnx_and_c(tmp_path: Path) -> None:
    """A value at the threshold, and the next float above it, go to different leaves."""
    spec = PolicySpec((2,), "float32", QValuesHead((2,)))
    policy = Tree(nodes=3).build(spec).eval()
    threshold = np.float32(0.1)
    with torch.no_grad():
        policy.feature.copy_(torch.tensor([1.0, -1, -1]))
        policy.left.copy_(torch.tensor([1.0, 0, 0]))
        policy.right.copy_(torch.tensor([2.0, 0, 0]))
        policy.threshold[0] = float(threshold)
        policy.value.copy_(torch.tensor([[0.0, 0], [1, 0], [0, 1]]))
    obs = torch.tensor([[0.0, threshold], [0.0, np.nextafter(threshold, np.float32(1))]])
    for exported in (in_onnx(policy, tmp_path), in_c(policy, tmp_path)):
        assert exported(obs)[0].mode().tolist() == [0, 1]
