"""Tests of teacher training: algorithms, refusals, and resume."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.spec import EnvConfig
from rldistill.data.replay import TransitionBatch
from rldistill.envs.seeding import episode_seed
from rldistill.io.atomic import read_jsonl
from rldistill.io.metrics import Metrics
from rldistill.policies.agent import inference_threads
from rldistill.teachers.load import load_policy
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.dqn import DoubleDQN
from rldistill.teachers.training.train import train_teacher
from rldistill.teachers.training.vec_env import seed_of

from ...conftest import Reports

pytestmark = pytest.mark.slow

CARTPOLE = EnvConfig("CartPole-v1")


@pytest.mark.parametrize("algorithm", ["PPO", "DoubleDQN"])
def test_training_continues_with_more_steps(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, temporary = EnvConfig("CartPole-v1"), tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    hyperparameters: dict[str, Any] = {"n_steps": 64} if algorithm == "PPO" else {"learning_starts": 100}
    config = TrainConfig(algorithm, 1_024, 4, 512, 3, hyperparameters=hyperparameters)
    train_teacher(env, config, tmp_path)
    more = TrainConfig(algorithm, 2_048, 4, 512, 3, hyperparameters=hyperparameters)
    policy = train_teacher(env, more, tmp_path, mode="resume")
    steps = [row["step"] for row in read_jsonl(tmp_path / "curve.jsonl")]
    assert steps == sorted(steps)
    assert steps[-1] >= 2_048
    assert policy.spec.head.kind == ("categorical" if algorithm == "PPO" else "q_values")
    assert not [*temporary.glob("SB3*")]  # the folder of its logger


def test_dqn_continues_from_its_policy_and_curve_alone(tmp_path: Path) -> None:
    """Training continues at the step of the policy, the best so far; the curve may be longer."""
    env = EnvConfig("CartPole-v1")
    train_teacher(env, TrainConfig("DoubleDQN", 512, 4, 256, 2), tmp_path)
    before = load_policy(tmp_path).state_dict()
    (tmp_path / "checkpoints" / "last.zip").unlink()
    curve = tmp_path / "curve.jsonl"
    best = json.loads((tmp_path / "policy.json").read_text())["provenance"]["env_steps"]
    Metrics(tmp_path, curve.name).write(
        [*read_jsonl(curve), {"step": 9_999, "seconds": 1.0, "mean": 0.0, "returns": [0.0]}]
    )
    frozen = TrainConfig("DoubleDQN", 768, 4, 256, 2, hyperparameters={"learning_rate": 0.0})
    after = train_teacher(env, frozen, tmp_path, mode="resume").state_dict()
    last = read_jsonl(tmp_path / "curve.jsonl")[-1]
    assert best <= 512
    assert 768 <= last["step"] < 9_999
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


def test_unknown_algorithms_and_settings_are_refused(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1")
    with pytest.raises(ConfigError, match="Did you mean 'PPO'"):
        train_teacher(env, TrainConfig("PPOO"), tmp_path / "a")
    with pytest.raises(ConfigError, match="Did you mean 'n_steps'"):
        train_teacher(env, TrainConfig("PPO", hyperparameters={"nsteps": 3}), tmp_path / "b")
    with pytest.raises(ConfigError, match=r"train\.hyperparameters\.gamma: found 'abc', expected a number"):
        train_teacher(env, TrainConfig("PPO", hyperparameters={"gamma": "abc"}), tmp_path / "b")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.device: PyTorch finds no GPU"):
        train_teacher(CARTPOLE, TrainConfig("PPO", device="cuda"), tmp_path)


@pytest.mark.parametrize(
    ("algorithm", "env", "kind"),
    [
        ("DQN", "CartPole-v1", "q_values"),
        ("QRDQN", "CartPole-v1", "q_values"),
        ("A2C", "Pendulum-v1", "gaussian"),
        ("SAC", "Pendulum-v1", "squashed_gaussian"),
        ("TD3", "Pendulum-v1", "squashed_gaussian"),
        ("TQC", "Pendulum-v1", "squashed_gaussian"),
    ],
)
def test_every_algorithm_trains(tmp_path: Path, algorithm: str, env: str, kind: str) -> None:
    small: dict[str, Any] = {} if algorithm == "A2C" else {"buffer_size": 1_000, "learning_starts": 100}
    settings = {**small, "policy_kwargs": {"net_arch": [8]}, "learning_rate": {"start": 1e-3, "end": 0}}
    config = TrainConfig(algorithm, 200, 4, 1_000, 1, hyperparameters=settings)
    policy = train_teacher(EnvConfig(env), config, tmp_path)
    assert policy.spec.head.kind == kind
    (row,) = read_jsonl(tmp_path / "curve.jsonl")
    assert 200 <= row["step"] < 216
    assert row["updates"] > 0
    assert len(row["returns"]) == 1
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.zip", "best.zip"}


def test_ctrl_c_leaves_a_checkpoint_to_resume(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= 300:
            raise KeyboardInterrupt

    config = TrainConfig("DoubleDQN", 600, 4, 400, 1, hyperparameters={"learning_starts": 100})
    with pytest.raises(KeyboardInterrupt):
        train_teacher(CARTPOLE, config, tmp_path, progress=Reports(interrupt))
    assert not (tmp_path / "policy.json").exists()
    steps_done: list[int] = []
    train_teacher(
        CARTPOLE, config, tmp_path, mode="resume", progress=Reports(lambda done, total: steps_done.append(done))
    )
    assert steps_done[0] == 304
    steps = [row["step"] for row in read_jsonl(tmp_path / "curve.jsonl")]
    assert steps[0] == 400
    assert 600 <= steps[1] < 616
    assert len(steps) == 2


def test_new_settings_replace_those_of_the_checkpoint(tmp_path: Path) -> None:
    def config(steps: int, **changed: object) -> TrainConfig:
        return TrainConfig("DoubleDQN", steps, 4, steps, 1, hyperparameters={"learning_starts": 50, **changed})

    train_teacher(CARTPOLE, config(200), tmp_path)
    train_teacher(
        CARTPOLE, config(300, batch_size=16, learning_rate={"start": 1e-3, "end": 0}), tmp_path, mode="resume"
    )
    model = DoubleDQN.load(tmp_path / "checkpoints" / "last.zip")
    assert model.batch_size == 16
    assert model.lr_schedule(0.5) == 5e-4


def test_gradient_is_the_same_for_any_number_of_threads() -> None:
    obs = torch.randn(10, 4)
    batch = TransitionBatch(
        obs, torch.randint(0, 2, (10,)), torch.randn(10), torch.randn(10, 4), torch.full((10,), 0.99), None
    )
    gradients = []
    for threads in (1, 3):
        with inference_threads(threads):
            model = DoubleDQN("MlpPolicy", "CartPole-v1", seed=0, learning_starts=1, learning_rate=0.0, device="cpu")
        replay: Any = model.replay_buffer
        replay.sample_rows = lambda count: (np.arange(10), np.ones(10, np.float32))
        replay.transitions = lambda rows: batch
        model._gradient_step()
        gradients.append([parameter.grad for parameter in model.q_net.parameters()])
    for one, three in zip(*gradients, strict=True):
        torch.testing.assert_close(one, three)


def test_finished_teacher_is_unchanged_on_resume(tmp_path: Path) -> None:
    config = TrainConfig("PPO", 256, 4, 256, 1, hyperparameters={"n_steps": 64})
    first = train_teacher(CARTPOLE, config, tmp_path).state_dict()
    files = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    again = train_teacher(CARTPOLE, config, tmp_path, mode="resume").state_dict()
    assert files == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changed",
    [TrainConfig("A2C"), TrainConfig("PPO", hyperparameters={"n_steps": 64, "policy_kwargs": {"net_arch": [8]}})],
)
def test_resume_with_other_algorithm_or_network_is_refused(tmp_path: Path, changed: TrainConfig) -> None:
    train_teacher(CARTPOLE, TrainConfig("PPO", 256, 4, 256, 1, hyperparameters={"n_steps": 64}), tmp_path)
    with pytest.raises(ConfigError, match=r"was .*, now it is .*--overwrite"):
        train_teacher(CARTPOLE, changed, tmp_path, mode="resume")
    with pytest.raises(ConfigError, match=r"env\.id was CartPole-v1, now it is CartPole-v0"):
        train_teacher(EnvConfig("CartPole-v0"), TrainConfig("PPO"), tmp_path, mode="resume")


@pytest.mark.parametrize("wrong", [{"n_steps": 0}, {"n_epochs": 0}, {"policy_kwargs": {"net_arch": [-1]}}])
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
def test_teacher_survives_an_overwrite_with_wrong_hyperparameters(tmp_path: Path, wrong: dict[str, Any]) -> None:
    train_teacher(CARTPOLE, TrainConfig("PPO", 256, 4, 256, 1, hyperparameters={"n_steps": 64}), tmp_path)
    before = (tmp_path / "policy.safetensors").read_bytes()
    if "n_epochs" not in wrong:  # which fails only after some training
        with pytest.raises(ConfigError, match=r"train\.hyperparameters"):
            train_teacher(CARTPOLE, TrainConfig("PPO", hyperparameters=wrong), tmp_path, mode="overwrite")
        assert (tmp_path / "policy.safetensors").read_bytes() == before
    with pytest.raises(ConfigError, match="train"):
        train_teacher(CARTPOLE, TrainConfig("PPO", 256, 4, 256, 1, hyperparameters=wrong), tmp_path / "new")


def test_same_seed_trains_the_same_teacher(tmp_path: Path) -> None:
    config = TrainConfig("PPO", 256, 4, 256, 1, hyperparameters={"n_steps": 64})
    first, same, different = (
        train_teacher(CARTPOLE, config, tmp_path / str(i), seed) for i, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(first.output.weight, same.output.weight)
    assert not torch.equal(first.output.weight, different.output.weight)


def test_resumed_dqn_on_frames_keeps_its_n_step_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pong = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 200, "noop_max": 1})
    settings = {"n_steps": 3, "buffer_size": 400, "learning_starts": 16, "batch_size": 4, "train_freq": 4}
    train_teacher(pong, TrainConfig("DoubleDQN", 40, 2, 40, 1, hyperparameters=settings), tmp_path)
    models: list[Any] = []
    start = BaseCallback.on_training_start
    monkeypatch.setattr(
        BaseCallback, "on_training_start", lambda self, *a: [models.append(self.model), start(self, *a)]
    )
    more = TrainConfig("DoubleDQN", 80, 2, 40, 1, hyperparameters=settings)
    policy = train_teacher(pong, more, tmp_path, mode="resume")
    assert models[0].replay_buffer.settings.n_steps == 3
    assert policy.spec.frames is not None
    assert load_policy(tmp_path).spec == policy.spec


class ChannelsLast(gymnasium.Env[np.ndarray, int]):
    observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        return np.zeros((36, 36, 3), np.uint8), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros((36, 36, 3), np.uint8), 0.0, True, False, {}


@pytest.mark.parametrize(
    ("algorithm", "hyperparameters", "message"),
    [
        ("SAC", {}, "SAC cannot be built"),
        ("PPO", {"learning_rate": {"start": 1e-3, "stop": 0}}, "learning_rate: expected a number or"),
        ("PPO", {"policy_kwargs": {"activation_fn": "tanhh"}}, "Did you mean 'tanh'"),
        ("PPO", {"policy_kwargs": {"netarch": [8]}}, "netarch"),
        ("QRDQM", {}, "Did you mean 'QRDQN'"),
    ],
)
def test_wrong_settings_are_refused(
    tmp_path: Path, algorithm: str, hyperparameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_teacher(CARTPOLE, TrainConfig(algorithm, hyperparameters=hyperparameters), tmp_path)


def test_images_with_channels_last_are_refused(tmp_path: Path) -> None:
    gymnasium.register("ChannelsLast-v0", ChannelsLast)
    with pytest.raises(ConfigError, match="channels first"):
        train_teacher(EnvConfig("ChannelsLast-v0"), TrainConfig("PPO"), tmp_path)


def test_network_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    class CustomExtractor(FlattenExtractor):
        pass

    config = TrainConfig("SAC", hyperparameters={"policy_kwargs": {"features_extractor_class": CustomExtractor}})
    with pytest.raises(ConfigError, match=r"features extractor .*CustomExtractor"):
        train_teacher(EnvConfig("Pendulum-v1"), config, tmp_path)


def test_damaged_checkpoints_and_curves_are_refused(tmp_path: Path) -> None:
    config = TrainConfig("PPO", 256, 4, 256, 1, hyperparameters={"n_steps": 64})
    train_teacher(CARTPOLE, config, tmp_path)
    (tmp_path / "curve.jsonl").write_text('{"step": 256, "me\n')
    with pytest.raises(CorruptArtifactError, match=r"curve\.jsonl"):
        train_teacher(CARTPOLE, config, tmp_path, mode="resume")
    (tmp_path / "checkpoints" / "last.zip").write_bytes(b"PK")
    with pytest.raises(CorruptArtifactError, match=r"last\.zip"):
        train_teacher(CARTPOLE, config, tmp_path, mode="resume")


def test_training_and_validation_share_no_episode_with_the_final_evaluation() -> None:
    seeds = {
        purpose: {seed_of(0, purpose, slot, episode) for slot in range(8) for episode in range(50)}
        for purpose in ("train", "evaluate")
    }
    final_seeds = {episode_seed(0, "evaluate", 0, 0, 0, episode) for episode in range(400)}
    assert not seeds["train"] & seeds["evaluate"]
    assert not seeds["evaluate"] & final_seeds


def test_normalized_training_stores_its_moments_and_resumes_them(tmp_path: Path) -> None:
    pendulum, settings = EnvConfig("Pendulum-v1"), {"n_steps": 64}
    config = TrainConfig("PPO", 512, 4, 512, 2, normalize=True, hyperparameters=settings)
    policy = train_teacher(pendulum, config, tmp_path)
    model = PPO.load(tmp_path / "checkpoints" / "best.zip", device="cpu")
    rms, returns = model.moments
    assert rms.count > 512
    torch.testing.assert_close(policy.obs_mean, torch.tensor(rms.mean).float())
    obs = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32) * [1, 1, 200]  # some are clipped
    seen = np.clip((obs - rms.mean) / np.sqrt(rms.var + 1e-8), -10, 10).astype(np.float32)
    acted = policy(torch.from_numpy(obs).float())[0].mode().detach()
    np.testing.assert_allclose(acted, model.predict(seen, deterministic=True)[0], atol=1e-5)
    train_teacher(pendulum, replace(config, total_steps=1_024), tmp_path, mode="resume")
    resumed = PPO.load(tmp_path / "checkpoints" / "last.zip", device="cpu").moments
    # Each step of the vector environment adds 4 observations, each reset one more.
    assert resumed[0].count - rms.count == pytest.approx(512, abs=8)
    assert resumed[1].count > returns.count
    with pytest.raises(ConfigError, match=r"teacher\.train\.normalize was True, now it is none"):
        train_teacher(pendulum, replace(config, normalize=False), tmp_path, mode="resume")


@pytest.mark.parametrize(
    ("algorithm", "env", "message"),
    [
        ("SAC", "Pendulum-v1", "SAC does not support it. Use PPO or A2C"),
        ("PPO", "Taxi-v4", "the observations are not one vector of numbers"),
    ],
)
def test_normalization_is_refused(algorithm: str, env: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train_teacher(EnvConfig(env), TrainConfig(algorithm, 64, 2, normalize=True), tmp_path)
