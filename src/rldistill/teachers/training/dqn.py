"""Double DQN for CPUs, based on Stable-Baselines3, which learns Atari in hours on two cores.

Double Q-learning (van Hasselt 2015, arXiv 1509.06461), our replay buffer, exploration decided for each
environment, channels-last convolutions, in bfloat16 if the CPU supports it, and gradient steps during the emulators'
steps. `rldistill.rl.dqn` cannot replace it: on Pong (32 environments, classic network, batches of 64, one thread) it
makes 0.74 times as many steps a second.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.dqn.policies import QNetwork
from torch.nn import functional as F

from rldistill.core.heads import QValuesHead
from rldistill.core.policy import to_device
from rldistill.core.spec import FramePipeline, PolicySpec
from rldistill.data.frames import Padding
from rldistill.data.replay import ReplayBuffer
from rldistill.policies.layers import keep_scale
from rldistill.teachers.training.vec_env import SteppingVecEnv


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of `PrioritizedReplay`, which SB3 takes as `replay_buffer_kwargs`.

    With `alpha` > 0, a transition is sampled with a probability proportional to (|last TD error| + 0.001)^alpha, a new
    one with the largest priority so far, and weighted by (probability * number of transitions)^-beta, divided by the
    largest weight in the batch (Schaul 2016, arXiv 1511.05952).

    With `terminal_on_reward`, returns end at each reward that is not 0, so that in a game of many points the values are
    those of the current point, in [-1, 1].
    """

    n_steps: int = 1
    gamma: float = 0.99
    padding: Padding = "zero"
    alpha: float = 0.0
    beta: float = 0.5
    terminal_on_reward: bool = False


