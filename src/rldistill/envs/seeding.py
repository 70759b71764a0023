"""Seeds for episodes and generators, derived so that no two purposes ever share one."""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["train", "collect", "evaluate", "control"]
PURPOSES: tuple[Purpose, ...] = ("train", "collect", "evaluate", "control")


def _words(run_seed: int, purpose: Purpose, kind: int, *path: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([run_seed, PURPOSES.index(purpose), kind, *path])


def episode_seed(run_seed: int, purpose: Purpose, round: int, stream: int, slot: int, episode: int) -> int:
    """The seed of one episode, 0 <= seed < 2^31 (what ale-py takes)."""
    words = _words(run_seed, purpose, 0, round, stream, slot, episode).generate_state(1)
    return int(words[0] >> 1)


def block_generator(run_seed: int, purpose: Purpose, round: int, stream: int, block: int) -> np.random.Generator:
    """The generator of every random draw made within one block of one stream."""
    return np.random.default_rng(_words(run_seed, purpose, 1, round, stream, block))
