"""Training of a teacher with an algorithm of Stable-Baselines3 or sb3-contrib."""

import copy
import importlib
import inspect
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rldistill.core.errors import ConfigError, CorruptArtifactError, did_you_mean, short_repr
from rldistill.core.policy import resolve_device
from rldistill.core.schedules import Linear
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import START_AGAIN, Mode, open_stage, read_jsonl, write_atomic
from rldistill.io.lock import locked
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.provenance import provenance
from rldistill.io.stage_inputs import StageInputs
from rldistill.io.tensors import require_sealed_zip, seal_zip
from rldistill.policies.agent import inference_threads
from rldistill.policies.layers import activation
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import load_native, read_document, save_policy
from rldistill.teachers.sb3.load import to_native
from rldistill.teachers.sb3.normalizer import Normalizer, normalize
from rldistill.teachers.training.config import ALGORITHMS, TrainConfig
from rldistill.teachers.training.dqn import DoubleDQN
from rldistill.teachers.training.vec_env import (
    EntriesVecEnv,
    HindsightReplay,
    SteppingVecEnv,
    policy_spec,
    shared_policy,
    training_env,
)

NO_LOG_INTERVAL = 1_000_000_000
"""Interval of SB3's own log, which is not used."""
SET_BY_US = ("policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model", "self")
"""Parameters of SB3's algorithms that are not hyperparameters."""
TRAINING_ERRORS = (ArithmeticError, AssertionError, LookupError, NameError, RuntimeError, TypeError, ValueError)
"""Errors that hyperparameters without a check cause during training."""


@locked
def train_teacher(
    env: EnvConfig,
    config: TrainConfig,
    folder: Path | str,
    seed: int = 0,
    *,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> NetworkPolicy:
    """Train a teacher, and return its best policy, which is stored in `folder` with the learning curve.

    The mode "resume" continues from `checkpoints/last.zip` with network, optimizer, counters and schedules; the policy
    fills a new replay buffer. A DQN continues from its policy and `curve.jsonl` alone, too.

    Raises:
        ConfigError: an algorithm or hyperparameter does not exist, or does not suit the environment.
    """
    folder, env = Path(folder), env.view_of("teacher")
    inputs = _inputs(env, config)
    if mode == "overwrite":  # errors are found before the teacher in the folder is deleted
        with closing(training_env(env, config.num_envs, seed, "train", config.agents)) as vector:
            _build(env, config, vector, seed)
    elif mode == "resume":
        inputs.require_same(folder)
    open_stage(folder, folder / "policy.json", mode)
    last = folder / "checkpoints" / "last.zip"
    with (
        inference_threads(config.num_threads),
        closing(training_env(env, config.num_envs, seed, "train", config.agents)) as vector,
        stage_progress(progress, "train teacher", "steps") as report,
    ):
        model = _load(last, config, vector) if last.exists() else _build(env, config, vector, seed)
        if not last.exists() and (folder / "policy.json").exists():
            _warm_start(model, folder, config)
        model.set_logger(Logger(None, []))  # SB3's own leaves an empty folder among the temporary files
        inputs.write(folder)
        # No environment has played more episodes than there were steps, so all following episodes are new.
        vector.env.episode += model.num_timesteps
        callback = EvalCheckpointCallback(model, env, config, folder, seed, report)
        remaining = config.total_steps * vector.num_agents - model.num_timesteps  # SB3 counts a step of each agent
        try:
            if remaining > 0:
                model.learn(remaining, callback=callback, log_interval=NO_LOG_INTERVAL, reset_num_timesteps=False)
            if not callback.rows or callback.rows[-1]["step"] < callback.steps:
                callback.evaluate()
        except KeyboardInterrupt:
            callback.save_checkpoint()
            raise
        except TRAINING_ERRORS as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            raise ConfigError(
                f"train: {config.algorithm} failed with {type(error).__name__}: {first_line} Check its "
                "hyperparameters, above all the learning rate."
            ) from error
    return load_native(folder)


def _inputs(env: EnvConfig, config: TrainConfig) -> StageInputs:
    """Return the settings that stay the same when training is continued; steps and rates may change."""
    policy_spec(env, config.agents)  # raises if no policy can be shared, before there is a folder
    values = {
        "env": env,
        "teacher.train.algorithm": config.algorithm,
        "teacher.train.hyperparameters.policy_kwargs": config.hyperparameters.get("policy_kwargs"),
        "teacher.train.normalize": config.normalize or None,
        "teacher.train.agents": None if config.agents == "central" else config.agents,
    }
    return StageInputs("train", values)


def algorithm_class(config: TrainConfig) -> type[BaseAlgorithm]:
    """Return the class of the algorithm; raise ConfigError for hyperparameters that it does not have."""
    if config.algorithm not in ALGORITHMS:
        hint = did_you_mean(config.algorithm, ALGORITHMS)
        raise ConfigError(
            f"train.algorithm: there is no {config.algorithm!r}.{hint} Use one of {', '.join(ALGORITHMS)}."
        )
    cls: type[BaseAlgorithm] = getattr(importlib.import_module(ALGORITHMS[config.algorithm]), config.algorithm)
    defaults: dict[str, Any] = {}
    for base in cls.__mro__:
        parameters = inspect.signature(vars(base).get("__init__", object.__init__)).parameters.values()
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = {p.name: p.default for p in parameters if p.kind not in variable and p.name not in SET_BY_US}
        defaults = named | defaults
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):  # else it passes `**kwargs` to its base
            break
    for name, value in config.hyperparameters.items():
        if name not in defaults:
            hint = did_you_mean(name, defaults)
            raise ConfigError(f"train.hyperparameters.{name}: {config.algorithm} has no such setting.{hint}")
        if isinstance(defaults[name], int | float) and isinstance(value, str):
            expected = "true or false" if isinstance(defaults[name], bool) else "a number"
            raise ConfigError(f"train.hyperparameters.{name}: found {short_repr(value)}, expected {expected}")
    return cls


