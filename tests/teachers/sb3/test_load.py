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
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import FlattenExtractor

from rldistill.core.errors import ConfigError, CorruptArtifactError, UntrustedFileError
from rldistill.core.spec import EnvConfig
from rldistill.evaluation.episodes import play
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import save_policy
from rldistill.teachers.load import load_policy
from rldistill.teachers.sb3.load import MAX_DATA_BYTES, to_native

REAL = Path(__file__).parents[4] / "shared" / "teachers" / "sb3"


class Odd(torch.nn.ReLU):
    pass


class Mine(FlattenExtractor):
    pass


class Pictures(gymnasium.Env[np.ndarray, int]):
    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = spaces.Discrete(3)


class Sighted(gymnasium.Env[dict[str, np.ndarray], int]):
    observation_space = spaces.Dict(
        {"eye": spaces.Box(0, 255, (3, 40, 44), np.uint8), "bytes": spaces.Box(0, 9, (2, 3, 4), np.uint8)}
    )
    action_space = spaces.Discrete(3)


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
def test_truncated_zip_is_refused(tmp_path: Path, kept: int) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    path = tmp_path / "model.zip"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptArtifactError, match=r"model\.zip.*\(.+\); copy or download it again"):
        load_policy(path)


def test_a_zip_cut_off_behind_its_weights_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    PPO("MlpPolicy", "CartPole-v1").save(path)
    with zipfile.ZipFile(path) as archive:
        weights = archive.getinfo("policy.pth")
    # 30 bytes of header, the name, and all of an archive of its own, whose end passes for that of the whole.
    end = weights.header_offset + 30 + len("policy.pth") + weights.compress_size
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(CorruptArtifactError, match=r"model\.zip: not a whole SB3 zip: its end is missing"):
        load_policy(path)


