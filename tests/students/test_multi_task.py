"""Students of several tasks: shared layers, their file, and the policy of each task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.heads import CategoricalHead, GaussianHead
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.io.atomic import read_json, write_json
from rldistill.students import AnyStudent, Cnn, Gru, Linear, Mlp, MultiTask, Ridge, Tree
from rldistill.students.features import Fourier
from rldistill.students.multi_task import MultiTaskPolicy
from rldistill.students.storage import load_native, save_policy

BOUNDED = GaussianHead(low=(-2.0,), high=(2.0,))
SPECS = {
    "cart": PolicySpec((4,), "float32", CategoricalHead((2,))),
    "lander": PolicySpec((8,), "float32", CategoricalHead((4,))),
    "pendulum": PolicySpec((3,), "float32", BOUNDED),
}
SAME = {name: PolicySpec((size,), "float32", CategoricalHead((3,))) for name, size in {"one": 4, "two": 6}.items()}
GAMES = {
    "pong": PolicySpec((4, 84, 84), "uint8", CategoricalHead((6,))),
    "breakout": PolicySpec((4, 84, 84), "uint8", CategoricalHead((4,))),
}


def built(student: MultiTask) -> MultiTaskPolicy:
    torch.manual_seed(0)
    policy = student.build(next(iter(student.specs.values())))
    assert isinstance(policy, MultiTaskPolicy)
    return policy


def count(policy: nn.Module) -> int:
    return sum(parameter.numel() for parameter in policy.parameters())


def observations(spec: PolicySpec, size: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if spec.obs_dtype == "uint8":
        return torch.randint(0, 256, (size, *spec.obs_shape), dtype=torch.uint8, generator=generator)
    return torch.randn(size, *spec.obs_shape, generator=generator)


def test_tasks_have_own_encoders_and_heads_and_share_the_rest() -> None:
    policy = built(MultiTask(Mlp((16, 12)), specs=SPECS))
    encoders, trunk = (4 + 8 + 3) * 16 + 3 * 16, 16 * 12 + 12
    heads = (2 + 4 + 1) * 13 + 1  # and one log_std
    assert count(policy) == encoders + trunk + heads
    for task, spec in SPECS.items():
        alone = policy.policy_of(task)
        assert alone.config == Mlp((16, 12))
        assert alone.spec == spec
        assert count(alone) == count(Mlp((16, 12)).build(spec))
    assert policy.policy_of("cart").body[3].weight is policy.policy_of("pendulum").body[3].weight
    assert policy.policy_of("cart").body[1].bias is not policy.policy_of("lander").body[1].bias


def test_games_share_all_but_the_heads() -> None:
    policy = built(MultiTask(Cnn((4, 8), (8, 4), (4, 2), (16,)), specs=GAMES))
    assert count(policy) == count(policy.policy_of("pong").body) + (6 + 4) * 17
    for task, spec in GAMES.items():
        assert policy.policy_of(task)(observations(spec))[0].params.shape == (5, spec.head.num_params)


def test_shared_head_is_that_of_a_network_with_a_one_hot_vector_of_the_task() -> None:
    specs = {name: PolicySpec((4,), "float32", CategoricalHead((3,))) for name in ("a", "b", "c")}
    policy = built(MultiTask(Mlp((6,)), heads="shared", specs=specs))
    with torch.no_grad():
        for task in specs:
            policy.policy_of(task).body[1].bias.normal_()
    assert count(policy) == 4 * 6 + 3 * 6 + 7 * 3
    first = policy.policy_of("a")
    biases = torch.stack([policy.policy_of(task).body[1].bias for task in specs], 1)  # W_k + b, with b = 0
    wide = torch.cat([first.body[1].weight, biases], 1)  # of a vector [obs, one-hot]
    obs = observations(specs["a"])
    for number, task in enumerate(specs):
        one_hot = torch.eye(3)[number].expand(len(obs), 3)
        expected = first.output((torch.cat([obs, one_hot], 1) @ wide.T).relu())
        torch.testing.assert_close(policy.policy_of(task)(obs)[0].params, expected)


def test_tasks_with_other_observations_can_share_a_head() -> None:
    policy = built(MultiTask(Mlp((6, 5)), heads="shared", specs=SAME))
    assert policy.policy_of("one").output.weight is policy.policy_of("two").output.weight
    assert policy.policy_of("one").body[1].weight is not policy.policy_of("two").body[1].weight


@pytest.mark.parametrize("value", [False, True], ids=["", "value"])
@pytest.mark.parametrize(
    "student",
    [
        MultiTask(Mlp((6, 5)), specs=SPECS),
        MultiTask(Mlp((6, 5)), heads="shared", specs=SAME),
        MultiTask(Mlp((6, 5), features=Fourier(8)), specs=SPECS),
        MultiTask(Cnn((4,), (8,), (4,), (16,)), specs=GAMES),
    ],
    ids=["own", "shared", "fourier", "cnn"],
)
def test_file_holds_each_tensor_once_and_loads_the_same_student(
    student: MultiTask, value: bool, tmp_path: Path
) -> None:
    policy = built(student)
    if value:
        policy.add_value()
    save_policy(policy, tmp_path, {})
    tensors = load_file(tmp_path / "policy.safetensors")
    buffers = sum(buffer.numel() for buffer in policy.buffers())
    assert sum(tensor.numel() for tensor in tensors.values()) == count(policy) + buffers
    loaded = load_native(tmp_path)
    assert isinstance(loaded, MultiTaskPolicy)
    assert loaded.config == student
    assert count(loaded) == count(policy)
    for task, spec in student.specs.items():
        ours, theirs = (own.policy_of(task)(observations(spec))[0] for own in (policy, loaded))
        torch.testing.assert_close(ours.params, theirs.params)
        assert (theirs.value is not None) == value


def test_policy_of_a_task_is_saved_as_an_ordinary_policy(tmp_path: Path) -> None:
    policy = built(MultiTask(Mlp((6, 5)), specs=SPECS))
    save_policy(policy.policy_of("lander"), tmp_path, {})
    loaded, obs = load_native(tmp_path), observations(SPECS["lander"])
    assert loaded.config == Mlp((6, 5))
    torch.testing.assert_close(loaded(obs)[0].params, policy.policy_of("lander")(obs)[0].params)


@pytest.mark.parametrize("student", [Tree(), Ridge(), Linear(), Gru(8)], ids=lambda student: type(student).__name__)
def test_family_without_hidden_layers_to_share_is_refused(student: AnyStudent) -> None:
    with pytest.raises(ConfigError, match=f"student: a {type(student).__name__.lower()} has no hidden layers"):
        MultiTask(student)


@pytest.mark.parametrize(
    ("student", "error", "message"),
    [
        (MultiTask(), ConfigError, "needs several tasks"),
        (MultiTask(Mlp((8,)), specs=SPECS), ConfigError, "they share nothing. Use at least two hidden layers"),
        (MultiTask(heads="shared", specs=SPECS), SpecMismatchError, "cart and lander have different actions"),
    ],
)
def test_impossible_student_is_refused(student: MultiTask, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        student.build(SPECS["cart"])


def test_student_acts_in_a_task_only() -> None:
    policy = built(MultiTask(specs=SPECS))
    with pytest.raises(SpecMismatchError, match=r"acts in the tasks cart, lander, pendulum. Use policy_of\(task\)"):
        policy(observations(SPECS["cart"]))
    with pytest.raises(ConfigError, match="there is no task 'cat', only cart"):
        policy.policy_of("cat")


def test_student_and_datasets_of_other_kinds_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    for data, student in ((dataset, MultiTask()), ({"cart": dataset}, Mlp())):
        with pytest.raises(ConfigError, match="multi_task student needs several tasks"):
            distill(data, student, DistillConfig(), tmp_path / "student")
    assert not (tmp_path / "student" / "policy.json").exists()


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    save_policy(built(MultiTask(Mlp((6, 5)), specs=SPECS)), tmp_path, {})
    document = read_json(tmp_path / "policy.json")
    for change in (
        {"specs": {}},
        {"specs": 3},
        {"specs": {"cart": {}}},
        {"heads": "none"},
        {"student": {"type": "tree"}},
    ):
        write_json(tmp_path / "policy.json", {**document, "config": {**document["config"], **change}})
        with pytest.raises(CorruptArtifactError, match=r"policy\.json"):
            load_native(tmp_path)
