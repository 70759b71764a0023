"""Learning from reward against Stable-Baselines3: the same return after the same steps, and steps a second.

Ours and SB3's learn in turns, with the same networks, hyperparameters and number of environments, and what each has
learned plays the same fresh episodes. `ppd` is held against a subclass of SB3's PPO that asks its teacher again for
every minibatch and differentiates through it, as sb3_distill does. MinAtar is fetched at the first run, into
`.venv-minatar`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import torch._dynamo  # torch.optim does so at its first step, for a second
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from rldistill import Cnn, EnvConfig, ForwardKL, Mlp, Policy, load_policy
from rldistill.core.heads import ActionHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.schedules import Linear
from rldistill.core.spec import Wrapper
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.statistics import estimate, mean
from rldistill.io.atomic import write_json
from rldistill.losses.objective import Term
from rldistill.losses.policy import kl
from rldistill.rl import dqn, ppo
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.rl.guidance import Guidance
from rldistill.rl.train_state import LearningTask
from rldistill.students import AnyStudent

ROOT = Path(__file__).parent.parent
MINATAR = ROOT / ".venv-minatar"
SHARED = ROOT.parent / "shared/teachers/sb3/ppo/LunarLander-v2_1"
EPISODES = 50


class Planes(gymnasium.ObservationWrapper[Any, Any, Any]):
    """MinAtar's bit planes as float32, channels first."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        height, width, planes = env.observation_space.shape or ()
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (planes, height, width))

    def observation(self, observation: NDArray[np.bool_]) -> NDArray[np.float32]:
        return observation.transpose(2, 0, 1).astype(np.float32)


class SmallCnn(BaseFeaturesExtractor):
    """Network of the MinAtar paper (Young 2019, arXiv 1903.03176) for SB3."""

    def __init__(self, observation_space: gymnasium.spaces.Box) -> None:
        super().__init__(observation_space, 128)
        planes = observation_space.shape[0]
        self.layers = nn.Sequential(
            nn.Conv2d(planes, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8 * 8, 128), nn.ReLU()
        )

    def forward(self, obs: Tensor) -> Tensor:
        said: Tensor = self.layers(obs)
        return said


class Taught(ActorCriticPolicy):
    """PPO of SB3 whose entropy term is minus the divergence from the teacher."""

    teacher: Policy
    head: ActionHead

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        values, log_prob, _ = super().evaluate_actions(obs, actions)
        own = PolicyOutput(self.head, self.get_distribution(obs).distribution.logits)  # type: ignore[union-attr]
        return values, log_prob, -kl(self.teacher(obs)[0], own, 1.0, 1.0)


@dataclass(frozen=True)
class Task:
    """Task that both libraries learn."""

    name: str
    env: EnvConfig
    student: AnyStudent
    config: PPOConfig | DQNConfig
    of_sb3: Callable[[Any, int], PPO | DQN]
    teacher: Path | None = None


def ppo_task(name: str, env: str, config: PPOConfig, teacher: Path | None = None) -> Task:
    """Return a PPO task with tanh networks of 64x64 for policy and critic."""

    def of_sb3(vector: Any, seed: int) -> PPO:
        policy: str | type[ActorCriticPolicy] = "MlpPolicy"
        if teacher is not None:
            loaded = load_policy(teacher)
            policy = type("TaughtPolicy", (Taught,), {"teacher": loaded, "head": loaded.spec.head})
        return PPO(
            policy, vector, n_steps=config.rollout_length, batch_size=config.batch_size, n_epochs=config.epochs,
            gamma=config.gamma, gae_lambda=config.gae_lambda, ent_coef=config.entropy_coef if teacher is None else 1.0,
            seed=seed, device="cpu",
        )  # fmt: skip

    return Task(name, EnvConfig(env), Mlp((64, 64), "tanh"), config, of_sb3, teacher)


def dqn_task(name: str, env: EnvConfig, student: AnyStudent, config: DQNConfig, **policy: Any) -> Task:
    """Return a DQN task with the same settings in both libraries."""

    def of_sb3(vector: Any, seed: int) -> DQN:
        share = config.epsilon_schedule
        assert isinstance(share, Linear)
        return DQN(
            "MlpPolicy", vector, learning_rate=config.learning_rate, buffer_size=config.buffer_size,
            learning_starts=config.learning_starts, batch_size=config.batch_size, gamma=config.gamma,
            train_freq=1, gradient_steps=config.gradient_steps, exploration_fraction=share.until,
            exploration_initial_eps=share.start, exploration_final_eps=share.end,
            target_update_interval=config.target_update_interval // config.gradient_steps * config.num_envs,
            policy_kwargs={**policy, "optimizer_kwargs": {"eps": 1.5e-4}}, seed=seed, device="cpu",
        )  # fmt: skip

    return Task(name, env, student, replace(config, double=False), of_sb3)


