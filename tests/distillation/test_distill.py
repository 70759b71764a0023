from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, CorruptArtifactError, NothingLearnedError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset, open_dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill, require_fit
from rldistill.distillation.gradient import Trainer
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import read_jsonl, sha256_file
from rldistill.losses import QMSE, AdvantageWeightedNLL, BellmanTarget, ForwardKL
from rldistill.losses.objective import Term, with_temperatures
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent, Cnn, Gru, Linear, Mlp, MultiTask, Ridge, Tree
from rldistill.students.features import Objects

from ..conftest import Reports

BALL = Objects((("ball", 0, 8, 0, 10),))
CONFIG = DistillConfig(epochs=4, batch_size=64, num_threads=1)


def test_a_student_learns_the_actions_of_the_teacher(dataset: Dataset, tmp_path: Path) -> None:
    student = distill(dataset, Mlp((32,)), dataclasses.replace(CONFIG, epochs=15), tmp_path)
    rows = np.flatnonzero(dataset.heldout)
    output, _ = student(dataset.observations(rows))
    agreement = (output.mode() == dataset.batch(rows).teacher.mode()).float().mean()
    assert agreement > 0.95
    metrics = read_jsonl(tmp_path / "metrics.jsonl")
    assert metrics[-1]["heldout_loss"] < metrics[0]["heldout_loss"]


@pytest.mark.parametrize("student", [Mlp((32,)), Gru(8, (8,), window=8)], ids=["mlp", "gru"])
def test_bfloat16_learns_nearly_the_same_float32_weights(dataset: Dataset, tmp_path: Path, student: AnyStudent) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        policy = distill(dataset, student, dataclasses.replace(CONFIG, precision=precision), folder)
        assert all(weight.dtype == torch.float32 for weight in policy.parameters())
        assert policy(dataset.observations(np.arange(8)))[0].params.dtype == torch.float32
        losses[precision] = read_jsonl(folder / "metrics.jsonl")[-1]["heldout_loss"]
    assert losses["bfloat16"] != losses["float32"]  # or the setting does nothing
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


def test_order_of_pictures_in_memory_does_not_change_the_fit(tmp_path: Path) -> None:
    env = EnvConfig("ALE/Pong-v5")
    teacher = Linear().build(spec_from_env(env)).eval()
    data = collect(env, teacher, CollectConfig(steps=64, envs_per_stream=4, epsilon=0.5), tmp_path)
    orders = [dataclasses.replace(data, channels_last=order) for order in (True, False)]
    rows = np.arange(len(data))
    first, second = (order.observations(rows) for order in orders)
    assert torch.equal(first, second)
    assert not first.is_contiguous()
    assert second.is_contiguous()
    assert torch.equal(*(order.next_observations(rows) for order in orders))
    dense = dataclasses.replace(data, memory_gb=0.0)  # no room for sparse pixels
    assert Trainer(dense, Linear(), CONFIG).dataset.observations(rows).is_contiguous()
    assert not Trainer(data, Cnn(), CONFIG).dataset.observations(rows).is_contiguous()


class StopAfter(Exception):
    pass


@pytest.mark.parametrize(("student", "epochs_before"), [(Mlp((16,)), 1), (Mlp((16,)), 3), (Gru(8, (8,), window=8), 1)])
def test_an_interrupted_and_resumed_fit_has_the_same_bytes(
    dataset: Dataset, tmp_path: Path, student: AnyStudent, epochs_before: int
) -> None:
    distill(dataset, student, CONFIG, tmp_path / "whole", seed=3)

    def stop(done: int, total: int) -> None:
        if done == epochs_before:
            raise StopAfter

    with pytest.raises(StopAfter):
        distill(dataset, student, CONFIG, tmp_path / "cut", seed=3, progress=Reports(stop))
    distill(dataset, student, CONFIG, tmp_path / "cut", seed=3, mode="resume")
    hashes = [sha256_file(tmp_path / name / "policy.safetensors") for name in ("whole", "cut")]
    assert hashes[0] == hashes[1]


def test_a_warm_start_is_kept_if_no_epoch_is_better(dataset: Dataset, tmp_path: Path) -> None:
    first = distill(dataset, Mlp((16,)), CONFIG, tmp_path / "first")
    wild = DistillConfig(epochs=1, learning_rate=0.5)
    second = distill(dataset, first, wild, tmp_path / "second")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_actor_is_a_warm_start_too(dataset: Dataset, tmp_path: Path) -> None:
    network = Actor(hidden=(8,)).build(dataset.spec)
    assert distill(dataset, network, CONFIG, tmp_path / "student").config == network.config


