"""Evaluation and checkpoints during the training of a teacher."""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from rldistill.core.spec import EnvConfig
from rldistill.envs.atari import is_atari
from rldistill.envs.seeding import Purpose, episode_seed
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.io.atomic import read_jsonl, write_atomic
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress
from rldistill.io.provenance import provenance
from rldistill.students.storage import save_policy
from rldistill.teachers.sb3.load import to_native
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.dqn import DoubleDQN, SteppingVecEnv


class EvalCheckpointCallback(BaseCallback):
    """Callback that evaluates the policy, stores the best one, saves checkpoints and reports progress."""

    def __init__(
        self,
        model: BaseAlgorithm,
        env: EnvConfig,
        config: TrainConfig,
        folder: Path,
        seed: int,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.model = model
        self.env_config, self.config, self.folder, self.run_seed = env, config, folder, seed
        self.progress = progress
        self.spec = spec_from_env(env)
        self.rows = [row for row in read_jsonl(folder / "curve.jsonl") if row["step"] <= model.num_timesteps]
        # Means over fewer episodes scatter more widely, so that the best of them might never be reached again.
        means = [row["mean"] for row in self.rows if len(row["returns"]) >= config.eval_episodes]
        self.best = max(means, default=-np.inf)
        self.started = time.monotonic() - (self.rows[-1]["seconds"] if self.rows else 0.0)

    def _on_training_start(self) -> None:
        self.next_eval = self._next(self.config.eval_every)
        self.next_checkpoint = self._next(self.config.checkpoint_every)

    def _next(self, every: int) -> int:
        return (self.model.num_timesteps // every + 1) * every

    def _on_step(self) -> bool:
        score = self.rows[-1]["mean"] if self.rows else None
        self.progress.update(self.num_timesteps, self.config.total_steps, score)
        if self.num_timesteps >= self.next_eval:
            self.next_eval = self._next(self.config.eval_every)
            self.evaluate()
        elif self.num_timesteps >= self.next_checkpoint:
            self.save_checkpoint()
        return True

    def finish(self) -> None:
        """Evaluate the last policy, unless the curve has it."""
        if not self.rows or self.rows[-1]["step"] < self.model.num_timesteps:
            self.evaluate()

    def evaluate(self) -> None:
        """Append a row to the curve, store the policy if it is the best so far, and save a checkpoint."""
        config, model = self.config, self.model
        averaged = model.acting_on_average() if isinstance(model, DoubleDQN) else nullcontext()
        num_envs = min(config.eval_episodes, 8)
        with averaged, closing(training_env(self.env_config, num_envs, self.run_seed, "evaluate")) as env:
            returns, _ = evaluate_policy(model, env, config.eval_episodes, return_episode_rewards=True, warn=False)
            row = {
                "step": model.num_timesteps,
                "updates": int(getattr(model, "_n_updates", 0)),
                "seconds": round(time.monotonic() - self.started, 1),
                "mean": float(np.mean(returns)),
                "returns": np.asarray(returns).tolist(),
            }
            if row["mean"] >= self.best:
                self.best = row["mean"]
                details = {"env_steps": row["step"], "algorithm": config.algorithm, "mean_return": self.best}
                details = provenance(self.run_seed) | details
                save_policy(to_native(model, self.spec), self.folder, details, half=self.spec.frames is not None)
                self.save_checkpoint("best")
        self.rows.append(row)
        Metrics(self.folder, "curve.jsonl").write(self.rows)
        # After the row: on resume, later rows are dropped, but a missing one is not added.
        self.save_checkpoint()

    def save_checkpoint(self, name: str = "last") -> None:
        """Save the algorithm without its replay buffer."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                self.model.save(file, exclude=["_sample_action"])

        write_atomic(self.folder / "checkpoints" / f"{name}.zip", write)
        self.next_checkpoint = self._next(self.config.checkpoint_every)


def training_env(env: EnvConfig, num_envs: int, seed: int, purpose: Purpose) -> SteppingVecEnv:
    """Return environments of SB3; rewards of Atari are clipped to their signs in training."""
    if is_atari(env.id) and purpose == "train":
        env = replace(env, kwargs={**env.kwargs, "reward_clipping": True})
    return SteppingVecEnv(make_vector_env(env, num_envs, lambda *episode: seed_of(seed, purpose, *episode)))


def seed_of(seed: int, purpose: Purpose, slot: int, episode: int) -> int:
    """Return the seed of an episode, other than those of the final evaluation, so that these do not select a policy."""
    return episode_seed(seed, purpose, 1 if purpose == "evaluate" else 0, 0, slot, episode)
