"""Steps a second of evaluation over the limit 1 / (1 / emulator + 1 / inference), all measured in this run.

The emulator is given the actions that the policy took, in the same episodes, with the same seeded resets and slots;
inference is the policy's forward pass at the batch of evaluation on one thread. Each of them is measured in turn,
several times over, and the medians are compared. Steps are those of the episodes that count: what other slots do while
the last episodes end is lost.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from collect import inference_rate, limit_of
from numpy.typing import NDArray

from rldistill import Cnn, EnvConfig, Mlp, load_policy
from rldistill.envs.seeding import episode_seed
from rldistill.envs.single import spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.evaluate.play import MAX_SLOTS, Episodes, play

THREADS = 2


def emulator_rate(env: EnvConfig, played: Episodes) -> tuple[float, list[NDArray[Any]]]:
    """Steps a second of the emulators alone while every slot has an episode to play; and what some of them showed."""
    episodes = len(played.returns)
    slots = min(episodes, MAX_SLOTS)
    scripts = [np.concatenate(played.actions[slot::slots]) for slot in range(slots)]
    steps = min(map(len, scripts))
    actions = np.stack([script[:steps] for script in scripts], 1)
    vector = make_vector_env(
        env, slots, lambda slot, nth: episode_seed(0, "evaluate", 0, 0, 0, slot + nth * slots), THREADS
    )
    shown = []
    started = time.perf_counter()
    obs = vector.reset()
    for step in range(steps):
        if step % (steps // 16 + 1) == 0:
            shown.append(obs)
        obs = vector.step(actions[step]).obs
    rate = slots * steps / (time.perf_counter() - started)
    vector.close()
    return rate, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="ALE/Pong-v5")
    parser.add_argument("--policy", help="zoo:NAME or a policy's folder; one that was not trained if there is none")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    env = EnvConfig(asked.env)
    if asked.policy:
        policy = load_policy(asked.policy)
        env = env.seen_by(policy)
    else:
        spec = spec_from_env(env)
        student = Cnn((32, 64, 64), (8, 4, 3), (4, 2, 1), (512,)) if spec.frames else Mlp()
        policy = student.build(spec).eval()
    rates = []
    for _ in range(asked.repeat):
        started = time.perf_counter()
        played = play(env, policy, asked.episodes, num_threads=THREADS)
        seconds = time.perf_counter() - started
        emulator, shown = emulator_rate(env, played)
        inference = inference_rate(policy, shown)
        rates.append((played.lengths.sum() / seconds, emulator, inference))
    ours, emulator, inference = np.median(rates, axis=0)
    limit = limit_of(emulator, inference)
    print(f"emulator {emulator:,.0f}/s, inference {inference:,.0f}/s, limit {limit:,.0f}/s")
    ratios = ", ".join(f"{own / limit_of(*parts):.2f}" for own, *parts in rates)
    print(f"evaluate {ours:,.0f}/s, ratio {ours / limit:.2f} (one by one {ratios})")


if __name__ == "__main__":
    main()
