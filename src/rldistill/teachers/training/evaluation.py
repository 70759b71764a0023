"""Watches over a teacher's training: evaluates it, keeps its best policy and its curve, leaves checkpoints."""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from rldistill.envs.atari import is_atari
from rldistill.envs.config import EnvConfig
from rldistill.envs.seeding import Purpose, episode_seed
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.io.atomic import write_atomic
from rldistill.io.jsonl import read_jsonl
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress
from rldistill.io.provenance import provenance
from rldistill.students.storage import save_policy
from rldistill.teachers.sb3.load import to_native
from rldistill.teachers.training.dqn import DoubleDQN
from rldistill.teachers.training.vec_env import SteppingVecEnv

if TYPE_CHECKING:
    from rldistill.teachers.training.config import TrainConfig


class EvalCheckpointCallback(BaseCallback):
    """Evaluates, keeps the best policy, checkpoints, reports progress."""

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
        # Means over fewer episodes scatter more widely: the best of those would never be reached again.
        judged = [row["mean"] for row in self.rows if len(row["returns"]) >= config.eval_episodes]
        self.best = max(judged, default=-np.inf)
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
        """Evaluate what training ended with, unless that has been done."""
        if not self.rows or self.rows[-1]["step"] < self.model.num_timesteps:
            self.evaluate()

    def evaluate(self) -> None:
        """One row of the curve, a checkpoint, and the policy if it is the best so far."""
        average = self.model.acting_on_average() if isinstance(self.model, DoubleDQN) else nullcontext()
        with average:
            self._evaluate_and_keep()
        self.save_checkpoint()

    def _evaluate_and_keep(self) -> None:
        with closing(
            training_env(self.env_config, min(self.config.eval_episodes, 8), self.run_seed, "evaluate")
        ) as env:
            returns, _ = evaluate_policy(
                self.model, env, self.config.eval_episodes, return_episode_rewards=True, warn=False
            )
        row = {
            "step": self.model.num_timesteps,
            "updates": int(getattr(self.model, "_n_updates", 0)),
            "seconds": round(time.monotonic() - self.started, 1),
            "mean": float(np.mean(returns)),
            "returns": np.asarray(returns).tolist(),
        }
        if row["mean"] >= self.best:
            self.best = row["mean"]
            about = provenance(self.run_seed) | {
                "env_steps": self.model.num_timesteps,
                "algorithm": self.config.algorithm,
                "mean_return": self.best,
            }
            save_policy(to_native(self.model, self.spec), self.folder, about, half=self.spec.frames is not None)
            self.save_checkpoint("best")
        self.rows.append(row)
        # Before the checkpoint: on resume, rows beyond it are dropped, but a row that is missing is not made up for.
        Metrics(self.folder, "curve.jsonl").write(self.rows)

    def save_checkpoint(self, name: str = "last") -> None:
        """The whole of the algorithm but its replay buffer."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                self.model.save(file, exclude=["_sample_action"])

        write_atomic(self.folder / "checkpoints" / f"{name}.zip", write)
        self.next_checkpoint = self._next(self.config.checkpoint_every)


def training_env(env: EnvConfig, num_envs: int, seed: int, purpose: Purpose) -> SteppingVecEnv:
    clipped = {"reward_clipping": True} if is_atari(env.id) and purpose == "train" else {}
    config = replace(env, kwargs={**env.kwargs, **clipped})
    return SteppingVecEnv(
        make_vector_env(config, num_envs, lambda slot, episode: seed_of(seed, purpose, slot, episode))
    )


def seed_of(seed: int, purpose: Purpose, slot: int, episode: int) -> int:
    # Round 1: the best policy must not be chosen by the episodes that it is later judged by, which are of round 0.
    return episode_seed(seed, purpose, 1 if purpose == "evaluate" else 0, 0, slot, episode)
