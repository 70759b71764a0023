"""Measurements of a certificate, for which all formats share observations and episodes."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.evaluation.episodes import Episodes, PlayConfig, play
from rldistill.evaluation.non_inferiority import non_inferior
from rldistill.evaluation.statistics import estimate, mean
from rldistill.exporters.certificate import ClosedLoop
from rldistill.exporters.comparison import (
    CONSECUTIVE_STEPS,
    States,
    batch_difference,
    compare,
    consecutive_difference,
    consecutive_states,
    equal_actions,
    extreme_states,
    own_states,
    states_of,
)
from rldistill.exporters.config import ExportConfig, Format
from rldistill.exporters.cost import c_latency, flash_bytes, onnx_latency
from rldistill.exporters.runtimes import CRuntime, ExportedPolicy, Interface, OnnxRuntime
from rldistill.exporters.vectors import NUM_STEPS
from rldistill.io.progress import Progress
from rldistill.policies.cost import Cost, measure_cost

MAX_NODE_STATES = 256
"""States that are compared in JavaScript, where a picture takes a second."""


@dataclasses.dataclass
class Measures:
    """Comparisons of exported files with the original policy.

    Attributes:
        policy: The original.
        env: Environment as the policy observes it.
        interface: Observations, head and state of the policy.
        config: Numbers of states and episodes.
        seed: Seed of the episodes.
        dataset: Dataset with held-out observations, if there is one.
        progress: Receiver of the number of finished episodes.
    """

    policy: Policy
    env: EnvConfig
    interface: Interface
    config: ExportConfig
    seed: int
    dataset: Dataset | None
    progress: Progress

    def fields(self, name: Format, runtime: ExportedPolicy, folder: Path) -> dict[str, Any]:
        """Return the fields of a format's record in the certificate."""
        limit = MAX_NODE_STATES if name == "html" else self.config.states
        sources = {"own": self.own.first(limit)}
        if self.heldout is not None:
            sources["dataset"] = self.heldout.first(limit)
        sources |= extreme_states(self.env, self.policy, self.consecutive)
        found: dict[str, Any] = {
            "differences": {source: compare(self.policy, runtime, states) for source, states in sources.items()},
            "batches": batch_difference(self.policy, runtime, self.own.first(64)),
        }
        if runtime.state_shape is not None:
            found["consecutive"] = consecutive_difference(self.policy, runtime, self.consecutive)
        if name == "html":
            found["remark"] = f"compared on at most {MAX_NODE_STATES} states, and not played"
        else:
            found["closed_loop"] = self.closed_loop(runtime)
        if isinstance(runtime, OnnxRuntime):
            found["latency_us"] = onnx_latency(runtime)
        if isinstance(runtime, CRuntime):
            found["latency_us"] = c_latency(folder, self.interface.spec, ("-O2",), self.cost.macs or 0)
            found["flash"] = flash_bytes(folder)
        return found

    def closed_loop(self, runtime: ExportedPolicy) -> ClosedLoop:
        """Play the same episodes with an exported file as with the original."""
        episodes = self.play(runtime)
        test = non_inferior(episodes.returns[None], self.original.returns[None], self.random.returns[None])
        identical = np.array_equal(episodes.returns, self.original.returns)
        return ClosedLoop(
            episodes=len(episodes.returns),
            mean=float(episodes.returns.mean()),
            ci95=estimate(mean, episodes.returns[None]).ci95,
            original_mean=float(self.original.returns.mean()),
            equal_actions=equal_actions(self.original, episodes),
            keeps_95="identical" if identical else test.decision,
        )

    @cached_property
    def cost(self) -> Cost:
        """Parameters, multiply-adds and latency of the original."""
        return measure_cost(self.policy)

    @cached_property
    def own(self) -> States:
        """States of the original's play."""
        return own_states(self.env, self.policy, self.config.states, self.seed)

    @cached_property
    def consecutive(self) -> States:
        """Consecutive steps of the original: as many as the test vectors need, more for a recurrent policy."""
        count = NUM_STEPS if self.interface.state_shape is None else CONSECUTIVE_STEPS
        return consecutive_states(self.env, self.policy, count, self.seed)

    @cached_property
    def heldout(self) -> States | None:
        """Held-out observations of the dataset, which are those of the teacher's play."""
        dataset = self.dataset
        if dataset is None or dataset.spec.obs_shape != self.policy.spec.obs_shape or not dataset.heldout.any():
            return None
        rows = np.flatnonzero(dataset.heldout)[: self.config.states]
        return states_of(self.policy, dataset.observations(rows))

    @cached_property
    def original(self) -> Episodes:
        """Episodes of the original."""
        return self.play(self.policy)

    @cached_property
    def random(self) -> Episodes:
        """Episodes of random play."""
        return self.play(None)

    def play(self, policy: Policy | None) -> Episodes:
        """Play the episodes of the certificate."""
        return play(self.env, policy, self.config.episodes, PlayConfig(self.seed), progress=self.progress)