def tasks() -> list[Task]:
    of_cartpole = DQNConfig(
        total_steps=60_000, num_envs=4, buffer_size=50_000, learning_starts=1_000, gradient_steps=4, learning_rate=1e-3,
        target_update_interval=500, epsilon_schedule=Linear(1.0, 0.04, 0.2),
    )  # fmt: skip
    of_lander = PPOConfig(
        total_steps=200_000, num_envs=16, rollout_length=256, epochs=4, gamma=0.999, gae_lambda=0.98, entropy_coef=0.01
    )
    of_minatar = DQNConfig(
        total_steps=100_000, num_envs=4, buffer_size=100_000, learning_starts=5_000, gradient_steps=1, batch_size=32,
        learning_rate=2.5e-4, target_update_interval=250, epsilon_schedule=Linear(1.0, 0.1, 0.5),
    )  # fmt: skip
    small = Cnn((16,), (3,), (1,), (128,))
    of_pictures = {"features_extractor_class": SmallCnn, "net_arch": [], "normalize_images": False}
    games = [
        dqn_task(
            f"DQN, MinAtar {game}", EnvConfig(f"MinAtar/{game}-v1", wrappers=(Wrapper("rl_vs_sb3:Planes"),)), small,
            of_minatar, **of_pictures,
        )
        for game in ("Breakout", "SpaceInvaders")
    ]  # fmt: skip
    return [
        ppo_task("PPO, CartPole", "CartPole-v1", PPOConfig(total_steps=50_000, rollout_length=128)),
        ppo_task("PPO, LunarLander", "LunarLander-v3", of_lander),
        dqn_task("DQN, CartPole", EnvConfig("CartPole-v1"), Mlp((64, 64)), of_cartpole, net_arch=[64, 64]),
        *games,
        ppo_task(
            "ppd, LunarLander",
            "LunarLander-v3",
            replace(of_lander, total_steps=50_000, epochs=10, entropy_coef=0.0),
            SHARED,
        ),
    ]


def ours(task: Task, seed: int, folder: Path) -> tuple[Policy, float]:
    """The trained policy, and the seconds it took."""
    started = time.perf_counter()
    learning = LearningTask(task.env, task.student, folder, seed=seed)
    if isinstance(task.config, DQNConfig):
        policy = dqn.learn(learning, task.config)
    elif task.teacher is None:
        policy = ppo.learn(learning, task.config)
    else:
        guidance = Guidance((Term(ForwardKL()),), proximal=True)
        policy = ppo.learn(replace(learning, teacher=load_policy(task.teacher), guidance=guidance), task.config)
    return policy, time.perf_counter() - started


def theirs(task: Task, seed: int, folder: Path) -> tuple[Policy, float]:
    """Train with SB3 and load the policy as a teacher."""
    wrapper = Planes if task.env.wrappers else None
    vector = make_vec_env(task.env.id, task.config.num_envs, seed=seed, wrapper_class=wrapper)
    model = task.of_sb3(vector, seed)
    started = time.perf_counter()
    model.learn(task.config.total_steps)
    seconds = time.perf_counter() - started
    if wrapper is None and task.teacher is None:
        model.save(folder / "model.zip")
        return load_policy(folder / "model.zip"), seconds
    return _Asked(model, task), seconds


class _Asked:
    """Policy of an SB3 model with a custom network."""

    def __init__(self, model: PPO | DQN, task: Task) -> None:
        self.spec, self.model = spec_from_env(task.env), model

    def initial_state(self, batch_size: int) -> Tensor | None:
        return None

    def __call__(self, obs: Any, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        action, _ = self.model.predict(obs.numpy(), deterministic=True)
        chosen = torch.nn.functional.one_hot(torch.from_numpy(action).long(), self.spec.head.nvec[0])
        return PolicyOutput(self.spec.head, 20.0 * chosen), None


def fetch_minatar() -> None:
    """Its dependencies are for plots alone."""
    if not MINATAR.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(MINATAR)]
        subprocess.run([*pip, "MinAtar==1.0.15"], check=True)
    sys.path.append(str(MINATAR))
    from minatar.gym import register_envs  # type: ignore[import-not-found]

    register_envs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="tasks that begin so, as PPO")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of each task")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("task", "steps", "ours (95%)", "SB3 (95%)", "ours, steps/s", "SB3, steps/s", "ratio")
    rows = []
    for task in (task for task in tasks() if task.name.startswith(asked.only)):
        if task.env.wrappers:
            fetch_minatar()
        if task.teacher is not None and not task.teacher.exists():
            print(f"{task.name}: left out, since {task.teacher} is not there")
            continue
        task = replace(task, config=replace(task.config, total_steps=round(asked.share * task.config.total_steps)))
        scores: dict[str, list[NDArray[np.float64]]] = {"ours": [], "SB3": []}
        rates: dict[str, list[float]] = {"ours": [], "SB3": []}
        for seed in range(asked.seeds):
            for name, learn in (("ours", ours), ("SB3", theirs)):
                with tempfile.TemporaryDirectory() as folder:
                    policy, seconds = learn(task, seed, Path(folder))
                scores[name].append(play(task.env, policy, EPISODES, PlayConfig(100 + seed)).returns)
                rates[name].append(task.config.total_steps / seconds)
                print(f"{task.name}, seed {seed}: {name} {scores[name][-1].mean():.1f}, {rates[name][-1]:,.0f} steps/s")
        row: dict[str, Any] = {"task": task.name, "steps": task.config.total_steps}
        for name, found in scores.items():
            row[name] = float(np.mean(found))
            row[f"{name}_ci95"] = estimate(mean, np.stack(found)).ci95
            row[f"{name}_steps_per_second"] = float(np.median(rates[name]))
        row["ratio"] = float(np.median(np.array(rates["ours"]) / rates["SB3"]))
        rows.append(row)
        said = [f"{row[name]:.1f} ({row[f'{name}_ci95'][0]:.1f} to {row[f'{name}_ci95'][1]:.1f})" for name in scores]
        speeds = [f"{row[f'{name}_steps_per_second']:,.0f}" for name in scores]
        table.add_row(task.name, f"{row['steps']:,}", *said, *speeds, f"{row['ratio']:.2f}")
        if asked.json is not None:
            write_json(asked.json, {"rows": rows})
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
