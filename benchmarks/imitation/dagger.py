"""imitation's DAgger on LunarLander with a given teacher; prints its seconds and returns as JSON.

Runs in a virtual environment of its own, which `lunarlander_vs_imitation.py` makes: imitation 1.0.1 needs Gymnasium
0.29 and Stable-Baselines3 2.2.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import gymnasium
import numpy as np
import torch
from imitation.algorithms import bc
from imitation.algorithms.dagger import SimpleDAggerTrainer
from imitation.data.wrappers import RolloutInfoWrapper
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv

SLOTS = 8


class Teacher(BasePolicy):
    """Dense layers with tanh between them; the action is the argmax."""

    def __init__(self, observation_space, action_space, layers) -> None:  # type: ignore[no-untyped-def]
        super().__init__(observation_space, action_space)
        modules: list[torch.nn.Module] = []
        for weight, bias in layers:
            dense = torch.nn.Linear(*weight.shape[::-1])
            dense.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
            modules += [dense, torch.nn.Tanh()]
        self.layers = torch.nn.Sequential(*modules[:-1])

    def _predict(self, observation: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        return self.layers(observation).argmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    def make() -> gymnasium.Env:  # type: ignore[type-arg]
        return RolloutInfoWrapper(gymnasium.make("LunarLander-v2"))

    env = DummyVecEnv([make] * SLOTS)
    env.seed(asked.seed)
    torch.manual_seed(asked.seed)
    arrays = np.load(asked.weights)
    layers = [(arrays[f"weight{n}"], arrays[f"bias{n}"]) for n in range(len(arrays.files) // 2)]
    teacher = Teacher(env.observation_space, env.action_space, layers)
    rng = np.random.default_rng(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        # FeedForward32Policy, its default: two layers of 32.
        student = bc.BC(observation_space=env.observation_space, action_space=env.action_space, rng=rng)
        trainer = SimpleDAggerTrainer(venv=env, scratch_dir=folder, expert_policy=teacher, bc_trainer=student, rng=rng)
        trainer.train(asked.steps)
        seconds = time.perf_counter() - started
    returns = {}
    for name, policy in {"student": student.policy, "teacher": teacher}.items():
        env.seed(10_000 + asked.seed)
        returns[name], _ = evaluate_policy(policy, env, asked.episodes, return_episode_rewards=True, warn=False)
    print(json.dumps({"seconds": seconds, "returns": returns}))


if __name__ == "__main__":
    main()