def test_a_dataset_may_be_its_folder_or_that_of_its_run(teacher: NetworkPolicy, tmp_path: Path) -> None:
    dataset = collect(EnvConfig("CartPole-v1"), teacher, CollectConfig(steps=400), tmp_path / "dataset")
    given = {"object": dataset, "folder": tmp_path / "dataset", "run": str(tmp_path)}
    for name, data in given.items():
        distill(data, Linear(), CONFIG, tmp_path / name)
    assert len({sha256_file(tmp_path / name / "policy.safetensors") for name in given}) == 1
    with pytest.raises(CorruptArtifactError, match=r"missing.*no such file"):
        distill(tmp_path / "missing", Linear(), CONFIG, tmp_path / "student")
    with pytest.raises(ConfigError, match="it is the folder of the dataset"):
        distill(tmp_path, Linear(), CONFIG, tmp_path / "dataset", mode="overwrite")
    assert open_dataset(tmp_path).num_steps == dataset.num_steps


@pytest.mark.parametrize("given", [None, 3, b"x", [], {}, {"task": None}], ids=repr)
@pytest.mark.parametrize("student", [Linear(), MultiTask(Mlp((8,)))], ids=["one task", "several"])
def test_other_objects_than_datasets_are_refused(given: Any, student: AnyStudent, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset: expected a Dataset or its folder, .*found"):
        distill(given, student, CONFIG, tmp_path / "student")


def test_other_objects_than_students_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="str has no build"):
        distill(dataset, "mlp", CONFIG, tmp_path / "student")  # type: ignore[arg-type]


