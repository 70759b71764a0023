"""Configuration of data collection."""

from __future__ import annotations

import math
from typing import Literal

from rldistill.core.device import Device
from rldistill.core.fields import Fraction, NumEnvs, NumThreads, Positive, PositiveFloat, validated_dataclass


@validated_dataclass
class CollectConfig:
    """How much to collect and who acts.

    Attributes:
        steps: environment steps, rounded up to whole steps of all environments.
        num_streams: groups of environments; part of what the data is, unlike `workers`.
        envs_per_stream: environments in a stream.
        block_steps: steps of a stream that are committed at once.
        workers: processes; changes the speed, never the data.
        epsilon: probability of a uniformly random action.
        beta: probability that the teacher acts rather than the student (Ross 2011, arXiv 1011.0686).
        mixture: whether that is drawn once an episode or at each step.
        sample: whether a stochastic policy's actions are sampled instead of its mode taken.
        features: whether the teacher's last hidden layer is stored too.
        teacher_obs: whether what the teacher saw is stored too, where it sees something else than the student.
        gamma: discount of the returns-to-go.
        device: Device on which the policies compute; changes the speed, and results by rounding only.
        memory_gb: observations beyond it stay on disk when they are read; changes the speed, never the data.
    """

    steps: Positive = 20_000
    num_streams: Positive = 2
    envs_per_stream: NumEnvs = 8
    block_steps: Positive = 1024
    workers: NumThreads = 1
    epsilon: Fraction = 0.0
    beta: Fraction = 1.0
    mixture: Literal["episode", "step"] = "episode"
    sample: bool = False
    features: bool = False
    teacher_obs: bool = False
    gamma: Fraction = 0.99
    memory_gb: PositiveFloat = 8.0
    device: Device = "cpu"

    @property
    def block_lengths(self) -> list[int]:
        """Steps of each block of a stream."""
        steps = math.ceil(self.steps / (self.num_streams * self.envs_per_stream))
        full, rest = divmod(steps, self.block_steps)
        return [self.block_steps] * full + [rest] * (rest > 0)
