"""Dict observations with pictures go through every stage as bytes: one environment with all kinds of entries."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core import spec as spec_module
from rldistill.core.entries import flat_values, split_parts
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import MASK
from rldistill.core.policy import Policy
from rldistill.core.schedules import Constant
from rldistill.core.spec import EnvConfig, ObsPart, PolicySpec, Views, Wrapper, part_sizes
from rldistill.data.blocks import require_content
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.data.merge import merge
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.distillation.prepare import observation_moments
from rldistill.envs import entries as entries_module
from rldistill.envs.make import make_env
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.check_env import check_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import play
from rldistill.evaluation.robustness import noise_scale, noisy
from rldistill.io.execution import Execution
from rldistill.policies.agent import Agent
from rldistill.recipes import Dagger, Kickstart, OnPolicy, QDagger
from rldistill.recipes.job import Recipe, Run
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.run.stages import run_all
from rldistill.search.candidates import make_candidates
from rldistill.students import Cnn, Linear, Mlp, MultiInput, Tree
from rldistill.students.budget import costs, fit_budget
from rldistill.students.storage import load_native
from rldistill.teachers.load import load_policy
from rldistill.teachers.python import FunctionPolicy
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import train_teacher

from .picture_envs import SPACE, Desk, Scene, right_side

ENVS = "tests.envs.picture_envs"
DESK = f"{ENVS}:Desk"
SMALL = CollectConfig(steps=192, num_streams=2, envs_per_stream=2, block_steps=16, epsilon=0.3)
QUICK = DistillConfig(epochs=10, batch_size=32, learning_rate=3e-3)


@pytest.fixture
def env() -> EnvConfig:
    return EnvConfig(DESK)


@pytest.fixture
def teacher(env: EnvConfig) -> Policy:
    return FunctionPolicy(right_side, spec_from_env(env).unmasked)


class Mission(spaces.Space[str]):
    """A space of the user's own, as that of MiniGrid."""


