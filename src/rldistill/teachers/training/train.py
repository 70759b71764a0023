"""Train a teacher with any Stable-Baselines3 or sb3-contrib algorithm, on our vector environments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gymnasium.spaces import Box
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from rldistill.core.device import resolve_device
from rldistill.core.errors import ConfigError, CorruptArtifactError, RLDistillError, did_you_mean, short_repr
from rldistill.core.schedules import Linear
from rldistill.envs.config import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import Mode, open_stage, read_json
from rldistill.io.jsonl import read_jsonl
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.policies.layers import activation
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import load_native
from rldistill.teachers.sb3.load import to_native
from rldistill.teachers.training.config import ALGORITHMS, TrainConfig
from rldistill.teachers.training.evaluation import EvalCheckpointCallback, training_env
from rldistill.teachers.training.vec_env import SteppingVecEnv

NEVER = 1_000_000_000


OURS = ("policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model", "self")


def train_teacher(
    env: EnvConfig,
    config: TrainConfig,
    folder: Path,
    seed: int = 0,
    *,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> NetworkPolicy:
    """Train, keep the best policy in `folder` with its curve, and return it.

    The mode "resume" continues from `checkpoints/last.zip`: network, optimiser, counters and schedules; a replay
    buffer is filled anew by the policy as it is. A DQN also goes on from its policy and `curve.jsonl` alone.

    Raises:
        ConfigError: unknown algorithm or hyperparameter, or one that does not suit the environment.
    """
    inputs = _inputs(env, config)
    if mode == "overwrite":
        _require_trainable(env, config, seed)  # or a wrong word would cost the teacher that is there
    elif mode == "resume":
        inputs.require_same(folder)
    open_stage(folder, folder / "policy.json", mode)
    last = folder / "checkpoints" / "last.zip"
    threads = torch.get_num_threads()
    torch.set_num_threads(config.num_threads)
    vector = training_env(env, config.num_envs, seed, "train")
    try:
        if last.exists():
            model = _load(last, config, vector)
        else:
            model = _build(config, vector, seed)
            if (folder / "policy.json").exists():
                _warm_start(model, folder, config)
        _require_expressible(model, env)
        inputs.write(folder)
        # No slot has played more episodes than there were steps, so what is played from here on is new.
        vector.env.episode += model.num_timesteps
        with stage_progress(progress, "train teacher", "steps") as report:
            keeper = EvalCheckpointCallback(model, env, config, folder, seed, report)
            left = config.total_steps - model.num_timesteps
            try:
                if left > 0:
                    model.learn(left, callback=keeper, log_interval=NEVER, reset_num_timesteps=False)
                keeper.finish()
            except KeyboardInterrupt:
                keeper.save_checkpoint()
                raise
            except (
                ArithmeticError,
                AssertionError,
                LookupError,
                NameError,
                RuntimeError,
                TypeError,
                ValueError,
            ) as error:
                # Hyperparameters that nobody checks end in whatever they lead to.
                said = (str(error).strip().splitlines() or [""])[0]
                raise ConfigError(
                    f"train: {config.algorithm} failed with {type(error).__name__}: {said} "
                    "Look at its hyperparameters, above all the learning rate"
                ) from error
    finally:
        vector.close()
        torch.set_num_threads(threads)
    return load_native(folder)


def _inputs(env: EnvConfig, config: TrainConfig) -> StageInputs:
    """Return all that must stay the same when training is continued; steps and rates may change."""
    values = {
        "env": replace(env, views=None),
        "teacher.train.algorithm": config.algorithm,
        "teacher.train.hyperparameters.policy_kwargs": config.hyperparameters.get("policy_kwargs"),
    }
    return StageInputs("train", values)


def _require_trainable(env: EnvConfig, config: TrainConfig, seed: int) -> None:
    vector = training_env(env, config.num_envs, seed, "train")
    try:
        _require_expressible(_build(config, vector, seed), env)
    finally:
        vector.close()


def algorithm_class(config: TrainConfig) -> type[BaseAlgorithm]:
    """The class of that name, its hyperparameters checked against its signature."""
    if config.algorithm not in ALGORITHMS:
        hint = did_you_mean(config.algorithm, ALGORITHMS)
        raise ConfigError(f"train.algorithm: there is no {config.algorithm!r}.{hint} Known: {', '.join(ALGORITHMS)}")
    kind: type[BaseAlgorithm] = getattr(importlib.import_module(ALGORITHMS[config.algorithm]), config.algorithm)
    known = {name: default for name, default in _parameters(kind).items() if name not in OURS}
    for name, value in config.hyperparameters.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"train.hyperparameters.{name}: {config.algorithm} has no such setting.{hint}")
        if isinstance(known[name], int | float) and isinstance(value, str):
            expected = "true or false" if isinstance(known[name], bool) else "a number"
            raise ConfigError(f"train.hyperparameters.{name}: found {short_repr(value)}, expected {expected}")
    return kind


def _parameters(kind: type[BaseAlgorithm]) -> dict[str, Any]:
    """What the class takes, itself and through the keyword arguments that it passes on, and the defaults."""
    found: dict[str, Any] = {}
    for cls in kind.__mro__:
        signature = inspect.signature(vars(cls).get("__init__", object.__init__)).parameters
        named = {
            name: value.default
            for name, value in signature.items()
            if value.kind is value.POSITIONAL_OR_KEYWORD or value.kind is value.KEYWORD_ONLY
        }
        found = named | found
        if not any(value.kind is value.VAR_KEYWORD for value in signature.values()):
            return found
    return found


def _build(config: TrainConfig, vector: SteppingVecEnv, seed: int) -> BaseAlgorithm:
    kind = algorithm_class(config)
    space = vector.observation_space
    if isinstance(space, Box) and is_image_space(space) and not is_image_space_channels_first(space):
        raise ConfigError(f"env.id: its images are {space.shape}; teachers are trained on channels first only")
    policy = "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    device = resolve_device(config.device, "train.device")
    try:
        return kind(policy, vector, seed=seed, device=device, **_settings(config))
    except RLDistillError:
        raise
    except Exception as error:  # whatever its arithmetic makes of numbers that nobody checks
        raise ConfigError(f"train.hyperparameters: {config.algorithm} cannot be built: {error}") from None


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The hyperparameters as SB3 takes them."""
    settings = dict(config.hyperparameters)
    if isinstance(rate := settings.get("learning_rate"), dict):
        settings["learning_rate"] = _line(rate)
    if isinstance(kwargs := settings.get("policy_kwargs"), dict) and isinstance(kwargs.get("activation_fn"), str):
        function = activation(kwargs["activation_fn"], "train.hyperparameters.policy_kwargs.activation_fn")
        settings["policy_kwargs"] = {**kwargs, "activation_fn": function}
    return settings


