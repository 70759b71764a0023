"""Evaluation of candidates, without playing any episode twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig, Side
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.statistics import Returns, normalized_interval, normalized_score
from rldistill.io.atomic import read_json, write_json


@dataclass(frozen=True)
class SearchEvaluator:
    """Returns of policies, stored in files.

    Attributes:
        env: environment as the teacher needs it.
        teacher: teacher of the run.
        seed: seed of the episodes.
        folder: folder for the returns of the teacher and of random play.
    """

    env: EnvConfig
    teacher: Policy
    seed: int
    folder: Path

    def returns(self, policy: Policy | None, episodes: int, split: int, folder: Path) -> NDArray[np.float64]:
        """Return the returns of the first `episodes` of a split; those that are not in `folder` yet are played."""
        file = folder / f"returns-{split}.json"
        returns = np.array(read_json(file)["returns"] if file.exists() else [], float)
        if (missing := episodes - len(returns)) > 0:
            side: Side = "teacher" if policy is self.teacher else "student"
            plan = PlayConfig(self.seed, split, len(returns), side)
            more = play(self.env, policy, missing, plan).returns
            returns = np.concatenate([returns, more])
            write_json(file, {"returns": returns.tolist()})
        return returns[:episodes]

    def reference(self, name: Literal["teacher", "random"], episodes: int, split: int) -> Returns:
        """Return the returns `[1, episodes]` of the teacher or of random play."""
        policy = self.teacher if name == "teacher" else None
        return self.returns(policy, episodes, split, self.folder / name)[None]

    def normalized(self, returns: Returns, split: int) -> dict[str, Any]:
        """Return the normalized score of returns `[seeds, episodes]` and its 95% interval."""
        teacher, random = (self.reference(name, returns.shape[1], split) for name in ("teacher", "random"))
        interval = normalized_interval(returns, teacher, random)
        return {"normalized": normalized_score(returns, teacher, random), "ci95": interval and [*interval]}
