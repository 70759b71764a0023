"""Behavioral cloning of d3rlpy on recorded steps of LunarLander; prints its seconds and returns as JSON.

Runs in a virtual environment of its own, which `cloning.py` makes: d3rlpy 2.8.1 needs Gymnasium 1.0.0.
"""

from __future__ import annotations

import argparse
import json
import time

import d3rlpy
import gymnasium
import numpy as np
import torch._dynamo  # noqa: F401 - torch.optim does so at its first step, for a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--gradient-steps", type=int, required=True)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    d3rlpy.seed(asked.seed)
    arrays = np.load(asked.data)
    started = time.perf_counter()
    dataset = d3rlpy.dataset.MDPDataset(**arrays, action_space=d3rlpy.ActionSpace.DISCRETE, action_size=4)
    config = d3rlpy.algos.DiscreteBCConfig(
        batch_size=256,
        learning_rate=1e-3,
        encoder_factory=d3rlpy.models.VectorEncoderFactory([32, 32]),
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
    )
    student = config.create(device=False)
    student.fit(
        dataset,
        n_steps=asked.gradient_steps,
        n_steps_per_epoch=asked.gradient_steps,
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )
    seconds = time.perf_counter() - started
    env = gymnasium.make("LunarLander-v3")
    returns = []
    for episode in range(asked.episodes):
        obs, _ = env.reset(seed=10_000 + episode)
        total, done = 0.0, False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(int(student.predict(obs[None])[0]))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    print(json.dumps({"seconds": seconds, "returns": returns}))


if __name__ == "__main__":
    main()
