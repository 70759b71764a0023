"""Measure steps per second of evaluation relative to the limit 1 / (1 / emulator + 1 / inference).

The emulator is given the actions that the policy took, in the same episodes, with the same seeded resets and slots;
inference is the policy's forward pass at the batch of evaluation on one thread. Each of them is measured in turn,
several times over, and the best of each are compared: whatever else the machine does only takes away. Steps are those
of the episodes that count: what other slots do while the last episodes end is lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import numpy as np
from collect import inference_rate, limit_of
from numpy.typing import NDArray

from rldistill import Cnn, EnvConfig, Mlp, Policy, load_policy
from rldistill.envs.atari import is_atari
from rldistill.envs.seeding import episode_seed
from rldistill.envs.spaces import adapt_env, spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.evaluation.episodes import Episodes, PlayConfig, num_slots, play

THREADS = 2


def emulator_rate(env: EnvConfig, played: Episodes) -> tuple[float, float, list[NDArray[Any]]]:
    """Return the steps per second of the emulators alone, the share of useful steps, and sample observations."""
    episodes = len(played.returns)
    slots = num_slots(env, episodes)
    scripts = [np.concatenate(played.actions[slot::slots]) for slot in range(slots)]
    longest = max(map(len, scripts))
    actions = np.stack([np.concatenate([s, np.repeat(s[-1:], longest - len(s), 0)]) for s in scripts], 1)

    def seed_of(slot: int, nth: int) -> int | None:
        number = slot + nth * slots
        return episode_seed(0, "evaluate", 0, 0, 0, number) if number < episodes else None

    vector = make_vector_env(env, slots, seed_of, THREADS)
    shown = []
    started = time.perf_counter()
    obs = vector.reset()
    for step in range(longest):
        if step % (longest // 16 + 1) == 0:
            shown.append(obs)
        obs = vector.step(actions[step]).obs
    seconds = time.perf_counter() - started
    vector.close()
    counted = sum(map(len, scripts))
    emulated = slots * longest if is_atari(env.id) else counted  # where none is left to play, others cost nothing
    return emulated / seconds, counted / emulated, shown


def evaluate_rates(env: EnvConfig, policy: Policy, episodes: int) -> tuple[tuple[float, float, float, float], Episodes]:
    """Return the steps per second of `play`, emulators and policy, the share of useful steps, and the episodes."""
    started = time.perf_counter()
    played = play(env, policy, episodes, PlayConfig(num_threads=THREADS))
    seconds = time.perf_counter() - started
    emulator, share, shown = emulator_rate(env, played)
    return (played.lengths.sum() / seconds, emulator, inference_rate(policy, shown, 200), share), played


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="ALE/Pong-v5")
    parser.add_argument("--policy", help="zoo:NAME or a policy's folder; one that was not trained if there is none")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--frames", type=int, help="of a game of ale-py's, after which an episode ends")
    asked = parser.parse_args()
    env = EnvConfig(asked.env)
    if asked.policy:
        policy = load_policy(asked.policy)
        env = adapt_env(env, policy)
    else:
        spec = spec_from_env(env)
        student = Cnn((32, 64, 64), (8, 4, 3), (4, 2, 1), (512,)) if spec.frames else Mlp()
        policy = student.build(spec).eval()
    if asked.frames:
        env = dataclasses.replace(env, kwargs={**env.kwargs, "max_num_frames_per_episode": asked.frames})
    rates = []
    for _ in range(asked.repeat):
        measured, played = evaluate_rates(env, policy, asked.episodes)
        rates.append(measured)
    ours, emulator, inference, share = np.max(rates, axis=0)
    limit = limit_of(emulator, inference)
    print(f"emulator {emulator:,.0f}/s, inference {inference:,.0f}/s, limit {limit:,.0f}/s")
    ratios = ", ".join(f"{own / limit_of(*parts):.2f}" for own, *parts, _ in rates)
    print(f"evaluate {ours:,.0f}/s, ratio {ours / limit:.2f} (one by one {ratios})")
    lengths = f"{played.lengths.min()} to {played.lengths.max()}, on average {played.lengths.mean():.0f}"
    print(f"{asked.episodes} episodes of {lengths} steps; in fixed turns {share:.0%} of what is emulated would count")


if __name__ == "__main__":
    main()