def _line(rate: dict[str, Any]) -> Callable[[float], float]:
    try:
        line = Linear(float(rate["start"]), float(rate["end"]))
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"train.hyperparameters.learning_rate: expected a number or {{start: 1e-3, end: 0}}, found {rate}"
        ) from None
    return lambda remaining: line(1 - remaining)


def _require_expressible(model: BaseAlgorithm, env: EnvConfig) -> None:
    # Before the first step, not at the first evaluation.
    try:
        to_native(model, spec_from_env(env))
    except ConfigError as error:
        raise ConfigError(f"train.hyperparameters: {error}") from None


def _load(path: Path, config: TrainConfig, vector: SteppingVecEnv) -> BaseAlgorithm:
    # A checkpoint of this very run, which is ours as much as the program is: SB3's own loader reads it.
    changed = {name: value for name, value in _settings(config).items() if name != "policy_kwargs"}
    device = resolve_device(config.device, "train.device")
    try:
        model = algorithm_class(config).load(path, env=vector, device=device, **changed)
    except Exception as error:
        raise CorruptArtifactError(
            f'{path}: SB3 cannot read it ({error}). Start again with mode="overwrite" (--overwrite).'
        ) from None
    if isinstance(model, OffPolicyAlgorithm):
        _refill_buffer(model, config)
    return model


def _warm_start(model: BaseAlgorithm, folder: Path, config: TrainConfig) -> None:
    """Go on from the policy and the curve alone, where no checkpoint came along; the optimiser starts anew."""
    if not isinstance(model, DQN):
        raise ConfigError(
            f"{folder}: there is a policy but no checkpoints/last.zip; {config.algorithm} cannot go on without its "
            "critic. Start again with --overwrite."
        )
    rows = read_jsonl(folder / "curve.jsonl")
    if not rows:
        raise ConfigError(
            f"{folder}: there is a policy but neither checkpoints/last.zip nor a curve.jsonl to go on from"
        )
    policy = load_native(folder)
    named = {name: value for name, value in policy.state_dict().items() if name.endswith((".weight", ".bias"))}
    weights = [named[name] for name in sorted(named, key=lambda name: name.startswith("output."))]  # which SB3 has last
    if policy.spec.obs_dtype == "uint8" and len(policy.spec.obs_shape) != 3:
        weights[0] = weights[0] / 255  # as to_native has multiplied it
    for net in (model.q_net, model.q_net_target):
        try:
            net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"{folder}: its policy is not the network of train.hyperparameters: {error}") from None
    # The curve may go beyond the policy, which is the best so far.
    model.num_timesteps = read_json(folder / "policy.json")["provenance"].get("env_steps", rows[-1]["step"])
    _refill_buffer(model, config)


def _refill_buffer(model: OffPolicyAlgorithm, config: TrainConfig) -> None:
    """Let the policy itself, not random actions, fill the buffer until there is enough to learn from."""
    model.learning_starts = model.num_timesteps + int(config.hyperparameters.get("learning_starts", 100))
    model._sample_action = _acting_at_once(model)  # type: ignore[method-assign]


def _acting_at_once(model: OffPolicyAlgorithm) -> Callable[..., Any]:
    sample = type(model)._sample_action

    def sample_action(learning_starts: int, *args: Any, **kwargs: Any) -> Any:
        return sample(model, 0, *args, **kwargs)

    return sample_action