def network(env: EnvConfig, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    return MultiInput((4,), (4,), (2,), 8, (16,)).build(spec_from_env(env)).eval()


def test_entries_are_stored_as_bytes_and_read_as_they_were(env: EnvConfig, tmp_path: Path) -> None:
    data = collect(env, network(env), SMALL, tmp_path / "data")
    parts = dict(data.spec.parts)
    assert [*parts] == [MASK, "board", "camera", "dials", "goal.reached.0", "goal.wanted", "pose", "side"]
    assert data.obs.dtype == np.uint8
    assert data.obs.shape[1:] == (360 + 252 + 4 * (2 + 1 + 2 + 2) + 2 + 3,) == data.spec.obs_shape
    raw = Desk()
    seeds = [int(seed) for seed in range(3)]
    for seed in seeds:
        seen = raw.reset(seed=seed)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            packed = make_env(env).reset(seed=seed)[0]
        found = split_parts(torch.from_numpy(packed)[None], data.spec)
        for key in ("camera", "board", "pose", "side", "dials", MASK):
            np.testing.assert_array_equal(found[key][0].numpy(), np.asarray(seen[key], parts[key].dtype).astype("f4"))
        np.testing.assert_array_equal(found["goal.reached.0"][0].numpy(), seen["goal"]["reached"][0])
        assert (found["camera"].dtype, found["board"].dtype) == (torch.uint8, torch.int8)
        action = Agent(network(env)).act(seen)
        assert action == network(env)(torch.from_numpy(packed)[None])[0].mode().item()
        assert seen[MASK][action]


@pytest.mark.slow
def test_promises_of_datasets_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # new processes may find another package `tests`
    env = EnvConfig("picture_envs:Desk")
    policy = network(env)
    collect(env, policy, SMALL, tmp_path / "one")
    collect(env, policy, SMALL, tmp_path / "two", execution=Execution(workers=2))
    one, two = (Manifest.read(tmp_path / name) for name in ("one", "two"))
    assert one.digest == two.digest
    for block in one.blocks[1::2]:
        (tmp_path / "one" / block.file).unlink()
    collect(env, policy, SMALL, tmp_path / "one", mode="resume")
    assert Manifest.read(tmp_path / "one").digest == two.digest
    Manifest.read(tmp_path / "one").check()
    same = relabel(tmp_path / "one", policy, tmp_path / "same")
    assert Manifest.read(tmp_path / "same").digest == two.digest
    other = relabel(tmp_path / "one", network(env, 1), tmp_path / "other")
    np.testing.assert_array_equal(other.obs, same.obs)
    collect(env, policy, SMALL, tmp_path / "three", seed=1)
    merge([tmp_path / "one", tmp_path / "three"], tmp_path / "both")
    assert len(Dataset.read([tmp_path / "both"])) == 2 * len(same)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_disk = Dataset.read([tmp_path / "one"], memory_gb=1e-6)
    assert torch.equal(on_disk.observations(np.arange(9)), same.observations(np.arange(9)))


def test_a_student_learns_from_pictures_beside_vectors(env: EnvConfig, teacher: Policy, tmp_path: Path) -> None:
    data = collect(env, teacher, dataclasses.replace(SMALL, steps=1_600), tmp_path / "data")
    mean, std = observation_moments(data)
    widths = [part.width for part in data.spec.entries.values()]
    own = dict(zip(data.spec.entries, mean.split(widths), strict=True))
    values = split_parts(torch.from_numpy(data.obs), data.spec)
    torch.testing.assert_close(own["camera"], (values["camera"] / 255).mean().expand(360), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own["board"], values["board"].float().mean().expand(252), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own["pose"], values["pose"].mean(0), rtol=1e-4, atol=1e-4)
    assert bool((std > 0).all())
    config = DistillConfig(epochs=15, batch_size=32, learning_rate=3e-3)
    student = distill(data, MultiInput((8,), (4,), (2,), 16, (16,)), config, tmp_path / "student")
    assert play(env, student, 5).returns.mean() > 17
    loaded = load_native(tmp_path / "student")
    obs = data.observations(np.arange(16))
    entries = split_parts(obs, data.spec)
    torch.testing.assert_close(loaded(obs)[0].params, student(entries)[0].params)
    torch.testing.assert_close(loaded(flat_values(obs, data.spec))[0].params, student(obs)[0].params)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        Dagger(rounds=1, steps_per_round=128),
        OnPolicy(rounds=1, steps_per_round=128),
        Kickstart(),
        QDagger(weight=Constant(1.0)),
    ],
    ids=lambda recipe: type(recipe).__name__.lower(),
)
def test_every_kind_of_recipe_and_the_report(recipe: Recipe, tmp_path: Path) -> None:
    env = EnvConfig(DESK, {"keys": ["camera", "pose", "board"]})
    small = {"cnn": MultiInput((8,), (4,), (2,), 16, (16,)), "tree": Tree(3)}
    if not isinstance(recipe, Dagger):
        del small["tree"]
    run = Run(
        out=tmp_path / "run", env=env, teacher=FunctionPolicy(right_side, spec_from_env(env).unmasked), students=small,
        collect=SMALL, distill=QUICK, recipe=recipe, ppo=PPOConfig(total_steps=256, num_envs=4, rollout_length=16),
        dqn=DQNConfig(total_steps=128, num_envs=2, learning_starts=32, buffer_size=500, offline_steps=8),
        evaluate=EvaluateConfig(episodes=4, videos=False),
    )  # fmt: skip
    assert run_all(run, quiet=True).exists()


