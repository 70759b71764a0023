"""Seeds of episodes and generators, derived so that no two purposes share one."""

from typing import Literal

import numpy as np

Purpose = Literal["train", "collect", "evaluate", "control"]
PURPOSES: tuple[Purpose, ...] = ("train", "collect", "evaluate", "control")


def episode_seed(run_seed: int, purpose: Purpose, round: int, stream: int, slot: int, episode: int) -> int:
    """Return the seed of one episode, 0 <= seed < 2^31 as ale-py requires."""
    sequence = np.random.SeedSequence([run_seed, PURPOSES.index(purpose), 0, round, stream, slot, episode])
    return int(sequence.generate_state(1)[0] >> 1)


def block_generator(run_seed: int, purpose: Purpose, round: int, stream: int, block: int) -> np.random.Generator:
    """Return the generator of every random draw within one block of one stream."""
    return np.random.default_rng([run_seed, PURPOSES.index(purpose), 1, round, stream, block])
