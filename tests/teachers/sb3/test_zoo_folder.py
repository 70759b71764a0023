"""What lies beside an agent: normalisers and settings, read as data."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rldistill.core.errors import CorruptArtifactError, SpecMismatchError, UntrustedFileError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.envs.spaces import adapt_env, spec_from_env
from rldistill.evaluation.episodes import play
from rldistill.evaluation.verify import fit_to_env, verify
from rldistill.teachers.load import load_policy
from rldistill.teachers.sb3.normalizer import read_normalizer
from rldistill.teachers.sb3.zoo_folder import read_zoo_folder

HUGE = "1" + 400 * "0"
PAIRS = "!!python/object/apply:collections.OrderedDict\n- - - {key}\n    - {value}\n"


def agent(folder: Path, env: str = "CartPole-v1", config: str = "", args: str = "") -> Path:
    """An agent as rl-baselines3-zoo leaves it."""
    PPO("MlpPolicy", env, seed=0).save(folder / "agent.zip")
    (folder / "agent").mkdir()
    (folder / "agent" / "config.yml").write_text(config or "{}")
    (folder / "agent" / "args.yml").write_text(args or "{}")
    return folder / "agent.zip"


class Dicts(gymnasium.Env[Any, Any]):
    observation_space = spaces.Dict(
        {"a": spaces.Box(-9, 9, (2,)), "b": spaces.Box(-9, 9, (3,)), "c": spaces.Discrete(3)}
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("env", "keys"), [("Pendulum-v1", None), (Dicts, ["a", "b"]), (Dicts, ["b"])], ids=["box", "dict", "one key"]
)
def test_normalized_observations_equal_those_of_sb3(tmp_path: Path, env: Any, keys: Any) -> None:
    vector = VecNormalize(
        DummyVecEnv([lambda: gymnasium.make(env) if isinstance(env, str) else env()]), norm_obs_keys=keys
    )
    vector.reset()
    for _ in range(50):
        vector.step(np.array([vector.action_space.sample()]))
    vector.clip_obs = 1.5  # so that clipping is seen
    model = PPO("MultiInputPolicy" if env is Dicts else "MlpPolicy", vector, seed=0)
    model.save(tmp_path / "agent.zip")
    vector.save(str(tmp_path / "vecnormalize.pkl"))
    policy = load_policy(tmp_path / "agent.zip")
    raw = [vector.observation_space.sample() for _ in range(200)]
    obs = {key: np.stack([o[key] for o in raw]) for key in raw[0]} if env is Dicts else np.stack(raw)
    tensors = {k: torch.from_numpy(v) for k, v in obs.items()} if isinstance(obs, dict) else torch.from_numpy(obs)
    expected, _ = model.predict(vector.normalize_obs(obs), deterministic=True)
    with torch.no_grad():
        acted = policy(tensors)[0].mode().numpy()
    if policy.spec.head.discrete:
        assert np.mean(acted == expected) > 0.99
    else:
        np.testing.assert_allclose(acted, expected, rtol=1e-4, atol=1e-4)


def test_normalized_rewards_alone_need_no_normalizer(tmp_path: Path) -> None:
    vector = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]), norm_obs=False)
    vector.save(str(tmp_path / "vecnormalize.pkl"))
    assert read_normalizer(tmp_path / "vecnormalize.pkl").moments == {}


def test_values_are_in_the_units_of_rewards(tmp_path: Path) -> None:
    vector = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    vector.reset()
    for _ in range(50):
        vector.step(np.array([vector.action_space.sample()]))
    vector.save(str(tmp_path / "vecnormalize.pkl"))
    model = PPO("MlpPolicy", vector, seed=0)
    model.save(tmp_path / "agent.zip")
    obs = np.stack([vector.observation_space.sample() for _ in range(20)])
    with torch.no_grad():
        normalised = model.policy.predict_values(torch.from_numpy(vector.normalize_obs(obs).astype(np.float32)))
        said = load_policy(tmp_path / "agent.zip")(torch.from_numpy(obs))[0].value
    expected = vector.unnormalize_reward(normalised.numpy().ravel())
    assert abs(expected).max() > 1.5 * abs(normalised).max()
    np.testing.assert_allclose(said, expected, rtol=1e-3, atol=1e-3)


def normalised(folder: Path, mean: float) -> Path:
    """A `vecnormalize.pkl` in `folder` with this mean in all four entries."""
    vector = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    vector.obs_rms.mean = np.full(4, mean)
    folder.mkdir(parents=True, exist_ok=True)
    vector.save(str(folder / "vecnormalize.pkl"))
    return folder / "vecnormalize.pkl"


@pytest.mark.parametrize(
    ("model", "beside"),
    [
        ("CartPole-v1.zip", "CartPole-v1"),
        ("best_model.zip", "CartPole-v1"),
        ("rl_model_500_steps.zip", "CartPole-v1"),
        ("best_model.zip", "best_model"),
        ("best_model.zip", "."),
    ],
)
def test_zip_of_any_name_uses_its_normalizer(tmp_path: Path, model: str, beside: str) -> None:
    folder = tmp_path / "CartPole-v1_3"
    normalised(folder / beside, 7.0)
    PPO("MlpPolicy", "CartPole-v1", seed=0).save(folder / model)
    policy = load_policy(folder / model)
    assert policy.obs_mean.tolist() == [7.0] * 4
    assert policy.obs_clip == {"": 10.0}


def test_checkpoint_has_a_normalizer_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "CartPole-v1_1"
    normalised(folder / "CartPole-v1", 7.0).rename(folder / "rl_model_vecnormalize_500_steps.pkl")
    normalised(folder / "CartPole-v1", 8.0)
    PPO("MlpPolicy", "CartPole-v1", seed=0).save(folder / "rl_model_500_steps.zip")
    assert load_policy(folder / "rl_model_500_steps.zip").obs_mean.tolist() == [7.0] * 4


def test_settings_that_may_be_of_another_agent_are_refused(tmp_path: Path) -> None:
    normalised(tmp_path / "CartPole-v1", 7.0)
    PPO("MlpPolicy", "CartPole-v1", seed=0).save(tmp_path / "best_model.zip")
    with pytest.raises(
        UntrustedFileError, match=r"best_model\.zip: .*vecnormalize\.pkl.*name the zip CartPole-v1\.zip"
    ):
        load_policy(tmp_path / "best_model.zip")
    (tmp_path / "best_model").mkdir()
    assert load_policy(tmp_path / "best_model.zip").obs_clip == {}


class Calls:
    def __init__(self, function: Any, *args: Any) -> None:
        self.what = (function, args)

    def __reduce__(self) -> Any:
        return self.what


@pytest.mark.parametrize(
    "evil",
    [
        Calls(exec, "raise SystemExit"),
        Calls(eval, "1"),
        Calls(__import__, "os"),
        Calls(getattr, "", "join"),
        Calls(np.load, "x.npy"),
        Calls(np.ndarray, (1 << 40,)),
        Calls(np.dtype, "O"),
        Calls(np.dtype, "V999999999"),
        Calls(open, "x", "w"),
        Calls(torch.load, "x"),
        Calls(bytearray, 1 << 40),
    ],
    ids=lambda evil: evil.what[0].__qualname__,
)
def test_normalizer_with_other_objects_is_refused(tmp_path: Path, evil: Calls) -> None:
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps({"obs_rms": evil}))
    with pytest.raises((UntrustedFileError, CorruptArtifactError), match="vecnormalize"):
        read_normalizer(path)
    assert [file.name for file in tmp_path.iterdir()] == ["vecnormalize.pkl"]


def test_truncated_normalizer_is_refused(tmp_path: Path) -> None:
    vector = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    path = tmp_path / "vecnormalize.pkl"
    vector.save(str(path))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptArtifactError, match="vecnormalize"):
        read_normalizer(path)


@pytest.mark.parametrize(
    ("config", "view"),
    [
        ("{}", ()),
        ("env_wrapper: null", ()),
        ("frame_stack: 2", (Wrapper("StackFrames", {"stack": 2}),)),
        ("env_wrapper: sb3_contrib.common.wrappers.TimeFeatureWrapper", (Wrapper("TimeFeature"),)),
        (
            "env_wrapper:\n- rl_zoo3.wrappers.FrameSkip: {skip: 2}\n- gym.GrayScaleObservation: {keep_dim: true}",
            (Wrapper("FrameSkip", {"skip": 2}), Wrapper("GrayscaleObservation", {"keep_dim": True})),
        ),
        (
            "env_wrapper:\n- rl_zoo3.wrappers.YAMLCompatResizeObservation:\n    shape: [64, 64]",
            (Wrapper("ResizeObservation", {"shape": [64, 64]}),),
        ),
        (PAIRS.format(key="frame_stack", value=3), (Wrapper("StackFrames", {"stack": 3}),)),
    ],
)  # fmt: skip
def test_wrappers_become_the_view_of_the_teacher(tmp_path: Path, config: str, view: tuple[Wrapper, ...]) -> None:
    assert read_zoo_folder(agent(tmp_path, config=config)).view == view


@pytest.mark.parametrize(
    "value",
    [
        "!!python/name:torch.nn.modules.activation.ReLU ''",
        "!!python/object/apply:os.system ['x']",
        "!!python/object/new:pathlib.PosixPath [/, etc]",
        "!!python/object:some.Class {a: !!python/module:os ''}",
        "!own {a: [!other 1]}",
        "!!python/tuple [1, 2]",
    ],
)
def test_unknown_tags_of_settings_for_training_are_inert(tmp_path: Path, value: str) -> None:
    config = f"policy_kwargs: {{activation_fn: {value}}}\ncallback: {value}\nframe_stack: 2\n"
    assert read_zoo_folder(agent(tmp_path, config=config)).view == (Wrapper("StackFrames", {"stack": 2}),)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ("env_wrapper: my.wrappers.Secret", UntrustedFileError, "Secret is unknown"),
        ("vec_env_wrapper: some.VecThing", UntrustedFileError, "vec_env_wrapper"),
        ("frame_stack: many", UntrustedFileError, "frame_stack"),
        ("env_wrapper: [{utils.FrameSkip: {skip: 0}}]", UntrustedFileError, "FrameSkip.*skip: an integer from 1 to"),
        ("env_wrapper: [{utils.FrameSkip: {skip: x}}]", UntrustedFileError, "FrameSkip.*skip: an integer from 1 to"),
        ("env_wrapper: [{utils.FrameSkip: {skip: 100000}}]", UntrustedFileError, "FrameSkip.*skip: an integer from"),
        ("env_wrapper: [{utils.FrameSkip: {skp: 2}}]", UntrustedFileError, "FrameSkip.*known: skip"),
        ("env_wrapper: [{gym.ResizeObservation: {shape: null}}]", UntrustedFileError, "shape: one or two integers"),
        ("env_wrapper: gym.ResizeObservation", UntrustedFileError, "ResizeObservation.*shape: one or two integers"),
        ("env_wrapper: [{u.ActionSmoothingWrapper: {smoothing_coef: a}}]", UntrustedFileError, "smoothing_coef: a num"),
        ("env_wrapper: [{u.ActionSmoothingWrapper: {smoothing_coef: 1}}]", UntrustedFileError, "from 0 to below 1"),
        (f"env_wrapper: [{{u.RescaleAction: {{min_action: 0, max_action: {HUGE}}}}}]", UntrustedFileError, "max_a"),
        ("env_kwargs: {gravity: .nan}", UntrustedFileError, "gravity.*nan"),
        (f"env_kwargs: {{gravity: {HUGE}}}", UntrustedFileError, "gravity.*not read"),
        ("normalize: true", UntrustedFileError, "no vecnormalize.pkl"),
        ("normalize: \"{'norm_obs': True}\"", UntrustedFileError, "no vecnormalize.pkl"),
        ("normalize: dict(norm_obs=True)", UntrustedFileError, "no vecnormalize.pkl"),
        ("normalize: __import__('os').system('x')", CorruptArtifactError, "expected a boolean or a dict"),
        ("normalize: !!python/name:os.system ''", UntrustedFileError, "normalize: expected.*found !!python/name:os"),
        ("frame_stack: !!python/object/apply:os.system ['x']", UntrustedFileError, "frame_stack.*!!python/object/app"),
        ("env_wrapper: !!python/name:os.system ''", CorruptArtifactError, "env_wrapper: expected names.*!!python/na"),
        ("env_kwargs: {a: !!python/object:os.x {}}", UntrustedFileError, "'a' is !!python/object:os.x, which is not"),
        ("!!python/object/apply:collections.OrderedDict\n- x", UntrustedFileError, "pairs"),
        ("[1, 2]", CorruptArtifactError, "settings by name"),
        ("a: [", CorruptArtifactError, "not YAML"),
    ],
)
def test_settings_that_cannot_be_reproduced_are_refused(tmp_path: Path, config: str, error: type, words: str) -> None:
    with pytest.raises(error, match=rf"(config|args)\.yml.*{words}"):
        load_policy(agent(tmp_path, config=config))


@pytest.mark.parametrize(
    ("config", "args", "words"),
    [
        ("env_wrapper: gym.GrayScaleObservation", "", r"agent/config\.yml.*: GrayscaleObservation does not accept"),
        ("", "env_kwargs: {wings: 2}", r"agent/args\.yml: CartPole-v1 does not accept {'wings': 2}"),
    ],
)
def test_arguments_that_an_environment_refuses_are_named_with_their_file(
    tmp_path: Path, config: str, args: str, words: str
) -> None:
    path = agent(tmp_path, config=config, args=args)
    policy = load_policy(path)
    assert re.search(words, verify(EnvConfig("CartPole-v1"), policy, name=str(path)).suspicious[0])
    (tmp_path / "agent" / "args.yml").write_text(f"{args}\nenv: Pendulum-v1")
    with pytest.raises(SpecMismatchError, match=rf"{words}.*\(the args\.yml beside it says"):
        fit_to_env(policy, EnvConfig("CartPole-v1"), str(path))


@pytest.mark.parametrize("config", ["normalize: false", "normalize: dict(norm_obs=False, norm_reward=True)"])
def test_unnormalized_observations_need_no_normalizer(tmp_path: Path, config: str) -> None:
    assert load_policy(agent(tmp_path, config=config)).obs_clip == {}


def test_teacher_with_a_view_acts_on_it(tmp_path: Path) -> None:

    env = EnvConfig("CartPole-v1", wrappers=(Wrapper("TimeFeature"),))
    from rldistill.envs.wrappers import TimeFeature

    PPO("MlpPolicy", TimeFeature(gymnasium.make("CartPole-v1")), seed=0).save(tmp_path / "agent.zip")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "config.yml").write_text("env_wrapper: utils.wrappers.TimeFeatureWrapper")
    policy = load_policy(tmp_path / "agent.zip")
    assert policy.spec.view == env.wrappers
    assert adapt_env(EnvConfig("CartPole-v1"), policy) == env == adapt_env(env, policy)
    assert spec_from_env(env).obs_shape == policy.spec.obs_shape == (5,)
    assert play(adapt_env(EnvConfig("CartPole-v1"), policy), policy, 2).lengths.min() > 1


def test_arguments_of_the_environment_are_used(tmp_path: Path) -> None:
    policy = load_policy(agent(tmp_path, "Pendulum-v1", args="env: Pendulum-v1\nenv_kwargs: {g: 2.0}"))
    assert adapt_env(EnvConfig("Pendulum-v1"), policy).kwargs == {"g": 2.0}
    assert adapt_env(EnvConfig("Pendulum-v1", {"g": 3.0}), policy).kwargs == {"g": 3.0}
    heavy, light = (
        play(adapt_env(EnvConfig("Pendulum-v1", kwargs), policy), policy, 1).returns for kwargs in ({"g": 10.0}, {})
    )
    assert heavy != light


def test_text_arguments_of_the_environment_are_not_read_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(UntrustedFileError, match=r"args\.yml.*xml_file.*kwargs of env"):
        load_policy(agent(tmp_path, args="env_kwargs: {xml_file: /etc/passwd}"))
