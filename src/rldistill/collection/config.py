"""Configuration of data collection."""

import math
from typing import Literal

from rldistill.core.fields import Fraction, NumEnvs, Positive, PositiveFloat, validated_dataclass
from rldistill.core.policy import Device


@validated_dataclass
class CollectConfig:
    """Amount of data to collect, and who acts.

    Attributes:
        steps: Environment steps, rounded up to whole steps of all environments.
        num_streams: Groups of environments; part of the data, unlike `execution.workers`.
        envs_per_stream: Environments in a stream.
        block_steps: Steps of a stream that are written at once.
        epsilon: Probability of a uniformly random action.
        beta: Probability that the teacher acts rather than the student (Ross 2011, arXiv 1011.0686).
        mixture: Draw the acting policy once an episode, at each step, or at each step for each `agent` of a team.
        label_every: Label every k-th step of an episode in which the student acts, and learn from these steps alone.
            Where the teacher acts, its action is the label. For slow teachers.
        teacher_timeout: Largest number of seconds of one call of the teacher; a longer one ends the collection, which
            --resume continues. Use a small `block_steps` with it, since finished blocks are kept. C code that never
            returns ends the process, 10 s later.
        sample: Sample the actions of a stochastic policy instead of taking their mode.
        features: Store the last hidden layer of the teacher.
        teacher_obs: Store the observations of the teacher, if they differ from those of the student.
        gamma: Discount of the returns-to-go.
        memory_gb: Limit for observations in memory; changes the speed, never the data.
        device: Device on which the policies compute; changes the speed, and results by rounding only.
    """

    steps: Positive = 20_000
    num_streams: Positive = 2
    envs_per_stream: NumEnvs = 8
    block_steps: Positive = 1024
    epsilon: Fraction = 0.0
    beta: Fraction = 1.0
    mixture: Literal["episode", "step", "agent"] = "episode"
    label_every: Positive = 1
    teacher_timeout: PositiveFloat | None = None
    sample: bool = False
    features: bool = False
    teacher_obs: bool = False
    gamma: Fraction = 0.99
    memory_gb: PositiveFloat = 8.0
    device: Device = "cpu"

    @property
    def sparse(self) -> bool:
        """True if some steps have no label."""
        return self.label_every > 1 and self.beta < 1

    @property
    def block_lengths(self) -> list[int]:
        """Steps of each block of a stream."""
        steps = math.ceil(self.steps / (self.num_streams * self.envs_per_stream))
        full, rest = divmod(steps, self.block_steps)
        return [self.block_steps] * full + [rest] * (rest > 0)