COMBINED = {
    "features_extractor_kwargs": {"cnn_output_dim": 9},
    "net_arch": [7],
}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_teachers_of_sb3_read_the_stored_observations(algorithm: Any, tmp_path: Path) -> None:
    continuous = algorithm is SAC
    settings: dict[str, Any] = {"n_steps": 16} if algorithm is PPO else {"buffer_size": 50, "learning_starts": 10}
    model = algorithm(
        "MultiInputPolicy", Scene(continuous), policy_kwargs={**COMBINED}, seed=0, batch_size=8, **settings
    )
    model.learn(32)
    model.save(tmp_path / "agent.zip")
    env = EnvConfig(f"{ENVS}:Scene", {"continuous": continuous})
    teacher = load_policy(tmp_path / "agent.zip")
    data = collect(env, teacher, dataclasses.replace(SMALL, steps=64), tmp_path / "data")
    entries = split_parts(data.observations(np.arange(32)), data.spec)
    raw = {key: entry.numpy().astype(data.spec.entries[key].dtype) for key, entry in entries.items()}
    obs, _ = model.policy.obs_to_tensor(raw)
    with torch.no_grad():
        if algorithm is PPO:
            expected = model.policy.get_distribution(obs).distribution.logits
            found = torch.from_numpy(data.columns["teacher"][:32]).log_softmax(-1)
        elif algorithm is DQN:
            expected, found = model.q_net(obs), torch.from_numpy(data.columns["teacher"][:32])
        else:
            expected = torch.cat(model.actor.get_action_dist_params(obs)[:2], 1)
            found = torch.from_numpy(data.columns["teacher"][:32])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_views_of_bytes_and_numbers_are_read_where_they_start(env: EnvConfig, tmp_path: Path) -> None:
    keys = [["camera", "board"], ["pose", "side", "board"]]  # 612 bytes; numbers after an odd number of bytes
    views = [(Wrapper("FilterObservation", {"filter_keys": own}),) for own in keys]
    views[0] = (*views[0], Wrapper("ChannelsFirst"))
    both = dataclasses.replace(env, views=Views(student=views[0], teacher=views[1]))
    teacher = MultiInput((4,), (4,), (2,), 8, (8,)).build(spec_from_env(both.view_of("teacher"))).eval()
    config = dataclasses.replace(SMALL, envs_per_stream=1, teacher_obs=True)
    data = collect(both, teacher, config, tmp_path / "data")
    labels = teacher(torch.from_numpy(data.columns["teacher_obs"]))[0].params.detach().numpy()
    np.testing.assert_allclose(labels, data.columns["teacher"], rtol=1e-4, atol=1e-5)
    assert data.spec.entries["camera"].shape == (3, 10, 12)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Sequence(spaces.Discrete(3)), "Sequence"),
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), "Graph"),
        (spaces.Text(9), "Text"),
        (Mission(), "Mission"),
        (spaces.OneOf([spaces.Discrete(2), spaces.Box(0, 1, (2,))]), "OneOf.*FlattenObservation"),
        (spaces.Discrete(3, start=1), "Discrete.*FlattenObservation"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_spaces_are_refused_by_name(space: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for whole, name in ((space, ""), (spaces.Dict({"a": SPACE["pose"], "b": spaces.Tuple([space])}), r"'b\.0'.*")):
        monkeypatch.setattr(Desk, "observation_space", whole)
        spec_from_env.cache_clear()
        with pytest.raises(ConfigError, match=f"env.id: .*:Desk has .*{name}{message}"):
            spec_from_env(EnvConfig(DESK))
    spec_from_env.cache_clear()


def test_flat_observations_are_those_of_gymnasium(env: EnvConfig) -> None:
    flat = dataclasses.replace(env, wrappers=(Wrapper("FlattenObservation"),))
    assert spec_from_env(flat).obs_shape == (spaces.flatdim(SPACE),)


def test_a_float_in_the_place_of_bytes_is_refused(env: EnvConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Desk._seen
    monkeypatch.setattr(Desk, "_seen", lambda self: {**seen(self), "camera": seen(self)["camera"] / 255})
    with pytest.raises(SpecMismatchError, match=r"entry 'camera' does not fit: found float64 .* has uint8"):
        make_env(env).reset(seed=0)


def test_other_layouts_are_refused(env: EnvConfig) -> None:
    spec = spec_from_env(env)
    dataclasses.replace(spec, obs_shape=spec.flat_shape, obs_dtype="float32")
    for shape, dtype in ((spec.obs_shape, "float32"), (spec.flat_shape, "uint8"), ((3, 4), "float32")):
        with pytest.raises(SpecMismatchError, match="obs_shape: expected uint8 of"):
            dataclasses.replace(spec, obs_shape=shape, obs_dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_training_learns_from_the_entries(algorithm: Any, tmp_path: Path) -> None:
    env = EnvConfig(f"{ENVS}:Scene", {"continuous": algorithm is SAC}, wrappers=(Wrapper("ChannelsFirst"),))
    small: dict[str, Any] = {"n_steps": 16} if algorithm is PPO else {"buffer_size": 50, "learning_starts": 10}
    settings = {**small, "policy_kwargs": COMBINED, "batch_size": 8}
    config = TrainConfig(algorithm.__name__, 64, 2, 64, 2, hyperparameters=settings)
    trained = train_teacher(env, config, tmp_path, progress=False)
    assert "use_sde" not in COMBINED  # which SB3 adds to the settings that it gets
    model = algorithm.load(tmp_path / "checkpoints" / "best.zip")
    own = make_env(env)
    packed = torch.from_numpy(np.stack([own.reset(seed=seed)[0] for seed in range(8)]))
    entries = {key: value.numpy() for key, value in split_parts(packed, trained.spec).items()}
    assert entries["left"].shape == (8, 3, 40, 44)
    expected, _ = model.predict(entries, deterministic=True)
    np.testing.assert_allclose(trained(packed)[0].mode().detach(), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "wrappers", "settings", "message"),
    [
        ("PPO", (), {}, r"images are \(40, 44, 3\), expected channels first"),
        ("DoubleDQN", ("ChannelsFirst",), {}, "DoubleDQN does not learn from dict observations with pictures"),
        ("SAC", ("ChannelsFirst",), {"replay_buffer_class": "HerReplayBuffer"}, "but no pictures"),
    ],
)
def test_training_that_cannot_use_pictures_is_refused(
    algorithm: str, wrappers: tuple[str, ...], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    env = EnvConfig(f"{ENVS}:Scene", {"continuous": algorithm == "SAC"}, tuple(map(Wrapper, wrappers)))
    with pytest.raises(ConfigError, match=message):
        train_teacher(env, TrainConfig(algorithm, 100, hyperparameters=settings), tmp_path, progress=False)


def test_vectors_of_earlier_datasets_are_read(
    env: EnvConfig, teacher: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of dicts were numbers of float32 in earlier datasets."""
    with monkeypatch.context() as patch:
        for module in (spec_module, entries_module):
            patch.setattr(module, "joined_layout", lambda parts: (sum(part_sizes(parts, False)), "float32"))
        spec_from_env.cache_clear()
        flat = network(env)
        before = collect(env, flat, SMALL, tmp_path / "before")
    spec_from_env.cache_clear()
    assert before.obs.dtype == np.float32
    now = collect(env, network(env), SMALL, tmp_path / "now")
    assert torch.equal(flat_values(now.observations(np.arange(9)), now.spec), before.observations(np.arange(9)))
    np.testing.assert_array_equal(now.columns["teacher"], before.columns["teacher"])
    other = relabel(tmp_path / "before", network(env, 1), tmp_path / "other")
    again = relabel(tmp_path / "now", network(env, 1), tmp_path / "again")
    np.testing.assert_array_equal(other.columns["teacher"], again.columns["teacher"])
    assert play(env, flat, 1).returns.shape == (1,)


def test_a_picture_of_another_shape_is_refused(env: EnvConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Desk._seen
    monkeypatch.setattr(Desk, "_seen", lambda self: {**seen(self), "camera": seen(self)["camera"].transpose(2, 0, 1)})
    with pytest.raises(SpecMismatchError, match=r"the entry 'camera' does not fit: found uint8 of shape \(3, 10, 12\)"):
        make_env(env).reset(seed=0)


def test_nan_beside_pictures_is_refused(env: EnvConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = collect(env, network(env), SMALL, tmp_path / "whole")
    entry = Manifest.read(tmp_path / "whole").blocks[0]
    block = Manifest.read(tmp_path / "whole").read_block(entry)
    start = 3 + 252 + 360 + 4 * 2 + 2
    block.columns["obs"][5, start : start + 4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
    with pytest.raises(ValueError, match="obs holds NaN"):
        require_content(block.columns, data.spec, None, 2)
    seen = Desk._seen
    monkeypatch.setattr(Desk, "_seen", lambda self: {**seen(self), "pose": np.full(2, np.nan)})
    with pytest.raises(SpecMismatchError, match="the entry 'pose' is NaN, infinite"):
        collect(env, FunctionPolicy(lambda obs: 0, spec_from_env(env).unmasked), SMALL, tmp_path / "broken")
    findings = check_env(env, short=True).findings
    assert "the entry 'pose' is NaN" in findings[0].problem, findings


def test_students_of_one_picture_name_the_student_for_several(env: EnvConfig) -> None:
    spec = spec_from_env(env)
    with pytest.raises(ConfigError, match="Use multi_input"):
        Cnn().build(spec)
    with pytest.raises(ConfigError, match="Use mlp"):
        MultiInput().build(PolicySpec.from_parts((("a", ObsPart((3,), "float32")),), spec.head))
    with pytest.raises(ConfigError, match="ChannelsFirst"):
        Cnn().build(PolicySpec((10, 10, 7), "int8", spec.head))
    Cnn((4,), (3,), (1,)).build(PolicySpec((7, 10, 10), "int8", spec.head))


def test_budgets_and_searches_know_it(env: EnvConfig) -> None:
    spec = spec_from_env(env)
    student = fit_budget(spec, "multi_input", parameters=20_000)
    assert isinstance(student, MultiInput)
    assert 15_000 < costs(student, spec)["parameters"] <= 20_000
    assert any(isinstance(student, MultiInput) for student in make_candidates(spec, {}, None).values())


def test_noise_moves_pixels_and_numbers_only(env: EnvConfig) -> None:
    spec = spec_from_env(env)
    obs = torch.from_numpy(np.stack([make_env(env).reset(seed=seed)[0] for seed in range(4)]))
    seen: list[torch.Tensor] = []

    class Recorder:
        def __init__(self) -> None:
            self.spec = spec

        def initial_state(self, batch_size: int) -> None:
            return None

        def __call__(self, obs: Any, state: Any = None) -> Any:
            seen.append(obs)
            return None, None

    scale = noise_scale(spec, np.ones(spec.flat_shape), 0.1, 0.02)
    noisy(Recorder(), scale, torch.Generator().manual_seed(0))(obs)
    before, after = split_parts(obs, spec), split_parts(seen[0], spec)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"camera", "pose", "goal.wanted"}


def test_doctor_finds_nothing_wrong(env: EnvConfig) -> None:
    check = check_env(env, short=True)
    assert check.ok, check.findings
    assert not [finding for finding in check.findings if finding.level == "warning"], check.findings


def test_a_board_of_bits(tmp_path: Path) -> None:
    env = EnvConfig(f"{ENVS}:Planes", wrappers=(Wrapper("ChannelsFirst"),))
    teacher = FunctionPolicy(lambda obs: int(obs[3].reshape(6, 3, 2).mean((0, 2)).argmax()), spec_from_env(env))
    data = collect(env, teacher, dataclasses.replace(SMALL, steps=1_600), tmp_path / "data")
    assert (data.obs.dtype, data.obs.shape[1:]) == (np.int8, (7, 6, 6))
    mean, _ = observation_moments(data)
    assert mean.shape == (7, 6, 6)
    assert len(mean.unique()) == 1
    config = DistillConfig(epochs=10, batch_size=32, learning_rate=3e-3)
    for student in (Cnn((8,), (3,), (1,), (16,)), MultiInput((8,), (3,), (1,), 16, ()), Mlp((8,)), Linear()):
        policy = distill(data, student, config, tmp_path / type(student).__name__)
        batch = data.batch(np.arange(len(data)))
        agreement = policy(batch.obs)[0].agreement(batch.teacher).mean()
        assert agreement > 0.9, student
