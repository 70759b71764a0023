"""Groups of environments that are stepped together: in this process, in other ones, or by ale-py's threads."""

import copy
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError, SpecMismatchError, error_text
from rldistill.core.spec import EnvConfig
from rldistill.envs.make import make_env
from rldistill.io.processes import UNGUARDED, Worker, has_unguarded_script, start_worker

Seeds = Sequence[int | None]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class GroupStep:
    """Result of one step; `infos` are those of the slots whose episode ended, in their order."""

    obs: NDArray[Any]
    reward: NDArray[np.float64]
    own_reward: NDArray[np.float64]
    terminated: Mask
    truncated: Mask
    infos: list[dict[str, float]]


class Group(Protocol):
    """Environments without autoreset."""

    num_envs: int
    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    def send(self, actions: NDArray[Any]) -> None:
        """Begin a step with `[num_envs, ...]`."""

    def recv(self) -> GroupStep:
        """Finish the step begun by `send`."""

    def reset(self, mask: Mask, seeds: Seeds) -> NDArray[Any]:
        """Reset the slots in `mask`; those without a seed idle from here on. Return the observations of all slots."""

    def close(self) -> None:
        """Close the environments."""


class LocalGroup:
    """Group in this process; `rebuild` makes a fresh environment for each episode, if a reset is not enough."""

    def __init__(self, config: EnvConfig, num_envs: int, rebuild: bool) -> None:
        self._build, self._rebuild = partial(make_env, config), rebuild
        try:
            self.vector = SyncVectorEnv([self._build] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
        except RuntimeError as error:
            raise SpecMismatchError(
                f"env: {config.id}: two copies of it have different spaces ({error_text(error)}). Make the spaces the "
                "same in each copy."
            ) from error
        self.num_envs = num_envs
        self.single_observation_space = self.vector.single_observation_space
        self.single_action_space = copy.deepcopy(self.vector.single_action_space)  # with draws of its own
        self.action_space = self.vector.action_space
        self._actions: NDArray[Any] | None = None
        self._obs: NDArray[Any] | None = None

    @property
    def envs(self) -> Any:
        """Environments of the slots."""
        return self.vector.envs

    def send(self, actions: NDArray[Any]) -> None:
        """Keep the actions."""
        self._actions = actions

    def recv(self) -> GroupStep:
        """Step the environments."""
        self._obs, reward, terminated, truncated, _ = self.vector.step(self._actions)
        own_reward = np.array([env.own_reward for env in self.envs])
        infos = [self.envs[slot].numbers() for slot in np.flatnonzero(terminated | truncated)]
        return GroupStep(self._obs, np.asarray(reward, np.float64), own_reward, terminated, truncated, infos)

    def reset(self, mask: Mask, seeds: Seeds) -> NDArray[Any]:
        """Reset slots; rebuild or replace their environments where needed."""
        if not mask.any() and self._obs is not None:
            return self._obs.copy()
        envs = list(self.envs)
        for slot in np.flatnonzero(mask).tolist():
            if seeds[slot] is not None and self._rebuild:
                envs[slot].close()
                envs[slot] = self._build()
            elif seeds[slot] is None and self._obs is not None:
                envs[slot].close()
                envs[slot] = _IdleEnv(self._obs[slot].copy())
        self.vector.envs = envs
        self._obs, _ = self.vector.reset(seed=[*seeds], options={"reset_mask": mask.copy()})
        return self._obs.copy()

    def close(self) -> None:
        """Close the environments."""
        self.vector.close()


class _IdleEnv(gymnasium.Env[Any, Any]):
    """Environment of a slot that has no episode left."""

    own_reward = 0.0

    def __init__(self, obs: Any) -> None:
        self.obs = obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.obs, 0.0, False, False, {}


class AtariGroup:
    """Group of ale-py, whose emulators run in their own threads, and go on in slots without an episode."""

    def __init__(self, vector: VectorEnv[Any, Any, Any]) -> None:
        self.vector: Any = vector
        self.num_envs, self.action_space = vector.num_envs, vector.action_space
        self.single_observation_space = vector.single_observation_space
        self.single_action_space = vector.single_action_space
        self._obs: Any = None

    def send(self, actions: NDArray[Any]) -> None:
        """Start the emulators."""
        self.vector.send(actions)

    def recv(self) -> GroupStep:
        """Wait for the emulators."""
        self._obs, reward, terminated, truncated, info = self.vector.recv()
        rewards = np.asarray(reward, np.float64)
        ended = np.flatnonzero(terminated | truncated)
        infos = [{key: float(values[slot]) for key, values in info.items()} for slot in ended]
        return GroupStep(self._obs, rewards, rewards, terminated, truncated, infos)

    def reset(self, mask: Mask, seeds: Seeds) -> NDArray[Any]:
        """Reset the slots with a seed."""
        begun = mask & np.array([seed is not None for seed in seeds])
        if begun.any():
            own = np.array([seed for seed in seeds if seed is not None], np.int64)
            self._obs, _ = self.vector.reset(seed=own, options={"reset_mask": begun})
        return np.array(self._obs)

    def close(self) -> None:
        """Close the emulators."""
        self.vector.close()


_idle: list[Worker] = []
"""Processes that have no group; they end with this process."""


def _take_worker() -> Worker:
    try:
        return _idle.pop()  # asking first is not safe beside other threads
    except IndexError:
        return start_worker(_serve, daemon=True)


class ProcessGroup:
    """Group whose slots are divided among other processes, which is for environments that are slow.

    The policy sees the batch of a `LocalGroup`, so that its actions are the same for any number of processes.
    """

    def __init__(self, config: EnvConfig, num_envs: int, rebuild: bool, workers: int) -> None:
        self.num_envs, self._waiting = num_envs, False
        self._slots = [np.arange(num_envs)[number::workers] for number in range(workers)]
        self._workers = [_take_worker() for _ in range(workers)]
        try:
            spaces = self._call("open", [([*sys.path], config, len(slots), rebuild) for slots in self._slots])
        except BaseException:
            self.close()
            raise
        self.single_observation_space, self.single_action_space = spaces[0]
        self.action_space = batch_space(self.single_action_space, num_envs)

    def send(self, actions: NDArray[Any]) -> None:
        """Send the actions to the processes."""
        self._send("step", [(actions[slots],) for slots in self._slots])

    def recv(self) -> GroupStep:
        """Join the results of the processes."""
        parts: list[GroupStep] = self._recv()
        names = ("obs", "reward", "own_reward", "terminated", "truncated")
        arrays = {name: self._join([getattr(part, name) for part in parts]) for name in names}
        infos = dict[int, dict[str, float]]()
        for slots, part in zip(self._slots, parts, strict=True):
            infos.update(zip(slots[part.terminated | part.truncated].tolist(), part.infos, strict=True))
        return GroupStep(**arrays, infos=[infos[slot] for slot in sorted(infos)])

    def reset(self, mask: Mask, seeds: Seeds) -> NDArray[Any]:
        """Reset slots in the processes."""
        return self._join(
            self._call("reset", [(mask[slots], [seeds[slot] for slot in slots]) for slots in self._slots])
        )

    def close(self) -> None:
        """Close the environments and keep the processes for another group."""
        if not self._waiting:
            with suppress(ConfigError):
                self._call("close", [()] * len(self._workers))
        if self._waiting:  # for the answer to a step that was interrupted
            for process, connection in self._workers:
                connection.close()
                process.terminate()
        else:
            _idle.extend(self._workers)
        self._workers = []

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        self._send(method, arguments)
        return self._recv()

    def _send(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        self._waiting = True
        try:
            for (_, connection), own in zip(self._workers, arguments, strict=True):
                connection.send((method, own))
        except (BrokenPipeError, ConnectionResetError):
            raise _killed() from None

    def _recv(self) -> list[Any]:
        try:
            answers = [connection.recv() for _, connection in self._workers]
        except (EOFError, ConnectionResetError):
            raise _killed() from None
        self._waiting = False
        if error := next((answer for answer in answers if isinstance(answer, Exception)), None):
            raise error
        return answers

    def _join(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        joined = np.empty((self.num_envs, *parts[0].shape[1:]), parts[0].dtype)
        for slots, part in zip(self._slots, parts, strict=True):
            joined[slots] = part
        return joined


def _killed() -> ConfigError:
    if has_unguarded_script():
        return ConfigError(f"evaluate.env_workers: {UNGUARDED}")
    return ConfigError("evaluate.env_workers: a worker was killed, perhaps for want of memory. Use fewer workers.")


def _serve(connection: Connection) -> None:
    """Answer the requests of a `ProcessGroup` until its process ends."""
    group: Any = None
    answer: Any
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            if method == "open":
                sys.path[:], *settings = arguments  # the first process may have added paths since
                group = None
                group = LocalGroup(*settings)
                answer = group.single_observation_space, group.single_action_space
            elif method == "step":
                group.send(*arguments)
                answer = group.recv()
            elif group is None:  # closed without having opened
                answer = None
            else:
                answer = getattr(group, method)(*arguments)
        except Exception as error:  # which the first process raises again
            answer = error
        connection.send(answer)
