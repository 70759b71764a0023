"""SB3 policies with a features extractor or an activation of the user's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, CorruptArtifactError, UntrustedFileError
from rldistill.policies.layers import ACTIVATIONS
from rldistill.policies.network import NetworkPolicy
from rldistill.run.config import load_run
from rldistill.students.storage import save_policy, trust
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import SavedTeacher, load_policy
from rldistill.teachers.sb3.extractor import ExtractorPolicy

from .test_load import rewrite

BOX = spaces.Box(-1, 1, (3,))
PICTURE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "image": PICTURE})


class Space(gymnasium.Env[Any, Any]):
    """Environment with random observations of a space."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), float(np.mean(action)), False, False, {}


class Sine(nn.Module):
    """Activation of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class Swish(nn.Module):
    """Activation of the user's own with an argument."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.beta * x).sigmoid()


class Wide(BaseFeaturesExtractor):
    """Extractor of the user's own for observations of one array."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 7) -> None:
        super().__init__(observation_space, features_dim)
        size = int(np.prod(observation_space.shape))
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, features_dim), Sine())

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs)


class Normalized(BaseFeaturesExtractor):
    """Extractor of the user's own with integers among its buffers."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.limit = float(observation_space.high[0])  # as in the file, not infinite

    def forward(self, obs: Tensor) -> Tensor:
        return self.norm(obs)[:, self.order] * self.limit


