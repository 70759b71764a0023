"""Seeds of episodes and generators, derived so that no two purposes share one."""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["train", "collect", "evaluate", "control"]
PURPOSES: tuple[Purpose, ...] = ("train", "collect", "evaluate", "control")


def _sequence(run_seed: int, purpose: Purpose, kind: int, *path: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([run_seed, PURPOSES.index(purpose), kind, *path])


def episode_seed(run_seed: int, purpose: Purpose, round: int, stream: int, slot: int, episode: int) -> int:
    """Return the seed of one episode, 0 <= seed < 2^31 as ale-py requires."""
    words = _sequence(run_seed, purpose, 0, round, stream, slot, episode).generate_state(1)
    return int(words[0] >> 1)


def block_generator(run_seed: int, purpose: Purpose, round: int, stream: int, block: int) -> np.random.Generator:
    """Return the generator of every random draw within one block of one stream."""
    return np.random.default_rng(_sequence(run_seed, purpose, 1, round, stream, block))
