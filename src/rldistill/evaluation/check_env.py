"""Check of an environment: everything that will not work with it, or that is suspicious, after a few hundred steps."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import computed_field
from rich.table import Table

from rldistill.core.entries import split_parts
from rldistill.core.errors import USER_ERRORS, ConfigError, RLDistillError, error_text
from rldistill.core.heads import MASK
from rldistill.core.spec import ALIVE, EnvConfig, PolicySpec
from rldistill.envs.atari import is_atari
from rldistill.envs.checked import INTERFACE
from rldistill.envs.make import chain_of, make_env
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import SeededVectorEnv, keeps_state_across_reset, legal_actions, make_vector_env
from rldistill.envs.wrappers import Env
from rldistill.evaluation.tables import Record, Result, TableCell, rich_table
from rldistill.evaluation.videos import first_picture

NUM_STEPS, NUM_SHORT_STEPS, NUM_SLOTS = 300, 60, 2
STATISTICS = ("mean", "var")
"""Attributes of running statistics, as Gymnasium, Stable-Baselines3 and CleanRL name them."""
MIN_STEPS_PER_S = 100
MASK_REMEDY = (
    f"Name the entry of a dict observation {MASK!r}, or give the environment a method action_masks(), if it is a mask "
    "of legal actions"
)
Level = Literal["error", "warning", "note"]


class Finding(Record):
    """One property of an environment: an error will not work, a warning is suspicious, a note is handled."""

    level: Level
    subject: str
    problem: str
    remedy: str


class EnvCheck(Result):
    """Result of `check_env`: facts by name, and findings, the worst first."""

    env: str
    facts: dict[str, str]
    findings: list[Finding]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """True if everything will work."""
        return all(finding.level != "error" for finding in self.findings)

    def blocks(self) -> list[Table]:
        """Return the table of facts and findings."""
        lines = [("", name, text) for name, text in self.facts.items()]
        lines += [(entry.level, entry.subject, f"{entry.problem}. {entry.remedy}.") for entry in self.findings]
        lines.append(("", "result", "works" if self.ok else "does not work"))
        rows = [[TableCell("level", a), TableCell("subject", b), TableCell(self.env, c)] for a, b, c in lines]
        return [rich_table(rows, left=True)]


def check_env(env: EnvConfig | str, steps: int = NUM_STEPS, seed: int = 0, *, short: bool = False) -> EnvCheck:
    """Play an environment as the collector would, with random actions, and list its problems and their remedies.

    The short form leaves out videos, speed and the notes, and plays fewer steps.
    """
    config = EnvConfig(env) if isinstance(env, str) else env
    check = _Check(config, min(steps, NUM_SHORT_STEPS) if short else steps, seed, short)
    try:
        check.run()
    except RLDistillError as error:  # everything after it would fail in the same way
        problem, _, remedy = str(error).rstrip(".").partition(". ")
        check.add("error", "environment", problem, remedy or "Correct the environment")
    order = ("error", "warning", "note")
    shown = [entry for entry in check.findings if not (short and entry.level == "note")]
    return EnvCheck(env=config.id, facts=check.facts, findings=sorted(shown, key=lambda own: order.index(own.level)))


class _Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that keeps the results of the environment as they are."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.results: list[tuple[Any, ...]] = []

    def reset(self, **kwargs: Any) -> Any:
        result = self.env.reset(**kwargs)
        if isinstance(result, tuple) and len(result) == 2:
            self.results.append((np.array(result[0]), None, result[1]))
        return result

    def step(self, action: Any) -> Any:
        result: Any = self.env.step(action)
        if isinstance(result, tuple) and len(result) == 5:
            self.results.append((np.array(result[0]), result[1], result[4]))
        return result


class _Check:
    def __init__(self, config: EnvConfig, steps: int, seed: int, short: bool) -> None:
        self.config, self.steps, self.seed, self.short = config, steps, seed, short
        self.facts: dict[str, str] = {}
        self.findings: list[Finding] = []

    def add(self, level: Level, subject: str, problem: str, remedy: str) -> None:
        self.findings.append(Finding(level=level, subject=subject, problem=problem, remedy=remedy))

    def run(self) -> None:
        student = self.config.view_of("student")
        spec = spec_from_env(student)
        entries = [f"{key or 'array'} {part.dtype} {list(part.shape)}" for key, part in spec.entries.items()]
        self.facts["observations"] = ", ".join(entries)
        if not is_atari(self.config.id):
            self.check_results(student, spec)
            self.check_seeds(student, spec)
        vector = make_vector_env(self.config, NUM_SLOTS, lambda slot, nth: NUM_SLOTS * (self.seed + nth) + slot)
        with closing(vector) as env:
            self.facts["actions"] = str(env.single_action_space)
            self.check_speed(env)
        if not self.short:
            self.check_renderer(student)

    def check_results(self, config: EnvConfig, spec: PolicySpec) -> None:
        """Check spaces, results and wrappers of one environment in play."""
        env = make_env(config)
        inner = env.env
        recorder = env.env = _Recorder(inner)
        before_play = inner.observation_space, inner.action_space
        with closing(env):
            statistics = _statistics(inner)
            before = {name: np.array(value.mean, copy=True) for name, value in statistics.items()}
            env.action_space.seed(self.seed)
            obs, _ = env.reset(seed=self.seed)
            lengths, length, changed = list[int](), 0, False
            for number in range(self.steps):
                obs, reward, terminated, truncated, _ = env.step(_random_action(env, spec, obs))
                length, changed = length + 1, changed or reward != env.own_reward
                if terminated or truncated:
                    lengths.append(length)
                    length = 0
                    obs, _ = env.reset(seed=self.seed + number + 1)
            limit = env.spec.max_episode_steps if env.spec is not None else None
        if (inner.observation_space, inner.action_space) != before_play:
            raise ConfigError("env: its spaces change while it is played. Set them once, in __init__.")
        self.check_actions(inner)
        self.facts["episodes"] = f"{np.mean(lengths):.0f} steps on average" if lengths else f"over {self.steps} steps"
        self.facts["time limit"] = f"{limit:,} steps" if limit else "none"
        if not lengths and not limit:
            self.add(
                "warning", "time limit", f"no episode ended within {self.steps} steps, and there is no time limit",
                "Set env.kwargs: {max_episode_steps: 1000} (Gymnasium's TimeLimit) if episodes may never end",
            )  # fmt: skip
        if changed:
            self.add(
                "note", "rewards", "env.wrappers change the rewards",
                "Students learn from the changed rewards; returns and datasets count those of the environment",
            )  # fmt: skip
        for name, value in statistics.items():
            if not np.array_equal(before[name], value.mean):
                self.add(
                    "warning", "wrappers", f"{name} collects statistics while it plays, anew in each copy",
                    "Use fixed statistics, or the teacher's own normalizer",
                )  # fmt: skip
        self.check_observations(inner, spec, [result[0] for result in recorder.results])
        self.check_rewards([result[1] for result in recorder.results if result[1] is not None])
        self.check_infos([result[2] for result in recorder.results])

    def check_actions(self, env: Env) -> None:
        space: Any = env.action_space
        if np.any(start := getattr(space, "start", 0)):
            self.add(
                "note", "actions", f"they start at {start}",
                "Policies count from 0, and the start is added when an action is sent",
            )  # fmt: skip
        if isinstance(space, gymnasium.spaces.Box):
            if np.dtype(space.dtype).kind in "iu":
                self.add(
                    "note", "actions", "a Box of integers", "Continuous actions are rounded; MultiDiscrete fits better"
                )
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                self.add("note", "actions", "without bounds", "Random play draws from a normal distribution")

    def check_observations(self, env: Env, spec: PolicySpec, observations: list[NDArray[Any]]) -> None:
        space = env.observation_space
        array = np.stack(observations)
        if isinstance(space, gymnasium.spaces.Box):
            if array.dtype != space.dtype:
                self.add(
                    "note", "observations", f"{array.dtype}, where observation_space has {space.dtype}",
                    "They are converted; return the dtype of the space",
                )  # fmt: skip
            outside = (array < space.low) | (array > space.high)
            if outside.any():
                self.add(
                    "note", "observations", f"{outside.mean():.1%} of the numbers are outside of observation_space",
                    "Correct its bounds; a network with scaled images needs 0 to 255",
                )  # fmt: skip
        for key, values in _entries(spec, array) if spec.parts else ():
            if key == MASK and spec.head.discrete:
                choices = np.split(values, np.cumsum(spec.head.choices)[:-1], axis=1)
                if any(not legal.any(1).all() for legal in choices):
                    self.add(
                        "error", "action mask", "no action is legal in some state",
                        "End the episode there, or allow an action that does nothing",
                    )  # fmt: skip
            sizes = {sum(spec.head.choices), len(spec.head.choices)}
            is_mask = values.shape[1] in sizes and spec.head.discrete and np.isin(values, (0, 1)).all()
            known = key == MASK or (key == ALIVE and spec.agents)
            if not known and is_mask and values.any(1).all() and not spec.entries[key].nvec:
                self.add(
                    "warning", "action mask", f"the entry {key!r} of the observation looks like a mask", MASK_REMEDY
                )

    def check_rewards(self, rewards: list[Any]) -> None:
        shapes = {np.shape(reward) for reward in rewards} - {()}
        if shapes:
            self.add("note", "rewards", f"arrays of shape {shapes.pop()}", "Their number is used; return a float")
        numbers = np.array([float(np.asarray(reward).item()) for reward in rewards])
        if len(numbers) and not numbers.any():
            self.add("note", "rewards", f"all are 0 within {self.steps} steps", "Check this if they are not sparse")

    def check_infos(self, infos: list[Any]) -> None:
        if any(not isinstance(info, Mapping) for info in infos):
            self.add("note", "info", "not a dict", INTERFACE)
        elif any("mask" in str(key) for info in infos for key in info):
            self.add("warning", "action mask", "info has a mask, which is not read", MASK_REMEDY)

    def check_seeds(self, config: EnvConfig, spec: PolicySpec) -> None:
        first, other = (self._first_steps(config, spec, seed) for seed in (self.seed, self.seed + 1))
        # A random generator that all copies share makes a difference only where they are stepped in turns.
        second = self._first_steps(config, spec, self.seed, num_copies=2)
        if any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=False)):
            self.add(
                "warning", "seeds", "two copies with the same seed and the same actions differ",
                "Draw all random numbers from self.np_random, and call super().reset(seed=seed)",
            )  # fmt: skip
        elif keeps_state_across_reset(config):
            self.add(
                "note",
                "reset",
                "an episode depends on earlier ones",
                "Each episode gets a fresh environment, which is slower",
            )
        if len(first) == len(other) and all(np.array_equal(a, b) for a, b in zip(first, other, strict=True)):
            self.add(
                "warning", "seeds", "another seed changes nothing, so that all episodes of a policy are the same",
                "Draw the start from self.np_random, or use collect.epsilon",
            )  # fmt: skip

    def _first_steps(self, config: EnvConfig, spec: PolicySpec, seed: int, num_copies: int = 1) -> list[NDArray[Any]]:
        """Return the observations of the first of some copies that are stepped in turns."""
        with ExitStack() as stack:
            envs = [stack.enter_context(closing(make_env(config))) for _ in range(num_copies)]
            envs[0].action_space.seed(0)  # which may be the same space in all copies
            actions = [envs[0].action_space.sample() for _ in range(self.steps // 2)]
            observations = [[np.array(env.reset(seed=seed)[0])] for env in envs]
            for action in actions:
                is_over = False
                for env, own in zip(envs, observations, strict=True):
                    legal = legal_actions(own[-1], spec) if MASK in spec.entries else action
                    obs, _, terminated, truncated, _ = env.step(legal)
                    own.append(np.array(obs))
                    is_over |= terminated or truncated
                if is_over:
                    break
            return observations[0]

    def check_speed(self, env: SeededVectorEnv) -> None:
        """Play as the collector does, and measure the speed."""
        rng = np.random.default_rng(self.seed)
        env.single_action_space.seed(self.seed)
        obs, start = env.reset(), time.perf_counter()
        for _ in range(self.steps // NUM_SLOTS):
            obs = env.step(env.sample_actions(obs, rng)).obs
        speed = self.steps // NUM_SLOTS * NUM_SLOTS / max(time.perf_counter() - start, 1e-9)
        self.facts["speed"] = f"{speed:,.0f} steps per second in one process"
        if speed < MIN_STEPS_PER_S and not self.short:
            hours = 20_000 / speed / 3600
            self.add(
                "note",
                "speed",
                f"20,000 steps take {hours:.1f} hours",
                "Use execution.workers and evaluate.env_workers",
            )

    def check_renderer(self, config: EnvConfig) -> None:
        try:
            self.facts["render"] = f"rgb_array {list(first_picture(config).shape)}"
        except USER_ERRORS as error:  # a renderer may raise any class
            self.facts["render"] = "none"
            self.add(
                "note", "render", f"no videos: {error_text(error)}", "Add the render mode rgb_array if you want videos"
            )


def _random_action(env: Env, spec: PolicySpec, obs: NDArray[Any]) -> Any:
    action = env.action_space.sample()
    return legal_actions(obs, spec) if MASK in spec.entries else action


def _statistics(env: Env) -> dict[str, Any]:
    """Return the running statistics of all wrappers, by the name of their class."""
    return {
        f"{type(wrapper).__name__}.{name}": value
        for wrapper in chain_of(env)
        for name, value in vars(wrapper).items()
        if all(isinstance(getattr(value, part, None), np.ndarray | float) for part in STATISTICS)
    }


def _entries(spec: PolicySpec, array: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the entries of dict observations, `[B, width]`."""
    for key, values in split_parts(torch.from_numpy(array), spec).items():
        yield key, values.numpy().reshape(len(array), -1)


def require_env(config: EnvConfig) -> list[str]:
    """Return the warnings of the short check; raise ConfigError if something will not work."""
    check = check_env(config, short=True)
    texts = [f"env: {entry.subject}: {entry.problem}. {entry.remedy}.".replace("?.", "?") for entry in check.findings]
    if not check.ok:
        raise ConfigError(f"{texts[0].removeprefix('env: environment: ')} See `rldistill doctor env`.")
    return texts