@pytest.mark.parametrize("compiled", ["", "_orig_mod.", "module.", "mlp_extractor._orig_mod."])
def test_prefixes_of_compiled_networks_are_removed(compiled: str, tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1")
    model.save(tmp_path / "model.zip")
    inner = compiled.removesuffix("_orig_mod.") if compiled.startswith("mlp") else ""
    weights = {
        f"{compiled}{name.removeprefix(inner)}" if name.startswith(inner) else name: value
        for name, value in model.policy.state_dict().items()
    }
    obs = torch.randn(9, 4)
    expected = load_policy(tmp_path / "model.zip")(obs)[0].params
    assert torch.equal(load_policy(rewrite(tmp_path / "model.zip", weights=weights))(obs)[0].params, expected)


def test_unsupported_algorithm_is_refused(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    policy_class = {"__module__": "sb3_contrib.dreamer.policies"}
    with pytest.raises(UntrustedFileError, match=r"the algorithm 'dreamer' is not supported\. Use DQN"):
        load_policy(rewrite(tmp_path / "model.zip", {"policy_class": policy_class}))


def test_files_that_run_code_are_refused(tmp_path: Path) -> None:
    for name in ("policy.pt2", "model.pkl"):
        (tmp_path / name).write_bytes(b"anything")
        with pytest.raises(UntrustedFileError, match="can run code"):
            load_policy(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        load_policy(tmp_path / "nothing.zip")


def test_images_in_a_dict_are_read_from_the_text_of_old_gyms(tmp_path: Path) -> None:
    model = PPO("MultiInputPolicy", Sighted())
    model.save(tmp_path / "model.zip")
    # gym 0.19 to 0.21 print the arrays of the bounds
    entries = Sighted.observation_space.spaces.items()
    text = ", ".join(f"('{key}', Box({box.low}, {box.high}, {box.shape}, {box.dtype}))" for key, box in entries)
    fields = {":type:": "<class 'gym.spaces.dict.Dict'>", "spaces": f"OrderedDict([{text}])"}
    obs = {key: torch.from_numpy(box.sample())[None] for key, box in entries}
    with torch.no_grad():
        expected = model.policy.get_distribution(obs).distribution.logits
        said = load_policy(rewrite(tmp_path / "model.zip", {"observation_space": fields}))(obs)[0]
    torch.testing.assert_close(said.params.log_softmax(-1), expected, rtol=1e-5, atol=1e-5)


def rewrite(path: Path, data: dict[str, Any] | None = None, weights: Any = None) -> Path:
    """The SB3 zip at `path` with fields of its JSON, or its tensors, replaced."""
    with zipfile.ZipFile(path) as archive:
        document, pth = json.loads(archive.read("data")), archive.read("policy.pth")
    document.update(data or {})
    if weights is not None:
        packed = io.BytesIO()
        torch.save(weights, packed)
        pth = packed.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(document))
        archive.writestr("policy.pth", pth)
    return path


MANY_BOXES = ", ".join(f"'{key}': Box(0.0, 1.0, (4194304,), float32)" for key in range(1_000))
BOX, DISCRETE = "<class 'gym.spaces.box.Box'>", "<class 'gym.spaces.discrete.Discrete'>"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"policy_class": {"__module__": "my.policies"}}, "set activation"),
        ({"policy_class": {"__module__": "__main__"}}, "__main__"),
        ({"policy_class": "PPO"}, "not in the format of SB3's save"),
        ({"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.Threshold'>"}}, "Threshold"),
        (
            {"policy_kwargs": {"features_extractor_class": "<class '__main__.Mine'>"}},
            "features extractor '.*Mine'",
        ),
        ({"policy_kwargs": {"activation_fn": "<class 'mylib.Tanh'>"}}, "activation 'mylib.Tanh'"),
        ({"policy_kwargs": {"features_extractor_class": "<class 'mylib.FlattenExtractor'>"}}, "mylib.FlattenExtractor"),
        ({"observation_space": {":type:": "<class 'gym.spaces.dict.Dict'>"}}, "not in the format of SB3's save"),
        ({"observation_space": {":type:": "<class 'gym.spaces.dict.Dict'>", "spaces": "{}"}}, "has no entries"),
        ({"observation_space": {":type:": "<class 'gym.spaces.text.Text'>"}}, "type 'Text'"),
        ({"action_space": {":type:": "one of two\nlines"}}, "type 'one of two"),
        ({"observation_space": {":type:": "gym.Dict'>", "spaces": MANY_BOXES}}, "more than 8,388,608 values"),
        (
            {"observation_space": {":type:": "gym.Dict'>", "spaces": "{'a': MultiDiscrete([2 3], start=[1 1])}"}},
            "start '\\[1 1\\]'",
        ),
        ({"observation_space": {":type:": BOX, "shape": "[5]", "dtype": "float32"}}, "a tensor of"),
        ({"observation_space": {":type:": BOX, "shape": "[99999999999]", "dtype": "float32"}}, "a Box of shape"),
        ({"observation_space": {":type:": BOX, "shape": "[4]", "dtype": "(9,)f8"}}, "dtype"),
        ({"observation_space": {":type:": BOX, "shape": "[4]", "dtype": "uint8", "low": "[0 0"}}, "abbreviates"),
        ({"observation_space": {":type:": BOX, "shape": "[4]"}}, "not in the format of SB3's save"),
        ({"action_space": {":type:": DISCRETE, "n": "3"}}, "a tensor of"),
        ({"action_space": {":type:": DISCRETE, "n": "2", "start": "1"}}, "start '1'"),
        ({"action_space": {":type:": DISCRETE, "n": "9" * 30}}, "not in the format of SB3's save"),
        ({"action_space": {":type:": DISCRETE, "n": "0"}}, "not in the format of SB3's save"),
        ({"action_space": {":type:": "<class 'gym.spaces.multi_binary.MultiBinary'>", "n": "3"}}, "a tensor of"),
        (
            {"action_space": {":type:": BOX, "shape": "[2]", "low": "[-1. ...]", "high": "[1. ...]"}},
            "not in the format|abbreviates",
        ),
        ({"action_space": []}, "not in the format of SB3's save"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_policy_is_refused(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    with pytest.raises(UntrustedFileError, match=rf"model\.zip.*({words})") as error:
        load_policy(rewrite(tmp_path / "model.zip", data))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "q_values"}, "is a Stable-Baselines3 zip, which already holds the kind of its head"),
        ({"scale": 0.5}, "is a Stable-Baselines3 zip, which scales its input itself"),
        ({"output": "q"}, "is a Stable-Baselines3 zip, which has one output"),
        ({"activation": "relu"}, "has the activation tanh"),
        ({"extractor": "my:Extractor"}, "has a features extractor of SB3"),
    ],
)
def test_option_that_a_zip_determines_is_refused(options: Any, words: str, tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    with pytest.raises(
        ConfigError, match=rf"^teacher.{next(iter(options))}: .*model\.zip {words}. Remove the option.$"
    ):
        load_policy(tmp_path / "model.zip", **options)
    load_policy(tmp_path / "model.zip", activation="tanh", scale=1.0)


def test_activation_of_an_unknown_policy_class_is_an_option(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    mine = {"policy_class": {"__module__": "my.policies"}}
    policy = load_policy(rewrite(tmp_path / "model.zip", mine), activation="relu")
    assert policy.config.activation == "relu"  # type: ignore[attr-defined]
    tells = mine | {"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.ELU'>"}}
    with pytest.raises(
        ConfigError, match=r"^teacher.activation: .*model\.zip has the activation elu. Remove the option.$"
    ):
        load_policy(rewrite(tmp_path / "model.zip", tells), activation="relu")


@pytest.mark.parametrize(
    "options", [{"head": "q_values"}, {"scale": 0.5}, {"output": "q"}, {"activation": "relu"}, {"extractor": "a:B"}]
)
def test_options_of_a_native_policy_are_refused(options: Any, teacher: NetworkPolicy, tmp_path: Path) -> None:
    save_policy(teacher, tmp_path, {})
    for path, what in (("zoo:pong-dqn", "a teacher of the zoo"), (tmp_path, "a folder of rldistill")):
        name = next(iter(options))
        with pytest.raises(ConfigError, match=rf"^teacher.{name}: {path} is {what}, which .*. Remove the option.$"):
            load_policy(path, **options)


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ([1, 2], UntrustedFileError, "is no state dict"),
        ({"action_net.weight": 3}, UntrustedFileError, "more than tensors"),
        ({"action_net.weight": torch.zeros(1).expand(1 << 30)}, UntrustedFileError, "usual size"),
        ({"action_net.weight": torch.eye(2).to_sparse()}, UntrustedFileError, "plain tensor"),
        ({"action_net.weight": torch.full((2, 64), torch.nan)}, CorruptArtifactError, "NaN"),
        ({"action_net.weight": torch.zeros(2, 64)}, UntrustedFileError, "a tensor of"),
        ({"other": torch.zeros(2)}, UntrustedFileError, "tensors of an unknown policy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_no_policy_are_refused(tmp_path: Path, weights: Any, error: type, words: str) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    with pytest.raises(error, match=words):
        load_policy(rewrite(tmp_path / "model.zip", weights=weights))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", b" " * (MAX_DATA_BYTES + 1))
        archive.writestr("policy.pth", b"")
    with pytest.raises(UntrustedFileError, match="data unpacks to"):
        load_policy(path)


def test_a_flipped_byte_never_gives_a_traceback(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}).save(tmp_path / "model.zip")
    good = (tmp_path / "model.zip").read_bytes()
    whole = load_policy(tmp_path / "model.zip").state_dict()
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.integers(0, len(good), 60):
        (tmp_path / "model.zip").write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            loaded = load_policy(tmp_path / "model.zip").state_dict()
        except (UntrustedFileError, CorruptArtifactError):
            refused += 1
        else:  # the byte was one of a part that is not read
            assert all(torch.equal(loaded[name], value) for name, value in whole.items())
    assert refused > 0


@pytest.mark.parametrize(
    ("algorithm", "env", "settings", "words"),
    [
        (PPO, "CartPole-v1", {"policy_kwargs": {"activation_fn": torch.nn.Tanhshrink}}, None),
        (PPO, "CartPole-v1", {"policy_kwargs": {"activation_fn": Odd}}, "activation '.*Odd'"),
        (
            PPO,
            "CartPole-v1",
            {"policy_kwargs": {"features_extractor_class": Mine}},
            "features extractor '.*Mine'",
        ),
    ],
    ids=["Tanhshrink", "Odd", "Mine"],
)
def test_live_networks_that_cannot_be_rebuilt_are_refused(
    algorithm: Any, env: Any, settings: dict[str, Any], words: str | None
) -> None:
    model = algorithm(
        "CnnPolicy" if env is Pictures else "MlpPolicy", env if isinstance(env, str) else env(), **settings
    )
    if words is None:
        assert to_native(model).config.activation == "tanhshrink"
        return
    with pytest.raises(ConfigError, match=words):
        to_native(model)


@pytest.mark.parametrize("beside", ["agent/vecnormalize.pkl", "vecnormalize.pkl", "vec_normalize.pkl"])
def test_normalizer_is_not_ignored(tmp_path: Path, beside: str) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "agent.zip")
    (tmp_path / "agent").mkdir()
    (tmp_path / beside).write_bytes(b"")
    with pytest.raises(CorruptArtifactError, match="VecNormalize"):
        load_policy(tmp_path / "agent.zip")


def test_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.json"):
        load_policy(tmp_path)
