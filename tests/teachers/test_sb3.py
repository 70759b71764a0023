from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from rldistill.envs.vector import EnvConfig
from rldistill.errors import ConfigError, CorruptArtifactError, UntrustedFileError
from rldistill.evaluate.play import play
from rldistill.teachers.load import load_policy
from rldistill.teachers.sb3 import load_sb3, to_native
from rldistill.teachers.train import TrainConfig, train_teacher

REAL = Path(__file__).parents[3] / "shared" / "teachers" / "sb3"


class Pictures(gymnasium.Env[np.ndarray, int]):
    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = spaces.Discrete(3)


CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    (DQN, "CartPole-v1", {}),
    (QRDQN, "CartPole-v1", {}),
    (PPO, "CartPole-v1", {}),
    (A2C, "CartPole-v1", {"policy_kwargs": {"net_arch": [8], "activation_fn": torch.nn.ReLU}}),
    (PPO, "Pendulum-v1", {}),
    (SAC, "Pendulum-v1", {"buffer_size": 100}),
    (TD3, "Pendulum-v1", {"buffer_size": 100}),
    (TQC, "Pendulum-v1", {"buffer_size": 100}),
    (DQN, Pictures, {"buffer_size": 10}),
    (PPO, Pictures, {}),
]


@pytest.mark.parametrize(("algorithm", "env", "settings"), CASES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("saved", [False, True], ids=["live", "saved"])
def test_actions_are_sb3s_own(algorithm: Any, env: Any, settings: dict[str, Any], saved: bool, tmp_path: Path) -> None:
    pixels = env is Pictures
    model = algorithm("CnnPolicy" if pixels else "MlpPolicy", Pictures() if pixels else env, seed=0, **settings)
    if saved:
        model.save(tmp_path / "model.zip")
        policy = load_sb3(tmp_path / "model.zip")
    else:
        policy = to_native(model)
    obs = np.stack([model.observation_space.sample() for _ in range(50 if pixels else 1_000)])
    with torch.no_grad():
        output, _ = policy(torch.from_numpy(obs))
    expected, _ = model.predict(obs, deterministic=True)
    if output.head.discrete:
        assert (output.mode().numpy() == expected).mean() > 0.999  # ties are broken by rounding
    else:
        np.testing.assert_allclose(output.mode().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pixels", [False, True])
def test_q_values_are_sb3s_own(pixels: bool) -> None:
    model = DQN("CnnPolicy" if pixels else "MlpPolicy", Pictures() if pixels else "CartPole-v1", buffer_size=10)
    obs = np.stack([model.observation_space.sample() for _ in range(50)])
    with torch.no_grad():
        expected = model.q_net(torch.from_numpy(obs))
        output, _ = to_native(model)(torch.from_numpy(obs))
    torch.testing.assert_close(output.params, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "env", "least"),
    [
        ("dqn/CartPole-v1_1/CartPole-v1", "CartPole-v1", 500),
        ("ppo/LunarLander-v2_1/LunarLander-v2", "LunarLander-v3", 220),
    ],
)
def test_published_agents_play_as_published(path: str, env: str, least: float) -> None:
    file = REAL / f"{path}.zip"
    if not file.exists():
        pytest.skip("shared/teachers is not beside this checkout")
    assert play(EnvConfig(env), load_policy(file), 20).returns.mean() >= least


def test_a_normaliser_is_not_ignored(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "agent.zip")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "vecnormalize.pkl").write_bytes(b"")
    with pytest.raises(UntrustedFileError, match="normalis"):
        load_policy(tmp_path / "agent.zip")


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_a_pickle_in_the_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1")
    model.save(tmp_path / "good.zip")
    weights = io.BytesIO()
    torch.save({"action_net.weight": Evil()}, weights)
    with zipfile.ZipFile(tmp_path / "good.zip") as good, zipfile.ZipFile(tmp_path / "evil.zip", "w") as evil:
        evil.writestr("data", good.read("data"))
        evil.writestr("policy.pth", weights.getvalue())
    with pytest.raises(UntrustedFileError, match="more than tensors"):
        load_policy(tmp_path / "evil.zip")


def test_cloudpickled_fields_are_never_read(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "good.zip") as good, zipfile.ZipFile(tmp_path / "odd.zip", "w") as odd:
        data = json.loads(good.read("data"))
        for field in data.values():
            if isinstance(field, dict) and ":serialized:" in field:
                field[":serialized:"] = "not even base64"
        odd.writestr("data", json.dumps(data))
        odd.writestr("policy.pth", good.read("policy.pth"))
    assert load_policy(tmp_path / "odd.zip").spec.head.nvec == (2,)


@pytest.mark.parametrize("kept", [0, 100, 5_000])
def test_a_truncated_zip_is_named(tmp_path: Path, kept: int) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    path = tmp_path / "model.zip"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptArtifactError, match=r"model\.zip"):
        load_policy(path)


def test_files_that_run_code_are_refused(tmp_path: Path) -> None:
    for name in ("policy.pt", "policy.pt2", "model.pkl"):
        (tmp_path / name).write_bytes(b"anything")
        with pytest.raises(UntrustedFileError, match="can run code"):
            load_policy(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        load_policy(tmp_path / "nothing.zip")


@pytest.mark.parametrize("algorithm", ["PPO", "DoubleDQN"])
def test_a_teacher_is_trained_stopped_and_gone_on_with(tmp_path: Path, algorithm: str) -> None:
    env = EnvConfig("CartPole-v1")
    hyperparameters: dict[str, Any] = {"n_steps": 64} if algorithm == "PPO" else {"learning_starts": 100}
    asked = TrainConfig(algorithm, 1_024, 4, 512, 3, hyperparameters=hyperparameters)
    train_teacher(env, asked, tmp_path)
    more = TrainConfig(algorithm, 2_048, 4, 512, 3, hyperparameters=hyperparameters)
    policy = train_teacher(env, more, tmp_path, resume=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] >= 2_048
    assert policy.spec.head.kind == ("categorical" if algorithm == "PPO" else "q_values")


def test_a_dqn_goes_on_from_its_policy_and_curve_alone(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1")
    train_teacher(env, TrainConfig("DoubleDQN", 512, 4, 256, 2), tmp_path)
    before = load_policy(tmp_path).state_dict()
    (tmp_path / "checkpoints" / "last.zip").unlink()
    frozen = TrainConfig("DoubleDQN", 768, 4, 256, 2, hyperparameters={"learning_rate": 0.0})
    after = train_teacher(env, frozen, tmp_path, resume=True).state_dict()
    last = json.loads((tmp_path / "curve.jsonl").read_text().splitlines()[-1])
    assert last["step"] >= 768
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


def test_unknown_algorithms_and_settings_are_named(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1")
    with pytest.raises(ConfigError, match="Did you mean 'PPO'"):
        train_teacher(env, TrainConfig("PPOO"), tmp_path / "a")
    with pytest.raises(ConfigError, match="Did you mean 'n_steps'"):
        train_teacher(env, TrainConfig("PPO", hyperparameters={"nsteps": 3}), tmp_path / "b")
