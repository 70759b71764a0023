"""imitation's GAIL on LunarLander from recorded episodes; prints its returns as JSON.

Runs in the virtual environment of `lunarlander_vs_gail.py`, as `dagger.py` does. The reward of the environment only
selects the best policy, by validation episodes.
"""

from __future__ import annotations

import argparse
import json
import sys

import gymnasium
import numpy as np
import torch
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data.types import Trajectory
from imitation.data.wrappers import RolloutInfoWrapper
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util.networks import RunningNorm
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

VALIDATION_EPISODES = 10


def make() -> gymnasium.Env:  # type: ignore[type-arg]
    return RolloutInfoWrapper(gymnasium.make("LunarLander-v2"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recorded", help="npz with obs and action of all steps, last_obs and length of all episodes")
    parser.add_argument("--ppo", choices=("same", "tutorial"), default="same")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--eval-every", type=int, default=40_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    same = options.ppo == "same"
    env, validation = DummyVecEnv([make] * (16 if same else 8)), DummyVecEnv([make])
    env.seed(options.seed)
    done = 0
    if same:  # the settings of examples/adversarial.yaml

        def rate(_: float) -> float:  # GAIL restarts SB3's own measure of progress in each round
            return 1e-3 * max(1 - done / options.steps, 0)

        settings = {"n_steps": 256, "batch_size": 256, "n_epochs": 10, "gamma": 0.99, "learning_rate": rate}
    else:  # the settings of the tutorial in imitation's documentation
        settings = {"n_steps": 2048, "batch_size": 64, "n_epochs": 5, "gamma": 0.95, "learning_rate": 4e-4}
    learner = PPO("MlpPolicy", env, seed=options.seed, device="cpu", **settings)  # 64x64 with tanh by default
    reward = BasicRewardNet(
        env.observation_space, env.action_space, hid_sizes=(64, 64), normalize_input_layer=RunningNorm
    )
    trainer = GAIL(
        demonstrations=recorded(options.recorded),
        demo_batch_size=1024,
        gen_replay_buffer_capacity=512,
        n_disc_updates_per_round=8,
        venv=env,
        gen_algo=learner,
        reward_net=reward,
        allow_variable_horizon=True,
    )
    best, best_score, curve = None, -np.inf, []

    def validate(_: int) -> None:
        nonlocal best, best_score, done
        done = learner.num_timesteps
        if done >= options.eval_every * (len(curve) + 1):
            validation.seed(20_000 + options.seed)
            score = float(evaluate_policy(learner, validation, VALIDATION_EPISODES, warn=False)[0])
            curve.append((done, round(score, 1)))
            print(f"{done:,} steps: {score:.1f}", file=sys.stderr, flush=True)
            if score > best_score:
                best, best_score = learner.policy.state_dict(), score
                best = {name: value.clone() for name, value in best.items()}

    trainer.train(options.steps, validate)
    returns = {}
    for name, weights in {"last": None, "best": best}.items():
        if weights is not None:
            learner.policy.load_state_dict(weights)
        validation.seed(10_000 + options.seed)
        returns[name], _ = evaluate_policy(
            learner, validation, options.episodes, return_episode_rewards=True, warn=False
        )
    print(json.dumps({"steps": learner.num_timesteps, "curve": curve, "returns": returns}))


def recorded(path: str) -> list[Trajectory]:
    arrays = np.load(path)
    ends = np.cumsum(arrays["length"])[:-1]
    parts = zip(np.split(arrays["obs"], ends), np.split(arrays["action"], ends), arrays["last_obs"], strict=True)
    return [Trajectory(np.append(obs, [last], 0), actions, None, terminal=True) for obs, actions, last in parts]


if __name__ == "__main__":
    main()