def _build(env: EnvConfig, config: TrainConfig, vector: SteppingVecEnv, seed: int) -> BaseAlgorithm:
    """Return a new algorithm; raise ConfigError if it cannot be built, or its network cannot be stored."""
    cls, settings = algorithm_class(config), _settings(config)
    space, spec = vector.observation_space, policy_spec(env, config.agents)
    if config.normalize and not issubclass(cls, OnPolicyAlgorithm):
        raise ConfigError(f"train.normalize: {config.algorithm} does not support it. Use PPO or A2C.")
    if config.agents == "shared" and (config.normalize or not issubclass(cls, OnPolicyAlgorithm)):
        raise ConfigError("train.agents: shared is for PPO and A2C without normalize. Change these, or use central.")
    if config.normalize and (spec.parts or spec.obs_dtype == "uint8" or not isinstance(space, Box)):
        raise ConfigError("train.normalize: the observations are not one vector of numbers. Remove it.")
    for image in space.values() if isinstance(space, Dict) else [space]:
        if isinstance(image, Box) and is_image_space(image) and not is_image_space_channels_first(image):
            raise ConfigError(
                f"env.id: the images are {image.shape}, expected channels first. Add ChannelsFirst to env.wrappers."
            )
    has_entries = isinstance(vector, EntriesVecEnv)
    if has_entries and config.algorithm == "DoubleDQN":
        raise ConfigError("train.algorithm: DoubleDQN does not learn from dict observations with pictures. Use DQN.")
    policy = "MultiInputPolicy" if has_entries else "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    device = resolve_device(config.device, "train.device")
    try:
        model = cls(policy, _normalized(vector, config), seed=seed, device=device, **settings)
    except Exception as error:  # SB3 does not check hyperparameters
        raise ConfigError(f"train.hyperparameters: {config.algorithm} cannot be built: {error}") from None
    try:
        to_native(model, spec)
    except ConfigError as error:
        raise ConfigError(f"train.hyperparameters: {error}") from None
    return model


