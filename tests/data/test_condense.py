"""Condensed data: the choice of states, their blocks, and the readers that need whole episodes."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import rldistill as rd
from rldistill.cli.main import app
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.heads import (
    ILLEGAL,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    MultiCategoricalHead,
    QValuesHead,
)
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.data.condense import condense, k_centers, state_points, state_weights
from rldistill.data.dataset import Dataset
from rldistill.data.lerobot import export_lerobot
from rldistill.data.manifest import Manifest
from rldistill.data.merge import merge
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import read_json, write_json
from rldistill.losses import BellmanTarget
from rldistill.losses.objective import Term
from rldistill.policies.actor_critic import Actor
from rldistill.policies.ensemble import Committee
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Gru, Linear, Mlp
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE, Reports
from ..envs.picture_envs import right_side

SMALL = CollectConfig(steps=640, num_streams=2, envs_per_stream=2, block_steps=32, epsilon=0.4)


@pytest.fixture(scope="module")
def whole(teacher: NetworkPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "dataset"
    collect(CARTPOLE, teacher, SMALL, folder)
    return folder


@pytest.fixture
def small(whole: Path, tmp_path: Path) -> Path:
    condense(whole, tmp_path / "small", 8, weighted=True)
    return tmp_path / "small"


def test_centers_of_six_points_on_a_line() -> None:
    """The heaviest point, 4, is first; then the products of weight and distance decide.

    Points 0 1 4 5 9 10, weights 1 1 2 1 1 1. Products after 4: 4 3 - 1 5 6, so 10; then 4 3 - 1 1 -, so 0; then
    - 1 - 1 1 -, so 1, the first of equals.
    """
    points = np.array([0, 1, 4, 5, 9, 10], np.float32)[:, None]
    weights = np.array([1, 1, 2, 1, 1, 1], np.float32)
    assert k_centers(points, weights, 4).tolist() == [2, 5, 0, 1]


def test_centers_of_equal_points_come_last_and_all_are_kept() -> None:
    points = np.array([[0.0], [0.0], [3.0], [3.0]], np.float32)
    assert k_centers(points, np.array([1, 1, 1, 0], np.float32), 4).tolist() == [0, 2, 1, 3]


@settings(max_examples=40)
@given(st.integers(0, 1 << 30), st.integers(1, 4), st.booleans())
def test_cover_is_at_most_twice_or_three_times_the_best(seed: int, count: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(9, 2)).astype(np.float32)
    weights = rng.uniform(0.01, 3, 9).astype(np.float32) if weighted else np.ones(9, np.float32)
    distances = np.linalg.norm(points[:, None] - points, axis=-1).astype(np.float64)

    def radius(centers: Any) -> float:
        return float((weights * distances[:, list(centers)].min(1)).max())

    best = min(map(radius, itertools.combinations(range(9), count)))
    assert radius(k_centers(points, weights, count)) <= (3 if weighted else 2) * best + 1e-5
    assert sorted(k_centers(points, weights, 9)) == list(range(9))


def test_weights_are_the_gaps_of_best_and_worst_legal_actions() -> None:
    q_values = torch.tensor([[1.0, 4.0, ILLEGAL], [2.0, 2.0, -1.0]])
    assert state_weights(QValuesHead((3,)), q_values).tolist() == [3.0, 3.0]
    logits = torch.tensor([[0.9, 0.1, 0.0]]).log().masked_fill(torch.tensor([[False, False, True]]), ILLEGAL)
    assert state_weights(CategoricalHead((3,)), logits).item() == pytest.approx(0.8)
    two = torch.tensor([[0.7, 0.3, 0.6, 0.4]]).log()  # 0.7 * 0.6 - 0.3 * 0.4
    assert state_weights(MultiCategoricalHead((2, 2)), two).item() == pytest.approx(0.3)
    bits = torch.tensor([[0.0, np.log(3.0), -ILLEGAL]])  # 0.5 * 0.75 - 0.5 * 0.25, and a bit that must be 1
    assert state_weights(BernoulliHead((3,)), bits.float()).item() == pytest.approx(0.25)
    assert state_weights(DeterministicHead((), (-1.0,), (1.0,)), torch.zeros(2, 1)).tolist() == [1.0, 1.0]


def test_condensed_steps_are_those_of_the_whole_data(whole: Path, small: Path) -> None:
    before, after = Dataset.read([whole]), Dataset.read([small])
    train, heldout = np.flatnonzero(~before.heldout), np.flatnonzero(before.heldout)
    weights = state_weights(before.spec.head, torch.from_numpy(before.columns["teacher"][train])).numpy()
    rows = train[k_centers(state_points(before, train), weights, 8)]
    rows = np.concatenate([rows, heldout[np.linspace(0, len(heldout) - 1, 8).astype(int)]])
    assert after.heldout.tolist() == [False] * 8 + [True] * 8
    assert (after.sparse, after.isolated, after.num_steps, after.columns.keys()) == (
        True, True, before.num_steps, before.columns.keys(),
    )  # fmt: skip
    for name, column in after.columns.items():
        if name != "episode":
            np.testing.assert_array_equal(column, before.columns[name][rows], err_msg=name)
    assert len(np.unique(after.columns["episode"])) == len(np.unique(before.columns["episode"][rows]))
    own = np.arange(16)
    assert torch.equal(after.observations(own), before.observations(rows))
    assert torch.equal(after.next_observations(own), before.next_observations(rows))
    assert Manifest.read(small).rounds[0].teacher == Manifest.read(whole).rounds[0].teacher


def test_condensing_is_deterministic_and_nested(whole: Path, small: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    condense(
        whole, tmp_path / "again", 8, weighted=True, progress=Reports(lambda done, total: seen.append((done, total)))
    )
    assert seen[-1] == (8, 8)
    assert Manifest.read(tmp_path / "again").digest == Manifest.read(small).digest
    first = condense(whole, tmp_path / "four", 4, weighted=True)
    both = Dataset.read([small])
    assert torch.equal(first.observations(np.arange(4)), both.observations(np.arange(4)))
    twice = condense(small, tmp_path / "twice", 4)  # the standardization differs, so perhaps the states
    assert (len(twice), twice.num_steps) == (8, 640)


def test_all_training_steps_may_be_kept(whole: Path, tmp_path: Path) -> None:
    before = Dataset.read([whole])
    count = int((~before.heldout).sum())
    after = condense(whole, tmp_path / "all", count)
    order = np.lexsort((after.columns["step"], after.columns["episode"]))
    assert (~after.heldout).sum() == count
    assert after.heldout.sum() == before.heldout.sum()
    assert after.columns["reward"][order].sum() == before.columns["reward"].sum()
    with pytest.raises(ConfigError, match=rf"keep: expected 1 to {count}, the training steps of .*, found {count + 1}"):
        condense(whole, tmp_path / "more", count + 1)
    assert not (tmp_path / "more").exists()


def test_points_are_features_if_they_are_stored(whole: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = relabel(whole, Mlp((8,)).build(spec_from_env(CARTPOLE)).eval(), tmp_path / "features", features=True)
    rows = np.arange(5)
    np.testing.assert_array_equal(state_points(data, rows), data.columns["features"][:5])
    points = state_points(Dataset.read([whole]), np.arange(100))
    np.testing.assert_allclose(points.std(0), 1, atol=1e-4)
    centers = k_centers(
        state_points(data, np.flatnonzero(~data.heldout)), np.ones((~data.heldout).sum(), np.float32), 4
    )
    equal = condense(tmp_path / "features", tmp_path / "equal", 4)
    np.testing.assert_array_equal(
        equal.columns["features"][:4], data.columns["features"][np.flatnonzero(~data.heldout)[centers]]
    )
    assert "features" in condense(tmp_path / "features", tmp_path / "small", 4).columns


def test_gamma_is_that_of_the_stored_returns(whole: Path, tmp_path: Path, teacher: NetworkPolicy) -> None:
    after, before = condense(whole, tmp_path / "a", 8, gamma=0.5), Dataset.read([whole], 0.5)
    assert set(after.columns["return_to_go"]) <= set(before.columns["return_to_go"])
    assert len(rd.open_dataset(tmp_path / "a")) == 16
    condense(whole, tmp_path / "b", 8)
    refused = r"a: condensed with gamma 0\.5, now 0\.99\. Condense again with --gamma 0\.99\."
    config = dataclasses.replace(SMALL, steps=32)
    for stage in (
        lambda: Dataset.read([tmp_path / "a"], 0.99),
        lambda: relabel(tmp_path / "a", teacher, tmp_path / "out", gamma=0.99),
        lambda: condense(tmp_path / "a", tmp_path / "out", 4, gamma=0.99),
        lambda: collect(CARTPOLE, teacher, config, tmp_path / "a", round=1, mode="resume"),
        lambda: merge([tmp_path / "b", tmp_path / "a"], tmp_path / "out"),
    ):
        with pytest.raises(ConfigError, match=refused):
            stage()  # type: ignore[no-untyped-call]
    assert not (tmp_path / "out").exists()


def test_merged_and_extended_data_keep_stored_and_computed_returns(
    whole: Path, small: Path, teacher: NetworkPolicy, tmp_path: Path
) -> None:
    merge([small, whole], tmp_path / "merged")
    merged, one, other = (Dataset.read([folder]) for folder in (tmp_path / "merged", small, whole))
    for name in ("return_to_go", "reward", "teacher"):
        np.testing.assert_array_equal(merged.columns[name], np.concatenate([one.columns[name], other.columns[name]]))
    np.testing.assert_array_equal(merged.heldout[:16], one.heldout)
    assert (merged.isolated, merged.heldout[16:].any(), merged.num_steps) == (True, True, 1280)
    with pytest.raises(ConfigError, match=r"it is condensed\. Collect into another folder"):
        collect(CARTPOLE, teacher, SMALL, small, mode="resume")
    longer = collect(CARTPOLE, teacher, dataclasses.replace(SMALL, steps=64), small, round=1, mode="resume")
    assert (len(longer), longer.num_steps) == (16 + 64, 640 + 64)


@pytest.mark.parametrize("reader", ["gru", "bellman", "lerobot", "minari", "imitate", "recurrent teacher"])
def test_readers_of_whole_episodes_are_refused(reader: str, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    torch.manual_seed(0)

    def read() -> None:
        data = Dataset.read([small])
        if reader == "gru":
            distill(data, Gru(4), DistillConfig(epochs=1), out)
        elif reader == "bellman":
            distill(data, Mlp((4,)), DistillConfig(losses=(Term(BellmanTarget()),)), out)
        elif reader == "lerobot":
            export_lerobot(small, out)
        elif reader == "minari":
            pytest.importorskip("minari", reason="needs the extra minari")
            rd.export_minari(small, "minari:cartpole/few-v0")
        elif reader == "imitate":
            rd.imitate(small, Mlp((4,)), rd.ImitateConfig(), out)
        else:
            relabel(small, Actor(lstm=(6, 1), hidden=(5,), critic=(4,)).build(spec_from_env(CARTPOLE)).eval(), out)

    with pytest.raises(ConfigError, match="condensed") as caught:
        read()
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_other_labels_are_made_state_by_state(small: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()
    before, after = Dataset.read([small]), relabel(small, other, tmp_path / "other", features=True)
    rows = np.arange(16)
    with torch.no_grad():
        expected, then = other(before.observations(rows))[0], other(before.next_observations(rows))[0]
    np.testing.assert_allclose(after.columns["teacher"], expected.params, atol=1e-5)
    np.testing.assert_allclose(after.columns["next_teacher"], then.params, atol=1e-5)
    np.testing.assert_array_equal(after.columns["return_to_go"], before.columns["return_to_go"])
    np.testing.assert_array_equal(after.heldout, before.heldout)


@pytest.mark.slow
def test_a_student_learns_from_few_states(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.source is not None
    small = condense(dataset.source[0][0], tmp_path / "small", 24)
    config = DistillConfig(epochs=150, batch_size=8, learning_rate=3e-3, patience=0)
    student = distill(small, Mlp((16,)), config, tmp_path / "student", progress=False)
    rows = np.flatnonzero(dataset.heldout)
    with torch.no_grad():
        chosen = student(dataset.observations(rows))[0].mode().numpy()
    assert (chosen == dataset.columns["teacher"][rows].argmax(1)).mean() > 0.75


@pytest.mark.slow
def test_each_picture_has_its_stack(tmp_path: Path) -> None:
    pytest.importorskip("ale_py", reason="needs Atari")
    env = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 120})
    torch.manual_seed(0)
    policy = Linear().build(spec_from_env(env)).eval()
    before = collect(env, policy, dataclasses.replace(SMALL, steps=320), tmp_path / "whole")
    after = condense(tmp_path / "whole", tmp_path / "small", 40)
    key = ("episode", "step")
    places = {pair: row for row, pair in enumerate(zip(*(before.columns[name] for name in key), strict=True))}
    # Episodes are numbered anew, in the same order.
    kept = np.unique(before.columns["episode"])[: len(np.unique(after.columns["episode"]))]
    rows = np.array([places[kept[e], s] for e, s in zip(*(after.columns[name] for name in key), strict=True)])
    assert {0, 1} <= set(after.columns["step"])  # padded stacks among them
    own = np.arange(len(after))
    np.testing.assert_array_equal(after.columns["action"], before.columns["action"][rows])
    assert torch.equal(after.observations(own), before.observations(rows))
    assert torch.equal(after.next_observations(own), before.next_observations(rows))
    again = relabel(tmp_path / "small", policy, tmp_path / "again")
    np.testing.assert_allclose(again.columns["teacher"], after.columns["teacher"], atol=1e-5)
    np.testing.assert_allclose(again.columns["next_teacher"], after.columns["next_teacher"], atol=1e-5)


def test_dicts_with_pictures_and_a_mask_are_kept(tmp_path: Path) -> None:
    env = EnvConfig("tests.envs.picture_envs:Desk")
    policy = FunctionPolicy(right_side, spec_from_env(env).unmasked)
    before = collect(env, policy, dataclasses.replace(SMALL, steps=192), tmp_path / "whole")
    train = np.flatnonzero(~before.heldout)
    params = torch.from_numpy(before.columns["teacher"])
    legal = params > ILLEGAL / 2
    probability = params.softmax(-1)
    gaps = probability.amax(-1) - probability.masked_fill(~legal, 1).amin(-1)
    assert not legal.all()
    np.testing.assert_allclose(state_weights(before.spec.head, params), gaps, atol=1e-6)
    points = state_points(before, train)
    assert (points.shape, np.abs(points).max() < 100) == ((len(train), before.spec.head.num_params), True)
    after = condense(tmp_path / "whole", tmp_path / "small", 30, weighted=True)
    chosen = train[k_centers(points, gaps[train].numpy(), 30)]
    assert torch.equal(after.observations(np.arange(30)), before.observations(chosen))


def test_observations_of_the_teacher_are_kept(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1", views=Views(student=(Wrapper("MaskVelocity"),)))
    torch.manual_seed(0)
    policy = Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()
    before = collect(env, policy, dataclasses.replace(SMALL, teacher_obs=True), tmp_path / "whole")
    after = condense(tmp_path / "whole", tmp_path / "small", 20)
    assert after.spec.obs_shape == before.spec.obs_shape
    again = relabel(tmp_path / "small", policy, tmp_path / "again")
    for name in ("teacher", "next_teacher"):
        np.testing.assert_allclose(again.columns[name], after.columns[name], atol=1e-5)


@pytest.mark.slow
def test_labels_of_a_committee_are_kept_but_not_its_episodes(teacher: NetworkPolicy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    committee = Committee((teacher, Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()), names=("q", "mlp"))
    collect(CARTPOLE, committee, SMALL, tmp_path / "whole")
    small = condense(tmp_path / "whole", tmp_path / "small", 60)
    assert (small.columns["members"].shape, set(small.columns["member"])) == ((120, 4), {0, 1})
    for weighting, refused in (("confidence", False), ("value", True)):
        config = DistillConfig(epochs=60, learning_rate=0.01, batch_size=16, weighting=weighting)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="whole episodes of each teacher") if refused else nullcontext():
            distill(small, Mlp((8,)), config, tmp_path / weighting, progress=False)


def test_steps_without_a_label_are_not_chosen(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, beta=0.0, label_every=4)
    student = Mlp((8,)).build(teacher.spec).eval()
    before = collect(CARTPOLE, teacher, config, tmp_path / "whole", student=student)
    after = condense(tmp_path / "whole", tmp_path / "small", int((~before.heldout).sum()))
    assert np.abs(after.columns["teacher"]).sum(1).all()
    kept = {row.tobytes() for row in after.observations(np.arange(len(after))).numpy()}
    assert kept <= {row.tobytes() for row in before.observations(np.arange(len(before))).numpy()}


def test_continuous_actions_are_kept(tmp_path: Path) -> None:
    env = EnvConfig("Pendulum-v1")
    torch.manual_seed(0)
    collect(env, Mlp((8,)).build(spec_from_env(env)).eval(), SMALL, tmp_path / "whole")
    equal, weighted = (condense(tmp_path / "whole", tmp_path / str(w), 9, weighted=w) for w in (False, True))
    assert equal.columns["action"].shape == (18, 1)
    np.testing.assert_array_equal(equal.columns["action"], weighted.columns["action"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"gamma": 7}, r"condense\.gamma"),
        ({"gamma": "x"}, r"condense\.gamma"),
        ({"keep": 0}, r"condense\.keep"),
        ({"more": 1}, r"condense\.more"),
        (None, "condense"),
    ],
    ids=repr,
)
def test_wrong_choice_in_a_manifest_is_one_line(change: dict[str, Any] | None, problem: str, small: Path) -> None:
    document = read_json(small / "manifest.json")
    inputs = document["rounds"]["0"]["inputs"]
    inputs["condense"] = [] if change is None else inputs["condense"] | change
    write_json(small / "manifest.json", document)
    with pytest.raises(CorruptArtifactError, match=problem) as caught:
        Dataset.read([small])
    assert "\n" not in str(caught.value)


def test_columns_and_manifest_agree(small: Path, whole: Path) -> None:
    document = read_json(small / "manifest.json")
    choice = document["rounds"]["0"]["inputs"].pop("condense")
    write_json(small / "manifest.json", document)
    with pytest.raises(CorruptArtifactError, match="the column heldout is unknown"):
        Dataset.read([small])
    other = read_json(whole / "manifest.json")
    other["rounds"]["0"]["inputs"]["condense"] = choice
    block = Manifest.read(whole).read_block(Manifest.read(whole).blocks[0])
    write_json(small / "manifest.json", other)
    for name in ("heldout", "return_to_go"):
        assert name not in block.columns
    (small / "blocks").rename(small / "own")
    (small / "blocks").symlink_to(whole / "blocks")
    with pytest.raises(CorruptArtifactError, match="the column heldout is missing"):
        Dataset.read([small])


def test_command_prints_the_new_dataset(whole: Path, tmp_path: Path) -> None:
    arguments = ["dataset", "condense", str(whole), "--keep", "8", "--out", str(tmp_path / "small")]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, "8 training states, 8 held out" in done.output) == (0, True), done.output
    again = CliRunner().invoke(app, arguments)
    assert (again.exit_code, "--overwrite" in again.output) == (2, True)
    assert CliRunner().invoke(app, [*arguments, "--overwrite", "--quiet"]).exit_code == 0