class Joined(BaseFeaturesExtractor):
    """Extractor of the user's own for dict observations, whose width it finds with a sample."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, 9)
        self.cnn = nn.Sequential(nn.Conv2d(3, 2, 9, 9), nn.ELU(), nn.Flatten())
        with torch.no_grad():
            sample = torch.as_tensor(observation_space["image"].sample()[None]).float()
            width = self.cnn(sample).shape[1]
        self.linear = nn.Linear(width, 7)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return torch.cat([obs["a"], self.linear(self.cnn(obs["image"]))], 1)


class NoModule:
    """Class that is no network."""


TURN, PUSH = spaces.Discrete(3), spaces.Box(-2, 1, (2,))
SMALL = {"buffer_size": 200, "learning_starts": 16}
CASES: list[tuple[Any, Any, Any, type, dict[str, Any]]] = [
    (PPO, BOX, TURN, Wide, {"n_steps": 16, "batch_size": 16}),
    (PPO, PICTURE, PUSH, Wide, {"n_steps": 16, "batch_size": 16}),
    (PPO, DICT, PUSH, Joined, {"n_steps": 16, "batch_size": 16, "policy": "MultiInputPolicy"}),
    (A2C, BOX, PUSH, Wide, {"policy_kwargs": {"share_features_extractor": False}}),
    (RecurrentPPO, BOX, TURN, Wide, {"policy": "MlpLstmPolicy", "n_steps": 16}),
    (DQN, BOX, TURN, Wide, SMALL),
    (QRDQN, BOX, TURN, Wide, SMALL),
    (SAC, BOX, PUSH, Wide, SMALL),
    (PPO, BOX, PUSH, Normalized, {"n_steps": 16, "batch_size": 16}),
]


def _trained(algorithm: Any, observations: Any, actions: Any, extractor: type, settings: dict[str, Any]) -> Any:
    kwargs = {"features_extractor_class": extractor, **settings.get("policy_kwargs", {})}
    if extractor is Wide:
        kwargs["features_extractor_kwargs"] = {"features_dim": 5}
    settings = {"policy": "MlpPolicy", **settings, "policy_kwargs": kwargs}
    return algorithm(env=Space(observations, actions), seed=0, **settings).learn(32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__} {type(case[1]).__name__}")
def test_actions_with_an_own_extractor_equal_those_of_sb3(case: Any, tmp_path: Path) -> None:
    model = _trained(*case)
    model.save(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip", extractor=f"{__name__}:{case[3].__name__}")
    space = model.observation_space
    samples = [space.sample() for _ in range(32)]
    dicts = isinstance(space, spaces.Dict)
    obs = {key: np.stack([sample[key] for sample in samples]) for key in space} if dicts else np.stack(samples)
    expected, _ = model.predict(obs, deterministic=True)
    tensors = {key: torch.from_numpy(value) for key, value in obs.items()} if dicts else torch.from_numpy(obs)
    with torch.no_grad():
        action = policy(tensors)[0].mode().numpy()
    np.testing.assert_allclose(action, expected, rtol=1e-5, atol=1e-5)


def test_own_extractor_is_an_option_and_is_never_named_by_a_file(tmp_path: Path) -> None:
    _trained(*CASES[0]).save(tmp_path / "model.zip")
    with pytest.raises(UntrustedFileError, match=r"'.*Wide'; name your own with extractor: module:Class"):
        load_policy(tmp_path / "model.zip")
    reference = f"{__name__}:Wide"
    run = load_run(
        _written(tmp_path, f"env: {{id: CartPole-v1}}\nteacher: {{path: model.zip, extractor: '{reference}'}}\n"),
        environment={},
    )
    assert run.teacher.extractor == reference  # type: ignore[union-attr]
    policies = [SavedTeacher(str(tmp_path / "model.zip"), extractor=reference).load(None) for _ in range(2)]
    assert isinstance(policies[0], ExtractorPolicy)
    with pytest.raises(ConfigError, match=r"^teacher\.extractor: a policy with .*Wide cannot be saved.*\.$"):
        save_policy(policies[0], tmp_path / "saved", {})
    assert not (tmp_path / "saved").exists()
    assert fingerprint(policies[0]) == fingerprint(policies[1])


def test_fingerprint_includes_the_integers_of_an_extractor(tmp_path: Path) -> None:
    model = _trained(*CASES[-1])
    fingerprints = []
    for order in ([2, 0, 1], [0, 1, 2], [0, 1, 2]):
        model.policy.features_extractor.order[:] = torch.tensor(order)
        model.save(tmp_path / "model.zip")
        fingerprints.append(fingerprint(load_policy(tmp_path / "model.zip", extractor=f"{__name__}:Normalized")))
    assert fingerprints[0] != fingerprints[1] == fingerprints[2]


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        ("NoModule", r"^teacher\.extractor: .*NoModule is no subclass of torch\.nn\.Module\. Name one that is\.$"),
        ("Wyde", r"^teacher\.extractor: there is no 'Wyde' in .*Did you mean 'Wide'\?$"),
        ("Joined", r"^teacher: .*Joined failed: TypeError: .*features_dim"),
        ("Sine", r"^teacher: .*Sine failed: TypeError"),
    ],
)
def test_wrong_extractor_is_refused(extractor: str, message: str, tmp_path: Path) -> None:
    _trained(*CASES[0]).save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match=message):
        load_policy(tmp_path / "model.zip", extractor=f"{__name__}:{extractor}")


def test_huge_arguments_of_an_extractor_in_a_file_are_refused(tmp_path: Path) -> None:
    _trained(*CASES[0]).save(tmp_path / "model.zip")
    text = f"<class '{__name__}.Wide'>"
    for kwargs in ({"features_dim": 10**9}, {"features_dim": [[4] * 5_000]}, "dict"):
        document = {"policy_kwargs": {"features_extractor_class": text, "features_extractor_kwargs": kwargs}}
        with pytest.raises(UntrustedFileError, match="features_extractor_kwargs"):
            load_policy(rewrite(tmp_path / "model.zip", document), extractor=f"{__name__}:Wide")


def test_own_activation_equals_that_of_sb3(tmp_path: Path) -> None:
    settings = {"policy_kwargs": {"activation_fn": Sine, "net_arch": [8]}, "n_steps": 16, "batch_size": 16}
    model = PPO("MlpPolicy", Space(BOX, PUSH), seed=0, **settings).learn(32)  # type: ignore[arg-type]
    model.save(tmp_path / "model.zip")
    with pytest.raises(UntrustedFileError, match=r"activation '.*Sine'; name your own with activation: module:Class"):
        load_policy(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip", activation=f"{__name__}:Sine")
    obs = np.stack([BOX.sample() for _ in range(16)])
    with torch.no_grad():
        action = policy(torch.from_numpy(obs))[0].mode().numpy()
    np.testing.assert_allclose(action, model.predict(obs, deterministic=True)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"^teacher\.activation: .*NoModule is no subclass of torch\.nn\.Module"):
        load_policy(tmp_path / "model.zip", activation=f"{__name__}:NoModule")


@pytest.mark.parametrize("function", [Swish, partial(Swish, 3.0), partial(Swish, beta=0.2)])
def test_arguments_of_an_own_activation_are_those_of_the_file(function: Any, tmp_path: Path) -> None:
    model = PPO("MlpPolicy", Space(BOX, PUSH), policy_kwargs={"activation_fn": function, "net_arch": [8]})
    model.save(tmp_path / "model.zip")
    with pytest.raises(UntrustedFileError, match=r"Swish.*; name your own with activation: module:Class"):
        load_policy(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip", activation=f"{__name__}:Swish")
    obs = np.stack([BOX.sample() for _ in range(16)])
    with torch.no_grad():
        action = policy(torch.from_numpy(obs))[0].mode().numpy()
    np.testing.assert_allclose(action, model.predict(obs, deterministic=True)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "functools.partial(<class 'torch.nn.modules.activation.LeakyReLU'>, __import__('os').abort())",
        "functools.partial(<class 'torch.nn.modules.activation.LeakyReLU'>, 1e300)",
        "functools.partial(<class 'torch.nn.modules.activation.PReLU'>, num_parameters=10**12)",
        "functools.partial(<class 'torch.nn.modules.activation.RReLU'>, 'a')",
        "functools.partial(<class 'torch.nn.modules.activation.ReLU'>, 1, 2, 3)",
        "functools.partial(functools.partial(<class 'torch.nn.modules.activation.ReLU'>, 1))",
        "<function <lambda> at 0x7f0000000000>",
    ],
)
def test_arguments_that_are_no_numbers_are_refused(text: str, tmp_path: Path) -> None:
    PPO("MlpPolicy", Space(BOX, PUSH)).save(tmp_path / "model.zip")
    path = rewrite(tmp_path / "model.zip", {"policy_kwargs": {"activation_fn": text}})
    with pytest.raises(UntrustedFileError, match=r"model\.zip: "):
        load_policy(path)


def test_policy_with_an_own_activation_is_loaded_back_after_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PPO("MlpPolicy", Space(BOX, PUSH), policy_kwargs={"activation_fn": Sine}).save(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip", activation=f"{__name__}:Sine")
    assert isinstance(policy, NetworkPolicy)
    save_policy(policy, tmp_path / "saved", {})
    monkeypatch.delitem(ACTIVATIONS, f"{__name__}:Sine")  # as in another process
    with pytest.raises(CorruptArtifactError, match=rf"there is no activation '{__name__}:Sine'"):
        load_policy(tmp_path / "saved")
    trust(Sine)
    obs = torch.rand(4, 3)
    with torch.no_grad():
        assert torch.equal(load_policy(tmp_path / "saved")(obs)[0].params, policy(obs)[0].params)


def test_integers_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    model = _trained(*CASES[0])
    model.save(tmp_path / "model.zip")
    for name, error in (("pi_features_extractor.net.1.weight", ConfigError), ("action_net.bias", UntrustedFileError)):
        weights = {key: value.long() if key == name else value for key, value in model.policy.state_dict().items()}
        with pytest.raises(error, match=r"int64|integers for"):
            load_policy(rewrite(tmp_path / "model.zip", weights=weights), extractor=f"{__name__}:Wide")


def _written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path