class PrioritizedReplay(ReplayBuffer):
    """Replay buffer that SB3 creates and fills."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Box,
        action_space: spaces.Discrete,
        n_envs: int = 1,
        device: Any = None,
        optimize_memory_usage: bool = False,
        **settings: Any,
    ) -> None:
        self.settings = ReplaySettings(**settings)
        shape, dtype = observation_space.shape, str(observation_space.dtype)
        spec = PolicySpec(shape, dtype, QValuesHead((int(action_space.n),)))
        if len(shape) == 3 and shape[0] <= 8 and dtype == "uint8":
            frames = FramePipeline(shape[1], shape[2], shape[0], padding=self.settings.padding)
            spec = replace(spec, frames=frames)
        super().__init__(spec, buffer_size, n_envs, self.settings.n_steps, self.settings.gamma)
        self.priorities = np.zeros(self.num_steps * n_envs, np.float32)
        self._age = np.zeros(n_envs, np.int64)
        self._rng = np.random.default_rng(np.random.randint(1 << 31))  # of the seed of SB3

    def add(  # type: ignore[override]
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[np.int64],
        reward: NDArray[np.float32],
        done: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one step of all environments."""
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        ends = done | (reward != 0) if self.settings.terminal_on_reward else done
        first = self.num_added % self.num_steps * self.num_envs
        self.priorities[first : first + self.num_envs] = self.priorities.max() or 1.0
        super().add(
            obs,
            {slot: next_obs[slot] for slot in np.flatnonzero(truncated).tolist()},
            action=action.reshape(-1),
            reward=reward,
            terminated=ends & ~truncated,
            truncated=truncated,
            age=self._age,
        )
        self._age = np.where(done, 0, self._age + 1)

    def sample_rows(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the rows of `count` random transitions, and their weights."""
        if not self.settings.alpha:
            return self.random_rows(count, self._rng), np.ones(count, np.float32)
        bounds = np.cumsum(self.priorities, dtype=np.float64)
        # Twice as many, since some begin before the first whole stack, or have not ended.
        rows = np.searchsorted(bounds, self._rng.random(2 * count) * bounds[-1], side="right")
        since = (rows // self.num_envs - self.first_step) % self.num_steps
        rows = rows[since < self.num_added - self.n_steps - self.first_step][:count]
        rows = rows if len(rows) == count else self.random_rows(count, self._rng)
        likelihood = self.priorities[rows]
        return rows, (likelihood / likelihood.min()) ** -self.settings.beta

    def update_priorities(self, rows: NDArray[np.int64], td_errors: NDArray[np.float32]) -> None:
        """Set the priorities of transitions from their TD errors."""
        self.priorities[rows] = (np.abs(td_errors) + 1e-3) ** self.settings.alpha


class DoubleDQN(DQN):
    """DQN with double Q-learning, and a schedule of work that suits CPUs.

    With `ema_decay` > 0, the exponential moving average of the weights, w <- decay * w + (1 - decay) * q_net after each
    gradient step, is evaluated and stored (Izmailov 2018, arXiv 1803.05407, use a uniform average). It is not part of
    checkpoints.
    """

    def __init__(self, *args: Any, ema_decay: float = 0.0, **kwargs: Any) -> None:
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay: expected a number from 0 to below 1, found {ema_decay}")
        self.ema_decay = ema_decay
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        n_steps = self.n_steps
        self.replay_buffer_class = PrioritizedReplay  # type: ignore[assignment]
        self.replay_buffer_kwargs = {**self.replay_buffer_kwargs, "n_steps": n_steps, "gamma": self.gamma}
        self.n_steps = 1  # SB3 would warn about n_steps with another buffer class
        super()._setup_model()
        self.n_steps = n_steps
        if len(self.observation_space.shape or ()) == 3:
            keep_scale(self.q_net)
            self.q_net_target.load_state_dict(self.q_net.state_dict())
            self.policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._num_due = 0
        self._average: list[torch.Tensor] = []
        self._averaged = 0
        # Each thread has a part of the batch and the whole network: threads within one operation wait for each other.
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Schedule `gradient_steps`, which run during the next step of the environments."""
        self._num_due += gradient_steps
        if isinstance(self.env, SteppingVecEnv):
            self.env.while_stepping = self._run_due_steps
        else:
            self._run_due_steps()

    def _run_due_steps(self) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for _ in range(self._num_due):
            self._gradient_step()
        self.policy.set_training_mode(False)
        self._n_updates += self._num_due
        self._num_due = 0

    def _gradient_step(self) -> None:
        buffer: Any = self.replay_buffer
        rows, weights = buffer.sample_rows(self.batch_size)
        batch = to_device(buffer.transitions(rows), self.device)
        weight = torch.from_numpy(weights).to(self.device)
        fields = (batch.obs, batch.action, batch.reward, batch.next_obs, batch.discount, weight)
        parts = zip(*(field.chunk(self._pool._max_workers) for field in fields), strict=True)
        td_errors, gradients = zip(*self._pool.map(self._errors_and_gradients, parts), strict=True)
        for parameter, *summands in zip(self.q_net.parameters(), *gradients, strict=True):
            parameter.grad = reduce(torch.Tensor.add_, summands).div_(len(rows))
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        if self.ema_decay:
            self._add_to_average()
        if buffer.settings.alpha:
            buffer.update_priorities(rows, torch.cat(td_errors).cpu().numpy())

    def _errors_and_gradients(self, part: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the TD errors of a part of a batch, and the gradients of the sum of its losses."""
        obs, action, reward, next_obs, discount, weight = part
        with torch.no_grad():
            scaled = self._scaled(next_obs)
            best = self._q_values(self.q_net, scaled).argmax(1, keepdim=True)
            target = reward + discount * self._q_values(self.q_net_target, scaled).gather(1, best).squeeze(1)
        current = self._q_values(self.q_net, self._scaled(obs)).gather(1, action[:, None]).squeeze(1)
        loss = (weight * F.smooth_l1_loss(current, target, reduction="none")).sum()
        return target - current.detach(), torch.autograd.grad(loss, list(self.q_net.parameters()))

    def _add_to_average(self) -> None:
        parameters = [parameter.detach() for parameter in self.q_net.parameters()]
        if not self._average:
            self._average = [parameter.clone() for parameter in parameters]
        # A short average at first, or the initial weights would be most of it.
        decay = min(self.ema_decay, self._averaged / (self._averaged + 10))
        torch._foreach_lerp_(self._average, parameters, 1 - decay)
        self._averaged += 1

    @contextmanager
    def acting_on_average(self) -> Iterator[None]:
        """Replace the weights of `q_net` by their average within the context."""
        parameters = [parameter.data for parameter in self.q_net.parameters()]
        original = [parameter.clone() for parameter in parameters]
        try:
            if self._average:
                torch._foreach_copy_(parameters, self._average)
            yield
        finally:
            torch._foreach_copy_(parameters, original)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_pool", "_average", "_averaged"]

    def _scaled(self, obs: torch.Tensor) -> torch.Tensor:
        # Not SB3's preprocess_obs: on CPUs its float32 copies of a batch of frames cost as much as the convolutions.
        if not self.policy.normalize_images or obs.dtype != torch.uint8:
            return obs.float()
        return obs.to(_fastest_dtype(self.device.type), memory_format=torch.channels_last).mul_(1 / 255)

    def _q_values(self, net: QNetwork, scaled_obs: torch.Tensor) -> torch.Tensor:
        extractor = net.features_extractor
        if scaled_obs.dtype == torch.bfloat16 and isinstance(extractor, NatureCNN):
            # The convolutions alone: the action gaps of Pong are smaller than bfloat16's steps near its Q values.
            with torch.autocast(self.device.type, torch.bfloat16):
                features = extractor.cnn(scaled_obs)
            features = extractor.linear(features.float())
        else:
            features = extractor(scaled_obs.float())
        q_values: torch.Tensor = net.q_net(features)
        return q_values

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        """Return epsilon-greedy actions, random for each environment on its own (SB3 decides once for all)."""
        obs, vectorized = self.policy.obs_to_tensor(observation)
        with torch.no_grad():
            q_values = self._q_values(self.q_net, self._scaled(obs))  # type: ignore[arg-type]
        action = q_values.argmax(1).cpu().numpy()
        if not deterministic:
            explores = np.random.rand(len(action)) < self.exploration_rate
            random = np.random.randint(0, self.action_space.n, len(action))  # type: ignore[attr-defined]
            action = np.where(explores, random, action)
        return (action if vectorized else action[0]), state


@cache
def _fastest_dtype(device: str) -> torch.dtype:
    # A CPU that only emulates bfloat16 takes ten times as long with it.
    cpu = torch.cpu.get_capabilities()
    return torch.bfloat16 if device == "cuda" or cpu.get("avx512_bf16") or cpu.get("amx_bf16") else torch.float32
