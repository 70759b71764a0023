"""Configuration of evaluation."""

from dataclasses import field
from typing import Annotated, Any

from pydantic import AfterValidator

from rldistill.core.errors import ConfigError
from rldistill.core.fields import (
    Fraction,
    FractionBelow1,
    NonNegative,
    NonNegativeFloat,
    NumThreads,
    OpenFraction,
    Positive,
    require_titles,
    validated_dataclass,
)
from rldistill.core.policy import Device
from rldistill.core.spec import MAX_EPISODE_STEPS
from rldistill.core.worlds import Worlds


@validated_dataclass
class RobustnessConfig:
    """Perturbations of the environment, each applied alone.

    Attributes:
        episodes: full episodes of each policy, training seed and perturbation: the first ones of the evaluation.
        sticky: probability that the environment repeats the previous action; 0 leaves it out.
        noise: standard deviation of the noise on each value of an observation, as a share of the value's own standard
            deviation while the teacher plays; 0 leaves it out.
        pixel_noise: standard deviation of the noise on each pixel, as a share of 255.
        noop_max: largest number of no-ops at the start of an episode of ale-py; 0 leaves it out.
        physics: True to change gravity, masses, forces and wind, if the environment has such an attribute.
        env_kwargs: own perturbations: by name, keyword arguments of the environment.
    """

    episodes: Positive = 20
    sticky: FractionBelow1 = 0.5
    noise: NonNegativeFloat = 0.1
    pixel_noise: NonNegativeFloat = 0.05
    noop_max: NonNegative = 60
    physics: bool = True
    env_kwargs: Annotated[dict[str, dict[str, Any]], AfterValidator(require_titles)] = field(
        default_factory=dict, hash=False
    )


@validated_dataclass
class EvaluateConfig:
    """Settings of an evaluation.

    Attributes:
        episodes: full episodes of each policy and training seed; with `sequential`, those between two analyses. A yes
            takes at least 59 with one student, 72 with two, 99 with eight.
        labeled_episodes: number of the first episodes in which the teacher labels every state of a student, for their
            agreement and disagreements. More cost a forward pass of the teacher in each step.
        sample: True to sample the actions of stochastic policies.
        gamma: discount of the discounted return.
        videos: True to record each student's best, median and worst episode, and its teacher in the same episodes.
        env_kwargs: keyword arguments of the environment that replace those of `env.kwargs` in the evaluation, such as
            levels that were held out of the collection.
        baseline: policy in place of random play, which scores and the test compare with: the path of a saved policy, or
            `module:function`. It has the observations of the students.
        margin: share of the teacher's lead over random play, or over the baseline, that a student may lose.
        sequential: True to play each student until it is known to keep its share or not, with a group-sequential test;
            teacher and random play go on until the last one is decided.
        max_episodes: largest number of episodes of each policy and training seed if `sequential`.
        max_steps: largest number of steps of an episode, here and wherever a run plays full episodes.
        env_workers: processes that step the environments of a policy, here and wherever a run plays full episodes;
            changes the speed, never the results. More than 1 is for slow environments; those of ale-py have threads
            instead.
        metrics: keys of the environment's `info`, such as `crashed`, as further columns. An episode counts with the
            number in its last step that has the key; true is 1 and false 0. Episodes without the key do not count.
        robustness: perturbations of the environment, if any.
        teams: episodes of each mixed team, if the environment has several agents: teachers of which some are replaced
            by students, students of different training seeds, and one agent that acts at random. 0 leaves them out.
        worlds: further kinds of worlds by name, such as parameters that were held out: for each, the parameters that
            differ from `env.worlds`. Teacher, students and random play have the seeds of the evaluation in each.
        device: device of the policies; it changes the speed, and results by rounding only.
    """

    episodes: Positive = 100
    labeled_episodes: Positive = 20
    sample: bool = False
    gamma: Fraction = 0.99
    videos: bool = True
    env_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    baseline: str | None = None
    margin: OpenFraction = 0.05
    sequential: bool = False
    max_episodes: Positive = 300
    max_steps: Positive = MAX_EPISODE_STEPS
    env_workers: NumThreads = 1
    metrics: tuple[str, ...] = ()
    robustness: RobustnessConfig | None = None
    teams: NonNegative = 20
    worlds: Annotated[dict[str, Worlds], AfterValidator(require_titles)] = field(default_factory=dict, hash=False)
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if self.sequential and self.max_episodes < self.episodes:
            raise ConfigError(
                f"max_episodes: expected at least evaluate.episodes, {self.episodes}, found {self.max_episodes}"
            )


@validated_dataclass
class CompareConfig:
    """Settings of a comparison of teachers.

    Attributes:
        episodes: full episodes of each teacher and each probe student.
        steps: labeled steps that each probe student learns from.
        epochs: passes over them.
        ensemble: True to include the ensemble of all teachers.
    """

    episodes: Positive = 20
    steps: Positive = 5_000
    epochs: Positive = 20
    ensemble: bool = True
