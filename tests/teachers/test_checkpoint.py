"""The networks of CleanRL's scripts, written down as they are there, and their state dicts read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, CorruptArtifactError, UntrustedFileError
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.envs.spaces import spec_from_env
from rldistill.teachers.load import load_policy


class Dqn(nn.Module):
    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(obs, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, actions)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def nature(*last: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), *last,
    )  # fmt: skip


class DqnAtari(nn.Module):
    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.network = nature(nn.Linear(512, actions))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x / 255.0)


class Ppo(nn.Module):
    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.critic = self.dense(obs, 1)
        self.actor = self.dense(obs, actions)

    def dense(self, obs: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(obs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(x)

    def value(self, x: Tensor) -> Tensor:
        return self.critic(x)


class PpoContinuous(Ppo):
    def __init__(self, obs: int, actions: int) -> None:
        super().__init__(obs, actions)
        self.actor_mean = self.actor
        del self.actor
        self.actor_logstd = nn.Parameter(torch.randn(1, actions))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.actor_mean(x)
        return torch.cat([mean, self.actor_logstd.expand_as(mean)], -1)


class PpoAtari(nn.Module):
    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.network = nature()
        self.actor, self.critic = nn.Linear(512, actions), nn.Linear(512, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(self.network(x / 255.0))

    def value(self, x: Tensor) -> Tensor:
        return self.critic(self.network(x / 255.0))


class Ddpg(nn.Module):
    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc_mu = nn.Linear(obs, 256), nn.Linear(256, 256), nn.Linear(256, actions)
        self.register_buffer("action_scale", torch.full((actions,), 2.0))
        self.register_buffer("action_bias", torch.zeros(actions))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.fc_mu(self.fc2(self.fc1(x).relu()).relu())
        return torch.cat([mean, torch.full_like(mean, -20)], -1)


CASES: list[tuple[Any, str, int, str]] = [
    (Dqn, "CartPole-v1", 2, "q_values"),
    (DqnAtari, "ALE/Pong-v5", 6, "q_values"),
    (Ppo, "CartPole-v1", 2, "categorical"),
    (PpoContinuous, "Pendulum-v1", 1, "gaussian"),
    (PpoAtari, "ALE/Pong-v5", 6, "categorical"),
    (Ddpg, "Pendulum-v1", 1, "squashed_gaussian"),
]


@pytest.mark.filterwarnings("ignore:.*ppo_continuous_action observes")
@pytest.mark.parametrize("suffix", ["cleanrl_model", "safetensors"])
@pytest.mark.parametrize(("network", "env", "actions", "kind"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_checkpoint_equals_its_network(
    network: Any, env: str, actions: int, kind: str, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    spec = spec_from_env(EnvConfig(env))
    theirs = network(*spec.obs_shape[:1], actions)
    path = tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_file(theirs.state_dict(), path)
    else:
        torch.save(theirs.state_dict(), path)
    policy = load_policy(path, spec=spec)
    assert policy.spec.head.kind == kind
    pixels = spec.obs_dtype == "uint8"
    obs = (
        torch.randint(0, 256, (20, *spec.obs_shape), dtype=torch.uint8)
        if pixels
        else torch.randn(1_000, *spec.obs_shape)
    )
    with torch.no_grad():
        for rows in (obs, obs[:1]):
            output, _ = policy(rows)
            torch.testing.assert_close(output.params, theirs(rows.float()), rtol=1e-5, atol=1e-5)
            if output.value is not None:
                torch.testing.assert_close(output.value, theirs.value(rows.float())[:, 0], rtol=1e-5, atol=1e-5)


def test_activation_replaces_that_of_the_script(tmp_path: Path) -> None:
    theirs = Ppo(4, 2)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    for layers in (theirs.actor, theirs.critic):
        layers[1] = layers[3] = nn.ReLU()
    policy = load_policy(tmp_path / "model.pt", spec=CARTPOLE, activation="relu", head="categorical")
    obs = torch.randn(20, 4)
    output, _ = policy(obs)
    assert output.value is not None
    torch.testing.assert_close(output.params, theirs(obs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.value, theirs.value(obs)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        (Ppo, {"head": "q_values"}, r".*model\.pt has a categorical head, found q_values. Remove"),
        (
            Ppo,
            {"scale": 0.5},
            r".*model\.pt is a state dict, which scales its input itself. Remove",
        ),
        (Ppo, {"output": "q"}, r".*model\.pt is a state dict, which has one output. Remove"),
        (Ppo, {"activation": "rellu"}, r"there is no activation 'rellu'\. Did you mean"),
        (
            PpoAtari,
            {"activation": "tanh"},
            r".*model\.pt has no dense layer with another activation. Remove the option.$",
        ),
    ],
)
def test_option_that_does_not_apply_is_refused(network: Any, options: Any, words: str, tmp_path: Path) -> None:
    spec = spec_from_env(EnvConfig("ALE/Pong-v5" if network is PpoAtari else "CartPole-v1"))
    torch.save(network(4, *spec.head.nvec).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=rf"^teacher.{next(iter(options))}: {words}"):
        load_policy(tmp_path / "model.pt", spec=spec, **options)


CARTPOLE = PolicySpec((4,), "float32", dataclasses.replace(spec_from_env(EnvConfig("CartPole-v1")).head))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": torch.zeros(2)}, "not the tensors of.*Load it with a function.*module:factory@"),
        (Dqn(4, 3).state_dict(), "does not fit the environment: a tensor of shape"),
        (Dqn(5, 2).state_dict(), "does not fit the environment: a tensor of shape"),
        (
            PpoContinuous(4, 2).state_dict(),
            "a network for gaussian actions, but",
        ),
        (DqnAtari(4, 2).state_dict(), "no image|too small|not the tensors|does not fit"),
        ({"network.0.weight": torch.zeros(3, 4)}, "a tensor of shape"),
    ],
)
def test_tensors_of_another_network_are_refused(tensors: Any, words: str, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(UntrustedFileError, match=rf"model\.pt.*({words})"):
        load_policy(tmp_path / "model.pt", spec=CARTPOLE)


def test_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(Dqn(4, 2).state_dict(), path)
    with pytest.raises(ConfigError, match="Pass the spec of the environment"):
        load_policy(path)
    weights = {**Dqn(4, 2).state_dict(), "network.0.bias": torch.full((120,), np.nan)}
    torch.save(weights, path)
    with pytest.raises(CorruptArtifactError, match="NaN"):
        load_policy(path, spec=CARTPOLE)
    path.write_bytes(path.read_bytes()[:1_000])
    with pytest.raises(CorruptArtifactError, match=r"model\.pth"):
        load_policy(path, spec=CARTPOLE)
