"""Checkpoints of skrl, rsl_rl, rl_games and CleanRL with the statistics of their observations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rldistill.cli.options import parse_teacher
from rldistill.core.errors import ConfigError, UntrustedFileError
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.teachers.load import load_policy

SPEC = spec_from_env(EnvConfig("Pendulum-v1"))
MEAN, VAR = torch.tensor([0.5, -0.2, 1.0]), torch.tensor([0.3, 0.6, 9.0])
OBS = 5 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))


def dense(*sizes: int, act: type[nn.Module] = nn.ELU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), act()]
    return nn.Sequential(*layers[:-1])


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def outside(epsilon: float, clip: float = np.inf) -> Callable[[Tensor], Tensor]:
    return lambda obs: ((obs - MEAN) / (VAR.sqrt() + epsilon)).clamp(-clip, clip)


def inside(epsilon: float, clip: float) -> Callable[[Tensor], Tensor]:
    return lambda obs: ((obs - MEAN) / (VAR + epsilon).sqrt()).clamp(-clip, clip)


def buffers(*names: str, rows: bool = False) -> dict[str, Tensor]:
    mean, var = (MEAN[None], VAR[None]) if rows else (MEAN, VAR)
    return dict(zip(names, (mean, var, torch.tensor(7)), strict=False))


NET, VALUE = dense(3, 8, 6, 1), dense(3, 5, 1)
CLEAN = dense(3, 8, 6, 1, act=nn.Tanh)
NOISE = torch.tensor([0.3])
SKRL = {
    "policy": {**prefixed("net.", NET[:-1].state_dict()), **prefixed("mean_layer.", NET[-1].state_dict()),
               "log_std_parameter": NOISE},
    "value": prefixed("net.", VALUE.state_dict()),
    "optimizer": torch.optim.Adam(NET.parameters()).state_dict(),
    "value_preprocessor": {"running_mean": torch.zeros(1), "running_variance": torch.ones(1)},
}  # fmt: skip
SKRL_SCALER = {"running_mean": MEAN.double(), "running_variance": VAR.double(), "current_count": torch.tensor(1.0)}
RSL = {**prefixed("actor.", NET.state_dict()), **prefixed("critic.", VALUE.state_dict())}
EMPIRICAL = {"_mean": MEAN[None], "_var": VAR[None], "_std": VAR.sqrt()[None], "count": torch.tensor(9)}
OTHER = {"_mean": torch.zeros(1, 3), "_var": torch.ones(1, 3)}
CLEANRL = {**prefixed("actor_mean.", CLEAN.state_dict()), **prefixed("critic.", VALUE.state_dict())}
CLEANRL["actor_logstd"] = NOISE[None]
RL_GAMES = {
    **prefixed("a2c_network.actor_mlp.", NET[:-1].state_dict()), **prefixed("a2c_network.mu.", NET[-1].state_dict()),
    "a2c_network.sigma": NOISE, **prefixed("a2c_network.value.", VALUE[-1].state_dict()),
    "running_mean_std.running_mean": MEAN, "running_mean_std.running_var": VAR,
    "value_mean_std.running_mean": torch.zeros(1), "value_mean_std.running_var": torch.ones(1),
}  # fmt: skip
CASES: dict[str, tuple[Any, nn.Module, Callable[[Tensor], Tensor]]] = {
    "skrl": (SKRL | {"state_preprocessor": SKRL_SCALER}, NET, outside(1e-8, 5)),
    "skrl 2": (SKRL | {"observation_preprocessor": SKRL_SCALER}, NET, outside(1e-8, 5)),
    "skrl without a preprocessor": (SKRL | {"state_preprocessor": None}, NET, lambda obs: obs),
    "rsl_rl 2": (
        {
            "model_state_dict": {**RSL, "std": NOISE.exp()},
            "obs_norm_state_dict": EMPIRICAL,
            "privileged_obs_norm_state_dict": OTHER,
            "iter": 100,
            "infos": None,
        },
        NET,
        outside(1e-2),
    ),
    "rsl_rl 3": (
        {
            "model_state_dict": {
                **RSL,
                "log_std": NOISE,
                **prefixed("actor_obs_normalizer.", EMPIRICAL),
                **prefixed("critic_obs_normalizer.", OTHER),
            },
            "iter": 1,
        },
        NET,
        outside(1e-2),
    ),
    "rsl_rl 4": (
        {
            "actor_state_dict": {
                **prefixed("mlp.", NET.state_dict()),
                "distribution.std_param": NOISE.exp(),
                **prefixed("obs_normalizer.", EMPIRICAL),
            },
            "critic_state_dict": {**prefixed("mlp.", VALUE.state_dict()), **prefixed("obs_normalizer.", OTHER)},
        },
        NET,
        outside(1e-2),
    ),
    "rl_games": ({"model": RL_GAMES, "epoch": 3, "last_mean_rewards": -3.0}, NET, inside(1e-5, 5)),
    "cleanrl": (
        {"model_weights": CLEANRL, "obs_rms": {"mean": MEAN.double().numpy(), "var": VAR.numpy(), "count": 1e-4}},
        CLEAN,
        inside(1e-8, 10),
    ),
    "cleanrl lists": (
        {"model_weights": CLEANRL, "obs_rms": {"mean": MEAN.tolist(), "var": VAR.tolist(), "count": np.float64(3)}},
        CLEAN,
        inside(1e-8, 10),
    ),
    "cleanrl flat": ({"agent": CLEANRL, "obs_mean": 1}, CLEAN, lambda obs: obs),
    "cleanrl weights and statistics alike": (CLEANRL | buffers("obs_rms.mean", "obs_rms.var"), CLEAN, inside(1e-8, 10)),
    "cleanrl rows": (
        {"state_dict": CLEANRL, "rms": buffers("running_mean", "running_var", rows=True)},
        CLEAN,
        inside(1e-8, 10),
    ),
}


@pytest.mark.filterwarnings("ignore:.*(activation is read|ppo_continuous_action observes)")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_actions_equal_those_of_the_network_with_its_statistics(case: str, prefix: str, tmp_path: Path) -> None:
    checkpoint, network, normalized = CASES[case]
    torch.save(_with_prefix(checkpoint, prefix), tmp_path / "agent.pt")
    policy = load_policy(tmp_path / "agent.pt", spec=SPEC)
    assert policy.spec.head.kind == "gaussian"
    with torch.no_grad():
        mean, log_std = policy(OBS)[0].params.chunk(2, -1)
        torch.testing.assert_close(mean, network(normalized(OBS)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_std, NOISE.expand_as(log_std))


def _with_prefix(value: Any, prefix: str) -> Any:
    if not isinstance(value, dict):
        return value
    network = any(key.endswith("weight") for key in map(str, value))
    return {f"{prefix}{key}" if network else key: _with_prefix(item, prefix) for key, item in value.items()}


@pytest.mark.filterwarnings("ignore:.*activation is read")
@pytest.mark.parametrize("name", ["mean_layer", "policy_layer", "action_layer"])
def test_layers_in_safetensors_are_in_their_order(name: str, tmp_path: Path) -> None:
    net = dense(3, *[5] * 11, 1)
    weights = {**prefixed("net.", net[:-1].state_dict()), **prefixed(f"{name}.", net[-1].state_dict())}
    save_file({**weights, "log_std_parameter": NOISE}, tmp_path / "agent.safetensors")
    policy = load_policy(tmp_path / "agent.safetensors", spec=SPEC)
    torch.testing.assert_close(policy(OBS)[0].params[:, :1], net(OBS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [4, 7])
def test_memory_of_rsl_rl_is_read(hidden: int, tmp_path: Path) -> None:
    lstm, net = nn.LSTM(3, hidden), dense(hidden, 5, 1)
    weights = {**prefixed("memory_a.rnn.", lstm.state_dict()), **prefixed("actor.", net.state_dict()), "std": NOISE}
    weights |= prefixed("memory_critic.rnn.", nn.LSTM(3, 2).state_dict())
    torch.save({"model_state_dict": weights}, tmp_path / "agent.pt")
    policy = load_policy(tmp_path / "agent.pt", spec=SPEC, activation="elu")
    state, theirs = policy.initial_state(4), None
    for _ in range(5):
        obs = torch.randn(4, 3)
        with torch.no_grad():
            output, state = policy(obs, state)
            features, theirs = lstm(obs[None], theirs)
            torch.testing.assert_close(output.mode(), net(features[0]).clamp(-2, 2), rtol=1e-5, atol=1e-5)


def test_statistics_are_options_where_the_file_has_none(tmp_path: Path) -> None:
    torch.save(CLEANRL, tmp_path / "agent.pt")
    with pytest.warns(UserWarning, match=r"agent\.pt: ppo_continuous_action observes .*Set obs_mean and obs_variance"):
        load_policy(tmp_path / "agent.pt", spec=SPEC)
    text = f"{tmp_path}/agent.pt,obs_mean={MEAN.tolist()},obs_variance={VAR.tolist()}"
    policy = parse_teacher(text).load(SPEC)
    with torch.no_grad():
        mean = policy(OBS)[0].params[:, :1]
        torch.testing.assert_close(mean, CLEAN(inside(1e-8, 10)(OBS)), rtol=1e-5, atol=1e-5)
    with pytest.raises(UntrustedFileError, match=r"2 means and 3 variances, expected 3"):
        load_policy(tmp_path / "agent.pt", spec=SPEC, obs_mean=[0, 1], obs_variance=VAR.tolist())


def test_activation_that_no_file_holds_is_named(tmp_path: Path) -> None:
    torch.save(SKRL, tmp_path / "agent.pt")
    with pytest.warns(UserWarning, match=r"agent\.pt: its activation is read as elu\. Set activation"):
        load_policy(tmp_path / "agent.pt", spec=SPEC)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"obs_norm": {"loc": MEAN, "scale": VAR}}, r"holds obs_norm\.loc, which may be a statistic.*Set obs_mean"),
        ({"obs_rms": {"mean": MEAN[:2], "var": VAR[:2]}}, "2 means and 2 variances, expected 3"),
        ({"obs_rms": {"mean": MEAN, "var": -VAR}}, "statistics of observations"),
        ({"a_rms": {"mean": MEAN, "var": VAR}, "b_rms": {"mean": MEAN, "var": VAR}}, r"statistics of a_rms\., b_rms\."),
        ({"obs_rms": {"mean": np.array([1, None, 2]), "var": VAR}}, "holds more than tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(activation is read)")
def test_statistics_are_never_dropped(extra: Any, words: str, tmp_path: Path) -> None:
    torch.save({"model_weights": CLEANRL, **extra}, tmp_path / "agent.pt")
    with pytest.raises(UntrustedFileError, match=rf"agent\.pt: .*{words}"):
        load_policy(tmp_path / "agent.pt", spec=SPEC)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (prefixed("net.", nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)).state_dict()), "no dense"),
        (prefixed("net.", nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).state_dict()), "found"),
        (prefixed("rnn.", nn.GRU(3, 4).state_dict()) | prefixed("net.", nn.Linear(4, 1).state_dict()), "no LSTM"),
        (prefixed("net.", nn.Linear(5, 1).state_dict()), "takes 5 numbers, and before it are 3"),
    ],
)
def test_network_that_is_no_chain_is_refused(weights: Any, words: str, tmp_path: Path) -> None:
    torch.save({"policy": {**weights, "log_std_parameter": NOISE}}, tmp_path / "agent.pt")
    with pytest.raises(UntrustedFileError, match=rf"agent\.pt: .*{words}"):
        load_policy(tmp_path / "agent.pt", spec=SPEC)


def test_containers_within_each_other_are_refused(tmp_path: Path) -> None:
    value: Any = {"a": torch.zeros(2)}
    for _ in range(30):
        value = {"x": value, "y": value}
    torch.save(value, tmp_path / "agent.pt")
    with pytest.raises(UntrustedFileError, match="too many parts"):
        load_policy(tmp_path / "agent.pt", spec=SPEC)


def test_weights_of_a_compiled_network_fit_a_factory(tmp_path: Path) -> None:
    torch.save(prefixed("_orig_mod.", NET.state_dict()), tmp_path / "net.pt")
    policy = load_policy(f"{__name__}:network@{tmp_path / 'net.pt'}", spec=SPEC)
    torch.testing.assert_close(policy(OBS)[0].params, NET(OBS))
    with pytest.raises(ConfigError, match=r"net\.pt does not fit the network"):
        load_policy(f"{__name__}:other@{tmp_path / 'net.pt'}", spec=SPEC)
    torch.save({"policy": NET.state_dict(), "state_preprocessor": SKRL_SCALER}, tmp_path / "all.pt")
    with pytest.raises(UntrustedFileError, match=r"'policy' in it.*observations with 'state_preprocessor' in the fact"):
        load_policy(f"{__name__}:network@{tmp_path / 'all.pt'}", spec=SPEC)


def network() -> nn.Module:
    return dense(3, 8, 6, 1)


def other() -> nn.Module:
    return dense(3, 8, 1)