def _normalized(vector: SteppingVecEnv, config: TrainConfig) -> VecEnv:
    gamma = config.hyperparameters.get("gamma", 0.99)
    return VecNormalize(vector, gamma=gamma) if config.normalize else vector


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Return the hyperparameters with schedules and activation functions as SB3 expects them."""
    settings = copy.deepcopy(config.hyperparameters)  # SB3 writes into `policy_kwargs`
    if isinstance(rate := settings.get("learning_rate"), dict):
        try:
            schedule = Linear(float(rate["start"]), float(rate["end"]))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(
                f"train.hyperparameters.learning_rate: expected a number or {{start: 1e-3, end: 0}}, found {rate}"
            ) from None
        settings["learning_rate"] = lambda remaining: schedule(1 - remaining)
    if (buffer := settings.get("replay_buffer_class")) is not None:
        if buffer != "HerReplayBuffer" or config.algorithm == "DoubleDQN":
            raise ConfigError(
                f"train.hyperparameters.replay_buffer_class: {config.algorithm} cannot use {short_repr(buffer)}. "
                "Use HerReplayBuffer with DQN, SAC, TD3 or TQC, or leave it out."
            )
        settings["replay_buffer_class"] = HindsightReplay
    if isinstance(kwargs := settings.get("policy_kwargs"), dict) and isinstance(kwargs.get("activation_fn"), str):
        function = activation(kwargs["activation_fn"], "train.hyperparameters.policy_kwargs.activation_fn")
        settings["policy_kwargs"] = {**kwargs, "activation_fn": function}
    return settings


def _load(path: Path, config: TrainConfig, vector: SteppingVecEnv) -> BaseAlgorithm:
    # SB3's loader runs pickled code; it is used only for checkpoints of this run, which this program wrote.
    require_sealed_zip(path)
    changed = {name: value for name, value in _settings(config).items() if name != "policy_kwargs"}
    device = resolve_device(config.device, "train.device")
    try:
        model = algorithm_class(config).load(path, env=_normalized(vector, config), device=device, **changed)
        if (normalizer := model.get_vec_normalize_env()) is not None:
            normalizer.obs_rms, normalizer.ret_rms = model.moments  # type: ignore[attr-defined]
    except Exception as error:
        raise CorruptArtifactError(f"{path}: SB3 cannot read it ({error}). {START_AGAIN}") from None
    if isinstance(model, OffPolicyAlgorithm):
        _refill_buffer(model, config)
    return model


def _warm_start(model: BaseAlgorithm, folder: Path, config: TrainConfig) -> None:
    """Continue from the policy and the curve, without a checkpoint; the optimizer starts anew."""
    if not isinstance(model, DQN):
        problem = f"there is no checkpoints/last.zip, and {config.algorithm} cannot continue without its critic"
        raise ConfigError(f"{folder}: {problem}. {START_AGAIN}")
    rows = read_jsonl(folder / "curve.jsonl")
    if not rows:
        raise ConfigError(f"{folder}: there is neither checkpoints/last.zip nor curve.jsonl. {START_AGAIN}")
    policy = load_native(folder)
    named = {name: value for name, value in policy.state_dict().items() if name.endswith((".weight", ".bias"))}
    weights = [named[name] for name in sorted(named, key=lambda name: name.startswith("output."))]  # SB3's last
    if policy.spec.obs_dtype == "uint8" and len(policy.spec.obs_shape) != 3:
        weights[0] = weights[0] / 255  # the inverse of to_native
    for net in (model.q_net, model.q_net_target):
        try:
            net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"{folder}: its policy is not the network of train.hyperparameters: {error}") from None
    # The steps of the policy, which is the best so far; the curve may be longer.
    model.num_timesteps = read_document(folder).provenance.env_steps or rows[-1]["step"]
    _refill_buffer(model, config)


def _refill_buffer(model: OffPolicyAlgorithm, config: TrainConfig) -> None:
    """Fill the new replay buffer with actions of the policy, not with random ones, before learning continues."""
    sample = type(model)._sample_action
    model.learning_starts = model.num_timesteps + int(config.hyperparameters.get("learning_starts", 100))
    model._sample_action = lambda _, *args: sample(model, 0, *args)  # type: ignore[method-assign]


class EvalCheckpointCallback(BaseCallback):
    """Callback that evaluates the policy, stores the best one, saves checkpoints and reports progress."""

    def __init__(
        self, model: BaseAlgorithm, env: EnvConfig, config: TrainConfig, folder: Path, seed: int, progress: Progress
    ) -> None:
        super().__init__()
        self.model, self.config, self.folder, self.progress = model, config, folder, progress
        self.env_config, self.spec, self.run_seed = env, policy_spec(env, config.agents), seed
        self.num_agents = len(spec_from_env(env).agents) if config.agents == "shared" else 1
        self.rows = [row for row in read_jsonl(folder / "curve.jsonl") if row["step"] <= self.steps]
        # Means over fewer episodes scatter more widely, so that the best of them might never be reached again.
        means = [row["mean"] for row in self.rows if len(row["returns"]) >= config.eval_episodes]
        self.best = max(means, default=-np.inf)
        self.started = time.monotonic() - (self.rows[-1]["seconds"] if self.rows else 0.0)
        self.next_eval, self.next_checkpoint = self._next(config.eval_every), self._next(config.checkpoint_every)

    @property
    def steps(self) -> int:
        """The number of environment steps."""
        return self.model.num_timesteps // self.num_agents

    def _next(self, every: int) -> int:
        return (self.steps // every + 1) * every

    def _on_step(self) -> bool:
        score = self.rows[-1]["mean"] if self.rows else None
        self.progress.update(self.steps, self.config.total_steps, score)
        if self.steps >= self.next_eval:
            self.next_eval = self._next(self.config.eval_every)
            self.evaluate()
        elif self.steps >= self.next_checkpoint:
            self.save_checkpoint()
        return True

    def evaluate(self) -> None:
        """Append a row to the curve, store the policy if it is the best so far, and save a checkpoint."""
        config, model, normalizer = self.config, self.model, self.model.get_vec_normalize_env()
        averaged = model.acting_on_average() if isinstance(model, DoubleDQN) else nullcontext()
        num_envs = min(config.eval_episodes, 8)
        evaluated = training_env(self.env_config, num_envs, self.run_seed, "evaluate", config.agents)
        with averaged, closing(evaluated) as vector:
            env: VecEnv = vector
            if normalizer is not None:
                env = VecNormalize(vector, training=False, norm_reward=False)
                env.obs_rms = normalizer.obs_rms
            episodes = config.eval_episodes * self.num_agents
            returns: Any = evaluate_policy(model, env, episodes, return_episode_rewards=True, warn=False)[0]
            returns = returns[:: self.num_agents]  # all agents of an environment have its return
            row = {
                "step": self.steps,
                "updates": int(getattr(model, "_n_updates", 0)),
                "seconds": round(time.monotonic() - self.started, 1),
                "mean": float(np.mean(returns)),
                "returns": np.asarray(returns).tolist(),
            }
            if row["mean"] >= self.best:
                self.best = row["mean"]
                details = {"env_steps": row["step"], "algorithm": config.algorithm, "mean_return": self.best}
                details = provenance(self.run_seed) | details
                policy = to_native(model, self.spec)
                if normalizer is not None:
                    rms: Any = normalizer.obs_rms
                    moments = {"": (rms.mean, rms.var)}
                    normalize(policy, Normalizer(moments, normalizer.epsilon, normalizer.clip_obs), self.folder)
                stored = policy if config.agents == "central" else shared_policy(policy, self.env_config)
                save_policy(stored, self.folder, details, half=self.spec.frames is not None)
                self.save_checkpoint("best")
        self.rows.append(row)
        Metrics(self.folder, "curve.jsonl").write(self.rows)
        # After the row: on resume, later rows are dropped, but a missing one is not added.
        self.save_checkpoint()

    def save_checkpoint(self, name: str = "last") -> None:
        """Save the algorithm without its replay buffer."""
        if (normalizer := self.model.get_vec_normalize_env()) is not None:
            # SB3 saves the attributes of the model, not those of its environments.
            self.model.moments = normalizer.obs_rms, normalizer.ret_rms  # type: ignore[attr-defined]

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                self.model.save(file, exclude=["_sample_action"])
            seal_zip(temporary)

        write_atomic(self.folder / "checkpoints" / f"{name}.zip", write)
        self.next_checkpoint = self._next(self.config.checkpoint_every)