@pytest.mark.parametrize("student", [Mlp((8,)), Gru(8, (8,), window=8)], ids=["mlp", "gru"])
def test_schedules_run_once_from_start_to_end(
    dataset: Dataset, tmp_path: Path, student: AnyStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    step = Trainer.step

    def record(self: Trainer, batch: Any, output: Any, progress: float) -> Any:
        seen.append(progress)
        return step(self, batch, output, progress)

    monkeypatch.setattr(Trainer, "step", record)
    distill(dataset, student, DistillConfig(epochs=4, batch_size=32), tmp_path / "student")
    steps = np.diff([*seen, 1.0])
    assert seen[0] == 0
    assert steps.min() > 0
    assert steps.max() < 2 / len(seen)


def test_a_damaged_checkpoint_is_named(dataset: Dataset, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise StopAfter

    with pytest.raises(StopAfter):
        distill(dataset, Mlp((16,)), CONFIG, tmp_path, progress=Reports(stop))
    with pytest.raises(CorruptArtifactError, match="does not fit these settings") as caught:
        distill(dataset, Mlp((8,)), CONFIG, tmp_path, mode="resume")
    assert len(str(caught.value).splitlines()) == 1
    checkpoint = tmp_path / "checkpoints" / "last.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(CorruptArtifactError, match=r"last\.safetensors"):
        distill(dataset, Mlp((16,)), CONFIG, tmp_path, mode="resume")


def test_a_student_that_learned_nothing_fails(dataset: Dataset, tmp_path: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(dataset.columns["teacher"])
    noise = dataclasses.replace(dataset, columns=dataset.columns | {"teacher": shuffled})
    with pytest.raises(NothingLearnedError, match="constant"):
        distill(noise, Mlp((16,)), CONFIG, tmp_path)
    assert not (tmp_path / "policy.json").exists()


def test_the_temperature_of_q_values_is_measured(dataset: Dataset) -> None:
    q_values = dataset.columns["teacher"]
    gap = np.abs(q_values[:, 0] - q_values[:, 1]).mean()  # two actions: best minus second
    (term,) = with_temperatures((Term(ForwardKL()),), dataset.spec.head, dataset.action_gap)
    assert isinstance(term.loss, ForwardKL)
    assert term.loss.temperature == pytest.approx(gap / 2, rel=1e-5)
    (given,) = with_temperatures((Term(ForwardKL(temperature=0.01)),), dataset.spec.head, dataset.action_gap)
    assert given.loss == ForwardKL(temperature=0.01)


def test_advantages_are_divided_by_their_scale(dataset: Dataset, tmp_path: Path) -> None:
    config = DistillConfig(losses=(Term(AdvantageWeightedNLL()),))
    away = np.where(np.arange(len(dataset)) % 2 == 0, 7.0, -1.0)  # sqrt((49 + 1) / 2) = 5
    columns = {**dataset.columns, "value": (dataset.columns["return_to_go"] - away).astype(np.float32)}
    logits = dataclasses.replace(dataset.spec, head=dataset.spec.head.as_kind("categorical"))
    valued = dataclasses.replace(dataset, spec=logits, columns=columns)
    require_fit(Mlp((16,)), config, logits)
    for data, expected in ((dataset, dataset.action_gap() / 2), (valued, 5.0)):
        (term,) = Trainer(data, Mlp((16,)), config).terms
        assert isinstance(term.loss, AdvantageWeightedNLL)
        assert term.loss.temperature == pytest.approx(expected, rel=0.01)


def test_losses_on_q_values_make_a_student_of_q_values(dataset: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, losses=(Term(QMSE()), Term(BellmanTarget())), epochs=8)
    student = distill(dataset, Mlp((32,)), config, tmp_path)
    assert student.spec.head.kind == "q_values"


def test_observations_are_standardized_with_the_data(dataset: Dataset, tmp_path: Path) -> None:
    student = distill(dataset, Mlp((32,)), dataclasses.replace(CONFIG, epochs=10), tmp_path)
    torch.testing.assert_close(student.obs_mean.numpy(), dataset.obs.mean(0), rtol=1e-3, atol=1e-3)


def pictures(count: int, memory_gb: float) -> Dataset:
    """Return images of a bright pixel on a dark screen; the teacher goes left or right with it."""
    rng = np.random.default_rng(0)
    obs = np.zeros((count, 2, 8, 10), np.uint8)
    row, column = rng.integers(0, 8, count), rng.integers(0, 10, count)
    obs[np.arange(count), :, row, column] = 236
    rows, sides = np.arange(count), np.stack([5.5 - column, column - 5.5], 1).astype(np.float32)
    columns = {name: np.zeros(count, np.float32) for name in ("reward", "return_to_go")}
    columns |= {name: np.zeros(count, bool) for name in ("terminated", "truncated")}
    columns |= {name: np.zeros(count, np.int32) for name in ("action", "step", "actor", "episode")}
    spec = PolicySpec((2, 8, 10), "uint8", CategoricalHead((2,)))
    columns |= {"teacher": sides, "next_teacher": sides}
    return Dataset(spec, columns, obs, rows, rows, rows % 10 == 0, count, memory_gb)


@pytest.mark.parametrize("student", [Mlp((8,), "tanh", BALL), Linear(BALL)])
def test_features_of_pictures_are_kept_where_there_is_room(student: Mlp | Linear, tmp_path: Path) -> None:
    """Or worked out again for each batch, with the same end."""
    config = DistillConfig(epochs=20, learning_rate=1e-2, batch_size=32)
    kept, fresh = (
        distill(pictures(600, room), student, config, tmp_path / str(room)) for room in (1.0, 600 * 160 / 1e9)
    )
    assert pictures(600, 1.0).has_room_for(kept.num_features)
    assert not pictures(600, 600 * 160 / 1e9).has_room_for(kept.num_features)
    fits = (Trainer(pictures(600, gb), student, config) for gb in (1.0, 600 * 160 / 1e9))
    assert [fit.dataset.spec.obs_shape for fit in fits] == [(kept.num_features,), (2, 8, 10)]
    obs = torch.from_numpy(pictures(600, 1.0).obs)
    torch.testing.assert_close(kept(obs)[0].params, fresh(obs)[0].params, rtol=1e-4, atol=1e-4)
    right = kept(obs)[0].mode() == torch.from_numpy(pictures(600, 1.0).columns["teacher"]).argmax(1)
    assert right.float().mean() > 0.97


@pytest.mark.parametrize("student", [Mlp((16,)), Ridge(), Tree()], ids=["mlp", "ridge", "tree"])
def test_a_single_integer_as_observation_is_learned(student: AnyStudent, tmp_path: Path) -> None:
    env = EnvConfig("FrozenLake-v1")
    torch.manual_seed(0)
    teacher = Linear().build(spec_from_env(env)).eval()
    with torch.no_grad():
        teacher.output.weight.copy_(20 * torch.eye(4).repeat(1, 4))  # of its 16 fields, one column each: 0 1 2 3 0 ...
    data = collect(env, teacher, CollectConfig(steps=2_000, epsilon=0.5), tmp_path / "dataset")
    learnt = distill(data, student, dataclasses.replace(CONFIG, epochs=20, learning_rate=1e-2), tmp_path / "student")
    seen = np.unique(data.observations(np.arange(len(data))))
    assert len(seen) > 8
    np.testing.assert_array_equal(learnt(torch.from_numpy(seen))[0].mode(), seen % 4)


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"DistillConfig\.epochs"):
        DistillConfig(epochs=0)
    with pytest.raises(ConfigError, match=r"DistillConfig\.losses"):
        DistillConfig(losses=())
    with pytest.raises(ConfigError, match=r"losses\.0: found ForwardKL"):
        DistillConfig(losses=(ForwardKL(),))  # type: ignore[arg-type]
    wrong: list[dict[str, Any]] = [
        {"patience": -1},
        {"device": "tpu"},
        {"schedule": "foo"},
        {"learning_rate": math.nan},
    ]
    for settings in wrong:
        with pytest.raises(ConfigError, match=rf"DistillConfig\.{next(iter(settings))}"):
            DistillConfig(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to use")
def test_a_missing_gpu_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"distill\.device: PyTorch finds no GPU"):
        distill(dataset, Mlp((16,)), dataclasses.replace(CONFIG, device="cuda"), tmp_path)
