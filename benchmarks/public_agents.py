"""Score agents of the public rl-baselines3-zoo collection against their published returns.

The claims, with their numbers of episodes, are those of the collection's own `benchmark.md`. LunarLander, Hopper and
HalfCheetah have moved up a version since. `rldistill teachers verify` says what consistent is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rldistill import EnvConfig, RLDistillError, load_policy
from rldistill.evaluation.verify import Claim, VerifyConfig, verify

AGENTS = {
    "dqn/CartPole-v1": ("CartPole-v1", "500", 300),
    "dqn/LunarLander-v2": ("LunarLander-v3", "154.4±79.2", 200),
    "qrdqn/LunarLander-v2": ("LunarLander-v3", "70.2±225.5", 522),
    "ppo/LunarLander-v2": ("LunarLander-v3", "242.1±31.8", 369),
    "ppo/MountainCar-v0": ("MountainCar-v0", "-110.4±19.5", 1358),
    "ppo/BipedalWalker-v3": ("BipedalWalker-v3", "213.3±129.5", 233),
    "a2c/Pendulum-v1": ("Pendulum-v1", "-163.0±103.2", 750),
    "sac/HalfCheetah-v3": ("HalfCheetah-v5", "9535.5±100.5", 150),
    "tqc/Hopper-v3": ("Hopper-v5", "3754.2±8.3", 150),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("../shared/teachers/sb3"))
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if not asked.folder.is_dir():
        print(f"{asked.folder}: the agents are not here; https://github.com/DLR-RM/rl-trained-agents has them")
        return
    table, rows = Table("agent", "on", "published", "scored", "consistent", "suspicious"), []
    for name, (env, claim, claimed_episodes) in AGENTS.items():
        try:
            policy = load_policy(asked.folder / f"{name}_1" / f"{name.split('/')[1]}.zip")
            found = verify(EnvConfig(env), policy, VerifyConfig(asked.episodes, Claim.parse(claim, claimed_episodes)))
        except RLDistillError as error:
            table.add_row(name, env, claim, str(error))
            continue
        rows.append({"agent": name, "env": env, "published": claim, **found.to_dict()})
        word = "yes" if found.claim and found.claim.consistent else "NO"
        because = "; ".join(found.suspicious) or "-"
        mean = f"{found.mean.value:.1f} ± {found.std:.1f}" if found.mean else "-"
        table.add_row(name, env, claim, mean, word, because)
    Console(width=140).print(table)
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
